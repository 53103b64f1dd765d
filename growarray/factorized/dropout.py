"""Tensor dropout: components of a factorization are dropped while it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from growarray.decompose.arguments import is_real
from growarray.errors import shown
from growarray.factorized.owner import factorized_tensor_of
from growarray.factorized.settings import flag
from growarray.nn.owner import Owner
from growarray.ops.sizes import whole_number

_OwnerT = TypeVar("_OwnerT", bound=Owner)


class TensorDropout:
    """Draws, for each rank, which of its components take part. Made by :func:`tensor_dropout`, which explains it.

    >>> import numpy as np
    >>> TensorDropout(0.5, rng=np.random.default_rng(1)).draw((4, 2), training=True)
    [array([2., 2., 0., 2.]), None]
    """

    def __init__(
        self,
        p: float,
        *,
        min_dim: int = 3,
        min_values: int = 1,
        drop_test: bool = False,
        rng: np.random.Generator | None = None,
    ) -> None:
        if not is_real(p) or not 0.0 <= p < 1.0:
            raise ValueError(f"tensor_dropout: p must be at least 0 and below 1, found {shown(p)}")
        self.rng: Any = np.random.default_rng() if rng is None else rng
        if not isinstance(self.rng, np.random.Generator):
            raise TypeError(f"tensor_dropout: rng={shown(rng)}, expected a numpy.random.Generator")
        self.p, self.drop_test = float(p), flag("tensor_dropout", "drop_test", drop_test)
        self.min_dim = whole_number("tensor_dropout", "min_dim", min_dim, 0)
        self.min_values = whole_number("tensor_dropout", "min_values", min_values, 1)

    def draw(self, sizes: Sequence[int], training: bool) -> list[np.ndarray | None]:
        """For each rank what its components are multiplied by; None for one that is left alone."""
        if self.p == 0.0 or not (training or self.drop_test):
            return [None] * len(sizes)
        scale = 1.0 / (1.0 - self.p) if training else 1.0
        return [self._kept(size) * scale if size > self.min_dim else None for size in sizes]

    def _kept(self, size: int) -> Any:
        stays = self.rng.random(size) >= self.p
        least = min(self.min_values, size)
        if np.count_nonzero(stays) < least:
            stays[:] = False
            stays[self.rng.choice(size, least, replace=False)] = True
        return stays

    def __repr__(self) -> str:
        return f"TensorDropout(p={self.p}, min_dim={self.min_dim}, min_values={self.min_values})"


def tensor_dropout(
    owner: _OwnerT,
    p: float,
    *,
    min_dim: int = 3,
    min_values: int = 1,
    drop_test: bool = False,
    rng: np.random.Generator | None = None,
) -> _OwnerT:
    """Drop the components of every rank of a factorized tensor, or of a layer's weight, with probability ``p``.

    CP drops components, Tucker entries of each mode of its core, a tensor train entries of each bond; those that stay
    are divided by ``1 - p``, so that the mean over the masks is the tensor. Active in training mode. A mask is drawn at
    each ``forward`` and ``vjp`` of a layer and each ``tensor_vjp``, from ``rng``, and holds for the pullback too, which
    gives the dropped components no gradient. ``to_tensor``, indices and ``plan`` never drop.

    Components are multiplied by zero, not cut out: all shapes stay, and with them the plan that was found for them.

    min_dim : ranks up to this size are left alone    min_values : components of a rank that stay at least
    drop_test : drop in evaluation mode too, without scaling what stays
    Returns ``owner``.

    Raises TypeError: neither ``owner`` nor its weight is a factorized tensor; ValueError: the tensor is dense, or has
    tensor dropout already, or an option makes no sense.

    Source: Kolbeinsson et al. 2021, "Tensor dropout for robust learning"; TensorLy-Torch. Changed: there, a rank that
    is left alone is scaled as well, which makes the tensor too large in the mean, and ``min_values`` counts only if
    nothing else is left. In a joint layer ranks are dropped before one of its members is chosen, here.

    >>> import numpy as np
    >>> from growarray.factorized import FactorizedConv
    >>> conv = FactorizedConv(4, 4, (3, 3), rank=8, rng=np.random.default_rng(0))
    >>> conv = tensor_dropout(conv, 0.5, rng=np.random.default_rng(1))
    >>> y, pullback = conv.vjp(np.ones((1, 4, 5, 5), dtype=np.float32))
    >>> _ = pullback(y)
    >>> (conv.weight.weights.grad != 0).tolist()
    [True, True, False, True, False, False, True, False]
    """
    tensor = factorized_tensor_of(owner, "tensor_dropout")
    dropout = TensorDropout(p, min_dim=min_dim, min_values=min_values, drop_test=drop_test, rng=rng)
    if tensor.dropout is not None:
        raise ValueError(
            f"tensor_dropout: {shown(tensor)} has {shown(tensor.dropout)}; call remove_tensor_dropout first"
        )
    tensor.dropout = dropout
    return owner


def remove_tensor_dropout(owner: _OwnerT) -> _OwnerT:
    """Remove tensor dropout and return ``owner``; raises ValueError if there is none.

    >>> from growarray.factorized import FactorizedTensor
    >>> tensor = tensor_dropout(FactorizedTensor.new((3, 4, 2), rank=5), 0.5)
    >>> remove_tensor_dropout(tensor).dropout is None
    True
    """
    tensor = factorized_tensor_of(owner, "remove_tensor_dropout")
    if tensor.dropout is None:
        raise ValueError(f"remove_tensor_dropout: {shown(tensor)} has no tensor dropout")
    tensor.dropout = None
    return owner
