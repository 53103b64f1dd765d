"""Tensor train: exact ranks, bounds, shapes of cores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growarray.decompose import largest_tt_rank, tensor_train
from tests.decompose.kernels import gaussian, relative


def train(shape, rank, seed=0):
    rng = np.random.default_rng(seed)
    tensor = np.ones((1, 1))
    for k, n in enumerate(shape):
        core = rng.standard_normal((rank[k], n * rank[k + 1]))
        tensor = (tensor @ core).reshape(-1, rank[k + 1])
    return tensor.reshape(shape)


@pytest.mark.parametrize(
    ("shape", "rank"),
    [((6, 3, 3, 9), (1, 4, 3, 2, 1)), ((40, 5, 4), (1, 3, 2, 1)), ((3, 60), (1, 2, 1)), ((7,), (1, 1))],
)
def test_exact_rank_is_recovered(shape, rank):
    tensor = train(shape, rank)
    found = tensor_train(tensor, rank)
    assert [c.shape for c in found.cores] == list(zip(rank[:-1], shape, rank[1:], strict=True))
    assert relative(found, tensor) < 1e-12
    assert found.errors[-1] < 1e-12
    assert tensor_train(tensor, error=1e-9).rank == rank


def test_cores_but_the_last_are_orthonormal():
    for core in tensor_train(gaussian(60, 3, 3, 5), 8).cores[:-1]:
        flat = core.reshape(-1, core.shape[2])
        np.testing.assert_allclose(flat.T @ flat, np.eye(core.shape[2]), atol=1e-12)


def test_matrix_is_the_truncated_svd():
    matrix = gaussian(14, 9)
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(tensor_train(matrix, 3).reconstruct(), (u[:, :3] * s[:3]) @ vh[:3], atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.floats(0.0, 0.95), st.integers(0, 99))
def test_error_bound_is_kept(shape, bound, seed):
    tensor = gaussian(*shape, seed=seed)
    found = tensor_train(tensor, error=bound)
    assert relative(found, tensor) <= bound + 1e-13
    assert abs(relative(found, tensor) - found.errors[-1]) < 1e-10


def test_an_int_is_at_most_what_a_place_can_use():
    assert tensor_train(gaussian(4, 3, 3, 6), 7).rank == (1, 4, 7, 6, 1)
    assert largest_tt_rank((4, 3, 3, 6)) == (1, 4, 12, 6, 1)


def test_weighted_modes():
    moment = np.diag([1.0, 0.0, 0.0, 0.0])
    found = tensor_train(gaussian(4, 3, 5), (1, 1, 3, 1), weighted={0: moment})
    assert found.errors[-1] < 1e-12
    np.testing.assert_allclose(found.reconstruct()[0], gaussian(4, 3, 5)[0], atol=1e-12)


def test_every_library(xp):
    tensor = train((20, 3, 4), (1, 3, 2, 1)).astype(np.float32)
    found = tensor_train(xp.asarray(tensor), (1, 3, 2, 1))
    assert str(found.cores[0].dtype).endswith("float32")
    assert relative(found, tensor) < 1e-5
