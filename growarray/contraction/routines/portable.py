"""Products and convolutions from array-API operations: what other libraries run, and what NumPy is checked by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from growarray.backend import Array, assign
from growarray.contraction.machine import Machine
from growarray.contraction.problem import Axis, Product
from growarray.contraction.routines.protocol import D_FEATURE, D_KERNEL, FORWARD
from growarray.contraction.routines.windows import transposed_parts, window


class Portable:
    """Any product, on arrays of any library; a convolution gathers windows for one tap of its first axis at a time."""

    name: ClassVar[str] = "portable"
    ways: ClassVar[tuple[str, ...]] = (FORWARD, D_FEATURE, D_KERNEL)

    def __init__(self, product: Product) -> None:
        self.product, self.axes = product, product.axes

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """Anything."""
        return True

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """Windows are copied, and multiplied, once for each tap of the first axis."""
        b, s, n = product.b, product.s, product.n
        if way == D_FEATURE:
            parts = [part for *_, part in transposed_parts(product) if part is not None]
            return sum(cls.seconds(part, machine, FORWARD) for part in parts)
        out, taps, item = product.columns, product.taps, product.itemsize / 4
        gathered = b * s * taps * out * 2 * machine.copied * item if product.is_conv else 0.0
        if way == D_KERNEL:
            return gathered + machine.product(b, n, out, s * taps, product.itemsize) + 2 * taps * machine.call
        first = max((a.taps for a in product.axes), default=1)
        if (s == 1 and n == 1) or (s == 1 and not product.is_conv):
            return gathered + taps * (2 * b * n * out * machine.element * item + machine.call)
        added = (first - 1) * b * n * out * machine.element * item
        products = machine.product(b, n, s * taps, out, product.itemsize)
        return gathered + products + added + (taps + first) * machine.call

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """Nothing is kept."""
        return 0.0

    def forward(self, xp: Any, kernel: Array, feature: Array) -> Array:
        """The product, or the convolution."""
        product = self.product
        if not product.is_conv:
            return _product(xp, kernel, feature)
        if math.prod(product.shape) * product.s == 0:
            return xp.zeros(product.shape, dtype=feature.dtype, device=feature.device)
        total = None
        first = next((i for i, a in enumerate(self.axes) if a.taps > 1), 0)
        for _, group in itertools.groupby(_taps(self.axes), key=lambda t: t[first]):
            chosen = list(group)
            windows = [_window(xp, feature, self.axes, t) for t in chosen]
            weights = [kernel[(slice(None), slice(None), slice(None), *t)] for t in chosen]
            if product.s == product.n == 1:
                part = sum(_product(xp, w, x) for w, x in zip(weights[1:], windows[1:], strict=True)) + _product(
                    xp, weights[0], windows[0]
                )
            else:
                part = _product(xp, xp.concat(weights, axis=2), xp.concat(windows, axis=1))
            total = part if total is None else total + part
        return total

    def d_feature(self, xp: Any, kernel: Array, d_out: Array) -> Array:
        """Forward products of the output's gradient, one for each phase of the strides."""
        swapped = xp.permute_dims(kernel, (0, 2, 1, *range(3, kernel.ndim)))
        if not self.product.is_conv:
            return _product(xp, swapped, d_out)
        result = xp.zeros(self.product.feature_shape, dtype=d_out.dtype, device=d_out.device)
        for place, taps, product in transposed_parts(self.product):
            if product is None or product.columns == 0:
                continue
            used = swapped
            for axis, piece in enumerate(taps, start=3):
                chosen = xp.asarray(list(range(*piece.indices(used.shape[axis]))), device=kernel.device)
                used = xp.take(used, chosen, axis=axis)
            part = type(self)(product).forward(xp, used, d_out)
            if all(a.stride == 1 for a in self.axes):
                return part
            result = assign(result, (slice(None), slice(None), *place), part)
        return result

    def d_kernel(self, xp: Any, d_out: Array, feature: Array) -> Array:
        """One product, or one sum, for each tap."""
        p = self.product
        d_flat = xp.reshape(d_out, (p.b, p.n, p.columns))
        parts = []
        for taps in _taps(self.axes):
            flat = xp.reshape(_window(xp, feature, self.axes, taps), (p.b, p.s, p.columns))
            if p.n == p.s == 1:
                parts.append(xp.reshape(xp.sum(d_flat * flat, axis=2), (p.b, 1, 1)))
            else:
                parts.append(xp.matmul(d_flat, xp.matrix_transpose(flat)))
        return xp.reshape(xp.stack(parts, axis=-1), p.kernel_shape)


def _product(xp: Any, kernel: Array, feature: Array) -> Array:
    """(b, n, s) with (b, s, *sizes) to (b, n, *sizes): a multiplication if nothing is summed, else a product."""
    b, n, s = kernel.shape[:3]
    if s == 1:
        return xp.reshape(kernel, (b, n, *(1 for _ in feature.shape[2:]))) * feature
    flat = xp.reshape(feature, (b, s, math.prod(feature.shape[2:])))
    return xp.reshape(xp.matmul(xp.reshape(kernel, (b, n, s)), flat), (b, n, *feature.shape[2:]))


def _taps(axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(a.taps) for a in axes)))


def _window(xp: Any, feature: Array, axes: Sequence[Axis], taps: Sequence[int]) -> Array:
    """What one tap reads, (b, s, *outs): a strided view if it is inside, padded with zeros if it is not."""
    index: list[slice] = [slice(None), slice(None)]
    margins = []
    for axis, tap in zip(axes, taps, strict=True):
        low, high, piece = window(axis, tap, 0, axis.out)
        index.append(piece)
        margins.append((low, axis.out - high))
    found = feature[tuple(index)]
    for at, (before, after) in enumerate(margins, start=2):
        parts = [_zeros(xp, found, at, before), found, _zeros(xp, found, at, after)]
        kept = [p for p, size in zip(parts, (before, 1, after), strict=True) if size]
        found = xp.concat(kept, axis=at) if len(kept) > 1 else found
    return found


def _zeros(xp: Any, like: Array, axis: int, size: int) -> Array:
    shape = (*like.shape[:axis], size, *like.shape[axis + 1 :])
    return xp.zeros(shape, dtype=like.dtype, device=like.device)
