"""Arguments of plans, pullbacks and outputs: refused by name before anything is changed, whatever their type."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest

from growarray.contraction import Plan, conv_axes, parse, plan, transpose
from growarray.errors import PlanError, ShapeError
from tests.contraction.reference import random_arrays

SHAPES = (2, 3), (3, 4)
CONV, CONV_SHAPES = "n c x, o c x -> n o x | x", ((2, 3, 8), (4, 3, 3))


def product() -> Plan:
    return plan("i j, j k -> i k", *SHAPES, dtype="float64")


def arrays() -> list[np.ndarray]:
    return random_arrays(list(SHAPES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constants": "a"}, "constants: found ['a'], expected operands from 0 to 1"),
        ({"constants": 1}, "constants: found 1, expected operands from 0 to 1, as a sequence of whole numbers"),
        ({"constants": [1.0]}, "constants: found [1.0], expected operands from 0 to 1"),
        ({"constants": [1, "a"]}, "constants: found [1, 'a'], expected operands"),
        ({"constants": {1}}, "plan: found {1} among the arguments, expected numbers, strings, tuples, lists"),
        ({"optimize": np.array([[0, 1]])}, "plan: found ndarray of int64 and shape (1, 2) among the arguments"),
        ({"optimize": [(0.9, 1.2)]}, "optimize: expected 'auto', a name, or a path such as [(0, 1)], found"),
        ({"optimize": ["01"]}, "optimize: expected 'auto', a name, or a path such as [(0, 1)], found"),
        ({"memory_limit": True}, "memory_limit: found True, expected a number of bytes or None"),
        ({"training": "no"}, "training: found 'no', expected True or False"),
        ({"dtype": "flaot32"}, "dtype: found 'flaot32', expected a real floating one such as float32"),
        ({"dtype": [("a", "f4")]}, "dtype: found (('a', 'f4'),), expected a real floating one"),
        ({"stride": 2}, "stride: found 2 for an equation without convolution modes; name them after '|'"),
        ({"padding_mode": "reflect"}, "padding_mode: found 'reflect' for an equation without convolution modes"),
    ],
    ids=str,
)
def test_options_of_any_type_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        plan("i j, j k -> i k", *SHAPES, **options)


def test_what_equals_a_known_option_is_not_taken_for_it() -> None:
    assert plan(CONV, *CONV_SHAPES, stride=1).output_shape == (2, 4, 6)
    for value in (True, 1.0):
        with pytest.raises(PlanError, match=f"stride of 'x': found {value}, expected a whole number"):
            plan(CONV, *CONV_SHAPES, stride=value)


def test_shapes_options_and_equations_that_cannot_be_keys_are_named() -> None:
    with pytest.raises(PlanError, match=r"expected a shape, or an array of real floats .*, found ndarray of int64 and"):
        plan("i j, j k -> i k", np.array([2, 3]), (3, 4))
    with pytest.raises(PlanError, match=r"plan: found ndarray of int64 and shape \(1,\) among"):
        plan(CONV, *CONV_SHAPES, stride=np.array([2]))
    for read in (parse, lambda text: plan(text, (2, 3))):
        with pytest.raises(PlanError, match="equation: expected a string such as 'ij,jk->ik', found"):
            read(["i j"])
    for kernels in ([3], [3, 2.5]):
        with pytest.raises(PlanError, match=re.escape(f"kernels: found {kernels}, expected one whole number for each")):
            conv_axes(["y", "x"], kernels)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrt", [1, [1.0], "1", [False, True], [np.bool_(True)], [None]], ids=str)
def test_wrt_is_a_sequence_of_whole_numbers(wrt: Any) -> None:
    with pytest.raises(PlanError, match=r"wrt: found .*, expected operands from 0 to 1, as a sequence of whole"):
        product().vjp(*arrays(), wrt=wrt)


def test_wrt_may_be_read_once_only() -> None:
    y, pullback = product().vjp(*arrays(), wrt=(i for i in [np.int64(1)]))  # type: ignore[arg-type]
    first, second = pullback(y)
    assert first is None
    assert second is not None


@pytest.mark.parametrize("dy", [1.0, None, [[1.0]]], ids=str)
def test_a_gradient_is_an_array(dy: Any) -> None:
    found = type(dy).__name__
    _, pullback = product().vjp(*arrays())
    with pytest.raises(TypeError, match=f"pullback of .*: the gradient is {found}, expected an array like the result"):
        pullback(dy)
    with pytest.raises(TypeError, match=f"transpose of .*: the gradient is {found}, expected an array"):
        transpose(product(), dy, arrays()[1])


@pytest.mark.parametrize("operand", ["a", 0.0, True], ids=str)
def test_the_operand_of_a_transpose_is_a_whole_number(operand: Any) -> None:
    with pytest.raises(PlanError, match=f"operand: found {operand!r}, expected a number from 0 to 1"):
        transpose(product(), np.ones((2, 4)), arrays()[1], operand=operand)


def test_masked_arrays_and_matrices_are_refused() -> None:
    x, w = arrays()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        for other in (np.ma.masked_less(x, 0.0), np.matrix(x)):
            found = f"operand 0 of 'i j, j k -> i k': expected an array, found a {type(other).__name__}, whose"
            with pytest.raises(TypeError, match=found):
                product()(other, w)
        with pytest.raises(TypeError, match=r"operand 1 of .*, found a MaskedArray, .* as in x\.filled"):
            product()(x, np.ma.masked_less(w, 0.0))


def test_out_that_cannot_hold_the_result_is_refused_untouched() -> None:
    memory = np.zeros(8)
    over = np.lib.stride_tricks.as_strided
    for out in (over(memory, (2, 4), (0, 8)), over(memory, (2, 4), (8, 8))):
        with pytest.raises(ShapeError, match=r"out of shape \(2, 4\) with strides .* overlaps itself"):
            product()(*arrays(), out=out)
    assert not memory.any()
    with pytest.raises(TypeError, match="out is list, expected a NumPy array"):
        product()(*arrays(), out=[1.0])


@pytest.mark.parametrize(
    "turn", [lambda a: a, lambda a: a[::2, ::-3], lambda a: a.T[:4, :2].T], ids=["whole", "strided", "transposed"]
)
def test_out_may_be_any_view_that_holds_the_result(turn: Any) -> None:
    whole = np.zeros((2, 4)) if turn(np.zeros((2, 4))).shape == (2, 4) else np.zeros((4, 12))
    out = turn(whole)
    assert product()(*arrays(), out=out) is out
    np.testing.assert_allclose(out, arrays()[0] @ arrays()[1], rtol=1e-14)


def test_nothing_of_a_plan_changes() -> None:
    made = plan(CONV, *CONV_SHAPES, padding=1)
    with pytest.raises(TypeError, match="does not support item assignment"):
        made.geometry["padding"] = 0  # type: ignore[index]
    with pytest.raises(AttributeError, match="block: a plan cannot be changed"):
        del made.block
    assert made.with_path("auto").output_shape == made.output_shape == (2, 4, 8)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("device", "banana", "device: found 'banana', expected None, 'cpu', 'cuda' or 'cuda:N'"),
        ("training", "x", "training: found 'x', expected True or False"),
        ("dtype", "x", "dtype: found 'x'"),
        ("constants", [1.5], "constants: found [1.5]"),
        ("memory_limit", "x", "memory_limit: found 'x'"),
        ("geometry", [{"stride": 0}], "stride: found 0, expected a whole number of at least 1"),
        ("geometry", [{"padding_mode": "x"}], "padding_mode: found 'x', expected one of zeros"),
        ("path", [[0.5, 1]], "optimize: expected 'auto', a name, or a path"),
    ],
    ids=str,
)
def test_damaged_plans_are_refused_by_what_is_damaged(key: str, value: Any, message: str) -> None:
    data = plan(CONV, *CONV_SHAPES, padding=1).to_dict()
    with pytest.raises(PlanError, match=re.escape(message)):
        Plan.from_dict({**data, key: value})
    assert Plan.from_dict(data) == plan(CONV, *CONV_SHAPES, padding=1)


@pytest.mark.parametrize("data", [None, 5, "x", [], {}], ids=str)
def test_what_is_no_plan_at_all_is_refused(data: Any) -> None:
    with pytest.raises(PlanError, match="from_dict: not a plan"):
        Plan.from_dict(data)
