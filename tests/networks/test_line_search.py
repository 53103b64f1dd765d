"""Line search: the minimum where there is one, and no change at all where there is nothing to win."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from growarray.networks import LineSearch, line_search

SHAPES: dict[str, tuple[Callable[[float], float], float]] = {
    "at_one": (lambda g: (g - 1.0) ** 2, 1.0),
    "at_three": (lambda g: (g - 3.0) ** 2, 3.0),
    "far": (lambda g: (g / 1000.0 - 1.0) ** 2, 1000.0),
    "near": (lambda g: (g * 1000.0 - 1.0) ** 2, 1e-3),
    "quartic": (lambda g: -(g**2) + g**4, math.sqrt(0.5)),
    "step_then_wall": (lambda g: -g if g < 0.3 else 10.0, 0.3),
    "infinite_beyond": (lambda g: (g - 0.2) ** 2 if g < 0.5 else math.inf, 0.2),
    "nan_beyond": (lambda g: (g - 0.2) ** 2 if g < 0.5 else math.nan, 0.2),
    "minus_infinity_is_no_gain": (lambda g: (g - 0.2) ** 2 if g < 0.5 else -math.inf, 0.2),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_minimum_is_found(shape: str) -> None:
    loss, best = SHAPES[shape]
    result = line_search(loss)
    assert result.factor == pytest.approx(best, rel=0.1)
    assert result.loss == loss(result.factor) < result.start == loss(0.0)
    assert result.loss == min(value for _, value in result.trials)
    precise = line_search(loss, refinements=25)
    assert precise.factor == pytest.approx(best, rel=1e-3)


REFUSED: dict[str, Callable[[float], float]] = {
    "rising": lambda g: g,
    "flat": lambda g: 1.0,
    "nan_everywhere_else": lambda g: 1.0 if g == 0 else math.nan,
    "infinite_everywhere_else": lambda g: 1.0 if g == 0 else math.inf,
    "broken_everywhere": lambda g: math.nan,
}


@pytest.mark.parametrize("shape", REFUSED)
def test_a_change_that_wins_nothing_is_refused(shape: str) -> None:
    result = line_search(REFUSED[shape])
    assert result.factor == 0.0
    assert result.loss == result.start
    assert len(result.trials) < 60


def test_a_gain_must_exceed_what_is_demanded() -> None:
    loss = lambda g: 1.0 - 0.01 * g * (2.0 - g)  # noqa: E731
    assert line_search(loss).factor == pytest.approx(1.0, rel=0.1)
    assert line_search(loss, improvement=0.005).factor > 0
    assert line_search(loss, improvement=0.02) == LineSearch(0.0, 1.0, 1.0, line_search(loss).trials)


def test_an_endless_descent_stops_at_the_largest_factor() -> None:
    result = line_search(lambda g: -g, largest=64.0)
    assert 64.0 <= result.factor <= 256.0


def test_no_factor_is_tried_twice() -> None:
    tried: list[float] = []
    line_search(lambda g: tried.append(g) or (g - 3.0) ** 2)  # type: ignore[func-returns-value]
    assert len(tried) == len(set(tried)) < 25
    assert min(tried) == 0.0
