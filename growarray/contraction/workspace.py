"""Work space that a thread keeps between calls, so that repeated runs allocate nothing large."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

_T = TypeVar("_T")

_KEPT = 1 << 28  # bytes of one buffer above which it is not kept
_MOST = 512  # arrays that are remembered, not the buffers they lie in
_IMAGE = 32  # columns of one image below which to copy many of them into one product is faster than one for each

_NO_COPY: dict[str, Any] = {"copy": False} if np.lib.NumpyVersion(np.__version__) >= "2.1.0" else {}


class _Arrays(dict[tuple[str, tuple[int, ...], Any], np.ndarray]):
    """Uninitialised arrays by (slot, shape, dtype); those of one slot lie in one buffer."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def __missing__(self, key: tuple[str, tuple[int, ...], Any]) -> np.ndarray:
        slot, shape, dtype = key
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size > _KEPT:
            return np.empty(shape, dtype)
        buffer = self._buffers.get(slot)
        if buffer is None or buffer.nbytes < size:
            for old in [old for old in self if old[0] == slot]:
                del self[old]
            buffer = self._buffers[slot] = np.empty(size, np.uint8)
        if len(self) >= _MOST:
            self.clear()
        found: np.ndarray = buffer[:size].view(dtype).reshape(shape)
        self[key] = found
        return found


class _Here(threading.local):
    """What the calling thread keeps."""

    def __init__(self) -> None:
        self.arrays = _Arrays()


here = _Here()
"""``here.arrays[slot, shape, dtype]``: the next array of the same slot in the same thread takes its memory back."""


def apart(body: Callable[[], _T]) -> _T:
    """``body()`` with buffers of its own: those of this thread are in use by what it interrupts."""
    before = here.arrays
    try:
        here.arrays = _Arrays()
        return body()
    finally:
        here.arrays = before


def lent(body: Callable[[Any], _T]) -> _T:
    """``body(arrays)`` with what this thread keeps; whoever interrupts it finds other arrays."""
    arrays = here.arrays
    try:
        here.arrays = _Arrays()
        return body(arrays)
    finally:
        here.arrays = arrays


def release() -> None:
    """Give this thread's buffers back to the system."""
    here.arrays = _Arrays()


def view_as(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array in another shape, to write to; None if its axes do not lie so that this is a view."""
    try:
        found = array.reshape(shape, **_NO_COPY)
    except ValueError:
        return None
    return found if _NO_COPY or found.size == 0 or np.may_share_memory(found, array) else None


def by_image(array: np.ndarray) -> np.ndarray | None:
    """(b, rows, images, *sizes) as (b, images, rows, columns), if that is a view of images that are large enough."""
    if array.ndim < 4:
        return None
    swapped = array.swapaxes(1, 2)
    columns = math.prod(swapped.shape[3:])
    return view_as(swapped, (*swapped.shape[:3], columns)) if columns >= _IMAGE else None
