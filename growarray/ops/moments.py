"""Moments of the windows that a convolution sees, without unfolding them all: sums over images and output positions.

Of the taps on a lagged axis only those products are made that differ: pairs of taps at the same lag multiply the same
shifted feature maps. Their sums differ at the borders alone, which are added apart, so that nothing cancels. The other
axes are unfolded, for one block of images at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, assign, device_of, is_cupy, is_numpy, load, namespace
from growarray.contraction.routines.windows import window
from growarray.errors import ShapeError, shown
from growarray.ops.lags import DEEP, LARGEST, MIXED, Lag, MomentPlan, Pairs, Run, moment_plan, orders, reads_all
from growarray.ops.phases import Maps, channel_blocks, phase_maps, run_shared
from growarray.ops.windows import Windows

_SQUARES = (1e-20, 1e37)  # sums of squares between which products in single precision neither vanish nor overflow

Totals = dict[tuple[int, int, int, int], Array]


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
    totals: Totals = {}
    for one, other, plan in _pieces(left, right, symmetric, None if lagged is None else tuple(lagged)):
        for images in _blocks(left.samples, plan):
            _add_images(xp, totals, one, None if symmetric else other, images, plan)
    return _assembled(xp, totals, left, right, plan.lagged, symmetric)


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
    """Both sides and their plan; in pieces along the axis with most outputs if an image is large."""
    sizes = (left.samples, int(left.array.shape[1]), int(right.array.shape[1]))
    device = "cpu" if is_numpy(left.array) else "gpu"
    narrow = all(is_numpy(w.array) and w.array.dtype == np.float32 for w in (left, right))
    plan = moment_plan(left.axes, right.axes, sizes, symmetric, lagged, narrow, device)
    if plan.single and not all(map(_is_moderate, (left.array,) if symmetric else (left.array, right.array))):
        plan = moment_plan(left.axes, right.axes, sizes, symmetric, lagged, False, device)
    outs = left.positions
    longest = outs.index(max(outs))
    count = max(1, min(outs[longest], -(-plan.size * plan.images // LARGEST)))
    for i in range(count):
        if count > 1:
            cut = [slice(0, out) for out in outs]
            cut[longest] = slice(outs[longest] * i // count, outs[longest] * (i + 1) // count)
            one, other = left.cropped(cut), right.cropped(cut)
            plan = moment_plan(one.axes, other.axes, sizes, symmetric, plan.lagged, plan.single, device)
        else:
            one, other = left, right
        yield one, other, plan


def _is_moderate(x: np.ndarray) -> bool:
    """Whether all values are finite, and their products neither vanish nor overflow in single precision."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(_SQUARES[0] < np.vdot(x, x) < _SQUARES[1])


def _blocks(count: int, plan: MomentPlan) -> Iterator[slice]:
    """Images taken together; those that are too few to be mixed are the last."""
    mixable = count - count % MIXED if plan.single else count
    for start in range(0, mixable, plan.images):
        yield slice(start, min(start + plan.images, mixable))
    if mixable < count:
        yield slice(mixable, count)


def _add_images(xp: Any, totals: Totals, left: Windows, right: Windows | None, images: slice, plan: MomentPlan) -> None:
    lefts = phase_maps(xp, left, images, plan, "left")
    rights = lefts if right is None else phase_maps(xp, right, images, plan, "right")
    for maps, others in zip(lefts, rights, strict=True):
        _add(xp, totals, maps, others, plan, symmetric=right is None)


def _add(xp: Any, totals: Totals, maps: Maps, others: Maps, plan: MomentPlan, *, symmetric: bool) -> None:
    """Add the products of one block of images; if both sides are one, of two mirrored lags only one."""
    for inner in plan.inner.lags:
        for run in inner.runs:
            lefts: dict[int, Array] = {}
            rights: dict[int, Array] = {}
            tasks = []
            shift = inner.lag if reads_all(run, plan.inner.count) else 0
            for outer in plan.outer.lags:
                key, mirrored = (outer.key, inner.key), (outer.mirrored, inner.mirrored)
                if symmetric and mirrored < key:
                    continue
                if outer.left not in lefts:
                    lefts[outer.left] = _left(xp, maps[outer.left, inner.left], run)
                left = right = lefts[outer.left]
                if not symmetric or mirrored != key:
                    if outer.right not in rights:
                        rights[outer.right] = _right(xp, others[outer.right, inner.right], run, inner.lag)
                    right = rights[outer.right]
                tasks.append(partial(_products, xp, totals, left, right, outer, run.pairs, shift))
            run_shared(tasks)


def _left(xp: Any, maps: Array, run: Run) -> Array:
    """The columns of a short run; of a long one all columns, zeros outside: what they meet there does not matter."""
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


