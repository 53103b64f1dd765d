"""Moments of the windows that a convolution sees, without unfolding them all: sums over images and output positions.

Of the taps on a lagged axis only those products are made that differ: pairs of taps at the same lag multiply the same
shifted feature maps. Their sums differ at the borders alone, which are added apart, so that nothing cancels. The other
axes are unfolded, for one block of images at a time. NumPy's blocks are dealt out to two lanes, which run side by side
if there are two threads, one after the other if not; bits are the same.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from growarray.backend import Array, assign, device_of, is_cupy, is_numpy, load, namespace
from growarray.contraction.blas import settled
from growarray.contraction.threads import run_tasks
from growarray.errors import ShapeError, shown
from growarray.ops.assembly import Products, assembled, feature_sums
from growarray.ops.folded import folded, folded_axis, spread
from growarray.ops.lags import DEEP, LANES, MIXED, Lag, MomentPlan, Run, moment_plan, orders, reads_all
from growarray.ops.phases import Maps, is_mixed, phase_maps
from growarray.ops.windows import Windows

_SQUARES = (1e-20, 1e37)  # sums of squares between which products in single precision neither vanish nor overflow

Block = tuple[Windows, Windows, MomentPlan, slice]


def window_moment(left: Windows, right: Windows | None = None, *, lagged: Sequence[int] | None = None) -> Array:
    """Sum over images and output positions of ``left^T right``, float64; ``right=None`` is ``left``.

    lagged : at most two axes that are not unfolded, the outer one first, ``()`` to unfold all; None for the cheapest
    Returns (left.width, right.width) in float64 whatever the dtype of the arrays, and whatever the choice of axes:
    exact to the rounding of float64, but for float32 arrays of NumPy to 1e-6 of the largest entry, as
    :func:`growarray.growing.cross_moment` is. A gradient (n, o, *positions) takes part as windows with a kernel of
    ones: with it the moment is the gradient of the weight, transposed.

    Raises ShapeError: the two have not the same images or output positions; TypeError: the arrays belong to two
    libraries or devices; ValueError: ``lagged`` names an axis twice, more than two, or one that does not exist.

    >>> from growarray.ops.windows import windows
    >>> x = np.arange(3.0).reshape(1, 1, 3)
    >>> window_moment(windows(x, (2,), bias=True)).tolist()
    [[1.0, 2.0, 1.0], [2.0, 5.0, 3.0], [1.0, 3.0, 2.0]]
    """
    symmetric = right is None or right is left
    right = left if right is None else right
    xp = namespace(left.array, right.array, where="window_moment: ")
    _check(left, right, lagged)
    if lagged is None and is_cupy(left.array):
        there: Array | None = load("growarray.cuda.moment").window_moment(left, None if symmetric else right)
        if there is not None:
            return there
    order = None if lagged is None else tuple(lagged)
    if is_numpy(left.array):
        return settled(partial(_moment, xp, left, right, order, symmetric, LANES))
    return _moment(xp, left, right, order, symmetric, 1)


def _moment(
    xp: Any, left: Windows, right: Windows, lagged: tuple[int, ...] | None, symmetric: bool, lanes: int
) -> Array:
    """The sum over all blocks, in so many lanes, with the rows and columns of ones filled in."""
    if lagged is None and lanes > 1:
        axis = folded_axis(left.axes, right.axes, _sizes(left, right), symmetric, _is_narrow(left, right))
        if axis is not None:
            one, two = folded(left, axis), folded(right, axis)
            return spread(_moment(xp, one, one if symmetric else two, None, symmetric, lanes), left, right, axis)
    pieces = list(_pieces(left, right, symmetric, lagged))
    blocks = [(*piece, images) for piece in pieces for images in _images(left.samples, piece[2])]
    total, *others = [_Lane(xp, symmetric) for _ in range(min(lanes, len(blocks)))]
    shares = _dealt(blocks, 1 + len(others))
    run_tasks([partial(lane.add, share) for lane, share in zip((total, *others), shares, strict=True)])
    for other in others:
        total.join(other)
    out = assembled(xp, total.products, left, right, pieces[0][2].lagged, symmetric)
    inside = slice(left.width - left.bias), slice(right.width - right.bias)
    if right.bias:
        out = assign(out, (inside[0], -1), total.feature_sums("left"))
    if left.bias:
        out = assign(out, (-1, inside[1]), out[inside[0], -1] if symmetric else total.feature_sums("right"))
    if left.bias and right.bias:
        out = assign(out, (-1, -1), float(right.samples * math.prod(right.positions)))
    return out


def _check(left: Windows, right: Windows, lagged: Sequence[int] | None) -> None:
    for what, mine, others in (
        ("images", left.samples, right.samples),
        ("output positions", left.positions, right.positions),
    ):
        if mine != others:
            raise ShapeError(
                f"window_moment: one side has {mine} {what}, the other {others}; both must come from the same batch "
                "and convolution"
            )
    if lagged is not None and tuple(lagged) not in orders(len(left.axes)):
        raise ValueError(
            f"window_moment: lagged={shown(lagged)}, expected at most two different axes of the {len(left.axes)}, "
            "such as (0,), or None for the cheapest choice"
        )


def _pieces(
    left: Windows, right: Windows, symmetric: bool, lagged: tuple[int, ...] | None
) -> Iterator[tuple[Windows, Windows, MomentPlan]]:
    """Both sides and their plan; a large image is cut in pieces along the axis with most outputs."""
    sizes = _sizes(left, right)
    device = "cpu" if is_numpy(left.array) else "gpu"
    narrow = _is_narrow(left, right)
    plan = moment_plan(left.axes, right.axes, sizes, symmetric, lagged, narrow, device)
    if plan.single and not all(map(_is_moderate, (left.array,) if symmetric else (left.array, right.array))):
        plan = moment_plan(left.axes, right.axes, sizes, symmetric, lagged, False, device)
    outs = left.positions
    longest = outs.index(max(outs))
    count = max(1, min(outs[longest], plan.pieces))
    for i in range(count):
        if count > 1:
            cut = [slice(0, out) for out in outs]
            cut[longest] = slice(outs[longest] * i // count, outs[longest] * (i + 1) // count)
            one, other = left.cropped(cut), right.cropped(cut)
            plan = moment_plan(one.axes, other.axes, sizes, symmetric, plan.lagged, plan.single, device)
        else:
            one, other = left, right
        yield one, other, plan


def _sizes(left: Windows, right: Windows) -> tuple[int, int, int]:
    """Images, channels left and right."""
    return left.samples, int(left.array.shape[1]), int(right.array.shape[1])


def _is_narrow(left: Windows, right: Windows) -> bool:
    return all(is_numpy(w.array) and w.array.dtype == np.float32 for w in (left, right))


def _is_moderate(x: np.ndarray) -> bool:
    """Whether all values are finite, and their products neither vanish nor overflow in single precision."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(_SQUARES[0] < np.vdot(x, x) < _SQUARES[1])


