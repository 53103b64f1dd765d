"""Where CP starts: singular vectors, a generalised eigenvalue problem, and random factors.

All on the compressed tensor. Random numbers are drawn by NumPy, and the eigenvalue problem, which is not symmetric
and no part of the array API, is solved on the host: its matrices are (rank, rank).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from growarray.backend import Array, asarray, to_numpy


def starting_points(core: Array, rank: int, init: str, count: int, rng: np.random.Generator) -> Iterator[list[Array]]:
    """Factors to start from: with init 'svd' the two algebraic ones if they exist, then ``count`` random ones."""
    shape = tuple(core.shape)
    if init == "svd":
        factors = [_padded(np.eye(n, min(n, rank)), rank, rng) for n in shape]
        yield [asarray(f, like=core) for f in factors]
        if sorted(shape)[-2] >= rank:
            yield [asarray(f, like=core) for f in _eigen(to_numpy(core), rank)]
    for _ in range(count):
        yield [asarray(rng.standard_normal((n, rank)) / math.sqrt(n), like=core) for n in shape]


def _padded(factor: np.ndarray, rank: int, rng: np.random.Generator) -> np.ndarray:
    """Random columns if a mode has fewer singular vectors than components."""
    n, columns = factor.shape
    return np.concatenate((factor, rng.standard_normal((n, rank - columns)) / math.sqrt(n)), axis=1)


def _eigen(core: np.ndarray, rank: int) -> list[np.ndarray]:
    """Factors from two slices, exact for a generic tensor of this rank.

    The two largest modes are cut to ``rank`` leading vectors; two leading combinations X, Y of the slices along the
    rest have X = A D B^T and Y = A E B^T, so X Y^-1 has eigenvectors A. Each row of A^-1 T is then of rank one.

    Source: Leurgans, Ross, Abel 1993; Sanchez, Kowalski 1990.
    """
    first, second = sorted(np.argsort([-n for n in core.shape], kind="stable")[:2].tolist())
    others = [k for k in range(core.ndim) if k not in (first, second)]
    unfolded = np.transpose(core, (first, second, *others))[:rank, :rank].reshape(rank * rank, -1)
    _, vectors = np.linalg.eigh(unfolded.T @ unfolded)
    slices = (unfolded @ vectors[:, -2:]).reshape(rank, rank, -1)
    x, y = slices[:, :, -1], slices[:, :, 0]
    _, vectors = np.linalg.eig(y @ np.linalg.pinv(x, rcond=1e-10))  # x is the larger of the two
    a = _real(vectors)
    rows = (np.linalg.pinv(a, rcond=1e-10) @ unfolded.reshape(rank, -1)).reshape(rank, rank, -1)
    factors = [np.zeros((n, rank)) for n in core.shape]
    factors[first][:rank] = a
    for r in range(rank):
        vectors_of_row = _rank_one(rows[r].reshape(rank, *(core.shape[k] for k in others)))
        for k, vector in zip((second, *others), vectors_of_row, strict=True):
            factors[k][: len(vector), r] = vector
    return factors


def _real(vectors: np.ndarray) -> np.ndarray:
    """Real and imaginary parts in place of complex pairs: the same space."""
    if not np.iscomplexobj(vectors):
        return vectors
    paired = np.abs(np.imag(vectors)).max(axis=0) > 0
    second = paired & (np.cumsum(paired) % 2 == 0)  # pairs stand together
    return np.where(second[None, :], np.imag(vectors), np.real(vectors))


def _rank_one(tensor: np.ndarray) -> list[np.ndarray]:
    """Vectors of a rank-one approximation: leading left vectors of each unfolding in turn."""
    vectors = []
    while tensor.ndim > 1:
        matrix = tensor.reshape(tensor.shape[0], -1)
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
        vectors.append(u[:, 0])
        tensor = (s[0] * vh[0]).reshape(tensor.shape[1:])
    return [*vectors, tensor]
