"""Float64 sums of products over rows: exact where single precision would drift, at its speed on NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.backend import Array, assign, namespace
from growarray.errors import ShapeError

_BLOCK = 4096  # rows in one single-precision product: adding it to the float64 sum costs little beside it
_MIX = 8  # rows that are mixed together: 4 let binary features through (1.4e-6), 16 cost a third more
_SMALL = 2**19  # multiplications up to which raising to float64 costs less than mixing
_RAISED = 65536  # rows that are raised to float64 at a time: bounds the memory that the copy needs
LARGEST = 1e38  # sum of squares up to which no product of two columns overflows single precision


class Rows:
    """An array (n, d) that stands in several products: what is made of it for one is kept for the next.

    Kept is at most one block, of the size of the array; longer arrays are made ready block by block, every time.
    """

    __slots__ = ("array", "kept")

    def __init__(self, array: Array) -> None:
        self.array = array
        self.kept: dict[Any, Any] = {}

    def mixed(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows from ``start`` to ``stop``, mixed, and their column sums; see :func:`_mixed`."""
        if stop - start < self.array.shape[0]:
            return _mixed(self.array[start:stop])
        if "mixed" not in self.kept:
            self.kept["mixed"] = _mixed(self.array)
        kept: tuple[np.ndarray, np.ndarray] = self.kept["mixed"]
        return kept

    def raised(self, start: int, stop: int) -> Array:
        """Rows from ``start`` to ``stop`` in float64."""
        xp = namespace(self.array)
        if stop - start < self.array.shape[0]:
            return xp.astype(self.array[start:stop, ...], xp.float64, copy=False)
        if "raised" not in self.kept:
            self.kept["raised"] = xp.astype(self.array, xp.float64, copy=False)
        return self.kept["raised"]

    def block(self, start: int, stop: int, mixed: bool) -> tuple[Array, Array]:
        """Rows from ``start`` to ``stop``, mixed or raised, and their column sums in float64."""
        if mixed:
            return self.mixed(start, stop)
        raised = self.raised(start, stop)
        return raised, namespace(raised).sum(raised, axis=0)

    @property
    def is_moderate(self) -> bool:
        """Whether all values are finite, and no product of two columns, of NumPy arrays, overflows single precision."""
        if "moderate" not in self.kept:
            x = self.kept["mixed"][0] if "mixed" in self.kept else self.array  # of the same norm, and soon needed again
            x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)
            self.kept["moderate"] = bool(np.vdot(x, x) < LARGEST)
        found: bool = self.kept["moderate"]
        return found


def row_products(
    arrays: Sequence[Array | Rows],
    pairs: Sequence[tuple[int, int]],
    sums: Sequence[int] = (),
    into: Mapping[tuple[int, int], np.ndarray] | None = None,
) -> tuple[dict[tuple[int, int], Array], dict[int, Array]]:
    """Float64 sums over rows: ``arrays[i]^T arrays[j]`` for each pair, and column sums for each index in ``sums``.

    arrays : (n, d_i) each, of one library and device, or :class:`Rows` of them    pairs : indices; (i, i) uses symmetry
    into : float64 NumPy arrays, views too, that take the products of NumPy arrays in place of new ones
    Returns ``{(i, j): (d_i, d_j)}`` and ``{i: (d_i,)}``, exact to float64 rounding for float64 input, and to
    under 1e-6 of the largest entry for float32, however many rows there are and however alike they are.
    Raises ShapeError if the arrays differ in rows.

    >>> import numpy as np
    >>> products, sums = row_products([np.full((1000, 1), 0.1, np.float32)], [(0, 0)], sums=[0])
    >>> round(float(products[0, 0][0, 0]), 4), round(float(sums[0][0]), 4)
    (10.0, 100.0)
    """
    found: dict[Any, Array] = {}
    ready = [a if isinstance(a, Rows) else Rows(a) for a in arrays]
    for key, value in block_products(ready, pairs, sums):
        if key in found:
            found[key] += value
        elif into and key in into:
            found[key] = assign(into[key], ..., value)
        else:
            found[key] = namespace(value).astype(value, namespace(value).float64, copy=False)
    return {pair: found[pair] for pair in pairs}, {i: found[i] for i in sums}


