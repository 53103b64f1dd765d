"""The exact Fisher of a softmax as E: GroMo's numbers, and the sum over classes that defines it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.errors import GrowthError, ShapeError
from growarray.growing import FISHER, FullConv2dGrowingModule, softmax_fisher_seeds
from growarray.networks import GrowingDAG, GrowingMLP, GrowingResidualMLP, GrowingVGG
from growarray.nn import Tanh
from growarray.ops import cross_entropy
from tests.conftest import Library
from tests.networks.runs import TARGET, X, loop

with np.load(Path(__file__).parent / "data" / "gromo_true_fisher.npz") as file:
    GROMO = dict(file)  # a float64 GrowingMLP of GroMo 0.1.0 after two batches of 4 and 3 samples
RNG = np.random.default_rng(3)
IMAGES = RNG.standard_normal((6, 1, 4, 4))


def made(kind: str) -> tuple[Any, np.ndarray]:
    options: dict[str, Any] = {"activation": Tanh(), "dtype": np.float64, "rng": np.random.default_rng(1)}
    if kind == "vgg":
        return GrowingVGG((1, 4, 4), 3, [2, 3], growing_conv_type=FullConv2dGrowingModule, **options), IMAGES
    x = X[:6]
    if kind == "dag":
        dag = GrowingDAG(4, 3, sampled=0, **options)
        dag.add_node_with_two_edges("start@", "1@", "end@", {"size": 2})
        return dag, x
    if kind == "residual":
        return GrowingResidualMLP(4, 3, 2, 2, 1, **options), x
    return GrowingMLP(4, 3, (2, 2), **options), x


def moments(network: Any) -> list[np.ndarray]:
    """E of every place that has one."""
    return [module.statistics.e() for module in network.collectors()]


def test_seeds_make_up_the_covariance_of_the_softmax() -> None:
    logits = np.array([[0.0, 0.0, 0.0], [50.0, -50.0, 0.0], [800.0, 0.0, -800.0], [-3.0, 1.0, 2.0]])
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    seeds = np.stack(list(softmax_fisher_seeds(logits)))
    assert seeds.shape == (2, 4, 3)
    covariance = np.eye(3) * p[:, None, :] - p[:, :, None] * p[:, None, :]
    np.testing.assert_allclose(np.einsum("kni,knj->nij", seeds, seeds), covariance, rtol=0, atol=1e-15)
    assert next(softmax_fisher_seeds(logits.astype(np.float32))).dtype == np.float32


@pytest.mark.parametrize("shape", [(3,), (3, 1), (2, 3, 4)])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(n, at least 2\)"):
        next(softmax_fisher_seeds(np.zeros(shape)))


def test_statistics_are_those_of_gromo() -> None:
    network = GrowingMLP(4, 3, 3, 2, activation=Tanh(), dtype=np.float64)
    network.load_state_dict({name[2:]: value for name, value in GROMO.items() if name.startswith("w.")})
    network.init_computation()
    for part in (slice(0, 4), slice(4, 7)):
        y, pullback = network.vjp(GROMO["x"][part])
        dy = cross_entropy(y, GROMO["t"][part])[1]()
        network.update_computation_true_fisher(pullback, dy, y, loss_normalization=len(y))
    for index, layer in enumerate(network.growing_layers):
        for name, statistic in (("e", layer.covariance_loss_gradient), ("m", layer.tensor_m), ("s", layer.tensor_s)):
            assert statistic.samples == 7
            np.testing.assert_allclose(statistic(), GROMO[f"{name}{index}"], rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["mlp", "residual", "vgg", "dag"])
def test_e_is_the_expectation_over_the_labels_that_the_network_draws(kind: str) -> None:
    network, x = made(kind)
    logits = network(x)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected: list[Any] = []
    for label in range(3):  # gradients of -log p(label), times the root of what the label counts

        def loss(y: Any, t: Any, label: int = label) -> Any:
            return 0.0, lambda _: np.sqrt(p[:, label, None]) * (p - np.eye(3)[label])

        network.init_computation()
        network.collect_batch(x, x, loss, fisher=True)
        expected = [a + b for a, b in zip(expected, moments(network), strict=True)] if expected else moments(network)
    network.init_computation()
    network.collect_batch(x, np.zeros(6, np.int64), cross_entropy, fisher=True, exact=True)
    for found, wanted in zip(moments(network), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14 * np.abs(wanted).max())
        assert np.abs(wanted).max() > 1e-3


@pytest.mark.parametrize("kind", ["mlp", "dag"])
def test_weights_count_samples(kind: str) -> None:
    network, x = made(kind)
    labels, counts = np.zeros(6, np.int64), np.array([1, 2, 0, 3, 1, 1])
    network.init_computation()
    network.collect_batch(np.repeat(x, counts, 0), np.repeat(labels, counts), cross_entropy, fisher=True, exact=True)
    expected = moments(network)
    network.init_computation()
    weights = counts * 6 / counts.sum()
    one = weights[:, None] * np.eye(3)[labels]
    network.collect_batch(x, one, cross_entropy, fisher=True, exact=True, weights=weights)
    for found, wanted in zip(moments(network), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)


def test_gradients_are_the_losses_alone() -> None:
    network, x = made("mlp")
    labels = np.arange(6) % 3
    y, pullback = network.vjp(x)
    dy = cross_entropy(y, labels)[1](6.0)
    pullback(dy)
    expected = {name: p.grad for name, p in network.named_parameters()}
    network.zero_grad()
    network.init_computation()
    y, pullback = network.vjp(x)
    network.update_computation_true_fisher(pullback, dy, y)
    for name, parameter in network.named_parameters():
        np.testing.assert_allclose(parameter.grad, expected[name], rtol=1e-13)
    kept = network.growing_layers[-1].pre_activity_grad
    np.testing.assert_array_equal(kept, dy)


def test_the_loop_takes_it() -> None:
    run = loop(rule=FISHER, exact_fisher=True, epochs=2)
    assert [entry["event"] for entry in run.run().steps][:2] == ["train", "growth"]
    assert run.history.of("growth")[0]["slope"] != loop(rule=FISHER, epochs=2).run().of("growth")[0]["slope"]
    with pytest.raises(GrowthError, match="a regression has no softmax; leave exact_fisher out"):
        loop(rule=FISHER, exact_fisher=True, task="regression", data=(X, TARGET))
    with pytest.raises(TypeError, match="exact_fisher must be True or False, found 1"):
        loop(exact_fisher=1)


def test_every_library_gives_the_same(xp: Library) -> None:
    network, x = made("dag")
    labels = np.arange(6) % 3
    network.init_computation()
    network.collect_batch(x, labels, cross_entropy, fisher=True, exact=True)
    expected = moments(network)
    theirs, _ = made("dag")
    xp.adopt(theirs)
    theirs.init_computation()
    theirs.collect_batch(xp.asarray(x), xp.asarray(labels), cross_entropy, fisher=True, exact=True)
    for found, wanted in zip(moments(theirs), expected, strict=True):
        np.testing.assert_allclose(to_numpy(found), wanted, rtol=1e-10, atol=1e-14)
