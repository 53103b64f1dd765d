"""Orders of contraction: exact search that knows convolution modes, greedy search, opt_einsum's optimizers, presets.

A tree is a list of pairs of operand sets (bit masks), in the order in which they are contracted.
"""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from growarray.contraction.cost import Costs
from growarray.contraction.optimizers import optimizer_named, optimizer_path
from growarray.contraction.problem import Problem
from growarray.errors import PlanError, shown

__all__ = [
    "EXACT",
    "MINIMIZE",
    "PRESETS",
    "Tree",
    "alternative_trees",
    "find_tree",
    "linear_path",
    "ordered",
    "peak_elements",
    "random_tree",
    "search",
]

EXACT = 8  # operands up to which every tree is looked at
_TRIALS = 64  # greedy trees that are drawn above it
MINIMIZE = ("time", "flops", "memory")
PRESETS = ("factorized", "mobilenet", "reconstructed")

Tree = list[tuple[int, int]]


class _Entry(NamedTuple):
    """A tree of one operand set: what it costs, the elements alive at its worst moment, and its two halves."""

    cost: float
    peak: int
    halves: tuple[int, _Entry, int, _Entry] | None = None


def find_tree(problem: Problem, costs: Costs, optimize: Any, minimize: str, limit: int | None) -> Tree:
    """The tree that ``optimize`` asks for: ``'auto'``, False (from the left), a preset, an optimizer or a path.

    limit : elements that partial results may hold at once, or None

    Raises
    ------
    PlanError
        The name is unknown, the path is not one, or no tree meets the limit (the message gives the least).
    """
    if isinstance(optimize, str) and optimize == "auto":
        return ordered(costs, _auto(problem, costs, minimize, limit))
    if isinstance(optimize, str) and optimize in PRESETS:
        tree = _preset(problem, costs, optimize)
    elif optimize is False:
        tree = _from_left([1 << i for i in range(len(problem))])
    elif isinstance(optimize, str) or callable(optimize):
        finder = optimizer_named(optimize, PRESETS) if isinstance(optimize, str) else optimize
        tree = _from_path(problem, optimizer_path(problem, finder, limit))
    else:
        tree = _from_path(problem, optimize)
    if limit is not None and (peak := peak_elements(costs, tree)) > limit:
        least = search(problem, costs, "memory", None)
        raise PlanError(
            f"memory_limit: the path {shown(optimize)} holds {peak} elements at once, allowed are {limit}; "
            f"the least any path needs is {peak_elements(costs, least)}, found by optimize='auto'"
        )
    return tree


def alternative_trees(problem: Problem, costs: Costs, optimize: Any, minimize: str) -> list[Tree]:
    """Trees to hold against the one of ``'auto'`` once blocks are known: of fewest operations, and of the presets."""
    if not (isinstance(optimize, str) and optimize == "auto" and minimize == "time"):
        return []
    return [ordered(costs, _auto(problem, costs, "flops", None)), *_presets(problem, costs)]


def _presets(problem: Problem, costs: Costs) -> list[Tree]:
    """The presets, without those in which two convolution modes would meet the wrong way round."""
    trees = [_preset(problem, costs, name) for name in PRESETS] if problem.conv else []
    return [ordered(costs, tree) for tree in trees if all(costs.step(*pair) is not None for pair in tree)]


def _auto(problem: Problem, costs: Costs, minimize: str, limit: int | None) -> Tree:
    """The search; above :data:`EXACT` operands it is not exact and looks at the presets, too."""
    best = search(problem, costs, minimize, limit)
    for tree in _presets(problem, costs) if len(problem) > EXACT else ():
        if limit is not None and peak_elements(costs, tree) > limit:
            continue
        if _total(costs, tree, minimize) < _total(costs, best, minimize):
            best = tree
    return best


def _total(costs: Costs, tree: Tree, minimize: str) -> float:
    if minimize == "memory":
        return float(peak_elements(costs, ordered(costs, tree)))
    return float(sum(_known(costs, *pair).total(minimize) for pair in tree))


def search(
    problem: Problem, costs: Costs, minimize: str, limit: int | None = None, operands: Sequence[int] | None = None
) -> Tree:
    """The best tree over ``operands`` (default: all): exact up to :data:`EXACT` of them, greedy above.

    With a limit, the best tree among those that keep it. Raises PlanError if none does.
    """
    singles = [1 << i for i in range(len(problem))] if operands is None else list(operands)
    if len(singles) > EXACT:
        return _greedy_search(problem, costs, minimize, limit, singles)
    entry = _exact(problem, costs, minimize, limit, singles)
    return _unrolled(costs, sum(singles), entry) if len(singles) > 1 else []


