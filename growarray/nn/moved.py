"""What modules that move values along axes share: checks of options and axes, and indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growarray.contraction.checks import is_ordered, is_whole
from growarray.errors import ShapeError, shown
from growarray.nn.module import Module


def whole_numbers(where: str, option: str, values: Sequence[int]) -> tuple[int, ...]:
    """An option that is a list of whole numbers as a tuple; raises TypeError for anything else.

    >>> whole_numbers("doc", "axes", [1, 2])
    (1, 2)
    """
    numbers = tuple(values) if is_ordered(values) else ()
    if not is_ordered(values) or not all(is_whole(v) for v in numbers):
        raise TypeError(f"{where}: {option} must be whole numbers in order, found {shown(values)}")
    return tuple(int(v) for v in numbers)


def counted_axes(where: str, axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """The axes counted from the first; raises ShapeError if one is not there or is named twice.

    >>> counted_axes("doc", (0, -1), 3)
    (0, 2)
    """
    counted = tuple(axis + ndim if axis < 0 else axis for axis in axes)
    if any(not 0 <= axis < ndim for axis in counted) or len(set(counted)) < len(counted):
        raise ShapeError(f"{where}: axes {tuple(axes)} of {ndim} axes; expected each from {-ndim} to {ndim - 1}, once")
    return counted


def at_axis(ndim: int, axis: int, part: Any) -> tuple[Any, ...]:
    """The index that takes ``part`` along one axis, and everything along the others.

    >>> at_axis(2, 1, 0)
    (slice(None, None, None), 0)
    """
    return (*(slice(None),) * axis, part, *(slice(None),) * (ndim - axis - 1))


class Moved(Module):
    """Base of the modules that move values and do not change them."""

    slope_at_zero = 1.0
