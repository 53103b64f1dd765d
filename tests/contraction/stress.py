"""Plans among threads, forks and signals: each function does a thing many times and returns what went wrong.

Every one of them wants a process of its own: ``python tests/contraction/stress.py interrupts 10000`` prints its figures
as JSON. The tests run them briefly, ``python -m bench stress`` at length.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from growarray.contraction import plan
from growarray.nn import Conv2d

PATIENCE = 120.0  # seconds after which a child counts as hung


def layer() -> tuple[Callable[[], list[np.ndarray]], list[np.ndarray]]:
    """A run of some milliseconds, forward and backward, over blocks and threads, and its result."""
    rng = np.random.default_rng(0)
    shapes = (8, 32, 28, 28), (16, 32), (16, 3, 3), (32, 16)
    made = plan("n c y x, r c, r y x, o r -> n o y x | y, x", *shapes, padding=1, training=True)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]

    def run() -> list[np.ndarray]:
        y, pullback = made.vjp(*arrays)
        return [y, *pullback(y)]

    return run, run()


def differs(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """Whether a bit is another one."""
    return not all(map(np.array_equal, one, other))


_controller = ThreadpoolController().select(user_api="blas")


def blas_threads() -> list[int]:
    """Of each BLAS library."""
    return [pool["num_threads"] for pool in _controller.info()]


def state() -> tuple[Any, ...]:
    """What a run might leave behind."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return blas_threads(), np.getbufsize(), cores


def median_seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    seconds = []
    for _ in range(40):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Interrupt(Exception):
    """What the signal handler raises."""


def interrupts(count: int, seed: int = 0) -> dict[str, Any]:
    """Exceptions out of a signal handler at random moments of a run; after each, the state, and the next run."""
    run, wanted = layer()
    before, usual = state(), median_seconds(run)
    draw = random.Random(seed)

    def interrupt(*_: object) -> None:
        raise Interrupt

    signal.signal(signal.SIGALRM, interrupt)
    wrong_state = wrong_bits = 0
    for _ in range(40):
        try:
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 2 * usual))
            while True:
                run()
        except Interrupt:
            pass
        wrong_state += state() != before
        wrong_bits += differs(run(), wanted)
    after = median_seconds(run)
    return {"interrupts": count, "wrong state": wrong_state, "wrong bits": wrong_bits, "time after": after / usual}


def handlers(count: int, seed: int = 0) -> dict[str, Any]:
    """Runs in a signal handler, in the middle of another run of the same plan."""
    run, wanted = layer()
    before, usual = state(), median_seconds(run)
    draw, found = random.Random(seed), []

    def handler(*_: object) -> None:
        found.append(differs(run(), wanted))

    signal.signal(signal.SIGALRM, handler)
    wrong_bits = 0
    while len(found) < count:
        seen = len(found)  # before the timer: a signal that comes at once counts too
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 2 * usual))
        while len(found) == seen:
            wrong_bits += differs(run(), wanted)
    return {"handlers": count, "wrong state": int(state() != before), "wrong bits": wrong_bits + sum(found)}


def _busy(run: Callable[[], object], stop: threading.Event) -> threading.Thread:
    def loop() -> None:
        while not stop.is_set():
            run()

    thread = threading.Thread(target=loop)
    thread.start()
    return thread


def child_status(work: Callable[[], int]) -> int | None:
    """Exit code of a forked child: what the work returned, 9 if it raised, minus a signal; None if it hung."""
    child = os.fork()
    if not child:
        code = 9
        try:
            code = work()
        finally:
            os._exit(code)
    start = time.monotonic()
    while time.monotonic() - start < PATIENCE:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def forks(count: int, seed: int = 0) -> dict[str, Any]:
    """Forks while another thread runs a plan: each child has the BLAS threads of its parent, and runs the plan."""
    run, wanted = layer()
    before, draw, stop = blas_threads(), random.Random(seed), threading.Event()

    def work() -> int:
        """1: BLAS had other threads before the run, 2: the result has other bits, 4: other threads after it."""
        return (blas_threads() != before) + 2 * differs(run(), wanted) + 4 * (blas_threads() != before)

    thread, statuses = _busy(run, stop), []
    for _ in range(40):
        time.sleep(draw.uniform(0, 0.005))
        statuses.append(child_status(work))
    stop.set()
    thread.join()
    codes = [status for status in statuses if status not in (0, None)]
    figures = {"forks": count, "hung": statuses.count(None), "wrong": len(codes), "exit codes": codes}
    return figures | {"wrong state": int(blas_threads() != before)}


def first_use(delay: float) -> dict[str, Any]:
    """A fork ``delay`` seconds after another thread has begun with the first run of the process."""
    images = np.ones((8, 4, 12, 12), np.float32)
    conv = Conv2d(4, 4, 3, rng=np.random.default_rng(0))
    thread = threading.Thread(target=conv, args=(images,))
    thread.start()
    time.sleep(delay)
    status = child_status(lambda: int(conv(images).shape != (8, 4, 10, 10)))
    thread.join()
    return {"forks": 1, "hung": int(status is None), "wrong": int(status not in (0, None))}


def shared(seconds: float, threads: int = 8) -> dict[str, Any]:
    """One layer used by several threads at a time; whole numbers, so that no sum is rounded."""
    rng = np.random.default_rng(0)
    conv = Conv2d(8, 8, 3, bias=False, rng=rng)
    conv.weight.data = rng.integers(-2, 3, conv.weight.shape).astype(np.float64)
    images = rng.integers(-2, 3, (4, 8, 12, 12)).astype(np.float64)
    y, pullback = conv.vjp(images)
    dy = rng.integers(-1, 2, y.shape).astype(np.float64)
    dx, one = pullback(dy), conv.weight.grad
    conv.weight.grad = None
    calls, wrong, end = [0] * threads, [0] * threads, time.monotonic() + seconds

    def caller(k: int) -> None:
        while time.monotonic() < end:
            found, back = conv.vjp(images)
            wrong[k] += differs([found, back(dy)], [y, dx])
            calls[k] += 1

    before = blas_threads()
    callers = [threading.Thread(target=caller, args=(k,)) for k in range(threads)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    lost = 0 if conv.weight.grad is None else int(np.max(np.abs(conv.weight.grad - sum(calls) * one)))
    return {"calls": sum(calls), "wrong": sum(wrong), "lost": lost, "wrong state": int(blas_threads() != before)}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "interrupts": interrupts,
    "handlers": handlers,
    "forks": forks,
    "first_use": first_use,
    "shared": shared,
}


def measured(kind: str, amount: float, *, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The figures of one kind, out of a process of its own."""
    command = [sys.executable, __file__, kind, str(amount)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(arguments: Iterator[str]) -> None:
    """``KIND AMOUNT`` from the command line."""
    kind, amount = next(arguments), float(next(arguments))
    whole = kind not in ("first_use", "shared")
    print(json.dumps(KINDS[kind](int(amount) if whole else amount)))


if __name__ == "__main__":
    main(iter(sys.argv[1:]))
