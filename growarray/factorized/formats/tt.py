"""The tensor train: a chain of cores, one for each mode.

m0, m1, … modes of the tensor · b1, b2, … bonds between neighbours: ``m0 b1, b1 m1 b2, … -> m0 m1 …``
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, namespace
from growarray.decompose.rank import factor_std, largest_tt_rank, validate_tt_rank
from growarray.decompose.tt import tensor_train
from growarray.decompose.unfolding import mode_product
from growarray.factorized.equation import kernel_modes
from growarray.factorized.format import Arrays, Fit
from growarray.factorized.formats.bases import ChainFormat, ChainTensor, no_fixed_modes
from growarray.factorized.increment import Added, Goal, Increment, equal_norms, fit, padded
from growarray.factorized.spectra import LEVELS, Spectra


class _Format(ChainFormat):
    name = "TT"
    decomposition = staticmethod(tensor_train)
    growable = True
    output_last = True

    def validate_rank(
        self, shape: Sequence[int], rank: Any, fixed_modes: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """One number for each bond, and the two ends.

        The original's rule for a share holds from three modes on, and gives a matrix a third of it; here it gets all.
        """
        no_fixed_modes(self.name, fixed_modes)
        return validate_tt_rank(shape, rank, constant_rank=len(shape) == 2)

    def largest_rank(self, shape: Sequence[int]) -> tuple[int, ...]:
        return largest_tt_rank(shape)

    def usable_rank(self, shape: Sequence[int], rank: Any) -> tuple[int, ...]:
        """At most the bond before times the mode between, and what the modes behind can use."""
        return validate_tt_rank(shape, rank, allow_overparametrization=False)

    def usable_growth(self, shape: Sequence[int], rank: Any, by: tuple[int, ...]) -> tuple[int, ...]:
        """What bonds can add beside neighbours that add this much, or run through the old rank if they add nothing."""
        usable = list(super().usable_growth(shape, rank, by))
        for k in range(1, len(shape)):
            usable[k] = min(usable[k], (usable[k - 1] or rank[k - 1]) * shape[k - 1])
        for k in range(len(shape) - 1, 0, -1):
            usable[k] = min(usable[k], (usable[k + 1] or rank[k + 1]) * shape[k])
        return tuple(usable)

    def fit(self, tensor: Array, rank: Any, /, **options: Any) -> tuple[Arrays, Fit]:
        """TT-SVD, :func:`growarray.decompose.tt.tensor_train`."""
        train = tensor_train(tensor, self.usable_rank(tuple(tensor.shape), rank), **self.fit_options(options))
        return train.cores, Fit(train.errors[-1], 1, train.reason)

    def candidates(self, spectra: Spectra) -> Iterator[tuple[tuple[int, ...], float]]:
        """All bonds at one level."""
        sizes = (*spectra.shape[1:], spectra.shape[0])
        for level in LEVELS:
            fewest = [tail.fewest(level / len(spectra.bonds)) for tail in spectra.bonds]
            ranks = self.usable_rank(sizes, (1, *fewest, 1))
            yield ranks, min(1.0, sum(t.at(r) for t, r in zip(spectra.bonds, ranks[1:-1], strict=True)))

    def initial_components(
        self, old: list[Array], goal: Goal, by: tuple[int, ...], groups: int, rng: np.random.Generator | None
    ) -> Added:
        """A train of its own beside the old one; at bonds that keep their rank it runs through the old cores.

        Each run of bonds that grow side by side is a change of its own, fitted to what the runs before it leave.
        """
        del rng
        xp, runs = namespace(*old), _runs(by)
        shapes = [(core.shape[0] + by[k], core.shape[1], core.shape[2] + by[k + 1]) for k, core in enumerate(old)]
        added = [xp.zeros(shape, dtype=xp.float64, device=old[0].device) for shape in shapes]
        rest, change, decrease = goal, xp.zeros_like(goal.dense), 0.0
        for first, last in runs:
            increment = self._train(old, rest, by, (first, last), groups)
            decrease += fit(rest, increment)
            for k, core in enumerate(_run_cores(increment.factors, old, by, (first, last)), start=first):
                start = (old[k].shape[0] if by[k] else 0, 0, old[k].shape[2] if by[k + 1] else 0)
                added[k] = padded(core, shapes[k], start)
            step = increment.dense(goal.dense.shape)
            change, rest = change + step, rest.left(step)
        levers = tuple(last for _, last in runs)
        if len(runs) > 1:  # the changes overlap: their decreases do not add up to the slope along the sum
            overlap, square = goal.measured(change)
            length = overlap / square if square > 0.0 else 0.0
            for k in levers:
                added[k] = added[k] * length
            change, decrease = change * length, overlap * length
        return Added(added, levers, change, decrease)

    def _train(self, old: list[Array], goal: Goal, by: Sequence[int], run: tuple[int, int], groups: int) -> Increment:
        """Old cores before and after a run, and between them the train of what they leave of the optimal change."""
        xp, (first, last) = namespace(*old), run
        target = xp.moveaxis(goal.dense, 0, -1)
        sizes = tuple(target.shape)
        left, right = _chain(old[:first], last=True), _chain(old[last + 1 :], last=False)
        middle = xp.reshape(target, (math.prod(sizes[:first]), -1, math.prod(sizes[last + 1 :])))
        if first:
            middle = mode_product(middle, xp.linalg.pinv(left), 0)
        if last + 1 < len(old):
            middle = mode_product(middle, xp.matrix_transpose(xp.linalg.pinv(right)), 2)
        inner = list(sizes[first : last + 1])
        inner[0], inner[-1] = inner[0] * middle.shape[0], inner[-1] * middle.shape[2]
        weighted = {} if first else {0: goal.channels(1)}
        fitted = tensor_train(xp.reshape(middle, tuple(inner)), (1, *by[first + 1 : last + 1], 1), weighted=weighted)
        cores = [*old[:first], *fitted.cores, *old[last + 1 :]]
        edges = [*(by[k] if first < k <= last else c.shape[0] for k, c in enumerate(old)), 1]
        shaped = [xp.reshape(c, (edges[k], sizes[k], edges[k + 1])) for k, c in enumerate(cores)]
        factors = self.operands(shaped)
        free = [xp.ones_like(f) if first <= k <= last else None for k, f in enumerate(factors)]
        modes = kernel_modes(self, len(sizes) - 2)
        return Increment(self.terms(modes), modes[:-1], factors, free, last, groups)

    def factor_std(self, order: int, rank: Any, std: float) -> tuple[float | None, ...]:
        """The original's formula, which makes the entries smaller than ``std`` by the root of the product of ranks."""
        return (factor_std("tt", order, rank, std),) * order


