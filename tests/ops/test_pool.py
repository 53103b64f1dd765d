"""Pooling: against a reference that loops over windows and positions, finite differences, ties, borders, messages."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from growarray.backend import namespace, to_numpy
from growarray.errors import ShapeError
from growarray.ops.pool import PoolAxis, adaptive_avg_pool, avg_pool, max_pool
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library, frozen

RNG = np.random.default_rng(5)
Window = tuple[list[int], int]  # positions along one axis that lie in the input, and the number to divide by


def windows(size: int, k: int, s: int, p: int = 0, d: int = 1, ceil: bool = False, pad: bool = True) -> list[Window]:
    """Windows along one axis, one after another, by the rules of torch's documentation."""
    found: list[Window] = []
    start = -p
    while start + d * (k - 1) < size + p or (ceil and start - s + d * (k - 1) < size + p - 1 and start < size):
        inside = [start + t * d for t in range(k) if 0 <= start + t * d < size]
        found.append((inside, min(start + k, size + p) - start if pad else len(inside)))
        start += s
    return found


def adaptive_windows(size: int, out: int) -> list[Window]:
    spans = [(math.floor(i * size / out), math.ceil((i + 1) * size / out)) for i in range(out)]
    return [(list(range(a, b)), b - a) for a, b in spans]


def looped(x: np.ndarray, axes: list[list[Window]]) -> Iterator[tuple[tuple[int, ...], list[tuple[int, ...]], int]]:
    """For each output of each channel: its index, the indices it reads in reading order, the number to divide by."""
    for n, c in np.ndindex(x.shape[:2]):
        for index in itertools.product(*(range(len(axis)) for axis in axes)):
            chosen = [axis[i] for axis, i in zip(axes, index, strict=True)]
            places = [(n, c, *place) for place in itertools.product(*(inside for inside, _ in chosen))]
            yield (n, c, *index), places, math.prod(count for _, count in chosen)


def reference_max(x: np.ndarray, dy: np.ndarray, axes: list[list[Window]]) -> tuple[np.ndarray, np.ndarray]:
    y, dx = np.full(dy.shape, -np.inf), np.zeros(x.shape)
    for index, places, _ in looped(x, axes):
        best = None
        for place in places:
            if best is None or x[place] > x[best] or np.isnan(x[place]):
                best = place
        if best is not None:
            y[index] = x[best]
            dx[best] += dy[index]
    return y, dx