def block_products(
    arrays: Sequence[Rows], pairs: Sequence[tuple[int, int]], sums: Sequence[int] = ()
) -> Iterator[tuple[Any, Array]]:
    """What :func:`row_products` adds up: of each block of rows the products by pair, in single or double precision, and
    the column sums by index.
    """
    lengths = {int(r.array.shape[0]) for r in arrays}
    if len(lengths) != 1:
        raise ShapeError(f"row_products: arrays have {sorted(lengths)} rows; they must have equally many")
    namespace(*(r.array for r in arrays))
    needed = {i for pair in pairs for i in pair}.union(sums)
    for part in spans(arrays):
        blocks = {i: arrays[i].block(*part) for i in needed}
        for pair in pairs:
            yield pair, blocks[pair[0]][0].T @ blocks[pair[1]][0]
        for i in sums:
            yield i, blocks[i][1]


def _worth_mixing(arrays: Sequence[Rows]) -> bool:
    widest = 0
    for rows in arrays:
        array = rows.array
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            return False
        widest = max(widest, array.shape[1])
    return bool(len(arrays[0].array) * widest**2 > _SMALL)


def spans(arrays: Sequence[Rows]) -> tuple[tuple[int, int, bool], ...]:
    """From where to where rows make a block, and whether they are mixed or raised to float64.

    A single-precision product adds hundreds of terms in one register, and terms that are alike (a constant feature, a
    binary one, rows in order of size) all round the same way. X^T Y = (QX)^T (QY) for any orthogonal Q that makes
    alike terms unlike, or zero; see :func:`_mixed`. Blocks are then added in float64. Measured on constant, binary,
    8-bit, ordered, offset and periodic features, 256 to 262,144 rows: up to 1.6e-5 without, under 7e-7 with it.
    """
    rows = int(arrays[0].array.shape[0])
    return _cut(rows, rows - rows % _MIX**2 if _worth_mixing(arrays) else 0)  # mixed at least twice


@lru_cache(maxsize=256)
def _cut(rows: int, mixable: int) -> tuple[tuple[int, int, bool], ...]:
    """Blocks of the rows that are mixed, then of those that are left and raised."""
    mixed = [(at, min(at + _BLOCK, mixable), True) for at in range(0, mixable, _BLOCK)]
    return (*mixed, *((at, min(at + _RAISED, rows), False) for at in range(mixable, max(rows, 1), _RAISED)))


def _mixed(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows with the same products as those of ``block`` (m, d), small terms first, and the column sums of ``block``.

    Rows 1/8 of the block apart are taken 8 at a time. What makes them differ goes through 7 random orthonormal rows;
    what they share, their sum, is made pairwise, exact where they are equal, and is treated the same way while there
    are many. The last sums are taken all together, and their mean is the last row: nothing small is added to something
    large before the end.
    """
    count, width = block.shape
    rows, done, sums, level = np.empty((count, width), np.float32), 0, block, 0
    while len(sums) ** 2 > _MIX * count and len(sums) % _MIX == 0:
        share = len(sums) // _MIX
        slabs = sums.reshape(_MIX, share * width)
        mixed = rows[done : done + len(sums)].reshape(slabs.shape)
        np.add(slabs[:4], slabs[4:], out=mixed[:4])  # until the product is written there
        np.add(mixed[:2], mixed[2:4], out=mixed[4:6])
        sums = np.add(mixed[4], mixed[5]).reshape(share, width)
        np.matmul(_mixer(_MIX, level), slabs, out=mixed[:-1])
        done, level = done + (_MIX - 1) * share, level + 1
    np.matmul(_mixer(len(sums), level), sums, out=rows[done:-1])
    total = np.add.reduce(sums, axis=0, dtype=np.float64)
    rows[-1] = total / math.sqrt(count)
    return rows, total


@lru_cache(maxsize=256)
def _mixer(rows: int, level: int) -> np.ndarray:
    """Orthonormal rows, drawn once, that with a row of equal entries make a basis; sums of 8^level rows are scaled."""
    start = np.random.default_rng(0).standard_normal((rows, rows))
    start[:, 0] = 1.0
    return (np.linalg.qr(start)[0].T[1:] / math.sqrt(_MIX) ** level).astype(np.float32)
