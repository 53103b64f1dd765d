"""Bad input to the decompositions, and what all three promise about good input."""

import tracemalloc

import numpy as np
import pytest

from growarray.decompose import cp, tensor_train, tucker
from tests.conftest import frozen
from tests.decompose.kernels import gaussian, relative

ALL = pytest.mark.parametrize("decompose", [cp, tucker, tensor_train], ids=lambda f: f.__name__)
GOOD = gaussian(4, 3, 3)


@ALL
@pytest.mark.parametrize(
    ("tensor", "rank", "error", "text"),
    [
        (np.ones((3, 3), dtype=np.int64), 1, TypeError, "real floating dtype, found int64"),
        (np.ones((3, 3), dtype=complex), 1, TypeError, "real floating dtype, found complex128"),
        ([[1.0]], 1, TypeError, "expected an array"),
        (np.ones((3, 0, 2)), 1, ValueError, r"one entry, found shape \(3, 0, 2\)"),
        (np.ones(()), 1, ValueError, "one axis"),
        (np.where(GOOD > 1, np.nan, GOOD), 1, ValueError, "NaN or infinite"),
        (np.where(GOOD > 1, -np.inf, GOOD), 1, ValueError, "NaN or infinite"),
        (GOOD, 0, ValueError, "0, expected at least 1"),
        (GOOD, -2, ValueError, "-2, expected at least 1"),
        (GOOD, 100, ValueError, "100 is above .*, the largest possible"),
        (GOOD, (1, 2), (ValueError, TypeError), "2 entries|as an int"),
        (GOOD, 0.5, TypeError, "validate_"),
        (GOOD, True, TypeError, "expected rank as"),
        (GOOD, "same", TypeError, "expected rank as"),
    ],
    ids=str,
)
def test_bad_input_is_refused(decompose, tensor, rank, error, text):
    with pytest.raises(error, match=text):
        decompose(tensor, rank)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: tucker(GOOD), "either rank= or error=, found neither"),
        (lambda: tensor_train(GOOD, 2, error=0.1), "either rank= or error="),
        (lambda: tucker(GOOD, error=1.0), "0 <= error < 1, found 1.0"),
        (lambda: tensor_train(GOOD, error=-0.1), "0 <= error < 1"),
        (lambda: tucker(GOOD, error=float("nan")), "0 <= error < 1"),
        (lambda: tucker(GOOD, 2, method="als"), "found method 'als', expected 'hooi' or 'hosvd'"),
        (lambda: tucker(GOOD, 2, modes=(0, 0)), "different axes"),
        (lambda: tucker(GOOD, 2, modes=(3,)), "different axes"),
        (lambda: tucker(GOOD, (5, 1, 1)), "rank 5 is above 4"),
        (lambda: tucker(GOOD, 2, max_iterations=-1), "max_iterations"),
        (lambda: tucker(GOOD, 2, weighted={1: np.eye(4)}), "second moment of mode 1"),
        (lambda: tucker(GOOD, 2, weighted={4: np.eye(4)}), "names mode 4"),
        (lambda: tucker(GOOD, 2, weighted={1: -np.eye(3)}), "eigenvalue"),
        (lambda: tucker(GOOD, 2, weighted={1: np.triu(np.ones((3, 3)))}), "not symmetric"),
        (lambda: tucker(GOOD, 2, weighted={1: np.full((3, 3), np.nan)}), "NaN"),
        (lambda: tensor_train(GOOD, (1, 2, 2)), "3 entries"),
        (
            lambda: tensor_train(gaussian(4, 3, 6), (1, 1, 4, 1)),
            r"rank \(1, 1, 4, 1\) is above \(1, 1, 3, 1\), which a tensor of shape",
        ),
        (lambda: cp(GOOD, 2, init="eigen"), "found init 'eigen'"),
        (lambda: cp(GOOD, 2, init="random", starts=0), "starts"),
        (lambda: cp(GOOD, 10), "10 is above 9"),
        (lambda: cp(GOOD, 2, max_iterations=0), "max_iterations"),
    ],
)
def test_bad_options_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@ALL
def test_input_is_untouched_and_size_does_not_matter(decompose):
    tensor = gaussian(5, 4, 3)
    kept = tensor.copy()
    error = decompose(frozen(tensor), 2).errors[-1]
    decompose(tensor, 2)
    np.testing.assert_array_equal(tensor, kept)
    for scale in (1e-200, 1e200):
        assert decompose(tensor * scale, 2).errors[-1] == pytest.approx(error, rel=1e-9)


@ALL
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_comes_back(decompose, dtype):
    found = decompose(gaussian(5, 4, 3).astype(dtype), 2)
    assert found.reconstruct().dtype == dtype


@ALL
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_above_what_the_dtype_holds_are_refused(decompose, dtype):
    """The norm of a tensor is above its largest entry."""
    tensor = np.full((4, 3, 3), 0.9 * float(np.finfo(dtype).max), dtype)
    with pytest.raises(ValueError, match=rf"largest weight is .*, and {np.dtype(dtype)} holds up to .*; decompose the"):
        decompose(tensor, 2)
    smaller = tensor / 16
    np.testing.assert_allclose(decompose(smaller, 2).reconstruct() / smaller, 1.0, rtol=20 * float(np.finfo(dtype).eps))


@ALL
def test_reads_strided_views(decompose):
    tensor = gaussian(6, 8, 5)[::2, ::-1].transpose(2, 0, 1)
    assert relative(decompose(tensor, 2), tensor) == pytest.approx(decompose(tensor.copy(), 2).errors[-1], rel=1e-9)


@ALL
def test_memory_is_a_small_multiple_of_the_tensor(decompose):
    tensor = gaussian(128, 96, 3, 3, 3).astype(np.float32)
    dense = 8 * tensor.size
    tracemalloc.start()
    try:
        decompose(tensor, 16, **({"max_iterations": 3} if decompose is not tensor_train else {}))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * dense
