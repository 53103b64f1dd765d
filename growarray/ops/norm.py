"""Normalisations: layer, batch and group, with value and way back side by side.

All three subtract a mean and divide by a deviation over some axes; they differ in the axes.
n batch · c channels · g groups · * any further axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from growarray.backend import Array, namespace
from growarray.errors import ShapeError
from growarray.ops.fused import fused
from growarray.ops.gradient import check_gradient

NormVjp = Callable[[Array], tuple[Array, Array | None, Array | None]]


def _standardise(xp: Any, x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array]:
    """(x - mean) / sqrt(var + eps) over ``axes``, and 1 / sqrt(var + eps)."""
    centred = x - xp.mean(x, axis=axes, keepdims=True)
    inverse = 1.0 / xp.sqrt(xp.mean(centred * centred, axis=axes, keepdims=True) + eps)
    return centred * inverse, inverse


def _standardise_back(xp: Any, g: Array, z: Array, inverse: Array, axes: tuple[int, ...]) -> Array:
    """dx = (g - mean(g) - z mean(g z)) / sqrt(var + eps): mean and variance are functions of x."""
    mean_g = xp.mean(g, axis=axes, keepdims=True)
    return inverse * (g - mean_g - z * xp.mean(g * z, axis=axes, keepdims=True))


def _affine(z: Array, weight: Array | None, bias: Array | None) -> Array:
    y = z if weight is None else z * weight
    return y if bias is None else y + bias


def _check_affine(where: str, expected: tuple[int, ...], **arrays: Array | None) -> None:
    for name, array in arrays.items():
        if array is not None and tuple(array.shape) != expected:
            raise ShapeError(f"{where}: {name} has shape {tuple(array.shape)}, expected {expected}")


def _channel_axes(where: str, x: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes that are summed for each channel, and the shape that spreads a channel vector over ``x``."""
    if x.ndim < 2:
        raise ShapeError(f"{where}: input has shape {tuple(x.shape)}, expected (n, c) or (n, c, ...)")
    return (0, *range(2, x.ndim)), (1, x.shape[1], *(1,) * (x.ndim - 2))


