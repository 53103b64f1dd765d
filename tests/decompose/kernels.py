"""Tensors for these tests: random, of exact rank, and degenerate."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from growarray.backend import to_numpy


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def sum_of_products(shape: tuple[int, ...], rank: int) -> np.ndarray:
    """A tensor of CP rank ``rank``."""
    rng = np.random.default_rng(0)
    tensor = np.zeros(shape)
    for _ in range(rank):
        term = np.ones(())
        for n in shape:
            term = np.multiply.outer(term, rng.standard_normal(n))
        tensor += term
    return tensor


def multilinear(shape: tuple[int, ...], rank: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A tensor of Tucker rank ``rank``."""
    rng = np.random.default_rng(seed)
    tensor = rng.standard_normal(rank)
    for k, n in enumerate(shape):
        tensor = np.moveaxis(np.tensordot(rng.standard_normal((n, rank[k])), tensor, (1, k)), 0, k)
    return tensor


def border() -> np.ndarray:
    """a a b + a b a + b a a: rank 3, and as near to rank 2 as one likes (de Silva, Lim 2008)."""
    a, b = np.eye(2)
    return sum(np.einsum("i,j,k->ijk", *v) for v in ((a, a, b), (a, b, a), (b, a, a)))


def relative(found: Any, tensor: np.ndarray) -> float:
    return float(np.linalg.norm(to_numpy(found.reconstruct()) - tensor) / np.linalg.norm(tensor))


def falls(errors: tuple[float, ...]) -> bool:
    return all(new <= old + 1e-14 for old, new in itertools.pairwise(errors))
