"""A plan's order for other tools: the equation of each step, and the tree as plain data; opt_einsum takes ``path``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growarray.contraction.equation import ELLIPSIS
from growarray.contraction.optimizers import plain_view
from growarray.contraction.plan import Plan
from growarray.errors import PlanError


def single_steps(plan: Plan) -> list[dict[str, Any]]:
    """Each step as an equation of its own, with what :func:`growarray.contraction.contract` takes for it.

    ``operands`` are places in a list that begins with the plan's operands: a step takes both out and puts its result at
    the end, as in opt_einsum's paths. The rest are keyword arguments, and the equation. Modes keep their names; where
    no term has two of them side by side they are single letters, for that is how such an equation is read.
    Raises PlanError for equations with ``...``.

    >>> from growarray.contraction import plan
    >>> made = plan("n c x, r c, x r -> n r x | x", (2, 3, 9), (4, 3), (3, 4), padding=1, optimize=[(0, 1), (0, 1)])
    >>> for step in single_steps(made):
    ...     print(step["operands"], step["equation"])
    (0, 1) n c x, r c -> r n x
    (1, 0) r n x, x r -> n r x | x
    """
    problem = plan.problem
    if any(ELLIPSIS in term for term in problem.equation.terms):
        raise PlanError(f"'{plan.equation}': name the modes that '...' stands for, to write single steps")
    parts, found = [1 << i for i in range(len(problem))], []
    for left, right in plan.tree:
        pair = problem.pair(left, right)
        first, second = (left, right) if pair is None else (pair.feature_mask, pair.kernel_mask)
        whole = left | right
        met = [m for m, conv in problem.conv.items() if first >> conv.feature & 1 and second >> conv.kernel & 1]
        output = problem.output if whole == problem.everything else problem.modes(whole)
        terms = (_term(plan, first), _term(plan, second), output)
        name = _names(terms)
        axes = {name[m]: problem.conv[m].axis for m in met}
        one, other, result = (" ".join(name[m] for m in term) for term in terms)
        step: dict[str, Any] = {"operands": (parts.index(first), parts.index(second))}
        step["equation"] = f"{one}, {other} -> {result}"
        if met:
            step["equation"] += f" | {', '.join(axes)}"
            step["stride"] = {m: axis.stride for m, axis in axes.items()}
            step["padding"] = {m: (axis.before, axis.after) for m, axis in axes.items()}
            step["dilation"] = {m: axis.dilation for m, axis in axes.items()}
            step["padding_mode"] = {m: axis.padding_mode for m, axis in axes.items()}
        found.append(step)
        parts = [*(part for part in parts if part not in (left, right)), whole]
    return found


def _term(plan: Plan, part: int) -> tuple[str, ...]:
    """Modes of an operand as the equation writes it, or of a partial result as it is kept."""
    problem = plan.problem
    is_operand = part & (part - 1) == 0
    return problem.terms[part.bit_length() - 1] if is_operand else problem.modes(part)


def _names(terms: Sequence[tuple[str, ...]]) -> dict[str, str]:
    """What a step calls its modes: letters if no term has a blank, for then every letter is read as a mode."""
    modes = list(dict.fromkeys(m for term in terms for m in term))
    if any(len(term) > 1 for term in terms) or all(len(m) == 1 for m in modes):
        return {m: m for m in modes}
    return dict(zip(modes, "abc", strict=False))


def tree_dict(plan: Plan) -> dict[str, Any]:
    """The tree as cotengra writes a contraction (``inputs``, ``output``, ``size_dict``), with its path.

    ``path`` counts as opt_einsum does, ``ssa_path`` numbers results after the operands, ``sliced_inds`` are the modes
    that are cut. cotengra knows no convolution modes: ``inputs`` are the window view, in which a feature map has output
    and kernel positions (``x`` and ``x'``), and what they mean is under ``convolutions``.

    >>> from growarray.contraction import plan
    >>> tree_dict(plan("i j, k l, j k -> i l", (2, 3), (4, 5), (3, 4), optimize=[(0, 2), (0, 1)]))["ssa_path"]
    [[0, 2], [1, 3]]
    """
    problem = plan.problem
    inputs, _, sizes = plain_view(problem, "windows")
    number = {1 << i: i for i in range(len(problem))}
    ssa = []
    for left, right in plan.tree:
        ssa.append(sorted((number[left], number[right])))
        number[left | right] = len(problem) + len(ssa) - 1
    used = {mode for term in inputs for mode in term}
    found: dict[str, Any] = {
        "inputs": [sorted(term) for term in inputs],
        "output": list(problem.output),
        "size_dict": {mode: size for mode, size in sizes.items() if mode in used},
        "path": [list(pair) for pair in plan.path],
        "ssa_path": ssa,
        "sliced_inds": list(plan.slices),
    }
    if problem.conv:
        found["convolutions"] = {
            m: {"size": c.size, "taps": c.taps, "stride": c.axis.stride, "padding": [c.axis.before, c.axis.after],
                "dilation": c.axis.dilation}
            for m, c in problem.conv.items()
        }  # fmt: skip
    return found
