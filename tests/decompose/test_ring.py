"""Tensor ring: exactness, the reference's errors, refinement, bounds, weights, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.decompose import TensorRing, largest_tr_rank, tensor_ring, tensor_train, tt_parameters, validate_tr_rank
from growarray.decompose.ring import usable_tr_rank
from growarray.testing import assert_close
from tests.conftest import Library

rng = np.random.default_rng
SHAPES = [(3,), (4, 3), (2, 3, 2), (8, 6, 3, 3), (5, 5, 5, 2, 2), (1, 4, 1, 3)]

# rank, mode, relative error of tensorly 0.10.0's tensor_ring for the kernel of seed 0, (8, 6, 3, 3)
REFERENCE = [
    ((2, 3, 4, 2, 2), 0, 0.8167432251855212),
    ((2, 2, 3, 3, 2), 1, 0.8572139870049326),
    ((2, 4, 5, 3, 2), 0, 0.6635232128837552),
]


def planted(shape: tuple[int, ...], rank: int, seed: int) -> Any:
    draw = rng(seed).standard_normal
    return TensorRing(tuple(draw((rank, n, rank)) for n in shape), (), "").reconstruct()


def distance(tensor: Any, found: TensorRing) -> float:
    return float(np.linalg.norm(tensor - found.reconstruct()) / np.linalg.norm(tensor))


def test_the_value_is_the_trace_of_the_products() -> None:
    draw = rng(1).standard_normal
    cores = draw((2, 3, 4)), draw((4, 5, 3)), draw((3, 2, 2))
    assert_close(TensorRing(cores, (), "").reconstruct(), np.einsum("xay,ybz,zcx->abc", *cores), rtol=1e-14)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_largest_rank_is_exact(shape: tuple[int, ...], xp: Library) -> None:
    tensor = rng(0).standard_normal(shape)
    found = tensor_ring(xp.asarray(tensor), largest_tr_rank(shape))
    assert found.rank == largest_tr_rank(shape)
    assert found.errors[-1] < 1e-14
    assert_close(found.reconstruct(), tensor, rtol=1e-13)


@pytest.mark.parametrize(("rank", "mode", "error"), REFERENCE)
def test_no_worse_than_the_reference(rank: tuple[int, ...], mode: int, error: float) -> None:
    kernel = rng(0).standard_normal((8, 6, 3, 3))
    found = tensor_ring(kernel, rank, mode=mode)
    assert found.rank == rank
    assert found.errors[-1] < 0.9 * error
    assert distance(kernel, found) == pytest.approx(found.errors[-1], rel=1e-9)
    svd = tensor_ring(kernel, rank, mode=mode, method="svd")
    assert svd.errors == found.errors[:1]
    assert svd.errors[0] == pytest.approx(error, rel=0.05)  # signs of singular vectors are free, and they count here


@pytest.mark.parametrize("seed", range(3))
def test_a_ring_of_the_rank_is_found_again(seed: int) -> None:
    tensor = planted((32, 16, 3, 3), 4, seed)
    svd, found = tensor_ring(tensor, 4, mode=0, method="svd"), tensor_ring(tensor, 4, mode=0, max_iterations=400)
    assert svd.errors[0] == found.errors[0] > 0.5  # the SVDs alone do not find it
    assert found.errors[-1] < 1e-12
    assert all(after < before for before, after in zip(found.errors, found.errors[1:], strict=False))


def test_it_starts_from_the_mode_whose_svds_lose_least_too() -> None:
    tensor = np.einsum("ar,br,cr->abc", *(rng(0).standard_normal((n, 3)) for n in (6, 7, 4)))
    assert tensor_ring(tensor, (1, 3, 3, 1), mode=1).errors[-1] > 0.1  # a bond of zeros, which no sweep fills
    assert tensor_ring(tensor, (1, 3, 3, 1)).errors[-1] < 1e-14


def test_a_bond_of_one_makes_a_train_of_no_greater_error() -> None:
    tensor = rng(2).standard_normal((7, 5, 4))
    train, ring = tensor_train(tensor, (1, 3, 2, 1)), tensor_ring(tensor, (1, 3, 2, 1), mode=0)
    assert ring.errors[0] == pytest.approx(train.errors[0], rel=1e-12)
    assert ring.errors[-1] <= train.errors[0]


@pytest.mark.parametrize("bound", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_bound_is_met(shape: tuple[int, ...], bound: float) -> None:
    tensor = rng(3).standard_normal(shape)
    found = tensor_ring(tensor, error=bound)
    assert distance(tensor, found) <= bound + 1e-14
    assert found.errors[0] <= bound + 1e-14
    assert found.reason == "error bound met"


def test_weights_move_the_error_to_where_the_data_is_not() -> None:
    tensor, moment = rng(4).standard_normal((6, 8, 3)), np.diag([1.0, 1.0, 1.0, 1e-6, 1e-6, 1e-6, 1e-6, 1e-6])
    plain, weighted = tensor_ring(tensor, 2), tensor_ring(tensor, 2, weighted={1: moment})

    def norm(a: Any) -> float:
        return float(np.linalg.norm(a * np.sqrt(np.diag(moment))[:, None]))

    off = [norm(tensor - found.reconstruct()) / norm(tensor) for found in (plain, weighted)]
    assert weighted.errors[-1] == pytest.approx(off[1], rel=1e-9)
    assert off[1] < off[0]


def test_ranks_from_a_share() -> None:
    shape = (64, 32, 3, 3)
    assert validate_tr_rank(shape) == (13,) * 5  # tensorly's numbers
    assert validate_tr_rank(shape, 0.5, "floor") == (9,) * 5
    assert validate_tr_rank(shape, np.int64(4)) == (4,) * 5
    assert validate_tr_rank((7,), 0.5) == (1, 1)
    assert tt_parameters(shape, (13,) * 5) == 169 * 102
    assert usable_tr_rank(shape, (13,) * 5) == (8, 8, 13, 13, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: validate_tr_rank((4, 3), (2, 2, 1)), ValueError, "must end with the number that it starts with"),
        (lambda: validate_tr_rank((4, 3), (2, 2)), ValueError, "has 2 entries, expected 3"),
        (lambda: validate_tr_rank((4, 3), (0, 2, 0)), ValueError, "found rank 0, expected at least 1"),
        (lambda: validate_tr_rank((4,), (2, 2)), ValueError, "1 for a single mode"),
        (lambda: validate_tr_rank((4, 3), "all"), ValueError, "expected 'same'"),
        (lambda: tensor_ring(np.ones((4, 3)), (2, 2, 1)), ValueError, "must end with the number that it starts with"),
        (lambda: tensor_ring(np.ones((4, 3)), (4, 4, 4)), ValueError, r"rank \(4, 4, 4\) is above \(2, 2, 2\)"),
        (lambda: tensor_ring(np.ones((4, 3)), 5), ValueError, "rank 5 is above 2, the largest possible"),
        (lambda: tensor_ring(np.ones((4, 3))), ValueError, "expected either rank= or error="),
        (lambda: tensor_ring(np.ones((4, 3)), 1, mode=2), ValueError, "mode as different axes"),
        (lambda: tensor_ring(np.ones((4, 3)), 1, method="dmrg"), ValueError, "expected 'als' or 'svd'"),
        (lambda: tensor_ring(np.full((4, 3), np.nan), 1), ValueError, "NaN or infinite"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
