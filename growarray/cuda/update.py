"""One launch for all parameters of an optimizer, however many and however large, and for all gradients that are cut.

Arrays are given in a table, which is made anew for every step: data are replaced, so their addresses change.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import Array, is_cupy
from growarray.cuda.device import NAMES, contiguous, current, empty, fits, parts, run, uploaded
from growarray.cuda.text import ACCUMULATED, BLOCK_SUMS, THREADS, kernel_text

_EACH = 4 * THREADS  # elements of a block


class Rule(NamedTuple):
    """One element's step as text: from p, its gradient g, the slots s0, s1, … and numbers, in the type A of sums.

    lines : set P, the new data, and S0, S1, …, the new slots    slots : their names
    options : numbers c0, c1, … of all parameters; a parameter has numbers o0, o1, … of its own
    counts : lines that set o0, o1, … from t, the number of this step, for a parameter that has grown and counts the
        steps of every entry; empty if steps are not counted
    """

    lines: tuple[str, ...]
    slots: tuple[str, ...]
    options: tuple[float, ...]
    counts: tuple[str, ...] = ()


def sgd(options: tuple[float, float, float, float], nesterov: bool) -> Rule:
    """:class:`growarray.optim.SGD`: lr, momentum, dampening, weight decay; o0 is 1 where there is no buffer yet."""
    decayed = "const A d = g + c3 * p;" if options[3] else "const A d = g;"  # 0 times infinity is not a number
    if not options[1]:
        return Rule((decayed, "P = p - c0 * d;"), (), options)
    step = "P = p - c0 * (d + c1 * S0);" if nesterov else "P = p - c0 * S0;"
    lines = (decayed, "S0 = o0 ? d : c1 * s0 + (1 - c2) * d;", step)
    return Rule(lines, ("momentum_buffer",), options)


def adam(options: tuple[float, float, float, float], lr: float, within: bool, amsgrad: bool) -> Rule:
    """:class:`growarray.optim.Adam`: both betas, decay, eps; o0 is lr and o1 a root, with their bias corrected."""
    logs = tuple(math.log(beta) if beta else -math.inf for beta in options[:2])
    counts = ("o0 = c4 / -expm1(t * c5); o1 = sqrt(-expm1(t * c6));",)
    added = "g + c2 * p" if options[2] else "g"
    decay = f"const A q = p, d = {added};" if within else "const A q = p * c2, d = g;"
    means = "S0 = c0 * s0 + (1 - c0) * d; S1 = c1 * s1 + (1 - c1) * d * d;"
    largest, square = ("S2 = s2 > S1 || s2 != s2 ? s2 : S1;", "S2") if amsgrad else ("", "S1")
    lines = (decay, means, largest, f"P = q - o0 * S0 / (sqrt({square}) / o1 + c3);")
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    return Rule(lines, names if amsgrad else names[:2], (*options, lr, *logs), counts)


class _Entry(NamedTuple):
    """A parameter, with None for a slot that is not there yet, and for steps that are counted as one number."""

    parameter: Any
    gradient: Array
    slots: tuple[Array | None, ...]
    steps: Array | None
    own: tuple[float, ...]


# A table has a row of whole numbers for each array: its first block, its size, then addresses, then float64 numbers.
_FIND = f"""I j = 0, above = rows; while (above - j > 1) {{
  const I middle = (j + above) / 2; const bool later = table[middle * width] > (long long)blockIdx.x;
  if (later) above = middle; else j = middle; }}
const long long* row = table + j * width;
const I start = ((I)blockIdx.x - row[0]) * {_EACH} + threadIdx.x, n = row[1];
#define EACH for (I i = start, k = 0; k < {_EACH // THREADS} && i < n; ++k, i += {THREADS})
#define AT(slot) ((T*)row[2 + slot])"""


@lru_cache(maxsize=64)
def _step(lines: tuple[str, ...], counts: tuple[str, ...], slots: int, options: int, scalars: int, dtype: str) -> str:
    """The kernel of a rule, for any number of parameters of any sizes."""
    put, steps = 2 + slots, 3 + 2 * slots  # places of the new data, and of the steps, before the numbers
    step = f"if (AT({steps})) {{ const A t = load(AT({steps}) + i) + 1; store(AT({steps + 1}) + i, t);"
    body = [
        *(f"A o{k} = *(const double*)(row + 2 + {steps + 2 + k});" for k in range(scalars)),
        "EACH {", *([step, *counts, "}"] if counts else []),
        "const A p = load(AT(0) + i), g = load(AT(1) + i); A P;",
        *(f"const A s{k} = AT({2 + k}) ? load(AT({2 + k}) + i) : (A)0; A S{k};" for k in range(slots)),
        *lines,
        f"store(AT({put}) + i, P);",
        *(f"store(AT({put + 1 + k}) + i, S{k});" for k in range(slots)),
        "}",
    ]  # fmt: skip
    arguments = ["const long long* table, I rows, I width", *(f"A c{k}" for k in range(options))]
    return kernel_text(dtype, ", ".join(arguments), [_FIND, *body], True)


