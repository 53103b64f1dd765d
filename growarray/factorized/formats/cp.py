"""The CP format (canonical polyadic): a sum of outer products.

r rank · m0, m1, … modes of the tensor: ``r, m0 r, m1 r, … -> m0 m1 …``
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, namespace
from growarray.decompose.als import balanced
from growarray.decompose.cp import cp
from growarray.decompose.rank import factor_std, largest_cp_rank, validate_cp_rank
from growarray.errors import ShapeError
from growarray.factorized.equation import kernel_modes
from growarray.factorized.format import Arrays, Fit
from growarray.factorized.formats.bases import (
    CentredFormat,
    CentredTensor,
    check_mode,
    factor_dict,
    insertion,
    no_fixed_modes,
    parameter,
)
from growarray.factorized.increment import Added, Goal, Increment, fit, padded
from growarray.factorized.ranks import RankAxes
from growarray.factorized.spectra import Spectra, geometric
from growarray.nn.module import Parameter

_MANY = 256  # components above which sweeps take minutes, each with a cubic solve
_QUICK: dict[str, Any] = {"init": "random", "starts": 1, "max_iterations": 30, "correct": False}
_EFFORT = 1e9  # entries of the kernel times rank times sweeps that one decomposition of a search may take: seconds
_CORRECTED = 1e7  # entries times rank up to which degenerate components are corrected in a search


class _Format(CentredFormat):
    name = "CP"
    decomposition = staticmethod(cp)
    growable = True

    def terms(self, modes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return (("r",), *((mode, "r") for mode in modes))

    def rank_axes(self, order: int) -> RankAxes:
        """The only rank: of the weights, then of the factors."""
        return (((0, 0), *((factor, 1) for factor in range(1, order + 1))),)

    def rank_of(self, sizes: Sequence[int]) -> int:
        return sizes[0]

    def factor_shapes(self, shape: Sequence[int], rank: Any) -> tuple[tuple[int, ...], ...]:
        return ((rank,), *((size, rank) for size in shape))

    def validate_rank(self, shape: Sequence[int], rank: Any, fixed_modes: Sequence[int] | None = None) -> int:
        """One number, at least 1."""
        no_fixed_modes(self.name, fixed_modes)
        return validate_cp_rank(shape, rank)

    def largest_rank(self, shape: Sequence[int]) -> int:
        return largest_cp_rank(shape)

    def fit(self, tensor: Array, rank: Any, /, **options: Any) -> tuple[Arrays, Fit]:
        """Alternating least squares, :func:`growarray.decompose.cp.cp`; the truncated SVD of a matrix."""
        decomposition = cp(tensor, self.usable_rank(tuple(tensor.shape), rank), **self.fit_options(options))
        fit = Fit(decomposition.errors[-1], len(decomposition.errors), decomposition.reason, decomposition.degeneracy)
        return (decomposition.weights, *decomposition.factors), fit

    def quick_options(self, rank: Any) -> dict[str, Any]:
        """Fewer sweeps, from one random start, of a weight with many components."""
        return dict(_QUICK) if rank > _MANY else {}

    def search_options(self, size: int, rank: Any, rng: np.random.Generator) -> dict[str, Any]:
        """As many sweeps as the time of a search allows."""
        sweeps = int(min(max(_EFFORT // (size * rank), 4), 60))
        starts, correct = int(sweeps == 60), size * rank <= _CORRECTED
        return {"starts": starts, "max_iterations": sweeps, "correct": correct, "rng": rng}

    def candidates(self, spectra: Spectra) -> Iterator[tuple[int, float]]:
        """Between the tail of a balanced unfolding and that of the slices, which r terms reach."""
        shape, cuts = spectra.shape, [*spectra.modes, *spectra.bonds]
        for rank in geometric(min(largest_cp_rank(shape), max(1, math.prod(shape) // (sum(shape) + 1)))):
            least = max(tail.at(rank) for tail in cuts)
            yield rank, (least + spectra.slices.at(rank)) / 2

    def initial_components(
        self, old: list[Array], goal: Goal, by: tuple[int, ...], groups: int, rng: np.random.Generator | None
    ) -> Added:
        """New components with weight 1, their norm shared by the factors."""
        xp, rank = namespace(*old), old[0].shape[0]
        start = cp(goal.dense, by[0], weighted={1: goal.channels(1)}, max_iterations=50, rng=rng)
        factors = [start.factors[0] * start.weights[None, :], *start.factors[1:]]
        modes = kernel_modes(self, goal.dense.ndim - 2)
        increment = Increment(self.terms(modes)[1:], modes[1:], factors, [xp.ones_like(f) for f in factors], 0, groups)
        decrease = fit(goal, increment)
        new = [xp.ones_like(factors[0][0, :]), *balanced(increment.factors)]
        added = [padded(new[0], (rank + by[0],), (rank,))]
        added += [padded(f, (f.shape[0], rank + by[0]), (0, rank)) for f in new[1:]]
        return Added(added, (1,), increment.dense(goal.dense.shape), decrease)

    def factor_std(self, order: int, rank: Any, std: float) -> tuple[float | None, ...]:
        """Weights are one; the factors make the tensor's entries ``std``."""
        return (None, *(factor_std("cp", order, rank, std),) * order)


class CPTensor(CentredTensor):
    """Weights (r,) and one factor (size, r) for each mode.

    >>> import numpy as np
    >>> t = CPTensor(np.ones(2), [np.ones((3, 2)), np.ones((4, 2))])
    >>> t.rank, t.to_tensor()[0].tolist(), list(t.state_dict())
    (2, [2.0, 2.0, 2.0, 2.0], ['weights', 'factors.factor_0', 'factors.factor_1'])
    """

    format = _Format()

    def __init__(self, weights: Array | Parameter, factors: Sequence[Array | Parameter]) -> None:
        self.weights = parameter(weights)
        self.factors = factor_dict("CPTensor", factors, 2)
        for name, factor in self.factors.items():
            if self.weights.shape != factor.shape[1:]:
                raise ShapeError(f"CPTensor: {name} has shape {factor.shape}, the weights {self.weights.shape}")

    @property
    def _centre(self) -> Parameter:
        """The weights."""
        return self.weights

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.weights.shape[0]

    def transduct(self, new_size: int, mode: int, position: int | None = None) -> tuple[Parameter, ...]:
        """Insert a factor of ones, or of ones at ``position``."""
        check_mode("CPTensor", new_size, mode, self.order, position)
        like, xp = self.weights.data, namespace(self.weights.data)
        return self._insert(mode, xp.expand_dims(insertion(new_size, position, like=like), axis=1) * xp.ones_like(like))
