"""Unfoldings, products along one mode, and the leading left vectors of an unfolding.

m rows of an unfolding · n its columns, as a rule many more · k vectors kept
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from growarray.backend import Array, asarray, is_numpy, namespace, to_numpy
from growarray.contraction.blas import single_threaded

_T = TypeVar("_T")

_EPS = float(np.finfo(np.float64).eps)
_BLOCK = 1 << 22  # entries of an unfolding that are brought to triangular form at a time: 32 MiB


def fitting_threads(tensor: Array, body: Callable[[], _T]) -> _T:
    """``body()`` with one thread for the many small products and eigenproblems of a small tensor: more cost more."""
    return single_threaded(body) if is_numpy(tensor) and tensor.size < 1 << 20 else body()


def norm(tensor: Array) -> float:
    """Frobenius norm."""
    flat = namespace(tensor).reshape(tensor, (-1,))
    return math.sqrt(float(flat @ flat))


def unfold(tensor: Array, mode: int) -> Array:
    """The mode-``mode`` unfolding, (size, all other modes in order); a view if the mode comes first."""
    xp = namespace(tensor)
    order = (mode, *(i for i in range(tensor.ndim) if i != mode))
    return xp.reshape(tensor if mode == 0 else xp.permute_dims(tensor, order), (tensor.shape[mode], -1))


def mode_product(tensor: Array, matrix: Array, mode: int) -> Array:
    """``tensor x_mode matrix``: matrix (p, size) along one mode of the tensor, whose size becomes p."""
    xp = namespace(tensor, matrix)
    shape = tuple(tensor.shape)
    before, after = math.prod(shape[:mode]), math.prod(shape[mode + 1 :])
    new_shape = (*shape[:mode], matrix.shape[0], *shape[mode + 1 :])
    if after == 1:
        product = xp.reshape(tensor, (before, shape[mode])) @ xp.matrix_transpose(matrix)
    elif before == 1 or after >= 16:
        product = matrix @ xp.reshape(tensor, (before, shape[mode], after))
    else:  # many tiny products: one large one on a transposed copy is faster
        transposed = xp.permute_dims(xp.reshape(tensor, (before, shape[mode], after)), (0, 2, 1))
        flat = xp.reshape(transposed, (before * after, shape[mode])) @ xp.matrix_transpose(matrix)
        product = xp.permute_dims(xp.reshape(flat, (before, after, matrix.shape[0])), (0, 2, 1))
    return xp.reshape(product, new_shape)


def multi_product(tensor: Array, matrices: Sequence[Array | None]) -> Array:
    """Products along all modes that have a matrix, those that shrink the tensor most first."""
    todo = [(m.shape[0] / m.shape[1], k) for k, m in enumerate(matrices) if m is not None]
    for _, k in sorted(todo):
        tensor = mode_product(tensor, matrices[k], k)
    return tensor


def distance(tensor: Array, core: Array, factors: Sequence[Array | None]) -> float:
    """Norm of the tensor less the core times its factors, a slab of the first mode at a time."""
    xp = namespace(tensor, core)
    rest = core
    for k in range(tensor.ndim - 1, 0, -1):
        rest = rest if factors[k] is None else mode_product(rest, factors[k], k)
    if factors[0] is None:
        return norm(tensor - rest)
    flat, target = xp.reshape(rest, (rest.shape[0], -1)), xp.reshape(tensor, (tensor.shape[0], -1))
    rows = max(1, _BLOCK // target.shape[1])
    total = 0.0
    for start in range(0, target.shape[0], rows):
        slab = slice(start, min(start + rows, target.shape[0]))
        total += norm(target[slab, :] - factors[0][slab, :] @ flat) ** 2
    return math.sqrt(total)


def fewest(values: np.ndarray, tail: float) -> int:
    """The fewest singular values, at least one, whose discarded rest has a norm of at most ``tail``.

    >>> fewest(np.array([2.0, 1.0, 0.5]), 1.2)
    1
    """
    rest = np.sqrt(np.cumsum(values[::-1] ** 2))[::-1]  # rest[k]: norm of what is lost when k are kept
    return max(1, int(np.sum(rest > tail)))


def leading(matrix: Array, keep: int | float) -> tuple[Array, np.ndarray]:
    """Leading left singular vectors (m, k) and all singular values (on the host), largest first.

    keep : k itself, or as a float the norm that what is cut off may have

    A matrix is not decomposed itself: the Gram matrix of its shorter side is. Squaring costs half the digits: if
    that would show beside the truncation, the triangular factor of the longer side is decomposed in place of it.
    """
    xp = namespace(matrix)
    m, n = matrix.shape
    if m > n:
        return _leading_of_tall(matrix, keep)
    squares, vectors = xp.linalg.eigh(matrix @ xp.matrix_transpose(matrix))
    values = _roots(squares)
    k = _count(values, keep)
    if _gram_suffices(values, k):
        return xp.flip(vectors, axis=1)[:, :k], values
    _, s, vh = xp.linalg.svd(_triangle(matrix), full_matrices=False)
    values = to_numpy(s)
    return xp.matrix_transpose(vh)[:, : _count(values, keep)], values


def _leading_of_tall(matrix: Array, keep: int | float) -> tuple[Array, np.ndarray]:
    """The same with more rows than columns: u = A v / s if that is accurate, else QR first."""
    xp = namespace(matrix)
    n = matrix.shape[1]
    squares, vectors = xp.linalg.eigh(xp.matrix_transpose(matrix) @ matrix)
    values = _roots(squares)
    k = _count(values, keep)
    if k <= n and values[k - 1] > 1e-3 * values[0] and _gram_suffices(values, k):
        basis = matrix @ (xp.flip(vectors, axis=1)[:, :k] / asarray(values[:k], like=matrix)[None, :])
        gram = xp.matrix_transpose(basis) @ basis  # the identity to 1e-10: one Newton step makes it so to rounding
        return 1.5 * basis - 0.5 * (basis @ gram), values
    q, r = xp.linalg.qr(matrix, mode="reduced")
    u, s, _ = xp.linalg.svd(r, full_matrices=False)
    values = to_numpy(s)
    k = _count(values, keep)
    # more vectors than columns: the rest is any completion of the basis
    return (_completed(q @ u, k) if k > n else q @ u[:, :k]), values


def _roots(squares: Array) -> np.ndarray:
    """Singular values, largest first, from the eigenvalues of a Gram matrix."""
    values: np.ndarray = np.sqrt(np.maximum(to_numpy(squares)[::-1], 0.0))
    return values


def _count(values: np.ndarray, keep: int | float) -> int:
    return keep if isinstance(keep, int) else fewest(values, keep)


def improved(matrix: Array, basis: Array) -> Array:
    """An orthonormal basis (m, k) that catches at least as much of the matrix (m, n) as ``basis`` does.

    The best one if that is cheap; for few of many vectors two steps of orthogonal iteration, which never lose
    (the Gram matrix is positive semi-definite), at a fraction of the cost of a full eigenproblem.
    """
    xp = namespace(matrix, basis)
    m, k = basis.shape
    if 4 * k > min(m, matrix.shape[1]) or m <= 64:
        return leading(matrix, k)[0]
    for _ in range(2):
        basis = xp.linalg.qr(matrix @ (xp.matrix_transpose(matrix) @ basis), mode="reduced")[0]
    return basis


def _gram_suffices(values: np.ndarray, keep: int) -> bool:
    """Whether the vectors of the Gram matrix lose nothing that shows: eps s_1^2 / s_k, against what is cut off."""
    norm = float(np.linalg.norm(values))
    if norm == 0.0:
        return True
    smallest = max(float(values[keep - 1]), math.sqrt(_EPS) * float(values[0]))
    loss = _EPS * float(values[0]) ** 2 / smallest
    cut = float(np.linalg.norm(values[keep:]))
    noise = math.sqrt(_EPS * len(values)) * float(values[0])  # below it, a value of the Gram matrix is not known
    return loss <= 1e-13 * norm or (cut > 10 * noise and loss <= 1e-3 * cut)


def _triangle(matrix: Array) -> Array:
    """R (m, m) with ``R^T R = A A^T`` for a wide A, by QR of blocks of columns, so that memory stays bounded."""
    xp = namespace(matrix)
    m, n = matrix.shape
    step = max(2 * m, _BLOCK // m)
    triangle = None
    for start in range(0, n, step):
        rows = xp.matrix_transpose(matrix[:, start : min(start + step, n)])
        rows = rows if triangle is None else xp.concat((triangle, rows), axis=0)
        triangle = xp.linalg.qr(rows, mode="reduced")[1]
    return triangle


def _completed(basis: Array, columns: int) -> Array:
    """An orthonormal basis (m, k) extended to ``columns`` columns."""
    xp = namespace(basis)
    m, k = basis.shape
    start = asarray(np.random.default_rng(0).standard_normal((m, columns - k)), like=basis)
    for _ in range(2):  # twice is enough (Kahan, Parlett)
        start = start - basis @ (xp.matrix_transpose(basis) @ start)
        start = xp.linalg.qr(start, mode="reduced")[0]
    return xp.concat((basis, start), axis=1)
