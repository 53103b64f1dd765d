"""Copying the phases of a block of images, a few channels at a time; mixing and adding up images on the way."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import Array, assign, device_of, is_numpy
from growarray.contraction.kernels import Rows
from growarray.contraction.problem import Axis
from growarray.contraction.routines.windows import window
from growarray.ops.lags import MIXED, MomentPlan
from growarray.ops.windows import Windows

_COPIED = 1 << 16  # elements that are copied, or mixed and copied, at a time

Maps = dict[tuple[int, int], Array]
"""By phase of the outer and the inner axis: (features, rows, between, columns)."""


class Copies(NamedTuple):
    """How one phase is copied into (c, taps, rows, images, other outputs, columns).

    order : axes of (n, c, *sizes)    taps : of the unfolded axes    lengths : of what follows, None for the images
    places : for each tap the slices written and read    full : whether they cover everything
    """

    order: tuple[int, ...]
    taps: tuple[int, ...]
    lengths: tuple[int | None, ...]
    places: tuple[tuple[tuple[Any, ...], tuple[slice, ...]], ...]
    full: bool


@lru_cache(maxsize=512)
def _copies(axes: tuple[Axis, ...], lagged: tuple[tuple[int, int, int, int], ...]) -> Copies:
    """``lagged`` : axis, phase, first index and number of indices of each lagged axis, the outer one first.

    Rows of all images lie together, so that what is summed one after the other is not alike.
    """
    read, chosen_axes = list(axes), [i for i, *_ in lagged]
    for i, phase, first, count in lagged:
        before = axes[i].before - phase - first * axes[i].stride
        read[i] = axes[i]._replace(taps=1, out=count, before=before, dilation=1)
    rest = [i for i in range(len(axes)) if i not in chosen_axes]
    order = [*chosen_axes[:1], *rest, *chosen_axes[1:]]
    places, full = [], True
    for chosen in itertools.product(*(range(read[i].taps) for i in rest)):
        tap = dict(zip(rest, chosen, strict=True))
        found = [window(read[i], tap.get(i, 0), 0, read[i].out) for i in order]
        into = [slice(low, high) for low, high, _ in found]
        full &= all(high - low == read[i].out for i, (low, high, _) in zip(order, found, strict=True))
        source = [part for *_, part in found]
        everything = slice(None)
        places.append(
            ((everything, *chosen, into[0], everything, *into[1:]), (everything, source[0], everything, *source[1:]))
        )
    lengths = [read[i].out for i in order]
    return Copies(
        (1, order[0] + 2, 0, *(i + 2 for i in order[1:])),
        tuple(read[i].taps for i in rest),
        (lengths[0], None, *lengths[1:]),
        tuple(places),
        full,
    )


def is_mixed(plan: MomentPlan, images: slice) -> bool:
    """Whether these images are mixed, to be multiplied in single precision."""
    return plan.single and (images.stop - images.start) % MIXED == 0


def phase_maps(
    xp: Any, w: Windows, images: slice, plan: MomentPlan, side: str, *, summed: bool
) -> tuple[list[Maps], Array | None]:
    """The phases of the lagged axes that this side needs: in float64, or mixed in float32 and their mean in float64.

    Also, if ``summed``, the sum of the maps over the images, in float64.
    """
    x = w.array[images, ...]
    mixed = is_mixed(plan, images)
    todo = {}
    for phases in itertools.product(plan.outer.phases(side), plan.inner.phases(side)):
        stored = zip(plan.lagged, phases, (plan.outer, plan.inner), strict=False)
        todo[phases] = _copies(w.axes, tuple((i, phase, axis.first, axis.count) for i, phase, axis in stored))
    kinds = [(x.shape[0] - 1, x.dtype), (1, xp.float64)] if mixed else [(x.shape[0], xp.float64)]
    targets: list[Maps] = [
        {key: _target(xp, x, count, dtype, copies) for key, copies in todo.items()} for count, dtype in kinds
    ]
    sums = xp.zeros(x.shape[1:], dtype=xp.float64, device=device_of(x)) if summed else None
    for channels in _channel_blocks(x):
        part = x[:, channels, ...]
        *sources, total = _mixed(part) if mixed else (part, xp.sum(part, axis=0, dtype=xp.float64) if summed else None)
        sums = assign(sums, (channels, ...), total) if summed else None
        for source, maps in zip(sources, targets, strict=True):
            for phases, target in maps.items():
                filled = _copy(xp, target[channels, ...], source, todo[phases])
                if not is_numpy(filled):  # of NumPy it is a view of the target; others have all channels at once
                    maps[phases] = filled
    matrices = [
        {phases: _as_matrix(xp, copies, todo[phases], plan) for phases, copies in maps.items()} for maps in targets
    ]
    return matrices, sums


def _target(xp: Any, x: Array, images: int, dtype: Any, todo: Copies) -> Array:
    """What so many images are copied to; zeros if a tap reads padding."""
    shape = (x.shape[1], *todo.taps, *(images if n is None else n for n in todo.lengths))
    return (xp.empty if todo.full else xp.zeros)(shape, dtype=dtype, device=device_of(x))


def _as_matrix(xp: Any, array: Array, todo: Copies, plan: MomentPlan) -> Array:
    """Features in one axis, and what lies between rows and columns in another."""
    features, rows, columns = math.prod(array.shape[: 1 + len(todo.taps)]), plan.outer.count, plan.inner.count
    between = math.prod(array.shape[1 + len(todo.taps) :]) // (rows * columns)
    return xp.reshape(array, (features, rows, between, columns))


def _mixed(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float32 images with the same moments, whose values are not alike; their mean in float64, as an image; the sum."""
    rows, sums = Rows(images.reshape(len(images), -1)).mixed(0, len(images))
    mixed = rows.reshape(-1, *images.shape[1:])
    return mixed[:-1], mixed[-1:].astype(np.float64), sums.reshape(images.shape[1:])


def _channel_blocks(x: Array) -> list[slice]:
    """Channels that are copied together: all of them, or as many as stay in the cache."""
    count = int(x.shape[1])
    step = max(1, _COPIED * count // max(math.prod(x.shape), 1)) if is_numpy(x) else max(count, 1)
    return [slice(start, min(start + step, count)) for start in range(0, max(count, 1), step)]


def _copy(xp: Any, target: Array, x: Array, todo: Copies) -> Array:
    source = xp.permute_dims(x, todo.order)
    for into, read in todo.places:
        piece = source[read]
        target = assign(target, into, piece if is_numpy(piece) else xp.astype(piece, target.dtype))
    return target
