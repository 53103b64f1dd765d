"""Tucker decomposition: truncated HOSVD, and its refinement by higher-order orthogonal iteration.

T ~ G x_0 U_0 x_1 U_1 …: core G, one factor U_k (size, rank) with orthonormal columns for each decomposed mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from growarray.backend import Array, namespace
from growarray.decompose.arguments import check_choice, check_count, check_modes
from growarray.decompose.inputs import Prepared, check_bound, check_rank, check_tensor, check_tolerance, rank_or_bound
from growarray.decompose.rank import largest_tucker_rank
from growarray.decompose.unfolding import (
    distance,
    fitting_threads,
    improved,
    leading,
    mode_product,
    multi_product,
    norm,
    unfold,
)
from growarray.decompose.whiten import prepare_weighted, unweight


@dataclass(frozen=True)
class Tucker:
    """A core and one factor (size, rank) for each mode in ``modes``; modes that are not named keep their size.

    errors : relative error after the HOSVD, then after each iteration    reason : why the iterations ended
    """

    core: Array
    factors: tuple[Array, ...]
    modes: tuple[int, ...]
    errors: tuple[float, ...]
    reason: str

    @property
    def rank(self) -> tuple[int, ...]:
        """Rank of each mode in ``modes``."""
        return tuple(int(f.shape[1]) for f in self.factors)

    def reconstruct(self) -> Array:
        """The dense tensor."""
        tensor = self.core
        for mode, factor in zip(self.modes, self.factors, strict=True):
            tensor = mode_product(tensor, factor, mode)
        return tensor


def tucker(
    tensor: Array,
    rank: int | Sequence[int] | None = None,
    *,
    modes: Sequence[int] | None = None,
    method: str = "hooi",
    error: float | None = None,
    weighted: Mapping[int, Array] | None = None,
    max_iterations: int = 50,
    tolerance: float = 1e-5,
) -> Tucker:
    """Tucker decomposition of a tensor, of all modes or of some (Tucker-2 of a kernel: ``modes=(0, 1)``).

    tensor : any shape, real floating; computed in float64, then rounded to its dtype (errors are those before)
    rank : an int (at most the size of each mode) or one for each of ``modes``; or ``error``, the largest relative
        error allowed, for which the HOSVD chooses the ranks
    method : 'hooi' refines the HOSVD, and its error never rises; 'hosvd' stops there
    weighted : second moment (size, size) by mode: minimises ``|(T - T') x_k S_k^(1/2)|`` and reports errors in that
        norm; the factors of weighted modes are not orthonormal
    tolerance : relative fall of the error below which the iterations end

    A mode that keeps its full rank has the identity as factor.

    Raises TypeError, ShapeError, ValueError: the tensor is not real floating, is empty or not finite; the rank does not
    fit; an option is unknown.

    Source: Vannieuwenhoven, Vandebril, Meerbergen 2012 (sequentially truncated HOSVD);
    De Lathauwer, De Moor, Vandewalle 2000 (HOOI).

    >>> import numpy as np
    >>> kernel = np.random.default_rng(0).standard_normal((8, 6, 3, 3))
    >>> t = tucker(kernel, (4, 4), modes=(0, 1))
    >>> t.core.shape, [f.shape for f in t.factors], t.errors[-1] <= t.errors[0]
    ((4, 4, 3, 3), [(8, 4), (6, 4)], True)
    """
    where = "tucker"
    shape = check_tensor(tensor, where)
    chosen = tuple(range(len(shape))) if modes is None else check_modes(modes, len(shape), where)
    if not chosen:
        raise ValueError(f"{where}: modes is empty, expected at least one axis; None decomposes all")
    check_choice(method, ("hooi", "hosvd"), "method", where)
    max_iterations = check_count(max_iterations, "max_iterations", where)
    tolerance = check_tolerance(tolerance, where)
    rank_or_bound(rank, error, where)
    bound = None if error is None else check_bound(error, where)
    limits = [largest_tucker_rank(shape)[k] for k in chosen]
    ranks = None if rank is None else dict(zip(chosen, check_rank(rank, limits, where), strict=True))
    ready, undo = prepare_weighted(tensor, weighted, where)
    array = ready.array
    limit = max_iterations if method == "hooi" else None
    core, factors, errors, reason = fitting_threads(array, lambda: _fit(ready, chosen, ranks, bound, limit, tolerance))
    if bound is not None and errors[-1] <= bound:
        reason = "error bound met"
    eye = partial(ready.xp.eye, dtype=ready.xp.float64, device=array.device)
    full = unweight([eye(n) if f is None else f for f, n in zip(factors, shape, strict=True)], undo)
    for k in sorted(set(undo) - set(chosen)):  # a weighted mode that is not decomposed: the core carries it
        core = mode_product(core, undo[k], k)
    parts = tuple(ready.restore(full[k]) for k in chosen)
    return Tucker(ready.restore(core, scaled=True), parts, chosen, tuple(errors), reason)


def _fit(
    ready: Prepared,
    modes: Sequence[int],
    ranks: Mapping[int, int] | None,
    bound: float | None,
    limit: int | None,
    tolerance: float,
) -> tuple[Array, list[Array | None], list[float], str]:
    """Core, factors, errors and reason of the HOSVD, and of the iterations after it, if any are wanted."""
    core, factors = sequential_hosvd(ready, modes, ranks, bound)
    errors = [ready.relative(lost_norm(ready, core, factors))]
    if limit is None:
        return core, factors, errors, "converged"
    return _iterate(ready, core, factors, errors, limit, tolerance)


def sequential_hosvd(
    ready: Prepared, modes: Sequence[int], ranks: Mapping[int, int] | None, bound: float | None
) -> tuple[Array, list[Array | None]]:
    """Core and factors, mode after mode, each on what the modes before have left; None if nothing is cut.

    With ``bound`` in place of ``ranks``, each mode may lose an equal share of the squared error that is left.
    """
    core = ready.array
    shape = core.shape
    factors: list[Array | None] = [None] * core.ndim
    left = 0.0 if bound is None else (bound * ready.norm) ** 2
    order = sorted(modes, key=lambda k: ranks[k] / shape[k] if ranks else -shape[k])
    for done, k in enumerate(order):
        if ranks is not None and ranks[k] == shape[k]:
            continue
        allowed = max(left, 0.0) / (len(order) - done)
        basis, values = leading(unfold(core, k), ranks[k] if ranks is not None else math.sqrt(allowed))
        keep = basis.shape[1]
        left -= float((values[keep:] ** 2).sum())
        if keep < shape[k]:
            factors[k] = basis
            core = mode_product(core, ready.xp.matrix_transpose(basis), k)
    return core, factors


def lost_norm(ready: Prepared, core: Array, factors: Sequence[Array | None]) -> float:
    """Norm of what orthonormal factors leave out: by the norms, and if these cancel, by the difference itself."""
    if all(f is None for f in factors):
        return 0.0
    square = ready.norm**2 - norm(core) ** 2
    return math.sqrt(square) if square > 1e-10 * ready.norm**2 else distance(ready.array, core, factors)


def _transposed(matrices: Sequence[Array | None]) -> list[Array | None]:
    return [None if m is None else namespace(m).matrix_transpose(m) for m in matrices]


def _iterate(
    ready: Prepared, core: Array, factors: list[Array | None], errors: list[float], limit: int, tolerance: float
) -> tuple[Array, list[Array | None], list[float], str]:
    """HOOI: each factor in turn is the best one for the others; the error never rises."""
    active = [k for k, f in enumerate(factors) if f is not None]
    if len(active) < 2 or errors[-1] <= 1e-14:
        return core, factors, errors, "converged"  # one factor: the HOSVD is the best there is
    for _ in range(limit):
        transposed = _transposed(factors)
        new_core, new_factors = _improve(ready.array, transposed, active), _transposed(transposed)
        new = ready.relative(lost_norm(ready, new_core, new_factors))
        if new > errors[-1]:  # rounding alone can do that: there is nothing left to gain
            return core, factors, errors, "converged"
        core, factors = new_core, new_factors
        errors.append(new)
        if errors[-2] - new <= tolerance * new:
            return core, factors, errors, "converged"
    return core, factors, errors, "max_iterations"


def _improve(part: Array, transposed: list[Array | None], modes: Sequence[int]) -> Array:
    """Renew the factors of ``modes`` in turn; returns the core.

    part : the tensor times the factors of all other modes
    Half of the modes share the product with the factors of the other half, so that an iteration goes through the whole
    tensor twice, however many modes there are. Each factor still meets the newest of all others.
    """
    xp = namespace(part)
    if len(modes) == 1:
        k = modes[0]
        transposed[k] = xp.matrix_transpose(improved(unfold(part, k), xp.matrix_transpose(transposed[k])))
        return mode_product(part, transposed[k], k)
    first, second = modes[: len(modes) // 2], modes[len(modes) // 2 :]
    core = part
    for renewed, others in ((first, second), (second, first)):
        matrices = [m if k in others else None for k, m in enumerate(transposed)]
        core = _improve(multi_product(part, matrices), transposed, renewed)
    return core
