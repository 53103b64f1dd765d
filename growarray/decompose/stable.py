"""Degenerate CP components: how to see them, and how to correct them at the same error.

Components that nearly cancel grow without bound while the error creeps down; the smallest rounding, or the first
fine-tuning step, then ruins the tensor. Among all factors within an error bound, those with the least
sum of squared component norms are the ones to keep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from growarray.backend import Array, asarray, namespace, to_numpy
from growarray.decompose.als import Target, normalised, product_of


class Degeneracy(NamedTuple):
    """How close CP components are to cancelling each other.

    cosine : largest |cosine| between two components, the product of the cosines of their factors; 0 for one component
    norm_ratio : sum of the component norms over the norm of the tensor; components at right angles reach sqrt(rank)
    rank : number of components
    """

    cosine: float
    norm_ratio: float
    rank: int

    @property
    def severe(self) -> bool:
        """Whether the components should be corrected: a cosine over 0.95, or norms five times those at right angles."""
        return self.cosine > 0.95 or self.norm_ratio > 5.0 * math.sqrt(self.rank)


def degeneracy(factors: Sequence[Array], norm: float) -> Degeneracy:
    """Measure the components of factors (size, r) against the norm of the tensor."""
    weights, units = normalised(factors)
    cosines = np.abs(to_numpy(product_of([namespace(u).matrix_transpose(u) @ u for u in units])))
    np.fill_diagonal(cosines, 0.0)
    norms = to_numpy(weights)
    return Degeneracy(float(cosines.max()), float(np.sum(norms)) / norm if norm else 0.0, len(norms))


def correct(target: Target, factors: Sequence[Array], bound: float, limit: int = 100) -> tuple[list[Array], float]:
    """Factors with the least sum of squared component norms whose relative error is within ``bound``.

    Mode after mode, with the other factors at unit columns: ``min |A|^2`` subject to ``|T - A K^T| <= bound``, whose
    solution is ``A = T K (G + mu I)^-1`` with the one mu >= 0 that meets the bound. The sum never rises.
    Returns the factors and their relative error, by the difference itself: beside a small bound the distances that the
    solution is found from are rounding, and it may miss the bound.

    Source: Phan, Sobolev, Sozykin, Ermilov, Gusak, Tichavsky, Glukhov, Oseledets, Cichocki 2020, Stable low-rank
    tensor decomposition for compression of convolutional neural network, ECCV.
    """
    xp = target.xp
    allowed = (bound * target.norm) ** 2 - target.offset**2
    weights, units = normalised(factors)
    total, factor = float(xp.sum(weights**2)), units[-1] * weights[None, :]
    for _ in range(limit):
        for left in (True, False):
            part = target.half(units, left)
            for k in target.modes(left):
                gram = product_of([xp.matrix_transpose(u) @ u for u in units], k)
                factor = _smallest(target, gram, target.mttkrp(part, units, k), allowed)
                units[k] = normalised([factor])[1][0]
        before, total = total, float(xp.sum(factor**2))
        if before - total <= 1e-4 * total:
            break
    smaller = [*units[:-1], factor]
    return smaller, target.relative(target.distance(smaller))


def _smallest(target: Target, gram: Array, product: Array, allowed: float) -> Array:
    """The smallest factor within the allowed squared distance."""
    xp = target.xp
    values, vectors = xp.linalg.eigh(gram)
    rotated = product @ vectors
    g, c = to_numpy(values), to_numpy(xp.sum(rotated**2, axis=0))
    resolved = g > 1e-14 * g[-1]
    g, c = g[resolved], c[resolved]
    least = target.square - float(np.sum(c / g))
    slack = allowed - least

    def excess(mu: np.ndarray) -> np.ndarray:
        """What each mu adds to the least squared distance."""
        return np.asarray((c / g) @ (mu / (g[:, None] + mu)) ** 2)

    low, high = 0.0, 1e6 * float(g[-1])
    for _ in range(4 if slack > 0.0 else 0):  # each round narrows the interval of mu 64 times, on a logarithmic scale
        grid = np.geomspace(max(low, 1e-16 * g[-1]), high, 65)
        met = int(np.sum(excess(grid) <= slack))
        low, high = (float(grid[met - 1]) if met else 0.0), float(grid[min(met, 64)])
    scale = np.zeros(len(resolved))
    scale[resolved] = 1.0 / (g + low)
    return (rotated * asarray(scale, like=rotated)[None, :]) @ xp.matrix_transpose(vectors)
