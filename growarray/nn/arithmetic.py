"""Modules of two and more inputs: arithmetic with broadcasting, products of matrices, and joining along an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from growarray.backend import Array, namespace
from growarray.errors import ShapeError
from growarray.nn.module import Parameter, Pullback
from growarray.nn.several import Several, sum_to

Pullbacks = tuple[Callable[[Array], Array], Callable[[Array], Array]]
"""Functions from the gradient of the result to that of the first, and of the second operand."""


class _Pair(Several):
    """An operation on two operands: two inputs, or one input and ``value``.

    ``value`` is a Parameter (trained), an array (fixed, kept in the state dict as ``constant``) or a number;
    ``reverse`` makes it the first operand.
    """

    _buffers = ("constant",)
    _sign: ClassVar[str]

    def __init__(self, value: Parameter | Array | float | None = None, *, reverse: bool = False) -> None:
        if reverse and value is None:
            raise ValueError(f"{type(self).__name__}: reverse needs a value; swap the two inputs instead")
        self.value = value if isinstance(value, Parameter) else None
        self.number = float(value) if isinstance(value, int | float) else None
        self.constant: Array | None = None if isinstance(value, Parameter | int | float) else value
        self.reverse = reverse

    def _saved(self) -> dict[str, Any]:
        return {"value": self._fixed() if self.value is None else self.value, "reverse": self.reverse}

    @property
    def operands(self) -> int:
        """Number of inputs: 1 if there is a value, else 2."""
        return 2 if self._fixed() is None else 1

    def _fixed(self) -> Any:
        if self.value is not None:
            return self.value.data
        return self.constant if self.number is None else self.number

    def _apply(self, a: Any, b: Any) -> tuple[Array, Pullbacks]:
        raise NotImplementedError(f"{type(self).__name__} must define _apply(a, b)")

    def vjp(self, *inputs: Array) -> tuple[Array, Pullback]:
        """Value and pullback: the gradient of the input, or of both as a tuple; it adds to ``value.grad``.

        Raises TypeError for another number of inputs, ShapeError if the shapes do not fit.
        """
        fixed = self._fixed()
        if len(inputs) != self.operands:
            raise TypeError(f"{type(self).__name__}: {len(inputs)} inputs were given, expected {self.operands}")
        if fixed is None:
            y, (first, second) = self._apply(*inputs)
            return y, lambda dy: (first(dy), second(dy))
        y, pullbacks = self._apply(*((fixed, inputs[0]) if self.reverse else (inputs[0], fixed)))
        of_input, of_value = reversed(pullbacks) if self.reverse else pullbacks

        def pullback(dy: Array) -> Array:
            if self.value is not None:
                self.value.accumulate(of_value(dy))
            return of_input(dy)

        return y, pullback

    def extra_repr(self) -> str:
        """The value if there is one, as a formula."""
        fixed = self._fixed()
        if fixed is None:
            return ""
        text = str(self.number) if self.number is not None else f"value{tuple(fixed.shape)}"
        return f"{text} {self._sign} x" if self.reverse else f"x {self._sign} {text}"


class _Broadcast(_Pair):
    """Arithmetic element by element, with broadcasting as NumPy does it."""

    def _compute(self, a: Any, b: Any) -> tuple[Array, Pullbacks]:
        raise NotImplementedError(f"{type(self).__name__} must define _compute(a, b)")

    def _apply(self, a: Any, b: Any) -> tuple[Array, Pullbacks]:
        namespace(a, b)
        shapes = tuple(tuple(getattr(x, "shape", ())) for x in (a, b))
        for m, n in zip(reversed(shapes[0]), reversed(shapes[1]), strict=False):
            if m != n and 1 not in (m, n):
                raise ShapeError(
                    f"{type(self).__name__}: operands have shapes {shapes[0]} and {shapes[1]}, expected axes counted "
                    "from the last to be equal or 1; add axes with Unsqueeze"
                )
        y, (first, second) = self._compute(a, b)
        return y, (lambda dy: sum_to(first(dy), shapes[0]), lambda dy: sum_to(second(dy), shapes[1]))


class Add(_Broadcast):
    """``y = a + b`` of two inputs, or of one input and ``value``.

    value : a Parameter (trained), an array (fixed) or a number; None takes two inputs
    Axes of size 1, and axes that are missing in front, are repeated; gradients are summed over them.

    Raises ShapeError if the shapes do not fit, TypeError for a wrong number of inputs.

    >>> import numpy as np
    >>> y, pullback = Add().vjp(np.ones((2, 3)), np.ones(3))
    >>> [g.tolist() for g in pullback(y)]
    [[[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]], [4.0, 4.0, 4.0]]
    """

    _sign = "+"

    def _compute(self, a: Any, b: Any) -> tuple[Array, Pullbacks]:
        return a + b, (lambda dy: dy, lambda dy: dy)


class Sub(_Broadcast):
    """``y = a - b``; inputs, ``value`` and errors as in :class:`Add`, and ``value - x`` with ``reverse``.

    >>> import numpy as np
    >>> Sub(1.0, reverse=True)(np.array([0.25])).tolist()
    [0.75]
    """

    _sign = "-"

    def _compute(self, a: Any, b: Any) -> tuple[Array, Pullbacks]:
        return a - b, (lambda dy: dy, lambda dy: -dy)


class Mul(_Broadcast):
    """``y = a * b``; inputs, ``value`` and errors as in :class:`Add`.

    >>> import numpy as np
    >>> y, pullback = Mul().vjp(np.array([2.0]), np.array([3.0]))
    >>> [g.tolist() for g in pullback(np.ones(1))]
    [[3.0], [2.0]]
    """

    _sign = "*"

    def _compute(self, a: Any, b: Any) -> tuple[Array, Pullbacks]:
        return a * b, (lambda dy: dy * b, lambda dy: dy * a)


class Div(_Broadcast):
    """``y = a / b``; inputs, ``value`` and errors as in :class:`Add`, and ``value / x`` with ``reverse``.

    >>> import numpy as np
    >>> Div(1.0, reverse=True)(np.array([4.0])).tolist()
    [0.25]
    """

    _sign = "/"

    def _compute(self, a: Any, b: Any) -> tuple[Array, Pullbacks]:
        y = a / b
        return y, (lambda dy: dy / b, lambda dy: -dy * (y / b))


class _Extreme(_Broadcast):
    """The larger or the smaller of both operands; as in torch equal ones share the gradient evenly, and both get all of
    it where one is NaN."""

    _choose: ClassVar[str]

    def _compute(self, a: Any, b: Any) -> tuple[Array, Pullbacks]:
        y = getattr(namespace(a, b), self._choose)(a, b)

        def share(mine: Any, other: Any) -> Callable[[Array], Array]:
            return lambda dy: dy * _share(y, mine, other)

        return y, (share(a, b), share(b, a))


def _share(y: Array, mine: Any, other: Any) -> Array:
    """How much of the gradient goes to an operand: all, half or nothing."""
    xp = namespace(y)
    return xp.astype((y == mine) | (y != y), y.dtype) / (1.0 + xp.astype(mine == other, y.dtype))


class Maximum(_Extreme):
    """``y = max(a, b)``; inputs, ``value`` and errors as in :class:`Add`.

    >>> import numpy as np
    >>> y, pullback = Maximum().vjp(np.array([2.0, 1.0]), np.array([3.0, 1.0]))
    >>> y.tolist(), [g.tolist() for g in pullback(np.ones(2))]
    ([3.0, 1.0], [[0.0, 0.5], [1.0, 0.5]])
    """

    _sign, _choose = "max", "maximum"


class Minimum(_Extreme):
    """``y = min(a, b)``; inputs, ``value`` and errors as in :class:`Add`.

    >>> import numpy as np
    >>> Minimum(0.5)(np.array([0.0, 1.0])).tolist()
    [0.0, 0.5]
    """

    _sign, _choose = "min", "minimum"


class MatMul(_Pair):
    """``y = a @ b`` over the last two axes, those before them repeated as in NumPy; one axis is a vector.

    ``value`` and ``reverse`` as in :class:`Add`; a product with a trained matrix is
    :class:`~growarray.nn.linear.Linear`.

    Raises ShapeError if the shapes do not fit, TypeError for a wrong number of inputs.

    >>> import numpy as np
    >>> y, pullback = MatMul().vjp(np.ones((5, 2, 3)), np.ones((3, 4)))
    >>> y.shape, [g.shape for g in pullback(y)]
    ((5, 2, 4), [(5, 2, 3), (3, 4)])
    """

    _sign = "@"

    def _apply(self, a: Any, b: Any) -> tuple[Array, Pullbacks]:
        xp = namespace(a, b)
        if min(a.ndim, b.ndim) < 1 or a.shape[-1] != b.shape[max(b.ndim - 2, 0)]:
            raise ShapeError(
                f"MatMul: operands have shapes {tuple(a.shape)} and {tuple(b.shape)}, expected the last axis of the "
                "first to be the last but one of the second"
            )
        left = xp.expand_dims(a, axis=0) if a.ndim == 1 else a
        right = xp.expand_dims(b, axis=1) if b.ndim == 1 else b
        full = xp.matmul(left, right)
        shape = tuple(full.shape)
        result_shape = (*shape[:-2], *shape[-2:-1] * (a.ndim > 1), *shape[-1:] * (b.ndim > 1))

        def first(dy: Array) -> Array:
            d_left = xp.matmul(xp.reshape(dy, shape), xp.matrix_transpose(right))
            return xp.reshape(sum_to(d_left, tuple(left.shape)), tuple(a.shape))

        def second(dy: Array) -> Array:
            d_right = xp.matmul(xp.matrix_transpose(left), xp.reshape(dy, shape))
            return xp.reshape(sum_to(d_right, tuple(right.shape)), tuple(b.shape))

        return xp.reshape(full, result_shape), (first, second)


class Concat(Several):
    """Joins its inputs along ``axis``; on every other axis they have one size.

    Raises ShapeError if they do not, TypeError without an input.

    >>> import numpy as np
    >>> y, pullback = Concat(1).vjp(np.ones((2, 3)), np.ones((2, 1)))
    >>> y.shape, [g.shape for g in pullback(y)]
    ((2, 4), [(2, 3), (2, 1)])
    """

    _shown = "axis={self.axis}"

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis

    def vjp(self, *inputs: Array) -> tuple[Array, Pullback]:
        """The joined array; the pullback cuts the gradient up again, into a tuple if there are several inputs."""
        if not inputs:
            raise TypeError("Concat: no input was given, expected at least one")
        xp, shapes = namespace(*inputs), [tuple(x.shape) for x in inputs]
        axis = self.axis + inputs[0].ndim if self.axis < 0 else self.axis
        rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
        if not 0 <= axis < min(len(shape) for shape in shapes) or len(rest) > 1:
            raise ShapeError(f"Concat: inputs have shapes {shapes}, expected them to differ on axis {self.axis} only")

        def pullback(dy: Array) -> Any:
            parts, start = [], 0
            for shape in shapes:
                parts.append(dy[(*(slice(None),) * axis, slice(start, start + shape[axis]), ...)])
                start += shape[axis]
            return parts[0] if len(parts) == 1 else tuple(parts)

        return xp.concat(list(inputs), axis=axis), pullback


class Value(Several):
    """A trained or fixed array as a value of its own, for a :class:`~growarray.nn.graph.Graph`: it takes no input.

    >>> import numpy as np
    >>> Value(Parameter(np.ones(2)))().tolist()
    [1.0, 1.0]
    """

    _buffers = ("constant",)

    def __init__(self, value: Parameter | Array) -> None:
        self.value = value if isinstance(value, Parameter) else None
        self.constant: Array | None = None if isinstance(value, Parameter) else value

    def _saved(self) -> dict[str, Any]:
        return {"value": self.constant if self.value is None else self.value}

    def vjp(self, *inputs: Array) -> tuple[Array, Pullback]:
        """The array, and a pullback that adds to ``value.grad`` and gives an empty tuple."""
        if inputs:
            raise TypeError(f"Value: {len(inputs)} inputs were given, expected none")

        def pullback(dy: Array) -> tuple[()]:
            if self.value is not None:
                self.value.accumulate(dy)
            return ()

        return self.constant if self.value is None else self.value.data, pullback

    def extra_repr(self) -> str:
        """Shape, and whether it is trained."""
        array: Any = self.constant if self.value is None else self.value.data
        return f"{tuple(array.shape)}, trained={self.value is not None}"
