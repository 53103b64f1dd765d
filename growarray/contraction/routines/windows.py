"""Windows of a convolution: which input positions one tap reads, copying them, and the way back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from growarray.contraction.problem import Axis, Product
from growarray.contraction.workspace import here


def window(axis: Axis, tap: int, start: int, stop: int) -> tuple[int, int, slice]:
    """Where outputs ``start`` to ``stop`` find their input for one tap: first and last + 1 that do, and the input.

    Positions are counted from ``start``; outside of them the window is in the padding.
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
    """What one tap reads along all axes, found once: ``fill`` copies it, and writes zeros in the padding.

    taps : one of each axis (default: the first)    lead : axes of the arrays before these
    """

    def __init__(self, axes: Sequence[Axis], taps: Sequence[int] | None = None, lead: int = 1) -> None:
        into: list[slice] = [slice(None)] * lead
        read: list[slice] = [slice(None)] * lead
        self._zeros: list[tuple[slice, ...]] = []
        for i, (axis, tap) in enumerate(zip(axes, taps or (0,) * len(axes), strict=True)):
            low, high, piece = window(axis, tap, 0, axis.out)
            at = (slice(None),) * (lead + i)
            if low > 0:
                self._zeros.append((*at, slice(0, low)))
            if high < axis.out:
                self._zeros.append((*at, slice(high, None)))
            into.append(slice(low, high))
            read.append(piece)
        self._into, self._read = tuple(into), tuple(read)

    def fill(self, target: np.ndarray, source: np.ndarray) -> None:
        """``target`` (b, *outs) from ``source`` (b, *sizes)."""
        for place in self._zeros:
            target[place] = 0
        target[self._into] = source[self._read]


class Gather:
    """All windows of a feature map (b, s, *sizes), gathered as (b, s taps, columns), or (b, taps s, columns).

    taps_first : each tap of all of s is then one run in memory, copied faster; the kernel must have this order too
    """

    def __init__(self, axes: Sequence[Axis], taps_first: bool = False) -> None:
        self.axes, self.taps_first = tuple(axes), taps_first
        self.outs, self.counts = tuple(a.out for a in axes), tuple(a.taps for a in axes)
        taps = list(itertools.product(*(range(n) for n in self.counts)))
        self.taps = len(taps)
        self.reach = tuple((a.out - 1) * a.stride + (a.taps - 1) * a.dilation + 1 for a in axes)
        self.inside = all(a.before == 0 and r <= a.size for a, r in zip(axes, self.reach, strict=True))
        # with strides all windows are copied in one call, from a padded copy: threads wait for each other at every call
        strided = len(taps) > 1 and any(a.stride > 1 for a in axes)
        self.windows = [] if strided else [Window(axes, one, lead=2) for one in taps]
        padded = [a._replace(out=r, stride=1) for a, r in zip(axes, self.reach, strict=True)]
        self.padding = Window(padded, lead=2)

    def __call__(self, feature: np.ndarray) -> np.ndarray:
        """The windows, in work space that the next call of this thread uses again."""
        b, s = feature.shape[:2]
        rows = (self.taps, s) if self.taps_first else (s, self.taps)
        found = here.arrays["windows", (b, *rows, *self.outs), feature.dtype]
        if self.windows:
            by_tap = found.swapaxes(1, 2) if self.taps_first else found
            for index, one in enumerate(self.windows):
                one.fill(by_tap[:, :, index], feature)
        elif found.size:
            self._all(feature, found)
        return found.reshape(b, s * self.taps, math.prod(self.outs))

    def _all(self, feature: np.ndarray, found: np.ndarray) -> None:
        b, s = feature.shape[:2]
        source = feature
        if not self.inside:
            source = here.arrays["padded", (b, s, *self.reach), feature.dtype]
            self.padding.fill(source, feature)
        lead, inner = source.strides[:2], source.strides[2:]
        by_tap = [step * a.dilation for step, a in zip(inner, self.axes, strict=True)]
        by_out = [step * a.stride for step, a in zip(inner, self.axes, strict=True)]
        shape, strides = (b, s, *self.counts, *self.outs), (*lead, *by_tap, *by_out)
        # the view of work space is made in a tenth of the microseconds that as_strided takes
        view = (
            as_strided(source, shape, strides) if self.inside else np.ndarray(shape, source.dtype, source, 0, strides)
        )
        if self.taps_first:
            view = np.moveaxis(view, 1, 1 + len(self.axes))
            found.reshape(b, *self.counts, s, *self.outs)[...] = view
        else:
            found.reshape(b, s, *self.counts, *self.outs)[...] = view


class Part(NamedTuple):
    """A phase of the strides: its place in the feature map, the taps it uses, last first, and their convolution of
    the output's gradient, all of whose strides are 1; None if no tap reaches it, and its gradient is zero."""

    place: tuple[slice, ...]
    taps: tuple[slice, ...]
    product: Product | None


@lru_cache(maxsize=1024)
def transposed_parts(product: Product) -> tuple[Part, ...]:
    """The gradient by the feature map as products with the output's gradient: together they cost what forward does."""
    parts = []
    for phase in itertools.product(*(range(a.stride) for a in product.axes)):
        place: list[slice] = []
        taps: list[slice] = []
        transposed: list[Axis] = []
        for a, residue in zip(product.axes, phase, strict=True):
            first = -((residue - a.before) // a.stride)  # smallest q with q stride + residue >= before
            count = (a.size - 1 + a.before - residue) // a.stride - first + 1
            used = [t for t in range(a.taps) if t * a.dilation % a.stride == residue]
            start = first * a.stride + residue - a.before
            place.append(slice(start, start + (count - 1) * a.stride + 1, a.stride) if count > 0 else slice(0, 0))
            if used:
                step = used[1] - used[0] if len(used) > 1 else 1
                taps.append(slice(used[-1], used[0] - 1 if used[0] else None, -step))
                furthest = (used[-1] * a.dilation - residue) // a.stride
                spread = step * a.dilation // a.stride if len(used) > 1 else 1
                transposed.append(Axis(a.name, a.out, len(used), max(count, 0), 1, furthest - first, spread))
        swapped = product.transposed(tuple(transposed)) if len(transposed) == len(product.axes) else None
        parts.append(Part(tuple(place), tuple(taps), swapped))
    return tuple(parts)
