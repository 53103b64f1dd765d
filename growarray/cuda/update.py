"""One launch for all parameters of an optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import Array, is_cupy
from growarray.cuda.device import Kernel, current, kernel_launch, parts
from growarray.cuda.text import ACCUMULATED, kernel_text

_THREADS = 256
_MOST = 24  # parameters of one launch: the arguments of a kernel have 4 KB
_WIDE = 1 << 30  # elements from which on their number takes 64 bits


class Rule(NamedTuple):
    """One element's step as text: from p, its gradient g, the slots s0, s1, … and numbers, in the type A of sums.

    lines : set P, the new data, and S0, S1, …, the new slots    slots : their names
    options : numbers c0, c1, … of all parameters; a parameter has numbers o0, o1, … of its own
    counts : whether the steps of a parameter are counted
    """

    lines: tuple[str, ...]
    slots: tuple[str, ...]
    options: tuple[float, ...]
    counts: bool = False


def sgd(options: tuple[float, float, float, float], nesterov: bool) -> Rule:
    """:class:`growarray.optim.SGD`: lr, momentum, dampening, weight decay; o0 is 1 where there is no buffer yet."""
    if not options[1]:
        return Rule(("P = p - c0 * (g + c3 * p);",), (), options)
    step = "P = p - c0 * (d + c1 * S0);" if nesterov else "P = p - c0 * S0;"
    lines = ("const A d = g + c3 * p;", "S0 = o0 ? d : c1 * s0 + (1 - c2) * d;", step)
    return Rule(lines, ("momentum_buffer",), options)


def adam(options: tuple[float, float, float, float], within: bool, amsgrad: bool) -> Rule:
    """:class:`growarray.optim.Adam`: both betas, decay, eps; o0 is lr and o1 a root, with their bias corrected."""
    decay = "const A q = p, d = g + c2 * p;" if within else "const A q = p * c2, d = g;"
    means = "S0 = c0 * s0 + (1 - c0) * d; S1 = c1 * s1 + (1 - c1) * d * d;"
    names = ("exp_avg", "exp_avg_sq")
    if not amsgrad:
        return Rule((decay, means, "P = q - o0 * S0 / (sqrt(S1) / o1 + c3);"), names, options, True)
    lines = (decay, means, "S2 = s2 > S1 ? s2 : S1;", "P = q - o0 * S0 / (sqrt(S2) / o1 + c3);")
    return Rule(lines, (*names, "max_exp_avg_sq"), options, True)


class _Entry(NamedTuple):
    """A parameter, with None for a slot that is not there yet."""

    parameter: Any
    gradient: Array
    slots: tuple[Array | None, ...]
    own: tuple[float, ...]


@lru_cache(maxsize=64)
def _text(lines: tuple[str, ...], slots: int, options: int, own: int, count: int, dtype: str, wide: bool) -> str:
    """The kernel for ``count`` parameters, which lie one after the other in the numbers of threads."""
    numbers, arguments, body = "long long" if wide else "int", [], []
    summed = {"float32": "float", "float64": "double"}[ACCUMULATED[dtype]]
    arguments += [f"{summed} c{k}" for k in range(options)]
    for j in range(count):
        arguments += [f"{numbers} n{j}", *(f"{summed} o{k}_{j}" for k in range(own))]
        arguments += [f"const T* p{j}", f"const T* g{j}", *(f"const T* s{k}_{j}" for k in range(slots))]
        arguments += [f"T* P{j}", *(f"T* S{k}_{j}" for k in range(slots))]
        body += [
            f"if (i < n{j}) {{ const A p = load(p{j} + i), g = load(g{j} + i); A P;",
            *(f"const A s{k} = s{k}_{j} ? load(s{k}_{j} + i) : (A)0; A S{k};" for k in range(slots)),
            *(f"const A o{k} = o{k}_{j};" for k in range(own)),
            *lines,
            f"store(P{j} + i, P);",
            *(f"store(S{k}_{j} + i, S{k});" for k in range(slots)),
            f"return; }} i -= n{j};",
        ]
    first = f"I i = (I)blockIdx.x * {_THREADS} + threadIdx.x;"
    return kernel_text(dtype, ", ".join(arguments), [first, *body], wide)


def move_together(
    moved: Sequence[tuple[Any, Array]], rule: Rule, own: Callable[[Any], tuple[float, ...]]
) -> list[tuple[Any, Array]]:
    """Give parameters new data and slots, in one launch for all of one dtype and device; those that are left.

    moved : parameters with their gradients    own : the numbers of one parameter
    """
    groups: dict[Any, list[_Entry]] = {}
    left = []
    for parameter, gradient in moved:
        data, held = parameter.data, parameter.slots
        arrays = [data, gradient, *(held[name] for name in rule.slots if name in held)]
        # steps that growth made an array count by entry
        if hasattr(held.get("step"), "shape") or not all(_fits(x, data) for x in arrays):
            left.append((parameter, gradient))
            continue
        entry = _Entry(parameter, gradient, tuple(map(held.get, rule.slots)), own(parameter))
        groups.setdefault((data.dtype, data.device.id), []).append(entry)
    made: list[tuple[_Entry, tuple[Array, ...]]] = []
    for group in groups.values():
        for at in range(0, len(group), _MOST):
            some = group[at : at + _MOST]
            made += zip(some, _updated(rule, some), strict=True)
    for (parameter, *_), (data, *slots) in made:  # once there was memory for all
        if rule.counts:
            parameter.slots["step"] = parameter.slots.get("step", 0) + 1
        parameter.slots |= dict(zip(rule.slots, slots, strict=True))
        parameter.data = data
    return left


def _fits(x: Array, data: Array) -> bool:
    same = x.shape == data.shape and x.dtype == data.dtype and str(x.dtype) in ACCUMULATED
    return same and is_cupy(x) and bool(x.flags.c_contiguous) and x.size > 0


def _updated(rule: Rule, entries: Sequence[_Entry]) -> list[tuple[Array, ...]]:
    dtype, total = str(entries[0].parameter.data.dtype), sum(entry.parameter.data.size for entry in entries)
    wide, number = total >= _WIDE, np.dtype(ACCUMULATED[dtype]).type
    each = 1 + len(rule.slots)
    text = _text(rule.lines, len(rule.slots), len(rule.options), len(entries[0].own), len(entries), dtype, wide)
    arguments: list[object] = [number(c) for c in rule.options]
    shapes = [entry.parameter.data.shape for entry in entries for _ in range(each)]
    with current(entries[0].parameter.data):
        fresh = parts(shapes, dtype)
        found = [tuple(fresh[at : at + each]) for at in range(0, len(fresh), each)]
        for entry, new in zip(entries, found, strict=True):
            size = math.prod(entry.parameter.data.shape)
            arguments += [np.int64(size) if wide else np.int32(size), *map(number, entry.own)]
            arguments += [entry.parameter.data.data.ptr, entry.gradient.data.ptr]
            arguments += [0 if slot is None else slot.data.ptr for slot in entry.slots]
            arguments += [x.data.ptr for x in new]
        launch = Kernel(text, -(-total // _THREADS), _THREADS, tuple(range(len(arguments))))
        kernel_launch(launch)(arguments)  # type: ignore[arg-type]
    return found
