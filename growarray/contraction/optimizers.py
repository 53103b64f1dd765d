"""Optimizers that are not this library's: opt_einsum's by name, and any function or object with their signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from growarray.backend import load
from growarray.contraction.problem import Problem
from growarray.errors import PlanError, shown

__all__ = ["optimizer_named", "optimizer_path"]

Optimizer = Callable[..., Sequence[tuple[int, ...]]]


def optimizer_named(name: str, others: Sequence[str]) -> Optimizer:
    """An optimizer of opt_einsum. Raises PlanError, which names ``others`` too, if there is none of this name."""
    try:
        finder: Optimizer = load("opt_einsum.paths").get_path_fn(name)
    except KeyError as error:
        known = [*others, "auto", "auto-hq", "optimal", "dp", "greedy", "random-greedy", "branch-2"]
        raise PlanError(f"optimize: unknown {shown(name)}; expected a path or one of {known}") from error
    return finder


def optimizer_path(problem: Problem, finder: Optimizer, limit: int | None) -> Sequence[tuple[int, ...]]:
    """A path on the window view: a feature map has output and kernel positions in place of its own.

    It charges a step before the convolution at the size of all windows, which is why ``'auto'`` is another search.
    """
    if len(problem) < 2:
        return []
    inputs, sizes = [], {name: max(size, 1) for name, size in problem.size.items()}  # 'dp' finds nothing at size 0
    for i, operand in enumerate(problem.operands):
        modes = set()
        for name in operand.modes:
            conv = problem.conv.get(name)
            if conv is None:
                modes.add(name)
            else:
                modes |= {name, f"{name}'"} if conv.feature == i else {f"{name}'"}
                sizes[name], sizes[f"{name}'"] = conv.out, conv.taps
        inputs.append(frozenset(modes))
    try:
        limits = (limit,) if _takes(finder, 4) else ()  # the path is held against the limit in any case
        return finder(inputs, frozenset(problem.output), sizes, *limits)
    except Exception as error:  # an optimizer may be anyone's
        raise PlanError(f"optimize {shown(finder)} failed on '{problem.equation}': {error}") from error


def _takes(finder: Callable[..., Any], count: int) -> bool:
    """Whether a function takes so many arguments by position: cotengra's optimizers have no memory limit."""
    try:
        inspect.signature(finder).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a builtin tells nothing
        pass
    return True
