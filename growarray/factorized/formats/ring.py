"""The tensor ring: a chain of cores, one for each mode, whose last is bound to the first.

m0, m1, … modes of the tensor · b0, b1, … bonds: ``b0 m0 b1, b1 m1 b2, …, bn mn b0 -> m0 m1 …``
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from growarray.backend import Array, namespace
from growarray.decompose.ring import largest_mode, largest_tr_rank, tensor_ring, usable_tr_rank, validate_tr_rank
from growarray.factorized.equation import kernel_modes
from growarray.factorized.format import Arrays, Fit
from growarray.factorized.formats.bases import ChainFormat, ChainTensor, no_fixed_modes
from growarray.factorized.increment import Added, Goal, Increment, equal_norms, fit, padded
from growarray.factorized.spectra import LEVELS, Spectra


class _Format(ChainFormat):
    name = "TR"
    aliases = ("ring", "tensor_ring", "tensor-ring", "tensorring")
    decomposition = staticmethod(tensor_ring)
    closed = True
    growable = True

    def validate_rank(
        self, shape: Sequence[int], rank: Any, fixed_modes: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """One number for each bond, the first one again at the end."""
        no_fixed_modes(self.name, fixed_modes)
        return validate_tr_rank(shape, rank)

    def largest_rank(self, shape: Sequence[int]) -> tuple[int, ...]:
        return largest_tr_rank(shape)

    def usable_rank(self, shape: Sequence[int], rank: Any) -> tuple[int, ...]:
        """What TR-SVD from the largest mode can use."""
        return usable_tr_rank(shape, rank)

    def usable_growth(self, shape: Sequence[int], rank: tuple[int, ...], by: tuple[int, ...]) -> tuple[int, ...]:
        """All bonds grow, by a ring of their own, unless the old one holds any tensor."""
        if by[0] != by[-1] or 0 in by:
            raise ValueError(
                f"FactorizedConv.grow_rank: by={by}, expected a number of at least 1 for every bond of a tensor ring, "
                "the first one again at the end; its bonds grow together"
            )
        if all(have >= enough for have, enough in zip(rank, largest_tr_rank(shape), strict=True)):
            return (0,) * len(by)
        return usable_tr_rank(shape, by)

    def fit(self, tensor: Array, rank: Any, /, **options: Any) -> tuple[Arrays, Fit]:
        """TR-SVD and alternating least squares, :func:`growarray.decompose.tensor_ring`."""
        options = self.fit_options(options)
        mode = options.get("mode")
        ring = tensor_ring(tensor, usable_tr_rank(tuple(tensor.shape), rank, mode), **options)
        return ring.cores, Fit(ring.errors[-1], len(ring.errors) - 1, ring.reason)

    def candidates(self, spectra: Spectra) -> Iterator[tuple[tuple[int, ...], float]]:
        """Trains from the largest mode, all bonds at one level, and rings whose bonds are alike.

        Between the tail that no ring can beat, of a cut through two bonds at their product, and the sum of the tails
        that the other bonds reach alone.
        """
        shape, start, count = spectra.shape, largest_mode(spectra.shape), len(spectra.shape)
        modes = [(start + k) % count for k in range(count)]
        cuts = [spectra.tail(modes[:k]) for k in range(1, count)]
        asked = [[1, *(tail.fewest(level / len(cuts)) for tail in cuts)] for level in LEVELS]
        asked += [[rank] * count for rank in range(2, math.isqrt(math.prod(shape) // sum(shape)) + 1)]
        for ring in asked:
            ranks = [ring[(k - start) % count] for k in range(count)]
            usable = usable_tr_rank(shape, (*ranks, ranks[0]))
            bonds = [usable[mode] for mode in modes]
            least = max(tail.at(bonds[0] * bond) for tail, bond in zip(cuts, bonds[1:], strict=True))
            most = sum(tail.at(bond) for tail, bond in zip(cuts, bonds[1:], strict=True))
            yield usable, (least + min(1.0, most)) / 2

    def initial_components(
        self, old: list[Array], goal: Goal, by: tuple[int, ...], groups: int, rng: np.random.Generator | None
    ) -> Added:
        """A ring of its own beside the old one."""
        del rng
        cores = tensor_ring(goal.dense, by, weighted={1: goal.channels(1)}).cores
        xp, modes = namespace(*cores), kernel_modes(self, goal.dense.ndim - 2)
        increment = Increment(self.terms(modes), modes[1:], cores, [xp.ones_like(c) for c in cores], 0, groups)
        decrease, shapes = fit(goal, increment), [core.shape for core in old]
        added = []
        for new, (left, size, right), rises in zip(equal_norms(increment.factors), shapes, pairwise(by), strict=True):
            added.append(padded(new, (left + rises[0], size, right + rises[1]), (left, 0, right)))
        return Added(added, (0,), increment.dense(goal.dense.shape), decrease)


class TRTensor(ChainTensor):
    """One core (r_k, size, r_{k+1}) for each mode; the last bond is the first one, (1, size, 1) if the mode is alone.

    Source: Zhao, Zhou, Xie, Zhang, Cichocki 2016, Tensor ring decomposition.

    >>> import numpy as np
    >>> t = TRTensor([np.ones((2, 3, 1)), np.ones((1, 4, 2))])
    >>> t.rank, t.to_tensor()[0].tolist(), list(t.state_dict())
    ((2, 1, 2), [2.0, 2.0, 2.0, 2.0], ['factors.factor_0', 'factors.factor_1'])
    """

    format = _Format()
