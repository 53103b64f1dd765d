"""Work space that a thread keeps between calls, so that repeated runs allocate nothing large."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

__all__ = ["apart", "borrow", "release", "view_as"]

_T = TypeVar("_T")

_KEPT = 1 << 28  # bytes of one buffer above which it is not kept

_NO_COPY: dict[str, Any] = {"copy": False} if np.lib.NumpyVersion(np.__version__) >= "2.1.0" else {}

_local = threading.local()


def borrow(slot: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised C-ordered array; the next ``borrow`` of the same slot in the same thread takes it back."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size > _KEPT:
        return np.empty(shape, dtype)
    slots: dict[str, np.ndarray] | None = getattr(_local, "slots", None)
    if slots is None:
        slots = _local.slots = {}
    buffer = slots.get(slot)
    if buffer is None or buffer.nbytes < size:
        buffer = slots[slot] = np.empty(size, np.uint8)
    array: np.ndarray = buffer[:size].view(dtype).reshape(shape)
    return array


def apart(body: Callable[[], _T]) -> _T:
    """``body()`` with buffers of its own: those of this thread are in use by what it interrupts."""
    before = getattr(_local, "slots", None)
    try:
        _local.slots = {}
        return body()
    finally:
        _local.slots = before


def release() -> None:
    """Give this thread's buffers back to the system."""
    _local.slots = {}


def view_as(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array in another shape, to write to; None where its axes do not lie so that this is a view."""
    try:
        found = array.reshape(shape, **_NO_COPY)
    except ValueError:
        return None
    return found if _NO_COPY or found.size == 0 or np.may_share_memory(found, array) else None
