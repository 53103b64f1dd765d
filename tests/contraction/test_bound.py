"""Bound plans: the numbers of the plan itself, whatever is bound, within its memory limit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from growarray.contraction import Plan, Search, plan
from growarray.errors import PlanError
from growarray.testing import assert_close
from tests.contraction.reference import random_arrays

CHAIN = "n c x, c r x, o r -> n o x | x"
SHAPES = [(64, 3, 80), (3, 5, 3), (4, 5)]
BOUND = [chosen for count in (1, 2) for chosen in itertools.combinations(range(3), count)]


@pytest.mark.parametrize("chosen", BOUND, ids=str)
@pytest.mark.parametrize("optimize", ["auto", [(1, 2), (0, 1)], [(0, 1), (0, 1)]], ids=str)
def test_any_operands_may_be_bound(chosen: tuple[int, ...], optimize: Any) -> None:
    """The feature map too, with others: what they make is whole, so the batch is not cut into blocks."""
    arrays = random_arrays(SHAPES)
    whole = plan(CHAIN, *SHAPES, optimize=optimize, dtype="float64")
    assert 0 < whole.block < 64
    bound, free = whole.bind({i: arrays[i] for i in chosen}), [i for i in range(3) if i not in chosen]
    y, pullback = bound.vjp(*(arrays[i] for i in free))
    wanted, back = whole.vjp(*arrays)
    assert_close(y, wanted, rtol=1e-12)
    assert_close(bound(*(arrays[i] for i in free)), wanted, rtol=1e-12)
    dy = random_arrays([y.shape])[0]
    for found, gradient in zip(pullback(dy), [back(dy)[i] for i in free], strict=True):
        assert_close(found, gradient, rtol=1e-10)


def test_a_memory_limit_stays() -> None:
    equation, shapes = "i j, j k, k l -> i l", [(40, 2), (2, 300), (300, 3)]
    free = plan(equation, *shapes)
    limit = plan(equation, *shapes, minimize="memory").peak_bytes
    limited = plan(equation, *shapes, memory_limit=limit, optimize=[(1, 2), (0, 1)])
    assert limited.bind({2: np.ones((300, 3), "f4")}).plan.memory_limit == limit
    with pytest.raises(PlanError, match="raise memory_limit to at least"):
        plan(equation, *shapes, memory_limit=8, optimize="auto")
    assert free.bind({2: np.ones((300, 3), "f4")}).plan.memory_limit is None


def test_slices_stay() -> None:
    arrays = random_arrays(SHAPES)
    for options in ({"slices": {"r": 5}}, {"slices": {"r": 5}, "optimize": [(1, 2), (0, 1)]}):
        made = plan(CHAIN, *SHAPES, dtype="float64", **options)  # type: ignore[arg-type]
        bound = made.bind(arrays[1:])
        assert bound.plan.slices == {"r": 5}
        assert_close(bound(arrays[0]), made(*arrays), rtol=1e-12)


def test_a_search_is_made_again_with_slices_where_its_limit_takes_them() -> None:
    equation, shapes = "a i, i b r, r j, j a -> b", [(40, 30), (30, 20, 50), (50, 60), (60, 40)]
    limit = plan(equation, *shapes, minimize="memory", dtype="float64").peak_bytes // 2
    made = plan(equation, *shapes, memory_limit=limit, optimize=Search(trials=1), dtype="float64")
    arrays = random_arrays(shapes)
    assert made.slices
    assert_close(made.bind(arrays[1:])(arrays[0]), made(*arrays), rtol=1e-12)


def test_a_plan_with_a_limit_comes_back_with_its_blocks_and_its_peak() -> None:
    equation, shapes = "n c x, c r x, o r -> n o x | x", [(64, 3, 80), (3, 5, 3), (4, 5)]
    one = plan(equation, *shapes, memory_limit=plan(equation, *shapes).peak_bytes)
    again = Plan.from_dict(one.to_dict())
    assert (again.memory_limit, again.block, again.peak_bytes) == (one.memory_limit, one.block, one.peak_bytes)
    assert one.peak_bytes <= one.memory_limit  # type: ignore[operator]


def test_positions_are_whole_numbers_of_any_kind_and_some_are_bound() -> None:
    made = plan("i j, j k -> i k", (2, 3), (3, 4))
    assert made.bind({np.int64(1): np.ones((3, 4), "f4")}).free == (0,)  # type: ignore[dict-item]
    with pytest.raises(PlanError, match="bind: found \\[True\\], expected operands from 0 to 1"):
        made.bind({True: np.ones((3, 4), "f4")})
    with pytest.raises(PlanError, match="bind: no arrays are given; call the plan"):
        made.bind({})
