"""Moments of windows: every choice of lagged axes against unfolding, by hand, by GroMo's numbers, and messages."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc
from typing import Any

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growarray import ops
from growarray.backend import to_numpy
from growarray.errors import PlanError, ShapeError
from growarray.ops import lags, moments
from growarray.ops.folded import folded, folded_axis, spread
from growarray.ops.lags import moment_plan, orders
from growarray.ops.moments import window_moment
from growarray.ops.windows import Windows, windows
from growarray.testing import assert_close, tolerance
from tests.conftest import Library, frozen
from tests.golden.case import FOLDERS, Case

RTOL = 1e-10  # of float64, relative to the largest entry


def unfolded(w: Windows) -> np.ndarray:
    """(n positions, features) of the windows by the definition, one position and tap after the other, in float64."""
    x = to_numpy(w.array).astype(np.float64)
    rows = []
    for image, place in itertools.product(x, itertools.product(*(range(axis.out) for axis in w.axes))):
        row = np.zeros((x.shape[1], *(axis.taps for axis in w.axes)))
        for taps in itertools.product(*(range(axis.taps) for axis in w.axes)):
            at = [q * a.stride + t * a.dilation - a.before for q, t, a in zip(place, taps, w.axes, strict=True)]
            if all(0 <= i < a.size for i, a in zip(at, w.axes, strict=True)):
                row[(slice(None), *taps)] = image[(slice(None), *at)]
        rows.append([*row.reshape(-1), *[1.0] * w.bias])
    return np.array(rows).reshape(len(rows), w.width)


def agree(actual: Any, expected: np.ndarray, rtol: float = RTOL) -> None:
    actual = to_numpy(actual)
    assert actual.shape == expected.shape
    assert actual.dtype == np.float64
    assert np.abs(actual - expected).max(initial=0.0) <= rtol * np.abs(expected).max(initial=0.0)


@st.composite
def geometries(draw: st.DrawFn, axes: int) -> tuple[tuple[int, ...], dict[str, tuple[Any, ...]], tuple[int, ...]]:
    """Kernel, options and sizes of a convolution that fits."""
    kernel, stride, dilation, padding, sizes = [], [], [], [], []
    for _ in range(axes):
        kernel.append(draw(st.integers(1, 4)))
        stride.append(draw(st.integers(1, 3)))
        dilation.append(draw(st.integers(1, 3)))
        padding.append((draw(st.integers(0, 3)), draw(st.integers(0, 3))))
        least = dilation[-1] * (kernel[-1] - 1) + 1 - sum(padding[-1])
        sizes.append(draw(st.integers(max(least, 1), max(least, 1) + 7 - 2 * axes)))
    options = {"stride": tuple(stride), "dilation": tuple(dilation), "padding": tuple(padding)}
    return tuple(kernel), options, tuple(sizes)


@st.composite
def streams(draw: st.DrawFn) -> tuple[Windows, Windows]:
    """Windows, and others over the same images and outputs."""
    kernel, options, sizes = draw(st.integers(1, 3).flatmap(geometries))
    n, c, d = (draw(st.integers(1, 3)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    left = windows(frozen(rng.standard_normal((n, c, *sizes))), kernel, **options, bias=draw(st.booleans()))
    taps, steps = ([draw(st.integers(1, 3)) for _ in sizes] for _ in range(2))
    reach = [(out - 1) * step + tap for out, step, tap in zip(left.positions, steps, taps, strict=True)]
    array = frozen(rng.standard_normal((n, d, *reach)))
    return left, windows(array, taps, stride=steps, bias=draw(st.booleans()))


@settings(max_examples=60, deadline=None)
@given(streams())
def test_every_choice_of_lagged_axes_equals_unfolding(pair):
    left, right = pair
    a, b = unfolded(left), unfolded(right)
    for lagged in (None, *orders(len(left.axes))):
        agree(window_moment(left, lagged=lagged), a.T @ a)
        agree(window_moment(left, right, lagged=lagged), a.T @ b)
        agree(window_moment(right, left, lagged=lagged), b.T @ a)
    for axis in range(len(left.axes) if len(left.axes) > 1 else 0):
        one, other = folded(left, axis), folded(right, axis)
        agree(spread(window_moment(one), left, left, axis), a.T @ a)
        agree(spread(window_moment(one, other), left, right, axis), a.T @ b)


def test_by_hand():
    x = frozen([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])[None]  # one image, 2 x 3
    w = windows(x, (2, 2), bias=True)  # windows 1 2 4 5 and 2 3 5 6
    expected = [[5, 8, 14, 17, 3], [8, 13, 23, 28, 5], [14, 23, 41, 50, 9], [17, 28, 50, 61, 11], [3, 5, 9, 11, 2]]
    for lagged in orders(2):
        assert window_moment(w, lagged=lagged).tolist() == expected


def test_features_are_in_the_order_of_unfold():
    x = np.zeros((1, 2, 3, 3))
    x[0, 1, 0, 2] = 1.0  # channel 1, first row, third column: read by tap (0, 1) of output (0, 1)
    found = window_moment(windows(x, (2, 2)), windows(np.eye(4).reshape(1, 4, 2, 2).transpose(1, 0, 2, 3)[:1], (1, 1)))
    assert found[:, 0].tolist() == [0.0] * 8
    gradient = np.zeros((1, 1, 2, 2))
    gradient[0, 0, 0, 1] = 3.0
    found = window_moment(windows(x, (2, 2)), windows(gradient, (1, 1)))
    assert found[:, 0].tolist() == [0, 0, 0, 0, 0, 3.0, 0, 0]


def test_with_a_gradient_it_is_the_weight_gradient():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((3, 4, 9, 8)), rng.standard_normal((5, 4, 3, 2))
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
    y, pullback = ops.conv(x, w, np.zeros(5), **options)
    dy = rng.standard_normal(y.shape)
    _, dw, db = pullback(dy)
    found = window_moment(windows(x, (3, 2), **options, bias=True), windows(dy, (1, 1)))
    assert_close(found, np.concatenate([dw.reshape(5, -1), db[:, None]], axis=1).T)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_library_read_only_and_in_float64(xp: Library, dtype):
    rng = np.random.default_rng(2)
    host, other = (rng.standard_normal((4, 3, 7, 6)).astype(dtype) for _ in range(2))
    x, z = xp.asarray(host), xp.asarray(other)
    left, right = (windows(a, (3, 2), stride=(1, 2), padding=1, bias=True) for a in (x, z))
    a, b = unfolded(left), unfolded(right)
    for lagged in ((), (0, 1)):  # JAX compiles each one
        found = window_moment(left, lagged=lagged)
        assert type(found) is type(x)
        agree(found, a.T @ a, tolerance(dtype))
        agree(window_moment(left, right, lagged=lagged), a.T @ b, tolerance(dtype))
    assert np.array_equal(to_numpy(x), host)


@pytest.mark.parametrize("lagged", [None, *orders(2)])
def test_blocks_of_images_and_pieces_of_an_image_change_nothing(monkeypatch, lagged):
    rng = np.random.default_rng(3)
    w = windows(rng.standard_normal((5, 2, 12, 11)), (3, 3), stride=(2, 1), padding=1, bias=True)
    whole = window_moment(w, lagged=lagged)
    monkeypatch.setitem(lags._BLOCK, "cpu", 1)
    monkeypatch.setitem(lags._LARGEST, "cpu", 2000)
    moment_plan.cache_clear()
    try:
        agree(window_moment(w, lagged=lagged), whole)
    finally:
        moment_plan.cache_clear()  # plans of blocks that small


def test_a_moment_is_symmetric():
    w = windows(np.random.default_rng(4).standard_normal((3, 5, 10, 9)), (3, 3), padding=1, bias=True)
    for lagged in orders(2):
        s = window_moment(w, lagged=lagged)
        assert np.array_equal(s, s.T)


def test_a_huge_border_does_not_drown_the_inside():
    x = np.ones((1, 1, 6, 6))
    x[..., 0] = 1e9  # read by the first column of taps alone: the others must not hold its rounding
    for lagged in orders(2):
        s = window_moment(windows(x, (2, 2)), lagged=lagged)
        assert s[1, 1] == s[3, 3] == 25.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_only_a_block_of_windows_is_ever_there(dtype):
    x = np.random.default_rng(5).standard_normal((64, 4, 32, 32)).astype(dtype)
    w = windows(x, (5, 5), padding=2)
    window_moment(w)
    tracemalloc.start()
    for lagged in orders(2):
        window_moment(w, lagged=lagged)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * lags._BLOCK["cpu"] + 4 * 8 * w.width**2
    assert x.itemsize * w.samples * math.prod(w.positions) * w.width > 3 * peak


RNG = np.random.default_rng(7)
ALIKE = {
    "constant": np.full((21, 16, 12, 12), 0.1),
    "constant images": np.broadcast_to(RNG.random((21, 1, 1, 1)), (21, 16, 12, 12)),
    "constant channels of an image": np.broadcast_to(RNG.random((21, 16, 1, 1)), (21, 16, 12, 12)),
    "rows": np.broadcast_to(RNG.random((1, 16, 12, 1)), (21, 16, 12, 12)),
    "binary": 0.1 * (RNG.random((21, 16, 12, 12)) < 0.3),
    "bytes": RNG.integers(0, 256, (21, 16, 12, 12)) / 255,
    "ordered": np.sort(RNG.random((21, 16, 12, 12)), axis=0),
    "offset": 1000 + RNG.standard_normal((21, 16, 12, 12)),
    "period of eight": np.broadcast_to((np.arange(21) % 8 / 7)[:, None, None, None], (21, 16, 12, 12)),
    "one image": np.eye(21)[3][:, None, None, None] * np.full((1, 16, 12, 12), 0.3),
}


@pytest.mark.parametrize("name", ALIKE)
def test_single_precision_does_not_drift_where_values_are_alike(name, monkeypatch):
    def single_if_allowed(left, right, sizes, symmetric, lagged, single, device):
        return lags._plan(left, right, sizes, symmetric, lagged, single, device)

    monkeypatch.setattr(moments, "moment_plan", single_if_allowed)
    x = ALIKE[name].astype(np.float32)
    z = np.ascontiguousarray(x[:, ::-1])
    for lagged in orders(2):
        w, v = (windows(a, (3, 3), stride=(1, 2), padding=1, bias=True) for a in (x, z))
        wide, other = (windows(a.astype(np.float64), (3, 3), stride=(1, 2), padding=1, bias=True) for a in (x, z))
        agree(window_moment(w, lagged=lagged), window_moment(wide, lagged=lagged), 1e-6)
        agree(window_moment(w, v, lagged=lagged), window_moment(wide, other, lagged=lagged), 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch, dtype):
    x = np.random.default_rng(6).standard_normal((16, 12, 14, 14)).astype(dtype)
    w, few, one = (windows(a, (3, 3), padding=1, bias=True) for a in (x, x[:, :1], np.tile(x[:1], (1, 3, 4, 4))))
    results = []
    for count in ("1", "2", "3"):
        monkeypatch.setenv("GROWARRAY_THREADS", count)
        results.append([window_moment(w, lagged=(0, 1)), window_moment(w), window_moment(few), window_moment(one)])
    for others in results[1:]:
        assert all(map(np.array_equal, results[0], others))


def test_single_precision_is_for_many_features_alone():
    def single(n: int, c: int) -> bool:
        axes = windows(np.zeros((n, c, 28, 28), np.float32), (3, 3), padding=1).axes
        return moment_plan(axes, axes, (n, c, c), True, None, True).single

    assert single(32, 64)
    assert not single(32, 1)
    assert not single(7, 64)


def test_the_plan_unfolds_what_has_one_tap_and_lags_what_has_many():
    def choice(c: int, size: int, kernel: int) -> tuple[int, ...]:
        w = windows(np.zeros((32, c, size, size), np.float32), (kernel, kernel), padding=kernel // 2)
        return moment_plan(w.axes, w.axes, (32, c, c), True).lagged

    assert choice(64, 28, 1) == ()
    assert choice(64, 28, 3) == choice(32, 28, 5) == (0, 1)


def test_an_axis_is_folded_if_there_are_few_channels():
    def choice(n: int, c: int, size: int, kernel: int) -> int | None:
        axes = windows(np.zeros((n, c, size, size)), (kernel, kernel), padding=kernel // 2).axes
        return folded_axis(axes, axes, (n, c, c), True, True)

    assert choice(128, 1, 28, 5) == choice(128, 3, 32, 3) == 0
    assert choice(64, 16, 32, 3) is choice(32, 64, 56, 1) is None
    x = np.random.default_rng(9).standard_normal((128, 1, 28, 28)).astype(np.float32)
    w = windows(x, (5, 5), padding=2, bias=True)
    found = window_moment(w)
    agree(found, window_moment(w, lagged=()), tolerance("float32"))
    assert np.array_equal(found, found.T)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_single_precision_is_left_where_products_would_vanish_or_overflow(size):
    x = np.random.default_rng(8).standard_normal((16, 64, 14, 14))
    wide = window_moment(windows(x, (3, 3)))
    found = window_moment(windows((size * x).astype(np.float32), (3, 3))) / size**2
    assert np.abs(found - wide).max() <= 1e-6 * np.abs(wide).max()


def test_no_channels_leave_the_bias():
    none = windows(np.ones((2, 0, 5, 4)), (3, 2), bias=True)
    one = windows(np.ones((2, 1, 5, 4)), (3, 2))
    for lagged in orders(2):
        assert window_moment(none, lagged=lagged).tolist() == [[18.0]]
        assert window_moment(none, one, lagged=lagged).tolist() == [[18.0] * 6]


@pytest.mark.parametrize("n", [0, 2])
def test_nothing_to_sum_is_zero(n):
    w = windows(np.ones((n, 2, 5)), (3,), bias=True).cropped((slice(0, 3 if n == 0 else 0),))
    assert np.array_equal(window_moment(w), np.zeros((7, 7)))


def test_bad_input_is_refused():
    x = np.ones((2, 3, 8, 8))
    with pytest.raises(
        ShapeError, match=r"windows: the input has shape \(2, 3, 8, 8\), expected \(n, c\) and one more"
    ):
        windows(x, (3,))
    with pytest.raises(PlanError, match="a kernel of 9 with dilation 1 spans 9 positions, the padded input has 8"):
        windows(x, (9, 3))
    with pytest.raises(ValueError, match="windows: kernel must be at least 1"):
        windows(x, (3, 0))
    with pytest.raises(PlanError, match="stride of 'y': found 0"):
        windows(x, (3, 3), stride=(0, 1))
    with pytest.raises(TypeError, match="expected an array"):
        windows([[1.0]], (1,))
    with pytest.raises(TypeError, match="expected an array of real numbers"):
        windows(np.ones((1, 1, 4), complex), (2,))
    w = windows(x, (3, 3))
    with pytest.raises(ShapeError, match=r"one side has \(6, 6\) output positions, the other \(8, 8\)"):
        window_moment(w, windows(x, (1, 1)))
    with pytest.raises(ShapeError, match="one side has 2 images, the other 1"):
        window_moment(w, windows(x[:1], (3, 3)))
    with pytest.raises(ValueError, match=r"lagged=\(0, 0\), expected at most two different axes of the 2"):
        window_moment(w, lagged=(0, 0))
    other = windows(array_api_strict.asarray(x), (3, 3))
    with pytest.raises(TypeError, match="two libraries"):
        window_moment(w, other)


def conv_pairs() -> list[Case]:
    found = []
    for folder in FOLDERS:
        cases = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["cases"]
        found += [Case({**entry, "folder": folder}) for entry in cases if entry["kind"] == "conv_pair"]
    return found


def options_of(one: dict[str, Any]) -> dict[str, Any]:
    """Stride, padding and dilation as recorded, by first letters."""
    found = {"stride": one.get("s", 1), "padding": one.get("p", 0), "dilation": one.get("d", 1)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def layer(case: Case, name: str, x: np.ndarray) -> Windows:
    """Windows of one of the two layers."""
    one = case.config[name]
    return windows(x, one["k"], **options_of(one), bias=one["bias"])


def hidden(case: Case, x: np.ndarray) -> np.ndarray:
    """What the second layer sees: convolution, fresh batch norm if there is one, activation."""
    y, _ = ops.conv(x, case["in.prev_w"], case.get("in.prev_b"), **options_of(case.config["prev"]))
    if "norm" in case.config:
        y = (y - y.mean(axis=(0, 2, 3), keepdims=True)) / np.sqrt(y.var(axis=(0, 2, 3), keepdims=True) + 1e-5)
    return getattr(ops, case.config["activation"])(y)[0]


@pytest.mark.parametrize("case", conv_pairs(), ids=lambda case: case.name)
def test_statistics_of_two_convolutions_as_gromo_has_them(case):
    """S, M, E of the second layer; M_prev, C and S for growth with the first one's windows.

    A restricted layer sees the first one through its centre tap, a full one through each of its taps.
    """
    totals: dict[str, Any] = {}
    for i in range(len(case.config["batches"])):
        x = case[f"in.x{i}"]
        previous, following = layer(case, "prev", x), layer(case, "next", hidden(case, x))
        gradient = windows(case[f"out.dA{i}"], (1, 1))
        taps = list(itertools.product(*(range(axis.taps) for axis in following.axes)))
        restricted = case.config["cls"] == "restricted"
        chosen = [tuple(axis.taps // 2 for axis in following.axes)] if restricted else taps
        parts = [previous.read_by(following.axes, tap) for tap in chosen]
        m_prev = [window_moment(w, gradient.cropped(outputs)) for w, outputs in parts]
        c = [window_moment(w, following.cropped(outputs)) for w, outputs in parts]
        found = {
            "S": window_moment(following),
            "M": window_moment(following, gradient),
            "E": window_moment(gradient),
            "M_prev": np.stack(m_prev, axis=-1).reshape(previous.width, -1),
            "C": c[0] if restricted else np.stack(c),
            "S_growth": window_moment(previous) if restricted else sum(window_moment(w) for w, _ in parts),
        }
        for name, value in found.items():
            totals[name] = totals.get(name, 0.0) + value
    for name, total in totals.items():
        case.check(f"out.{name}", total / sum(case.config["batches"]))
