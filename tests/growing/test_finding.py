"""TINY's finding: neurons that are planned for what the best update of the existing weights leaves undone gain more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from growarray.growing import TINY, Conv2dGrowingModule, LinearGrowingModule, RestrictedConv2dGrowingModule
from growarray.networks import line_search
from growarray.nn import Tanh


def linear(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    options: dict[str, Any] = {"dtype": np.float64, "rng": rng}
    first = LinearGrowingModule(8, 3, post_layer_function=Tanh(), **options)
    return first, LinearGrowingModule(3, 4, previous_module=first, **options), rng.standard_normal((200, 8))


def convolution(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    options: dict[str, Any] = {"padding": 1, "dtype": np.float64, "rng": rng}
    first = Conv2dGrowingModule(2, 2, 3, post_layer_function=Tanh(), **options)
    second = RestrictedConv2dGrowingModule(2, 2, 3, previous_module=first, **options)
    return first, second, rng.standard_normal((12, 2, 6, 6))


def gain(make: Any, seed: int, projects: bool) -> float:
    """What two new neurons take off the training loss once the best update has been made, at their best scaling."""
    rng = np.random.default_rng(seed)
    first, second, x = make(rng)
    teacher = make(rng)
    target = 2.0 * teacher[1](teacher[0](x))

    def loss(factor: float) -> float:
        second.input_extension_scaling = first.output_extension_scaling = factor
        y = second.extended_forward(*first.extended_forward(x))[0]
        return float(((y - target) ** 2).sum() / 2 / len(x))

    second.init_computation()
    h, back_first = first.vjp(x)
    y, back = second.vjp(h)
    back_first(back(y - target))
    second.update_computation()
    second.compute_optimal_updates(replace(TINY, use_projection=projects, max_new=2))
    second.optimal_delta_scaling = 1.0  # least squares: this is the best that the existing weights of the layer can do
    return loss(0.0) - line_search(loss).loss


@pytest.mark.parametrize("make", [linear, convolution])
def test_neurons_for_what_is_left_undone_gain_more(make: Any) -> None:
    gains = np.array([[gain(make, seed, projects) for projects in (True, False)] for seed in range(20)])
    assert gains.min() >= 0.0
    assert gains[:, 0].mean() > 2 * gains[:, 1].mean()
