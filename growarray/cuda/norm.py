"""Batch normalisation: moments in pieces, which the pass that normalises puts together; the way back likewise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.backend import Array
from growarray.cuda.device import WIDE, contiguous, current, empty, fits, gradient, run
from growarray.cuda.text import ACCUMULATED, BLOCK_SUMS, THREADS, kernel_text

_BLOCKS = 1024  # which fill a GPU
_LEAST = 2048  # values of a channel that a block has at least, and _MOST pieces of a channel
_MOST = 64

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


def _pieces(channels: int, m: int) -> tuple[int, int]:
    """Pieces of a channel, and the values of each but the last."""
    pieces = max(1, min(_MOST, _BLOCKS // channels, m // _LEAST))
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
    m, dtype, wide = n * rest, str(x.dtype), x.size >= WIDE
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
            made: Sequence[Array | None] = [None if p is None else empty((channels,), dtype) for p in (weight, bias)]
            sums, dx = empty((blocks, 2), of_sums), empty(x.shape, dtype)
            start("sums", x, means, variances, small, weight, dy, sums)
            start("back", x, means, variances, small, weight, dy, sums, *made, dx, np.int32(training))
        return dx, made[0], made[1]

    return y, means, variances, vjp


@lru_cache(maxsize=8)
def _tracking(dtype: str) -> str:
    lines = [
        f"const I i = (I)blockIdx.x * {THREADS} + threadIdx.x; if (i >= n) return;",
        "store(new_mean + i, (1 - share) * load(mean + i) + share * batch_mean[i]);",
        "store(new_var + i, (1 - share) * load(var + i) + share * (batch_var[i] * unbiased));",
    ]
    arguments = "const T* mean, const T* var, const A* batch_mean, const A* batch_var, T* new_mean, T* new_var"
    return kernel_text(dtype, f"{arguments}, A share, A unbiased, I n", lines, wide=False)


def tracked(
    mean: Array, var: Array, batch_mean: Array, batch_var: Array, share: Any, unbiased: float
) -> tuple[Array, Array] | None:
    """As in :mod:`growarray.ops.norm`, in one launch."""
    dtype = str(mean.dtype)
    if not fits(mean, var) or not fits(batch_mean, batch_var) or not isinstance(share, float):
        return None
    if str(batch_mean.dtype) != ACCUMULATED[dtype]:
        return None
    number = np.dtype(ACCUMULATED[dtype]).type
    with current(mean):
        made = empty(mean.shape, dtype), empty(mean.shape, dtype)
        given = (mean, var, batch_mean, batch_var, *made, number(share), number(unbiased), np.int32(mean.size))
        run(_tracking(dtype), -(-mean.size // THREADS), *given)
    return made
