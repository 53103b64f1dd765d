"""Convolution without a sum over channels on NumPy, in loops that Numba compiles, where it is installed."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from operator import mul
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Axis, Product
from growarray.contraction.routines.protocol import D_KERNEL, FORWARD, Task
from growarray.contraction.workspace import here

if TYPE_CHECKING:
    from growarray.contraction.routines.loops import Tables

__all__ = ["Compiled", "available"]

_PIECE = 1 << 17  # elements of one piece
_SMALL = 1 << 12  # results up to which planes are taken together: each has its own overhead
_PLANE = 1 << 15  # results of a plane that are computed at a time: their buffers stay in the cache of a core
_TAP, _COPY = 0.25, 0.6  # passes of the machine that a multiply-add, and a copied element, take


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether Numba is installed; ``GROWARRAY_FAST=0``, set before the first plan, leaves it alone."""
    return os.environ.get("GROWARRAY_FAST", "1") != "0" and find_spec("numba") is not None


class _Split(NamedTuple):
    """Axes that only tell planes apart, those of a plane, and how many results along its first axis at a time."""

    outer: tuple[Axis, ...]
    inner: tuple[Axis, ...]
    block: int


def _split(axes: tuple[Axis, ...]) -> _Split:
    first = next(i for i, axis in enumerate(axes) if not axis.is_plain)
    while first and math.prod(a.out for a in axes[first - 1 :]) <= _SMALL:
        first -= 1
    inner = axes[first:]
    rows = _PLANE // max(math.prod(a.out for a in inner[1:]), 1)
    return _Split(axes[:first], inner, max(min(rows, inner[0].out), 1))


def _phases(axis: Axis) -> list[int]:
    """Those of the stride at which some tap reads."""
    return sorted({tap * axis.dilation % axis.stride for tap in range(axis.taps)})


def _length(axis: Axis) -> int:
    """Positions of one phase in the buffer."""
    return axis.out + (axis.taps - 1) * axis.dilation // axis.stride


