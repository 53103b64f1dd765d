"""One thread a core for the pieces of a contraction, with single-threaded BLAS inside.

Pieces are cut by the plan, never by the number of threads, so that results do not depend on it. The caller offers its
tasks to idle workers and works on them itself; who comes late finds none left. No lock is held and nothing is restored:
a caller may be a signal handler in the middle of another run, a thread that outlives the main one, a forked child.

To wake a sleeping thread takes about 100 us. Where Numba's loops are loaded a thread first looks for a while, without
the interpreter's lock, whether it has something to do, as the threads of BLAS and of OpenMP do.
"""

from __future__ import annotations

import os
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from queue import SimpleQueue
from threading import get_ident, local
from typing import Any

import numpy as np

from growarray.contraction import blas
from growarray.contraction.blas import single_threaded
from growarray.contraction.machine import threads

_LOOKS = 2000  # of about half a microsecond
_MOST_OFFERS = 8  # a worker; an offer outlives a short job until a worker wakes, and must not cost the next job one

_offers: SimpleQueue[tuple[_Job, Context]] = SimpleQueue()
_workers: list[int] = []
_jobs: dict[int, _Job] = {}  # by the thread that waits for it: the innermost
_local = local()
_offered, _left = np.zeros(1, np.int64), np.zeros(1, np.int64)  # counts of offers, and of workers that left a job
_look: Callable[[np.ndarray, Any, int], object] | None = None


def look_by(look: Callable[[np.ndarray, Any, int], object]) -> None:
    """Wait by ``look(count, seen, times)`` before going to sleep: it returns when ``count[0]`` is no more ``seen``."""
    global _look
    _look = look


class _Job:
    """Tasks of one call, and who is at work on them."""

    __slots__ = ("errors", "inside", "left", "outer", "tasks")

    def __init__(self, tasks: Sequence[Callable[[], object]], outer: _Job | None) -> None:
        self.tasks = deque(tasks)
        self.outer = outer  # the job that a signal handler of its thread has interrupted
        self.inside: dict[int, None] = {}
        self.left: SimpleQueue[None] = SimpleQueue()
        self.errors: list[BaseException] = []

    def work(self) -> None:
        """Run one task after the other until there are none."""
        _local.working = True
        try:
            while True:
                try:
                    task = self.tasks.popleft()
                except IndexError:
                    return
                task()
        except BaseException:
            self.tasks.clear()
            raise
        finally:
            _local.working = False

    def help(self) -> None:
        """What a worker does with it."""
        me = get_ident()
        self.inside[me] = None  # before it looks for tasks: the caller drops them, then waits for who is inside
        try:
            if self.tasks:
                single_threaded(self.work)
        except BaseException as error:
            self.errors.append(error)
        finally:
            del self.inside[me]
            self.left.put(None)
            _left[0] += 1

    def settle(self) -> None:
        """Drop what is left and wait for workers, which write to the caller's arrays. An exception that a signal
        handler raises meanwhile waits too."""
        late = None
        self.tasks.clear()
        while self.inside:
            try:
                seen = _left[0]
                if _look is not None and self.inside:
                    _look(_left, seen, _LOOKS)
                if self.inside:
                    self.left.get()
            except BaseException as error:
                late = error
        if late is not None:
            raise late


def run_tasks(tasks: Sequence[Callable[[], object]]) -> None:
    """Run all tasks, this thread and idle workers taking one after the other. The first exception is raised again.

    >>> done = []
    >>> run_tasks([lambda k=k: done.append(k) for k in range(3)])
    >>> sorted(done)
    [0, 1, 2]
    """
    helpers = min(threads(), len(tasks)) - 1
    if helpers < 1 or getattr(_local, "working", False) or not _has_workers(helpers):
        for task in tasks:
            task()
        return
    me = get_ident()
    job = _Job(tasks, _jobs.get(me))
    try:
        _jobs[me] = job
        for _ in range(min(helpers, _MOST_OFFERS * len(_workers) - _offers.qsize())):
            _offers.put((job, copy_context()))  # a context keeps np.errstate
            _offered[0] += 1
        job.work()
    finally:
        try:
            job.settle()
        except BaseException:  # out of a signal handler, before the wait had begun
            job.settle()
            raise
        finally:
            if job.outer is None:
                del _jobs[me]
            else:
                _jobs[me] = job.outer
    if job.errors:
        raise job.errors[0]


def _has_workers(count: int) -> bool:
    """Whether there is any worker; as many as ``count`` if the system gives them."""
    while len(_workers) < count:
        try:  # not threading.Thread: its start takes locks, and its end is waited for
            _workers.append(start_new_thread(_serve, (_offers,)))
        except RuntimeError:  # the interpreter is on its way out, or there are too many
            break
    return bool(_workers)


def _serve(offers: SimpleQueue[tuple[_Job, Context]]) -> None:
    while True:
        seen = _offered[0]
        if _look is not None and offers.empty():
            _look(_offered, seen, _LOOKS)
        job, context = offers.get()
        context.run(job.help)
        del job, context  # and with them the arrays


def _forked() -> None:
    """A child has no workers, nor what they were at."""
    global _offers
    blas.forked()
    _offers = SimpleQueue()
    _workers.clear()
    me = get_ident()
    mine = _jobs.get(me)
    for other in set(_jobs) - {me}:
        del _jobs[other]
    while mine is not None:
        if mine.inside:
            mine.errors.append(RuntimeError("os.fork during a run: the child has lost a part of it; run it again"))
            mine.inside.clear()
            mine.left.put(None)
        mine = mine.outer


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
