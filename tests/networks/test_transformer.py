"""A transformer block that grows in its MLP and in its heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import load, save
from growarray.backend import to_numpy
from growarray.checkpoint import from_onnx, to_onnx
from growarray.errors import ShapeError
from growarray.growing import TINY
from growarray.networks import GrowingAttention, GrowingTransformerBlock, Growth, GrowthSettings
from growarray.networks.part import as_growing
from growarray.nn import Linear, MultiheadAttention, ReduceMean, Sequential
from growarray.optim import Adam
from growarray.testing import assert_close, check_vjp
from tests.conftest import LIBRARIES, Library

F64 = np.float64
X = np.random.default_rng(5).standard_normal((30, 4, 6))
PLACES = ["key.0", "output.0", "key.1", "output.1", "second"]


def block(head: int = 1, hidden: int = 2, causal: bool = False) -> GrowingTransformerBlock:
    """Its weights are larger than at first, so that the heads look at something."""
    made = GrowingTransformerBlock(6, 2, hidden, head, causal, rng=np.random.default_rng(1), dtype=F64)
    for parameter in made.parameters():
        parameter.data = parameter.data * 1.5
    return made


def target() -> np.ndarray:
    return X + np.sin(X @ np.random.default_rng(6).standard_normal((6, 6))) * X[:, ::-1]


def loss(network: Any) -> float:
    return float(np.sum((network(X) - target()) ** 2)) / 2 / len(X)


def collected(made: Any) -> Any:
    """The network around it, with statistics of half the squared error."""
    network = as_growing(Sequential(made))
    network.init_computation()
    y, pullback = network.vjp(X)
    pullback(y - target(), wrt_x=False)
    network.update_computation()
    return network


def as_function(made: Any) -> Any:
    def function(x: Any, *values: Any) -> Any:
        for parameter, value in zip(made.parameters(), values, strict=True):
            parameter.data = value
        y, back = made.vjp(x)

        def pullback(dy: Any) -> Any:
            made.zero_grad()
            return back(dy), *(p.grad for p in made.parameters())

        return y, pullback

    return function


@pytest.mark.parametrize("causal", [False, True])
def test_pullback_is_the_derivative_by_input_and_parameters(causal: bool) -> None:
    made = block(causal=causal)
    check_vjp(as_function(made), X[:2], *[p.data for p in made.parameters()], rtol=2e-7)


@pytest.mark.parametrize(("bias", "causal"), [(True, False), (False, True)])
def test_heads_compute_what_plain_attention_does(bias: bool, causal: bool) -> None:
    plain = MultiheadAttention(6, 2, bias, causal, rng=np.random.default_rng(0), dtype=F64)
    for parameter in plain.parameters():
        parameter.data = np.random.default_rng(parameter.size).standard_normal(parameter.shape)
    (y, back), (own, own_back) = plain.vjp(X), GrowingAttention.of(plain).vjp(X)
    assert_close(own, y, rtol=1e-12)
    assert_close(own_back(X), back(X), rtol=1e-11)


def test_it_has_a_place_for_every_head_and_the_mlp() -> None:
    assert [layer.name for layer in as_growing(block()).growing_layers] == [
        *(f"block.attention.{name}" for name in ("key.0", "key.1", "output.0", "output.1")), "block.second",
    ]  # fmt: skip


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_promised_to_first_order_comes_and_scaling_zero_changes_nothing(place: str, head: int) -> None:
    network = collected(block(head, causal=place == "key.1"))
    (layer,) = [layer for layer in network.growing_layers if layer.name.endswith(place)]
    if place.startswith("key") and head == 0:
        for other in network.growing_layers:  # heads of values without width pass no gradient on to the weights
            if other.name.endswith(place.replace("key", "output")):
                other.compute_optimal_updates(max_new=1)
                other.apply_change(scaling_factor=1.0)
                other.delete_update()
        network = collected(network.module[0])
    layer.compute_optimal_updates(TINY, max_new=2)
    before, promised, g = loss(network), layer.predicted_decrease, 0.01
    layer.scaling_factor = g
    assert promised > 0.0
    assert before - loss(network.extended_forward) == pytest.approx(g * g * promised, rel=1e-2)
    layer.scaling_factor = 0.0
    y, width = network(X), layer.in_neurons
    with pytest.warns(UserWarning, match="applied with scaling 0"):
        layer.apply_change(scaling_factor=0.0)
    assert layer.in_neurons == width + 2
    assert_close(network(X), y, rtol=1e-14)


def test_new_queries_and_keys_are_the_svd_of_what_the_scores_ask_for() -> None:
    """From width 0: no delta, and N is the moment of x with the gradient at the queries as the keys see them."""
    made = GrowingAttention(6, 1, 0, rng=np.random.default_rng(1), dtype=F64)
    made.value[0].layer.weight.data = np.eye(6)
    made.output[0].layer.weight.data = np.eye(6)
    network = collected(made)
    layer = made.key[0]
    alpha, _ = layer.compute_optimal_updates(max_new=1)
    errors = X.mean(axis=1, keepdims=True) + made.output[0].bias.data - target()
    d_scores = (
        (errors @ X.transpose(0, 2, 1) - np.mean(errors @ X.transpose(0, 2, 1), axis=2, keepdims=True)) / 4 / np.sqrt(6)
    )
    ones = np.concatenate([X, np.ones((30, 4, 1))], axis=2)
    moment = np.einsum("nia, nij, njb -> ab", ones, d_scores, X) / 30
    second = np.einsum("nia, nib -> ab", ones, ones) / 30
    root = np.linalg.cholesky(np.linalg.inv(second))
    u, s, _ = np.linalg.svd(root.T @ -moment, full_matrices=False)
    assert layer.update.singular_values[0] == pytest.approx(s[0], rel=1e-10)
    found, expected = alpha[0] / np.linalg.norm(alpha[0]), (root @ u[:, 0])[:6]
    assert abs(found @ expected) == pytest.approx(np.linalg.norm(expected), rel=1e-9)
    assert network.growing_layers[0] is layer


def test_the_loop_grows_a_network_with_it_and_files_keep_it(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    made = GrowingTransformerBlock(6, 2, 1, 1, rng=rng)
    network = Sequential(Linear(6, 6, rng=rng), made, ReduceMean((1,), keepdims=False), Linear(6, 2, rng=rng))
    x = X.astype(np.float32)
    labels = (x[:, 0, 0] * x[:, 3, 0] > 0).astype(np.int64)
    settings = GrowthSettings(epochs=4, every=1, first=1, neurons=1, max_parameters=400)
    loop = Growth(network, Adam(network, lr=1e-2), (x, labels), validation=(x, labels), settings=settings, rng=rng)
    loop.run()
    widths = [layer.in_neurons for layer in as_growing(network).growing_layers]
    assert sum(widths) > 5
    save(network, tmp_path / "grown.safetensors")
    again = load(tmp_path / "grown.safetensors")
    assert np.array_equal(again(x), network(x))
    assert [layer.in_neurons for layer in as_growing(again).growing_layers] == widths
    to_onnx(network, tmp_path / "grown.onnx", input_shape=(1, 4, 6))
    assert_close(from_onnx(tmp_path / "grown.onnx")(x), network(x), rtol=1e-5)


def test_every_library_gives_numpy_s_numbers(xp: Library) -> None:
    found = []
    for library in (LIBRARIES["numpy"], xp):
        made = library.adopt(block(causal=True))
        network = as_growing(Sequential(made))
        network.init_computation()
        y, pullback = network.vjp(library.asarray(X))
        pullback(y - library.asarray(target()))
        network.update_computation()
        network.compute_optimal_updates(max_new=1)
        network.select_update(0)
        network.apply_change(0.5)
        found.append(to_numpy(network(library.asarray(X))))
    assert_close(found[1], found[0], rtol=1e-10)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"6 features cannot be split into 4 heads.*or pass head_features="):
        GrowingAttention(6, 4)
    made = block()
    made.norm1.normalized_shape = (5,)
    with pytest.raises(ShapeError, match=r"a norm over \(5,\), expected \(6,\)"):
        made._check_held()
