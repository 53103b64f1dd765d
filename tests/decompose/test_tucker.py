"""Tucker: exact ranks, bounds, monotone refinement, partial and weighted decompositions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growarray.decompose import tucker
from tests.decompose.kernels import falls, gaussian, multilinear, relative


@pytest.mark.parametrize("method", ["hosvd", "hooi"])
@pytest.mark.parametrize(("shape", "rank"), [((9, 8, 3, 3), (4, 3, 2, 2)), ((30, 4, 5), (3, 2, 4)), ((6, 50), (3, 3))])
def test_exact_rank_is_recovered(shape, rank, method):
    tensor = multilinear(shape, rank)
    found = tucker(tensor, rank, method=method)
    assert found.rank == rank
    assert relative(found, tensor) < 1e-12
    assert found.errors[-1] < 1e-12


def test_small_singular_values_are_found():
    """1e-9 beside 1: half the digits of the Gram matrix would lose it."""
    q = np.linalg.qr(gaussian(20, 20))[0]
    tensor = (q[:, :4] * [1.0, 1e-3, 1e-6, 1e-9]) @ np.linalg.qr(gaussian(60, 60, seed=1))[0][:4]
    assert relative(tucker(tensor.reshape(20, 6, 10), (4, 6, 10)), tensor.reshape(20, 6, 10)) < 1e-13


@pytest.mark.parametrize("shape", [(12, 10, 3, 3), (130, 90, 3)], ids=["exact steps", "orthogonal iteration"])
def test_errors_fall_and_are_true(shape):
    tensor = gaussian(*shape)
    found = tucker(tensor, (4, 4, 2, 2)[: len(shape)], tolerance=1e-9)
    assert falls(found.errors)
    assert found.errors[-1] < found.errors[0]
    assert abs(relative(found, tensor) - found.errors[-1]) < 1e-12
    for factor in found.factors:
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "rank", "modes"),
    [
        ((7, 6), (3, 3), None),
        ((7, 6, 5), (3, 2, 4), None),
        ((9, 8, 3, 3), (4, 3, 2, 2), None),
        ((5, 4, 3, 4, 3), (2, 3, 2, 2, 2), None),
        ((9, 8, 3, 3), (4, 8, 2, 2), None),
        ((9, 3, 8, 3), (4, 2, 5), (3, 0, 2)),
    ],
    ids=["matrix", "three", "kernel", "five", "one at full rank", "some in another order"],
)
def test_an_iteration_renews_each_factor_with_the_newest_others(shape, rank, modes):
    """Against the definition: products with all other factors, then the leading left singular vectors."""
    tensor = gaussian(*shape)
    rank = rank if modes is None else (rank[1], rank[0], rank[2])
    modes = tuple(range(len(shape))) if modes is None else modes
    start, found = (tucker(tensor, rank, modes=modes, method=m, max_iterations=1) for m in ("hosvd", "hooi"))
    factors = dict(zip(modes, start.factors, strict=True))
    for mode in sorted(modes):
        part = tensor
        for other in modes:
            if other != mode:
                part = np.moveaxis(np.tensordot(factors[other].T, part, (1, other)), 0, other)
        rows = np.moveaxis(part, mode, 0).reshape(shape[mode], -1)
        factors[mode] = np.linalg.svd(rows, full_matrices=False)[0][:, : factors[mode].shape[1]]
    for mode, factor in zip(modes, found.factors, strict=True):
        np.testing.assert_allclose(factor @ factor.T, factors[mode] @ factors[mode].T, atol=1e-9)


def test_matrix_is_the_truncated_svd():
    matrix = gaussian(9, 14)
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(tucker(matrix, 3).reconstruct(), (u[:, :3] * s[:3]) @ vh[:3], atol=1e-12)


def test_partial_keeps_the_other_modes():
    tensor = gaussian(8, 7, 3, 3)
    found = tucker(tensor, (4, 5), modes=(0, 1))
    assert found.core.shape == (4, 5, 3, 3)
    assert found.modes == (0, 1)
    assert tucker(tensor, (4, 5), modes=(-4, -3)).modes == (0, 1)
    assert relative(tucker(tensor, (8, 7), modes=(0, 1)), tensor) < 1e-15


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.floats(0.0, 0.95), st.integers(0, 99))
def test_error_bound_is_kept(shape, bound, seed):
    tensor = gaussian(*shape, seed=seed)
    found = tucker(tensor, error=bound)
    assert relative(found, tensor) <= bound + 1e-13


def test_max_iterations_is_the_reason_when_it_ends_there():
    found = tucker(gaussian(10, 9, 8), 2, max_iterations=1, tolerance=0.0)
    assert (len(found.errors), found.reason) == (2, "max_iterations")


@pytest.mark.parametrize("seed", range(4))
def test_small_errors_are_brought_to_their_end(seed):
    """The tolerance is relative: beside an error of 1e-3 a fall by 1e-6 counts."""
    exact = multilinear((14, 17, 3, 3), (2, 2, 2, 2), seed)
    tensor = exact / np.linalg.norm(exact) + 1e-3 * gaussian(14, 17, 3, 3, seed=seed + 9) / np.sqrt(exact.size)
    found = tucker(tensor, (8, 14, 2, 2))
    best = tucker(tensor, (8, 14, 2, 2), tolerance=1e-12, max_iterations=500)
    assert found.errors[-1] <= 1.0005 * best.errors[-1]


def test_weighting_leaves_out_what_the_data_does_not_take():
    """Two of five input directions are never used: rank 3 is then exact where the data is."""
    basis = np.linalg.qr(gaussian(5, 5))[0]
    moment = basis[:, :3] @ np.diag([4.0, 1.0, 0.1]) @ basis[:, :3].T
    kernel = gaussian(8, 5, 3, 3, seed=3)
    found = tucker(kernel, 3, modes=(1,), weighted={1: moment})
    gap = np.moveaxis(found.reconstruct() - kernel, 1, 0).reshape(5, -1)
    assert np.linalg.norm(basis[:, :3].T @ gap) < 1e-12
    assert found.errors[-1] < 1e-12


def test_weighted_error_is_the_least():
    moment = np.diag([100.0, 1.0, 1.0, 1.0])
    kernel = gaussian(6, 4)
    root = np.sqrt(moment)
    weighted = tucker(kernel, 2, weighted={1: moment}).reconstruct()
    plain = tucker(kernel, 2).reconstruct()
    assert np.linalg.norm((weighted - kernel) @ root) < 0.9 * np.linalg.norm((plain - kernel) @ root)


def test_every_library(xp):
    tensor = gaussian(6, 5, 3).astype(np.float32)
    found = tucker(xp.asarray(tensor), (3, 3, 2))
    assert str(found.core.dtype).endswith("float32")
    assert relative(found, tensor) == pytest.approx(tucker(tensor, (3, 3, 2)).errors[-1], abs=1e-5)
    exact = tucker(xp.asarray(multilinear((40, 6, 7), (2, 3, 2))), error=1e-10)
    assert exact.rank == (2, 3, 2)
    assert relative(exact, multilinear((40, 6, 7), (2, 3, 2))) < 1e-12
