"""Elementwise modules that exported networks are written in: functions by name, powers, PReLU, hard activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from growarray.backend import Array, asarray, kind_of, namespace, to_device
from growarray.errors import ShapeError, shown
from growarray.nn.cast import rounded
from growarray.nn.module import Module, Parameter, Pullback
from growarray.ops.erf import erf
from growarray.ops.gradient import slope_of_abs

_CASTS = ("float32", "float64", "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
Valued = tuple[Array, Callable[[], Array]]


class _Function(Module):
    """A function without options: ``_function`` gives its value, and a function that computes its derivative.

    The derivative may be infinite at a finite value (a root at 0), so only a pullback computes it.

    >>> import numpy as np
    >>> y, pullback = Softsign().vjp(np.array([-1.0, 3.0]))
    >>> y.tolist(), pullback(np.ones(2)).tolist()
    ([-0.5, 0.75], [0.25, 0.0625])
    """

    _function: Any

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        y, slope = self._function(namespace(x), x)
        return y, lambda dy: dy * slope()


def _reciprocal(xp: Any, x: Array) -> Valued:
    y = 1.0 / x
    return y, lambda: -y * y


def _exp(xp: Any, x: Array) -> Valued:
    y = xp.exp(x)
    return y, lambda: y


def _sqrt(xp: Any, x: Array) -> Valued:
    y = xp.sqrt(x)
    return y, lambda: 0.5 / y


def _softsign(xp: Any, x: Array) -> Valued:
    inverse = 1.0 / (1.0 + xp.abs(x))
    return x * inverse, lambda: inverse * inverse


def _mish(xp: Any, x: Array) -> Valued:
    power = xp.exp(-xp.abs(x))
    bend = xp.tanh(xp.maximum(x, 0.0) + xp.log1p(power))

    def slope() -> Array:
        sigmoid = xp.where(x >= 0.0, xp.ones_like(x), power) / (1.0 + power)
        return bend + x * (1.0 - bend * bend) * sigmoid

    return x * bend, slope


class Abs(_Function):
    """``y = |x|``, with the derivative 0 at 0, and at NaN."""

    _function = staticmethod(lambda xp, x: (xp.abs(x), lambda: slope_of_abs(x)))


class Neg(_Function):
    """``y = -x``."""

    _function = staticmethod(lambda xp, x: (-x, lambda: -xp.ones_like(x)))


class Exp(_Function):
    """``y = exp(x)``."""

    _function = staticmethod(_exp)


class Log(_Function):
    """``y = log(x)``."""

    _function = staticmethod(lambda xp, x: (xp.log(x), lambda: 1.0 / x))


class Sqrt(_Function):
    """``y = sqrt(x)``."""

    _function = staticmethod(_sqrt)


class Reciprocal(_Function):
    """``y = 1 / x``."""

    _function = staticmethod(_reciprocal)


class Sin(_Function):
    """``y = sin(x)``, x in radians."""

    _function = staticmethod(lambda xp, x: (xp.sin(x), lambda: xp.cos(x)))


class Cos(_Function):
    """``y = cos(x)``, x in radians."""

    _function = staticmethod(lambda xp, x: (xp.cos(x), lambda: -xp.sin(x)))


class Erf(_Function):
    """The error function, from which exporters build GELU."""

    _function = staticmethod(lambda xp, x: (erf(x), lambda: xp.exp(-x * x) * (2.0 / math.sqrt(math.pi))))


class Softsign(_Function):
    """``y = x / (1 + |x|)``."""

    _function = staticmethod(_softsign)


class Mish(_Function):
    """``y = x tanh(softplus(x))``. Source: Misra 2019."""

    _function = staticmethod(_mish)


class HardSwish(_Function):
    """``y = x min(max(x / 6 + 1/2, 0), 1)``. Source: Howard et al. 2019, MobileNetV3."""

    _function = staticmethod(
        lambda xp, x: (
            x * xp.clip(x / 6.0 + 0.5, 0.0, 1.0),
            lambda: xp.where(xp.abs(x) < 3.0, x / 3.0 + 0.5, xp.astype(x > 0.0, x.dtype)),
        )
    )


def _tan(xp: Any, x: Array) -> Valued:
    y = xp.tan(x)
    return y, lambda: 1.0 + y * y


# name: the value of x, and the derivative at x
_TABLE: dict[str, Callable[[Any, Array], Valued]] = {
    "Acos": lambda xp, x: (xp.acos(x), lambda: -1.0 / xp.sqrt(1.0 - x * x)),
    "Acosh": lambda xp, x: (xp.acosh(x), lambda: 1.0 / xp.sqrt(x * x - 1.0)),
    "Asin": lambda xp, x: (xp.asin(x), lambda: 1.0 / xp.sqrt(1.0 - x * x)),
    "Asinh": lambda xp, x: (xp.asinh(x), lambda: 1.0 / xp.sqrt(x * x + 1.0)),
    "Atan": lambda xp, x: (xp.atan(x), lambda: 1.0 / (1.0 + x * x)),
    "Atanh": lambda xp, x: (xp.atanh(x), lambda: 1.0 / (1.0 - x * x)),
    "Ceil": lambda xp, x: (xp.ceil(x), lambda: xp.zeros_like(x)),
    "Cosh": lambda xp, x: (xp.cosh(x), lambda: xp.sinh(x)),
    "Floor": lambda xp, x: (xp.floor(x), lambda: xp.zeros_like(x)),
    "Round": lambda xp, x: (xp.round(x), lambda: xp.zeros_like(x)),
    "Sign": lambda xp, x: (xp.sign(x), lambda: xp.zeros_like(x)),
    "Sinh": lambda xp, x: (xp.sinh(x), lambda: xp.cosh(x)),
    "Tan": _tan,
}


class Function(_Function):
    """An elementwise function by the name that it has in ONNX, such as ``'Tan'``, ``'Atanh'`` or ``'Round'``.

    ``Round`` rounds halves to even; the derivative of a step function is 0 everywhere. Raises ValueError for a name
    that is not known.

    >>> import numpy as np
    >>> y, pullback = Function("Sinh").vjp(np.zeros(1))
    >>> y.tolist(), pullback(np.ones(1)).tolist()
    ([0.0], [1.0])
    """

    _shown = "{self.name!r}"

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or name not in _TABLE:
            raise ValueError(f"Function: name is {shown(name)}, expected one of {', '.join(_TABLE)}")
        self.name = name

    def _function(self, xp: Any, x: Array) -> Valued:
        return _TABLE[self.name](xp, x)


class HardSigmoid(Module):
    """``y = min(max(alpha x + beta, 0), 1)``; torch's is ``alpha`` 1/6, ONNX's default 0.2."""

    _shown = "{self.alpha}, {self.beta}"

    def __init__(self, alpha: float = 1.0 / 6.0, beta: float = 0.5) -> None:
        self.alpha, self.beta = float(alpha), float(beta)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback; the derivative is 0 at the points where the line reaches 0 and 1."""
        xp = namespace(x)
        line = self.alpha * x + self.beta
        inside = (line > 0.0) & (line < 1.0)
        return xp.clip(line, 0.0, 1.0), lambda dy: dy * (self.alpha * xp.astype(inside, dy.dtype))


