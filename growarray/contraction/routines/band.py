"""Convolution without a sum over channels, on NumPy: products with banded matrices, one for each channel.

A few outputs of one axis are a banded matrix times the inputs they read. Most of its entries are zero, yet products
with it are faster than shifted multiply-adds, which pass over memory twice for every tap, and hand the interpreter's
lock over at every pass. All rows of a channel are the rows of one product: OpenBLAS locks its work space at every
call, so that two threads with many small products take longer than one alone. Where outputs are few, the matrix is of
all trailing axes together, and a product makes all taps of a plane. The zeros have a price: a NaN or an infinity
spreads over the block of outputs that reads it.
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
from growarray.contraction.problem import Product
from growarray.contraction.routines.banding import FEW, inputs, is_thin, layout_of, outputs
from growarray.contraction.routines.protocol import D_KERNEL, FORWARD, Task
from growarray.contraction.routines.windows import window
from growarray.contraction.workspace import here, view_as

_PIECE = 1 << 17  # elements of one piece


class Band:
    """out[b, q] = sum over taps of weights[b, tap] feature[b, q + tap], for fixed sizes."""

    name: ClassVar[str] = "band"
    ways: ClassVar[tuple[str, ...]] = (FORWARD, D_KERNEL)
    call = None

    def __init__(self, product: Product) -> None:
        self.b, self.axes = b, axes = product.b, product.axes
        layout = layout_of(product)
        self.at, self.inner, self.band = layout.at, layout.is_inner(axes), layout.band(axes)
        self.step = layout.block * axes[self.at].stride  # inputs from one block to the next
        self.runs = layout.runs(axes)
        before = axes[: self.at]
        self.rows, self.outs = tuple(a.size for a in before), tuple(a.out for a in before)
        self.positions = inputs(axes[self.at :]), outputs(axes[self.at :])
        self.thin = is_thin(before)
        taps = itertools.product(*(range(a.taps) for a in before))
        # what the first product does not write, the others cannot be added to
        self.places = sorted((self._place(i, one) for i, one in enumerate(taps)), key=lambda place: not place.whole)
        self.matrices = (len(self.places), b, inputs(self.band), outputs(self.band))
        along = itertools.product(*(range(a.taps) for a in self.band))
        self.entries = [self._entries(one, product.itemsize) for one in along]
        pieces = b * outputs(axes) // _PIECE
        pieces = max(1, min(b, pieces + pieces % 2 if pieces > 1 else pieces))  # an even number, for two threads
        self.pieces = [slice(b * i // pieces, b * (i + 1) // pieces) for i in range(pieces)]

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """A convolution without a sum over channels."""
        return library == "numpy" and product.s == product.n == 1 and product.is_conv

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """Products with banded matrices, and passes over the outputs to add those of further taps."""
        b, axes, item = product.b, product.axes, product.itemsize
        if way == D_KERNEL:
            return product.taps * (3 * b * product.columns * machine.element * item / 4 + 6 * machine.call)
        return layout_of(product).seconds(b, axes, item, machine)

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """Zeros, and every tap at all outputs of a block."""
        layout = layout_of(product)
        others = math.prod(a.taps for a in product.axes[: layout.at])
        zeros = others * inputs(layout.band(product.axes)) * machine.element
        return product.b * layout.block * (zeros + product.taps * machine.gathered)

    def _place(self, index: int, taps: Sequence[int]) -> _Place:
        found = [window(a, t, 0, a.out) for a, t in zip(self.axes, taps, strict=False)]
        into = (slice(None), *(slice(low, high) for low, high, _ in found))
        read = (slice(None), *(piece for *_, piece in found))
        whole = all(high - low == out for (low, high, _), out in zip(found, self.outs, strict=True))
        return _Place(index, into, read, whole, whole and self.rows == self.outs)

    def _entries(self, taps: Sequence[int], itemsize: int) -> _Entries | None:
        """Where the weights of one tap are in the matrices of all channels; None if it reads nothing but padding."""
        band, width = self.band, outputs(self.band)
        found = [window(a, t, 0, a.out) for a, t in zip(band, taps, strict=True)]
        down = [inputs(band[i + 1 :]) * width for i in range(len(band))]
        along = [outputs(band[i + 1 :]) for i in range(len(band))]
        start = sum(piece.start * d + low * o for (low, _, piece), d, o in zip(found, down, along, strict=True))
        matrix, lead = inputs(band) * width, (len(self.places), self.b)
        strides = (self.b * matrix, matrix, *(a.stride * d + o for a, d, o in zip(band, down, along, strict=True)))
        shape = (*lead, *(high - low for low, high, _ in found))
        if not math.prod(shape):
            return None
        return _Entries(shape, itemsize * start, tuple(itemsize * s for s in strides), (*lead, *(1 for _ in found)))

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """Banded matrices (inputs, outputs) of every channel, one set for each tap of the axes before."""
        weights = kernel.reshape(self.b, len(self.places), len(self.entries))
        bands = np.zeros(self.matrices, weights.dtype)
        for tap, at in enumerate(self.entries):
            if at is not None:
                into = np.ndarray(at.shape, bands.dtype, bands, at.offset, at.strides)
                into[...] = weights[:, :, tap].T.reshape(at.ones)
        return bands

    def forward(
        self, kernel: np.ndarray, feature: np.ndarray, out: np.ndarray, ready: np.ndarray | None = None
    ) -> Sequence[Task]:
        """Some channels after others; fast if the innermost axis is dense."""
        ready = self.prepare(kernel) if ready is None else ready
        feature, out = feature[:, 0], out[:, 0]
        run = self._rows_piece if self.inner else self._columns_piece
        if len(self.pieces) == 1:
            run(ready, feature, out)
            return ()
        return [partial(run, ready[:, p], feature[p], out[p]) for p in self.pieces]

    def _rows_piece(self, bands: np.ndarray, feature: np.ndarray, out: np.ndarray) -> None:
        """All rows of a channel times its matrix, of which a tap of the axes before reads those that are its own."""
        b, (size, count) = len(feature), self.positions
        source = _flat(feature, (b, *self.rows, size))
        if source is None or not source.flags.c_contiguous:
            source = _copied(feature, "feature").reshape(b, *self.rows, size)
        whole = _flat(out, (b, *self.outs, count))
        total = here.arrays["total", (b, *self.outs, count), out.dtype] if whole is None else whole
        if out.size and not self.places[0].whole:
            total[...] = 0
        for index, place in enumerate(self.places if out.size else ()):
            target, band = total[place.into], bands[place.number]
            if target.size == 0:
                continue
            first = index == 0 and place.whole
            flat = _flat(target, (b, math.prod(self.outs), count)) if first and (self.thin or place.same) else None
            rows = _copied(source[place.read], "rows") if self.thin else source
            part = here.arrays["part", (*rows.shape[:-1], count), out.dtype] if flat is None else flat
            high = math.prod(rows.shape[1:-1])
            self._products(rows.reshape(b, high, size), band, part.reshape(b, high, count))
            if flat is None:
                part = part if self.thin else part[place.read]
                np.copyto(target, part) if first else np.add(target, part, out=target)
        if whole is None:
            out[...] = total.reshape(out.shape)

    def _columns_piece(self, bands: np.ndarray, feature: np.ndarray, out: np.ndarray) -> None:
        """Every row of a channel, (positions, columns), after its matrix."""
        feature = _dense(feature, "feature")
        whole: np.ndarray | None = out
        if not out.flags.c_contiguous:
            whole = view_as(out, (*out.shape[: self.at + 2], math.prod(out.shape[self.at + 2 :])))
        direct = whole is not None and _is_dense(whole)
        total = out if direct else here.arrays["total", out.shape, out.dtype]
        if not self.places[0].whole:
            total[...] = 0
        for index, place in enumerate(self.places):
            target = total[place.into]
            if target.size == 0:
                continue
            source, band = self._matrices(feature[place.read]), bands[place.number].swapaxes(1, 2)
            if index == 0 and place.whole:
                self._products(source, band, self._matrices(target))
            else:
                part = here.arrays["part", target.shape, out.dtype]
                self._products(source, band, self._matrices(part))
                np.add(target, part, out=target)
        if total is not out:
            out[...] = total

    def _matrices(self, array: np.ndarray) -> np.ndarray:
        """(b, *axes) as (b, ..., positions, columns)."""
        return array.reshape(*array.shape[: self.at + 2], -1)

    def _products(self, source: np.ndarray, band: np.ndarray, target: np.ndarray) -> None:
        few = self.inner and source.shape[1] < FEW
        for run in self.runs:
            blocks = self._blocks(target, run.start, run.size, run.size, run.blocks, few)
            if run.inputs == 0:
                blocks[...] = 0
                continue
            read = self._blocks(source, run.first, run.inputs, self.step, run.blocks, few)
            lead = (len(band), *(1,) * (read.ndim - 3))
            used = slice(run.skip, run.skip + run.inputs)
            if self.inner:
                kernel = band[:, used, : run.size].reshape(*lead, run.inputs, run.size)
                np.matmul(_copied(read, "windows") if few else read, kernel, out=blocks)
            else:
                kernel = band[:, : run.size, used]
                np.matmul(kernel.reshape(*lead, run.size, run.inputs), read, out=blocks)

    def _blocks(self, array: np.ndarray, first: int, size: int, step: int, count: int, few: bool) -> np.ndarray:
        """``count`` blocks of ``size`` positions of the banded axis, ``step`` apart: (b, ..., count, rows, columns)."""
        *lead, rows, columns = array.shape
        *strides, down, along = array.strides
        if not self.inner:
            return _view(array, -2, first, (*lead, count, size, columns), (*strides, step * down, down, along))
        if few:
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
    """One tap of every axis before the banded ones: its number, outputs that it reaches, inputs that it reads, whether
    it reaches all outputs, and whether these are the inputs."""

    number: int
    into: tuple[slice, ...]
    read: tuple[slice, ...]
    whole: bool
    same: bool


class _Entries(NamedTuple):
    """The entries of one tap in the matrices of all channels, a view: its shape, where it begins and its strides, in
    bytes, and the shape of the weights beside it."""

    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    ones: tuple[int, ...]


def _flat(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A view in another shape, None if there is none; here, as a call into another file would count in every step."""
    return array.reshape(shape) if array.flags.c_contiguous else view_as(array, shape)


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
    return array if _is_dense(array) else _copied(array, slot)


def _copied(array: np.ndarray, slot: str) -> np.ndarray:
    copy: np.ndarray = here.arrays[slot, array.shape, array.dtype]
    copy[...] = array
    return copy
