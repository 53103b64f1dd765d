"""Products and convolutions from array-API operations: what CuPy and other libraries run, and what NumPy is checked by.

Shapes as in :mod:`growarray.contraction.convolve`: features (b, s, *sizes), kernels (b, n, s, *taps), results
(b, n, *outs).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from growarray.backend import Array, assign
from growarray.contraction.convolve import gradient_parts
from growarray.contraction.kernels import depthwise
from growarray.contraction.problem import Axis
from growarray.contraction.windows import window

__all__ = ["convolve", "feature_gradient", "kernel_gradient", "product"]


def product(xp: Any, kernel: Array, feature: Array) -> Array:
    """(b, n, s) with (b, s, *sizes) to (b, n, *sizes): a multiplication where nothing is summed, else a product."""
    b, n, s = kernel.shape[:3]
    if s == 1:
        return xp.reshape(kernel, (b, n, *(1 for _ in feature.shape[2:]))) * feature
    flat = xp.reshape(feature, (b, s, math.prod(feature.shape[2:])))
    return xp.reshape(xp.matmul(xp.reshape(kernel, (b, n, s)), flat), (b, n, *feature.shape[2:]))


def _window(xp: Any, feature: Array, axes: Sequence[Axis], taps: Sequence[int]) -> Array:
    """What one tap reads, (b, s, *outs): a strided view where it lies inside, padded with zeros where it does not."""
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


def _taps(axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(a.taps) for a in axes)))


def convolve(xp: Any, feature: Array, kernel: Array, axes: Sequence[Axis]) -> Array:
    """One convolution. The windows of one tap of the first convolved axis are gathered at a time."""
    b, n, s = kernel.shape[:3]
    outs = tuple(a.out for a in axes)
    if s == 1 and n == 1:
        fused = depthwise(feature, kernel, axes)
        if fused is not None:
            return fused
    if math.prod(outs) * b * n * s == 0:
        return xp.zeros((b, n, *outs), dtype=feature.dtype, device=feature.device)
    total = None
    for _, group in itertools.groupby(_taps(axes), key=lambda t: t[_first(axes)] if axes else 0):
        chosen = list(group)
        windows = [_window(xp, feature, axes, t) for t in chosen]
        weights = [kernel[(slice(None), slice(None), slice(None), *t)] for t in chosen]
        if s == 1 and n == 1:
            part = sum(product(xp, w, x) for w, x in zip(weights[1:], windows[1:], strict=True)) + product(
                xp, weights[0], windows[0]
            )
        else:
            part = product(xp, xp.concat(weights, axis=2), xp.concat(windows, axis=1))
        total = part if total is None else total + part
    return total


def _first(axes: Sequence[Axis]) -> int:
    return next((i for i, a in enumerate(axes) if a.taps > 1), 0)


def feature_gradient(xp: Any, d_out: Array, kernel: Array, axes: Sequence[Axis]) -> Array:
    """Gradient of :func:`convolve` by the feature map."""
    b, _, s = kernel.shape[:3]
    shape = (b, s, *(a.size for a in axes))
    result = xp.zeros(shape, dtype=d_out.dtype, device=d_out.device)
    for place, taps, turned in gradient_parts(axes):
        if taps is None or math.prod(a.out for a in turned) == 0:
            continue
        swapped = xp.permute_dims(kernel, (0, 2, 1, *range(3, kernel.ndim)))
        for axis, piece in enumerate(taps, start=3):
            chosen = xp.asarray(list(range(*piece.indices(swapped.shape[axis]))), device=kernel.device)
            swapped = xp.take(swapped, chosen, axis=axis)
        part = convolve(xp, d_out, swapped, turned)
        if all(a.stride == 1 for a in axes):
            return part
        result = assign(result, (slice(None), slice(None), *place), part)
    return result


def kernel_gradient(xp: Any, d_out: Array, feature: Array, axes: Sequence[Axis]) -> Array:
    """Gradient of :func:`convolve` by the kernel: (b, n, s, *taps)."""
    b, n, s = d_out.shape[0], d_out.shape[1], feature.shape[1]
    columns = math.prod(a.out for a in axes)
    d_flat = xp.reshape(d_out, (b, n, columns))
    parts = []
    for taps in _taps(axes):
        flat = xp.reshape(_window(xp, feature, axes, taps), (b, s, columns))
        if n == 1 and s == 1:
            parts.append(xp.reshape(xp.sum(d_flat * flat, axis=2), (b, 1, 1)))
        else:
            parts.append(xp.matmul(d_flat, xp.matrix_transpose(flat)))
    stacked = xp.stack(parts, axis=-1)
    return xp.reshape(stacked, (b, n, s, *(a.taps for a in axes)))
