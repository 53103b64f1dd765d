"""Pieces of work side by side: all of them once, errors out, settings in, and BLAS with one thread inside."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from queue import SimpleQueue

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from growarray.contraction import blas, plan, run
from growarray.contraction import threads as threads_module
from growarray.contraction.blas import settled, single_threaded
from growarray.contraction.machine import _cores, threads
from growarray.contraction.threads import run_tasks
from growarray.contraction.workspace import here
from growarray.nn import Conv2d
from tests.contraction.reference import random_arrays


@pytest.fixture(params=["1", "2", "5"])
def several(request, monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", request.param)
    return int(request.param)


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("17", 17)])
def test_the_environment_sets_the_number_of_threads(monkeypatch, value, expected):
    monkeypatch.setenv("GROWARRAY_THREADS", value)
    assert threads() == expected


@pytest.mark.parametrize("value", ["", "0", "-2", "many", "1.5", None])
def test_without_a_number_every_core_is_used(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("GROWARRAY_THREADS", raising=False)
    else:
        monkeypatch.setenv("GROWARRAY_THREADS", value)
    assert threads() == _cores()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 40])
def test_every_task_runs_once(several, count):
    done: list[int] = []
    run_tasks([lambda k=k: done.append(k) for k in range(count)])
    assert sorted(done) == list(range(count))


def test_as_many_threads_as_there_are_work_at_once(monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", "3")
    meeting = threading.Barrier(3, timeout=120)
    run_tasks([meeting.wait] * 3)  # would time out with fewer
    seen: set[int] = set()
    pair = threading.Barrier(2, timeout=120)  # however late a worker wakes, two of them work
    run_tasks([lambda: (pair.wait(), seen.add(threading.get_ident()))] * 30)
    assert 1 < len(seen) <= 3


def test_an_offer_that_nobody_has_taken_yet_costs_the_next_run_no_worker(monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    for _ in range(50):
        run_tasks([int] * 2)  # over before a worker wakes
        run_tasks([threading.Barrier(2, timeout=120).wait] * 2)


def test_who_waits_looks_before_it_sleeps_and_misses_nothing(monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    seen: list[bool] = []
    monkeypatch.setattr(threads_module, "_look", lambda count, before, times: seen.append(count[0] != before))
    for _ in range(20):
        meeting = threading.Barrier(2, timeout=120)
        run_tasks([meeting.wait] * 2)
    assert seen  # though nothing is waited for here: then both go to sleep as without it


@pytest.mark.parametrize("failing", [0, 5, 19])
def test_the_first_error_comes_out_and_the_rest_is_dropped(several, failing):
    started: list[int] = []

    def task(k: int) -> None:
        started.append(k)
        time.sleep(0.001)
        if k == failing:
            raise ZeroDivisionError(f"task {k}")

    with pytest.raises(ZeroDivisionError, match=f"task {failing}$"):
        run_tasks([lambda k=k: task(k) for k in range(200)])
    assert len(started) < 200
    run_tasks([lambda: started.append(-1)] * 4)  # and the pool still works
    assert started.count(-1) == 4


def test_tasks_may_have_tasks(several):
    done: list[tuple[int, int]] = []

    def outer(k: int) -> None:
        run_tasks([lambda j=j: done.append((k, j)) for j in range(4)])

    run_tasks([lambda k=k: outer(k) for k in range(4)])
    assert sorted(done) == [(k, j) for k in range(4) for j in range(4)]


def test_numpys_error_settings_hold_in_every_thread(several):
    def overflow() -> None:
        time.sleep(0.005)
        np.multiply(np.float32([1e30]), np.float32([1e30]))

    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        run_tasks([lambda: time.sleep(0.005), overflow, overflow])
    with np.errstate(over="ignore"):
        run_tasks([overflow] * 6)


def blas_threads() -> list[int]:
    return [module["num_threads"] for module in ThreadpoolController().select(user_api="blas").info()]


def numpys_blas() -> list[int]:
    """Of the library that NumPy's products run in: a wheel of SciPy brings another one, which plans do not use."""
    return [count.get() for count in blas._all]


