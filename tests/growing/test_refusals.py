"""What a growing module refuses before anything changes: scalings, plans and functions that make no sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.growing import GRADMAX, GrowthRule, LinearGrowingModule, LinearMergeGrowingModule
from growarray.networks import GrowingMLP, GrowingResidualMLP, Growth, GrowthSettings
from growarray.nn import ReLU
from growarray.ops import mse
from growarray.optim import SGD

RNG = np.random.default_rng(0)
X, TARGET = RNG.standard_normal((60, 4)), RNG.standard_normal((60, 2))


def planned(rule: GrowthRule, **options: Any) -> GrowingMLP:
    network = GrowingMLP(4, 2, 3, activation=ReLU(at_zero=1.0), dtype=np.float64, rng=np.random.default_rng(1))
    network.init_computation()
    y, pullback = network.vjp(X)
    pullback(mse(y, TARGET)[1](60.0))
    network.update_computation()
    network.compute_optimal_updates(rule, **options)
    network.reset_computation()
    return network


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.array([np.nan])], ids=str)
def test_a_scaling_that_is_not_finite_changes_nothing(value: Any) -> None:
    place = planned(GrowthRule(), max_new=1).layers[1]
    before = place.weight.data.copy()
    with pytest.raises(ValueError, match="expected a finite number"):
        place.apply_change(scaling_factor=value)
    np.testing.assert_array_equal(place.weight.data, before)
    merge = LinearMergeGrowingModule(in_features=2)
    with pytest.raises(ValueError, match="expected a finite number"):
        merge.update_scaling_factor(value)


@pytest.mark.parametrize("rule", [GrowthRule(), GRADMAX], ids=["tiny", "gradmax"])
def test_a_planned_change_is_applied_once(rule: GrowthRule) -> None:
    network = planned(rule, max_new=1)
    place = network.layers[1]
    place.apply_change(scaling_factor=0.1)
    weight = place.weight.data.copy()
    with pytest.raises(ValueError, match=r"has been applied; call delete_update\(\) and plan anew"):
        place.apply_change(scaling_factor=0.1)
    np.testing.assert_array_equal(place.weight.data, weight)
    place.delete_update()
    assert network.widths == [4]


@pytest.mark.parametrize(
    "build",
    [
        lambda: LinearGrowingModule(2, 2, post_layer_function="relu"),  # type: ignore[arg-type]
        lambda: LinearMergeGrowingModule("relu", in_features=2),  # type: ignore[arg-type]
        lambda: GrowingMLP(2, 2, 2, activation="relu"),  # type: ignore[arg-type]
    ],
    ids=["layer", "merge", "network"],
)
def test_a_name_in_place_of_a_function_is_refused_with_the_line_that_fixes_it(build: Any) -> None:
    with pytest.raises(TypeError, match=r"is a str, expected a Module; use growarray.nn.activation\(.relu.\)"):
        build()


def test_a_rule_that_is_none_is_refused() -> None:
    network = GrowingMLP(4, 2, 3, dtype=np.float64)
    with pytest.raises(TypeError, match="rule: expected a GrowthRule such as TINY, found 1e-05"):
        network.layers[1].compute_optimal_updates(1e-5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="updates are always float64"):
        network.layers[1].compute_optimal_updates(dtype=np.float32)


@pytest.mark.parametrize(
    "options",
    [{"first": -1}, {"growths": -1}, {"max_parameters": -5}, {"relative_error": -0.1}, {"clip": 0.0}, {"epochs": 2.5}],
    ids=str,
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"GrowthSettings: {next(iter(options))} must be"):
        GrowthSettings(**options)


def test_validation_cannot_choose_between_neurons_that_start_at_zero() -> None:
    with pytest.raises(ValueError, match="use choose='first_order'"):
        GrowthSettings(rule=GRADMAX, choose="validation")


def test_gradmax_brings_new_columns_behind_a_merge_to_the_norm_of_the_old_ones() -> None:
    network = GrowingResidualMLP(
        4, 2, 3, 3, num_blocks=2, activation=ReLU(at_zero=1.0), dtype=np.float64, rng=np.random.default_rng(2)
    )
    settings = GrowthSettings(rule=GRADMAX, neurons=1, epochs=1)
    loop = Growth(network, SGD(network, lr=0.1), (X, TARGET), task="regression", settings=settings)
    before = [np.linalg.norm(p.weight.data, axis=0) for p in network.blocks[0].merge.next_modules]
    loop.planner.collect(loop.data)
    network.compute_optimal_updates(GRADMAX, max_new=1)
    network.reset_computation()
    loop.planner.choose(GRADMAX, loop.validation)
    readers = network.blocks[0].merge.next_modules
    new = np.concatenate([p.extended_input_layer.weight.data for p in readers], axis=0)
    mean = np.sqrt(sum(norm**2 for norm in before)).mean()
    assert np.linalg.norm(new) == pytest.approx(mean)


def test_a_growth_that_fails_leaves_the_network_as_it_was() -> None:
    network = GrowingMLP(4, 2, 3, dtype=np.float64, rng=np.random.default_rng(3))
    broken = X.copy()
    broken[3, 1] = np.nan
    loop = Growth(network, SGD(network, lr=0.1), (X, TARGET), task="regression")
    loop.data = (broken, TARGET)  # behind the back of the check that the loop makes of its data
    before = {name: p.data.copy() for name, p in network.named_parameters()}
    with pytest.raises(ValueError, match="NaN or infinite"):
        loop.grow()
    assert network.training
    assert not any(layer.store_input for layer in network.layers)
    assert all(p.grad is None for p in network.parameters())
    for name, p in network.named_parameters():
        np.testing.assert_array_equal(p.data, before[name])


def test_data_that_are_not_arrays_are_refused() -> None:
    network = GrowingMLP(4, 2, 3)
    with pytest.raises(TypeError, match="must be a pair of arrays"):
        Growth(network, SGD(network, lr=0.1), (X.tolist(), TARGET))
    with pytest.raises(ValueError, match="data has 60 samples and 59 targets"):
        Growth(network, SGD(network, lr=0.1), (X, TARGET[1:]))
