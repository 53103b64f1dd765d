"""An equation with sizes: modes and sizes of partial results, what a pairwise product is, and what is refused."""

from __future__ import annotations

import math
import re

import pytest

from growarray.contraction.equation import parse
from growarray.contraction.problem import Axis, Problem
from growarray.errors import PlanError
from tests.contraction.reference import cp, tucker

CP = cp(8, (16, 12), (20, 30), (3, 5), 4, weights=False)  # operands: feature map, o r, c r, y r, x r
X, O, C, Y, W = (1 << i for i in range(5))  # noqa: E741


def cp_problem(**options: object) -> Problem:
    return Problem(parse(CP.equation), CP.shapes, **({"stride": (2, 1), "padding": 1} | options))


def sizes(problem: Problem, operands: int) -> dict[str, int]:
    return {mode: problem.extent(mode, operands) for mode in problem.modes(operands)}


@pytest.mark.parametrize(
    ("operands", "modes"),
    [
        (X, {"n": 8, "c": 16, "y": 20, "x": 30}),
        (Y, {"y": 3, "r": 4}),
        (X | C, {"n": 8, "r": 4, "y": 20, "x": 30}),
        (X | C | Y, {"n": 8, "r": 4, "y": 10, "x": 30}),
        (X | C | Y | W, {"n": 8, "r": 4, "y": 10, "x": 28}),
        (Y | W, {"r": 4, "y": 3, "x": 5}),
        (O | C | Y | W, {"o": 12, "c": 16, "y": 3, "x": 5}),
        (O | C, {"o": 12, "c": 16, "r": 4}),
        (X | O | C | Y | W, {"n": 8, "o": 12, "y": 10, "x": 28}),
    ],
    ids=lambda value: bin(value) if isinstance(value, int) else "",
)
def test_a_convolution_mode_has_its_reduced_size_from_where_the_two_meet(operands, modes):
    problem = cp_problem()
    assert sizes(problem, operands) == modes
    assert problem.elements(operands) == math.prod(modes.values())
    assert problem.shape(operands) == tuple(sizes(problem, operands).values())


@pytest.mark.parametrize(
    ("left", "right", "flops"),
    [
        (X, C, 2 * 8 * 20 * 30 * 16 * 4),  # a pointwise step at full size
        (X | C, Y, 2 * 8 * 4 * 10 * 30 * 3),  # output size times kernel size, where they meet
        (X | C | Y, W, 2 * 8 * 4 * 10 * 28 * 5),
        (X | C | Y | W, O, 2 * 8 * 10 * 28 * 4 * 12),  # pointwise again, at the reduced size
        (Y, W, 4 * 3 * 5),  # no sum: multiplications alone
        (O, C, 12 * 16 * 4),
        (O | C, Y | W, 2 * 12 * 16 * 4 * 3 * 5),
        (X, O | C | Y | W, 2 * 8 * 12 * 16 * 10 * 28 * 3 * 5),
    ],
    ids=["in", "down", "across", "out", "kernels", "channels", "reconstruct", "dense"],
)
def test_operations_of_each_step_of_a_factorized_convolution(left, right, flops):
    problem = cp_problem()
    first, second = problem.operations(left, right), problem.operations(right, left)
    assert first is not None
    assert second is not None
    assert first.flops == second.flops == flops
    assert first.elements == math.prod(problem.shape(left | right))
    assert first.operands == math.prod(problem.shape(left)) + math.prod(problem.shape(right))


def test_a_product_knows_its_modes_and_axes():
    problem = cp_problem()
    pair = problem.pair(X | C, Y)
    assert pair is not None
    assert (pair.feature_mask, pair.kernel_mask) == (X | C, Y)
    assert (pair.b, pair.s, pair.n) == (("r",), (), ())
    assert (pair.product.b, pair.product.s, pair.product.n) == (4, 1, 1)
    assert pair.product.is_conv
    assert set(pair.product.axes) == {Axis("n", 8, 1, 8), Axis("y", 20, 3, 10, 2, 1, 1), Axis("x", 30, 1, 30)}
    swapped = problem.pair(Y, X | C)
    assert (swapped.feature_mask, swapped.kernel_mask) == (X | C, Y)  # type: ignore[union-attr]


