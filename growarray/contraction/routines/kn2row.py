"""Convolution on NumPy as one product with all taps at once, whose results are shifted and added.

For few results beside what is summed: they are less to move than the windows of the input would be.

Source: Vasudevan, Anderson and Gregg (2017), "Parallel multi channel convolution using general matrix multiplication",
arXiv:1704.04428 (kn2row). Here in pieces that fit the cache, with strides, and with the gradient by the kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Axis, Product
from growarray.contraction.routines.im2col import COLD, chunk_size, cut_axis, gathering, slices
from growarray.contraction.routines.protocol import D_KERNEL, FORWARD, Task
from growarray.contraction.routines.windows import window
from growarray.contraction.workspace import by_image, here, view_as

_FEWER = 3.5  # times as many are summed as there are results: where it is as fast as gathering windows, measured
_WIDE = 4  # rows that the product's own kernels take at a time: one or three more take as long as four, or longer
_PASSES = 4  # of the machine, that adding a shifted result takes
_HALF = 64  # summed channels of a piece of a gradient by the kernel, at least

_Place = tuple[slice | int, ...]  # of an array of several axes


class _Piece(NamedTuple):
    """Outputs along one axis, and the part of the feature map that they read.

    shifts : for each tap that reads data, outputs of the piece (b, n, *outs) and what is added to them, of the results
    (b, taps, n, *sizes) of all taps    covered : whether the first adds to all of them
    """

    outs: _Place
    inputs: _Place
    shifts: list[tuple[_Place, _Place]]
    covered: bool


class Kn2row:
    """One convolution of fixed sizes."""

    name: ClassVar[str] = "kn2row"
    ways: ClassVar[tuple[str, ...]] = (FORWARD, D_KERNEL)
    call = None

    def __init__(self, product: Product) -> None:
        self.b, self.s, self.n, self.taps = product.b, product.s, product.n, product.taps
        self.rows, axes = _rows(product), product.axes
        outs = [a.out for a in axes]
        pieces = -(-self.b * self.rows * product.columns // chunk_size(product))
        cut = cut_axis(outs, pieces)
        count = max(1, min(pieces, outs[cut]))
        bounds = [outs[cut] * i // count for i in range(count + 1)]
        self.pieces = [_piece(axes, cut, *ends) for ends in itertools.pairwise(bounds)]

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """Much more is summed than results, and the kernel is not too large to be brought into another order."""
        if library != "numpy" or not product.is_conv or product.kernel_dominates:
            return False
        return _FEWER * product.n <= product.s

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """One product at all positions of the input, and a pass for each tap."""
        b, s, item, rows = product.b, product.s, product.itemsize, _rows(product)
        inputs = math.prod(a.size for a in product.axes)
        depth, width = (inputs, s) if way == D_KERNEL else (s, inputs)
        each = gathering(product, machine)[0] + _PASSES * machine.element * item / 4
        moved = product.n * product.taps * product.columns * each
        return b * moved + COLD * machine.product(b, rows, depth, width, item) + 4 * product.taps * machine.call

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """A copy of the kernel in another order."""
        return product.b * product.n * product.s * product.taps * machine.gathered

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """Matrices (b, rows, s): all results of one tap after those of another, and rows of zeros."""
        ready = np.zeros((self.b, self.rows, self.s), kernel.dtype)
        self._by_tap(ready)[...] = kernel.reshape(self.b, self.n, self.s, self.taps)
        return ready

    def _by_tap(self, matrices: np.ndarray) -> np.ndarray:
        """(b, rows, s) as the kernel is: a view (b, n, s, taps)."""
        used = matrices[:, : self.taps * self.n]
        return used.reshape(self.b, self.taps, self.n, matrices.shape[2]).transpose(0, 2, 3, 1)

    def forward(
        self, kernel: np.ndarray, feature: np.ndarray, out: np.ndarray, ready: np.ndarray | None = None
    ) -> Sequence[Task]:
        """Pieces of an axis."""
        ready = self.prepare(kernel) if ready is None else ready
        if len(self.pieces) == 1:
            self._forward(ready, feature, out, self.pieces[0])
            return ()
        return [partial(self._forward, ready, feature, out, piece) for piece in self.pieces]

    def _forward(self, ready: np.ndarray, feature: np.ndarray, out: np.ndarray, piece: _Piece) -> None:
        target, part = out[piece.outs], feature[piece.inputs]
        matrices = _matrices(part)
        results, by_tap = self._results(matrices, part.shape[2:])
        np.matmul(ready if matrices.ndim == 3 else ready[:, None], matrices, out=results)
        if not piece.covered:
            target[...] = 0
        for index, (into, read) in enumerate(piece.shifts):
            place = target[into]
            if index == 0 and piece.covered:
                place[...] = by_tap[read]
            else:
                np.add(place, by_tap[read], out=place)

    def _results(self, matrices: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Work space for the results of all taps, which lie as the matrices do; its view (b, taps, n, *sizes)."""
        shape = (*matrices.shape[:-2], self.rows, matrices.shape[-1])
        found = here.arrays["results of taps", shape, matrices.dtype]
        used = found[..., : self.taps * self.n, :]
        if used.ndim == 3:
            return found, used.reshape(self.b, self.taps, self.n, *sizes)
        return found, np.moveaxis(used.reshape(*used.shape[:2], self.taps, self.n, *sizes[1:]), 1, 3)

    def d_kernel(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> Sequence[Task]:
        """Two halves of what is summed: each shifts the gradient once more, which is little beside its product."""
        halves = slices(self.s, max(-(-self.s // 2), _HALF))
        return [partial(self._d_kernel, d_out, feature[:, half], out[:, :, half]) for half in halves]

    def _d_kernel(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> None:
        total = np.zeros((self.b, self.rows, feature.shape[1]), out.dtype)
        for piece in self.pieces if d_out.size else []:
            part, d_part = feature[piece.inputs], d_out[piece.outs]
            matrices = _matrices(part)
            d_results, by_tap = self._results(matrices, part.shape[2:])
            d_results[...] = 0
            for into, read in piece.shifts:
                by_tap[read] = d_part[into]
            product = np.matmul(d_results, matrices.swapaxes(-1, -2))
            total += product if product.ndim == 3 else product.sum(axis=1)
        out[...] = self._by_tap(total).reshape(out.shape)


def _rows(product: Product) -> int:
    return -(-product.taps * product.n // _WIDE) * _WIDE


def _piece(axes: Sequence[Axis], cut: int, start: int, stop: int) -> _Piece:
    """Outputs ``start`` to ``stop`` along one axis."""
    a = axes[cut]
    first = start * a.stride - a.before
    low = min(max(first, 0), a.size)
    high = min(max(first + (stop - 1 - start) * a.stride + (a.taps - 1) * a.dilation + 1, low), a.size)
    mine = [*axes]
    mine[cut] = a._replace(size=high - low, out=stop - start, before=low - first)
    shifts: list[tuple[int, _Place, _Place]] = []
    for tap, taps in enumerate(itertools.product(*(range(a.taps) for a in mine))):
        found = [window(a, t, 0, a.out) for a, t in zip(mine, taps, strict=True)]
        count = math.prod(max(end - begin, 0) for begin, end, _ in found)
        into = (slice(None), slice(None), *(slice(begin, end) for begin, end, _ in found))
        shifts.append((count, into, (slice(None), tap, slice(None), *(read for *_, read in found))))
    shifts.sort(key=lambda shift: -shift[0])
    at = (slice(None),) * (2 + cut)
    covered = shifts[0][0] == math.prod(a.out for a in mine)
    places = [(into, read) for count, into, read in shifts if count]
    return _Piece((*at, slice(start, stop)), (*at, slice(low, high)), places, covered)


def _matrices(part: np.ndarray) -> np.ndarray:
    """(b, s, *sizes) as (b, s, columns), or as (b, images, s, columns) if images lie before their channels."""
    flat = view_as(part, (*part.shape[:2], math.prod(part.shape[2:])))
    if flat is not None:
        return flat
    images = by_image(part)
    return part.reshape(*part.shape[:2], -1) if images is None else images
