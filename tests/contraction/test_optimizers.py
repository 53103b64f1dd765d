"""What ``optimize`` takes beside a path: True, False, None, every optimizer of opt_einsum, and others like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import opt_einsum
import pytest

from growarray.contraction import contract, parse, plan
from growarray.errors import PlanError
from growarray.testing import assert_close

SIZES = dict(zip("abcdefghij", (3, 2, 4, 3, 2, 5, 2, 3, 4, 2), strict=True))
EQUATIONS = (
    "ab,bc->ac",
    "a,ab,abc->abc",  # a product that sums nothing
    "ab,cd,ef->fdbace",  # outer
    "aab,fa,df,ecc->bde",  # diagonals
    "ea,fb,abcd,gc,hd->efgh",  # a change of basis
    "bd,db,eac->ace",
    "ab,bc,cd,de,ea",
    "acdf,jbje,gihb,hfac,gfac,gifabc,hfac",
    "abcd,abcd->",
    "...ab,bc->...ac",
)
NAMES = (
    *("auto", "auto-hq", "optimal", "greedy", "eager", "opportunistic", "dp", "dynamic-programming", "branch-all"),
    *("branch-1", "branch-2", "random-greedy", "random-greedy-128", "Greedy"),
)
MADE: dict[str, Callable[[], Any]] = {
    "True": lambda: True,
    "False": lambda: False,
    "None": lambda: None,
    **{name: lambda name=name: name for name in NAMES},  # type: ignore[misc]
    "BranchBound": opt_einsum.BranchBound,
    "RandomGreedy": lambda: opt_einsum.RandomGreedy(max_repeats=4),
    "DynamicProgramming": lambda: opt_einsum.DynamicProgramming(minimize="size"),
    "a function": lambda: opt_einsum.paths.greedy,
    "without a limit": lambda: WithoutLimit(),
}


class WithoutLimit(opt_einsum.paths.PathOptimizer):
    """As cotengra's optimizers are: a fourth argument by position is one too many."""

    def __call__(self, inputs: Any, output: Any, size_dict: Any, **options: Any) -> Any:
        assert not options
        return [(0, 1)] * (len(inputs) - 1)


def arrays_of(equation: str) -> list[np.ndarray]:
    rng, terms = np.random.default_rng(0), equation.partition("->")[0].split(",")
    shapes = [(2, 3) * term.startswith("...") + tuple(SIZES[m] for m in term.lstrip(".")) for term in terms]
    return [rng.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_every_optimizer_gives_numpy_s_numbers(make: Callable[[], Any]) -> None:
    for equation in EQUATIONS:
        arrays = arrays_of(equation)
        found = contract(equation, *arrays, optimize=make())
        assert_close(found, np.einsum(equation, *arrays, optimize="greedy"), rtol=1e-12, what=equation)


@pytest.mark.parametrize("first", [20, 48, 60, 5000], ids=lambda i: opt_einsum.get_symbol(i))
def test_any_symbol_of_opt_einsum_is_a_mode(first: int) -> None:
    """Capitals, letters of other alphabets, and the two signs among them."""
    for equation in EQUATIONS:
        table = {letter: opt_einsum.get_symbol(first + 2 * i) for i, letter in enumerate(SIZES)}
        renamed = "".join(table.get(letter, letter) for letter in equation)
        arrays = arrays_of(equation)
        made = plan(renamed, *arrays, optimize="greedy")
        assert_close(made(*arrays), np.einsum(equation, *arrays), rtol=1e-12, what=renamed)
        assert parse(made.equation) == parse(renamed)
        assert made.with_path(made.path) == made


def test_true_and_none_are_auto_and_false_takes_the_operands_as_they_come() -> None:
    equation, shapes = "ab,bc,cd,de->ae", ((9, 2), (2, 8), (8, 2), (2, 9))
    auto = plan(equation, *shapes)
    assert plan(equation, *shapes, optimize=True) is auto is plan(equation, *shapes, optimize=None)
    assert plan(equation, *shapes, optimize=False).path == ((0, 1), (0, 2), (0, 1))
    convolution = plan("n c x, r c, x r, o r -> n o x | x", (2, 3, 9), (4, 3), (3, 4), (5, 4), optimize=False)
    assert convolution.path == ((0, 1), (0, 2), (0, 1))


def test_a_path_of_an_optimizer_without_a_limit_is_held_against_the_limit() -> None:
    equation, shapes = "ab,bc,cd->ad", ((4, 50), (50, 6), (6, 7))
    made = plan(equation, *shapes, optimize=WithoutLimit(), memory_limit=1 << 20)
    assert made.path == ((0, 1), (0, 1))
    with pytest.raises(PlanError, match=r"memory_limit: the path .* holds 52 elements at once, allowed are 10; the"):
        plan(equation, *shapes, optimize=WithoutLimit(), memory_limit=40)


def test_shapes_are_taken_from_arrays() -> None:
    equation, arrays = "ij,jk->ik", (np.ones((2, 3)), np.ones((3, 4)))
    made = plan(equation, *arrays)
    assert (made.shapes, made.dtype, made.device) == (((2, 3), (3, 4)), np.float64, "cpu")
    assert made is plan(equation, (2, 3), (3, 4), dtype="float64", device="cpu")
    mixed = plan(equation, (2, 3), arrays[1], dtype=np.float32)
    assert (mixed.shapes, mixed.dtype) == (((2, 3), (3, 4)), np.float32)
    assert plan(equation, (2, 3), (3, 4)).dtype == np.float32
    other = plan(equation, *map(array_api_strict.asarray, arrays))
    assert (other.shapes, other.dtype, other.device) == (made.shapes, np.float64, "gpu")
    with pytest.raises(PlanError, match=r"expected a shape, or an array .*, found ndarray of int64 and shape \(3,\)"):
        plan(equation, np.arange(3), arrays[1])


CROSSED = "x b, x y o, y b -> x y o | x, y", ((9, 50), (3, 9, 2), (3, 50))
"""Cheapest is the first operand with the last, if a convolution counts as a product: they cannot meet the second."""


@pytest.mark.parametrize("optimize", ["optimal", "dp", "greedy", opt_einsum.RandomGreedy(max_repeats=1, temperature=0)])
def test_a_path_that_cannot_run_is_said_to_be_the_optimizer_s(optimize: Any) -> None:
    name = rf"'{optimize}'" if isinstance(optimize, str) else ".*RandomGreedy.*"
    with pytest.raises(PlanError, match=rf"optimize: {name} gave no path that runs 'x b, .*, use optimize='auto'"):
        plan(CROSSED[0], *CROSSED[1], padding=1, optimize=optimize)
    assert plan(CROSSED[0], *CROSSED[1], padding=1, optimize="auto").path == ((1, 2), (0, 1))


def test_one_branch_and_bound_optimizer_plans_convolutions_and_other_equations() -> None:
    finder = opt_einsum.BranchBound(nbranch=2)
    assert len(plan("n c x, r c, x r, o r -> n o x | x", (2, 3, 9), (4, 3), (3, 4), (5, 4), optimize=finder).path) == 3
    assert len(plan("ab,bc,cd->ad", (2, 3), (3, 4), (4, 2), optimize=finder).path) == 2
