"""Modes cut in pieces: the same numbers, forward and backward, within the memory that a plan promises."""

from __future__ import annotations

import itertools
import math
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.contraction import plan, transpose
from growarray.contraction.equation import parse
from growarray.contraction.plan import Plan
from growarray.contraction.problem import Problem
from growarray.contraction.slices import pieces, positions, sliceable
from growarray.contraction.tree import peak_elements
from growarray.contraction.workspace import release
from growarray.errors import PlanError
from growarray.testing import assert_close, check_vjp
from tests.contraction.simulation import costs_of

CONV = ("n c y x, r c, y x r, o r -> n o y x | y, x", ((2, 3, 9, 8), (4, 3), (3, 3, 4), (5, 4)))
CASES: dict[str, tuple[str, tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "sum": ("ij,jk,kl->il", ((3, 4), (4, 5), (5, 2)), {}),
    "hyperedge": ("ir,jr,kr,r->ijk", ((3, 4), (2, 4), (5, 4), (4,)), {}),
    "diagonal": ("iij,jk->ik", ((3, 3, 4), (4, 2)), {}),
    "broadcast": ("...i,ij->...j", ((2, 1, 4), (4, 3)), {}),
    "ellipsis": ("...i,...ij->...j", ((1, 3, 4), (2, 3, 4, 2)), {}),
    "convolution": (*CONV, {"padding": 1}),
    "strides": (*CONV, {"stride": (2, 3), "padding": ((2, 1), (0, 3)), "dilation": (2, 1)}),
    "reflect": (*CONV, {"padding": 1, "padding_mode": ("reflect", "zeros")}),
    "a scalar": (",i,ij->j", ((), (3,), (3, 4)), {}),
    "slices of padding alone": ("c x, r x -> c r x | x", ((2, 3), (4, 2)), {"padding": (4, 5)}),
}


def arrays_of(shapes: Any, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape)) for shape in shapes]


def every_cut() -> list[Any]:
    found = []
    for name, (equation, shapes, options) in CASES.items():
        problem = Problem(parse(equation), shapes, **options)
        most = {mode: positions(problem, mode) for mode in sliceable(problem)}
        cuts = [{m: k} for m in most for k in (2, 3) if k <= most[m]]
        cuts += [{a: 2, b: 2} for a, b in itertools.combinations(most, 2)]
        found += [pytest.param(name, cut, id=f"{name} {cut}") for cut in cuts]
    return found


@pytest.mark.parametrize(("name", "cuts"), every_cut())
def test_slices_give_the_same_numbers_forward_and_backward(name, cuts):
    equation, shapes, options = CASES[name]
    made = plan(equation, *shapes, dtype="float64", slices=cuts, **options)
    whole, arrays = plan(equation, *shapes, dtype="float64", **options), arrays_of(shapes)
    assert made.slices == cuts
    y, pullback = made.vjp(*arrays)
    wanted, back = whole.vjp(*arrays)
    assert_close(y, wanted, rtol=1e-12)
    assert_close(made(*arrays, out=np.empty(made.output_shape)), wanted, rtol=1e-12)
    dy = arrays_of([y.shape], 1)[0]
    for found, gradient in zip(pullback(dy), back(dy), strict=True):
        assert_close(found, gradient, rtol=1e-12)
    assert_close(transpose(made, dy, *arrays[1:]), back(dy)[0], rtol=1e-12)


def test_gradients_by_finite_differences():
    equation, shapes, options = CASES["strides"]
    made = plan(equation, *shapes, dtype="float64", slices={"x": 2, "r": 2, "n": 2}, **options)
    check_vjp(made.vjp, *arrays_of(shapes))


def test_slices_of_any_library(xp):
    equation, shapes, options = CASES["convolution"]
    arrays = [xp.asarray(a) for a in arrays_of(shapes)]
    made = plan(equation, *arrays, slices={"y": 3, "r": 2}, **options)
    y, pullback = made.vjp(*arrays)
    wanted, back = plan(equation, *shapes, dtype="float64", **options).vjp(*arrays_of(shapes))
    assert_close(to_numpy(y), wanted, rtol=1e-12)
    for found, gradient in zip(pullback(y), back(wanted), strict=True):
        assert_close(to_numpy(found), gradient, rtol=1e-11)


def test_every_position_is_in_one_slice():
    equation, shapes, options = CASES["strides"]
    problem = Problem(parse(equation), shapes, **options)
    counted = np.zeros([problem.extent(m, problem.everything) for m in problem.output])
    for piece in pieces(problem, {"n": 2, "y": 3, "x": 2}):
        counted[piece.output] += 1
    assert (counted == 1).all()


