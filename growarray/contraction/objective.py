"""Objectives of a search: by name, or a function of a step's cost."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from growarray.errors import PlanError, shown

MINIMIZE = ("time", "flops", "memory", "size", "write", "combo", "limit")
_FACTOR = 64.0  # operations that writing one element counts for, as in opt_einsum and cotengra
_WEIGHTED = re.compile(r"(combo|limit)(?:-(\d+(?:\.\d+)?))?")


class Amounts(NamedTuple):
    """Amounts of a product, independent of its routine; with its backward pass if the plan is for training.

    written : elements of the result, and of the gradients    elements : of the result that are held at a time
    """

    flops: int
    written: int
    elements: int


class Objective(NamedTuple):
    """The objective of a search: a sum, or a maximum, over products.

    value : of the :class:`Amounts` of a product, or of its ``StepCost`` if it ``is_priced``
    is_largest : the largest value of a path counts, not their sum
    is_peak : what counts is no step but the elements that are alive at the worst moment
    """

    name: str
    value: Callable[[Any], float]
    is_priced: bool = False
    is_largest: bool = False
    is_peak: bool = False

    @property
    def join(self) -> Callable[[float, float], float]:
        """The value of two parts of a path together from that of each."""
        return max if self.is_largest else operator.add


_NAMED = {
    "time": Objective("time", lambda step: float(step.seconds + step.backward_seconds), is_priced=True),
    "flops": Objective("flops", lambda amounts: amounts.flops),
    "memory": Objective("memory", lambda amounts: amounts.elements, is_peak=True),
    "size": Objective("size", lambda amounts: amounts.elements, is_largest=True),
    "write": Objective("write", lambda amounts: amounts.written),
}


def objective_named(minimize: Any) -> Objective:
    """The objective of a name such as ``'flops'`` or ``'combo-256'``, or of a function of a step's cost.

    >>> objective_named("combo").value(Amounts(flops=1000, written=10, elements=10))
    1640.0
    """
    if isinstance(minimize, str):
        found = _NAMED.get(minimize)
        if found is not None:
            return found
        weighted = _WEIGHTED.fullmatch(minimize)
        if weighted is not None:
            factor = float(weighted[2] or _FACTOR)
            if weighted[1] == "combo":
                return Objective(minimize, lambda amounts: amounts.flops + factor * amounts.written)
            return Objective(minimize, lambda amounts: max(amounts.flops, factor * amounts.written))
    elif callable(minimize):
        return Objective("a function", _checked(minimize), is_priced=True)
    raise PlanError(
        f"minimize: found {shown(minimize)}, expected one of {', '.join(MINIMIZE)}, a weight as in 'combo-256', "
        "or a function of a step's cost"
    )


def _checked(function: Callable[[Any], Any]) -> Callable[[Any], float]:
    def value(step: Any) -> float:
        try:
            found = float(function(step))
        except Exception as error:  # it may be anyone's
            raise PlanError(f"minimize: {shown(function)} failed on {step}: {error}") from error
        if not found >= 0:
            raise PlanError(f"minimize: {shown(function)} is {found} for {step}, expected a number of at least 0")
        return found

    return value