def reference_mean(
    x: np.ndarray, dy: np.ndarray, axes: list[list[Window]], divisor: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    for index, places, count in looped(x, axes):
        for place in places:
            y[index] += x[place] / (divisor or count)
            dx[place] += dy[index] / (divisor or count)
    return y, dx


def compare(result: Any, x: np.ndarray, axes: list[list[Window]], reference: Callable[..., Any]) -> None:
    """Value and pullback against the reference, the pullback twice."""
    y, pullback = result
    assert y.shape == (*x.shape[:2], *map(len, axes))
    dy = frozen(RNG.standard_normal(y.shape))
    expected_y, expected_dx = reference(x, dy, axes)
    np.testing.assert_allclose(y, expected_y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(pullback(dy), expected_dx, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(pullback(dy), pullback(dy))


CASES: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "max-1d": (lambda x: max_pool(x, 2), (2, 2, 5)),
    "max-overlap": (lambda x: max_pool(x, 3, 2, 1), (1, 2, 5, 6)),
    "max-dilated": (lambda x: max_pool(x, 2, 1, 1, 2), (1, 2, 4, 3)),
    "max-ceil": (lambda x: max_pool(x, (2, 3), (3, 2), (1, 0), 1, True), (1, 1, 5, 6)),
    "max-3d": (lambda x: max_pool(x, (1, 2, 3), 1), (1, 2, 2, 3, 4)),
    "max-4d": (lambda x: max_pool(x, 2), (1, 1, 2, 2, 4, 2)),
    "max-one": (lambda x: max_pool(x, 1), (1, 2, 2, 2)),
    "avg-1d": (lambda x: avg_pool(x, 2), (2, 2, 5)),
    "avg-overlap": (lambda x: avg_pool(x, 3, 2, 1), (1, 2, 5, 6)),
    "avg-without-padding": (lambda x: avg_pool(x, 3, 2, 1, count_include_pad=False), (1, 2, 5, 6)),
    "avg-ceil": (lambda x: avg_pool(x, (2, 3), (3, 2), (1, 0), True), (1, 1, 5, 6)),
    "avg-ceil-without-padding": (lambda x: avg_pool(x, 3, 2, 1, True, False), (1, 1, 4, 6)),
    "avg-divisor": (lambda x: avg_pool(x, 2, 1, divisor_override=-3), (1, 2, 3, 3)),
    "avg-3d": (lambda x: avg_pool(x, (1, 2, 3), 1), (1, 2, 2, 3, 4)),
    "adaptive-one": (lambda x: adaptive_avg_pool(x, 1), (2, 2, 3, 4)),
    "adaptive-even": (lambda x: adaptive_avg_pool(x, (2, 3)), (1, 2, 4, 6)),
    "adaptive-uneven": (lambda x: adaptive_avg_pool(x, (3, 4)), (1, 2, 5, 6)),
    "adaptive-kept": (lambda x: adaptive_avg_pool(x, (None, 2)), (1, 2, 3, 3)),
    "adaptive-more": (lambda x: adaptive_avg_pool(x, 5), (1, 2, 3, 2)),
    "adaptive-3d": (lambda x: adaptive_avg_pool(x, (1, 2, 2)), (1, 1, 3, 2, 3)),
}


def distinct(shape: tuple[int, ...]) -> np.ndarray:
    """Values far enough apart that a finite difference changes no maximum."""
    return frozen(RNG.permutation(math.prod(shape)).reshape(shape) / 8 - 1)


@pytest.mark.parametrize("name", CASES)
def test_pullback_is_the_derivative(name: str, xp: Library) -> None:
    function, shape = CASES[name]
    check_vjp(function, xp.asarray(distinct(shape)))


@pytest.mark.parametrize("mean", [lambda x: avg_pool(x, (16, 16)), lambda x: adaptive_avg_pool(x, 1)])
def test_a_mean_of_half_precision_is_one_though_the_sum_overflows(mean: Callable[[Any], Any]) -> None:
    y, pullback = mean(np.full((1, 1, 16, 16), 500.0, np.float16))
    assert y.tolist() == [[[[500.0]]]]
    assert y.dtype == pullback(y).dtype == np.float16
    assert np.all(pullback(y) == 500.0 / 256)


@pytest.mark.parametrize("name", CASES)
def test_float32_and_the_library_stay(name: str, xp: Library) -> None:
    function, shape = CASES[name]
    host = distinct(shape)
    x = xp.asarray(host.astype(np.float32))
    y, pullback = function(x)
    wide, wide_pullback = function(host)
    dy = RNG.standard_normal(wide.shape)
    dx = pullback(xp.asarray(dy.astype(np.float32)))
    assert y.dtype == dx.dtype == x.dtype
    assert namespace(y, dx, x) is namespace(x)
    assert_close(to_numpy(y), wide, rtol=1e-6)
    assert_close(to_numpy(dx), wide_pullback(dy), rtol=1e-6)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, Any]]:
    """An input with ties, infinities or neither, and options of which each axis has its own."""
    axes = draw(st.integers(1, 3))
    x = np.random.default_rng(draw(st.integers(0, 999))).standard_normal(
        (draw(st.integers(0, 2)), 2, *draw(st.lists(st.integers(1, 7), min_size=axes, max_size=axes)))
    )
    kind = draw(st.sampled_from(["distinct", "ties", "infinite"]))
    x = x if kind == "distinct" else np.round(x)
    x = np.where(np.abs(x) > 0.8, -np.inf, x) if kind == "infinite" else x

    def each(strategy: st.SearchStrategy[int]) -> list[int]:
        return draw(st.lists(strategy, min_size=axes, max_size=axes))

    kernel = each(st.integers(1, 4))
    options = {
        "kernel_size": tuple(kernel),
        "stride": tuple(each(st.integers(1, 4))),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel),
        "ceil_mode": draw(st.booleans()),
    }
    if draw(st.booleans()):  # the same input in another order of memory
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    return x, options


