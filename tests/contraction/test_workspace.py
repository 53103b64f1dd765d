"""Work space: taken back by the next call, another for every thread and slot, and not kept where it is huge."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest

from growarray.contraction import plan, workspace
from growarray.contraction.workspace import here, release
from tests.contraction.reference import random_arrays


def test_a_slot_is_taken_back_and_grows(monkeypatch):
    release()
    first = here.arrays["a", (3, 4), np.float64]
    assert first.shape == (3, 4)
    assert first.dtype == np.float64
    assert first.flags.c_contiguous
    assert first.flags.writeable
    smaller = here.arrays["a", (2, 5), np.float32]
    assert np.shares_memory(first, smaller)
    assert not np.shares_memory(first, here.arrays["b", (3, 4), np.float64])
    larger = here.arrays["a", (30, 4), np.float64]
    assert not np.shares_memory(first, larger)
    assert np.shares_memory(larger, here.arrays["a", (3, 4), np.float64])
    release()
    assert not np.shares_memory(larger, here.arrays["a", (3, 4), np.float64])
    monkeypatch.setattr(workspace, "_KEPT", 64)
    assert not np.shares_memory(here.arrays["a", (9,), np.float64], here.arrays["a", (9,), np.float64])


@pytest.mark.parametrize("shape", [(), (0, 3)])
def test_scalars_and_nothing_may_be_borrowed(shape):
    array = here.arrays["a", shape, np.float32]
    assert array.shape == shape


def test_another_thread_has_its_own():
    mine, theirs = here.arrays["a", (4,), np.float64], []
    thread = threading.Thread(target=lambda: theirs.append(here.arrays["a", (4,), np.float64]))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, theirs[0])


@pytest.mark.parametrize("optimize", ["factorized", "mobilenet", "reconstructed"])
def test_repeated_calls_with_out_allocate_nothing_large(optimize, monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", "1")
    equation = "n c y x, o r, c r, y r, x r -> n o y x | y, x"
    made = plan(equation, (8, 16, 64, 64), (16, 6), (16, 6), (3, 6), (3, 6), padding=1, optimize=optimize)
    arrays = random_arrays(made.shapes, dtype=np.float32)
    out = np.empty(made.output_shape, np.float32)
    made(*arrays, out=out)
    tracemalloc.start()
    made(*arrays, out=out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < out.nbytes // 8