def _images(count: int, plan: MomentPlan) -> Iterator[slice]:
    """Images taken together; those that are too few to be mixed are the last."""
    mixable = count - count % MIXED if plan.single else count
    for start in range(0, mixable, plan.images):
        yield slice(start, min(start + plan.images, mixable))
    if mixable < count or count == 0:
        yield slice(mixable, count)


def _dealt(blocks: Sequence[Block], lanes: int) -> list[list[Block]]:
    """The blocks of each lane: the largest first, to the lane with least to do. Mixed images take half the time."""
    shares: list[list[Block]] = [[] for _ in range(lanes)]
    loads = [0] * lanes
    weights = [(images.stop - images.start) * (1 if is_mixed(plan, images) else 2) for *_, plan, images in blocks]
    for i in sorted(range(len(blocks)), key=lambda i: -weights[i]):
        lane = loads.index(min(loads))
        shares[lane].append(blocks[i])
        loads[lane] += weights[i]
    return shares


class _Lane:
    """What one thread adds up: products of runs, and the maps of each piece of each side."""

    def __init__(self, xp: Any, symmetric: bool) -> None:
        self.xp, self.symmetric = xp, symmetric
        self.products: Products = {}
        self.sums: dict[tuple[str, Windows], Array] = {}  # of maps over images
        self.features: dict[str, Array] = {}  # those that are known already

    def add(self, blocks: Sequence[Block]) -> None:
        """Add one block after the other."""
        for block in blocks:
            self._add_block(*block)

    def join(self, other: _Lane) -> None:
        """Add what another lane has, and take it from there."""
        _move_to(self.products, other.products)
        _move_to(self.sums, other.sums)
        _move_to(self.features, other.features)

    def feature_sums(self, side: str) -> Array:
        """Sum of each feature of one side over images and outputs."""
        found = [feature_sums(self.xp, w, maps) for (of, w), maps in self.sums.items() if of == side]
        return sum(found, self.features.get(side, 0.0))

    def _add_block(self, left: Windows, right: Windows, plan: MomentPlan, images: slice) -> None:
        whole = not plan.lagged and not is_mixed(plan, images)  # all windows are there: sums are those of their rows
        lefts, sums = phase_maps(self.xp, left, images, plan, "left", summed=right.bias and not whole)
        rights, others = lefts, None
        if not self.symmetric:
            rights, others = phase_maps(self.xp, right, images, plan, "right", summed=left.bias and not whole)
        for maps, counterparts in zip(lefts, rights, strict=True):
            self._add_maps(maps, counterparts, plan)
        for side, w, matrices, found, wanted in (
            ("left", left, lefts, sums, right.bias),
            ("right", right, rights, others, left.bias),
        ):
            if found is not None:
                _add_to(self.sums, (side, w), found)
            elif whole and wanted:
                _add_to(self.features, side, _row_sums(self.xp, matrices[0][0, 0]))

    def _add_maps(self, maps: Maps, others: Maps, plan: MomentPlan) -> None:
        """Add the products of all lags; side by side, if this is not one lane of several."""
        outers, inners = plan.outer.lags, plan.inner.lags
        shares = [(one, outers) for one in inners] if len(inners) != 1 else [(inners[0], (one,)) for one in outers]
        tasks = [partial(self._add_lags, maps, others, plan, *share) for share in shares]
        if plan.shared:
            run_tasks(tasks)
        else:
            for task in tasks:
                task()

    def _add_lags(self, maps: Maps, others: Maps, plan: MomentPlan, inner: Lag, outers: Sequence[Lag]) -> None:
        """Add the products; if both sides are one, of two mirrored lags only one."""
        xp = self.xp
        for j, run in enumerate(inner.runs):
            lefts: dict[int, Array] = {}
            rights: dict[int, Array] = {}
            shift = inner.lag if reads_all(run, plan.inner.count) else 0
            for outer in outers:
                key, mirrored = (outer.key, inner.key), (outer.mirrored, inner.mirrored)
                if self.symmetric and mirrored < key:
                    continue
                if outer.left not in lefts:
                    lefts[outer.left] = _left(xp, maps[outer.left, inner.left], run)
                left = right = lefts[outer.left]
                if not self.symmetric or mirrored != key:
                    if outer.right not in rights:
                        rights[outer.right] = _right(xp, others[outer.right, inner.right], run, inner.lag)
                    right = rights[outer.right]
                self._add_products(left, right, (outer, inner), j, shift)

    def _add_products(self, left: Array, right: Array, lags: tuple[Lag, Lag], j: int, shift: int) -> None:
        """Add ``a b^T`` for each run of rows of one lag; in pieces if the product is made in single precision."""
        outer, inner = lags
        xp, total = self.xp, self.products.get(lags)
        if total is None:
            shape = (len(outer.runs), len(inner.runs), left.shape[0], right.shape[0])
            total = xp.zeros(shape, dtype=xp.float64, device=device_of(left))
        width = math.prod(left.shape[2:])
        ahead = outer.lag * width + shift
        a, b = (xp.reshape(x, (x.shape[0], math.prod(x.shape[1:]))) for x in (left, right))
        for i, run in enumerate(outer.runs):
            start, stop = max(run.start * width, -ahead), min(run.stop * width, a.shape[1] - ahead)
            deep = DEEP if a.dtype == xp.float32 else max(stop - start, 1)
            for low in range(start, stop, deep):
                high = min(low + deep, stop)
                part = a[:, low:high] @ xp.matrix_transpose(b[:, low + ahead : high + ahead])
                total = assign(total, (i, j, ...), part, add=True)
        self.products[lags] = total