def _products(xp: Any, totals: Totals, left: Array, right: Array, outer: Lag, inner: Pairs, shift: int) -> None:
    """The products of one lag, of each run of rows one, added to the totals of the pairs of taps that sum over it."""
    width = math.prod(left.shape[2:])
    ahead = outer.lag * width + shift
    a, b = (xp.reshape(x, (x.shape[0], math.prod(x.shape[1:]))) for x in (left, right))
    for run in outer.runs:
        start, stop = max(run.start * width, -ahead), min(run.stop * width, a.shape[1] - ahead)
        part = _product(xp, a[:, start:stop], b[:, start + ahead : stop + ahead])
        for index, ((s, t), (u, v)) in enumerate(itertools.product(run.pairs, inner)):
            held = totals.get((s, u, t, v))
            if held is not None:
                totals[s, u, t, v] = assign(held, ..., part, add=True)
            else:  # each pair is added to apart from now on
                totals[s, u, t, v] = xp.asarray(part, copy=True) if index else part


def _product(xp: Any, a: Array, b: Array) -> Array:
    """``a b^T`` in float64; in pieces if the product itself is made in single precision."""
    if a.dtype == xp.float64:
        return a @ xp.matrix_transpose(b)
    total = xp.zeros((a.shape[0], b.shape[0]), dtype=xp.float64)
    for start in range(0, a.shape[1], DEEP):
        total += a[:, start : start + DEEP] @ xp.matrix_transpose(b[:, start : start + DEEP])
    return total


def _assembled(
    xp: Any, totals: Totals, left: Windows, right: Windows, lagged: tuple[int, ...], symmetric: bool
) -> Array:
    """The blocks of all pairs of taps as one matrix, with what the columns of ones have with every feature."""
    out = xp.zeros((left.width, right.width), dtype=xp.float64, device=device_of(left.array))
    shapes = [(int(w.array.shape[1]), *(axis.taps for axis in w.axes)) for w in (left, right)]
    sizes = [math.prod(shape) for shape in shapes]
    inside = (slice(sizes[0]), slice(sizes[1]))
    whole = (*shapes[0], *shapes[1])
    grid = np.reshape(out[inside], whole) if is_numpy(out) else xp.zeros(whole, dtype=out.dtype, device=out.device)
    places = [_places(w, lagged) for w in (left, right)]
    for key in list(totals):
        block, one, other = totals.pop(key), key[:2], key[2:]
        both = [(one, other, block)]
        if symmetric and one != other:
            both.append((other, one, xp.matrix_transpose(block)))
        for row, column, found in both:
            place = (*places[0][row], *places[1][column])
            grid = assign(grid, place, xp.reshape(found, grid[place].shape))
    if not is_numpy(out):
        out = assign(out, inside, xp.reshape(grid, (sizes[0], sizes[1])))
    if right.bias:
        out = assign(out, (inside[0], sizes[1]), _sums(xp, left))
    if left.bias:
        row = out[inside[0], sizes[1]] if symmetric else _sums(xp, right)
        out = assign(out, (sizes[0], inside[1]), row)
    if left.bias and right.bias:
        out = assign(out, (sizes[0], sizes[1]), float(right.samples * math.prod(right.positions)))
    return out


def _places(w: Windows, lagged: tuple[int, ...]) -> dict[tuple[int, ...], tuple[Any, ...]]:
    """Where the features of a pair of lagged taps, or of one tap and 0, lie among (c, *taps)."""
    places = {}
    for chosen in itertools.product(*(range(w.axes[i].taps) for i in lagged)):
        at = dict(zip(lagged, chosen, strict=True))
        places[(*chosen, 0, 0)[:2]] = (slice(None), *(at.get(i, slice(None)) for i in range(len(w.axes))))
    return places


def _sums(xp: Any, w: Windows) -> Array:
    """Sum of each feature over images and outputs: of each position over the images, then of those that a tap reads."""
    parts: dict[int, Array] = {}

    def add(channels: slice) -> None:
        parts[channels.start] = xp.sum(w.array[:, channels, ...], axis=0, dtype=xp.float64)

    run_shared([partial(add, channels) for channels in channel_blocks(w.array)])
    sums = xp.concat([parts[start] for start in sorted(parts)])
    for axis in w.axes:
        reads = np.zeros((axis.size, axis.taps))
        for tap in range(axis.taps):
            reads[window(axis, tap, 0, axis.out)[2], tap] = 1.0
        sums = xp.tensordot(sums, asarray(reads, like=sums), axes=((1,), (0,)))
    return xp.reshape(sums, (-1,))
