"""Convolution on NumPy, a chunk at a time: products over a gathered block of windows, over the points of tiles, or with
banded matrices.

Letters: b kept by both · s summed · n of the kernel · axes of the feature map, convolved or not (one tap).
Feature maps are (b, s, *sizes), kernels (b, n, s, *taps), results (b, n, *outs); all may be strided views.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from growarray.contraction.band import Band
from growarray.contraction.cost import rows_axis
from growarray.contraction.problem import SPARE, Axis
from growarray.contraction.scratch import borrow, view_as
from growarray.contraction.windows import Gather, Task, window
from growarray.contraction.winograd import Winograd, tiles_at_once

__all__ = ["Convolution", "FeatureGradient", "KernelGradient", "gradient_parts"]

_CHUNK = 1 << 18  # elements of gathered windows in one chunk: 1 MiB of float32
_ROOM = 12 * _CHUNK
_KERNELS = 256  # rows of the kernel in one piece
_COLUMNS = (128, 400)  # columns below which products lose speed: shallow ones, deep ones


def _columns(array: np.ndarray) -> np.ndarray | None:
    """(b, n, *rest) as a writable (b, n, columns) view, where its strides allow one."""
    return view_as(array, (*array.shape[:2], math.prod(array.shape[2:])))


class Convolution:
    """One convolution of fixed sizes.

    sizes : (b, s, n)    room : elements of input, output and kernel together; windows in work space stay well below
    spare : how often the usual share of it may be taken for the points of tiles
    """

    def __init__(self, sizes: tuple[int, int, int], axes: Sequence[Axis], room: int = _ROOM, spare: int = 1) -> None:
        self.b, self.s, self.n = sizes
        chunk = min(_CHUNK, max(room // 12, _CHUNK // 4))
        self.axes = tuple(axes)
        self.rows = rows_axis(sizes, self.axes, room)
        self.direct = all(a.is_plain for a in self.axes)
        self._gathers: dict[int, Gather] = {}  # by the first position of a chunk
        self.band = Band(self.b, self.axes) if self.s == 1 and self.n == 1 else None
        tiles = tiles_at_once(sizes, self.axes, room, spare)
        self.winograd = Winograd(sizes, self.axes, tiles) if tiles else None
        if self.rows is not None:  # the row axis first: a shift along it is a shift of whole columns
            first = self.axes[self.rows]
            self.order = (self.rows, *(i for i in range(len(self.axes)) if i != self.rows))
            self.moved = tuple(self.axes[i] for i in self.order)
            self.depth = self.s * math.prod(a.taps for a in self.moved[1:])
            self.others = math.prod(a.out for a in self.moved[1:])
            self.chunks = _ranges(
                first.out, chunk // max(self.b * self.depth * self.others, 1), _COLUMNS[0], self.others
            )
        else:
            self.order, self.moved = tuple(range(len(self.axes))), self.axes
            self.depth = self.s * math.prod(a.taps for a in self.axes)
            outs = [a.out for a in self.axes]
            self.cut = _cut(outs, -(-self.b * self.depth * math.prod(outs) // chunk))
            rest = math.prod(outs) // max(outs[self.cut], 1) if outs else 1
            wide = chunk // max(self.b * self.depth * rest, 1)
            self.chunks = _ranges(outs[self.cut] if outs else 1, wide, _COLUMNS[1], rest)
            taps = self.depth // max(self.s, 1)
            columns = max((len(r) for r in self.chunks), default=0) * rest
            step = self.s if self.direct else max(1, chunk // max(self.b * taps * columns, 1))
            self.summed = _slices(self.s, step)
            self.kernels = _slices(self.n, _KERNELS)

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel as the matrices of its products: made once, used for every block, a view where that will do."""
        if self.band is not None:
            return self.band.prepare(kernel.reshape(self.b, math.prod(kernel.shape[1:])))
        if self.winograd is not None and kernel.dtype == np.float32:
            return self.winograd.prepare(kernel)
        if self.rows is not None:
            turned = kernel.transpose(3 + self.rows, 0, 1, *(3 + i for i in self.order[1:]), 2)
            return np.ascontiguousarray(turned).reshape(turned.shape[0], self.b, self.n, self.depth)
        return kernel.reshape(self.b, self.n, self.depth)

    def tasks(self, feature: np.ndarray, matrices: np.ndarray, out: np.ndarray) -> list[Task]:
        """Independent pieces of the work; every element of ``out`` is written by one of them."""
        if out.size == 0:
            return []
        if self.band is not None:
            return self.band.tasks(feature[:, 0], matrices, out[:, 0])
        if self.winograd is not None and feature.dtype == np.float32:
            return self.winograd.tasks(feature, matrices, out)
        if self.rows is not None:
            feature = feature.transpose(0, 1, *(2 + i for i in self.order))
            out = out.transpose(0, 1, *(2 + i for i in self.order))
            return [lambda r=r: self._by_rows(feature, matrices, out, r) for r in self.chunks]  # type: ignore[misc]
        return [
            lambda r=r, c=c: self._whole(feature, matrices[:, c], out[:, c], r)  # type: ignore[misc]
            for r in self.chunks
            for c in self.kernels
        ]

    def gather_rows(self, feature: np.ndarray, rows: range) -> np.ndarray:
        """Windows of all axes but the first, for the rows that outputs ``rows`` read: (b, taps s, rows others)."""
        gather = self._gathers.get(rows.start)
        if gather is None:
            first = self.moved[0]
            count = len(rows) + (first.taps - 1) * first.dilation
            plain = first._replace(taps=1, out=count, before=first.before - rows.start, dilation=1)
            gather = self._gathers[rows.start] = Gather((plain, *self.moved[1:]), taps_first=True)
        return gather(feature)

    def gather(self, feature: np.ndarray, cut: range) -> np.ndarray:
        """Windows of all axes, ``cut`` of the longest one: (b, s taps, columns)."""
        gather = self._gathers.get(cut.start)
        if gather is None:
            axes = list(self.axes)
            if axes:
                a = axes[self.cut]
                axes[self.cut] = a._replace(out=len(cut), before=a.before - cut.start * a.stride)
            gather = self._gathers[cut.start] = Gather(axes)
        return gather(feature)

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
        target = _columns(piece)
        shape = (self.b, matrices.shape[1], math.prod(piece.shape[2:]))
        total = borrow("total", shape, out.dtype) if target is None else target
        taps = self.depth // max(self.s, 1)
        for index, chosen in enumerate(self.summed):
            part = feature[:, chosen]
            if self.direct:
                flat = part[(*at, slice(cut.start, cut.stop))] if self.axes else part
                windows = flat.reshape(self.b, part.shape[1], shape[2])
            else:
                windows = self.gather(part, cut)
            kernel = matrices[:, :, chosen.start * taps : chosen.stop * taps]
            if index:
                np.add(total, np.matmul(kernel, windows, out=borrow("part", shape, out.dtype)), out=total)
            else:
                np.matmul(kernel, windows, out=total)
        if target is None:
            piece[...] = total.reshape(piece.shape)


