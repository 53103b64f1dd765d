"""CP (canonical polyadic) decomposition: a sum of ``rank`` outer products.

T[i, j, …] ~ sum_r w_r A_0[i, r] A_1[j, r] …: weights (rank,), one factor (size, rank) with unit columns for each mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from growarray.backend import Array, namespace, to_numpy
from growarray.decompose.als import Fit, Target, balanced, iterate, khatri_rao, normalised
from growarray.decompose.arguments import check_choice, check_count
from growarray.decompose.inputs import Prepared, check_bound, check_rank, check_rng, check_tensor, check_tolerance
from growarray.decompose.rank import largest_cp_rank
from growarray.decompose.stable import Degeneracy, correct, degeneracy
from growarray.decompose.starts import starting_points
from growarray.decompose.tucker import lost_norm, sequential_hosvd
from growarray.decompose.unfolding import fitting_threads, leading, mode_product, multi_product
from growarray.decompose.whiten import prepare_weighted, unweight

_EXACT = 1e-14  # relative error up to which components are exact but for rounding
_TRIAL = 12  # sweeps after which the best of the starts goes on alone


@dataclass(frozen=True)
class CP:
    """Weights (rank,), largest first and not negative, and factors (size, rank) with columns of norm 1.

    errors : relative error after each sweep; if the components were corrected, the last entry is after that
    reason : why the sweeps ended    degeneracy : of the components as returned
    """

    weights: Array
    factors: tuple[Array, ...]
    errors: tuple[float, ...]
    reason: str
    degeneracy: Degeneracy

    @property
    def rank(self) -> int:
        """Number of components."""
        return int(self.weights.shape[0])

    def reconstruct(self) -> Array:
        """The dense tensor."""
        xp = namespace(self.weights)
        first = self.factors[0] * self.weights[None, :]
        shape = tuple(int(f.shape[0]) for f in self.factors)
        if len(shape) == 1:
            return xp.sum(first, axis=1)
        return xp.reshape(first @ xp.matrix_transpose(khatri_rao(self.factors[1:])), shape)


def cp(
    tensor: Array,
    rank: int,
    *,
    init: str = "svd",
    starts: int = 2,
    max_iterations: int = 200,
    tolerance: float = 1e-5,
    rng: np.random.Generator | None = None,
    correct: bool = True,
    slack: float = 5e-4,
    weighted: Mapping[int, Array] | None = None,
) -> CP:
    """CP decomposition by alternating least squares from the best of several starts.

    tensor : any shape, real floating; computed in float64, then rounded to its dtype (errors are those before)
    init : 'svd' starts from singular vectors, from a generalised eigenvalue problem if two modes are as large as
        the rank (exact for a tensor of that rank), and from ``starts`` random points; 'random' from the random ones
    max_iterations : sweeps on the tensor compressed by a HOSVD, and again on the tensor itself
    tolerance : relative fall of the error below which the sweeps end
    rng : for the random starts; None is a generator with seed 0
    correct : replace degenerate components (:attr:`Degeneracy.severe`) by smaller ones whose error is at most
        ``1 + slack`` times as large; a larger slack makes them much smaller, and fine-tuning easier; they
        stay if rounding leaves no components within that bound, as beside an error of 1e-9
    weighted : second moment (size, size) by mode: minimises ``|(T - T') x_k S_k^(1/2)|`` and reports errors in that
        norm

    A matrix gets its truncated SVD. Memory stays within a few times the tensor in float64.

    Raises TypeError, ShapeError, ValueError: the tensor is not real floating, is empty or not finite; the rank is below
    1 or above the size of the tensor over its largest mode, which any tensor has at most; an option is unknown.

    Source: Kolda, Bader 2009, section 3.4; Phan et al. 2020 (correction).

    >>> kernel = np.random.default_rng(0).standard_normal((8, 6, 3, 3))
    >>> c = cp(kernel, 4)
    >>> c.weights.shape, [f.shape for f in c.factors]
    ((4,), [(8, 4), (6, 4), (3, 4), (3, 4)])
    >>> bool(np.isclose(np.linalg.norm(kernel - c.reconstruct()) / np.linalg.norm(kernel), c.errors[-1]))
    True
    """
    shape = check_tensor(tensor, "cp")
    check_choice(init, ("svd", "random"), "init", "cp")
    starts = check_count(starts, "starts", "cp", least=0 if init == "svd" else 1)
    max_iterations = check_count(max_iterations, "max_iterations", "cp", least=1)
    check_bound(slack, "cp", "slack")
    tolerance, rng = check_tolerance(tolerance, "cp"), check_rng(rng, "cp")
    (rank,) = check_rank(rank, (largest_cp_rank(shape),), "cp", "")
    ready, undo = prepare_weighted(tensor, weighted, "cp")
    array = ready.array
    long_modes = [k for k, n in enumerate(shape) if n > 1] or [0]
    ready_core = ready.xp.reshape(array, tuple(shape[k] for k in long_modes))
    if len(long_modes) < 3 or ready.norm == 0.0:
        fit = _matrix(ready, ready_core, rank)
    else:
        start = partial(_fit, ready, ready_core, rank, init, starts, max_iterations, tolerance, rng)
        fit = fitting_threads(array, start)
        if correct:
            fit = fitting_threads(array, partial(_corrected, ready, ready_core, fit, slack))
    ones = ready.xp.ones((1, rank), dtype=ready.xp.float64, device=array.device)
    factors = [fit.factors[long_modes.index(k)] if k in long_modes else ones for k in range(len(shape))]
    return _result(ready, unweight(factors, undo), fit, degeneracy(factors, ready.norm))


def _matrix(ready: Prepared, core: Array, rank: int) -> Fit:
    """Order 2 and below, and zeros: the truncated SVD is the best there is."""
    xp = ready.xp
    if ready.norm == 0.0 or core.ndim == 1:
        first = xp.reshape(core, (-1, 1)) if core.ndim == 1 else xp.zeros_like(xp.reshape(core, (core.shape[0], -1)))
        zeros = [xp.zeros((n, rank), dtype=xp.float64, device=core.device) for n in core.shape]
        return Fit([first] if core.ndim == 1 else zeros, [0.0], "converged")
    wide = core.shape[0] <= core.shape[1]
    matrix = core if wide else xp.matrix_transpose(core)
    basis, _ = leading(matrix, rank)
    other = xp.matrix_transpose(matrix) @ basis
    gap = matrix - basis @ xp.matrix_transpose(other)
    error = ready.relative(math.sqrt(float(xp.sum(gap * gap))))
    return Fit([basis, other] if wide else [other, basis], [error], "converged")


def _fit(
    ready: Prepared, array: Array, rank: int, init: str, starts: int, limit: int, tolerance: float,
    rng: np.random.Generator,
) -> Fit:  # fmt: skip
    """The best of the starts on the compressed tensor, carried to the end there, then on the tensor itself."""
    xp = ready.xp
    whole = Prepared(array, ready.scale, ready.norm, ready.dtype, xp)
    ranks = {k: min(n, rank) for k, n in enumerate(array.shape)}
    core, bases = sequential_hosvd(whole, tuple(ranks), ranks, None)
    small = Target(core, ready.norm, lost_norm(whole, core, bases))
    trials = [iterate(small, s, min(_TRIAL, limit), tolerance) for s in starting_points(core, rank, init, starts, rng)]
    best = min(trials, key=lambda fit: fit.errors[-1])
    if best.reason == "max_iterations" and limit > _TRIAL:
        more = iterate(small, best.factors, limit - _TRIAL, tolerance)
        best = Fit(more.factors, best.errors + more.errors, more.reason)
    if all(b is None for b in bases):
        return best
    factors = [f if b is None else b @ f for f, b in zip(best.factors, bases, strict=True)]
    final = iterate(Target(array, ready.norm), factors, limit, tolerance)
    return Fit(final.factors, best.errors + final.errors, final.reason)


def _corrected(ready: Prepared, array: Array, fit: Fit, slack: float) -> Fit:
    """Components of least norm at nearly the same error, if they are degenerate, within the same spans."""
    if not degeneracy(fit.factors, ready.norm).severe:
        return fit
    xp = ready.xp
    bases = [xp.linalg.qr(f, mode="reduced")[0] if f.shape[0] > f.shape[1] else None for f in fit.factors]
    transposed = [None if b is None else xp.matrix_transpose(b) for b in bases]
    core = multi_product(array, transposed)
    whole = Prepared(array, ready.scale, ready.norm, ready.dtype, xp)
    target = Target(core, ready.norm, lost_norm(whole, core, bases))
    inner = [f if t is None else t @ f for f, t in zip(fit.factors, transposed, strict=True)]
    bound = (1.0 + slack) * fit.errors[-1]
    smaller, error = correct(target, inner, bound)
    if not error <= max(bound, _EXACT):  # beside so small an error what the correction is computed from is rounding
        return fit
    factors = [f if b is None else mode_product(f, b, 0) for f, b in zip(smaller, bases, strict=True)]
    return Fit(balanced(factors), [*fit.errors, error], f"{fit.reason}; degenerate components corrected")


def _result(ready: Prepared, factors: Sequence[Array], fit: Fit, degenerate: Degeneracy) -> CP:
    """Unit columns, weights sorted downwards."""
    xp = ready.xp
    weights, units = normalised(factors)
    order = np.argsort(-to_numpy(weights), kind="stable")
    index = xp.asarray(order, device=weights.device)
    parts = tuple(ready.restore(xp.take(u, index, axis=1)) for u in units)
    return CP(ready.restore(xp.take(weights, index), scaled=True), parts, tuple(fit.errors), fit.reason, degenerate)
