"""Loops of the compiled routine, by Numba (the extra ``fast``). They let go of the interpreter's lock.

A plane is what one kernel reads. It is copied with its padding into a buffer in which every tap reads one run of
memory, as long as the result: loops are long on small planes too, and no position is special. Up to four taps are taken
at a time, since a compiler gives up telling more arrays apart. Only sums over a plane are reordered, for vectors: they
depend on the machine, and on nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import njit, types

from growarray.contraction.threads import look_by

_F = TypeVar("_F", bound=Callable[..., Any])


def _jit(*freedoms: str) -> Callable[[_F], _F]:
    """The decorator; what it compiles is kept on disk, if there is a folder that may be written to."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": set(freedoms)}

    def compiled(function: _F) -> _F:
        made: Any
        try:
            made = njit(cache=True, **options)(function)
        except RuntimeError:  # there is none
            made = njit(**options)(function)
        found: _F = made
        return found

    return compiled


_compiled, _reordered = _jit("contract"), _jit("contract", "reassoc")


class Tables(NamedTuple):
    """Offsets of the rows of a plane and of its result, in elements.

    size : of the buffer    lines : (in the buffer, in the source, how many) of what is no padding
    zeros : what of them is set to zero    offsets : of the taps in the buffer
    results : (in ``long``, in the result, how many)
    apart, step : from one element of a line to the next in the source, and in the result
    """

    size: int
    lines: np.ndarray
    zeros: np.ndarray
    offsets: np.ndarray
    results: np.ndarray
    apart: int
    step: int


@_compiled
def sum_shifted(
    source: np.ndarray, starts: np.ndarray, weights: np.ndarray, rows: np.ndarray, out: np.ndarray, ends: np.ndarray,
    tables: Tables, buffer: np.ndarray, long: np.ndarray,
) -> None:  # fmt: skip
    """For plane p, ``out`` from ``ends[p]`` on: sums of what the taps read, times ``weights[rows[p]]``."""
    _, lines, zeros, offsets, results, apart, step = tables
    whole = step == 1 and results.shape[0] == 1
    buffer[:] = 0  # its padding stays so
    for p in range(starts.shape[0]):
        if p == 0 or starts[p] != starts[p - 1]:
            _gather(buffer, source, starts[p], apart, lines)
            for i in range(zeros.shape[0]):
                buffer[zeros[i]] = 0
        if whole:
            _sum(out[ends[p] : ends[p] + results[0, 2]], buffer, offsets, weights[rows[p]])
            continue
        _sum(long, buffer, offsets, weights[rows[p]])
        if step == 1:
            for i in range(results.shape[0]):
                near, far, count = results[i, 0], ends[p] + results[i, 1], results[i, 2]
                _copy(out[far : far + count], long[near : near + count])
        else:
            for i in range(results.shape[0]):
                for j in range(results[i, 2]):
                    out[ends[p] + results[i, 1] + j * step] = long[results[i, 0] + j]


@_compiled
def correlate(
    source: np.ndarray, starts: np.ndarray, totals: np.ndarray, rows: np.ndarray, d_out: np.ndarray, ends: np.ndarray,
    tables: Tables, buffer: np.ndarray, long: np.ndarray,
) -> None:  # fmt: skip
    """For plane p, add to ``totals[rows[p]]`` the products of ``d_out`` from ``ends[p]`` on with what the taps read."""
    _, lines, zeros, offsets, results, apart, step = tables
    whole = step == 1 and results.shape[0] == 1
    buffer[:] = 0
    long[:] = 0  # between rows it stays so
    for p in range(starts.shape[0]):
        _gather(buffer, source, starts[p], apart, lines)
        for i in range(zeros.shape[0]):
            buffer[zeros[i]] = 0
        if whole:
            _add_products(totals[rows[p]], d_out[ends[p] : ends[p] + results[0, 2]], buffer, offsets)
            continue
        _gather(long, d_out, ends[p], step, results)
        _add_products(totals[rows[p]], long, buffer, offsets)


@_compiled
def add_windows(
    windows: np.ndarray, ends: np.ndarray, out: np.ndarray, starts: np.ndarray, tables: Tables, buffer: np.ndarray
) -> None:
    """For plane p, ``out`` from ``starts[p]`` on: sums of ``windows`` from ``ends[t, p]`` on, of what each tap t read.

    What no tap reads is left as it is.
    """
    _, lines, _, offsets, results, apart, _ = tables
    for p in range(starts.shape[0]):
        buffer[:] = 0
        for t in range(offsets.shape[0]):
            for i in range(results.shape[0]):
                near, far, count = offsets[t] + results[i, 0], ends[t, p] + results[i, 1], results[i, 2]
                _add(buffer[near : near + count], windows[far : far + count])
        for i in range(lines.shape[0]):
            near, far, count = lines[i, 0], starts[p] + lines[i, 1], lines[i, 2]
            if apart == 1:
                _copy(out[far : far + count], buffer[near : near + count])
            else:
                for j in range(count):
                    out[far + j * apart] = buffer[near + j]


