"""Numbers of NumPy where those of Python are taken, and everything else refused before any work."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from growarray.decompose import (
    Candidate,
    allocate,
    channel_moment,
    cp,
    cp_parameters,
    factor_std,
    largest_cp_rank,
    largest_tt_rank,
    largest_tucker_rank,
    output_error,
    rank_for_error,
    rank_for_output_error,
    tensor_train,
    tt_parameters,
    tucker,
    tucker_parameters,
    validate_cp_rank,
    validate_tt_rank,
    validate_tucker_rank,
    vbmf,
    vbmf_rank,
)
from growarray.errors import ShapeError
from tests.decompose.kernels import gaussian

VALIDATE = (validate_cp_rank, validate_tucker_rank, validate_tt_rank)
LARGEST = (largest_cp_rank, largest_tucker_rank, largest_tt_rank)
CUBE, KERNEL, EYE = gaussian(4, 3, 3), gaussian(6, 4, 3, 3), np.eye(36)
NAN = float("nan")
by_name = {"ids": lambda f: f.__name__}


@pytest.mark.parametrize("validate", VALIDATE, **by_name)
@pytest.mark.parametrize(
    ("given", "plain"),
    [(np.int64(2), 2), (np.uint8(3), 3), (np.float64(0.5), 0.5), (np.float32(0.5), 0.5), (Fraction(1, 2), 0.5)],
    ids=lambda value: type(value).__name__,
)
def test_numbers_of_numpy_are_ranks(validate: Callable[..., Any], given: Any, plain: Any) -> None:
    found = validate((6, 4, 3, 3), given)
    assert found == validate((6, 4, 3, 3), plain)
    assert {type(r) for r in (found if isinstance(found, tuple) else (found,))} == {int}


def test_ranks_one_by_one_may_be_numpys() -> None:
    assert validate_tucker_rank((4, 3), list(np.asarray([2, 1]))) == (2, 1)
    assert validate_tt_rank((4, 3), (1, np.int32(2), 1)) == (1, 2, 1)
    ranks = tuple(np.asarray([2, 2, 1]))
    assert tucker(CUBE, ranks).rank == (2, 2, 1)
    assert tucker(CUBE, np.int64(2)).errors == tucker(CUBE, 2).errors
    assert tensor_train(CUBE, np.int64(2)).rank == (1, 2, 2, 1)
    assert cp(CUBE, np.int64(2), starts=np.int64(1), max_iterations=np.int64(5)).rank == 2
    assert tucker(CUBE, error=np.float32(0.5)).rank == tucker(CUBE, error=0.5).rank
    assert tucker(CUBE, 2, modes=(np.int64(-1), np.int64(0))).modes == (2, 0)
    assert vbmf_rank(CUBE, modes=(np.int64(0),)) == vbmf_rank(CUBE, modes=(0,))


@pytest.mark.parametrize("validate", VALIDATE, **by_name)
@pytest.mark.parametrize(
    "rank", [True, np.True_, None, 1 + 2j, {}, (2.0, 2.0), (True, 2), np.ones(3, dtype=int)], ids=str
)
def test_what_is_no_rank_is_refused(validate: Callable[..., Any], rank: Any) -> None:
    with pytest.raises(TypeError, match=r"expected .*int.*found"):
        validate((4, 3, 3), rank)


@pytest.mark.parametrize("validate", VALIDATE, **by_name)
@pytest.mark.parametrize("rank", [0, -1, NAN, math.inf, 1e300, 0.0, -0.5, "10", np.float32(-1)], ids=str)
def test_a_rank_out_of_range_is_refused(validate: Callable[..., Any], rank: Any) -> None:
    with pytest.raises(ValueError, match=r"found rank .*, expected"):
        validate((4, 3, 3), rank)


@pytest.mark.parametrize("function", [*VALIDATE, *LARGEST], **by_name)
@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ("ab", TypeError), (3, TypeError), (None, TypeError), ((2.5, 3), TypeError), ((True, 3), TypeError),
        ((NAN, 2), TypeError), (("4", 3), TypeError), ((), ShapeError), ((0, 3), ShapeError), ((-1, 3), ShapeError),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_shape_is_refused(function: Callable[..., Any], shape: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{function.__name__}: expected a shape"):
        function(shape)


@pytest.mark.parametrize("function", [*VALIDATE, *LARGEST], **by_name)
def test_an_array_of_sizes_is_a_shape(function: Callable[..., Any]) -> None:
    assert function(np.asarray([4, 3, 3])) == function((4, 3, 3))


def test_fixed_modes_and_ranks_agree() -> None:
    assert validate_tucker_rank((4, 3, 2), (4, 1, 2), fixed_modes=(0, -1)) == (4, 1, 2)
    assert validate_tucker_rank((4, 3, 2), 0.001, fixed_modes=(0, 1, 2)) == (4, 3, 2)
    assert validate_tucker_rank((4, 3, 2), 0.5, fixed_modes=np.asarray([1]))[1] == 3
    with pytest.raises(ValueError, match="has 2 for mode 0, which fixed_modes keeps at its size 4"):
        validate_tucker_rank((4, 3, 2), (2, 2, 2), fixed_modes=(0,))


@pytest.mark.parametrize("fixed", [3, "spatial", (1.5,), (True,), (0, 0), (5,), (-4,)], ids=str)
def test_fixed_modes_that_are_no_axes_are_refused(fixed: Any) -> None:
    with pytest.raises((TypeError, ShapeError), match=r"expected fixed_modes as .*found"):
        validate_tucker_rank((4, 3, 2), 0.5, fixed_modes=fixed)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: cp_parameters((4, 3), (2, 2)), ValueError, "expected rank as a whole number"),
        (lambda: cp_parameters((4, 3), -1), ValueError, "of at least 1, found -1"),
        (lambda: tucker_parameters((4, 3), (2,)), ValueError, "has 1 entries, expected 2"),
        (lambda: tucker_parameters((4, 3), 2), TypeError, "expected rank as 2 ints, found 2"),
        (lambda: tt_parameters((4, 3), (1, 2)), ValueError, "has 2 entries, expected 3"),
        (lambda: tt_parameters((4, 3), (1, 2, 1, 1)), ValueError, "has 4 entries, expected 3"),
        (lambda: factor_std("cp", 3, 2, -0.1), ValueError, "expected std as a finite number of at least 0"),
        (lambda: factor_std("cp", 3, 2, NAN), ValueError, "expected std"),
        (lambda: factor_std("tt", 3, (1, 0, 1), 0.1), ValueError, "found rank 0"),
        (lambda: factor_std("cp", 0, 2, 0.1), ValueError, "expected order"),
        (lambda: validate_cp_rank((4, 3), 0.5, ["round"]), ValueError, "expected 'round', 'floor' or 'ceil'"),
        (lambda: cp(CUBE, 2, tolerance=NAN), ValueError, "expected tolerance as a finite number"),
        (lambda: tucker(CUBE, 2, tolerance="a"), ValueError, "expected tolerance"),
        (lambda: cp(CUBE, 2, rng=3), TypeError, r"found 3; make one of a seed with numpy.random.default_rng"),
        (lambda: cp(CUBE, 2, init=np.ones(3)), ValueError, "expected 'svd' or 'random'"),
        (lambda: cp(CUBE, 2, slack=5.0), ValueError, "cp: expected slack 0 <= error < 1, found 5.0"),
        (lambda: cp(CUBE, (2,)), TypeError, r"expected rank as an int, found \(2,\)"),
        (lambda: cp(CUBE, 2, weighted=[np.eye(4)]), TypeError, "expected weighted as a mapping"),
        (lambda: cp(CUBE, 2, weighted={0: [[1.0]]}), TypeError, "expected an array as the second moment of mode 0"),
        (lambda: cp(CUBE, 2, weighted={"a": np.eye(4)}), TypeError, "names mode 'a', expected a whole number"),
        (lambda: cp(CUBE, 2, weighted={0: np.eye(4), -3: np.eye(4)}), ValueError, "names mode 0 twice"),
        (lambda: cp(CUBE, 2, weighted={0: np.eye(4) * 1j}), TypeError, "found complex128"),
        (lambda: tucker(CUBE, 2, modes=1), TypeError, "expected modes as whole numbers"),
        (lambda: tucker(CUBE, 2, modes=(0.0,)), TypeError, "expected modes as whole numbers"),
        (lambda: tucker(CUBE, 2, modes=(True,)), TypeError, "expected modes as whole numbers"),
        (lambda: tucker(CUBE, 2, modes=()), ValueError, "modes is empty"),
        (lambda: tucker(np.ma.masked_array(CUBE, CUBE > 1), 2), TypeError, "expected an array, found a MaskedArray"),
        (lambda: rank_for_error(CUBE, 0.1, "tt", tolerance=1), TypeError, "unknown option 'tolerance'; it has"),
        (lambda: rank_for_error(CUBE, 0.1, tolerance=0.1), TypeError, "unknown option 'tolerance'; it has weighted"),
        (lambda: rank_for_error(CUBE, 0.1, method="hooi"), TypeError, "unknown option 'method'"),
        (lambda: rank_for_output_error(KERNEL, EYE, 0.1, "tt", foo=1), TypeError, "unknown option 'foo'; it has none"),
        (lambda: rank_for_output_error(KERNEL, EYE, 0.1, channel=7), ShapeError, "expected channel as different axes"),
        (lambda: rank_for_output_error(KERNEL, EYE, 0.1, channel=0), ShapeError, "channel is mode 0, that of"),
        (lambda: rank_for_output_error(KERNEL, EYE, 0.1, channel="c"), TypeError, "expected channel as whole numbers"),
        (lambda: rank_for_output_error(KERNEL, EYE * NAN, 0.1), ValueError, "hold a NaN or an infinity"),
        (lambda: rank_for_output_error(np.ones(3), np.eye(1), 0.1), ShapeError, "expected channel"),
        (lambda: channel_moment(np.ones(()), 1), ShapeError, r"found shape \(\)"),
        (lambda: channel_moment(np.eye(4), "2"), ValueError, "expected channels as a whole number"),
        (lambda: channel_moment(np.zeros((0, 0)), 2), ShapeError, r"found shape \(0, 0\)"),
        (lambda: output_error(np.ones(()), np.ones(()), np.eye(1)), ShapeError, "with entries"),
        (lambda: output_error(np.ones((0, 4)), np.ones((0, 4)), np.eye(4)), ShapeError, "with entries"),
        (lambda: output_error(KERNEL * NAN, KERNEL, EYE), ValueError, "NaN or an infinity"),
        (lambda: output_error(KERNEL, KERNEL, EYE * NAN), ValueError, "NaN or an infinity"),
        (lambda: output_error(KERNEL * 1j, KERNEL, EYE), TypeError, "found complex128"),
        (lambda: output_error([[1.0]], [[1.0]], [[1.0]]), TypeError, "expected an array as the tensor, found list"),
        (lambda: vbmf([[1.0]]), TypeError, "expected an array as a tensor, found list"),
        (lambda: vbmf(np.eye(3), "1"), ValueError, "above 0, found '1'"),
        (lambda: vbmf(np.eye(3), True), ValueError, "above 0, found True"),
        (lambda: vbmf_rank(CUBE, modes=0), TypeError, "expected modes as whole numbers"),
        (lambda: vbmf_rank(CUBE, modes=(0, 0)), ShapeError, "different axes"),
        (lambda: allocate(3, [1, 2]), TypeError, "expected a mapping from names to candidates, found list"),
        (lambda: allocate(3, {"a": [(1, 2)]}), TypeError, r"layer 'a' has candidate \(1, 2\)"),
        (lambda: allocate(3, {"a": [(1, "2", 3)]}), TypeError, "the last two numbers"),
        (lambda: allocate("3", {"a": [(1, 2, 3)]}), TypeError, "expected the budget as a number, found '3'"),
        (lambda: allocate(3, {"a": None}), ValueError, "layer 'a' has no candidates"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_by_name(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_candidates_may_come_one_after_another() -> None:
    offered = {"a": (Candidate(i, i, 3.0 - i) for i in range(1, 3))}
    assert allocate(2, offered).choices["a"].rank == 2


def test_a_zero_output_is_met_exactly_or_not_at_all() -> None:
    zero = np.zeros_like(KERNEL)
    assert output_error(zero, zero, EYE) == 0.0
    assert output_error(zero, KERNEL, EYE) == math.inf


def test_the_channels_may_be_any_mode_of_the_input() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((6, 3, 5))  # out, taps, in: each tap sees the same two of five directions
    used = np.kron(np.eye(3), np.diag([1.0, 1.0, 0.0, 0.0, 0.0]))
    assert rank_for_output_error(kernel, used, 1e-6, modes=(0, 2), channel=2)[1] == 2
    assert rank_for_output_error(kernel, used, 1e-6, modes=(0, 2), channel=-1)[1] == 2


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_vbmf_takes_values_whose_squares_leave_the_range(scale: float) -> None:
    matrix = gaussian(20, 2) @ gaussian(2, 30, seed=1) + 0.1 * gaussian(20, 30, seed=2)
    found = vbmf(matrix * scale)
    assert found.rank == vbmf(matrix).rank == 2
    np.testing.assert_allclose(found.values / scale, vbmf(matrix).values, rtol=1e-6)
    assert vbmf(matrix, 1e300).rank == 0


def test_subclasses_of_arrays_are_decomposed_as_plain_ones() -> None:
    plain = gaussian(4, 3)
    with pytest.warns(PendingDeprecationWarning):
        matrix = np.matrix(plain)
    for decompose in (cp, tucker, tensor_train):
        np.testing.assert_array_equal(decompose(matrix, 2).reconstruct(), decompose(plain, 2).reconstruct())
