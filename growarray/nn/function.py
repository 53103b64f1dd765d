"""Elementwise functions by name: trigonometric and hyperbolic ones, their inverses, and rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from growarray.backend import Array, namespace
from growarray.errors import shown
from growarray.nn.module import Module, Pullback

__all__ = ["Function"]

Value = Callable[[Any, Array], Array]
Slope = Callable[[Any, Array, Array], Array]


def _flat(xp: Any, x: Array, y: Array) -> Array:
    """The derivative of a step function wherever it has one."""
    return xp.zeros_like(x)


# name: the value of x, and the derivative at x, where the value is y
_TABLE: dict[str, tuple[Value, Slope]] = {
    "Acos": (lambda xp, x: xp.acos(x), lambda xp, x, y: -1.0 / xp.sqrt(1.0 - x * x)),
    "Acosh": (lambda xp, x: xp.acosh(x), lambda xp, x, y: 1.0 / xp.sqrt(x * x - 1.0)),
    "Asin": (lambda xp, x: xp.asin(x), lambda xp, x, y: 1.0 / xp.sqrt(1.0 - x * x)),
    "Asinh": (lambda xp, x: xp.asinh(x), lambda xp, x, y: 1.0 / xp.sqrt(x * x + 1.0)),
    "Atan": (lambda xp, x: xp.atan(x), lambda xp, x, y: 1.0 / (1.0 + x * x)),
    "Atanh": (lambda xp, x: xp.atanh(x), lambda xp, x, y: 1.0 / (1.0 - x * x)),
    "Ceil": (lambda xp, x: xp.ceil(x), _flat),
    "Cosh": (lambda xp, x: xp.cosh(x), lambda xp, x, y: xp.sinh(x)),
    "Floor": (lambda xp, x: xp.floor(x), _flat),
    "Round": (lambda xp, x: xp.round(x), _flat),
    "Sign": (lambda xp, x: xp.sign(x), _flat),
    "Sinh": (lambda xp, x: xp.sinh(x), lambda xp, x, y: xp.cosh(x)),
    "Tan": (lambda xp, x: xp.tan(x), lambda xp, x, y: 1.0 + y * y),
}


class Function(Module):
    """An elementwise function by the name that it has in ONNX, such as ``'Tan'``, ``'Atanh'`` or ``'Round'``.

    ``Round`` rounds halves to even; the derivative of a step function is 0 everywhere. Raises ValueError for a name
    that is not known.

    >>> import numpy as np
    >>> y, pullback = Function("Sinh").vjp(np.zeros(1))
    >>> y.tolist(), pullback(np.ones(1)).tolist()
    ([0.0], [1.0])
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or name not in _TABLE:
            raise ValueError(f"Function: name is {shown(name)}, expected one of {', '.join(_TABLE)}")
        self.name = name

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        xp, (value, slope) = namespace(x), _TABLE[self.name]
        y = value(xp, x)
        return y, lambda dy: dy * slope(xp, x, y)

    def extra_repr(self) -> str:
        """The name."""
        return repr(self.name)
