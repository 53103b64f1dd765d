"""Moments of features: rows raised to float64 with their ones, one strided-batched product over pieces, their sum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.backend import Array
from growarray.cuda.device import StridedProduct, current, empty, fits, product_launch, run
from growarray.cuda.text import THREADS, kernel_text

__all__ = ["moment"]

_PAD = 64  # rows are filled up with zeros to a multiple, so that powers of two divide them
_TILE, _TILES = 64, 264  # of a product: pieces are as many as leave no multiprocessor idle
_LARGEST = 1 << 25  # float64 numbers that are raised at a time
_HERE = f"const I i = (I)blockIdx.x * {THREADS} + threadIdx.x; if (i >= count) return;"


@lru_cache(maxsize=8)
def _raise(dtype: str) -> str:
    lines = [
        _HERE, "const I c = i % (width + ones), r = i / (width + ones);",
        "to[r * across + c] = r >= rows ? 0.0 : c < width ? (double)load(x + r * width + c) : 1.0;",
    ]  # fmt: skip
    return kernel_text(dtype, "const T* x, double* to, I rows, I width, I ones, I across, I count", lines, True)


_LINES = [_HERE, "A s = add ? to[i] : 0; for (I k = 0; k < pieces; ++k) s += parts[k * count + i]; to[i] = s;"]
_SUM = kernel_text("float64", "const A* parts, A* to, I pieces, I add, I count", _LINES, True)


def _launch(text: str, count: int, *arguments: Any) -> None:
    run(text, -(-count // THREADS), *(np.int64(a) if isinstance(a, int) else a for a in (*arguments, count)))


def _raised(parts: Sequence[Any], start: int, stop: int) -> Array:
    """Rows of all parts side by side, in float64, with their ones, and zeros below; of one whole part it is kept."""
    ready, whole = parts[0].ready, len(parts) == 1 and (start, stop) == (0, parts[0].ready.array.shape[0])
    kept = ready.kept.get(("columns", parts[0].bias)) if whole else None
    if kept is not None:
        return kept
    across, below = sum(part.width for part in parts), -(-(stop - start) // _PAD) * _PAD
    made, column = empty((below, across), "float64"), 0
    for part in parts:
        x, count = part.ready.array[start:stop, :], below * part.width
        width = int(x.shape[1])
        _launch(_raise(str(x.dtype)), count, x, made[:, column:], stop - start, width, int(part.bias), across)
        column += part.width
    if whole:
        ready.kept["columns", parts[0].bias] = made
    return made


def moment(left: Sequence[Any], right: Sequence[Any], total: Array | None, adds: bool) -> Array | None:
    """As :func:`growarray.growing.cross_moment` of the parts of streams; ``right`` is empty if both sides are one.

    total : None, or an array to write into, or to add to if ``adds``, which comes back
    None if kernels do not take the arrays, or they differ in rows.
    """
    arrays = [part.ready.array for part in (*left, *right)]
    rows, sizes = arrays[0].shape[0], [sum(part.width for part in side) for side in (left, right or left)]
    alike = all(fits(x) and x.shape[0] == rows and x.device == arrays[0].device for x in arrays)
    if not alike or (total is not None and (total.shape != tuple(sizes) or not fits(total, empty((1,), "float64")))):
        return None
    step = max(_LARGEST // max(sizes) // _PAD, 1) * _PAD
    with current(arrays[0]):
        total = empty(tuple(sizes), "float64") if total is None else total
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            a = _raised(left, start, stop)
            b = _raised(right, start, stop) if right else a
            _multiplied(a, b, total, adds or start > 0)
    return total


def _multiplied(a: Array, b: Array, total: Array, adds: bool) -> None:
    """``total`` set to, or added to, ``a^T b``: two launches, or one if there is one piece to set."""
    (rows, high), wide = a.shape, int(b.shape[1])
    most = max(1, min(_PAD, _TILES // (-(-high // _TILE) * -(-wide // _TILE)), rows // 256))
    pieces = 1 << most.bit_length() - 1
    each, size = rows // pieces, high * wide
    target = total if pieces == 1 and not adds else empty((pieces, high, wide), "float64")
    steps, kind = (each * wide, each * high, size), "float64"
    product = StridedProduct(
        (False, True), (wide, high, each, pieces), (wide, high, wide), steps, kind, kind, (0, 1, 2)
    )
    product_launch(product)([b.data.ptr, a.data.ptr, target.data.ptr])
    if target is not total:
        _launch(_SUM, size, target, total, pieces, int(adds))
