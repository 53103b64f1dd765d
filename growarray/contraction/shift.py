"""Convolution without a sum over channels, on NumPy: shifted multiply-adds over padded planes that fit the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from growarray.contraction.problem import Axis
from growarray.contraction.scratch import borrow
from growarray.contraction.windows import Phases, Task

__all__ = ["Shift"]

_SHIFT = 1 << 15  # elements of one plane in a chunk: several planes of it share the cache


class Shift:
    """out[b, q] = sum over taps of weights[b, tap] feature[b, q + tap], for fixed sizes.

    Padded features lie in planes, one for each phase of the strides, so that what a tap reads is one shifted run of a
    plane. Runs go over the ends of rows: what they compute there is never copied out.
    """

    def __init__(self, b: int, axes: Sequence[Axis]) -> None:
        self.b, self.outs = b, tuple(a.out for a in axes)
        self.phases = Phases(axes)
        self.reach = self.phases.reach
        steps = [math.prod(self.reach[i + 1 :]) for i in range(len(axes))]
        self.taps = [
            (plane, sum(start * step for start, step in zip(starts, steps, strict=True)))
            for plane, starts in self.phases.taps
        ]
        self.plane = math.prod(self.reach)
        self.run = sum((out - 1) * step for out, step in zip(self.outs, steps, strict=True)) + 1
        self.compact = self.run == math.prod(self.outs)  # nothing lies between the results
        self.valid = tuple(slice(out) for out in self.outs)
        step = max(1, _SHIFT // max(self.plane, 1))
        self.chunks = [slice(start, min(start + step, b)) for start in range(0, b, step)]

    def planes(self, feature: np.ndarray) -> np.ndarray:
        """Padded features (b, *sizes) by phase, flat: (phases, b, plane)."""
        planes = self.phases.planes(feature)
        return planes.reshape(*planes.shape[:2], self.plane)

    def tasks(self, feature: np.ndarray, weights: np.ndarray, out: np.ndarray) -> list[Task]:
        """Pieces of ``out`` (b, *outs); ``weights`` is (b, taps)."""
        return [lambda c=c: self._piece(feature[c], weights[c], out[c]) for c in self.chunks]  # type: ignore[misc]

    def _piece(self, feature: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
        planes, run = self.planes(feature), self.run
        count = planes.shape[1]
        direct = self.compact and out.flags.c_contiguous
        whole = out.reshape(count, run) if direct else borrow("total", (count, self.plane), out.dtype)
        total, part = whole[:, :run], borrow("part", (count, run), out.dtype)
        for index, (plane, shift) in enumerate(self.taps):
            np.multiply(planes[plane, :, shift : shift + run], weights[:, index, None], out=part if index else total)
            if index:
                np.add(total, part, out=total)
        if not direct:
            out[...] = whole.reshape(count, *self.reach)[(slice(None), *self.valid)]

    def gradient_tasks(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> list[Task]:
        """Pieces of the gradient by the weights, into ``out`` (b, taps)."""
        return [lambda c=c: self._gradient(d_out[c], feature[c], out[c]) for c in self.chunks]  # type: ignore[misc]

    def _gradient(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> None:
        planes = self.planes(feature)
        spread = borrow("total", (planes.shape[1], *self.reach), d_out.dtype)
        if not self.compact:
            spread[...] = 0
        spread[(slice(None), *self.valid)] = d_out
        flat = spread.reshape(planes.shape[1], self.plane)[:, : self.run]
        for index, (plane, shift) in enumerate(self.taps):
            out[:, index] = np.einsum("bl,bl->b", planes[plane, :, shift : shift + self.run], flat)
