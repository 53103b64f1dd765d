"""The contraction paths that ``growarray bench`` compares, one for each distinct order, with what they should cost."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import opt_einsum

from growarray.cli.bench.equation import Contraction
from growarray.contraction import Plan
from growarray.contraction.path import PRESETS
from growarray.contraction.table import quantity, seconds
from growarray.contraction.tree import Tree, linear_path, random_tree
from growarray.errors import PlanError

_ABSURD = 12.0  # times the best predicted time above which a path drawn at random is left out
_HEAVY = 1 << 31  # bytes of partial results above which it is left out too
_HEAVIEST, _LONGEST = 1 << 33, 10.0  # bytes, and seconds forward, above which a path that a search chooses is left out
_DRAWS, _MOST_DRAWS = 20, 1500  # trees that are drawn for each one that is wanted, and in all
_OPTIMAL = 8  # operands up to which opt_einsum's exhaustive search ends soon

Path = tuple[tuple[int, ...], ...]


@dataclass
class Candidate:
    """One order of contraction under all names that lead to it.

    charged : operations that opt_einsum counts for it, by name of its search
    """

    names: list[str]
    forward: Plan
    training: Plan | None
    charged: dict[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its names in one line, those of one kind together: ``auto: time, flops; patterns``."""
        kinds: dict[str, list[str]] = {}
        for name in self.names:
            kind, _, option = name.partition(": ")
            kinds.setdefault(kind, []).append(option)
        return "; ".join(f"{kind}: {', '.join(options)}" if options[0] else kind for kind, options in kinds.items())

    @property
    def order(self) -> str:
        """The path as opt_einsum writes it, positions without brackets: ``03 04 03``."""
        return " ".join(f"{i}{j}" if max(i, j) < 10 else f"{i}.{j}" for i, j in self.forward.path)


def candidates_for(
    layer: Contraction,
    count: int,
    *,
    seed: int = 0,
    training: bool = True,
    device: str | None = None,
    within: float = _ABSURD,
    remarks: list[str] | None = None,
) -> list[Candidate]:
    """``count`` distinct orders if there are so many: those that searches and presets choose, then drawn ones.

    within : paths drawn at random that should take more than this many times the best are left out
    remarks : takes a line for each path of a search or preset that is left out, since it is too large to measure
    """
    candidates: dict[frozenset[tuple[int, int]], Candidate] = {}

    def add(name: str, path: Any, charged: int | None = None) -> None:
        forward = layer.plan(path, device=device)
        key = frozenset((min(pair), max(pair)) for pair in forward.tree)
        if key not in candidates:
            again = layer.plan(forward.path, training=True, device=device) if training else None
            bytes_ = max(made.peak_bytes for made in (forward, again or forward))
            if candidates and (bytes_ > _HEAVIEST or forward.seconds > _LONGEST):
                if remarks is not None:
                    held, taken = quantity(bytes_, "B"), seconds(forward.seconds)
                    remarks.append(f"{name}: not measured, it should hold {held} and take {taken}")
                return
            candidates[key] = Candidate([], forward, again)
        if name not in candidates[key].names:
            candidates[key].names.append(name)
        if charged is not None:
            candidates[key].charged[name] = charged

    for name, path, charged in _named(layer, training, device):
        add(name, path, charged)
    best = min(c.forward.seconds for c in candidates.values())
    for path in _drawn(layer, min(count * _DRAWS, _MOST_DRAWS), seed):
        if len(candidates) >= count:
            break
        drawn = layer.plan(path, device=device)
        if drawn.seconds <= within * best and drawn.peak_bytes <= _HEAVY:
            before = len(candidates)
            add("drawn", path)
            best = min(best, drawn.seconds) if len(candidates) > before else best
    number = 0
    for candidate in candidates.values():
        if candidate.names == ["drawn"]:
            number += 1
            candidate.names = [f"drawn {number}"]
        elif "drawn" in candidate.names:
            candidate.names.remove("drawn")
    return list(candidates.values())


