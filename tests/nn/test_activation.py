"""Activation layers: slopes at zero, names, options."""

from __future__ import annotations

import numpy as np
import pytest

from growarray import nn
from growarray.nn.activation import activation

SLOPES = {
    "elu": 1.0,
    "gelu": 0.5,
    "hardtanh": 1.0,
    "identity": 1.0,
    "leaky_relu": 1.0,
    "relu": 1.0,
    "relu6": 1.0,
    "selu": 1.0507009873554805,
    "sigmoid": 0.25,
    "silu": 0.5,
    "softplus": 0.5,
    "tanh": 1.0,
}


@pytest.mark.parametrize("name", SLOPES)
def test_slope_at_zero_is_the_derivative_from_above(name: str) -> None:
    layer = activation(name)
    assert layer.slope_at_zero == SLOPES[name]
    _, pullback = layer.vjp(np.array([1e-9]))
    assert pullback(np.ones(1))[0] == pytest.approx(SLOPES[name], abs=1e-8)


def test_hardtanh_is_flat_where_zero_is_outside() -> None:
    assert nn.Hardtanh(0.5, 1.0).slope_at_zero == 0.0
    assert nn.Hardtanh(-1.0, 0.0).slope_at_zero == 0.0


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_slope_of_what_is_not_elementwise_is_refused(name: str) -> None:
    with pytest.raises(NotImplementedError, match="Softmax is not elementwise"):
        _ = activation(name).slope_at_zero


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown activation 'swish'; known: elu, gelu, hardtanh, identity"):
        activation("swish")


def test_options_reach_the_operation() -> None:
    x = np.array([-2.0, 0.0, 2.0])
    assert nn.LeakyReLU(0.5)(x).tolist() == [-1.0, 0.0, 2.0]
    assert nn.Hardtanh(-1.0, 1.5)(x).tolist() == [-1.0, 0.0, 1.5]
    assert nn.ReLU(at_zero=1.0).vjp(x)[1](np.ones(3)).tolist() == [0.0, 1.0, 1.0]
    assert nn.ELU(3.0)(x)[0] == pytest.approx(3.0 * np.expm1(-2.0))
    assert not np.array_equal(nn.GELU("tanh")(x), nn.GELU()(x))


def test_wrong_options_are_refused_when_the_layer_is_made() -> None:
    with pytest.raises(ValueError, match="approximate must be"):
        nn.GELU("erf")
    with pytest.raises(ValueError, match="low must be below high"):
        nn.Hardtanh(1.0, 1.0)
