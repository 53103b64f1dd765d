"""The factorized tensor that a layer holds."""

from __future__ import annotations

from typing import Any

from growarray.errors import shown
from growarray.factorized.tensor import FactorizedTensor

__all__ = ["factorized_tensor_of"]


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
    if not tensor.rank_axes(tensor.order):
        raise ValueError(f"{where}: {shown(tensor)} has no rank")
    return tensor
