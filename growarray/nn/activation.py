"""Activation layers: no parameters, the options of :mod:`growarray.ops.activation`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import growarray.ops.activation as ops
from growarray.backend import Array
from growarray.errors import shown
from growarray.nn.module import Module, Pullback

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Hardtanh",
    "Identity",
    "LeakyReLU",
    "LogSoftmax",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "activation",
]


class _Elementwise(Module):
    """An activation without options: its operation, and its derivative at zero from above."""

    _function: ClassVar[Any]
    _slope: ClassVar[float] = 1.0

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        value: tuple[Array, Pullback] = type(self)._function(x)
        return value

    @property
    def slope_at_zero(self) -> float:
        """Derivative at zero from above."""
        return self._slope


class Identity(_Elementwise):
    """``y = x``; value and gradient are the objects passed in.

    >>> import numpy as np
    >>> x = np.ones(3)
    >>> Identity()(x) is x
    True
    """

    is_identity = True
    _function = staticmethod(ops.identity)


class ReLU(_Elementwise):
    """``y = max(x, 0)``; ``at_zero`` is the derivative taken at exactly 0 (torch 0, GroMo's growing ReLU 1).

    >>> import numpy as np
    >>> ReLU()(np.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    def __init__(self, at_zero: float = 0.0) -> None:
        self.at_zero = at_zero

    @property
    def starts_at_zero(self) -> bool:
        """Whether the derivative taken at 0 is another than 0."""
        return self.at_zero != 0.0

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        return ops.relu(x, at_zero=self.at_zero)

    def extra_repr(self) -> str:
        """The derivative at 0 where it is not torch's."""
        return f"at_zero={self.at_zero}" if self.at_zero else ""


class LeakyReLU(_Elementwise):
    """``y = x`` where x > 0, else ``slope * x``.

    >>> import numpy as np
    >>> LeakyReLU(0.5)(np.array([-1.0, 2.0])).tolist()
    [-0.5, 2.0]
    """

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = slope

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        return ops.leaky_relu(x, self.slope)

    def extra_repr(self) -> str:
        """Slope of the negative side."""
        return f"slope={self.slope}"


class ELU(_Elementwise):
    """``y = x`` where x > 0, else ``alpha * (exp(x) - 1)``.

    >>> import numpy as np
    >>> ELU(0.5)(np.array([-1000.0, 2.0])).tolist()
    [-0.5, 2.0]
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        return ops.elu(x, self.alpha)

    def extra_repr(self) -> str:
        """Depth of the negative side."""
        return f"alpha={self.alpha}"


class SELU(_Elementwise):
    """Self-normalising ELU.

    >>> SELU().slope_at_zero
    1.0507009873554805
    """

    _function = staticmethod(ops.selu)
    _slope = 1.0507009873554805


class GELU(_Elementwise):
    """``y = x * Phi(x)``; ``approximate='tanh'`` takes the tanh formula.

    Raises ValueError for another ``approximate`` than 'none' and 'tanh'.

    >>> import numpy as np
    >>> GELU("tanh")(np.zeros(2)).tolist()
    [0.0, 0.0]
    """

    _slope = 0.5

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU: approximate must be 'none' or 'tanh', found {shown(approximate)}")
        self.approximate = approximate

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        return ops.gelu(x, approximate=self.approximate)

    def extra_repr(self) -> str:
        """The formula."""
        return f"approximate={self.approximate!r}"


class SiLU(_Elementwise):
    """``y = x * sigmoid(x)``.

    >>> SiLU().slope_at_zero
    0.5
    """

    _function = staticmethod(ops.silu)
    _slope = 0.5


class Tanh(_Elementwise):
    """``y = tanh(x)``.

    >>> Tanh().slope_at_zero
    1.0
    """

    _function = staticmethod(ops.tanh)


class Sigmoid(_Elementwise):
    """``y = 1 / (1 + exp(-x))``.

    >>> Sigmoid().slope_at_zero
    0.25
    """

    _function = staticmethod(ops.sigmoid)
    _slope = 0.25


class Softplus(_Elementwise):
    """``y = log(1 + exp(x))``, x itself above 20.

    >>> Softplus().slope_at_zero
    0.5
    """

    _function = staticmethod(ops.softplus)
    _slope = 0.5


class _AlongAxis(Module):
    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    @property
    def slope_at_zero(self) -> float:
        """Refused: an output depends on every input along the axis."""
        name = type(self).__name__
        raise NotImplementedError(f"{name}.slope_at_zero: {name} is not elementwise, so it has no slope at zero")

    def extra_repr(self) -> str:
        """The axis."""
        return f"axis={self.axis}"


class Softmax(_AlongAxis):
    """``y = exp(x) / sum(exp(x))`` along ``axis``.

    >>> import numpy as np
    >>> Softmax()(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        return ops.softmax(x, self.axis)


class LogSoftmax(_AlongAxis):
    """``y = x - log(sum(exp(x)))`` along ``axis``.

    >>> import numpy as np
    >>> LogSoftmax()(np.zeros((1, 1))).tolist()
    [[0.0]]
    """

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        return ops.log_softmax(x, self.axis)


class Hardtanh(_Elementwise):
    """``y = min(max(x, low), high)``. Raises ValueError unless ``low < high``.

    >>> import numpy as np
    >>> Hardtanh()(np.array([-2.0, 0.5])).tolist()
    [-1.0, 0.5]
    """

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise ValueError(f"Hardtanh: low must be below high, found {low} and {high}")
        self.low, self.high = low, high

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        return ops.hardtanh(x, self.low, self.high)

    @property
    def slope_at_zero(self) -> float:
        """1 where zero lies between the ends, 0 where the function is flat just above zero."""
        return 1.0 if self.low <= 0.0 < self.high else 0.0

    def extra_repr(self) -> str:
        """Both ends."""
        return f"{self.low}, {self.high}"


class ReLU6(_Elementwise):
    """``y = min(max(x, 0), 6)``.

    >>> import numpy as np
    >>> ReLU6()(np.array([-1.0, 7.0])).tolist()
    [0.0, 6.0]
    """

    starts_at_zero = False
    _function = staticmethod(ops.relu6)


_KNOWN: dict[str, Callable[[], Module]] = {
    "elu": ELU,
    "gelu": GELU,
    "hardtanh": Hardtanh,
    "identity": Identity,
    "leaky_relu": LeakyReLU,
    "log_softmax": LogSoftmax,
    "relu": ReLU,
    "relu6": ReLU6,
    "selu": SELU,
    "sigmoid": Sigmoid,
    "silu": SiLU,
    "softmax": Softmax,
    "softplus": Softplus,
    "tanh": Tanh,
}


def activation(name: str) -> Module:
    """The activation layer of this name, with its default options.

    Raises
    ------
    ValueError
        The name is unknown; the message lists those that are known.

    Examples
    --------
    >>> activation("relu")
    ReLU()
    """
    if name not in _KNOWN:
        raise ValueError(f"unknown activation {shown(name)}; known: {', '.join(_KNOWN)}")
    return _KNOWN[name]()
