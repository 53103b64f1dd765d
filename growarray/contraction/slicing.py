"""Which modes to cut in pieces if no path keeps a memory limit, or those that do are dear: chosen by cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from growarray.contraction.cost import Costs, StepCost
from growarray.contraction.objective import Objective, objective_named
from growarray.contraction.problem import Problem
from growarray.contraction.search import over_limit, search, total
from growarray.contraction.slices import kinds, positions, sliceable, sliced_problem
from growarray.contraction.tree import Tree, ordered, peak_elements

MOST = 4096
"""Slices that are chosen without the caller's word: more take so long that the limit is more likely a slip."""

_SLICE = 80e-6  # seconds of one pass over a slice beside its steps: cut out, looked up, put back; measured

CostsOf = Callable[[Problem], Costs]


class Sliced(NamedTuple):
    """A tree with modes cut in pieces: what it costs by an objective, and what it holds."""

    cost: float
    peak: int
    cuts: dict[str, int]
    tree: Tree


def cheapest_slices(
    problem: Problem, costs_of: CostsOf, objective: Objective, limit: int, trees: Sequence[Tree]
) -> Sliced:
    """The cheapest of ``trees`` with one mode cut, or with as many as it takes, to keep the limit.

    Raises PlanError, which names the least that can be held, if :data:`MOST` slices are not enough.
    """
    cuts: dict[str, int] = {}
    left, least = sliceable(problem), math.inf
    while left := [mode for mode in left if mode not in cuts and _room(problem, cuts, mode) > 1]:
        found = [_coarsest(problem, costs_of, objective, limit, cuts, mode, tree) for mode in left for tree in trees]
        kept = [one for one in found if one.peak <= limit]
        if kept:
            return _searched(problem, costs_of, objective, limit, min(kept, key=lambda one: one.cost))
        best = min(found, key=lambda one: (one.peak, one.cost))
        cuts, least = best.cuts, min(least, best.peak)
    finest = {mode: positions(problem, mode) for mode in sliceable(problem)}  # summed slices need one more result
    ends = [finest, {mode: count for mode, count in finest.items() if mode in problem.output}]
    memory = objective_named("memory")
    last = min(
        (_judged(problem, costs_of, objective, cuts, _best(problem, costs_of, memory, cuts)) for cuts in ends),
        key=lambda one: one.peak,
    )
    if _count(last.cuts) <= MOST and last.peak <= limit:
        return _searched(problem, costs_of, objective, limit, last)
    if _count(last.cuts) <= MOST:
        raise over_limit(problem, "no path holds", last.peak, limit)
    what = f"with at most {MOST} slices no path holds"
    raise over_limit(problem, what, int(least), limit, ", or say with slices= how to cut more")


def _room(problem: Problem, cuts: Mapping[str, int], mode: str) -> int:
    """Pieces that one more mode may be cut in."""
    return min(positions(problem, mode), MOST // _count(cuts))


def _coarsest(
    problem: Problem, costs_of: CostsOf, objective: Objective, limit: int, cuts: dict[str, int], mode: str, tree: Tree
) -> Sliced:
    """One more mode cut, in no more pieces than it takes to keep the limit."""
    count, most = 1, _room(problem, cuts, mode)
    while True:
        count = min(2 * count, most)
        found = _judged(problem, costs_of, objective, {**cuts, mode: count}, tree)
        if found.peak <= limit or count == most:
            return found


def _best(problem: Problem, costs_of: CostsOf, objective: Objective, cuts: Mapping[str, int]) -> Tree:
    return search(costs_of(sliced_problem(problem, kinds(problem, cuts)[0][0])), objective)


def _judged(problem: Problem, costs_of: CostsOf, objective: Objective, cuts: dict[str, int], tree: Tree) -> Sliced:
    """What a tree costs with modes cut, as if all slices were as large as the largest."""
    costs = costs_of(sliced_problem(problem, kinds(problem, cuts)[0][0]))
    tree = ordered(costs, tree)
    cost, count = total(costs, objective, tree), 1 if objective.is_largest or objective.is_peak else _count(cuts)
    if objective.name == "time":
        cost += _SLICE * (1 + 2 * costs.training)
    return Sliced(cost * count, sliced_peak(problem, costs, cuts, tree), cuts, tree)


def _count(cuts: Mapping[str, int]) -> int:
    return math.prod(cuts.values())


def _searched(problem: Problem, costs_of: CostsOf, objective: Objective, limit: int, found: Sliced) -> Sliced:
    """The best tree for modes that are cut, among those that keep the limit."""
    costs = costs_of(sliced_problem(problem, kinds(problem, found.cuts)[0][0]))
    beside = sliced_peak(problem, costs, found.cuts, found.tree) - peak_elements(costs, found.tree)
    again = _judged(problem, costs_of, objective, found.cuts, search(costs, objective, limit - beside))
    return again if again.peak <= limit and again.cost <= found.cost else found


def sliced_peak(problem: Problem, costs: Costs, cuts: Mapping[str, int], tree: Tree) -> int:
    """Elements held at the worst moment: the whole result, and what one slice of it takes, with ``costs`` of its own.

    NumPy writes a slice's result where it lies, unless slices are summed; a backward pass has them a second time.
    """
    held = problem.elements(problem.everything) + peak_elements(costs, tree)
    is_sum = any(mode not in problem.output for mode in cuts)
    if is_sum or costs.training or costs.library != "numpy":
        return held
    return held - costs.problem.elements(costs.problem.everything)


def sliced_steps(problem: Problem, costs_of: CostsOf, cuts: Mapping[str, int], tree: Tree) -> list[StepCost]:
    """Each step's cost in all slices together; a backward pass runs each slice forward once more."""
    sums: list[StepCost | None] = [None] * len(tree)
    for piece, count in kinds(problem, cuts):
        costs = costs_of(sliced_problem(problem, piece))
        for i, pair in enumerate(tree):
            step, before = costs.step(*pair), sums[i]
            if step is not None:
                sums[i] = _added(_times(step, count, costs.training, _SLICE / len(tree)), before)
    return [step for step in sums if step is not None]


def _times(step: StepCost, count: int, training: bool, beside: float) -> StepCost:
    """A step in so many slices, each of which takes some seconds beside the step."""
    again = int(training)
    return replace(
        step,
        flops=count * step.flops,
        bytes=count * step.bytes,
        seconds=count * (step.seconds + beside),
        backward_flops=count * (step.backward_flops + again * step.flops),
        backward_bytes=count * (step.backward_bytes + again * step.bytes),
        backward_seconds=count * (step.backward_seconds + again * (step.seconds + 2 * beside)),
    )


def _added(step: StepCost, before: StepCost | None) -> StepCost:
    """The sums, with the routine and the size of those before, which are of the largest slice."""
    if before is None:
        return step
    names = ("flops", "bytes", "seconds", "backward_flops", "backward_bytes", "backward_seconds")
    return replace(before, **{name: getattr(before, name) + getattr(step, name) for name in names})