def _cut(outs: Sequence[int], pieces: int) -> int:
    """The axis to cut: the first with so many positions, which leaves rows of the others whole; else the longest."""
    enough = [i for i, out in enumerate(outs) if out >= pieces]
    return enough[0] if enough else int(np.argmax(outs)) if outs else 0


def _slices(count: int, step: int) -> list[slice]:
    """Cut ``count`` positions into pieces of nearly equal size, at most ``step`` each."""
    pieces = max(1, -(-count // max(step, 1)))
    size = max(1, -(-count // pieces))
    return [slice(start, min(start + size, count)) for start in range(0, max(count, 1), size)]


def _ranges(count: int, step: int, least: int, columns: int) -> list[range]:
    """Cut ``count`` positions into nearly equal pieces of about ``step``, with at least ``least`` columns each."""
    step = max(step, -(-least // max(columns, 1)), 1)
    pieces = max(1, -(-count // step))
    step = max(1, -(-count // pieces))
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


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

    def __init__(self, forward: Convolution, room: int) -> None:
        self.forward = forward
        sizes = (forward.b, forward.s, forward.n)
        tiles = tiles_at_once(sizes, forward.axes, room, SPARE)
        self.winograd = Winograd(sizes, forward.axes, tiles) if tiles else None

    def tasks(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> list[Task]:
        """Pieces that each write a part of ``out`` (b, n, s, *taps): channels, or rows of the summed mode."""
        f = self.forward
        if f.band is not None:
            return f.band.gradient_tasks(d_out[:, 0], feature[:, 0], out.reshape(f.b, -1))
        if self.winograd is not None and feature.dtype == np.float32:
            return self.winograd.gradient_tasks(d_out, feature, out)
        quarter = -(-f.s // max(1, min(4, f.depth // 64)))
        pieces = _slices(f.s, quarter if f.rows is not None else min(quarter, f.summed[0].stop))
        return [lambda c=c: self._piece(d_out, feature, out, c) for c in pieces]  # type: ignore[misc]

    def _piece(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray, chosen: slice) -> None:
        f, part = self.forward, feature[:, chosen]
        if f.rows is None:
            self._whole(d_out, part, out[:, :, chosen])
        else:
            moved = (0, 1, *(2 + i for i in f.order))
            self._by_rows(d_out.transpose(moved), part.transpose(moved), out[:, :, chosen])

    def _whole(self, d_out: np.ndarray, part: np.ndarray, out: np.ndarray) -> None:
        f = self.forward
        target = _columns(out)
        total = np.empty((f.b, f.n, f.depth // f.s * part.shape[1]), out.dtype) if target is None else target
        at = (slice(None),) * (2 + f.cut)
        if d_out.size == 0:
            total[...] = 0
        for index, r in enumerate(f.chunks if d_out.size else []):
            d_piece = d_out[(*at, slice(r.start, r.stop))] if f.axes else d_out
            windows = f.gather(part, r).swapaxes(1, 2)
            if index:
                total += np.matmul(d_piece.reshape(f.b, f.n, -1), windows)
            else:
                np.matmul(d_piece.reshape(f.b, f.n, -1), windows, out=total)
        if target is None:
            out[...] = total.reshape(out.shape)

    def _by_rows(self, d_out: np.ndarray, part: np.ndarray, out: np.ndarray) -> None:
        f = self.forward
        width, taps = part.shape[1], [a.taps for a in f.moved]
        total = np.zeros((taps[0], f.b, f.n, f.depth // f.s * width), out.dtype)
        for r in f.chunks if d_out.size else []:
            d_flat = d_out[:, :, r.start : r.stop].reshape(f.b, f.n, -1)
            windows = f.gather_rows(part, r)
            for tap in range(taps[0]):
                total[tap] += np.matmul(d_flat, f.shifted(windows, tap, len(r)).swapaxes(1, 2))
        shaped = total.reshape(taps[0], f.b, f.n, *taps[1:], width)
        out.transpose(3 + f.order[0], 0, 1, *(3 + i for i in f.order[1:]), 2)[...] = shaped


class FeatureGradient:
    """The gradient of one convolution by its feature map, from the gradient of every window: for kernels too large to
    be turned. ``sizes`` is (b, s, n) of the forward convolution."""

    def __init__(self, sizes: tuple[int, int, int], axes: Sequence[Axis]) -> None:
        self.b, self.s, self.n = sizes
        self.axes = tuple(axes)
        self.taps = list(itertools.product(*(range(a.taps) for a in axes)))
        self.outs = tuple(a.out for a in axes)
        self.columns = math.prod(self.outs)
        step = max(1, _CHUNK // max(len(self.taps) * self.columns * self.b, 1))
        self.pieces = [slice(start, min(start + step, self.s)) for start in range(0, self.s, step)]

    def tasks(self, d_out: np.ndarray, kernel: np.ndarray, out: np.ndarray) -> list[Task]:
        """Pieces of the summed mode, each into its part of ``out`` (b, s, *sizes). ``kernel`` is (b, n, s, taps)."""
        flat = d_out.reshape(self.b, self.n, self.columns)
        return [lambda c=c: self._piece(flat, kernel[:, :, c], out[:, c]) for c in self.pieces]  # type: ignore[misc]

    def _piece(self, d_out: np.ndarray, kernel: np.ndarray, out: np.ndarray) -> None:
        width = out.shape[1]
        windows = borrow("windows", (self.b, width * len(self.taps), self.columns), out.dtype)
        flat = kernel.reshape(self.b, self.n, width * len(self.taps))
        np.matmul(flat.swapaxes(1, 2), d_out, out=windows)
        shaped = windows.reshape(self.b, width, len(self.taps), *self.outs)
        out[...] = 0
        for index, chosen in enumerate(self.taps):
            places = [window(a, t, 0, a.out) for a, t in zip(self.axes, chosen, strict=True)]
            into = (slice(None), slice(None), *(piece for _, _, piece in places))
            read: tuple[Any, ...] = (slice(None), slice(None), index, *(slice(low, high) for low, high, _ in places))
            out[into] += shaped[read]
