"""GrowingMLP: a chain of layers, its way back, its growth, on every array library."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.datasets import load_digits
from growarray.errors import GrowthError
from growarray.growing import FISHER, GRADMAX, TINY
from growarray.networks import GrowingMLP, batches
from growarray.nn import (
    GELU,
    SELU,
    BatchNorm1d,
    Dropout,
    Identity,
    LayerNorm,
    LeakyReLU,
    Module,
    ReLU,
    ReLU6,
    Sequential,
    Softplus,
    Tanh,
)
from growarray.ops import cross_entropy
from growarray.optim import Adam
from tests.conftest import Library, frozen
from tests.networks.checks import check_all_gradients, grown_weights

RNG = np.random.default_rng(20)
X, T = frozen(RNG.standard_normal((40, 5))), frozen(RNG.standard_normal((40, 3)))
LABELS = frozen(RNG.integers(0, 3, 40))


def mlp(hidden: Any = (4, 3), **options: Any) -> GrowingMLP:
    options = {"activation": GELU(), "dtype": np.float64, "rng": np.random.default_rng(0), **options}
    return GrowingMLP(5, 3, hidden, **options)


@pytest.mark.parametrize("storing", [False, True], ids=["plain", "collecting"])
@pytest.mark.parametrize("bias", [False, True], ids=["unbiased", "biased"])
def test_the_way_back_agrees_with_differences_for_every_parameter(bias: bool, storing: bool) -> None:
    network = mlp(use_bias=bias)
    if storing:
        network.init_computation()
    check_all_gradients(network, X[:3])


def test_images_are_flattened_and_their_gradient_is_not() -> None:
    network = GrowingMLP((2, 3, 4), 2, 5, dtype=np.float64, rng=np.random.default_rng(0))
    x = RNG.standard_normal((3, 2, 3, 4))
    y, pullback = network.vjp(x)
    np.testing.assert_array_equal(y, network(x.reshape(3, 24)))
    assert pullback(y).shape == x.shape
    np.testing.assert_array_equal(network.extended_forward(x), y)


def test_widths_places_and_names() -> None:
    network = mlp((4, 3, 2))
    assert (network.widths, len(network.growing_layers)) == ([4, 3, 2], 3)
    assert list(network.state_dict()) == [f"layers.{i}.layer.{n}" for i in range(4) for n in ("weight", "bias")]
    assert network.number_of_parameters() == 5 * 4 + 4 + 4 * 3 + 3 + 3 * 2 + 2 + 2 * 3 + 3
    assert network.flops_per_sample() == 2 * (5 * 4 + 4 * 3 + 3 * 2 + 2 * 3)
    with pytest.raises(ValueError, match="2 hidden sizes for 3 hidden layers"):
        mlp((4, 3), number_hidden_layers=3)


def collected(network: GrowingMLP, x: Any, t: Any, rule: Any = TINY) -> GrowingMLP:
    network.init_computation()
    for part in (slice(0, 25), slice(25, 40)):
        y, pullback = network.vjp(x[part, ...])
        pullback(y - t[part, ...])
        network.update_computation()
    network.compute_optimal_updates(rule)
    network.reset_computation()
    return network


@pytest.mark.parametrize("rule", [TINY, FISHER, GRADMAX], ids=["tiny", "fisher", "gradmax"])
@pytest.mark.parametrize("place", [0, 1])
def test_extended_forward_is_forward_after_the_change_of_each_place(place: int, rule: Any) -> None:
    network = collected(mlp(), X, T, rule)
    network.select_update(place)
    network.set_scaling_factor(0.3)
    extended, before = network.extended_forward(X), network(X)
    added = network.growing_layers[place].new_neurons
    assert added > 0
    network.apply_change()
    network.delete_update()
    np.testing.assert_allclose(network(X), extended, rtol=0, atol=1e-12)
    assert bool(np.abs(extended - before).max() > 1e-6) is (rule is not GRADMAX)
    widths = [4, 3]
    widths[place] += added
    assert network.widths == widths


def test_the_best_place_is_selected_and_the_others_forget() -> None:
    network = collected(mlp(), X, T)
    information = network.update_information()
    total = network.first_order_improvement
    best = network.select_best_update()
    assert best == max(information, key=lambda index: information[index]["update_value"])
    assert total == pytest.approx(sum(entry["update_value"] for entry in information.values()))
    assert network.first_order_improvement == pytest.approx(information[best]["update_value"])
    other = network.growing_layers[1 - best]
    assert (other.new_neurons, other.optimal_delta_layer) == (0, None)
    assert network.currently_updated_layer is network.growing_layers[best]
    assert network.growing_layers[best].new_neurons > 0


def test_a_value_of_ones_own_may_decide() -> None:
    best = collected(mlp(), X, T).select_best_update()
    assert collected(mlp(), X, T).select_best_update(lambda place: -place.first_order_improvement) == 1 - best


def test_selection_is_checked() -> None:
    network = mlp()
    with pytest.raises(IndexError, match="layer_index is 2, expected 0 to 1, one of the growing layers"):
        network.select_update(2)
    with pytest.raises(ValueError, match="no update is selected; call select_update"):
        network.apply_change()
    with pytest.raises(ValueError, match="no M estimates its error; call init_computation"):
        network.relative_error()


def test_the_error_of_m_falls_with_the_samples() -> None:
    network = mlp()
    network.init_computation(trace_precision=1e-6)
    errors = []
    for _ in range(40):
        x = RNG.standard_normal((16, 5))
        y, pullback = network.vjp(x)
        pullback(y - x[:, :3])
        network.update_computation()
        errors.append(network.relative_error())
    assert errors[0] == np.inf
    assert errors[-1] < errors[4] / 2
    assert errors[-1] == max(layer.tensor_m.relative_error() for layer in network.growing_layers)


@pytest.mark.parametrize("rule", [TINY, FISHER], ids=["tiny", "fisher"])
def test_every_library_grows_the_same(xp: Library, rule: Any) -> None:
    def grown(to: Any, adopt: Any) -> list[np.ndarray]:
        network = mlp()
        adopt(network)
        return grown_weights(network, to(X), lambda y: y - to(T), rule, [1, 0])

    for ours, theirs in zip(grown(xp.asarray, xp.adopt), grown(frozen, lambda m: m), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)


def test_float32_networks_stay_float32_on_every_library(xp: Library) -> None:
    network = mlp(dtype=np.float32)
    xp.adopt(network)
    x = xp.asarray(X.astype(np.float32))
    labels = xp.asarray(LABELS)
    weights = grown_weights(network, x, lambda y: cross_entropy(y, labels)[1](40.0), TINY, [0, 1])
    assert {str(w.dtype) for w in weights} == {"float32"}
    assert to_numpy(network(x)).dtype == np.float32


def test_normalising_balances_the_norms_and_keeps_the_function(xp: Library) -> None:
    network = mlp(activation=ReLU())
    xp.adopt(network)
    before = to_numpy(network(xp.asarray(X)))
    network.normalise()
    np.testing.assert_allclose(to_numpy(network(xp.asarray(X))), before, rtol=1e-10)
    incoming = np.linalg.norm(to_numpy(network.layers[1].weight.data), axis=1)
    outgoing = np.linalg.norm(to_numpy(network.layers[2].weight.data), axis=0)
    np.testing.assert_allclose(incoming, outgoing)


@pytest.mark.parametrize("function", [LeakyReLU(0.3), Sequential(ReLU(), Dropout(0.5)), Identity()], ids=repr)
def test_normalising_takes_every_positively_homogeneous_activation(function: Module) -> None:
    network = mlp(activation=function)
    state = [copy.deepcopy(layer.post_layer_function) for layer in network.layers]
    before = network.eval()(X)
    network.normalise()
    np.testing.assert_allclose(network(X), before, rtol=1e-10)
    for layer, old in zip(network.train().layers, state, strict=True):  # the masks of dropout go on where they were
        np.testing.assert_array_equal(layer.post_layer_function(X), old(X))


@pytest.mark.parametrize(
    "function",
    [SELU(), Tanh(), GELU(), ReLU6(), Softplus(), BatchNorm1d(3), Sequential(LayerNorm(3), ReLU())],
    ids=lambda function: type(function).__name__,
)
def test_normalising_refuses_an_activation_that_is_not_homogeneous(function: Module) -> None:
    network = GrowingMLP(4, 2, hidden_size=[3, 3], activation=function, rng=np.random.default_rng(0))
    network.layers[0].post_layer_function = ReLU()  # the second place alone is at fault, and nothing is rescaled
    before = network.state_dict()
    with pytest.raises(GrowthError, match=rf"layers\.1 is followed by {type(function).__name__}\(.*homogeneous"):
        network.normalise()
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_normalising_takes_hidden_layers_without_neurons() -> None:
    network = GrowingMLP(4, 2, hidden_size=[0, 2], activation=ReLU())
    network.normalise()
    assert network.widths == [0, 2]


def test_targets_are_filled_by_drawing() -> None:
    network = mlp()
    assert network.missing_neurons() == 0
    for layer in network.growing_layers:
        layer.target_in_neurons = 6
    assert network.missing_neurons() == 5
    network.complete_growth({"rng": np.random.default_rng(0)})
    assert (network.widths, network.missing_neurons()) == ([6, 6], 0)
    assert network(X).shape == (40, 3)


def test_the_fisher_delta_of_digits_leaves_what_softmax_does_not_see_alone() -> None:
    """In float32 the gradients of a sample's logits add up to 1e-8, not 0; the pseudo-inverse must not follow that."""
    data = load_digits(seed=0)
    network = GrowingMLP(64, 10, hidden_size=8, activation=ReLU(), rng=np.random.default_rng(1))
    optimizer = Adam(network, lr=5e-3)
    for _ in range(6):
        for x, y in batches(data.x_train, data.y_train, 64):
            logits, back = network.vjp(x)
            optimizer.zero_grad()
            back(cross_entropy(logits, y)[1]())
            optimizer.step()
    network.init_computation()
    logits, back = network.vjp(data.x_train)
    back(cross_entropy(logits, data.y_train)[1](float(len(logits))))
    network.update_computation()
    with pytest.warns(UserWarning, match="S is singular"), pytest.warns(UserWarning, match="E is singular"):
        network.compute_optimal_updates(FISHER, max_new=8)
    (place,) = network.growing_layers
    delta = place.delta_raw
    assert np.abs(delta.mean(axis=0)).max() < 1e-4 * np.abs(delta).max() < 1e-2
    loss = cross_entropy(logits, data.y_train)[0]
    place.scaling_factor = 0.3
    assert cross_entropy(network.extended_forward(data.x_train), data.y_train)[0] < 0.97 * loss
