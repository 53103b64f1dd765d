"""Orders of contraction: exact search against all trees, limits, presets on a grid of layers, explicit paths."""

from __future__ import annotations

import itertools
import random
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from opt_einsum import contract_path
from opt_einsum.paths import PathOptimizer

from growarray.contraction import contract, plan
from growarray.contraction.cost import Costs
from growarray.contraction.equation import parse
from growarray.contraction.objective import MINIMIZE, objective_named
from growarray.contraction.path import PRESETS, find_tree
from growarray.contraction.problem import Problem
from growarray.contraction.search import EXACT, search, total
from growarray.contraction.tree import linear_path, ordered, peak_elements, random_tree
from growarray.errors import PlanError
from tests.contraction.reference import Layer, cp, tensor_train, tucker
from tests.contraction.simulation import alive_at_most, all_trees, costs_of, least_alive

CHAIN = ("ij,jk,kl,lm->im", ((10, 200), (200, 3), (3, 50), (50, 20)))


def bound(layer: Layer, **options: Any) -> Problem:
    return Problem(parse(layer.equation), layer.shapes, **options)


PROBLEMS: dict[str, Problem] = {
    "chain": Problem(parse(CHAIN[0]), CHAIN[1]),
    "hyperedge": Problem(parse("ir,jr,kr,r->ijk"), [(9, 3), (2, 3), (5, 3), (3,)]),
    "outer": Problem(parse("i,j,k,l->ikl"), [(9,), (2,), (5,), (3,)]),
    "network": Problem(parse("ab,bcd,ce,df,efa->"), [(3, 4), (4, 2, 7), (2, 5), (7, 3), (5, 3, 3)]),
    "CP": bound(cp(4, (16, 8), (12, 9), (3, 5), 6, weights=False), stride=2, padding=1),
    "Tucker 1-D": bound(tucker(4, (8, 16), (30,), (7,), (5, 3, 2))),
    "TT 1-D": bound(tensor_train(4, (8, 16), (30,), (7,), (5, 3)), stride=3),
    "TT 2-D": bound(tensor_train(2, (8, 16), (10, 12), (3, 5), (5, 3, 7)), padding=1),
    "ring": Problem(parse("ab,bc,cd,ae,ef,fd->ad"), [(9, 17), (17, 17), (17, 2), (9, 17), (17, 3), (3, 2)]),
    "two ways": Problem(parse("x r, x y, y r, r -> x y | x, y"), [(20, 2), (3, 30), (3, 2), (2,)]),
}
each_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=list(PROBLEMS))


def value_of(costs: Costs, minimize: str, tree: list[tuple[int, int]]) -> float:
    """What a tree costs, from the costs of its steps, written down here again."""
    steps = [costs.step(*pair) for pair in tree]
    written = [problem_written(costs, *pair) for pair in tree]
    flops = [step.flops + step.backward_flops for step in steps]
    return {
        "time": lambda: sum(step.seconds + step.backward_seconds for step in steps),
        "flops": lambda: sum(flops),
        "size": lambda: max(step.elements for step in steps),
        "write": lambda: sum(written),
        "combo": lambda: sum(f + 64 * w for f, w in zip(flops, written, strict=True)),
        "limit": lambda: sum(max(f, 64 * w) for f, w in zip(flops, written, strict=True)),
    }[minimize]()


def problem_written(costs: Costs, left: int, right: int) -> int:
    """Elements of the result, and for training of both gradients."""
    elements = costs.problem.elements
    return elements(left | right) + (elements(left) + elements(right) if costs.training else 0)


@each_problem
@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("minimize", MINIMIZE)
def test_auto_is_the_best_of_all_trees(problem, minimize, training):
    costs = costs_of(problem, training=training)
    found = search(costs, objective_named(minimize))
    if minimize == "memory":
        assert alive_at_most(costs, found) == min(least_alive(costs, tree) for tree in all_trees(problem))
    else:
        totals = [value_of(costs, minimize, tree) for tree in all_trees(problem)]
        assert value_of(costs, minimize, found) == pytest.approx(min(totals), rel=1e-12)
        assert max(totals) > min(totals) or minimize == "size"  # the output may be the largest of every tree


@each_problem
@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
def test_peak_is_what_is_alive_at_the_worst_moment(problem, training):
    costs = costs_of(problem, training=training, block=1, cores=2)
    for tree in itertools.islice(all_trees(problem), 0, None, 4):
        assert peak_elements(costs, tree) == alive_at_most(costs, tree)
        assert peak_elements(costs, ordered(costs, tree)) == least_alive(costs, tree)