class Compiled:
    """out[b, q] = sum over taps of weights[b, tap] feature[b, q + tap], for fixed sizes."""

    name: ClassVar[str] = "compiled"
    ways: ClassVar[tuple[str, ...]] = (FORWARD, D_KERNEL)
    call = None

    def __init__(self, product: Product) -> None:
        from growarray.contraction.routines import loops  # half a second: when a product first needs it

        self.loops, self.b, self.taps = loops, product.b, product.taps
        outer, (first, *others), block = _split(product.axes)
        self.lead, each = 1 + len(outer), math.prod(a.out for a in outer)
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
        outer, inner, _ = _split(product.axes)
        planes, item = product.b * math.prod(a.out for a in outer), product.itemsize / 4
        held = math.prod(_length(a) for a in inner)
        lines = math.prod(_length(a) * len(_phases(a)) for a in inner[:-1]) * len(_phases(inner[-1]))
        long = held * (product.taps * _TAP + _COPY)
        copied = lines * _length(inner[-1]) * _COPY
        rows = lines + math.prod(a.out for a in inner[:-1])
        return 10 * machine.call + planes * ((long + copied) * machine.element * item + rows * machine.row)

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
        read, into = _Flat(feature, self.lead), _Flat(out, self.lead, into=True)
        count, loop = len(self.rows), self.loops.sum_shifted
        bounds = [count * i // self.many for i in range(self.many + 1)]
        pieces = [slice(*bound) for bound in itertools.pairwise(bounds)]
        return _done([partial(self._run, loop, read, into, ready, self.rows[p], p) for p in pieces])

    def d_kernel(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> Sequence[Task]:
        """Some channels after others."""
        read, other, out = _Flat(feature, self.lead), _Flat(d_out, self.lead), out.reshape(self.b, self.taps)
        bounds = [self.b * i // self.few for i in range(self.few + 1)]
        return _done([partial(self._gradient, read, other, out, slice(*b)) for b in itertools.pairwise(bounds)])

    def _gradient(self, read: _Flat, other: _Flat, out: np.ndarray, channels: slice) -> None:
        each = len(self.rows) // max(self.b, 1)
        planes = slice(channels.start * each, channels.stop * each)
        totals = np.zeros((channels.stop - channels.start, self.taps))
        self._run(self.loops.correlate, read, other, totals, self.rows[: planes.stop - planes.start], planes)
        out[channels] = totals

    def _run(self, loop: Any, read: _Flat, other: _Flat, weights: np.ndarray, rows: np.ndarray, planes: slice) -> None:
        starts, ends, dtype = read.starts[planes], other.starts[planes], read.array.dtype
        for start, axes in self.parts:
            tables = _tables(axes, read.steps, other.steps)
            span = int(tables.results[-1, 0] + tables.results[-1, 2])
            buffer = here.arrays["buffer", (tables.size,), dtype]
            long = here.arrays["long", (span,), dtype]
            at = ends + start * other.steps[0]
            loop(read.array, starts, weights, rows, other.array, at, tables, buffer, long)


class _Flat:
    """A feature map or a result (b, 1, *axes) as the memory that it lies in.

    starts : of every plane    steps : in a plane
    lead : axes, the second not counted, that only tell planes apart    into : whether it is written to
    """

    __slots__ = ("array", "starts", "steps")

    def __init__(self, array: np.ndarray, lead: int, into: bool = False) -> None:
        corner, size, self.starts, self.steps = _lie(array.shape, array.strides, array.itemsize, lead)
        self.array = as_strided(array[corner], (size,), (array.itemsize,), writeable=into)


@lru_cache(maxsize=1024)
def _lie(shape: tuple[int, ...], strides: tuple[int, ...], item: int, lead: int) -> tuple[Any, int, np.ndarray, Any]:
    """The element with the lowest address, elements from there to the highest, where planes begin, steps in them."""
    shape, steps = (shape[0], *shape[2:]), [step // item for step in (strides[0], *strides[2:])]
    ends = [(size - 1) * step for size, step in zip(shape, steps, strict=True)]
    starts = np.asarray(-sum(min(end, 0) for end in ends))
    for size, step in zip(shape[:lead], steps, strict=False):
        starts = starts[..., None] + np.arange(size) * step
    corner = [slice(-1, None) if end < 0 else slice(None) for end in ends]
    return (corner[0], 0, *corner[1:]), sum(map(abs, ends)) + 1, starts.reshape(-1), tuple(steps[lead:])


@lru_cache(maxsize=1024)
def _tables(axes: tuple[Axis, ...], apart: tuple[int, ...], steps: tuple[int, ...]) -> Tables:
    """For planes with these axes, and elements from one position to the next, in the source and in the result."""
    from growarray.contraction.routines.loops import Tables

    *others, last = axes
    phases, lengths = [_phases(axis) for axis in axes], [_length(axis) for axis in axes]
    held, copies = math.prod(lengths), [range(len(found)) for found in phases]
    lines, offsets = [], []
    for copy, chosen in enumerate(itertools.product(*copies)):  # each combination of phases is a copy of its own
        residues = [found[index] for found, index in zip(phases, chosen, strict=True)]
        low, high, columns = _inside(last, residues[-1], lengths[-1])
        for places in itertools.product(*map(range, lengths[:-1])):
            read = [p * a.stride + r - a.before for p, a, r in zip(places, others, residues, strict=False)]
            if high > low and all(0 <= at < a.size for at, a in zip(read, others, strict=True)):
                into = copy * held + _flat_index((*places, low), lengths)
                lines.append((into, sum(map(mul, (*read, columns), apart)), high - low))
    for taps in itertools.product(*(range(a.taps) for a in axes)):
        at = [divmod(tap * a.dilation, a.stride) for tap, a in zip(taps, axes, strict=True)]
        copy = _flat_index([f.index(r) for f, (_, r) in zip(phases, at, strict=True)], [len(f) for f in phases])
        offsets.append(copy * held + _flat_index([place for place, _ in at], lengths))
    results = [
        (_flat_index((*places, 0), lengths), sum(map(mul, places, steps)), last.out)
        for places in itertools.product(*(range(a.out) for a in others))
    ]
    of_lines, of_taps, of_results = (np.array(rows, np.int64) for rows in (lines or np.empty((0, 3)), offsets, results))
    return Tables(held * math.prod(map(len, phases)), of_lines, of_taps, of_results, last.stride * apart[-1], steps[-1])


def _inside(axis: Axis, phase: int, length: int) -> tuple[int, int, int]:
    """First and last + 1 of the positions of a phase that are no padding, and what the first one reads."""
    low = min(max(-((phase - axis.before) // axis.stride), 0), length)
    high = min((axis.size - 1 + axis.before - phase) // axis.stride + 1, length)
    return low, high, low * axis.stride + phase - axis.before


def _flat_index(places: Sequence[int], sizes: Sequence[int]) -> int:
    """The position of (place of each axis) in memory."""
    flat = 0
    for place, size in zip(places, sizes, strict=True):
        flat = flat * size + place
    return flat


def _done(tasks: Sequence[Task]) -> Sequence[Task]:
    """Tasks that are worth a thread; a single one is done at once."""
    if len(tasks) > 1:
        return tasks
    for task in tasks:
        task()
    return ()
