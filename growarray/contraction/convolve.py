"""Convolution on NumPy: products over a gathered block of windows, or shifted multiply-adds, a chunk at a time.

Letters: b kept by both · s summed · n of the kernel · axes of the feature map, convolved or not (one tap).
Feature maps are (b, s, *sizes), kernels (b, n, s, *taps), results (b, n, *outs); all may be strided views.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from growarray.contraction.cost import rows_axis
from growarray.contraction.problem import Axis
from growarray.contraction.scratch import borrow

__all__ = ["Convolution", "KernelGradient", "Task", "gradient_parts", "window"]

Task = Callable[[], object]

_CHUNK = 1 << 18  # elements of gathered windows in one chunk: 1 MiB of float32
_SHIFT = 1 << 15  # elements of one plane in a chunk of shifted multiply-adds: several of them share the cache
_COLUMNS = 256  # columns below which products lose speed


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


def _fill(
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


def _at_taps(taps: tuple[int, ...]) -> tuple[Any, ...]:
    return (slice(None), *taps)


def _columns(array: np.ndarray) -> np.ndarray | None:
    """(b, n, *rest) as a writable (b, n, columns) view, where its strides allow one."""
    flat = array.reshape(*array.shape[:2], -1)
    return flat if flat.size == 0 or np.may_share_memory(flat, array) else None


class Convolution:
    """One convolution of fixed sizes. ``sizes`` is (b, s, n)."""

    def __init__(self, sizes: tuple[int, int, int], axes: Sequence[Axis]) -> None:
        self.b, self.s, self.n = sizes
        self.axes = tuple(axes)
        self.rows = rows_axis(self.axes, self.s)
        self.direct = all((a.taps, a.stride, a.before, a.out) == (1, 1, 0, a.size) for a in self.axes)
        self.shift = self.s == 1 and self.n == 1
        if self.rows is not None:  # the row axis first: a shift along it is a shift of whole columns
            first = self.axes[self.rows]
            self.order = (self.rows, *(i for i in range(len(self.axes)) if i != self.rows))
            self.moved = tuple(self.axes[i] for i in self.order)
            self.depth = self.s * math.prod(a.taps for a in self.moved[1:])
            self.others = math.prod(a.out for a in self.moved[1:])
            self.chunks = _ranges(first.out, self.b * self.depth * self.others, self.others)
        else:
            self.order, self.moved = tuple(range(len(self.axes))), self.axes
            self.depth = self.s * math.prod(a.taps for a in self.axes)
            outs = [a.out for a in self.axes]
            self.cut = int(np.argmax(outs)) if outs else 0
            rest = math.prod(outs) // max(outs[self.cut], 1) if outs else 1
            self.chunks = _ranges(outs[self.cut] if outs else 1, self.b * self.depth * rest, rest)

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel as the matrices of its products, contiguous: made once, used for every block."""
        if self.shift:
            return np.ascontiguousarray(kernel.reshape(self.b, -1))
        lead = (0, *(3 + i for i in self.order))
        if self.rows is not None:
            turned = kernel.transpose(3 + self.rows, 0, 1, *(3 + i for i in self.order[1:]), 2)
            return np.ascontiguousarray(turned).reshape(turned.shape[0], self.b, self.n, -1)
        turned = kernel.transpose(0, 1, *lead[1:], 2)
        return np.ascontiguousarray(turned).reshape(self.b, self.n, -1)

    def tasks(self, feature: np.ndarray, matrices: np.ndarray, out: np.ndarray) -> list[Task]:
        """Independent pieces of the work; every element of ``out`` is written by one of them."""
        if out.size == 0:
            return []
        if self.shift:
            return _shift_tasks(feature[:, 0], matrices, out[:, 0], self.axes)
        if self.rows is not None:
            feature = feature.transpose(0, 1, *(2 + i for i in self.order))
            out = out.transpose(0, 1, *(2 + i for i in self.order))
            return [lambda r=r: self._by_rows(feature, matrices, out, r) for r in self.chunks]  # type: ignore[misc]
        return [lambda r=r: self._whole(feature, matrices, out, r) for r in self.chunks]  # type: ignore[misc]

    def gather_rows(self, feature: np.ndarray, rows: range) -> np.ndarray:
        """Windows of all axes but the first, for the rows that outputs ``rows`` read: (b, taps s, rows others)."""
        first = self.moved[0]
        count = len(rows) + (first.taps - 1) * first.dilation
        plain = first._replace(taps=1, out=count, before=first.before - rows.start, dilation=1)
        axes = (plain, *self.moved[1:])
        taps = [range(a.taps) for a in axes]
        s = feature.shape[1]
        shape = (self.b, *(len(t) for t in taps), s, count, *(a.out for a in axes[1:]))
        windows = borrow("windows", shape, feature.dtype)
        for chosen in itertools.product(*taps):
            target = windows[_at_taps(chosen)]
            _fill(target, feature, axes, chosen, range(count), 0)
        return windows.reshape(self.b, -1, count * self.others)

    def gather(self, feature: np.ndarray, cut: range) -> np.ndarray:
        """Windows of all axes, ``cut`` of the longest one: (b, taps s, columns)."""
        taps = [range(a.taps) for a in self.axes]
        outs = [len(cut) if i == self.cut else a.out for i, a in enumerate(self.axes)]
        shape = (self.b, *(len(t) for t in taps), feature.shape[1], *outs)
        windows = borrow("windows", shape, feature.dtype)
        for chosen in itertools.product(*taps):
            _fill(windows[_at_taps(chosen)], feature, self.axes, chosen, cut, self.cut)
        return windows.reshape(self.b, -1, math.prod(outs))

    def shifted(self, windows: np.ndarray, tap: int, rows: int) -> np.ndarray:
        """The columns that one tap of the row axis reads."""
        start = tap * self.moved[0].dilation * self.others
        return windows[:, :, start : start + rows * self.others]

    def _by_rows(self, feature: np.ndarray, matrices: np.ndarray, out: np.ndarray, rows: range) -> None:
        windows = self.gather_rows(feature, rows)
        piece = out[:, :, rows.start : rows.stop]
        target = _columns(piece)
        shape = (self.b, self.n, len(rows) * self.others)
        total = borrow("total", shape, out.dtype) if target is None else target
        np.matmul(matrices[0], self.shifted(windows, 0, len(rows)), out=total)
        part = borrow("part", shape, out.dtype)
        for tap in range(1, len(matrices)):
            np.matmul(matrices[tap], self.shifted(windows, tap, len(rows)), out=part)
            np.add(total, part, out=total)
        if target is None:
            piece[...] = total.reshape(piece.shape)

    def _whole(self, feature: np.ndarray, matrices: np.ndarray, out: np.ndarray, cut: range) -> None:
        at = (slice(None),) * (2 + self.cut)
        piece = out[(*at, slice(cut.start, cut.stop))] if self.axes else out
        if self.direct:
            flat = feature[(*at, slice(cut.start, cut.stop))] if self.axes else feature
            windows = flat.reshape(self.b, self.s, -1)
        else:
            windows = self.gather(feature, cut)
        target = _columns(piece)
        if target is None:
            total = borrow("total", (self.b, self.n, windows.shape[2]), out.dtype)
            np.matmul(matrices, windows, out=total)
            piece[...] = total.reshape(piece.shape)
        else:
            np.matmul(matrices, windows, out=target)


