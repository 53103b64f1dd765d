"""Dependence of two streams: the Hilbert-Schmidt independence criterion, of samples or from moments that add.

Source: Gretton et al. 2005, *Measuring statistical dependence with Hilbert-Schmidt norms*; normalised it is the
centred kernel alignment of Cortes et al. 2012.
"""

from __future__ import annotations

import math
from typing import Any

from growarray.backend import Array, namespace
from growarray.errors import ShapeError, shown


def _centred_kernel(x: Array, kernel: str, sigma: float | None) -> Array:
    """``H K H`` of the rows of x, K linear, or gaussian with the median of the squared distances as its variance."""
    xp = namespace(x)
    rows = xp.astype(xp.reshape(x, (x.shape[0], -1)), xp.float64, copy=False)
    gram = rows @ xp.matrix_transpose(rows)
    if kernel == "gaussian":
        squares = xp.linalg.diagonal(gram)
        distances = xp.maximum(squares[:, None] + squares[None, :] - 2.0 * gram, xp.zeros_like(gram))
        distances = xp.where(xp.eye(int(rows.shape[0]), device=rows.device) > 0, xp.zeros_like(gram), distances)
        ordered = xp.sort(xp.reshape(distances, (-1,)))
        variance = float(ordered[(ordered.shape[0] - 1) // 2]) + 1e-7 if sigma is None else sigma**2
        gram = xp.exp(-distances / (2.0 * variance))
    return gram - xp.mean(gram, axis=0, keepdims=True) - xp.mean(gram, axis=1, keepdims=True) + xp.mean(gram)


def hsic(x: Array, y: Array, *, kernel: str = "gaussian", sigma: float | None = None, normalize: bool = False) -> float:
    """``tr(K H L H) / (n - 1)^2`` of samples x (n, ...) and y (n, ...): 0 if they are independent.

    kernel : ``'gaussian'``, or ``'linear'`` which measures linear dependence alone, and follows from moments: see
        :func:`linear_dependence`    sigma : width of the gaussian; default the root of the median squared distance
    normalize : divide by the roots of what x and y have with themselves, which makes it 1 at most
    Takes memory of the square of n: give it some samples, not all.

    Raises ValueError for another kernel, ShapeError for fewer than 2 samples, or different numbers of them.

    >>> import numpy as np
    >>> x = np.array([[-1.0], [0.0], [1.0]])
    >>> round(hsic(x, x**2), 3) > 0.0, hsic(x, x**2, kernel="linear")
    (True, 0.0)
    """
    if kernel not in ("gaussian", "linear"):
        raise ValueError(f"hsic: kernel must be 'gaussian' or 'linear', found {shown(kernel)}")
    n = int(x.shape[0])
    if n < 2 or int(y.shape[0]) != n:
        raise ShapeError(f"hsic: {n} and {y.shape[0]} samples, expected the same number of both, at least 2")
    k, other = _centred_kernel(x, kernel, sigma), _centred_kernel(y, kernel, sigma)
    xp = namespace(k, other)

    def product(a: Array, b: Array) -> float:
        return float(xp.sum(a * b)) / (n - 1) ** 2

    scale = math.sqrt(product(k, k) * product(other, other)) if normalize else 1.0
    return product(k, other) / scale if scale else 0.0


def linear_dependence(s: Array, m: Array, e: Array, ones: int | None = None) -> float:
    """Normalised :func:`hsic` with linear kernels, from moments: ``|C_xy|^2 / (|C_xx| |C_yy|)``, from 0 to 1.

    s : (d, d) second moment of x    m : (d, o) x against y    e : (o, o) second moment of y, means or sums alike
    ones : the column of x that is 1 everywhere, by which covariances are centred; None takes the moments as they are
    Moments add, so this takes one pass over the data whatever their number; dependence that is not linear it misses.

    >>> import numpy as np
    >>> linear_dependence(np.eye(1), np.array([[0.5]]), np.eye(1))
    0.25
    """
    xp = namespace(s, m, e)
    if ones is not None:
        count, row, column = s[ones, ones], m[ones, :], s[:, ones]
        s, m, e = (
            matrix - left[:, None] * right[None, :] / count
            for matrix, left, right in ((s, column, column), (m, column, row), (e, row, row))
        )
    square, input_square, gradient_square = (float(xp.sum(matrix**2)) for matrix in (m, s, e))
    return square / math.sqrt(input_square * gradient_square) if input_square * gradient_square > 0.0 else 0.0


def place_dependence(place: Any) -> float:
    """:func:`linear_dependence` of what new neurons at a place would read, and the gradient that they would serve."""
    means = place.means()
    return 0.0 if means.s_prev is None else linear_dependence(means.s_prev(), means.m_prev(), means.e(), means.ones)
