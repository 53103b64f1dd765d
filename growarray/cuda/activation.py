"""ReLU, and whatever else lets elements pass: which of them is kept as one bit an element.

A block has 8 times 256 elements: thread t those at t, t + 256, …, and one byte for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.backend import Array
from growarray.cuda.device import WIDE, current, empty, fits, gradient, run
from growarray.cuda.text import THREADS, kernel_text

__all__ = ["gated", "relu"]

_START = f"const I first = (I)blockIdx.x * {8 * THREADS} + threadIdx.x; int bits = 0;"
_EACH = f"for (int k = 0; k < 8; ++k) {{ const I i = first + k * {THREADS}; if (i >= n) break;"
_BYTE = f"mask[(I)blockIdx.x * {THREADS} + threadIdx.x]"


@lru_cache(maxsize=64)
def _text(dtype: str, arguments: str, start: str, each: str, wide: bool, back: bool, *before: str) -> str:
    given = "const unsigned char* mask" if back else "unsigned char* mask"
    lines = [_START, f"bits = {_BYTE};" if back else "", start, _EACH, "const A v = load(x + i); int on; A r;"]
    lines += ["on = bits >> k & 1;" if back else "", each, "store(y + i, r);", "" if back else "bits |= on << k;", "}"]
    lines += [] if back else [f"{_BYTE} = bits;"]
    return kernel_text(dtype, f"const T* x, T* y, {given}, I n{arguments}", lines, wide, *before)


def gated(
    x: Array, start: str, forward: str, back: str, arguments: str = "", given: Sequence[Any] = (), *before: str
) -> tuple[Array, Callable[[Array], Array]]:
    """One launch each way. ``forward`` sets r, the result of v, and ``on``, which is kept; ``back`` sets r from it.

    start : lines before the elements    arguments, given : further arguments of both    before : functions
    """
    dtype, wide, n = str(x.dtype), x.size >= WIDE, x.size
    blocks, count = -(-n // (8 * THREADS)), (np.int64 if wide else np.int32)(n)

    def launch(source: Array, text: str) -> Array:
        made = empty(source.shape, dtype)
        run(text, blocks, source, made, mask, count, *given)
        return made

    with current(x):
        mask = empty((blocks * THREADS,), "uint8")
        y = launch(x, _text(dtype, arguments, start, forward, wide, False, *before))

    shape = x.shape  # x itself is not kept

    def vjp(dy: Array) -> Array:
        with current(mask):
            return launch(gradient(dy, shape, dtype, mask), _text(dtype, arguments, "", back, wide, True, *before))

    return y, vjp


def relu(x: Array, at_zero: float) -> tuple[Array, Callable[[Array], Array]] | None:
    """As :func:`growarray.ops.relu`."""
    if at_zero not in (0.0, 1.0) or not fits(x):
        return None
    alive = "v >= 0" if at_zero else "v > 0"
    return gated(x, "", f"on = {alive}; r = v < 0 ? (A)0 : v;", "r = v * (A)on;")
