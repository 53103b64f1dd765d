"""GrowingResidualMLP: branches that meet in merges; each place grows by itself."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from growarray.growing import FISHER, TINY
from growarray.networks import GrowingResidualBlock, GrowingResidualMLP
from growarray.nn import GELU
from tests.conftest import Library, frozen
from tests.networks.checks import check_all_gradients, grown_weights

RNG = np.random.default_rng(21)
X, T = frozen(RNG.standard_normal((60, 5))), frozen(RNG.standard_normal((60, 3)))
PLACES = ["blocks.0.second", "blocks.0.merge", "blocks.1.second", "blocks.1.merge"]


def residual(**options: Any) -> GrowingResidualMLP:
    options = {"activation": GELU(), "dtype": np.float64, "rng": np.random.default_rng(0), **options}
    return GrowingResidualMLP(5, 3, (4, 3), (2, 3), **options)


def planned(rule: Any = TINY) -> GrowingResidualMLP:
    network = residual()
    network.init_computation()
    for part in (slice(0, 35), slice(35, 60)):
        y, pullback = network.vjp(X[part])
        pullback(y - T[part])
        network.update_computation()
    network.compute_optimal_updates(rule, force_pseudo_inverse=True)
    network.reset_computation()
    return network


@pytest.mark.parametrize("storing", [False, True], ids=["plain", "collecting"])
def test_the_way_back_agrees_with_differences_for_every_parameter(storing: bool) -> None:
    network = residual()
    if storing:
        network.init_computation()
    check_all_gradients(network, X[:3])


def test_places_widths_and_names() -> None:
    network = residual()
    assert [place.name for place in network.growing_layers] == PLACES
    assert network.widths == [2, 4, 3, 3]
    names = list(network.state_dict())
    assert names[:5] == [
        f"blocks.0.{n}"
        for n in (
            "first.layer.weight",
            "first.layer.bias",
            "second.layer.weight",
            "second.layer.bias",
            "shortcut.layer.weight",
        )
    ]
    assert len(names) == len(set(names)) == 12
    assert network(RNG.standard_normal((2, 5))).shape == (2, 3)
    image = RNG.standard_normal((2, 5, 1))
    y, pullback = network.vjp(image)
    assert pullback(y).shape == (2, 5, 1)
    with pytest.raises(ValueError, match="2 widths and 3 hidden widths for 2 blocks"):
        GrowingResidualMLP(5, 3, (4, 3), (2, 3, 4))


@pytest.mark.parametrize("place", range(4), ids=PLACES)
@pytest.mark.parametrize("rule", [TINY, FISHER], ids=["tiny", "fisher"])
def test_extended_forward_is_forward_after_the_change_of_each_place(place: int, rule: Any) -> None:
    network = planned(rule)
    before = network(X)
    network.set_scaling_factor(0.0)
    np.testing.assert_allclose(network.extended_forward(X), before, rtol=0, atol=0)
    network.growing_layers[place].scaling_factor = 0.2  # the others stand still
    searched = network.extended_forward(X)
    network.select_update(place)
    network.set_scaling_factor(0.2)
    extended = network.extended_forward(X)
    np.testing.assert_allclose(extended, searched, rtol=1e-12, atol=1e-12)
    added = network.growing_layers[place].new_neurons
    assert added > 0
    network.apply_change()
    network.delete_update()
    np.testing.assert_allclose(network(X), extended, rtol=1e-12, atol=1e-12)
    assert np.abs(extended - before).max() > 1e-3
    widths = [2, 4, 3, 3]
    widths[place] += added
    assert network.widths == widths


@pytest.mark.parametrize("place", range(4), ids=PLACES)
def test_growth_lowers_the_loss_at_each_place(place: int) -> None:
    network = planned()
    network.select_update(place)
    loss = float(np.mean((network(X) - T) ** 2))
    network.apply_change(0.05)
    assert float(np.mean((network(X) - T) ** 2)) < loss


@pytest.mark.parametrize("place", range(4), ids=PLACES)
def test_selecting_one_place_keeps_it_whole_and_forgets_the_others(place: int) -> None:
    network = planned()
    promised = network.growing_layers[place].first_order_improvement
    network.select_update(place)
    assert network.first_order_improvement == pytest.approx(promised)
    for index, other in enumerate(network.growing_layers):
        assert (other.new_neurons > 0) is (index == place)


def test_nothing_is_kept_after_a_collection() -> None:
    network = planned()
    for module in network.modules():
        for name in ("_input", "_pre_activity", "pre_activity_grad", "_moment", "_activity"):
            assert getattr(module, name, None) is None, (module, name)


def test_planning_the_merge_warns_of_nothing_when_s_is_regular() -> None:
    network = residual()
    network.init_computation()
    y, pullback = network.vjp(X)
    pullback(y - T)
    network.update_computation()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.growing_layers[0].compute_optimal_updates(max_new=1)


@pytest.mark.parametrize("places", [[0, 1, 2, 3], [3, 1, 1, 0]], ids=["in_order", "mixed"])
def test_every_library_grows_the_same(places: list[int], xp: Library) -> None:
    def grown(to: Any, adopt: Any) -> list[np.ndarray]:
        network = residual()
        adopt(network)
        return grown_weights(network, to(X), lambda y: y - to(T), TINY, places)

    for ours, theirs in zip(grown(xp.asarray, xp.adopt), grown(frozen, lambda m: m), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)


def test_a_block_is_the_sum_of_its_branches() -> None:
    block = GrowingResidualBlock(5, 4, 3, GELU(), dtype=np.float64, rng=np.random.default_rng(0))
    expected = GELU()(block.second(block.first(X)) + X @ block.shortcut.weight.data.T)
    np.testing.assert_allclose(block(X), expected)
    y, extension = block.extended_forward(X)
    np.testing.assert_allclose(y, expected)
    assert extension is None