class TTTensor(ChainTensor):
    """One core (r_i, size, r_{i+1}) for each mode; the ranks at both ends are 1.

    >>> import numpy as np
    >>> t = TTTensor([np.ones((1, 3, 2)), np.ones((2, 4, 1))])
    >>> t.rank, t.to_tensor()[0].tolist(), list(t.state_dict())
    ((1, 2, 1), [2.0, 2.0, 2.0, 2.0], ['factors.factor_0', 'factors.factor_1'])
    """

    format = _Format()


def _runs(by: Sequence[int]) -> list[tuple[int, int]]:
    """First and last core of each run of bonds that grow side by side.

    >>> _runs((0, 2, 2, 0, 1, 0))
    [(0, 2), (3, 4)]
    """
    grown = [k for k, b in enumerate(by) if b]
    starts = [k for k in grown if not by[k - 1]]
    ends = [k for k in grown if not by[k + 1]]
    return [(start - 1, end) for start, end in zip(starts, ends, strict=True)]


def _run_cores(factors: Sequence[Array], old: Sequence[Array], by: Sequence[int], run: tuple[int, int]) -> list[Array]:
    """New cores (r_i, size, r_{i+1}) of a run, all of one norm; a bond that keeps its rank has the old one."""
    xp, (first, last) = namespace(*old), run
    cores = []
    for k in range(first, last + 1):
        before, size, after = old[k].shape
        cores.append(xp.reshape(factors[k], (by[k] or before, size, by[k + 1] or after)))
    return equal_norms(cores)


def _chain(cores: Sequence[Array], *, last: bool) -> Array:
    """Cores multiplied out: (positions, rank) with ``last``, else (rank, positions)."""
    if not cores:
        return None
    xp, product = namespace(*cores), cores[0]
    for core in cores[1:]:
        flat = xp.reshape(product, (-1, core.shape[0])) @ xp.reshape(core, (core.shape[0], -1))
        product = xp.reshape(flat, (product.shape[0], -1, core.shape[2]))
    return xp.reshape(product, (-1, product.shape[2]) if last else (product.shape[0], -1))
