"""The steps of a plan for every batch size it meets, made once each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from growarray.backend import Array, namespace
from growarray.contraction.equation import Equation
from growarray.contraction.execute import Program
from growarray.contraction.leaf import prepare
from growarray.contraction.path import Tree
from growarray.contraction.problem import Problem

__all__ = ["Programs", "binds_batch", "block_size"]

_COLUMNS = 512  # positions that a block of the batch has at least, so that products stay wide
_CACHED = 1 << 18  # elements of the largest partial result of a block
_KEPT = 16  # batch sizes whose steps are kept


class Programs:
    """From the size of the block mode to the steps of one tree."""

    def __init__(self, parsed: Equation, problem: Problem, geometry: Mapping[str, Any], tree: Tree) -> None:
        self._parsed, self._problem, self._geometry, self._tree = parsed, problem, dict(geometry), tree
        self._made: dict[tuple[int, int], Program] = {}
        self.block = problem.block
        if self.block is not None:
            self._holder = problem.holders[self.block].bit_length() - 1
            self._axis = problem.terms[self._holder].index(self.block)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": {}}  # they are made again sooner than sent

    def batch(self, arrays: Sequence[Array]) -> int:
        """Size of the block mode in these arrays; 1 where there is none."""
        return 1 if self.block is None else int(arrays[self._holder].shape[self._axis])

    def fits(self, operand: int, shape: Sequence[int]) -> bool:
        """Whether an operand may have this shape: that of the plan, but for the block mode."""
        made_for = self._problem.shapes[operand]
        if self.block is None or operand != self._holder or len(shape) != len(made_for):
            return False
        return all(axis == self._axis or a == b for axis, (a, b) in enumerate(zip(shape, made_for, strict=True)))

    def of(self, arrays: Sequence[Array]) -> Callable[[int], Program]:
        """Steps by the size of a block of these arrays; -1 is the whole batch."""
        whole = self.batch(arrays)
        return lambda size: self.sized(whole if size < 0 else size, whole)

    def sized(self, size: int, whole: int) -> Program:
        """The steps for one size of the block mode, a block of ``whole``."""
        found = self._made.get((size, whole))
        if found is not None:
            return found
        problem = self._problem
        if self.block is not None and (size, whole) != (problem.size[self.block],) * 2:
            shapes = [list(shape) for shape in problem.shapes]
            shapes[self._holder][self._axis] = size
            problem = Problem(self._parsed, shapes, blocks=whole / max(size, 1), **self._geometry)
        made = Program.of(problem, self._tree)
        # replaced, not changed: without a lock, which an interrupt or a fork could leave held
        self._made = dict([*self._made.items(), ((size, whole), made)][-_KEPT:])
        return made

    def fold(self, factors: Mapping[int, Array]) -> dict[int, Array]:
        """Partial results among some operands alone, by mask."""
        constant = sum(1 << i for i in factors)
        whole = self._problem.size.get(self.block or "", 1)
        program = self.sized(whole, whole)
        xp = namespace(*factors.values())
        values = {1 << i: prepare(xp, x, self._problem.leaves[i]) for i, x in factors.items()}
        found = {}
        for step in program.steps:
            if not step.mask & ~constant:
                feature = step.feature(xp, values[step.pair.feature])
                kernel = step.kernel_array(xp, values[step.pair.kernel])
                values[step.mask] = found[step.mask] = step.stored(xp, step.run(xp, feature, kernel))
        return found


def block_size(problem: Problem, tree: Sequence[tuple[int, int]] = ()) -> int:
    """Positions of the batch that run at a time: one image, or as many small ones as make products wide and calls long.

    Every call waits for the interpreter's lock, so where the partial results of ``tree`` are small, a block takes as
    many images as keep the largest in the cache, and half of the batch at most.
    """
    if problem.block is None:
        return 0
    positions = 1
    for conv in problem.conv.values():
        positions *= max(conv.out, 1)
    least = max(1, -(-_COLUMNS // positions))
    whole, holder = problem.size[problem.block], problem.holders[problem.block]
    results = [left | right for left, right in tree[:-1] if (left | right) & holder]
    largest = max((problem.elements(part) for part in results), default=0) / max(whole, 1)
    if len(tree) == 1:  # a dense layer has work space of the size of its windows instead
        largest = 4 * problem.elements(problem.everything) / max(whole, 1)
    return max(least, min(int(_CACHED / largest), -(-whole // 2))) if largest else least


def binds_batch(problem: Problem, constants: Sequence[int]) -> bool:
    """Whether partial results of constant operands, which are kept whole, have the block mode: it is not cut then."""
    holder = problem.holders[problem.block] if problem.block is not None else 0
    return len(constants) > 1 and any(holder >> i & 1 for i in constants)
