"""Affine map of the last axis, and its way back."""

from __future__ import annotations

import math
from collections.abc import Callable

from growarray.backend import Array, namespace
from growarray.errors import ShapeError
from growarray.ops.gradient import check_gradient

LinearVjp = Callable[..., tuple[Array, Array, Array | None]]


def linear(x: Array, w: Array, b: Array | None = None) -> tuple[Array, LinearVjp]:
    """``y = x w^T + b`` over the last axis of ``x``. Keeps ``x`` and ``w``.

    x : (..., d)    w : (o, d)    b : (o,) or None
    Returns y (..., o) and a pullback ``dy -> (dx, dw, db)``; db is None if b is. ``pullback(dy, wrt_x=False)``
    leaves dx out (None): the first layer of a network need not compute it; ``wrt_w=False`` dw: a frozen weight.

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
    y = x @ xp.matrix_transpose(w) if x.ndim > 1 else w @ x
    if b is not None:
        y = y + b

    def vjp(dy: Array, *, wrt_x: bool = True, wrt_w: bool = True) -> tuple[Array, Array, Array | None]:
        check_gradient("linear", dy, y.shape)
        n = math.prod(x.shape[:-1])
        rows, d_rows = xp.reshape(x, (n, x.shape[-1])), xp.reshape(dy, (n, dy.shape[-1]))
        dw = xp.matrix_transpose(d_rows) @ rows if wrt_w else None
        db = None if b is None else xp.sum(d_rows, axis=0)
        return dy @ w if wrt_x else None, dw, db

    return y, vjp
