"""Pruning: what a neuron costs, that dead ones cost nothing, and that training and growth go on afterwards."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.errors import GrowthError
from growarray.growing import FullConv2dGrowingModule
from growarray.growing.norm import GrowingBatchNorm2d, GrowingGroupNorm
from growarray.networks import (
    GrowingDAG,
    GrowingMLP,
    GrowingMLPMixer,
    GrowingResidualMLP,
    GrowingResNet,
    GrowingTransformerBlock,
    GrowingVGG,
    Growth,
    GrowthSettings,
    prune,
)
from growarray.networks.part import as_growing
from growarray.nn import Identity, Linear, PReLU, ReduceMean, ReLU, Sequential, Tanh
from growarray.ops import cross_entropy, mse
from growarray.optim import AdamW
from tests.conftest import Library

RNG = np.random.default_rng(7)
X = RNG.standard_normal((80, 4))
IMAGES = RNG.standard_normal((60, 2, 6, 6))


def mlp(widths: Any = (6, 5), outputs: int = 3, activation: Any = None, bias: bool = True) -> GrowingMLP:
    function = activation or Tanh()
    return GrowingMLP(
        4, outputs, widths, activation=function, use_bias=bias, dtype=np.float64, rng=np.random.default_rng(1)
    )


def dag() -> GrowingDAG:
    network = GrowingDAG(4, 3, activation=Tanh(), dtype=np.float64, rng=np.random.default_rng(1))
    network.add_node_with_two_edges("start@", "1@", "end@", {"size": 5})
    network.add_node_with_two_edges("1@", "2@", "end@", {"size": 4})
    return network


OPTIONS: dict[str, Any] = {"activation": Tanh(), "dtype": np.float64, "rng": np.random.default_rng(1)}
NORM = {"normalization": lambda width: GrowingBatchNorm2d(width, dtype=np.float64)}


def transformer() -> Any:
    options = {name: OPTIONS[name] for name in ("dtype", "rng")}
    block = GrowingTransformerBlock(4, 2, 6, 4, activation=PReLU(6, axis=-1, dtype=np.float64), **options)
    return as_growing(Sequential(block, ReduceMean((1,), keepdims=False), Linear(4, 3, **options)))


NETWORKS: dict[str, Any] = {
    "mlp": lambda: (mlp(), X),
    "without bias": lambda: (mlp(bias=False), X),
    "residual": lambda: (GrowingResidualMLP(4, 3, [5, 4], [6, 3], **OPTIONS), X),
    "dag": lambda: (dag(), X),
    "vgg": lambda: (GrowingVGG((2, 6, 6), 3, [(4, 5), 3], **NORM, **OPTIONS), IMAGES),
    "full vgg": lambda: (
        GrowingVGG((2, 6, 6), 3, [4, 3], growing_conv_type=FullConv2dGrowingModule, **OPTIONS),
        IMAGES,
    ),
    "resnet": lambda: (GrowingResNet((2, 6, 6), 3, (3, 4), 5, **NORM, **OPTIONS), IMAGES),
    "mixer": lambda: (GrowingMLPMixer((2, 6, 6), 3, 3, 4, 5, 6, 1, **OPTIONS), IMAGES),
    "transformer": lambda: (transformer(), IMAGES.reshape(90, 12, 4)),
}


def fronts(network: Any) -> list[Any]:
    """The modules that lose neurons, in the order of ``widths``."""
    if isinstance(network, GrowingDAG):
        return [network.merges["1@"], network.merges["2@"]]
    return [place.front for place in network.growing_layers]


@pytest.mark.parametrize("name", NETWORKS)
def test_neurons_whose_outgoing_weights_are_zero_go_and_nothing_changes(name: str) -> None:
    network, x = NETWORKS[name]()
    network.eval()
    front = fronts(network)[0]
    readers = front.readers if front.plans_for_readers else [network.growing_layers[0]]
    for reader in readers:
        reader.weight.data[:, [1, 3]] = 0.0
    before, widths, size = network(x), network.widths, network.number_of_parameters()
    found = prune(network, x, size - 2)  # a second neuron goes, and takes more than the two with it
    again = prune(copy.deepcopy(network), x, network.number_of_parameters()) if found else found
    assert set(found.removed) == {front.name}
    assert set(found.removed[front.name]) <= {1, 3}
    assert found.increase == 0.0
    assert (found.before, found.after) == (size, network.number_of_parameters())
    assert again.removed == {}
    gone = len(found.removed[front.name])
    assert network.widths == [widths[0] - gone, *widths[1:]]
    np.testing.assert_allclose(network(x), before, rtol=0, atol=1e-14)  # sums of other lengths may round otherwise


def test_neurons_that_never_fire_go_bit_for_bit() -> None:
    network = mlp((6, 5), activation=ReLU())
    first = network.layers[0]
    first.bias.data[[0, 2]] = -100.0  # always 0 behind the ReLU
    weights = [layer.weight.data.copy() for layer in network.layers]
    found = prune(network, X, network.number_of_parameters() - 2 * (4 + 1 + 5))
    assert (found.removed, found.increase, network.widths) == ({"layers.0": (0, 2)}, 0.0, [4, 5])
    kept = [1, 3, 4, 5]
    np.testing.assert_array_equal(first.weight.data, weights[0][kept])
    np.testing.assert_array_equal(network.layers[1].weight.data, weights[1][:, kept])
    np.testing.assert_array_equal(network.layers[2].weight.data, weights[2])


def test_a_twin_is_taken_over_and_a_constant_becomes_a_bias() -> None:
    network = mlp((4,), outputs=2)
    first, second = network.layers
    first.weight.data[3], first.bias.data[3] = first.weight.data[1], first.bias.data[1]
    first.weight.data[2], first.bias.data[2] = 0.0, 0.3
    before, bias, out = network(X), second.bias.data.copy(), second.weight.data.copy()
    found = prune(network, X, network.number_of_parameters() - 2 * 7, task="regression")
    assert found.increase < 1e-12
    assert found.removed["layers.0"] in {(1, 2), (2, 3)}
    np.testing.assert_allclose(network(X), before, rtol=0, atol=1e-10)
    np.testing.assert_allclose(second.bias.data, bias + out[:, 2] * np.tanh(0.3), rtol=1e-9)
    np.testing.assert_allclose(second.weight.data[:, 1], out[:, 1] + out[:, 3], rtol=1e-9)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_the_promise_is_exact_where_the_loss_is_a_square_and_at_its_least(name: str) -> None:
    if name == "linear":
        network, x = mlp((5,), outputs=2), X
        reader = network.layers[-1]
    else:
        network, x = GrowingVGG((2, 6, 6), 2, [4], **OPTIONS), IMAGES
        reader = network.layers[-1]
    target = np.random.default_rng(3).standard_normal((len(x), 2))
    reader.init_computation()
    y, pullback = network.vjp(x)
    pullback(y - target)
    reader.update_computation()
    reader.compute_optimal_delta(force_pseudo_inverse=True)
    reader.apply_change(optimal_delta_scaling=1.0, apply_extension=False)
    reader.delete_update()
    before = mse(network(x), target)[0]
    assert before <= mse(y, target)[0]
    found = prune(network, x, network.number_of_parameters() - 1, task="regression")
    after = mse(network(x), target)[0]
    assert found.increase == pytest.approx(after - before, rel=1e-6)
    assert after > before


def test_the_neuron_that_goes_is_the_cheapest() -> None:
    network = mlp((5,), outputs=3)
    h, (weight, bias) = np.tanh(X @ network.layers[0].weight.data.T + network.layers[0].bias.data), (
        network.layers[1].weight.data, network.layers[1].bias.data,
    )  # fmt: skip
    logits = h @ weight.T + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    curvature = np.mean(np.eye(3) * p[:, None, :] - p[:, :, None] * p[:, None, :], axis=0)
    rows = np.concatenate([h, np.ones((len(X), 1))], axis=1)
    costs = []
    for j in range(5):  # what is left of the neuron when the others are fitted to it
        others = np.delete(rows, j, axis=1)
        left = rows[:, j] - others @ np.linalg.lstsq(others, rows[:, j])[0]
        costs.append(weight[:, j] @ curvature @ weight[:, j] * np.mean(left**2) / 2)
    found = prune(network, X, network.number_of_parameters() - 1)
    assert found.removed == {"layers.0": (int(np.argmin(costs)),)}
    assert found.increase == pytest.approx(min(costs), rel=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_budget_is_met_and_the_cost_is_small_beside_that_of_chance(name: str) -> None:
    network, x = NETWORKS[name]()
    network.eval()
    before, size = network(x), network.number_of_parameters()
    found = prune(network, x, int(0.8 * size), batch_size=16)
    assert network.number_of_parameters() == found.after <= 0.8 * size
    assert min(network.widths) >= 1
    assert sum(map(len, found.removed.values())) > 0
    assert network(x).shape == before.shape
    assert np.isfinite(found.increase)
    y, pullback = network.vjp(x)
    pullback(np.ones_like(y))
    assert all(p.grad.shape == p.shape for p in network.parameters())


def test_training_and_growth_go_on_with_the_optimizer_state_of_what_stayed() -> None:
    x, labels = X.astype(np.float32), (X[:, 0] * X[:, 1] > 0).astype(np.int64)
    network = GrowingMLP(4, 2, 8, activation=Sequential(Tanh(), Identity()), rng=np.random.default_rng(0))
    optimizer = AdamW(network, lr=1e-2)
    settings = GrowthSettings(epochs=6, every=1, first=4, neurons=3, max_parameters=None)
    loop = Growth(network, optimizer, (x, labels), settings=settings, rng=np.random.default_rng(0))
    loop.run(until=3)
    old = {name: dict(p.slots) for name, p in network.named_parameters()}
    found = prune(network, x, 37)
    kept = [i for i in range(8) if i not in found.removed["layers.0"]]
    assert (network.widths, found.after) == ([5], 37)
    for name, axis in (("layers.0.layer.weight", 0), ("layers.0.layer.bias", 0), ("layers.1.layer.weight", 1)):
        slots = dict(network.named_parameters())[name].slots
        for key, value in slots.items():
            taken = np.take(old[name][key], kept, axis=axis) if np.ndim(value) else old[name][key]
            np.testing.assert_array_equal(value, taken)
    history = loop.run()
    assert len(history.of("train")) == 6
    assert network.widths[0] > 5


def test_what_cannot_be_pruned_is_left_or_refused() -> None:
    network = mlp((6, 5))
    for parameter in network.layers[0].parameters():
        parameter.requires_grad = False
    assert set(prune(network, X, 60).removed) == {"layers.1"}
    size, state = network.number_of_parameters(), network.state_dict()
    with pytest.raises(GrowthError, match="parameters are left where every place has 2 neurons, expected at most 3"):
        prune(network, X, 3, least=2)
    with pytest.raises(GrowthError, match="there are no samples to judge neurons by"):
        prune(network, X[:0], 3)
    assert network.number_of_parameters() == size
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
    grouped = GrowingVGG((2, 6, 6), 3, [4], normalization=lambda width: GrowingGroupNorm(2, width), **OPTIONS)
    with pytest.raises(GrowthError, match="every place has 1 neurons"):
        prune(grouped, IMAGES, 100)


def test_gradients_and_modes_stay() -> None:
    network = mlp()
    y, pullback = network.vjp(X)
    pullback(cross_entropy(y, np.zeros(80, np.int64))[1]())
    kept = network.layers[2].bias.grad
    prune(network, X, 60)
    assert network.training
    np.testing.assert_array_equal(network.layers[2].bias.grad, kept)
    assert not network.layers[1].recorder.is_active


def test_every_library_prunes_the_same(xp: Library) -> None:
    ours, x = NETWORKS["mlp"]()
    theirs = copy.deepcopy(ours)
    xp.adopt(theirs)
    expected = prune(ours, x, int(0.7 * ours.number_of_parameters()))
    found = prune(theirs, xp.asarray(x), int(0.7 * theirs.number_of_parameters()))
    assert found.removed == expected.removed
    assert found.increase == pytest.approx(expected.increase, rel=1e-6)
    for name, value in theirs.state_dict().items():
        np.testing.assert_allclose(to_numpy(value), ours.state_dict()[name], rtol=1e-6, atol=1e-9)
