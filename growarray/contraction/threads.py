"""One thread a core for the pieces of a contraction, with single-threaded BLAS inside.

Pieces are cut by the plan, never by the number of threads, so that results do not depend on it.
"""

from __future__ import annotations

import contextvars
import ctypes
import importlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.contraction.machine import threads

__all__ = ["run_tasks", "short_buffers", "single_threaded_blas"]

_BUFFER = 1024  # elements; NumPy copies what lies in runs shorter than its buffer, which halves the speed of a pass

_lock = threading.Lock()
_state: dict[str, Any] = {"users": 0}
_inside = threading.local()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """BLAS with one thread while anyone is inside; the first one in sets it, the last one out restores it."""
    with _lock:
        if "controller" not in _state:
            library = importlib.import_module("threadpoolctl")
            _state["controller"] = library.ThreadpoolController().select(user_api="blas")
        if _state["users"] == 0:
            _state["limit"] = _state["controller"].limit(limits=1)
        _state["users"] += 1
    try:
        yield
    finally:
        with _lock:
            _state["users"] -= 1
            if _state["users"] == 0:
                _state.pop("limit").restore_original_limits()


@contextmanager
def short_buffers() -> Iterator[None]:
    """NumPy's buffer for elementwise passes at a size that leaves rows of a matrix where they lie (8192 by default)."""
    before = np.setbufsize(_BUFFER)
    try:
        yield
    finally:
        np.setbufsize(before)


def _pool(workers: int) -> ThreadPoolExecutor:
    """The threads of this process; a forked child makes its own."""
    with _lock:
        if _state.get("pool of") != (os.getpid(), workers):
            _state["ids"], _state["placed"] = [], {}
            _state["pool"] = ThreadPoolExecutor(workers, "growarray", _enter, (_cores(),))
            _state["pool of"] = (os.getpid(), workers)
        pool: ThreadPoolExecutor = _state["pool"]
        return pool


def _enter(cores: frozenset[int]) -> None:
    """A new thread of the pool may be anywhere: it is made by one that is kept on a core."""
    if cores:
        with suppress(OSError):
            os.sched_setaffinity(0, cores)
    _state["ids"].append(threading.get_native_id())


def _cores() -> frozenset[int]:
    """Those that this thread may run on; none where the system does not say."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


@lru_cache(maxsize=1)
def _asker() -> Callable[[], int]:
    return ctypes.CDLL(None).sched_getcpu


@contextmanager
def _apart(count: int) -> Iterator[None]:
    """Keep this thread, where it is, and those of the pool on different cores, where the system lets them be placed.

    Threads that pass the interpreter's lock to and fro are woken on the core of the one that wakes them, and may stay
    there while another core is idle: on two virtual cores a quarter of the runs went at the speed of one.
    """
    allowed = _cores()
    try:
        cores = sorted(allowed)
        at = cores.index(_asker()())
        cores = cores[at:] + cores[:at]
        shares = [frozenset(cores[i::count]) for i in range(min(count, len(cores)))]
        if len(shares) < count:
            raise OSError("fewer cores than threads")
        for thread, share in zip(_state["ids"], shares[1:], strict=False):
            if _state["placed"].get(thread) != share:
                os.sched_setaffinity(thread, share)
                _state["placed"][thread] = share
        os.sched_setaffinity(0, shares[0])
    except (AttributeError, OSError, ValueError):  # no Linux, or not allowed: threads go where the system puts them
        yield
        return
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def run_tasks(tasks: Sequence[Callable[[], object]], *, long: bool = False) -> None:
    """Run all tasks, this thread and the pool taking one after the other. The first exception is raised again.

    long : they take milliseconds, so that it pays to see to it that the threads are on different cores
    """
    workers = min(threads(), len(tasks)) if len(tasks) > 1 else 1
    if workers <= 1 or getattr(_inside, "worker", False):
        for task in tasks:
            task()
        return
    waiting = deque(tasks)

    def work() -> None:
        _inside.worker = True
        try:
            while True:
                try:
                    task = waiting.popleft()
                except IndexError:
                    return
                task()
        except BaseException:
            waiting.clear()
            raise
        finally:
            _inside.worker = False

    pool = _pool(threads() - 1)
    with _apart(threads()) if long else nullcontext():
        others = [pool.submit(contextvars.copy_context().run, work) for _ in range(workers - 1)]  # keeps np.errstate
        try:
            work()
        finally:
            # a thread that has not begun by now is not waited for: to wake one takes 0.1 ms
            others = [other for other in others if not other.cancel()]
            for other in others:
                other.exception()
    for other in others:
        other.result()
