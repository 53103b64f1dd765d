"""Running the steps of a tree on arrays of any library but NumPy: on the whole batch, into new arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growarray.backend import Array
from growarray.contraction.program import Program


def forward(
    xp: Any, program: Program, arrays: Sequence[Array], folded: dict[int, Array] | None = None
) -> tuple[Array, dict[int, Array]]:
    """The result and every partial one; ``folded`` ones are not computed again."""
    values = program.prepared(xp, arrays) | (folded or {})
    values |= fold(xp, program, values)
    result = xp.permute_dims(values[program.problem.everything], program.final)
    return (result if program.steps else xp.asarray(result, copy=True)), values


def fold(xp: Any, program: Program, factors: dict[int, Array]) -> dict[int, Array]:
    """The partial results that follow from some, by mask."""
    values = dict(factors)
    for step in program.steps:
        if step.mask not in values and step.f in values and step.k in values:
            feature, kernel = step.feature(xp, values[step.f]), step.kernel(xp, values[step.k])
            values[step.mask] = xp.reshape(step.forward.forward(xp, kernel, feature), step.out_sizes)
    return {mask: value for mask, value in values.items() if mask not in factors}


def backward(
    xp: Any, program: Program, arrays: Sequence[Array], values: dict[int, Array], dy: Array, wanted: int
) -> dict[int, Array]:
    """Gradients by the operands in the mask ``wanted``."""
    gradients = {program.problem.everything: xp.permute_dims(dy, program.unfinal)}
    if not program.steps:
        gradients = {program.problem.everything: xp.asarray(gradients[program.problem.everything], copy=True)}
    for step in reversed(program.steps):
        d_out = gradients.pop(step.mask, None)
        if d_out is None:
            continue
        d_out = xp.reshape(d_out, step.out_shape)
        if step.f & wanted:
            d_feature = step.by_feature.d_feature(xp, step.kernel(xp, values[step.k]), d_out)
            gradients[step.f] = step.d_feature(xp, d_feature)
        if step.k & wanted:
            d_kernel = step.by_kernel.d_kernel(xp, d_out, step.feature(xp, values[step.f]))
            gradients[step.k] = step.d_kernel(xp, d_kernel)
    return program.unprepared(xp, gradients, arrays)
