"""Running the steps of a tree on NumPy: over blocks of the batch that fit the cache, one thread a core.

What does not depend on the batch is contracted once, before the blocks; its gradients are summed over the blocks in a
fixed number of groups, so that no result depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from growarray.contraction import leaf
from growarray.contraction.execute import Program
from growarray.contraction.machine import threads
from growarray.contraction.scratch import borrow, view_as
from growarray.contraction.step import Step
from growarray.contraction.threads import run_tasks, settled
from growarray.contraction.windows import Task

__all__ = ["Saved", "backward", "block_count", "forward"]

_GROUPS = 8  # sums over blocks that a backward pass keeps apart
_EVEN = 4  # blocks come in multiples of it where there are enough positions
_LIGHT = 1 << 29  # operations of a run below which two blocks are enough: more of them only wait for each other
_TINY = 1 << 20  # operations below which a second thread costs more than it gives

Each = Callable[[Step, Sequence[Task]], None]
Values = dict[int, np.ndarray]
Programs = Callable[[int], Program]


@dataclass
class Saved:
    """What a forward pass leaves for the backward pass: partial results, those of every block apart."""

    common: Values
    blocks: list[Values] = field(default_factory=list)


def block_count(size: int, least: int, flops: int) -> int:
    """Blocks of about ``least`` positions or more, a number that 2 or 4 threads share evenly where that can be."""
    count, even = -(-size // max(least, 1)), 2 if flops < _LIGHT else _EVEN
    return max(1, min(size, max(count - count % even, even) if count > 1 else 1))


class _Layout:
    """How a run is cut into blocks, and whether blocks or the pieces of one step run side by side."""

    def __init__(self, programs: Programs, arrays: Sequence[np.ndarray], block: int) -> None:
        self.whole = programs(-1)
        problem = self.whole.problem
        self.mode = problem.block
        size = problem.size[problem.block] if problem.block is not None else 1
        count = block_count(size, block, self.whole.flops) if problem.block is not None and block else 1
        self.ranges = [slice(size * i // count, size * (i + 1) // count) for i in range(count)]
        self.programs = [programs(r.stop - r.start if problem.block is not None else -1) for r in self.ranges]
        self.tiny = self.whole.flops < _TINY
        self.over_blocks = not self.tiny and len(self.ranges) > 1 and threads() > 1
        self.holder = problem.holders[problem.block] if problem.block is not None else problem.everything

    def each(self, step: Step, tasks: Sequence[Task]) -> None:
        """Run pieces of one step: side by side where blocks are not, and it is worth it."""
        if self.tiny or self.over_blocks or step.short:
            for task in tasks:
                task()
        else:
            run_tasks(tasks)

    def all(self, tasks: Sequence[Task]) -> None:
        """Run whole blocks, or groups of them."""
        if self.over_blocks:
            run_tasks(tasks)
        else:
            for task in tasks:
                task()

    def cut(self, modes: Sequence[str], piece: slice) -> tuple[Any, ...]:
        """The index that takes one block out of an array with these modes, always as an array."""
        return (*(piece if m == self.mode else slice(None) for m in modes), ...)


def forward(
    programs: Programs,
    arrays: Sequence[np.ndarray],
    block: int,
    *,
    out: np.ndarray | None = None,
    keep: bool = False,
    folded: Values | None = None,
) -> tuple[np.ndarray, Saved]:
    """The result, in ``out`` where it is given, and the partial results where they are to be kept.

    programs : from the size of a block to its steps; -1 for the whole batch
    folded : partial results of constant operands, by mask, which are not computed again
    """
    layout = _Layout(programs, arrays, block)
    program, problem = layout.whole, layout.whole.problem
    leaves = {1 << i: leaf.prepare(np, x, one) for i, (x, one) in enumerate(zip(arrays, problem.leaves, strict=True))}
    shape = tuple(problem.extent(m, problem.everything) for m in problem.output)
    y = np.empty(shape, arrays[0].dtype) if out is None else out
    if not program.steps:
        y[...] = leaves[problem.everything].transpose(program.final)
        return y, Saved(leaves)
    saved = Saved(leaves | (folded or {}), [{} for _ in layout.ranges])
    settled(lambda: _forward(layout, saved, y, keep), tiny=layout.tiny)
    return y, saved


def _forward(layout: _Layout, saved: Saved, y: np.ndarray, keep: bool) -> None:
    program, common = layout.whole, saved.common
    for index in program.common:
        step = program.steps[index]
        if step.mask in common:
            continue
        common[step.mask] = np.empty(step.out_sizes, y.dtype)
        _run(layout.each, step, common, common[step.mask])
        for part in () if keep else (step.pair.feature, step.pair.kernel):
            common.pop(part, None)
    ready = {
        index: step.prepared(step.kernel_array(np, common[step.pair.kernel]))
        for index in program.blocked
        if (step := program.steps[index]).mask not in common
        and step.pair.kernel in common
        and not step.pair.kernel & layout.holder
    }
    layout.all([lambda i=i: _forward_block(layout, i, saved, ready, y, keep) for i in range(len(layout.ranges))])  # type: ignore[misc]


def _run(each: Each, step: Step, values: Values, target: np.ndarray) -> None:
    feature = step.feature(np, values[step.pair.feature])
    matrices = step.prepared(step.kernel_array(np, values[step.pair.kernel]))
    each(step, step.tasks(feature, matrices, step.canonical(np, target)))


def _forward_block(
    layout: _Layout, i: int, saved: Saved, ready: dict[int, np.ndarray], y: np.ndarray, keep: bool
) -> None:
    program, piece = layout.programs[i], layout.ranges[i]
    values = _leaf_blocks(layout, saved.common, piece)
    y_piece = y[layout.cut(program.problem.output, piece)]
    for index in program.blocked:
        step = program.steps[index]
        if step.mask in values:
            continue
        feature = step.feature(np, values[step.pair.feature])
        matrices = ready.get(index)
        if matrices is None:
            matrices = step.prepared(step.kernel_array(np, values[step.pair.kernel]))
        if step.mask == program.problem.everything:
            _into(layout.each, step, feature, matrices, y_piece.transpose(program.unfinal))
            break
        fresh = (
            np.empty(step.out_sizes, y.dtype)
            if keep
            else borrow(f"value {program.slots[index]}", step.out_sizes, y.dtype)
        )
        layout.each(step, step.tasks(feature, matrices, step.canonical(np, fresh)))
        values[step.mask] = fresh
        if not keep:  # large ones are no work space: let go of what is used up
            for part in (step.pair.feature, step.pair.kernel):
                values.pop(part, None)
    if keep:
        saved.blocks[i] = values


def _leaf_blocks(layout: _Layout, common: Values, piece: slice) -> Values:
    """Partial results that a block starts from: the common ones, and its own piece of the batch."""
    problem = layout.whole.problem
    values = dict(common)
    for i, one in enumerate(problem.leaves):
        if layout.mode in one.modes:
            values[1 << i] = common[1 << i][layout.cut(one.modes, piece)]
    return values


def _into(each: Each, step: Step, feature: np.ndarray, matrices: np.ndarray, stored: np.ndarray) -> None:
    """The last product, written where the result lies, through a copy only if its axes do not merge."""
    target = view_as(stored, step.out_shape)
    if target is not None:
        each(step, step.tasks(feature, matrices, target))
        return
    target = np.empty(step.out_sizes, stored.dtype)
    each(step, step.tasks(feature, matrices, step.canonical(np, target)))
    stored[...] = target


def backward(
    programs: Programs, arrays: Sequence[np.ndarray], block: int, saved: Saved, dy: np.ndarray, wanted: int
) -> Values:
    """Gradients by the operands in the mask ``wanted``."""
    layout = _Layout(programs, arrays, block)
    program = layout.whole
    shapes = [x.shape for x in arrays]
    if not program.steps:
        gradients = {program.problem.everything: dy.transpose(program.unfinal).copy()}
        return _to_operands(program, gradients, shapes, wanted)
    gradients = settled(lambda: _backward(layout, saved, dy, wanted), tiny=layout.tiny)
    return _to_operands(program, gradients, shapes, wanted)


def _backward(layout: _Layout, saved: Saved, dy: np.ndarray, wanted: int) -> Values:
    program, problem = layout.whole, layout.whole.problem
    results = {
        1 << i: np.empty([problem.extent(m, 1 << i) for m in one.modes], dy.dtype)
        for i, one in enumerate(problem.leaves)
        if layout.mode in one.modes and wanted >> i & 1
    }
    ready = {
        index: step.prepared_gradient(step.kernel_array(np, saved.common[step.pair.kernel]))
        for index in program.blocked
        if (step := program.steps[index]).pair.feature & wanted and not step.pair.kernel & layout.holder
    }
    count = min(len(layout.ranges), _GROUPS)
    bounds = [len(layout.ranges) * g // count for g in range(count + 1)]
    sums: list[Values] = [{} for _ in range(count)]

    def group(g: int) -> None:
        for i in range(bounds[g], bounds[g + 1]):
            _backward_block(layout, i, saved, ready, dy, wanted, sums[g], results)

    layout.all([lambda g=g: group(g) for g in range(count)])  # type: ignore[misc]
    gradients = sums[0]
    for more in sums[1:]:
        for mask, value in more.items():
            gradients[mask] += value
    gradients |= results
    for index in reversed(program.common):
        _backward_step(layout.each, program.steps[index], saved.common, gradients, wanted, None)
    return gradients


def _to_operands(program: Program, gradients: Values, shapes: Sequence[tuple[int, ...]], wanted: int) -> Values:
    return {
        1 << i: leaf.unprepare(np, gradients[1 << i], one, shapes[i])
        for i, one in enumerate(program.problem.leaves)
        if wanted >> i & 1
    }


def _backward_block(
    layout: _Layout,
    i: int,
    saved: Saved,
    ready: dict[int, list[np.ndarray | None]],
    dy: np.ndarray,
    wanted: int,
    sums: Values,
    results: Values,
) -> None:
    """Gradients of one block: by its own piece of the batch into ``results``, by what is common added to ``sums``."""
    program, piece = layout.programs[i], layout.ranges[i]
    problem, values = program.problem, saved.blocks[i]
    natural = dy[layout.cut(problem.output, piece)].transpose(program.unfinal)
    gradients: Values = {problem.everything: natural}
    for index in reversed(program.blocked):
        _backward_step(layout.each, program.steps[index], values, gradients, wanted, ready.get(index))
    for mask, gradient in gradients.items():
        if mask in results:
            modes = problem.leaves[mask.bit_length() - 1].modes
            results[mask][layout.cut(modes, piece)] = gradient
        elif mask in sums:
            sums[mask] += gradient
        else:
            sums[mask] = gradient


def _backward_step(
    each: Each,
    step: Step,
    values: Values,
    gradients: Values,
    wanted: int,
    ready: list[np.ndarray | None] | None,
) -> None:
    """Replace the gradient of a product by those of its two sides."""
    f, k = step.pair.feature, step.pair.kernel
    if not (f | k) & wanted:
        return
    d_out = step.canonical(np, gradients.pop(f | k))
    if k & wanted:
        feature = step.feature(np, values[f])
        d_kernel = np.empty(step.k_shape, d_out.dtype)
        each(step, step.d_kernel_tasks(d_out, feature, d_kernel))
        gradients[k] = step.d_kernel(np, d_kernel)
    if f & wanted:
        matrices = step.prepared_gradient(step.kernel_array(np, values[k])) if ready is None else ready
        gradients[f] = np.empty(step.f_stored, d_out.dtype)
        target = view_as(gradients[f].transpose(step.f_perm), step.f_shape)
        if not step.padded and target is not None:
            each(step, step.d_feature_tasks(d_out, matrices, target))
        else:
            d_feature = np.empty((step.b, step.s, *(a.size for a in step.axes)), d_out.dtype)
            each(step, step.d_feature_tasks(d_out, matrices, d_feature))
            gradients[f] = step.d_feature(np, d_feature)