def per_axis(x: np.ndarray, o: dict[str, Any], dilation: Any = 1, pad: bool = True) -> list[list[Window]]:
    dilations = dilation if isinstance(dilation, tuple) else (dilation,) * (x.ndim - 2)
    found = [
        windows(size, k, s, p, d, o["ceil_mode"], pad)
        for size, k, s, p, d in zip(x.shape[2:], o["kernel_size"], o["stride"], o["padding"], dilations, strict=True)
    ]
    assume(all(found))
    return found


@settings(max_examples=150, deadline=None)
@given(problems(), st.data())
def test_max_is_that_of_the_loop(problem: tuple[np.ndarray, dict[str, Any]], data: st.DataObject) -> None:
    x, options = problem
    dilation = tuple(data.draw(st.lists(st.integers(1, 3), min_size=x.ndim - 2, max_size=x.ndim - 2)))
    axes = per_axis(x, options, dilation)
    compare(max_pool(frozen_like(x), dilation=dilation, **options), x, axes, reference_max)


@settings(max_examples=150, deadline=None)
@given(problems(), st.booleans(), st.sampled_from([None, 5]))
def test_mean_is_that_of_the_loop(problem: tuple[np.ndarray, dict[str, Any]], pad: bool, divisor: int | None) -> None:
    x, options = problem
    axes = per_axis(x, options, pad=pad)
    result = avg_pool(frozen_like(x), count_include_pad=pad, divisor_override=divisor, **options)
    compare(result, x, axes, lambda *args: reference_mean(*args, divisor=divisor))


@settings(max_examples=100, deadline=None)
@given(problems(), st.data())
def test_adaptive_mean_is_that_of_the_loop(problem: tuple[np.ndarray, dict[str, Any]], data: st.DataObject) -> None:
    x, _ = problem
    sizes = data.draw(st.lists(st.sampled_from([None, 1, 2, 3, 5, 8]), min_size=x.ndim - 2, max_size=x.ndim - 2))
    axes = [adaptive_windows(size, out or size) for size, out in zip(x.shape[2:], sizes, strict=True)]
    compare(adaptive_avg_pool(frozen_like(x), sizes), x, axes, reference_mean)


def frozen_like(x: np.ndarray) -> np.ndarray:
    """A read-only view: the order of memory stays."""
    view = x[:]
    view.setflags(write=False)
    return view


@pytest.mark.parametrize("name", ["max-overlap", "avg-overlap", "adaptive-uneven", "adaptive-one"])
def test_an_empty_batch_and_no_channels_pass(name: str, xp: Library) -> None:
    function, (_, _, *spatial) = CASES[name]
    for n, c in [(0, 2), (2, 0)]:
        y, pullback = function(xp.asarray(np.ones((n, c, *spatial))))
        assert tuple(y.shape[:2]) == (n, c)
        assert tuple(pullback(y).shape) == (n, c, *spatial)


def test_the_first_of_equal_maxima_takes_the_gradient(xp: Library) -> None:
    x = np.zeros((1, 1, 3, 3))
    x[0, 0, 0, 2] = x[0, 0, 1, 0] = x[0, 0, 2, 1] = 1.0
    _, pullback = max_pool(xp.asarray(x), 3)
    dx = to_numpy(pullback(xp.asarray(np.ones((1, 1, 1, 1)))))
    assert dx[0, 0].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_nan_makes_the_maximum_nan_and_the_last_one_takes_the_gradient(xp: Library) -> None:
    x = np.array([[[[9.0, np.nan], [np.nan, 7.0]], [[1.0, 2.0], [3.0, 4.0]]]])
    y, pullback = max_pool(xp.asarray(x), 2)
    assert np.isnan(to_numpy(y)).ravel().tolist() == [True, False]
    dx = to_numpy(pullback(xp.asarray(np.ones((1, 2, 1, 1)))))
    assert dx.tolist() == [[[[0, 0], [1, 0]], [[0, 0], [0, 1]]]]


def test_a_gradient_that_is_not_finite_goes_to_the_maximum_alone(xp: Library) -> None:
    _, pullback = max_pool(xp.asarray(np.array([[[1.0, 3.0, 2.0, 5.0]]])), 2)
    dx = to_numpy(pullback(xp.asarray(np.array([[[np.inf, np.nan]]]))))
    np.testing.assert_array_equal(dx, [[[0.0, np.inf, 0.0, np.nan]]])


