"""Running the steps of a tree on NumPy: over blocks of the batch that fit the cache, one thread a core.

What does not depend on the batch is contracted once, before the blocks; its gradients are summed over the blocks in a
fixed number of groups, so that no result depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from growarray.contraction.blas import settled, single_threaded
from growarray.contraction.machine import threads
from growarray.contraction.program import Program
from growarray.contraction.routines.protocol import Task
from growarray.contraction.step import Step, contiguous
from growarray.contraction.threads import run_tasks
from growarray.contraction.workspace import here, view_as

_GROUPS = 8  # sums over blocks that a backward pass keeps apart
_EVEN = 4  # blocks come in multiples of it if there are enough positions
_LIGHT = 1 << 29  # operations of a run below which two blocks are enough: more of them only wait for each other
_TINY = 1 << 20  # operations below which a second thread costs more than it gives

Values = dict[int, np.ndarray]


class Saved(NamedTuple):
    """What a forward pass leaves for the backward pass: partial results by mask, those of every block apart."""

    common: Values
    blocks: list[Values]


def block_count(size: int, least: int, flops: int) -> int:
    """Blocks of about ``least`` positions or more, a number that 2 or 4 threads share evenly if that can be."""
    count, even = -(-size // max(least, 1)), 2 if flops < _LIGHT else _EVEN
    return max(1, min(size, max(count - count % even, even) if count > 1 else 1))


class Schedule:
    """How a run over arrays of certain shapes is cut into blocks: everything that is known before their values.

    program : steps for the whole batch    block : positions of it that run at a time    sized : steps for a block
    cuts : for each block, which part of which operand is its own
    outs, direct : for each block its part of the result, and whether the last product can be written where it lies
    """

    def __init__(self, program: Program, block: int, sized: Callable[[int], Program]) -> None:
        self.program, problem = program, program.problem
        mode = problem.block
        size = 1 if mode is None else problem.size[mode]
        self.tiny = program.flops < _TINY
        self.shape = tuple(problem.extent(m, problem.everything) for m in problem.output)
        self.holder = problem.everything if mode is None else problem.operands_with_mode[mode]
        count = block_count(size, block, program.flops) if mode is not None and block else 1
        ranges = [slice(size * i // count, size * (i + 1) // count) for i in range(count)]
        self.programs = [program if count == 1 else sized(r.stop - r.start) for r in ranges]
        cut_axes = {1 << i: one.modes.index(mode) for i, one in enumerate(problem.operands) if mode in one.modes}
        if mode is None or count == 1:
            self.cuts: list[dict[int, tuple[Any, ...]]] = [dict.fromkeys(cut_axes, (...,))] * count
            self.outs: list[tuple[Any, ...]] = [(...,)] * count
        else:
            self.cuts = [{mask: _index(axis, r) for mask, axis in cut_axes.items()} for r in ranges]
            self.outs = [_index(problem.output.index(mode), r) for r in ranges]
        self.direct = [bool(program.steps) and self._is_direct(i) for i in range(count)]

    def _is_direct(self, i: int) -> bool:
        """Whether the last product of a block can be written into its part of a result that is contiguous."""
        program = self.programs[i]
        last = program.steps[-1]
        shape = last.out_shape if last.call is None else last.call.out
        return view_as(contiguous(self.shape)[self.outs[i]].transpose(program.unfinal), shape) is not None


def _index(axis: int, piece: slice) -> tuple[Any, ...]:
    """Takes a piece of one axis, always as an array."""
    return (*(slice(None) for _ in range(axis)), piece, ...)


def _each(tasks: Sequence[Task], shared: bool) -> None:
    if shared:
        run_tasks(tasks)
    else:
        for task in tasks:
            task()


def forward(
    schedule: Schedule,
    arrays: Sequence[np.ndarray],
    *,
    out: np.ndarray | None = None,
    keep: bool = False,
    folded: Values | None = None,
) -> tuple[np.ndarray, Saved]:
    """The result, in ``out`` if it is given, and the partial results if they are to be kept.

    folded : partial results of constant operands, by mask, which are not computed again
    """
    program = schedule.program
    values = dict(zip(program.masks, arrays, strict=True)) if program.masks else program.prepared(np, arrays)
    y = np.empty(schedule.shape, arrays[0].dtype) if out is None else out
    if not program.steps:
        y[...] = values[program.problem.everything].transpose(program.final)
        return y, Saved(values, [])
    saved = Saved(values if folded is None else values | folded, [{} for _ in schedule.programs])
    body = partial(_forward, schedule, saved, y, keep, out is None)
    if schedule.tiny:
        single_threaded(body)
    else:
        settled(body)
    return y, saved


def _forward(schedule: Schedule, saved: Saved, y: np.ndarray, keep: bool, fresh: bool) -> None:
    program, common, count = schedule.program, saved.common, len(schedule.programs)
    beside = count > 1 and not schedule.tiny and threads() > 1
    shared = not schedule.tiny and not beside
    for step in program.common:
        if step.mask in common:
            continue
        common[step.mask] = target = np.empty(step.out_sizes, y.dtype)
        _product(step, common, target, None, shared)
        for part in () if keep else (step.f, step.k):
            common.pop(part, None)
    if count == 1:
        _forward_block(schedule, 0, saved, {}, y, keep, fresh, shared)
        return
    ready = {
        step.mask: step.forward.prepare(step.kernel(np, common[step.k]))
        for step in program.blocked
        if step.mask not in common and step.k in common and not step.k & schedule.holder
    }
    block = partial(_forward_block, schedule)
    _each([partial(block, i, saved, ready, y, keep, fresh, shared) for i in range(count)], beside)


def _forward_block(
    schedule: Schedule, i: int, saved: Saved, ready: dict[int, Any], y: np.ndarray, keep: bool, fresh: bool,
    shared: bool,
) -> None:  # fmt: skip
    program, values = schedule.programs[i], dict(saved.common)
    for mask, cut in schedule.cuts[i].items():
        values[mask] = values[mask][cut]
    for step in program.blocked:
        if step.mask in values:
            continue
        if step is program.steps[-1]:
            stored = y[schedule.outs[i]].transpose(program.unfinal)
            if fresh and schedule.direct[i]:
                _product(step, values, stored, ready.get(step.mask), shared)
            else:
                _last(step, values, stored, ready.get(step.mask), shared)
            break
        target = (
            np.empty(step.out_sizes, y.dtype)
            if keep
            else here.arrays[program.slots[step.mask], step.out_sizes, y.dtype]
        )
        _product(step, values, target, ready.get(step.mask), shared)
        values[step.mask] = target
        if not keep:  # large ones are no work space: let go of what is used up
            for part in (step.f, step.k):
                values.pop(part, None)
    if keep:
        saved.blocks[i] = values


def _product(step: Step, values: Values, out: np.ndarray, ready: Any, shared: bool) -> None:
    """One product into ``out``, which lies so that it can be written to in the shape of the routine."""
    feature, kernel, call = values[step.f].transpose(step.f_perm), values[step.k].transpose(step.k_perm), step.call
    if call is not None:
        call.function(kernel.reshape(call.kernel), feature.reshape(call.feature), out.reshape(call.out))
    elif step.empty:
        out[...] = 0  # the sum over nothing
    else:
        feature = feature.reshape(step.f_shape)
        if step.padded:
            feature = step.pad(np, feature)
        tasks = step.forward.forward(kernel.reshape(step.k_shape), feature, out.reshape(step.out_shape), ready)
        if tasks:
            _each(tasks, shared and not step.short)


def _last(step: Step, values: Values, stored: np.ndarray, ready: Any, shared: bool) -> None:
    """The last product, written into any array, through a copy only if its axes do not merge."""
    feature, kernel = step.feature(np, values[step.f]), step.kernel(np, values[step.k])
    target = view_as(stored, step.out_shape)
    into = np.empty(step.out_shape, stored.dtype) if target is None else target
    if step.empty:
        into[...] = 0
    else:
        _each(step.forward.forward(kernel, feature, into, ready), shared and not step.short)
    if target is None:
        stored[...] = into.reshape(step.out_sizes)


def fold(program: Program, factors: Values) -> Values:
    """Partial results among some operands alone, by mask."""
    values, found = factors, {}
    for step in program.steps:
        if step.f in values and step.k in values:
            found[step.mask] = np.empty(step.out_sizes, values[step.f].dtype)
            single_threaded(partial(_product, step, values, found[step.mask], None, False))
            values = values | found
    return found


def backward(schedule: Schedule, arrays: Sequence[np.ndarray], saved: Saved, dy: np.ndarray, wanted: int) -> Values:
    """Gradients by the operands in the mask ``wanted``."""
    program = schedule.program
    if program.steps:
        body = partial(_backward, schedule, saved, dy, wanted)
        gradients = single_threaded(body) if schedule.tiny else settled(body)
    else:
        gradients = {program.problem.everything: dy.transpose(program.unfinal).copy()}
    return program.unprepared(np, {mask: g for mask, g in gradients.items() if mask & wanted}, arrays)


def _backward(schedule: Schedule, saved: Saved, dy: np.ndarray, wanted: int) -> Values:
    program, blocks = schedule.program, len(schedule.programs)
    problem = program.problem
    results = {
        mask: np.empty([problem.extent(m, mask) for m in problem.operands[mask.bit_length() - 1].modes], dy.dtype)
        for mask in schedule.cuts[0]
        if mask & wanted
    }
    ready = {
        step.mask: step.by_feature.prepare(step.kernel(np, saved.common[step.k]))
        for step in program.blocked
        if step.f & wanted and not step.k & schedule.holder and not step.empty
    }
    count = min(blocks, _GROUPS)
    bounds = [blocks * g // count for g in range(count + 1)]
    sums: list[Values] = [{} for _ in range(count)]
    beside = blocks > 1 and not schedule.tiny and threads() > 1
    shared = not schedule.tiny and not beside

    def group(g: int) -> None:
        for i in range(bounds[g], bounds[g + 1]):
            _backward_block(schedule, i, saved, ready, dy, wanted, sums[g], results, shared)

    _each([partial(group, g) for g in range(count)], beside)
    gradients = sums[0]
    for more in sums[1:]:
        for mask, value in more.items():
            gradients[mask] += value
    gradients |= results
    for step in reversed(program.common):
        _backward_step(step, saved.common, gradients, wanted, None, shared, {})
    return gradients


def _backward_block(
    schedule: Schedule, i: int, saved: Saved, ready: dict[int, Any], dy: np.ndarray, wanted: int, sums: Values,
    results: Values, shared: bool,
) -> None:  # fmt: skip
    """Gradients of one block: by its own piece of the batch into ``results``, by what is common added to ``sums``."""
    program, values = schedule.programs[i], saved.blocks[i]
    gradients: Values = {program.problem.everything: dy[schedule.outs[i]].transpose(program.unfinal)}
    for step in reversed(program.blocked):
        _backward_step(step, values, gradients, wanted, ready.get(step.mask), shared, program.slots)
    for mask, gradient in gradients.items():
        if mask in results:
            results[mask][schedule.cuts[i][mask]] = gradient
        elif mask in sums:
            sums[mask] += gradient
        else:
            sums[mask] = gradient


def _backward_step(
    step: Step, values: Values, gradients: Values, wanted: int, ready: Any, shared: bool, slots: Mapping[int, str]
) -> None:
    """Replace the gradient of a product by those of its two sides.

    slots : work space of partial results: their gradients, made and used up in the other order, take as few
    """
    f, k = step.f, step.k
    if not (f | k) & wanted:
        return
    shared = shared and not step.short
    d_out = gradients.pop(f | k).reshape(step.out_shape)
    if k & wanted:
        d_kernel = np.zeros(step.k_shape, d_out.dtype) if step.empty else np.empty(step.k_shape, d_out.dtype)
        if not step.empty:
            _each(step.by_kernel.d_kernel(d_out, step.feature(np, values[f]), d_kernel), shared)
        gradients[k] = step.d_kernel(np, d_kernel)
    if f & wanted:
        if step.empty:
            gradients[f] = np.zeros(step.f_stored, d_out.dtype)
            return
        gradients[f] = (
            here.arrays[f"gradient of {slots[f]}", step.f_stored, d_out.dtype]
            if f in slots
            else np.empty(step.f_stored, d_out.dtype)
        )
        target = None if step.padded else view_as(gradients[f].transpose(step.f_perm), step.f_shape)
        d_feature = np.empty(step.feature_shape, d_out.dtype) if target is None else target
        _each(step.by_feature.d_feature(step.kernel(np, values[k]), d_out, d_feature, ready), shared)
        if target is None:
            gradients[f] = step.d_feature(np, d_feature)
