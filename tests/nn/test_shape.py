"""Shapes, parts and padding, against NumPy; elementwise modules at their edges; and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growarray import nn
from growarray.errors import ShapeError
from growarray.testing import assert_close

X = np.arange(24.0).reshape(2, 3, 4)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=3, max_size=3))
def test_padding_is_that_of_numpy(mode: str, widths: list[tuple[int, int]]) -> None:
    widths = [(min(a, 1), min(b, 1)) if mode == "reflect" else (a, b) for a, b in widths]
    assert nn.Pad(widths, mode)(X).tolist() == np.pad(X, widths, mode=mode).tolist()  # type: ignore[call-overload]


@given(
    st.integers(-6, 6), st.integers(-6, 6), st.sampled_from([-3, -2, -1, 1, 2, 3]), st.sampled_from([0, 1, 2, -1, -2])
)
def test_slices_are_those_of_python_but_for_a_start_before_the_axis(start: int, end: int, step: int, axis: int) -> None:
    y, back = nn.Slice((start,), (end,), (axis,), (step,)).vjp(X)
    index = [slice(None)] * 3
    if step < 0 and start < -X.shape[axis]:
        start = 0  # ONNX begins at the first entry there
    index[axis] = slice(start, end, step)
    assert y.tolist() == X[tuple(index)].tolist()
    expected = np.zeros_like(X)
    expected[tuple(index)] = X[tuple(index)]
    assert back(y).tolist() == expected.tolist()


def test_an_input_of_zeros_in_the_shape_copies_axes() -> None:
    assert nn.Reshape((0, -1))(X).shape == (2, 12)
    assert nn.Reshape((-1, 0, 2))(X).shape == (4, 3, 2)
    assert nn.Reshape((0, -1))(np.ones((2, 0))).shape == (2, 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.Reshape((-1, -1)), ValueError, "-1 at most once"),
        (lambda: nn.Reshape((2.5,)), TypeError, "shape must be whole numbers"),
        (lambda: nn.Reshape((5, -1))(X), ShapeError, r"input has shape \(2, 3, 4\), which does not fit into \(5, -1\)"),
        (lambda: nn.Transpose((0, 2)), ValueError, "expected every number from 0 to 1"),
        (lambda: nn.Transpose((1, 0))(X), ShapeError, "expected 2 axes"),
        (lambda: nn.Squeeze((0,))(X), ShapeError, "expected size 1 on axes"),
        (lambda: nn.Squeeze((3,))(X), ShapeError, "expected each from -3 to 2, once"),
        (lambda: nn.Unsqueeze((0, 0))(X), ShapeError, "axes .0, 0. of 5 axes"),
        (lambda: nn.Slice((0,), (1, 2)), ValueError, "expected as many of each"),
        (lambda: nn.Slice((0,), (1,), steps=(0,)), ValueError, "no step of 0"),
        (lambda: nn.Slice((0,), (1,), (5,))(X), ShapeError, "Slice: axes"),
        (lambda: nn.Gather((3,))(X), ShapeError, "expected indices .3,. of axis 0 to lie in it"),
        (lambda: nn.Gather("a"), TypeError, "indices must be whole numbers"),  # type: ignore[arg-type]
        (lambda: nn.Pad(((1, 1),), "mirror"), ValueError, "expected one of constant, reflect, edge, wrap"),
        (lambda: nn.Pad(((1,),)), ValueError, "expected a pair"),
        (lambda: nn.Pad(((1, 1),) * 4)(X), ShapeError, "expected at least 4 axes"),
        (lambda: nn.Pad(((4, 0),), "reflect")(X), ShapeError, "too few on axis 2"),
        (lambda: nn.Pad(((-3, -2),))(X), ShapeError, "too few on axis 2"),
        (lambda: nn.Pad(((1, 0),), "edge")(np.ones((2, 0))), ShapeError, "too few on axis 1"),
        (lambda: nn.ReduceMean((0, -3))(X), ShapeError, "ReduceMean: axes"),
        (lambda: nn.Clip(1.0, 0.0), ValueError, "Clip: low is 1.0, expected at most high, 0.0"),
        (lambda: nn.Cast("complex64"), ValueError, "Cast: dtype is 'complex64', expected one of "),
        (lambda: nn.Cast("float32", "float8"), ValueError, "expected 'float16', 'bfloat16' or None"),
        (lambda: nn.PReLU(5)(X), ShapeError, "expected 5 entries on axis 1"),
    ],
)
def test_wrong_options_and_inputs_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_cast_gives_the_gradient_back_in_the_dtype_of_the_input() -> None:
    y, back = nn.Cast("float64").vjp(np.ones(2, np.float32))
    assert (y.dtype, back(y).dtype) == (np.float64, np.float32)


def test_mish_and_hard_activations_far_from_zero() -> None:
    far = np.array([-1e4, 1e4])
    assert_close(nn.Mish()(far), np.array([0.0, 1e4]), rtol=1e-12)
    assert nn.HardSwish()(far).tolist() == [0.0, 1e4]
    assert nn.HardSigmoid()(far).tolist() == [0.0, 1.0]
    assert nn.Softsign()(far)[1] < 1.0
    assert nn.HardSwish().vjp(far)[1](np.ones(2)).tolist() == [0.0, 1.0]


def test_a_cast_through_half_precision_hands_the_gradient_on() -> None:
    layer = nn.Cast("float32", through="float16")
    y, back = layer.vjp(np.array([0.1, 1e6]))
    assert (y.tolist(), y.dtype) == ([float(np.float16(0.1)), np.inf], np.float32)
    dx = back(np.float32([3.0, 4.0]))
    assert (dx.tolist(), dx.dtype) == ([3.0, 4.0], np.float64)
    assert repr(layer) == "Cast('float32', 'float16')"


def test_a_slice_backwards_from_before_the_beginning_has_the_first_entry() -> None:
    y, back = nn.Slice((-5,), (-7,), steps=(-2,)).vjp(np.float32([7, 8, 9]))
    assert y.tolist() == [7.0]
    assert back(np.float32([2.0])).tolist() == [2.0, 0.0, 0.0]