@each_problem
@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
def test_a_limit_is_kept_at_the_least_cost(problem, training):
    costs = costs_of(problem, training=training)
    trees = [(least_alive(costs, t), sum(costs.step(*p).flops for p in t)) for t in all_trees(problem)]
    peaks = sorted({peak for peak, _ in trees})
    for limit in (*peaks[:25], peaks[-1] + 7):
        found = search(costs, objective_named("flops"), limit)
        assert alive_at_most(costs, found) <= limit
        assert sum(costs.step(*p).flops for p in found) == min(flops for peak, flops in trees if peak <= limit)


@each_problem
def test_a_limit_that_no_tree_meets_names_the_least_and_that_works(problem):
    costs = costs_of(problem)
    with pytest.raises(PlanError, match="memory_limit: no path holds fewer than") as raised:
        search(costs, objective_named("time"), 1)
    least = int(re.search(r"raise memory_limit to at least (\d+) bytes", str(raised.value)).group(1))  # type: ignore[union-attr]
    assert alive_at_most(costs, search(costs, objective_named("time"), least // 4)) * 4 == least
    with pytest.raises(PlanError, match="no path holds fewer than"):
        search(costs, objective_named("time"), least // 4 - 1)


def grid() -> list[tuple[Layer, dict[str, Any]]]:
    """Shapes of layers as networks have them, and some as they do not."""
    cases: list[tuple[Layer, dict[str, Any]]] = []
    widths, images = [(3, 64), (16, 16), (64, 32), (128, 256)], [(56, 56), (14, 7)]
    for (ins, outs), size, taps, stride in itertools.product(widths, images, [(3, 3), (1, 5), (7, 7)], [1, 2]):
        options = {"stride": stride, "padding": [k // 2 for k in taps]}
        for batch, rank in ((1, 4), (8, 20), (32, 150)):
            cases.append((cp(batch, (ins, outs), size, taps, rank), options))
            cases.append((tucker(batch, (ins, outs), size, taps, (rank, max(ins // 2, 1), 2, 2)), options))
            cases.append((tensor_train(batch, (ins, outs), size, taps, (rank, 2 * rank, rank)), options))
    for (ins, outs), length, k in itertools.product([(1, 8), (32, 32), (80, 256)], [16, 1000], [2, 9]):
        for rank in (1, 8, 64):
            cases.append((cp(4, (ins, outs), (length,), (k,), rank), {"dilation": 1 + (length > 16)}))
            cases.append((tucker(4, (ins, outs), (length,), (k,), (rank, rank, k)), {}))
            cases.append((tensor_train(4, (ins, outs), (length,), (k,), (rank, rank)), {"stride": 2}))
    return cases


def test_no_preset_takes_fewer_operations_than_auto_on_five_hundred_layers():
    cases = grid()
    assert len(cases) >= 500
    better = dict.fromkeys(PRESETS, 0)
    for layer, options in cases:
        problem = bound(layer, **options)
        costs = costs_of(problem)
        best = sum(costs.step(*pair).flops for pair in search(costs, objective_named("flops")))
        for name in PRESETS:
            other = sum(costs.step(*pair).flops for pair in find_tree(costs, name, objective_named("flops"), None))
            assert best <= other, (layer.equation, layer.shapes, name)
            better[name] += best < other
    assert all(count > len(cases) // 4 for count in better.values())  # and not because all are the same


CP_LAYER = cp(2, (3, 4), (9, 8), (3, 3), 2, weights=False)  # operands: feature map, o r, c r, y r, x r
TUCKER_LAYER = tucker(2, (3, 4), (9, 8), (3, 3), (2, 2, 2, 2))  # feature map, core, o, c, y, x
TT_LAYER = tensor_train(2, (3, 4), (9, 8), (3, 3), (2, 2, 2))  # feature map, c, y, x, o


@pytest.mark.parametrize(
    ("layer", "preset", "made"),
    [
        (CP_LAYER, "factorized", ["02", "023", "0234", "01234"]),
        (CP_LAYER, "mobilenet", ["34", "02", "0234", "01234"]),
        (TUCKER_LAYER, "factorized", ["03", "01345", "012345"]),
        (TT_LAYER, "factorized", ["01", "012", "0123", "01234"]),
        (TT_LAYER, "mobilenet", ["23", "01", "0123", "01234"]),
        (TT_LAYER, "reconstructed", ["1234", "01234"]),
    ],
)
def test_presets_are_the_orders_of_the_field(layer, preset, made):
    problem = bound(layer)
    tree = find_tree(costs_of(problem), preset, objective_named("time"), None)
    found = ["".join(str(i) for i in range(len(problem)) if (a | b) >> i & 1) for a, b in tree]
    assert [text for text in found if text in made] == made
    between = [text for text in found if text not in made]  # kernels among themselves, in the order that is best
    assert all("0" not in text for text in between)


def steps_of(operands: int, linear: list[tuple[int, int]]) -> list[set[int]]:
    """The operand sets that a linear path makes."""
    parts, made = [{i} for i in range(operands)], []
    for i, j in linear:
        whole = parts[i] | parts[j]
        parts = [p for k, p in enumerate(parts) if k not in (i, j)] + [whole]
        made.append(whole)
    return made


def test_presets_need_a_convolution():
    for name in PRESETS:
        with pytest.raises(PlanError, match=f"optimize='{name}' needs a convolution mode; .* has none, use 'auto'"):
            plan("ij,jk->ik", (2, 3), (3, 4), optimize=name)


@each_problem
def test_a_path_is_read_as_it_is_written(problem):
    for tree in itertools.islice(all_trees(problem), 0, None, 5):
        written = linear_path(problem, tree)
        again = find_tree(costs_of(problem), written, objective_named("time"), None)
        assert {frozenset(pair) for pair in again} == {frozenset(pair) for pair in tree}


def test_random_trees_are_trees_of_any_form():
    problem, rng = PROBLEMS["CP"], random.Random(3)
    every = {frozenset(left | right for left, right in tree) for tree in all_trees(problem)}
    drawn = {frozenset(left | right for left, right in random_tree(problem, rng)) for _ in range(1500)}
    assert drawn == every


@pytest.mark.parametrize("name", ["optimal", "dp", "greedy", "branch-2"])
def test_plain_equations_take_the_path_of_opt_einsum(name):
    equation, shapes = CHAIN
    wanted, _ = contract_path(equation, *shapes, shapes=True, optimize=name)
    made = plan(equation, *shapes, optimize=name)
    assert steps_of(4, made.path) == steps_of(4, wanted)


class Recorder(PathOptimizer):
    """An optimizer that keeps what it was asked and takes operands from the left."""

    def __call__(self, inputs, output, size_dict, memory_limit=None):
        self.asked = inputs, output, size_dict, memory_limit
        return [(0, 1)] * (len(inputs) - 1)


def test_an_optimizer_sees_convolutions_as_windows():
    recorder = Recorder()
    plan("n c x, o c x -> n o x | x", (2, 3, 9), (4, 3, 4), stride=2, optimize=recorder, memory_limit=4000)
    inputs, output, sizes, limit = recorder.asked
    assert [len(modes) for modes in inputs] == [4, 3]
    assert output == frozenset("nox")
    assert sizes["x"] == 3  # positions of the output
    assert 4 in sizes.values()  # and taps
    assert limit == 1000


def test_an_optimizer_that_fails_is_named():
    def broken(*args: Any) -> Any:
        raise RuntimeError("no idea")

    with pytest.raises(PlanError, match=r"optimize function \S+broken failed on 'i j, j k -> i k': no idea"):
        plan("ij,jk->ik", (2, 3), (3, 4), optimize=broken)


@pytest.mark.parametrize(
    ("optimize", "message"),
    [
        ("best", "optimize: unknown 'best'; expected a path or one of factorized, mobilenet,"),
        (7, "expected 'auto', a name, or a path such as [(0, 1)], found 7"),
        ([(0, "a")], "expected 'auto', a name, or a path such as [(0, 1)], found"),
        ([(0, 1)], "2 operands are left, expected one result"),
        ([], "3 operands are left"),
        ([(0, 3), (0, 1)], "step (0, 3) does not name distinct ones of 3 operands"),
        ([(0, -1), (0, 1)], "step (0, -1) does not name distinct ones of 3 operands"),
        ([(1, 1), (0, 1)], "step (1, 1) does not name distinct ones of 3 operands"),
        ([(), (0, 1, 2)], "step () does not name distinct ones"),
        ([(0, 1), (0, 1), (0, 1)], "step (0, 1) does not name distinct ones of 1 operands"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_path_is_refused(optimize, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        plan("ij,jk,kl->il", (2, 3), (3, 4), (4, 5), optimize=optimize)


def test_a_path_that_joins_convolutions_the_wrong_way_round_is_refused():
    shapes = (20, 2), (3, 30), (3, 2)
    with pytest.raises(PlanError, match="two convolution modes meet, one with its kernel on the left"):
        plan("x r, x y, y r -> x y r | x, y", *shapes, optimize=[(0, 2), (0, 1)])


def test_an_explicit_path_over_the_limit_names_what_is_needed():
    equation, shapes = CHAIN
    with pytest.raises(
        PlanError, match=r"the path \(\(2, 3\), .* holds \d+ elements at once, allowed are 300; the least"
    ):
        plan(equation, *shapes, optimize=[(2, 3), (1, 2), (0, 1)], memory_limit=1200)
    assert plan(equation, *shapes, memory_limit=1200).peak_bytes <= 1200


NINE = "ab,bc,cd,de,ef,fg,gh,hi,ij->aj"
WIDTHS = (30, 2, 40, 3, 50, 2, 20, 4, 30, 2)
NINE_SHAPES = tuple(itertools.pairwise(WIDTHS))


@pytest.mark.parametrize("minimize", MINIMIZE)
def test_above_eight_operands_the_search_is_good_and_repeatable(minimize):
    assert EXACT == 8
    problem = Problem(parse(NINE), NINE_SHAPES)
    costs = costs_of(problem)
    found = search(costs, objective_named(minimize))
    assert found == search(costs, objective_named(minimize))
    value = partial(total, costs, objective_named(minimize))
    rng = random.Random(5)
    assert value(found) <= min(value(random_tree(problem, rng)) for _ in range(300))


def test_above_eight_operands_a_limit_is_kept_or_refused_with_what_would_do():
    problem = Problem(parse(NINE), NINE_SHAPES)
    costs = costs_of(problem)
    least = peak_elements(costs, search(costs, objective_named("memory")))
    assert peak_elements(costs, search(costs, objective_named("time"), least + 50)) <= least + 50
    with pytest.raises(PlanError, match="greedy paths none holds fewer than") as raised:
        search(costs, objective_named("time"), 3)
    named = int(re.search(r"at least (\d+) bytes", str(raised.value)).group(1))  # type: ignore[union-attr]
    assert peak_elements(costs, search(costs, objective_named("time"), named // 4)) <= named // 4


WRONG_WAYS = "p y q, y q p x r, q p x -> x r y p | x, y", ((2, 9, 3), (4, 3, 2, 9, 2), (3, 2, 3))


def test_a_preset_that_is_no_path_of_the_equation_is_left_out():
    """Its products would count as free, and the search would take it, or fail."""
    equation, shapes = WRONG_WAYS
    with pytest.raises(PlanError, match=r"joins .* and .* the wrong way round.*join one of them with another"):
        plan(equation, *shapes, optimize="reconstructed")
    for options in ({}, {"minimize": "memory"}, {"training": True}):
        assert len(plan(equation, *shapes, **options).path) == 2
    more = ", k" * 7
    nine = plan(equation.replace(" ->", more + " ->", 1), *shapes, *[(2,)] * 7)
    assert len(nine.path) == 9
    assert nine.output_shape == plan(equation, *shapes).output_shape


@pytest.mark.parametrize("optimize", ["dp", "optimal", "greedy", "random-greedy", "branch-2", "auto"])
def test_empty_modes_are_no_obstacle_to_any_optimizer(optimize):
    shapes = (4, 4, 4), (3, 0, 1), (1, 4, 4, 1)
    found = contract("bbb,...,cbbc->...", *(np.ones(shape) for shape in shapes), optimize=optimize)
    assert found.shape == (3, 0, 1)


def test_a_plan_read_again_runs_the_very_same_products():
    """Also where both operands of a step are as large, and either may be turned."""
    equation = "a b, x a c, c, b a, a x -> x | x"
    shapes = (2, 2), (9, 2, 2), (2,), (2, 2), (2, 4)
    rng = random.Random(3)
    arrays = [np.random.default_rng(0).standard_normal(shape, np.float32) for shape in shapes]
    for _ in range(30):
        problem = plan(equation, *shapes)._problem
        tree = random_tree(problem, rng)
        turned = [(b, a) if rng.random() < 0.5 else (a, b) for a, b in tree]
        for one, other in zip(tree, turned, strict=True):
            assert problem.pair(*one) == problem.pair(*other)
        one = plan(equation, *shapes, optimize=linear_path(problem, turned))
        assert np.array_equal(one(*arrays), plan(equation, *shapes, optimize=one.path)(*arrays))