def layer_norm(
    x: Array, weight: Array | None = None, bias: Array | None = None, normalized_ndim: int = 1, eps: float = 1e-5
) -> tuple[Array, NormVjp]:
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` over the last ``normalized_ndim`` axes of each sample.

    x : (..., *s)    weight, bias : s or None, with s of ``normalized_ndim`` axes; the variance is the biased one
    Returns y, shaped like x, and a pullback ``dy -> (dx, dweight, dbias)``, None if the input is None.

    Raises ShapeError: ``x`` has fewer axes, or weight or bias another shape than s.

    >>> import numpy as np
    >>> y, pullback = layer_norm(np.array([[1.0, 3.0]]), np.ones(2), None, eps=0.0)
    >>> y.tolist(), [None if g is None else g.shape for g in pullback(y)]
    ([[-1.0, 1.0]], [(1, 2), (2,), None])
    """
    xp = namespace(x, weight, bias)
    if not 1 <= normalized_ndim <= x.ndim:
        raise ShapeError(f"layer_norm: cannot normalise {normalized_ndim} axes of an input of shape {tuple(x.shape)}")
    _check_affine("layer_norm", tuple(x.shape[x.ndim - normalized_ndim :]), weight=weight, bias=bias)
    shape, cut = tuple(x.shape), x.ndim - normalized_ndim
    rows = (math.prod(shape[:cut]), math.prod(shape[cut:]))
    w, b = (None if a is None else xp.reshape(a, rows[1:]) for a in (weight, bias))
    y, back = _grouped(xp.reshape(x, rows), 1, w, b, eps)

    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        check_gradient("layer_norm", dy, shape)
        dx, *affine = back(xp.reshape(dy, rows))
        dw, db = (None if a is None else xp.reshape(a, shape[cut:]) for a in affine)
        return xp.reshape(dx, shape), dw, db

    return xp.reshape(y, shape), vjp


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of every channel over the batch and all further axes.

    x : (n, c) or (n, c, *)    Returns two arrays (c,).

    >>> import numpy as np
    >>> [s.tolist() for s in batch_statistics(np.array([[1.0, 5.0], [3.0, 5.0]]))]
    [[2.0, 5.0], [1.0, 0.0]]
    """
    xp = namespace(x)
    axes, spread = _channel_axes("batch_statistics", x)
    if x.shape[1] and math.prod(x.shape[i] for i in axes) < 1:
        raise ShapeError(f"batch_statistics: input of shape {tuple(x.shape)} has no values to average")
    mean = _mean_of_channels(xp, x)
    centred = x - xp.reshape(mean, spread)
    return mean, _mean_of_channels(xp, centred * centred)


def _mean_of_channels(xp: Any, x: Array) -> Array:
    """Mean of each channel, summed over the batch in float64: NumPy adds samples one by one, and loses digits so."""
    rows = xp.sum(x, axis=tuple(range(2, x.ndim))) if x.ndim > 2 else x
    total = xp.sum(rows, axis=0, dtype=xp.float64)
    return xp.astype(total / max(math.prod(x.shape) // max(x.shape[1], 1), 1), x.dtype)


@fused
def normalised(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    var: Array | None,
    training: bool,
    eps: float,
) -> tuple[Array, Array, Array, NormVjp]:
    """:func:`batch_norm` of what has been checked; between y and pullback the mean and variance that were taken."""
    xp = namespace(x)
    axes, spread = _channel_axes("batch_norm", x)
    if mean is None or var is None:
        mean, var = batch_statistics(x)
    inverse = xp.reshape(1.0 / xp.sqrt(var + eps), spread)
    z = (x - xp.reshape(mean, spread)) * inverse
    wide = None if weight is None else xp.reshape(weight, spread)

    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        check_gradient("batch_norm", dy, x.shape)
        g = dy if wide is None else dy * wide
        dx = _standardise_back(xp, g, z, inverse, axes) if training else g * inverse
        dw = None if weight is None else xp.sum(dy * z, axis=axes)
        return dx, dw, None if bias is None else xp.sum(dy, axis=axes)

    return _affine(z, wide, None if bias is None else xp.reshape(bias, spread)), mean, var, vjp


@fused
def tracked(
    mean: Array, var: Array, batch_mean: Array, batch_var: Array, share: Any, unbiased: float
) -> tuple[Array, Array]:
    """Running statistics (c,) moved by ``share`` towards those of a batch, whose variance is times ``unbiased``."""
    xp = namespace(mean, batch_mean)

    def moved(old: Array, new: Array) -> Array:
        return (1.0 - share) * old + share * xp.astype(new, old.dtype, copy=False)

    return moved(mean, batch_mean), moved(var, batch_var * unbiased)


def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    mean: Array | None = None,
    var: Array | None = None,
    training: bool = True,
    eps: float = 1e-5,
) -> tuple[Array, NormVjp]:
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` with one mean and variance for every channel.

    x : (n, c) or (n, c, *)    weight, bias, mean, var : (c,) or None
    In training mean and var are functions of the batch, :func:`batch_statistics` of it (computed here unless
    given), and the pullback goes through them; in evaluation they are given constants.
    Returns y, shaped like x, and a pullback ``dy -> (dx, dweight, dbias)``, None if the input is None.

    Raises ShapeError: ``x`` has fewer than two axes, or another argument is not of shape (c,); ValueError: evaluation
    without mean and var.

    >>> import numpy as np
    >>> y, pullback = batch_norm(np.array([[1.0], [3.0]]), np.ones(1), np.ones(1), eps=0.0)
    >>> y.tolist(), [g.shape for g in pullback(y)]
    ([[0.0], [2.0]], [(2, 1), (1,), (1,)])
    """
    namespace(x, weight, bias, mean, var)
    _channel_axes("batch_norm", x)
    _check_affine("batch_norm", (x.shape[1],), weight=weight, bias=bias, mean=mean, var=var)
    if (mean is None or var is None) and not training:
        raise ValueError("batch_norm: evaluation needs mean and var; pass both, or training=True")
    y, _, _, back = normalised(x, weight, bias, mean, var, training, eps)
    return y, back


def group_norm(
    x: Array, num_groups: int, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5
) -> tuple[Array, NormVjp]:
    """``y = (x - mean) / sqrt(var + eps) * weight + bias``, mean and variance over each of g groups of channels.

    x : (n, c) or (n, c, *)    weight, bias : (c,) or None
    Returns y, shaped like x, and a pullback ``dy -> (dx, dweight, dbias)``, None if the input is None.

    Raises ShapeError: ``num_groups`` does not divide c, or weight or bias is not of shape (c,).

    >>> import numpy as np
    >>> group_norm(np.array([[1.0, 3.0, 8.0, 2.0]]), 2, eps=0.0)[0].tolist()
    [[-1.0, 1.0, 1.0, -1.0]]
    """
    namespace(x, weight, bias)
    _channel_axes("group_norm", x)
    c = x.shape[1]
    if num_groups < 1 or c % num_groups:
        raise ShapeError(f"group_norm: {c} channels cannot be split into {num_groups} groups of equal size")
    _check_affine("group_norm", (c,), weight=weight, bias=bias)
    y, back = _grouped(x, num_groups, weight, bias, eps)

    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        check_gradient("group_norm", dy, x.shape)
        return back(dy)

    return y, vjp


@fused
def _grouped(x: Array, groups: int, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, NormVjp]:
    """:func:`group_norm` of what has been checked."""
    xp = namespace(x)
    axes, spread = _channel_axes("group_norm", x)
    n, c, *rest = x.shape
    grouped = (n, groups, c // groups * math.prod(rest))
    rows, inverse = _standardise(xp, xp.reshape(x, grouped), (2,), eps)
    z = xp.reshape(rows, x.shape)
    wide = None if weight is None else xp.reshape(weight, spread)

    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        g = xp.reshape(dy if wide is None else dy * wide, grouped)
        dx = xp.reshape(_standardise_back(xp, g, rows, inverse, (2,)), x.shape)
        dw = None if weight is None else xp.sum(dy * z, axis=axes)
        return dx, dw, None if bias is None else xp.sum(dy, axis=axes)

    return _affine(z, wide, None if bias is None else xp.reshape(bias, spread)), vjp
