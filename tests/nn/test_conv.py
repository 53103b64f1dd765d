"""Convolution layers: torch's options, names, initial bounds and text; plans; wrong options are refused at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.errors import PlanError, ShapeError
from growarray.nn.module import Module
from growarray.ops import conv, conv_transpose
from growarray.testing import assert_close
from tests.conftest import frozen

RNG = np.random.default_rng(12)
X = {axes: frozen(RNG.standard_normal((2, 4, *(7, 6, 5)[:axes]))) for axes in (1, 2, 3)}


def make(kind: Callable[..., Module], *args: Any, **options: Any) -> Any:
    return kind(*args, rng=np.random.default_rng(0), dtype=np.float64, **options)


@pytest.mark.parametrize(
    ("layer", "axes", "operation", "options"),
    [
        pytest.param(
            make(nn.Conv1d, 4, 6, 3, 2, 1, 2, 2),
            1,
            conv,
            {"stride": 2, "padding": 1, "dilation": 2, "groups": 2},
            id="1d",
        ),
        pytest.param(
            make(nn.Conv2d, 4, 2, (3, 2), (1, 2), [1, 0], 1, 1, False, "reflect"),
            2,
            conv,
            {"stride": (1, 2), "padding": (1, 0), "padding_mode": "reflect"},
            id="2d",
        ),
        pytest.param(
            make(nn.Conv3d, 4, 4, 2, padding="same", groups=4), 3, conv, {"padding": "same", "groups": 4}, id="3d"
        ),
        pytest.param(make(nn.ConvNd, 2, 4, 3, 3, padding=((2, 0), 1)), 2, conv, {"padding": ((2, 0), 1)}, id="nd"),
        pytest.param(
            make(nn.ConvTranspose1d, 4, 6, 3, 3, 1, 2, 2, True, 2),
            1,
            conv_transpose,
            {"stride": 3, "padding": 1, "output_padding": 2, "groups": 2, "dilation": 2},
            id="transpose-1d",
        ),
        pytest.param(
            make(nn.ConvTranspose2d, 4, 2, 3, 2, padding=1, output_padding=(1, 0), bias=False),
            2,
            conv_transpose,
            {"stride": 2, "padding": 1, "output_padding": (1, 0)},
            id="transpose-2d",
        ),
        pytest.param(make(nn.ConvTransposeNd, 3, 4, 1, 2, 2), 3, conv_transpose, {"stride": 2}, id="transpose-nd"),
    ],
)
def test_options_reach_the_operation(layer: Any, axes: int, operation: Any, options: dict[str, Any]) -> None:
    bias = None if layer.bias is None else layer.bias.data
    wanted, wanted_pullback = operation(X[axes], layer.weight.data, bias, **options)
    y, pullback = layer.vjp(X[axes])
    assert_close(y, wanted, rtol=0.0)
    expected = wanted_pullback(y)
    assert_close(pullback(y), expected[0], rtol=0.0)
    for parameter, gradient in zip(layer.parameters(), expected[1:], strict=False):
        assert_close(parameter.grad, gradient, rtol=0.0)
    again = type(layer).of(layer.weight.data, bias, **options)
    assert_close(again(X[axes]), y, rtol=0.0)
    assert repr(again) == repr(layer)


def test_attributes_hold_one_entry_for_each_axis() -> None:
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), groups=2)
    assert (layer.in_channels, layer.out_channels, layer.groups, layer.axes) == (4, 6, 2, 2)
    assert (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), (2, 2), (1, 0), (1, 1))
    assert layer.padding_mode == "zeros"
    assert layer.weight.shape == (6, 2, 3, 3)
    assert nn.Conv1d(1, 1, 3, padding="valid").padding == "valid"
    back = nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2)
    assert (back.in_channels, back.out_channels, back.output_padding) == (4, 6, (1, 1))
    assert back.weight.shape == (4, 3, 3, 3)


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv2d(8, 64, 3, groups=2, rng=np.random.default_rng(0)), 4 * 9),
        (nn.ConvTranspose2d(64, 8, 3, groups=2, rng=np.random.default_rng(0)), 4 * 9),
        (nn.Conv1d(16, 96, 1, rng=np.random.default_rng(0)), 16),
    ],
    ids=["conv", "conv_transpose", "pointwise"],
)
def test_initial_values_fill_torch_s_bounds(layer: Any, fan_in: int) -> None:
    bound = fan_in**-0.5
    for parameter in layer.parameters():
        assert parameter.data.dtype == np.float32
        assert np.abs(parameter.data).max() <= bound
    assert np.abs(layer.weight.data).max() > 0.98 * bound
    assert np.std(layer.weight.data) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_equal_generators_draw_equal_layers() -> None:
    one, two = make(nn.Conv2d, 2, 3, 3), make(nn.Conv2d, 2, 3, 3)
    assert np.array_equal(one.weight.data, two.weight.data)
    assert not np.array_equal(one.weight.data, nn.Conv2d(2, 3, 3, dtype=np.float64).weight.data)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv1d(4, 6, 3, padding="same"), "Conv1d(4, 6, kernel_size=(3,), stride=(1,), padding=same)"),
        (
            nn.Conv2d(4, 6, 3, 2, "valid", dilation=2, groups=2, bias=False, padding_mode="reflect"),
            "Conv2d(4, 6, kernel_size=(3, 3), stride=(2, 2), padding=valid, dilation=(2, 2), groups=2, bias=False, "
            "padding_mode=reflect)",
        ),
        (nn.Conv3d(1, 2, (1, 2, 2)), "Conv3d(1, 2, kernel_size=(1, 2, 2), stride=(1, 1, 1))"),
        (
            nn.ConvTranspose2d(3, 4, 3, 2, 1, 1, dilation=(1, 2)),
            "ConvTranspose2d(3, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 2), "
            "output_padding=(1, 1))",
        ),
        (nn.ConvNd(4, 1, 2, 2), "ConvNd(1, 2, kernel_size=(2, 2, 2, 2), stride=(1, 1, 1, 1))"),
    ],
    ids=["same", "options", "3d", "transpose", "nd"],
)
def test_repr_is_torch_s(layer: Module, text: str) -> None:
    assert repr(layer) == text


def test_plan_is_the_one_that_runs() -> None:
    layer = nn.Conv2d(8, 16, 3, padding=1)
    plan, training = layer.plan((4, 8, 10, 10)), layer.plan((4, 8, 10, 10), training=True)
    assert plan.output_shape == (4, 16, 10, 10)
    assert plan.dtype == np.float32
    assert plan.flops == 2 * 4 * 16 * 8 * 9 * 100
    assert training.flops == 3 * plan.flops
    x = np.ones((4, 8, 10, 10), np.float32)
    y = plan(x, layer.weight.data) + layer.bias.data[:, None, None]
    assert_close(layer(x), y, rtol=0.0)
    back = nn.ConvTranspose2d(8, 16, 2, 2).plan((4, 8, 5, 5))
    assert (back.shapes[0], back.output_shape) == ((4, 16, 10, 10), (4, 8, 5, 5))
    with pytest.raises(ShapeError, match="input has 4 channels, weight expects 8"):
        layer.plan((4, 4, 10, 10))


def test_a_transposed_layer_undoes_the_shape_of_its_convolution() -> None:
    down, up = make(nn.Conv2d, 4, 6, 3, 2, 1), make(nn.ConvTranspose2d, 6, 4, 3, 2, 1, (0, 1))
    assert up(down(X[2])).shape == X[2].shape
    up.load_state_dict({"weight": down.weight.data}, strict=False)
    y, pullback = down.vjp(X[2])
    assert_close(up(y) - up.bias.data[:, None, None], pullback(y), rtol=1e-13)


def test_convolutions_train_in_a_network() -> None:
    layers = (nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(*layers, nn.Linear(3, 2))
    y, pullback = net.vjp(X[2].astype(np.float32))
    assert y.shape == (2, 2)
    assert pullback(y).shape == X[2].shape
    assert all(p.grad is not None for p in net.parameters())


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=4), ShapeError, "out_channels=6 does not divide into groups=4"),
    "groups-in": (lambda: nn.Conv2d(3, 6, 3, groups=2), ShapeError, "Conv2d: in_channels=3 does not divide"),
    "groups-zero": (lambda: nn.Conv2d(3, 6, 3, groups=0), ValueError, "Conv2d: groups must be at least 1, found 0"),
    "negative": (lambda: nn.Conv2d(-1, 6, 3), ValueError, "Conv2d: in_channels must be at least 0, found -1"),
    "fraction": (lambda: nn.Conv2d(3, 6.0, 3), TypeError, "Conv2d: out_channels must be a whole number, found 6.0"),
    "kernel": (lambda: nn.Conv2d(3, 6, 0), ValueError, "Conv2d: kernel_size must be at least 1, found 0"),
    "entries": (lambda: nn.Conv2d(3, 6, (3,)), ValueError, "kernel_size has 1 entries for 2 spatial axes"),
    "axes": (lambda: nn.ConvNd(0, 3, 6, 3), ValueError, "ConvNd: axes must be at least 1, found 0"),
    "stride": (lambda: nn.Conv2d(3, 6, 3, 0), PlanError, "stride of 'y': found 0"),
    "same": (lambda: nn.Conv2d(3, 6, 3, 2, "same"), PlanError, "'same' needs stride 1, found 2"),
    "mode": (lambda: nn.Conv2d(3, 6, 3, padding_mode="wrap"), PlanError, "found 'wrap', expected one of zeros"),
    "back-mode": (
        lambda: nn.ConvTranspose2d(3, 6, 3, padding_mode="reflect"),
        ValueError,
        "'reflect' is not supported",
    ),
    "back-padding": (
        lambda: nn.ConvTranspose1d(3, 6, 3, padding="same"),
        TypeError,
        "padding must be one whole number",
    ),
    "back-output": (
        lambda: nn.ConvTranspose2d(3, 6, 3, stride=2, output_padding=2),
        ValueError,
        "ConvTranspose2d: output_padding 2 with stride 2 and dilation 1, expected at most 1",
    ),
    "of": (
        lambda: nn.Conv2d.of(np.ones((3, 2, 3))),
        ShapeError,
        r"Conv2d.of: weight has shape \(3, 2, 3\), expected 2",
    ),
    "of-nd": (lambda: nn.ConvNd.of(np.ones((3, 2))), ShapeError, "ConvNd.of: .* expected 1 spatial axes"),
    "input": (lambda: make(nn.Conv2d, 4, 6, 3)(X[1]), ShapeError, r"expects \(n, c, y, x\); add a batch axis"),
    "channels": (lambda: make(nn.Conv2d, 2, 6, 3)(X[2]), ShapeError, "did you mean groups=2"),
    "dtype": (lambda: nn.Conv2d(4, 6, 3)(X[2]), TypeError, "input is float64, weight float32"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
