"""Activation layers: no parameters, the options of :mod:`growarray.ops.activation`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import growarray.ops.activation as ops
from growarray.backend import Array
from growarray.errors import shown
from growarray.nn.module import Module, Pullback


class _Activation(Module):
    """An operation of :mod:`growarray.ops.activation`: ``_options`` names what it is given after ``x``."""

    _function: ClassVar[Any]
    _options: ClassVar[tuple[str, ...]] = ()
    slope_at_zero = 1.0

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        value: tuple[Array, Pullback] = type(self)._function(x, **{name: getattr(self, name) for name in self._options})
        return value

    def extra_repr(self) -> str:
        """The options."""
        values = ((name, getattr(self, name)) for name in self._options)
        return ", ".join(f"{name}={value!r}" if isinstance(value, str) else f"{name}={value}" for name, value in values)


class Identity(_Activation):
    """``y = x``; value and gradient are the objects passed in."""

    is_identity = True
    _function = staticmethod(ops.identity)


class ReLU(_Activation):
    """``y = max(x, 0)``; ``at_zero`` is the derivative taken at exactly 0 (torch 0, GroMo's growing ReLU 1).

    >>> import numpy as np
    >>> y, pullback = ReLU().vjp(np.array([-1.0, 2.0]))
    >>> y.tolist(), pullback(np.ones(2)).tolist()
    ([0.0, 2.0], [0.0, 1.0])
    """

    _function = staticmethod(ops.relu)
    _options = ("at_zero",)

    def __init__(self, at_zero: float = 0.0) -> None:
        self.at_zero = at_zero

    @property
    def starts_at_zero(self) -> bool:
        """Whether the derivative taken at 0 is another than 0."""
        return self.at_zero != 0.0

    def extra_repr(self) -> str:
        """The derivative at 0, if it is not torch's."""
        return f"at_zero={self.at_zero}" if self.at_zero else ""


class LeakyReLU(_Activation):
    """``y = x`` if x > 0, else ``slope * x``."""

    _function = staticmethod(ops.leaky_relu)
    _options = ("slope",)

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = slope


class ELU(_Activation):
    """``y = x`` if x > 0, else ``alpha * (exp(x) - 1)``."""

    _function = staticmethod(ops.elu)
    _options = ("alpha",)

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha


class SELU(_Activation):
    """Self-normalising ELU."""

    _function = staticmethod(ops.selu)
    slope_at_zero = 1.0507009873554805


class GELU(_Activation):
    """``y = x * Phi(x)``; ``approximate='tanh'`` takes the tanh formula, another word than 'none' raises ValueError."""

    _function = staticmethod(ops.gelu)
    _options = ("approximate",)
    slope_at_zero = 0.5

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU: approximate must be 'none' or 'tanh', found {shown(approximate)}")
        self.approximate = approximate


class SiLU(_Activation):
    """``y = x * sigmoid(x)``."""

    _function = staticmethod(ops.silu)
    slope_at_zero = 0.5


class Tanh(_Activation):
    """``y = tanh(x)``."""

    _function = staticmethod(ops.tanh)


class Sigmoid(_Activation):
    """``y = 1 / (1 + exp(-x))``."""

    _function = staticmethod(ops.sigmoid)
    slope_at_zero = 0.25


class Softplus(_Activation):
    """``y = log(1 + exp(x))``, and x itself above 20."""

    _function = staticmethod(ops.softplus)
    slope_at_zero = 0.5


class _AlongAxis(_Activation):
    _options = ("axis",)

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    @property
    def slope_at_zero(self) -> float:  # type: ignore[override]
        """Refused: an output depends on every input along the axis."""
        name = type(self).__name__
        raise NotImplementedError(f"{name}.slope_at_zero: {name} is not elementwise, so it has no slope at zero")


class Softmax(_AlongAxis):
    """``y = exp(x) / sum(exp(x))`` along ``axis``."""

    _function = staticmethod(ops.softmax)


class LogSoftmax(_AlongAxis):
    """``y = x - log(sum(exp(x)))`` along ``axis``."""

    _function = staticmethod(ops.log_softmax)


class Hardtanh(_Activation):
    """``y = min(max(x, low), high)``. Raises ValueError unless ``low < high``."""

    _function = staticmethod(ops.hardtanh)
    _options = ("low", "high")

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise ValueError(f"Hardtanh: low must be below high, found {low} and {high}")
        self.low, self.high = low, high

    @property
    def slope_at_zero(self) -> float:  # type: ignore[override]
        """1 if zero lies between the ends, 0 if the function is flat just above zero."""
        return 1.0 if self.low <= 0.0 < self.high else 0.0

    def extra_repr(self) -> str:
        """Both ends."""
        return f"{self.low}, {self.high}"


class ReLU6(_Activation):
    """``y = min(max(x, 0), 6)``."""

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

    Raises ValueError: the name is unknown; the message lists those that are known.

    >>> activation("relu")
    ReLU()
    """
    if name not in _KNOWN:
        raise ValueError(f"unknown activation {shown(name)}; known: {', '.join(_KNOWN)}")
    return _KNOWN[name]()
