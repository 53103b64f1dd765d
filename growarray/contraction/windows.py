"""Windows of a convolution: which input positions one tap reads, and copying them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from growarray.contraction.problem import Axis
from growarray.contraction.scratch import borrow

__all__ = ["Gather", "Phases", "Task", "Window", "window"]

Task = Callable[[], object]
"""A piece of work that may run beside others."""


def window(axis: Axis, tap: int, start: int, stop: int) -> tuple[int, int, slice]:
    """Where outputs ``start`` to ``stop`` find their input for one tap: first and last + 1 that do, and the input.

    Positions are counted from ``start``; outside of them the window lies in the padding.
    """
    shift = tap * axis.dilation - axis.before
    low = max(-(shift // axis.stride), start)
    high = min((axis.size - 1 - shift) // axis.stride + 1, stop)
    if high <= low:
        return 0, 0, slice(0, 0)
    first = low * axis.stride + shift
    last = (high - 1) * axis.stride + shift
    return low - start, high - start, slice(first, last + 1, axis.stride)


class Window:
    """What one tap reads along all axes, found once: ``fill`` copies it, and writes zeros where it lies in the padding.

    taps : one of each axis (default: the first)    lead : axes of the arrays before these
    """

    def __init__(self, axes: Sequence[Axis], taps: Sequence[int] | None = None, lead: int = 1) -> None:
        into: list[slice] = [slice(None)] * lead
        read: list[slice] = [slice(None)] * lead
        self._zeros: list[tuple[slice, ...]] = []
        for i, (axis, tap) in enumerate(zip(axes, taps or (0,) * len(axes), strict=True)):
            low, high, piece = window(axis, tap, 0, axis.out)
            here = (slice(None),) * (lead + i)
            if low > 0:
                self._zeros.append((*here, slice(0, low)))
            if high < axis.out:
                self._zeros.append((*here, slice(high, None)))
            into.append(slice(low, high))
            read.append(piece)
        self._into, self._read = tuple(into), tuple(read)

    def fill(self, target: np.ndarray, source: np.ndarray) -> None:
        """``target`` (b, *outs) from ``source`` (b, *sizes)."""
        for place in self._zeros:
            target[place] = 0
        target[self._into] = source[self._read]


class Phases:
    """A padded feature map cut by the phases of the strides, so that what every tap reads has no stride any more."""

    def __init__(self, axes: Sequence[Axis], lead: int = 1) -> None:
        self.reach = tuple(a.out + (a.taps - 1) * a.dilation // a.stride for a in axes)
        phases = [sorted({t * a.dilation % a.stride for t in range(a.taps)}) for a in axes]
        grid = list(itertools.product(*phases))
        self.windows = [
            Window(
                [a._replace(out=r, before=a.before - p) for a, r, p in zip(axes, self.reach, phase, strict=True)],
                lead=lead,
            )
            for phase in grid
        ]
        self.taps: list[tuple[int, tuple[int, ...]]] = []  # which plane, and where in it a tap begins
        for chosen in itertools.product(*(range(a.taps) for a in axes)):
            phase = tuple(t * a.dilation % a.stride for t, a in zip(chosen, axes, strict=True))
            start = tuple(t * a.dilation // a.stride for t, a in zip(chosen, axes, strict=True))
            self.taps.append((grid.index(phase), start))

    def planes(self, feature: np.ndarray, lead: int = 1) -> np.ndarray:
        """(phases, ..., *reach, ...) from (..., *sizes, ...); ``lead`` axes come before these."""
        around = feature.shape[:lead], feature.shape[lead + len(self.reach) :]
        planes = borrow("planes", (len(self.windows), *around[0], *self.reach, *around[1]), feature.dtype)
        for target, one in zip(planes, self.windows, strict=True):
            one.fill(target, feature)
        return planes


class Gather:
    """All windows of a feature map (b, s, *sizes), gathered as (b, s taps, columns), or (b, taps s, columns).

    taps_first : each tap of all of s is then one run in memory, copied faster; the kernel must lie in this order too
    """

    def __init__(self, axes: Sequence[Axis], taps_first: bool = False) -> None:
        self.axes, self.taps_first = tuple(axes), taps_first
        self.outs = tuple(a.out for a in axes)
        self.taps = list(itertools.product(*(range(a.taps) for a in axes)))
        strided = len(self.taps) > 1 and any(a.stride > 1 for a in axes)  # each input is read with a stride only once
        self.phases = Phases(axes, lead=2) if strided else None
        self.windows = [] if strided else [Window(axes, taps, lead=2) for taps in self.taps]

    def __call__(self, feature: np.ndarray) -> np.ndarray:
        """The windows, in work space that the next call of this thread uses again."""
        b, s = feature.shape[:2]
        rows = (len(self.taps), s) if self.taps_first else (s, len(self.taps))
        found = borrow("windows", (b, *rows, *self.outs), feature.dtype)
        by_tap = found.swapaxes(1, 2) if self.taps_first else found
        if self.phases is None:
            for index, one in enumerate(self.windows):
                one.fill(by_tap[:, :, index], feature)
        else:
            planes = self.phases.planes(feature, lead=2)
            for index, (plane, starts) in enumerate(self.phases.taps):
                piece = tuple(slice(start, start + out) for start, out in zip(starts, self.outs, strict=True))
                by_tap[:, :, index] = planes[plane][(slice(None), slice(None), *piece)]
        return found.reshape(b, s * len(self.taps), math.prod(self.outs))