def test_a_plan_for_one_batch_runs_another_in_slices_of_it():
    equation, shapes, options = CASES["convolution"]
    made = plan(equation, *shapes, dtype="float64", slices={"n": 2, "c": 3}, **options)
    arrays = arrays_of(((7, *shapes[0][1:]), *shapes[1:]))
    assert_close(made(*arrays), plan(equation, *arrays, **options)(*arrays), rtol=1e-12)


# Chosen under a limit.

HUGE = "a i, i b r, r j, j a -> b", ((40, 30), (30, 20, 50), (50, 60), (60, 40))
SMALL = ((2, 3), (3, 2, 2), (2, 3), (3, 2))


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_a_limit_below_every_path_is_kept_by_slices(share, training):
    equation, shapes = HUGE
    least = plan(equation, *shapes, minimize="memory", training=training, dtype="float64").peak_bytes
    limit = int(least * share)
    made = plan(equation, *shapes, memory_limit=limit, training=training, dtype="float64")
    assert made.slices
    assert made.peak_bytes <= limit
    arrays = arrays_of(shapes)
    whole = plan(equation, *shapes, dtype="float64")
    assert_close(made(*arrays), whole(*arrays), rtol=1e-11)
    for found, gradient in zip(made.vjp(*arrays)[1](np.ones(20)), whole.vjp(*arrays)[1](np.ones(20)), strict=True):
        assert_close(found, gradient, rtol=1e-11)
    text = str(made)
    assert f"{math.prod(made.slices.values())} slices (" in text
    assert all(f"{mode} in {count}" in text for mode, count in made.slices.items())


def test_what_is_allocated_keeps_the_limit_too():
    equation, shapes = "a i, i b, b j -> a j", ((400, 30), (30, 500), (500, 6))
    path, arrays = [(0, 1), (0, 1)], arrays_of(shapes)

    def allocated(**options: Any) -> int:
        made = plan(equation, *shapes, optimize=path, dtype="float64", **options)
        release()
        tracemalloc.start()
        made(*arrays)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= made.peak_bytes + 40_000  # Python's own
        return peak

    assert 8 * allocated(slices={"b": 20}) < allocated()


def test_a_convolution_is_cut_along_its_rank_or_the_image_rather_than_run_as_a_dense_one():
    equation, shapes = "c y x, r c, y x r, o r -> o y x | y, x", ((64, 64, 64), (16, 64), (3, 3, 16), (4, 16))
    free = plan(equation, *shapes, padding=1, minimize="flops")
    limit = 4 * (4 * 64 * 64 + 16 * 64 * 20)  # the output, and twenty rows of a partial result
    assert limit < free.peak_bytes / 3
    made = plan(equation, *shapes, padding=1, minimize="flops", memory_limit=limit)
    assert set(made.slices) & {"r", "y", "x"}
    assert made.peak_bytes <= limit
    dense = plan(equation, *shapes, padding=1, optimize="reconstructed")
    assert free.flops <= made.flops < dense.flops
    arrays = arrays_of(shapes)
    assert_close(made(*arrays), free(*arrays), rtol=1e-12)


def test_a_limit_that_every_path_keeps_cuts_nothing():
    equation, shapes = HUGE
    free = plan(equation, *shapes)
    assert plan(equation, *shapes, memory_limit=free.peak_bytes).slices == {}
    assert plan(equation, *shapes, memory_limit=free.peak_bytes).path == free.path


def test_cuts_are_chosen_by_cost_and_not_only_where_no_path_is_left():
    """The path that holds the least takes far more operations than slices of the best one."""
    equation, shapes = "a b, b c, c d, d e -> a e", ((4, 900), (900, 6), (6, 900), (900, 4))
    least = plan(equation, *shapes, minimize="memory")
    free = plan(equation, *shapes)
    made = plan(equation, *shapes, memory_limit=max(least.peak_bytes, 1))
    assert made.seconds <= least.seconds
    assert free.seconds <= made.seconds


def test_sliced_operations_are_those_of_all_slices_and_of_the_second_forward_pass():
    equation, shapes, options = CASES["strides"]
    forward = plan(equation, *shapes, slices={"x": 2, "y": 3}, **options)
    both = plan(equation, *shapes, slices={"x": 2, "y": 3}, training=True, optimize=forward.path, **options)
    problem = Problem(parse(equation), shapes, **options)
    sums = backward = 0
    for piece in pieces(problem, forward.slices):
        part = plan(
            equation, *piece.shapes, optimize=forward.path, training=True,
            stride=[a.stride for a in piece.axes], padding=[(a.before, a.after) for a in piece.axes],
            dilation=[a.dilation for a in piece.axes],
        )  # fmt: skip
        sums += sum(step.flops for step in part.steps)
        backward += sum(step.backward_flops for step in part.steps)
    assert forward.flops == sums
    assert both.flops == 2 * sums + backward


