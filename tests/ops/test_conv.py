"""Convolution and transposed convolution: direct sums, finite differences, adjoints, torch, and messages."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growarray.backend import namespace, to_numpy
from growarray.errors import PlanError, ShapeError
from growarray.ops import conv, conv_transpose
from growarray.ops.conv import conv_plan
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library, frozen

MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}

# input, weight, options
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1d": ((2, 3, 7), (4, 3, 3), {}),
    "1d-all": ((2, 4, 9), (6, 2, 3), {"stride": 2, "padding": (2,), "dilation": 2, "groups": 2}),
    "1d-one-sided": ((1, 2, 5), (3, 2, 3), {"padding": ((2, 0),)}),
    "2d": ((2, 3, 5, 4), (2, 3, 3, 3), {"padding": 1}),
    "2d-1x1": ((2, 3, 4, 3), (5, 3, 1, 1), {}),
    "2d-1x1-stride": ((2, 3, 4, 3), (5, 3, 1, 1), {"stride": 2}),
    "2d-1x1-groups": ((2, 4, 3, 3), (6, 2, 1, 1), {"groups": 2}),
    "2d-whole": ((2, 2, 3, 4), (3, 2, 3, 4), {}),
    "2d-per-axis": ((2, 2, 7, 6), (3, 2, 3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    "2d-stride-above-kernel": ((1, 2, 7, 8), (2, 2, 2, 1), {"stride": 3}),
    "2d-same-even": ((1, 2, 5, 4), (2, 2, 2, 3), {"padding": "same", "dilation": (1, 2)}),
    "2d-valid": ((1, 2, 5, 4), (2, 2, 2, 3), {"padding": "valid"}),
    "2d-groups": ((2, 4, 5, 4), (6, 2, 3, 3), {"groups": 2, "padding": 1, "stride": (1, 2)}),
    "2d-groups-one-out": ((2, 4, 5, 4), (2, 2, 3, 3), {"groups": 2}),
    "2d-depthwise": ((2, 3, 5, 5), (3, 1, 3, 3), {"groups": 3, "padding": 1}),
    "2d-depthwise-stride": ((2, 3, 6, 5), (3, 1, 3, 2), {"groups": 3, "padding": (2, 1), "stride": 2, "dilation": 2}),
    "2d-depthwise-multiplier": ((1, 2, 5, 4), (6, 1, 3, 3), {"groups": 2, "padding": 1}),
    "2d-reflect": ((1, 2, 5, 4), (2, 2, 3, 3), {"padding": (2, 1), "padding_mode": "reflect"}),
    "2d-replicate": ((1, 2, 3, 4), (2, 2, 3, 3), {"padding": 2, "padding_mode": "replicate", "stride": 2}),
    "2d-circular": ((1, 2, 3, 4), (2, 2, 3, 3), {"padding": (3, 1), "padding_mode": "circular"}),
    "2d-circular-same": ((1, 2, 3, 4), (2, 2, 2, 3), {"padding": "same", "padding_mode": "circular"}),
    "2d-reflect-depthwise": ((2, 2, 4, 4), (2, 1, 3, 3), {"padding": 1, "padding_mode": "reflect", "groups": 2}),
    "3d": ((1, 2, 3, 4, 3), (2, 2, 2, 3, 2), {"stride": (1, 2, 1), "padding": (0, 1, 1)}),
    "3d-depthwise": ((1, 2, 3, 3, 3), (2, 1, 2, 2, 2), {"groups": 2, "padding": (1, 0, 0)}),
    "4d": ((1, 2, 3, 2, 3, 2), (2, 2, 2, 1, 2, 2), {"padding": (1, 0, 0, 1), "stride": (2, 1, 1, 1)}),
    "5d": ((1, 2, 2, 2, 3, 2, 2), (2, 1, 2, 1, 2, 1, 2), {"groups": 2, "dilation": (1, 1, 2, 1, 1)}),
}
TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1d": ((2, 3, 4), (3, 4, 3), {}),
    "1d-all": (
        (2, 4, 4),
        (4, 3, 3),
        {"stride": 3, "padding": 1, "output_padding": 2, "dilation": 2, "groups": 2},
    ),
    "2d-doubling": ((2, 3, 3, 2), (3, 2, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "2d-per-axis": ((1, 2, 3, 4), (2, 3, 3, 2), {"stride": (2, 1), "padding": (0, 1), "output_padding": (1, 0)}),
    "2d-groups": ((2, 4, 3, 2), (4, 3, 2, 3), {"stride": 2, "groups": 2}),
    "2d-depthwise": ((2, 3, 3, 2), (3, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 3}),
    "2d-output_padding-below-dilation": (
        (1, 2, 3, 3),
        (2, 2, 2, 2),
        {"padding": 1, "output_padding": 1, "dilation": 2},
    ),
    "1d-output_padding-beyond-reach": ((2, 2, 3), (2, 2, 2), {"output_padding": 2, "dilation": 3}),
    "2d-output_padding-beyond-reach": (
        (2, 4, 2, 3),
        (4, 3, 3, 2),
        {"stride": (1, 2), "padding": (1, 0), "output_padding": (3, 2), "dilation": (4, 3), "groups": 2},
    ),
    "2d-nothing-reached": (
        (1, 2, 1, 2),
        (2, 3, 1, 2),
        {"stride": (1, 2), "padding": (2, 1), "output_padding": (4, 1), "dilation": (5, 1)},
    ),
    "3d": ((1, 2, 2, 3, 2), (2, 2, 2, 1, 2), {"stride": (1, 2, 2), "padding": (1, 0, 0)}),
    "4d": ((1, 2, 2, 1, 2, 2), (2, 1, 2, 2, 1, 2), {"stride": 2, "groups": 2}),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_transposed = pytest.mark.parametrize("case", TRANSPOSED.values(), ids=TRANSPOSED)


def each(value: Any, axes: int) -> Sequence[Any]:
    return value if isinstance(value, tuple) else (value,) * axes


def direct(x: np.ndarray, w: np.ndarray, b: Any, **options: Any) -> np.ndarray:
    """The convolution as the sum that defines it: a loop over positions and taps."""
    axes, g = x.ndim - 2, options.get("groups", 1)
    stride, dilation = each(options.get("stride", 1), axes), each(options.get("dilation", 1), axes)
    padding = options.get("padding", 0)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
        padding = tuple((t // 2, t - t // 2) for t in totals)
    pairs = [each(p, 2) for p in each(0 if padding == "valid" else padding, axes)]
    padded = np.pad(x, [(0, 0), (0, 0), *pairs], mode=MODES[options.get("padding_mode", "zeros")])
    geometry = list(zip(padded.shape[2:], w.shape[2:], stride, dilation, strict=True))
    outs = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in geometry]
    y = np.zeros((x.shape[0], w.shape[0], *outs))
    for place, tap in itertools.product(np.ndindex(*outs), np.ndindex(*w.shape[2:])):
        at = tuple(q * s + t * d for q, t, s, d in zip(place, tap, stride, dilation, strict=True))
        read = padded[(..., *at)].reshape(x.shape[0], g, -1)
        kernel = w[(..., *tap)].reshape(g, w.shape[0] // g, w.shape[1])
        y[(..., *place)] += np.einsum("ngc,goc->ngo", read, kernel).reshape(x.shape[0], -1)
    return y if b is None else y + b.reshape(-1, *(1,) * axes)


def direct_transpose(x: np.ndarray, w: np.ndarray, b: Any, **options: Any) -> np.ndarray:
    """The transposed convolution as the sum that defines it: every input position adds a kernel to the result."""
    axes, g = x.ndim - 2, options.get("groups", 1)
    names = {"stride": 1, "dilation": 1, "padding": 0, "output_padding": 0}
    stride, dilation, padding, extra = (each(options.get(name, value), axes) for name, value in names.items())
    geometry = list(zip(x.shape[2:], w.shape[2:], stride, dilation, extra, strict=True))
    sizes = [(size - 1) * s + d * (k - 1) + 1 + e for size, k, s, d, e in geometry]
    y = np.zeros((x.shape[0], w.shape[1] * g, *sizes))
    for place, tap in itertools.product(np.ndindex(*x.shape[2:]), np.ndindex(*w.shape[2:])):
        at = tuple(q * s + t * d for q, t, s, d in zip(place, tap, stride, dilation, strict=True))
        read = x[(..., *place)].reshape(x.shape[0], g, -1)
        kernel = w[(..., *tap)].reshape(g, w.shape[0] // g, w.shape[1])
        y[(..., *at)] += np.einsum("ngc,gco->ngo", read, kernel).reshape(x.shape[0], -1)
    y = y[(..., *(slice(p, size - p) for p, size in zip(padding, sizes, strict=True)))]
    return y if b is None else y + b.reshape(-1, *(1,) * axes)


def draw(*shapes: tuple[int, ...], seed: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [frozen(rng.standard_normal(shape)) for shape in shapes]


def operands(case: Any, transposed: bool = False) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Read-only input, weight and bias of a case, and its options."""
    x, w, options = case
    o = w[1] * options.get("groups", 1) if transposed else w[0]
    return draw(x, w, (o,)), options