def _ranges(count: int, weight: int, columns: int) -> list[range]:
    """Cut ``count`` positions so that a chunk holds about :data:`_CHUNK` elements and not too few columns."""
    step = max(_CHUNK // max(weight, 1), -(-_COLUMNS // max(columns, 1)), 1)
    pieces = max(1, -(-count // step))
    step = max(1, -(-count // pieces))
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def _reach(axis: Axis) -> int:
    """Positions of one phase of the padded axis that all taps together read."""
    return axis.out + (axis.taps - 1) * axis.dilation // axis.stride


def _planes(feature: np.ndarray, axes: Sequence[Axis], slot: str) -> tuple[np.ndarray, list[tuple[int, int]], int]:
    """Padded feature (b, *sizes) by phase of the strides, flat, so that every tap is one shifted run of a plane.

    Returns planes (phases, b, length), for every tap its plane and shift, and the length of a run. Runs go over the
    ends of rows: what they compute there is never copied out.
    """
    reach = [_reach(a) for a in axes]
    phases = [sorted({t * a.dilation % a.stride for t in range(a.taps)}) for a in axes]
    grid = list(itertools.product(*phases))
    planes = borrow(slot, (len(grid), feature.shape[0], *reach), feature.dtype)
    whole = [a._replace(out=r) for a, r in zip(axes, reach, strict=True)]
    for plane, phase in zip(planes, grid, strict=True):
        shifted = [a._replace(before=a.before - p) for a, p in zip(whole, phase, strict=True)]
        _fill(plane, feature, shifted, (0,) * len(axes), range(0), -1)
    steps = [math.prod(reach[i + 1 :]) for i in range(len(reach))]
    taps = []
    for chosen in itertools.product(*(range(a.taps) for a in axes)):
        phase = tuple(t * a.dilation % a.stride for t, a in zip(chosen, axes, strict=True))
        shift = sum(t * a.dilation // a.stride * step for t, a, step in zip(chosen, axes, steps, strict=True))
        taps.append((grid.index(phase), shift))
    run = sum((a.out - 1) * step for a, step in zip(axes, steps, strict=True)) + 1
    return planes.reshape(len(grid), feature.shape[0], -1), taps, run


def _channel_chunks(count: int, axes: Sequence[Axis]) -> Iterator[slice]:
    plane = math.prod(_reach(a) for a in axes)
    step = max(1, _SHIFT // max(plane, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _shift_tasks(feature: np.ndarray, weights: np.ndarray, out: np.ndarray, axes: Sequence[Axis]) -> list[Task]:
    """out[b, q] = sum over taps of weights[b, tap] feature[b, q + tap]: each b on its own, no sum over channels."""

    def piece(chosen: slice) -> None:
        planes, taps, run = _planes(feature[chosen], axes, "planes")
        total, part = borrow("total", planes.shape[1:], out.dtype), borrow("part", planes.shape[1:], out.dtype)
        for index, (plane, shift) in enumerate(taps):
            view, weight = planes[plane, :, shift : shift + run], weights[chosen, index, None]
            np.multiply(view, weight, out=part[:, :run] if index else total[:, :run])
            if index:
                np.add(total[:, :run], part[:, :run], out=total[:, :run])
        grid = total.reshape(-1, *(_reach(a) for a in axes))
        out[chosen] = grid[(slice(None), *(slice(a.out) for a in axes))]

    return [lambda c=c: piece(c) for c in _channel_chunks(feature.shape[0], axes)]  # type: ignore[misc]


def gradient_parts(
    axes: Sequence[Axis],
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...] | None, tuple[Axis, ...]]]:
    """The gradient by the feature map as convolutions of the output's gradient, one for each phase of the strides.

    Yields where the part lies in the feature map, which taps it uses, last first (None: none, the part is zero),
    and the axes of that convolution, all of stride 1. Together the parts cost what the forward pass does.
    """
    for phase in itertools.product(*(range(a.stride) for a in axes)):
        places: list[slice] = []
        taps: list[slice] = []
        turned: list[Axis] = []
        empty = False
        for a, residue in zip(axes, phase, strict=True):
            first = -((residue - a.before) // a.stride)  # smallest q with q stride + residue >= before
            count = (a.size - 1 + a.before - residue) // a.stride - first + 1
            used = [t for t in range(a.taps) if t * a.dilation % a.stride == residue]
            start = first * a.stride + residue - a.before
            places.append(slice(start, start + (count - 1) * a.stride + 1, a.stride) if count > 0 else slice(0, 0))
            if not used:
                empty = True
                continue
            step = used[1] - used[0] if len(used) > 1 else 1
            taps.append(slice(used[-1], used[0] - 1 if used[0] else None, -step))
            furthest = (used[-1] * a.dilation - residue) // a.stride
            spread = step * a.dilation // a.stride if len(used) > 1 else 1
            turned.append(Axis(a.name, a.out, len(used), max(count, 0), 1, furthest - first, spread))
        yield tuple(places), None if empty else tuple(taps), tuple(turned)


class KernelGradient:
    """The gradient of one convolution by its kernel: windows gathered as in the forward pass, times the gradient."""

    def __init__(self, sizes: tuple[int, int, int], axes: Sequence[Axis]) -> None:
        self.forward = Convolution(sizes, axes)

    def tasks(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> list[Task]:
        """Pieces that each write a part of ``out`` (b, n, s, *taps): channels, or rows of the summed mode."""
        f = self.forward
        if f.shift:
            return self._shift_tasks(d_out[:, 0], feature[:, 0], out.reshape(f.b, -1))
        pieces = max(1, min(4, f.depth // 64, f.s))
        step = -(-f.s // pieces)
        return [
            lambda c=slice(start, start + step): self._piece(d_out, feature, out, c)  # type: ignore[misc]
            for start in range(0, f.s, step)
        ]

    def _piece(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray, chosen: slice) -> None:
        f, part = self.forward, feature[:, chosen]
        moved = (0, 1, *(2 + i for i in f.order))
        part, d_out = part.transpose(moved), d_out.transpose(moved)
        width = part.shape[1]
        depth = f.depth // f.s * width
        count = f.moved[0].taps if f.rows is not None else 1
        total = np.zeros((count, f.b, f.n, depth), out.dtype)
        for r in f.chunks:
            at = (slice(None),) * (2 + (0 if f.rows is not None else f.cut))
            d_piece = d_out[(*at, slice(r.start, r.stop))] if f.axes else d_out
            d_flat = d_piece.reshape(f.b, f.n, -1)
            if f.rows is None:
                windows = part.reshape(f.b, width, -1) if f.direct and len(f.chunks) == 1 else f.gather(part, r)
                total[0] += np.matmul(d_flat, windows.swapaxes(1, 2))
                continue
            windows = f.gather_rows(part, r)
            for tap in range(count):
                total[tap] += np.matmul(d_flat, f.shifted(windows, tap, len(r)).swapaxes(1, 2))
        taps = [f.axes[i].taps for i in f.order]
        if f.rows is not None:  # (row tap, b, n, other taps, s)
            shaped = total.reshape(count, f.b, f.n, *taps[1:], width)
            shaped = np.moveaxis(shaped, 0, 2)
        else:
            shaped = total.reshape(f.b, f.n, *taps, width)
        back = [2 + f.order.index(i) for i in range(len(f.order))]
        out[:, :, chosen] = shaped.transpose(0, 1, shaped.ndim - 1, *back)

    def _shift_tasks(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> list[Task]:
        axes = self.forward.axes
        reach = [_reach(a) for a in axes]

        def piece(chosen: slice) -> None:
            planes, taps, run = _planes(feature[chosen], axes, "planes")
            spread = borrow("total", (planes.shape[1], *reach), d_out.dtype)
            spread[...] = 0
            spread[(slice(None), *(slice(a.out) for a in axes))] = d_out[chosen]
            flat = spread.reshape(planes.shape[1], -1)[:, :run]
            for index, (plane, shift) in enumerate(taps):
                out[chosen, index] = np.einsum("bl,bl->b", planes[plane, :, shift : shift + run], flat)

        return [lambda c=c: piece(c) for c in _channel_chunks(feature.shape[0], axes)]  # type: ignore[misc]
