"""The factorized tensor that a layer holds: found, and drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray.decompose.arguments import is_real
from growarray.errors import ShapeError, shown
from growarray.factorized.tensor import FactorizedTensor


def factorized_tensor_of(owner: Any, where: str) -> FactorizedTensor:
    """A factorized tensor, or the weight of a layer that is one; it must have a rank.

    >>> factorized_tensor_of(FactorizedTensor.new((3, 4, 2), rank=2), "doc").rank
    2
    """
    tensor = owner if isinstance(owner, FactorizedTensor) else getattr(owner, "weight", None)
    if not isinstance(tensor, FactorizedTensor):
        raise TypeError(
            f"{where}: {type(owner).__name__} is not a factorized tensor, nor is its weight; give a "
            "FactorizedTensor, FactorizedConv or FactorizedLinear"
        )
    if not tensor.format.rank_axes(tensor.order):
        raise ValueError(f"{where}: {shown(tensor)} has no rank")
    return tensor


def lead_modes(where: str, kind: type[FactorizedTensor], n_layers: int) -> tuple[int, ...]:
    """The mode that selects one of several layers, none for one; NotImplementedError if the format has no such mode.

    >>> lead_modes("doc", FactorizedTensor.kind("cp"), 3)
    (3,)
    """
    if n_layers > 1 and not kind.format.takes_integers:
        raise NotImplementedError(
            f"{where}: n_layers={n_layers} with {kind.name}, whose modes come in pairs, is not supported; use another "
            "format"
        )
    return (n_layers,) if n_layers > 1 else ()


def held_or_new(
    where: str, modes: tuple[int, ...], factorization: Any, rank: Any, n_layers: int, **options: Any
) -> FactorizedTensor:
    """The tensor that is given as factorization, if it has these modes, or a new one of zeros in the format it names.

    >>> held_or_new("doc", (2, 3), "cp", 2, 4).shape
    (4, 2, 3)
    """
    tensor = factorization if isinstance(factorization, FactorizedTensor) else None
    kind = FactorizedTensor.kind(factorization) if tensor is None else type(tensor)
    shape = (*lead_modes(where, kind, n_layers), *modes)
    if tensor is None:
        return FactorizedTensor.new(shape, rank, kind.name, std=None, **options)
    if tensor.shape != shape:
        raise ShapeError(f"{where}: {shown(tensor)} is given for a weight with modes {shape}")
    return tensor


def draw_weight(
    where: str, tensor: FactorizedTensor, std: float | str | None, fan_in: int, original: float,
    rng: np.random.Generator | None,
) -> None:  # fmt: skip
    """Draw the weight of a layer: as large as that of a dense one, ``1 / sqrt(3 fan_in)``, unless ``std`` is given.

    std : of the entries; ``'original'`` is ``original``, by :meth:`FactorizedTensor.normal_`
    Raises ValueError if it is neither.
    """
    if isinstance(std, str) and std == "original":
        tensor.normal_(0.0, original, rng)
        return
    size: Any = 1.0 / math.sqrt(3.0 * fan_in) if std is None else std
    if not is_real(size) or not 0.0 <= size < math.inf:
        raise ValueError(
            f"{where}: std is {shown(std)}, expected a number of at least 0, 'original', or None for that of a "
            "dense layer"
        )
    tensor.draw_(size, rng)


def refuse_lasso(tensor: FactorizedTensor, where: str) -> None:
    """Raise ValueError if there are lasso weights, which would not fit what ``where`` does."""
    if tensor.lasso_weights:
        raise ValueError(
            f"{type(tensor).__name__}.{where}: the tensor has lasso weights; call TensorLasso.remove first"
        )
