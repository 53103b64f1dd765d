"""Tensor lasso: weights in the value, the penalty and its subgradient, projection, removal, pruning, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.backend import to_numpy
from growarray.errors import ShapeError
from growarray.factorized import FactorizedConv, FactorizedLinear, FactorizedTensor, TensorLasso, tensor_dropout
from growarray.optim import Adam
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library
from tests.factorized.kernels import as_function, layer, rng, tensor

RANKED = ("CP", "Tucker", "TT", "TR", "BlockTT")
SHAPE = (4, 3, 4, 3)
COUNT = {"CP": 1, "Tucker": 4, "TT": 3, "TR": 4, "BlockTT": 1}
each_format = pytest.mark.parametrize("name", RANKED)


def weighted(name: str, lasso: TensorLasso, seed: int = 1, rank: int = 3) -> FactorizedTensor:
    """A tensor with lasso weights that are not one."""
    held = lasso.apply(tensor(name, SHAPE, rank))
    generator = rng(seed)
    for weight in held.lasso_weights:
        weight.data = generator.uniform(0.2, 0.9, weight.shape)
    return held


def by_hand(held: FactorizedTensor) -> Any:
    """The value, with the weights multiplied in at the last place where their rank stands, not the first."""
    arrays = [np.array(p.data) for p in held.all_factors()]
    for weight, places in zip(held.lasso_weights, held.format.rank_axes(held.order), strict=True):
        part, axis = places[-1]
        arrays[part] = np.moveaxis(np.moveaxis(arrays[part], axis, -1) * weight.data, -1, axis)
    return type(held).of(arrays).to_tensor()


@each_format
def test_weights_start_at_one_and_scale_the_components(name: str) -> None:
    lasso, held = TensorLasso(), tensor(name, SHAPE, 3)
    before = held.to_tensor()
    assert lasso.apply(held) is held
    assert [w.shape for w in held.lasso_weights] == [(3,)] * COUNT[name]
    assert_close(held.to_tensor(), before, rtol=1e-15)
    assert list(held.state_dict())[-1] == f"lasso_weights.{COUNT[name] - 1}"
    other = weighted(name, lasso)
    assert_close(other.to_tensor(), by_hand(other), rtol=1e-12)
    assert_close(other[1:, 2].to_tensor() if name != "BlockTT" else other[1:, 2:].to_tensor(),
                 by_hand(other)[1:, 2] if name != "BlockTT" else by_hand(other)[1:, 2:], rtol=1e-12)  # fmt: skip


@each_format
def test_pullback_of_a_layer_is_the_derivative_by_the_weights_too(name: str) -> None:
    conv = TensorLasso().apply(layer(name, 3, 3, (2, 2), rank=2, bias=True))
    for i, weight in enumerate(conv.weight.lasso_weights):
        weight.data = rng(i).uniform(0.3, 0.9, weight.shape)
    x = rng(7).standard_normal((1, 3, 3, 3))
    check_vjp(as_function(conv), x, *[p.data for p in conv.parameters()], rtol=2e-7)


@each_format
def test_with_dropout_and_in_a_joint_layer(name: str) -> None:
    if name == "BlockTT":
        pytest.skip("a joint layer has an odd number of modes")
    joint = FactorizedLinear((2, 2), (3,), factorization=name, rank=3, n_layers=2, rng=rng(0), dtype=np.float64)
    TensorLasso().apply(joint)

    def function(x: Any, *values: Any) -> Any:
        joint.weight.dropout = None
        tensor_dropout(joint, 0.4, min_dim=1, rng=rng(3))
        return as_function(joint, 1)(x, *values)

    check_vjp(function, rng(1).standard_normal((2, 4)), *[p.data for p in joint.parameters()], rtol=2e-7)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_penalty_is_that_of_all_weights(normalize: bool) -> None:
    lasso = TensorLasso(penalty=0.3, normalize_loss=normalize)
    held = [weighted("Tucker", lasso, 1), weighted("TT", lasso, 2)]
    held[0].lasso_weights[0].data[:2] = [-0.5, 0.0]
    every = np.concatenate([w.data for t in held for w in t.lasso_weights])
    value, pullback = lasso.vjp()
    factor = 0.3 / (every.size if normalize else 1)
    assert float(value) == pytest.approx(factor * np.abs(every).sum(), rel=1e-14)
    assert float(lasso.loss) == float(value)
    pullback()
    pullback(2.0)
    found = np.concatenate([w.grad for t in held for w in t.lasso_weights])  # type: ignore[arg-type]
    assert_close(found, 3 * factor * np.sign(every), rtol=1e-14)
    assert all(p.grad is None for t in held for p in t.all_factors())


def test_projection_clamps_and_cuts() -> None:
    values = np.asarray([1.5, 0.5, 1e-7, 0.0, -0.3, -2.0])
    for options, expected in (
        ({}, [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]),
        ({"clamp_weights": False}, [1.5, 0.5, 0.0, 0.0, 0.0, 0.0]),
        ({"threshold": 0.0}, [1.0, 0.5, 1e-7, 0.0, -0.3, -1.0]),
        ({"threshold": 0.6}, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    ):
        lasso = TensorLasso(**options)  # type: ignore[arg-type]
        held = lasso.apply(tensor("CP", SHAPE, 6))
        held.lasso_weights[0].data = values
        lasso.project()
        assert held.lasso_weights[0].data.tolist() == expected
    assert values[0] == 1.5  # the caller's array is left as it was


@each_format
def test_remove_keeps_the_value(name: str) -> None:
    lasso = TensorLasso()
    held = weighted(name, lasso)
    value, count = held.to_tensor(), held.number_of_parameters()
    assert lasso.remove(held) is held
    assert_close(held.to_tensor(), value, rtol=1e-12)
    assert held.number_of_parameters() == count - 3 * COUNT[name]
    assert not any("lasso" in key for key in held.state_dict())
    with pytest.raises(ValueError, match="this lasso was not applied to"):
        lasso.remove(held)
    with pytest.raises(ValueError, match="not yet applied to a tensor with a rank"):
        lasso.vjp()


@each_format
def test_prune_removes_zero_components_and_keeps_value_and_state(name: str) -> None:
    lasso = TensorLasso()
    held = weighted(name, lasso)
    held.lasso_weights[0].data[1] = 0.0
    held.lasso_weights[-1].data[1] = 0.0
    value, pullback = held.tensor_vjp()
    pullback(np.ones_like(value))
    for parameter in held.parameters():
        parameter.slots = {"momentum": parameter.data * 2, "step": 3}
    gradients = {id(p): p.grad for p in held.parameters()}
    expected = 1 if COUNT[name] == 1 else 2
    assert lasso.prune(held) == expected
    assert_close(held.to_tensor(), value, rtol=1e-12)
    ranks = [w.size for w in held.lasso_weights]
    assert ranks == [2, *[3] * (COUNT[name] - 2), *([2] if COUNT[name] > 1 else [])]
    assert held.format.sizes_of(held.shape, held.rank) == tuple(ranks)
    for parameter in held.parameters():
        assert parameter.grad.shape == parameter.shape  # type: ignore[union-attr]
        assert_close(parameter.slots["momentum"], parameter.data * 2, rtol=0)
        assert parameter.slots["step"] == 3
        assert parameter.grad.size <= gradients[id(parameter)].size  # type: ignore[union-attr]
    assert lasso.prune(held) == 0


def test_prune_keeps_one_component() -> None:
    lasso = TensorLasso()
    held = weighted("CP", lasso)
    held.lasso_weights[0].data[:] = 0.0
    assert lasso.prune(held) == 2
    assert held.rank == 1
    assert not held.to_tensor().any()


def test_it_finds_the_rank_of_a_weight_that_has_less() -> None:
    generator = rng(0)
    x = generator.standard_normal((128, 8))
    target = x @ (generator.standard_normal((8, 2)) @ generator.standard_normal((2, 6)))
    ranks = []
    for seed in (3, 4, 5):
        net = FactorizedLinear(8, 6, bias=False, factorization="cp", rank=6, rng=rng(seed), dtype=np.float64)
        lasso = TensorLasso(penalty=1.0, normalize_loss=False, threshold=1e-2)
        lasso.apply(net)
        optimizer = Adam(net.parameters(), lr=0.02)
        for _ in range(400):
            net.zero_grad()
            y, pullback = net.vjp(x)
            pullback(2 * (y - target) / len(x))
            lasso.vjp()[1]()
            optimizer.step()
            lasso.project()
        assert lasso.prune(net) == 6 - net.rank
        assert float(np.mean((net(x) - target) ** 2)) < 0.05 * float(np.mean(target**2))
        ranks.append(net.rank)
    assert min(ranks) >= 2
    assert sorted(ranks)[1] <= 3  # of most starts; another one may end with components that share the work


@each_format
def test_it_runs_on_every_library(name: str, xp: Library) -> None:
    lasso = TensorLasso(penalty=0.2)
    conv = lasso.apply(layer(name, 3, 4, (2, 2), rank=3))
    conv.weight.lasso_weights[0].data[0] = 0.0
    host = rng(0).standard_normal((1, 3, 4, 4))
    expected, loss = conv(host), float(lasso.loss)
    xp.adopt(conv)
    y, pullback = conv.vjp(xp.asarray(host))
    assert_close(to_numpy(y), expected, rtol=1e-12)
    pullback(y)
    value, back = lasso.vjp()
    back()
    assert float(to_numpy(value)) == pytest.approx(loss, rel=1e-12)
    lasso.project()
    assert lasso.prune(conv) == 1
    assert_close(to_numpy(conv(xp.asarray(host))), expected, rtol=1e-12)
    lasso.remove(conv)
    assert_close(to_numpy(conv(xp.asarray(host))), expected, rtol=1e-12)


def test_new_values_start_with_weights_of_one() -> None:
    held = weighted("TT", TensorLasso())
    whole = tensor("TT", SHAPE, 2).to_tensor()
    held.init_from_tensor(whole)
    assert_close(held.to_tensor(), whole, rtol=1e-10)
    held = weighted("TT", TensorLasso()).normal_(0.0, 1.0, rng(0))
    assert all((w.data == 1.0).all() for w in held.lasso_weights)


def test_refusals() -> None:
    for options, message in (
        ({"penalty": -1.0}, "penalty must be a number of at least 0, found -1.0"),
        ({"threshold": float("nan")}, "threshold must be a number of at least 0, found nan"),
    ):
        with pytest.raises(ValueError, match=message):
            TensorLasso(**options)  # type: ignore[arg-type]
    lasso = TensorLasso()
    with pytest.raises(ValueError, match="not yet applied to a tensor"):
        lasso.project()
    with pytest.raises(TypeError, match="Linear is not a factorized tensor"):
        lasso.apply(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="has no rank"):
        lasso.apply(FactorizedConv(2, 2, (3,), factorization="dense"))
    conv = lasso.apply(FactorizedConv(2, 2, (3, 3), factorization="tt", rank=2))
    with pytest.raises(ValueError, match="has lasso weights already"):
        lasso.apply(conv)
    with pytest.raises(ValueError, match=r"TTTensor.transduct: the tensor has lasso weights; call TensorLasso.remove"):
        conv.transduct(3)
    conv.weight.lasso_weights[0].data = np.ones(5, dtype=np.float32)
    with pytest.raises(ShapeError, match=r"lasso weights of shape \(5,\) for a rank of 2"):
        conv(np.ones((1, 2, 5, 5), dtype=np.float32))


def test_a_weight_that_is_no_number_is_not_taken_for_zero() -> None:
    lasso = TensorLasso()
    held = lasso.apply(tensor("CP", SHAPE, 3))
    held.lasso_weights[0].data = np.asarray([0.5, np.nan, 1e-9])
    lasso.project()
    np.testing.assert_array_equal(held.lasso_weights[0].data, [0.5, np.nan, 0.0])


@pytest.mark.parametrize("value", ["0.1", None], ids=str)
def test_a_penalty_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=f"penalty must be a number of at least 0, found {value!r}"):
        TensorLasso(penalty=value)
