"""Measuring calls against each other: in turns A B C A B C, medians of ratios; peak memory; rank correlation.

A machine that is shared gets slower and faster by the minute, so what is compared has its turns in the same rounds.
With one thread, seconds are those of the processor: other processes then cost cache and memory alone.
"""

from __future__ import annotations

import math
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from growarray.contraction.machine import threads
from growarray.contraction.threads import run_tasks
from growarray.contraction.workspace import release

_TURN = 0.03  # seconds of calls in one turn, if a call is shorter than that
_MOST = 50  # calls in one turn
_COLD = 0.02  # seconds of a call below which a turn starts with one that is not timed: it fills the caches again
_LEAST = 3  # rounds, whatever the budget says
_PAUSE = 0.04  # seconds after a library whose idle threads go on spinning

Call = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Peer:
    """One way to run the layer in another library: calls that give the result, and all gradients."""

    name: str
    forward: Callable[[], Any]
    training: Callable[[], Any]
    result: Callable[[], np.ndarray]


def clock_for(device: str | None) -> Clock:
    """Seconds of the processor if one thread computes on a CPU, else those of the wall."""
    return time.process_time if device is None and threads() == 1 else time.perf_counter


def synchronised(call: Callable[[], Any]) -> Call:
    """The call, and waiting for the device of the array that it returns, if there is one."""

    def run() -> object:
        result = call()
        last = next((g for g in reversed(result) if g is not None), None) if isinstance(result, tuple) else result
        wait = getattr(getattr(last, "device", None), "synchronize", None)
        if wait is not None:
            wait()
        return result

    return run


def pullback_call(plan: Any, arrays: Sequence[Any], dy: Any) -> Callable[[], Any]:
    """Forward pass, and backward pass by every operand."""

    def run() -> Any:
        _, pullback = plan.vjp(*arrays)
        return pullback(dy)

    return run


def interleaved(
    calls: Mapping[str, Call],
    *,
    repeat: int,
    warmup: int = 2,
    budget: float = math.inf,
    spinning: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of one call of each, in ``repeat`` rounds in which each has a turn.

    A turn of short calls has several, of which the fastest counts: what disturbs a call only makes it slower.
    budget : seconds after which no further round starts, once there were three
    spinning : calls after which there is a pause, for a library whose threads spin
    progress : is told the rounds that are done, and how many there are    clock : see :func:`clock_for`

    >>> sorted(interleaved({"a": list, "b": dict}, repeat=3))
    ['a', 'b']
    """
    started, lengths = time.perf_counter(), {}
    for name, call in calls.items():
        lengths[name] = min(_timed(call, clock) for _ in range(max(warmup, 1)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(repeat):
        if done >= _LEAST and time.perf_counter() - started > budget:
            break
        for name, call in calls.items():
            if lengths[name] < _COLD:
                call()
            count = max(1, min(_MOST, int(_TURN / max(lengths[name], 1e-9))))
            lengths[name] = min(_timed(call, clock) for _ in range(count))
            seconds[name].append(lengths[name])
            if name in spinning:
                time.sleep(_PAUSE)
        if progress is not None:
            progress(done + 1, repeat)
    return seconds


def typical(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Seconds of each call of :func:`interleaved`: the median of its ratio to the mean of its round.

    What slows a whole round down does not count. The scale is the median of the rounds' geometric means.

    >>> typical({"a": [1.0, 20.0, 1.0], "b": [2.0, 40.0, 2.0]})
    {'a': 1.0, 'b': 2.0}
    """
    logs = np.log(np.maximum(list(seconds.values()), 1e-12))
    means = logs.mean(axis=0)
    medians = np.exp(np.median(logs - means, axis=1) + np.median(means))
    return {name: round(float(value), 12) for name, value in zip(seconds, medians, strict=True)}


def _timed(call: Call, clock: Clock) -> float:
    start = clock()
    call()
    return clock() - start


def peak_bytes(call: Call) -> int:
    """Most bytes that one call allocates through Python at the same time: its result, partial results, work space.

    The work space that every thread keeps between calls is given back before, so that it counts. Arrays that exist
    before the call do not count.
    """
    _release_everywhere()
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if not running:
            tracemalloc.stop()


def _release_everywhere() -> None:
    """Give back the work space of this thread and of every thread that runs contractions."""
    count = threads()
    together = threading.Barrier(count)

    def piece() -> None:
        together.wait(timeout=60.0)  # so that each thread takes one of the pieces
        release()

    run_tasks([piece] * count)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation, equal values sharing the mean of their ranks; NaN for fewer than 3 or if all are equal.

    >>> spearman([1, 2, 3, 4], [10, 20, 40, 30])
    0.8
    """
    if len(first) != len(second):
        raise ValueError(f"spearman: {len(first)} values against {len(second)}, expected equally many")
    a, b = (ranks - ranks.mean() for ranks in map(_ranks, (first, second)))
    scale = math.sqrt(float(a @ a) * float(b @ b)) if len(first) > 2 else 0.0
    return round(float(a @ b) / scale, 12) if scale > 0 else math.nan


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    means: np.ndarray = np.cumsum(counts) - (counts - 1) / 2
    return means[places]
