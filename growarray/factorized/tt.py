"""The tensor train: a chain of cores, one for each mode.

m0, m1, … modes of the tensor · b1, b2, … bonds between neighbours: ``m0 b1, b1 m1 b2, … -> m0 m1 …``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.decompose.rank import factor_std, validate_tt_rank
from growarray.decompose.tt import tensor_train
from growarray.errors import ShapeError
from growarray.factorized.fit import Fit, fit_options
from growarray.factorized.index import Item, take
from growarray.factorized.parts import check_mode, factor_dict, inserted, insertion, no_fixed_modes, two_modes
from growarray.factorized.ranks import RankAxes
from growarray.factorized.tensor import FactorizedTensor, run_contraction
from growarray.nn.module import Parameter

__all__ = ["TTTensor"]

Arrays = tuple[Array, ...]


class TTTensor(FactorizedTensor):
    """One core (r_i, size, r_{i+1}) for each mode; the ranks at both ends are 1.

    >>> import numpy as np
    >>> t = TTTensor([np.ones((1, 3, 2)), np.ones((2, 4, 1))])
    >>> t.rank, t.to_tensor()[0].tolist(), list(t.state_dict())
    ((1, 2, 1), [2.0, 2.0, 2.0, 2.0], ['factors.factor_0', 'factors.factor_1'])
    """

    name = "TT"
    output_last = True

    def __init__(self, factors: Sequence[Array | Parameter]) -> None:
        self.factors = factor_dict(factors)
        two_modes("TTTensor", self.factors, 3)
        shapes = [factor.shape for factor in self.factors.values()]
        ends = (shapes[0][0], shapes[-1][2])
        if ends != (1, 1) or any(a[2] != b[0] for a, b in pairwise(shapes)):
            raise ShapeError(
                f"TTTensor: the cores have shapes {shapes}, expected (1, size, r_1), (r_1, size, r_2), … (r_n, size, 1)"
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
        """``m0 b1``, ``b1 m1 b2``, …, without the ends."""
        last = len(modes) - 1
        bonds = [((f"b{i}",) if i else (), (f"b{i + 1}",) if i < last else ()) for i in range(last + 1)]
        return tuple((*left, mode, *right) for mode, (left, right) in zip(modes, bonds, strict=True))

    @classmethod
    def rank_axes(cls, order: int) -> RankAxes:
        """The bonds between neighbours: of the core before, then of the core after."""
        return tuple(((core, 2), (core + 1, 0)) for core in range(order - 1))

    @classmethod
    def operand_shape(cls, part_shape: Sequence[int], part: int, parts: int) -> tuple[int, ...]:
        """The shape of a core without the ends of the chain."""
        return tuple(part_shape[part == 0 : 3 - (part == parts - 1)])

    @classmethod
    def part_shapes(cls, shape: Sequence[int], rank: Any) -> tuple[tuple[int, ...], ...]:
        """(r_i, size, r_{i+1}) for each mode."""
        return tuple(zip(rank[:-1], shape, rank[1:], strict=True))

    @classmethod
    def validate_rank(
        cls, shape: Sequence[int], rank: Any, fixed_modes: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """One number for each bond, and the two ends.

        The original's rule for a share holds from three modes on, and gives a matrix a third of it; here it gets all.
        """
        no_fixed_modes(cls.name, fixed_modes)
        return validate_tt_rank(shape, rank, constant_rank=len(shape) == 2)

    @classmethod
    def usable_rank(cls, shape: Sequence[int], rank: Any) -> tuple[int, ...]:
        """At most the bond before times the mode between, and what the modes behind can use."""
        ranks = [1]
        for k, size in enumerate(shape, start=1):
            ranks.append(min(rank[k], ranks[-1] * size, math.prod(shape[k:])))
        return tuple(ranks)

    @classmethod
    def fit(cls, tensor: Array, rank: Any, /, **options: Any) -> tuple[Arrays, Fit]:
        """TT-SVD, :func:`growarray.decompose.tt.tensor_train`."""
        options = fit_options(cls.name, tensor_train, options)
        found = tensor_train(tensor, cls.usable_rank(tuple(tensor.shape), rank), **options)
        return found.cores, Fit(found.errors[-1], 1, found.reason)

    @classmethod
    def select(cls, arrays: Sequence[Array], items: Sequence[Item]) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
        """Slices of the cores; a single entry is a matrix, multiplied into the last core before it that stays."""
        taken = [take(core, 1, item) for core, item in zip(arrays, items, strict=True)]
        chains = _chains([isinstance(item, int) for item in items])
        made = [
            (taken[chain[0]][0], None) if len(chain) == 1 else run_contraction(equation, [taken[i][0] for i in chain])
            for chain, equation in chains
        ]

        def pullback(d_parts: Arrays) -> Arrays:
            gradients: dict[int, Array] = {}
            for (chain, _), (_, back), d_part in zip(chains, made, d_parts, strict=True):
                gradients |= zip(chain, (d_part,) if back is None else back(d_part), strict=True)
            return tuple(back(gradients[i]) for i, (_, back) in enumerate(taken))

        return tuple(part for part, _ in made), pullback

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each mode."""
        return tuple(core.shape[1] for core in self.factors.values())

    @property
    def rank(self) -> tuple[int, ...]:
        """Size of each bond, with those of one at both ends."""
        return (1, *(core.shape[2] for core in self.factors.values()))

    def part_std(self, std: float) -> tuple[float | None, ...]:
        """The original's formula, which makes the entries smaller than ``std`` by the root of the product of ranks."""
        return (factor_std("tt", self.order, self.rank, std),) * self.order

    def transduct(self, new_size: int, mode: int, position: int | None = None) -> tuple[Parameter, ...]:
        """Insert a core of identities, or of one identity at ``position``."""
        check_mode("TTTensor", new_size, mode, self.order, position)
        self.refuse_lasso("transduct")
        like = self.parts()[0].data
        xp, identity = namespace(like), asarray(np.eye(self.rank[mode]), like=like, dtype=like.dtype)
        along = xp.reshape(insertion(new_size, position, like=like), (1, new_size, 1))
        new = Parameter(along * xp.expand_dims(identity, axis=1))
        self.factors = inserted(self.factors, mode, new)
        return (new,)


def _chains(single: Sequence[bool]) -> list[tuple[list[int], str]]:
    """The cores that become one, and their equation; at least one of ``single`` is false."""
    starts = [i for i, one in enumerate(single) if not one]
    starts[0] = 0
    chains = [list(range(start, stop)) for start, stop in pairwise([*starts, len(single)])]
    return [(chain, _chain_equation([single[i] for i in chain])) for chain in chains]


def _chain_equation(single: Sequence[bool]) -> str:
    """``b0 b1, b1 m b2 -> b0 m b2`` for one single entry before a core that stays."""
    terms = [f"b{i} b{i + 1}" if one else f"b{i} m b{i + 1}" for i, one in enumerate(single)]
    return f"{', '.join(terms)} -> b0 m b{len(single)}"
