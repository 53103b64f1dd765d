"""Activations, one launch each way. Of ReLU, and whatever else lets elements pass, one bit an element is kept.

A block of those has 8 times 256 elements: thread t those at t, t + 256, …, and one byte for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.backend import Array
from growarray.cuda.device import NAMES, WIDE, current, empty, fits, gradient, run
from growarray.cuda.text import ACCUMULATED, THREADS, each_of, kernel_text

_START = f"const I first = (I)blockIdx.x * {8 * THREADS} + threadIdx.x; int bits = 0;"
_EACH = f"for (int k = 0; k < 8; ++k) {{ const I i = first + k * {THREADS}; if (i >= n) break;"
_BYTE = f"mask[(I)blockIdx.x * {THREADS} + threadIdx.x]"


@lru_cache(maxsize=64)
def _text(dtype: str, arguments: str, start: str, each: str, wide: bool, back: bool, *before: str) -> str:
    mask = "const unsigned char* mask" if back else "unsigned char* mask"
    lines = [_START, f"bits = {_BYTE};" if back else "", start, _EACH, "const A v = load(x + i); int on; A r;"]
    lines += ["on = bits >> k & 1;" if back else "", each, "store(y + i, r);", "" if back else "bits |= on << k;", "}"]
    lines += [] if back else [f"{_BYTE} = bits;"]
    return kernel_text(dtype, f"const T* x, T* y, {mask}, I n{arguments}", lines, wide, *before)


def gated(
    x: Array, start: str, forward: str, back: str, arguments: str = "", options: Sequence[Any] = (), *before: str
) -> tuple[Array, Callable[[Array], Array]]:
    """One launch each way. ``forward`` sets r, the result of v, and ``on``, which is kept; ``back`` sets r from it.

    start : lines before the elements    arguments, options : further arguments of both    before : functions
    """
    dtype, wide, n = NAMES[x.dtype], x.size >= WIDE, x.size
    blocks, count = -(-n // (8 * THREADS)), (np.int64 if wide else np.int32)(n)

    def launch(source: Array, text: str) -> Array:
        out = empty(source.shape, dtype)
        run(text, blocks, source, out, mask, count, *options)
        return out

    with current(x):
        mask = empty((blocks * THREADS,), "uint8")
        y = launch(x, _text(dtype, arguments, start, forward, wide, False, *before))

    shape = x.shape  # x itself is not kept

    def vjp(dy: Array) -> Array:
        with current(mask):
            return launch(gradient(dy, shape, dtype, mask), _text(dtype, arguments, "", back, wide, True, *before))

    return y, vjp


def relu(x: Array, *, at_zero: float = 0.0) -> tuple[Array, Callable[[Array], Array]] | None:
    """As :func:`growarray.ops.relu`."""
    if at_zero not in (0.0, 1.0) or not fits(x):
        return None
    dead = "v < 0" if at_zero else "v <= 0"
    return gated(x, "", f"on = !({dead}); r = v < 0 ? (A)0 : v;", "r = v * (A)on;")


@lru_cache(maxsize=64)
def _smooth(dtype: str, lines: str, numbers: int, wide: bool, back: bool) -> str:
    body = [
        each_of("n"),
        f"const A v = load(x + i); A r, slope; {lines}",
        "store(y + i, load(dy + i) * slope);" if back else "store(y + i, r);",
    ]
    arguments = ["const T* x", *["const T* dy"] * back, "T* y", "I n", *(f"A c{k}" for k in range(numbers))]
    return kernel_text(dtype, ", ".join(arguments), body, wide)


def _launched(x: Array, lines: str, *numbers: float) -> tuple[Array, Callable[[Array], Array]] | None:
    """An elementwise function: ``lines`` set r and its slope from v and numbers c0, c1, …. Keeps ``x``."""
    if not fits(x):
        return None
    dtype, wide, blocks = NAMES[x.dtype], x.size >= WIDE, -(-x.size // THREADS)
    scalars = (np.int64 if wide else np.int32)(x.size), *map(np.dtype(ACCUMULATED[dtype]).type, numbers)

    def text(back: bool) -> str:
        return _smooth(dtype, lines, len(numbers), wide, back)

    with current(x):
        y = empty(x.shape, dtype)
        run(text(False), blocks, x, y, *scalars)

    def vjp(dy: Array) -> Array:
        with current(x):
            dx = empty(x.shape, dtype)
            run(text(True), blocks, x, gradient(dy, x.shape, dtype, x), dx, *scalars)
        return dx

    return y, vjp


_Found = tuple[Array, Callable[[Array], Array]] | None
_LOGISTIC = "const A e = exp(v < 0 ? v : -v), s = (v < 0 ? e : (A)1) / (1 + e);"


def leaky_relu(x: Array, slope: float = 0.01) -> _Found:
    """As :func:`growarray.ops.leaky_relu`."""
    return _launched(x, "slope = v > 0 ? (A)1 : c0; r = v * slope;", slope)


def elu(x: Array, alpha: float = 1.0, scale: float = 1.0) -> _Found:
    """As :func:`growarray.ops.elu`, times ``scale``."""
    lines = "r = c1 * (v > 0 ? v : c0 * expm1(v)); slope = c1 * (v > 0 ? 1 : c0 * exp(v));"
    return _launched(x, lines, alpha, scale)


def selu(x: Array) -> _Found:
    """As :func:`growarray.ops.selu`."""
    return elu(x, 1.6732632423543772, 1.0507009873554805)


def gelu(x: Array, *, approximate: str = "none") -> _Found:
    """As :func:`growarray.ops.gelu`."""
    if approximate != "none":
        return None
    below = f"const A below = (A)0.5 * (1 + erf(v * (A){math.sqrt(0.5)!r}));"
    return _launched(
        x, f"{below} r = v * below; slope = below + v * exp((A)-0.5 * v * v) * (A){1 / math.sqrt(2 * math.pi)!r};"
    )


def silu(x: Array) -> _Found:
    """As :func:`growarray.ops.silu`."""
    return _launched(x, f"{_LOGISTIC} r = v * s; slope = s * (1 + v * (1 - s));")


def sigmoid(x: Array) -> _Found:
    """As :func:`growarray.ops.sigmoid`."""
    return _launched(x, f"{_LOGISTIC} r = s; slope = s * ((v < 0 ? (A)1 : e) / (1 + e));")


def tanh(x: Array) -> _Found:
    """As :func:`growarray.ops.tanh`."""
    return _launched(x, "r = tanh(v); slope = 1 - r * r;")


def softplus(x: Array) -> _Found:
    """As :func:`growarray.ops.softplus`."""
    power = "const A power = v > 20 ? (A)0 : exp(v);"
    return _launched(x, f"{power} r = v > 20 ? v : log1p(power); slope = v > 20 ? (A)1 : power / (1 + power);")
