"""The tensor train of a matrix: a chain of cores, each with one mode of the rows and one of the columns.

m0 … of the rows, mk … of the columns · b1, b2, … bonds: ``m0 mk b1, b1 m1 mk+1 b2, … -> m0 m1 … mk mk+1 …``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Self

from growarray.backend import Array, namespace
from growarray.errors import ShapeError
from growarray.factorized.fit import Fit
from growarray.factorized.index import Item, take
from growarray.factorized.parts import factor_dict, no_fixed_modes, two_modes
from growarray.factorized.ranks import RankAxes
from growarray.factorized.tensor import FactorizedTensor
from growarray.factorized.tt import TTTensor
from growarray.nn.module import Parameter

__all__ = ["BlockTTTensor"]

Arrays = tuple[Array, ...]


class BlockTTTensor(FactorizedTensor):
    """One core (r_i, row size, column size, r_{i+1}) for each pair of modes; the ranks at both ends are 1.

    A tensor of 2 k modes, those of the rows first, so that mode i stands beside mode k + i. Indices are slices only.
    Source: Oseledets, "Approximation of 2^d x 2^d matrices using tensor decomposition", 2010; TensorLy-Torch's BlockTT.

    >>> import numpy as np
    >>> t = BlockTTTensor([np.ones((1, 2, 3, 2)), np.ones((2, 4, 5, 1))])
    >>> t.shape, t.rank, t.to_tensor()[0, 0, 0].tolist()
    ((2, 4, 3, 5), (1, 2, 1), [2.0, 2.0, 2.0, 2.0, 2.0])
    """

    name = "BlockTT"

    def __init__(self, factors: Sequence[Array | Parameter]) -> None:
        self.factors = factor_dict(factors)
        two_modes("BlockTTTensor", self.factors, 4)
        shapes = [factor.shape for factor in self.factors.values()]
        ends = (shapes[0][0], shapes[-1][3])
        if ends != (1, 1) or any(a[3] != b[0] for a, b in pairwise(shapes)):
            raise ShapeError(
                f"BlockTTTensor: the cores have shapes {shapes}, expected (1, row, column, r_1), "
                "(r_1, row, column, r_2), … (r_n, row, column, 1)"
            )

    @classmethod
    def of(cls, arrays: Sequence[Array | Parameter]) -> Self:
        """A tensor that holds these cores."""
        return cls(arrays)

    def parts(self) -> tuple[Parameter, ...]:
        """The cores."""
        return tuple(self.factors.values())

    @classmethod
    def terms(cls, modes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """``m0 mk b1``, ``b1 m1 mk+1 b2``, …, without the ends."""
        pairs = _pairs(modes)
        last = len(pairs) - 1
        bonds = [((f"b{i}",) if i else (), (f"b{i + 1}",) if i < last else ()) for i in range(last + 1)]
        return tuple((*left, *pair, *right) for pair, (left, right) in zip(pairs, bonds, strict=True))

    @classmethod
    def rank_axes(cls, order: int) -> RankAxes:
        """The bonds between neighbours: of the core before, then of the core after."""
        return tuple(((core, 3), (core + 1, 0)) for core in range(order // 2 - 1))

    @classmethod
    def operand_shape(cls, part_shape: Sequence[int], part: int, parts: int) -> tuple[int, ...]:
        """The shape of a core without the ends of the chain."""
        return tuple(part_shape[part == 0 : 4 - (part == parts - 1)])

    @classmethod
    def part_shapes(cls, shape: Sequence[int], rank: Any) -> tuple[tuple[int, ...], ...]:
        """(r_i, row size, column size, r_{i+1}) for each pair of modes."""
        return tuple((left, *pair, right) for left, pair, right in zip(rank[:-1], _pairs(shape), rank[1:], strict=True))

    @classmethod
    def validate_rank(
        cls, shape: Sequence[int], rank: Any, fixed_modes: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """One number for each bond, and the two ends; those of a tensor train over the pairs of modes."""
        no_fixed_modes(cls.name, fixed_modes)
        return TTTensor.validate_rank([math.prod(pair) for pair in _pairs(shape)], rank)

    @classmethod
    def usable_rank(cls, shape: Sequence[int], rank: Any) -> tuple[int, ...]:
        """That of a tensor train over the pairs of modes."""
        return TTTensor.usable_rank(list(map(math.prod, _pairs(shape))), rank)

    @classmethod
    def fit(cls, tensor: Array, rank: Any, /, **options: Any) -> tuple[Arrays, Fit]:
        """TT-SVD over the pairs of modes, :func:`growarray.decompose.tt.tensor_train`."""
        xp, pairs = namespace(tensor), _pairs(tuple(tensor.shape))
        paired = xp.permute_dims(tensor, tuple(axis for pair in _pairs(range(tensor.ndim)) for axis in pair))
        cores, fit = TTTensor.fit(xp.reshape(paired, tuple(map(math.prod, pairs))), rank, **options)
        shapes = [(core.shape[0], *pair, core.shape[2]) for core, pair in zip(cores, pairs, strict=True)]
        return tuple(xp.reshape(core, shape) for core, shape in zip(cores, shapes, strict=True)), fit

    @classmethod
    def select(cls, arrays: Sequence[Array], items: Sequence[Item]) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
        """Slices of the cores; a single entry would leave a core without its pair, and raises NotImplementedError."""
        if not all(isinstance(item, slice) for item in items):
            raise NotImplementedError("BlockTT: an integer index leaves a mode without its pair; index to_tensor()")
        made = []
        for core, (row, column) in zip(arrays, _pairs(items), strict=True):
            rows, row_back = take(core, 1, row)
            made.append((*take(rows, 2, column), row_back))

        def pullback(d_parts: Arrays) -> Arrays:
            return tuple(first(second(d)) for d, (_, second, first) in zip(d_parts, made, strict=True))

        return tuple(part for part, _, _ in made), pullback

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each mode, those of the rows first."""
        shapes = [core.shape for core in self.factors.values()]
        return (*(s[1] for s in shapes), *(s[2] for s in shapes))

    @property
    def rank(self) -> tuple[int, ...]:
        """Size of each bond, with those of one at both ends."""
        return (1, *(core.shape[3] for core in self.factors.values()))

    def part_std(self, std: float) -> tuple[float | None, ...]:
        """The cores together make the tensor's entries ``std``; an entry is a sum of prod(rank) products."""
        count = len(self.factors)
        return (float((std / math.sqrt(math.prod(self.rank))) ** (1 / count)),) * count

    def transduct(self, new_size: int, mode: int, position: int | None = None) -> tuple[Parameter, ...]:
        """Refused: one more mode would have no pair."""
        raise NotImplementedError("BlockTT: transduct would make a mode without its pair; use CP, Tucker or TT")


def _pairs(values: Sequence[Any]) -> list[tuple[Any, Any]]:
    """The values of the first half beside those of the second."""
    half, odd = divmod(len(values), 2)
    if odd or not half:
        raise ShapeError(
            f"BlockTT: found {len(values)} modes, expected an even number: as many for the rows as for the columns"
        )
    return list(zip(values[:half], values[half:], strict=True))
