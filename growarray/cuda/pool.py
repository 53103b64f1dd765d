"""Pooling over all axes at once: a thread an output, and on the way back a thread an input, which reads its windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.backend import Array
from growarray.cuda.device import NAMES, WIDE, current, empty, fits, gradient, run
from growarray.cuda.text import ROW_SUM, THREADS, Walk, address, each_of, kernel_text, lanes_for, split, walk

Vjp = Callable[[Array], Array]
_NONE = 255  # a window of padding alone
_BIGGEST = "v > best || v != v || won == none"  # as in torch the last NaN, else the first of equal ones


def _walks(shape: Sequence[int], axes: Sequence[Any], sizes: Sequence[int]) -> tuple[Walk, ...]:
    return tuple(
        Walk(size, a.kernel, out, a.stride, a.padding, a.behind, a.dilation)
        for size, a, out in zip(shape[2:], axes, sizes, strict=True)
    )


@lru_cache(maxsize=128)
def _text(what: str, dtype: str, axes: tuple[Walk, ...], divisor: str, wide: bool) -> str:
    """``max`` or ``mean``, forward or ``back``; sizes of the axes are in the text, the number of images is not."""
    kind, back = what.split()[0], "back" in what
    letter, many = ("p", "q") if back else ("q", "p")
    sizes = {f"p{k}": a.size for k, a in enumerate(axes)} | {f"q{k}": a.out for k, a in enumerate(axes)}
    here, read = ([f"{prefix}{k}" for k in range(len(axes))] for prefix in (letter, many))
    whole = {prefix: math.prod(sizes[name] for name in names) for prefix, names in ((letter, here), (many, read))}
    strides = {name: math.prod(sizes[other] for other in read[k + 1 :]) for k, name in enumerate(read)}
    at = f"image * {whole[many]} + {address(strides)}"
    tap = address({f"t{k}": math.prod(b.taps for b in axes[k + 1 :]) for k, a in enumerate(axes) if a.taps > 1})
    head = [
        each_of("n"),
        f"const I image = i / {whole[letter]};",
        *split(f"(i % {whole[letter]})", here, sizes),
        "A best = 0; const int none = " + (f"{_NONE};" if "small" in what else "-1;") + " int won = none;",
    ]
    inner = {
        "max": ["{", f"const A v = load(x + {at}); if ({_BIGGEST}) {{ best = v; won = {tap}; }}", "}"],
        "max back": [f"if (which[{at}] == {tap}) best += load(x + {at});"],
        "mean": [f"best += load(x + {at});"],
        "mean back": [f"best += load(x + {at}) / ({divisor});"],
    }[f"{kind} back" if back else kind]
    lines = {
        "max": ["store(y + i, won == none ? -(A)INFINITY : best); which[i] = won;"],
        "mean": [f"store(y + i, best / ({divisor}));"],
    }.get(kind if not back else "", ["store(y + i, best);"])
    mask = f"{'unsigned char' if 'small' in what else 'int'}* which, " if kind == "max" else ""
    body = [*head, *walk(axes, inner, backward=back), *lines]
    before = "#ifndef INFINITY\n#define INFINITY __int_as_float(0x7f800000)\n#endif"
    return kernel_text(dtype, f"const T* x, T* y, {mask}I n", body, wide, before)


def _pooled(x: Array, axes: tuple[Walk, ...], kind: str, divisor: str) -> tuple[Array, Vjp] | None:
    if not fits(x):
        return None
    shape, dtype = x.shape, NAMES[x.dtype]
    pooled = (*shape[:2], *(axis.out for axis in axes))
    wide = max(x.size, math.prod(pooled)) >= WIDE
    small = math.prod(axis.taps for axis in axes) <= _NONE
    index = np.int64 if wide else np.int32

    def launch(source: Array, shape: tuple[int, ...], what: str) -> Array:
        out, count = empty(shape, dtype), math.prod(shape)
        text = _text(f"{kind} {what} {'small' if small else ''}", dtype, axes, divisor, wide)
        run(text, -(-count // THREADS), source, out, *([] if which is None else [which]), index(count))
        return out

    with current(x):
        which = empty(pooled, "uint8" if small else "int32") if kind == "max" else None
        like = empty((0,), dtype) if which is None else which
        y = launch(x, pooled, "")

    def vjp(dy: Array) -> Array:
        with current(like):
            return launch(gradient(dy, pooled, dtype, like), shape, "back")

    return y, vjp


def max_windows(x: Array, axes: Sequence[Any], sizes: Sequence[int]) -> tuple[Array, Vjp] | None:
    """As in :mod:`growarray.ops.pool`, in one launch each way; keeps which tap won."""
    return _pooled(x, _walks(x.shape, axes, sizes), "max", "1")


def mean_windows(
    x: Array, axes: Sequence[Any], sizes: Sequence[int], include_pad: bool, divisor_override: int | None
) -> tuple[Array, Vjp] | None:
    """As in :mod:`growarray.ops.pool`, in one launch each way; keeps nothing."""
    counts = []
    for k, (size, axis) in enumerate(zip(x.shape[2:], axes, strict=True)):
        low, high = (-axis.padding, size + axis.behind) if include_pad else (0, size)
        counts.append(_count(f"(q{k} * {axis.stride} - {axis.padding})", low, high, axis.kernel, axis.dilation))
    divisor = " * ".join(counts) if divisor_override is None else str(divisor_override)
    return _pooled(x, _walks(x.shape, axes, sizes), "mean", f"(A)({divisor})")


def _count(start: str, low: int, high: int, taps: int, dilation: int) -> str:
    """Taps of a window from ``start`` on that lie from ``low`` to before ``high``, at least 1."""
    first = f"({start} >= {low} ? 0 : ({low} - {start} + {dilation - 1}) / {dilation})"
    last = f"(({high - 1} - {start}) / {dilation} < {taps - 1} ? ({high - 1} - {start}) / {dilation} : {taps - 1})"
    return f"({last} < {first} ? 1 : {last} - {first} + 1)"


@lru_cache(maxsize=64)
def _adaptive_text(dtype: str, sizes: tuple[int, ...], outs: tuple[int, ...], wide: bool, back: bool) -> str:
    """Mean of nearly equal windows: ``lanes`` threads an output; on the way back a thread an input."""
    axes = range(len(sizes))
    p, q = ([f"{letter}{k}" for k in axes] for letter in "pq")
    pairs = list(enumerate(zip(sizes, outs, strict=True)))
    start = [f"const I a{k} = (long long)q{k} * {size} / {o};" for k, (size, o) in pairs]
    length = [f"const I l{k} = ((long long)(q{k} + 1) * {size} + {o - 1}) / {o} - a{k};" for k, (size, o) in pairs]
    count = " * ".join(f"l{k}" for k in axes)
    strides = {name: math.prod(of[k + 1 :]) for names, of in ((p, sizes), (q, outs)) for k, name in enumerate(names)}

    def at(names: Sequence[str], of: Sequence[int]) -> str:
        return f"image * {math.prod(of)} + {address({name: strides[name] for name in names})}"

    if back:
        last = [f"const I z{k} = ((long long)(p{k} + 1) * {o} - 1) / {size};" for k, (size, o) in pairs]
        loops = [f"for (I q{k} = (long long)p{k} * {o} / {size}; q{k} <= z{k}; ++q{k}) {{" for k, (size, o) in pairs]
        body = [
            each_of("n"),
            f"const I image = i / {math.prod(sizes)}; A s = 0;",
            *split(f"(i % {math.prod(sizes)})", p, dict(zip(p, sizes, strict=True))),
            *last, *loops, *start, *length, f"s += load(x + {at(q, outs)}) / (A)({count});", "}" * len(loops),
            "store(y + i, s);",
        ]  # fmt: skip
        return kernel_text(dtype, "const T* x, T* y, I n, int lanes", body, wide)
    body = [
        f"__shared__ A held[{THREADS}]; const int lane = threadIdx.x % lanes;",
        f"const I i = (I)blockIdx.x * ({THREADS} / lanes) + threadIdx.x / lanes, image = i / {math.prod(outs)};",
        *split(f"(i % {math.prod(outs)})", q, dict(zip(q, outs, strict=True))), *start, *length,
        f"const I count = {count}; A s = 0;",
        "for (I e = i < n ? lane : count; e < count; e += lanes) { I r = e;",
        *(f"const I p{k} = a{k} + r % l{k}; r /= l{k};" for k in reversed(axes)),
        f"s += load(x + {at(p, sizes)}); }}",
        "s = row_sum(s, held, lanes); if (lane == 0 && i < n) store(y + i, s / count);",
    ]  # fmt: skip
    return kernel_text(dtype, "const T* x, T* y, I n, int lanes", body, wide, ROW_SUM)


def adaptive(x: Array, sizes: Sequence[int]) -> tuple[Array, Vjp] | None:
    """As in :mod:`growarray.ops.pool`, in one launch each way; keeps nothing."""
    if not fits(x):
        return None
    inputs, outs, dtype = x.shape[2:], tuple(sizes), NAMES[x.dtype]
    shape, pooled = x.shape, (*x.shape[:2], *outs)
    lanes = lanes_for(math.prod(-(-size // out) for size, out in zip(inputs, outs, strict=True)))
    wide = max(x.size, math.prod(pooled)) >= WIDE

    def launch(source: Array, to: tuple[int, ...], back: bool) -> Array:
        out, count, many = empty(to, dtype), math.prod(to), 1 if back else lanes
        number = (np.int64 if wide else np.int32)(count)
        text = _adaptive_text(dtype, inputs, outs, wide, back)
        run(text, -(-count * many // THREADS), source, out, number, np.int32(many))
        return out

    with current(x):
        like, y = empty((0,), dtype), launch(x, pooled, False)

    def vjp(dy: Array) -> Array:
        with current(like):
            return launch(gradient(dy, pooled, dtype, like), shape, True)

    return y, vjp
