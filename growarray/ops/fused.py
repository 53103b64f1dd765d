"""Decorators of operations: kernels of their own on CuPy beside the portable code, and float32 for half precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from growarray.backend import is_array, is_cupy, library_of, load

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def fused(portable: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """``portable``; for arrays of CuPy the function of that name in ``growarray.cuda``, in the file of that name.

    It takes the same arguments, and gives None for what it has no kernel for.
    """
    single = in_single(portable)
    module, name = portable.__module__.rpartition(".")[2], portable.__name__.lstrip("_")

    @functools.wraps(portable)
    def chosen(*arguments: _Given.args, **options: _Given.kwargs) -> _Result:
        if type(arguments[0]) is not np.ndarray and is_cupy(arguments[0]):
            fast: Any = getattr(load(f"growarray.cuda.{module}"), name)(*arguments, **options)
            if fast is not None:
                result: _Result = fast
                return result
        return single(*arguments, **options)

    return chosen


def in_single(operation: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """``operation``, which computes in float32 if its first array is of half precision: a sum of halves overflows soon.

    >>> mean = in_single(lambda x: (x.sum() / x.size, lambda dy: dy))
    >>> y, pullback = mean(np.full(4, 3e4, np.float16))
    >>> float(y), y.dtype
    (30000.0, dtype('float16'))
    """

    @functools.wraps(operation)
    def chosen(*arguments: _Given.args, **options: _Given.kwargs) -> _Result:
        if getattr(getattr(arguments[0], "dtype", None), "char", "") != "e":  # of NumPy's dtypes, which others have too
            return operation(*arguments, **options)
        result: Any = operation(*_cast(arguments, np.float16, np.float32), **options)
        return cast("_Result", _cast(result, np.float32, np.float16))

    return chosen


def _cast(value: Any, old: Any, new: Any) -> Any:
    """``value`` with arrays of dtype ``old`` as ``new``; its functions take and give arrays that are cast so."""
    if isinstance(value, tuple):
        return tuple(_cast(item, old, new) for item in value)
    if is_array(value):
        return library_of(value).astype(value, new) if value.dtype == old else value
    if callable(value):
        return lambda *arguments, **options: _cast(value(*_cast(arguments, new, old), **options), old, new)
    return value
