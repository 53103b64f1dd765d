"""Plans: cached, immutable, of any batch size, and refusing what they cannot run before anything is changed."""

from __future__ import annotations

import copy
import re
from typing import Any

import array_api_strict
import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.contraction import Plan, contract, plan
from growarray.errors import PlanError, ShapeError
from growarray.testing import assert_close
from tests.conftest import LIBRARIES
from tests.contraction.reference import random_arrays

CONV = "n c y x, o c y x -> n o y x | y, x"
SHAPES = ((2, 3, 9, 8), (4, 3, 3, 3))
FACTORS = "i j, j k, k l -> i l"
CHAIN = ((10, 20), (20, 5), (5, 30))


def test_the_same_plan_is_made_once():
    assert plan(FACTORS, *CHAIN) is plan(FACTORS, *CHAIN)
    for options in ({"dtype": "float64"}, {"training": True}, {"minimize": "flops"}, {"memory_limit": 1 << 20}):
        assert plan(FACTORS, *CHAIN, **options) is plan(FACTORS, *CHAIN, **options)
        assert plan(FACTORS, *CHAIN, **options) is not plan(FACTORS, *CHAIN)
    assert plan(FACTORS, *CHAIN, dtype=np.float32).dtype == plan(FACTORS, *CHAIN, dtype="float32").dtype == "float32"


@pytest.mark.parametrize(
    "options",
    [
        {"stride": [2, 1]},
        {"stride": {"y": 2}},
        {"padding": [[1, 2], 0]},
        {"padding": {"x": [1, 2]}, "padding_mode": {"x": "circular"}},
        {"dilation": [1, 2], "padding": ["same", "valid"]},
        {"optimize": [[0, 1]]},
    ],
    ids=str,
)
def test_lists_and_mappings_are_options_and_cached(options):
    kept = copy.deepcopy(options)
    made = plan(CONV, *SHAPES, **options)
    assert made is plan(CONV, *SHAPES, **options)
    assert made is plan(CONV, *(list(shape) for shape in SHAPES), **options)
    for value in options.values():
        value.clear()  # what was given is not what is kept
    assert plan(CONV, *SHAPES, **kept) is made
    assert made.with_path([(0, 1)]).output_shape == made.output_shape


def test_the_cache_is_bounded():
    first = plan("i j, j k -> i k", (1, 2), (2, 3))
    for size in range(600):
        plan("i j, j k -> i k", (size, 2), (2, 3))
    assert plan("i j, j k -> i k", (599, 2), (2, 3)) is plan("i j, j k -> i k", (599, 2), (2, 3))
    assert plan("i j, j k -> i k", (1, 2), (2, 3)) is not first


def test_steps_for_batch_sizes_are_bounded_too():
    made = plan("n c x, o c x -> n o x | x", (4, 2, 600), (3, 2, 3), dtype="float64")
    x, w = random_arrays([(60, 2, 600), (3, 2, 3)])
    for batch in range(60):
        assert made(x[:batch], w).shape == (batch, 3, 598)
    assert len(made.execution._programs) <= 16