def _exact(problem: Problem, costs: Costs, minimize: str, limit: int | None, singles: list[int]) -> _Entry:
    """Dynamic programming over operand sets; with a limit, every set keeps its trees that none beats in both."""
    fronts: dict[int, list[_Entry]] = {single: [_Entry(0.0, 0)] for single in singles}
    weigh = limit is not None or minimize == "memory"
    for count in range(2, len(singles) + 1):
        for chosen in itertools.combinations(singles, count):
            whole = sum(chosen)
            found: list[_Entry] = []
            for left, right in _splits(chosen):
                step = costs.step(left, right)
                if step is None:
                    continue
                own = step.total(minimize)
                for a, b in itertools.product(fronts[left], fronts[right]):
                    peak = _peak(costs, left, a, right, b) if weigh else 0
                    cost = float(peak) if minimize == "memory" else a.cost + b.cost + own
                    entry = _Entry(cost, peak, (left, a, right, b))
                    if limit is None:
                        if not found or cost < found[0].cost:
                            found = [entry]
                    elif peak <= limit:
                        found.append(entry)
            fronts[whole] = found if limit is None else _front(found)
    last = fronts[sum(singles)]
    if not last:
        least = _exact(problem, costs, "memory", None, singles).peak
        raise PlanError(
            f"memory_limit: no path holds fewer than {least} elements at once, allowed are {limit}; "
            f"raise memory_limit to at least {least * costs.problem.itemsize} bytes"
        )
    return min(last, key=lambda entry: (entry.cost, entry.peak))


def _splits(chosen: tuple[int, ...]) -> Iterable[tuple[int, int]]:
    """Every way to cut a set in two, once each: the first operand is always on the left."""
    first, rest = chosen[0], chosen[1:]
    whole = sum(chosen)
    for count in range(len(rest)):
        for more in itertools.combinations(rest, count):
            left = first + sum(more)
            yield left, whole - left


def _peak(costs: Costs, left: int, a: _Entry, right: int, b: _Entry) -> int:
    """Elements alive at the worst moment. Operands are the caller's and not counted; a backward pass keeps all."""
    out = costs.held(left | right)
    if costs.training:
        return a.peak + b.peak + out
    own_a = costs.held(left) if a.halves else 0
    own_b = costs.held(right) if b.halves else 0
    return max(min(max(a.peak, own_a + b.peak), max(b.peak, own_b + a.peak)), own_a + own_b + out)


def _front(entries: list[_Entry]) -> list[_Entry]:
    """Entries that no other beats in cost and peak."""
    kept: list[_Entry] = []
    for entry in sorted(entries, key=lambda e: (e.cost, e.peak)):
        if not kept or entry.peak < kept[-1].peak:
            kept.append(entry)
    return kept


def _unrolled(costs: Costs, operands: int, entry: _Entry) -> Tree:
    """The half first after which the other needs less memory beside it, then the other, then their product."""
    if entry.halves is None:
        return []
    left, a, right, b = entry.halves
    own_a, own_b = (costs.held(half) if e.halves else 0 for half, e in ((left, a), (right, b)))
    left_first = max(a.peak, own_a + b.peak) <= max(b.peak, own_b + a.peak)
    first, second = ((left, a), (right, b)) if left_first else ((right, b), (left, a))
    return [*_unrolled(costs, *first), *_unrolled(costs, *second), (left, right)]


def ordered(costs: Costs, tree: Tree) -> Tree:
    """The products of a tree in the order in which its partial results take the least memory."""
    entries = {1 << i: _Entry(0.0, 0) for i in range(len(costs.problem))}
    for left, right in tree:
        a, b = entries[left], entries[right]
        entries[left | right] = _Entry(0.0, _peak(costs, left, a, right, b), (left, a, right, b))
    return _unrolled(costs, costs.problem.everything, entries[costs.problem.everything])


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


def _greedy_search(problem: Problem, costs: Costs, minimize: str, limit: int | None, singles: list[int]) -> Tree:
    """The best of one greedy tree and :data:`_TRIALS` that sometimes take the second choice; the seed is fixed."""
    rng = random.Random(0)
    best: tuple[float, Tree] | None = None
    least: int | None = None
    for trial in range(_TRIALS + 1):
        tree = _greedy(problem, costs, minimize, singles, rng if trial else None)
        whole = sum(singles) == problem.everything
        peak = peak_elements(costs, ordered(costs, tree)) if whole else 0
        least = peak if least is None else min(least, peak)
        cost = _total(costs, tree, minimize) if whole or minimize != "memory" else 0.0
        if (limit is None or peak <= limit) and (best is None or cost < best[0]):
            best = (cost, tree)
    if best is None:
        raise PlanError(
            f"memory_limit: of {_TRIALS + 1} greedy paths none holds fewer than {least} elements at once, allowed are "
            f"{limit}; raise memory_limit to at least {(least or 0) * costs.problem.itemsize} bytes"
        )
    return best[1]