@each_case
def test_value_is_the_direct_sum(case: Any) -> None:
    arrays, options = operands(case)
    assert_close(conv(*arrays, **options)[0], direct(*arrays, **options), rtol=1e-13)
    assert_close(conv(*arrays[:2], **options)[0], direct(*arrays[:2], None, **options), rtol=1e-13)


@each_transposed
def test_transposed_value_is_the_direct_sum(case: Any) -> None:
    arrays, options = operands(case, transposed=True)
    assert_close(conv_transpose(*arrays, **options)[0], direct_transpose(*arrays, **options), rtol=1e-13)
    expected = direct_transpose(*arrays[:2], None, **options)
    assert_close(conv_transpose(*arrays[:2], **options)[0], expected, rtol=1e-13)


@each_case
def test_pullback_is_the_derivative(case: Any) -> None:
    arrays, options = operands(case)
    check_vjp(lambda *a: conv(*a, **options), *arrays)


@each_transposed
def test_transposed_pullback_is_the_derivative(case: Any) -> None:
    arrays, options = operands(case, transposed=True)
    check_vjp(lambda *a: conv_transpose(*a, **options), *arrays)


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "conv_transpose"])
@pytest.mark.parametrize("name", ["1d-all", "2d-groups", "2d-depthwise", "3d"])
def test_every_library_gives_numpy_s_numbers(name: str, transposed: bool, xp: Library) -> None:
    function = conv_transpose if transposed else conv
    hosts, options = operands((TRANSPOSED if transposed else CASES)[name], transposed)
    y, pullback = function(*hosts, **options)
    (dy,) = draw(y.shape, seed=5)
    moved = [xp.asarray(a) for a in hosts]
    y_there, pullback_there = function(*moved, **options)
    assert namespace(y_there) is namespace(*moved)
    assert_close(y_there, y, rtol=1e-13)
    for wrt_x in (True, False):
        gradients, expected = pullback_there(xp.asarray(dy), wrt_x=wrt_x), pullback(dy)
        assert (gradients[0] is None) is not wrt_x
        for found, wanted in list(zip(gradients, expected, strict=True))[not wrt_x :]:
            assert_close(found, wanted, rtol=1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_every_library_pads_alike(mode: str, xp: Library) -> None:
    hosts = draw((2, 2, 4, 5), (3, 2, 3, 3), (3,))
    options = {"padding": (2, 1), "padding_mode": mode}
    y, pullback = conv(*[xp.asarray(a) for a in hosts], **options)
    assert_close(y, direct(*hosts, **options), rtol=1e-13)
    for found, wanted in zip(pullback(y), conv(*hosts, **options)[1](to_numpy(y)), strict=True):
        assert_close(found, wanted, rtol=1e-13)


@settings(max_examples=60, deadline=None)
@given(
    axes=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.integers(1, 3)),
        min_size=1,
        max_size=3,
    ),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    n=st.integers(1, 3),
)
def test_any_geometry_is_the_direct_sum_and_its_transpose(
    axes: list[tuple[int, ...]], channels: tuple[int, int, int], n: int
) -> None:
    g, c, o = channels
    sizes, kernel, stride, padding, dilation = zip(*axes, strict=True)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": g}
    x, w, b = draw((n, g * c, *sizes), (g * o, c, *kernel), (g * o,))
    if any(d * (k - 1) + 1 > size + 2 * p for size, k, _, p, d in axes):
        with pytest.raises(PlanError, match="add padding of"):
            conv(x, w, b, **geometry)
        return
    y, pullback = conv(x, w, b, **geometry)
    assert_close(y, direct(x, w, b, **geometry), rtol=1e-12)
    dy, other_x, other_w = draw(y.shape, x.shape, w.shape, seed=8)
    dx, dw, db = pullback(dy)
    np.testing.assert_allclose(np.vdot(dx, other_x), np.vdot(dy, direct(other_x, w, None, **geometry)), atol=1e-10)
    np.testing.assert_allclose(np.vdot(dw, other_w), np.vdot(dy, direct(x, other_w, None, **geometry)), atol=1e-10)
    assert_close(db, dy.sum(axis=(0, *range(2, dy.ndim))), rtol=1e-12)
    room = [size + 2 * p - d * (k - 1) - 1 for size, k, _, p, d in axes]
    rest = tuple(r % s for r, s in zip(room, stride, strict=True))  # positions that the convolution does not reach
    assert_close(conv_transpose(dy, w, output_padding=rest, **geometry)[0], dx, rtol=1e-12)