def test_what_a_plan_says_of_itself():
    made = plan("n c x, c r, x r, o r -> n o x | x", (8, 16, 32), (16, 4), (3, 4), (16, 4), padding=1, minimize="flops")
    assert made.shapes == ((8, 16, 32), (16, 4), (3, 4), (16, 4))
    assert made.output_shape == (8, 16, 32)
    assert made.path == ((0, 1), (0, 2), (0, 1))
    assert len(made.steps) == len(made.tree) == 3
    assert made.flops == sum(step.flops for step in made.steps)
    assert made.seconds == pytest.approx(sum(step.seconds for step in made.steps))
    other = made.with_path("reconstructed")
    assert other.path != made.path
    assert (other.equation, other.shapes, other.geometry) == (made.equation, made.shapes, made.geometry)
    assert other.with_path("auto") is made.with_path("auto")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_plan_runs_any_real_dtype(dtype):
    made = plan(CONV, *SHAPES, padding=1)
    arrays = random_arrays(SHAPES, dtype=dtype)
    y, pullback = made.vjp(*arrays)
    assert y.dtype == made(*arrays).dtype == dtype
    assert_close(y, made(*(a.astype("float64") for a in arrays)), rtol={"float16": 2e-2}.get(dtype, 1e-5))
    assert {g.dtype for g in pullback(y)} == {np.dtype(dtype)}  # type: ignore[union-attr]


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "stride zero": ({"stride": 0}, "stride of 'y': found 0, expected a whole number of at least 1"),
    "stride negative": ({"stride": (1, -1)}, "stride of 'x': found -1"),
    "strides": ({"stride": (1, 1, 1)}, "stride: 3 values for 2 convolution modes ['y', 'x']"),
    "dilation too large": ({"dilation": 5}, "convolution mode 'y': a kernel of 3 with dilation 5 spans 11 positions"),
    "reflect": ({"padding": 9, "padding_mode": "reflect"}, "'y': reflect padding of 9 needs more than the 9 positions"),
    "same": ({"padding": "same", "stride": 2}, "padding of 'y': 'same' needs stride 1, found 2"),
    "padding mode": ({"padding_mode": "mirror"}, "padding_mode of 'y': found 'mirror', expected one of zeros"),
    "minimize": ({"minimize": "speed"}, "minimize: found 'speed', expected one of time, flops, memory"),
    "limit negative": ({"memory_limit": -1}, "memory_limit: found -1, expected a number of bytes or None"),
    "limit text": ({"memory_limit": "1 GB"}, "memory_limit: found '1 GB', expected a number of bytes or None"),
    "limit too low": ({"memory_limit": 100}, "no path holds fewer than 336 elements at once, allowed are 25"),
    "optimizer": ({"optimize": "fastest"}, "optimize: unknown 'fastest'"),
    "path": ({"optimize": [(0, 2)]}, "path ((0, 2),): step (0, 2) does not name distinct ones of 2 operands"),
    "integer dtype": ({"dtype": "int32"}, "dtype: found int32, expected a real floating one such as float32"),
    "device": ({"device": "banana"}, "device: found 'banana', expected None, 'cpu', 'cuda' or 'cuda:N'"),
    "constants": ({"constants": (7,)}, "constants: found [7], expected operands from 0 to 1"),
    "complex dtype": ({"dtype": "complex64"}, "dtype: found complex64, expected a real floating one"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=list(OPTIONS))
def test_options_that_make_no_sense_are_refused(options, message):
    for _ in range(2):  # a refusal is not cached as anything else
        with pytest.raises(PlanError, match=re.escape(message)):
            plan(CONV, *SHAPES, **options)


