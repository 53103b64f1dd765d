"""Windows with the positions of one axis as channels: few channels become many, which products are fast with.

The moment of these holds every pair of positions. A pair of taps sums those that an output reads with both.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

from growarray.backend import Array, assign, device_of, namespace
from growarray.contraction.machine import machine_for
from growarray.contraction.problem import Axis
from growarray.ops.lags import moment_plan
from growarray.ops.windows import Windows

_LARGEST = 1 << 22  # bytes of the moment of all positions
_CALLS = 6  # calls into the library that adding what one output reads takes


@lru_cache(maxsize=512)
def folded_axis(
    left: tuple[Axis, ...], right: tuple[Axis, ...], sizes: tuple[int, int, int], symmetric: bool, single: bool
) -> int | None:
    """The axis that it pays to fold, if there is one beside which another is left; as :func:`moment_plan` for NumPy."""
    machine = machine_for("cpu")
    best, least = None, moment_plan(left, right, sizes, symmetric, None, single).seconds
    for i in range(len(left)) if len(left) > 1 else ():
        rest = [side[:i] + side[i + 1 :] for side in (left, right)]
        taps = math.prod(axis.taps for side in rest for axis in side)
        held = (sizes[0], sizes[1] * left[i].size, sizes[2] * right[i].size)
        if 8 * held[1] * held[2] * taps > _LARGEST:
            continue
        added = sizes[1] * sizes[2] * taps * left[i].taps * right[i].taps
        seconds = moment_plan(rest[0], rest[1], held, symmetric, None, single).seconds
        seconds += left[i].out * (_CALLS * machine.call + added * machine.gathered)
        if seconds < least:
            best, least = i, seconds
    return best


def folded(w: Windows, axis: int) -> Windows:
    """The same with the positions of one axis as channels, (c, positions) flattened.

    >>> import numpy as np
    >>> from growarray.ops.windows import windows
    >>> folded(windows(np.ones((2, 3, 8, 9)), (3, 3)), 0).array.shape
    (2, 24, 9)
    """
    xp, shape = namespace(w.array), w.array.shape
    array = xp.moveaxis(w.array, axis + 2, 2)
    array = xp.reshape(array, (shape[0], shape[1] * shape[axis + 2], *array.shape[3:]))
    return replace(w, array=array, axes=w.axes[:axis] + w.axes[axis + 1 :])


def spread(xp: Any, moment: Array, left: Windows, right: Windows, axis: int) -> Array:
    """The moment of the windows from that of the folded ones: of what each output reads along the axis the sum."""
    out = xp.zeros((left.width, right.width), dtype=xp.float64, device=device_of(moment))
    inside = [slice(w.width - w.bias) for w in (left, right)]
    kept = [slice(length - w.bias) for length, w in zip(moment.shape, (left, right), strict=True)]
    out = assign(out, tuple(inside), _summed(xp, moment[tuple(kept)], (left, right), axis))
    if right.bias:
        out = assign(out, (inside[0], -1), _summed(xp, moment[kept[0], -1], (left,), axis))
    if left.bias:
        row = out[inside[0], -1] if left is right else _summed(xp, moment[-1, kept[1]], (right,), axis)
        out = assign(out, (-1, inside[1]), row)
    if left.bias and right.bias:
        out = assign(out, (-1, -1), moment[-1, -1] * left.axes[axis].out)
    return out


def _summed(xp: Any, block: Array, sides: tuple[Windows, ...], axis: int) -> Array:
    """``block`` has for each side an axis of its features at all positions; the result, of its features."""
    shapes, taps = [], []
    for w in sides:
        channels, along = int(w.array.shape[1]), w.axes[axis]
        others = [one.taps for i, one in enumerate(w.axes) if i != axis]
        shapes.append((channels, along.size, math.prod(others)))
        taps.append((channels, along.taps, *others))
    block = xp.reshape(block, tuple(itertools.chain(*shapes)))
    shape = tuple(itertools.chain(*((c, t, rest) for (c, _, rest), (_, t, *_) in zip(shapes, taps, strict=True))))
    total = xp.zeros(shape, dtype=block.dtype, device=device_of(block))
    everything = slice(None)
    for output in range(sides[0].axes[axis].out):
        found = [_read(w.axes[axis], output) for w in sides]
        into = tuple(itertools.chain(*((everything, used, everything) for used, _ in found)))
        read = tuple(itertools.chain(*((everything, positions, everything) for _, positions in found)))
        total = assign(total, into, block[read], add=True)
    total = xp.reshape(total, tuple(itertools.chain(*taps)))
    for i in range(len(taps)):  # the taps of this axis go back to their place
        start = i * len(taps[0])
        total = xp.moveaxis(total, start + 1, start + 1 + axis)
    return xp.reshape(total, tuple(math.prod(one) for one in taps))


def _read(axis: Axis, output: int) -> tuple[slice, slice]:
    """The taps that do not read padding for one output, and where they read."""
    first = output * axis.stride - axis.before
    low = min(max(-(first // axis.dilation), 0), axis.taps)
    high = max(min((axis.size - 1 - first) // axis.dilation + 1, axis.taps), low)
    start, stop = (first + tap * axis.dilation for tap in (low, high))
    return slice(low, high), slice(start, stop, axis.dilation) if high > low else slice(0)
