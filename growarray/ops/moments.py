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

from growarray.backend import Array, asarray, device_of, is_numpy, namespace
from growarray.contraction.problem import Axis
from growarray.contraction.threads import run_tasks, settled
from growarray.contraction.windows import window
from growarray.errors import ShapeError, shown
from growarray.ops.lags import Lag, MomentPlan, Pairs, Run, moment_plan, orders, reads_all
from growarray.ops.windows import Windows

__all__ = ["window_moment"]

_LARGEST = 1 << 25  # bytes in float64 from which on an image is taken in pieces
_SHARED = 3  # products from which on each has one thread; fewer are left to the threads of BLAS

Maps = dict[tuple[int, int], Array]
Totals = dict[tuple[int, int, int, int], Array]


def window_moment(left: Windows, right: Windows | None = None, *, lagged: Sequence[int] | None = None) -> Array:
    """Sum over images and output positions of ``left^T right``, float64; ``right=None`` is ``left``.

    lagged : at most two axes that are not unfolded, the outer one first, ``()`` to unfold all; None for the cheapest
    Returns (left.width, right.width), in float64 whatever the dtype of the arrays. All choices give the same, to
    rounding: every product is made and summed in float64. A gradient (n, o, *positions) takes part as windows with a
    kernel of ones: with it the moment is the gradient of the weight, transposed.

    Raises
    ------
    ShapeError
        The two have not the same images or output positions.
    TypeError
        The arrays belong to two libraries or devices.
    ValueError
        ``lagged`` names an axis twice, more than two, or one that does not exist.

    Examples
    --------
    >>> from growarray.ops.windows import windows
    >>> x = np.arange(3.0).reshape(1, 1, 3)
    >>> window_moment(windows(x, (2,), bias=True)).tolist()
    [[1.0, 2.0, 1.0], [2.0, 5.0, 3.0], [1.0, 3.0, 2.0]]
    """
    symmetric = right is None or right is left
    right = left if right is None else right
    xp = namespace(left.array, right.array, where="window_moment: ")
    _check(left, right, lagged)
    totals: Totals = {}
    for one, other, plan in _pieces(left, right, symmetric, None if lagged is None else tuple(lagged)):
        for start in range(0, left.samples, plan.images):
            images = slice(start, start + plan.images)
            maps = _maps(xp, one, images, plan, "left")
            others = maps if symmetric else _maps(xp, other, images, plan, "right")
            _add(xp, totals, maps, others, plan, symmetric)
    return _bordered(xp, _assembled(xp, totals, left, right, plan.lagged, symmetric), left, right)


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
    plan = moment_plan(left.axes, right.axes, sizes, symmetric, lagged, device)
    outs = left.positions
    longest = outs.index(max(outs))
    count = max(1, min(outs[longest], -(-plan.size // _LARGEST)))
    for i in range(count):
        if count > 1:
            cut = [slice(0, out) for out in outs]
            cut[longest] = slice(outs[longest] * i // count, outs[longest] * (i + 1) // count)
            one, other = left.cropped(cut), right.cropped(cut)
            plan = moment_plan(one.axes, other.axes, sizes, symmetric, plan.lagged, device)
        else:
            one, other = left, right
        yield one, other, plan


def _maps(xp: Any, w: Windows, images: slice, plan: MomentPlan, side: str) -> Maps:
    """The phases of the lagged axes that this side needs."""
    x = w.array[images, ...]
    phases = itertools.product(plan.outer.phases(side), plan.inner.phases(side))
    return {both: _gathered(xp, x, w.axes, plan, both) for both in phases}


def _gathered(xp: Any, x: Array, axes: Sequence[Axis], plan: MomentPlan, phases: tuple[int, int]) -> Array:
    """One phase in float64: (c and taps of the unfolded axes, rows, images and outputs of those axes, columns)."""
    read = list(axes)
    for i, lagged, phase in zip(plan.lagged, (plan.outer, plan.inner), phases, strict=False):
        before = axes[i].before - phase - lagged.first * axes[i].stride
        read[i] = axes[i]._replace(taps=1, out=lagged.count, before=before, dilation=1)
    rest = [i for i in range(len(axes)) if i not in plan.lagged]
    order = [*plan.lagged[:1], None, *rest, *plan.lagged[1:]]
    source = xp.permute_dims(x, (1, *(0 if i is None else i + 2 for i in order)))
    taps = [read[i].taps for i in rest]
    outs = [x.shape[0] if i is None else read[i].out for i in order]
    target = xp.zeros((x.shape[1], *taps, *outs), dtype=xp.float64, device=device_of(x))
    for chosen in itertools.product(*map(range, taps)):
        tap = dict(zip(rest, chosen, strict=True))
        found = [
            (0, outs[k], slice(None)) if i is None else window(read[i], tap.get(i, 0), 0, read[i].out)
            for k, i in enumerate(order)
        ]
        piece = source[(slice(None), *(part for _, _, part in found))]
        into = (slice(None), *chosen, *(slice(low, high) for low, high, _ in found))
        target[into] = piece if is_numpy(piece) else xp.astype(piece, xp.float64)
    return xp.reshape(target, (x.shape[1] * math.prod(taps), plan.outer.count, -1, plan.inner.count))


def _add(xp: Any, totals: Totals, maps: Maps, others: Maps, plan: MomentPlan, symmetric: bool) -> None:
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
            if len(tasks) >= _SHARED and is_numpy(left):
                settled(partial(run_tasks, tasks))
            else:
                for task in tasks:
                    task()


def _left(xp: Any, maps: Array, run: Run) -> Array:
    """The columns of a short run; of a long one all columns, zeros outside: what they meet there does not matter."""
    if not reads_all(run, maps.shape[-1]):
        return _strip(xp, maps, run.start, run.stop)
    if (run.start, run.stop) == (0, maps.shape[-1]):
        return maps
    kept = xp.asarray(maps, copy=True)
    kept[..., : run.start] = 0.0
    kept[..., run.stop :] = 0.0
    return kept


def _right(xp: Any, maps: Array, run: Run, lag: int) -> Array:
    return maps if reads_all(run, maps.shape[-1]) else _strip(xp, maps, run.start + lag, run.stop + lag)


def _strip(xp: Any, maps: Array, start: int, stop: int) -> Array:
    return xp.asarray(maps[..., start:stop], copy=True)


def _products(xp: Any, totals: Totals, left: Array, right: Array, outer: Lag, inner: Pairs, shift: int) -> None:
    """The products of one lag, of each run of rows one, added to the totals of the pairs of taps that sum over it."""
    width = math.prod(left.shape[2:])
    ahead = outer.lag * width + shift
    a, b = (xp.reshape(x, (x.shape[0], -1)) for x in (left, right))
    for run in outer.runs:
        start, stop = max(run.start * width, -ahead), min(run.stop * width, a.shape[1] - ahead)
        part = a[:, start:stop] @ xp.matrix_transpose(b[:, start + ahead : stop + ahead])
        for (s, t), (u, v) in itertools.product(run.pairs, inner):
            held = totals.get((s, u, t, v))
            totals[s, u, t, v] = part if held is None else held + part


def _assembled(
    xp: Any, totals: Totals, left: Windows, right: Windows, lagged: tuple[int, ...], symmetric: bool
) -> Array:
    """Blocks of pairs of taps as one matrix, features (c, *taps) on both sides."""
    shapes = [(int(w.array.shape[1]), *(axis.taps for axis in w.axes)) for w in (left, right)]
    out = xp.zeros((*shapes[0], *shapes[1]), dtype=xp.float64, device=device_of(left.array))
    places: list[dict[tuple[int, ...], tuple[Any, ...]]] = []
    for w in (left, right):
        taps = itertools.product(*(range(w.axes[i].taps) for i in lagged))
        places.append({})
        for chosen in taps:
            at = dict(zip(lagged, chosen, strict=True))
            place = (slice(None), *(at.get(i, slice(None)) for i in range(len(w.axes))))
            places[-1][(*chosen, 0, 0)[:2]] = place
    blocks = [tuple(n for i, n in enumerate(shape) if i - 1 not in lagged) for shape in shapes]
    for key in list(totals):
        block, one, other = totals.pop(key), key[:2], key[2:]
        out[(*places[0][one], *places[1][other])] = xp.reshape(block, (*blocks[0], *blocks[1]))
        if symmetric and one != other:
            mirrored = xp.reshape(xp.matrix_transpose(block), (*blocks[1], *blocks[0]))
            out[(*places[1][other], *places[0][one])] = mirrored
    return xp.reshape(out, (math.prod(shapes[0]), math.prod(shapes[1])))


def _bordered(xp: Any, moment: Array, left: Windows, right: Windows) -> Array:
    """The moment with what the columns of ones have with every feature."""
    column = _sums(xp, left) if right.bias else None
    if column is not None:
        moment = xp.concat([moment, column[:, None]], axis=1)
    if left.bias:
        row = column if column is not None and left is right else _sums(xp, right)
        if right.bias:
            count = asarray(np.full(1, float(right.samples * math.prod(right.positions))), like=row)
            row = xp.concat([row, count])
        moment = xp.concat([moment, row[None, :]], axis=0)
    return moment


def _sums(xp: Any, w: Windows) -> Array:
    """Sum of each feature over images and outputs: of each position over the images, then of those that a tap reads."""
    sums = xp.sum(w.array, axis=0, dtype=xp.float64)
    for axis in w.axes:
        reads = np.zeros((axis.size, axis.taps))
        for tap in range(axis.taps):
            reads[window(axis, tap, 0, axis.out)[2], tap] = 1.0
        sums = xp.tensordot(sums, asarray(reads, like=sums), axes=((1,), (0,)))
    return xp.reshape(sums, (-1,))