class Clip(Module):
    """``y = min(max(x, low), high)``; None means no bound. The derivative is 1 at both ends, as torch's clamp has it.

    Raises ValueError if ``low`` is above ``high``.

    >>> import numpy as np
    >>> y, pullback = Clip(0.0).vjp(np.array([-1.0, 0.0, 2.0]))
    >>> y.tolist(), pullback(np.ones(3)).tolist()
    ([0.0, 0.0, 2.0], [0.0, 1.0, 1.0])
    """

    _shown = "{self.low}, {self.high}"

    def __init__(self, low: float | None = None, high: float | None = None) -> None:
        if low is not None and high is not None and not low <= high:
            raise ValueError(f"Clip: low is {low}, expected at most high, {high}")
        self.low, self.high = None if low is None else float(low), None if high is None else float(high)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        xp = namespace(x)
        inside = None
        y = x
        if self.low is not None:
            y, inside = xp.maximum(y, self.low), x >= self.low
        if self.high is not None:
            y, below = xp.minimum(y, self.high), x <= self.high
            inside = below if inside is None else inside & below
        return y, lambda dy: dy if inside is None else dy * xp.astype(inside, dy.dtype)


class Pow(Module):
    """``y = x ** exponent`` for a number ``exponent``.

    >>> import numpy as np
    >>> Pow(2.0)(np.array([-3.0])).tolist()
    [9.0]
    """

    _shown = "{self.exponent}"

    def __init__(self, exponent: float) -> None:
        self.exponent = float(exponent)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        xp = namespace(x)
        if self.exponent == 0.0:  # the formula below would divide by zero at zero
            return xp.ones_like(x), xp.zeros_like
        if self.exponent == 2.0:
            return x * x, lambda dy: 2.0 * dy * x
        return x**self.exponent, lambda dy: self.exponent * dy * x ** (self.exponent - 1.0)


