"""Alternating least squares for a tensor ring: sweeps in which each core is the best one for the others."""

from __future__ import annotations

import math
from collections.abc import Sequence

from growarray.backend import Array, namespace
from growarray.decompose.inputs import Prepared
from growarray.decompose.unfolding import norm

_JITTER = 1e-13  # of the mean diagonal of the Gram matrix, on the step only: the fixed points stay where they are


def ring_product(cores: Sequence[Array]) -> Array:
    """The tensor of a ring, without an intermediate that has more than two of its bonds."""
    *first, last = cores
    xp, shape = namespace(last), tuple(core.shape[1] for core in cores)
    chain = xp.eye(last.shape[2], dtype=last.dtype, device=last.device)[:, None, :]
    for core in first:
        flat = xp.reshape(chain, (-1, core.shape[0])) @ xp.reshape(core, (core.shape[0], -1))
        chain = xp.reshape(flat, (chain.shape[0], -1, core.shape[2]))
    rows = xp.reshape(xp.permute_dims(chain, (1, 2, 0)), (chain.shape[1], -1))
    columns = xp.reshape(xp.permute_dims(last, (0, 2, 1)), (-1, last.shape[1]))
    return xp.reshape(rows @ columns, shape)


def ring_distance(array: Array, cores: Sequence[Array]) -> float:
    """Norm of the tensor less its ring."""
    return norm(array - ring_product(cores))


def iterate_ring(
    ready: Prepared, cores: list[Array], errors: list[float], limit: int, tolerance: float
) -> tuple[list[Array], list[float], str]:
    """Sweeps in which each core in turn is the best one for the others, while the error falls."""
    if not limit or len(cores) == 1 or errors[-1] <= 1e-14:
        return cores, errors, "converged"
    for _ in range(limit):
        updated = list(cores)
        for k in range(len(cores)):
            product, gram = _product(ready.array, updated, k), _gram(updated, k)
            updated[k] = _solved(updated[k], product, gram)
        square = ready.norm**2 - 2.0 * _dot(product, updated[-1]) + _dot(_applied(gram, updated[-1]), updated[-1])
        lost = math.sqrt(max(square, 0.0))
        error = ready.relative(lost if square > 1e-10 * ready.norm**2 else ring_distance(ready.array, updated))
        if not error < errors[-1]:  # rounding alone can do that: there is nothing left to gain
            return cores, errors, "converged"
        cores = updated
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
