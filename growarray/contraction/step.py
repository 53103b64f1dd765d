"""One pairwise product on arrays: how its operands are turned, and which kernel runs it, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from growarray.backend import Array
from growarray.contraction import leaf, portable
from growarray.contraction.convolve import (
    Convolution,
    FeatureGradient,
    KernelGradient,
    gradient_parts,
)
from growarray.contraction.cost import is_heavy, is_short, kernel_of
from growarray.contraction.problem import SPARE, Axis, Pair, Problem
from growarray.contraction.scratch import borrow, view_as
from growarray.contraction.windows import Task
from growarray.contraction.winograd import tiles_at_once

__all__ = ["Step"]

_SPLIT = 1 << 23  # operations of one piece of a plain product: about 0.1 ms
_FEW = 64  # rows that a piece of a gradient by the kernel has at least
_NARROW = 256  # columns a piece has at least
_IMAGE = 32  # columns of one image below which to copy many of them into one product is faster than one for each


class Step:
    """A product of two partial results, with everything that its sizes decide.

    f_order, k_order : modes of the two arrays as they are stored    out : modes of the result, [b, n, axes], as stored
    """

    def __init__(self, pair: Pair, f_order: Sequence[str], k_order: Sequence[str], problem: Problem) -> None:
        self.pair, self.kernel, self.mask = pair, kernel_of(pair), pair.feature | pair.kernel
        self.b, self.s, self.n = pair.sizes
        self.axes = pair.axes
        names = tuple(a.name for a in self.axes)
        self.out = (*pair.b, *pair.n, *names)
        f_turned = (*pair.b, *pair.s, *names)
        k_turned = (*pair.b, *pair.n, *pair.s, *(m for m in names if m in k_order))
        self.f_perm = tuple(f_order.index(m) for m in f_turned)
        self.k_perm = tuple(k_order.index(m) for m in k_turned)
        self.f_back = tuple(f_turned.index(m) for m in f_order)
        self.k_back = tuple(k_turned.index(m) for m in k_order)
        self.out_sizes = tuple(problem.extent(m, self.mask) for m in self.out)
        self.f_stored = tuple(problem.extent(m, pair.feature) for m in f_order)
        self.f_sizes = tuple(problem.extent(m, pair.feature) for m in f_turned)
        self.k_sizes = tuple(problem.extent(m, pair.kernel) for m in k_turned)
        self.padded = tuple((names.index(m) + 2, axis) for m, axis in pair.padded)
        self.f_shape = (self.b, self.s, *self.f_sizes[len(f_turned) - len(names) :])
        self.k_shape = (self.b, self.n, self.s, *(a.taps for a in self.axes))
        self.out_shape = (self.b, self.n, *(a.out for a in self.axes))
        self.conv = Convolution(pair.sizes, self.axes, pair.room, pair.spare) if pair.is_conv else None
        tiled = tiles_at_once((self.b, self.n, self.s), self.axes, pair.room, SPARE)
        heavy = (
            self.conv is not None and self.kernel != "band" and is_heavy(pair.sizes, self.axes, pair.room) and not tiled
        )
        self.heavy = FeatureGradient(pair.sizes, self.axes) if heavy else None
        # a guess at its time: products at 80 GFLOP/s, a nanosecond for every element read and written
        seconds = pair.flops / 8e10 + 1e-9 * (math.prod(self.f_shape) + math.prod(self.out_shape))
        self.short = is_short(pair, seconds)
        self._kernel_gradient: KernelGradient | None = None
        self._gradient: list[tuple[Any, Any, tuple[Axis, ...], Convolution | None]] | None = None

    def feature(self, xp: Any, array: Array) -> Array:
        """The feature map as (b, s, *sizes), padded where that is not by zeros."""
        turned = _turned(xp, array, self.f_perm, self.f_shape)
        for place, axis in self.padded:
            turned = leaf.pad(xp, turned, place, axis)
        return turned

    def kernel_array(self, xp: Any, array: Array) -> Array:
        """The kernel as (b, n, s, *taps)."""
        return _turned(xp, array, self.k_perm, self.k_shape)

    def canonical(self, xp: Any, array: Array) -> Array:
        """A result, or its gradient, as it is stored, as (b, n, *outs): a view for NumPy where it lies as stored."""
        found: Array = array.reshape(self.out_shape) if xp is np else xp.reshape(array, self.out_shape)
        return found

    def stored(self, xp: Any, result: Array) -> Array:
        """A result (b, n, *outs) as it is stored."""
        return xp.reshape(result, self.out_sizes)

    def d_feature(self, xp: Any, gradient: Array) -> Array:
        """A gradient (b, s, *sizes) as the feature map is stored."""
        for place, axis in reversed(self.padded):
            gradient = leaf.unpad(xp, gradient, place, axis)
        return _turned_back(xp, gradient, self.f_sizes, self.f_back)

    def d_kernel(self, xp: Any, gradient: Array) -> Array:
        """A gradient (b, n, s, *taps) as the kernel is stored."""
        return _turned_back(xp, gradient, self.k_sizes, self.k_back)

    # The same three products for any array library.

    def run(self, xp: Any, feature: Array, kernel: Array) -> Array:
        """The product of arrays as :meth:`feature` and :meth:`kernel_array` give them."""
        if self.conv is None:
            return portable.product(xp, kernel, feature)
        return portable.convolve(xp, feature, kernel, self.axes)

    def run_d_feature(self, xp: Any, d_out: Array, kernel: Array) -> Array:
        """Gradient by the feature map."""
        if self.conv is None:
            turned = xp.permute_dims(kernel, (0, 2, 1, *range(3, kernel.ndim)))
            return portable.product(xp, turned, d_out)
        return portable.feature_gradient(xp, d_out, kernel, self.axes)

    def run_d_kernel(self, xp: Any, d_out: Array, feature: Array) -> Array:
        """Gradient by the kernel."""
        return portable.kernel_gradient(xp, d_out, feature, self.axes)

    # On NumPy, cut into pieces that may run at the same time.

    def prepared(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel as its products want it."""
        return self.conv.prepare(kernel) if self.conv is not None else kernel.reshape(self.b, self.n, self.s)

    def tasks(self, feature: np.ndarray, matrices: np.ndarray, out: np.ndarray) -> list[Task]:
        """Pieces of the product; ``out`` is (b, n, *outs), a view of anything."""
        if not out.size or not feature.size:
            out[...] = 0  # the sum over nothing
            return []
        if self.conv is not None:
            return self.conv.tasks(feature, matrices, out)
        return _product_tasks(matrices, feature, out, self.s)

    def prepared_gradient(self, kernel: np.ndarray) -> list[np.ndarray | None]:
        """The kernel as the gradient by the feature map wants it."""
        turned = kernel.swapaxes(1, 2)
        if self.conv is None:
            return [turned.reshape(self.b, self.s, self.n)]
        if self.heavy is not None:
            return [kernel.reshape(self.b, self.n, self.s, math.prod(self.k_shape[3:]))]
        lead = (slice(None),) * 3
        return [conv.prepare(turned[(*lead, *taps)]) if conv else None for _, taps, _, conv in self._gradients()]

    def _gradients(self) -> list[tuple[Any, Any, tuple[Axis, ...], Convolution | None]]:
        if self._gradient is None:
            sizes = (self.b, self.n, self.s)
            self._gradient = [
                (place, taps, turned, None if taps is None else Convolution(sizes, turned, self.pair.room, SPARE))
                for place, taps, turned in gradient_parts(self.axes)
            ]
        return self._gradient

    def d_feature_tasks(self, d_out: np.ndarray, matrices: list[np.ndarray | None], out: np.ndarray) -> list[Task]:
        """Pieces of the gradient by the feature map, into ``out`` (b, s, *sizes)."""
        if not out.size or not d_out.size:
            out[...] = 0  # the sum over nothing
            return []
        if self.conv is None:
            return [] if matrices[0] is None else _product_tasks(matrices[0], d_out, out, self.n)
        if self.heavy is not None:
            return [] if matrices[0] is None else self.heavy.tasks(d_out, matrices[0], out)
        tasks: list[Task] = []
        for (place, _, _, conv), prepared in zip(self._gradients(), matrices, strict=True):
            part = out[(slice(None), slice(None), *place)]
            if conv is None or prepared is None:
                part[...] = 0
            else:
                tasks += conv.tasks(d_out, prepared, part)
        return tasks

    def d_kernel_tasks(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> list[Task]:
        """Pieces of the gradient by the kernel, into ``out`` (b, n, s, *taps)."""
        if not out.size or not feature.size:
            out[...] = 0  # the sum over nothing
            return []
        if self.conv is not None:
            if self._kernel_gradient is None:
                self._kernel_gradient = KernelGradient(self.conv, self.pair.room)
            return self._kernel_gradient.tasks(d_out, feature, out)
        target = out.reshape(self.b, self.n, self.s)
        if self.n == 1 and self.s == 1:
            flat, d_flat = feature.reshape(self.b, -1), d_out.reshape(self.b, -1)
            return [lambda: np.einsum("bl,bl->b", d_flat, flat, out=target[:, 0, 0])]
        step = max(_FEW, self.n * _SPLIT // max(self.pair.flops, 1))
        pieces = [slice(start, start + step) for start in range(0, self.n, step)]
        images, others = _by_image(d_out), _by_image(feature)
        if images is not None and others is not None and 4 * self.s < images.shape[3]:
            return [lambda p=p: _image_products(images[:, :, p], others, target[:, p]) for p in pieces]  # type: ignore[misc]
        right = feature.reshape(self.b, self.s, -1).swapaxes(1, 2)  # copied, where it is no view, once for all pieces
        return [
            lambda p=p: np.matmul(d_out[:, p].reshape(self.b, -1, right.shape[1]), right, out=target[:, p])  # type: ignore[misc]
            for p in pieces
        ]


def _turned(xp: Any, array: Array, order: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Axes in another order, in another shape; by NumPy's methods where that will do, at a third of the cost."""
    found: Array = (
        array.transpose(order).reshape(shape) if xp is np else xp.reshape(xp.permute_dims(array, order), shape)
    )
    return found


def _turned_back(xp: Any, array: Array, shape: tuple[int, ...], order: tuple[int, ...]) -> Array:
    """Another shape, its axes in another order."""
    found: Array = (
        array.reshape(shape).transpose(order) if xp is np else xp.permute_dims(xp.reshape(array, shape), order)
    )
    return found


def _product_tasks(matrices: np.ndarray, feature: np.ndarray, out: np.ndarray, s: int) -> list[Task]:
    """(b, n, s) times (b, s, *sizes): elementwise where nothing is summed, else products over ranges of columns."""
    b, n = out.shape[:2]
    if s == 1:
        weights = matrices.reshape(b, n, *(1,) * (out.ndim - 2))
        return [lambda: np.multiply(weights, feature, out=out)]
    columns = math.prod(feature.shape[2:])
    flat, target = view_as(feature, (b, s, columns)), view_as(out, (b, n, columns))
    if flat is None or target is None:
        images, targets = _by_image(feature), _by_image(out)
        if images is not None and targets is not None:
            return _image_tasks(matrices, images, targets)
    if flat is None:
        flat = feature.reshape(b, s, -1)
    if target is None:
        return [lambda f=flat: _through(matrices, f, out)]  # type: ignore[misc]
    step = max(_NARROW, columns * _SPLIT // max(2 * b * n * s * columns, 1))
    if b == 1:
        matrices, flat, target = matrices[0], flat[0], target[0]
    pieces = [slice(start, start + step) for start in range(0, columns, step)]
    return [lambda p=p: np.matmul(matrices, flat[..., p], out=target[..., p]) for p in pieces]  # type: ignore[misc]


def _by_image(array: np.ndarray) -> np.ndarray | None:
    """(b, rows, images, *sizes) as (b, images, rows, columns), where that is a view of images large enough."""
    if array.ndim < 4:
        return None
    turned = array.swapaxes(1, 2)
    columns = math.prod(turned.shape[3:])
    return view_as(turned, (*turned.shape[:3], columns)) if columns >= _IMAGE else None


def _image_tasks(matrices: np.ndarray, images: np.ndarray, targets: np.ndarray) -> list[Task]:
    """Products image by image, in one call for many: nothing is copied where channels do not lie beside each other."""
    count = images.shape[1]
    work = 2 * matrices.size * images.shape[3]
    step = max(1, _SPLIT // max(work, 1))
    pieces = [slice(start, start + step) for start in range(0, count, step)]
    return [lambda p=p: np.matmul(matrices[:, None], images[:, p], out=targets[:, p]) for p in pieces]  # type: ignore[misc]


def _image_products(images: np.ndarray, others: np.ndarray, out: np.ndarray) -> None:
    """Sum over images and columns of (b, images, n, columns) times (b, images, s, columns), into (b, n, s)."""
    parts = borrow("products", (out.shape[0], images.shape[1], *out.shape[1:]), out.dtype)
    np.matmul(images, others.swapaxes(2, 3), out=parts)
    np.sum(parts, axis=1, out=out)


def _through(matrices: np.ndarray, flat: np.ndarray, out: np.ndarray) -> None:
    whole = borrow("product", (*out.shape[:2], flat.shape[2]), out.dtype)
    np.matmul(matrices, flat, out=whole)
    out[...] = whole.reshape(out.shape)
