"""Growing dropout: what falls, what never does, and a layer behind which it stands grows along."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.errors import ShapeError
from growarray.growing import (
    GrowingDropout,
    GrowingDropout1d,
    GrowingDropout2d,
    LinearGrowingModule,
)
from growarray.networks import GrowingResNet
from growarray.nn import Sequential, Tanh
from growarray.testing import check_vjp

SHAPES: dict[Any, tuple[int, ...]] = {
    GrowingDropout: (6, 50),
    GrowingDropout1d: (6, 50, 3),
    GrowingDropout2d: (6, 50, 3, 2),
}


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize("kind", SHAPES)
def test_present_features_fall_and_new_ones_do_not(kind: Any) -> None:
    layer, x = kind(0.4, rng=rng()), np.ones(SHAPES[kind])
    new = np.full((6, 2, *x.shape[2:]), 3.0)
    y, y_ext = layer.extended_forward(x, new)
    np.testing.assert_array_equal(y_ext, new)
    assert set(np.unique(y)) == {0.0, 1 / 0.6}
    whole = y.reshape(6, 50, -1)
    np.testing.assert_array_equal(whole, np.repeat(whole[:, :, :1], whole.shape[2], axis=2))  # channels fall as one
    assert np.mean(y > 0) == pytest.approx(0.6, abs=0.1)
    assert layer.extended_forward(None, new)[0] is None
    assert layer.extended_forward(x)[1] is None


@pytest.mark.parametrize("kind", SHAPES)
def test_pullback_and_evaluation(kind: Any) -> None:
    x = np.linspace(-1.0, 1.0, int(np.prod(SHAPES[kind]))).reshape(SHAPES[kind])
    check_vjp(lambda value: kind(0.4, rng=rng()).vjp(value), x)
    layer = kind(0.4, rng=rng())
    (y, y_ext), back = layer.extended_vjp(x, x)
    dx, dx_ext = back(np.ones_like(x), np.ones_like(x))
    np.testing.assert_array_equal(y, x * dx)
    np.testing.assert_array_equal(dx_ext, np.ones_like(x))
    assert y_ext is x
    np.testing.assert_array_equal(layer.eval()(x), x)
    assert (layer.slope_at_zero, layer.dropout_rate, layer.name) == (1.0, 0.4, "growing_dropout")


def test_the_planned_neurons_of_a_layer_are_kept_whole_and_then_drop_too() -> None:
    x = np.random.default_rng(0).standard_normal((40, 4))
    function = Sequential(Tanh(), GrowingDropout(0.9, rng=rng()))
    first = LinearGrowingModule(4, 3, post_layer_function=function, rng=rng(), dtype=np.float64)
    second = LinearGrowingModule(3, 2, previous_module=first, rng=rng(), dtype=np.float64)
    alpha = np.random.default_rng(1).standard_normal((2, 5))
    first.set_output_extension(alpha)
    first.output_extension_scaling = 0.5
    h, h_ext = first.extended_forward(x)
    np.testing.assert_allclose(h_ext, np.tanh(0.5 * (x @ alpha[:, :4].T + alpha[:, 4])), rtol=0, atol=1e-15)
    assert np.mean(h == 0) > 0.7
    second.plan_input_extension(np.ones((2, 2)), np.ones(2))
    second.apply_change(scaling_factor=0.5)
    assert (first.out_features, second.in_features) == (5, 5)
    assert np.mean(first(x)[:, 3:] == 0) > 0.7
    first.eval()
    np.testing.assert_allclose(first(x)[:, 3:], h_ext, rtol=0, atol=1e-15)


def test_rates_and_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="p must be between 0 and 1, found"):
        GrowingDropout(1.5)
    with pytest.raises(ShapeError, match=r"input has shape \(4,\), expected at least 2 axes"):
        GrowingDropout2d(0.5)(np.ones(4))


def test_a_residual_network_drops_hidden_channels_in_training_alone() -> None:
    plain, dropping = (
        GrowingResNet((1, 4, 4), 3, (2,), 4, dropout_rate=rate, dtype=np.float64, rng=np.random.default_rng(2))
        for rate in (0.0, 0.5)
    )
    x = np.random.default_rng(0).standard_normal((8, 1, 4, 4))
    np.testing.assert_array_equal(dropping.eval()(x), plain(x))
    assert not np.array_equal(dropping.train()(x), plain(x))
    hidden = dropping.blocks[0].first_layer(np.ones((64, 2, 4, 4))).reshape(64, 4, -1)
    assert np.mean(np.all(hidden == 0.0, axis=2)) > 0.2
