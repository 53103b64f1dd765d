"""The mathematics of growth: free functions, one an equation, always in float64.

S   (d, d)       second moment of a layer's input          E[B^T B]
M   (d, o)       input against the loss gradient           E[B^T dA]
M_prev (p, o)    input of the layer before against dA      E[B_prev^T dA]
P   (p, d)       cross moment of the two inputs            E[B_prev^T B]
E   (o, o)       second moment of the loss gradient        E[dA^T dA]
N   (p, o)       what the best update leaves undone        -M_prev + P dW^T

Sources: Verbockhaven et al. 2024 (TINY), Evci et al. 2022 (GradMax).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from growarray.backend import Array, cholesky, namespace
from growarray.errors import GrowthError, ShapeError

_BLOCK = 64  # rows of a triangle that are inverted at once: 32 take as long, 128 longer


def square(matrix: Array, name: str) -> Array:
    """A matrix as float64, if it is square and finite; else ``ShapeError`` or ``GrowthError`` with its name."""
    xp = namespace(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(f"{name} must be a square matrix, found shape {tuple(matrix.shape)}")
    return finite(xp.astype(matrix, xp.float64, copy=False), name)


def finite(matrix: Array, name: str) -> Array:
    """An array as float64, if it is finite; else ``GrowthError`` with its name."""
    xp = namespace(matrix)
    if not bool(xp.all(xp.isfinite(matrix))):
        raise GrowthError(f"{name} holds NaN or infinite values; its statistic was updated with a broken batch")
    return xp.astype(matrix, xp.float64, copy=False)


def inverse_sqrt(matrix: Array, threshold: float = 1e-5) -> Array:
    """``M^(-1/2)`` of a symmetric positive semi-definite matrix, on the space of eigenvalues above ``threshold``.

    matrix : (d, d)    Returns (d, d), float64.

    Raises ShapeError, GrowthError: the matrix is not square, not symmetric (to 1e-5 relative), or holds NaN.

    >>> import numpy as np
    >>> inverse_sqrt(np.diag([4.0, 0.0])).tolist()
    [[0.5, 0.0], [0.0, 0.0]]
    """
    xp = namespace(matrix)
    matrix = square(matrix, "inverse_sqrt: the matrix")
    scale = float(xp.max(xp.abs(matrix))) if matrix.shape[0] else 0.0
    skew = float(xp.max(xp.abs(matrix - xp.matrix_transpose(matrix)))) if matrix.shape[0] else 0.0
    if skew > 1e-5 * scale:
        raise GrowthError(f"inverse_sqrt: the matrix is not symmetric (largest difference {skew:.2e}); symmetrise it")
    values, vectors = xp.linalg.eigh((matrix + xp.matrix_transpose(matrix)) / 2)
    kept = values > threshold
    factors = xp.where(kept, 1.0 / xp.sqrt(xp.where(kept, values, xp.ones_like(values))), xp.zeros_like(values))
    return (vectors * factors[None, :]) @ xp.matrix_transpose(vectors)


def pseudo_inverse(matrix: Array, floor: float = 0.0) -> Array:
    """Moore-Penrose inverse of a symmetric matrix: eigenvalues under its :func:`resolution` count as zero.

    Directions under ``floor``, or under the precision of a narrow dtype, are found with features scaled alike and taken
    off first, so that small features beside large ones are not lost.
    """
    return _inverse(matrix, floor)[0]


_EPS = float(np.finfo(np.float64).eps)


def resolution(matrix: Array, floor: float = 0.0) -> float:
    """Relative size below which a matrix (d, d) holds rounding: d times its precision, and at least ``floor``."""
    xp = namespace(matrix)
    dtype = matrix.dtype if xp.isdtype(matrix.dtype, "real floating") else xp.float64
    return float(max(matrix.shape[0] * float(xp.finfo(dtype).eps), floor))


def alike(matrix: Array) -> tuple[Array, Array]:
    """A float64 matrix (d, d) with features scaled to a diagonal of ones, and the scales (d,), by which it is divided.

    A feature that is as good as zero beside the largest one stays so.
    """
    xp = namespace(matrix)
    diagonal = xp.abs(xp.linalg.diagonal(matrix))
    largest = float(xp.max(diagonal)) or 1.0
    root = xp.sqrt(xp.where(diagonal > _EPS**2 * largest, diagonal, xp.full_like(diagonal, largest)))
    return (matrix + xp.matrix_transpose(matrix)) / 2 / root[:, None] / root[None, :], root


def without_rounding(matrix: Array, limit: float) -> Array:
    """A symmetric float64 matrix without directions under ``limit`` of the largest, judged with features alike."""
    xp = namespace(matrix)
    if matrix.shape[0] == 0 or limit <= matrix.shape[0] * _EPS:
        return matrix
    scaled, root = alike(matrix)
    values, vectors = xp.linalg.eigh(scaled)
    size = xp.abs(values)
    kept = xp.where(size > limit * float(xp.max(size)), values, xp.zeros_like(values))
    rows = vectors * root[:, None]
    return (rows * kept[None, :]) @ xp.matrix_transpose(rows)


def _inverse(matrix: Array, floor: float) -> tuple[Array, bool]:
    """The pseudo-inverse, and whether the matrix is positive definite."""
    xp, limit = namespace(matrix), resolution(matrix, floor)
    matrix = square(matrix, "pseudo_inverse: the matrix")
    if matrix.shape[0] == 0:
        return matrix, True
    matrix = without_rounding((matrix + xp.matrix_transpose(matrix)) / 2, limit)
    values, vectors = xp.linalg.eigh(matrix)
    size = xp.abs(values)
    kept = size > matrix.shape[0] * _EPS * float(xp.max(size))
    factors = xp.where(kept, 1.0 / xp.where(kept, values, xp.ones_like(values)), xp.zeros_like(values))
    inverse = (vectors * factors[None, :]) @ xp.matrix_transpose(vectors)
    return inverse, bool(xp.all(kept & (values > 0.0)))


def _solve(matrix: Array, right: Array, name: str, *, pseudo: bool, floor: float) -> Array:
    """``matrix^-1 right`` by a Cholesky factor if that finds full rank, else by the pseudo-inverse."""
    square(matrix, name)
    if matrix.shape[0] == 0:
        return right
    scale, factor = definite_factor(matrix, floor)
    if factor is not None and not pseudo:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows shows in the decrease
            found = triangular_solve(factor, scale[:, None] * right)
            return scale[:, None] * triangular_solve(factor, found, transposed=True)
    inverse, definite = _inverse(matrix, floor)
    if not pseudo and not definite:
        warnings.warn(
            f"{name} is singular or indefinite: the pseudo-inverse gives the solution of minimum norm",
            UserWarning,
            stacklevel=3,
        )
    return inverse @ right


def definite_factor(matrix: Array, floor: float = 0.0) -> tuple[Array, Array | None]:
    """``scale`` (d,) and the lower Cholesky factor of ``scale[:, None] * matrix * scale``, whose diagonal is 1.

    The factor is None if the matrix is not positive definite to working precision, whatever the scale of its features.

    >>> scale, factor = definite_factor(np.diag([4.0, 2.0**-40]))
    >>> scale.tolist(), factor.tolist()
    ([0.5, 1048576.0], [[1.0, 0.0], [0.0, 1.0]])
    """
    xp, limit = namespace(matrix), resolution(matrix, floor)
    matrix = xp.astype(matrix, xp.float64, copy=False)
    diagonal = xp.linalg.diagonal(matrix)
    if matrix.shape[0] == 0 or not bool(xp.all(diagonal > 0)):
        return diagonal, None
    scale = 1.0 / xp.sqrt(diagonal)
    factor = cholesky(matrix * scale[:, None] * scale[None, :])
    if factor is not None:
        pivot = float(xp.min(xp.linalg.diagonal(factor)))
        factor = factor if pivot**2 > 100 * limit else None
    return scale, factor


def triangular_solve(factor: Array, right: Array, *, transposed: bool = False) -> Array:
    """``factor^-1 right``, or ``factor^-T right``, for a lower triangle (d, d) and (d, r), mostly by products.

    Halving down to blocks that are inverted takes half as long as the array API's solve, which knows no triangles.

    >>> triangular_solve(np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([[2.0], [3.0]])).tolist()
    [[1.0], [2.0]]
    """
    xp, size = namespace(factor, right), factor.shape[0]
    if size <= _BLOCK:
        return xp.linalg.inv(factor.T if transposed else factor) @ right
    half = size // 2
    first, below, last = factor[:half, :half], factor[half:, :half], factor[half:, half:]
    if transposed:
        bottom = triangular_solve(last, right[half:, :], transposed=True)
        top = triangular_solve(first, right[:half, :] - below.T @ bottom, transposed=True)
    else:
        top = triangular_solve(first, right[:half, :])
        bottom = triangular_solve(last, right[half:, :] - below @ top)
    return xp.concat([top, bottom], axis=0)


def shrink(e: Array, amount: float) -> Array:
    """Ridge on a second moment: ``(1 - a) E + a tr(E)/o I``; ``amount`` 0 leaves E as it is.

    Raises ValueError if ``amount`` is outside [0, 1].
    """
    if not 0.0 <= amount <= 1.0:
        raise ValueError(f"shrink: the amount must lie in [0, 1], found {amount}")
    xp = namespace(e)
    size = e.shape[0]
    mean = float(xp.linalg.trace(e)) / max(size, 1)
    return (1.0 - amount) * e + amount * mean * xp.eye(size, dtype=e.dtype, device=e.device)


def rounding_floor(features: Array) -> float:
    """What rounding leaves of a second moment that should be zero, relative to its size, for data like ``features``.

    Moments are float64, but large products of single precision are made in it, see
    :func:`growarray.contraction.kernels.row_products`, to 1e-6 of the largest entry. And features that add up to zero
    do so to a rounding each; their second moment to the square of that, which in half precision is more.

    >>> import numpy as np
    >>> [f"{rounding_floor(np.ones(1, dtype)):.0e}" for dtype in (np.float64, np.float32, np.float16)]
    ['2e-16', '1e-06', '4e-06']
    """
    wide, single = (float(np.finfo(dtype).eps) for dtype in (np.float64, np.float32))
    eps = float(namespace(features).finfo(features.dtype).eps)
    return wide if eps <= wide else max(8.0 * single, 4.0 * eps**2)


def optimal_delta(
    s: Array,
    m: Array,
    *,
    e: Array | None = None,
    pseudo_inverse: bool = False,
    floor: float = 0.0,
) -> tuple[Array, float]:
    """Weight change that best follows the gradient: ``dW = (S^-1 M)^T``, or ``E^-1 M^T S^-1`` with ``e``.

    s : (d, d) second moment of the input    m : (d, o) input against gradient    e : (o, o) gradient or None
    Returns dW (o, d), float64, to be subtracted, and the first-order decrease of the loss, ``tr(M dW)``.

    A singular S (two biased inputs of one merge always make one) is found by its Cholesky pivots and solved by the
    pseudo-inverse with a ``UserWarning``; the original's plain solve may return noise there without a word.
    ``floor`` is the relative size below which S and E are rounding, see :func:`rounding_floor`; it is at least d times
    the precision of their dtype.
    A decrease that is negative (S is not positive semi-definite) or overflows is computed once more with the
    pseudo-inverse, then the update is zero, with a ``UserWarning``.

    Raises GrowthError: ``s``, ``m`` or ``e`` holds NaN or infinite values; ShapeError: the shapes do not fit together.

    Source: Verbockhaven et al. 2024, proposition 3.1.

    >>> import numpy as np
    >>> delta, decrease = optimal_delta(np.diag([1.0, 4.0]), np.array([[1.0], [4.0]]))
    >>> delta.tolist(), decrease
    ([[1.0, 1.0]], 5.0)
    """
    xp = namespace(s, m, e)
    square(s, "optimal_delta: S")
    m = finite(m, "optimal_delta: M")
    if m.ndim != 2 or m.shape[0] != s.shape[0]:
        raise ShapeError(f"optimal_delta: S has shape {tuple(s.shape)}, M {tuple(m.shape)}; their rows must agree")
    delta = xp.matrix_transpose(_solve(s, m, "optimal_delta: S", pseudo=pseudo_inverse, floor=floor))
    if e is not None:
        square(e, "optimal_delta: E")
        if e.shape[0] != m.shape[1]:
            raise ShapeError(f"optimal_delta: E has shape {tuple(e.shape)}, M {tuple(m.shape)}; o must agree")
        delta = _solve(e, delta, "optimal_delta: E", pseudo=pseudo_inverse, floor=floor)
    decrease = float(xp.sum(m * xp.matrix_transpose(delta)))
    if not 0.0 <= decrease < math.inf:
        if not pseudo_inverse:
            return optimal_delta(s, m, e=e, pseudo_inverse=True, floor=floor)
        warnings.warn(
            f"optimal_delta: the first-order decrease is {decrease:.3e}, so S is not positive semi-definite, or its "
            "inverse overflows; the update is set to zero",
            UserWarning,
            stacklevel=2,
        )
        return xp.zeros_like(delta), 0.0
    return delta, decrease


def neuron_goal(m_prev: Array, p: Array | None = None, delta: Array | None = None) -> Array:
    """``N = -M_prev + P dW^T``: what the update of the layer leaves undone, seen from the layer before.

    m_prev : (p, o)    p : (p, d)    delta : (o, d); without the last two, nothing is projected off (GradMax).
    If a kernel reads the layer before tap by tap: m_prev (p, o * taps), p (taps, p, d), N (p, o * taps).
    """
    xp = namespace(m_prev, p, delta)
    if p is None or delta is None:
        return -m_prev
    taken = p @ xp.matrix_transpose(delta)
    if p.ndim > 2:
        taken = xp.reshape(xp.permute_dims(taken, (1, 2, 0)), m_prev.shape)
    return taken - m_prev


def neuron_slopes(m_prev: Array, alpha: Array, omega: Array) -> Array:
    """``-<M_prev, (omega alpha)^T>``, neuron by neuron (k,): first-order decrease of the loss behind a slope of 1.

    m_prev : (p, o)    alpha : (k, p) incoming    omega : (o, k) outgoing

    >>> import numpy as np
    >>> neuron_slopes(np.eye(2), -np.eye(2), np.eye(2)).tolist()
    [1.0, 1.0]
    """
    xp = namespace(m_prev, alpha, omega)
    return -xp.sum((alpha @ m_prev) * xp.matrix_transpose(omega), axis=1)


def activation_slope(function: Any) -> float:
    """Derivative of an activation at zero from above, as the module itself states it; must be finite."""
    slope = float(function.slope_at_zero)
    if not math.isfinite(slope):
        raise GrowthError(f"{type(function).__name__}: slope_at_zero is {slope}; define a finite one")
    return slope
