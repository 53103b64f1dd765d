"""Operations on any number of arrays by their names in ONNX: comparisons, logic, choices, positions, running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from growarray.backend import Array, kind_of, namespace
from growarray.contraction.plan import plan
from growarray.errors import ShapeError, shown
from growarray.nn.indexed import gather, gather_elements, gather_nd, scatter_elements, scatter_nd
from growarray.nn.module import Pullback
from growarray.nn.moved import at_axis
from growarray.nn.recurrent import recurrent
from growarray.nn.several import Several, sum_to

Smooth = Callable[..., tuple[Array, Pullback]]


def _infinite(xp: Any, x: Array, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    sign = (x > 0 if detect_positive else x != x) | (x < 0 if detect_negative else x != x)
    return xp.isinf(x) & sign


def _extreme(name: str) -> Callable[..., Array]:
    def position(xp: Any, x: Array, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
        index = getattr(xp, name)(xp.flip(x, axis=axis) if select_last_index else x, axis=axis, keepdims=bool(keepdims))
        return xp.astype(x.shape[axis] - 1 - index if select_last_index else index, xp.int64)

    return position


def _shifted(xp: Any, a: Array, b: Array, direction: str) -> Array:
    return (xp.bitwise_left_shift if direction == "LEFT" else xp.bitwise_right_shift)(a, b)


def _quotient(xp: Any, a: Array, b: Array) -> Array:
    """The quotient of whole numbers, rounded towards zero."""
    down = a // b
    return down + xp.astype((down < 0) & (down * b != a), down.dtype)


def _largest(xp: Any, x: Array, k: int, axis: int = -1, largest: int = 1) -> Array:
    """Positions of the ``k`` largest or smallest entries, in order."""
    order = xp.argsort(x, axis=axis, descending=bool(largest), stable=True)
    return xp.astype(order[at_axis(x.ndim, axis % x.ndim, slice(0, k))], xp.int64)


_STEPS: dict[str, Callable[..., Array]] = {
    "And": lambda xp, a, b: xp.logical_and(a, b),
    "ArgMax": _extreme("argmax"),
    "ArgMin": _extreme("argmin"),
    "BitShift": _shifted,
    "BitwiseAnd": lambda xp, a, b: xp.bitwise_and(a, b),
    "BitwiseNot": lambda xp, a: xp.bitwise_invert(a),
    "BitwiseOr": lambda xp, a, b: xp.bitwise_or(a, b),
    "BitwiseXor": lambda xp, a, b: xp.bitwise_xor(a, b),
    "Div": _quotient,
    "Equal": lambda xp, a, b: a == b,
    "Greater": lambda xp, a, b: a > b,
    "GreaterOrEqual": lambda xp, a, b: a >= b,
    "IsInf": _infinite,
    "IsNaN": lambda xp, a: xp.isnan(a),
    "Less": lambda xp, a, b: a < b,
    "LessOrEqual": lambda xp, a, b: a <= b,
    "NonZero": lambda xp, a: xp.astype(xp.stack(xp.nonzero(a)), xp.int64),
    "Not": lambda xp, a: xp.logical_not(a),
    "Or": lambda xp, a, b: xp.logical_or(a, b),
    "TopK": _largest,
    "Xor": lambda xp, a, b: xp.logical_xor(a, b),
}
"""Operations that have no derivative, or none but 0."""


def _where(xp: Any, chosen: Array, a: Array, b: Array) -> tuple[Array, Pullback]:
    y = xp.where(chosen, a, b)

    def pullback(dy: Array) -> tuple[Any, ...]:
        zero = xp.zeros_like(dy)
        return (
            None,
            sum_to(xp.where(chosen, dy, zero), tuple(a.shape)),
            sum_to(xp.where(chosen, zero, dy), tuple(b.shape)),
        )

    return y, pullback


def _power(xp: Any, a: Array, b: Array) -> tuple[Array, Pullback]:
    """``a ** b``, whose derivative by the exponent is 0 if the base is not positive."""
    if kind_of(a) != "f":
        y = xp.astype(xp.astype(a, xp.float64) ** xp.astype(b, xp.float64), a.dtype) if kind_of(b) == "f" else a**b
        return xp.astype(y, a.dtype), lambda dy: (None, None)
    power = xp.astype(b, a.dtype)
    y = a**power

    def pullback(dy: Array) -> tuple[Any, ...]:
        slope = xp.where(power == 0, xp.zeros_like(y), power * a ** (power - 1))
        log = xp.log(xp.where(a > 0, a, xp.ones_like(a)))
        second = sum_to(dy * y * log, tuple(b.shape)) if kind_of(b) == "f" else None
        return sum_to(dy * slope, tuple(a.shape)), second

    return y, pullback


def _remainder(xp: Any, a: Array, b: Array, fmod: int = 0) -> tuple[Array, Pullback]:
    """The remainder, with the sign of the second operand, or with ``fmod`` of the first."""
    whole = kind_of(a) != "f"
    if fmod:
        turns = _quotient(xp, a, b) if whole else xp.trunc(a / b)
        y = a - turns * b if whole else xp.sign(a) * xp.remainder(xp.abs(a), xp.abs(b))
    else:
        y, turns = xp.remainder(a, b), a // b

    def pullback(dy: Array) -> tuple[Any, ...]:
        return sum_to(dy + xp.zeros_like(y), tuple(a.shape)), sum_to(-dy * turns, tuple(b.shape))

    return y, pullback


def _cumulative(xp: Any, x: Array, axis: int, exclusive: int = 0, reverse: int = 0) -> tuple[Array, Pullback]:
    def run(values: Array, backwards: bool) -> Array:
        total = xp.cumulative_sum(xp.flip(values, axis=axis) if backwards else values, axis=axis, dtype=values.dtype)
        total = xp.flip(total, axis=axis) if backwards else total
        return total - values if exclusive else total

    return run(x, bool(reverse)), lambda dy: (run(dy, not reverse),)


def _products(xp: Any, x: Array, axis: int, exclusive: int = 0, reverse: int = 0) -> tuple[Array, Pullback]:
    """Running products, one position after the other, so that a derivative divides by no zero."""
    count, places = x.shape[axis], [at_axis(x.ndim, axis % x.ndim, slice(i, i + 1)) for i in range(x.shape[axis])]
    order = range(count)[::-1] if reverse else range(count)
    parts = {i: x[places[i]] for i in order}
    before, after, product = {}, {}, None
    for i in order:
        before[i] = xp.ones_like(parts[i]) if product is None else product
        product = after[i] = before[i] * parts[i]

    def pullback(dy: Array) -> tuple[Array]:
        d_parts, behind = {}, xp.zeros_like(parts[0])
        for i in reversed(order):
            d_part = dy[places[i]]
            inner = behind if exclusive else behind + d_part
            d_parts[i] = inner * before[i]
            behind = inner * parts[i] + (d_part if exclusive else 0.0)
        return (xp.concat([d_parts[i] for i in range(count)], axis=axis),)

    chosen = before if exclusive else after
    return xp.concat([chosen[i] for i in range(count)], axis=axis), pullback


def _fake_quantize(xp: Any, x: Array, scale: Array, *zero: Array, low: int, high: int) -> tuple[Array, Pullback]:
    """Round to whole multiples of a scale within a range; inside it the gradient passes as if nothing was rounded."""
    shift = zero[0] if zero else 0.0
    turns = xp.round(x / scale) + shift
    inside = (turns >= low) & (turns <= high)
    y = (xp.clip(turns, low, high) - shift) * scale
    return y, lambda dy: (xp.where(inside, dy, xp.zeros_like(dy)), None, *(None for _ in zero))


def _einsum(xp: Any, *arrays: Array, equation: str) -> tuple[Array, Pullback]:
    """An einsum by the contraction engine, which takes no scalars: NumPy makes one of an array without axes."""
    y, back = plan(equation, *(tuple(x.shape) for x in arrays)).vjp(*(xp.asarray(x) for x in arrays))
    return y, lambda dy: back(xp.asarray(dy))


def _triangle(xp: Any, x: Array, k: int = 0, upper: int = 1) -> tuple[Array, Pullback]:
    cut = xp.triu if upper else xp.tril
    return cut(x, k=k), lambda dy: (cut(dy, k=k),)


_SMOOTH: dict[str, Smooth] = {
    "CumProd": _products,
    "CumSum": _cumulative,
    "Einsum": _einsum,
    "FakeQuantize": _fake_quantize,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Mod": _remainder,
    "Pow": _power,
    "Recurrent": recurrent,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Trilu": _triangle,
    "Where": _where,
}
"""Operations with a derivative: a function of one gradient that gives one for each input, None if it has none."""


class Operation(Several):
    """An operation on one array or more by the name that it has in ONNX, with its attributes as options.

    Inputs of whole numbers or bools have no gradient, nor has any input of a comparison: the pullback gives None.
    Raises ValueError for a name that is not known, TypeError for another number of inputs than the operation takes.

    >>> import numpy as np
    >>> y, pullback = Operation("Gather", axis=0).vjp(np.array([1.0, 2.0]), np.array([[1, 1]]))
    >>> y.tolist(), pullback(y)[0].tolist()
    ([[2.0, 2.0]], [0.0, 4.0])
    """

    def __init__(self, name: str, **options: Any) -> None:
        if not isinstance(name, str) or name not in (_STEPS | _SMOOTH):
            raise ValueError(f"Operation: name is {shown(name)}, expected one of {', '.join(sorted(_STEPS | _SMOOTH))}")
        self.name = name
        self.options = tuple(options.items())  # a dictionary would be taken for modules by their names

    def _saved(self) -> dict[str, Any]:
        return {"name": self.name, **dict(self.options)}

    def vjp(self, *inputs: Array) -> tuple[Array, Pullback]:
        """The value, and a pullback that gives the gradient of the input, or a tuple with one for each."""
        xp, options = namespace(*inputs), dict(self.options)
        try:
            if self.name in _STEPS:
                y = _STEPS[self.name](xp, *inputs, **options)
                return y, lambda dy: None if len(inputs) == 1 else (None,) * len(inputs)
            y, back = _SMOOTH[self.name](xp, *inputs, **options)
        except (ValueError, IndexError) as fault:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise ShapeError(f"{self.name}: inputs of shapes {shapes} do not fit: {fault}") from None

        def pullback(dy: Array) -> Any:
            gradients = back(dy)
            return gradients[0] if len(inputs) == 1 else gradients

        return y, pullback

    def extra_repr(self) -> str:
        """The name and the options."""
        return ", ".join([repr(self.name), *(f"{key}={value!r}" for key, value in self.options)])
