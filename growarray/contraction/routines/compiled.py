"""Convolution without a sum over channels on NumPy, in loops that Numba compiles, where it is installed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Product
from growarray.contraction.routines.planes import Flat, available, keeps_rows, length, phases, split, tables
from growarray.contraction.routines.protocol import D_KERNEL, FORWARD, Task
from growarray.contraction.workspace import here

__all__ = ["Compiled"]

_PIECE = 1 << 17  # elements of one piece
_TAP, _COPY = 0.2, 0.45  # passes of the machine that a multiply-add, and a copied element, take
_CALLS, _BEGIN = 15, 8  # calls of the machine that a run begins with, and rows that a plane does


class Compiled:
    """out[b, q] = sum over taps of weights[b, tap] feature[b, q + tap], for fixed sizes."""

    name: ClassVar[str] = "compiled"
    ways: ClassVar[tuple[str, ...]] = (FORWARD, D_KERNEL)
    call = None

    def __init__(self, product: Product) -> None:
        from growarray.contraction.routines import loops  # half a second: when a product first needs it

        self.loops, self.b, self.taps = loops, product.b, product.taps
        outer, (first, *others), block = split(product.axes)
        self.lead, each = 2 + len(outer), math.prod(a.out for a in outer)
        self.parts = []
        for start in range(0, first.out, block):
            part = first._replace(out=min(block, first.out - start), before=first.before - start * first.stride)
            self.parts.append((start, (part, *others)))
        pieces = product.b * product.columns // _PIECE
        pieces += pieces % 2 if pieces > 1 else 0  # an even number, for two threads
        self.few, self.many = max(1, min(self.b, pieces)), max(1, min(self.b * each, pieces))
        self.rows = np.arange(self.b).repeat(each)  # of every plane in the weights

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """A convolution without a sum over channels, in single or double precision, if Numba is installed."""
        return (
            library == "numpy" and product.s == product.n == 1 and product.is_conv and product.itemsize in (4, 8)
            and available()
        )  # fmt: skip

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """A multiply-add a tap, and copies of both sides, all in cache; calls for the whole batch."""
        outer, (*others, last), _ = split(product.axes)
        planes, item = product.b * math.prod(a.out for a in outer), product.itemsize / 4
        lines = math.prod(length(a) * len(phases(a)) for a in others)
        if keeps_rows(last):  # rows that lie end to end are one
            runs, held = math.prod(length(a) for a in others[:-1]), math.prod(length(a) for a in others) * last.out
            rows = last.taps * (lines if any(a.stride > 1 for a in others) else runs) + runs
            rows += lines * (last.taps - 1) // 5  # zeros at the ends of rows
            copied, moved = lines * last.taps * last.out, 0
        else:
            lines *= len(phases(last))
            held = moved = math.prod(length(a) for a in (*others, last))
            rows, copied = lines + math.prod(a.out for a in others), lines * length(last) * last.stride
        passes = held * product.taps * _TAP + (moved + copied) * _COPY
        each = passes * machine.element * item + (rows + _BEGIN) * machine.row
        return _CALLS * machine.call + planes * each

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """Nothing is."""
        return 0.0

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """The taps of every plane side by side."""
        weights = np.ascontiguousarray(kernel).reshape(self.b, self.taps)
        weights.flags.writeable = False  # of one type for the compiler
        return weights

    def forward(
        self, kernel: np.ndarray, feature: np.ndarray, out: np.ndarray, ready: np.ndarray | None = None
    ) -> Sequence[Task]:
        """Some planes after others."""
        ready = self.prepare(kernel) if ready is None else ready
        read, into = Flat(feature, self.lead), Flat(out, self.lead, into=True)
        count, loop = len(self.rows), self.loops.sum_shifted
        bounds = [count * i // self.many for i in range(self.many + 1)]
        pieces = [slice(*bound) for bound in itertools.pairwise(bounds)]
        return _done([partial(self._run, loop, read, into, ready, self.rows[p], p) for p in pieces])

    def d_kernel(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> Sequence[Task]:
        """Some channels after others."""
        read, other, out = Flat(feature, self.lead), Flat(d_out, self.lead), out.reshape(self.b, self.taps)
        bounds = [self.b * i // self.few for i in range(self.few + 1)]
        return _done([partial(self._gradient, read, other, out, slice(*b)) for b in itertools.pairwise(bounds)])

    def _gradient(self, read: Flat, other: Flat, out: np.ndarray, channels: slice) -> None:
        each = len(self.rows) // max(self.b, 1)
        planes = slice(channels.start * each, channels.stop * each)
        totals = np.zeros((channels.stop - channels.start, self.taps))
        self._run(self.loops.correlate, read, other, totals, self.rows[: planes.stop - planes.start], planes)
        out[channels] = totals

    def _run(self, loop: Any, read: Flat, other: Flat, weights: np.ndarray, rows: np.ndarray, planes: slice) -> None:
        starts, ends, dtype = read.starts[planes], other.starts[planes], read.array.dtype
        for start, axes in self.parts:
            found = tables(axes, read.steps, other.steps)
            span = int(found.results[-1, 0] + found.results[-1, 2])
            buffer = here.arrays["buffer", (found.size,), dtype]
            long = here.arrays["long", (span,), dtype]
            at = ends + start * other.steps[0]
            loop(read.array, starts, weights, rows, other.array, at, found, buffer, long)


def _done(tasks: Sequence[Task]) -> Sequence[Task]:
    """Tasks that are worth a thread; a single one is done at once."""
    if len(tasks) > 1:
        return tasks
    for task in tasks:
        task()
    return ()
