"""The Tucker format: a small core with one factor for each mode.

m0, m1, … modes of the tensor · r_m0, r_m1, … their ranks: ``r_m0 r_m1 …, m0 r_m0, m1 r_m1, … -> m0 m1 …``
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, namespace
from growarray.decompose.als import normalised
from growarray.decompose.rank import factor_std, largest_tucker_rank, validate_tucker_rank
from growarray.decompose.tucker import tucker
from growarray.decompose.unfolding import leading, mode_product, unfold
from growarray.decompose.whiten import roots
from growarray.errors import ShapeError
from growarray.factorized.equation import kernel_modes
from growarray.factorized.format import Arrays, Fit
from growarray.factorized.formats.bases import (
    CentredFormat,
    CentredTensor,
    check_mode,
    factor_dict,
    insertion,
    parameter,
)
from growarray.factorized.increment import Added, Goal, Increment, fit, padded
from growarray.factorized.owner import refuse_lasso
from growarray.factorized.parameters import reshape_parameter
from growarray.factorized.ranks import RankAxes
from growarray.factorized.spectra import LEVELS, Spectra
from growarray.nn.module import Parameter


class _Format(CentredFormat):
    name = "Tucker"
    decomposition = staticmethod(tucker)
    growable = True
    mode_ranks = True

    def terms(self, modes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return (tuple(f"r_{mode}" for mode in modes), *((mode, f"r_{mode}") for mode in modes))

    def rank_axes(self, order: int) -> RankAxes:
        """The rank of each mode: of its factor, then of the core."""
        return tuple(((mode + 1, 1), (0, mode)) for mode in range(order))

    def factor_shapes(self, shape: Sequence[int], rank: Any) -> tuple[tuple[int, ...], ...]:
        return (tuple(rank), *zip(shape, rank, strict=True))

    def validate_rank(
        self, shape: Sequence[int], rank: Any, fixed_modes: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """One number for each mode; modes in ``fixed_modes`` keep their size."""
        return validate_tucker_rank(shape, rank, fixed_modes=fixed_modes)

    def largest_rank(self, shape: Sequence[int]) -> tuple[int, ...]:
        return largest_tucker_rank(shape)

    def fit(self, tensor: Array, rank: Any, /, **options: Any) -> tuple[Arrays, Fit]:
        """HOOI, :func:`growarray.decompose.tucker.tucker`."""
        hooi = tucker(tensor, self.usable_rank(tuple(tensor.shape), rank), **self.fit_options(options))
        return (hooi.core, *hooi.factors), Fit(hooi.errors[-1], len(hooi.errors) - 1, hooi.reason)

    def candidates(self, spectra: Spectra) -> Iterator[tuple[tuple[int, ...], float]]:
        """All modes at one level, and the channels alone with the taps whole."""
        shape, whole = spectra.shape, largest_tucker_rank(spectra.shape)
        for level in LEVELS:
            each = [min(t.fewest(level / len(shape)), w) for t, w in zip(spectra.modes, whole, strict=True)]
            channels = [min(t.fewest(level / 2), w) for t, w in zip(spectra.modes[:2], whole, strict=False)]
            for ranks in (tuple(each), (*channels, *whole[2:])):
                limited = tuple(min(r, math.prod(ranks) // r) for r in ranks)  # more than the others span is of no use
                yield limited, min(1.0, sum(t.at(r) for t, r in zip(spectra.modes, limited, strict=True)))

    def initial_components(
        self, old: list[Array], goal: Goal, by: tuple[int, ...], groups: int, rng: np.random.Generator | None
    ) -> Added:
        """New columns for what the old ones do not span, and core entries at every new index."""
        del rng
        xp, (core, *factors) = namespace(*old), old
        root, undo = roots(goal.channels(1))
        rest = mode_product(goal.dense, root, 1)
        wide, masks = [], []
        for mode, (factor, count) in enumerate(zip(factors, by, strict=True)):
            held, _ = xp.linalg.qr(root @ factor if mode == 1 else factor, mode="reduced")
            matrix = unfold(rest, mode)
            gap = matrix - held @ (xp.matrix_transpose(held) @ matrix)
            new = leading(gap, count)[0] if count else gap[:, :0]
            basis = xp.concat([held, new], axis=1)
            rest = mode_product(mode_product(rest, xp.matrix_transpose(basis), mode), basis, mode)
            wide.append(xp.concat([factor, undo @ new if mode == 1 else new], axis=1))
            masks.append(padded(xp.ones_like(new), wide[-1].shape, (0, factor.shape[1])) if count else None)
        free = 1.0 - padded(xp.ones_like(core), [w.shape[1] for w in wide], (0,) * core.ndim)
        modes = kernel_modes(self, core.ndim - 2)
        increment = Increment(self.terms(modes), modes[1:], [xp.zeros_like(free), *wide], [free, *masks], 0, groups)
        increment.improve(goal, 0)
        decrease = fit(goal, increment)
        core, added = increment.factors[0], []
        for mode, (factor, grown) in enumerate(zip(factors, increment.factors[1:], strict=True)):
            rank = factor.shape[1]
            lengths, units = normalised([grown[:, rank:]])
            usual = float(xp.sqrt(xp.mean(xp.sum(factor * factor, axis=0)))) or 1.0  # the length of the old columns
            added.append(padded(units[0] * usual, grown.shape, (0, rank)))
            scales = xp.concat([xp.ones_like(factor[0, :]), lengths / usual])
            core = core * xp.reshape(scales, (-1, *(1,) * (core.ndim - mode - 1)))
        return Added([core, *added], (0,), increment.dense(goal.dense.shape), decrease)

    def factor_std(self, order: int, rank: Any, std: float) -> tuple[float | None, ...]:
        """Core and factors together make the tensor's entries ``std``."""
        return (factor_std("tucker", order, rank, std),) * (order + 1)


class TuckerTensor(CentredTensor):
    """Core (r_0, r_1, …) and one factor (size, r_i) for each mode.

    >>> import numpy as np
    >>> t = TuckerTensor(np.ones((2, 1)), [np.ones((3, 2)), np.ones((4, 1))])
    >>> t.rank, t.to_tensor()[0].tolist(), list(t.state_dict())
    ((2, 1), [2.0, 2.0, 2.0, 2.0], ['core', 'factors.factor_0', 'factors.factor_1'])
    """

    format = _Format()

    def __init__(self, core: Array | Parameter, factors: Sequence[Array | Parameter]) -> None:
        self.core = parameter(core)
        self.factors = factor_dict("TuckerTensor", factors, 2)
        ranks = tuple(factor.shape[1] for factor in self.factors.values())
        if self.core.shape != ranks:
            raise ShapeError(f"TuckerTensor: the core has shape {self.core.shape}, the factors have ranks {ranks}")

    @property
    def _centre(self) -> Parameter:
        """The core."""
        return self.core

    @property
    def rank(self) -> tuple[int, ...]:
        """Size of each mode of the core."""
        return self.core.shape

    def transduct(self, new_size: int, mode: int, position: int | None = None) -> tuple[Parameter, ...]:
        """Insert a factor of rank 1, and a mode of one entry into the core."""
        check_mode("TuckerTensor", new_size, mode, self.order, position)
        refuse_lasso(self, "transduct")
        like = self.core.data
        reshape_parameter(self.core, (*self.rank[:mode], 1, *self.rank[mode:]))
        return self._insert(mode, namespace(like).expand_dims(insertion(new_size, position, like=like), axis=1))
