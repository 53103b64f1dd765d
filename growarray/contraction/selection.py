"""Choices of a plan: the tree, the size of batch blocks, the modes that are cut; and their cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from growarray.contraction.cost import Costs, StepCost
from growarray.contraction.machine import Machine
from growarray.contraction.objective import Objective, objective_named
from growarray.contraction.path import alternative_trees, find_tree, searches
from growarray.contraction.problem import Problem
from growarray.contraction.program import binds_batch, block_size
from growarray.contraction.run import block_count
from growarray.contraction.search import over_limit, total
from growarray.contraction.slices import checked_cuts, kinds, sliced_problem
from growarray.contraction.slicing import cheapest_slices, sliced_peak, sliced_steps
from growarray.contraction.tree import Tree, peak_elements
from growarray.errors import PlanError

_MANY = 1 << 62  # operations, while they are not known yet
_TIE = 1.03  # times the least predicted time: as good forward, for predictions are no better than that
_CORES = 2  # for which a path is searched


@dataclass(frozen=True)
class Choice:
    """A tree, the positions of the batch that run at a time (0: all), and the modes that are cut, in how many pieces.

    costs : of the tree's products, in the largest slice if modes are cut
    """

    tree: Tree
    block: int
    cuts: Mapping[str, int]
    costs: Costs


@dataclass(frozen=True)
class Selection:
    """The input of a choice: a problem on a machine, forward or with its backward pass, some operands constant.

    device : ``'cpu'`` or ``'gpu'``
    """

    problem: Problem
    machine: Machine
    device: str
    training: bool
    constants: tuple[int, ...]

    def choose(
        self, optimize: Any, objective: Objective, limit: int | None, slices: Mapping[str, int] | None
    ) -> Choice:
        """The best that keeps the limit; modes are cut if they are given, or if no path keeps it or a dearer one."""
        if slices:
            return self._cut(optimize, objective, limit, slices)
        if limit is None or slices is not None or not searches(optimize):
            return self._whole(optimize, objective, limit)
        try:
            kept = self._whole(optimize, objective, limit)
        except PlanError:
            kept = None
        costs = self._costs(self.problem, self._block(self.problem)) if kept is None else kept.costs
        free = find_tree(costs, optimize, objective, None)
        cost = math.inf if kept is None else total(costs, objective, kept.tree)
        if cost <= total(costs, objective, free):
            return kept or self._whole(optimize, objective, limit)
        trees = [free, find_tree(costs, "auto", objective_named("memory"), None)]
        try:
            sliced = cheapest_slices(self.problem, self._slice_costs, objective, limit, trees)
        except PlanError:
            if kept is None:
                raise
            return kept
        if kept is not None and cost <= sliced.cost:
            return kept
        first = self._first(sliced.cuts)
        return Choice(sliced.tree, self._block(first), sliced.cuts, self._slice_costs(first))

    def steps(self, choice: Choice) -> tuple[StepCost, ...]:
        """What each product costs, in all slices together."""
        if choice.cuts:
            return tuple(sliced_steps(self.problem, self._slice_costs, choice.cuts, choice.tree))
        steps = []
        for left, right in choice.tree:
            step = choice.costs.step(left, right)
            if step is None:
                raise self.problem.no_pair(left, right)
            steps.append(step)
        return tuple(steps)

    def peak(self, choice: Choice) -> int:
        """Elements that partial results and the output hold at the worst moment."""
        if choice.cuts:
            return sliced_peak(self.problem, choice.costs, choice.cuts, choice.tree)
        return peak_elements(choice.costs, choice.tree)

    def _cut(self, optimize: Any, objective: Objective, limit: int | None, slices: Mapping[str, int]) -> Choice:
        """The tree for modes that are cut as the user says."""
        cuts = checked_cuts(self.problem, slices)
        first = self._first(cuts)
        costs = self._slice_costs(first)
        choice = Choice(find_tree(costs, optimize, objective, None), self._block(first), cuts, costs)
        if limit is None or (peak := self.peak(choice)) <= limit:
            return choice
        if not searches(optimize):
            raise over_limit(self.problem, f"with slices {cuts} this path does not hold", peak, limit)
        beside = peak - peak_elements(costs, choice.tree)  # the whole result, whatever the path
        try:
            return replace(choice, tree=find_tree(costs, optimize, objective, limit - beside))
        except PlanError:
            least = replace(choice, tree=find_tree(costs, optimize, objective_named("memory"), None))
            raise over_limit(self.problem, f"with slices {cuts} no path holds", self.peak(least), limit) from None

    def _whole(self, optimize: Any, objective: Objective, limit: int | None) -> Choice:
        """The tree that runs over blocks of the batch alone."""
        # the order, and so every bit of a result, must not depend on the cores of this machine
        machine = self.machine if limit is not None else replace(self.machine, cores=_CORES)
        whole = self.device != "cpu" or binds_batch(self.problem, self.constants)
        block = 0 if whole else block_size(self.problem)
        costs = self._costs(self.problem, block, machine=machine)
        tree = find_tree(costs, optimize, objective, limit)
        if block and limit is None:
            priced = []
            for candidate in [tree, *alternative_trees(costs, optimize, objective)]:
                block = block_size(self.problem, candidate)  # it depends on the tree, which was found with another
                costs_in_blocks = self._costs(self.problem, block, candidate, machine)
                steps = [step for pair in candidate if (step := costs_in_blocks.step(*pair))]
                seconds = sum(step.seconds + step.backward_seconds for step in steps)
                priced.append((seconds, sum(step.bytes for step in steps), candidate, block))
            # measured: of paths as good, those that move least are fastest forward, not with their backward passes
            tie = 1.0 if self.training else _TIE
            near = [choice for choice in priced if choice[0] <= tie * min(c[0] for c in priced)]
            _, _, tree, block = min(near, key=lambda choice: choice[1])
        return Choice(tree, block, {}, self._costs(self.problem, block, tree))

    def _costs(
        self, problem: Problem, block: int, tree: Sequence[tuple[int, int]] = (), machine: Machine | None = None
    ) -> Costs:
        whole = problem.size.get(problem.block or "", 1)
        flops = sum(operations.flops for pair in tree if (operations := problem.operations(*pair))) or _MANY
        return Costs(
            problem,
            machine or self.machine,
            training=self.training,
            library="numpy" if self.device == "cpu" else "cupy",
            block=-(-whole // block_count(whole, block, flops)) if block else max(whole, 1),
            constants=sum(1 << i for i in self.constants),
            tree=tree,
        )

    def _slice_costs(self, problem: Problem) -> Costs:
        """Costs of one slice, in which nothing is contracted once for all."""
        return replace(self, constants=())._costs(problem, self._block(problem))

    def _block(self, problem: Problem) -> int:
        return block_size(problem) if self.device == "cpu" else 0

    def _first(self, cuts: Mapping[str, int]) -> Problem:
        """The problem of the largest slice."""
        return sliced_problem(self.problem, kinds(self.problem, cuts)[0][0])
