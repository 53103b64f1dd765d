"""The steps of one tree for fixed sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from growarray.backend import Array
from growarray.contraction import operand
from growarray.contraction.problem import Problem
from growarray.contraction.step import Step
from growarray.contraction.tree import Tree

_COLUMNS = 512  # positions that a block of the batch has at least, so that products stay wide
_CACHED = 1 << 18  # elements of the largest partial result of a block


@dataclass(frozen=True)
class Program:
    """The steps of one tree for fixed sizes, in order; ``common`` steps do not depend on the block mode.

    A single operand has no steps.    slots : which work space a blocked step writes to
    final, unfinal : from the last result's axes to the output's, and back
    masks : of the operands, if all are used as they are, else None
    """

    problem: Problem
    steps: tuple[Step, ...]
    common: tuple[Step, ...]
    blocked: tuple[Step, ...]
    final: tuple[int, ...]
    unfinal: tuple[int, ...]
    slots: dict[int, str]
    flops: int
    masks: tuple[int, ...] | None

    @classmethod
    def of(cls, problem: Problem, tree: Tree, library: str = "numpy") -> Program:
        """Build the steps."""
        stored = {1 << i: one.modes for i, one in enumerate(problem.operands)}
        holder = problem.everything if problem.block is None else problem.operands_with_mode[problem.block]
        steps: list[Step] = []
        for left, right in tree:
            pair = problem.pair(left, right)
            if pair is None:
                raise problem.no_pair(left, right)
            steps.append(Step(pair, stored[pair.feature_mask], stored[pair.kernel_mask], problem, library))
            stored[left | right] = steps[-1].out
        blocked = tuple(step for step in steps if step.mask & holder)
        last = stored[problem.everything]
        final = tuple(last.index(m) for m in problem.output)
        return cls(
            problem,
            tuple(steps),
            tuple(step for step in steps if not step.mask & holder),
            blocked,
            final,
            operand.inverse(final),
            _slots(blocked),
            sum(found.flops for pair in tree if (found := problem.operations(*pair))),
            tuple(stored)[: len(problem)] if all(one.is_plain for one in problem.operands) else None,
        )

    def prepared(self, xp: Any, arrays: Sequence[Array]) -> dict[int, Array]:
        """The operands by mask, every mode once."""
        pairs = zip(arrays, self.problem.operands, strict=True)
        return {1 << i: operand.prepare(xp, x, one) for i, (x, one) in enumerate(pairs)}

    def unprepared(self, xp: Any, gradients: Mapping[int, Array], arrays: Sequence[Array]) -> dict[int, Array]:
        """Gradients by the operands from those by :meth:`prepared` ones."""
        found = {}
        for i, (x, one) in enumerate(zip(arrays, self.problem.operands, strict=True)):
            if 1 << i in gradients:
                found[1 << i] = operand.unprepare(xp, gradients[1 << i], one, tuple(x.shape))
        return found


def _slots(blocked: Sequence[Step]) -> dict[int, str]:
    """Work space of every blocked step, by mask: that of a partial result which is used up serves again."""
    slots: dict[int, str] = {}
    held: dict[int, str] = {}
    free: list[str] = []
    for step in blocked:
        slots[step.mask] = free.pop() if free else f"value {len(held)}"
        free += [held.pop(part) for part in (step.f, step.k) if part in held]
        held[step.mask] = slots[step.mask]
    return slots


def block_size(problem: Problem, tree: Sequence[tuple[int, int]] = ()) -> int:
    """Positions of the batch that run at a time: one image, or as many small ones as make products wide and calls long.

    Every call waits for the interpreter's lock, so if the partial results of ``tree`` are small, a block takes as many
    images as keep the largest in the cache, and half of the batch at most.
    """
    if problem.block is None:
        return 0
    positions = 1
    for conv in problem.conv.values():
        positions *= max(conv.out, 1)
    least = max(1, -(-_COLUMNS // positions))
    whole, holder = problem.size[problem.block], problem.operands_with_mode[problem.block]
    results = [left | right for left, right in tree[:-1] if (left | right) & holder]
    largest = max((problem.elements(part) for part in results), default=0) / max(whole, 1)
    if len(tree) == 1:  # a dense layer has work space of the size of its windows instead
        largest = 4 * problem.elements(problem.everything) / max(whole, 1)
    return max(least, min(int(_CACHED / largest), -(-whole // 2))) if largest else least


def binds_batch(problem: Problem, constants: Sequence[int]) -> bool:
    """Whether partial results of constant operands, which are kept whole, have the block mode: it is not cut then."""
    holder = problem.operands_with_mode[problem.block] if problem.block is not None else 0
    return len(constants) > 1 and any(holder >> i & 1 for i in constants)
