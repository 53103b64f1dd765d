"""Networks of images: what they compute, how they grow, and blocks that start as their shortcut."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from growarray.errors import GrowthError, ShapeError
from growarray.growing import (
    TINY,
    FullConv2dGrowingModule,
    GrowthRule,
    LinearGrowingModule,
    RestrictedConv2dGrowingModule,
)
from growarray.growing.norm import GrowingBatchNorm2d
from growarray.networks import (
    Conv2dGrowingBlock,
    GrowingBlock,
    GrowingResNet,
    GrowingVGG,
    Growth,
    GrowthSettings,
    LinearGrowingBlock,
)
from growarray.networks.images import image_shape
from growarray.nn import GELU, Conv2d, Linear, Tanh
from growarray.ops import mse
from growarray.optim import AdamW
from growarray.testing import check_vjp

NORM = partial(GrowingBatchNorm2d, dtype=np.float64)


def vgg(**options: Any) -> GrowingVGG:
    options = {"activation": Tanh(), "dtype": np.float64, "rng": np.random.default_rng(0), **options}
    return GrowingVGG((2, 6, 5), 3, [(2, 3), 2], **options)


def resnet(**options: Any) -> GrowingResNet:
    options = {"activation": Tanh(), "dtype": np.float64, "rng": np.random.default_rng(0), **options}
    return GrowingResNet((2, 6, 5), 3, (3, 4), blocks_per_stage=2, **options)


def collected(network: Any, x: Any, target: Any) -> Any:
    network.init_computation()
    y, back = network.vjp(x)
    back(mse(y, target)[1](float(len(x))))
    network.update_computation()
    network.zero_grad()
    return network


@pytest.mark.parametrize("make", [GrowingVGG, GrowingResNet])
@pytest.mark.parametrize("normalization", [None, NORM])
def test_the_pullback_is_that_of_the_value(make: Any, normalization: Any) -> None:
    options = {"normalization": normalization, "dtype": np.float64, "rng": np.random.default_rng(0)}
    network = make((1, 4, 3), 2, (2, 3), activation=Tanh(), **options)
    x = np.random.default_rng(1).standard_normal((3, 1, 4, 3))
    check_vjp(network.vjp, x)
    np.testing.assert_array_equal(network.eval()(x.reshape(3, -1)), network(x))
    with pytest.raises(ShapeError, match=r"shape \(11,\), expected images \(1, 4, 3\) or rows of 12 numbers"):
        network(np.ones((3, 11)))


@pytest.mark.parametrize("make", [vgg, resnet])
@pytest.mark.parametrize("kind", [{}, {"growing_conv_type": FullConv2dGrowingModule}])
def test_every_place_keeps_what_it_promises(make: Any, kind: Any) -> None:
    rng = np.random.default_rng(1)
    x, target = rng.standard_normal((12, 60)), rng.standard_normal((12, 3))
    network = make(**kind)
    before = network(x)
    for rule in (TINY, GrowthRule(compute_delta=False, use_projection=False)):
        collected(network, x, target).compute_optimal_updates(rule, max_new=3)
        for layer in network.growing_layers:
            assert layer.new_neurons > 0
            network.set_scaling_factor(0.0)
            np.testing.assert_array_equal(network.extended_forward(x), before)
            predicted = layer.predicted_decrease
            assert predicted > 0
            layer.scaling_factor = factor = 1e-3 / max(1.0, predicted) ** 0.5
            change = mse(network.extended_forward(x), target)[0] - mse(before, target)[0]
            assert -change / factor**2 == pytest.approx(predicted, rel=1e-2)


@pytest.mark.parametrize("make", [vgg, resnet])
@pytest.mark.parametrize("normalization", [None, NORM])
def test_a_grown_network_computes_what_was_planned(make: Any, normalization: Any) -> None:
    rng = np.random.default_rng(2)
    x, target = rng.standard_normal((40, 60)), rng.standard_normal((40, 3))
    network = make(normalization=normalization).eval()
    widths = network.widths
    for place in range(len(network.growing_layers)):
        collected(network, x, target).compute_optimal_updates(max_new=2)
        before = network(x)
        network.select_update(place)
        network.currently_updated_layer.scaling_factor = 0.05
        extended = network.extended_forward(x)
        added = network.currently_updated_layer.new_neurons
        network.apply_change()
        network.delete_update()
        network.reset_computation()
        # A norm adds eps = 1e-5 to the variance 1 of new channels, which the extended forward leaves as they are.
        bound = 1e-12 if normalization is None else 2e-5 * np.abs(extended - before).max() + 1e-12
        np.testing.assert_allclose(network(x), extended, rtol=0, atol=bound)
        widths[place] += added
        assert network.widths == widths


def test_a_block_without_hidden_channels_is_its_shortcut() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5))
    block = Conv2dGrowingBlock(3, 3, 3, activation=GELU(), kwargs_layer={"padding": 1, "dtype": np.float64})
    bias = block.second_layer.bias.data[:, None, None]
    np.testing.assert_array_equal(block(x), x + bias)
    assert (block.hidden_neurons, block.first_layer.out_channels) == (0, 0)
    rows, linear = x.reshape(6, 25)[:, :4], LinearGrowingBlock(4, 2, downsample=Linear(4, 2, dtype=np.float64))
    np.testing.assert_allclose(linear(rows), linear.downsample(rows) + linear.second_layer.bias.data, atol=1e-12)


def test_a_block_grows_by_its_own_names() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 3, 5, 5))
    options = {"padding": 1, "dtype": np.float64, "rng": rng}
    block = Conv2dGrowingBlock(3, 3, 3, target_hidden_channels=4, activation=GELU(), kwargs_layer=options)
    assert block.second_layer.missing_neurons() == 4
    block.init_computation()
    y, back = block.vjp(x)
    back(y - x**2)
    block.update_computation()
    block.compute_optimal_updates(max_new=2)
    promised = block.first_order_improvement
    block.set_scaling_factor(1e-3)
    extended, nothing = block.extended_forward(x)
    assert nothing is None
    loss = [((value - x**2) ** 2).sum() / 2 / len(x) for value in (y, extended)]
    assert (loss[0] - loss[1]) / 1e-6 == pytest.approx(promised, rel=1e-2)
    block.apply_change(scaling_factor=1e-3)
    np.testing.assert_allclose(block(x), extended, rtol=0, atol=1e-12)
    block.delete_update()
    block.reset_computation()
    block.second_layer.complete_growth()
    assert block.hidden_neurons == 4


@pytest.mark.parametrize("kind", [RestrictedConv2dGrowingModule, FullConv2dGrowingModule])
@pytest.mark.parametrize("normalization", [None, NORM])
def test_an_appended_block_changes_nothing_until_it_grows(normalization: Any, kind: Any) -> None:
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((8, 60)), rng.standard_normal((8, 3))
    network = resnet(normalization=normalization, hidden_channels=2, growing_conv_type=kind).eval()
    before = network(x)
    block = network.append_block(0)
    np.testing.assert_array_equal(network(x), before)
    assert network.widths == [2, 2, 0, 2, 2]
    collected(network, x, target).compute_optimal_updates(max_new=1)
    network.select_update(2)
    network.apply_change(scaling_factor=0.1)
    assert block.hidden_neurons == 1
    assert mse(network(x), target)[0] < mse(before, target)[0]
    assert network.append_block().name == "stages.1.2"


@pytest.mark.parametrize("make", [GrowingVGG, GrowingResNet])
def test_the_loop_grows_networks_of_images(make: Any) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 96)
    stripes = np.indices((6, 6))[:, None] % 2
    patterns = np.concatenate([stripes[0], stripes[1], 0.5 * np.ones((1, 6, 6))])  # lying, standing, none
    x = (patterns[labels].reshape(96, 36) + 0.1 * rng.standard_normal((96, 36))).astype(np.float32)
    network = make((1, 6, 6), 3, [4, 4], rng=rng)
    settings = GrowthSettings(epochs=9, every=2, first=2, neurons=2, choose="per_parameter", max_parameters=None)
    loop = Growth(network, AdamW(network, lr=1e-2), (x, labels), settings=settings, rng=rng)
    history = loop.run()
    assert sum(network.widths) > sum([4, 4] if make is GrowingVGG else [0, 0])
    assert loop.evaluate((x, labels))[1] > 0.9
    grown = [entry for entry in history.of("growth") if "refused" not in entry]
    assert grown
    assert all(entry["train_change"] < 0 for entry in grown)


def test_what_does_not_fit_is_refused() -> None:
    assert (image_shape(49), image_shape(3 * 25)) == ((1, 7, 7), (3, 5, 5))
    with pytest.raises(ShapeError, match="13 features are no square image"):
        image_shape(13)
    with pytest.raises(ShapeError, match="gives 3 neurons, the second reads 2"):
        GrowingBlock(LinearGrowingModule(4, 3), LinearGrowingModule(2, 4))
    with pytest.raises(ShapeError, match="4 input and 2 output features cannot be added; pass a downsample="):
        LinearGrowingBlock(4, 2)
    with pytest.raises(ValueError, match="no kernel_size is given"):
        Conv2dGrowingBlock(2, 2, kwargs_first_layer={"kernel_size": 3})
    with pytest.raises(ValueError, match="3 hidden channels for 2 stages of 1 blocks"):
        GrowingResNet((1, 8, 8), 10, (4, 8), (1, 2, 3))
    with pytest.raises(ValueError, match="in_features has 2 entries for 3 spatial axes"):
        GrowingVGG((8, 8), 10, [2])
    block = Conv2dGrowingBlock(2, 4, 3, downsample=Conv2d(2, 4, 1), kwargs_layer={"padding": 1})
    with pytest.raises(GrowthError, match="no change is planned"):
        block.apply_change(scaling_factor=1.0)
