"""Tensor lasso: weights on the components of a factorization, with an l1 penalty that drives them to zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from growarray.backend import Array, asarray, namespace, to_numpy
from growarray.decompose.arguments import is_real
from growarray.errors import shown
from growarray.factorized.owner import factorized_tensor_of
from growarray.factorized.settings import flag
from growarray.factorized.tensor import FactorizedTensor
from growarray.nn.module import Parameter
from growarray.nn.owner import Owner

_OwnerT = TypeVar("_OwnerT", bound=Owner)


class TensorLasso:
    """An l1 penalty on weights that scale the ranks of factorized tensors.

    :meth:`apply` gives a tensor one trained weight for each component of each rank, which starts at one: CP has one
    rank, Tucker one for each mode, a tensor train one for each bond. They are parameters of the tensor,
    ``lasso_weights.0``, …, and scale it wherever it is used. At a step of training, add the penalty to the loss with
    :meth:`vjp`, and after the optimizer's step call :meth:`project`; :meth:`prune` removes what has become zero.

    penalty : factor of the loss
    clamp_weights : whether :meth:`project` clamps the weights to [-1, 1]
    threshold : weights up to it, negative ones too, are set to zero by :meth:`project`; 0 switches that off
    normalize_loss : the loss is ``penalty`` times the mean of |w| over all tensors, not the sum

    Raises ValueError: the penalty or the threshold is negative or not finite; TypeError: ``clamp_weights`` or
    ``normalize_loss`` is not a flag.

    Source: TensorLy-Torch, ``tensor_lasso``, whose numbers for Tucker and tensor trains these are. Changed: its CP
    multiplies the penalty in twice, and its weights do not enter the tensor. It clamps in the forward pass, sums a loss
    until ``reset``, and loses the weights at ``remove``; here nothing is kept between calls, and :meth:`remove` keeps
    the tensor's value.

    >>> from growarray.factorized import FactorizedConv
    >>> lasso = TensorLasso(penalty=0.5)
    >>> conv = lasso.apply(FactorizedConv(4, 4, (3, 3), rank=4, dtype="float64"))
    >>> value, pullback = lasso.vjp()
    >>> pullback()
    >>> float(value), conv.weight.lasso_weights[0].grad.tolist()
    (0.5, [0.125, 0.125, 0.125, 0.125])
    """

    def __init__(
        self, penalty: float = 0.01, clamp_weights: bool = True, threshold: float = 1e-6, normalize_loss: bool = True
    ) -> None:
        for option, value in (("penalty", penalty), ("threshold", threshold)):
            if not is_real(value) or not 0.0 <= value < float("inf"):
                raise ValueError(f"TensorLasso: {option} must be a number of at least 0, found {shown(value)}")
        self.penalty, self.threshold = float(penalty), float(threshold)
        self.clamp_weights = flag("TensorLasso", "clamp_weights", clamp_weights)
        self.normalize_loss = flag("TensorLasso", "normalize_loss", normalize_loss)
        self.tensors: list[FactorizedTensor] = []

    def apply(self, owner: _OwnerT) -> _OwnerT:
        """Give a tensor, or the weight of a layer, lasso weights of one; returns ``owner``.

        Raises TypeError if there is no factorized tensor, ValueError if it is dense or has lasso weights.
        """
        tensor = factorized_tensor_of(owner, "TensorLasso.apply")
        if tensor.lasso_weights:
            raise ValueError(f"TensorLasso.apply: {shown(tensor)} has lasso weights already; call remove first")
        like = tensor.all_factors()[0].data
        tensor.lasso_weights = [
            Parameter(asarray(np.ones(size), like=like, dtype=like.dtype))
            for size in tensor.format.sizes_of(tensor.shape, tensor.rank)
        ]
        self.tensors.append(tensor)
        return owner

    def _held(self, owner: Owner, where: str) -> FactorizedTensor:
        tensor = factorized_tensor_of(owner, where)
        if not any(tensor is held for held in self.tensors):
            raise ValueError(f"{where}: this lasso was not applied to {shown(tensor)}")
        return tensor

    def _weights(self) -> list[Parameter]:
        weights = [weight for tensor in self.tensors for weight in tensor.lasso_weights]
        if not weights:
            raise ValueError("TensorLasso: not yet applied to a tensor with a rank; call apply(layer) first")
        return weights

    def vjp(self) -> tuple[Array, Callable[..., None]]:
        """The penalty, and a pullback that adds ``d_value`` (default 1) times its subgradient to the lasso weights.

        The subgradient at zero is zero.
        """
        weights = self._weights()
        count = sum(weight.size for weight in weights) if self.normalize_loss else 1
        data = [weight.data for weight in weights]
        xp = namespace(*data)
        total, *others = [xp.sum(xp.abs(values)) for values in data]
        for other in others:
            total = total + other
        scale = self.penalty / count

        def pullback(d_value: float = 1.0) -> None:
            for weight, values in zip(weights, data, strict=True):
                weight.accumulate(xp.sign(values) * (d_value * scale))

        return total * scale, pullback

    @property
    def loss(self) -> Array:
        """The penalty alone."""
        return self.vjp()[0]

    def project(self) -> None:
        """Clamp the weights and set the small ones to zero; call it after each step of the optimizer."""
        for weight in self._weights():
            xp, values = namespace(weight.data), weight.data
            if self.clamp_weights:
                values = xp.clip(values, -1.0, 1.0)
            if self.threshold:
                values = xp.where(values <= self.threshold, xp.zeros_like(values), values)  # a NaN stays one
            weight.data = values

    def remove(self, owner: _OwnerT) -> _OwnerT:
        """Multiply the weights into the factors, whose value stays, and forget them; returns ``owner``.

        Gradients and optimizer state of the factors stay as they are; ValueError if the lasso was not applied.
        """
        tensor = self._held(owner, "TensorLasso.remove")
        for factor, array in zip(tensor.all_factors(), tensor.arrays(), strict=True):
            factor.data = array
        tensor.lasso_weights = ()
        self.tensors = [held for held in self.tensors if held is not tensor]
        return owner

    def prune(self, owner: Owner) -> int:
        """Remove the components whose weight is zero, one of each rank excepted, with gradients and optimizer state.

        The tensor's value stays. Returns how many were removed; ValueError if the lasso was not applied.
        """
        tensor, removed = self._held(owner, "TensorLasso.prune"), 0
        factors = tensor.all_factors()
        for weight, axes in zip(tensor.lasso_weights, tensor.format.rank_axes(tensor.order), strict=True):
            nonzero = np.flatnonzero(to_numpy(weight.data))
            nonzero = nonzero if nonzero.size else np.zeros(1, dtype=np.int64)
            if nonzero.size < weight.size:
                removed += weight.size - int(nonzero.size)
                index = asarray(nonzero, like=weight.data)
                weight.keep(0, index)
                for factor, axis in axes:
                    factors[factor].keep(axis, index)
        return removed

    def __repr__(self) -> str:
        return f"TensorLasso(penalty={self.penalty}, tensors={len(self.tensors)})"