@_compiled
def _gather(target: np.ndarray, source: np.ndarray, start: int, step: int, rows: np.ndarray) -> None:
    """Rows of a plane, which begins at ``start``."""
    if step == 1:
        for i in range(rows.shape[0]):
            near, far, count = rows[i, 0], start + rows[i, 1], rows[i, 2]
            _copy(target[near : near + count], source[far : far + count])
    elif step == 2:  # a number that the compiler knows
        for i in range(rows.shape[0]):
            near, far, count = rows[i, 0], start + rows[i, 1], rows[i, 2]
            even, all_ = target[near : near + count], source[far : far + 2 * count - 1]
            for j in range(count):
                even[j] = all_[2 * j]
    else:
        for i in range(rows.shape[0]):
            for j in range(rows[i, 2]):
                target[rows[i, 0] + j] = source[start + rows[i, 1] + j * step]


@_compiled
def _copy(target: np.ndarray, source: np.ndarray) -> None:
    for i in range(target.shape[0]):  # not target[:] = source, which allows for arrays that overlap
        target[i] = source[i]


@_compiled
def _add(target: np.ndarray, source: np.ndarray) -> None:
    for i in range(target.shape[0]):
        target[i] += source[i]


@_compiled
def _sum(out: np.ndarray, buffer: np.ndarray, offsets: np.ndarray, weights: np.ndarray) -> None:
    """``out[i] = sum over t of weights[t] buffer[offsets[t] + i]``."""
    n, t, taps = out.shape[0], 0, offsets.shape[0]
    while t < taps:
        count = _group(taps - t)
        last = t + count - 1
        a, d = buffer[offsets[t] : offsets[t] + n], buffer[offsets[last] : offsets[last] + n]
        b = buffer[offsets[min(t + 1, last)] : offsets[min(t + 1, last)] + n]
        c = buffer[offsets[min(t + 2, last)] : offsets[min(t + 2, last)] + n]
        u, v, w, x = weights[t], weights[min(t + 1, last)], weights[min(t + 2, last)], weights[last]
        if t == 0:
            if count == 4:
                for i in range(n):
                    out[i] = u * a[i] + v * b[i] + w * c[i] + x * d[i]
            elif count == 3:
                for i in range(n):
                    out[i] = u * a[i] + v * b[i] + w * c[i]
            elif count == 2:
                for i in range(n):
                    out[i] = u * a[i] + v * b[i]
            else:
                for i in range(n):
                    out[i] = u * a[i]
        elif count == 4:
            for i in range(n):
                out[i] += u * a[i] + v * b[i] + w * c[i] + x * d[i]
        elif count == 3:
            for i in range(n):
                out[i] += u * a[i] + v * b[i] + w * c[i]
        else:
            for i in range(n):
                out[i] += u * a[i] + v * b[i]
        t += count


@_compiled
def _group(left: int) -> int:
    """How many of the taps that are left come next: groups are alike, and one tap is never left alone."""
    groups = (left + 3) // 4
    return (left + groups - 1) // groups


@_reordered
def _add_products(totals: np.ndarray, d_out: np.ndarray, buffer: np.ndarray, offsets: np.ndarray) -> None:
    """``totals[t] += sum over i of d_out[i] buffer[offsets[t] + i]``; each plane in its own precision."""
    n, taps = d_out.shape[0], offsets.shape[0]
    for t in range(0, taps, 3):
        last = taps - 1
        a = buffer[offsets[t] : offsets[t] + n]
        b = buffer[offsets[min(t + 1, last)] : offsets[min(t + 1, last)] + n]
        c = buffer[offsets[min(t + 2, last)] : offsets[min(t + 2, last)] + n]
        first = second = third = d_out.dtype.type(0)
        for i in range(n):
            first += d_out[i] * a[i]
            second += d_out[i] * b[i]
            third += d_out[i] * c[i]
        totals[t] += first
        if t + 1 < taps:
            totals[t + 1] += second
        if t + 2 < taps:
            totals[t + 2] += third


_PAUSE = 10  # looks more: who made the count go on has then let go of the interpreter's lock
_yield = types.ExternalFunction("sched_yield", types.int32())


@_compiled
def _look(count: np.ndarray, seen: int, times: int) -> None:
    """Return when ``count[0]`` is no more ``seen``, or after so many looks; other threads may have the core."""
    for _ in range(times):
        _yield()
        if count[0] != seen:
            for _ in range(_PAUSE):
                _yield()
            return


if hasattr(os, "sched_yield"):
    _look(np.zeros(1, np.int64), 0, 0)  # compiled now, not by a worker during a fork
    look_by(_look)
