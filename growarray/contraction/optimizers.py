"""External optimizers: opt_einsum's by name, and any function or object with their signature.

None of them knows convolution modes. So each is shown two plain views of an equation that has some, and of both paths
the better one is taken. Those that draw many trees judge each of them by its cost here: opt_einsum's random ones,
cotengra's ``HyperOptimizer`` and ``ReusableHyperOptimizer``.
"""

from __future__ import annotations

import copy
import inspect
import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from growarray.backend import load
from growarray.contraction.problem import Problem
from growarray.errors import PlanError, shown

Path = Sequence[tuple[int, ...]]
Optimizer = Callable[..., Path]
Judge = Callable[[Path], float]
View = tuple[list[frozenset[str]], frozenset[str], dict[str, int]]


def optimizer_named(name: str, others: Sequence[str]) -> Optimizer:
    """An optimizer of opt_einsum. Raises PlanError, which names ``others`` too, if there is none of this name."""
    paths = load("opt_einsum.paths")
    try:
        finder: Optimizer = paths.get_path_fn(name)
    except KeyError as error:
        known = [*others, "auto", "auto-hq", "optimal", "dp", "greedy", "random-greedy", "branch-2"]
        raise PlanError(f"optimize: unknown {shown(name)}; expected a path or one of {', '.join(known)}") from error
    return load("opt_einsum").RandomGreedy(max_repeats=_REPEATS[name]) if name in _REPEATS else finder


_REPEATS = {"random-greedy": 32, "random-greedy-128": 128}  # as opt_einsum's functions of these names


def optimizer_paths(
    problem: Problem, finder: Optimizer, limit: int | None, judged: Judge, told: str | None
) -> list[Path]:
    """The path that an optimizer gives for a plain equation, or one for each view of an equation with convolutions.

    judged : what a path costs here    told : what that depends on, for optimizers that keep paths; None if unknown
    """
    if len(problem) < 2:
        return [[]]
    try:
        if not problem.conv:
            return [_asked(_fresh(finder), plain_view(problem, "windows"), limit)]
        found = []
        for kind in _VIEWS:
            with _judging(_fresh(finder), judged, told) as one:
                found.append(_asked(one, plain_view(problem, kind), limit))
        return found
    except Exception as error:  # an optimizer may be anyone's
        raise PlanError(f"optimize {shown(finder)} failed on '{problem.equation}': {error}") from error


_VIEWS = ("pointwise", "windows")


def plain_view(problem: Problem, kind: str) -> View:
    """Modes of the operands, those of the output, and sizes.

    pointwise : kernels have one position: the convolution is charged too little
    windows : a feature map has output and kernel positions: all before the convolution is charged them
    """
    inputs, sizes = [], {name: max(size, 1) for name, size in problem.size.items()}  # 'dp' finds nothing at size 0
    for i, operand in enumerate(problem.operands):
        modes = set()
        for name in operand.modes:
            conv, taps = problem.conv.get(name), f"{name}'"
            if conv is None:
                modes.add(name)
                continue
            sizes[name], sizes[taps] = conv.out, conv.taps
            if conv.feature == i:
                modes |= {name, taps} if kind == "windows" else {name}
            elif kind == "windows":
                modes.add(taps)
        inputs.append(frozenset(modes))
    return inputs, frozenset(problem.output), sizes


def _fresh(finder: Any) -> Any:
    """An optimizer that keeps the best tree of one equation, without what it kept; any other as it is."""
    if isinstance(finder, load("opt_einsum.paths").BranchBound):
        return copy.deepcopy(finder)
    if hasattr(finder, "best_ssa_path"):  # cotengra's RandomGreedyOptimizer
        finder = copy.copy(finder)
        finder.best_ssa_path, finder.best_flops = None, math.inf
    elif hasattr(finder, "best_score"):  # its HyperOptimizer; what it reports afterwards is of the last search
        finder.best, finder.best_score = {"score": math.inf, "size": math.inf, "flops": math.inf}, math.inf
    return finder


def _asked(finder: Optimizer, view: View, limit: int | None) -> Path:
    try:
        inspect.signature(finder).bind(*[None] * 4)
    except TypeError:  # it takes no memory limit; the path is held against it in any case
        return finder(*view)
    except ValueError:  # a builtin tells nothing
        pass
    return finder(*view, limit)


@contextmanager
def _judging(finder: Any, judged: Judge, told: str | None) -> Iterator[Any]:
    """The optimizer with our cost in place of its own, if it has a place for one."""
    if isinstance(finder, load("opt_einsum.path_random").RandomOptimizer):
        yield _judging_random(finder, judged)
    elif type(finder).__module__.startswith("cotengra.hyperoptimizers"):
        # subtrees are left as they are: they would be put in order by the operations of the view
        before = _set(finder, minimize=_cotengra_objective(judged), reconf_opts=None)
        if hasattr(finder, "hash_query"):  # it keeps paths by the view alone, which does not say what they cost here
            finder.hash_query = _with_key(finder.hash_query, told or uuid.uuid4().hex)
        try:
            yield finder
        finally:
            _set(finder, **before)
            vars(finder).pop("hash_query", None)
    else:
        yield finder


def _set(finder: Any, **values: Any) -> dict[str, Any]:
    """Set options of one of cotengra's optimizers, or of those that a reusable one makes; returns what they were."""
    options = getattr(finder, "_suboptimizer_kwargs", None)
    if options is None:
        before = {name: getattr(finder, name) for name in values}
        for name, value in values.items():
            setattr(finder, name, value)
        return before
    before = {name: options.get(name, usual) for name, usual in (("minimize", "flops"), ("reconf_opts", "auto"))}
    options.update(values)
    return before


def _with_key(query: Callable[..., Any], told: str) -> Callable[..., Any]:
    """The key under which a path is kept, with one more text in it."""
    return lambda inputs, output, sizes: query(inputs, output, {**sizes, told: 1})


def _judging_random(finder: Any, judged: Judge) -> Any:
    """A copy of one of opt_einsum's random optimizers whose trees cost what they cost here."""
    to_linear, found = load("opt_einsum.paths").ssa_to_linear, copy.copy(finder)
    found.costs, found.sizes, found.best = [], [], {"flops": math.inf, "size": math.inf}

    def setup(*view: Any) -> tuple[Callable[..., Any], Any]:
        trial, arguments = finder.setup(*view)

        def ours(*given: Any) -> tuple[Any, float, Any]:
            ssa_path, _, size = trial(*given)
            return ssa_path, judged(to_linear(ssa_path)), size

        return ours, arguments

    found.setup = setup
    return found


def _cotengra_objective(judged: Judge) -> Any:
    """An objective that scores a tree of cotengra by its cost here."""

    class Cost(load("cotengra.scoring").FlopsObjective):  # type: ignore[misc]
        __slots__ = ()

        def __call__(self, trial: Any) -> float:
            plain: float = super().__call__(trial)  # which fills in what a trial reports
            cost = judged(trial["tree"].get_path())
            return math.log2(1.0 + 1e12 * cost) + 1e-6 * plain  # seconds are small, and a score must be positive

    return Cost()
