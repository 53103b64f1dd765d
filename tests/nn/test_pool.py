"""Pooling layers: options reach the operation, wrong ones are refused at once, added channels pool the same way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.errors import ShapeError
from growarray.nn.module import Module
from growarray.ops import adaptive_avg_pool, avg_pool, max_pool
from growarray.testing import assert_close
from tests.conftest import frozen

RNG = np.random.default_rng(6)
X = {axes: frozen(RNG.standard_normal((2, 3, *(7, 6, 5)[:axes]))) for axes in (1, 2, 3)}
LAYERS: dict[str, Callable[..., Module]] = {name: getattr(nn, name) for name in nn.__all__ if "Pool" in name}
BUILT = {name: (layer(2), int(name[-2])) for name, layer in LAYERS.items()}

each_layer = pytest.mark.parametrize(("layer", "axes"), BUILT.values(), ids=BUILT)


@pytest.mark.parametrize(
    ("layer", "axes", "expected"),
    [
        pytest.param(nn.MaxPool1d(3), 1, lambda x: max_pool(x, 3, 3), id="max-stride-is-kernel"),
        pytest.param(nn.MaxPool2d(3, 2, 1, 2), 2, lambda x: max_pool(x, 3, 2, 1, 2), id="max-positional"),
        pytest.param(
            nn.MaxPool3d((1, 2, 2), ceil_mode=True), 3, lambda x: max_pool(x, (1, 2, 2), ceil_mode=True), id="max-ceil"
        ),
        pytest.param(nn.AvgPool1d(3, 2, 1, True, False), 1, lambda x: avg_pool(x, 3, 2, 1, True, False), id="avg-1d"),
        pytest.param(
            nn.AvgPool2d([2, 3], 1, [1, 0], divisor_override=5),
            2,
            lambda x: avg_pool(x, (2, 3), 1, (1, 0), divisor_override=5),
            id="avg-divisor",
        ),
        pytest.param(nn.AvgPool3d(2, 1, 1, False, False), 3, lambda x: avg_pool(x, 2, 1, 1, False, False), id="avg-3d"),
        pytest.param(nn.AdaptiveAvgPool2d((None, 2)), 2, lambda x: adaptive_avg_pool(x, (None, 2)), id="adaptive"),
    ],
)
def test_options_reach_the_operation(layer: Module, axes: int, expected: Callable[[Any], Any]) -> None:
    (y, pullback), (wanted, wanted_pullback) = layer.vjp(X[axes]), expected(X[axes])
    assert_close(y, wanted, rtol=0.0)
    assert_close(pullback(y), wanted_pullback(y), rtol=0.0)


@each_layer
def test_added_channels_are_pooled_as_the_others(layer: Module, axes: int) -> None:
    x = X[axes]
    (y, y_ext), pullback = layer.extended_vjp(x[:, :2], x[:, 2:])
    assert_close(np.concat([y, y_ext], axis=1), layer(x), rtol=0.0)
    dx, dx_ext = pullback(y, y_ext)
    assert_close(np.concat([dx, dx_ext], axis=1), layer.vjp(x)[1](layer(x)), rtol=0.0)
    layer.extend(3)
    assert layer.parameters_per_feature == layer.number_of_parameters() == 0
    assert_close(layer(x[:, :2]), y, rtol=0.0)


@each_layer
def test_slope_at_zero_is_that_of_a_constant(layer: Module, axes: int) -> None:
    assert layer.slope_at_zero == 1.0
    assert layer.starts_at_zero
    assert_close(layer(np.full(X[axes].shape, 1e-5)), np.full(layer(X[axes]).shape, 1e-5), rtol=1e-20)


def test_slope_follows_the_divisor() -> None:
    layer = nn.AvgPool2d((2, 3), divisor_override=4)
    assert layer.slope_at_zero == 1.5
    assert_close(layer(np.full((1, 1, 2, 3), 2.0)), np.full((1, 1, 1, 1), 3.0))


@each_layer
def test_another_number_of_axes_is_refused(layer: Module, axes: int) -> None:
    names = ("depth", "height", "width")[3 - axes :] if axes > 1 else ("length",)
    message = rf"{type(layer).__name__}: input has shape \(2, 3.*expected \(n, c, {', '.join(names)}\); add a batch"
    for other in {1, 2, 3} - {axes}:
        with pytest.raises(ShapeError, match=message):
            layer(X[other])
    with pytest.raises(TypeError, match="expected an array"):
        layer([[1.0]])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        pytest.param(lambda: nn.MaxPool2d(2, 0), ValueError, "MaxPool2d: stride must be at least 1", id="stride"),
        pytest.param(lambda: nn.MaxPool1d(2, padding=2), ValueError, "MaxPool1d: padding 2 is more", id="padding"),
        pytest.param(lambda: nn.MaxPool2d((2, 2, 2)), ValueError, "has 3 entries for 2 spatial axes", id="entries"),
        pytest.param(lambda: nn.MaxPool2d(2, 2, 0, 1, True), TypeError, "positional", id="return-indices-positional"),
        pytest.param(lambda: nn.MaxPool2d(2, return_indices=True), TypeError, "return_indices", id="return-indices"),
        pytest.param(lambda: nn.AvgPool3d(2.5), TypeError, "AvgPool3d: kernel_size must be one whole", id="float"),
        pytest.param(lambda: nn.AvgPool2d(2, divisor_override=0), ValueError, "AvgPool2d: divisor_override", id="zero"),
        pytest.param(lambda: nn.AvgPool1d(2, divisor_override=2), TypeError, "divisor_override", id="as-in-torch"),
        pytest.param(lambda: nn.AdaptiveAvgPool2d((1, 0)), ValueError, "AdaptiveAvgPool2d: output_size", id="size"),
        pytest.param(lambda: nn.AdaptiveAvgPool1d((1, 2)), ValueError, "2 entries for 1 spatial axes", id="sizes"),
    ],
)
def test_wrong_options_are_refused_when_the_layer_is_made(
    make: Callable[[], Module], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.MaxPool2d(3, 2, 1), "MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=False)"),
        (nn.AvgPool2d((2, 3)), "AvgPool2d(kernel_size=(2, 3), stride=(2, 3), padding=0)"),
        (
            nn.AvgPool3d(2, 1, 1, True, False, 3),
            "AvgPool3d(kernel_size=2, stride=1, padding=1"
            ", ceil_mode=True, count_include_pad=False, divisor_override=3)",
        ),
        (nn.AdaptiveAvgPool3d((None, 2, 1)), "AdaptiveAvgPool3d(output_size=(None, 2, 1))"),
    ],
    ids=["max", "avg", "avg-options", "adaptive"],
)
def test_repr_tells_the_options(layer: Module, text: str) -> None:
    assert repr(layer) == text
    assert layer.state_dict() == {}


def test_pooling_ends_a_network() -> None:
    net = nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    y, pullback = net.vjp(X[2].astype(np.float32))
    assert y.shape == (2, 4)
    assert pullback(y).shape == X[2].shape
