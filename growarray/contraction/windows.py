"""Windows of a convolution: which input positions one tap reads, and copying them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from growarray.contraction.problem import Axis

__all__ = ["Task", "Window", "fill", "window"]

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


def fill(
    target: np.ndarray, source: np.ndarray, axes: Sequence[Axis], taps: Sequence[int], cut: range, at: int
) -> None:
    """Copy one tap's windows; ``cut`` limits axis ``at`` of the output; what lies in the padding becomes zero."""
    lead = target.ndim - len(axes)
    into: list[slice] = [slice(None)] * lead
    out_of: list[slice] = [slice(None)] * lead
    for i, (axis, tap) in enumerate(zip(axes, taps, strict=True)):
        start, stop = (cut.start, cut.stop) if i == at else (0, axis.out)
        low, high, piece = window(axis, tap, start, stop)
        here = (slice(None),) * (lead + i)
        if low > 0:
            target[(*here, slice(0, low))] = 0
        if high < stop - start:
            target[(*here, slice(high, None))] = 0
        into.append(slice(low, high))
        out_of.append(piece)
    target[tuple(into)] = source[tuple(out_of)]


class Window:
    """What one tap reads along all axes, found once: ``fill`` copies it, and writes zeros where it lies in the padding.

    Each axis has ``out`` positions of its first tap.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        into: list[slice] = [slice(None)]
        read: list[slice] = [slice(None)]
        self._zeros: list[tuple[slice, ...]] = []
        for i, axis in enumerate(axes):
            low, high, piece = window(axis, 0, 0, axis.out)
            here = (slice(None),) * (1 + i)
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
