"""How the kernel of :mod:`implicit_text` cuts a product: tiles, pieces of its sum, and what that takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from growarray.contraction.routines.protocol import D_FEATURE, D_KERNEL

DEPTH = 8  # of a tile in shared memory
PARTS = 1 << 24  # elements that the pieces of a sum have together at most
WORTH = 1 << 27  # operations from which on a launch more, to add pieces, is short beside them
_UNITS = 132  # multiprocessors of an H100 or H200
_WARPS = 8  # on a multiprocessor, from which on nothing waits for memory or for a sum
_SLABS = 128  # pieces of a sum at most, so that the second launch, which adds them, is short
_LEAST = 64  # of the depth in a piece
_LAUNCH, _PIECE, _BYTE = 4.0e8, 3.0e6, 10.0  # operations in the time of a launch more, a piece more, a byte moved
# Cycles for a vector that a warp reads, for 32 elements that are filled in, and with taps among their indices: assumed.
_READ, _FILLED, _SPLIT = 2.0, 6.0, 12.0


class Tile(NamedTuple):
    """A block of threads, ``down`` by ``across``, each with ``tall`` rows and ``broad`` columns of the result."""

    tall: int
    broad: int
    down: int
    across: int

    @property
    def rows(self) -> int:
        """Of the block."""
        return self.tall * self.down

    @property
    def columns(self) -> int:
        """Of the block."""
        return self.broad * self.across

    @property
    def threads(self) -> int:
        """Of the block."""
        return self.down * self.across

    def cycles(self, apart: bool) -> float:
        """Of a multiprocessor for one tile of depth: 128 multiplications a cycle, reading and filling shared memory."""
        reads = self.threads / 32 * DEPTH * _READ * (-(-self.tall // 4) + -(-self.broad // 4))
        filling = (self.rows + self.columns) * DEPTH / 32 * (_FILLED if apart else _SPLIT)
        return self.rows * self.columns * DEPTH / 128 + reads + filling


_BEST = 2 * 128 * 128 * DEPTH / Tile(8, 8, 16, 16).cycles(True)  # operations of a full tile in a cycle


class Cut(NamedTuple):
    """apart : whether every tap is a sum, or for a gradient by the kernel a block, of its own, not among the indices.

    slabs : pieces of the sum    operations : of full tiles on a busy GPU that would take as long
    """

    tile: Tile
    apart: bool
    slabs: int
    operations: float


def _tiles(rows: int, columns: int, double: bool) -> Iterator[Tile]:
    """Those that fit a matrix, and smaller ones, which keep more multiprocessors busy."""
    most = 4 if double else 8  # rows and columns of a thread, whose results are in registers

    def sides(size: int) -> Iterator[tuple[int, int]]:
        high = min(max(1 << (size - 1).bit_length(), 8), 16 * most)
        for whole in {high, max(high // 2, 8), max(high // 4, 8)}:
            each = min(whole // 8, most)
            yield each, whole // each

    for (tall, down), (broad, across) in itertools.product(sides(rows), sides(columns)):
        yield Tile(tall, broad, down, across)


@lru_cache(maxsize=4096)
def cut(way: str, b: int, s: int, n: int, axes: tuple[tuple[int, int, int, int], ...], double: bool) -> Cut:
    """The fastest by the model.

    axes : size, taps, outputs and stride of each; the gradient by the feature map is made for each phase of the strides
    """
    b, s, n = max(b, 1), max(s, 1), max(n, 1)  # what is empty counts as one
    axes = tuple((max(size, 1), taps, max(out, 1), stride) for size, taps, out, stride in axes)
    taps, out = math.prod(axis[1] for axis in axes), math.prod(axis[2] for axis in axes)
    rows, channels, columns, phases = n, s, out, 1
    if way == D_FEATURE:
        rows, channels = s, n
        columns, phases = math.prod(-(-axis[0] // axis[3]) for axis in axes), math.prod(axis[3] for axis in axes)
    choices = [(True, channels, columns, b * phases, taps / phases)]
    if way == D_KERNEL:
        choices = [(True, out, s, b * taps, 1.0), (False, out, s * taps, b, 1.0)]
    elif phases == 1 and taps > 1:
        choices.append((False, channels * taps, columns, b, 1.0))
    size = b * n * s * taps if way == D_KERNEL else b * phases * rows * columns
    worth = way == D_KERNEL or 2 * b * s * n * taps * out >= WORTH
    return min(
        (
            _cut(tile, apart, slabs, blocks, deep, many, size)
            for apart, deep, wide, count, many in choices
            for tile in _tiles(rows, wide, double)
            for blocks in (-(-rows // tile.rows) * -(-wide // tile.columns) * count,)
            for slabs in (_pieces(deep, blocks, size) if worth else (1,))
        ),
        key=lambda one: (one.operations, one.slabs),
    )


def _pieces(depth: int, blocks: int, size: int) -> set[int]:
    """Into how many pieces a sum may be cut: such that all multiprocessors are busy."""
    most = min(_SLABS, depth // _LEAST, PARTS // size)
    return {1, *(n for n in (_UNITS * each // blocks for each in range(1, 9)) if 1 < n <= most)}


def _cut(tile: Tile, apart: bool, slabs: int, blocks: int, depth: int, loops: float, size: int) -> Cut:
    each = -(-blocks * slabs // _UNITS)  # blocks of the busiest multiprocessor
    steps = -(-depth // (DEPTH * slabs)) * loops
    waiting = max(1.0, _WARPS / (each * tile.threads / 32)) ** 0.75
    operations = each * steps * tile.cycles(apart) * waiting * _UNITS * _BEST
    added = _LAUNCH + _PIECE * slabs + 2 * 4 * _BYTE * slabs * size if slabs > 1 else 0.0
    return Cut(tile, apart, slabs, operations + added)
