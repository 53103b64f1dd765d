"""Streams: the features of one place in the network, made one array only if needed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from growarray.backend import Array, namespace
from growarray.contraction.kernels import Rows
from growarray.display import fields_of
from growarray.errors import GrowthError, ShapeError
from growarray.ops.moments import window_moment
from growarray.ops.windows import Windows, windows


class StreamLike(Protocol):
    """What a statistic needs of a stream: its parts, its width, its number of samples."""

    @property
    def parts(self) -> tuple[Any, ...]:
        """The streams side by side that make up this one: :class:`Stream`, or windows of a convolution."""

    @property
    def width(self) -> int:
        """Number of columns, those of ones included."""

    @property
    def samples(self) -> int:
        """Number of samples: the first axis, whatever follows it."""

    def materialise(self) -> Array:
        """The features as one array, ones included; moments never need it."""


@dataclass(frozen=True, eq=False)
class Stream:
    """Features ``array`` of shape (n, d) or (n, t, d), with a last column of ones if ``bias`` is set.

    The leading axes are flattened for products; ``samples`` is n alone, as the originals define it.

    >>> import numpy as np
    >>> s = Stream(np.zeros((5, 2, 3)), bias=True)
    >>> s.width, s.samples, s.rows.shape
    (4, 5, (10, 3))
    """

    array: Array
    bias: bool = False
    ready: Rows = field(init=False, repr=False)  # shared by every moment of this stream

    def __post_init__(self) -> None:
        namespace(self.array, where="a stream: ")
        if self.array.ndim < 2:
            raise ShapeError(
                f"a stream needs shape (n, d) or (n, t, d), found {tuple(self.array.shape)}; add a batch axis"
            )
        rows, shape = self.array, self.array.shape
        if self.array.ndim > 2:
            rows = namespace(rows).reshape(rows, (math.prod(shape[:-1]), shape[-1]))
        object.__setattr__(self, "ready", Rows(rows))

    __repr__ = fields_of

    @property
    def parts(self) -> tuple[Stream, ...]:
        """This stream alone."""
        return (self,)

    @property
    def width(self) -> int:
        """Features, and one more for the column of ones."""
        return int(self.array.shape[-1]) + int(self.bias)

    @property
    def samples(self) -> int:
        """Length of the first axis."""
        return int(self.array.shape[0])

    @property
    def rows(self) -> Array:
        """The features as (n, d) or (n t, d), without the column of ones."""
        return self.ready.array

    def materialise(self) -> Array:
        """The features with their column of ones as one array (..., width)."""
        xp = namespace(self.array)
        if not self.bias:
            return self.array
        ones = xp.ones((*self.array.shape[:-1], 1), dtype=self.array.dtype, device=self.array.device)
        return xp.concat([self.array, ones], axis=-1)

    def weighted(self, roots: Array, *, over: bool = False) -> Stream:
        """The rows of each sample times its root (n,), ones too; ``over`` divides by it, which gives 0 where it is 0.

        Roots of weights in both streams make a sample count by its weight; a gradient that carries it is divided.
        """
        xp, array = namespace(self.array, roots), self.materialise()
        if over:
            roots = xp.where(roots > 0, 1.0 / xp.where(roots > 0, roots, 1.0), 0.0)
        roots = xp.astype(roots, array.dtype, copy=False)
        return Stream(array * xp.reshape(roots, (-1,) + (1,) * (array.ndim - 1)))


@dataclass(frozen=True, eq=False)
class JoinedStream:
    """Streams side by side: what a merge reads, ``(B_1 | B_2 | … | B_k)``.

    >>> import numpy as np
    >>> x = np.zeros((5, 3))
    >>> JoinedStream((Stream(x, bias=True), Stream(x))).width
    7
    """

    streams: Sequence[StreamLike]

    @property
    def parts(self) -> tuple[Any, ...]:
        """All parts of all streams, in order."""
        return tuple(part for stream in self.streams for part in stream.parts)

    @property
    def width(self) -> int:
        """Sum of the widths."""
        return sum(stream.width for stream in self.streams)

    @property
    def samples(self) -> int:
        """The number of samples, which all parts must share."""
        counts = {stream.samples for stream in self.streams}
        if len(counts) != 1:
            raise ShapeError(f"joined streams have {sorted(counts)} samples; they must come from one batch")
        return counts.pop()

    def materialise(self) -> Array:
        """All parts as one array, joined along the last axis."""
        arrays = [part.materialise() for part in self.parts]
        return namespace(*arrays).concat(arrays, axis=-1)


Layout = tuple[tuple[int, int, bool], ...]
"""Of parts: which of the different arrays each is, its width, and whether a column of ones follows."""


def arranged(parts: Sequence[Stream]) -> tuple[list[Rows], Layout]:
    """The different arrays of the parts, and how the parts are laid out.

    >>> import numpy as np
    >>> x, y = np.zeros((5, 2)), np.zeros((5, 1))
    >>> arranged((Stream(x, bias=True), Stream(y), Stream(x)))[1]
    ((0, 2, True), (1, 1, False), (0, 2, False))
    """
    order: dict[int, int] = {}
    different: list[Rows] = []
    layout: list[tuple[int, int, bool]] = []
    for part in parts:
        index = order.setdefault(id(part.array), len(order))
        if index == len(different):
            different.append(part.ready)
        layout.append((index, int(part.ready.array.shape[1]), part.bias))
    return different, tuple(layout)


@lru_cache(maxsize=256)
def square_columns(layout: Layout) -> np.ndarray:
    """Where :meth:`RunningSum.add_square` finds each column: in the different arrays side by side, ones last.

    >>> square_columns(((0, 2, True), (1, 1, False), (0, 2, False))).tolist()
    [0, 1, 3, 2, 0, 1]
    """
    widths = {i: width for i, width, _ in layout}
    starts = [0, *itertools.accumulate(widths.values())]
    return np.concatenate([[*range(starts[i], starts[i + 1]), *starts[-1:] * bias] for i, _, bias in layout]).astype(
        int
    )


def windows_over(stream: StreamLike, sizes: tuple[int, ...], owner: str) -> list[Windows]:
    """The parts of a stream as windows whose outputs have the positions of an image of these sizes.

    Features (n, d) or (n, t, d) are windows of one tap, and their t are positions. GrowthError if there are others.
    """
    parts = []
    for part in stream.parts:
        if isinstance(part, Windows):
            positions = part.positions
        elif (positions := tuple(part.array.shape[1:-1])) != sizes and math.prod(positions) == math.prod(sizes):
            positions = sizes
        if positions != sizes:
            raise GrowthError(
                f"{owner}: the previous module gives images of {positions}, this one reads {sizes}; new channels need "
                "the same positions on both sides; put pooling after this layer"
            )
        if not isinstance(part, Windows):
            xp = namespace(part.array)
            image = xp.moveaxis(xp.reshape(part.array, (part.samples, *sizes, part.array.shape[-1])), -1, 1)
            part = windows(image, (1,) * len(sizes), bias=part.bias)
        parts.append(part)
    return parts


def window_blocks(left: StreamLike, right: StreamLike, symmetric: bool) -> Array:
    """The moment of streams of windows, block by block; of two blocks that mirror each other one is computed.

    Raises TypeError if the other side has features without positions.
    """
    rows: list[list[Array]] = [[] for _ in left.parts]
    for i, left_part in enumerate(left.parts):
        for j, right_part in enumerate(right.parts):
            if not (isinstance(left_part, Windows) and isinstance(right_part, Windows)):
                raise TypeError(
                    "cross_moment: windows of a convolution do not fit features without positions; put a "
                    "convolution, or a merge of convolutions, on both sides"
                )
            mirrored = symmetric and j < i
            rows[i].append(rows[j][i].T if mirrored else window_moment(left_part, right_part))
    xp = namespace(rows[0][0])
    joined = [row[0] if len(row) == 1 else xp.concat(row, axis=1) for row in rows]
    return joined[0] if len(joined) == 1 else xp.concat(joined, axis=0)