@pytest.mark.parametrize("outside", [1, 2])
def test_blas_has_one_thread_inside_and_its_own_number_again_after(outside):
    def failing() -> None:
        raise RuntimeError("inside")

    def nested() -> list[int]:
        with pytest.raises(RuntimeError, match="inside"):
            single_threaded(failing)
        return numpys_blas()

    with threadpool_limits(limits=outside, user_api="blas"):
        before = numpys_blas()
        assert set(before) == {outside}
        assert set(single_threaded(nested)) == {1}
        assert numpys_blas() == before
        with pytest.raises(RuntimeError, match="inside"):
            single_threaded(failing)
        assert numpys_blas() == before


def test_the_last_of_several_threads_puts_blas_back():
    entered, leave = threading.Event(), threading.Event()
    with threadpool_limits(limits=2, user_api="blas"):
        other = threading.Thread(target=single_threaded, args=(lambda: (entered.set(), leave.wait(20)),))
        other.start()
        entered.wait(20)
        assert set(single_threaded(numpys_blas)) == {1}
        assert set(numpys_blas()) == {1}  # the other thread is still inside
        leave.set()
        other.join()
        assert set(numpys_blas()) == {2}


@pytest.fixture
def finalized():
    """Runs a function out of a collection of garbage that comes at the n-th allocation of another one."""
    thresholds = gc.get_threshold()
    gc.freeze()  # what there is already would make collections slow

    class Garbage:
        def __init__(self, finalizer) -> None:
            self.me, self.finalizer = self, finalizer

        def __del__(self) -> None:
            self.finalizer()

    def run(n, function, finalizer) -> None:
        gc.collect()
        gc.disable()
        Garbage(finalizer)
        gc.set_threshold(gc.get_count()[0] + n, 1000, 1000)
        gc.enable()
        function()
        gc.disable()
        gc.collect()

    yield run
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    gc.enable()


def test_a_finalizer_in_between_never_finds_blas_lowered_without_a_run(finalized):
    found: list[bool] = []
    with threadpool_limits(limits=2, user_api="blas"):
        for n in range(1, 60):  # a fork by another thread at this moment would leave the child with one thread
            finalized(
                n, lambda: single_threaded(int), lambda: found.append(bool(blas._inside) or set(numpys_blas()) == {2})
            )
            assert set(numpys_blas()) == {2}
    assert found == [True] * 59


def test_a_run_that_another_thread_begins_in_between_leaves_blas_as_it_was(finalized):
    with threadpool_limits(limits=2, user_api="blas"):
        for n in range(1, 60):
            entered, leave = threading.Event(), threading.Event()
            other = threading.Thread(target=single_threaded, args=(lambda e=entered, w=leave: (e.set(), w.wait(20)),))
            finalized(n, lambda: single_threaded(int), lambda t=other, e=entered: (t.start(), e.wait(20)))
            leave.set()
            other.join()
            assert set(numpys_blas()) == {2}


def test_a_limit_that_another_thread_holds_does_not_keep_plans_from_theirs():
    held, leave = threading.Event(), threading.Event()

    def holder() -> None:
        threadpool_limits(limits=2, user_api="blas")  # not as a context: threadpoolctl 3.8 then listens to nobody else
        held.set()
        leave.wait(20)

    with threadpool_limits(limits=2, user_api="blas"):
        pass
    other = threading.Thread(target=holder)
    other.start()
    held.wait(20)
    try:
        assert set(single_threaded(numpys_blas)) == {1}
    finally:
        leave.set()
        other.join()


def test_numpys_own_library_is_found():
    assert blas._all, "no BLAS library whose threads can be counted was found beside NumPy"


def test_a_second_thread_gets_the_same_bits():
    layer = Conv2d(16, 24, 3, padding=1, rng=np.random.default_rng(1))
    x = np.random.default_rng(0).standard_normal((8, 16, 32, 32)).astype(np.float32)
    wanted, found = layer(x), []
    other = threading.Thread(target=lambda: found.append(layer(x)))
    other.start()
    other.join()
    np.testing.assert_array_equal(found[0], wanted)


def test_numpys_buffer_is_short_inside_and_as_before_outside():
    before = np.getbufsize()
    assert settled(np.getbufsize) == blas._BUFFER
    assert single_threaded(np.getbufsize) == before
    assert np.getbufsize() == before


