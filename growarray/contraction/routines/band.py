"""Convolution without a sum over channels, on NumPy: batches of small products with banded matrices.

A few outputs of one axis are a banded matrix times the inputs they read. Most of its entries are zero, yet products
with it are faster than shifted multiply-adds, which pass over memory twice for every tap, and hand the interpreter's
lock over at every pass (3 taps, 14 to 56 positions: 0.7 ns an output, where passes take 1.1 to 2.4). The zeros have a
price: a NaN or an infinity spreads over the block of outputs that reads it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Axis, Product
from growarray.contraction.routines.protocol import D_KERNEL, FORWARD, Task
from growarray.contraction.routines.windows import window
from growarray.contraction.workspace import here, view_as

_PIECE = 1 << 17  # elements of one piece
_WIDE = 16  # outputs of one block along the innermost axis: the width of the product's own kernels
_FEW = 4  # rows below which blocks of the innermost axis are gathered, so that they become the rows
_CALLS = 5  # of the machine, that products of one run of blocks take
_BLOCK = 5000  # outputs squared times columns, where the cost of one small call equals that of its zeros


class _Layout(NamedTuple):
    """Which axis is banded, in blocks of how many outputs, and whether it is the innermost one."""

    at: int
    block: int
    innermost: bool


def _layout_of(axes: Sequence[Axis]) -> _Layout:
    """The innermost axis that is convolved: taps of the others then select whole rows."""
    convolved = [i for i, a in enumerate(axes) if not a.is_plain]
    at = convolved[-1] if convolved else len(axes) - 1
    out = axes[at].out
    if at == len(axes) - 1:
        return _Layout(at, max(out, 1) if out <= _WIDE * 3 // 2 else _WIDE, True)
    columns = math.prod(a.out for a in axes[at + 1 :])
    blocks = max(1, round(out / max(math.sqrt(_BLOCK / max(columns, 1)), 4.0)))
    return _Layout(at, max(-(-out // blocks), 1), False)


class _Run(NamedTuple):
    """Blocks of ``size`` outputs from ``start``, the first of which reads ``inputs`` inputs from ``first``; ``skip``
    rows of the band lie in the padding before them."""

    start: int
    blocks: int
    size: int
    first: int
    inputs: int
    skip: int


def _runs(axis: Axis, block: int) -> list[_Run]:
    runs: list[_Run] = []
    for start in range(0, axis.out, block):
        size = min(block, axis.out - start)
        low = start * axis.stride - axis.before
        reach = (size - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1
        first, stop = max(low, 0), min(low + reach, axis.size)
        one = _Run(start, 1, size, first, max(stop - first, 0), first - low)
        last = runs[-1] if runs else None
        if last and one.inputs == reach and (last.size, last.inputs, last.skip) == (size, reach, 0):
            runs[-1] = last._replace(blocks=last.blocks + 1)
        else:
            runs.append(one)
    return runs


class Band:
    """out[b, q] = sum over taps of weights[b, tap] feature[b, q + tap], for fixed sizes."""

    name: ClassVar[str] = "band"
    ways: ClassVar[tuple[str, ...]] = (FORWARD, D_KERNEL)
    call = None

    def __init__(self, product: Product) -> None:
        self.b, self.axes = b, axes = product.b, product.axes
        self.outs = tuple(a.out for a in axes)
        self.at, self.block, self.innermost = _layout_of(axes)
        self.axis = axis = self.axes[self.at]
        self.runs = _runs(axis, self.block)
        self.reach = (self.block - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1
        self.few = self.innermost and (self.at == 0 or self.outs[self.at - 1] < _FEW)
        others = [range(1) if i == self.at else range(a.taps) for i, a in enumerate(self.axes)]
        places = [self._place(taps) for taps in itertools.product(*others)]
        # what the first product does not write, the others cannot be added to
        self.places = sorted(places, key=lambda place: not place.whole)
        pieces = b * math.prod(self.outs) // _PIECE
        pieces = max(1, min(b, pieces + pieces % 2 if pieces > 1 else pieces))  # an even number, for two threads
        self.pieces = [slice(b * i // pieces, b * (i + 1) // pieces) for i in range(pieces)]

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """A convolution without a sum over channels."""
        return library == "numpy" and product.s == product.n == 1 and product.is_conv

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """Small products with banded matrices, and passes over the outputs to add those of further taps."""
        b, axes, out, item = product.b, product.axes, product.columns, product.itemsize / 4
        if way == D_KERNEL:
            return product.taps * (3 * b * out * machine.element * item + 6 * machine.call)
        at, block, innermost = _layout_of(axes)
        banded = axes[at]
        reach = (block - 1) * banded.stride + (banded.taps - 1) * banded.dilation + 1
        columns = (axes[at - 1].out if at else 1) if innermost else math.prod(a.out for a in axes[at + 1 :])
        sides, others = (columns, block) if innermost else (block, columns), product.taps // banded.taps
        many = math.ceil(b * out / max(block * columns, 1))
        products = machine.product(many, sides[0], min(reach, banded.size), sides[1], product.itemsize, machine.small)
        calls = _CALLS * len(_runs(banded, block)) * machine.call
        return others * (products + calls) + (others - 1) * 3 * b * out * machine.element * item

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """Bands are small."""
        return 0.0

    def _place(self, taps: Sequence[int]) -> _Place:
        into: list[slice] = [slice(None)]
        read: list[slice] = [slice(None)]
        for i, (axis, tap) in enumerate(zip(self.axes, taps, strict=True)):
            low, high, piece = (0, axis.out, slice(None)) if i == self.at else window(axis, tap, 0, axis.out)
            into.append(slice(low, high))
            read.append(piece)
        whole = all(piece == slice(0, out) for piece, out in zip(into[1:], self.outs, strict=True))
        sizes = [a.taps for a in self.axes]
        flat = [
            int(np.ravel_multi_index((*taps[: self.at], t, *taps[self.at + 1 :]), sizes)) for t in range(self.axis.taps)
        ]
        return _Place(tuple(into), tuple(read), flat, whole)

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """Banded matrices, one set for each tap of the other axes."""
        weights = kernel.reshape(self.b, math.prod(kernel.shape[1:]))
        bands = np.zeros((len(self.places), self.b, self.block, self.reach), weights.dtype)
        rows = np.arange(self.block)
        for band, place in zip(bands, self.places, strict=True):
            for t, index in enumerate(place.taps):
                band[:, rows, rows * self.axis.stride + t * self.axis.dilation] = weights[:, index, None]
        return np.ascontiguousarray(bands.swapaxes(2, 3)) if self.innermost else bands

    def forward(
        self, kernel: np.ndarray, feature: np.ndarray, out: np.ndarray, ready: np.ndarray | None = None
    ) -> Sequence[Task]:
        """Some channels after others; fast if the innermost axis is dense."""
        ready = self.prepare(kernel) if ready is None else ready
        feature, out = feature[:, 0], out[:, 0]
        if len(self.pieces) == 1:
            self._piece(ready, feature, out)
            return ()
        return [partial(self._piece, ready[:, p], feature[p], out[p]) for p in self.pieces]

    def _piece(self, bands: np.ndarray, feature: np.ndarray, out: np.ndarray) -> None:
        feature = _dense(feature, "feature")
        whole: np.ndarray | None = out
        if not (self.innermost or out.flags.c_contiguous):
            whole = view_as(out, (*out.shape[: self.at + 2], math.prod(out.shape[self.at + 2 :])))
        direct = whole is not None and _is_dense(whole)
        total = out if direct else here.arrays["total", out.shape, out.dtype]
        if not self.places[0].whole:
            total[...] = 0
        for index, (band, place) in enumerate(zip(bands, self.places, strict=True)):
            target = total[place.into]
            if target.size == 0:
                continue
            source = self._matrices(feature[place.read])
            if index == 0 and place.whole:
                self._products(source, band, self._matrices(target))
            else:
                part = here.arrays["part", target.shape, out.dtype]
                self._products(source, band, self._matrices(part))
                np.add(target, part, out=target)
        if total is not out:
            out[...] = total

    def _matrices(self, array: np.ndarray) -> np.ndarray:
        """(b, *axes) as (b, ..., rows, columns): the banded axis as rows, or as columns if it is innermost."""
        if self.innermost:
            return array if array.ndim > 2 else array[:, None]
        return array.reshape(*array.shape[: self.at + 2], -1)

    def _products(self, source: np.ndarray, band: np.ndarray, target: np.ndarray) -> None:
        for run in self.runs:
            blocks = self._blocks(target, run.start, run.size, run.size, run.blocks)
            if run.inputs == 0:
                blocks[...] = 0
                continue
            read = self._blocks(source, run.first, run.inputs, run.size * self.axis.stride, run.blocks)
            lead = (len(band), *(1,) * (read.ndim - 3))
            used = slice(run.skip, run.skip + run.inputs)
            if self.innermost:
                kernel = band[:, used, : run.size].reshape(*lead, run.inputs, run.size)
                np.matmul(_gathered(read) if self.few else read, kernel, out=blocks)
            else:
                kernel = band[:, : run.size, used].reshape(*lead, run.size, run.inputs)
                np.matmul(kernel, read, out=blocks)

    def _blocks(self, array: np.ndarray, first: int, size: int, step: int, count: int) -> np.ndarray:
        """``count`` blocks of ``size`` positions of the banded axis, ``step`` apart: (b, ..., count, rows, columns)."""
        *lead, rows, columns = array.shape
        *strides, down, along = array.strides
        if not self.innermost:
            return _view(array, -2, first, (*lead, count, size, columns), (*strides, step * down, down, along))
        if self.few:
            return _view(array, -1, first, (*lead, rows, count, size), (*strides, down, step * along, along))
        return _view(array, -1, first, (*lead, count, rows, size), (*strides, step * along, down, along))

    def d_kernel(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> Sequence[Task]:
        """Some channels after others."""
        d_out, feature, out = d_out[:, 0], feature[:, 0], out.reshape(self.b, math.prod(out.shape[1:]))
        return [partial(self._gradient, d_out[p], feature[p], out[p]) for p in self.pieces]

    def _gradient(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> None:
        last = self.axes[-1]
        even = last.stride == 1 and last.out == last.size > 1 and feature.ndim > 2
        if even:
            d_out, feature = np.ascontiguousarray(d_out), np.ascontiguousarray(feature)
        axes = list(range(d_out.ndim))
        for index, taps in enumerate(itertools.product(*(range(a.taps) for a in self.axes))):
            places = [window(a, t, 0, a.out) for a, t in zip(self.axes, taps, strict=True)]
            into = tuple(slice(low, high) for low, high, _ in places)
            read = tuple(piece for *_, piece in places)
            shift = taps[-1] * last.dilation - last.before
            if even and 2 * abs(shift) < last.out:
                out[:, index] = _along(d_out[(slice(None), *into[:-1])], feature[(slice(None), *read[:-1])], shift)
            else:
                part = d_out[(slice(None), *into)]
                out[:, index] = np.einsum(part, axes, feature[(slice(None), *read)], axes, axes[:1])


def _along(d_out: np.ndarray, feature: np.ndarray, shift: int) -> np.ndarray:
    """Sum of products with the feature map ``shift`` positions further along its rows.

    Rows end to end are one long run. Products of the end of a row with the beginning of the next are subtracted again.
    """
    rows, width = d_out.shape[-2:]
    lead, axes = d_out.shape[:-2], list(range(d_out.ndim - 1))
    if shift < 0:
        d_out, feature, shift = feature, d_out, -shift
    length = max(rows * width - shift, 0)
    long = (*lead, rows * width)  # not -1: a tap may read nothing but padding
    flat = d_out.reshape(long)[..., :length], feature.reshape(long)[..., shift:]
    total: np.ndarray = np.einsum(flat[0], axes, flat[1], axes, axes[:1])
    if shift:
        met = d_out[..., :-1, width - shift :], feature[..., 1:, :shift]
        total -= np.einsum(met[0], [*axes, len(axes)], met[1], [*axes, len(axes)], axes[:1])
    return total


class _Place(NamedTuple):
    """One tap of every axis but the banded one: outputs that it reaches, inputs that it reads, its flat indices, one
    for each tap of the banded axis, and whether it reaches all outputs."""

    into: tuple[slice, ...]
    read: tuple[slice, ...]
    taps: list[int]
    whole: bool


def _view(array: np.ndarray, axis: int, first: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """A view from position ``first`` of an axis on; ``as_strided`` takes microseconds, so it is for the rest alone."""
    if array.flags.c_contiguous:
        return np.ndarray(shape, array.dtype, array, first * array.strides[axis], strides)
    start = array[..., first:] if axis == -1 else array[..., first:, :]
    return as_strided(start, shape, strides)


def _is_dense(array: np.ndarray) -> bool:
    """Whether products take it without a copy: the innermost axis dense, the next one no shorter than it."""
    item = array.itemsize
    if array.shape[-1] > 1 and array.strides[-1] != item:
        return False
    return array.ndim < 2 or array.strides[-2] >= array.shape[-1] * item


def _dense(array: np.ndarray, slot: str) -> np.ndarray:
    if _is_dense(array):
        return array
    copy: np.ndarray = here.arrays[slot, array.shape, array.dtype]
    copy[...] = array
    return copy


def _gathered(windows: np.ndarray) -> np.ndarray:
    """Overlapping blocks side by side, as products need them."""
    copy = here.arrays["windows", windows.shape, windows.dtype]
    copy[...] = windows
    return copy
