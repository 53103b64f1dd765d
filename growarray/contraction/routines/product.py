"""Products without a convolution on NumPy: matrices times columns, or a multiplication if nothing is summed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import numpy as np

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Product
from growarray.contraction.routines.protocol import D_KERNEL, FORWARD, SingleCall, Task
from growarray.contraction.workspace import by_image, here, view_as

_SPLIT = 1 << 24  # operations of one piece: about 0.2 ms
_FEW, _LONG = 64, 192  # rows that a piece of a gradient by the kernel has at least; rows or columns of a product's
_WIDE = 16  # columns, or rows, that the product's own kernels take at a time


class Multiply:
    """out[b, n, q] = kernel[b, n] feature[b, q]."""

    name: ClassVar[str] = "multiply"
    ways: ClassVar[tuple[str, ...]] = (FORWARD,)

    def __init__(self, product: Product) -> None:
        lead = (product.b, product.n)
        self.call = SingleCall(np.multiply, (*lead, *(1 for _ in product.axes)), product.feature_shape, product.shape)

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """Nothing is summed."""
        return library == "numpy" and product.s == 1 and not product.is_conv

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """One pass, in rows."""
        out = product.columns
        each = machine.element + 2 * machine.row / max(out if out > 1 else product.n, 1)
        return machine.call + product.b * product.n * out * each

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """Nothing is prepared."""
        return 0.0

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """One entry for all positions."""
        return kernel.reshape(self.call.kernel)

    def forward(
        self, kernel: np.ndarray, feature: np.ndarray, out: np.ndarray, ready: np.ndarray | None = None
    ) -> Sequence[Task]:
        """At once."""
        ready = self.prepare(kernel) if ready is None else ready
        np.multiply(ready, feature, out=out)
        return ()


class Matmul:
    """out[b, n, q] = sum over s of kernel[b, n, s] feature[b, s, q]."""

    name: ClassVar[str] = "matmul"
    ways: ClassVar[tuple[str, ...]] = (FORWARD, D_KERNEL)

    def __init__(self, product: Product) -> None:
        self.b, self.s, self.n, self.columns = product.b, product.s, product.n, product.columns
        self.flops = 2 * self.b * self.s * self.n * self.columns
        self.by_rows = self.n > self.columns  # the longer side is cut: every piece reads all of the other operand
        whole = self.n if self.by_rows else self.columns
        self.pieces = _pieces(whole, min(self.flops // _SPLIT, whole // _LONG))
        lead, shapes = (self.b,) * (self.b != 1), ((self.n, self.s), (self.s, self.columns), (self.n, self.columns))
        one = SingleCall(np.matmul, *((*lead, *shape) for shape in shapes))
        self.call = one if len(self.pieces) == 1 else None

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """There is no convolution."""
        return library == "numpy" and not product.is_conv

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """One product; its gradient by the kernel sums over the columns."""
        b, s, n, columns = product.b, product.s, product.n, product.columns
        depth, width = (columns, s) if way == D_KERNEL else (s, columns)
        return machine.call + machine.product(b, n, depth, width, product.itemsize)

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """Nothing is prepared."""
        return 0.0

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """Matrices (b, n, s)."""
        return kernel.reshape(self.b, self.n, self.s)

    def forward(
        self, kernel: np.ndarray, feature: np.ndarray, out: np.ndarray, ready: np.ndarray | None = None
    ) -> Sequence[Task]:
        """Ranges of columns, or images if their channels are not beside each other."""
        ready = self.prepare(kernel) if ready is None else ready
        b, n, s = self.b, self.n, self.s
        flat, target = _flat(feature, (b, s, self.columns)), _flat(out, (b, n, self.columns))
        if flat is None or target is None:
            images, targets = by_image(feature), by_image(out)
            if images is not None and targets is not None:
                return _image_tasks(ready, images, targets)
        if flat is None:
            flat = feature.reshape(b, s, self.columns)
        if target is None:
            _through(ready, flat, out)
            return ()
        if b == 1:
            ready, flat, target = ready[0], flat[0], target[0]
        if self.call is not None:
            np.matmul(ready, flat, out=target)
            return ()
        if self.by_rows:
            return [partial(np.matmul, ready[..., p, :], flat, target[..., p, :]) for p in self.pieces]
        return [partial(np.matmul, ready, flat[..., p], target[..., p]) for p in self.pieces]

    def d_kernel(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> Sequence[Task]:
        """Some rows after others."""
        target = out.reshape(self.b, self.n, self.s)
        if self.n == 1 and self.s == 1:
            flat, d_flat = feature.reshape(self.b, -1), d_out.reshape(self.b, -1)
            np.einsum("bl,bl->b", d_flat, flat, out=target[:, 0, 0])
            return ()
        pieces = _pieces(self.n, min(self.flops // _SPLIT, self.n // _FEW))
        images, others = by_image(d_out), by_image(feature)
        if images is not None and others is not None and 4 * self.s < images.shape[3]:
            return [partial(_image_products, images[:, :, p], others, target[:, p]) for p in pieces]
        right = feature.reshape(self.b, self.s, -1).swapaxes(1, 2)  # copied, if it is no view, once for all pieces
        return [partial(_row_products, d_out[:, p], right, target[:, p]) for p in pieces]


def _pieces(whole: int, count: int) -> list[slice]:
    """Ranges of nearly equal size, an even number of them for two threads, or one."""
    step = max(-(-whole // max(count - count % 2, 1) // _WIDE) * _WIDE, 1)
    return [slice(start, min(start + step, whole)) for start in range(0, max(whole, 1), step)]


def _flat(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A view in another shape, None if there is none."""
    return array.reshape(shape) if array.flags.c_contiguous else view_as(array, shape)


def _row_products(d_out: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    np.matmul(d_out.reshape(*d_out.shape[:2], right.shape[1]), right, out=out)


def _image_tasks(matrices: np.ndarray, images: np.ndarray, targets: np.ndarray) -> list[Task]:
    """Products image by image, in one call for many: nothing is copied if channels are not beside each other."""
    count = images.shape[1]
    step = max(1, _SPLIT // max(2 * matrices.size * images.shape[3], 1))
    pieces = [slice(start, start + step) for start in range(0, count, step)]
    return [partial(np.matmul, matrices[:, None], images[:, p], targets[:, p]) for p in pieces]


def _image_products(images: np.ndarray, others: np.ndarray, out: np.ndarray) -> None:
    """Sum over images and columns of (b, images, n, columns) times (b, images, s, columns), into (b, n, s)."""
    parts = here.arrays["products", (out.shape[0], images.shape[1], *out.shape[1:]), out.dtype]
    np.matmul(images, others.swapaxes(2, 3), out=parts)
    np.sum(parts, axis=1, out=out)


def _through(matrices: np.ndarray, flat: np.ndarray, out: np.ndarray) -> None:
    whole = here.arrays["product", (*out.shape[:2], flat.shape[2]), out.dtype]
    np.matmul(matrices, flat, out=whole)
    out[...] = whole.reshape(out.shape)
