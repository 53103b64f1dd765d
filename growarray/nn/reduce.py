"""Reductions over given axes: the mean, and others by name; options as in ONNX, no parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from growarray.backend import Array, namespace
from growarray.errors import ShapeError, shown
from growarray.nn.module import Module, Pullback
from growarray.nn.moved import Moved, counted_axes, whole_numbers
from growarray.ops.gradient import slope_of_abs

Axes = tuple[int, ...]
# The value with its axes kept, and a function of it that gives the derivative by each entry, or what broadcasts to it.
Rule = Callable[[Any, Array, Axes], tuple[Array, Callable[[], Array]]]


class ReduceMean(Moved):
    """Mean over ``axes``, or over all; ``keepdims`` leaves them with size 1.

    Raises ShapeError if an axis is not there or is named twice.

    >>> import numpy as np
    >>> y, pullback = ReduceMean((1,), keepdims=False).vjp(np.array([[1.0, 3.0]]))
    >>> y.tolist(), pullback(y).tolist()
    ([2.0], [[1.0, 1.0]])
    """

    _shown = "{self.axes}, keepdims={self.keepdims}"

    def __init__(self, axes: Sequence[int] | None = None, *, keepdims: bool = True) -> None:
        self.axes = None if axes is None else whole_numbers("ReduceMean", "axes", axes)
        self.keepdims = keepdims

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The means; the pullback shares each gradient out evenly."""
        xp, shape = namespace(x), tuple(x.shape)
        axes = counted_axes("ReduceMean", range(x.ndim) if self.axes is None else self.axes, x.ndim)
        kept_shape = tuple(1 if i in axes else n for i, n in enumerate(shape))
        count = max(math.prod(shape[axis] for axis in axes), 1)

        def pullback(dy: Array) -> Array:
            return xp.asarray(xp.broadcast_to(xp.reshape(dy, kept_shape) / count, shape), copy=True)

        y = xp.mean(x, axis=axes, keepdims=self.keepdims) if axes else xp.asarray(x, copy=True)
        return y, pullback


def _sum(xp: Any, x: Array, axes: Axes) -> Array:
    return xp.sum(x, axis=axes, keepdims=True)


def _extreme(name: str) -> Rule:
    """The largest or smallest entry; equal ones share the gradient evenly."""

    def rule(xp: Any, x: Array, axes: Axes) -> tuple[Array, Callable[[], Array]]:
        y = getattr(xp, name)(x, axis=axes, keepdims=True)

        def slope() -> Array:
            chosen = xp.astype(x == y, x.dtype)
            return chosen / _sum(xp, chosen, axes)

        return y, slope

    return rule


def _product(xp: Any, x: Array, axes: Axes) -> tuple[Array, Callable[[], Array]]:
    y = xp.prod(x, axis=axes, keepdims=True)

    def slope() -> Array:
        """The product of all other entries: the product of those that are not 0, if no other entry is 0."""
        zero = xp.astype(x == 0.0, x.dtype)
        rest = xp.prod(x + zero, axis=axes, keepdims=True)
        others = _sum(xp, zero, axes) - zero
        return xp.where(others == 0.0, rest / (x + zero), xp.zeros_like(x))

    return y, slope


def _norm(xp: Any, x: Array, axes: Axes) -> tuple[Array, Callable[[], Array]]:
    y = xp.sqrt(_sum(xp, x * x, axes))
    return y, lambda: x / xp.where(y == 0.0, xp.ones_like(y), y)  # 0 where all entries are


def _log_sum(xp: Any, x: Array, axes: Axes) -> tuple[Array, Callable[[], Array]]:
    total = _sum(xp, x, axes)
    return xp.log(total), lambda: xp.ones_like(x) / total


def _log_sum_exp(xp: Any, x: Array, axes: Axes) -> tuple[Array, Callable[[], Array]]:
    top = xp.max(x, axis=axes, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    powers = xp.exp(x - top)
    total = _sum(xp, powers, axes)
    return xp.log(total) + top, lambda: powers / total


_TABLE: dict[str, Rule] = {
    "L1": lambda xp, x, axes: (_sum(xp, xp.abs(x), axes), lambda: slope_of_abs(x)),
    "L2": _norm,
    "LogSum": _log_sum,
    "LogSumExp": _log_sum_exp,
    "Max": _extreme("max"),
    "Min": _extreme("min"),
    "Prod": _product,
    "Sum": lambda xp, x, axes: (_sum(xp, x, axes), lambda: xp.ones_like(x)),
    "SumSquare": lambda xp, x, axes: (_sum(xp, x * x, axes), lambda: 2.0 * x),
}


class Reduce(Module):
    """A reduction over ``axes``, or over all, by its name in ONNX: ``'Sum'``, ``'Max'``, ``'L2'``, ``'LogSumExp'``, …

    ``keepdims`` leaves the axes with size 1. Entries that are equally large share the gradient of ``'Max'`` evenly;
    that of ``'L2'`` at 0 is 0.

    Raises ValueError for a name that is not known, ShapeError for an axis that is not there or is named twice, and for
    the largest or smallest of no entries.

    >>> import numpy as np
    >>> y, pullback = Reduce("Max", (1,), keepdims=False).vjp(np.array([[1.0, 3.0]]))
    >>> y.tolist(), pullback(y).tolist()
    ([3.0], [[0.0, 3.0]])
    """

    _shown = "{self.name!r}, {self.axes}, keepdims={self.keepdims}"

    def __init__(self, name: str, axes: Sequence[int] | None = None, *, keepdims: bool = True) -> None:
        if not isinstance(name, str) or name not in _TABLE:
            raise ValueError(f"Reduce: name is {shown(name)}, expected one of {', '.join(_TABLE)}")
        self.name = name
        self.axes = None if axes is None else whole_numbers("Reduce", "axes", axes)
        self.keepdims = keepdims

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The reduced array; the pullback gives each entry its share of the gradient."""
        xp, shape = namespace(x), tuple(x.shape)
        axes = counted_axes("Reduce", range(x.ndim) if self.axes is None else self.axes, x.ndim)
        if self.name in ("Max", "Min", "LogSumExp") and any(shape[axis] == 0 for axis in axes):
            raise ShapeError(
                f"Reduce: {self.name} over axes {axes} of an input of shape {shape}, expected no size of 0"
            )
        y, slope = _TABLE[self.name](xp, x, axes)
        kept_shape = tuple(y.shape)
        if not self.keepdims:
            y = xp.reshape(y, tuple(n for i, n in enumerate(shape) if i not in axes))
        return y, lambda dy: xp.reshape(dy, kept_shape) * slope()
