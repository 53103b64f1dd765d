"""A plan's order for other tools: steps that run one by one, and trees that others read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.contraction import contract, plan, single_steps, tree_dict
from growarray.errors import PlanError
from growarray.testing import assert_close
from tests.contraction.equations import EQUATIONS, arrays_for, expected, identity

CONVOLUTIONS: list[tuple[str, tuple[tuple[int, ...], ...], dict[str, Any]]] = [
    ("n c y x, r c, y r, x r, o r -> n o y x | y, x", ((2, 3, 9, 8), (4, 3), (3, 4), (5, 4), (6, 4)), {"padding": 1}),
    ("n c x, x c r, r o -> o x n | x", ((2, 3, 9), (3, 3, 4), (4, 5)), {"stride": 2, "padding": (2, 0)}),
    ("n c x, x r, c r -> n r x | x", ((2, 3, 9), (3, 4), (3, 4)), {"padding": 2, "padding_mode": "circular"}),
]


def one_by_one(steps: list[dict[str, Any]], arrays: list[Any]) -> Any:
    parts = list(arrays)
    for step in steps:
        first, second = (parts[i] for i in step["operands"])
        parts = [part for i, part in enumerate(parts) if i not in step["operands"]]
        options = {key: value for key, value in step.items() if key not in ("operands", "equation")}
        parts.append(contract(step["equation"], first, second, **options))
    (result,) = parts
    return result


@pytest.mark.parametrize(("equation", "shapes", "options"), CONVOLUTIONS)
@pytest.mark.parametrize("optimize", ["auto", "factorized", "reconstructed"])
def test_single_steps_give_what_the_plan_gives(equation, shapes, options, optimize):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    made = plan(equation, *arrays, optimize=optimize, **options)
    assert_close(one_by_one(single_steps(made), arrays), made(*arrays), rtol=1e-12)


@pytest.mark.parametrize("case", [c for c in EQUATIONS if "..." not in c.equation and "," in c.equation], ids=identity)
def test_single_steps_of_plain_equations(case):
    arrays = arrays_for(case)
    assert_close(one_by_one(single_steps(plan(case.equation, *arrays)), arrays), expected(case, arrays), rtol=1e-12)


@pytest.mark.parametrize(
    ("equation", "shapes", "options"),
    [
        ("m1 m2, m1, m2 ->", ((2, 3), (2,), (3,)), {"optimize": [(0, 1), (0, 1)]}),
        ("row col, row, row, -> col", ((2, 3), (2,), (2,), ()), {"optimize": [(1, 2), (1, 2), (0, 1)]}),
        ("width, width, batch -> batch width | width", ((9,), (3,), (2,)), {"padding": 1, "stride": 2}),
    ],
    ids=["numbered", "words", "a convolution"],
)
def test_names_in_a_step_without_two_modes_side_by_side_are_not_read_as_letters(equation, shapes, options):
    rng = np.random.default_rng(0)
    arrays = [np.asarray(rng.standard_normal(shape)) for shape in shapes]
    made = plan(equation, *arrays, **options)
    steps = single_steps(made)
    assert_close(one_by_one(steps, arrays), made(*arrays), rtol=1e-12)


def test_steps_of_an_ellipsis_are_refused():
    with pytest.raises(PlanError, match=r"name the modes that '\.\.\.' stands for, to write single steps"):
        single_steps(plan("...i,ij->...j", (2, 3), (3, 4)))


def test_a_tree_is_data_that_the_path_comes_back_from():
    equation, shapes, options = CONVOLUTIONS[0]
    made = plan(equation, *shapes, slices={"r": 2}, **options)
    found = tree_dict(made)
    assert plan(equation, *shapes, optimize=found["path"], **options).path == made.path
    assert found["sliced_inds"] == ["r"]
    assert found["inputs"][0] == ["c", "n", "x", "x'", "y", "y'"]
    assert found["inputs"][3] == ["r", "x'"]
    assert found["size_dict"]["x"] == 6
    assert found["size_dict"]["x'"] == 5
    assert found["convolutions"]["x"] == {"size": 8, "taps": 5, "stride": 1, "padding": [1, 1], "dilation": 1}
    last = [number for pair in found["ssa_path"] for number in pair]
    assert sorted(last) == list(range(2 * len(shapes) - 2))


@pytest.mark.filterwarnings("ignore:Couldn't import `kahypar`")
def test_cotengra_reads_the_tree_and_counts_the_same_operations():
    cotengra = pytest.importorskip("cotengra", reason="cotengra, of the extra search, is not installed")
    equation, shapes = "ab,bc,cd,de->ae", ((9, 2), (2, 8), (8, 2), (2, 9))
    made = plan(equation, *shapes, minimize="flops")
    found = tree_dict(made)
    tree = cotengra.ContractionTree.from_path(
        found["inputs"], found["output"], found["size_dict"], ssa_path=found["ssa_path"]
    )
    assert 2 * tree.total_flops(dtype=None) == made.flops
    assert plan(equation, *shapes, optimize=tree.get_path()).flops == made.flops