def _add_to(totals: dict[Any, Array], key: Hashable, value: Array) -> None:
    held = totals.get(key)
    totals[key] = value if held is None else assign(held, ..., value, add=True)


def _move_to(totals: dict[Any, Array], others: dict[Any, Array]) -> None:
    for key in list(others):
        _add_to(totals, key, others.pop(key))


def _row_sums(xp: Any, maps: Array) -> Array:
    matrix = xp.reshape(maps, (maps.shape[0], math.prod(maps.shape[1:])))
    return matrix @ xp.ones(matrix.shape[1], dtype=matrix.dtype, device=device_of(matrix))


def _left(xp: Any, maps: Array, run: Run) -> Array:
    """The columns of a short run; for a long one all columns, with zeros outside, which add nothing."""
    if not reads_all(run, maps.shape[-1]):
        return _strip(xp, maps, run.start, run.stop)
    if (run.start, run.stop) == (0, maps.shape[-1]):
        return maps
    kept = assign(xp.asarray(maps, copy=True), (..., slice(0, run.start)), 0.0)
    return assign(kept, (..., slice(run.stop, None)), 0.0)


def _right(xp: Any, maps: Array, run: Run, lag: int) -> Array:
    return maps if reads_all(run, maps.shape[-1]) else _strip(xp, maps, run.start + lag, run.stop + lag)


def _strip(xp: Any, maps: Array, start: int, stop: int) -> Array:
    return xp.asarray(maps[..., start:stop], copy=True)
