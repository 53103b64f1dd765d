"""Rank by variational Bayes: how many singular values stand out of the noise, without any tuning.

L rows, M columns, L <= M · g_h singular values · s2 variance of the noise · alpha = L / M
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from growarray.backend import Array, load
from growarray.decompose.arguments import check_modes, is_real
from growarray.decompose.inputs import check_bound, check_tensor, prepare
from growarray.decompose.unfolding import fewest, fitting_threads, leading, unfold
from growarray.errors import ShapeError, shown


@dataclass(frozen=True)
class VBMF:
    """Rank, the shrunk singular values that stand out (on the host), and the estimated variance of the noise."""

    rank: int
    values: np.ndarray
    noise: float


def vbmf(matrix: Array, noise: float | None = None) -> VBMF:
    """Global analytic solution of empirical variational Bayes matrix factorization.

    matrix : (L, M), real floating    noise : variance of the noise, estimated if None
    A rank of 0 says that nothing stands out of the noise.

    Raises TypeError, ShapeError, ValueError: the matrix is not real floating, not of order 2, not finite; the noise is
    not positive.

    Source: Nakajima, Sugiyama, Babacan, Tomioka 2013, Global analytic solution of fully-observed variational Bayesian
    matrix factorization, JMLR 14 (shrinkage, threshold and the free energy as a function of the noise).

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> planted = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 60))
    >>> vbmf(planted + 0.1 * rng.standard_normal((40, 60))).rank
    3
    """
    shape = check_tensor(matrix, "vbmf")
    if len(shape) != 2:
        raise ShapeError(f"vbmf: expected a matrix, found shape {shape}; unfold the tensor first")
    if noise is not None and not (is_real(noise) and 0.0 < noise < math.inf):
        raise ValueError(f"vbmf: expected the variance of the noise above 0, found {shown(noise)}")
    ready = prepare(matrix, "vbmf")
    array = ready.array if matrix.shape[0] <= matrix.shape[1] else ready.xp.matrix_transpose(ready.array)
    _, values = fitting_threads(array, lambda: leading(array, int(array.shape[0])))
    rows, columns = (int(n) for n in array.shape)
    if ready.norm == 0.0:
        return VBMF(0, np.zeros(0), 0.0)
    # step by step: the square of the scale may overflow, or vanish
    variance = _noise(values, rows, columns) if noise is None else float(noise) / ready.scale / ready.scale
    _, threshold = _threshold(rows / columns)
    rank = int(np.sum(values > math.sqrt(columns * variance * threshold)))
    if not rank:
        return VBMF(0, np.zeros(0), variance * ready.scale * ready.scale)
    signal = values[:rank]
    inner = 1.0 - (rows + columns) * variance / signal**2
    shrunk = signal / 2 * (inner + np.sqrt(inner**2 - 4.0 * rows * columns * variance**2 / signal**4))
    return VBMF(rank, shrunk * ready.scale, variance * ready.scale * ready.scale)


def _threshold(alpha: float) -> tuple[float, float]:
    """tau and x = g^2 / (M s2) above which a singular value is signal; tau by the paper's fit."""
    tau = 2.5129 * math.sqrt(alpha)
    return tau, (1.0 + tau) * (1.0 + alpha / tau)


def _noise(values: np.ndarray, rows: int, columns: int) -> float:
    """The variance that minimises the free energy: a scan of its interval, then a bounded search."""
    alpha = rows / columns
    _, threshold = _threshold(alpha)
    squares = values**2
    most = max(min(math.ceil(rows / (1.0 + alpha)) - 1, rows - 1), 0)
    high = float(np.sum(squares)) / (rows * columns)
    rest = squares[most:]
    low = max(float(rest[0]) / (columns * threshold), float(np.mean(rest)) / columns, 1e-16 * high)
    if low >= high:
        return high

    def energy(log_variance: float) -> float:
        return _free_energy(squares / (columns * math.exp(log_variance)), alpha, threshold)

    grid = np.linspace(math.log(low), math.log(high), 200)
    best = int(np.argmin([energy(v) for v in grid]))
    bounds = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 199)]))
    minimum = load("scipy.optimize").minimize_scalar(energy, bounds=bounds, method="bounded")
    return math.exp(float(minimum.x))


def _free_energy(x: np.ndarray, alpha: float, threshold: float) -> float:
    """Sum of ``x - log x``, plus ``log(tau + 1) + alpha log(tau / alpha + 1) - tau`` above the threshold."""
    x = np.maximum(x, 1e-300)
    total = float(np.sum(x - np.log(x)))
    y = x[x > threshold]
    t = 0.5 * (y - (1.0 + alpha) + np.sqrt((y - (1.0 + alpha)) ** 2 - 4.0 * alpha))
    return total + float(np.sum(np.log(t + 1.0) + alpha * np.log(t / alpha + 1.0) - t))


def vbmf_rank(tensor: Array, *, modes: Sequence[int] = (0, 1), fallback: float = 0.5) -> tuple[int, ...]:
    """Tucker ranks of some modes by :func:`vbmf` of their unfoldings; at least 1 each.

    tensor : any shape    modes : as in ``tucker(..., modes=)``
    fallback : if nothing stands out of the noise, as in barely trained layers, the rank is the least
        whose discarded singular values hold at most this share of the unfolding's norm

    Raises TypeError, ShapeError, ValueError: as :func:`vbmf`; the modes are not different axes; the fallback is not in
    [0, 1).

    Source: Kim, Park, Yoo, Choi, Yang, Shin 2016, Compression of deep CNNs (Tucker-2 ranks by VBMF).

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> vbmf_rank(rng.standard_normal((20, 30, 3, 3)), fallback=0.8)  # noise only: the fallback decides
    (6, 7)
    """
    check_bound(fallback, "vbmf_rank", "fallback")
    order = len(check_tensor(tensor, "vbmf_rank"))
    ranks = []
    for mode in check_modes(modes, order, "vbmf_rank"):
        matrix = unfold(tensor, mode)
        rank = vbmf(matrix).rank
        if rank == 0:
            ready = prepare(matrix, "vbmf_rank")
            values = leading(ready.array, 1)[1]
            rank = fewest(values, fallback * ready.norm)
        ranks.append(rank)
    return tuple(ranks)
