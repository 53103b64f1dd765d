"""Pieces of work side by side: all of them once, errors out, settings in, and BLAS with one thread inside."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from growarray.contraction import blocks, plan
from growarray.contraction import threads as threads_module
from growarray.contraction.machine import threads
from growarray.contraction.step import Step
from growarray.contraction.threads import run_tasks, single_threaded_blas
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
    assert threads() == len(threads_module._cores())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 40])
def test_every_task_runs_once(several, count):
    done: list[int] = []
    run_tasks([lambda k=k: done.append(k) for k in range(count)])
    assert sorted(done) == list(range(count))


def test_as_many_threads_as_there_are_work_at_once(monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", "3")
    meeting = threading.Barrier(3, timeout=20)
    run_tasks([meeting.wait] * 3)  # would time out with fewer
    seen: set[int] = set()
    run_tasks([lambda: (time.sleep(0.002), seen.add(threading.get_ident()))] * 30)
    assert 1 < len(seen) <= 3


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


def test_blas_has_one_thread_inside_and_its_own_number_again_after():
    blas = ThreadpoolController().select(user_api="blas")
    before = [module["num_threads"] for module in blas.info()]
    with single_threaded_blas():
        assert {m["num_threads"] for m in ThreadpoolController().select(user_api="blas").info()} <= {1}
        with pytest.raises(RuntimeError), single_threaded_blas():
            raise RuntimeError
        assert {m["num_threads"] for m in ThreadpoolController().select(user_api="blas").info()} <= {1}
    assert [m["num_threads"] for m in ThreadpoolController().select(user_api="blas").info()] == before


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_blas_has_one_thread_inside_while_a_plan_runs(monkeypatch, backward):
    monkeypatch.setattr(blocks, "_TINY", 0)
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    made = plan("ij,jk->ik", (20, 30), (30, 40), dtype="float64")
    arrays, seen = random_arrays(made.shapes), []
    name = "d_kernel_tasks" if backward else "tasks"
    original = getattr(Step, name)

    def spied(self, *args):
        seen.extend(m["num_threads"] for m in ThreadpoolController().select(user_api="blas").info())
        return original(self, *args)

    with threadpool_limits(limits=2, user_api="blas"):
        y, pullback = made.vjp(*arrays)
        monkeypatch.setattr(Step, name, spied)
        pullback(y) if backward else made(*arrays)
        after = [m["num_threads"] for m in ThreadpoolController().select(user_api="blas").info()]
    assert set(seen) == {1}
    assert set(after) == {2}


@pytest.mark.parametrize("name", ["tasks", "d_kernel_tasks"])
def test_blocks_of_the_batch_run_side_by_side(monkeypatch, name):
    monkeypatch.setattr(blocks, "_TINY", 0)
    monkeypatch.setattr(blocks, "_LIGHT", 0)
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    made = plan("n c x, o c x -> n o x | x", (6, 4, 20000), (5, 4, 3), dtype="float64")
    assert made.block == 1
    y, pullback = made.vjp(*random_arrays(made.shapes))
    original, seen = getattr(Step, name), []

    def spied(self, *args):
        seen.append(threading.get_ident())
        time.sleep(0.005)
        return original(self, *args)

    monkeypatch.setattr(Step, name, spied)
    made(*random_arrays(made.shapes)) if name == "tasks" else pullback(y)
    assert len(seen) == 4  # blocks come in fours where there are enough images
    assert len(set(seen)) == 2


def test_callers_in_several_threads_do_not_disturb_one_another(monkeypatch):
    monkeypatch.setattr(blocks, "_TINY", 0)
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


def masks(count: int, **options: bool) -> dict[int, frozenset[int]]:
    """On which cores each thread could be while it ran tasks."""
    seen: dict[int, frozenset[int]] = {}

    def task() -> None:
        seen[threading.get_ident()] = threads_module._cores()
        time.sleep(0.01)

    run_tasks([task] * count, **options)
    return seen


@pytest.mark.parametrize("failing", [False, True])
def test_a_long_run_keeps_its_threads_apart_and_gives_the_cores_back(monkeypatch, failing):
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    monkeypatch.setattr(threads_module, "_state", {"users": 0})  # its first thread is made while this one is kept
    cores = threads_module._cores()
    first = masks(8, long=True)
    assert len(first) == 2
    assert threads_module._cores() == cores
    again = list(masks(8, long=True).values())
    assert len(again) == 2
    if len(cores) > 1:
        assert not again[0] & again[1]
        assert again[0] | again[1] == cores
    if failing:
        with pytest.raises(ZeroDivisionError):
            run_tasks([lambda: 1 / 0] * 4, long=True)
    assert threads_module._cores() == cores


def test_where_threads_may_not_be_placed_they_run_all_the_same(monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    masks(8)

    def refused(*args):
        raise PermissionError("not here")

    cores = threads_module._cores()
    monkeypatch.setattr(os, "sched_setaffinity", refused, raising=False)
    monkeypatch.setitem(threads_module._state, "placed", {})
    done: list[int] = []
    run_tasks([lambda k=k: done.append(k) for k in range(20)], long=True)
    assert sorted(done) == list(range(20))
    assert threads_module._cores() == cores


def test_a_thread_that_comes_late_is_not_waited_for(monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    release, held = threading.Event(), threading.Event()
    pool = threads_module._pool(1)
    blocker = pool.submit(lambda: (held.set(), release.wait(10)))  # the only other thread is busy
    held.wait(10)
    done: list[int] = []
    run_tasks([lambda k=k: done.append(k) for k in range(5)])
    assert done == list(range(5))
    assert not blocker.done()
    release.set()
    blocker.result()