def _known(costs: Costs, left: int, right: int) -> Any:
    step = costs.step(left, right)
    if step is None:
        raise PlanError("path: two convolution modes meet the wrong way round; contract the operands from the left")
    return step


def _greedy(problem: Problem, costs: Costs, minimize: str, singles: list[int], rng: random.Random | None) -> Tree:
    parts, tree = list(singles), []
    while len(parts) > 1:
        choices = []
        for left, right in itertools.combinations(parts, 2):
            step = costs.step(left, right)
            if step is None:
                continue
            shared = set(problem.modes(left)) & set(problem.modes(right))
            freed = problem.elements(left) + problem.elements(right)
            choices.append((not shared, step.elements - freed, step.total(minimize), left, right))
        if not choices:  # every pair joins convolution modes the wrong way round: from the left there is always a way
            return _from_left(singles)
        choices.sort()
        index = 0 if rng is None else min(int(rng.expovariate(1.2)), len(choices) - 1)
        *_, left, right = choices[index]
        parts = [p for p in parts if p not in (left, right)] + [left | right]
        tree.append((left, right))
    return tree


def _from_left(singles: Sequence[int]) -> Tree:
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
            return _from_left([1 << i for i in range(len(problem))])
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


def _from_path(problem: Problem, path: Any) -> Tree:
    """A tree from opt_einsum's format; more than two at once are taken from the left."""
    parts, tree = [1 << i for i in range(len(problem))], []
    try:
        steps = [tuple(operator.index(i) for i in step) for step in path]
    except (TypeError, ValueError) as error:
        raise PlanError(
            f"optimize: expected 'auto', a name, or a path such as [(0, 1)], found {shown(path)}"
        ) from error
    for step in steps:
        if len(set(step)) != len(step) or not all(0 <= i < len(parts) for i in step) or not step:
            raise PlanError(f"path {shown(path)}: step {step} does not name distinct ones of {len(parts)} operands")
        chosen = [parts[i] for i in step]
        parts = [p for p in parts if p not in chosen]
        whole = chosen[0]
        for other in chosen[1:]:
            if problem.pair(whole, other) is None:
                raise PlanError(
                    f"path {shown(path)}: at step {step} two convolution modes meet, one with its kernel on the "
                    "left and one with its kernel on the right; contract one of them before"
                )
            tree.append((whole, other))
            whole |= other
        parts.append(whole)
    if len(parts) != 1:
        raise PlanError(f"path {shown(path)}: {len(parts)} operands are left over, expected one result")
    return tree


def _preset(problem: Problem, costs: Costs, name: str) -> Tree:
    """The three ways of the field to run a factorized convolution.

    ``reconstructed``: the whole kernel first. ``mobilenet``: channels in, all convolution modes jointly, the rest.
    ``factorized``: channels in, one convolution mode after the other, the rest; convolution factors that hang on a
    core, not on the feature map's own modes (Tucker), are joined with it first, as in TensorLy-Torch.
    """
    if not problem.conv:
        raise PlanError(f"optimize={shown(name)} needs a convolution mode; '{problem.equation}' has none, use 'auto'")
    feature = 1 << next(iter(problem.conv.values())).feature
    others = [1 << i for i in range(len(problem)) if 1 << i != feature]
    if name == "reconstructed":
        return [*search(problem, costs, "flops", None, others), (feature, sum(others))] if others else []
    kernels = {1 << conv.kernel for conv in problem.conv.values()}
    own = {m for m in problem.modes(feature) if m not in problem.conv and m not in problem.output}
    first = [p for p in others if p not in kernels and own & set(problem.modes(p))]
    middle = [p for p in others if p in kernels]
    rest = [p for p in others if p not in first and p not in middle]
    hanging = {m for p in middle for m in problem.modes(p) if m not in problem.conv}
    cores = [p for p in rest if any(problem.operands_with_mode[m] in {p | q for q in middle} for m in problem.modes(p))]
    cores = [p for p in cores if hanging & set(problem.modes(p)) and not set(problem.output) & set(problem.modes(p))]
    rest = sorted((p for p in rest if p not in cores), key=lambda p: bool(set(problem.output) & set(problem.modes(p))))
    tree: Tree = []
    if cores or name == "mobilenet":
        tree += search(problem, costs, "flops", None, [*cores, *middle])
        middle = [sum([*cores, *middle])]
    whole = feature
    for part in [*first, *middle, *rest]:
        tree.append((whole, part))
        whole |= part
    return tree
