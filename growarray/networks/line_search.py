"""Line search for the scaling of a planned change: how far to go, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True)
class LineSearch:
    """Best factor found (0 if nothing was better than standing still), its loss, the loss at 0, all trials."""

    factor: float
    loss: float
    start: float
    trials: tuple[tuple[float, float], ...]


def line_search(
    loss: Callable[[float], float],
    *,
    first: float = 1.0,
    growth: float = 2.0,
    smallest: float = 2.0**-20,
    largest: float = 2.0**20,
    refinements: int = 6,
    improvement: float = 0.0,
) -> LineSearch:
    """Minimise ``loss(factor)`` over ``factor >= 0``: bracket by powers of ``growth``, then golden sections.

    Values that are not finite count as infinitely bad. Unless the best loss lies under ``loss(0)`` by more than
    ``improvement`` times its size, the factor is 0: the change is not worth making. (The original grows even then.)

    >>> result = line_search(lambda g: (g - 3.0) ** 2)
    >>> abs(result.factor - 3.0) < 0.2, line_search(lambda g: g).factor
    (True, 0.0)
    """
    trials: dict[float, float] = {}

    def at(factor: float) -> float:
        if factor not in trials:
            value = float(loss(factor))
            trials[factor] = value if math.isfinite(value) else math.inf
        return trials[factor]

    start = at(0.0)
    best = first
    while at(best) >= start and best > smallest:  # down until it helps
        best /= growth
    while at(best * growth) < at(best) and best < largest:  # up while it helps more
        best *= growth
    while at(best / growth) < at(best) and best > smallest:
        best /= growth
    low, high = best / growth, best * growth
    for _ in range(refinements):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if at(left) <= at(right):
            high = right
        else:
            low = left
    factor = min((f for f in trials if f > 0), key=lambda f: trials[f])
    if not trials[factor] < start - improvement * abs(start):
        return LineSearch(0.0, start, start, tuple(sorted(trials.items())))
    return LineSearch(factor, trials[factor], start, tuple(sorted(trials.items())))
