"""Planes of feature maps as the memory that they lie in, for loops that Numba compiles, if it is installed."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from operator import mul
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from growarray.contraction.problem import Axis

if TYPE_CHECKING:
    from growarray.contraction.routines.loops import Tables

_SMALL = 1 << 12  # results up to which planes are taken together: each has its own overhead
_PLANE = 1 << 15  # results of a plane that are computed at a time: their buffers stay in the cache of a core
_COPIES = 80  # elements more in a row, those of all taps together, from which padding takes less time than copies


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether Numba is installed; ``GROWARRAY_FAST=0``, set before the first plan, leaves it alone."""
    return os.environ.get("GROWARRAY_FAST", "1") != "0" and find_spec("numba") is not None


class Split(NamedTuple):
    """Axes that number the planes, those of a plane, and how many results along its first axis at a time."""

    outer: tuple[Axis, ...]
    inner: tuple[Axis, ...]
    block: int


def split(axes: tuple[Axis, ...]) -> Split:
    """Planes are as small as they can be, but not so small that each does next to nothing."""
    first = next((i for i, axis in enumerate(axes) if not axis.is_plain), len(axes) - 1)
    while first and math.prod(a.out for a in axes[first - 1 :]) <= _SMALL:
        first -= 1
    inner = axes[first:]
    rows = _PLANE // max(math.prod(a.out for a in inner[1:]), 1)
    return Split(axes[:first], inner, max(min(rows, inner[0].out), 1))


def phases(axis: Axis) -> list[int]:
    """Those of the stride at which some tap reads."""
    return sorted({tap * axis.dilation % axis.stride for tap in range(axis.taps)})


def length(axis: Axis) -> int:
    """Positions of one phase in the buffer."""
    return axis.out + (axis.taps - 1) * axis.dilation // axis.stride


def keeps_rows(axis: Axis) -> bool:
    """Whether results are as many as what they read, and a copy for each tap takes less time than row after row."""
    return axis.stride == 1 and axis.out == axis.size and (axis.taps - 1) * axis.out <= _COPIES


class Flat:
    """A feature map or a result as the memory that it lies in.

    starts : of every plane    steps : in a plane
    lead : axes that number the planes    into : whether it is written to
    """

    __slots__ = ("array", "starts", "steps")

    def __init__(self, array: np.ndarray, lead: int, into: bool = False) -> None:
        corner, size, self.starts, self.steps = _lie(array.shape, array.strides, array.itemsize, lead)
        self.array = as_strided(array[corner], (size,), (array.itemsize,), writeable=into)


