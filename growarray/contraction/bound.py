"""A plan with some operands fixed, whose products among themselves are computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from growarray.backend import Array, namespace
from growarray.contraction.checks import operands
from growarray.contraction.planned import Planned
from growarray.errors import PlanError, ShapeError, shown


class BoundPlan:
    """A plan with fixed operands, made by :meth:`Plan.bind`; call it with the remaining ones, in their order.

    plan : the plan that runs, searched again with the bound operands' own products free of cost
    The bound arrays are kept, not copied: change them only together with a new ``bind``.
    """

    def __init__(self, plan: Planned, factors: Mapping[int, Array]) -> None:
        self.plan = plan
        self.free = tuple(i for i in range(len(plan.shapes)) if i not in factors)
        self._factors = dict(factors)
        for i, array in factors.items():
            if tuple(array.shape) != plan.shapes[i]:
                raise ShapeError(
                    f"bind: operand {i} of '{plan.equation}' has shape {tuple(array.shape)}, expected {plan.shapes[i]}"
                )
        namespace(*factors.values())
        self._folded = plan.execution.fold(self._factors)

    def __repr__(self) -> str:
        return f"BoundPlan({self.plan.equation!r}, free={list(self.free)})"

    def _whole(self, arrays: Sequence[Array]) -> list[Array]:
        if len(arrays) != len(self.free):
            raise ShapeError(f"{shown(self)} takes {len(self.free)} arrays, found {len(arrays)}")
        given = dict(zip(self.free, arrays, strict=True))
        return [given[i] if i in given else self._factors[i] for i in range(len(self.plan.shapes))]

    def __call__(self, *arrays: Array, out: Array | None = None) -> Array:
        """The result for the remaining operands."""
        return self.plan.execution.value(self._whole(arrays), out, self._folded)

    def vjp(self, *arrays: Array) -> tuple[Array, Callable[[Array], tuple[Array | None, ...]]]:
        """The result, and ``pullback(dy)`` with one gradient for each remaining operand."""
        y, pullback = self.plan.execution.vjp(self._whole(arrays), self.free, self._folded)

        def back(dy: Array) -> tuple[Array | None, ...]:
            gradients = pullback(dy)
            return tuple(gradients[i] for i in self.free)

        return y, back


def factors_of(plan: Planned, factors: Mapping[int, Array] | Sequence[Array]) -> dict[int, Any]:
    """Bound operands by position; a sequence stands for every operand after the first."""
    if isinstance(factors, Mapping):
        chosen = dict(factors)
    elif not isinstance(factors, Sequence):
        raise TypeError(
            f"bind: expected a mapping from position to array or a sequence, found {type(factors).__name__}"
        )
    else:
        chosen = dict(enumerate(factors, start=1))
        if len(chosen) != len(plan.shapes) - 1:
            raise PlanError(
                f"bind: {len(chosen)} arrays for the {len(plan.shapes) - 1} operands after the first of "
                f"'{plan.equation}'; give a mapping from position to array to bind some of them"
            )
    chosen = dict(zip(operands("bind", chosen, len(plan.shapes)), chosen.values(), strict=True))
    if not chosen:
        raise PlanError(f"bind: no arrays are given; call the plan of '{plan.equation}' itself")
    if len(chosen) == len(plan.shapes):
        raise PlanError(f"bind: all {len(chosen)} operands are bound; leave at least one, or call the plan")
    return chosen
