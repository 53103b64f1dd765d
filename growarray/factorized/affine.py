"""Layers that contract the last axes of their input with factors, by one equation, and add a bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from growarray.backend import Array, asarray, assign, library, namespace, target_of
from growarray.contraction import Plan
from growarray.errors import PlanError, ShapeError, shown
from growarray.factorized.linear_plan import NAMED_WAYS, linear_equation, linear_plan
from growarray.factorized.owner import draw_weight, held_or_new
from growarray.factorized.parameters import checked_bias
from growarray.factorized.settings import flag, hashable, joint_index, planned_shape, shape_of
from growarray.factorized.tensor import FactorizedTensor
from growarray.nn.linear import uniform
from growarray.nn.module import Module, Parameter, Pullback
from growarray.ops.sizes import whole_number

Arrays = Sequence[Array]
Sizes = tuple[int, ...]


class ContractedLayer(Module):
    """Value, pullback and plan of such a layer; a subclass says which equation, of what.

    precision : on a GPU, as in :func:`growarray.contraction.plan`; a CPU multiplies float32 in full
    _input, _output : the last axes that the layer takes, and those that it gives
    _modes : of the input in the equation; the sizes of ``_input``, or what these split into
    """

    precision: str | None = None
    _input: Sizes
    _output: Sizes
    _modes: Sizes

    def _hold(self, bias: Parameter | None, implementation: Any = "auto", n_layers: int = 1) -> None:
        """Store the bias, with a row for each of several layers, and how the equation is run."""
        self.bias, self.implementation, self.n_layers = bias, hashable(implementation), n_layers

    @property
    def _equation(self) -> str:
        """Its first operand is the input, whose first mode are the rows; then the factors."""
        raise NotImplementedError(f"{type(self).__name__} must define _equation")

    def _operands(self, layer_index: Sizes, drop: bool = True) -> tuple[Arrays, Callable[[Arrays], None]]:
        """The factors as the equation names their modes, and what adds to their gradients."""
        raise NotImplementedError(f"{type(self).__name__} must define _operands(layer_index)")

    def _layer_index(self, indices: Any) -> Sizes:
        return joint_index(type(self).__name__, indices, self.n_layers)

    def _lead(self, shape: Sizes) -> Sizes:
        """The axes of an input before those that the layer takes."""
        lead = shape[: max(len(shape) - len(self._input), 0)]
        if shape != (*lead, *self._input):
            raise ShapeError(f"{type(self).__name__}: input has shape {shape}, expected {self._expected()}")
        return lead

    def _expected(self) -> str:
        return f"(n, {', '.join(map(str, self._input))})"

    def _plan(self, shape: Sizes, operands: Arrays, training: bool) -> Plan:
        shapes = ((math.prod(self._lead(shape)), *self._modes), *(tuple(a.shape) for a in operands))
        target = target_of(operands[0])
        return linear_plan(self._equation, shapes, self.implementation, training, *target, self.precision)

    def plan(self, shape: Sequence[int], training: bool = False, indices: Any = 0) -> Plan:
        """The contraction that runs for an input of this shape: its steps, cost and memory; ``print`` shows a table.

        training : the plan of :meth:`vjp`, which counts the backward pass too
        """
        sizes = planned_shape(f"{type(self).__name__}.plan", shape)
        return self._plan(sizes, self._operands(self._layer_index(indices), drop=False)[0], training)

    def __call__(self, x: Array, indices: Any = 0) -> Array:
        """:meth:`forward`."""
        return self.forward(x, indices)

    def forward(self, x: Array, indices: Any = 0) -> Array:
        """Value of one layer for an input with any axes before those that it takes."""
        layer_index = self._layer_index(indices)
        operands, _ = self._operands(layer_index)
        todo = self._plan(shape_of(type(self).__name__, x), operands, training=False)
        rows = namespace(x, *operands).reshape(x, todo.shapes[0])
        return self._result(todo(rows, *operands), x, layer_index)

    def vjp(self, x: Array, indices: Any = 0) -> tuple[Array, Pullback]:
        """Value and pullback, which adds to the gradients of the factors and the bias."""
        name, layer_index = type(self).__name__, self._layer_index(indices)
        operands, accumulate = self._operands(layer_index)
        todo = self._plan(shape_of(name, x), operands, training=True)
        result, back = todo.vjp(namespace(x, *operands).reshape(x, todo.shapes[0]), *operands)
        inner, x_shape = tuple(result.shape), tuple(x.shape)
        y = self._result(result, x, layer_index)
        y_shape = tuple(y.shape)

        def pullback(dy: Array) -> Array:
            if shape_of(f"{name}: the gradient", dy) != y_shape:
                raise ShapeError(f"{name}: the gradient has shape {tuple(dy.shape)}, the result had {y_shape}")
            xp = namespace(dy)
            dx, *gradients = back(xp.reshape(dy, inner))
            accumulate(gradients)
            if self.bias is not None:
                row = xp.sum(xp.reshape(dy, (-1, *self._output)), axis=0)
                self.bias.accumulate(assign(xp.zeros_like(self.bias.data), (*layer_index, ...), row))
            return xp.reshape(dx, x_shape)

        return y, pullback

    def _result(self, result: Array, x: Array, layer_index: Sizes) -> Array:
        """The fresh result of a contraction with the axes of the output, and the bias added in place."""
        y = namespace(result).reshape(result, (*self._lead(tuple(x.shape)), *self._output))
        if self.bias is not None:
            y += self.bias.data[(*layer_index, ...)]
        return y


class FactorizedAffine(ContractedLayer):
    """An affine map whose weight is a factorized tensor, alone or several with one factorization.

    _sizes : the attributes that hold the modes of the input and of the output
    _input_first : whether the weight has the modes of the input first
    """

    _sizes: ClassVar[tuple[str, str]]
    _input_first: ClassVar[bool] = False

    def _build(
        self, bias: Any, factorization: str | FactorizedTensor, rank: Any, implementation: Any, n_layers: int,
        device: str | None, dtype: Any, rng: np.random.Generator | None, std: float | str | None,
    ) -> None:  # fmt: skip
        """Make weight and bias for the modes that are set."""
        library(device)
        name = type(self).__name__
        bias = flag(name, "bias", bias)
        n_layers = whole_number(name, "n_layers", n_layers, 1)
        self._modes, outer = (getattr(self, sizes) for sizes in self._sizes)
        modes = (*self._modes, *outer) if self._input_first else (*outer, *self._modes)
        held = isinstance(factorization, FactorizedTensor)
        if held and ((device, dtype, std) != (None, None, None) or not isinstance(rank, str) or rank != "same"):
            raise ValueError(
                f"{name}: rank, std, device and dtype are those of the tensor that is given as "
                "factorization; leave them out"
            )
        self.weight = held_or_new(name, modes, factorization, rank, n_layers, dtype=dtype, device=device)
        lead = self.weight.shape[: self.weight.order - len(modes)]
        like = self.weight.all_factors()[0].data
        zeros = np.zeros((*lead, *self._output))
        row = Parameter(asarray(zeros, like=like, dtype=like.dtype)) if bias else None
        self._hold(row, implementation, n_layers)
        self._check_implementation()
        if not held:
            self.reset_parameters(rng, std=std)

    def _check_implementation(self) -> None:
        """Raise ValueError unless the engine takes it as a path; the search of ``'auto'`` waits for an input."""
        if isinstance(self.implementation, str) and self.implementation in ("auto", *NAMED_WAYS):
            return
        try:
            self.plan((1, *self._input))
        except (PlanError, TypeError) as error:
            raise ValueError(
                f"{type(self).__name__}: implementation {shown(self.implementation)} cannot be used: {error}; expected "
                "'auto', 'factorized', 'reconstructed' or a path of growarray.contraction.plan"
            ) from error

    def _saved(self) -> dict[str, Any]:
        names = (*self._sizes, "n_layers", "implementation", "weight", "bias")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def _restored(cls, weight: FactorizedTensor, bias: Parameter | None, **options: Any) -> Self:
        make: Any = cls
        layer: Self = make(**options, factorization=weight, bias=False)
        lead = (layer.n_layers,) if layer.n_layers > 1 else ()
        layer.bias = checked_bias(bias, (*lead, *layer._output))
        return layer

    def reset_parameters(self, rng: np.random.Generator | None = None, *, std: float | str | None = None) -> None:
        """Draw weight and bias anew; ``std`` as in the constructor."""
        rng = np.random.default_rng() if rng is None else rng
        width = math.prod(self._modes)
        draw_weight(type(self).__name__, self.weight, std, width, self._original_std(), rng)
        if self.bias is not None:
            bound, old = 1.0 / math.sqrt(width), self.bias.data
            self.bias.data = asarray(uniform(self.bias.shape, bound, rng, np.float64), like=old, dtype=old.dtype)

    def _original_std(self) -> float:
        """What TensorLy-Torch asks for at the start."""
        raise NotImplementedError(f"{type(self).__name__} must define _original_std()")

    @property
    def _equation(self) -> str:
        inner, outer = (len(getattr(self, name)) for name in self._sizes)
        return linear_equation(self.weight.name, inner, outer, self._input_first)

    def _operands(self, layer_index: Sizes, drop: bool = True) -> tuple[Arrays, Callable[[Arrays], None]]:
        return self.weight._operands_vjp(layer_index, drop=drop)

    @property
    def rank(self) -> Any:
        """Rank of the factorization."""
        return self.weight.rank

    def extra_repr(self) -> str:
        """Modes, rank and options."""
        inner, outer = (getattr(self, name) for name in self._sizes)
        parts = [f"{inner}, {outer}, bias={self.bias is not None}"]
        parts += [f"factorization={self.weight.name}, rank={self.rank}"]
        parts += [f"n_layers={self.n_layers}"] if self.n_layers > 1 else []
        parts += [f"implementation={self.implementation!r}"] if self.implementation != "auto" else []
        return ", ".join(parts)