def _named(layer: Contraction, training: bool, device: str | None) -> Iterator[tuple[str, Any, int | None]]:
    """What searches and presets choose: name, path, and the operations that opt_einsum counts for its own choice."""
    for minimize in ("time", "flops", "memory"):
        yield f"auto: {minimize}", layer.plan(minimize=minimize, device=device).path, None
        if training and minimize == "time":
            yield "auto: training", layer.plan(training=True, device=device).path, None
    for name in PRESETS if layer.problem.conv else ():
        try:
            yield name, layer.plan(name, device=device).path, None
        except PlanError:  # its order joins convolution modes the wrong way round
            continue
    if len(layer.shapes) > 2:
        exact = "optimal" if len(layer.shapes) <= _OPTIMAL else "dp"
        for name in (exact, "greedy"):
            path, charged = window_path(layer, name)
            try:
                layer.plan(path, device=device)
            except PlanError:  # its order joins convolution modes the wrong way round
                continue
            yield f"{'windows' if layer.problem.conv else 'opt_einsum'}: {name}", path, charged
        if layer.problem.conv:
            path, charged = pattern_path(layer)
            yield "patterns", path, charged


def _drawn(layer: Contraction, draws: int, seed: int) -> Iterator[Path]:
    problem, rng, seen = layer.problem, random.Random(seed), set()
    for _ in range(draws):
        tree: Tree = random_tree(problem, rng)
        key = frozenset((min(pair), max(pair)) for pair in tree)
        if key not in seen:
            seen.add(key)
            yield linear_path(problem, tree)


def window_path(layer: Contraction, optimize: Any) -> tuple[Path, int]:
    """What opt_einsum chooses on the window view, in which the input has output and kernel positions, and what it
    counts for it; ``optimize`` may be a path."""
    problem = layer.problem
    terms = []
    for i, operand in enumerate(problem.operands):
        both = [m for m in operand.modes if m in problem.conv and problem.conv[m].feature == i]
        taps = [f"{m}'" if m in problem.conv and m not in both else m for m in operand.modes]
        terms.append([*taps, *(f"{m}'" for m in both)])
    sizes = problem.size | {m: conv.out for m, conv in problem.conv.items()}
    sizes |= {f"{m}'": conv.taps for m, conv in problem.conv.items()}
    path, charged = _contract(terms, list(problem.output), sizes, optimize)
    return tuple(tuple(sorted(step)) for step in path), charged


def pattern_path(layer: Contraction) -> tuple[Path, int]:
    """What opt_einsum chooses if every convolution mode is an operand of its own, a pattern.

    A pattern P[input position, output position, kernel position] is one if the three belong together. Returns the
    order without the patterns, and the operations that opt_einsum counts with them.
    """
    problem = layer.problem
    terms = [
        [m if m not in problem.conv else f"{m}''" if problem.conv[m].feature == i else f"{m}'" for m in operand.modes]
        for i, operand in enumerate(problem.operands)
    ]
    sizes = dict(problem.size)
    for m, conv in problem.conv.items():
        sizes |= {m: conv.out, f"{m}'": conv.taps, f"{m}''": conv.size}
        terms.append([f"{m}''", m, f"{m}'"])
    path, charged = _contract(terms, list(problem.output), sizes, "dp")
    parts, tree = [1 << i if i < len(problem) else 0 for i in range(len(terms))], []
    for step in path:
        chosen = [parts[i] for i in step]
        parts = [part for i, part in enumerate(parts) if i not in step]
        whole = 0
        for part in chosen:
            if whole and part:
                tree.append((whole, part))
            whole |= part
        parts.append(whole)
    return linear_path(problem, tree), charged


def _contract(
    terms: Sequence[Sequence[str]], output: Sequence[str], sizes: dict[str, int], optimize: Any
) -> tuple[list[tuple[int, ...]], int]:
    """opt_einsum's path and the operations that it counts for it; 'dp' never ends at size 0, which counts as 1."""
    sizes = {name: max(size, 1) for name, size in sizes.items()}
    letter = {name: opt_einsum.get_symbol(i) for i, name in enumerate(sizes)}
    equation = ",".join("".join(letter[m] for m in term) for term in terms) + "->" + "".join(letter[m] for m in output)
    shapes = [tuple(sizes[m] for m in term) for term in terms]
    path, info = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimize)
    return [tuple(step) for step in path], int(info.opt_cost)
