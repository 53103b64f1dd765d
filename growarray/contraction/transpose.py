"""The transpose of a plan in one of its operands: the gradient alone, with no forward pass before it."""

from __future__ import annotations

from growarray.backend import Array, device_of, is_array, namespace
from growarray.contraction.checks import is_whole
from growarray.contraction.plan import Plan
from growarray.errors import PlanError, ShapeError, shown


def transpose(plan: Plan, dy: Array, *others: Array, operand: int = 0) -> Array:
    """The gradient by one operand if that of the result is ``dy``; the result itself is not computed.

    dy : shaped as the result (the batch may differ from the plan's)    others : the other operands, in their order
    A contraction is linear in every operand, and this is the transposed map: of a convolution, by its feature map,
    the transposed convolution.

    Raises PlanError if there is no such operand, ShapeError and TypeError as calling the plan does.

    >>> import numpy as np
    >>> from growarray.contraction import plan
    >>> transpose(plan("i j, j k -> i k", (2, 3), (3, 4)), np.ones((2, 4)), np.ones((3, 4))).tolist()
    [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    """
    if not is_whole(operand) or not 0 <= operand < len(plan.shapes):
        raise PlanError(f"operand: found {shown(operand)}, expected a number from 0 to {len(plan.shapes) - 1}")
    if not is_array(dy):
        raise TypeError(f"transpose of '{plan.equation}': the gradient is {type(dy).__name__}, expected an array")
    xp, execution, output = namespace(dy, *others), plan.execution, plan.execution.output
    shape = list(plan.shapes[operand])
    if execution.holder == operand and dy.ndim == len(output):
        shape[execution.axis] = dy.shape[output.index(execution.mode)]
    zero = xp.zeros((), dtype=dy.dtype, device=device_of(dy))
    arrays = (*others[:operand], xp.broadcast_to(zero, tuple(shape)), *others[operand:])
    schedule = execution.schedule(arrays)
    size = execution.batch(arrays)
    wanted = tuple(size if m == execution.mode else d for m, d in zip(output, plan.output_shape, strict=True))
    if tuple(dy.shape) != wanted:
        raise ShapeError(
            f"transpose of '{plan.equation}': the gradient has shape {tuple(dy.shape)}, the result {wanted}"
        )
    unread = {  # what needs the operand: no step of the way back reads it
        step.mask: xp.broadcast_to(zero, step.out_sizes)
        for step in execution.program(arrays).steps
        if step.mask >> operand & 1
    }
    _, backward = execution.way_back(schedule, arrays, 1 << operand, unread)
    return backward(dy)[1 << operand]
