"""Moments on CuPy: a few launches, the sums of float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.contraction.sums import RunningSum
from growarray.cuda import moment
from growarray.growing import JoinedStream, Stream, TensorStatistic, cross_moment
from tests.cuda.device import Cuda, cuda

__all__ = ["cuda"]


def drawn(*shapes: tuple[int, ...], dtype: str = "float32") -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def columns(x: np.ndarray) -> np.ndarray:
    """In float64, with ones."""
    rows = x.reshape(-1, x.shape[-1]).astype("float64")
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)


@pytest.mark.parametrize(("rows", "dtype"), [((7,), "float16"), ((600,), "float32"), ((300, 3), "float64")])
def test_moments_of_one_batch(cuda: Cuda, rows: Any, dtype: str) -> None:
    x, g = drawn((*rows, 5), (*rows, 3), dtype=dtype)
    stream, gradient = Stream(cuda.array(x), bias=True), Stream(cuda.array(g))
    cuda.launches.clear()
    s, m = cross_moment(stream), cross_moment(stream, gradient)
    many = x.size // 5 >= 512  # rows enough for pieces, whose sums are added
    assert (len(cuda.launches), cuda.operations, cuda.waits) == (6 if many else 4, [], [])
    np.testing.assert_allclose(to_numpy(s), columns(x).T @ columns(x), rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(to_numpy(m), columns(x).T @ columns(g)[:, :-1], rtol=1e-13, atol=1e-12)


def test_batches_are_added_in_place_and_long_ones_in_parts(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moment, "_LARGEST", 64 * 8)
    batches = drawn((300, 5), (10, 5))
    total = RunningSum(cuda.array(np.zeros((6, 6))))
    for x in batches:
        assert cross_moment(Stream(cuda.array(x), bias=True), out=total) is total
    expected = sum(columns(x).T @ columns(x) for x in batches)
    np.testing.assert_allclose(to_numpy(total.array), expected, rtol=1e-13, atol=1e-12)
    assert cuda.operations == []


def test_a_statistic_on_a_gpu_is_added_to_from_its_second_batch_on(cuda: Cuda) -> None:
    batches = iter(drawn((30, 5), (20, 5), (10, 5)))
    taken: list[bool] = []

    def update(out: RunningSum) -> tuple[Any, int]:
        x = next(batches)
        made = cross_moment(Stream(cuda.array(x), bias=True), out=out)
        taken.append(made is out)
        return made, len(x)

    statistic = TensorStatistic((6, 6), update, reuse=True)
    for _ in range(3):
        statistic.updated = False
        statistic.update()
    whole = columns(np.concatenate(drawn((30, 5), (20, 5), (10, 5))))
    np.testing.assert_allclose(to_numpy(statistic()) * 60, whole.T @ whole, rtol=1e-13, atol=1e-12)
    assert taken == [False, True, True]


def test_a_merge_is_one_product(cuda: Cuda) -> None:
    x, y = drawn((40, 5), (40, 2))
    there = cuda.array(x), cuda.array(y)
    joined = JoinedStream((Stream(there[0], bias=True), Stream(there[1]), Stream(there[0])))
    cuda.launches.clear()
    found = to_numpy(cross_moment(joined))
    assert cuda.launches == ["kernel"] * 3 + ["product"]
    whole = np.concatenate([columns(x), y, x], axis=1).astype("float64")
    np.testing.assert_allclose(found, whole.T @ whole, rtol=1e-13, atol=1e-12)
