"""Batch normalisation: moments in pieces, which the pass that normalises puts together; the way back likewise.

Of layer and group normalisation each row of ``m`` values that lie together has its own mean and deviation, in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.backend import Array
from growarray.cuda.device import NAMES, WIDE, contiguous, current, empty, fits, gradient, run
from growarray.cuda.text import ACCUMULATED, BLOCK_SUMS, ROW_SUM, THREADS, each_of, kernel_text, lanes_for

_BLOCKS = 1024  # which fill a GPU
_LEAST = 2048  # values of a channel that a block has at least, and _MOST pieces of a channel
_MOST = 64
_SIDE = 32  # channels that are summed side by side if each has few values together

# A block has one piece of one channel c: of its m values, which lie in rows of ``rest``, those from ``start``.
_PIECE = (
    "const I c = (I)blockIdx.x / pieces, piece = (I)blockIdx.x % pieces, start = piece * step;",
    "const I stop = start + step < m ? start + step : m;",
)
_EACH = (
    f"for (I e = start + threadIdx.x; e < stop; e += {THREADS}) {{",
    "const I i = (e / rest * channels + c) * rest + e % rest;",
)
_SIZES = "I channels, I rest, I m, I pieces, I step"
_JOINED = (  # Chan et al. 1979
    "A mean = 0, var = 0;",
    "for (I k = 0; k < pieces; ++k) {",
    "  const A n = (k + 1 < pieces ? step : m - k * step); mean += n / m * parts[2 * (c * pieces + k)]; }",
    "for (I k = 0; k < pieces; ++k) {",
    "  const A n = (k + 1 < pieces ? step : m - k * step), off = parts[2 * (c * pieces + k)] - mean;",
    "  var += (parts[2 * (c * pieces + k) + 1] + n * off * off) / m; }",
    "if (piece == 0 && threadIdx.x == 0) { means[c] = mean; vars[c] = var; }",
)
_KNOWN = ("const A mean = means[c], var = vars[c];",)
_SCALE = "const A inverse = 1 / sqrt(var + eps), w = weight ? load(weight + c) : (A)1;"


@lru_cache(maxsize=64)
def _text(what: str, dtype: str, wide: bool) -> str:
    """One of the four passes."""
    arguments, lines = {
        "moments": (
            "const T* x, A* parts",
            [
                "__shared__ A held[256]; A s = 0;", *_EACH, "s += load(x + i); }",
                "const A mean = sum_of(s, held) / (stop - start); s = 0;",
                *_EACH, "const A v = load(x + i) - mean; s += v * v; }",
                "s = sum_of(s, held);",
                "if (threadIdx.x == 0) { parts[2 * (I)blockIdx.x] = mean; parts[2 * (I)blockIdx.x + 1] = s; }",
            ],
        ),
        "normalise": (
            "const T* x, const A* parts, A* means, A* vars, A eps, const T* weight, const T* bias, T* y",
            [
                "/*moments*/", _SCALE, "const A b = bias ? load(bias + c) : (A)0;",
                *_EACH, "store(y + i, (load(x + i) - mean) * inverse * w + b); }",
            ],
        ),
        "sums": (
            "const T* x, const A* means, const A* vars, A eps, const T* weight, const T* dy, A* parts",
            [
                "__shared__ A held[256]; A s = 0, t = 0;", *_KNOWN, _SCALE, *_EACH,
                "const A g = load(dy + i); s += g; t += g * (load(x + i) - mean) * inverse; }",
                "s = sum_of(s, held); t = sum_of(t, held);",
                "if (threadIdx.x == 0) { parts[2 * (I)blockIdx.x] = s; parts[2 * (I)blockIdx.x + 1] = t; }",
            ],
        ),
        "back": (
            "const T* x, const A* means, const A* vars, A eps, const T* weight, const T* dy, const A* parts, "
            "T* dw, T* db, T* dx, int through",
            [
                *_KNOWN, _SCALE, "A s = 0, t = 0;",
                "for (I k = 0; k < pieces; ++k) {",
                "  s += parts[2 * (c * pieces + k)]; t += parts[2 * (c * pieces + k) + 1]; }",
                "if (piece == 0 && threadIdx.x == 0) { if (dw) store(dw + c, t); if (db) store(db + c, s); }",
                *_EACH, "A g = load(dy + i);",
                "if (through) g -= s / m + (load(x + i) - mean) * inverse * (t / m);",
                "store(dx + i, inverse * w * g); }",
            ],
        ),
    }[what.partition(" ")[0]]  # fmt: skip
    moments = " ".join(_JOINED if what == "normalise batch" else _KNOWN)
    body = [*_PIECE, *(moments if line == "/*moments*/" else line for line in lines)]
    return kernel_text(dtype, f"{arguments}, {_SIZES}", body, wide, BLOCK_SUMS)


def _pieces(channels: int, m: int, least: int = _LEAST) -> tuple[int, int]:
    """Pieces of a channel, and the values of each but the last."""
    pieces = max(1, min(_MOST, _BLOCKS // channels, m // least))
    step = -(-m // pieces)
    return -(-m // step), step


def normalised(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    var: Array | None,
    training: bool,
    eps: float,
) -> tuple[Array, Array, Array, Callable[[Array], tuple[Array, Array | None, Array | None]]] | None:
    """As in :mod:`growarray.ops.norm`: two launches, one if the moments are given; back two. Keeps ``x``."""
    if not fits(x, weight, bias):
        return None
    n, channels, *_ = x.shape
    if any(a is not None and a.shape != (channels,) for a in (weight, bias, mean, var)):
        return None
    rest = x.size // (n * channels)
    m, dtype, wide = n * rest, NAMES[x.dtype], x.size >= WIDE
    (pieces, step), of_sums = _pieces(channels, m), np.dtype(ACCUMULATED[dtype]).type
    index = np.int64 if wide else np.int32
    blocks, sizes, small = channels * pieces, [index(k) for k in (channels, rest, m, pieces, step)], of_sums(eps)

    def start(what: str, *arguments: Any) -> None:
        run(_text(what, dtype, wide), blocks, *arguments, *sizes)

    with current(x):
        y, parts = empty(x.shape, dtype), None
        if mean is None or var is None:
            parts, mean, var = (empty(shape, of_sums) for shape in ((blocks, 2), (channels,), (channels,)))
            start("moments", x, parts)
        means, variances = contiguous(mean, of_sums), contiguous(var, of_sums)
        start(
            "normalise batch" if parts is not None else "normalise", x, parts, means, variances, small, weight, bias, y
        )

    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        with current(x):
            dy = gradient(dy, x.shape, dtype, x)
            gradients: Sequence[Array | None] = [
                None if p is None else empty((channels,), dtype) for p in (weight, bias)
            ]
            sums, dx = empty((blocks, 2), of_sums), empty(x.shape, dtype)
            start("sums", x, means, variances, small, weight, dy, sums)
            start("back", x, means, variances, small, weight, dy, sums, *gradients, dx, np.int32(training))
        return dx, gradients[0], gradients[1]

    return y, means, variances, vjp


@lru_cache(maxsize=8)
def _tracking(dtype: str) -> str:
    lines = [
        each_of("n"),
        "store(new_mean + i, (1 - share) * load(mean + i) + share * batch_mean[i]);",
        "store(new_var + i, (1 - share) * load(var + i) + share * (batch_var[i] * unbiased));",
    ]
    arguments = "const T* mean, const T* var, const A* batch_mean, const A* batch_var, T* new_mean, T* new_var"
    return kernel_text(dtype, f"{arguments}, A share, A unbiased, I n", lines, wide=False)


def tracked(
    mean: Array, var: Array, batch_mean: Array, batch_var: Array, share: Any, unbiased: float
) -> tuple[Array, Array] | None:
    """As in :mod:`growarray.ops.norm`, in one launch."""
    if not fits(mean, var) or not fits(batch_mean, batch_var) or not isinstance(share, float):
        return None
    dtype = NAMES[mean.dtype]
    if NAMES[batch_mean.dtype] != ACCUMULATED[dtype]:
        return None
    number = np.dtype(ACCUMULATED[dtype]).type
    with current(mean):
        updated = empty(mean.shape, dtype), empty(mean.shape, dtype)
        operands = (mean, var, batch_mean, batch_var, *updated, number(share), number(unbiased), np.int32(mean.size))
        run(_tracking(dtype), -(-mean.size // THREADS), *operands)
    return updated


# A row has a power of two of threads, its lanes, and a block as many rows as fit; its values are those of the channels
# (row % groups) * each and after, ``rest`` of each.
_ROW = (
    f"__shared__ A held[{THREADS}]; const int lane = threadIdx.x % lanes;",
    f"const I row = (I)blockIdx.x * ({THREADS} / lanes) + threadIdx.x / lanes;",
    "const I first = row % groups * each, at = row * m, stop = row < rows ? m : 0;",
)
_OF_ROW = "for (I e = lane; e < stop; e += lanes) {"
_ROW_SIZES = "I rows, I m, I groups, I each, I rest, int lanes"


@lru_cache(maxsize=64)
def _row_text(what: str, dtype: str, wide: bool) -> str:
    """Value of rows, gradient by them, or in pieces the gradients of weight and bias."""
    arguments, lines = {
        "value": (
            "const T* x, A eps, const T* weight, const T* bias, T* y, A* kept",
            [
                *_ROW, "A s = 0;", _OF_ROW, "s += load(x + at + e); }",
                "const A mean = row_sum(s, held, lanes) / m; s = 0;",
                _OF_ROW, "const A v = load(x + at + e) - mean; s += v * v; }",
                "const A inverse = 1 / sqrt(row_sum(s, held, lanes) / m + eps);",
                "if (lane == 0 && row < rows) { kept[2 * row] = mean; kept[2 * row + 1] = inverse; }",
                _OF_ROW, "const I c = first + e / rest;",
                "const A z = (load(x + at + e) - mean) * inverse, w = weight ? load(weight + c) : (A)1;",
                "store(y + at + e, z * w + (bias ? load(bias + c) : (A)0)); }",
            ],
        ),
        "back": (
            "const T* x, const A* kept, const T* weight, const T* dy, T* dx, const A* parts, T* dw, T* db, I pieces",
            [
                f"const I here = (I)blockIdx.x * {THREADS} + threadIdx.x, across = (I)gridDim.x * {THREADS};",
                "for (I c = here; c < groups * each; c += across) { A s = 0, t = 0;",
                "for (I k = 0; k < pieces; ++k) {",
                "  s += parts[2 * (c * pieces + k)]; t += parts[2 * (c * pieces + k) + 1]; }",
                "if (dw) store(dw + c, t); if (db) store(db + c, s); }",
                *_ROW, "const A mean = row < rows ? kept[2 * row] : 0, inverse = row < rows ? kept[2 * row + 1] : 0;",
                "A s = 0, t = 0;", _OF_ROW,
                "const A g = load(dy + at + e) * (weight ? load(weight + first + e / rest) : (A)1);",
                "s += g; t += g * (load(x + at + e) - mean) * inverse; }",
                "s = row_sum(s, held, lanes) / m; t = row_sum(t, held, lanes) / m;", _OF_ROW,
                "const A g = load(dy + at + e) * (weight ? load(weight + first + e / rest) : (A)1);",
                "store(dx + at + e, inverse * (g - s - (load(x + at + e) - mean) * inverse * t)); }",
            ],
        ),
        "weights": (  # ``lanes`` channels side by side, a piece of the images: values start to stop of each channel
            "const T* x, const A* kept, const T* dy, A* parts, I pieces, I step",
            [
                f"__shared__ A sums[{THREADS}], dots[{THREADS}];",
                "const I channels = groups * each, of = rows / groups * rest;",
                "const I piece = (I)blockIdx.x % pieces, c = (I)blockIdx.x / pieces * lanes + threadIdx.x % lanes;",
                "const I start = piece * step, stop = c >= channels ? 0 : start + step < of ? start + step : of;",
                "A s = 0, t = 0;",
                f"for (I e = start + threadIdx.x / lanes; e < stop; e += {THREADS} / lanes) {{",
                "const I image = e / rest, row = image * groups + c / each;",
                "const I i = (image * channels + c) * rest + e % rest;",
                "const A g = load(dy + i); s += g; t += g * (load(x + i) - kept[2 * row]) * kept[2 * row + 1]; }",
                "sums[threadIdx.x] = s; dots[threadIdx.x] = t; __syncthreads();",
                f"for (int k = {THREADS // 2}; k >= lanes; k >>= 1) {{",
                "  if (threadIdx.x < k) {",
                "    sums[threadIdx.x] += sums[threadIdx.x + k]; dots[threadIdx.x] += dots[threadIdx.x + k]; }",
                "  __syncthreads(); }",
                "if (threadIdx.x < lanes && c < channels) {",
                "  parts[2 * (c * pieces + piece)] = sums[threadIdx.x];",
                "  parts[2 * (c * pieces + piece) + 1] = dots[threadIdx.x]; }",
            ],
        ),
    }[what]  # fmt: skip
    return kernel_text(dtype, f"{arguments}, {_ROW_SIZES}", lines, wide, *([] if what == "weights" else [ROW_SUM]))


def grouped(
    x: Array, groups: int, weight: Array | None, bias: Array | None, eps: float
) -> tuple[Array, Callable[[Array], tuple[Array, Array | None, Array | None]]] | None:
    """As in :mod:`growarray.ops.norm`: one launch; back two, or one without weight and bias. Keeps ``x``."""
    if not fits(x, weight, bias):
        return None
    n, channels, dtype = x.shape[0], x.shape[1], NAMES[x.dtype]
    rest, rows, each = x.size // (n * channels), n * groups, channels // groups
    wide, of_sums, lanes = x.size >= WIDE, np.dtype(ACCUMULATED[dtype]).type, lanes_for(each * rest)
    index = np.int64 if wide else np.int32
    sizes = [index(k) for k in (rows, each * rest, groups, each, rest)]
    blocks = -(-rows * lanes // THREADS)
    with current(x):
        y, kept = empty(x.shape, dtype), empty((rows, 2), of_sums)
        run(_row_text("value", dtype, wide), blocks, x, of_sums(eps), weight, bias, y, kept, *sizes, np.int32(lanes))

    def vjp(dy: Array) -> tuple[Array, Array | None, Array | None]:
        with current(x):
            dy, dx, pieces, parts = gradient(dy, x.shape, dtype, x), empty(x.shape, dtype), 0, None
            dw, db = (None if p is None else empty((channels,), dtype) for p in (weight, bias))
            if dw is not None or db is not None:
                side = 1 if rest >= _SIDE else _SIDE  # neighbours of a value are of its channel, or of the next ones
                pieces, step = _pieces(-(-channels // side), n * rest, _LEAST // side)
                parts, count = empty((channels, pieces, 2), of_sums), -(-channels // side) * pieces
                operands = x, kept, dy, parts, index(pieces), index(step), *sizes, np.int32(side)
                run(_row_text("weights", dtype, wide), count, *operands)
            text, last = _row_text("back", dtype, wide), (*sizes, np.int32(lanes))
            run(text, blocks, x, kept, weight, dy, dx, parts, dw, db, index(pieces), *last)
        return dx, dw, db

    return y, vjp
