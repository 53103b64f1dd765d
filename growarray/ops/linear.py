"""Affine map of the last axis, and its way back."""

from __future__ import annotations

import math
from collections.abc import Callable

from growarray.backend import Array, namespace
from growarray.errors import ShapeError
from growarray.ops.gradient import check_gradient

LinearVjp = Callable[..., tuple[Array | None, Array | None, Array | None]]


def linear(x: Array, w: Array, b: Array | None = None) -> tuple[Array, LinearVjp]:
    """``y = x w^T + b`` over the last axis of ``x``. Keeps ``x`` and ``w``.

    x : (..., d)    w : (o, d)    b : (o,) or None
    Returns y (..., o) and a pullback ``dy -> (dx, dw, db)``; db is None if b is. ``pullback(dy, wrt_x=False)``
    leaves dx out (None): the first layer of a network need not compute it; ``wrt_w=False`` dw: a frozen weight;
    ``wrt_b=False`` db.

    Raises ShapeError: the last axis of ``x`` is not ``d``, or ``dy`` has another shape than y.

    >>> import numpy as np
    >>> y, pullback = linear(np.ones((2, 3)), np.ones((4, 3)), np.zeros(4))
    >>> y.shape, [g.shape for g in pullback(y)]
    ((2, 4), [(2, 3), (4, 3), (4,)])
    """
    xp = namespace(x, w, b)
    if x.ndim < 1 or x.shape[-1] != w.shape[1]:
        raise ShapeError(
            f"linear: input has shape {tuple(x.shape)}, weight expects a last axis of {w.shape[1]}; "
            "flatten the input or change in_features"
        )
    rows = _shaped(x, (math.prod(x.shape[:-1]), w.shape[1]))
    y = rows @ w.T
    if b is not None and b.dtype == y.dtype:
        y += b  # no second array of this size: on a CPU its pages cost more than the sum
    elif b is not None:
        y = y + b
    y = _shaped(y, (*x.shape[:-1], w.shape[0]))

    def vjp(
        dy: Array, *, wrt_x: bool = True, wrt_w: bool = True, wrt_b: bool = True
    ) -> tuple[Array | None, Array | None, Array | None]:
        check_gradient("linear", dy, y.shape)
        d_rows = _shaped(dy, (rows.shape[0], w.shape[0]))
        dx = _shaped(d_rows @ w, x.shape) if wrt_x else None
        dw = d_rows.T @ rows if wrt_w else None
        return dx, dw, xp.sum(d_rows, axis=0) if wrt_b and b is not None else None

    return y, vjp


def _shaped(a: Array, shape: tuple[int, ...]) -> Array:
    return a if len(shape) == a.ndim else namespace(a).reshape(a, shape)
