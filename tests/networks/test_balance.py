"""New neurons brought to the size of the others: the same function, in layers, merges and convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.networks import GrowingMLP, GrowingResidualMLP, GrowingResNet, GrowingVGG, Growth, GrowthSettings
from growarray.networks.balance import balance, is_homogeneous
from growarray.nn import BatchNorm2d, ReLU, Sequential, Tanh
from growarray.optim import AdamW

KIND: dict[str, Any] = {"dtype": np.float64, "rng": np.random.default_rng(0)}
NETWORKS = {
    "linear": lambda f: (GrowingMLP(6, 2, 5, activation=f, **KIND), (40, 6)),
    "merge": lambda f: (GrowingResidualMLP(6, 2, 5, 4, activation=f, **KIND), (40, 6)),
    "convolution": lambda f: (GrowingVGG((1, 6, 6), 2, [(5, 5)], activation=f, **KIND), (40, 36)),
    "block": lambda f: (GrowingResNet((1, 6, 6), 2, (4,), 5, activation=f, **KIND), (40, 36)),
}


def norms(layers: Any, axis: int) -> np.ndarray:
    rows = [np.moveaxis(layer.weight.data, axis, 0) for layer in layers]
    return np.linalg.norm(np.concatenate([w.reshape(len(w), -1) for w in rows], axis=1), axis=1)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_new_neurons_get_the_size_of_the_others_and_the_function_stays(make: Any) -> None:
    network, shape = make(ReLU(at_zero=1.0))
    x = np.random.default_rng(1).standard_normal(shape)
    for place in network.growing_layers:
        before, readers = place.front.layers_before, place.readers
        for layer in before:  # the last two are small ones
            layer.weight.data[-2:] *= 0.03
        wanted, small = norms(before, 0)[:-2].mean(), norms(before, 0)[-2:]
        y, outgoing = network(x), norms(readers, 1)
        balance(place, 2)
        np.testing.assert_allclose(network(x), y, rtol=0, atol=1e-12)
        np.testing.assert_allclose(norms(before, 0)[-2:], wanted, rtol=1e-12)
        np.testing.assert_allclose(norms(readers, 1)[-2:], outgoing[-2:] * small / wanted, rtol=1e-12)
        np.testing.assert_array_equal(norms(readers, 1)[:-2], outgoing[:-2])


def test_nothing_changes_where_it_would_change_the_function() -> None:
    network, _ = NETWORKS["convolution"](Tanh())
    before = {name: p.data.copy() for name, p in network.named_parameters()}
    balance(network.growing_layers[0], 2)
    for name, p in network.named_parameters():
        np.testing.assert_array_equal(p.data, before[name])
    assert not is_homogeneous(Sequential(BatchNorm2d(3, dtype=np.float64), ReLU()), np.zeros((3, 1, 3, 3)))


def test_a_block_that_had_no_channels_gets_the_size_that_a_layer_is_drawn_with() -> None:
    rng = np.random.default_rng(0)
    network = GrowingResNet((1, 6, 6), 2, (4,), dtype=np.float64, rng=rng)
    x, labels = rng.standard_normal((60, 36)), rng.integers(0, 2, 60)
    settings = GrowthSettings(epochs=2, first=1, neurons=2, balance=True, max_parameters=None, patience=None)
    loop = Growth(network, AdamW(network, lr=1e-3), (x, labels), settings=settings, rng=rng)
    loop.train_epoch()
    entry = loop.grow()
    assert network.widths == [entry["added"]] == [2]
    np.testing.assert_allclose(norms([network.blocks[0].first_layer], 0), 1 / np.sqrt(3), rtol=1e-12)
    assert loop.evaluate((x, labels))[0] == pytest.approx(entry["validation_loss"], rel=1e-12)


def test_balance_is_true_or_false() -> None:
    with pytest.raises(TypeError, match="balance must be True or False, found 1"):
        GrowthSettings(balance=1)  # type: ignore[arg-type]
