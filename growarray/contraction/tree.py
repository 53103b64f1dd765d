"""Trees of products: the order of contraction, its memory, and its form in opt_einsum.

A tree is a list of pairs of operand sets (bit masks), in the order in which they are contracted.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import NamedTuple

from growarray.contraction.cost import Costs
from growarray.contraction.problem import Problem

Tree = list[tuple[int, int]]


class Entry(NamedTuple):
    """A tree of one operand set: what it costs, the elements alive at its worst moment, and its two halves."""

    cost: float
    peak: int
    halves: tuple[int, Entry, int, Entry] | None = None


def peak_of(costs: Costs, left: int, a: Entry, right: int, b: Entry) -> int:
    """Elements alive at the worst moment. Operands are the caller's and not counted; a backward pass keeps all."""
    out = costs.held(left | right)
    if costs.training:
        return a.peak + b.peak + out
    own_a = costs.held(left) if a.halves else 0
    own_b = costs.held(right) if b.halves else 0
    return max(min(max(a.peak, own_a + b.peak), max(b.peak, own_b + a.peak)), own_a + own_b + out)


def unrolled(costs: Costs, entry: Entry) -> Tree:
    """The half first after which the other needs less memory beside it, then the other, then their product."""
    backwards, waiting = [], [entry]
    while waiting:
        halves = waiting.pop().halves
        if halves is None:
            continue
        left, a, right, b = halves
        own_a, own_b = (costs.held(half) if e.halves else 0 for half, e in ((left, a), (right, b)))
        waiting += [a, b] if max(a.peak, own_a + b.peak) <= max(b.peak, own_b + a.peak) else [b, a]
        backwards.append((left, right))
    return backwards[::-1]


def ordered(costs: Costs, tree: Tree) -> Tree:
    """The products of a tree in the order in which its partial results take the least memory."""
    entries = {1 << i: Entry(0.0, 0) for i in range(len(costs.problem))}
    whole = 1
    for left, right in tree:
        whole, a, b = left | right, entries[left], entries[right]
        entries[whole] = Entry(0.0, peak_of(costs, left, a, right, b), (left, a, right, b))
    return unrolled(costs, entries[whole])


def peak_elements(costs: Costs, tree: Tree) -> int:
    """Elements that partial results and the output hold at the worst moment, in the order of the tree."""
    alive: dict[int, int] = {}
    peak = 0
    for left, right in tree:
        alive[left | right] = costs.held(left | right)
        peak = max(peak, sum(alive.values()))
        if not costs.training:
            alive.pop(left, None)
            alive.pop(right, None)
    return peak


def from_left(singles: Sequence[int]) -> Tree:
    """The operands as they come, each contracted with what those before it gave."""
    tree, whole = [], singles[0]
    for single in singles[1:]:
        tree.append((whole, single))
        whole |= single
    return tree


def random_tree(problem: Problem, rng: random.Random) -> Tree:
    """Any tree, each step drawn evenly from the products that exist: for tests and for comparing paths."""
    parts, tree = [1 << i for i in range(len(problem))], []
    while len(parts) > 1:
        pairs = [p for p in itertools.combinations(parts, 2) if problem.pair(*p) is not None]
        if not pairs:
            return from_left([1 << i for i in range(len(problem))])
        left, right = rng.choice(pairs)
        parts = [p for p in parts if p not in (left, right)] + [left | right]
        tree.append((left, right))
    return tree


def linear_path(problem: Problem, tree: Tree) -> tuple[tuple[int, int], ...]:
    """A tree as opt_einsum writes it: positions in a list from which both go and to whose end the result comes."""
    parts, path = [1 << i for i in range(len(problem))], []
    for left, right in tree:
        i, j = sorted((parts.index(left), parts.index(right)))
        path.append((i, j))
        parts = [p for p in parts if p not in (left, right)] + [left | right]
    return tuple(path)