def test_padding_never_wins_and_a_window_of_padding_is_minus_infinity() -> None:
    low = np.full((1, 1, 2, 2), -np.inf)
    y, pullback = max_pool(low, 2, padding=1)
    assert (y == -np.inf).all()
    assert (pullback(np.ones((1, 1, 2, 2))) == 1.0).all()
    y, pullback = max_pool(np.ones((1, 1, 1)), 2, 1, 1, dilation=2)  # taps at -1 and 1 of one position
    assert y.tolist() == [[[-np.inf]]]
    assert pullback(np.ones((1, 1, 1))).tolist() == [[[0.0]]]


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param(lambda x: avg_pool(x, 2), id="avg"),
        pytest.param(lambda x: adaptive_avg_pool(x, 3), id="adaptive"),
        pytest.param(lambda x: adaptive_avg_pool(x, 4), id="adaptive-uneven"),
    ],
)
def test_what_is_not_finite_stays_in_its_windows(pool: Callable[[Any], Any]) -> None:
    x = np.ones((1, 1, 6, 6))
    x[0, 0, 0, 0] = np.inf
    y, _ = pool(x)
    assert np.isinf(y[0, 0, 0, 0])
    assert np.isfinite(y[0, 0]).sum() == y[0, 0].size - 1


def test_ceil_mode_adds_no_window_that_starts_in_the_right_padding() -> None:
    assert PoolAxis(2, 2, 1).output_size(3, ceil_mode=True) == 2  # a third would start at 3 of 3
    assert PoolAxis(2, 2).output_size(3, ceil_mode=True) == 2
    y, _ = avg_pool(np.ones((1, 1, 6)), 3, 2, 1, ceil_mode=True)
    np.testing.assert_allclose(y[0, 0], [2 / 3, 1, 1, 1 / 2])


def test_a_kernel_of_more_than_a_byte_of_taps() -> None:
    x = np.zeros((1, 1, 700))
    x[0, 0, [300, 690]] = 1.0
    _, pullback = max_pool(x, 350)
    assert np.flatnonzero(pullback(np.full((1, 1, 2), 2.0))).tolist() == [300, 690]


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("max") and n != "max-one"])
def test_max_keeps_no_input(name: str) -> None:
    function, shape = CASES[name]
    x = np.ones(shape)
    y, pullback = function(x)
    alive = weakref.ref(x)
    del x
    assert alive() is None
    assert pullback(y).shape == shape