def _launched(text: str, rows: Sequence[Sequence[Any]], *options: Any) -> None:
    """Launch a kernel over all arrays, one copy of their table before it.

    rows : of each array its size, addresses, and float64 numbers
    """
    first = [0, *itertools.accumulate(-(-row[0] // _EACH) for row in rows)]
    kinds = "q" + "".join("d" if isinstance(value, float) else "q" for value in rows[0])
    values = itertools.chain.from_iterable((start, *row) for start, row in zip(first, rows, strict=False))
    table = np.frombuffer(struct.pack(kinds * len(rows), *values), np.int64)
    run(text, first[-1], uploaded(table), np.int64(len(rows)), np.int64(len(kinds)), *options)


def move_together(
    moved: Sequence[tuple[Any, Array]], rule: Rule, scalars_of: Callable[[Any], tuple[float, ...]]
) -> list[tuple[Any, Array]]:
    """Give parameters new data and slots, in one launch for all of one dtype and device; those that are left.

    moved : parameters with their gradients    scalars_of : the numbers of one parameter
    """
    groups: dict[Any, list[_Entry]] = {}
    left = []
    for parameter, gradient in moved:
        data, old = parameter.data, parameter.slots
        count = old.get("step")
        steps = count if hasattr(count, "shape") and rule.counts else None
        arrays = [
            data,
            gradient,
            *(old[name] for name in rule.slots if name in old),
            *([] if steps is None else [steps]),
        ]
        if not fits(*arrays) or any(x.shape != data.shape for x in arrays):
            left.append((parameter, gradient))
            continue
        entry = _Entry(parameter, gradient, tuple(map(old.get, rule.slots)), steps, scalars_of(parameter))
        groups.setdefault((data.dtype, data.device.id), []).append(entry)
    results = [
        (entry, new) for group in groups.values() for entry, new in zip(group, _updated(rule, group), strict=True)
    ]
    for (parameter, _, _, steps, _), (data, *slots, new_steps) in results:  # once there was memory for all
        if rule.counts:
            parameter.slots["step"] = parameter.slots.get("step", 0) + 1 if steps is None else new_steps
        parameter.slots |= dict(zip(rule.slots, slots, strict=True))
        parameter.data = data
    return left


def _updated(rule: Rule, entries: Sequence[_Entry]) -> list[list[Array | None]]:
    """New data, slots and steps of each."""
    dtype, slots = NAMES[entries[0].parameter.data.dtype], len(rule.slots)
    text = _step(rule.lines, rule.counts, slots, len(rule.options), len(entries[0].own), dtype)
    with current(entries[0].parameter.data):
        data = parts([e.gradient.shape for e in entries], dtype)  # are replaced; slots are changed in place
        fresh = iter(parts([e.gradient.shape for e in entries for x in e.slots if x is None], dtype))
        results = [
            [new, *(next(fresh) if x is None else x for x in e.slots), e.steps]
            for e, new in zip(entries, data, strict=True)
        ]
        rows = [
            [e.gradient.size, *_addresses(e.parameter.data, e.gradient, *e.slots, *new, e.steps), *e.own]
            for e, new in zip(entries, results, strict=True)
        ]
        _launched(text, rows, *map(np.dtype(ACCUMULATED[dtype]).type, rule.options))
    return results


def _addresses(*arrays: Array | None) -> list[int]:
    return [0 if x is None else x.data.ptr for x in arrays]


@lru_cache(maxsize=8)
def _clipping(dtype: str) -> tuple[str, str, str]:
    """Sums of squares of blocks; norm and factor, in one block; gradients times the factor."""
    squares = [
        f"__shared__ double held[{THREADS}]; double s = 0;", _FIND,
        "EACH { const double v = load(AT(0) + i); s += v * v; }",
        "s = sum_of(s, held); if (threadIdx.x == 0) sums[blockIdx.x] = s;",
    ]  # fmt: skip
    norm = [
        f"__shared__ double held[{THREADS}]; double s = 0;",
        f"for (I i = threadIdx.x; i < blocks; i += {THREADS}) s += sums[i];",
        "s = sqrt(sum_of(s, held)); const double by = most / (s + 1e-6);",
        "if (threadIdx.x == 0) { found[0] = s; found[1] = by > 1 ? 1 : by; }",
    ]
    scaled = [_FIND, "EACH store(AT(1) + i, load(AT(0) + i) * (A)found[1]);"]
    table = "const long long* table, I rows, I width"
    return (
        kernel_text(dtype, f"{table}, double* sums", squares, True, BLOCK_SUMS),
        kernel_text(dtype, "const double* sums, double* found, double most, I blocks", norm, True, BLOCK_SUMS),
        kernel_text(dtype, f"{table}, const double* found", scaled, True),
    )


def clip_together(pairs: Sequence[tuple[Any, Array]], max_norm: float) -> Array | None:
    """Scale the gradients of parameters; returns their norm (), for which nobody waits. Three launches.

    None, and nothing has changed, if gradients are not of one dtype and device.
    """
    gradients = [contiguous(g, g.dtype) if is_cupy(g) else g for _, g in pairs]
    if not fits(*gradients) or len({g.device.id for g in gradients}) > 1:
        return None
    dtype = NAMES[gradients[0].dtype]
    squares, norm, scaled = _clipping(dtype)
    with current(gradients[0]):
        clipped = parts([g.shape for g in gradients], dtype)
        rows = [[g.size, *_addresses(g, new)] for g, new in zip(gradients, clipped, strict=True)]
        count = sum(-(-g.size // _EACH) for g in gradients)
        sums, norm_and_scale = empty((count,), "float64"), empty((2,), "float64")
        _launched(squares, rows, sums)
        run(norm, 1, sums, norm_and_scale, np.float64(max_norm), np.int64(count))
        _launched(scaled, rows, norm_and_scale)
    for (parameter, _), new in zip(pairs, clipped, strict=True):
        parameter.grad = new
    return norm_and_scale[0]
