"""Rules: from the statistics of a place to the planned change, and the neurons that it adds.

A rule is anything with ``plan(statistics) -> GrowthUpdate``; :class:`GrowthRule` is the library's own, with presets.
Sources: Verbockhaven et al. 2024 (TINY), Evci et al. 2022 (GradMax).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from growarray.backend import Array, namespace
from growarray.contraction.checks import is_whole
from growarray.errors import ShapeError, shown
from growarray.growing.change import GrowthUpdate
from growarray.growing.update import (
    definite_factor,
    finite,
    inverse_sqrt,
    neuron_goal,
    neuron_slopes,
    optimal_delta,
    resolution,
    shrink,
    square,
    triangular_solve,
    without_rounding,
)

_SQUARED = 1e-200  # second moments above it can be inverted and squared
_GRAM_FROM = 64  # size from which the leading singular vectors are taken from the Gram matrix
Mean = Callable[[], Array]


@dataclass(frozen=True)
class LayerMeans:
    """Statistics of a layer that reads a place. Each is a function, so that only what a rule asks for is computed.

    s : (d, d)    m : (d, o)    e : (o, o)    m_prev : (p, o)    p : (p, d); see :mod:`growarray.growing.update`
    floor : what rounding leaves of S, relative to its size    pseudo_inverse : solve with it, whatever the rank of S
    """

    s: Mean
    m: Mean
    e: Mean
    m_prev: Mean
    p: Mean
    floor: float = 0.0
    pseudo_inverse: bool = False

    def optimal_delta(self, *, fisher: bool = False, shrinkage: float = 0.0) -> tuple[Array, float]:
        """The optimal delta (o, d) and its first-order decrease; ``fisher`` takes E in, with this ridge."""
        e = shrink(self.e(), shrinkage) if fisher else None
        return optimal_delta(self.s(), self.m(), e=e, pseudo_inverse=self.pseudo_inverse, floor=self.floor)


@dataclass(frozen=True)
class PlaceMeans:
    """Statistics of a place, from which a rule plans.

    layers : of each layer that reads it    e : (o, o) over the outputs of all of them, side by side
    s_prev : (p, p) second moment of what new neurons would read; None if no neurons can be added
    ones : a column of what they would read that is 1 everywhere, None if there is none
    """

    layers: tuple[LayerMeans, ...]
    e: Mean
    s_prev: Mean | None = None
    ones: int | None = None

    def m_prev(self) -> Array:
        """M_prev of all layers side by side, (p, o)."""
        blocks = [layer.m_prev() for layer in self.layers]
        return blocks[0] if len(blocks) == 1 else namespace(*blocks).concat(blocks, axis=1)


class _Solved(NamedTuple):
    """The optimal delta of a layer, its decrease, and the delta that new neurons leave to it; None if not needed."""

    solution: Array | None
    decrease: float
    projected: Array | None


class Rule(Protocol):
    """Plans a change from statistics; any class with this method is a rule."""

    def plan(self, statistics: PlaceMeans) -> GrowthUpdate[Array]:
        """The planned change as matrices: deltas, input and output extension, and singular values."""


@dataclass(frozen=True)
class GrowthRule:
    """How updates and new neurons are computed; ``dataclasses.replace(TINY, max_new=8)`` makes a variant.

    compute_delta : also update the weights that exist
    use_covariance : whiten the incoming side by S_prev, else the identity
    use_projection : take off what the update of existing weights already does, else N = -M_prev
    use_fisher : whiten the outgoing side by E;  fisher_shrinkage : ridge on E, see :func:`shrink`
    project_with_fisher : take off the preconditioned delta, as the original does; its scale is not that of M_prev, so
        the neurons may raise the loss. False takes off the plain delta, which is what the whitened problem asks for
    alpha_zero, omega_zero : start the incoming or outgoing weights at zero
    ignore_singular_values : unit singular values in the weights; the improvement is then linear in them
    max_new : most neurons to add, None for all that pass ``statistical_threshold``
    numerical_threshold : eigenvalues of S_prev and E at or below it count as zero
    statistical_threshold : singular values under it are dropped, save the largest
    """

    compute_delta: bool = True
    use_covariance: bool = True
    use_projection: bool = True
    use_fisher: bool = False
    fisher_shrinkage: float = 0.0
    project_with_fisher: bool = True
    alpha_zero: bool = False
    omega_zero: bool = False
    ignore_singular_values: bool = False
    max_new: int | None = None
    numerical_threshold: float = 1e-6
    statistical_threshold: float = 1e-3

    def __post_init__(self) -> None:
        if self.max_new is not None and not is_whole(self.max_new):
            raise ValueError(f"GrowthRule: max_new must be None or a whole number, found {shown(self.max_new)}")
        if self.max_new is not None and self.max_new < 0:
            raise ValueError(f"GrowthRule: max_new must be None or at least 0, found {self.max_new}")
        for name, value in vars(self).items():
            if isinstance(GrowthRule.__dataclass_fields__[name].default, bool) and not isinstance(
                value, bool | np.bool_
            ):
                raise TypeError(f"GrowthRule: {name} must be True or False, found {shown(value)}")
        for name in ("numerical_threshold", "statistical_threshold"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"GrowthRule: {name} must be finite and at least 0, found {getattr(self, name)}")
        if not 0.0 <= self.fisher_shrinkage <= 1.0:
            raise ValueError(f"GrowthRule: fisher_shrinkage must lie in [0, 1], found {self.fisher_shrinkage}")

    def plan(self, statistics: PlaceMeans) -> GrowthUpdate[Array]:
        """Deltas of the layers, and new neurons for what these leave undone."""
        grows = statistics.s_prev is not None
        solved = [self._solved(layer, grows) for layer in statistics.layers]
        solutions = tuple(delta.solution for delta in solved if delta.solution is not None)
        deltas = solutions if self.compute_delta else ()
        decreases = tuple(delta.decrease if self.compute_delta else 0.0 for delta in solved)
        if statistics.s_prev is None:
            return GrowthUpdate(deltas, solutions=solutions, decreases=decreases)
        goals = [
            neuron_goal(layer.m_prev(), None if delta.projected is None else layer.p(), delta.projected)
            for layer, delta in zip(statistics.layers, solved, strict=True)
        ]
        alpha, omega, values = added_neurons(
            statistics.s_prev() if self.use_covariance else None,
            goals[0] if len(goals) == 1 else namespace(*goals).concat(goals, axis=1),
            e=statistics.e() if self.use_fisher else None,
            rule=self,
            floor=max((layer.floor for layer in statistics.layers), default=0.0),
        )
        return GrowthUpdate(deltas, omega, alpha, values, self.ignore_singular_values, solutions, decreases)

    def _solved(self, layer: LayerMeans, grows: bool) -> _Solved:
        projects = grows and self.use_projection
        plain, solution, decrease = None, None, 0.0
        if projects and self.use_fisher and not self.project_with_fisher:
            plain = solution = layer.optimal_delta()[0]
        if self.compute_delta or (projects and plain is None):
            solution, decrease = layer.optimal_delta(fisher=self.use_fisher, shrinkage=self.fisher_shrinkage)
        projected = solution if plain is None else plain
        return _Solved(solution, decrease, projected if projects else None)


def rule_of(rule: Any, options: Mapping[str, Any]) -> Rule:
    """``rule`` with single options replaced, under their own names or the original's ``maximum_added_neurons``.

    Options are those of a :class:`GrowthRule`; a rule of another class takes none.
    """
    if not isinstance(rule, GrowthRule):
        if not callable(getattr(type(rule), "plan", None)) or options:
            raise _no_rule(rule)
        return cast(Rule, rule)
    options = {"max_new" if key == "maximum_added_neurons" else key: value for key, value in options.items()}
    unknown = set(options) - set(vars(rule))
    if unknown:
        hint = "; updates are always float64" if "dtype" in unknown else ""
        raise TypeError(f"unknown growth options {sorted(unknown)}; known: {sorted(vars(rule))}{hint}")
    return GrowthRule(**{**vars(rule), **options})


def _no_rule(value: Any) -> TypeError:
    return TypeError(f"rule: expected a GrowthRule such as TINY, found {shown(value)}; pass single options by name")


def planned(rule: Rule, statistics: PlaceMeans) -> GrowthUpdate[Array]:
    """The plan of ``rule``; its first-order decrease is filled in if the rule leaves it out.

    Raises TypeError or ShapeError if what a rule of one's own returns is no update, or not one for these layers.
    """
    update, layers = rule.plan(statistics), statistics.layers
    if not isinstance(update, GrowthUpdate):
        raise TypeError(f"{type(rule).__name__}.plan: found {shown(update)}, expected a GrowthUpdate")
    if update.deltas and len(update.deltas) != len(layers):
        raise ShapeError(
            f"{type(rule).__name__}.plan: found {len(update.deltas)} deltas, expected none, or {len(layers)}: one for "
            "each layer"
        )
    computed, slopes = [0.0] * len(layers), None
    for index, (layer, delta) in enumerate(zip(layers, () if update.decreases else update.deltas, strict=False)):
        m, xp = layer.m(), namespace(delta)
        if tuple(delta.shape) != tuple(m.shape)[::-1]:
            raise ShapeError(
                f"{type(rule).__name__}.plan: delta has shape {tuple(delta.shape)}, expected {tuple(m.shape)[::-1]}"
            )
        computed[index] = float(xp.sum(m * xp.matrix_transpose(delta)))
    alpha, omega = update.output_extension, update.input_extension
    if alpha is not None and omega is not None:
        m_prev = statistics.m_prev()
        p, o = m_prev.shape
        if alpha.shape[1:] != (p,) or omega.ndim != 2 or omega.shape != (o, alpha.shape[0]):
            raise ShapeError(
                f"{type(rule).__name__}.plan: found alpha {tuple(alpha.shape)} and omega {tuple(omega.shape)}, "
                f"expected (k, {p}) and ({o}, k)"
            )
        slopes = neuron_slopes(m_prev, alpha, omega)
    solutions, decreases = update.solutions or update.deltas, update.decreases or tuple(computed)
    return replace(update, solutions=solutions, decreases=decreases, slopes=slopes)


TINY = GrowthRule()
"""Verbockhaven et al. 2024: covariance and projection on, nothing zeroed."""

GRADMAX = GrowthRule(
    compute_delta=False, use_covariance=False, use_projection=False, alpha_zero=True, ignore_singular_values=True
)
"""Evci et al. 2022: identity for S, N = -M_prev, incoming weights zero, singular values ignored."""

FISHER = GrowthRule(use_fisher=True, project_with_fisher=False)
"""TINY preconditioned by the empirical Fisher matrix of the output side, projected by the plain delta."""


def added_neurons(
    s: Array | None, n: Array, *, e: Array | None = None, rule: GrowthRule = TINY, floor: float = 0.0
) -> tuple[Array, Array, Array]:
    """New neurons that best serve ``n``: ``S^(-1/2) N [E^(-1/2)] = U diag(s) V^T``, cut to what matters.

    s : (p, p) second moment of the incoming side, None for the identity    n : (p, o)    e : (o, o) or None
    Returns alpha (k, p), omega (o, k) and the k singular values, float64, largest first.
    ``alpha = sqrt(s) U^T S^(-1/2)``, ``omega = E^(-1/2) V sqrt(s)``, with sqrt(s) = 1 under ``ignore_singular_values``.

    Kept are singular values ``>= min(statistical_threshold, largest)``, so at least one, at most ``rule.max_new``.
    The sign of a neuron is free; here the largest entry of its outgoing weights is positive, on every library.
    An S that is slightly skew is symmetrised with a ``UserWarning``. Directions of S and E under ``floor`` of the
    largest are rounding and count as zero, as in :func:`optimal_delta`.

    Raises ShapeError, GrowthError: shapes do not fit together, or a matrix holds NaN; TypeError: ``rule`` is no
    GrowthRule.

    Source: Verbockhaven et al. 2024, proposition 3.2; Evci et al. 2022, section 3.

    >>> import numpy as np
    >>> alpha, omega, values = added_neurons(np.eye(2), np.diag([4.0, 1.0]))
    >>> (omega @ alpha).tolist(), values.tolist()
    ([[4.0, 0.0], [0.0, 1.0]], [4.0, 1.0])
    """
    if not isinstance(rule, GrowthRule):
        raise _no_rule(rule)
    xp = namespace(s, n, e)
    n = finite(n, "added_neurons: N")
    if n.ndim != 2 or (s is not None and s.shape[0] != n.shape[0]) or (e is not None and e.shape[0] != n.shape[1]):
        shapes = [None if a is None else tuple(a.shape) for a in (s, n, e)]
        raise ShapeError(f"added_neurons: S, N, E have shapes {shapes}; expected (p, p), (p, o), (o, o)")
    whitener = None if s is None else _whitener(_symmetric(s, "S"), rule.numerical_threshold, resolution(s, floor))
    target = n if whitener is None else whitener @ n
    dewhitener = None
    if e is not None:
        ridge, limit = rule.fisher_shrinkage, resolution(e, floor)
        e = _symmetric(e, "E")
        dewhitener = (
            inverse_sqrt(shrink(e, ridge), 0.0)
            if ridge
            else inverse_sqrt(without_rounding(e, limit), rule.numerical_threshold)
        )
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


def _whitener(s: Array, threshold: float, limit: float) -> Array:
    """W with ``W S W^T = I``: the inverse Cholesky factor, or ``S^(-1/2)`` if eigenvalues may have to be dropped.

    The two differ by a rotation, which the singular vectors undo. ``1 / |L^-1|^2`` is a lower bound of the eigenvalues.
    """
    xp = namespace(s)
    scale, factor = definite_factor(s, limit)
    if factor is not None and float(xp.min(xp.linalg.diagonal(s))) > max(threshold, _SQUARED):
        eye = xp.eye(s.shape[0], dtype=s.dtype, device=s.device)
        inverse = triangular_solve(factor, eye) * scale[None, :]
        if 1.0 / float(xp.sum(inverse**2)) > threshold:
            return inverse
    return inverse_sqrt(without_rounding(s, limit), threshold)


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
            short_vectors = xp.flip(vectors[:, short - rule.max_new :], axis=1)
            long_vectors = (flipped if wide else target) @ short_vectors / values[None, :]
            count = _kept(values, rule)
            u, v = (short_vectors, long_vectors) if wide else (long_vectors, short_vectors)
            return u[:, :count], values[:count], v[:, :count]
    u, values, vh = xp.linalg.svd(target, full_matrices=False)
    count = _kept(values, rule)
    return u[:, :count], values[:count], xp.matrix_transpose(vh[:count, :])


def _kept(values: Array, rule: GrowthRule) -> int:
    """How many singular values, in descending order, to keep."""
    xp = namespace(values)
    if values.shape[0] == 0:
        return 0
    threshold = min(rule.statistical_threshold, float(values[0]))
    count = int(xp.sum(xp.astype(values >= threshold, xp.int64)))
    return count if rule.max_new is None else min(count, rule.max_new)


def _symmetric(matrix: Array, name: str) -> Array:
    xp = namespace(matrix)
    matrix = square(matrix, f"added_neurons: {name}")
    if bool(xp.all(matrix == xp.matrix_transpose(matrix))):
        return matrix
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
