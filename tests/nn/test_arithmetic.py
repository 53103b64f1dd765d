"""Arithmetic, products of matrices and concatenation of two and more inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.backend import to_numpy
from growarray.errors import ShapeError
from growarray.nn.arithmetic import Value
from growarray.nn.module import Module, Parameter
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library

PAIRS: dict[str, tuple[Callable[[], Module], Any, tuple[tuple[int, ...], ...]]] = {
    "add": (nn.Add, np.add, ((2, 3), (2, 3))),
    "add-spread": (nn.Add, np.add, ((4, 1, 3), (2, 1))),
    "sub-scalar": (nn.Sub, np.subtract, ((2, 3), ())),
    "mul-both": (nn.Mul, np.multiply, ((2, 1, 3), (1, 4, 1))),
    "div": (nn.Div, np.divide, ((3,), (2, 3))),
    "matmul": (nn.MatMul, np.matmul, ((2, 3), (3, 4))),
    "matmul-batch": (nn.MatMul, np.matmul, ((5, 1, 2, 3), (4, 3, 2))),
    "matmul-left-vector": (nn.MatMul, np.matmul, ((3,), (2, 3, 4))),
    "matmul-right-vector": (nn.MatMul, np.matmul, ((2, 4, 3), (3,))),
    "matmul-vectors": (nn.MatMul, np.matmul, ((3,), (3,))),
    "concat": (lambda: nn.Concat(1), lambda a, b: np.concatenate([a, b], 1), ((2, 1), (2, 3))),
    "concat-last": (lambda: nn.Concat(-1), lambda a, b: np.concatenate([a, b], -1), ((2, 1, 4), (2, 1, 2))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_value_and_both_gradients(name: str, xp: Library) -> None:
    build, reference, shapes = PAIRS[name]
    rng = np.random.default_rng(3)
    arrays = [np.asarray(rng.standard_normal(shape)) + 2.5 * (name == "div") for shape in shapes]
    layer = build()
    check_vjp(layer.vjp, *arrays, rtol=1e-6)
    y, back = layer.vjp(*arrays)
    assert_close(y, reference(*arrays), rtol=1e-14)
    found, there = layer.vjp(*[xp.asarray(a) for a in arrays])
    assert_close(found, y, rtol=1e-12)
    for got, wanted in zip(there(xp.asarray(np.ones(y.shape))), back(np.ones(y.shape)), strict=True):
        assert tuple(got.shape) == wanted.shape
        assert_close(got, wanted, rtol=1e-12)


def test_a_value_comes_first_in_reverse_and_is_trained_or_fixed() -> None:
    x = np.array([1.0, 2.0])
    assert nn.Sub(Parameter(np.ones(2)), reverse=True)(x).tolist() == [0.0, -1.0]
    assert nn.Div(np.ones(2), reverse=True)(x).tolist() == [1.0, 0.5]
    fixed, trained, number = nn.Add(np.ones(2)), nn.Add(Parameter(np.ones(2))), nn.Add(1)
    assert [list(layer.state_dict()) for layer in (fixed, trained, number)] == [["constant"], ["value"], []]
    assert [len(layer.parameters()) for layer in (fixed, trained, number)] == [0, 1, 0]
    assert repr(nn.Sub(1.5, reverse=True)) == "Sub(1.5 - x)"


def test_numbers_keep_the_dtype() -> None:
    x = np.ones(2, np.float32)
    for layer in (nn.Add(0.1), nn.Mul(0.1), nn.Sub(0.1, reverse=True), nn.Div(0.1), nn.Div(0.1, reverse=True)):
        y, back = layer.vjp(x)
        assert y.dtype == back(y).dtype == np.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.Add()(np.ones(2)), TypeError, "Add: 1 inputs were given, expected 2"),
        (lambda: nn.Add(1.0)(np.ones(2), np.ones(2)), TypeError, "2 inputs were given, expected 1"),
        (lambda: nn.Mul()(np.ones((2, 3)), np.ones(2)), ShapeError, r"shapes \(2, 3\) and \(2,\), expected axes"),
        (lambda: nn.Add(reverse=True), ValueError, "reverse needs a value"),
        (lambda: nn.MatMul()(np.ones((2, 3)), np.ones((2, 3))), ShapeError, "the last axis of the first"),
        (lambda: nn.MatMul()(np.ones(()), np.ones(3)), ShapeError, "MatMul: operands have shapes"),
        (lambda: nn.Concat(1)(np.ones((2, 3)), np.ones((3, 3))), ShapeError, "to differ on axis 1 only"),
        (lambda: nn.Concat(2)(np.ones((2, 3))), ShapeError, "to differ on axis 2 only"),
        (lambda: nn.Concat(1)(), TypeError, "no input was given"),
        (lambda: Value(np.ones(2))(np.ones(2)), TypeError, "1 inputs were given, expected none"),
    ],
)
def test_wrong_input_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_value_is_trained(xp: Library) -> None:
    layer = Value(Parameter(xp.asarray(np.ones((2, 2)))))
    y, back = layer.vjp()
    assert back(y) == ()
    assert layer.value is not None
    assert to_numpy(layer.value.grad).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert Value(np.ones(2)).state_dict()["constant"].tolist() == [1.0, 1.0]
