"""Tensor train: TT-SVD with given ranks or an error bound.

T[i_0, i_1, …] ~ G_0[:, i_0, :] G_1[:, i_1, :] …: cores G_k (r_k, size, r_k+1), the end ranks are 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from growarray.backend import Array, namespace
from growarray.contraction.checks import is_whole
from growarray.decompose.inputs import check_bound, check_rank, check_tensor, rank_or_bound
from growarray.decompose.rank import largest_tt_rank, validate_tt_rank
from growarray.decompose.unfolding import fitting_threads, leading, norm
from growarray.decompose.whiten import prepare_weighted, unweight


@dataclass(frozen=True)
class TensorTrain:
    """Cores (r_k, size, r_k+1) with end ranks 1; ``errors`` holds the relative error, ``reason`` why it ended."""

    cores: tuple[Array, ...]
    errors: tuple[float, ...]
    reason: str

    @property
    def rank(self) -> tuple[int, ...]:
        """All ranks, the two ends included."""
        return (1, *(int(core.shape[2]) for core in self.cores))

    def reconstruct(self) -> Array:
        """The dense tensor."""
        xp = namespace(self.cores[0])
        tensor = self.cores[0]
        for core in self.cores[1:]:
            left = xp.reshape(tensor, (-1, core.shape[0]))
            tensor = left @ xp.reshape(core, (core.shape[0], -1))
        return xp.reshape(tensor, tuple(core.shape[1] for core in self.cores))


def tensor_train(
    tensor: Array,
    rank: int | Sequence[int] | None = None,
    *,
    error: float | None = None,
    weighted: Mapping[int, Array] | None = None,
) -> TensorTrain:
    """Tensor train of a tensor, by one sweep of truncated SVDs from the first mode to the last.

    tensor : any shape, real floating; computed in float64, then rounded to its dtype (errors are those before)
    rank : an int (at most what each bond can use) or all ranks, end ranks 1 included; or ``error``, the largest
        relative error allowed, which the bonds share
    weighted : second moment (size, size) by mode: minimises ``|(T - T') x_k S_k^(1/2)|`` and reports errors in that
        norm

    All cores but the last are orthonormal, (r_k size, r_k+1), if their mode is not weighted.

    Raises TypeError, ShapeError, ValueError: the tensor is not real floating, is empty or not finite; the ranks do not
    fit.

    Source: Oseledets 2011, algorithm 1 (TT-SVD), theorem 2.2.

    >>> import numpy as np
    >>> kernel = np.random.default_rng(0).standard_normal((6, 3, 3, 8))
    >>> train = tensor_train(kernel, error=0.5)
    >>> train.cores[0].shape[0], train.errors[-1] <= 0.5, train.reconstruct().shape
    (1, True, (6, 3, 3, 8))
    """
    where = "tensor_train"
    shape = check_tensor(tensor, where)
    rank_or_bound(rank, error, where)
    bound = None if error is None else check_bound(error, where)
    ranks = None if rank is None else _ranks(rank, shape)
    ready, undo = prepare_weighted(tensor, weighted, where)
    array = ready.array
    inner, allowed = None if ranks is None else ranks[1:-1], 0.0 if bound is None else (bound * ready.norm) ** 2
    cores, cut = fitting_threads(array, lambda: sweep(array, 1, shape, 1, inner, allowed))
    lost = math.sqrt(cut)
    if lost <= 1e-6 * ready.norm:  # a sum of small singular values: the difference itself is more exact
        lost = norm(array - TensorTrain(tuple(cores), (), "").reconstruct())
    relative = ready.relative(lost)
    cores = unweight(cores, undo, axis=1)
    factors = (*(ready.restore(c) for c in cores[:-1]), ready.restore(cores[-1], scaled=True))
    return TensorTrain(factors, (relative,), "converged" if bound is None else "error bound met")


def _ranks(rank: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    """All ranks, checked: what a bond can use depends on the rank before it."""
    limits = largest_tt_rank(shape)
    ranks = check_rank(rank, limits, "tensor_train", "ranks, the two ends included")
    if ranks[0] != 1 or ranks[-1] != 1:
        raise ValueError(f"tensor_train: rank {ranks} must start and end with 1")
    usable = validate_tt_rank(shape, ranks, allow_overparametrization=False)
    if usable != ranks and not is_whole(rank):
        raise ValueError(
            f"tensor_train: rank {ranks} is above {usable}, which a tensor of shape {shape} can use; lower it "
            "(validate_tt_rank does with allow_overparametrization=False)"
        )
    return usable


def sweep(
    rest: Array, before: int, sizes: Sequence[int], last: int, ranks: Sequence[int] | None, allowed: float
) -> tuple[list[Array], float]:
    """Cores of a chain by truncated SVDs from the first mode to the last, and the squared norm of what was cut off.

    rest : the tensor, with ``before`` entries of a first bond and ``last`` entries of a last one at its ends
    ranks : of the bonds between; or None for those that cut off a squared norm of ``allowed`` at most, in equal shares
    """
    xp, lost, cores = namespace(rest), 0.0, []
    for k, size in enumerate(sizes[:-1]):
        matrix = xp.reshape(rest, (before * size, -1))
        share = math.sqrt(max(allowed - lost, 0.0) / (len(sizes) - 1 - k))
        basis, values = leading(matrix, share if ranks is None else ranks[k])
        keep = basis.shape[1]
        lost += float((values[keep:] ** 2).sum())
        cores.append(xp.reshape(basis, (before, size, keep)))
        rest, before = xp.matrix_transpose(basis) @ matrix, keep
    cores.append(xp.reshape(rest, (before, sizes[-1], last)))
    return cores, lost
