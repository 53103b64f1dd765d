"""What the contract of all layers does not show: values and derivatives at the ends of the range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import nn


def test_a_power_of_zero_is_flat_everywhere() -> None:
    x = np.array([-1.0, 0.0, 2.0])
    y, pullback = nn.Pow(0.0).vjp(x)
    assert y.tolist() == [1.0, 1.0, 1.0]
    assert pullback(np.ones(3)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("layer", "value"), [(nn.Sqrt(), 0.0), (nn.Pow(0.5), 0.0)], ids=repr)
def test_a_value_without_a_finite_derivative_warns_of_nothing(layer: Any, value: float) -> None:
    x = np.zeros(2)
    y, pullback = layer.vjp(x)
    assert y.tolist() == [value, value]
    with np.errstate(divide="ignore"):
        assert pullback(np.ones(2)).tolist() == [np.inf, np.inf]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Abs(), [0.0, 0.0, -1.0, 1.0]),
        (nn.Reduce("L1", (0,)), [0.0, 0.0, -1.0, 1.0]),
        (nn.Reduce("L2", (0,)), [np.nan] * 4),
        (nn.Maximum(-1.0), [1.0, 1.0, 0.5, 1.0]),
        (nn.Minimum(np.array([0.0, np.nan, 0.0, 0.0])), [1.0, 1.0, 1.0, 0.0]),
    ],
    ids=repr,
)
def test_the_gradient_at_a_nan_is_that_of_torch(layer: Any, expected: list[float]) -> None:
    y, pullback = layer.vjp(np.array([np.nan, 0.0, -1.0, 2.0]))
    np.testing.assert_array_equal(pullback(np.ones_like(y)), expected)
