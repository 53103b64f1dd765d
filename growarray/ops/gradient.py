"""Checks of the gradient that a pullback is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from growarray.backend import Array, asarray, namespace
from growarray.errors import ShapeError

Vjp = Callable[[Array], Array]


def check_gradient(where: str, dy: Array, shape: tuple[int, ...]) -> None:
    """Raise ``ShapeError`` unless ``dy`` has the shape of the result: another shape may broadcast to a wrong gradient.

    Raises ``TypeError`` if it is not an array of real numbers.
    """
    namespace(dy, where=f"pullback of {where}: ")
    if tuple(dy.shape) != tuple(shape):
        raise ShapeError(
            f"pullback of {where}: the gradient has shape {tuple(dy.shape)}, the result has {tuple(shape)}; "
            "pass a gradient of the result's shape"
        )


def checked(where: str, y: Array, back: Vjp) -> tuple[Array, Vjp]:
    """The value, and a pullback that checks its gradient; the value itself is not kept.

    >>> import numpy as np
    >>> checked("doc", np.ones(1), lambda dy: 2.0 * dy)[1](np.ones(1)).tolist()
    [2.0]
    """
    shape = tuple(y.shape)

    def vjp(dy: Array) -> Array:
        check_gradient(where, dy, shape)
        return back(dy)

    return y, vjp


def joined(backs: Sequence[Vjp]) -> Vjp:
    """The way back through steps, the last one's pullback first.

    >>> joined([lambda dy: dy + 1.0, lambda dy: 2.0 * dy])(1.0)
    3.0
    """

    def vjp(dy: Array) -> Array:
        for back in reversed(backs):
            dy = back(dy)
        return dy

    return vjp


def slope_of_abs(x: Array) -> Array:
    """Derivative of ``|x|``: -1, 0 or 1, and 0 at NaN as in torch.

    >>> import numpy as np
    >>> slope_of_abs(np.array([-2.0, 0.0, np.nan])).tolist()
    [-1.0, 0.0, 0.0]
    """
    xp = namespace(x)
    return xp.astype(x > 0, x.dtype) - xp.astype(x < 0, x.dtype)


def loss_gradient(dloss: Any, like: Array) -> Any:
    """The gradient at a loss as a Python number, or as an array in the dtype of ``like``.

    NumPy's float64 numbers would make a float64 gradient of float32 predictions.

    >>> import numpy as np
    >>> (np.ones(1, np.float32) * loss_gradient(np.float64(2.0), np.ones(1, np.float32))).dtype
    dtype('float32')
    """
    return float(dloss) if isinstance(dloss, int | float) else asarray(dloss, like=like, dtype=like.dtype)
