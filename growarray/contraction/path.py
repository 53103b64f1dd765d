"""The tree that ``optimize=`` asks for: a search, one of the presets, an external optimizer, or an explicit path."""

from __future__ import annotations

import math
import operator
from typing import Any

from growarray.contraction.cost import Costs
from growarray.contraction.objective import Objective, objective_named
from growarray.contraction.optimizers import optimizer_named, optimizer_paths
from growarray.contraction.problem import Problem
from growarray.contraction.search import EXACT, Search, search, total
from growarray.contraction.tree import Tree, from_left, ordered, peak_elements
from growarray.errors import PlanError, shown

PRESETS = ("factorized", "mobilenet", "reconstructed")


def find_tree(costs: Costs, optimize: Any, objective: Objective, limit: int | None) -> Tree:
    """The tree that ``optimize`` asks for: ``'auto'``, False (from the left), a preset, an optimizer or a path.

    limit : elements that partial results may hold at once, or None

    Raises PlanError: the name is unknown, the path is not one, or no tree meets the limit (the message gives the
    least).
    """
    problem = costs.problem
    if searches(optimize):
        return ordered(costs, _auto(costs, objective, limit, optimize if isinstance(optimize, Search) else None))
    if isinstance(optimize, str) and optimize in PRESETS:
        tree = _preset(costs, optimize)
    elif optimize is False:
        tree = from_left([1 << i for i in range(len(problem))])
    elif isinstance(optimize, str) or callable(optimize):
        finder = optimizer_named(optimize, PRESETS) if isinstance(optimize, str) else optimize
        tree = _from_optimizer(costs, finder, shown(optimize), objective, limit)
    else:
        tree = _from_path(problem, optimize)
    if limit is not None and (peak := peak_elements(costs, tree)) > limit:
        least = search(costs, objective_named("memory"))
        raise PlanError(
            f"memory_limit: the path {shown(optimize)} holds {peak} elements at once, allowed are {limit}; "
            f"the least any path needs is {peak_elements(costs, least)}, found by optimize='auto'"
        )
    return tree


def _from_optimizer(costs: Costs, finder: Any, name: str, objective: Objective, limit: int | None) -> Tree:
    """The best tree of an external optimizer, by its cost here."""

    def judged(path: Any) -> float:
        try:
            return total(costs, objective, _from_path(costs.problem, path))
        except PlanError:  # it joins convolution modes the wrong way round
            return math.inf

    problem = costs.problem
    paths = optimizer_paths(problem, finder, limit, judged, _told(costs, objective))
    try:
        return _from_path(problem, min(paths, key=judged) if len(paths) > 1 else paths[0])
    except PlanError as error:
        remedy = "optimize='auto', which knows convolution modes" if problem.conv else "another one"
        raise PlanError(
            f"optimize: {name} gave no path that runs '{problem.equation}', use {remedy}: {error}"
        ) from None


def _told(costs: Costs, objective: Objective) -> str | None:
    """All that a path's cost depends on, in words; None for a function, which has none that last."""
    if objective.name == "a function":
        return None
    problem, machine = costs.problem, costs.machine if objective.is_priced else None
    axes = [conv.axis for conv in problem.conv.values()]
    of_plan = (costs.training, costs.library, costs.block, costs.constants, problem.itemsize, machine)
    return f"{objective.name} {problem.equation} {problem.shapes} {axes} {of_plan}"


def alternative_trees(costs: Costs, optimize: Any, objective: Objective) -> list[Tree]:
    """Trees to hold against the one of ``'auto'`` once blocks are known: of fewest operations, and of the presets."""
    if not (_is_auto(optimize) and objective.name == "time"):
        return []
    return [ordered(costs, _auto(costs, objective_named("flops"), None)), *_presets(costs)]


def searches(optimize: Any) -> bool:
    """Whether the tree is this library's to find: ``'auto'``, or a :class:`Search`."""
    return isinstance(optimize, Search) or _is_auto(optimize)


def _is_auto(optimize: Any) -> bool:
    return isinstance(optimize, str) and optimize == "auto"


def _presets(costs: Costs) -> list[Tree]:
    """The presets, without those in which two convolution modes would meet the wrong way round."""
    trees = [_preset(costs, name) for name in PRESETS] if costs.problem.conv else []
    return [ordered(costs, tree) for tree in trees if all(costs.step(*pair) is not None for pair in tree)]


def _auto(costs: Costs, objective: Objective, limit: int | None, how: Search | None = None) -> Tree:
    """The search; above :data:`EXACT` operands it is not exact, and begins with the presets."""
    return search(costs, objective, limit, None, how, _presets(costs) if len(costs.problem) > EXACT else ())


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
        joined = chosen[0]
        for operand in chosen[1:]:
            if problem.pair(joined, operand) is None:
                raise PlanError(
                    f"path {shown(path)}: at step {step} two convolution modes meet, one with its kernel on the "
                    "left and one with its kernel on the right; contract one of them before"
                )
            tree.append((joined, operand))
            joined |= operand
        parts.append(joined)
    if len(parts) != 1:
        raise PlanError(f"path {shown(path)}: {len(parts)} operands are left, expected one result")
    return tree


def _preset(costs: Costs, name: str) -> Tree:
    """The three usual paths of a factorized convolution.

    ``reconstructed``: the whole kernel first. ``mobilenet``: channels in, all convolution modes jointly, the rest.
    ``factorized``: channels in, one convolution mode after the other, the rest; convolution factors that hang on a
    core, not on the feature map's own modes (Tucker), are joined with it first, as in TensorLy-Torch.
    """
    problem, flops = costs.problem, objective_named("flops")
    if not problem.conv:
        raise PlanError(f"optimize={shown(name)} needs a convolution mode; '{problem.equation}' has none, use 'auto'")
    feature = 1 << next(iter(problem.conv.values())).feature
    factors = [1 << i for i in range(len(problem)) if 1 << i != feature]
    if name == "reconstructed":
        return [*search(costs, flops, None, factors), (feature, sum(factors))] if factors else []
    channels_in, kernels, cores, rest = _factor_roles(problem, feature, factors)
    if cores or name == "mobilenet":
        joined = search(costs, flops, None, [*cores, *kernels])
        return [*joined, *from_left([feature, *channels_in, sum([*cores, *kernels]), *rest])]
    return from_left([feature, *channels_in, *kernels, *rest])


def _factor_roles(problem: Problem, feature: int, factors: list[int]) -> tuple[list[int], ...]:
    """Factors of the input channels, of the convolutions, cores between the latter, and all others.

    A core has a mode that only it and one convolution factor have, and no mode of the output; factors that have one
    come last.
    """
    output, convolving = set(problem.output), {1 << conv.kernel for conv in problem.conv.values()}
    modes = {factor: set(problem.modes(factor)) for factor in factors}
    summed = set(problem.modes(feature)) - set(problem.conv) - output
    kernels = [f for f in factors if f in convolving]
    channels_in = [f for f in factors if f not in kernels and modes[f] & summed]
    others = [f for f in factors if f not in kernels and f not in channels_in]
    cores = [
        f
        for f in others
        if not modes[f] & output and any(problem.operands_with_mode[m] ^ f in kernels for m in modes[f])
    ]
    rest = sorted((f for f in others if f not in cores), key=lambda f: bool(modes[f] & output))
    return channels_in, kernels, cores, rest