def test_a_run_inside_a_run_has_work_space_of_its_own():
    def inner() -> np.ndarray:
        return here.arrays["a", (4,), np.float64]

    def outer() -> tuple[bool, bool]:
        mine = here.arrays["a", (4,), np.float64]
        theirs = single_threaded(inner)
        return np.shares_memory(mine, theirs), np.shares_memory(mine, here.arrays["a", (4,), np.float64])

    assert single_threaded(outer) == (False, True)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_blas_has_one_thread_inside_while_a_plan_runs(monkeypatch, backward):
    monkeypatch.setattr(run, "_TINY", 0)
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    made = plan("ij,jk->ik", (20, 30), (30, 40), dtype="float64")
    arrays, seen = random_arrays(made.shapes), []
    name = "_backward_step" if backward else "_product"
    original = getattr(run, name)

    def spied(*args):
        seen.extend(numpys_blas())
        return original(*args)

    with threadpool_limits(limits=2, user_api="blas"):
        y, pullback = made.vjp(*arrays)
        monkeypatch.setattr(run, name, spied)
        pullback(y) if backward else made(*arrays)
        after = blas_threads()
    assert set(seen) == {1}
    assert set(after) == {2}


@pytest.mark.parametrize("name", ["_forward_block", "_backward_block"])
def test_blocks_of_the_batch_run_side_by_side(monkeypatch, name):
    monkeypatch.setattr(run, "_TINY", 0)
    monkeypatch.setattr(run, "_LIGHT", 0)
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    made = plan("n c x, o c x -> n o x | x", (6, 4, 20000), (5, 4, 3), dtype="float64")
    assert made.block == 1
    y, pullback = made.vjp(*random_arrays(made.shapes))
    original, seen = getattr(run, name), []
    pair = threading.Barrier(2, timeout=120)  # however late the worker wakes, it gets its share

    def spied(*args):
        seen.append(threading.get_ident())
        pair.wait()
        return original(*args)

    monkeypatch.setattr(run, name, spied)
    made(*random_arrays(made.shapes)) if name == "_forward_block" else pullback(y)
    assert len(seen) == 4  # blocks come in fours where there are enough images
    assert len(set(seen)) == 2


def test_callers_in_several_threads_do_not_disturb_one_another(monkeypatch):
    monkeypatch.setattr(run, "_TINY", 0)
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    equation = "n c y x, r c, r y x, o r -> n o y x | y, x"
    made = plan(equation, (6, 8, 20, 20), (5, 8), (5, 3, 3), (7, 5), padding=1, dtype="float64")
    sets = [random_arrays(made.shapes, seed) for seed in range(4)]
    wanted = [made.vjp(*arrays)[1](made(*arrays)) for arrays in sets]
    wrong: list[str] = []

    def caller(k: int) -> None:
        for _ in range(5):
            y, pullback = made.vjp(*sets[k])
            for i, (one, other) in enumerate(zip(pullback(y), wanted[k], strict=True)):
                if not np.array_equal(one, other):
                    wrong.append(f"caller {k}, gradient {i}")

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(4)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert wrong == []


def test_a_worker_that_comes_late_is_not_waited_for(monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    run_tasks([lambda: None] * 2)  # there is a worker now
    release, held = threading.Event(), threading.Event()

    def task() -> None:
        if threading.get_ident() == caller.ident:
            held.wait(20)
        else:  # the only worker is busy from now on
            held.set()
            release.wait(20)

    monkeypatch.setattr(threads_module, "_workers", threads_module._workers[:1])
    monkeypatch.setattr(threads_module, "_offers", SimpleQueue())
    threads_module._workers[:] = []
    caller = threading.Thread(target=run_tasks, args=([task, task],))
    caller.start()
    held.wait(20)
    done: list[int] = []
    run_tasks([lambda k=k: done.append(k) for k in range(5)])
    assert done == list(range(5))
    assert caller.is_alive()
    release.set()
    caller.join()


def test_without_more_threads_the_caller_does_it_all(monkeypatch):
    def refused(*args: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    monkeypatch.setattr(threads_module, "_workers", [])
    monkeypatch.setattr(threads_module, "start_new_thread", refused)
    seen: list[int] = []
    run_tasks([lambda: seen.append(threading.get_ident())] * 5)
    assert seen == [threading.get_ident()] * 5


def test_a_worker_holds_nothing_of_a_run_that_is_over(monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    array = np.ones(3)
    kept = weakref.ref(array)
    run_tasks([lambda a=array: a.sum()] * 4)
    del array
    end = time.monotonic() + 120
    while kept() is not None and time.monotonic() < end:
        time.sleep(0.001)
    assert kept() is None
