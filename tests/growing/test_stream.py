"""Streams and cross moments: joined streams are never put together, and give what putting them together gives."""

from __future__ import annotations

from typing import Any

import array_api_strict
import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.errors import ShapeError
from growarray.growing import JoinedStream, Stream, cross_moment, moment
from tests.conftest import Library, frozen

RNG = np.random.default_rng(1)
N, T = 6, 4


def host(*shape: int) -> np.ndarray:
    return frozen(RNG.standard_normal(shape))


def flat(stream: Any) -> np.ndarray:
    """The features put together by hand, one row a position, each part with its ones."""
    parts = []
    for part in stream.parts:
        array = to_numpy(part.array)
        rows = array.reshape(N * T, array.shape[-1])
        parts.append(np.concatenate([rows, np.ones((len(rows), 1))], axis=1) if part.bias else rows)
    return np.concatenate(parts, axis=1)


X, Y, Z = host(N, T, 3), host(N, T, 2), host(N, T, 4)
STREAMS = {
    "one": Stream(X),
    "one_biased": Stream(X, bias=True),
    "two": JoinedStream((Stream(X), Stream(Y))),
    "two_biased": JoinedStream((Stream(X, bias=True), Stream(Y, bias=True))),
    "first_biased": JoinedStream((Stream(X, bias=True), Stream(Y))),
    "shared": JoinedStream((Stream(X, bias=True), Stream(Y), Stream(X))),
    "shared_backwards": JoinedStream((Stream(Y, bias=True), Stream(X, bias=True))),
    "nested": JoinedStream((Stream(Z), JoinedStream((Stream(Y, bias=True), Stream(Z, bias=True))))),
    "no_features": JoinedStream((Stream(host(N, T, 0), bias=True), Stream(X))),
}


@pytest.mark.parametrize("right", [*STREAMS, None])
@pytest.mark.parametrize("left", STREAMS)
def test_cross_moment_is_the_product_of_what_is_put_together(left: str, right: str | None) -> None:
    a, b = STREAMS[left], None if right is None else STREAMS[right]
    found = cross_moment(a, b)
    expected = flat(a).T @ flat(a if b is None else b)
    assert found.dtype == np.float64
    assert found.shape == (a.width, (a if b is None else b).width)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(flat(a), a.materialise().reshape(N * T, a.width), rtol=0, atol=0)
    if b is None or b is a:
        assert np.array_equal(found, found.T)


def test_plain_arrays_are_streams_without_bias() -> None:
    np.testing.assert_allclose(cross_moment(X, Y), cross_moment(Stream(X), Stream(Y)), rtol=0, atol=0)


class Counter:
    """row_products, counting what it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrays, self.pairs, self.sums = 0, 0, 0
        inner = moment.row_products

        def counting(arrays: Any, pairs: Any, sums: Any = (), into: Any = None) -> Any:
            self.arrays, self.pairs, self.sums = len(arrays), self.pairs + len(pairs), self.sums + len(sums)
            return inner(arrays, pairs, sums, into)

        monkeypatch.setattr(moment, "row_products", counting)


@pytest.mark.parametrize(
    ("left", "right", "arrays", "pairs", "sums"),
    [
        ("one", None, 1, 1, 0),
        ("one_biased", None, 1, 1, 1),
        ("one", "one_biased", 1, 1, 1),
        ("two", None, 2, 3, 0),
        ("two", "two_biased", 2, 4, 2),
        ("shared", None, 2, 3, 2),
        ("shared", "one", 2, 2, 1),
        ("shared", "one_biased", 2, 2, 2),
        ("nested", None, 2, 3, 2),
    ],
)
def test_an_array_that_stands_in_several_parts_is_multiplied_once(
    left: str, right: str | None, arrays: int, pairs: int, sums: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter(monkeypatch)
    cross_moment(STREAMS[left], None if right is None else STREAMS[right])
    assert (counter.arrays, counter.pairs, counter.sums) == (arrays, pairs, sums)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=lambda dtype: dtype.__name__)
def test_every_library_gives_the_same(xp: Library, dtype: type) -> None:
    x, y = host(N, T, 3).astype(dtype), host(N, T, 2).astype(dtype)
    left = [JoinedStream((Stream(to(x), bias=True), Stream(to(y)))) for to in (xp.asarray, frozen)]
    right = [Stream(to(y), bias=True) for to in (xp.asarray, frozen)]
    found = cross_moment(left[0], right[0])
    assert type(found) is type(xp.asarray(x))
    np.testing.assert_allclose(to_numpy(found), flat(left[1]).T @ flat(right[1]), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(to_numpy(cross_moment(left[0])), flat(left[1]).T @ flat(left[1]), rtol=1e-6, atol=1e-6)


def test_a_mixture_of_libraries_is_refused() -> None:
    with pytest.raises(TypeError, match="two libraries cannot be mixed"):
        cross_moment(Stream(X), Stream(array_api_strict.asarray(np.array(Y))))


def test_a_mixture_of_devices_is_refused() -> None:
    first, second = (
        array_api_strict.ones((3, 2), device=array_api_strict.Device(name)) for name in ("device1", "CPU_DEVICE")
    )
    with pytest.raises(TypeError, match="two devices cannot be mixed"):
        cross_moment(first, second)


def test_different_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"streams have \[5, 6\] rows; both sides must come from the same batch"):
        cross_moment(host(6, 2), host(5, 2))


def test_one_axis_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"needs shape \(n, d\) or \(n, t, d\), found \(5,\); add a batch axis"):
        Stream(np.zeros(5))


def test_samples_count_the_first_axis_alone() -> None:
    assert STREAMS["shared"].samples == N
    assert STREAMS["one"].rows.shape == (N * T, 3)
    with pytest.raises(ShapeError, match=r"joined streams have \[3, 6\] samples"):
        _ = JoinedStream((Stream(host(6, 2)), Stream(host(3, 2)))).samples
