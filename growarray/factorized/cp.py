"""The CP format (canonical polyadic): a sum of outer products.

r rank · m0, m1, … modes of the tensor: ``r, m0 r, m1 r, … -> m0 m1 …``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from growarray.backend import Array, namespace
from growarray.decompose.cp import cp
from growarray.decompose.rank import factor_std, largest_cp_rank, validate_cp_rank
from growarray.errors import ShapeError
from growarray.factorized.fit import Fit, fit_options
from growarray.factorized.index import Item, take
from growarray.factorized.parts import (
    check_mode,
    factor_dict,
    inserted,
    insertion,
    no_fixed_modes,
    parameter,
    two_modes,
)
from growarray.factorized.ranks import RankAxes
from growarray.factorized.tensor import FactorizedTensor, run_contraction
from growarray.nn.module import Parameter

__all__ = ["CPTensor"]

Arrays = tuple[Array, ...]


class CPTensor(FactorizedTensor):
    """Weights (r,) and one factor (size, r) for each mode.

    >>> import numpy as np
    >>> t = CPTensor(np.ones(2), [np.ones((3, 2)), np.ones((4, 2))])
    >>> t.rank, t.to_tensor()[0].tolist(), list(t.state_dict())
    (2, [2.0, 2.0, 2.0, 2.0], ['weights', 'factors.factor_0', 'factors.factor_1'])
    """

    name = "CP"

    def __init__(self, weights: Array | Parameter, factors: Sequence[Array | Parameter]) -> None:
        self.weights = parameter(weights)
        self.factors = factor_dict(factors)
        two_modes("CPTensor", self.factors, 2)
        for name, factor in self.factors.items():
            if self.weights.shape != factor.shape[1:]:
                raise ShapeError(f"CPTensor: {name} has shape {factor.shape}, the weights {self.weights.shape}")

    @classmethod
    def of(cls, arrays: Sequence[Array | Parameter]) -> Self:
        """A tensor that holds weights and factors."""
        return cls(arrays[0], arrays[1:])

    def parts(self) -> tuple[Parameter, ...]:
        """Weights, then factors."""
        return (self.weights, *self.factors.values())

    @classmethod
    def terms(cls, modes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """``r``, then ``mode r`` for each mode."""
        return (("r",), *((mode, "r") for mode in modes))

    @classmethod
    def rank_axes(cls, order: int) -> RankAxes:
        """The only rank: of the weights, then of the factors."""
        return (((0, 0), *((part, 1) for part in range(1, order + 1))),)

    @classmethod
    def part_shapes(cls, shape: Sequence[int], rank: Any) -> tuple[tuple[int, ...], ...]:
        """(r,), then (size, r) for each mode."""
        return ((rank,), *((size, rank) for size in shape))

    @classmethod
    def validate_rank(cls, shape: Sequence[int], rank: Any, fixed_modes: Sequence[int] | None = None) -> int:
        """One number, at least 1."""
        no_fixed_modes(cls.name, fixed_modes)
        return validate_cp_rank(shape, rank)

    @classmethod
    def usable_rank(cls, shape: Sequence[int], rank: Any) -> int:
        """At most what every tensor of this shape has."""
        return int(min(rank, largest_cp_rank(shape)))

    @classmethod
    def fit(cls, tensor: Array, rank: Any, /, **options: Any) -> tuple[Arrays, Fit]:
        """Alternating least squares, :func:`growarray.decompose.cp.cp`; the truncated SVD of a matrix."""
        options = fit_options(cls.name, cp, options)
        found = cp(tensor, cls.usable_rank(tuple(tensor.shape), rank), **options)
        fit = Fit(found.errors[-1], len(found.errors), found.reason, found.degeneracy)
        return (found.weights, *found.factors), fit

    @classmethod
    def select(cls, arrays: Sequence[Array], items: Sequence[Item]) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
        """Rows of the factors; those of single entries are multiplied into the weights."""
        taken = [take(factor, 0, item) for factor, item in zip(arrays[1:], items, strict=True)]
        single = [isinstance(item, int) for item in items]
        rows = [part for (part, _), one in zip(taken, single, strict=True) if one]
        equation = f"{', '.join(['r'] * (1 + len(rows)))} -> r"
        weights, back = run_contraction(equation, [arrays[0], *rows]) if rows else (arrays[0], lambda d: (d,))
        kept = tuple(part for (part, _), one in zip(taken, single, strict=True) if not one)

        def pullback(d_parts: Arrays) -> Arrays:
            d_weights, *d_rows = back(d_parts[0])
            singles, others = iter(d_rows), iter(d_parts[1:])
            return (
                d_weights,
                *(b(next(singles if one else others)) for (_, b), one in zip(taken, single, strict=True)),
            )

        return (weights, *kept), pullback

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each mode."""
        return tuple(factor.shape[0] for factor in self.factors.values())

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.weights.shape[0]

    def part_std(self, std: float) -> tuple[float | None, ...]:
        """Weights are one; the factors make the tensor's entries ``std``."""
        return (None, *(factor_std("cp", self.order, self.rank, std),) * self.order)

    def transduct(self, new_size: int, mode: int, position: int | None = None) -> tuple[Parameter, ...]:
        """Insert a factor of ones, or of ones at ``position``."""
        check_mode("CPTensor", new_size, mode, self.order, position)
        like, xp = self.weights.data, namespace(self.weights.data)
        new = Parameter(xp.expand_dims(insertion(new_size, position, like=like), axis=1) * xp.ones_like(like))
        self.factors = inserted(self.factors, mode, new)
        return (new,)
