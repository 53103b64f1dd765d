"""Tensor dropout: which components are dropped, their gradients, the mean, the modes, and layers that have it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.backend import to_numpy
from growarray.factorized import (
    FactorizedConv,
    FactorizedLinear,
    FactorizedTensor,
    TensorDropout,
    remove_tensor_dropout,
    tensor_dropout,
)
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library
from tests.factorized.kernels import as_function, layer, rng, tensor

RANKED = ("CP", "Tucker", "TT", "TR", "BlockTT")
each_format = pytest.mark.parametrize("name", RANKED)
SHAPE = (4, 3, 4, 3)


def dropped(name: str, seed: int = 5, rank: Any = 4, **options: Any) -> FactorizedTensor:
    return tensor_dropout(tensor(name, SHAPE, rank), 0.5, **{"min_dim": 1, "rng": rng(seed), **options})


def masks_of(held: FactorizedTensor, seed: int) -> list[Any]:
    return TensorDropout(0.5, min_dim=1, rng=rng(seed)).draw(held.format.sizes_of(held.shape, held.rank), True)


def cut(held: FactorizedTensor, masks: list[Any]) -> Any:
    """The tensor whose dropped components are cut out, as the original does, with the original's factor."""
    arrays = [np.asarray(a) for a in held.arrays()]
    scale = 1.0
    for mask, places in zip(masks, held.format.rank_axes(held.order), strict=True):
        kept = np.flatnonzero(mask)
        scale *= float(mask[kept[0]])
        for part, axis in places:
            arrays[part] = np.take(arrays[part], kept, axis=axis)
    return scale * type(held).of(arrays).to_tensor()


@each_format
def test_value_is_that_of_the_tensor_without_the_dropped_components(name: str) -> None:
    held = dropped(name)
    masks = masks_of(held, 5)
    assert any((m == 0).any() for m in masks)
    value, _ = held.tensor_vjp()
    assert_close(value, cut(held, masks), rtol=1e-12)


@each_format
def test_gradients_flow_through_the_kept_components_only(name: str) -> None:
    held = dropped(name)
    masks = masks_of(held, 5)
    value, pullback = held.tensor_vjp()
    pullback(np.ones_like(value))
    parts = held.all_factors()
    for mask, places in zip(masks, held.format.rank_axes(held.order), strict=True):
        for part, axis in places:
            gradient = np.moveaxis(parts[part].grad, axis, 0)  # type: ignore[arg-type]
            assert not gradient[mask == 0].any()
            assert all(g.any() for g in gradient[mask != 0])


@each_format
def test_pullback_is_the_derivative_for_a_mask(name: str) -> None:
    conv = layer(name, 3, 3, (2, 2), rank=3)

    def function(x: Any, *values: Any) -> Any:
        conv.weight.dropout = TensorDropout(0.4, min_dim=1, rng=rng(3))
        return as_function(conv)(x, *values)

    check_vjp(function, rng(1).standard_normal((1, 3, 3, 3)), *[p.data for p in conv.parameters()], rtol=2e-7)


@each_format
def test_the_mean_over_masks_is_the_tensor(name: str) -> None:
    held = tensor_dropout(tensor(name, SHAPE, 3), 0.2, min_dim=1, rng=rng(0))
    draws = np.stack([np.asarray(held.tensor_vjp()[0]) for _ in range(1500)])
    expected, spread = held.to_tensor(), draws.std(axis=0) / np.sqrt(len(draws))
    # One component of 3 stays at least: with probability 0.2^3 all are dropped, and the mean moves by about that.
    assert np.all(np.abs(draws.mean(axis=0) - expected) < 5 * spread + 0.03 * np.abs(expected).max())


@each_format
def test_it_is_active_in_training_only(name: str) -> None:
    held = dropped(name)
    whole = held.to_tensor()
    assert not np.allclose(held.tensor_vjp()[0], whole)
    assert_close(held.to_tensor(), whole, rtol=0)
    assert_close(held[1:].to_tensor(), whole[1:], rtol=1e-12)
    held.eval()
    assert_close(held.tensor_vjp()[0], whole, rtol=0)
    held.train()
    remove_tensor_dropout(held)
    assert_close(held.tensor_vjp()[0], whole, rtol=0)


def test_drop_test_drops_in_evaluation_without_scaling() -> None:
    held = dropped("CP", drop_test=True)
    held.eval()
    masks = [m / 2 for m in masks_of(held, 5)]
    assert_close(held.tensor_vjp()[0], cut(held, masks), rtol=1e-12)


