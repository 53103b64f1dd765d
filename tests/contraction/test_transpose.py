"""The transpose of a plan: the gradient that vjp gives, for every operand, library and batch size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.contraction import plan
from growarray.contraction.plan import Plan
from growarray.contraction.transpose import transpose
from growarray.errors import PlanError, ShapeError
from growarray.testing import assert_close
from tests.conftest import Library, frozen

CP = "n c x, r c, r x, o r -> n o x | x"
PLANS: dict[str, Plan] = {
    "product": plan("i j, j k -> i k", (5, 3), (3, 4)),
    "sum": plan("i j, j k -> k", (5, 3), (3, 4)),
    "batched": plan("... j, ... j k -> ... k", (5, 3), (5, 3, 4)),
    "conv": plan("n c y x, o c y x -> n o y x | y, x", (5, 3, 7, 6), (4, 3, 3, 2), stride=2, padding=1),
    "reflect": plan("n c x, o c x -> n o x | x", (5, 3, 7), (4, 3, 3), padding=2, padding_mode="reflect"),
    "factorized": plan(CP, (5, 3, 7), (2, 3), (2, 3), (4, 2), padding=1, optimize="factorized"),
    "reconstructed": plan(CP, (5, 3, 7), (2, 3), (2, 3), (4, 2), padding=1, optimize="reconstructed"),
    "alone": plan("i j -> j i", (5, 3)),
}


def draw(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    return [frozen(rng.standard_normal(shape)) for shape in shapes]


@pytest.mark.parametrize("p", PLANS.values(), ids=PLANS)
def test_transpose_is_the_gradient_by_each_operand(p: Plan, xp: Library) -> None:
    *hosts, dy = draw(*p.shapes, p.output_shape)
    expected = p.vjp(*hosts)[1](dy)
    arrays = [xp.asarray(host) for host in hosts]
    for i, wanted in enumerate(expected):
        found = transpose(p, xp.asarray(dy), *arrays[:i], *arrays[i + 1 :], operand=i)
        assert_close(found, wanted, rtol=1e-13, what=f"operand {i}")


@pytest.mark.parametrize("name", ["conv", "factorized"])
@pytest.mark.parametrize("batch", [0, 2, 9])
def test_the_batch_may_differ(name: str, batch: int) -> None:
    p = PLANS[name]
    x, *kernels, dy = draw((batch, *p.shapes[0][1:]), *p.shapes[1:], (batch, *p.output_shape[1:]))
    dx, dw, *_ = p.vjp(x, *kernels)[1](dy)
    assert_close(transpose(p, dy, *kernels), dx, rtol=1e-13)
    assert_close(transpose(p, dy, x, *kernels[1:], operand=1), dw, rtol=1e-13)


X, W, DY = np.ones((5, 3)), np.ones((3, 4)), np.ones((5, 4))


@pytest.mark.parametrize(
    ("arguments", "operand", "error", "message"),
    [
        ((DY, W), 2, PlanError, "operand: found 2, expected a number from 0 to 1"),
        ((DY, W), -1, PlanError, "found -1"),
        ((DY, W, W), 0, ShapeError, "has 2 operands, found 3 arrays"),
        ((DY, X), 0, ShapeError, r"operand 1 .* has shape \(5, 3\)"),
        ((DY[:, :3], W), 0, ShapeError, r"the gradient has shape \(5, 3\), the result \(5, 4\)"),
        ((DY[0], W), 0, ShapeError, r"the gradient has shape \(4,\)"),
        ((DY.astype("f"), W), 0, TypeError, "float32"),
    ],
    ids=["operand", "negative", "count", "other", "gradient", "axes", "dtype"],
)
def test_what_does_not_fit_is_named(arguments: Any, operand: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        transpose(PLANS["product"], *arguments, operand=operand)