def test_a_sliced_plan_comes_back_from_plain_data_and_is_another_than_the_whole():
    equation, shapes = HUGE
    made = plan(equation, *shapes, memory_limit=2_000)
    again = Plan.from_dict(made.to_dict())
    assert again == made
    assert (again.slices, again.peak_bytes, again.flops) == (made.slices, made.peak_bytes, made.flops)
    assert made != plan(equation, *shapes, optimize=made.path)


def test_bound_operands_of_a_sliced_plan():
    equation, shapes = HUGE
    arrays = arrays_of(shapes)
    bound = plan(equation, *shapes, memory_limit=4_000, dtype="float64").bind({0: arrays[0], 3: arrays[3]})
    assert bound.plan.peak_bytes <= 4_000
    assert_close(bound(*arrays[1:3]), plan(equation, *arrays)(*arrays), rtol=1e-11)


@pytest.mark.parametrize(("sizes", "what"), [(HUGE[1], "with at most 4096 slices no path"), (SMALL, "no path")])
def test_the_least_is_named_and_enough(sizes, what):
    equation = HUGE[0]
    with pytest.raises(PlanError, match=f"memory_limit: {what} holds fewer than") as raised:
        plan(equation, *sizes, memory_limit=10)
    least = int(re.search(r"at least (\d+) bytes", str(raised.value)).group(1))  # type: ignore[union-attr]
    made = plan(equation, *sizes, memory_limit=least)
    assert made.peak_bytes <= least
    assert math.prod(made.slices.values()) <= 4096


def test_more_slices_than_are_chosen_are_cut_if_the_caller_says_so():
    equation, shapes = HUGE
    cuts = {"i": 30, "r": 50, "j": 60}
    made = plan(equation, *shapes, slices=cuts, memory_limit=1000)
    assert (made.slices, made.with_path(made.path)) == (cuts, made)


def test_the_search_keeps_a_limit_in_the_slices_that_are_given():
    equation, shapes = "c y x, r c, y x r, o r -> o y x | y, x", ((64, 16, 16), (16, 64), (3, 3, 16), (4, 16))
    free = plan(equation, *shapes, slices={"y": 2}, padding=1)
    limit = plan(equation, *shapes, slices={"y": 2}, padding=1, minimize="memory").peak_bytes
    made = plan(equation, *shapes, slices={"y": 2}, padding=1, memory_limit=limit)
    assert made.peak_bytes <= limit < free.peak_bytes
    with pytest.raises(PlanError, match=rf"with slices .* no path holds .* raise memory_limit to at least {limit} b"):
        plan(equation, *shapes, slices={"y": 2}, padding=1, memory_limit=limit - 1)


def test_another_path_keeps_the_limit_and_the_slices():
    equation, shapes = HUGE
    made = plan(equation, *shapes, memory_limit=4_000, dtype="float64")
    again = made.with_path(made.path)
    assert made.slices
    assert (again, again.memory_limit, again.peak_bytes) == (made, 4_000, made.peak_bytes)
    assert made.with_path("auto") == made
    with pytest.raises(PlanError, match=r"memory_limit: with slices .* this path does not hold fewer than"):
        made.with_path([(0, 2), (0, 1), (0, 1)])


def test_a_slice_has_its_price_beside_its_steps():
    one = plan("i j, j k -> i k", (64, 64), (64, 64), slices={"i": 2}, minimize="flops")
    all_ = plan("i j, j k -> i k", (64, 64), (64, 64), slices={"i": 64}, minimize="flops")
    assert all_.seconds - one.seconds > 62 * 50e-6


def test_nothing_is_cut_if_the_caller_says_so():
    equation, shapes = HUGE
    with pytest.raises(PlanError, match="memory_limit: no path holds fewer than"):
        plan(equation, *shapes, memory_limit=2_000, slices={})


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ({"q": 2}, "slices: 'q' is not a mode that can be cut; known are i, j, k, l"),
        ({"i": 9}, "slices: found 9 for 'i', expected a whole number from 1 to 3"),
        ({"i": 1.5}, "slices: found 1.5 for 'i', expected a whole number"),
        (7, "slices: found 7, expected pieces by mode such as {'r': 4}"),
    ],
)
def test_slices_that_make_no_sense_are_refused(slices, message):
    equation, shapes, _ = CASES["sum"]
    with pytest.raises(PlanError, match=re.escape(message)):
        plan(equation, *shapes, slices=slices)


def test_the_peak_of_slices_is_the_result_and_one_slice():
    equation, shapes, _ = CASES["sum"]
    made = plan(equation, *shapes, slices={"j": 2}, optimize=[(0, 1), (0, 1)])
    part = Problem(parse(equation), ((3, 2), (2, 5), (5, 2)))
    assert made.peak_bytes == 4 * (3 * 2 + peak_elements(costs_of(part), made.tree))
