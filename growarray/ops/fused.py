"""Operations that have kernels of their own on CuPy, beside the portable ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from growarray.backend import is_cupy, load

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def fused(portable: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """``portable``; for arrays of CuPy the function of that name in ``growarray.cuda``, in the file of that name.

    It takes the same arguments, and gives None for what it has no kernel for.
    """
    module, name = portable.__module__.rpartition(".")[2], portable.__name__.lstrip("_")

    @functools.wraps(portable)
    def chosen(*arguments: _Given.args, **options: _Given.kwargs) -> _Result:
        if type(arguments[0]) is not np.ndarray and is_cupy(arguments[0]):
            found: Any = getattr(load(f"growarray.cuda.{module}"), name)(*arguments, **options)
            if found is not None:
                result: _Result = found
                return result
        return portable(*arguments, **options)

    return chosen
