"""Convolution without a sum over channels, on NumPy: shifted multiply-adds over padded planes that fit the cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from growarray.contraction.problem import Axis
from growarray.contraction.scratch import borrow
from growarray.contraction.windows import Task, fill

__all__ = ["shift_gradient_tasks", "shift_tasks"]

_SHIFT = 1 << 15  # elements of one plane in a chunk: several planes of it share the cache


def _reach(axis: Axis) -> int:
    """Positions of one phase of the padded axis that all taps together read."""
    return axis.out + (axis.taps - 1) * axis.dilation // axis.stride


def _planes(feature: np.ndarray, axes: Sequence[Axis], slot: str) -> tuple[np.ndarray, list[tuple[int, int]], int]:
    """Padded feature (b, *sizes) by phase of the strides, flat, so that every tap is one shifted run of a plane.

    Returns planes (phases, b, length), for every tap its plane and shift, and the length of a run. Runs go over the
    ends of rows: what they compute there is never copied out.
    """
    reach = [_reach(a) for a in axes]
    phases = [sorted({t * a.dilation % a.stride for t in range(a.taps)}) for a in axes]
    grid = list(itertools.product(*phases))
    planes = borrow(slot, (len(grid), feature.shape[0], *reach), feature.dtype)
    whole = [a._replace(out=r) for a, r in zip(axes, reach, strict=True)]
    for plane, phase in zip(planes, grid, strict=True):
        shifted = [a._replace(before=a.before - p) for a, p in zip(whole, phase, strict=True)]
        fill(plane, feature, shifted, (0,) * len(axes), range(0), -1)
    steps = [math.prod(reach[i + 1 :]) for i in range(len(reach))]
    taps = []
    for chosen in itertools.product(*(range(a.taps) for a in axes)):
        phase = tuple(t * a.dilation % a.stride for t, a in zip(chosen, axes, strict=True))
        shift = sum(t * a.dilation // a.stride * step for t, a, step in zip(chosen, axes, steps, strict=True))
        taps.append((grid.index(phase), shift))
    run = sum((a.out - 1) * step for a, step in zip(axes, steps, strict=True)) + 1
    return planes.reshape(len(grid), feature.shape[0], -1), taps, run


def _channel_chunks(count: int, axes: Sequence[Axis]) -> Iterator[slice]:
    plane = math.prod(_reach(a) for a in axes)
    step = max(1, _SHIFT // max(plane, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def shift_tasks(feature: np.ndarray, weights: np.ndarray, out: np.ndarray, axes: Sequence[Axis]) -> list[Task]:
    """out[b, q] = sum over taps of weights[b, tap] feature[b, q + tap]: each b on its own, no sum over channels."""

    def piece(chosen: slice) -> None:
        planes, taps, run = _planes(feature[chosen], axes, "planes")
        total, part = borrow("total", planes.shape[1:], out.dtype), borrow("part", planes.shape[1:], out.dtype)
        for index, (plane, shift) in enumerate(taps):
            view, weight = planes[plane, :, shift : shift + run], weights[chosen, index, None]
            np.multiply(view, weight, out=part[:, :run] if index else total[:, :run])
            if index:
                np.add(total[:, :run], part[:, :run], out=total[:, :run])
        grid = total.reshape(-1, *(_reach(a) for a in axes))
        out[chosen] = grid[(slice(None), *(slice(a.out) for a in axes))]

    return [lambda c=c: piece(c) for c in _channel_chunks(feature.shape[0], axes)]  # type: ignore[misc]


def shift_gradient_tasks(d_out: np.ndarray, feature: np.ndarray, out: np.ndarray, axes: Sequence[Axis]) -> list[Task]:
    """Gradient of :func:`shift_tasks` by its weights, into ``out`` (b, taps)."""
    reach = [_reach(a) for a in axes]

    def piece(chosen: slice) -> None:
        planes, taps, run = _planes(feature[chosen], axes, "planes")
        spread = borrow("total", (planes.shape[1], *reach), d_out.dtype)
        spread[...] = 0
        spread[(slice(None), *(slice(a.out) for a in axes))] = d_out[chosen]
        flat = spread.reshape(planes.shape[1], -1)[:, :run]
        for index, (plane, shift) in enumerate(taps):
            out[chosen, index] = np.einsum("bl,bl->b", planes[plane, :, shift : shift + run], flat)

    return [lambda c=c: piece(c) for c in _channel_chunks(feature.shape[0], axes)]  # type: ignore[misc]
