"""Convolution with few channels beside its batch on NumPy, in loops that Numba compiles, if it is installed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Axis, Product
from growarray.contraction.routines.planes import Flat, available, keeps_rows, length, phases, split, tables
from growarray.contraction.routines.protocol import D_KERNEL, FORWARD, Task
from growarray.contraction.workspace import here

_PIECE = 1 << 17  # elements of one piece
_TAP, _COPY = 0.3, 0.65  # passes of the machine that a multiply-add, and a copied element, take
_CALLS, _BEGIN = 23, 12  # calls of the machine that a run begins with, and rows that a plane does
_FEW, _ROWS = 32, 4  # sums and results of a plane up to which loops are faster than products over gathered windows


class Compiled:
    """out[b, n, q] = sum over s and taps of weights[b, n, s, tap] feature[b, s, q + tap], few s and n, fixed sizes."""

    name: ClassVar[str] = "compiled"
    ways: ClassVar[tuple[str, ...]] = (FORWARD, D_KERNEL)
    call = None

    def __init__(self, product: Product) -> None:
        from growarray.contraction.routines import loops  # half a second: when a product first needs it

        self.loops, self.b, self.n, self.taps = loops, product.b, product.n, product.s * product.taps
        outer, (first, *others), block = split(product.axes)
        self.lead, self.each = 1 + len(outer), math.prod(a.out for a in outer)
        self.order = (0, *range(2, 1 + self.lead), 1, *range(1 + self.lead, 2 + len(product.axes)))
        summed = Axis("", product.s, product.s)  # what is summed is one more axis of a plane, all of which one tap sees
        self.parts = []
        for start in range(0, first.out, block):
            part = first._replace(out=min(block, first.out - start), before=first.before - start * first.stride)
            self.parts.append((start, (summed, part, *others)))
        pieces = product.b * product.n * product.s * product.columns // _PIECE
        pieces += pieces % 2 if pieces > 1 else 0  # an even number, for two threads
        rows = product.b * product.n
        self.few, self.many = max(1, min(rows, pieces)), max(1, min(rows * self.each, pieces))
        self.rows = np.arange(rows).reshape(self.b, 1, self.n).repeat(self.each, 1).reshape(-1)  # of planes in weights

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """A convolution with few channels beside its batch but some, in single or double precision, with Numba."""
        few = product.n <= _ROWS and 0 < product.s * product.n <= _FEW
        return library == "numpy" and product.is_conv and few and product.itemsize in (4, 8) and available()

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """A multiply-add a tap, and copies of both sides, all in cache; calls for the whole batch."""
        outer, (*others, last), _ = split(product.axes)
        s, n, item = product.s, product.n, product.itemsize / 4
        lines, rows = math.prod(length(a) * len(phases(a)) for a in others), math.prod(a.out for a in others)
        if keeps_rows(last):  # rows that lie end to end are one
            runs, held = math.prod(length(a) for a in others[:-1]), math.prod(length(a) for a in others) * last.out
            copied, moved, rows = lines * last.taps * last.out, 0, runs
            lines = last.taps * (lines if any(a.stride > 1 for a in others) else runs) + lines * (last.taps - 1) // 5
        else:
            lines *= len(phases(last))
            held = moved = math.prod(length(a) for a in (*others, last))
            copied = lines * length(last) * last.stride
        passes = n * (held * s * product.taps * _TAP + moved * _COPY) + s * copied * _COPY
        each = passes * machine.element * item + (s * lines + n * (rows + _BEGIN)) * machine.row
        return _CALLS * machine.call + product.b * math.prod(a.out for a in outer) * each

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """Nothing is."""
        return 0.0

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """The taps of every plane side by side."""
        weights = np.ascontiguousarray(kernel).reshape(-1, self.taps)
        weights.flags.writeable = False  # of one type for the compiler
        return weights

    def forward(
        self, kernel: np.ndarray, feature: np.ndarray, out: np.ndarray, ready: np.ndarray | None = None
    ) -> Sequence[Task]:
        """Some planes after others, those that read the same one side by side."""
        ready = self.prepare(kernel) if ready is None else ready
        read, into = self._lie(feature, self.lead), self._lie(out, self.lead + 1, into=True)
        starts, count, loop = read.starts.repeat(self.n), len(into.starts), self.loops.sum_shifted
        pieces = _pieces(count, self.many)
        return _done(
            [partial(self._run, loop, read, starts[p], into, into.starts[p], ready, self.rows[p]) for p in pieces]
        )

    def d_kernel(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> Sequence[Task]:
        """Some rows of the kernel after others."""
        read, other = self._lie(feature, self.lead), self._lie(d_out, self.lead + 1)
        out = out.reshape(-1, self.taps)
        return _done([partial(self._gradient, read, other, out, rows) for rows in _pieces(len(out), self.few)])

    def _gradient(self, read: Flat, other: Flat, out: np.ndarray, rows: slice) -> None:
        by_row = other.starts.reshape(-1, self.each, self.n).swapaxes(1, 2).reshape(len(out), self.each)[rows]
        starts = read.starts.reshape(-1, self.each).repeat(self.n, 0)[rows]
        totals = np.zeros((len(by_row), self.taps))
        index = np.arange(len(by_row)).repeat(self.each)
        self._run(self.loops.correlate, read, starts.reshape(-1), other, by_row.reshape(-1), totals, index)
        out[rows] = totals

    def _lie(self, array: np.ndarray, lead: int, into: bool = False) -> Flat:
        """The planes of (b, n or s, *sizes): what is summed is an axis of each, results are planes of their own."""
        return Flat(array.transpose(self.order), lead, into)

    def _run(
        self, loop: Any, read: Flat, starts: np.ndarray, other: Flat, ends: np.ndarray, weights: np.ndarray,
        rows: np.ndarray,
    ) -> None:  # fmt: skip
        dtype = read.array.dtype
        for start, axes in self.parts:
            found = tables(axes, read.steps, (0, *other.steps))
            span = int(found.results[-1, 0] + found.results[-1, 2])
            buffer = here.arrays["buffer", (found.size,), dtype]
            long = here.arrays["long", (span,), dtype]
            at = ends + start * other.steps[0]
            loop(read.array, starts, weights, rows, other.array, at, found, buffer, long)


def _pieces(whole: int, count: int) -> list[slice]:
    bounds = [whole * i // count for i in range(count + 1)]
    return [slice(*bound) for bound in itertools.pairwise(bounds)]


def _done(tasks: Sequence[Task]) -> Sequence[Task]:
    """Tasks that are worth a thread; a single one is done at once."""
    if len(tasks) > 1:
        return tasks
    for task in tasks:
        task()
    return ()
