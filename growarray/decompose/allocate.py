"""One budget over many layers: spend it where it lowers the error most."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from growarray.decompose.arguments import is_real
from growarray.errors import shown

_STATES = 20_000  # partial choices that are kept at a time


class Candidate(NamedTuple):
    """One way to decompose a layer: its rank, its cost (parameters, FLOPs or seconds), and the error it makes."""

    rank: Any
    cost: float
    error: float


@dataclass(frozen=True)
class Allocation:
    """The candidate chosen for each layer, and the sums of their costs and errors."""

    choices: dict[str, Candidate]
    cost: float
    error: float


class _State(NamedTuple):
    """A choice for the first layers: sums, and the chain of candidates."""

    cost: float
    error: float
    last: Candidate | None
    before: _State | None


def allocate(budget: float, layers: Mapping[str, Sequence[Candidate]]) -> Allocation:
    """One candidate for each layer, with the least sum of errors among those whose costs fit the budget.

    layers : name to candidates, each (rank, cost, error), with errors of one kind that may be added, as a rule squared
        errors of the output, each times what the layer's error does to the loss if that is known

    Layer by layer, only partial choices are kept that no other beats in both cost and error, and that could still
    beat the greedy choice on the convex hulls, by the bound that the Lagrangian gives. The answer is exact as long as
    20,000 of them suffice; beyond, those with the best bounds go on, and it is never worse than the greedy choice.

    Raises TypeError, ValueError: no layers, a layer without candidates, candidates or a budget of another kind, costs
    or errors that are negative or not finite, or a budget that not even the cheapest candidates meet (the message gives
    the least).

    Source: Sinha, Zoltners 1979, The multiple-choice knapsack problem.

    >>> curve = [Candidate(1, 10, 4.0), Candidate(2, 20, 1.0)]
    >>> flat = [Candidate(1, 10, 0.5), Candidate(2, 20, 0.4)]
    >>> {name: c.rank for name, c in allocate(30, {"a": curve, "b": flat}).choices.items()}
    {'a': 2, 'b': 1}
    """
    _check_budget(budget, layers)
    fronts = [_front(_checked(name, candidates)) for name, candidates in layers.items()]
    least = math.fsum(front[0].cost for front in fronts)
    if least > budget * (1.0 + 1e-12):
        raise ValueError(
            f"allocate: the budget {budget:g} cannot be met, the cheapest candidates of all {len(fronts)} layers cost "
            f"{least:g}; raise the budget to at least that, or offer cheaper candidates"
        )
    hulls = [_hull(front) for front in fronts]
    greedy, price = _greedy(budget, hulls)
    chosen = _search(budget, fronts, math.fsum(c.error for c in greedy), price)
    if math.fsum(c.error for c in chosen) > math.fsum(c.error for c in greedy):
        chosen = greedy
    choices = dict(zip(layers, chosen, strict=True))
    return Allocation(
        choices, math.fsum(c.cost for c in choices.values()), math.fsum(c.error for c in choices.values())
    )


def _check_budget(budget: Any, layers: Any) -> None:
    if not isinstance(layers, Mapping):
        raise TypeError(f"allocate: expected a mapping from names to candidates, found {type(layers).__name__}")
    if not layers:
        raise ValueError("allocate: expected at least one layer with candidates, found none")
    if not is_real(budget):
        raise TypeError(f"allocate: expected the budget as a number, found {shown(budget)}")
    if math.isnan(budget):
        raise ValueError("allocate: the budget is NaN; expected a number of parameters, FLOPs or seconds")


def _checked(name: str, candidates: Any) -> list[Candidate]:
    """The candidates of a layer, each with a cost and an error that may be added."""
    listed = list(candidates) if isinstance(candidates, Iterable) else []
    if not listed:
        raise ValueError(f"allocate: layer {shown(name)} has no candidates; offer at least one (rank, cost, error)")
    for candidate in listed:
        if not isinstance(candidate, Sequence) or len(candidate) != 3 or not all(map(is_real, candidate[1:])):
            raise TypeError(
                f"allocate: layer {shown(name)} has candidate {shown(candidate)}, expected (rank, cost, error), the "
                "last two numbers"
            )
        rank, cost, error = candidate
        if not (0.0 <= cost < math.inf and 0.0 <= error < math.inf):
            raise ValueError(
                f"allocate: layer {shown(name)}, rank {shown(rank)} has cost {shown(cost)} and error {shown(error)}; "
                "expected finite numbers of at least 0"
            )
    return [Candidate(*candidate) for candidate in listed]


def _front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The Pareto front of the candidates, cheapest first."""
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.cost, c.error)):
        if not front or candidate.error < front[-1].error:
            front.append(candidate)
    return front


def _hull(front: Sequence[Candidate]) -> list[Candidate]:
    """The lower convex hull: each step buys less error for its cost than the step before."""
    hull: list[Candidate] = []
    for c in front:
        while len(hull) > 1 and _rate(hull[-2], hull[-1]) <= _rate(hull[-1], c):
            hull.pop()
        hull.append(c)
    return hull


def _rate(cheap: Candidate, costly: Candidate) -> float:
    """Error bought for a unit of cost."""
    return (cheap.error - costly.error) / (costly.cost - cheap.cost)


def _greedy(budget: float, hulls: Sequence[Sequence[Candidate]]) -> tuple[list[Candidate], float]:
    """The greedy choice along the hulls, and the price: the rate of the first step that did not fit."""
    steps = [
        (-_rate(cheap, costly), i, k)
        for i, hull in enumerate(hulls)
        for k, (cheap, costly) in enumerate(itertools.pairwise(hull))
    ]
    position = [0] * len(hulls)
    left = budget - math.fsum(hull[0].cost for hull in hulls)
    price = 0.0
    for rate, i, k in sorted(steps):
        cost = hulls[i][k + 1].cost - hulls[i][k].cost
        if position[i] == k and cost <= left:
            position[i], left = k + 1, left - cost
        elif price == 0.0:
            price = -rate
    return [hull[p] for hull, p in zip(hulls, position, strict=True)], price


def _search(budget: float, fronts: Sequence[Sequence[Candidate]], ceiling: float, price: float) -> Sequence[Candidate]:
    """Best complete choice: partial ones layer by layer, without those that cannot win."""
    rest = [min(c.error + price * c.cost for c in front) for front in fronts]  # Lagrangian bound of each layer
    goal = ceiling * (1.0 + 1e-12) + (price * budget * (1.0 + 1e-12) if price else 0.0)
    states = [_State(0.0, 0.0, None, None)]
    for i, front in enumerate(fronts):
        to_come, bound = math.fsum(f[0].cost for f in fronts[i + 1 :]), math.fsum(rest[i + 1 :])
        grown = sorted(
            (_State(s.cost + c.cost, s.error + c.error, c, s) for s in states for c in front), key=lambda s: s[:2]
        )
        states = []
        for s in grown:
            fits = s.cost + to_come <= budget * (1.0 + 1e-12)  # sums of costs are rounded
            beaten = bool(states) and s.error >= states[-1].error
            if fits and not beaten and s.error + price * s.cost + bound <= goal:
                states.append(s)
        if len(states) > _STATES:
            states = sorted(sorted(states, key=lambda s: s.error + price * s.cost)[:_STATES], key=lambda s: s.cost)
    return _chain(states[-1]) if states else [front[0] for front in fronts]


def _chain(state: _State) -> list[Candidate]:
    chosen: list[Candidate] = []
    while state.last is not None and state.before is not None:
        chosen.append(state.last)
        state = state.before
    return chosen[::-1]
