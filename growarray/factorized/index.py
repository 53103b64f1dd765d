"""Indices of tensors: integers, slices, tuples and ``...``, and the way back through taking a part of an array."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from growarray.backend import Array, assign, namespace
from growarray.errors import shown

Item = int | slice


def full_index(index: Any, shape: Sequence[int]) -> tuple[Item, ...]:
    """One non-negative integer or one slice for each mode of a tensor of this shape.

    Raises IndexError: there are more entries than modes, an integer is out of range, a slice selects nothing, or an
    entry is neither.

    >>> full_index((-1, ..., slice(0, 2)), (3, 4, 5))
    (2, slice(0, 4, 1), slice(0, 2, 1))
    """
    items = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise IndexError(f"index {shown(index)} has {len(dots)} ellipses, expected at most one")
    missing = len(shape) - len(items) + len(dots)
    if missing < 0:
        raise IndexError(f"index {shown(index)} has {len(items) - len(dots)} entries, the tensor {len(shape)} modes")
    at = dots[0] if dots else len(items)
    items[at : at + len(dots)] = [slice(None)] * missing
    return tuple(_item(item, mode, size) for mode, (item, size) in enumerate(zip(items, shape, strict=True)))


def _item(item: Any, mode: int, size: int) -> Item:
    if isinstance(item, bool):
        raise IndexError(f"mode {mode}: found {shown(item)}, expected a whole number or a slice")
    if isinstance(item, slice):
        try:
            start, stop, step = item.indices(size)
        except (TypeError, ValueError) as error:
            raise IndexError(f"mode {mode}: {item} is not a slice of {size} entries ({error})") from error
        if step < 1 or start >= stop:
            raise IndexError(f"mode {mode}: {item} selects nothing of {size} entries, or runs backwards")
        return slice(start, stop, step)
    try:
        position = operator.index(item)  # an array has __index__, and refuses unless it holds one number
    except TypeError as error:
        raise IndexError(f"mode {mode}: found {shown(item)}, expected a whole number or a slice") from error
    if not -size <= position < size:
        raise IndexError(f"mode {mode}: index {position} is out of range, there are {size} entries")
    return position % size


def take(array: Array, axis: int, item: Item) -> tuple[Array, Callable[[Array], Array]]:
    """The part of ``array`` at ``item`` of an axis, and the way back, which is zero elsewhere. Keeps ``array``.

    >>> import numpy as np
    >>> part, pullback = take(np.ones((2, 3)), 1, 2)
    >>> part.shape, pullback(part).tolist()
    ((2,), [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    """
    if isinstance(item, slice) and item == slice(0, array.shape[axis], 1):
        return array, lambda d_part: d_part
    key = (*(slice(None),) * axis, item, ...)

    def pullback(d_part: Array) -> Array:
        return assign(namespace(array).zeros_like(array), key, d_part)

    return array[key], pullback
