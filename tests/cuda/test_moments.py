"""Moments on CuPy: a few launches, the sums of float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.contraction.sums import RunningSum
from growarray.cuda import moment
from growarray.growing import JoinedStream, Stream, TensorStatistic, cross_moment
from growarray.ops.moments import window_moment
from growarray.ops.windows import windows
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


CONVOLUTIONS: dict[str, Any] = {  # (n, c, *sizes), kernel, options
    "same": ((3, 2, 6, 5), (3, 3), {"padding": 1, "bias": True}),
    "stride, dilation": ((2, 3, 9, 8), (3, 2), {"stride": (2, 3), "dilation": (2, 1), "padding": ((2, 1), (0, 2))}),
    "1-d": ((4, 2, 12), (5,), {"padding": 2, "bias": True}),
    "3-d": ((2, 1, 4, 3, 5), (2, 1, 3), {"padding": (1, 0, 1)}),
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_moments_of_windows(cuda: Cuda, monkeypatch: pytest.MonkeyPatch, case: Any, dtype: str) -> None:
    shape, kernel, options = case
    (x,) = drawn(shape, dtype=dtype)
    here, there = (windows(a, kernel, **options) for a in (x.astype("float64"), cuda.array(x)))
    (g,) = drawn((shape[0], 4, *here.positions), dtype=dtype)
    ones = (1,) * len(kernel)
    gradient, gradient_there = (windows(a, ones) for a in (g.astype("float64"), cuda.array(g)))
    expected = window_moment(here), window_moment(here, gradient)
    for most in (1 << 22, 64 * here.width, 1):  # at once, and in blocks that end within an image
        monkeypatch.setattr(moment, "_UNFOLDED", most)
        cuda.forget()
        found = window_moment(there), window_moment(there, gradient_there)
        rows = shape[0] * int(np.prod(here.positions))
        blocks = 1 if most == 1 << 22 else -(-rows // 64)  # each 2 and 3 launches, and after the first a sum
        assert (len(cuda.launches), cuda.operations, cuda.waits) == (7 * blocks - 2, [], [])
        for one, other in zip(found, expected, strict=True):
            assert to_numpy(one).dtype == np.float64
            np.testing.assert_allclose(to_numpy(one), other, rtol=1e-10, atol=1e-10)


def test_windows_that_another_convolution_reads(cuda: Cuda) -> None:
    (x,) = drawn((3, 2, 7, 6), dtype="float64")
    after = windows(x, (3, 3), padding=1, stride=2)
    for tap in ((0, 0), (2, 1)):
        one, other = (windows(a, (3, 3), padding=1, bias=True).read_by(after.axes, tap)[0] for a in (x, cuda.array(x)))
        found = to_numpy(window_moment(other))
        rows = one.materialise().reshape(-1, one.width)
        np.testing.assert_allclose(found, rows.T @ rows, rtol=1e-10, atol=1e-10)


def test_windows_without_kernels_run_as_elsewhere(cuda: Cuda) -> None:
    (x,) = drawn((4, 3, 6, 5), dtype="float64")
    turned = cuda.array(x.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2))
    expected = window_moment(windows(x, (3, 3)))
    for there in (windows(turned, (3, 3)), windows(cuda.array(x[:0]), (3, 3))):
        found = to_numpy(window_moment(there))
        np.testing.assert_allclose(found, expected * bool(there.samples), rtol=1e-10, atol=1e-10)


def test_windows_are_never_there_all_at_once(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moment, "_UNFOLDED", 1 << 16)
    cuda.dry = True
    there = windows(cuda.array(np.zeros((16, 8, 32, 32), "float32")), (3, 3), padding=1)  # 9.4 MB in float64
    cuda.forget()
    held = cuda.peak
    window_moment(there)
    assert cuda.peak - held < 1 << 20  # a block, its product in pieces, and the sum
