"""The MLP-mixer: GroMo's numbers, what growth promises and keeps, and that training and files take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import growarray
from growarray.errors import CheckpointError, ShapeError
from growarray.growing import TINY
from growarray.networks import GrowingMLPMixer, Growth, GrowthSettings
from growarray.nn import Tanh
from growarray.ops import cross_entropy
from growarray.optim import AdamW
from growarray.testing import check_vjp

with np.load(Path(__file__).parent / "data" / "gromo_mixer.npz") as file:
    GROMO = dict(file)  # a float64 GrowingMLPMixer of GroMo 0.1.0, one batch, gradients of the summed loss
NAMES = {"patcher.": "patcher.0.", "classifier.": "head.1."} | {
    f"mixers.{i // 2}.{('token', 'channel')[i % 2]}_mixer.{old}.": f"blocks.{i}.{new}"
    for i in range(4)
    for old, new in (("norm", "pre_activation.0."), ("mlp", ""))
}


def of_gromo() -> GrowingMLPMixer:
    network = GrowingMLPMixer((2, 4, 4), 3, 2, 5, 2, 3, 2, dtype=np.float64)
    network.load_state_dict({name[2:]: w for name, w in GROMO.items() if name.startswith("w.")}, rename=NAMES)
    return network


def mixer(token: Any = 2, channel: Any = 3, **options: Any) -> GrowingMLPMixer:
    options = {"dtype": np.float64, "rng": np.random.default_rng(0), "activation": Tanh(), **options}
    return GrowingMLPMixer((1, 4, 6), 2, 2, 3, token, channel, num_blocks=1, **options)


def test_values_gradients_and_statistics_are_those_of_gromo() -> None:
    network, x = of_gromo(), GROMO["x"]
    network.init_computation()
    y, pullback = network.vjp(x)
    np.testing.assert_allclose(y, GROMO["y"], rtol=0, atol=1e-14)
    pullback(cross_entropy(y, GROMO["t"])[1](6.0))
    network.update_computation()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    for old, new in NAMES.items():
        for name in (n for n in GROMO if n.startswith(f"g.{old}")):
            found = gradients[new + name.removeprefix(f"g.{old}")]
            np.testing.assert_allclose(found, GROMO[name], rtol=0, atol=1e-13, err_msg=name)
    network.compute_optimal_updates(TINY)
    for i, layer in enumerate(network.growing_layers):
        statistics = {"s": layer.tensor_s, "m": layer.tensor_m, "mp": layer.tensor_m_prev, "c": layer.cross_covariance}
        for name, statistic in statistics.items():
            assert statistic.samples == 6
            np.testing.assert_allclose(statistic(), GROMO[f"{name}{i}"], rtol=0, atol=1e-13)
        kept = len(GROMO[f"v{i}"])  # updates of the original are float32 within
        np.testing.assert_allclose(layer.eigenvalues_extension[:kept], GROMO[f"v{i}"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(layer.optimal_delta_layer.weight.data, GROMO[f"d{i}"], rtol=1e-3, atol=1e-5)
        assert layer.parameter_update_decrease == pytest.approx(float(GROMO[f"dec{i}"]), rel=1e-4)


@pytest.mark.parametrize("widths", [(0, 0), (2, 3)])
def test_the_pullback_is_that_of_the_value(widths: tuple[int, int]) -> None:
    network, x = mixer(*widths), np.random.default_rng(1).standard_normal((3, 1, 4, 6))
    check_vjp(network.vjp, x)
    np.testing.assert_array_equal(network(x.reshape(3, -1)), network(x))
    assert (network.widths, network.width_names) == (list(widths), ["blocks.0.first_layer", "blocks.1.first_layer"])


def test_every_place_keeps_what_it_promises() -> None:
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((12, 24)), rng.integers(0, 2, 12)
    network = mixer()
    before = network(x)
    network.init_computation()
    network.collect_batch(x, labels, cross_entropy)
    network.compute_optimal_updates(TINY, max_new=2)
    for index, layer in enumerate(network.growing_layers):
        network.set_scaling_factor(0.0)
        np.testing.assert_array_equal(network.extended_forward(x), before)
        predicted = layer.predicted_decrease
        layer.scaling_factor = factor = 1e-3 / max(1.0, predicted) ** 0.5
        extended = network.extended_forward(x)
        change = cross_entropy(extended, labels)[0] - cross_entropy(before, labels)[0]
        assert -change / factor**2 == pytest.approx(predicted, rel=1e-2)
        size, width, new = network.number_of_parameters(), network.widths[index], layer.new_neurons
        layer.apply_change()
        layer.delete_update()
        np.testing.assert_allclose(network(x), extended, rtol=0, atol=1e-13)
        assert network.number_of_parameters() - size == new * layer.parameters_per_neuron > 0
        assert network.widths[index] == width + new
        network.init_computation()
        network.collect_batch(x, labels, cross_entropy)
        network.compute_optimal_updates(TINY, max_new=2)
        before = network(x)


def test_a_loop_trains_and_grows_it_and_a_file_keeps_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 24)).astype(np.float32)
    labels = (x[:, 0] > 0).astype(np.int64)
    network = mixer(0, 0, dropout=0.1, dtype=np.float32)
    settings = GrowthSettings(epochs=3, every=1, first=1, neurons=2, max_parameters=None)
    history = Growth(network, AdamW(network, lr=1e-2), (x, labels), settings=settings, rng=rng).run()
    assert sum(entry["added"] for entry in history.of("growth")) == sum(network.widths) > 0
    growarray.save(network, tmp_path / "mixer.safetensors")
    again = growarray.load(tmp_path / "mixer.safetensors")
    np.testing.assert_array_equal(again.predict(x), network.predict(x))
    np.testing.assert_array_equal(again.train()(x), network.train()(x))  # the same entries fall
    assert again.growing_layers[0].previous_module is again.blocks[0].first_layer
    network.blocks.pop()
    network.blocks[0].first_layer = again.blocks[1].first_layer
    growarray.save(network, tmp_path / "torn.safetensors")
    with pytest.raises(CheckpointError, match=r"networks\."):
        growarray.load(tmp_path / "torn.safetensors")


def test_sizes_are_checked() -> None:
    with pytest.raises(ShapeError, match="images of 4 x 6 cannot be cut into patches of 4 x 4"):
        GrowingMLPMixer((1, 4, 6), 2, patch_size=4)
    with pytest.raises(ValueError, match="3 and 2 hidden widths for 2 blocks"):
        GrowingMLPMixer((1, 4, 4), 2, 2, 3, [1, 2, 3], 4, num_blocks=2)
