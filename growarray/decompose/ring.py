"""Tensor ring: TR-SVD with given ranks or an error bound, and its refinement by alternating least squares.

T[i_0, i_1, …] ~ tr(G_0[:, i_0, :] G_1[:, i_1, :] …): cores G_k (r_k, size, r_{k+1}), the last rank is the first one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from growarray.backend import Array, namespace
from growarray.decompose.arguments import check_choice, check_count, check_modes, is_int
from growarray.decompose.inputs import (
    Prepared,
    check_bound,
    check_rank,
    check_tensor,
    check_tolerance,
    check_weights,
    prepare,
    rank_or_bound,
)
from growarray.decompose.rank import balanced_pair, largest_mode, largest_tr_rank, usable_tr_rank
from growarray.decompose.tt import sweep
from growarray.decompose.unfolding import fitting_threads, leading, norm
from growarray.decompose.whiten import unweight, weight

__all__ = ["TensorRing", "tensor_ring"]

_JITTER = 1e-13  # of the mean diagonal of the Gram matrix, on the step only: the fixed points stay where they are


@dataclass(frozen=True)
class TensorRing:
    """Cores (r_k, size, r_{k+1}) in a ring.

    errors : relative error after the SVDs, then after each sweep    reason : why the sweeps ended
    """

    cores: tuple[Array, ...]
    errors: tuple[float, ...]
    reason: str

    @property
    def rank(self) -> tuple[int, ...]:
        """All ranks, the first one again at the end."""
        return (int(self.cores[0].shape[0]), *(int(core.shape[2]) for core in self.cores))

    def reconstruct(self) -> Array:
        """The dense tensor."""
        *first, last = self.cores
        xp, shape = namespace(last), tuple(core.shape[1] for core in self.cores)
        chain = xp.eye(last.shape[2], dtype=last.dtype, device=last.device)[:, None, :]
        for core in first:
            flat = xp.reshape(chain, (-1, core.shape[0])) @ xp.reshape(core, (core.shape[0], -1))
            chain = xp.reshape(flat, (chain.shape[0], -1, core.shape[2]))
        rows = xp.reshape(xp.permute_dims(chain, (1, 2, 0)), (chain.shape[1], -1))
        columns = xp.reshape(xp.permute_dims(last, (0, 2, 1)), (-1, last.shape[1]))
        return xp.reshape(rows @ columns, shape)


def tensor_ring(
    tensor: Array,
    rank: int | Sequence[int] | None = None,
    *,
    error: float | None = None,
    mode: int | None = None,
    method: str = "als",
    weighted: Mapping[int, Array] | None = None,
    max_iterations: int = 50,
    tolerance: float = 1e-5,
) -> TensorRing:
    """Tensor ring of a tensor: a truncated SVD splits one mode off, then others run along the rest of the ring.

    tensor : any shape, real floating; computed in float64, then rounded to its dtype (errors are those before)
    rank : an int (at most what each bond can use) or all ranks, the first one again at the end; or ``error``, the
        largest relative error allowed, which the SVDs share
    mode : the one that is split off first, whose two bonds share the rank of its unfolding; the largest for None
    method : 'als' refines the result of the SVDs, and its error never rises; 'svd' stops there
    weighted : second moment (size, size) by mode: minimises ``|(T - T') x_k S_k^(1/2)|`` and reports errors in that
        norm
    tolerance : relative fall of the error below which the sweeps end

    Raises
    ------
    TypeError, ShapeError, ValueError
        The tensor is not real floating, is empty or not finite; the ranks do not fit; an option is unknown.

    Source: Zhao, Zhou, Xie, Zhang, Cichocki 2016, Tensor ring decomposition, algorithms 1 (TR-SVD) and 2 (TR-ALS).

    Examples
    --------
    >>> import numpy as np
    >>> kernel = np.random.default_rng(0).standard_normal((6, 3, 3, 8))
    >>> ring = tensor_ring(kernel, error=0.5)
    >>> ring.rank[0] == ring.rank[-1], ring.errors[-1] <= 0.5, ring.reconstruct().shape
    (True, True, (6, 3, 3, 8))
    """
    where = "tensor_ring"
    shape = check_tensor(tensor, where)
    start = largest_mode(shape) if mode is None else check_modes((mode,), len(shape), where, "mode")[0]
    check_choice(method, ("als", "svd"), "method", where)
    limit = check_count(max_iterations, "max_iterations", where)
    tolerance = check_tolerance(tolerance, where)
    rank_or_bound(rank, error, where)
    bound = None if error is None else check_bound(error, where)
    ranks = None if rank is None else _ranks(rank, shape, start)
    moments = check_weights(weighted, shape, where)
    ready = prepare(tensor, where)
    array, undo = weight(ready.array, moments)
    ready = Prepared(array, ready.scale, norm(array), ready.dtype, ready.xp)

    def fit() -> tuple[list[Array], list[float], str]:
        cores, lost = _split(ready, start, ranks, bound)
        errors = [ready.relative(lost if lost > 1e-6 * ready.norm else _distance(array, cores))]
        return _iterate(ready, cores, errors, limit if method == "als" else 0, tolerance)

    cores, errors, reason = fitting_threads(array, fit)
    cores = unweight(cores, undo, axis=1)
    scaled = (*(ready.restore(c) for c in cores[:-1]), ready.restore(cores[-1], scaled=True))
    return TensorRing(scaled, tuple(errors), reason if bound is None else "error bound met")


def _ranks(rank: int | Sequence[int], shape: tuple[int, ...], start: int) -> tuple[int, ...]:
    """All ranks, checked: an int is lowered to what each bond can use, a sequence must not need it."""
    where, count = "tensor_ring", len(shape) + 1
    if is_int(rank):
        (single,) = check_rank(rank, (max(largest_tr_rank(shape, start)),), where, "")
        return usable_tr_rank(shape, (single,) * count, start)
    ranks = check_rank(rank, (math.prod(shape),) * count, where, "ranks, the first one again at the end")
    if ranks[0] != ranks[-1]:
        raise ValueError(f"{where}: rank {ranks} must end with the number that it starts with")
    usable = usable_tr_rank(shape, ranks, start)
    if usable != ranks:
        raise ValueError(
            f"{where}: rank {ranks} is above {usable}, which a tensor of shape {shape} can use from mode {start}; "
            "lower it"
        )
    return ranks


def _split(
    ready: Prepared, start: int, ranks: tuple[int, ...] | None, bound: float | None
) -> tuple[list[Array], float]:
    """TR-SVD: the cores, and the distance from the tensor, the norm of all that was cut off."""
    xp, order = ready.xp, ready.array.ndim
    if order == 1:
        return [xp.reshape(ready.array, (1, -1, 1))], 0.0
    modes = [(start + k) % order for k in range(order)]
    matrix = xp.reshape(xp.permute_dims(ready.array, tuple(modes)), (ready.array.shape[start], -1))
    allowed = 0.0 if bound is None else (bound * ready.norm) ** 2
    if ranks is None:
        first, second = balanced_pair(leading(matrix, math.sqrt(allowed / (order - 1)))[0].shape[1])
    else:
        first, second = ranks[start], ranks[start + 1]
    keep = min(first * second, *matrix.shape)
    basis, values = leading(matrix, keep)
    lost = float((values[keep:] ** 2).sum())
    rest = xp.matrix_transpose(basis) @ matrix
    if keep < first * second:  # a rank that is not a product of the two bonds: their last entries are zero
        basis = xp.concat([basis, xp.zeros_like(basis[:, : first * second - keep])], axis=1)
        rest = xp.concat([rest, xp.zeros_like(rest[: first * second - keep, :])], axis=0)
    core = xp.permute_dims(xp.reshape(basis, (-1, first, second)), (1, 0, 2))
    rest = xp.permute_dims(xp.reshape(rest, (first, second, -1)), (1, 2, 0))
    sizes = [ready.array.shape[mode] for mode in modes[1:]]
    inner = None if ranks is None else [ranks[mode] for mode in modes[2:]]
    cores, cut = sweep(rest, second, sizes, first, inner, max(allowed - lost, 0.0))
    cores = [core, *cores]
    return [cores[(k - start) % order] for k in range(order)], math.sqrt(lost + cut)


def _distance(array: Array, cores: Sequence[Array]) -> float:
    return norm(array - TensorRing(tuple(cores), (), "").reconstruct())


def _iterate(
    ready: Prepared, cores: list[Array], errors: list[float], limit: int, tolerance: float
) -> tuple[list[Array], list[float], str]:
    """Sweeps in which each core in turn is the best one for the others, while the error falls."""
    if not limit or len(cores) == 1 or errors[-1] <= 1e-14:
        return cores, errors, "converged"
    for _ in range(limit):
        found = list(cores)
        for k in range(len(cores)):
            product, gram = _product(ready.array, found, k), _gram(found, k)
            found[k] = _solved(found[k], product, gram)
        square = ready.norm**2 - 2.0 * _dot(product, found[-1]) + _dot(_applied(gram, found[-1]), found[-1])
        lost = math.sqrt(max(square, 0.0))
        error = ready.relative(lost if square > 1e-10 * ready.norm**2 else _distance(ready.array, found))
        if not error < errors[-1]:  # rounding alone can do that: there is nothing left to gain
            return cores, errors, "converged"
        cores = found
        errors.append(error)
        if errors[-2] - error <= tolerance * error:
            return cores, errors, "converged"
    return cores, errors, "max_iterations"


def _product(array: Array, cores: Sequence[Array], k: int) -> Array:
    """The tensor times all cores but one, (r_k, size, r_{k+1}); the larger neighbour goes first."""
    xp, order = namespace(array), array.ndim
    forward = array.shape[(k + 1) % order] >= array.shape[k - 1]
    modes = [(k + (j if forward else -j)) % order for j in range(1, order + 1)]
    rest = xp.permute_dims(array, tuple(modes))
    first, *others = [cores[m] if forward else xp.permute_dims(cores[m], (2, 1, 0)) for m in modes[:-1]]
    outer, size, bond = first.shape
    flat = xp.reshape(xp.permute_dims(first, (0, 2, 1)), (-1, size)) @ xp.reshape(rest, (size, -1))
    state = xp.reshape(flat, (outer, bond, -1))
    for core in others:
        columns = xp.reshape(core, (-1, core.shape[2]))
        state = xp.matrix_transpose(columns) @ xp.reshape(state, (outer, columns.shape[0], -1))
    return xp.permute_dims(state, (1, 2, 0) if forward else (0, 2, 1))


def _gram(cores: Sequence[Array], k: int) -> Array:
    """What the others make of a core and its copy, (r_k r_{k+1}) squared."""
    xp, whole = namespace(*cores), None
    for j in range(1, len(cores)):
        core = cores[(k + j) % len(cores)]
        a, n, b = core.shape
        pair = xp.reshape(xp.permute_dims(core, (0, 2, 1)), (a * b, n))
        pair = xp.reshape(pair @ xp.matrix_transpose(pair), (a, b, a, b))
        step = xp.reshape(xp.permute_dims(pair, (0, 2, 1, 3)), (a * a, b * b))
        whole = step if whole is None else whole @ step
    a, b = cores[k].shape[0], cores[k].shape[2]
    return xp.reshape(xp.permute_dims(xp.reshape(whole, (b, b, a, a)), (2, 0, 3, 1)), (a * b, a * b))


def _applied(gram: Array, core: Array) -> Array:
    """The Gram matrix times a core (a, n, b), over both of its bonds."""
    xp, (a, n, b) = namespace(core), core.shape
    rows = gram @ xp.reshape(xp.permute_dims(core, (0, 2, 1)), (a * b, n))
    return xp.permute_dims(xp.reshape(rows, (a, b, n)), (0, 2, 1))


def _solved(core: Array, product: Array, gram: Array) -> Array:
    """The core for which ``gram`` times it is ``product``, as a step from where it is."""
    xp, (a, n, b) = namespace(core), core.shape
    missing = xp.reshape(xp.permute_dims(product - _applied(gram, core), (0, 2, 1)), (a * b, n))
    size = max(float(xp.linalg.trace(gram)) / (a * b), 1e-300)
    eye = xp.eye(a * b, dtype=gram.dtype, device=gram.device)
    step = xp.linalg.solve(gram + _JITTER * size * eye, missing)
    return core + xp.permute_dims(xp.reshape(step, (a, b, n)), (0, 2, 1))


def _dot(a: Array, b: Array) -> float:
    return float(namespace(a, b).sum(a * b))