@lru_cache(maxsize=1024)
def _lie(shape: tuple[int, ...], strides: tuple[int, ...], item: int, lead: int) -> tuple[Any, int, np.ndarray, Any]:
    """The element with the lowest address, elements from there to the highest, where planes begin, steps in them."""
    steps = [step // item for step in strides]
    ends = [(size - 1) * step for size, step in zip(shape, steps, strict=True)]
    starts = np.asarray(-sum(min(end, 0) for end in ends))
    for size, step in zip(shape[:lead], steps, strict=False):
        starts = starts[..., None] + np.arange(size) * step
    corner = [slice(-1, None) if end < 0 else slice(None) for end in ends]
    return tuple(corner), sum(map(abs, ends)) + 1, starts.reshape(-1), tuple(steps[lead:])


class _Row(NamedTuple):
    """A copy of a row: its positions ``low`` to ``high`` hold the values from ``column`` on, but zeros at ``gone``."""

    low: int
    high: int
    column: int
    gone: Sequence[int]


class _Rows(NamedTuple):
    """How rows lie in the buffer: their length, the copies that there are of each, for each tap the copy that it reads
    and from which position on, and how far taps read beyond the first and the last row."""

    length: int
    copies: Sequence[_Row]
    taps: Sequence[tuple[int, int]]
    ahead: int
    behind: int


def _rows(axis: Axis, even: bool) -> _Rows:
    places = [tap * axis.dilation for tap in range(axis.taps)]
    if even and keeps_rows(axis):
        size, shifts, ahead = axis.size, [place - axis.before for place in places], max(axis.before, 0)
        copies = [_Row(0, size, 0, [c for c in range(size) if not 0 <= c - shift < size]) for shift in shifts]
        return _Rows(size, copies, [(t, ahead + s) for t, s in enumerate(shifts)], ahead, max(*shifts, 0))
    found, held = phases(axis), length(axis)
    copies = [_Row(*_inside(axis, phase, held), ()) for phase in found]
    taps = [(found.index(place % axis.stride), place // axis.stride) for place in places]
    return _Rows(held, copies, taps, 0, 0)


@lru_cache(maxsize=1024)
def tables(axes: tuple[Axis, ...], apart: tuple[int, ...], steps: tuple[int, ...], even: bool = True) -> Tables:
    """For planes with these axes, and elements from one position to the next, in the source and in the result.

    even : whether rows may lie end to end, if the last axis allows it: each of its taps then has a copy of its own,
    without padding, and with zeros where it would read into the next row
    """
    from growarray.contraction.routines.loops import Tables

    *others, last = axes
    found, row = [phases(axis) for axis in others], _rows(last, even)
    lengths = [*map(length, others), row.length]
    span = math.prod(lengths) + row.ahead + row.behind
    lines: list[tuple[int, int, int]] = []
    zeros: list[int] = []
    for index, (residues, copy) in enumerate(itertools.product(itertools.product(*found), row.copies)):
        first = index * span + row.ahead
        for places in itertools.product(*map(range, lengths[:-1])):
            read = [p * a.stride + r - a.before for p, a, r in zip(places, others, residues, strict=True)]
            if copy.high > copy.low and all(0 <= at < a.size for at, a in zip(read, others, strict=True)):
                into = first + _flat_index((*places, copy.low), lengths)
                lines.append((into, sum(map(mul, (*read, copy.column), apart)), copy.high - copy.low))
                zeros += [into + column for column in copy.gone]
    offsets = []
    for taps, (chosen, place) in itertools.product(itertools.product(*(range(a.taps) for a in others)), row.taps):
        at = [divmod(tap * a.dilation, a.stride) for tap, a in zip(taps, others, strict=True)]
        copies = [f.index(phase) for f, (_, phase) in zip(found, at, strict=True)]
        index = _flat_index((*copies, chosen), [*map(len, found), len(row.copies)])
        offsets.append(index * span + _flat_index((*(p for p, _ in at), place), lengths))
    results = [
        (_flat_index((*places, 0), lengths), sum(map(mul, places, steps)), last.out)
        for places in itertools.product(*(range(a.out) for a in others))
    ]
    lines = _end_to_end(lines) if apart[-1] == last.stride == 1 else lines
    results = _end_to_end(results) if steps[-1] == 1 else results
    return Tables(
        span * math.prod(map(len, found)) * len(row.copies), _array(lines), np.array(zeros, np.int64),
        np.array(offsets, np.int64), _array(results), last.stride * apart[-1], steps[-1],
    )  # fmt: skip


def _array(rows: list[tuple[int, int, int]]) -> np.ndarray:
    return np.array(rows, np.int64).reshape(-1, 3)


def _end_to_end(rows: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Rows that follow each other on both sides as one."""
    found = rows[:1]
    for near, far, count in rows[1:]:
        first, second, before = found[-1]
        if (near, far) == (first + before, second + before):
            found[-1] = (first, second, before + count)
        else:
            found.append((near, far, count))
    return found


def _inside(axis: Axis, phase: int, length: int) -> tuple[int, int, int]:
    """First and last + 1 of the positions of a phase that are no padding, and what the first one reads."""
    low = min(max(-((phase - axis.before) // axis.stride), 0), length)
    high = min((axis.size - 1 + axis.before - phase) // axis.stride + 1, length)
    return low, high, low * axis.stride + phase - axis.before


def _flat_index(places: Sequence[int], sizes: Sequence[int]) -> int:
    """The position of (place of each axis) in memory."""
    flat = 0
    for place, size in zip(places, sizes, strict=True):
        flat = flat * size + place
    return flat
