"""Moments: rows raised to float64 with their ones, one strided-batched product over pieces, and the sum of these.

Rows are samples, or the windows of a convolution, which are unfolded for a part of the positions at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.backend import Array
from growarray.cuda.device import NAMES, WIDE, StridedProduct, contiguous, current, empty, fits, product_launch, run
from growarray.cuda.text import THREADS, Walk, address, each_of, kernel_text, split, walk

_PAD = 64  # rows are filled up with zeros to a multiple, so that powers of two divide them
_TILE, _TILES = 64, 264  # of a product: pieces are as many as leave no multiprocessor idle
_LARGEST = 1 << 25  # float64 numbers that are raised at a time
_UNFOLDED = 1 << 22  # float64 numbers of unfolded windows at a time: 32 MiB, as on NumPy
_HERE = each_of("count")


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
    joined, column = empty((below, across), "float64"), 0
    for part in parts:
        x, count = part.ready.array[start:stop, :], below * part.width
        width = int(x.shape[1])
        _launch(_raise(NAMES[x.dtype]), count, x, joined[:, column:], stop - start, width, int(part.bias), across)
        column += part.width
    if whole:
        ready.kept["columns", parts[0].bias] = joined
    return joined


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


@lru_cache(maxsize=128)
def _unfold(dtype: str, channels: int, axes: tuple[Walk, ...], ones: bool, wide: bool) -> str:
    """Rows of windows in float64, one for each image and output position; zeros below, and in the padding."""
    q, t, p = ([f"{letter}{k}" for k in range(len(axes))] for letter in "qtp")
    of_q, of_t = dict(zip(q, (a.out for a in axes), strict=True)), dict(zip(t, (a.taps for a in axes), strict=True))
    sizes, outputs = [a.size for a in axes], math.prod(of_q.values())
    features = channels * math.prod(of_t.values())
    strides = {name: math.prod(sizes[k + 1 :]) for k, name in enumerate(p)}
    at = f"(image * {channels} + channel) * {math.prod(sizes)} + {address(strides)}"
    lines = [
        _HERE, f"const I c = i % {features + ones}, r = i / {features + ones}; double v = 0;",
        f"if (r < rows && c == {features}) v = 1;" if ones else "",
        f"if (r < rows && c < {features}) {{ const I row = r + first, image = row / {outputs};",
        *split(f"(row % {outputs})", q, of_q), *split("c", ["channel", *t], {"channel": channels, **of_t}),
        *walk(axes, [f"v = (double)load(x + {at});"], taps=False), "}", "to[i] = v;",
    ]  # fmt: skip
    return kernel_text(dtype, "const T* x, double* to, I rows, I first, I count", lines, wide)


def _unfolded(w: Any, x: Array, start: int, stop: int) -> Array:
    """Rows ``start`` to ``stop`` of windows, with their ones, filled up with zeros."""
    axes = tuple(Walk(a.size, a.taps, a.out, a.stride, a.before, dilation=a.dilation) for a in w.axes)
    outputs, (_, channels, *sizes) = math.prod(w.positions), x.shape
    image, first = divmod(start, outputs)
    out = empty((-(-(stop - start) // _PAD) * _PAD, w.width), "float64")
    wide = max((2 + (stop - start) // outputs) * channels * math.prod(sizes), out.size) >= WIDE
    numbers = map(np.int64 if wide else np.int32, (stop - start, first, out.size))
    run(_unfold(NAMES[x.dtype], channels, axes, w.bias, wide), -(-out.size // THREADS), x[image:, ...], out, *numbers)
    return out


def window_moment(left: Any, right: Any) -> Array | None:
    """As :func:`growarray.ops.moments.window_moment`; ``right`` is None if both sides are one.

    Windows are unfolded for some positions at a time: two or three launches for each, four or less for two sides.
    None if kernels do not take the arrays, or there are no windows.
    """
    sides = [left] if right is None else [left, right]
    rows, widths = left.samples * math.prod(left.positions), [w.width for w in sides]
    if not rows or not all(w.array.dtype in NAMES and w.array.size for w in sides):
        return None
    step = max(_UNFOLDED // sum(widths) // _PAD, 1) * _PAD
    with current(left.array):
        arrays = [contiguous(w.array, w.array.dtype) for w in sides]
        total = empty((widths[0], widths[-1]), "float64")
        for start in range(0, rows, step):
            unfolded = [_unfolded(w, x, start, min(start + step, rows)) for w, x in zip(sides, arrays, strict=True)]
            _multiplied(unfolded[0], unfolded[-1], total, start > 0)
            del unfolded  # before the next block asks for memory
    return total
