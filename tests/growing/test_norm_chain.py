"""Growth of two linear layers with a LayerNorm or a GroupNorm between them, against plain formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.errors import ShapeError
from growarray.growing import LinearGrowingModule
from growarray.growing.norm import GrowingGroupNorm, GrowingLayerNorm
from growarray.nn import Sequential, Tanh

NORMS = {"layer": (lambda: GrowingLayerNorm(4, dtype=np.float64), 1), "group": (lambda: GrowingGroupNorm(2, 4), 2)}
X = np.random.default_rng(1).standard_normal((20, 3))
TARGET = np.random.default_rng(2).standard_normal((20, 2))


def chain(make: Any) -> tuple[Any, Any, Any]:
    rng, norm = np.random.default_rng(0), make()
    first = LinearGrowingModule(3, 4, post_layer_function=Sequential(norm, Tanh()), dtype=np.float64, rng=rng)
    second = LinearGrowingModule(4, 2, previous_module=first, dtype=np.float64, rng=rng)
    first.next_module = second
    for parameter, value in ((norm.weight, [0.5, 1.5, 1.0, 2.0]), (norm.bias, [0.1, 0.0, -0.2, 0.3])):
        parameter.data = np.array(value)
    second.init_computation()
    h, back_first = first.vjp(X)
    y, back_second = second.vjp(h)
    back_first(back_second(y - TARGET))
    second.update_computation()
    return first, second, norm


def normalised(x: np.ndarray, groups: int, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    parts = x.reshape(len(x), groups, -1)
    parts = (parts - parts.mean(axis=2, keepdims=True)) / np.sqrt(parts.var(axis=2, keepdims=True) + 1e-5)
    return parts.reshape(x.shape) * weight + bias


@pytest.mark.parametrize("name", NORMS)
def test_what_is_weighed_leaves_new_neurons_as_they_are_and_what_comes_normalises_them(name: str) -> None:
    make, groups = NORMS[name]
    first, second, norm = chain(make)
    second.compute_optimal_updates(max_new=2)
    alpha, omega, delta = first.extended_output_layer, second.extended_input_layer, second.optimal_delta_layer
    second.scaling_factor = g = 0.3
    w1, b1, w2, b2 = (a.data.copy() for a in (first.weight, first.bias, second.weight, second.bias))
    weight, bias = norm.weight.data.copy(), norm.bias.data.copy()
    hidden = np.tanh(normalised(X @ w1.T + b1, groups, weight, bias))
    new = g * (X @ alpha.weight.data.T + alpha.bias.data)
    w2 = w2 - g**2 * delta.weight.data
    b2 = b2 - g**2 * delta.bias.data
    expected = hidden @ w2.T + b2 + np.tanh(new) @ (g * omega.weight.data).T
    found = second.extended_forward(*first.extended_forward(X))[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)

    second.apply_change()
    pre = np.concatenate([X @ w1.T + b1, new], axis=1)
    joint = normalised(pre, groups, np.r_[weight, 1.0, 1.0], np.r_[bias, 0.0, 0.0])
    expected = np.tanh(joint) @ np.concatenate([w2, g * omega.weight.data], axis=1).T + b2
    np.testing.assert_allclose(second(first(X)), expected, rtol=0, atol=1e-12)
    assert norm.get_growth_info() == (
        {"normalized_shape": [6]} if name == "layer" else {"num_channels": 6, "num_groups": 2}
    )


@pytest.mark.parametrize("name", NORMS)
def test_what_is_weighed_keeps_its_promise(name: str) -> None:
    first, second, _ = chain(NORMS[name][0])
    before = second(first(X))
    second.compute_optimal_updates(max_new=2)

    def loss() -> float:
        return float(((second.extended_forward(*first.extended_forward(X))[0] - TARGET) ** 2).sum() / 2 / len(X))

    np.testing.assert_array_equal(second.extended_forward(*first.extended_forward(X))[0], before)
    start, second.scaling_factor = loss(), 1e-3
    assert (start - loss()) / 1e-6 == pytest.approx(second.predicted_decrease, rel=1e-2)


def test_channels_that_no_groups_divide_are_refused_before_anything_changes() -> None:
    first, second, norm = chain(NORMS["group"][0])
    second.compute_optimal_updates(max_new=1)
    before = second(first(X))
    with pytest.raises(ShapeError, match="5 channels cannot be split into 2 equal groups"):
        second.apply_change(scaling_factor=0.3)
    np.testing.assert_array_equal(second(first(X)), before)
    assert (first.out_features, second.in_features, norm.num_channels) == (4, 4, 4)
