"""Rank growth: new components for a factorized kernel, computed from the statistics that growth collects.

S (g, e, e) second moment of the unfolded input, with a last column of ones for a bias · M (g, e, o) the same input
against the gradient of the loss · g groups. The optimal change of kernel and bias D = (S^-1 M)^T is brought to the
form that the format can add; the change E that is made keeps ``<D - E, E>_S = 0``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from growarray.backend import Array, assign, namespace
from growarray.contraction.checks import is_whole
from growarray.decompose.arguments import is_real
from growarray.decompose.unfolding import fitting_threads
from growarray.errors import GrowthError, shown
from growarray.factorized.increment import Added, Goal
from growarray.factorized.layer import FactorizedKernel
from growarray.factorized.owner import refuse_lasso
from growarray.factorized.ranks import as_tuple
from growarray.factorized.tensor import FactorizedTensor, kinds
from growarray.nn.module import Parameter

_WHERE = "FactorizedConv.grow_rank"
_NOISE = float(np.finfo(np.float64).eps)  # share of the promise under which it is rounding


@runtime_checkable
class RankStatisticsLike(Protocol):
    """What rank growth reads of statistics, as :class:`growarray.growing.RankStatistics` has it."""

    layer: Any
    rank: Any
    samples: int

    def moments(self) -> tuple[Array, Array]:
        """S and M, means over the samples, float64."""

    def optimal_delta(self) -> tuple[Array, float]:
        """D (out_channels, e), to be subtracted, and the decrease of the loss that it promises to first order."""


class _Piece(NamedTuple):
    """An array that the scaling moves: ``base - scaling * along``, in the given regions of a parameter."""

    parameter: Parameter
    regions: tuple[Any, ...]
    base: Array
    along: Array

    def values(self, scaling: float) -> Array:
        """The whole parameter at a scaling, in its dtype; only what is in the regions counts."""
        xp = namespace(self.base)
        return xp.astype(self.base - scaling * self.along, self.parameter.data.dtype)


@dataclass
class RankGrowth:
    """What :meth:`FactorizedConv.grow_rank` did, and what it promises.

    before, rank : of the kernel, before and after    scaling : of the new components, see :meth:`rescale`
    first_order_decrease : ``-dL/dscaling`` at 0, L the mean loss over the samples of the statistics
    full_decrease : the same for the optimal change without a format, all that this layer could promise
    """

    before: Any
    rank: Any
    first_order_decrease: float
    full_decrease: float
    scaling: float
    _pieces: tuple[_Piece, ...] = field(default=(), repr=False)

    @property
    def share(self) -> float:
        """How much of the promise of the optimal change the new components keep, 0 to 1."""
        return self.first_order_decrease / self.full_decrease if self.full_decrease > 0 else 0.0

    def predicted_decrease(self, scaling: float | None = None) -> float:
        """``(t - t^2 / 2) first_order_decrease`` at scaling t: exact if the loss is half the squared error of the
        layer's output, since the new components are the least-squares fit there; elsewhere the slope at 0 is.

        A tensor train with separate runs of bonds grown at once has terms in t^2 more.
        """
        t = self.scaling if scaling is None else scaling
        return (t - t * t / 2) * self.first_order_decrease

    def rescale(self, scaling: float) -> None:
        """Give the new components, and the bias that moved with them, another scaling: for a line search.

        At 0 the layer computes what it did before, with the new ranks, and their gradient is not zero.

        Raises GrowthError: the layer was trained or changed since it grew.
        """
        t = _checked_scaling(scaling)
        for piece in self._pieces:
            now, xp = piece.parameter.data, namespace(piece.parameter.data)
            same = tuple(now.shape) == tuple(piece.base.shape)
            then = piece.values(self.scaling) if same else None
            if then is None or not all(bool(xp.all(now[at] == then[at])) for at in piece.regions):
                raise GrowthError("RankGrowth.rescale: the layer changed since it grew; rescale before training on")
        for piece in self._pieces:
            now = namespace(piece.parameter.data).asarray(piece.parameter.data, copy=True)
            values = piece.values(t)
            for at in piece.regions:
                now = assign(now, at, values[at])
            piece.parameter.data = now
        self.scaling = t


def grow_rank(
    conv: FactorizedKernel, statistics: RankStatisticsLike, by: int | Sequence[int] = 1, *, scaling: float = 1.0,
    rng: np.random.Generator | None = None,
) -> RankGrowth:  # fmt: skip
    """Grow the rank of a factorized convolution; see :meth:`growarray.factorized.FactorizedConv.grow_rank`.

    What is exact: S and M, and with them the promise; the length of the change, and the bias that is best with it;
    for given other factors each one is the best there is (solved by conjugate gradients). What is a heuristic: which
    components are found, since the best approximation of given rank has no closed form in three modes or more. They
    start from the format's decomposition of D, weighted by the second moment of the input channels.
    """
    _check_layer(conv)
    scaling, before = _checked_scaling(scaling), conv.rank
    _check_statistics(conv, statistics)
    by = _ranks_to_add(conv.weight, by)
    s, m = statistics.moments()
    _, full = statistics.optimal_delta()
    if not full > 0.0:
        raise GrowthError(f"{_WHERE}: the gradient is zero in every direction of the kernel; there is nothing to gain")
    if not any(by):
        return RankGrowth(before, before, 0.0, full, scaling)
    goal, column = _without_bias(conv, s, m)
    old = [namespace(a).astype(a, namespace(a).float64) for a in conv.weight.arrays()]
    added = fitting_threads(goal.s, lambda: conv.weight.format.initial_components(old, goal, by, conv.groups, rng))
    if not (math.isfinite(added.decrease) and added.decrease > _NOISE * full):
        raise GrowthError(f"{_WHERE}: no components were found that lower the loss; collect more samples, or train on")
    pieces = _extend(conv.weight, added, scaling)
    decrease = added.decrease
    if column is not None and conv.bias is not None:
        shift = column.best(added.change)
        decrease += column.gain
        pieces.append(_Piece(conv.bias, (...,), conv.bias.data, shift))
        conv.bias.data = pieces[-1].values(scaling)
    return RankGrowth(before, conv.rank, decrease, full, scaling, tuple(pieces))


class _Column(NamedTuple):
    """Moments of the column of ones with the input, (g, d), with the gradient, (g, o), and with itself, (g,)."""

    input: Array
    gradient: Array
    ones: Array

    def best(self, change: Array) -> Array:
        """The change of the bias (out_channels,) that is best beside one of the kernel."""
        xp, (g, d) = namespace(change), self.input.shape
        rows = xp.reshape(change, (g, -1, d))
        moved = xp.matmul(rows, self.input[:, :, None])[:, :, 0]
        return xp.reshape((self.gradient - moved) / self.ones[:, None], (-1,))

    @property
    def gain(self) -> float:
        """The part of the decrease that the bias has by itself."""
        return float(namespace(self.ones).sum(self.gradient**2 / self.ones[:, None]))


def _without_bias(conv: FactorizedKernel, s: Array, m: Array) -> tuple[Goal, _Column | None]:
    """The goal of the kernel when the bias is always the best beside it: S and M less what the ones explain."""
    shape = conv.kernel_shape
    d = math.prod(shape[1:])
    if s.shape[1] == d:
        return Goal.of(s, m, shape), None
    column = _Column(s[:, :d, d], m[:, d, :], s[:, d, d])
    share = (column.input / column.ones[:, None])[:, :, None]
    centred = s[:, :d, :d] - share * column.input[:, None, :]
    return Goal.of(centred, m[:, :d, :] - share * column.gradient[:, None, :], shape), column


def _extend(weight: FactorizedTensor, added: Added, scaling: float) -> list[_Piece]:
    """Grow every factor, with its gradient and optimizer state; returns what the scaling moves."""
    pieces = []
    for i, (parameter, new) in enumerate(zip(weight.all_factors(), added.arrays, strict=True)):
        old = parameter.shape
        slabs = _slabs(old, new.shape)
        piece = _Piece(parameter, tuple(at for _, at in slabs), namespace(new).zeros_like(new), new)
        values = piece.values(scaling if i in added.levers else -1.0)
        for axis, at in slabs:
            parameter.extend(axis, values[at])
        if i in added.levers:
            pieces.append(piece)
    return pieces


def _slabs(old: Sequence[int], new: Sequence[int]) -> list[tuple[int, tuple[slice, ...]]]:
    """The axes that grow, and for each the entries that it adds once the axes before it have grown.

    >>> _slabs((2, 3), (4, 4))
    [(0, (slice(2, 4, None), slice(0, 3, None))), (1, (slice(0, 4, None), slice(3, 4, None)))]
    """
    return [
        (axis, (*(slice(0, n) for n in new[:axis]), slice(old[axis], n), *(slice(0, n) for n in old[axis + 1 :])))
        for axis, n in enumerate(new)
        if n > old[axis]
    ]


def _checked_scaling(scaling: float) -> float:
    if not is_real(scaling) or not 0.0 <= scaling < math.inf:
        raise ValueError(f"{_WHERE}: scaling={shown(scaling)}, expected a finite number of at least 0")
    return float(scaling)


def _check_layer(conv: FactorizedKernel) -> None:
    if conv.layers_shape:
        raise NotImplementedError(
            f"{_WHERE}: joint layers (n_layers={conv.layers_shape}) are not supported, since their convolutions share "
            "components but not inputs; grow separate layers"
        )
    if not conv.weight.format.growable:
        growable = ", ".join(kind.name for kind in kinds() if kind.format.growable)
        raise NotImplementedError(
            f"{_WHERE}: a kernel in {conv.weight.name} form has no rank that can grow; supported: {growable}, "
            "which FactorizedConv.from_conv makes of a dense layer"
        )
    refuse_lasso(conv.weight, "grow_rank")
    if conv.frozen:
        raise ValueError(f"{_WHERE}: {', '.join(conv.frozen)} would grow, but are frozen; call unfreeze() first")


def _check_statistics(conv: FactorizedKernel, statistics: RankStatisticsLike) -> None:
    if not isinstance(statistics, RankStatisticsLike):
        raise TypeError(
            f"{_WHERE}: found a {type(statistics).__name__}, expected growarray.growing.RankStatistics of this layer"
        )
    if statistics.layer is not conv:
        raise GrowthError(
            f"{_WHERE}: the statistics are those of another layer, {shown(statistics.layer)}; this one is {shown(conv)}"
        )
    if statistics.rank != conv.rank and statistics.samples:
        raise GrowthError(
            f"{_WHERE}: the statistics were collected at rank {statistics.rank}, the layer has rank {conv.rank} now; "
            "reset them and collect again"
        )


def _ranks_to_add(weight: FactorizedTensor, by: Any) -> tuple[int, ...]:
    """One number for each entry of the rank, at most what a kernel of this shape can still use."""
    ranks, single = as_tuple(weight.rank), is_whole(by)
    scalar = not isinstance(weight.rank, tuple)
    if not single and (scalar or not isinstance(by, tuple | list)):
        expected = "a whole number" if scalar else f"a whole number, or {len(ranks)} of them"
        raise TypeError(f"{_WHERE}: by={shown(by)}, expected {expected} for a kernel in {weight.name} form")
    asked = (int(by),) * len(ranks) if single else tuple(by)
    if len(asked) != len(ranks):
        raise ValueError(
            f"{_WHERE}: by={shown(by)} has {len(asked)} numbers, expected {len(ranks)}, one for each of {ranks}"
        )
    if any(not is_whole(b) or b < 0 for b in asked) or not any(asked):
        raise ValueError(f"{_WHERE}: by={shown(by)}, expected whole numbers of at least 0, and one at least of 1")
    asked = tuple(map(int, asked))
    usable = weight.format.usable_growth(weight.shape, ranks, asked)
    if (single and max(usable) < by) or (not single and usable != asked):
        warnings.warn(
            f"{_WHERE}: by={shown(by)} is more than rank {weight.rank} of a kernel of shape {weight.shape} can gain, "
            f"lowered to {usable if len(usable) > 1 else usable[0]}",
            stacklevel=4,
        )
    return usable
