"""Checks of values that lie on a GPU: to look at them waits for it, so they are made there and found late.

Somebody looks when values go to the host anyway (:func:`growarray.backend.to_numpy`), and when :func:`settle` is
called, as :class:`growarray.networks.Growth` does after every epoch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from growarray.backend import Array, after_copy, is_cupy, to_numpy
from growarray.cuda.device import zeros

Judge = Callable[..., Exception | None]

_MOST = 256  # checks that wait
_lock = threading.RLock()
_waiting: list[tuple[tuple[Array, ...], Judge]] = []
_records: dict[tuple[Judge, int], Array] = {}


def check(judge: Judge, *arrays: Array) -> None:
    """Raise what ``judge`` makes of the arrays in NumPy: at once, or late if they are CuPy's, which are kept for that.

    >>> check(lambda x: ValueError("there is a 1") if (x == 1).any() else None, np.zeros(2))
    """
    if not any(map(is_cupy, arrays)):
        if (error := judge(*map(to_numpy, arrays))) is not None:
            raise error
        return
    with _lock:
        _waiting.append((arrays, judge))
        many = len(_waiting) > _MOST
    if many:
        settle()


def record(judge: Judge, like: Array) -> Array:
    """Four whole numbers on the device of ``like``, 0 until a kernel writes what ``judge`` will be shown late."""
    with _lock:
        key = judge, like.device.id
        if key not in _records:
            _records[key] = zeros((4,), "int64")
        found = _records[key]
        if not any(arrays[0] is found for arrays, _ in _waiting):
            _waiting.append(((found,), judge))
        return found


def settle() -> None:
    """Wait for the device and look at all that waits; raise what the first check that fails says, and forget the rest.

    >>> settle()
    """
    with _lock:
        waiting = _waiting[:]
        _waiting.clear()
        errors = [judge(*(np.asarray(x.get()) for x in arrays)) for arrays, judge in waiting]
        failed = [error for error in errors if error is not None]
        if failed:
            _records.clear()
            raise failed[0]


after_copy.append(settle)
