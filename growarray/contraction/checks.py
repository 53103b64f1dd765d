"""Checks of the arguments of plans, before any work."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from growarray.backend import Array, is_array, library_of, namespace
from growarray.errors import PlanError, ShapeError, shown

_TF32 = "tf32"
_DEVICES = {"cpu": "cpu", "gpu": "cuda"}


def is_whole(value: Any) -> bool:
    """Whether ``value`` is a whole number of any library, which a bool is not."""
    try:
        operator.index(value)  # arrays have the method and may refuse it
    except TypeError:
        return False
    return not isinstance(value, bool)


def is_ordered(value: Any) -> bool:
    """Whether ``value`` holds values in an order that counts: a sequence or an array, no word, no set, no mapping."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Set | Mapping)


def operands(option: str, chosen: Any, count: int) -> list[int]:
    """Which of ``count`` operands an option names. Raises PlanError if it names something else."""
    found = list(chosen) if isinstance(chosen, Iterable) else None
    if found is None or not all(is_whole(i) and 0 <= i < count for i in found):
        raise PlanError(
            f"{option}: found {shown(chosen if found is None else found)}, expected operands from 0 to {count - 1}, "
            "as a sequence of whole numbers"
        )
    return [operator.index(i) for i in found]


def device_kind(device: Any) -> str:
    """``'cpu'`` or ``'gpu'`` for a device name as in :func:`growarray.backend.library`."""
    name = "cpu" if device is None else str(device)
    if name == "cpu":
        return name
    if name in ("gpu", "cuda") or (name.startswith("cuda:") and name[5:].isdigit()):
        return "gpu"
    raise PlanError(f"device: found {shown(device)}, expected None, 'cpu', 'cuda' or 'cuda:N'")


def known_precision(precision: str | None) -> str | None:
    """``'tf32'`` or None. Raises PlanError if it is something else."""
    if precision is not None and precision != _TF32:
        raise PlanError(f"precision: found {shown(precision)}, expected None or 'tf32'")
    return precision


def precision_on(precision: str | None, dtype: str, device: str) -> str | None:
    """What a layer was told, where it counts: ``'tf32'`` is for float32 on a GPU."""
    return precision if (dtype, device) == ("float32", "gpu") else None


def precision_of(precision: str | None, dtype: str, device: str) -> str | None:
    """That of a plan; by default what CuPy does: float32 in full, unless CUPY_TF32 is 1.

    Raises PlanError if it is none for this dtype and device.
    """
    if known_precision(precision) is None:
        switched = device == "gpu" and dtype == "float32" and os.environ.get("CUPY_TF32", "0") not in ("", "0")
        return _TF32 if switched else None
    if (dtype, device) != ("float32", "gpu"):
        raise PlanError(
            f"precision: 'tf32' is how a GPU multiplies float32, found {dtype} for device='{_DEVICES[device]}'; leave "
            "it out, or plan for device='cuda' and float32"
        )
    return precision


def check_arrays(equation: str, arrays: Sequence[Array]) -> None:
    """Raise TypeError unless all arrays are real floating and of one dtype."""
    first = known = None
    for i, x in enumerate(arrays):
        if known is not None and type(x) is np.ndarray and x.dtype is known:
            continue  # the common case, at once
        if not is_array(x) or isinstance(x, np.generic):
            raise TypeError(
                f"operand {i} of '{equation}' is {type(x).__name__}, expected an array; convert it with numpy.asarray"
            )
        try:
            library_of(x)
        except TypeError as error:
            raise TypeError(f"operand {i} of '{equation}': {error}") from None
        name = str(getattr(x, "dtype", type(x).__name__)).rpartition(".")[2]
        if not name.startswith("float"):
            raise TypeError(
                f"operand {i} of '{equation}' is {name}, expected a floating-point array of this machine's byte order; "
                "convert it with astype"
            )
        if first is not None and name != first:
            raise TypeError(f"operand {i} of '{equation}' is {name}, operand 0 is {first}; convert one with astype")
        first, known = name, getattr(x, "dtype", None)


def check_out(out: Any, arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> None:
    """Raise unless ``out`` can hold a result of this shape that is made from ``arrays``."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is {type(out).__name__}, expected a NumPy array; omit it to get a new one")
    if out.shape != shape or out.dtype != arrays[0].dtype or not out.flags.writeable:
        raise ShapeError(f"out is {out.dtype} {out.shape}, expected writeable {arrays[0].dtype} {shape}")
    if any(np.may_share_memory(out, x) for x in arrays):
        raise ShapeError("out shares memory with an operand; pass a separate array")
    reach = out.itemsize
    for stride, size in sorted((abs(s), n) for s, n in zip(out.strides, out.shape, strict=True) if n > 1):
        if stride < reach and out.size:
            raise ShapeError(f"out of shape {shape} with strides {out.strides} overlaps itself; pass a separate array")
        reach += stride * (size - 1)


def check_gradient(equation: str, dy: Any, y: Array) -> None:
    """Raise unless ``dy`` is an array of the library, device, dtype and shape of the result ``y``."""
    if not is_array(dy):
        raise TypeError(
            f"pullback of '{equation}': the gradient is {type(dy).__name__}, expected an array like the result; "
            "convert it with asarray"
        )
    namespace(y, dy)
    if tuple(dy.shape) != tuple(y.shape) or dy.dtype != y.dtype:
        raise ShapeError(
            f"pullback of '{equation}': the gradient is {dy.dtype} {tuple(dy.shape)}, the result was {y.dtype} "
            f"{tuple(y.shape)}"
        )
