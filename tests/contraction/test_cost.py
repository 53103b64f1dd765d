"""The cost model: operations counted one by one, bytes, sizes at a time, and a time that grows with the work."""

from __future__ import annotations

import math
import random
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from growarray.contraction import plan
from growarray.contraction.cost import _WAIT, Costs
from growarray.contraction.equation import parse
from growarray.contraction.machine import CPU
from growarray.contraction.objective import objective_named
from growarray.contraction.problem import Problem
from growarray.contraction.search import search
from growarray.contraction.tree import random_tree
from tests.contraction.reference import cp, direct, random_arrays, reconstructed, tensor_train, tucker
from tests.contraction.simulation import carried_out, costs_of

GEOMETRY = {"stride": [2, 1], "padding": [(1, 2), (0, 1)], "dilation": [1, 2], "padding_mode": ["zeros"] * 2}
LAYERS = {
    "CP": cp(2, (2, 3), (6, 7), (3, 2), 2),
    "CP no weights": cp(1, (3, 2), (5, 8), (2, 3), 3, weights=False),
    "Tucker": tucker(1, (2, 3), (5, 6), (3, 2), (2, 1, 2, 2)),
    "TT": tensor_train(2, (2, 2), (4, 6), (3, 2), (2, 3, 2)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layer", LAYERS.values(), ids=list(LAYERS))
def test_operations_of_a_layer_are_those_that_carrying_it_out_takes(layer, seed):
    problem = Problem(parse(layer.equation), layer.shapes, **GEOMETRY)
    arrays = random_arrays(layer.shapes)
    tree = random_tree(problem, random.Random(seed))
    counted = carried_out(problem, arrays, tree)
    wanted = direct(layer.dense, [arrays[0], reconstructed(layer, arrays[1:])], GEOMETRY)
    np.testing.assert_allclose(counted.result, wanted, atol=1e-12)  # what was counted is the contraction
    costs = costs_of(problem)
    assert [costs.step(*pair).flops for pair in tree] == counted.operations


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("i,j->ij", [(2,), (3,)]),
        ("i,j->i", [(2,), (3,)]),
        ("bij,bjk,bk->bi", [(2, 3, 4), (2, 4, 2), (2, 2)]),
        ("ir,jr,kr,r->ijk", [(2, 3), (4, 3), (2, 3), (3,)]),
        (",ij,jk->ki", [(), (2, 3), (3, 2)]),
    ],
)
def test_operations_of_plain_equations_are_counted(equation, shapes):
    problem = Problem(parse(equation), shapes)
    arrays = random_arrays(shapes)
    for seed in range(3):
        tree = random_tree(problem, random.Random(seed))
        counted = carried_out(problem, arrays, tree)
        np.testing.assert_allclose(counted.result, np.einsum(equation, *arrays), atol=1e-12)
        costs = costs_of(problem)
        assert [costs.step(*pair).flops for pair in tree] == counted.operations


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("taps", [1, 3, 5])
def test_a_convolution_costs_output_size_times_kernel_size_where_the_two_meet(taps, stride):
    made = plan("n c x, c r, x r -> n x r | x", (4, 8, 30), (8, 6), (taps, 6), stride=stride, optimize=[(0, 1), (0, 1)])
    out = (30 - taps) // stride + 1
    convolved = 2 if taps > 1 or stride > 1 else 1  # one tap that moves nowhere is a plain multiplication
    assert [step.flops for step in made.steps] == [2 * 4 * 8 * 6 * 30, convolved * 4 * 6 * out * taps]
    assert made.flops == sum(step.flops for step in made.steps)
    after = plan(
        "n c x, x r, c r -> n x r | x", (4, 8, 30), (taps, 6), (8, 6), stride=stride, optimize=[(0, 1), (0, 1)]
    )
    assert after.steps[1].flops == 2 * 4 * 8 * 6 * out  # reduced size from then on


def test_training_counts_both_directions():
    layer = LAYERS["TT"]
    forward = plan(layer.equation, *layer.shapes, optimize="factorized")
    both = plan(layer.equation, *layer.shapes, optimize="factorized", training=True)
    assert [step.flops for step in both.steps] == [step.flops for step in forward.steps]
    assert all(step.backward_flops == 0 for step in forward.steps)
    assert [step.backward_flops for step in both.steps] == [2 * step.flops for step in forward.steps]
    assert both.flops == 3 * forward.flops
    assert both.bytes == 3 * forward.bytes
    assert both.seconds > 1.5 * forward.seconds
    assert both.peak_bytes == 4 * sum(both._problem.elements(a | b) for a, b in both.tree)
    assert forward.peak_bytes < both.peak_bytes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bytes_are_those_of_operands_and_results(dtype):
    made = plan("ij,jk,kl->il", (10, 20), (20, 3), (3, 5), optimize=[(0, 1), (0, 1)], dtype=dtype)
    size = int(dtype[5:]) // 8
    assert [step.bytes for step in made.steps] == [size * (200 + 60 + 30), size * (30 + 15 + 50)]
    assert [step.elements for step in made.steps] == [30, 50]
    assert made.peak_bytes == size * 80


