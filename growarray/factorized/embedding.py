"""A table of vectors as a factorized tensor: a look-up takes rows of the factors, and contracts those.

n look-ups · v0, v1, … modes that number the vectors · e0, e1, … modes of a vector; for a block tensor train and for CP:

    n e0 b1, n b1 e1 -> n e0 e1
    r, n r, n r, e0 r, e1 r -> n e0 e1
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Self

import numpy as np

from growarray.backend import Array, kind_of, namespace, target_of
from growarray.contraction import Plan
from growarray.errors import ShapeError
from growarray.factorized.linear_convert import Scheme, fitted_weight, read_linears, split_shape
from growarray.factorized.linear_plan import linear_plan
from growarray.factorized.owner import draw_weight, held_or_new
from growarray.factorized.settings import joint_index, planned_shape, shape_of
from growarray.factorized.sub import SubFactorizedEmbedding
from growarray.factorized.tensor import FactorizedTensor
from growarray.nn.indexed import gather
from growarray.nn.module import Module, Pullback
from growarray.ops.sizes import whole_number

Sizes = tuple[int, ...]
_NAMES = ("tensorized_num_embeddings", "tensorized_embedding_dim")


class FactorizedEmbedding(Module):
    """Vectors (*x.shape, embedding_dim) by their numbers x, from a table (num_embeddings, embedding_dim) in factors.

    The table is the tensor (*tensorized_num_embeddings, *tensorized_embedding_dim), with both sides flattened.

    auto_tensorize, n_tensorized_modes : find the modes, at most so many for each side, by
        :func:`growarray.factorized.tensorize`; by default if none are given
    tensorized_num_embeddings, tensorized_embedding_dim : their sizes
    factorization : any format, or a :class:`FactorizedTensor`, which is then held; ``'blocktt'`` is a chain of pairs
    rank : as for :class:`FactorizedLinear`
    n_layers : tables that share one factorization, in any format but ``'blocktt'``; ``layer(x, i)`` is one of them
    std : of the table's entries at the start. None is ``1 / sqrt(3 num_embeddings)``, of TT-Rec (Yin et al. 2021);
        ``'original'`` asks for the same by the formulas of TensorLy-Torch, which miss it for trains

    Raises ValueError: an option makes no sense.

    Names and signature are those of TensorLy-Torch, in which CP changes its own parameters at each look-up, and Tucker
    takes no x of more than one axis. The pullback returns None, since numbers have no gradient.

    >>> layer = FactorizedEmbedding(12, 6, n_tensorized_modes=2, rank=3, rng=np.random.default_rng(0))
    >>> y, pullback = layer.vjp(np.asarray([[3, 11], [0, 3]]))
    >>> y.shape, pullback(y), layer.weight.factors["factor_1"].grad.shape
    ((2, 2, 6), None, (3, 4, 3, 1))
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        auto_tensorize: bool | None = None,
        n_tensorized_modes: int = 3,
        tensorized_num_embeddings: int | Sequence[int] | None = None,
        tensorized_embedding_dim: int | Sequence[int] | None = None,
        factorization: str | FactorizedTensor = "blocktt",
        rank: Any = 8,
        n_layers: int = 1,
        device: str | None = None,
        dtype: Any = None,
        *,
        rng: np.random.Generator | None = None,
        std: float | str | None = None,
    ) -> None:
        name = "FactorizedEmbedding"
        self.num_embeddings = whole_number(name, "num_embeddings", num_embeddings, 1)
        self.embedding_dim = whole_number(name, "embedding_dim", embedding_dim, 1)
        self.n_layers = whole_number(name, "n_layers", n_layers, 1)
        self.tensorized_num_embeddings, self.tensorized_embedding_dim = split_shape(
            name, _NAMES, (num_embeddings, embedding_dim), auto_tensorize, n_tensorized_modes,
            tensorized_num_embeddings, tensorized_embedding_dim,
        )  # fmt: skip
        modes = (*self.tensorized_num_embeddings, *self.tensorized_embedding_dim)
        self.weight = held_or_new(name, modes, factorization, rank, self.n_layers, dtype=dtype, device=device)
        if self.weight is not factorization:
            self.reset_parameters(rng, std=std)

    def _saved(self) -> dict[str, Any]:
        names = ("num_embeddings", "embedding_dim", *_NAMES, "n_layers", "weight")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def _restored(cls, weight: FactorizedTensor, **options: Any) -> Self:
        return cls(**options, factorization=weight)

    def reset_parameters(self, rng: np.random.Generator | None = None, *, std: float | str | None = None) -> None:
        """Draw the table anew; ``std`` as in the constructor."""
        width = self.num_embeddings
        draw_weight("FactorizedEmbedding", self.weight, std, width, 1.0 / math.sqrt(3.0 * width), rng)

    @property
    def rank(self) -> Any:
        """Rank of the factorization."""
        return self.weight.rank

    def plan(self, shape: Sequence[int], training: bool = False, indices: Any = 0) -> Plan:
        """The contraction of the rows that look-ups of this shape take: its steps, cost and memory."""
        n = math.prod(planned_shape("FactorizedEmbedding.plan", shape))
        place = joint_index("FactorizedEmbedding", indices, self.n_layers)
        factors = self.weight._operands_vjp(place, drop=False)[0]
        equation, taken = self._lookup
        shapes = [
            (n, *f.shape[: t.start], *f.shape[t.stop :]) if t else tuple(f.shape)
            for f, t in zip(factors, taken, strict=True)
        ]
        return linear_plan(equation, tuple(shapes), "auto", training, *target_of(factors[0]))

    @property
    def _lookup(self) -> tuple[str, tuple[range, ...]]:
        """The equation of a look-up, and the axes of each factor that number vectors."""
        return _lookup_equation(
            self.weight.name, len(self.tensorized_num_embeddings), len(self.tensorized_embedding_dim)
        )

    def __call__(self, x: Array, indices: Any = 0) -> Array:
        """:meth:`forward`."""
        return self.forward(x, indices)

    def forward(self, x: Array, indices: Any = 0) -> Array:
        """Vectors of one table by their numbers."""
        return self._run(x, indices, training=False)[0]

    def vjp(self, x: Array, indices: Any = 0) -> tuple[Array, Pullback]:
        """Value and pullback, which adds to the gradients of the factors and returns None."""
        return self._run(x, indices, training=True)

    def _run(self, x: Array, indices: Any, training: bool) -> tuple[Array, Pullback]:
        shape = self._checked(x)
        factors, accumulate = self.weight._operands_vjp(joint_index("FactorizedEmbedding", indices, self.n_layers))
        (equation, taken), xp = self._lookup, namespace(x, *factors)
        number, left = xp.reshape(x, (-1,)), self.num_embeddings
        rows: list[Array] = []
        backs: list[Pullback | None] = []
        for factor, axes in zip(factors, taken, strict=True):
            if not axes:
                rows.append(factor)
                backs.append(None)
                continue
            size = math.prod(factor.shape[axes.start : axes.stop])
            left //= size
            chosen, back = _rows(xp, factor, axes, (number // left) % size)
            rows.append(chosen)
            backs.append(back)
        todo = linear_plan(equation, tuple(tuple(r.shape) for r in rows), "auto", training, *target_of(rows[0]))
        if not training:
            return xp.reshape(todo(*rows), (*shape, self.embedding_dim)), lambda dy: None
        result, contraction_back = todo.vjp(*rows)

        def pullback(dy: Array) -> None:
            if shape_of("FactorizedEmbedding: the gradient", dy) != (*shape, self.embedding_dim):
                raise ShapeError(
                    f"FactorizedEmbedding: the gradient has shape {tuple(dy.shape)}, the result had "
                    f"{(*shape, self.embedding_dim)}"
                )
            gradients = contraction_back(xp.reshape(dy, result.shape))
            accumulate([d if back is None else back(d) for d, back in zip(gradients, backs, strict=True)])

        return xp.reshape(result, (*shape, self.embedding_dim)), pullback

    def _checked(self, x: Array) -> Sizes:
        """The shape of the numbers; raises if they are not whole, or outside the table."""
        shape = shape_of("FactorizedEmbedding", x)
        if kind_of(x) not in "iu":
            raise TypeError(f"FactorizedEmbedding: x holds {x.dtype}, expected whole numbers of vectors")
        xp = namespace(x)
        low, high = (int(xp.min(x)), int(xp.max(x))) if math.prod(shape) else (0, 0)
        if low < 0 or high >= self.num_embeddings:
            raise IndexError(
                f"FactorizedEmbedding: x holds numbers from {low} to {high}, expected 0 to {self.num_embeddings - 1}"
            )
        return shape

    def table(self, indices: Any = 0) -> Array:
        """The dense table (num_embeddings, embedding_dim)."""
        place = joint_index("FactorizedEmbedding", indices, self.n_layers)
        dense = type(self.weight).of(self.weight.factors_vjp(place, drop=False)[0]).to_tensor()
        return namespace(dense).reshape(dense, (self.num_embeddings, self.embedding_dim))

    def get_embedding(self, indices: Any) -> SubFactorizedEmbedding:
        """One table by itself, which shares the parameters and their gradients."""
        if self.n_layers == 1:
            raise ValueError(
                "FactorizedEmbedding: holds one table, which is the layer itself; get_embedding is for joint ones"
            )
        return SubFactorizedEmbedding(self, joint_index("FactorizedEmbedding", indices, self.n_layers)[0])

    def __getitem__(self, indices: Any) -> SubFactorizedEmbedding:
        return self.get_embedding(indices)

    @classmethod
    def from_embedding(
        cls, embedding_layer: Any, rank: Any = 8, factorization: str = "blocktt", n_tensorized_modes: int = 2,
        decompose_weights: bool = True, auto_tensorize: bool | None = None,
        decomposition_kwargs: Mapping[str, Any] | None = None, **options: Any,
    ) -> Self:  # fmt: skip
        """The factorized form of a table: a layer with ``weight`` (num_embeddings, embedding_dim), ours or torch's.

        decompose_weights : False draws the table anew, of that size
        options : of the constructor    decomposition_kwargs : of the decomposition, see :mod:`growarray.decompose`

        Raises ValueError for a layer that changes its vectors at a look-up (``max_norm``).

        >>> from growarray import nn
        >>> dense = nn.Linear(6, 12, rng=np.random.default_rng(0))  # anything whose weight is a matrix
        >>> FactorizedEmbedding.from_embedding(dense, rank=3).weight
        BlockTTTensor(shape=(3, 4, 2, 3), rank=(1, 3, 1))
        """
        arguments = (rank, factorization, n_tensorized_modes, decompose_weights, auto_tensorize, decomposition_kwargs)
        return cls.from_embedding_list([embedding_layer], *arguments, **options)

    @classmethod
    def from_embedding_list(
        cls, embedding_layer_list: Sequence[Any], rank: Any = 8, factorization: str = "blocktt",
        n_tensorized_modes: int = 2, decompose_weights: bool = True, auto_tensorize: bool | None = None,
        decomposition_kwargs: Mapping[str, Any] | None = None, **options: Any,
    ) -> Self:  # fmt: skip
        """Tables of one size as a joint layer with one factorization, see :meth:`from_embedding`."""
        tables = [dense.weight for dense in read_linears("from_embedding", embedding_layer_list, bias=False)]
        if any(getattr(layer, "max_norm", None) is not None for layer in embedding_layer_list):
            raise ValueError("from_embedding: a layer has max_norm, which changes vectors at each look-up; set it None")
        rows, columns = map(int, tables[0].shape)
        sides = [options.pop(name, None) for name in _NAMES]
        inner, outer = split_shape(
            "from_embedding", _NAMES, (rows, columns), auto_tensorize, n_tensorized_modes, *sides
        )
        named: dict[str, Any] = dict(zip(_NAMES, (inner, outer), strict=True), n_layers=len(tables))
        if not decompose_weights:
            return cls(rows, columns, **named, factorization=factorization, rank=rank, **options)
        modes, dtype = (*inner, *outer), options.pop("dtype", None)
        scheme = Scheme(rank, factorization, decomposition_kwargs, dtype)
        weight = fitted_weight("from_embedding", tables, modes, scheme)
        return cls(rows, columns, **named, factorization=weight, **options)

    def extra_repr(self) -> str:
        """Sizes, modes and rank."""
        parts = [f"{self.num_embeddings}, {self.embedding_dim}", f"factorization={self.weight.name}"]
        parts += [f"{self.tensorized_num_embeddings} x {self.tensorized_embedding_dim}", f"rank={self.rank}"]
        return ", ".join([*parts, *([f"n_layers={self.n_layers}"] if self.n_layers > 1 else [])])


def _rows(xp: Any, factor: Array, axes: range, places: Array) -> tuple[Array, Pullback]:
    """What a factor has at places of some of its axes, the places first, and the way back."""
    others, count = [i for i in range(factor.ndim) if i not in axes], len(axes)
    order = (*axes, *others)
    transposed = xp.permute_dims(factor, order)
    rows, back = gather(xp, xp.reshape(transposed, (-1, *transposed.shape[count:])), places)
    home = tuple(order.index(i) for i in range(factor.ndim))
    return rows, lambda d: xp.permute_dims(xp.reshape(back(d)[0], transposed.shape), home)


@lru_cache
def _lookup_equation(name: str, inner: int, outer: int) -> tuple[str, tuple[range, ...]]:
    """The equation of a look-up, and the axes of each factor that are modes of its number: neighbours, or none."""
    numbers, vector = [f"v{k}" for k in range(inner)], [f"e{k}" for k in range(outer)]
    terms, taken = [], []
    for term in FactorizedTensor.kind(name).format.terms([*numbers, *vector]):
        at = [i for i, mode in enumerate(term) if mode in numbers]
        axes = range(at[0], at[-1] + 1) if at else range(0)
        taken.append(axes)
        terms.append(("n", *term[: axes.start], *term[axes.stop :]) if at else term)
    return f"{', '.join(map(' '.join, terms))} -> n {' '.join(vector)}", tuple(taken)
