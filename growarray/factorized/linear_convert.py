"""Dense affine layers of any library, read without importing it, as factorized ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from growarray.backend import Array, asarray, namespace
from growarray.errors import ShapeError, shown
from growarray.factorized.convert import array_of, check_finite, listed, numpy_dtype
from growarray.factorized.format import checked_kwargs, warn_lowered
from growarray.factorized.linear_plan import tensorize
from growarray.factorized.settings import plain
from growarray.factorized.tensor import FactorizedTensor
from growarray.nn.module import Module
from growarray.ops.sizes import whole_number

_LayerT = TypeVar("_LayerT", bound=Module)


@dataclass(frozen=True)
class DenseLinear:
    """Copies of what an affine layer holds; the weight is (out_features, in_features)."""

    weight: Array
    bias: Array | None


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
    found = [read_linear(where, layer) for layer in listed(where, layers)]
    for i, one in enumerate(found):
        if tuple(one.weight.shape) != tuple(found[0].weight.shape) or one.weight.dtype != found[0].weight.dtype:
            raise ShapeError(
                f"{where}: layer {i} has a weight {tuple(one.weight.shape)} of {one.weight.dtype}, layer 0 "
                f"{tuple(found[0].weight.shape)} of {found[0].weight.dtype}; joint layers need the same shape and dtype"
            )
    return found if bias else [DenseLinear(one.weight, None) for one in found]


def linear_layer_of(
    kind: Callable[..., _LayerT], found: Sequence[DenseLinear], features: tuple[Any, ...],
    decomposition: Mapping[str, Any] | None, given: Any, factorization: str, implementation: Any, dtype: Any,
) -> _LayerT:  # fmt: skip
    """A factorized layer of these dense ones, in their library; ``given`` is the rank as the user wrote it."""
    decomposition = checked_kwargs("from_linear", decomposition)
    first = found[0].weight
    inner, outer = _features(tuple(first.shape), *features)
    biased = any(one.bias is not None for one in found)
    dtype = numpy_dtype(first) if dtype is None else dtype
    weights = FactorizedTensor.kind(factorization)
    lead = (len(found),) if len(found) > 1 else ()
    # Factors of a rank that the weight cannot use might not fit in memory.
    asked = weights.format.validate_rank((*lead, *outer, *inner), given)
    rank = weights.format.usable_rank((*lead, *outer, *inner), asked)
    blank = FactorizedTensor.new((*lead, *outer, *inner), rank, weights.name, std=None, dtype=dtype)
    made = kind(inner, outer, biased, blank, implementation=implementation, n_layers=len(found))
    layer: Any = made
    for parameter in layer.parameters():
        parameter.data = asarray(parameter.data, like=first)
    xp = namespace(*(one.weight for one in found))
    whole = xp.stack([one.weight for one in found]) if len(found) > 1 else first
    quick = weights.format.quick_options(layer.rank)
    layer.weight.init_from_tensor(xp.reshape(whole, layer.weight.shape), **{**quick, **decomposition})
    warn_lowered("from_linear", given, asked, layer.rank, stacklevel=3)
    if layer.bias is not None:
        rows = [xp.zeros_like(first[:, 0]) if one.bias is None else one.bias for one in found]
        layer.bias.data = xp.astype(xp.stack(rows) if len(found) > 1 else rows[0], layer.bias.data.dtype)
    return made


def _features(
    shape: tuple[int, ...], auto: bool | None, modes: int, inner: Any, outer: Any
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Modes of input and output for a weight of this shape."""
    if inner is None and outer is None and auto is not False:
        return tensorize(shape[1], shape[0], modes)
    if auto:
        raise ValueError(
            f"from_linear: auto_tensorize=True with in_tensorized_features={shown(inner)} and "
            f"out_tensorized_features={shown(outer)}; pass only one of the two ways"
        )
    if inner is None or outer is None:
        raise ValueError(
            f"from_linear: in_tensorized_features={shown(inner)} and out_tensorized_features={shown(outer)}; give "
            "both or neither"
        )
    sizes = []
    for label, given, width in (("in", inner, shape[1]), ("out", outer, shape[0])):
        given = plain(given)
        values = tuple(given) if isinstance(given, tuple | list) else (given,)
        values = tuple(whole_number("from_linear", f"{label}_tensorized_features", v, 1) for v in values)
        if math.prod(values) != width:
            raise ShapeError(
                f"from_linear: {label}_tensorized_features {values} have the product {math.prod(values)}, "
                f"expected {width}, the {label}_features of the layer"
            )
        sizes.append(values)
    return sizes[0], sizes[1]
