"""The steps of one tree for fixed sizes, made once for every batch size, dtype and library that a plan meets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from growarray.backend import Array, is_numpy
from growarray.contraction import operand
from growarray.contraction.equation import Equation
from growarray.contraction.path import Tree
from growarray.contraction.problem import Problem
from growarray.contraction.step import Step
from growarray.errors import PlanError

__all__ = ["Program", "Programs", "binds_batch", "block_size", "library_name"]

_COLUMNS = 512  # positions that a block of the batch has at least, so that products stay wide
_CACHED = 1 << 18  # elements of the largest partial result of a block
_KEPT = 16  # batch sizes whose steps are kept


@dataclass(frozen=True)
class Program:
    """The steps of one tree for fixed sizes, in order; ``common`` steps do not depend on the block mode.

    A single operand has no steps.    slots : which work space a blocked step writes to
    final, unfinal : from the last result's axes to the output's, and back    plain : operands are used as they are
    """

    problem: Problem
    steps: tuple[Step, ...]
    common: tuple[Step, ...]
    blocked: tuple[Step, ...]
    final: tuple[int, ...]
    unfinal: tuple[int, ...]
    slots: dict[int, str]
    flops: int
    plain: bool

    @classmethod
    def of(cls, problem: Problem, tree: Tree, library: str = "numpy") -> Program:
        """Build the steps."""
        stored = {1 << i: one.modes for i, one in enumerate(problem.operands)}
        holder = problem.everything if problem.block is None else problem.operands_with_mode[problem.block]
        steps: list[Step] = []
        for left, right in tree:
            pair = problem.pair(left, right)
            if pair is None:
                raise PlanError(f"'{problem.equation}': the path joins convolution modes the wrong way round")
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
            sum(step.pair.flops for step in steps),
            all(one.is_plain for one in problem.operands),
        )

    def prepared(self, xp: Any, arrays: Sequence[Array]) -> dict[int, Array]:
        """The operands by mask, every mode once."""
        masks = [1 << i for i in range(len(arrays))]
        if self.plain:
            return dict(zip(masks, arrays, strict=True))
        ready = (operand.prepare(xp, x, one) for x, one in zip(arrays, self.problem.operands, strict=True))
        return dict(zip(masks, ready, strict=True))

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


def library_name(array: Array) -> str:
    """``'numpy'``, ``'cupy'``, or the package of another library's arrays, as routines are asked."""
    return "numpy" if is_numpy(array) else type(array).__module__.partition(".")[0]


class Programs:
    """From the size of the block mode to the steps of one tree."""

    def __init__(self, parsed: Equation, problem: Problem, geometry: Mapping[str, Any], tree: Tree) -> None:
        self._parsed, self._problem, self._geometry, self._tree = parsed, problem, dict(geometry), tree
        self._made: dict[tuple[int, int, int, str], Program] = {}
        self.block = problem.block
        if self.block is not None:
            self.holder = problem.operands_with_mode[self.block].bit_length() - 1
            self.axis = problem.terms[self.holder].index(self.block)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": {}}  # they are made again sooner than sent

    def batch(self, arrays: Sequence[Array]) -> int:
        """Size of the block mode in these arrays; 1 if there is none."""
        return 1 if self.block is None else int(arrays[self.holder].shape[self.axis])

    def fits(self, operand: int, shape: Sequence[int]) -> bool:
        """Whether an operand may have this shape: that of the plan, but for the block mode."""
        made_for = self._problem.shapes[operand]
        if self.block is None or operand != self.holder or len(shape) != len(made_for):
            return False
        return all(axis == self.axis or a == b for axis, (a, b) in enumerate(zip(shape, made_for, strict=True)))

    def of(self, arrays: Sequence[Array], size: int | None = None) -> Program:
        """The steps for these arrays, or for a block of ``size`` of them."""
        whole = self.batch(arrays)
        return self.sized(arrays[0], whole, whole if size is None else size)

    def sized(self, like: Array, whole: int, size: int) -> Program:
        """The steps for arrays like one, for a block of ``size`` out of ``whole``."""
        itemsize, library = _itemsize(like), library_name(like)
        found = self._made.get((size, whole, itemsize, library))
        if found is not None:
            return found
        shapes = [list(shape) for shape in self._problem.shapes]
        if self.block is not None:
            shapes[self.holder][self.axis] = size
        blocks = whole / max(size, 1)
        problem = Problem(self._parsed, shapes, blocks=blocks, itemsize=itemsize, **self._geometry)
        made = Program.of(problem, self._tree, library)
        # replaced, not changed: without a lock, which an interrupt or a fork could leave held
        self._made = dict([*self._made.items(), ((size, whole, itemsize, library), made)][-_KEPT:])
        return made


def _itemsize(array: Array) -> int:
    return int(getattr(array.dtype, "itemsize", 0)) or int(str(array.dtype).rpartition("float")[2] or 32) // 8


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
