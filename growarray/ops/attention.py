"""Attention by scaled dot products, and its way back."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from growarray.backend import Array, asarray, kind_of, namespace
from growarray.errors import ShapeError
from growarray.ops.activation import softmax
from growarray.ops.gradient import check_gradient

AttentionVjp = Callable[[Array], tuple[Array, Array, Array]]


def attention(
    q: Array, k: Array, v: Array, mask: Array | None = None, *, causal: bool = False, scale: float | None = None
) -> tuple[Array, AttentionVjp]:
    """``y = softmax(scale q k^T + mask) v``: each query takes a mean of the values, weighted by its scores.

    q : (..., t, d)    k : (..., s, d)    v : (..., s, e)
    mask : added to the scores and broadcast to them, (..., t, s); ``-inf`` hides a key
    causal : query i sees keys 0 to i    scale : by default ``1 / sqrt(d)``
    Returns y (..., t, e) and a pullback ``dy -> (dq, dk, dv)``; the mask has no gradient. Keeps q, k, v and the weights
    (..., t, s). Every query has to see a key.

    Raises ShapeError if the shapes do not fit together, TypeError for a mask of another kind than floats.

    Source: Vaswani et al. 2017, equation 1.

    >>> import numpy as np
    >>> q, k, v = np.zeros((1, 2)), np.eye(2), np.array([[1.0], [3.0]])
    >>> attention(q, k, v)[0].tolist(), attention(q, k, v, causal=True)[0].tolist()
    ([[2.0]], [[1.0]])
    """
    xp = namespace(q, k, v, mask)
    shapes = [tuple(a.shape) for a in (q, k, v)]
    same = min(map(len, shapes)) > 1 and len({s[:-2] for s in shapes}) == 1
    if not same or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ShapeError(
            f"attention: q, k, v have shapes {', '.join(map(str, shapes))}, expected (..., t, d), (..., s, d), "
            "(..., s, e)"
        )
    scale = 1.0 / math.sqrt(max(q.shape[-1], 1)) if scale is None else scale
    scores = (q * scale) @ xp.matrix_transpose(k)
    if mask is not None:
        if kind_of(mask) != "f":
            raise TypeError(f"attention: the mask is of {mask.dtype}, expected floats to add: 0, or -inf to hide a key")
        sizes = zip(reversed(mask.shape), reversed(scores.shape), strict=False)
        if mask.ndim > scores.ndim or any(size not in (1, full) for size, full in sizes):
            raise ShapeError(f"attention: the mask has shape {tuple(mask.shape)}, the scores {tuple(scores.shape)}")
        scores = scores + mask
    if causal:
        later = np.triu(np.full(scores.shape[-2:], -np.inf), 1)
        scores = scores + asarray(later, like=scores, dtype=scores.dtype)
    weights, back = softmax(scores)
    y = weights @ v

    def vjp(dy: Array) -> tuple[Array, Array, Array]:
        check_gradient("attention", dy, y.shape)
        d_scores = back(dy @ xp.matrix_transpose(v)) * scale
        dv = xp.matrix_transpose(weights) @ dy
        return d_scores @ k, xp.matrix_transpose(d_scores) @ q, dv

    return y, vjp
