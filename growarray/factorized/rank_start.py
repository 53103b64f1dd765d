"""Where new components start, for each format: its own decomposition of the optimal change, weighted by channels.

modes c, y, x, … of the kernel and o in the order in which the format keeps them · b new ranks beside r old ones
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from growarray.backend import Array, namespace
from growarray.decompose import cp, tensor_train
from growarray.decompose.als import balanced, normalised
from growarray.decompose.unfolding import leading, mode_product, unfold
from growarray.decompose.whiten import channel_moment, roots
from growarray.factorized.equation import kernel_modes
from growarray.factorized.rank_fit import Goal, Increment, fit
from growarray.factorized.tensor import FactorizedTensor

__all__ = ["GROWABLE", "Added", "new_parts"]


class Added(NamedTuple):
    """New components: ``arrays`` of the parts' new shapes, zero where the old entries stand.

    levers : which of them scale the change    change : of the kernel, dense    decrease : of the loss, to first order
    """

    arrays: list[Array]
    levers: tuple[int, ...]
    change: Array
    decrease: float


def new_parts(
    weight: FactorizedTensor, goal: Goal, by: Sequence[int], groups: int, rng: np.random.Generator | None
) -> Added:
    """What the parts of a kernel gain for ranks that rise by ``by``: components that follow the goal.

    The parts plus these arrays hold the old kernel plus the fitted change; to be subtracted, the scaling parts take
    the minus sign.
    """
    old = [namespace(a).astype(a, namespace(a).float64) for a in weight.arrays()]
    return _STARTS[weight.name](type(weight), old, goal, tuple(by), groups, rng)


def _channels(goal: Goal, channels: int) -> Array:
    """Second moment of the channels, the mean over the groups."""
    return channel_moment(namespace(goal.s).mean(goal.s, axis=0), channels)


def _padded(block: Array, shape: Sequence[int], start: Sequence[int]) -> Array:
    """Zeros of this shape with a block in it."""
    xp = namespace(block)
    full = xp.zeros(tuple(shape), dtype=block.dtype, device=block.device)
    full[tuple(slice(s, s + n) for s, n in zip(start, block.shape, strict=True))] = block
    return full


def _cp(
    kind: type[FactorizedTensor], old: list[Array], goal: Goal, by: tuple[int, ...], groups: int,
    rng: np.random.Generator | None,
) -> Added:  # fmt: skip
    """New components with weight 1, their norm shared by the factors."""
    xp, order, rank = namespace(*old), goal.dense.ndim - 2, old[0].shape[0]
    modes = kernel_modes(kind, order)
    found = cp(goal.dense, by[0], weighted={1: _channels(goal, goal.dense.shape[1])}, max_iterations=50, rng=rng)
    parts = [found.factors[0] * found.weights[None, :], *found.factors[1:]]
    increment = Increment(kind.terms(modes)[1:], modes[1:], parts, [xp.ones_like(p) for p in parts], 0, groups)
    decrease = fit(goal, increment)
    new = [xp.ones_like(parts[0][0, :]), *balanced(increment.parts)]
    added = [_padded(new[0], (rank + by[0],), (rank,))]
    added += [_padded(p, (p.shape[0], rank + by[0]), (0, rank)) for p in new[1:]]
    return Added(added, (1,), increment.dense(goal.dense.shape), decrease)


def _tucker(
    kind: type[FactorizedTensor], old: list[Array], goal: Goal, by: tuple[int, ...], groups: int,
    rng: np.random.Generator | None,
) -> Added:  # fmt: skip
    """New columns where the change leaves the span of the old ones, and a core filled wherever a new index stands."""
    del rng
    xp, (core, *factors) = namespace(*old), old
    root, undo = roots(_channels(goal, goal.dense.shape[1]))
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
        masks.append(_padded(xp.ones_like(new), wide[-1].shape, (0, factor.shape[1])) if count else None)
    free = 1.0 - _padded(xp.ones_like(core), [w.shape[1] for w in wide], (0,) * core.ndim)
    terms, modes = kind.terms(kernel_modes(kind, core.ndim - 2)), kernel_modes(kind, core.ndim - 2)
    increment = Increment(terms, modes[1:], [xp.zeros_like(free), *wide], [free, *masks], 0, groups)
    increment.improve(goal, 0)
    decrease = fit(goal, increment)
    core, added = increment.parts[0], []
    for mode, (factor, grown) in enumerate(zip(factors, increment.parts[1:], strict=True)):
        rank = factor.shape[1]
        lengths, units = normalised([grown[:, rank:]])
        usual = float(xp.sqrt(xp.mean(xp.sum(factor * factor, axis=0)))) or 1.0  # columns as long as those there are
        added.append(_padded(units[0] * usual, grown.shape, (0, rank)))
        scales = xp.concat([xp.ones_like(factor[0, :]), lengths / usual])
        core = core * xp.reshape(scales, (-1, *(1,) * (core.ndim - mode - 1)))
    return Added([core, *added], (0,), increment.dense(goal.dense.shape), decrease)


def _tt(
    kind: type[FactorizedTensor], old: list[Array], goal: Goal, by: tuple[int, ...], groups: int,
    rng: np.random.Generator | None,
) -> Added:  # fmt: skip
    """A train of its own beside the old one; where bonds keep their rank it runs through the old cores.

    Bonds that grow with others between them that do not make a change each; all but the first see what is left, and
    in the end all of them together get the best length.
    """
    del rng
    asked = goal
    xp, ranks = namespace(*old), (1, *(c.shape[2] for c in old))
    edges = list(zip(old, pairwise(by), strict=True))
    shapes = [(a.shape[0] + before, a.shape[1], a.shape[2] + after) for a, (before, after) in edges]
    added = [xp.zeros(s, dtype=xp.float64, device=old[0].device) for s in shapes]
    levers, decrease, change = [], 0.0, xp.zeros_like(goal.dense)
    for first, last in _runs(by):
        increment = _train(kind, old, goal, by, (first, last), groups)
        decrease += fit(goal, increment)
        sizes = [(by[k] or ranks[k], old[k].shape[1], by[k + 1] or ranks[k + 1]) for k in range(first, last + 1)]
        cores = [xp.reshape(increment.parts[k], s) for k, s in zip(range(first, last + 1), sizes, strict=True)]
        for k, core in zip(range(first, last + 1), _equal(cores), strict=True):
            added[k] = _padded(core, shapes[k], (ranks[k] if by[k] else 0, 0, ranks[k + 1] if by[k + 1] else 0))
        levers.append(last)
        step = increment.dense(goal.dense.shape)
        change, goal = change + step, goal.left(step)
    if len(levers) > 1:  # the changes overlap: their decreases do not add up to the slope along the sum
        overlap, square = asked.measured(change)
        length = overlap / square if square > 0.0 else 0.0
        for k in levers:
            added[k] = added[k] * length
        change, decrease = change * length, overlap * length
    return Added(added, tuple(levers), change, decrease)


def _runs(by: Sequence[int]) -> list[tuple[int, int]]:
    """First and last core of each run of bonds that grow side by side.

    >>> _runs((0, 2, 2, 0, 1, 0))
    [(0, 2), (3, 4)]
    """
    grown = [k for k, b in enumerate(by) if b]
    starts = [k for k in grown if not by[k - 1]]
    ends = [k for k in grown if not by[k + 1]]
    return [(start - 1, end) for start, end in zip(starts, ends, strict=True)]


def _train(
    kind: type[FactorizedTensor], old: list[Array], goal: Goal, by: Sequence[int], run: tuple[int, int], groups: int
) -> Increment:
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
    weighted = {} if first else {0: _channels(goal, sizes[0])}
    found = tensor_train(xp.reshape(middle, tuple(inner)), (1, *by[first + 1 : last + 1], 1), weighted=weighted)
    cores = [*old[:first], *(c for c in found.cores), *old[last + 1 :]]
    edges = [*(by[k] if first < k <= last else c.shape[0] for k, c in enumerate(old)), 1]
    shaped = [xp.reshape(c, (edges[k], sizes[k], edges[k + 1])) for k, c in enumerate(cores)]
    parts = kind.operands(shaped)
    free = [xp.ones_like(p) if first <= k <= last else None for k, p in enumerate(parts)]
    modes = kernel_modes(kind, len(sizes) - 2)
    return Increment(kind.terms(modes), modes[:-1], parts, free, last, groups)


def _chain(cores: Sequence[Array], *, last: bool) -> Array:
    """Cores multiplied out: (positions, rank) with ``last``, else (rank, positions)."""
    if not cores:
        return None
    xp, whole = namespace(*cores), cores[0]
    for core in cores[1:]:
        flat = xp.reshape(whole, (-1, core.shape[0])) @ xp.reshape(core, (core.shape[0], -1))
        whole = xp.reshape(flat, (whole.shape[0], -1, core.shape[2]))
    return xp.reshape(whole, (-1, whole.shape[2]) if last else (whole.shape[0], -1))


def _equal(cores: Sequence[Array]) -> list[Array]:
    """The same train with cores of one norm."""
    xp = namespace(*cores)
    norms = [float(xp.sqrt(xp.sum(c * c))) for c in cores]
    if min(norms) == 0.0:
        return list(cores)
    mean = math.exp(sum(math.log(n) for n in norms) / len(norms))
    return [c * (mean / n) for c, n in zip(cores, norms, strict=True)]


_STARTS: dict[str, Callable[..., Added]] = {"CP": _cp, "Tucker": _tucker, "TT": _tt}
GROWABLE = tuple(_STARTS)
"""Formats whose rank can grow."""
