"""Arguments of plans that make no sense are refused before anything is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, is_array
from growarray.errors import PlanError

__all__ = ["check_arrays", "device_kind"]


def device_kind(device: Any) -> str:
    """``'cpu'`` or ``'gpu'`` for a device name as in :func:`growarray.backend.library`."""
    name = "cpu" if device is None else str(device)
    if name == "cpu":
        return name
    if name in ("gpu", "cuda") or (name.startswith("cuda:") and name[5:].isdigit()):
        return "gpu"
    raise PlanError(f"device: found {device!r}, expected None, 'cpu', 'cuda' or 'cuda:N'")


def check_arrays(equation: str, arrays: Sequence[Array]) -> None:
    """Raise TypeError unless all arrays are real floating and of one dtype."""
    first = None
    for i, x in enumerate(arrays):
        if not is_array(x) or isinstance(x, np.generic):
            raise TypeError(
                f"operand {i} of '{equation}' is {type(x).__name__}, expected an array; convert it with numpy.asarray"
            )
        name = str(getattr(x, "dtype", type(x).__name__)).rpartition(".")[2]
        if not name.startswith("float"):
            raise TypeError(
                f"operand {i} of '{equation}' is {name}, expected a floating-point array; convert it with astype"
            )
        if first is not None and name != first:
            raise TypeError(f"operand {i} of '{equation}' is {name}, operand 0 is {first}; convert one with astype")
        first = name