X = np.ones((1, 2, 4, 5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: max_pool([1.0], 2), TypeError, "expected an array of NumPy", id="list"),
        pytest.param(
            lambda: max_pool(np.ones((1, 1, 4), int), 2), TypeError, "max_pool: input has dtype int64", id="max-int"
        ),
        pytest.param(
            lambda: avg_pool(np.ones((1, 1, 4), bool), 2), TypeError, "expected real floats; convert", id="avg-bool"
        ),
        pytest.param(
            lambda: max_pool(np.ones((1, 4)), 2), ShapeError, r"shape \(1, 4\), expected \(n, c, \*spatial\)", id="axes"
        ),
        pytest.param(
            lambda: avg_pool(np.ones((1, 2, 0, 4)), 1), ShapeError, "at least one position on every", id="empty-axis"
        ),
        pytest.param(
            lambda: adaptive_avg_pool(np.ones((1, 2, 0)), 1), ShapeError, "adaptive_avg_pool: input has", id="empty"
        ),
        pytest.param(
            lambda: max_pool(X, (2, 2, 2)), ValueError, "kernel_size has 3 entries for 2 spatial axes", id="entries"
        ),
        pytest.param(lambda: max_pool(X, 0), ValueError, "kernel_size must be at least 1, found 0", id="kernel-0"),
        pytest.param(lambda: max_pool(X, 2, 0), ValueError, "stride must be at least 1, found 0", id="stride-0"),
        pytest.param(
            lambda: avg_pool(X, 2, (1, -1)), ValueError, r"stride must be at least 1, found \(1, -1\)", id="stride"
        ),
        pytest.param(lambda: avg_pool(X, 2, 1, -1), ValueError, "padding must be at least 0, found -1", id="padding"),
        pytest.param(
            lambda: max_pool(X, (2, 5), padding=(2, 2)),
            ValueError,
            "max_pool: padding 2 is more than half of kernel_size 2; pad at most 1",
            id="padding-half",
        ),
        pytest.param(lambda: avg_pool(X, 3, padding=2), ValueError, "padding 2 is more .* at most 1", id="padding-odd"),
        pytest.param(
            lambda: max_pool(X, 3, padding=((0, 3), 1)), ValueError, "reaches over a window of 3 positions", id="pair"
        ),
        pytest.param(lambda: max_pool(X, 3, padding=((0, 1),)), ValueError, "padding has 1 entries for 2", id="pairs"),
        pytest.param(lambda: avg_pool(X, 3, padding=((0, -1), 0)), ValueError, "must be at least 0", id="pair-sign"),
        pytest.param(lambda: max_pool(X, 2, dilation=0), ValueError, "dilation must be at least 1", id="dilation"),
        pytest.param(lambda: max_pool(X, 2.0), TypeError, "one whole number, or one for each", id="float"),
        pytest.param(lambda: max_pool(X, True), TypeError, "kernel_size must be one whole number", id="bool"),
        pytest.param(lambda: max_pool(X, "2"), TypeError, "found '2'", id="text"),
        pytest.param(
            lambda: max_pool(X, 3, dilation=2),
            ShapeError,
            r"kernel_size 3 with dilation 2 spans 5 positions, input of shape \(1, 2, 4, 5\) has 4 and padding 0",
            id="max-fit",
        ),
        pytest.param(lambda: avg_pool(X, (4, 6)), ShapeError, "spans 6 positions, input of shape", id="avg-fit"),
        pytest.param(lambda: avg_pool(X, 2, divisor_override=0), ValueError, "must not be 0; None", id="divisor-0"),
        pytest.param(
            lambda: avg_pool(X, 2, divisor_override=1.5), TypeError, "divisor_override must be a whole", id="divisor"
        ),
        pytest.param(lambda: adaptive_avg_pool(X, 0), ValueError, "output_size must be at least 1", id="size-0"),
        pytest.param(lambda: adaptive_avg_pool(X, (1, 2, 3)), ValueError, "output_size has 3 entries", id="sizes"),
        pytest.param(lambda: adaptive_avg_pool(X, 1.0), TypeError, "output_size must be one whole", id="size-float"),
    ],
)
def test_wrong_input_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("include", [False, True], ids=["input-alone", "with-padding"])
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(0, 2), st.booleans(),
    st.integers(5, 9),
)  # fmt: skip
def test_uneven_padding_and_dilation_are_those_of_a_padded_input(
    include: bool, kernel: int, stride: int, dilation: int, before: int, after: int, ceil: bool, size: int
) -> None:
    """Each window by itself, in the input between its two paddings."""
    reach = dilation * (kernel - 1) + 1
    before, after = min(before, reach - 1), min(after, reach - 1)
    x = np.random.default_rng(size).standard_normal((1, 1, size))
    options = {"stride": stride, "padding": ((before, after),), "dilation": dilation, "ceil_mode": ceil}
    largest, mean = max_pool(x, kernel, **options)[0], avg_pool(x, kernel, **options, count_include_pad=include)[0]
    starts = range(-before, size + (after - reach + 1 if not ceil else 0), stride)
    if ceil:  # a last window may hang over the padding, if it starts in the input
        last = -(-(size + before + after - reach) // stride) * stride - before
        starts = range(-before, min(last, size - 1) + 1, stride)
    assert largest.shape == mean.shape == (1, 1, len(starts))
    for i, start in enumerate(starts):
        places = [start + k * dilation for k in range(kernel)]
        inside = [place for place in places if 0 <= place < size]
        padded = [place for place in places if -before <= place < size + after]
        values = x[0, 0, inside]
        assert largest[0, 0, i] == (values.max() if inside else -np.inf)
        assert mean[0, 0, i] == pytest.approx(values.sum() / max(len(padded if include else inside), 1))
