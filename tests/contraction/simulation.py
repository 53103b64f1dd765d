"""What a tree really costs: its steps carried out one multiplication at a time, and what is alive at each moment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from growarray.contraction.cost import Costs
from growarray.contraction.machine import CPU
from growarray.contraction.problem import Problem
from growarray.contraction.tree import Tree

__all__ = ["Counted", "alive_at_most", "all_trees", "carried_out", "costs_of", "least_alive"]


class Counted(NamedTuple):
    """What carrying out a tree gave: the result in the order of the output, and the operations of each step."""

    result: np.ndarray
    operations: list[int]


class _Partial(NamedTuple):
    modes: tuple[str, ...]
    values: np.ndarray


def costs_of(problem: Problem, *, training: bool = False, block: int = 0, cores: int = 1) -> Costs:
    """Costs on the default machine, in blocks of ``block``, or of the whole batch."""
    whole = problem.size[problem.block] if problem.block is not None else 1
    machine = replace(CPU, cores=cores)
    return Costs(problem, machine, training=training, block=block or max(whole, 1))


def carried_out(problem: Problem, arrays: Sequence[np.ndarray], tree: Tree) -> Counted:
    """Every step of a tree by loops. A multiplication counts one, and one more for the sum it is added to, if any.

    Positions in the padding are multiplied too; only zeros pad. Modes of one operand alone are summed first, uncounted.
    """
    parts: dict[int, _Partial] = {}
    for i, (term, array) in enumerate(zip(problem.equation.terms, arrays, strict=True)):
        others = {m for k, other in enumerate(problem.equation.terms) if k != i for m in other}
        lone = [m for m in term if m not in others and m not in problem.output]
        values = np.sum(array, axis=tuple(term.index(m) for m in lone)) if lone else np.asarray(array)
        parts[1 << i] = _Partial(tuple(m for m in term if m not in lone), values)
    operations = []
    for left, right in tree:
        rest = {mode for mask, part in parts.items() if mask not in (left, right) for mode in part.modes}
        kept = rest | set(problem.equation.output)
        made, count = _multiplied(problem, parts.pop(left), parts.pop(right), kept)
        parts[left | right] = made
        operations.append(count)
    last = parts[problem.everything]
    return Counted(last.values.transpose([last.modes.index(m) for m in problem.output]), operations)


def _is_feature(problem: Problem, part: _Partial, mode: str) -> bool:
    """Whether a mode has the feature map's size here; sizes of the two are different in what this is used for."""
    return part.values.shape[part.modes.index(mode)] == problem.conv[mode].size


def _multiplied(problem: Problem, left: _Partial, right: _Partial, kept: set[str]) -> tuple[_Partial, int]:
    met = [m for m in problem.conv if m in left.modes and m in right.modes]
    union = [*left.modes, *(m for m in right.modes if m not in left.modes)]
    plain = [m for m in union if m not in met]
    size = {m: n for part in (left, right) for m, n in zip(part.modes, part.values.shape, strict=True)}
    out = [m for m in union if m in kept]
    extent = size | {m: problem.conv[m].out for m in met}
    values = np.zeros([extent[m] for m in out])
    sums = bool(met) or len(out) < len(union)
    count = 0
    loops = [range(size[m]) for m in plain]
    loops += [range(problem.conv[m].out) for m in met] + [range(problem.conv[m].taps) for m in met]
    for chosen in itertools.product(*loops):
        at = dict(zip(plain, chosen, strict=False))
        q = dict(zip(met, chosen[len(plain) :], strict=False))
        t = dict(zip(met, chosen[len(plain) + len(met) :], strict=True))
        product = 1.0
        for part in (left, right):
            index = []
            for m in part.modes:
                if m not in q:
                    index.append(at[m])
                elif _is_feature(problem, part, m):
                    axis = problem.conv[m].axis
                    index.append(q[m] * axis.stride + t[m] * axis.dilation - axis.before)
                else:
                    index.append(t[m])
            inside = all(0 <= i < n for i, n in zip(index, part.values.shape, strict=True))
            product *= part.values[tuple(index)] if inside else 0.0
        count += 1 + sums
        values[tuple((at | q)[m] for m in out)] += product
    return _Partial(tuple(out), values), count


def all_trees(problem: Problem, operands: Sequence[int] | None = None) -> Iterator[Tree]:
    """Every tree of products that exist, each once, as pairs from the leaves up."""
    leaves = tuple(1 << i for i in range(len(problem))) if operands is None else tuple(operands)
    if len(leaves) == 1:
        yield []
        return
    first, rest = leaves[0], leaves[1:]
    for count in range(len(rest)):
        for chosen in itertools.combinations(rest, count):
            one, other = (first, *chosen), tuple(p for p in rest if p not in chosen)
            if problem.pair(sum(one), sum(other)) is not None:
                for a in all_trees(problem, one):
                    for b in all_trees(problem, other):
                        yield [*a, *b, (sum(one), sum(other))]


def alive_at_most(costs: Costs, tree: Tree) -> int:
    """Elements of partial results alive at the worst moment, the steps taken in the order of the tree."""
    alive: dict[int, int] = {}
    worst = 0
    for left, right in tree:
        alive[left | right] = costs.held(left | right)
        worst = max(worst, sum(alive.values()))
        if not costs.training:
            alive.pop(left, None)
            alive.pop(right, None)
    return worst


def least_alive(costs: Costs, tree: Tree) -> int:
    """The same in the best order: every order of the two halves of every step is tried."""
    halves = {left | right: (left, right) for left, right in tree}

    def orders(whole: int) -> Iterator[Tree]:
        if whole not in halves:
            yield []
            return
        left, right = halves[whole]
        for a in orders(left):
            for b in orders(right):
                yield [*a, *b, (left, right)]
                yield [*b, *a, (left, right)]

    return min(alive_at_most(costs, order) for order in orders(costs.problem.everything))
