"""Alternating least squares for CP: sweeps over the factors, with extrapolation between them.

T tensor · A_k factors (size, r) · K_L, K_R Khatri-Rao products of the factors left and right of a cut · G Gram
matrices' elementwise product. The tensor lies as a matrix (left modes, right modes), so that a sweep takes two large
products, T K_R and T^T K_L, whatever the number of modes, and no unfolding is ever copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from growarray.backend import Array, namespace

_JITTER = 1e-13  # of the mean diagonal of G, on the step only: the fixed points stay where they are
_CANCEL = 1e-10  # squared relative error below which the norms no longer give it


def khatri_rao(factors: Sequence[Array]) -> Array:
    """Columnwise Kronecker product of factors (n_k, r): (prod n_k, r), the first factor varies slowest."""
    xp = namespace(*factors)
    product = factors[0]
    for factor in factors[1:]:
        product = xp.reshape(product[:, None, :] * factor[None, :, :], (-1, factor.shape[1]))
    return product


def normalised(factors: Sequence[Array]) -> tuple[Array, list[Array]]:
    """Weights (r,) and factors with columns of norm 1; a column of zeros gets weight 0 and stays."""
    xp = namespace(*factors)
    weights, units = None, []
    for factor in factors:
        norms = xp.sqrt(xp.sum(factor * factor, axis=0))
        units.append(factor / xp.where(norms > 0, norms, xp.ones_like(norms))[None, :])
        weights = norms if weights is None else weights * norms
    return weights, units


def balanced(factors: Sequence[Array]) -> list[Array]:
    """The same components with columns of one norm in all modes."""
    xp = namespace(*factors)
    weights, units = normalised(factors)
    root = weights ** (1.0 / len(units))
    return [unit * xp.reshape(root, (1, -1)) for unit in units]


@dataclass(frozen=True)
class Fit:
    """Factors, the relative error after each sweep, and why the sweeps ended."""

    factors: list[Array]
    errors: list[float]
    reason: str


class Target:
    """The tensor of a CP problem, as a matrix, cut so that the sum of its sides is smallest.

    array : of order 2 or more    norm, offset : errors are ``sqrt(|array - …|^2 + offset^2) / norm``, for an array
    that is the part of a larger tensor within a subspace
    """

    def __init__(self, array: Array, norm: float, offset: float = 0.0) -> None:
        self.xp = namespace(array)
        self.shape = tuple(int(n) for n in array.shape)
        cuts = range(1, len(self.shape))
        self.cut = min(cuts, key=lambda s: math.prod(self.shape[:s]) + math.prod(self.shape[s:]))
        self.matrix = self.xp.reshape(array, (math.prod(self.shape[: self.cut]), -1))
        self.square = float(self.xp.sum(array * array))
        self.norm, self.offset = norm, offset

    def relative(self, square: float) -> float:
        """Relative error from the squared distance within the subspace."""
        return math.sqrt(max(square, 0.0) + self.offset**2) / self.norm

    def half(self, factors: Sequence[Array], left: bool) -> Array:
        """The large product of one side, (modes of the side …, r): T K_R for the left modes, T^T K_L for the right."""
        xp = self.xp
        other = khatri_rao(factors[self.cut :] if left else factors[: self.cut])
        product = self.matrix @ other if left else xp.matrix_transpose(self.matrix) @ other
        sizes = self.shape[: self.cut] if left else self.shape[self.cut :]
        return xp.reshape(product, (*sizes, other.shape[1]))

    def modes(self, left: bool) -> range:
        """The modes of one side."""
        return range(self.cut) if left else range(self.cut, len(self.shape))

    def mttkrp(self, part: Array, factors: Sequence[Array], mode: int) -> Array:
        """T times all factors but one, (size, r), from the product of its side."""
        side = self.modes(mode < self.cut)
        for k in reversed(side):
            if k != mode:  # later axes go first, so that the earlier keep their positions
                axis = k - side[0]
                shape = (*(1,) * axis, factors[k].shape[0], *(1,) * (part.ndim - axis - 2), factors[k].shape[1])
                part = self.xp.sum(part * self.xp.reshape(factors[k], shape), axis=axis)
        return part

    def distance(self, factors: Sequence[Array]) -> float:
        """Squared distance from the components, by the difference itself, a slab of rows at a time."""
        xp = self.xp
        left, right = khatri_rao(factors[: self.cut]), xp.matrix_transpose(khatri_rao(factors[self.cut :]))
        rows = max(1, (1 << 21) // self.matrix.shape[1])
        total = 0.0
        for start in range(0, left.shape[0], rows):
            slab = slice(start, min(start + rows, left.shape[0]))
            gap = self.matrix[slab, :] - left[slab, :] @ right
            total += float(xp.sum(gap * gap))
        return total


def product_of(grams: Sequence[Array], skip: int | None = None) -> Array:
    """Elementwise product of Gram matrices, but for one."""
    product = None
    for k, gram in enumerate(grams):
        if k != skip:
            product = gram if product is None else product * gram
    return product


def _sweep(target: Target, factors: Sequence[Array]) -> tuple[list[Array], float]:
    """Each factor in turn the least-squares solution for the others; returns also the squared distance."""
    xp = target.xp
    new = list(factors)
    grams = [xp.matrix_transpose(f) @ f for f in new]
    product = gram = None
    eye = xp.eye(grams[0].shape[0], dtype=xp.float64, device=target.matrix.device)
    for left in (True, False):
        part = target.half(new, left)
        for k in target.modes(left):
            gram = product_of(grams, k)
            product = target.mttkrp(part, new, k)
            size = max(float(xp.linalg.trace(gram)) / gram.shape[0], 1e-300)
            step = xp.linalg.solve(gram + _JITTER * size * eye, xp.matrix_transpose(product - new[k] @ gram))
            new[k] = new[k] + xp.matrix_transpose(step)
            grams[k] = xp.matrix_transpose(new[k]) @ new[k]
    square = target.square - 2.0 * float(xp.sum(product * new[-1])) + float(xp.sum(gram * grams[-1]))
    if square < _CANCEL * target.square:
        square = target.distance(new)
    return new, square


def iterate(target: Target, factors: Sequence[Array], limit: int, tolerance: float) -> Fit:
    """Sweeps until the error falls by less than ``tolerance`` of itself, three times running; it never rises.

    Between sweeps the factors go on along their last change by a length that grows while this helps and is halved
    if it does not; then the sweep is taken back.

    Source: Ang, Cohen, Hien, Gillis 2020, Extrapolated alternating algorithms for approximate CP (without restart of
    single blocks).
    """
    best, errors = balanced(factors), list[float]()
    previous: list[Array] | None = None
    beta, ceiling, still = 0.5, 1.0, 0
    for _ in range(limit):
        start = best
        if previous is not None:
            start = [new + beta * (new - old) for new, old in zip(best, previous, strict=True)]
        swept, square = _sweep(target, start)
        error = target.relative(square)
        if errors and not error <= errors[-1]:
            if previous is None:  # a plain sweep rises by rounding only: there is nothing left to gain
                return Fit(best, errors, "converged")
            previous, ceiling, beta, still = None, beta, beta / 2, 0
            continue
        if not math.isfinite(error):
            return Fit(best, [math.inf], "diverged")
        if previous is not None:
            ceiling = min(1.0, 1.05 * ceiling)
            beta = min(ceiling, 1.2 * beta)
        gain = errors[-1] - error if errors else math.inf
        previous, best = best, balanced(swept)
        errors.append(error)
        still = still + 1 if gain <= tolerance * error else 0
        if still == 3 or error <= 4 * float(np.finfo(np.float64).eps):
            return Fit(best, errors, "converged")
    return Fit(best, errors, "max_iterations")
