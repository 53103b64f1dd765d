"""The factorized tensor that a layer holds: found, and drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray.decompose.arguments import is_real
from growarray.errors import shown
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
