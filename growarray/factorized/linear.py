"""Affine layers whose weight matrix is a factorized tensor, alone or several with one factorization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from growarray.backend import Array, asarray, assign, library, namespace, target_of
from growarray.contraction import Plan
from growarray.contraction.checks import is_whole
from growarray.errors import PlanError, ShapeError, shown
from growarray.factorized.linear_convert import linear_layer_of, read_linears
from growarray.factorized.linear_plan import NAMED_WAYS, linear_plan
from growarray.factorized.owner import draw_weight
from growarray.factorized.parameters import checked_bias
from growarray.factorized.settings import flag, hashable, plain, planned_shape, shape_of
from growarray.factorized.sub import SubFactorizedLinear
from growarray.factorized.tensor import FactorizedTensor
from growarray.nn.linear import uniform
from growarray.nn.module import Module, Parameter, Pullback
from growarray.ops.sizes import whole_number

Arrays = tuple[Array, ...]
Sizes = tuple[int, ...]


class FactorizedLinear(Module):
    """``y = x W^T + b`` over the last axis, ``W`` (out_features, in_features) read as a factorized tensor.

    Both features split into modes, and W is the tensor (*out_tensorized_features, *in_tensorized_features) with rows
    and columns flattened. With one mode each it is the product of two matrices, a low-rank W.

    in_tensorized_features, out_tensorized_features : sizes of the modes; a number stands for one mode
    factorization : ``'cp'``, ``'tucker'``, ``'tt'`` (a chain through the modes of the output, then the input),
        ``'ring'`` (the same chain, closed), ``'blocktt'`` (a chain of pairs, mode k of the output beside mode k of the
        input, as many for both), ``'dense'``, or a :class:`FactorizedTensor`, which is then held
    rank : ``'same'`` (as many parameters as the dense weight), a float (a fraction of them), an int, or a tuple
    implementation : ``'auto'`` (the path of least predicted time), ``'factorized'`` (the input goes through one factor
        after the other), ``'reconstructed'`` (the dense weight first), or any ``optimize`` that
        :func:`growarray.contraction.plan` takes
    n_layers : layers that share one factorization, in any format but ``'blocktt'``; ``layer(x, i)`` is one of them

    std : of the entries of W at the start. None is that of :class:`growarray.nn.Linear`, ``1 / sqrt(3 in_features)``,
        in every format; ``'original'`` is the ``sqrt(5 / in_features)`` of TensorLy-Torch, by its formulas except for
        ``'blocktt'``, where W has that size. The bias is drawn as that of ``Linear``.

    Raises ValueError: an option makes no sense; the message lists what does. ShapeError and PlanError are ValueErrors.

    >>> layer = FactorizedLinear((4, 8), (2, 5), factorization="tt", rank=3, rng=np.random.default_rng(0))
    >>> y, pullback = layer.vjp(np.ones((7, 32), dtype=np.float32))
    >>> y.shape, pullback(y).shape, layer.weight.factors["factor_1"].grad.shape
    ((7, 10), (7, 32), (3, 5, 3))
    """

    def __init__(
        self,
        in_tensorized_features: int | Sequence[int],
        out_tensorized_features: int | Sequence[int],
        bias: bool = True,
        factorization: str | FactorizedTensor = "cp",
        rank: Any = "same",
        implementation: Any = "auto",
        n_layers: int = 1,
        device: str | None = None,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
        std: float | str | None = None,
    ) -> None:
        library(device)
        bias = flag("FactorizedLinear", "bias", bias)
        self.in_tensorized_features = _sizes("in_tensorized_features", in_tensorized_features)
        self.out_tensorized_features = _sizes("out_tensorized_features", out_tensorized_features)
        self.n_layers = whole_number("FactorizedLinear", "n_layers", n_layers, 1)
        lead = (self.n_layers,) if self.n_layers > 1 else ()
        shape = (*lead, *self.out_tensorized_features, *self.in_tensorized_features)
        given = factorization if isinstance(factorization, FactorizedTensor) else None
        kind = FactorizedTensor.kind(factorization) if given is None else type(given)
        if lead and not kind.format.takes_integers:
            raise NotImplementedError(
                f"FactorizedLinear: n_layers={n_layers} with {kind.name}, whose modes come in pairs, is not supported; "
                "use another format"
            )
        if given is not None:
            if (device, dtype, std) != (None, None, None) or not isinstance(rank, str) or rank != "same":
                raise ValueError(
                    "FactorizedLinear: rank, std, device and dtype are those of the tensor that is given as "
                    "factorization; leave them out"
                )
            if given.shape != shape:
                raise ShapeError(f"FactorizedLinear: {shown(given)} is given for a weight with modes {shape}")
            self.weight = given
        else:
            self.weight = FactorizedTensor.new(shape, rank, kind.name, std=None, dtype=dtype, device=device)
        like = self.weight.all_factors()[0].data
        zeros = np.zeros((*lead, self.out_features))
        self.bias = Parameter(asarray(zeros, like=like, dtype=like.dtype)) if bias else None
        self.implementation = hashable(implementation)
        self._check_implementation()
        if given is None:
            self.reset_parameters(rng, std=std)

    def _saved(self) -> dict[str, Any]:
        names = ("in_tensorized_features", "out_tensorized_features", "n_layers", "implementation", "weight", "bias")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def _restored(cls, weight: FactorizedTensor, bias: Parameter | None, **options: Any) -> Self:
        layer = cls(**options, factorization=weight, bias=False)
        lead = (layer.n_layers,) if layer.n_layers > 1 else ()
        layer.bias = checked_bias(bias, (*lead, layer.out_features))
        return layer

    def _check_implementation(self) -> None:
        """Raise ValueError unless the engine takes it as a path; the search of ``'auto'`` waits for an input."""
        if isinstance(self.implementation, str) and self.implementation in ("auto", *NAMED_WAYS):
            return
        try:
            self.plan((1, self.in_features))
        except (PlanError, TypeError) as error:
            raise ValueError(
                f"FactorizedLinear: implementation {shown(self.implementation)} cannot be used: {error}; expected "
                "'auto', 'factorized', 'reconstructed' or a path of growarray.contraction.plan"
            ) from error

    def reset_parameters(self, rng: np.random.Generator | None = None, *, std: float | str | None = None) -> None:
        """Draw weight and bias anew; ``std`` as in the constructor."""
        rng = np.random.default_rng() if rng is None else rng
        width = self.in_features
        draw_weight("FactorizedLinear", self.weight, std, width, math.sqrt(5.0 / width), rng)
        if self.bias is not None:
            bound, old = 1.0 / math.sqrt(width), self.bias.data
            self.bias.data = asarray(uniform(self.bias.shape, bound, rng, np.float64), like=old, dtype=old.dtype)

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return math.prod(self.in_tensorized_features)

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return math.prod(self.out_tensorized_features)

    @property
    def rank(self) -> Any:
        """Rank of the factorization."""
        return self.weight.rank

    def _layer_index(self, indices: Any) -> tuple[int, ...]:
        """The leading index of one layer: none if there is one only."""
        indices = plain(indices)
        if not is_whole(indices):
            raise ValueError(f"FactorizedLinear: indices={shown(indices)}, expected a whole number")
        at = int(indices)
        if not -self.n_layers <= at < self.n_layers:
            raise IndexError(f"FactorizedLinear: indices={at} is out of range, n_layers={self.n_layers}")
        return (at % self.n_layers,) if self.n_layers > 1 else ()

    def _plan(self, shape: Sizes, factors: Arrays, training: bool) -> Plan:
        if not shape or shape[-1] != self.in_features:
            raise ShapeError(
                f"FactorizedLinear: input has shape {shape}, expected a last axis of {self.in_features} for modes "
                f"{self.in_tensorized_features}; flatten the input"
            )
        kind = type(self.weight)
        shapes = tuple(self.weight.format.operand_shape(a.shape, i, len(factors)) for i, a in enumerate(factors))
        return linear_plan(
            kind.name, math.prod(shape[:-1]), self.in_tensorized_features, self.out_tensorized_features, shapes,
            self.implementation, training, *target_of(factors[0]),
        )  # fmt: skip

    def plan(self, shape: Sequence[int], training: bool = False, indices: Any = 0) -> Plan:
        """The contraction that runs for an input of this shape: its steps, cost and memory; ``print`` shows a table.

        training : the plan of :meth:`vjp`, which counts the backward pass too
        """
        sizes = planned_shape("FactorizedLinear.plan", shape)
        return self._plan(sizes, self.weight.factors_vjp(self._layer_index(indices), drop=False)[0], training)

    def __call__(self, x: Array, indices: Any = 0) -> Array:
        """:meth:`forward`."""
        return self.forward(x, indices)

    def forward(self, x: Array, indices: Any = 0) -> Array:
        """Value of one layer; x (..., in_features)."""
        layer_index = self._layer_index(indices)
        factors, _ = self.weight.factors_vjp(layer_index)
        todo = self._plan(shape_of("FactorizedLinear", x), factors, training=False)
        return self._result(todo(*self._operands(x, factors)), x, layer_index)

    def vjp(self, x: Array, indices: Any = 0) -> tuple[Array, Pullback]:
        """Value and pullback, which adds to the gradients of weight and bias."""
        layer_index = self._layer_index(indices)
        factors, factors_back = self.weight.factors_vjp(layer_index)
        todo = self._plan(shape_of("FactorizedLinear", x), factors, training=True)
        result, back = todo.vjp(*self._operands(x, factors))
        inner, x_shape = tuple(result.shape), tuple(x.shape)
        y = self._result(result, x, layer_index)
        y_shape = tuple(y.shape)

        def pullback(dy: Array) -> Array:
            if shape_of("FactorizedLinear: the gradient", dy) != y_shape:
                raise ShapeError(
                    f"FactorizedLinear: the gradient has shape {tuple(dy.shape)}, the result had {y_shape}"
                )
            xp = namespace(dy)
            dx, *d_operands = back(xp.reshape(dy, inner))
            shaped = [xp.reshape(d, a.shape) for d, a in zip(d_operands, factors, strict=True)]
            for factor, gradient in zip(self.weight.all_factors(), factors_back(tuple(shaped)), strict=True):
                factor.accumulate(gradient)
            if self.bias is not None:
                row = xp.sum(xp.reshape(dy, (-1, self.out_features)), axis=0)
                self.bias.accumulate(assign(xp.zeros_like(self.bias.data), (*layer_index, ...), row))
            return xp.reshape(dx, x_shape)

        return y, pullback

    def _operands(self, x: Array, factors: Arrays) -> list[Array]:
        xp = namespace(x, *factors)
        rows = xp.reshape(x, (math.prod(x.shape[:-1]), *self.in_tensorized_features))
        return [rows, *self.weight.format.operands(factors)]

    def _result(self, result: Array, x: Array, layer_index: tuple[int, ...]) -> Array:
        """The fresh result of a contraction as (..., out_features), with the bias added in place."""
        y = namespace(result).reshape(result, (*x.shape[:-1], self.out_features))
        if self.bias is not None:
            y += self.bias.data[(*layer_index, ...)]
        return y

    def matrix(self, indices: Any = 0) -> Array:
        """The dense weight (out_features, in_features) of one layer."""
        dense = type(self.weight).of(self.weight.factors_vjp(self._layer_index(indices), drop=False)[0]).to_tensor()
        return namespace(dense).reshape(dense, (self.out_features, self.in_features))

    def get_linear(self, indices: Any) -> SubFactorizedLinear:
        """One layer by itself, which shares the parameters and their gradients."""
        if self.n_layers == 1:
            raise ValueError(
                "FactorizedLinear: holds one layer, which is the layer itself; get_linear is for joint ones"
            )
        return SubFactorizedLinear(self, self._layer_index(indices)[0])

    def __getitem__(self, indices: Any) -> SubFactorizedLinear:
        return self.get_linear(indices)

    @classmethod
    def from_linear(
        cls,
        linear: Any,
        rank: Any = "same",
        auto_tensorize: bool | None = None,
        n_tensorized_modes: int = 3,
        in_tensorized_features: int | Sequence[int] | None = None,
        out_tensorized_features: int | Sequence[int] | None = None,
        bias: bool = True,
        factorization: str = "CP",
        implementation: Any = "auto",
        decomposition_kwargs: Mapping[str, Any] | None = None,
        *,
        dtype: Any = None,
    ) -> Self:
        """The factorized form of an affine layer: ours, torch's, or anything with ``weight`` and perhaps ``bias``.

        auto_tensorize : find the modes by :func:`growarray.factorized.tensorize`; by default if none are given
        n_tensorized_modes : modes that it looks for; 1 makes W a product of two matrices, the ordinary low rank
        bias : False leaves the layer's bias out
        decomposition_kwargs : options of the decomposition, see :mod:`growarray.decompose`; CP of more than 256
            components takes 30 sweeps from one random start unless they say otherwise
        The arrays are copied. A rank above what the weight can use is lowered to it, with a warning if it is given
        as such, not as a share.

        >>> from growarray import nn
        >>> dense = nn.Linear(32, 30, rng=np.random.default_rng(0))
        >>> layer = FactorizedLinear.from_linear(dense, rank=0.5, factorization="tucker")
        >>> layer.in_tensorized_features, layer.out_tensorized_features, layer.rank
        ((2, 4, 4), (2, 3, 5), (2, 3, 4, 2, 3, 3))
        """
        features = (auto_tensorize, n_tensorized_modes, in_tensorized_features, out_tensorized_features)
        found = read_linears("from_linear", [linear], bias)
        return linear_layer_of(cls, found, features, decomposition_kwargs, rank, factorization, implementation, dtype)

    @classmethod
    def from_linear_list(
        cls,
        linear_list: Sequence[Any],
        in_tensorized_features: int | Sequence[int] | None = None,
        out_tensorized_features: int | Sequence[int] | None = None,
        rank: Any = "same",
        bias: bool = True,
        factorization: str = "CP",
        implementation: Any = "auto",
        decomposition_kwargs: Mapping[str, Any] | None = None,
        *,
        n_tensorized_modes: int = 3,
        dtype: Any = None,
    ) -> Self:
        """Layers of one shape as a joint layer with one factorization; a missing bias is zero in a joint layer."""
        features = (None, n_tensorized_modes, in_tensorized_features, out_tensorized_features)
        found = read_linears("from_linear_list", linear_list, bias)
        return linear_layer_of(cls, found, features, decomposition_kwargs, rank, factorization, implementation, dtype)

    def extra_repr(self) -> str:
        """Modes, rank and options."""
        parts = [f"{self.in_tensorized_features}, {self.out_tensorized_features}, bias={self.bias is not None}"]
        parts += [f"factorization={self.weight.name}, rank={self.rank}"]
        parts += [f"n_layers={self.n_layers}"] if self.n_layers > 1 else []
        parts += [f"implementation={self.implementation!r}"] if self.implementation != "auto" else []
        return ", ".join(parts)


def _sizes(option: str, features: Any) -> Sizes:
    """Sizes of modes as a tuple of ints of at least 1."""
    features = plain(features)
    values = tuple(features) if isinstance(features, tuple | list) else (features,)
    if not values:
        raise ShapeError(f"FactorizedLinear: {option} is empty, expected the size of at least one mode")
    return tuple(whole_number("FactorizedLinear", option, value, 1) for value in values)
