"""Validated ranks, ranks for error bounds, and variational Bayes."""

import numpy as np
import pytest

from growarray.decompose import (
    channel_moment,
    cp,
    output_error,
    rank_for_error,
    rank_for_output_error,
    tensor_train,
    tucker,
    validate_cp_rank,
    validate_tt_rank,
    validate_tucker_rank,
    vbmf,
    vbmf_rank,
)
from tests.decompose.golden_ranks import check_tensor_ranks
from tests.decompose.kernels import gaussian, multilinear, sum_of_products
from tests.golden.case import Case, all_cases


@pytest.mark.parametrize("entry", [e for e in all_cases() if e["kind"] == "tensor_ranks"], ids=lambda e: e["name"])
def test_golden_ranks(entry):
    case = Case(entry)
    check_tensor_ranks(case)
    case.finish()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: validate_cp_rank((4, 3), "half"), ValueError, "found rank 'half'"),
        (lambda: validate_cp_rank((4, 3), 0), ValueError, "found rank 0, expected at least 1"),
        (lambda: validate_cp_rank((4, 3), -0.5), ValueError, "share of the parameters above 0"),
        (lambda: validate_cp_rank((4, 3), float("nan")), ValueError, "above 0"),
        (lambda: validate_cp_rank((4, 3), (2, 2)), TypeError, "found \\(2, 2\\)"),
        (lambda: validate_cp_rank(()), ValueError, "at least one mode"),
        (lambda: validate_cp_rank((4, 0)), ValueError, "sizes of at least 1"),
        (lambda: validate_cp_rank((4, 3), rounding="up"), ValueError, "found rounding 'up'"),
        (lambda: validate_tucker_rank((4, 3), (1, 2, 3)), ValueError, "3 entries, expected 2"),
        (lambda: validate_tucker_rank((4, 3), fixed_modes=(2,)), ValueError, "fixed_modes"),
        (lambda: validate_tucker_rank((4, 3), (1.5, 2)), TypeError, "2 ints"),
        (lambda: validate_tt_rank((4, 3), (2, 2, 1)), ValueError, "start and end with 1"),
        (lambda: validate_tt_rank((4, 3), True), TypeError, "an int or 3 ints, found True"),
    ],
)
def test_bad_ranks_are_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_rank_for_error_on_the_weights():
    assert rank_for_error(sum_of_products((8, 7, 6), 3), 1e-6, "cp") == 3
    assert rank_for_error(multilinear((8, 7, 6), (3, 2, 4)), 1e-9) == (3, 2, 4)
    assert rank_for_error(multilinear((8, 7, 6), (3, 2, 6)), 1e-9, modes=(0, 1)) == (3, 2)
    assert rank_for_error(multilinear((8, 7, 6), (3, 7, 4)), 1e-9, "tt") == (1, 3, 4, 1)
    assert rank_for_error(multilinear((8, 7, 6), (1, 7, 7)), 1e-9, "ring") == (1, 1, 6, 1)
    assert rank_for_error(multilinear((8, 7, 6), (1, 7, 7)), 1e-9, "tr") == (1, 1, 6, 1)  # as tables name it
    with pytest.raises(ValueError, match="found kind 'dense', expected 'cp', 'tucker', 'tt', 'ring' or 'tr'"):
        rank_for_error(gaussian(3, 3), 0.1, "dense")
    with pytest.raises(ValueError, match="modes= is for 'tucker' only"):
        rank_for_error(gaussian(3, 3), 0.1, "tt", modes=(0,))


@pytest.mark.parametrize("kind", ["tucker", "tt", "cp"])
@pytest.mark.parametrize("bound", [0.5, 0.2])
def test_rank_for_output_error_meets_the_bound(kind, bound):
    rng = np.random.default_rng(0)
    kernel = gaussian(6, 4, 2, 2)
    samples = rng.standard_normal((400, 16)) @ np.diag(0.7 ** np.arange(16))
    moment = samples.T @ samples / 400
    options = {"modes": (0, 1)} if kind == "tucker" else {}
    rank = rank_for_output_error(kernel, moment, bound, kind, **options)
    weighted = {1: channel_moment(moment, 4)}
    decompose = {"tucker": tucker, "tt": tensor_train, "cp": cp}[kind]
    found = decompose(kernel, rank, weighted=weighted, **options).reconstruct()
    measured = np.linalg.norm(samples @ (found - kernel).reshape(6, -1).T)
    exact = measured / np.linalg.norm(samples @ kernel.reshape(6, -1).T)
    assert output_error(kernel, found, moment) == pytest.approx(exact, rel=1e-9)
    assert exact <= bound * (1 + 1e-6)


def test_output_error_needs_fewer_ranks_where_the_data_does_not_go():
    kernel = gaussian(8, 6, 1, 1)
    used = np.diag([1.0, 1.0, 1e-8, 0.0, 0.0, 0.0])
    assert rank_for_output_error(kernel, used, 0.01, modes=(0, 1)) == (2, 2)
    assert min(rank_for_error(kernel, 0.01, modes=(0, 1))) > 4


@pytest.mark.parametrize(("rows", "columns", "rank"), [(30, 50, 3), (80, 40, 7), (60, 60, 1), (25, 400, 10)])
def test_vbmf_recovers_the_planted_rank(rows, columns, rank):
    signal = gaussian(rows, rank) @ gaussian(rank, columns, seed=1)
    found = vbmf(signal + 0.5 * gaussian(rows, columns, seed=2))
    assert found.rank == rank
    assert found.noise == pytest.approx(0.25, rel=0.15)
    plain = np.linalg.svd(signal + 0.5 * gaussian(rows, columns, seed=2), compute_uv=False)[:rank]
    assert (found.values < plain).all()
    np.testing.assert_allclose(found.values, np.linalg.svd(signal, compute_uv=False)[:rank], rtol=0.15)


def test_vbmf_says_zero_for_noise_and_the_fallback_answers():
    kernel = gaussian(30, 40, 3, 3)
    assert vbmf(kernel.reshape(30, -1)).rank == 0
    assert vbmf(np.zeros((3, 4))).rank == 0
    low, high = vbmf_rank(kernel, fallback=0.9), vbmf_rank(kernel, fallback=0.3)
    assert min(low) >= 1
    assert low < high
    assert vbmf_rank(multilinear((20, 30, 3, 3), (4, 5, 3, 3)) + 0.1 * gaussian(20, 30, 3, 3)) == (4, 5)


def test_vbmf_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="expected a matrix"):
        vbmf(gaussian(3, 3, 3))
    with pytest.raises(ValueError, match="above 0"):
        vbmf(gaussian(3, 3), noise=0.0)
    with pytest.raises(ValueError, match="different axes"):
        vbmf_rank(gaussian(3, 3), modes=(2,))


def test_every_library(xp):
    kernel = gaussian(6, 4, 2, 2)
    moment = np.eye(16)
    assert rank_for_output_error(xp.asarray(kernel), xp.asarray(moment), 0.5, modes=(0, 1)) == (
        rank_for_output_error(kernel, moment, 0.5, modes=(0, 1))
    )
    assert vbmf_rank(xp.asarray(kernel)) == vbmf_rank(kernel)
