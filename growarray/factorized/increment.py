"""The best low-rank kernel change, measured where the data is: alternating least squares in the metric of the input.

E = P Q^T change of the kernel · P (o, r) its output channels · Q (d, r) all the rest, d = c * taps of the kernel
S (g, d, d) second moment of the unfolded input, M (g, d, o) input against gradient, one for each of g groups.
What is maximised is ``2 <M, E^T> - tr(E S E^T)``, which is ``|D|_S^2 - |D - E|_S^2`` for the optimal change D.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from growarray.backend import Array, namespace
from growarray.decompose.whiten import channel_moment
from growarray.factorized.contracted import run_contraction

_SWEEPS, _STEPS, _STILL = 8, 12, 1e-3
_START, _RIDGE = 1e-3, 1e-6  # of the mean eigenvalue of S


@dataclass(frozen=True, eq=False)
class Goal:
    """S and M as above, and ``dense`` (o, c, *kernel), about the optimal change D: where the fit starts from.

    ridge : added to the diagonal of S while factors are solved for. Behind a layer of low rank the channels are
        collinear, and a factor could grow without bound where S is zero but for rounding.
    """

    s: Array
    m: Array
    dense: Array
    ridge: float

    @classmethod
    def of(cls, s: Array, m: Array, shape: Sequence[int]) -> Goal:
        """From the moments, D with a ridge of its own: the start should not follow what the input hardly shows."""
        xp, d = namespace(s, m), s.shape[1]
        mean = float(xp.sum(xp.linalg.trace(s))) / (s.shape[0] * d)
        mean = mean if mean > 0.0 else 1.0
        dense = xp.linalg.solve(s + _START * mean * xp.eye(d, dtype=s.dtype, device=s.device), m)
        return cls(s, m, xp.reshape(xp.matrix_transpose(dense), tuple(shape)), _RIDGE * mean)

    def channels(self, mode: int) -> Array:
        """Second moment along the input channels, which are this mode of ``dense``; the mean over the groups."""
        return channel_moment(namespace(self.s).mean(self.s, axis=0), self.dense.shape[mode])

    def left(self, change: Array) -> Goal:
        """What is left to do after a change of the kernel (o, c, *kernel)."""
        xp, (g, d, o) = namespace(self.s, change), self.m.shape
        rows = xp.reshape(change, (g, o, d))
        return replace(self, m=self.m - xp.matmul(self.s, xp.matrix_transpose(rows)), dense=self.dense - change)

    def overlap(self, p: Array, q: Array) -> float:
        """``<M, E^T>``, the decrease of the loss to first order; p (g, o, r), q (d, r)."""
        xp = namespace(p, q)
        return float(xp.sum(xp.matmul(xp.matrix_transpose(self.m), q) * p))

    def square(self, p: Array, q: Array) -> float:
        """``tr(E S E^T)``, without the ridge."""
        xp = namespace(p, q)
        gram = xp.matmul(xp.matrix_transpose(q), xp.matmul(self.s, q))
        return float(xp.sum(xp.matmul(xp.matrix_transpose(p), p) * gram))

    def measured(self, change: Array) -> tuple[float, float]:
        """:meth:`overlap` and :meth:`square` of a change of the kernel (o, c, *kernel)."""
        xp, (g, d, o) = namespace(self.s, change), self.m.shape
        rows = xp.reshape(change, (g, o, d))
        overlap = float(xp.sum(xp.matrix_transpose(self.m) * rows))
        return overlap, float(xp.sum(xp.matmul(rows, self.s) * rows))

    def metric(self, q: Array) -> Array:
        """``(S + ridge I) Q`` (g, d, r)."""
        return namespace(q).matmul(self.s, q) + self.ridge * q


class Added(NamedTuple):
    """New components: ``arrays`` of the factors' new shapes, zero where the old entries are.

    levers : which of them scale the change    change : of the kernel, dense    decrease : of the loss, to first order
    The factors plus these arrays hold the old kernel plus the fitted change; to be subtracted, the levers take the
    minus sign.
    """

    arrays: list[Array]
    levers: tuple[int, ...]
    change: Array
    decrease: float


class Increment:
    """A change of the kernel as a contraction of factors, some of whose entries are free.

    terms : names of each factor's modes; ``o`` is in one of them    modes : of the kernel but ``o``, in its order
    free : for each factor None if it is fixed, or an array of ones where an entry is free and zeros elsewhere
    lever : a factor in which the change is linear without an offset: scaling it scales the change
    """

    def __init__(
        self, terms: Sequence[Sequence[str]], modes: Sequence[str], factors: Sequence[Array],
        free: Sequence[Array | None], lever: int, groups: int,
    ) -> None:  # fmt: skip
        self.factors, self.free, self.lever, self.groups = list(factors), tuple(free), lever, groups
        self.out = next(i for i, term in enumerate(terms) if "o" in term)
        term = terms[self.out]
        ranks = [name for name in term if name != "o"]
        self._first = (term.index("o"), *(term.index(name) for name in ranks))  # the order of axes that has o in front
        inner = [term for i, term in enumerate(terms) if i != self.out]
        self._equation = f"{', '.join(' '.join(t) for t in inner)} -> {' '.join((*modes, *ranks))}"
        self._count = len(modes)

    def p(self) -> Array:
        """The output side, (g, o, r)."""
        return self._grouped(self.factors[self.out])

    def _grouped(self, factor: Array) -> Array:
        xp = namespace(factor)
        front = xp.permute_dims(factor, self._first)
        return xp.reshape(front, (self.groups, front.shape[0] // self.groups, -1))

    def _ungrouped(self, p: Array) -> Array:
        xp, shape = namespace(p), self.factors[self.out].shape
        front = xp.reshape(p, tuple(shape[axis] for axis in self._first))
        return xp.permute_dims(front, tuple(self._first.index(axis) for axis in range(len(shape))))

    def q(self, at: int | None = None, factor: Array | None = None) -> tuple[Array, Callable[[Array], Sequence[Array]]]:
        """The input side (d, r), with another array in place of factor ``at``, and the way back to the inner ones."""
        factors = [factor if i == at else held for i, held in enumerate(self.factors) if i != self.out]
        value, back = run_contraction(self._equation, factors)
        xp, shape = namespace(value), tuple(value.shape)
        rows = xp.reshape(value, (math.prod(shape[: self._count]), -1))
        return rows, lambda dq: back(xp.reshape(dq, shape))

    def dense(self, shape: Sequence[int]) -> Array:
        """The change of the kernel, (o, c, *kernel)."""
        xp, (q, _) = namespace(self.factors[0]), self.q()
        return xp.reshape(xp.matmul(self.p(), xp.matrix_transpose(q)), tuple(shape))

    def improve(self, goal: Goal, i: int) -> None:
        """Solve for the free entries of factor ``i``, given the others, by conjugate gradients from where it is."""
        free = self.free[i]
        if free is None:
            return
        xp, (q, back), p = namespace(free), self.q(), self.p()
        if i == self.out:
            gram = xp.matmul(xp.matrix_transpose(q), goal.metric(q))
            missing = xp.matmul(xp.matrix_transpose(goal.m), q) - xp.matmul(p, gram)
            rhs = free * self._ungrouped(missing)

            def curve(v: Array) -> Array:
                return free * self._ungrouped(xp.matmul(self._grouped(v), gram))
        else:
            at, gram = i - (i > self.out), xp.matmul(xp.matrix_transpose(p), p)
            missing = xp.matmul(goal.m, p) - xp.matmul(goal.metric(q), gram)
            rhs = free * back(xp.sum(missing, axis=0))[at]

            def curve(v: Array) -> Array:
                moved = xp.matmul(goal.metric(self.q(i, v)[0]), gram)
                return free * back(xp.sum(moved, axis=0))[at]

        self.factors[i] = self.factors[i] + _conjugate_gradients(curve, rhs)

    def scale(self, factor: float) -> None:
        """Scale the change."""
        self.factors[self.lever] = self.factors[self.lever] * factor


def fit(goal: Goal, increment: Increment) -> float:
    """Sweeps over the free factors until they gain little; returns the decrease to first order, ``<M, E^T>``.

    The change ends with its best length, so that the decrease is ``|E|_S^2``: never negative, and 0 only if the
    start is orthogonal to the gradient. Each factor is solved for, the whole need not be the best there is.
    """
    best = _rescaled(goal, increment)
    for _ in range(_SWEEPS):
        for i in range(len(increment.factors)):
            increment.improve(goal, i)
        before, best = best, _rescaled(goal, increment)
        if best - before <= _STILL * best:
            break
    return best


def _rescaled(goal: Goal, increment: Increment) -> float:
    """Give the change its best length; returns ``<M, E^T>``."""
    p, (q, _) = increment.p(), increment.q()
    overlap, square = goal.overlap(p, q), goal.square(p, q)
    if not square > 0.0:
        return 0.0
    increment.scale(overlap / square)
    return overlap**2 / square


def _conjugate_gradients(curve: Callable[[Array], Array], rhs: Array) -> Array:
    """Solution of ``curve(x) = rhs``, curve symmetric and not negative; each step comes closer in its metric."""
    xp = namespace(rhs)
    x, r, v = xp.zeros_like(rhs), rhs, rhs
    square = start = float(xp.sum(r * r))
    steepest = 0.0
    for _ in range(min(_STEPS, math.prod(rhs.shape))):
        if square <= 1e-24 * start:
            break
        bent = curve(v)
        length = float(xp.sum(v * bent))
        steepness = length / float(xp.sum(v * v))
        if not steepness > 1e-12 * steepest:  # rounding: nothing is known along v
            break
        steepest = max(steepest, steepness)
        x, r = x + (square / length) * v, r - (square / length) * bent
        old, square = square, float(xp.sum(r * r))
        v = r + (square / old) * v
    return x


def padded(block: Array, shape: Sequence[int], start: Sequence[int]) -> Array:
    """Zeros of this shape with a block in it.

    >>> import numpy as np
    >>> padded(np.ones((1, 2)), (2, 3), (1, 1)).tolist()
    [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    """
    xp = namespace(block)
    full = xp.zeros(tuple(shape), dtype=block.dtype, device=block.device)
    full[tuple(slice(s, s + n) for s, n in zip(start, block.shape, strict=True))] = block
    return full


def equal_norms(cores: Sequence[Array]) -> list[Array]:
    """The same chain with cores of one norm."""
    xp = namespace(*cores)
    norms = [float(xp.sqrt(xp.sum(c * c))) for c in cores]
    if min(norms) == 0.0:
        return list(cores)
    mean = math.exp(sum(math.log(n) for n in norms) / len(norms))
    return [c * (mean / n) for c, n in zip(cores, norms, strict=True)]
