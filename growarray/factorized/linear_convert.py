"""Dense affine layers of any library, read without importing it, as factorized ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from growarray.backend import Array, asarray, namespace
from growarray.errors import ShapeError, shown
from growarray.factorized.convert import array_of, check_finite, listed, numpy_dtype
from growarray.factorized.format import checked_kwargs, warn_lowered
from growarray.factorized.linear_plan import tensorize
from growarray.factorized.owner import lead_modes
from growarray.factorized.settings import mode_sizes
from growarray.factorized.tensor import FactorizedTensor
from growarray.nn.module import Module

_LayerT = TypeVar("_LayerT", bound=Module)


@dataclass(frozen=True)
class DenseLinear:
    """Copies of what an affine layer holds; the weight is (out_features, in_features)."""

    weight: Array
    bias: Array | None

    @property
    def shape(self) -> tuple[int, int]:
        """(in_features, out_features)."""
        return self.weight.shape[1], self.weight.shape[0]


class Scheme(NamedTuple):
    """How a weight is factorized, as the user wrote it: rank, format, options of the decomposition, dtype or None."""

    rank: Any
    factorization: str
    options: Mapping[str, Any] | None
    dtype: Any


def read_linear(where: str, layer: Any) -> DenseLinear:
    """Read ``weight`` (out, in) and ``bias`` (out,) or None of a layer, in its library.

    Raises TypeError: the layer has no weight that is an array; ShapeError: weight or bias has another shape;
    ValueError: one of them holds a NaN or an infinity.

    >>> from growarray import nn
    >>> read_linear("doc", nn.Linear(3, 2)).weight.shape
    (2, 3)
    """
    name = type(layer).__name__
    if getattr(layer, "weight", None) is None:
        raise TypeError(f"{where}: {name} has no weight, expected an affine layer such as nn.Linear")
    weight = array_of(layer.weight)
    if weight.ndim != 2:
        raise ShapeError(
            f"{where}: weight of {name} has shape {tuple(weight.shape)}, expected (out_features, in_features); "
            "for a convolution use FactorizedConv.from_conv"
        )
    bias = None if getattr(layer, "bias", None) is None else array_of(layer.bias)
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ShapeError(f"{where}: bias of {name} has shape {tuple(bias.shape)}, expected ({weight.shape[0]},)")
    check_finite(where, name, weight, bias)
    return DenseLinear(weight, bias)


def read_linears(where: str, layers: Sequence[Any], bias: bool) -> list[DenseLinear]:
    """Read layers that are to share one factorization, without their bias if ``bias`` is False."""
    dense = [read_linear(where, layer) for layer in listed(where, layers)]
    for i, linear in enumerate(dense):
        if tuple(linear.weight.shape) != tuple(dense[0].weight.shape) or linear.weight.dtype != dense[0].weight.dtype:
            raise ShapeError(
                f"{where}: layer {i} has a weight {tuple(linear.weight.shape)} of {linear.weight.dtype}, layer 0 "
                f"{tuple(dense[0].weight.shape)} of {dense[0].weight.dtype}; joint layers need the same shape and dtype"
            )
    return dense if bias else [DenseLinear(linear.weight, None) for linear in dense]


def linear_layer_of(
    kind: Callable[..., _LayerT],
    layers: Sequence[DenseLinear],
    sides: tuple[tuple[int, ...], tuple[int, ...]],
    scheme: Scheme,
    implementation: Any,
) -> _LayerT:
    """A factorized layer of these dense ones, in their library; ``sides`` are the modes of input and output."""
    inner, outer = sides
    weight = fitted_weight("from_linear", [linear.weight for linear in layers], (*outer, *inner), scheme)
    biased = any(linear.bias is not None for linear in layers)
    joint = kind(inner, outer, biased, weight, implementation=implementation, n_layers=len(layers))
    if biased:
        layer: Any = joint
        xp = namespace(layers[0].weight)
        rows = [xp.zeros_like(linear.weight[:, 0]) if linear.bias is None else linear.bias for linear in layers]
        layer.bias.data = xp.astype(xp.stack(rows) if len(layers) > 1 else rows[0], layer.bias.data.dtype)
    return joint


def fitted_weight(where: str, matrices: Sequence[Array], modes: tuple[int, ...], scheme: Scheme) -> FactorizedTensor:
    """The decomposition of a matrix, or of several together, whose sides split into modes; in their library."""
    options, first = checked_kwargs(where, scheme.options), matrices[0]
    kind = FactorizedTensor.kind(scheme.factorization)
    shape = (*lead_modes(where, kind, len(matrices)), *modes)
    # Factors of a rank that the weight cannot use might not fit in memory.
    asked = kind.format.validate_rank(shape, scheme.rank)
    rank = kind.format.usable_rank(shape, asked)
    dtype = numpy_dtype(first) if scheme.dtype is None else scheme.dtype
    weight = FactorizedTensor.new(shape, rank, kind.name, std=None, dtype=dtype)
    for factor in weight.all_factors():
        factor.data = asarray(factor.data, like=first)
    xp = namespace(*matrices)
    stacked = xp.stack(list(matrices)) if len(matrices) > 1 else first
    weight.init_from_tensor(xp.reshape(stacked, shape), **{**kind.format.quick_options(weight.rank), **options})
    warn_lowered(where, scheme.rank, asked, weight.rank, stacklevel=4)
    return weight


def split_shape(
    where: str, names: tuple[str, str], shape: tuple[int, int], auto: bool | None, modes: int, *sides: Any
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Modes of the two sides of a matrix, found or given; ``names`` are those of the options that give them.

    >>> split_shape("doc", ("rows", "columns"), (8, 9), None, 2, None, None)
    ((2, 4), (3, 3))
    """
    given = " and ".join(f"{name}={shown(side)}" for name, side in zip(names, sides, strict=True))
    missing = [side is None for side in sides]
    if all(missing) and auto is not False:
        return tensorize(shape[0], shape[1], modes)
    if auto:
        raise ValueError(f"{where}: auto_tensorize=True with {given}; pass only one of the two ways")
    if any(missing):
        raise ValueError(f"{where}: {given}; give both or neither")
    split = []
    for name, side, width in zip(names, sides, shape, strict=True):
        sizes = mode_sizes(where, name, side)
        if math.prod(sizes) != width:
            raise ShapeError(
                f"{where}: {name} {sizes} have the product {math.prod(sizes)}, expected {width}, the "
                f"{name.replace('tensorized_', '')} of the layer"
            )
        split.append(sizes)
    return split[0], split[1]
