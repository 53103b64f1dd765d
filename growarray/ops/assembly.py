"""From products over runs of positions to the moment: the sums of each pair of taps, laid out by features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, assign, device_of, is_numpy
from growarray.contraction.problem import Axis
from growarray.contraction.routines.windows import window
from growarray.contraction.threads import run_tasks
from growarray.ops.lags import Lag
from growarray.ops.windows import Windows

Products = dict[tuple[Lag, Lag], Array]
"""By lag of the outer and of the inner axis: (runs, runs, left features, right features)."""

Place = tuple[Any, ...]
Found = tuple[Lag, Lag, Array]


def assembled(
    xp: Any, products: Products, left: Windows, right: Windows, lagged: tuple[int, ...], symmetric: bool
) -> Array:
    """The moment of all features but those of bias, (left features, right features), zeros for the bias.

    The products are taken out of ``products``.
    """
    out = xp.zeros((left.width, right.width), dtype=xp.float64, device=device_of(left.array))
    shapes = [(int(w.array.shape[1]), *(axis.taps for axis in w.axes)) for w in (left, right)]
    sizes = [math.prod(shape) for shape in shapes]
    inside = (slice(sizes[0]), slice(sizes[1]))
    whole = (*shapes[0], *shapes[1])
    places = [_places(w, lagged) for w in (left, right)]
    equal: dict[Any, list[Found]] = {}  # all that is added to the same places
    for outer, inner in list(products):
        equal.setdefault((outer.key, inner.key), []).append((outer, inner, products.pop((outer, inner))))
    if is_numpy(out):
        grid = np.reshape(out[inside], whole)
        run_tasks([partial(_place, xp, grid, places, found, symmetric) for found in equal.values()])
        return out
    grid = xp.zeros(whole, dtype=out.dtype, device=out.device)
    for found in equal.values():
        grid = _place(xp, grid, places, found, symmetric)
    return assign(out, inside, xp.reshape(grid, (sizes[0], sizes[1])))


def _place(
    xp: Any, grid: Array, places: Sequence[dict[tuple[int, ...], Place]], found: list[Found], symmetric: bool
) -> Array:
    for index, (outer, inner, block) in enumerate(found):
        for (s, t), rows in outer.spans.items():
            of_rows = _sum(block, rows)
            for (u, v), columns in inner.spans.items():
                total = _sum(of_rows, columns)
                both = [((s, u), (t, v), total)]
                if symmetric and (s, u) != (t, v):
                    both.append(((t, v), (s, u), xp.matrix_transpose(total)))
                for row, column, part in both:
                    place = (*places[0][row], *places[1][column])
                    grid = assign(grid, place, xp.reshape(part, grid[place].shape), add=index > 0)
    return grid


def _sum(block: Array, runs: slice) -> Array:
    return sum((block[i, ...] for i in range(runs.start + 1, runs.stop)), block[runs.start, ...])


def _places(w: Windows, lagged: tuple[int, ...]) -> dict[tuple[int, ...], Place]:
    """Where the features of a pair of lagged taps, or of one tap and 0, lie among (c, *taps)."""
    places = {}
    for chosen in itertools.product(*(range(w.axes[i].taps) for i in lagged)):
        at = dict(zip(lagged, chosen, strict=True))
        places[(*chosen, 0, 0)[:2]] = (slice(None), *(at.get(i, slice(None)) for i in range(len(w.axes))))
    return places


def feature_sums(xp: Any, w: Windows, sums: Array) -> Array:
    """Sum of each feature over outputs, from the sums of the maps (c, *sizes) over images."""
    for axis in w.axes:
        sums = xp.moveaxis(sums, 1, -1) @ asarray(_reads(axis), like=sums)
    return xp.reshape(sums, (-1,))


@lru_cache(maxsize=512)
def _reads(axis: Axis) -> np.ndarray:
    """(positions, taps) : how many outputs read a position by a tap."""
    reads = np.zeros((axis.size, axis.taps))
    for tap in range(axis.taps):
        reads[window(axis, tap, 0, axis.out)[2], tap] = 1.0
    reads.flags.writeable = False
    return reads
