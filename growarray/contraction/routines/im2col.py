"""Convolution on NumPy as products over gathered windows, a chunk at a time.

``im2col`` gathers the windows of all axes. ``rows`` gathers those of all axes but the first (partial im2col): its taps
become products of their own, on shifted views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Axis, Product
from growarray.contraction.routines.protocol import D_KERNEL, FORWARD, Task
from growarray.contraction.routines.windows import Gather
from growarray.contraction.workspace import by_image, here, view_as

_DEPTH = 48  # depth of a product from which im2col along the first axis does not pay any more
_CHUNK = 1 << 18  # elements of gathered windows in one chunk: 1 MiB of float32
_KERNELS = 256  # rows of the kernel in one piece
_COLUMNS = (128, 400)  # columns below which products lose speed: shallow ones, deep ones
_PADDED = 6  # calls of the machine that all windows of a chunk take if they are copied at once
_BEGIN = 8  # calls of the machine that products of several taps begin with
_QUARTER = 64  # depth of a quarter of a gradient by the kernel, at least
COLD = 1.2
"""What products over gathered windows take beside those whose operands lie in the cache, measured."""
_STRIDED = 1.4  # what gradients of convolutions with strides take beside the model, measured


def _columns(array: np.ndarray) -> np.ndarray | None:
    """(b, n, *rest) as a writable (b, n, columns) view, if its strides allow one."""
    shape = (*array.shape[:2], math.prod(array.shape[2:]))
    return array.reshape(shape) if array.flags.c_contiguous else view_as(array, shape)


def chunk_size(product: Product) -> int:
    """Elements of work space for one piece of a product."""
    return min(_CHUNK, max(product.working_set // 12, _CHUNK // 4))


def gathering(product: Product, machine: Machine) -> tuple[float, float]:
    """Seconds for one gathered element, and for the padded copy from which windows with strides are gathered."""
    each, axes = machine.copied + machine.row / _run(product.axes), product.axes
    if all(a.stride == 1 or a.taps == 1 for a in axes):
        return each, 0.0
    padded = math.prod((a.out - 1) * a.stride + (a.taps - 1) * a.dilation + 1 for a in axes)
    return each, product.b * product.s * padded * each


def _d_kernel_seconds(product: Product, machine: Machine) -> float:
    b, s, n, out, taps = product.b, product.s, product.n, product.columns, product.taps
    each, padded = gathering(product, machine)
    work = b * s * taps * out * each + padded
    work += COLD * machine.product(b, n, out, s * taps, product.itemsize) + taps * machine.call
    return work * (_STRIDED if any(a.stride > 1 for a in product.axes) else 1.0)


class Im2col:
    """One convolution of fixed sizes, over windows of all axes."""

    name: ClassVar[str] = "im2col"
    ways: ClassVar[tuple[str, ...]] = (FORWARD, D_KERNEL)
    call = None

    def __init__(self, product: Product) -> None:
        self.product, self.axes = product, product.axes
        self.b, self.s, self.n = product.b, product.s, product.n
        most = chunk_size(product)
        self.depth = self.s * product.taps
        self._gathers: dict[int, Gather] = {}  # by the first position of a chunk
        outs = [a.out for a in self.axes]
        self.cut = cut_axis(outs, -(-self.b * self.depth * product.columns // most))
        rest = product.columns // max(outs[self.cut], 1)
        wide = most // max(self.b * self.depth * rest, 1)
        self.chunks = _ranges(outs[self.cut], wide, _COLUMNS[1], rest)
        columns = max((len(r) for r in self.chunks), default=0) * rest
        self.summed = slices(self.s, max(1, most // max(self.b * product.taps * columns, 1)))
        self.kernels = slices(self.n, _KERNELS)

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """Any convolution."""
        return library == "numpy" and product.is_conv

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """Gathering, and one product as deep as there are taps."""
        if way == D_KERNEL:
            return _d_kernel_seconds(product, machine)
        b, s, n, out, taps = product.b, product.s, product.n, product.columns, product.taps
        each, padded = gathering(product, machine)
        gathered = b * s * taps * out
        work = gathered * each + padded + COLD * machine.product(b, n, s * taps, out, product.itemsize)
        calls = max(1.0, gathered / chunk_size(product)) * (3 + (_PADDED if padded else 1.5 * taps))
        return work + calls * machine.call

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """A view, if the kernel is stored so."""
        return 0.0

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """Matrices (b, n, s taps)."""
        return kernel.reshape(self.b, self.n, self.depth)

    def forward(
        self, kernel: np.ndarray, feature: np.ndarray, out: np.ndarray, ready: np.ndarray | None = None
    ) -> Sequence[Task]:
        """Chunks of positions, and of rows of the kernel."""
        ready = self.prepare(kernel) if ready is None else ready
        if len(self.chunks) == len(self.kernels) == 1:
            self._piece(ready, feature, out, self.chunks[0])
            return ()
        return [partial(self._piece, ready[:, c], feature, out[:, c], r) for r in self.chunks for c in self.kernels]

    def _piece(self, ready: np.ndarray, feature: np.ndarray, out: np.ndarray, cut: range) -> None:
        piece = out[(*(slice(None),) * (2 + self.cut), slice(cut.start, cut.stop))]
        target = _columns(piece)
        images = by_image(piece) if target is None else None
        if images is not None and images.shape[3] >= self.depth:  # else each image would read too much of the kernel
            target, ready = images, ready[:, None]
        shape = (self.b, ready.shape[1], math.prod(piece.shape[2:])) if target is None else target.shape
        total = here.arrays["total", shape, out.dtype] if target is None else target
        taps = self.product.taps
        for index, chosen in enumerate(self.summed):
            windows = self._windows(feature[:, chosen], cut)
            if len(shape) == 4:
                windows = windows.reshape(*windows.shape[:2], shape[1], shape[3]).swapaxes(1, 2)
            kernel = ready[..., chosen.start * taps : chosen.stop * taps]
            if index:
                part = here.arrays["part", shape, out.dtype]
                np.add(total, np.matmul(kernel, windows, out=part), out=total)
            else:
                np.matmul(kernel, windows, out=total)
        if target is None:
            piece[...] = total.reshape(piece.shape)

    def _windows(self, feature: np.ndarray, cut: range) -> np.ndarray:
        """Windows of all axes, ``cut`` of the longest one: (b, s taps, columns)."""
        gather = self._gathers.get(cut.start)
        if gather is None:
            axes = list(self.axes)
            a = axes[self.cut]
            axes[self.cut] = a._replace(out=len(cut), before=a.before - cut.start * a.stride)
            gather = self._gathers[cut.start] = Gather(axes)
        return gather(feature)

    def d_kernel(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> Sequence[Task]:
        """Some rows of the summed mode after others: windows as in the forward pass, times the gradient."""
        quarter = -(-self.s // max(1, min(4, self.depth // _QUARTER)))
        pieces = slices(self.s, min(quarter, self.summed[0].stop))
        return [partial(self._d_kernel, d_out, feature[:, c], out[:, :, c]) for c in pieces]

    def _d_kernel(self, d_out: np.ndarray, part: np.ndarray, out: np.ndarray) -> None:
        target = _columns(out)
        total = np.empty((self.b, self.n, self.product.taps * part.shape[1]), out.dtype) if target is None else target
        at = (slice(None),) * (2 + self.cut)
        if d_out.size == 0:
            total[...] = 0
        for index, r in enumerate(self.chunks if d_out.size else []):
            d_piece = d_out[(*at, slice(r.start, r.stop))].reshape(self.b, self.n, -1)
            windows = self._windows(part, r).swapaxes(1, 2)
            if index:
                total += np.matmul(d_piece, windows)
            else:
                np.matmul(d_piece, windows, out=total)
        if target is None:
            out[...] = total.reshape(out.shape)


class Rows:
    """One convolution of fixed sizes, over windows of all axes but the first that is convolved."""

    name: ClassVar[str] = "rows"
    ways: ClassVar[tuple[str, ...]] = (FORWARD, D_KERNEL)
    call = None

    def __init__(self, product: Product) -> None:
        self.b, self.s, self.n = product.b, product.s, product.n
        at = _first(product)
        self.order = (at, *(i for i in range(len(product.axes)) if i != at))
        self.axes = tuple(product.axes[i] for i in self.order)  # a shift along the first is a shift of whole columns
        others = self.axes[1:]
        self.depth = self.s * math.prod(a.taps for a in others)
        self.others = math.prod(a.out for a in others)
        self.chunks = _row_chunks(product)
        self._axes_last = (0, 1, *(2 + i for i in self.order))
        self._taps_first = (3 + at, 0, 1, *(3 + i for i in self.order[1:]), 2)
        self._gathers: dict[int, Gather] = {}  # by the first position of a chunk

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """Products are deep enough, the first convolved axis has no stride, and the kernel is not too large for it."""
        if library != "numpy" or not product.is_conv or product.kernel_dominates:
            return False
        first = product.axes[_first(product)]
        if first.stride != 1 or first.taps == 1:
            return False
        others = product.taps // first.taps
        return product.s * others >= _DEPTH or (others == 1 and product.s >= _DEPTH // 3)

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """Gathering less, a product for each tap of the first axis, and passes to add them."""
        if way == D_KERNEL:
            return _d_kernel_seconds(product, machine)
        b, s, n, out, taps = product.b, product.s, product.n, product.columns, product.taps
        first, chunks = product.axes[_first(product)], len(_row_chunks(product))
        rows = first.out + chunks * (first.taps - 1) * first.dilation  # each chunk gathers those of all its taps
        depth, columns = s * taps // first.taps, out // max(first.out, 1) * rows
        work = first.taps * machine.product(b, n, depth, out, product.itemsize)
        passes = 3 * (first.taps - 1) * n * out * machine.element * product.itemsize / 4
        work += b * (depth * columns * gathering(product, machine)[0] + passes)
        return work + (_BEGIN + chunks * (2 * first.taps + taps // first.taps)) * machine.call

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """A copy, small beside the work."""
        return 0.0

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """Matrices (taps of the first axis, b, n, other taps s)."""
        moved = kernel.transpose(self._taps_first)
        return np.ascontiguousarray(moved).reshape(moved.shape[0], self.b, self.n, self.depth)

    def forward(
        self, kernel: np.ndarray, feature: np.ndarray, out: np.ndarray, ready: np.ndarray | None = None
    ) -> Sequence[Task]:
        """Chunks of the first axis."""
        ready = self.prepare(kernel) if ready is None else ready
        feature, out = feature.transpose(self._axes_last), out.transpose(self._axes_last)
        if len(self.chunks) == 1:
            self._piece(ready, feature, out, self.chunks[0])
            return ()
        return [partial(self._piece, ready, feature, out, r) for r in self.chunks]

    def _piece(self, ready: np.ndarray, feature: np.ndarray, out: np.ndarray, rows: range) -> None:
        windows = self._windows(feature, rows)
        piece = out[:, :, rows.start : rows.stop]
        shape = (self.b, self.n, len(rows) * self.others)
        target, part = _columns(piece), here.arrays["part", shape, out.dtype]
        total = here.arrays["total", shape, out.dtype] if target is None else target
        np.matmul(ready[0], self._shifted(windows, 0, len(rows)), out=total)
        for tap in range(1, len(ready)):
            np.matmul(ready[tap], self._shifted(windows, tap, len(rows)), out=part)
            if tap < len(ready) - 1:
                np.add(total, part, out=total)
        np.add(total.reshape(piece.shape), part.reshape(piece.shape), out=piece)  # two taps at least

    def _windows(self, feature: np.ndarray, rows: range) -> np.ndarray:
        """Windows of all axes but the first, for the rows that outputs ``rows`` read: (b, taps s, rows others)."""
        gather = self._gathers.get(rows.start)
        if gather is None:
            first = self.axes[0]
            count = len(rows) + (first.taps - 1) * first.dilation
            plain = first._replace(taps=1, out=count, before=first.before - rows.start, dilation=1)
            gather = self._gathers[rows.start] = Gather((plain, *self.axes[1:]), taps_first=True)
        return gather(feature)

    def _shifted(self, windows: np.ndarray, tap: int, rows: int) -> np.ndarray:
        """The columns that one tap of the first axis reads."""
        start = tap * self.axes[0].dilation * self.others
        return windows[:, :, start : start + rows * self.others]

    def d_kernel(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> Sequence[Task]:
        """Some rows of the summed mode after others: windows as in the forward pass, times the gradient."""
        quarter = -(-self.s // max(1, min(4, self.depth // _QUARTER)))
        d_out, feature = d_out.transpose(self._axes_last), feature.transpose(self._axes_last)
        return [partial(self._d_kernel, d_out, feature[:, c], out[:, :, c]) for c in slices(self.s, quarter)]

    def _d_kernel(self, d_out: np.ndarray, part: np.ndarray, out: np.ndarray) -> None:
        width, taps = part.shape[1], [a.taps for a in self.axes]
        total = np.zeros((taps[0], self.b, self.n, self.depth // self.s * width), out.dtype)
        for r in self.chunks if d_out.size else []:
            d_flat = d_out[:, :, r.start : r.stop].reshape(self.b, self.n, -1)
            windows = self._windows(part, r)
            for tap in range(taps[0]):
                total[tap] += np.matmul(d_flat, self._shifted(windows, tap, len(r)).swapaxes(1, 2))
        shaped = total.reshape(taps[0], self.b, self.n, *taps[1:], width)
        out.transpose(self._taps_first)[...] = shaped


def _row_chunks(product: Product) -> list[range]:
    """Positions of the first convolved axis whose windows, of the other axes, are gathered at a time."""
    first = product.axes[_first(product)]
    others = product.columns // max(first.out, 1)
    depth = product.s * product.taps // first.taps
    return _ranges(first.out, chunk_size(product) // max(product.b * depth * others, 1), _COLUMNS[0], others)


def _run(axes: Sequence[Axis]) -> int:
    """Elements that gathering copies in a row: positions of the last convolved axis, and of all axes after it."""
    length = 1
    for axis in reversed(axes):
        if axis.stride > 1 and length > 1:
            break
        length *= axis.out
        if not axis.is_plain:
            break
    return max(length, 1)


def _first(product: Product) -> int:
    """The first axis that is convolved."""
    return next(i for i, a in enumerate(product.axes) if not a.is_plain)


def cut_axis(outs: Sequence[int], pieces: int) -> int:
    """The axis to cut: the first with so many positions, which leaves rows of the others whole; else the longest."""
    enough = [i for i, out in enumerate(outs) if out >= pieces]
    return enough[0] if enough else int(np.argmax(outs))


def slices(count: int, step: int) -> list[slice]:
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
