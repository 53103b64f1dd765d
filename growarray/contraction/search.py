"""Searches over trees: exact up to eight operands; above, random greedy trees whose parts are searched exactly."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from growarray.contraction.cost import Costs
from growarray.contraction.objective import Objective, objective_named
from growarray.contraction.problem import Problem
from growarray.contraction.tree import Entry, Tree, from_left, ordered, peak_elements, peak_of, unrolled
from growarray.errors import PlanError, shown

EXACT = 8  # operands up to which every tree is looked at
_PART = 6  # operands of a part of a larger tree: with eight, plans cost the same and take four times as long
_NEAR = 64.0  # times the best greedy tree's cost up to which a tree is worth searching its parts
_GAIN = 1e-9  # of its cost that another order of a part saves at least; less is rounding, of orders that cost the same
_COOL, _HOT = -3.0, 0.0  # powers of ten between which the temperature of a random tree is drawn

Halves = dict[int, tuple[int, int]]


@dataclass(frozen=True)
class Search:
    """How ``optimize='auto'`` searches above eight operands; below, every tree is looked at in any case.

    Greedy trees are drawn at random, and in each of them every part of up to six operands is put in its best order,
    again and again until no part gets better.

    trials : trees that are drawn    seconds : draw for so long in place of a number    seed : of the draws
    The same trials and seed give the same path on every machine; so many seconds do not.
    Raises PlanError if a number is out of range.

    >>> from growarray.contraction import plan
    >>> chain = ",".join(a + b for a, b in zip("abcdefghij", "bcdefghijk"))
    >>> len(plan(f"{chain}->ak", *[(9, 9)] * 10, optimize=Search(trials=4)).path)
    9
    """

    trials: int = 16
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("trials", self.trials), ("seed", self.seed)):
            if not isinstance(value, int) or isinstance(value, bool) or value < (name == "trials"):
                least = int(name == "trials")
                raise PlanError(f"Search: {name} is {shown(value)}, expected a whole number of at least {least}")
        seconds = self.seconds
        if seconds is not None and not (isinstance(seconds, int | float) and 0 < seconds < math.inf):
            raise PlanError(f"Search: seconds is {shown(seconds)}, expected a number above 0, or None")


def search(
    costs: Costs,
    objective: Objective,
    limit: int | None = None,
    operands: Sequence[int] | None = None,
    how: Search | None = None,
    seeds: Sequence[Tree] = (),
) -> Tree:
    """The best tree over ``operands`` (default: all): exact up to :data:`EXACT` of them, see :class:`Search` above.

    With a limit, the best tree among those that keep it. ``seeds`` are trees to begin with above.
    Raises PlanError if none keeps the limit.
    """
    singles = [1 << i for i in range(len(costs.problem))] if operands is None else list(operands)
    run = _Run(costs, objective, limit)
    if len(singles) > EXACT:
        return run.greedy_search(singles, how or Search(), seeds)
    if len(singles) < 2:
        return []
    if limit is None and not objective.is_peak:
        tree = run.exact(singles)
    else:
        entry = run.weighed(singles)
        tree = None if entry is None else unrolled(costs, entry)
    if tree is None:
        entry = _Run(costs, objective_named("memory")).weighed(singles)
        raise over_limit(costs.problem, "no path holds", entry.peak if entry else 0, limit)
    if objective.is_peak or objective.is_largest:  # of the many trees that are as good, that of fewest operations
        best, flops = run.total(tree), objective_named("flops")
        if objective.is_peak:
            entry = _Run(costs, flops, int(best)).weighed(singles)
            return tree if entry is None else unrolled(costs, entry)
        if limit is None:
            tree = _Run(costs, flops, limit, best).exact(singles) or tree
    return ordered(costs, tree)


def total(costs: Costs, objective: Objective, tree: Tree) -> float:
    """What an objective counts for a tree; infinite if one of its products does not exist."""
    return _Run(costs, objective).total(tree)


def over_limit(problem: Problem, what: str, least: int, limit: int | None, remedy: str = "") -> PlanError:
    """The error that names the least elements that would do."""
    return PlanError(
        f"memory_limit: {what} fewer than {least} elements at once, allowed are {limit}; "
        f"raise memory_limit to at least {least * problem.itemsize} bytes{remedy}"
    )


class _Run:
    """One search: every product is valued once.

    limit : elements that may be held at once    largest : elements that a result may have
    """

    def __init__(self, costs: Costs, objective: Objective, limit: int | None = None, largest: float = math.inf) -> None:
        self.costs, self.problem, self.objective, self.limit = costs, costs.problem, objective, limit
        self._largest = largest
        self._values: dict[tuple[int, int], float | None] = {}

    def value(self, left: int, right: int) -> float | None:
        """Of the product of two partial results, None if there is no such product."""
        key = (left, right) if left < right else (right, left)
        if key not in self._values:
            fits = self._largest == math.inf or self.costs.held(left | right) <= self._largest
            self._values[key] = self.costs.value(self.objective, *key) if fits else None
        return self._values[key]

    def total(self, tree: Tree) -> float:
        """Of all products of a tree."""
        values = [self.value(*pair) for pair in tree]
        if None in values:
            return math.inf
        if self.objective.is_peak:
            return float(peak_elements(self.costs, ordered(self.costs, tree)))
        priced = [value for value in values if value is not None]
        return max(priced, default=0.0) if self.objective.is_largest else math.fsum(priced)

    def exact(self, singles: Sequence[int], below: float = math.inf) -> Tree | None:
        """The best of all trees over partial results that costs less than ``below``, by dynamic programming."""
        cost, halves = [math.inf] * (1 << len(singles)), [(0, 0)] * (1 << len(singles))
        unions, join = _unions(singles), self.objective.join
        for i in range(len(singles)):
            cost[1 << i] = 0.0
        for subset, pairs in _splits(len(singles)):
            best = below
            for left, right in pairs:
                halves_cost = join(cost[left], cost[right])
                if halves_cost < best:
                    product_cost = self.value(unions[left], unions[right])
                    if product_cost is not None and (total_cost := join(halves_cost, product_cost)) < best:
                        best, halves[subset] = total_cost, (left, right)
            cost[subset] = best if best < below else math.inf
        if cost[-1] == math.inf:
            return None
        below_root = {unions[part]: (unions[left], unions[right]) for part, (left, right) in enumerate(halves) if left}
        return _from_root(below_root, unions[-1])

    def weighed(self, singles: Sequence[int]) -> Entry | None:
        """The best of all trees that keep the limit: every set keeps its trees that none beats in cost and peak."""
        unions, join = _unions(singles), self.objective.join
        fronts: list[list[Entry]] = [[Entry(0.0, 0)] if part in singles else [] for part in unions]
        for subset, pairs in _splits(len(singles)):
            for first, second in pairs:
                left, right = unions[first], unions[second]
                product_cost = self.value(left, right) if fronts[first] and fronts[second] else None
                if product_cost is None:
                    continue
                for a, b in itertools.product(fronts[first], fronts[second]):
                    peak = peak_of(self.costs, left, a, right, b)
                    if self.limit is None or peak <= self.limit:
                        cost = float(peak) if self.objective.is_peak else join(join(a.cost, b.cost), product_cost)
                        fronts[subset].append(Entry(cost, peak, (left, a, right, b)))
            fronts[subset] = _front(fronts[subset])
        return fronts[-1][0] if fronts[-1] else None

    def greedy_search(self, singles: Sequence[int], how: Search, seeds: Sequence[Tree]) -> Tree:
        """The best of trees to begin with, one greedy tree, and random ones, each with its parts searched exactly."""
        rng, start = random.Random(how.seed), time.monotonic()
        best: tuple[float, Tree] | None = None
        near, least, count = math.inf, math.inf, 0
        for trial in itertools.count(-len(seeds)):
            if trial > 0 and (trial >= how.trials if how.seconds is None else time.monotonic() - start > how.seconds):
                break
            tree = seeds[trial] if trial < 0 else self.greedy(singles, rng if trial else None)
            trees, cost = [tree], self.total(tree)
            if cost < _NEAR * near:
                near = min(near, cost)
                trees.append(self.reconfigured(tree, rng if trial > 0 else None))
            count += 1
            for tree in trees:
                cost, peak = self.total(tree), peak_elements(self.costs, ordered(self.costs, tree))
                least = min(least, peak)
                if (self.limit is None or peak <= self.limit) and (best is None or cost < best[0]):
                    best = (cost, tree)
        if best is None:
            raise over_limit(self.problem, f"of {count} greedy paths none holds", int(least), self.limit)
        return best[1]

    def greedy(self, singles: Sequence[int], rng: random.Random | None) -> Tree:
        """Contract what makes the result small beside both sides; with ``rng``, more or less at random."""
        temperature = 10 ** rng.uniform(_COOL, _HOT) if rng is not None else 0.0
        weight = rng.uniform(0.1, 2.0) if rng is not None else 1.0
        choices: dict[tuple[int, int], float] = {}

        def offer(left: int, right: int) -> None:
            product = self.problem.operations(left, right)
            if product is not None:
                gain = product.elements - weight * product.operands
                score = math.copysign(math.log1p(abs(gain)), gain)
                noise = -math.log(-math.log(rng.uniform(1e-12, 1 - 1e-12))) if rng is not None else 0.0
                choices[left, right] = score - temperature * noise

        def shares(left: int, right: int) -> int:
            return self.problem.mode_set(left) & self.problem.mode_set(right)

        parts, tree = list(singles), Tree()
        for left, right in itertools.combinations(parts, 2):
            if shares(left, right):
                offer(left, right)
        while len(parts) > 1:
            if not choices:  # nothing shares a mode any more
                for left, right in itertools.combinations(parts, 2):
                    offer(left, right)
            if not choices:  # all join convolution modes the wrong way round: from the left there is always a way
                return from_left(singles)
            left, right = min(choices, key=lambda pair: (choices[pair], pair))
            parts = [part for part in parts if part not in (left, right)]
            choices = {pair: score for pair, score in choices.items() if left not in pair and right not in pair}
            for part in parts:
                if shares(part, left | right):
                    offer(part, left | right)
            parts.append(left | right)
            tree.append((left, right))
        return tree

    def reconfigured(self, tree: Tree, rng: random.Random | None) -> Tree:
        """The tree with parts of up to :data:`_PART` operands in their best order, until none gets better.

        Parts reach down to where partial results are large, with ``rng`` at random.
        """
        # parts cannot know the peak of the whole: whether the tree is better, and keeps the limit, is asked afterwards
        run = _Run(self.costs, objective_named("size") if self.objective.is_peak else self.objective)
        run._values = run._values if self.objective.is_peak else self._values
        halves: Halves = {left | right: (left, right) for left, right in tree}
        largest = partial(max, key=self.problem.elements)
        root, seen, better = tree[-1][0] | tree[-1][1], set[tuple[int, ...]](), True
        while better:
            better = False
            for node in [left | right for left, right in reversed(_from_root(halves, root))]:
                if node not in halves:
                    continue
                inner, leaves = _part(halves, node, largest if rng is None else rng.choice)
                key = (*sorted(leaves),)
                if key in seen:
                    continue
                seen.add(key)
                again = run.exact(leaves, run.total([halves[part] for part in inner]) * (1.0 - _GAIN))
                if again is not None:
                    better = True
                    for part in inner:
                        del halves[part]
                    halves |= {left | right: (left, right) for left, right in again}
        return _from_root(halves, root)


def _part(halves: Halves, node: int, chosen: Callable[[list[int]], int]) -> tuple[list[int], list[int]]:
    """A part of a tree below a node: its products, and up to :data:`_PART` partial results that it begins with."""
    inner, leaves = [node], list(halves[node])
    while len(leaves) < _PART and (splittable := [leaf for leaf in leaves if leaf in halves]):
        inner.append(chosen(splittable))
        leaves.remove(inner[-1])
        leaves += halves[inner[-1]]
    return inner, leaves


def _from_root(halves: Halves, root: int) -> Tree:
    """The products below a node, each after those that it needs."""
    backwards, waiting = Tree(), [root]
    while waiting:
        pair = halves.get(waiting.pop())
        if pair is not None:
            backwards.append(pair)
            waiting += pair
    return backwards[::-1]


def _unions(singles: Sequence[int]) -> list[int]:
    """The union of every set of ``singles``, by the mask of their places."""
    unions = [0]
    for single in singles:
        unions += [part | single for part in unions]
    return unions


@lru_cache(maxsize=EXACT)
def _splits(count: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Every set of two or more of ``count``, small ones first, and every way to cut it in two, once each.

    The first is always on the left.
    """
    splits = []
    for size in range(2, count + 1):
        for chosen in itertools.combinations([1 << i for i in range(count)], size):
            first, rest, whole = chosen[0], chosen[1:], sum(chosen)
            lefts = [first + sum(more) for k in range(len(rest)) for more in itertools.combinations(rest, k)]
            splits.append((whole, [(left, whole - left) for left in lefts]))
    return splits


def _front(entries: list[Entry]) -> list[Entry]:
    """Entries that no other beats in cost and peak."""
    kept: list[Entry] = []
    for entry in sorted(entries, key=lambda e: (e.cost, e.peak)):
        if not kept or entry.peak < kept[-1].peak:
            kept.append(entry)
    return kept
