"""How a convolution without a sum over channels becomes products with banded matrices: axes, blocks, price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from growarray.contraction.machine import CPU, Machine
from growarray.contraction.problem import Axis, Product

FEW = 4
"""Rows below which blocks of the innermost axis are gathered, so that they become the rows."""

_WIDE = 16  # outputs of one block along the innermost axis: the width of the product's own kernels
_PLANE = 64  # outputs up to which the matrix of a plane, which is mostly zero, can pay
_CALLS = 5  # of the machine, that products of one run of blocks take
_BLOCK = 5000  # outputs squared times columns, where the cost of one small call equals that of its zeros


class Run(NamedTuple):
    """Blocks of ``size`` outputs from ``start``, the first of which reads ``inputs`` inputs from ``first``; ``skip``
    rows of the band lie in the padding before them."""

    start: int
    blocks: int
    size: int
    first: int
    inputs: int
    skip: int


class Layout(NamedTuple):
    """The axes of the matrix, from ``at`` to before ``end``, and its outputs; several axes are one block."""

    at: int
    end: int
    block: int

    def is_inner(self, axes: Sequence[Axis]) -> bool:
        """Whether the matrix is of the last axes: the rows of a product are then all that is before them, else its
        columns are what follows."""
        return self.end == len(axes)

    def band(self, axes: Sequence[Axis]) -> tuple[Axis, ...]:
        """The axes as one matrix sees them: those of a plane, or a block of one without its padding."""
        first, *others = axes[self.at : self.end]
        if others:
            return first, *others
        reach = (self.block - 1) * first.stride + (first.taps - 1) * first.dilation + 1
        return (first._replace(size=reach, out=self.block, before=0),)

    def runs(self, axes: Sequence[Axis]) -> list[Run]:
        """All blocks, those that are alike in one run."""
        axis, found = axes[self.at], list[Run]()
        if self.end > self.at + 1:
            return [Run(0, 1, self.block, 0, inputs(axes[self.at : self.end]), 0)]
        for start in range(0, axis.out, self.block):
            size = min(self.block, axis.out - start)
            low = start * axis.stride - axis.before
            reach = (size - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1
            first, stop = max(low, 0), min(low + reach, axis.size)
            one = Run(start, 1, size, first, max(stop - first, 0), first - low)
            last = found[-1] if found else None
            if last and one.inputs == reach and (last.size, last.inputs, last.skip) == (size, reach, 0):
                found[-1] = last._replace(blocks=last.blocks + 1)
            else:
                found.append(one)
        return found

    def seconds(self, b: int, axes: Sequence[Axis], itemsize: int, machine: Machine) -> float:
        """One core: products of ``b`` channels for each tap of the axes before, and passes that add these up."""
        before, banded, runs = axes[: self.at], axes[self.at : self.end], self.runs(axes)
        blocks, taps = sum(run.blocks for run in runs), math.prod(a.taps for a in before)
        if self.is_inner(axes):
            thin = is_thin(before)
            rows = outputs(before) if thin else inputs(before)
            many, high, wide = (b * blocks, rows, self.block) if rows >= FEW else (b, rows * blocks, self.block)
            moved = 3 * rows * outputs(banded) + (2 * rows * inputs(banded) if thin else 0)
        else:
            many, high, wide = b * outputs(before) * blocks, self.block, outputs(axes[self.end :])
            moved = 3 * outputs(axes)
        depth = min(inputs(self.band(axes)), inputs(banded))
        products = machine.product(many, high, depth, wide, itemsize, machine.small)
        adding = (taps - 1) * b * moved * machine.element * itemsize / 4
        return taps * (products + _CALLS * len(runs) * machine.call) + adding


def layout_of(product: Product) -> Layout:
    """The fastest layout by the default model, for the rows of the whole batch: matrices serve all blocks of it."""
    b, axes = product.b, product.axes
    first = next((i for i, a in enumerate(axes) if not a.is_plain), 0)
    positions = max(b * (inputs(axes[first:]) + outputs(axes[first:])), 1)
    rows = max((product.working_set - b * product.taps) // positions, 1)
    found = _fastest(b, (Axis("", rows, 1, rows), *axes[first:]), product.itemsize)
    return found._replace(at=found.at + first - 1, end=found.end + first - 1)


@lru_cache(maxsize=4096)
def _fastest(b: int, axes: tuple[Axis, ...], itemsize: int) -> Layout:
    return min(_layouts(axes), key=lambda layout: layout.seconds(b, axes, itemsize, CPU))


def _layouts(axes: Sequence[Axis]) -> list[Layout]:
    """One axis, the last that is convolved, so that taps of the others select whole rows; a small plane with it."""
    convolved = [i for i, a in enumerate(axes) if not a.is_plain]
    at, last = convolved[-1] if convolved else len(axes) - 1, len(axes)
    out = axes[at].out
    if at == last - 1:
        single = Layout(at, last, max(out, 1) if out <= _WIDE * 3 // 2 else _WIDE)
    else:
        columns = outputs(axes[at + 1 :])
        blocks = max(1, round(out / max(math.sqrt(_BLOCK / max(columns, 1)), 4.0)))
        single = Layout(at, at + 1, max(-(-out // blocks), 1))
    planes = [Layout(i, last, outputs(axes[i:])) for i in convolved if i < last - 1]
    return [single, *(p for p in planes if 0 < p.block <= _PLANE and inputs(axes[p.at :]) <= 4 * _PLANE)]


def inputs(axes: Sequence[Axis]) -> int:
    """Positions of the feature map."""
    return math.prod(a.size for a in axes)


def outputs(axes: Sequence[Axis]) -> int:
    """Positions of the result."""
    return math.prod(a.out for a in axes)


def is_thin(axes: Sequence[Axis]) -> bool:
    """Whether a tap reads few of the rows, because there are strides: they are copied before a product."""
    return any(a.stride > 1 for a in axes)
