"""Tensor ring: TR-SVD with given ranks or an error bound, and its refinement by alternating least squares.

T[i_0, i_1, …] ~ tr(G_0[:, i_0, :] G_1[:, i_1, :] …): cores G_k (r_k, size, r_{k+1}), the last rank is the first one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from growarray.backend import Array
from growarray.contraction.checks import is_whole
from growarray.decompose.arguments import check_choice, check_count, check_modes, check_sizes
from growarray.decompose.inputs import Prepared, check_bound, check_rank, check_tensor, check_tolerance, rank_or_bound
from growarray.decompose.rank import Rank, all_ranks, at_least_one, rounding_of, share_of
from growarray.decompose.ring_als import iterate_ring, ring_distance, ring_product
from growarray.decompose.tt import sweep
from growarray.decompose.unfolding import fitting_threads, leading
from growarray.decompose.whiten import prepare_weighted, unweight


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
        return ring_product(self.cores)


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
    mode : the one that is split off first, whose two bonds share the rank of its unfolding; None takes the largest,
        with ``rank`` also the one that loses least of those that can use all of it, and returns the better result
    method : 'als' refines the result of the SVDs, and its error never rises; 'svd' stops there
    weighted : second moment (size, size) by mode: minimises ``|(T - T') x_k S_k^(1/2)|`` and reports errors in that
        norm
    tolerance : relative fall of the error below which the sweeps end

    Raises TypeError, ShapeError, ValueError: the tensor is not real floating, is empty or not finite; the ranks do not
    fit; an option is unknown.

    Source: Zhao, Zhou, Xie, Zhang, Cichocki 2016, Tensor ring decomposition, algorithms 1 (TR-SVD) and 2 (TR-ALS).

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
    ready, undo = prepare_weighted(tensor, weighted, where)
    array = ready.array

    starts = [start]
    if mode is None and ranks is not None:
        starts += [k for k in range(len(shape)) if k != start and usable_tr_rank(shape, ranks, k) == ranks]

    def fit() -> tuple[list[Array], list[float], str]:
        splits = [_split(ready, k, ranks, bound) for k in starts]
        least = min(splits, key=lambda split: split[1])
        found = []
        for cores, lost in splits[:1] if least is splits[0] else (splits[0], least):
            errors = [ready.relative(lost if lost > 1e-6 * ready.norm else ring_distance(array, cores))]
            found.append(iterate_ring(ready, cores, errors, limit if method == "als" else 0, tolerance))
        return min(found, key=lambda fitted: fitted[1][-1])

    cores, errors, reason = fitting_threads(array, fit)
    cores = unweight(cores, undo, axis=1)
    scaled = (*(ready.restore(c) for c in cores[:-1]), ready.restore(cores[-1], scaled=True))
    return TensorRing(scaled, tuple(errors), reason if bound is None else "error bound met")


def _ranks(rank: int | Sequence[int], shape: tuple[int, ...], start: int) -> tuple[int, ...]:
    """All ranks, checked: an int is lowered to what each bond can use, a sequence must not need it."""
    where, count = "tensor_ring", len(shape) + 1
    if is_whole(rank):
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


def validate_tr_rank(shape: Sequence[int], rank: Rank = "same", rounding: str = "round") -> tuple[int, ...]:
    """All ranks of a tensor ring, the first one again at the end: one for a share, ``sqrt(share * prod(n) / sum(n))``.

    Raises ShapeError, ValueError, TypeError: the shape is empty; ranks are not positive, do not end with the first one,
    or are too many or few.

    Source: TensorLy, ``validate_tr_rank``, which can return 0; a ring of one mode has ranks of 1.

    >>> validate_tr_rank((64, 32, 3, 3), 0.5), validate_tr_rank((4, 3, 3), (2, 3, 4, 2))
    ((10, 10, 10, 10, 10), (2, 3, 4, 2))
    """
    where = "validate_tr_rank"
    sizes, integer = check_sizes(shape, where), rounding_of(rounding, where)
    share = share_of(rank, where)
    if share is not None or is_whole(rank):
        root = math.sqrt(math.prod(sizes) * (share or 0.0) / sum(sizes))
        single = max(int(integer(root)), 1) if share is not None else at_least_one((rank,), where)[0]
        return (1, 1) if len(sizes) == 1 else (single,) * (len(sizes) + 1)
    ranks = all_ranks(rank, len(sizes) + 1, where, also="'same', a float, an int or ")
    if ranks[0] != ranks[-1] or (len(sizes) == 1 and ranks[0] != 1):
        raise ValueError(f"{where}: rank {ranks} must end with the number that it starts with, 1 for a single mode")
    return ranks


def largest_mode(shape: Sequence[int]) -> int:
    """The first of the largest modes, from which TR-SVD starts.

    >>> largest_mode((3, 8, 8))
    1
    """
    return max(range(len(shape)), key=lambda k: (shape[k], -k))


def balanced_pair(rank: int) -> tuple[int, int]:
    """Two bonds whose product is at least this rank, as equal as can be.

    >>> balanced_pair(12), balanced_pair(1)
    ((4, 3), (1, 1))
    """
    first = math.isqrt(rank - 1) + 1
    return first, -(-rank // first)


def usable_tr_rank(shape: Sequence[int], rank: Sequence[int], mode: int | None = None) -> tuple[int, ...]:
    """Ranks of a tensor ring lowered to what TR-SVD can use that starts from ``mode``, the largest for None.

    >>> usable_tr_rank((4, 3, 3, 6), (5, 5, 5, 5, 5))
    (2, 5, 5, 3, 2)
    """
    count, start = len(shape), largest_mode(shape) if mode is None else mode
    if count == 1:
        return (1, 1)
    sizes, asked = [*shape[start:], *shape[:start]], [*rank[start:-1], *rank[:start]]
    limit = min(sizes[0], math.prod(sizes[1:]))
    first = min(asked[0], max(balanced_pair(limit)[0], -(-limit // asked[1])))
    usable = [first, min(asked[1], -(-limit // first))]
    for k in range(2, count):
        usable.append(min(asked[k], usable[-1] * sizes[k - 1], math.prod(sizes[k:]) * first))
    ranks = (*usable[count - start :], *usable[: count - start])
    return (*ranks, ranks[0])


def largest_tr_rank(shape: Sequence[int], mode: int | None = None) -> tuple[int, ...]:
    """Ranks with which TR-SVD from ``mode`` is exact, the first one again at the end; the largest mode for None.

    >>> largest_tr_rank((4, 3, 3, 6))
    (2, 8, 9, 3, 2)
    """
    sizes = check_sizes(shape, "largest_tr_rank")
    return usable_tr_rank(sizes, (math.prod(sizes),) * (len(sizes) + 1), mode)
