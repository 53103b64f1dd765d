"""CP: exact ranks, starts, degenerate components and their correction."""

import numpy as np
import pytest

from growarray.decompose import cp
from growarray.decompose.als import Target, khatri_rao
from growarray.decompose.stable import correct, degeneracy
from tests.decompose.kernels import border, falls, gaussian, relative, sum_of_products


@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((16, 12, 3, 3), 5),
        ((16, 12, 3, 3), 12),
        ((10, 8, 3, 3), 12),
        ((5, 6, 7), 4),
        ((3, 4, 2, 2, 2), 3),
        ((9, 1, 8), 4),
    ],
    ids=str,
)
def test_exact_rank_is_recovered(shape, rank):
    tensor = sum_of_products(shape, rank)
    found = cp(tensor, rank, max_iterations=1000)
    assert relative(found, tensor) < 1e-8
    assert abs(relative(found, tensor) - found.errors[-1]) < 1e-10


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (1, 9, 1, 14)], ids=str)
def test_matrix_is_the_truncated_svd(shape):
    matrix = gaussian(*shape)
    u, s, vh = np.linalg.svd(np.squeeze(matrix), full_matrices=False)
    found = cp(matrix, 3)
    np.testing.assert_allclose(found.reconstruct(), ((u[:, :3] * s[:3]) @ vh[:3]).reshape(shape), atol=1e-12)
    np.testing.assert_allclose(found.weights, s[:3], rtol=1e-12)


def test_vector_and_zeros():
    vector = gaussian(5)
    np.testing.assert_allclose(cp(vector, 1).reconstruct(), vector, atol=1e-15)
    zeros = cp(np.zeros((3, 4, 2)), 2)
    assert not zeros.reconstruct().any()
    assert zeros.errors == (0.0,)


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("weighted", [None, {0: np.eye(1) * 4.0}], ids=["plain", "weighted"])
def test_one_entry_keeps_its_sign(order, weighted):
    tensor = np.full((1,) * order, -3.0)
    found = cp(tensor, 1, weighted=weighted)
    np.testing.assert_allclose(found.reconstruct(), tensor, rtol=1e-14)
    assert found.weights[0] > 0.0


@pytest.mark.parametrize("init", ["svd", "random"])
def test_errors_fall_and_are_true(init):
    tensor = gaussian(12, 10, 3, 3)
    found = cp(tensor, 10, init=init, correct=False)
    assert falls(found.errors)
    assert abs(relative(found, tensor) - found.errors[-1]) < 1e-12
    assert (np.diff(found.weights) <= 0).all()
    for factor in found.factors:
        np.testing.assert_allclose(np.linalg.norm(factor, axis=0), 1.0, rtol=1e-12)