@pytest.mark.parametrize(("block", "cores", "images"), [(1, 1, 1), (1, 4, 4), (3, 2, 6), (5, 4, 12), (12, 4, 12)])
def test_a_partial_result_is_held_for_one_block_a_core(block, cores, images):
    layer = cp(12, (4, 5), (9, 8), (3, 3), 6)
    problem = Problem(parse(layer.equation), layer.shapes)
    costs = costs_of(problem, block=block, cores=cores)
    assert costs.held(0b1001) == problem.elements(0b1001) // 12 * min(images, 12)
    assert costs.held(0b0110) == problem.elements(0b0110)
    assert costs.held(problem.everything) == problem.elements(problem.everything)
    trained = costs_of(problem, block=block, cores=cores, training=True)
    assert trained.held(0b1001) == problem.elements(0b1001)


def test_a_step_is_computed_once_and_does_not_know_left_from_right():
    problem = Problem(parse("ij,jk->ik"), [(2, 3), (3, 4)])
    costs = costs_of(problem)
    assert costs.step(1, 2) is costs.step(2, 1)
    waiting = Problem(parse("x r, x y, y r -> x y r | x, y"), [(20, 2), (3, 30), (3, 2)])
    assert costs_of(waiting).step(0b101, 0b010) is None


def test_products_of_constants_cost_nothing():
    layer = LAYERS["CP"]
    free = plan(layer.equation, *layer.shapes, optimize="reconstructed", constants=(1, 2, 3, 4, 5))
    paid = plan(layer.equation, *layer.shapes, optimize="reconstructed")
    last, other = free.steps[-1], paid.steps[-1]  # whose kernel may lie in another order
    assert replace(last, seconds=0.0) == replace(other, seconds=0.0)
    assert last.seconds == pytest.approx(other.seconds, rel=1e-3)
    assert all((s.flops, s.bytes, s.seconds) == (0, 0, 0.0) for s in free.steps[:-1])
    assert all(s.flops > 0 for s in paid.steps)


WORK: dict[str, tuple[str, list[tuple[int, ...]], dict[str, Any]]] = {
    "multiply": ("b i, b j -> b i j", [(64, 40), (64, 50)], {}),
    "matmul": ("i j, j k -> i k", [(256, 300), (300, 200)], {}),
    "band": ("n c y x, c y x -> n c y x | y, x", [(8, 64, 56, 56), (64, 3, 3)], {"padding": 1}),
    "convolution": ("n c y x, o c y x -> n o y x | y, x", [(8, 32, 28, 28), (48, 32, 3, 3)], {"padding": 1}),
    "strided": ("n c y x, o c y x -> n o y x | y, x", [(8, 32, 28, 28), (48, 32, 3, 3)], {"padding": 1, "stride": 2}),
    "deep": ("n c y x, o c y x -> n o y x | y, x", [(8, 256, 7, 7), (512, 256, 3, 3)], {"padding": 1}),
}


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize(("equation", "shapes", "options"), WORK.values(), ids=list(WORK))
def test_predicted_time_is_finite_positive_and_grows_with_every_size(equation, shapes, options, training):
    parsed = parse(equation)

    def seconds(sizes: dict[str, int]) -> float:
        taps = {m: shapes[1][parsed.terms[1].index(m)] for m in parsed.convolved}
        second = [taps.get(m, sizes[m]) for m in parsed.terms[1]]
        problem = Problem(parsed, [[sizes[m] for m in parsed.terms[0]], second], **options)
        return Costs(problem, CPU, training=training, block=1).value(objective_named("time"), 1, 2)  # type: ignore

    size = {
        m: n
        for term, shape in zip(parsed.terms[::-1], shapes[::-1], strict=True)
        for m, n in zip(term, shape, strict=True)
    }
    once = seconds(size)
    assert math.isfinite(once)
    assert once > 0
    for mode in size:
        assert seconds(size | {mode: 3 * size[mode]}) > 1.05 * once, mode


