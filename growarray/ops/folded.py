"""Windows with the positions of one axis as channels: few channels become many, which products are fast with.

Their moment holds every pair of positions, and a pair of taps is the sum of those that an output reads by both.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from growarray.contraction.machine import machine_for
from growarray.contraction.problem import Axis
from growarray.contraction.routines.windows import window
from growarray.ops.lags import moment_plan
from growarray.ops.windows import Windows

_LARGEST = 1 << 22  # bytes of the moment of all positions
_CALLS = 6  # calls into the library that adding what a pair of taps reads takes


@lru_cache(maxsize=512)
def folded_axis(
    left: tuple[Axis, ...], right: tuple[Axis, ...], sizes: tuple[int, int, int], symmetric: bool, single: bool
) -> int | None:
    """The axis that is worth folding, None if there is none or no other is left; as :func:`moment_plan` for NumPy."""
    machine = machine_for("cpu")
    best, least = None, moment_plan(left, right, sizes, symmetric, None, single).seconds
    for i in range(len(left)) if len(left) > 1 else ():
        rest = [side[:i] + side[i + 1 :] for side in (left, right)]
        taps = math.prod(axis.taps for side in rest for axis in side)
        held = (sizes[0], sizes[1] * left[i].size, sizes[2] * right[i].size)
        if 8 * held[1] * held[2] * taps > _LARGEST:
            continue
        pairs = left[i].taps * right[i].taps
        seconds = moment_plan(rest[0], rest[1], held, symmetric, None, single).seconds
        seconds += pairs * (_CALLS * machine.call + left[i].out * sizes[1] * sizes[2] * taps * machine.gathered)
        if seconds < least:
            best, least = i, seconds
    return best


def folded(w: Windows, axis: int) -> Windows:
    """The windows with the positions of one axis as channels, (c, positions) flattened.

    >>> import numpy as np
    >>> from growarray.ops.windows import windows
    >>> folded(windows(np.ones((2, 3, 8, 9)), (3, 3)), 0).array.shape
    (2, 24, 9)
    """
    array = np.moveaxis(w.array, axis + 2, 2)
    array = array.reshape(len(array), -1, *array.shape[3:])
    return replace(w, array=array, axes=w.axes[:axis] + w.axes[axis + 1 :])


def spread(moment: np.ndarray, left: Windows, right: Windows, axis: int) -> np.ndarray:
    """The moment of the windows from that of the folded ones: sums of what outputs read with two taps of the axis."""
    sides, count = (left, right), len(left.axes)
    (first, taps), (second, others) = ((w.axes[axis], _others(w, axis)) for w in sides)
    inside, folded_inside = ([slice(length - w.bias) for length, w in zip(shape, sides, strict=True)] for shape in (
        (left.width, right.width), moment.shape
    ))  # fmt: skip
    c, d = (int(w.array.shape[1]) for w in sides)
    block = moment[folded_inside[0], folded_inside[1]].reshape(c, first.size, -1, d, second.size, math.prod(others))
    total = np.empty((first.taps, second.taps, c, math.prod(taps), d, math.prod(others)))
    for s, t in itertools.product(range(first.taps), range(second.taps)):
        if left is right and t < s:
            total[s, t] = total[t, s].transpose(2, 3, 0, 1)
            continue
        ends = [window(first, s, 0, first.out)[:2], window(second, t, 0, second.out)[:2]]
        low, high = max(start for start, _ in ends), min(stop for _, stop in ends)
        rows, columns = window(first, s, low, high)[2], window(second, t, low, high)[2]
        total[s, t] = block[:, rows, :, :, columns].diagonal(axis1=1, axis2=4).sum(axis=-1)
    total = total.reshape(first.taps, second.taps, c, *taps, d, *others)
    out = np.zeros((left.width, right.width))
    out[inside[0], inside[1]] = np.moveaxis(total, (0, 1), (1 + axis, 2 + count + axis)).reshape(
        out[inside[0], inside[1]].shape
    )
    if right.bias:
        out[inside[0], -1] = _sums(moment[folded_inside[0], -1], left, axis)
    if left.bias:
        out[-1, inside[1]] = out[inside[0], -1] if left is right else _sums(moment[-1, folded_inside[1]], right, axis)
    if left.bias and right.bias:
        out[-1, -1] = moment[-1, -1] * first.out
    return out


def _others(w: Windows, axis: int) -> list[int]:
    """Taps of the other axes."""
    return [other.taps for i, other in enumerate(w.axes) if i != axis]


def _sums(sums: np.ndarray, w: Windows, axis: int) -> np.ndarray:
    """The sum of each feature, from those at all positions of the axis."""
    along, others = w.axes[axis], _others(w, axis)
    block = sums.reshape(-1, along.size, math.prod(others))
    read = (window(along, tap, 0, along.out)[2] for tap in range(along.taps))
    total = np.stack([block[:, positions].sum(axis=1) for positions in read])
    return np.moveaxis(total.reshape(along.taps, len(block), *others), 0, 1 + axis).reshape(-1)
