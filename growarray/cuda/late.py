"""Late checks of values on a GPU: looking at a value waits for the device, so a fault is raised at a later copy.

What is to be looked at comes along whenever values go to the host anyway (:func:`growarray.backend.to_host`), and when
:func:`settle` is called.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, copied_along, is_cupy, to_host, to_numpy
from growarray.cuda.device import cuda, zeros

Judge = Callable[..., Exception | None]

_MOST = 256  # checks that wait
_lock = threading.RLock()
_waiting: list[tuple[tuple[Array, ...], Judge, Any]] = []  # with the stream on which the arrays are written
_records: dict[tuple[Judge, int, int], Array] = {}


def check(judge: Judge, *arrays: Array) -> None:
    """Raise what ``judge`` makes of the arrays in NumPy: at once, or late if they are CuPy's, which are kept for that.

    >>> check(lambda x: ValueError("there is a 1") if (x == 1).any() else None, np.zeros(2))
    """
    if not any(map(is_cupy, arrays)):
        if (error := judge(*map(to_numpy, arrays))) is not None:
            raise error
        return
    with _lock:
        _waiting.append((arrays, judge, cuda().get_current_stream()))
        many = len(_waiting) > _MOST
    if many:
        settle()


def record(judge: Judge, like: Array) -> Array:
    """Four whole numbers on the device of ``like``, 0 until a kernel writes what ``judge`` will be shown late."""
    with _lock:
        stream = cuda().get_current_stream()
        key = judge, like.device.id, stream.ptr
        if key not in _records:
            _records[key] = zeros((4,), "int64")
        entry = _records[key]
        if not any(arrays[0] is entry for arrays, *_ in _waiting):
            _waiting.append(((entry,), judge, stream))
        return entry


def settle() -> None:
    """Wait for the device and look at all that waits; raise what the first check that fails says, and forget the rest.

    >>> settle()
    """
    arrays, look = _taken()
    look(to_host(arrays))


def _taken() -> tuple[list[Array], Callable[[Sequence[np.ndarray]], None]]:
    """All arrays that wait to be looked at, and what looks at them on the host; from now on they wait no more."""
    with _lock:
        waiting = _waiting[:]
        _waiting.clear()
    here = {cuda().get_current_stream().ptr} if waiting else set()
    for stream in {stream.ptr: stream for *_, stream in waiting if stream.ptr not in here}.values():
        stream.synchronize()

    def look(values: Sequence[np.ndarray]) -> None:
        remaining = iter(values)
        errors = [judge(*(next(remaining) for _ in arrays)) for arrays, judge, _ in waiting]
        failed = [error for error in errors if error is not None]
        if failed:
            with _lock:
                _records.clear()
            raise failed[0]

    return [array for arrays, *_ in waiting for array in arrays], look


copied_along.append(_taken)
