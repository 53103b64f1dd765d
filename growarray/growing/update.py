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
from growarray.growing.rule import TINY, GrowthRule, rule_of

__all__ = [
    "activation_slope",
    "added_neurons",
    "inverse_sqrt",
    "neuron_goal",
    "neuron_slope",
    "optimal_delta",
    "pseudo_inverse",
    "rounding_floor",
    "shrink",
]


_GRAM_FROM = 64  # size from which the leading singular vectors are taken from the Gram matrix


def _square(matrix: Array, name: str) -> Array:
    xp = namespace(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(f"{name} must be a square matrix, found shape {tuple(matrix.shape)}")
    return _finite(xp.astype(matrix, xp.float64, copy=False), name)


def _finite(matrix: Array, name: str) -> Array:
    xp = namespace(matrix)
    if not bool(xp.all(xp.isfinite(matrix))):
        raise GrowthError(f"{name} holds NaN or infinite values; its statistic was updated with a broken batch")
    return xp.astype(matrix, xp.float64, copy=False)


def inverse_sqrt(matrix: Array, threshold: float = 1e-5) -> Array:
    """``M^(-1/2)`` of a symmetric positive semi-definite matrix, on the space of eigenvalues above ``threshold``.

    matrix : (d, d)    Returns (d, d), float64.

    Raises
    ------
    ShapeError, GrowthError
        The matrix is not square, not symmetric (to 1e-5 relative), or holds NaN.

    Examples
    --------
    >>> import numpy as np
    >>> inverse_sqrt(np.diag([4.0, 0.0])).tolist()
    [[0.5, 0.0], [0.0, 0.0]]
    """
    xp = namespace(matrix)
    matrix = _square(matrix, "inverse_sqrt: the matrix")
    scale = float(xp.max(xp.abs(matrix))) if matrix.shape[0] else 0.0
    skew = float(xp.max(xp.abs(matrix - xp.matrix_transpose(matrix)))) if matrix.shape[0] else 0.0
    if skew > 1e-5 * scale:
        raise GrowthError(f"inverse_sqrt: the matrix is not symmetric (largest difference {skew:.2e}); symmetrise it")
    values, vectors = xp.linalg.eigh((matrix + xp.matrix_transpose(matrix)) / 2)
    kept = values > threshold
    factors = xp.where(kept, 1.0 / xp.sqrt(xp.where(kept, values, xp.ones_like(values))), xp.zeros_like(values))
    return (vectors * factors[None, :]) @ xp.matrix_transpose(vectors)


def pseudo_inverse(matrix: Array, floor: float = float(np.finfo(np.float64).eps)) -> Array:
    """Moore-Penrose inverse of a symmetric matrix: eigenvalues under ``d * floor`` of the largest count as zero."""
    xp = namespace(matrix)
    matrix = _square(matrix, "pseudo_inverse: the matrix")
    if matrix.shape[0] == 0:
        return matrix
    values, vectors = xp.linalg.eigh((matrix + xp.matrix_transpose(matrix)) / 2)
    size = xp.abs(values)
    kept = size > matrix.shape[0] * floor * float(xp.max(size))
    factors = xp.where(kept, 1.0 / xp.where(kept, values, xp.ones_like(values)), xp.zeros_like(values))
    return (vectors * factors[None, :]) @ xp.matrix_transpose(vectors)


def _solve(matrix: Array, right: Array, name: str, *, pseudo: bool, floor: float) -> Array:
    """``matrix^-1 right``, by Cholesky's verdict on the rank: a solve where it is full, else the pseudo-inverse."""
    xp = namespace(matrix, right)
    if matrix.shape[0] == 0:
        return right
    if not pseudo:
        if _is_definite(matrix, floor):
            return xp.linalg.solve(matrix, right)
        warnings.warn(
            f"{name} is singular or indefinite: the pseudo-inverse gives the solution of minimum norm",
            UserWarning,
            stacklevel=3,
        )
    return pseudo_inverse(matrix, floor) @ right


def _is_definite(matrix: Array, floor: float = float(np.finfo(np.float64).eps)) -> bool:
    """Whether a symmetric matrix is positive definite to working precision, whatever the scale of its features."""
    xp = namespace(matrix)
    diagonal = xp.linalg.diagonal(matrix)
    if not bool(xp.all(diagonal > 0)):
        return False
    scale = 1.0 / xp.sqrt(diagonal)
    factor = cholesky(matrix * scale[:, None] * scale[None, :])
    if factor is None:
        return False
    pivots = xp.linalg.diagonal(factor)
    return bool(float(xp.min(pivots)) ** 2 > 100 * matrix.shape[0] * floor)


def shrink(e: Array, amount: float) -> Array:
    """Ridge on a second moment: ``(1 - a) E + a tr(E)/o I``; ``amount`` 0 leaves E as it is.

    Raises ValueError where ``amount`` is outside [0, 1].
    """
    if not 0.0 <= amount <= 1.0:
        raise ValueError(f"shrink: the amount must lie in [0, 1], found {amount}")
    xp = namespace(e)
    size = e.shape[0]
    mean = float(xp.linalg.trace(e)) / max(size, 1)
    return (1.0 - amount) * e + amount * mean * xp.eye(size, dtype=e.dtype, device=e.device)


def rounding_floor(features: Array) -> float:
    """What rounding leaves of a second moment where there is nothing, relative to its size, for data like ``features``.

    Moments are float64, but features of single precision that add up to zero do so to 6e-8 each, and their second
    moment to the square of that, which is far above float64's own rounding and must not be inverted.

    >>> import numpy as np
    >>> rounding_floor(np.ones(1, np.float32)) > rounding_floor(np.ones(1)) == float(np.finfo(np.float64).eps)
    True
    """
    return max(float(np.finfo(np.float64).eps), 4.0 * float(namespace(features).finfo(features.dtype).eps) ** 2)


def optimal_delta(
    s: Array,
    m: Array,
    *,
    e: Array | None = None,
    pseudo_inverse: bool = False,
    floor: float = float(np.finfo(np.float64).eps),
) -> tuple[Array, float]:
    """Weight change that best follows the gradient: ``dW = (S^-1 M)^T``, or ``E^-1 M^T S^-1`` with ``e``.

    s : (d, d) second moment of the input    m : (d, o) input against gradient    e : (o, o) gradient or None
    Returns dW (o, d), float64, to be subtracted, and the first-order decrease of the loss, ``tr(M dW)``.

    A singular S (two biased inputs of one merge always make one) is found by its Cholesky pivots and solved by the
    pseudo-inverse with a ``UserWarning``; the original's plain solve may return noise there without a word.
    ``floor`` is the relative size below which S and E are rounding, times d; see :func:`rounding_floor`.
    A decrease that is negative (S is not positive semi-definite) or overflows is computed once more with the
    pseudo-inverse, then the update is zero, with a ``UserWarning``.

    Raises
    ------
    GrowthError
        ``s``, ``m`` or ``e`` holds NaN or infinite values.
    ShapeError
        The shapes do not fit together.

    Source: Verbockhaven et al. 2024, proposition 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> delta, decrease = optimal_delta(np.diag([2.0, 4.0]), np.array([[2.0], [4.0]]))
    >>> delta.tolist(), decrease
    ([[1.0, 1.0]], 6.0)
    """
    xp = namespace(s, m, e)
    s, m = _square(s, "optimal_delta: S"), _finite(m, "optimal_delta: M")
    if m.ndim != 2 or m.shape[0] != s.shape[0]:
        raise ShapeError(f"optimal_delta: S has shape {tuple(s.shape)}, M {tuple(m.shape)}; their rows must agree")
    delta = xp.matrix_transpose(_solve(s, m, "optimal_delta: S", pseudo=pseudo_inverse, floor=floor))
    if e is not None:
        e = _square(e, "optimal_delta: E")
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
    """
    xp = namespace(m_prev, p, delta)
    return -m_prev if p is None or delta is None else -m_prev + p @ xp.matrix_transpose(delta)


def neuron_slope(m_prev: Array, alpha: Array, omega: Array) -> float:
    """``<M_prev, (omega alpha)^T>``: change of the loss by new neurons to first order, for a unit activation slope.

    m_prev : (p, o)    alpha : (k, p) incoming    omega : (o, k) outgoing
    """
    xp = namespace(m_prev, alpha, omega)
    alpha, omega = (xp.astype(a, xp.float64, copy=False) for a in (alpha, omega))
    return float(xp.sum((alpha @ m_prev) * xp.matrix_transpose(omega)))


def added_neurons(
    s: Array | None, n: Array, *, e: Array | None = None, rule: GrowthRule = TINY
) -> tuple[Array, Array, Array]:
    """New neurons that best serve ``n``: ``S^(-1/2) N [E^(-1/2)] = U diag(s) V^T``, cut to what matters.

    s : (p, p) second moment of the incoming side, None for the identity    n : (p, o)    e : (o, o) or None
    Returns alpha (k, p), omega (o, k) and the k singular values, float64, largest first.
    ``alpha = sqrt(s) U^T S^(-1/2)``, ``omega = E^(-1/2) V sqrt(s)``, with sqrt(s) = 1 under ``ignore_singular_values``.

    Kept are singular values ``>= min(statistical_threshold, largest)``, so at least one, at most ``rule.max_new``.
    The sign of a neuron is free; here the largest entry of its outgoing weights is positive, on every library.
    An S that is slightly skew is symmetrised with a ``UserWarning``.

    Raises
    ------
    ShapeError, GrowthError
        Shapes do not fit together, or a matrix holds NaN.
    TypeError
        ``rule`` is no GrowthRule.

    Source: Verbockhaven et al. 2024, proposition 3.2; Evci et al. 2022, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> alpha, omega, values = added_neurons(np.eye(2), np.diag([4.0, 1.0]))
    >>> (omega @ alpha).tolist(), values.tolist()
    ([[4.0, 0.0], [0.0, 1.0]], [4.0, 1.0])
    """
    xp, rule = namespace(s, n, e), rule_of(rule, {})
    n = _finite(n, "added_neurons: N")
    if n.ndim != 2 or (s is not None and s.shape[0] != n.shape[0]) or (e is not None and e.shape[0] != n.shape[1]):
        shapes = [None if a is None else tuple(a.shape) for a in (s, n, e)]
        raise ShapeError(f"added_neurons: S, N, E have shapes {shapes}; expected (p, p), (p, o), (o, o)")
    whitener = None if s is None else _whitener(_symmetric(s, "S"), rule.numerical_threshold)
    target = n if whitener is None else whitener @ n
    dewhitener = None
    if e is not None:
        ridge = rule.fisher_shrinkage
        e = _symmetric(e, "E")
        dewhitener = inverse_sqrt(shrink(e, ridge) if ridge else e, 0.0 if ridge else rule.numerical_threshold)
        target = target @ dewhitener
    u, values, v = _leading(target, rule)
    weight = xp.ones_like(values) if rule.ignore_singular_values else xp.sqrt(values)
    alpha = u if whitener is None else xp.matrix_transpose(whitener) @ u
    alpha, omega = xp.matrix_transpose(alpha * weight[None, :]), v * weight[None, :]
    if dewhitener is not None:
        omega = dewhitener @ omega
    alpha, omega = _fix_signs(alpha, omega)
    if rule.alpha_zero:
        alpha = xp.zeros_like(alpha)
    if rule.omega_zero:
        omega = xp.zeros_like(omega)
    return alpha, omega, values


def _whitener(s: Array, threshold: float) -> Array:
    """W with ``W S W^T = I``: the inverse Cholesky factor, or ``S^(-1/2)`` where eigenvalues may have to be dropped.

    The two differ by a rotation, which the singular vectors undo. ``1 / |L^-1|^2`` is a lower bound of the eigenvalues.
    """
    xp = namespace(s)
    if s.shape[0] and _is_definite(s):
        inverse = xp.linalg.inv(xp.linalg.cholesky(s))
        if 1.0 / float(xp.sum(inverse**2)) > threshold:
            return inverse
    return inverse_sqrt(s, threshold)


def _leading(target: Array, rule: GrowthRule) -> tuple[Array, Array, Array]:
    """Left vectors (p, k), singular values (k,) and right vectors (o, k) that the rule keeps, largest first.

    Few of many come from the Gram matrix of the shorter side, which costs a fraction of all; its squared values are
    exact to 1e-10 down to a thousandth of the largest, and below that all singular values are computed.
    """
    xp = namespace(target)
    short = min(target.shape)
    if rule.max_new is not None and 0 < 4 * rule.max_new <= short and short >= _GRAM_FROM:
        wide = target.shape[0] <= target.shape[1]
        flipped = xp.matrix_transpose(target)
        squares, vectors = xp.linalg.eigh(target @ flipped if wide else flipped @ target)
        values = xp.sqrt(xp.clip(xp.flip(squares[short - rule.max_new :]), 0.0, None))
        if float(values[-1]) > 1e-3 * float(values[0]):
            one = xp.flip(vectors[:, short - rule.max_new :], axis=1)
            other = (flipped if wide else target) @ one / values[None, :]
            count = _kept(values, rule)
            u, v = (one, other) if wide else (other, one)
            return u[:, :count], values[:count], v[:, :count]
    u, values, vh = xp.linalg.svd(target, full_matrices=False)
    count = _kept(values, rule)
    return u[:, :count], values[:count], xp.matrix_transpose(vh[:count, :])


def _kept(values: Array, rule: GrowthRule) -> int:
    """How many singular values, sorted downwards, stay."""
    xp = namespace(values)
    if values.shape[0] == 0:
        return 0
    threshold = min(rule.statistical_threshold, float(values[0]))
    count = int(xp.sum(xp.astype(values >= threshold, xp.int64)))
    return count if rule.max_new is None else min(count, rule.max_new)


def _symmetric(matrix: Array, name: str) -> Array:
    xp = namespace(matrix)
    matrix = _square(matrix, f"added_neurons: {name}")
    skew = float(xp.max(xp.abs(matrix - xp.matrix_transpose(matrix)))) if matrix.shape[0] else 0.0
    if skew > 1e-5 * float(xp.max(xp.abs(matrix))) if matrix.shape[0] else False:
        warnings.warn(
            f"added_neurons: {name} is not symmetric (largest difference {skew:.2e}); its symmetric part is used",
            UserWarning,
            stacklevel=3,
        )
    return (matrix + xp.matrix_transpose(matrix)) / 2


def _fix_signs(alpha: Array, omega: Array) -> tuple[Array, Array]:
    """Make the largest entry of each neuron's outgoing weights positive: the SVD leaves the sign open."""
    xp = namespace(alpha, omega)
    if omega.shape[0] == 0 or omega.shape[1] == 0:
        return alpha, omega
    size = xp.abs(omega)
    first = xp.argmax(xp.astype(size >= (1.0 - 1e-9) * xp.max(size, axis=0), xp.int8), axis=0)  # of equal ones
    places = xp.arange(omega.shape[0], device=omega.device)[:, None]
    value = xp.sum(xp.where(places == first, omega, xp.zeros_like(omega)), axis=0)
    sign = xp.where(value < 0.0, -xp.ones_like(value), xp.ones_like(value))
    return alpha * sign[:, None], omega * sign[None, :]


def activation_slope(function: Any) -> float:
    """Derivative of an activation at zero from above, as the module itself states it; must be finite."""
    slope = float(function.slope_at_zero)
    if not math.isfinite(slope):
        raise GrowthError(f"{type(function).__name__}: slope_at_zero is {slope}; define a finite one")
    return slope
