"""Convolution without a sum over channels, on NumPy: shifted multiply-adds with the channels innermost.

Channels last, one row of positions times channels is one long run for every tap; channels first, runs are as short as
the rows of the image (measured: 2 to 5 times slower below 56 positions a row).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from growarray.contraction.problem import Axis
from growarray.contraction.scratch import borrow
from growarray.contraction.windows import Phases, Task

__all__ = ["Shift"]

_PIECE = 1 << 17  # elements of one piece


class _Piece:
    """Some outputs of one axis, the longest: where they lie, and the padded planes that they read."""

    def __init__(self, axes: Sequence[Axis], at: int, start: int, stop: int) -> None:
        cut = axes[at]._replace(out=stop - start, before=axes[at].before - start * axes[at].stride)
        self.place = (*(slice(None) for _ in range(at)), slice(start, stop))
        own = [*axes[:at], cut, *axes[at + 1 :]]
        self.outs = tuple(a.out for a in own)
        self.phases = Phases(own, lead=0)
        self.reads = [
            (plane, tuple(slice(s, s + out) for s, out in zip(starts, self.outs, strict=True)))
            for plane, starts in self.phases.taps
        ]


class Shift:
    """out[b, q] = sum over taps of weights[b, tap] feature[b, q + tap], for fixed sizes."""

    def __init__(self, b: int, axes: Sequence[Axis]) -> None:
        self.b, self.outs = b, tuple(a.out for a in axes)
        at = int(np.argmax(self.outs))
        count = max(1, min(self.outs[at], b * math.prod(self.outs) // _PIECE))
        step = max(1, -(-self.outs[at] // count))
        starts = range(0, self.outs[at], step)
        self.pieces = [_Piece(axes, at, start, min(start + step, self.outs[at])) for start in starts]

    def prepare(self, weights: np.ndarray) -> np.ndarray:
        """Weights (b, taps) repeated for every position of a row: (taps, positions b)."""
        return np.tile(weights.T, (1, self.outs[-1]))

    def tasks(self, feature: np.ndarray, weights: np.ndarray, out: np.ndarray) -> list[Task]:
        """Pieces of ``out`` (b, *outs) from ``feature`` (b, *sizes); fast where both lie with b innermost."""
        source, target = (x.transpose(*range(1, x.ndim), 0) for x in (feature, out))
        return [lambda p=p: self._piece(source, weights, target[p.place], p) for p in self.pieces]  # type: ignore[misc]

    def _piece(self, source: np.ndarray, weights: np.ndarray, target: np.ndarray, piece: _Piece) -> None:
        planes = piece.phases.planes(source, lead=0)
        shape = (*piece.outs[:-1], piece.outs[-1] * self.b)
        direct = target.flags.c_contiguous
        total = target.reshape(shape) if direct else borrow("total", shape, target.dtype)
        part = borrow("part", shape, target.dtype)
        for index, (plane, place) in enumerate(piece.reads):
            view = planes[plane][place].reshape(shape)
            np.multiply(view, weights[index, : shape[-1]], out=part if index else total)
            if index:
                np.add(total, part, out=total)
        if not direct:
            target[...] = total.reshape(target.shape)

    def gradient_tasks(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> list[Task]:
        """The gradient by the weights, into ``out`` (b, taps), piece after piece."""
        gradient, source = (x.transpose(*range(1, x.ndim), 0) for x in (d_out, feature))
        return [lambda: self._gradient(gradient, source, out)]

    def _gradient(self, d_out: np.ndarray, source: np.ndarray, out: np.ndarray) -> None:
        axes = list(range(d_out.ndim))
        out[...] = 0
        for piece in self.pieces:
            planes = piece.phases.planes(source, lead=0)
            gradient = np.ascontiguousarray(d_out[piece.place])
            for index, (plane, place) in enumerate(piece.reads):
                out[:, index] += np.einsum(planes[plane][place], axes, gradient, axes, axes[-1:])