def test_seed_decides_alone():
    tensor = gaussian(8, 7, 3, 3)
    one, two = (cp(tensor, 9, init="random", rng=np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(one.weights, two.weights)
    assert one.errors == two.errors
    assert cp(tensor, 9, init="random").errors != one.errors


def test_degenerate_components_are_reported():
    plain = cp(border(), 2, correct=False)
    assert plain.degeneracy.cosine > 0.95
    assert plain.degeneracy.norm_ratio > 5.0
    assert plain.degeneracy.severe
    assert not cp(sum_of_products((8, 7, 6), 3), 3).degeneracy.severe


def test_correction_bounds_the_norms_at_equal_error():
    """Three components of which two nearly cancel fit the border tensor; three of moderate size fit it better."""
    a, b = np.eye(2)
    near = a + b / 200.0
    factors = [np.stack(columns, axis=1) for columns in ((near, a, b), (near, a, b), (near * 200.0, a * -200.0, b))]
    tensor = border()
    norm = float(np.linalg.norm(tensor))
    error = float(np.linalg.norm((factors[0] @ khatri_rao(factors[1:]).T).reshape(2, 2, 2) - tensor)) / norm
    before = degeneracy(factors, norm)
    found, reached = correct(Target(tensor, norm), factors, error, limit=1000)
    after = degeneracy(found, norm)
    assert before.norm_ratio > 100.0
    assert after.norm_ratio < 0.1 * before.norm_ratio
    assert reached <= error * (1 + 1e-9)
    assert np.linalg.norm((found[0] @ khatri_rao(found[1:]).T).reshape(2, 2, 2) - tensor) / norm <= error * (1 + 1e-9)


def test_slack_buys_smaller_components():
    tensor = gaussian(8, 6, 3, 3)
    little, much = cp(tensor, 4, tolerance=1e-7), cp(tensor, 4, tolerance=1e-7, slack=0.02)
    assert np.sum(much.weights**2) < np.sum(little.weights**2)
    assert much.errors[-1] <= 1.02 * much.errors[-2] * (1 + 1e-9)


def test_correction_costs_little_error():
    tensor = gaussian(8, 6, 3, 3)
    plain, corrected = cp(tensor, 4, tolerance=1e-7, correct=False), cp(tensor, 4, tolerance=1e-7)
    assert corrected.reason.endswith("degenerate components corrected")
    assert corrected.errors[-1] <= 1.0005 * plain.errors[-1] * (1 + 1e-9)
    assert np.sum(corrected.weights**2) < 0.7 * np.sum(plain.weights**2)
    assert relative(corrected, tensor) == pytest.approx(corrected.errors[-1], rel=1e-9)


def test_correction_of_an_exact_decomposition_keeps_it_exact():
    """A border tensor of order five at its rank: beside an error of 1e-12 the distances of the correction are noise."""
    a, b = np.random.default_rng(1).standard_normal((2, 4))
    terms = [[b if k == place else a for k in range(4)] for place in range(4)]
    tensor = sum(np.einsum("i,j,k,l->ijkl", *vectors) for vectors in terms)
    plain, found = cp(tensor, 4, correct=False), cp(tensor, 4)
    assert plain.degeneracy.severe
    assert plain.errors[-1] < 1e-10
    assert relative(found, tensor) <= 1.001 * max(plain.errors[-1], 1e-14)
    assert relative(found, tensor) == pytest.approx(found.errors[-1], rel=1e-2, abs=1e-14)


def test_a_correction_that_misses_its_bound_says_so():
    factors = [np.stack([v, v + 1e-9 * gaussian(4, seed=k)], axis=1) for k, v in enumerate(gaussian(3, 4, seed=9))]
    tensor = np.einsum("ir,jr,kr->ijk", *factors)
    norm = float(np.linalg.norm(tensor))
    found, reached = correct(Target(tensor, norm), factors, 1e-13)
    assert reached == pytest.approx(np.linalg.norm(np.einsum("ir,jr,kr->ijk", *found) - tensor) / norm, abs=1e-15)


def test_random_kernels_never_diverge():
    """A rank above the channels, which invites degenerate components: errors fall, components stay bounded."""
    corrected = 0
    for seed in range(20):
        kernel = gaussian(12, 10, 3, 3, seed=seed)
        found = cp(kernel, 16, max_iterations=25, starts=0)
        was_corrected = "corrected" in found.reason
        swept = found.errors[:-1] if was_corrected else found.errors
        assert len(swept) > 1
        assert falls(swept)
        assert found.errors[-1] <= 1.0005 * swept[-1] * (1 + 1e-9)
        assert found.errors[-1] < 0.65  # 0.59 to 0.62; all zeros have 1
        assert relative(found, kernel) == pytest.approx(found.errors[-1], rel=1e-9)
        assert found.degeneracy.norm_ratio < 25.0
        corrected += was_corrected
    assert corrected > 0  # two did turn degenerate on the way


def test_weighted_error_is_what_is_reported():
    kernel, moment = gaussian(6, 4, 3), np.diag([9.0, 4.0, 1.0, 0.0])
    found = cp(kernel, 3, weighted={1: moment})
    root = np.sqrt(np.diag(moment))[None, :, None]
    gap = (found.reconstruct() - kernel) * root
    assert np.linalg.norm(gap) / np.linalg.norm(kernel * root) == pytest.approx(found.errors[-1], rel=1e-9)


def test_every_library(xp):
    tensor = sum_of_products((7, 6, 3), 3)
    found = cp(xp.asarray(tensor.astype(np.float32)), 3)
    assert str(found.weights.dtype).endswith("float32")
    assert relative(found, tensor) < 1e-5
    assert relative(cp(xp.asarray(gaussian(6, 5, 3)), 3), gaussian(6, 5, 3)) == pytest.approx(
        cp(gaussian(6, 5, 3), 3).errors[-1], rel=1e-6
    )
