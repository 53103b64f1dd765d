"""Turns, medians, peaks and rank correlation."""

import math
import threading
import time

import numpy as np
import pytest
from scipy import stats

from growarray.cli.bench.measure import clock_for, interleaved, peak_bytes, spearman, synchronised
from growarray.contraction.threads import run_tasks
from growarray.contraction.workspace import here


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3, 4], [10, 20, 40, 30], 0.8),
        ([1, 2, 2, 4], [1, 2, 3, 4], math.sqrt(0.9)),
        ([1, 2], [1, 2], math.nan),
        ([1, 1, 1], [1, 2, 3], math.nan),
    ],
)
def test_rank_correlations_that_are_known(first, second, expected):
    assert spearman(first, second) == pytest.approx(expected, nan_ok=True)


def test_rank_correlation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 6, 12).tolist(), rng.integers(0, 6, 12).tolist()
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)


def test_rank_correlation_needs_as_many_values_on_both_sides():
    with pytest.raises(ValueError, match="2 values against 3"):
        spearman([1, 2], [1, 2, 3])


def test_calls_have_their_turns_in_rounds():
    order = []
    slow = {name: lambda name=name: order.append(name) or threading.Event().wait(0.021) for name in "ABC"}
    told = []
    found = interleaved(slow, repeat=2, warmup=1, progress=lambda done, total: told.append((done, total)))
    assert order == [*"ABC", *"ABC", *"ABC"]
    assert told == [(1, 2), (2, 2)]
    assert {name: len(times) for name, times in found.items()} == {"A": 2, "B": 2, "C": 2}


def test_a_budget_ends_the_rounds_after_three():
    assert len(interleaved({"a": list}, repeat=50, budget=0.0)["a"]) == 3


def test_the_peak_counts_what_lives_at_the_same_time():
    def two_then_one():
        pair = [np.empty(1 << 20, np.uint8) for _ in range(2)]
        del pair
        return np.empty(1 << 20, np.uint8)

    assert 2 << 20 <= peak_bytes(two_then_one) < 2.2 * (1 << 20)


def test_the_peak_counts_work_space_that_threads_keep(monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    together = threading.Barrier(2)

    def task():
        together.wait(timeout=60)
        here.arrays["test", (1 << 20,), np.uint8]

    def both():
        run_tasks([task, task])

    both()
    assert 2 << 20 <= peak_bytes(both) < 2.2 * (1 << 20)
    assert peak_bytes(both) >= 2 << 20  # again: what was kept has been given back before


def test_a_device_is_waited_for():
    waits = []
    device = type("Device", (), {"synchronize": lambda self: waits.append(1)})()
    array = type("Array", (), {"device": device})()
    synchronised(lambda: array)()
    synchronised(lambda: (array, None))()
    synchronised(lambda: np.zeros(2))()
    assert len(waits) == 2


def test_one_thread_is_timed_by_the_processor(monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", "1")
    assert clock_for(None) is time.process_time
    assert clock_for("cuda") is time.perf_counter
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    assert clock_for(None) is time.perf_counter
