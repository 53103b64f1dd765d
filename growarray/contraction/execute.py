"""The steps of one tree for fixed sizes, and how any array library runs them, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from growarray.backend import Array
from growarray.contraction import leaf
from growarray.contraction.path import Tree
from growarray.contraction.problem import Pair, Problem
from growarray.contraction.step import Step
from growarray.errors import PlanError

__all__ = ["Program", "backward_portable", "forward_portable"]


@dataclass(frozen=True)
class Program:
    """The steps of one tree for fixed sizes, in order; ``common`` steps do not depend on the block mode.

    Where one operand is all there is, there are no steps. ``slots`` says which work space a blocked step writes to.
    """

    problem: Problem
    tree: Tree
    steps: tuple[Step, ...]
    common: tuple[int, ...]
    blocked: tuple[int, ...]
    final: tuple[int, ...]
    unfinal: tuple[int, ...]
    slots: dict[int, int]
    flops: int

    @classmethod
    def of(cls, problem: Problem, tree: Tree) -> Program:
        """Build the steps."""
        stored = {1 << i: one.modes for i, one in enumerate(problem.leaves)}
        holder = problem.holders[problem.block] if problem.block is not None else problem.everything
        steps: list[Step] = []
        common: list[int] = []
        blocked: list[int] = []
        flops = 0
        for index, (left, right) in enumerate(tree):
            pair = _pair(problem, left, right)
            step = Step(pair, stored[pair.feature], stored[pair.kernel], problem)
            steps.append(step)
            stored[left | right] = step.out
            (blocked if (left | right) & holder else common).append(index)
            flops += pair.flops
        last = stored[problem.everything]
        final = tuple(last.index(m) for m in problem.output)
        unfinal = tuple(sorted(range(len(final)), key=lambda axis: final[axis]))
        return cls(
            problem, tree, tuple(steps), tuple(common), tuple(blocked), final, unfinal, _slots(steps, blocked), flops
        )


def _slots(steps: Sequence[Step], blocked: Sequence[int]) -> dict[int, int]:
    """Work space of every blocked step: that of a partial result which is used up serves again."""
    slots: dict[int, int] = {}
    held: dict[int, int] = {}
    free: list[int] = []
    for index in blocked:
        pair = steps[index].pair
        slots[index] = free.pop() if free else len(held)
        free += [held.pop(part) for part in (pair.feature, pair.kernel) if part in held]
        held[steps[index].mask] = slots[index]
    return slots


def _pair(problem: Problem, left: int, right: int) -> Pair:
    pair = problem.pair(left, right)
    if pair is None:
        raise PlanError(f"'{problem.equation}': the path joins convolution modes the wrong way round")
    return pair


def forward_portable(
    xp: Any, program: Program, arrays: Sequence[Array], folded: dict[int, Array] | None = None
) -> tuple[Array, dict[int, Array]]:
    """The result and every partial one, with array-API operations alone; ``folded`` ones are not computed again."""
    problem = program.problem
    values = {1 << i: leaf.prepare(xp, x, one) for i, (x, one) in enumerate(zip(arrays, problem.leaves, strict=True))}
    values |= folded or {}
    for step in program.steps:
        if step.mask in values:
            continue
        feature = step.feature(xp, values[step.pair.feature])
        kernel = step.kernel_array(xp, values[step.pair.kernel])
        result = step.run(xp, feature, kernel)
        values[step.mask] = step.stored(xp, result)
    result = xp.permute_dims(values[problem.everything], program.final)
    return (result if program.steps else xp.asarray(result, copy=True)), values


def backward_portable(
    xp: Any, program: Program, shapes: Sequence[tuple[int, ...]], values: dict[int, Array], dy: Array, wanted: int
) -> dict[int, Array]:
    """Gradients by the operands in the mask ``wanted``, with array-API operations alone."""
    problem = program.problem
    gradients = {problem.everything: xp.permute_dims(dy, program.unfinal)}
    if not program.steps:
        gradients = {problem.everything: xp.asarray(gradients[problem.everything], copy=True)}
    for step in reversed(program.steps):
        f, k = step.pair.feature, step.pair.kernel
        d_out = gradients.pop(f | k, None)
        if d_out is None:
            continue
        d_out = step.canonical(xp, d_out)
        if f & wanted:
            d_feature = step.run_d_feature(xp, d_out, step.kernel_array(xp, values[k]))
            gradients[f] = step.d_feature(xp, d_feature)
        if k & wanted:
            d_kernel = step.run_d_kernel(xp, d_out, step.feature(xp, values[f]))
            gradients[k] = step.d_kernel(xp, d_kernel)
    return {
        mask: leaf.unprepare(xp, g, problem.leaves[mask.bit_length() - 1], shapes[mask.bit_length() - 1])
        for mask, g in gradients.items()
    }