class Cast(Module):
    """The input in another dtype, given by its name; a gradient from floats to floats comes back in that of the input.

    through : ``'float16'`` or ``'bfloat16'``, to whose values the input is rounded first, beyond its range to infinity;
        the gradient passes as if it were not
    A float becomes a whole number by losing what follows the point. Raises ValueError for a dtype that is neither
    ``'float32'``, ``'float64'``, ``'bool'``, nor whole numbers, or another ``through``.

    >>> import numpy as np
    >>> Cast("float64")(np.ones(1, np.float32)).dtype
    dtype('float64')
    >>> Cast("float32", "float16")(np.array([0.1, 1e6], np.float32)).tolist()
    [0.0999755859375, inf]
    """

    slope_at_zero = 1.0  # the values stay as they are

    def __init__(self, dtype: str, through: str | None = None) -> None:
        if dtype not in _CASTS:
            raise ValueError(f"Cast: dtype is {shown(dtype)}, expected one of {', '.join(_CASTS)}")
        if through not in (None, "float16", "bfloat16"):
            raise ValueError(f"Cast: through is {shown(through)}, expected 'float16', 'bfloat16' or None")
        self.dtype, self.through = dtype, through

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The converted array; the pullback converts its gradient back, and gives None if there is none."""
        xp, smooth = namespace(x), self.dtype.startswith("float") and kind_of(x) == "f"
        y = x if self.through is None else rounded(x, self.through)
        dtype = getattr(xp, self.dtype)
        return xp.astype(y, dtype, copy=False), lambda dy: xp.astype(dy, x.dtype, copy=False) if smooth else None

    def extra_repr(self) -> str:
        """The dtypes."""
        return repr(self.dtype) if self.through is None else f"{self.dtype!r}, {self.through!r}"


class PReLU(Module):
    """``y = x`` if x > 0, else ``weight * x`` with a trained slope for all, or one for each entry of ``axis``.

    Raises ShapeError if the input has not as many entries on ``axis`` as there are slopes.

    >>> import numpy as np
    >>> layer = PReLU(2, init=0.5)
    >>> y, pullback = layer.vjp(np.array([[-1.0, 2.0]], dtype=np.float32))
    >>> pullback(np.ones_like(y)).tolist(), layer.weight.grad.tolist()
    ([[0.5, 1.0]], [-1.0, 0.0])
    """

    _shown = "{self.weight.shape[0]}"

    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.25,
        *,
        axis: int = 1,
        dtype: Any = None,
        device: str | None = None,
    ) -> None:
        host = np.full((num_parameters,), init, dtype=np.float32 if dtype is None else dtype)
        self.weight, self.axis = Parameter(to_device(asarray(host), device)), axis

    def _saved(self) -> dict[str, Any]:
        return {"weight": self.weight, "axis": self.axis}

    @classmethod
    def _restored(cls, weight: Parameter, axis: int) -> Self:
        if len(weight.shape) != 1:
            raise ShapeError(f"PReLU: weight has shape {weight.shape}, expected one axis")
        layer = cls(axis=axis)
        layer.weight = weight
        return layer

    def _keep(self, index: Array) -> None:
        if self.weight.shape[0] > 1:
            self.weight.keep(0, index)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, which adds to ``weight.grad``."""
        xp, (count,) = namespace(x, self.weight.data), self.weight.shape
        axis = self.axis + x.ndim if self.axis < 0 else self.axis
        if count != 1 and (not 0 <= axis < x.ndim or x.shape[axis] != count):
            raise ShapeError(f"PReLU: input has shape {tuple(x.shape)}, expected {count} entries on axis {self.axis}")
        slope = self.weight.data if count == 1 else xp.reshape(self.weight.data, (-1, *(1,) * (x.ndim - 1 - axis)))
        negative = xp.minimum(x, 0.0)
        summed = tuple(range(x.ndim)) if count == 1 else tuple(i for i in range(x.ndim) if i != axis)

        def pullback(dy: Array) -> Array:
            self.weight.accumulate(xp.reshape(xp.sum(dy * negative, axis=summed), (count,)))
            positive = xp.astype(x > 0.0, dy.dtype)
            return dy * (positive + (1.0 - positive) * slope)

        return xp.maximum(x, 0.0) + slope * negative, pullback