@pytest.mark.parametrize(
    ("equation", "shapes", "message"),
    [
        ("ij,jk->iq", ((2, 3), (3, 4)), "output mode 'q' is not in any operand"),
        ("ij,jk->ik", ((2, 3), (4, 4)), "mode 'j' has size 3 in operand 0 and 4 in operand 1"),
        ("ij,jk->ik", ((2, 3),), "has 2 operands, found 1 arrays"),
        (CONV, ((2, 3, 2, 8), (4, 3, 3, 3)), "mode 'y': a kernel of 3 with dilation 1 spans 3 positions, the"),
        (CONV, ((2, 3, 9, 8), (4, 3, 3, 0)), "convolution mode 'x': the kernel has 0 positions"),
    ],
    ids=["parse", "two sizes", "operands", "kernel too large", "no kernel"],
)  # fmt: skip
def test_equations_and_shapes_that_do_not_fit_are_refused(equation, shapes, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        plan(equation, *shapes)
    with pytest.raises(PlanError, match=re.escape(message)):
        contract(equation, *(np.ones(shape) for shape in shapes))


def test_the_least_memory_that_a_refusal_names_is_enough():
    with pytest.raises(PlanError, match="raise memory_limit to at least") as raised:
        plan(FACTORS, *CHAIN, memory_limit=100)
    least = int(re.search(r"at least (\d+) bytes", str(raised.value)).group(1))  # type: ignore[union-attr]
    made = plan(FACTORS, *CHAIN, memory_limit=least)
    assert made.peak_bytes == least
    with pytest.raises(PlanError, match="memory_limit"):
        plan(FACTORS, *CHAIN, memory_limit=least - 4)


def test_a_limit_changes_the_path_where_it_must():
    equation, shapes = "i a, a b, b c, c j -> i j", ((2, 100), (100, 2), (2, 100), (100, 2))
    free = plan(equation, *shapes, optimize=[(1, 2), (1, 2), (0, 1)])
    tight = plan(equation, *shapes, memory_limit=64)
    assert tight.peak_bytes <= 64 < free.peak_bytes
    trained = plan(equation, *shapes, training=True)
    assert trained.peak_bytes == 3 * 4 * 4  # three partial results of four elements, all kept


X, W = np.ones((2, 3)), np.ones((3, 4))
ARRAYS: dict[str, tuple[list[Any], type[Exception], str]] = {
    "integers": ([X.astype(int), W.astype(int)], TypeError, "operand 0 of 'ij,jk->ik' is int64, expected"),
    "one integer": ([X, W.astype(int)], TypeError, "operand 1 of 'ij,jk->ik' is int64, expected"),
    "booleans": ([X.astype(bool), W], TypeError, "operand 0 of 'ij,jk->ik' is bool"),
    "complex": ([X.astype(complex), W], TypeError, "operand 0 of 'ij,jk->ik' is complex128"),
    "mixed": ([X, W.astype("f4")], TypeError, "operand 1 of 'ij,jk->ik' is float32, operand 0 is float64"),
    "list": ([X, [[1.0]]], TypeError, "operand 1 of 'ij,jk->ik' is list, expected an array; convert it"),
    "too few": ([X], ValueError, "has 2 operands, found 1 arrays"),
    "too many": ([X, W, np.ones(3)], ValueError, "has 2 operands, found 3 arrays"),
    "strict beside numpy": (
        [X, array_api_strict.ones((3, 4), dtype=array_api_strict.float64)],
        TypeError,
        "arrays of two libraries cannot be mixed: numpy.ndarray and array_api_strict",
    ),
    "double beside numpy": (
        [LIBRARIES["double"].asarray(X), W],
        TypeError,
        "arrays of two libraries cannot be mixed",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arrays", "error", "message"), ARRAYS.values(), ids=list(ARRAYS))
def test_arrays_that_do_not_fit_are_refused_by_every_entrance(arrays, error, message):
    made = plan("ij,jk->ik", (2, 3), (3, 4))
    message = re.escape(message)
    for entrance in (lambda *a: contract("ij,jk->ik", *a), made, made.vjp):
        with pytest.raises(error, match=message.replace("ij,jk", "i ?j, ?j ?k").replace(r"\->ik", r" ?\-> ?i ?k")):
            entrance(*arrays)


def test_arrays_on_two_devices_are_refused():
    one = array_api_strict.ones((2, 3), dtype=array_api_strict.float32, device=array_api_strict.Device("device1"))
    other = array_api_strict.ones((3, 4), dtype=array_api_strict.float32, device=array_api_strict.Device("device2"))
    with pytest.raises(TypeError, match=r"arrays on two devices cannot be mixed: .*device1.* and .*device2"):
        contract("ij,jk->ik", one, other)


@pytest.mark.parametrize(
    ("shapes", "operand", "block"),
    [
        (((2, 3, 9, 9), (4, 3, 3, 3)), 0, "n"),
        (((2, 3, 9, 8), (5, 3, 3, 3)), 1, "n"),
        (((3, 9, 8), (4, 3, 3, 3)), 0, "n"),
        (((2, 3, 9, 8, 1), (4, 3, 3, 3)), 0, "n"),
        (((7, 2, 9, 8), (4, 3, 3, 3)), 0, "n"),
    ],
    ids=["spatial size", "kernels", "axis missing", "axis too many", "channels"],
)
def test_other_shapes_than_the_plans_are_refused(shapes, operand, block):
    made, out = plan(CONV, *SHAPES, dtype="float64"), np.zeros((2, 4, 7, 6))
    arrays = [np.ones(shape) for shape in shapes]
    message = (
        f"operand {operand} of '{CONV}' has shape {shapes[operand]}, the plan was made for {SHAPES[operand]}; "
        f"only '{block}' may differ: plan again for these shapes"
    )
    with pytest.raises(ShapeError, match=re.escape(message)):
        made(*arrays, out=out)
    with pytest.raises(ShapeError, match=re.escape(message)):
        made.vjp(*arrays)
    assert not out.any()


def test_out_is_for_numpy():
    made = plan("ij,jk->ik", (2, 3), (3, 4))
    x, w = (LIBRARIES["array_api_strict"].asarray(a) for a in random_arrays([(2, 3), (3, 4)]))
    with pytest.raises(TypeError, match="out= is for NumPy arrays; other libraries return a new array"):
        made(x, w, out=np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("dy", "found"),
    [
        (np.ones((2, 5)), "float64 (2, 5)"),
        (np.ones(4), "float64 (4,)"),
        (np.ones((1, 4)), "float64 (1, 4)"),
        (np.ones((2, 4), "f4"), "float32 (2, 4)"),
        (np.ones((2, 4), int), "int64 (2, 4)"),
    ],
    ids=str,
)
def test_gradients_of_another_kind_are_refused(dy, found):
    arrays = random_arrays([(2, 3), (3, 4)])
    _, pullback = plan("ij,jk->ik", (2, 3), (3, 4)).vjp(*arrays)
    message = f"pullback of 'i j, j k -> i k': the gradient is {found}, the result was float64 (2, 4)"
    with pytest.raises(ShapeError, match=re.escape(message)):
        pullback(dy)
    assert pullback(np.ones((2, 4)))[0].shape == (2, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize("wrt", [[2], [-1], [0, 7]], ids=str)
def test_gradients_by_operands_that_are_not_there_are_refused(wrt):
    made, arrays = plan("ij,jk->ik", (2, 3), (3, 4)), random_arrays([(2, 3), (3, 4)])
    with pytest.raises(PlanError, match=re.escape(f"wrt: found {wrt}, expected operands from 0 to 1")):
        made.vjp(*arrays, wrt=wrt)


def test_contract_is_plan_and_run(xp):
    hosts = random_arrays([(2, 3, 9), (4, 3, 3)])
    arrays = [xp.asarray(a) for a in hosts]
    options: dict[str, Any] = {"stride": 2, "padding": (1, 0), "padding_mode": "replicate"}
    equation = "n c x, o c x -> n o x | x"
    wanted = plan(equation, *(a.shape for a in hosts), dtype="float64", **options)(*hosts)
    assert_close(contract(equation, *arrays, **options), wanted, rtol=1e-12)
    for minimize in ("flops", "memory"):
        assert_close(contract(equation, *arrays, minimize=minimize, **options), wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((-2, 3), "shapes must not be negative, found [(-2, 3), (3, 4)]"),
        ((2.5, 3), "expected shapes of whole numbers, found [(2.5, 3), (3, 4)]"),
    ],
    ids=["negative", "fraction"],
)
def test_shapes_that_no_array_has_are_refused(shape, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        plan("ij,jk->ik", shape, (3, 4))


def test_plans_are_equal_where_they_run_the_same_products_and_do_not_change():
    equation, shapes = "n c x, o c x -> n o x | x", [(2, 3, 8), (4, 3, 3)]
    one = plan(equation, *shapes, padding=1)
    again = Plan.from_dict(one.to_dict())
    assert again == one
    assert hash(again) == hash(one)
    others = [plan(equation, *shapes), plan(equation, *shapes, padding=1, training=True), plan("i j -> j", (2, 3))]
    assert len({one, again, *others}) == 4
    assert one != one.to_dict()
    with pytest.raises(AttributeError, match="block: a plan cannot be changed; make another one"):
        one.block = 3
    assert one.block != 3


def test_what_cannot_be_bound_is_named():
    made = plan("i j, j k -> i k", (2, 3), (3, 4))
    with pytest.raises(TypeError, match="bind: expected a mapping from position to array or a sequence, found int"):
        made.bind(3)
    with pytest.raises(ShapeError, match=r"the plan was made for \(3, 4\); plan again for these shapes"):
        plan("i j, j k ->", (2, 3), (3, 4))(np.ones((2, 3)), np.ones((4, 4)))


def test_a_python_number_is_an_operand_of_the_arrays_dtype(xp):
    x = xp.asarray(np.arange(6, dtype="float32").reshape(2, 3))
    found = contract(", ij, -> ji", 2, x, 0.5)
    assert found.dtype == x.dtype
    assert np.array_equal(to_numpy(found), np.arange(6).reshape(2, 3).T)
    for wrong in (True, "2", 2j, None):
        with pytest.raises(TypeError, match="operand 0 of ', ij -> ij' is"):
            contract(", ij -> ij", wrong, x)
    with pytest.raises(TypeError, match="operand 0 of ', -> ' is float, expected an array"):
        contract(", -> ", 2.0, 3.0)