@pytest.mark.parametrize("name", ["2d", "2d-1x1", "2d-depthwise", "2d-groups", "2d-reflect", "3d"])
def test_arrays_may_lie_in_memory_in_any_way(name: str) -> None:
    (x, w, b), options = operands(CASES[name])

    def scattered(a: np.ndarray) -> np.ndarray:
        big = np.repeat(np.moveaxis(a, 0, -1), 2, axis=0)
        view = np.moveaxis(big, -1, 0)[:, ::2]
        assert not view.flags.c_contiguous
        return view

    y, pullback = conv(x, w, b, **options)
    y_view, pullback_view = conv(scattered(x), scattered(w), np.repeat(b, 2)[::2], **options)
    assert_close(y_view, y, rtol=1e-14)
    (dy,) = draw(y.shape, seed=5)
    for found, wanted in zip(pullback_view(scattered(dy)), pullback(dy), strict=True):
        assert_close(found, wanted, rtol=1e-14)


@pytest.mark.parametrize("function", [conv, conv_transpose])
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("groups", [1, 2], ids=["dense", "depthwise"])
def test_an_empty_batch_has_an_empty_result_and_no_gradient(function: Any, taps: int, groups: int, xp: Library) -> None:
    w, b = draw((2, 2 // groups, taps, taps), (2,))
    y, pullback = function(xp.asarray(np.zeros((0, 2, 5, 4))), xp.asarray(w), xp.asarray(b), groups=groups)
    assert tuple(y.shape[:2]) == (0, 2)
    for dx, dw, db in (pullback(y), pullback(y, wrt_x=False)):
        assert dx is None or tuple(dx.shape) == (0, 2, 5, 4)
        assert_close(dw, np.zeros(w.shape))
        assert_close(db, np.zeros(2))


@pytest.mark.parametrize("taps", [1, 3])
def test_no_channels_give_the_bias_alone(taps: int, xp: Library) -> None:
    x, w, b = (xp.asarray(a) for a in draw((2, 0, 4, 4), (3, 0, taps, taps), (3,)))
    y, pullback = conv(x, w, b, padding=taps // 2)
    assert_close(y, np.broadcast_to(to_numpy(b).reshape(3, 1, 1), (2, 3, 4, 4)))
    assert [tuple(g.shape) for g in pullback(y)] == [(2, 0, 4, 4), (3, 0, taps, taps), (3,)]
    y, pullback = conv(pullback(y)[0], xp.asarray(np.zeros((0, 0, 1, 1))))
    assert tuple(y.shape) == (2, 0, 4, 4)


def test_float32_stays_float32_and_is_accurate() -> None:
    hosts = draw((2, 16, 12, 11), (8, 16, 3, 3), (8,))
    y, pullback = conv(*[a.astype(np.float32) for a in hosts], padding=1)
    exact, exact_pullback = conv(*hosts, padding=1)
    assert y.dtype == np.float32
    assert_close(y, exact, rtol=2e-6)
    for found, wanted in zip(pullback(y), exact_pullback(y.astype(np.float64)), strict=True):
        assert found.dtype == np.float32
        assert_close(found, wanted, rtol=3e-6)


def test_inputs_stay_as_they_are_and_the_pullback_repeats() -> None:
    (x, w, b), options = operands(CASES["2d-groups"])
    y, pullback = conv(x, w, b, **options)
    first, second = pullback(y), pullback(y)
    assert all(np.array_equal(a, c) for a, c in zip(first, second, strict=True))
    assert not any(np.shares_memory(a, c) for a in (y, *first) for c in (x, w, b))


def test_groups_are_a_shared_mode_and_depthwise_kernels_are_shifted() -> None:
    assert conv_plan((8, 6, 9, 9), (12, 3, 3, 3), groups=2).equation == "n g c y x, g o c y x -> n g o y x | y, x"
    plan = conv_plan((8, 6, 9, 9), (6, 1, 3, 3), groups=6, padding=1)
    assert [step.routine for step in plan.steps] == ["band"]
    assert plan is conv_plan((8, 6, 9, 9), (6, 1, 3, 3), groups=6, padding=1)
    assert conv_plan((1, 2, 3, 3, 3, 3), (2, 2, 2, 2, 2, 2)).equation.endswith("| x0, x1, x2, x3")


# One flat float64 array a case, made once with torch 2.13.0 (CPU). After torch.manual_seed(0), for every case in this
# order: a layer ConvTranspose{1,2,3}d with its own initial values, x = randn(1, c, *(3, 2, 2)[:axes]), and
# dy = randn_like(y); x, weight, bias, dy, y, dx, dweight and dbias lie one after another.
TORCH = Path(__file__).parent / "data" / "conv_transpose.npz"
TORCH_CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "stride-1d": ((1, 2, 3), (2, 3, 4), {"stride": 3, "padding": 1, "output_padding": 2}),
    "doubling": ((1, 3, 3, 2), (3, 2, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "groups": (
        (1, 4, 3, 2),
        (4, 1, 3, 2),
        {"stride": (1, 2), "padding": (2, 0), "output_padding": (0, 1), "groups": 2},
    ),
    "depthwise-dilated": ((1, 3, 3, 2), (3, 1, 2, 2), {"stride": 2, "groups": 3, "dilation": (1, 3)}),
    "output_padding-below-dilation": ((1, 2, 3, 2), (2, 3, 2, 2), {"padding": 1, "output_padding": 1, "dilation": 2}),
    "3d": ((1, 2, 3, 2, 2), (2, 2, 2, 1, 2), {"stride": (1, 2, 2), "padding": (1, 0, 0), "output_padding": (0, 1, 0)}),
    "output_padding-beyond-reach": (
        (1, 4, 3, 2),
        (4, 1, 2, 3),
        {"stride": (1, 2), "padding": (0, 1), "output_padding": (2, 1), "dilation": (3, 1), "groups": 2},
    ),
}


@pytest.mark.parametrize("name", TORCH_CASES)
def test_transposed_convolution_has_torch_s_numbers(name: str) -> None:
    x_shape, w_shape, options = TORCH_CASES[name]
    with np.load(TORCH) as file:
        assert set(file.files) == set(TORCH_CASES)
        flat = file[name]
    y_shape = conv_transpose(np.zeros(x_shape), np.zeros(w_shape), **options)[0].shape
    shapes = [x_shape, w_shape, y_shape[1:2], y_shape, y_shape, x_shape, w_shape, y_shape[1:2]]
    parts = np.split(flat, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
    x, w, b, dy, *expected = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    y, pullback = conv_transpose(x, w, b, **options)
    for found, wanted in zip((y, *pullback(dy)), expected, strict=True):
        assert_close(found, wanted, rtol=1e-13)


def ones(*shape: int, dtype: Any = float) -> np.ndarray:
    return np.ones(shape, dtype)


X, W = ones(2, 8, 6, 5), ones(4, 8, 3, 3)
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "did-you-mean-groups": (lambda: conv(X, ones(4, 4, 3, 3)), ShapeError, "8 channels, weight expects 4; did you mean"
                            " groups=2"),
    "channels": (lambda: conv(X, ones(4, 3, 3, 3), groups=2), ShapeError, "8 channels, weight expects 6 with groups=2"),
    "groups-do-not-divide": (lambda: conv(X, ones(4, 2, 3, 3), groups=3), ShapeError, "groups=3 does not divide the 4"),
    "groups-zero": (lambda: conv(X, W, groups=0), ValueError, "conv: groups must be at least 1, found 0"),
    "groups-fraction": (lambda: conv(X, W, groups=2.0), TypeError, "conv: groups must be a whole number, found 2.0"),
    "no-batch": (lambda: conv(X[0], W), ShapeError, r"expects \(n, c, y, x\); add a batch axis with x\[None, ...\]"),
    "no-kernel": (lambda: conv(X[..., 0, 0], W[..., 0, 0]), ShapeError, "at least one spatial axis"),
    "bias": (lambda: conv(X, W, ones(3)), ShapeError, r"bias has shape \(3,\), expected \(4,\), one entry for each"),
    "integers": (lambda: conv(ones(1, 1, 3, dtype=int), ones(1, 1, 3, dtype=int)), TypeError, "int64, expected real"),
    "dtypes": (lambda: conv(X, W.astype(np.float32)), TypeError, "input is float64, weight float32; convert the input"),
    "bias-dtype": (lambda: conv(X, W, ones(4, dtype="f")), TypeError, "input is float64, bias float32"),
    "list": (lambda: conv([[[1.0]]], W), TypeError, "expected an array"),
    "kernel-too-large": (lambda: conv(X, ones(4, 8, 7, 3)), PlanError, "'y': a kernel of 7.*the padded input has 6"),
    "stride-zero": (lambda: conv(X, W, stride=0), PlanError, "stride of 'y': found 0, expected a whole number"),
    "stride-entries": (lambda: conv(X, W, stride=(1, 2, 3)), PlanError, "stride: 3 values for 2 convolution modes"),
    "dilation-text": (lambda: conv(X, W, dilation="2"), PlanError, "dilation of 'y': found '2'"),
    "padding-negative": (lambda: conv(X, W, padding=-1), PlanError, "padding of 'y': found -1"),
    "padding-name": (lambda: conv(X, W, padding="full"), PlanError, "'full', expected a number of at least 0.*'valid'"),
    "same-with-stride": (lambda: conv(X, W, padding="same", stride=2), PlanError, "'same' needs stride 1, found 2"),
    "padding-mode": (lambda: conv(X, W, padding_mode="mirror"), PlanError, "'mirror', expected one of zeros, reflect"),
    "reflect-too-far": (lambda: conv(X, W, padding=5, padding_mode="reflect"), PlanError, "x': reflect padding of 5"),
    "gradient": (lambda: conv(X, W)[1](X), ShapeError, r"pullback of conv: .*\(2, 8, 6, 5\), the result was .*2, 4, 4"),
    "transpose-channels": (lambda: conv_transpose(X, W), ShapeError, "8 channels, weight .* expects 4; the weight of"),
    "transpose-groups": (lambda: conv_transpose(X[:, :4], W, groups=3), ShapeError, "does not divide the 4 channels"),
    "transpose-axes": (lambda: conv_transpose(X[0], W), ShapeError, r"expects \(n, c, y, x\)"),
    "transpose-bias": (lambda: conv_transpose(X[:, :4], W, ones(4), groups=2), ShapeError, r"expected \(16,\)"),
    "transpose-same": (lambda: conv_transpose(X[:, :4], W, padding="same"), ValueError, "'same' is not supported"),
    "transpose-padding": (lambda: conv_transpose(X[:, :4], W, padding=4), ShapeError, "gives 0 positions .* padding 4"),
    "output-padding": (
        lambda: conv_transpose(X[:, :4], W, stride=2, output_padding=2), ValueError, "output_padding 2 .* at most 1"
    ),
    "output-padding-entries": (lambda: conv_transpose(X[:, :4], W, output_padding=(0,)), ValueError, "has 1 entries"),
    "transpose-gradient": (lambda: conv_transpose(X[:, :4], W)[1](X), ShapeError, "pullback of conv_transpose: the"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