def test_small_ranks_are_left_alone_and_not_scaled() -> None:
    held = tensor_dropout(tensor("TT", SHAPE, (1, 3, 12, 3, 1)), 0.9, min_dim=3, rng=rng(0))
    drawn = TensorDropout(0.9, min_dim=3, rng=rng(0)).draw(held.format.sizes_of(held.shape, held.rank), True)
    assert [m is None for m in drawn] == [True, False, True]
    alone = tensor_dropout(tensor("CP", SHAPE, 3), 0.9)
    assert_close(alone.tensor_vjp()[0], alone.to_tensor(), rtol=0)


@pytest.mark.parametrize(("least", "size", "expected"), [(1, 6, 1), (4, 6, 4), (9, 6, 6)])
def test_some_components_stay(least: int, size: int, expected: int) -> None:
    drop = TensorDropout(0.999, min_dim=1, min_values=least, rng=rng(0))
    for _ in range(20):
        (mask,) = drop.draw((size,), True)
        assert np.count_nonzero(mask) == expected


@each_format
def test_layers_draw_a_mask_for_each_call_and_keep_their_plan(name: str) -> None:
    conv = layer(name, 4, 4, (3, 3), rank=4)
    x = rng(0).standard_normal((2, 4, 6, 6))
    plan, whole = conv.plan(x.shape), conv(x)
    assert tensor_dropout(conv, 0.5, min_dim=1, rng=rng(2)) is conv
    first, second = conv(x), conv(x)
    assert not np.allclose(first, second)
    assert conv.plan(x.shape) is plan
    assert_close(conv.eval()(x), whole, rtol=0)  # type: ignore[operator]
    again = tensor_dropout(layer(name, 4, 4, (3, 3), rank=4), 0.5, min_dim=1, rng=rng(2))
    again.plan(x.shape)
    again.kernel()  # neither draws
    assert_close(again(x), first, rtol=0)


def test_linear_and_joint_layers_have_it() -> None:
    joint = FactorizedLinear((2, 3), (3, 2), factorization="tucker", rank=3, n_layers=3, rng=rng(0), dtype=np.float64)
    tensor_dropout(joint, 0.5, min_dim=1, rng=rng(2))
    x = rng(1).standard_normal((4, 6))
    masks = masks_of(joint.weight, 2)
    y, pullback = joint.vjp(x, 1)
    matrix = cut(joint.weight, masks)[1].reshape(6, 6)
    assert_close(y, x @ matrix.T + joint.bias.data[1], rtol=1e-12)  # type: ignore[union-attr]
    pullback(y)
    assert not joint.weight.core.grad[masks[0] == 0].any()  # type: ignore[attr-defined]
    net = nn.Sequential(joint[0], nn.ReLU(), joint[1])
    net.eval()
    assert_close(net(x), net(x), rtol=0)
    assert not joint.weight.training


def test_it_runs_on_every_library(xp: Library) -> None:
    conv = tensor_dropout(layer("TT", 3, 4, (2, 2), rank=3), 0.5, min_dim=1, rng=rng(2))
    host = rng(0).standard_normal((1, 3, 4, 4))
    expected = conv(host)
    other = tensor_dropout(layer("TT", 3, 4, (2, 2), rank=3), 0.5, min_dim=1, rng=rng(2))
    xp.adopt(other)
    y, pullback = other.vjp(xp.asarray(host))
    assert_close(to_numpy(y), expected, rtol=1e-12)
    pullback(y)


def test_refusals() -> None:
    held = tensor("CP", SHAPE)
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="p must be at least 0 and below 1"):
            tensor_dropout(held, p)
    with pytest.raises(ValueError, match="min_values must be at least 1, found 0"):
        tensor_dropout(held, 0.5, min_values=0)
    with pytest.raises(ValueError, match=r"CPTensor of float64 and shape \(4, 3, 4, 3\) has no tensor dropout"):
        remove_tensor_dropout(held)
    tensor_dropout(held, 0.5)
    with pytest.raises(ValueError, match=r"has TensorDropout\(p=0.5.*call remove_tensor_dropout first"):
        tensor_dropout(held, 0.1)
    with pytest.raises(ValueError, match=r"DenseTensor.* has no rank"):
        tensor_dropout(FactorizedConv(2, 2, (3,), factorization="dense"), 0.5)
    with pytest.raises(TypeError, match="Linear is not a factorized tensor, nor is its weight"):
        tensor_dropout(nn.Linear(2, 2), 0.5)


@pytest.mark.parametrize("p", ["0.5", None, False], ids=str)
def test_a_probability_that_is_no_number_is_refused(p: Any) -> None:
    with pytest.raises(ValueError, match="p must be at least 0 and below 1"):
        tensor_dropout(tensor("CP", SHAPE, 3), p)


def test_a_seed_is_refused_where_a_generator_is_needed() -> None:
    held = tensor("CP", SHAPE, 3)
    with pytest.raises(TypeError, match=r"rng=0, expected a numpy\.random\.Generator"):
        tensor_dropout(held, 0.5, rng=0)  # type: ignore[arg-type]
    assert held.dropout is None
