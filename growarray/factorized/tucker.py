"""The Tucker format: a small core with one factor for each mode.

m0, m1, … modes of the tensor · r_m0, r_m1, … their ranks: ``r_m0 r_m1 …, m0 r_m0, m1 r_m1, … -> m0 m1 …``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from growarray.backend import Array, namespace
from growarray.decompose.rank import factor_std, largest_tucker_rank, validate_tucker_rank
from growarray.decompose.tucker import tucker
from growarray.errors import ShapeError
from growarray.factorized.fit import Fit, fit_options
from growarray.factorized.index import Item, take
from growarray.factorized.parts import (
    check_mode,
    factor_dict,
    inserted,
    insertion,
    parameter,
    reshape_parameter,
    two_modes,
)
from growarray.factorized.ranks import RankAxes
from growarray.factorized.tensor import FactorizedTensor, run_contraction
from growarray.nn.module import Parameter

__all__ = ["TuckerTensor"]

Arrays = tuple[Array, ...]


class TuckerTensor(FactorizedTensor):
    """Core (r_0, r_1, …) and one factor (size, r_i) for each mode.

    >>> import numpy as np
    >>> t = TuckerTensor(np.ones((2, 1)), [np.ones((3, 2)), np.ones((4, 1))])
    >>> t.rank, t.to_tensor()[0].tolist(), list(t.state_dict())
    ((2, 1), [2.0, 2.0, 2.0, 2.0], ['core', 'factors.factor_0', 'factors.factor_1'])
    """

    name = "Tucker"

    def __init__(self, core: Array | Parameter, factors: Sequence[Array | Parameter]) -> None:
        self.core = parameter(core)
        self.factors = factor_dict(factors)
        two_modes("TuckerTensor", self.factors, 2)
        ranks = tuple(factor.shape[1] for factor in self.factors.values())
        if self.core.shape != ranks:
            raise ShapeError(f"TuckerTensor: the core has shape {self.core.shape}, the factors have ranks {ranks}")

    @classmethod
    def of(cls, arrays: Sequence[Array | Parameter]) -> Self:
        """A tensor that holds core and factors."""
        return cls(arrays[0], arrays[1:])

    def parts(self) -> tuple[Parameter, ...]:
        """Core, then factors."""
        return (self.core, *self.factors.values())

    @classmethod
    def terms(cls, modes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """``r_m0 r_m1 …``, then ``mode r_mode`` for each mode."""
        return (tuple(f"r_{mode}" for mode in modes), *((mode, f"r_{mode}") for mode in modes))

    @classmethod
    def rank_axes(cls, order: int) -> RankAxes:
        """The rank of each mode: of its factor, then of the core."""
        return tuple(((mode + 1, 1), (0, mode)) for mode in range(order))

    @classmethod
    def part_shapes(cls, shape: Sequence[int], rank: Any) -> tuple[tuple[int, ...], ...]:
        """The rank, then (size, r_i) for each mode."""
        return (tuple(rank), *zip(shape, rank, strict=True))

    @classmethod
    def validate_rank(
        cls, shape: Sequence[int], rank: Any, fixed_modes: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """One number for each mode; modes in ``fixed_modes`` keep their size."""
        return validate_tucker_rank(shape, rank, fixed_modes=fixed_modes)

    @classmethod
    def usable_rank(cls, shape: Sequence[int], rank: Any) -> tuple[int, ...]:
        """At most the rank that each unfolding can have."""
        return tuple(map(min, rank, largest_tucker_rank(shape)))

    @classmethod
    def fit(cls, tensor: Array, rank: Any, /, **options: Any) -> tuple[Arrays, Fit]:
        """HOOI, :func:`growarray.decompose.tucker.tucker`."""
        options = fit_options(cls.name, tucker, options)
        found = tucker(tensor, cls.usable_rank(tuple(tensor.shape), rank), **options)
        return (found.core, *found.factors), Fit(found.errors[-1], len(found.errors) - 1, found.reason)

    @classmethod
    def select(cls, arrays: Sequence[Array], items: Sequence[Item]) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
        """Rows of the factors; those of single entries are contracted with the core."""
        taken = [take(factor, 0, item) for factor, item in zip(arrays[1:], items, strict=True)]
        single = [isinstance(item, int) for item in items]
        rows = [part for (part, _), one in zip(taken, single, strict=True) if one]
        ranks = [f"r{i}" for i in range(len(items))]
        picked = [rank for rank, one in zip(ranks, single, strict=True) if one]
        rest = [rank for rank, one in zip(ranks, single, strict=True) if not one]
        equation = f"{', '.join([' '.join(ranks), *picked])} -> {' '.join(rest)}"
        core, back = run_contraction(equation, [arrays[0], *rows]) if rows else (arrays[0], lambda d: (d,))
        kept = tuple(part for (part, _), one in zip(taken, single, strict=True) if not one)

        def pullback(d_parts: Arrays) -> Arrays:
            d_core, *d_rows = back(d_parts[0])
            singles, others = iter(d_rows), iter(d_parts[1:])
            return (d_core, *(b(next(singles if one else others)) for (_, b), one in zip(taken, single, strict=True)))

        return (core, *kept), pullback

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each mode."""
        return tuple(factor.shape[0] for factor in self.factors.values())

    @property
    def rank(self) -> tuple[int, ...]:
        """Size of each mode of the core."""
        return self.core.shape

    def part_std(self, std: float) -> tuple[float | None, ...]:
        """Core and factors together make the tensor's entries ``std``."""
        return (factor_std("tucker", self.order, self.rank, std),) * (self.order + 1)

    def transduct(self, new_size: int, mode: int, position: int | None = None) -> tuple[Parameter, ...]:
        """Insert a factor of rank 1, and a mode of one entry into the core."""
        check_mode("TuckerTensor", new_size, mode, self.order, position)
        self.refuse_lasso("transduct")
        like = self.core.data
        new = Parameter(namespace(like).expand_dims(insertion(new_size, position, like=like), axis=1))
        reshape_parameter(self.core, (*self.rank[:mode], 1, *self.rank[mode:]))
        self.factors = inserted(self.factors, mode, new)
        return (new,)