def test_a_mode_padded_by_its_own_values_is_padded_where_it_meets_its_kernel():
    pair = cp_problem(padding_mode=("reflect", "zeros")).pair(X, Y)
    assert pair is not None
    assert [name for name, _ in pair.padded] == ["y"]
    assert Axis("y", 22, 3, 10, 2, 0, 1) in pair.product.axes


def test_two_features_that_wait_for_each_others_kernel_do_not_meet():
    problem = Problem(parse("x r, x y, y r -> x y r | x, y"), [(20, 2), (3, 30), (3, 2)])
    assert problem.pair(0b101, 0b010) is None
    assert problem.pair(0b010, 0b101) is None
    assert problem.pair(0b001, 0b010) is not None


@pytest.mark.parametrize(
    ("equation", "shapes", "block"),
    [
        ("n c x, o c x -> n o x | x", [(2, 3, 5), (4, 3, 3)], "n"),
        ("c n x, o c x -> o x n | x", [(3, 2, 5), (4, 3, 3)], "n"),
        ("c x, o c x -> o x | x", [(3, 5), (4, 3, 3)], None),
        ("n c x, n o c x -> n o x | x", [(2, 3, 5), (2, 4, 3, 3)], None),
        ("i j, j k -> i k", [(2, 3), (3, 4)], None),
        ("... c x, o c x -> ... o x | x", [(2, 3, 5), (4, 3, 3)], "...0"),
        ("g n c x, g o c x -> g n o x | x", [(2, 6, 3, 5), (2, 4, 3, 3)], "n"),
    ],
)
def test_blocks_are_cut_along_a_mode_of_the_feature_map_alone(equation, shapes, block):
    assert Problem(parse(equation), shapes).block == block


def test_a_partial_result_keeps_what_is_still_needed():
    layer = tucker(2, (3, 4), (6,), (3,), (2, 3, 2))  # operands: feature map, core, o ro, c rc, x and its rank
    problem = Problem(parse(layer.equation), layer.shapes)
    core = problem.modes(0b00010)
    assert len(core) == 3
    assert set(problem.modes(0b01001)) == {"n", "rc", "x"}
    assert set(problem.modes(0b01011)) == {"n", "x"} | set(core) - {"rc"}
    assert set(problem.modes(0b11111)) == {"n", "o", "x"}


@pytest.mark.parametrize(
    ("equation", "shapes", "message"),
    [
        ("ij,jk->ik", [(2, 3)], "'i j, j k -> i k' has 2 operands, found 1 arrays"),
        ("ij->ij", [(2, 3), (2, 3)], "has 1 operands, found 2 arrays"),
        ("ij,jk->ik", [(2, 3), (3,)], "operand 1 of 'i j, j k -> i k' has 1 axes (3,), its term 'j k' names 2"),
        ("ij->ij", [(2, 3, 4)], "operand 0 of 'i j -> i j' has 3 axes (2, 3, 4), its term 'i j' names 2"),
        ("...ij->...i", [(2,)], "operand 0 of '... i j -> ... i' has 1 axes (2,), its term '... i j' names 2"),
        (
            "ij,jk->ik",
            [(2, 3), (4, 5)],
            "mode 'j' has size 3 in operand 0 and 4 in operand 1; shapes are [(2, 3), (4, 5)]",
        ),
        ("ij,jk->ik", [(2, 1), (4, 5)], "mode 'j' has size 1 in operand 0 and 4 in operand 1"),
        ("ii->i", [(2, 3)], "mode 'i' has size 2 in operand 0 and 3 in operand 0"),
        ("...i,...i->...", [(2, 3), (4, 3)], "mode '...0' has size"),
        ("...i->i", [(2, 3)], "'...' stands for 1 modes that the output lacks; write '...' there too"),
    ],
    ids=["too few", "too many", "axes", "axes of one", "ellipsis", "two sizes", "one and four", "diagonal", "broadcast",
         "lost ellipsis"],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(equation, shapes, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        Problem(parse(equation), shapes)