@pytest.mark.parametrize(("equation", "shapes", "options"), WORK.values(), ids=list(WORK))
def test_a_slower_machine_takes_longer_and_more_cores_are_faster(equation, shapes, options):
    problem = Problem(parse(equation), shapes, **options)

    def seconds(machine: Any) -> float:
        return Costs(problem, machine, training=True, block=1).value(objective_named("time"), 1, 2)  # type: ignore

    slow = {k: 2 * v for k, v in asdict(CPU).items() if isinstance(v, float) and v < 1}  # everything in seconds
    assert seconds(replace(CPU, rate=CPU.rate / 2, **slow)) == pytest.approx(2 * seconds(CPU), rel=0.02)
    assert seconds(replace(CPU, cores=4)) <= seconds(CPU)


@pytest.mark.parametrize(("images", "faster"), [(1, False), (32, True)])
def test_the_short_steps_of_a_single_image_are_not_shared(images, faster):
    problem = Problem(parse("n c y x, r c y x -> n r y x | y, x"), [(images, 16, 20, 20), (8, 16, 3, 3)], padding=1)

    def seconds(cores: int) -> float:
        machine = replace(CPU, cores=cores)
        return Costs(problem, machine, training=False, block=1).step(1, 2).seconds  # type: ignore

    assert (seconds(4) < seconds(1)) == faster


@pytest.mark.parametrize(
    ("kernel", "shape", "each"),
    [
        ("n q s t", (6, 5, 40, 3), 0.0),
        ("t s q n", (3, 40, 5, 6), CPU.gathered),
        ("n s q t", (6, 40, 5, 3), CPU.copied + CPU.row / 3),
        ("n s t q", (6, 40, 3, 5), CPU.gathered),
    ],
)
def test_a_kernel_that_does_not_lie_in_the_order_of_its_product_is_copied(kernel, shape, each):
    def seconds(operand: str, sizes: tuple[int, ...]) -> float:
        problem = Problem(parse(f"s t x, {operand} x -> n q x | x"), [(40, 3, 7), (*sizes, 1)])
        return Costs(problem, CPU, training=False, block=1).step(1, 2).seconds  # type: ignore

    assert seconds(kernel, shape) - seconds("n q s t", (6, 5, 40, 3)) == pytest.approx(6 * 5 * 40 * 3 * each)


def test_how_a_partial_result_lies_is_known_if_the_tree_is():
    problem = Problem(parse("c x y, r c, o r y, x -> o x | x"), [(4, 70, 60), (8, 4), (5, 8, 60), (1,)])
    tree = [(0b0001, 0b0010), (0b0011, 0b0100)]  # r y x, whose y and r are summed, in this order
    known, unknown = (Costs(problem, CPU, training=False, block=1, tree=t) for t in (tree, ()))
    first, second = (known.step(*pair).seconds - unknown.step(*pair).seconds for pair in tree)  # type: ignore
    assert first == 0
    assert second == pytest.approx(8 * 70 * 60 * (CPU.copied + CPU.row / 70))


def test_the_objectives_differ():
    layer = cp(8, (64, 64), (56, 56), (3, 3), 28, weights=False)
    problem = Problem(parse(layer.equation), layer.shapes, padding=1)
    costs = costs_of(problem, block=1)
    trees = {name: search(costs, objective_named(name)) for name in ("time", "flops", "memory")}
    totals = {name: sum(costs.step(*p).flops for p in tree) for name, tree in trees.items()}
    assert totals["flops"] < totals["memory"]
    first = trees["flops"][0]
    assert costs.value(objective_named("memory"), *first) == costs.step(*first).elements


@pytest.mark.parametrize(("order", "across"), [("r x", False), ("x r", True)])
def test_a_multiplication_that_does_not_read_as_its_longer_side_lies_takes_longer(order, across):
    def seconds(order: str) -> float:
        shape = {"r x": (30, 50), "x r": (50, 30)}[order]
        problem = Problem(parse(f"r, {order} -> r x"), [(30,), shape])
        return Costs(problem, CPU, training=False, block=1).step(1, 2).seconds  # type: ignore

    assert seconds(order) - seconds("r x") == pytest.approx(across * 30 * 50 * CPU.gathered)


def test_calls_of_threads_beside_each_other_wait_for_the_lock_of_the_interpreter():
    problem = Problem(parse("n c y x, c y x -> n c y x | y, x"), [(32, 64, 14, 14), (64, 3, 3)], padding=1)

    free = {"step": 1e-12, "byte": 1e-18, "element": 1e-18, "gathered": 1e-18}  # what is no product, and its matrices

    def seconds(cores: int, call: float) -> float:
        costs = Costs(problem, replace(CPU, cores=cores, call=call, **free), training=False, block=8)
        return cores * costs.step(1, 2).seconds  # type: ignore

    assert seconds(2, 1e-6) == pytest.approx(seconds(1, 1e-6 + _WAIT))
    assert seconds(2, 1e-6) > 1.1 * seconds(1, 1e-6)
