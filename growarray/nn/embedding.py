"""A vector for each entry of a vocabulary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, kind_of, library, namespace, to_device
from growarray.errors import ShapeError, shown
from growarray.nn.indexed import gather
from growarray.nn.linear import real_dtype
from growarray.nn.module import Module, Parameter, Pullback
from growarray.ops.sizes import whole_number


class Embedding(Module):
    """Rows of ``weight`` (num_embeddings, embedding_dim) at whole numbers of any shape; they become the last axis.

    Weights are drawn from a normal distribution, as in torch. Numbers have no derivative: the pullback returns None.

    Raises TypeError for numbers that are not whole, ShapeError for one outside of the vocabulary.

    >>> layer = Embedding(10, 3, rng=np.random.default_rng(0))
    >>> y, pullback = layer.vjp(np.array([[1, 1, 4]]))
    >>> y.shape, pullback(np.ones_like(y)), layer.weight.grad[:5, 0].tolist()
    ((1, 3, 3), None, [0.0, 2.0, 0.0, 0.0, 1.0])
    """

    _shown = "{self.num_embeddings}, {self.embedding_dim}"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = None,
        device: str | None = None,
    ) -> None:
        shape = tuple(
            whole_number("Embedding", name, size, 0)
            for name, size in (("num_embeddings", num_embeddings), ("embedding_dim", embedding_dim))
        )
        library(device)
        rng = np.random.default_rng() if rng is None else rng
        self.weight = Parameter(to_device(asarray(rng.standard_normal(shape).astype(real_dtype(dtype))), device))

    _held = ("weight",)

    def _check_held(self) -> None:
        if len(self.weight.shape) != 2:
            raise ShapeError(f"Embedding: weight has shape {self.weight.shape}, expected two axes")

    @property
    def num_embeddings(self) -> int:
        """Size of the vocabulary."""
        return int(self.weight.shape[0])

    @property
    def embedding_dim(self) -> int:
        """Features of each entry."""
        return int(self.weight.shape[1])

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The rows, and a pullback that adds up the gradients of each in ``weight.grad``."""
        if kind_of(x) not in "iu":
            raise TypeError(f"Embedding: found {shown(x)}, expected whole numbers; convert them, say to int64")
        xp, most = namespace(x, self.weight.data), self.num_embeddings - 1
        if math.prod(x.shape) and not (int(xp.min(x)) >= 0 and int(xp.max(x)) <= most):
            raise ShapeError(
                f"Embedding: found numbers from {int(xp.min(x))} to {int(xp.max(x))}, expected 0 to {most}; map others "
                "to an entry of their own"
            )
        y, back = gather(xp, self.weight.data, x)

        def pullback(dy: Array, *, wrt_x: bool = True) -> None:
            self.weight.accumulate(back(dy)[0])

        return y, pullback
