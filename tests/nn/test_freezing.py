"""Freezing: no gradient, no step, no decay, and no work for what is frozen."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.backend import to_numpy
from growarray.factorized import FactorizedConv, FactorizedLinear, TensorLasso
from growarray.nn.module import Module, for_parameters
from growarray.optim import SGD, Adam, AdamW, clip_gradients
from tests.conftest import Library
from tests.nn.layers import EXAMPLES, Example


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_a_frozen_layer_gives_the_same_input_gradient_and_takes_none(example: Example, xp: Library) -> None:
    layer = xp.adopt(example.build())
    x = rng(1).standard_normal(example.shape)
    x, dy = xp.asarray(np.abs(x) + 0.2 if example.positive else x), xp.asarray(rng(2).standard_normal(example.output))
    expected = to_numpy(layer.vjp(x)[1](dy)).copy()
    assert layer.requires_grad_(False) is layer
    assert all(p.grad is None for p in layer.parameters())  # what was there is gone
    np.testing.assert_allclose(to_numpy(layer.vjp(x)[1](dy)), expected, rtol=1e-12, atol=1e-14)
    assert all(p.grad is None for p in layer.parameters())
    layer.requires_grad_(True)
    layer.vjp(x)[1](dy)
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize(
    "make", [lambda net: SGD(net, 0.1, momentum=0.9, weight_decay=0.5), lambda net: AdamW(net, weight_decay=0.5)]
)
def test_neither_step_nor_decay_moves_it(make: Callable[..., Any]) -> None:
    net = nn.Sequential(nn.Linear(3, 4, rng=rng()), nn.ReLU(), nn.Linear(4, 2, rng=rng()))
    optimizer, x = make(net), rng().standard_normal((5, 3)).astype(np.float32)
    net[0].requires_grad_(False)
    before = net.state_dict()
    y, pullback = net.vjp(x)
    pullback(y)
    net[0].parameters()[0].grad = before["0.weight"]  # set by hand it moves nothing either, and counts in no norm
    norm = clip_gradients(net, 1e9)
    assert norm == pytest.approx(float(np.sqrt(sum(np.sum(p.grad**2) for p in net[2].parameters()))))
    optimizer.step()
    after = net.state_dict()
    assert {name for name in after if not np.array_equal(after[name], before[name])} == {"2.weight", "2.bias"}
    assert net[0].parameters()[0].slots == {}


@pytest.mark.parametrize(
    ("layer", "shape", "operation"),
    [
        (nn.Linear(3, 2, rng=rng()), (4, 3), "growarray.nn.linear.linear"),
        (nn.Conv2d(2, 3, 3, rng=rng()), (2, 2, 6, 6), "growarray.nn.Conv2d._run"),
        (nn.ConvTranspose2d(2, 3, 3, rng=rng()), (2, 2, 6, 6), "growarray.nn.ConvTranspose2d._run"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Module) else "",
)
def test_the_gradient_of_a_frozen_weight_is_not_computed(
    layer: Any, shape: tuple[int, ...], operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Any = pkgutil.resolve_name(operation)
    asked: list[Any] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        y, back = original(*arguments, **options)
        return y, lambda dy, **wanted: asked.append(wanted) or back(dy, **wanted)

    monkeypatch.setattr(operation, staticmethod(watched))
    layer.requires_grad_(False)
    y, pullback = layer.vjp(rng().standard_normal(shape).astype(np.float32))
    pullback(y)
    for_parameters(pullback, y)
    assert asked == [{"wrt_x": True, "wrt_w": False}, {"wrt_x": False, "wrt_w": False}]


def test_a_stem_that_is_frozen_is_not_pulled_back_through() -> None:
    passed: list[int] = []

    class Watched(Module):
        def __init__(self, number: int, layer: Module) -> None:
            self.number, self.layer = number, layer

        def vjp(self, x: Any) -> Any:
            y, back = self.layer.vjp(x)
            return y, lambda dy: passed.append(self.number) or back(dy)

    net = nn.Sequential(*(Watched(i, nn.Linear(3, 3, rng=rng(i), dtype=np.float64)) for i in range(4)))
    net[0].requires_grad_(False)
    net[1].requires_grad_(False)
    x = rng().standard_normal((5, 3))
    y, pullback = net.vjp(x)
    assert pullback(y, wrt_x=False) is None
    assert passed == [3, 2]
    alone = [p.grad for p in net[2].parameters()]
    net.zero_grad()
    assert pullback(y).shape == x.shape
    assert passed == [3, 2, 3, 2, 1, 0]
    for ours, theirs in zip(alone, net[2].parameters(), strict=True):
        np.testing.assert_array_equal(ours, theirs.grad)
    net.requires_grad_(False)
    assert pullback(y, wrt_x=False) is None
    assert passed == [3, 2, 3, 2, 1, 0]


@pytest.mark.parametrize("kind", ["CP", "Tucker", "TT", "TR"])
def test_factors_that_are_frozen_still_feed_the_lasso(kind: str) -> None:
    conv = FactorizedConv(4, 4, (3, 3), padding=1, rank=2, factorization=kind, rng=rng(), dtype=np.float64)
    TensorLasso().apply(conv)
    x = rng().standard_normal((2, 4, 5, 5))
    y, pullback = conv.vjp(x)
    pullback(y)
    expected = [weight.grad for weight in conv.weight.lasso_weights]
    conv.zero_grad()
    for part in conv.weight.all_factors():
        part.requires_grad = False
    conv.vjp(x)[1](y)
    assert all(part.grad is None for part in conv.weight.all_factors())
    for ours, theirs in zip(conv.weight.lasso_weights, expected, strict=True):
        np.testing.assert_allclose(ours.grad, theirs, rtol=1e-12)


def test_frozen_names_of_a_factorized_layer_are_the_same_thing() -> None:
    conv = FactorizedConv(4, 4, (3, 3), rank=2, bias=True)
    conv.requires_grad_(False)
    assert conv.frozen == tuple(name for name, _ in conv.named_parameters())
    conv.unfreeze()
    assert all(p.requires_grad for p in conv.parameters())
    linear = FactorizedLinear((2, 2), (2, 2), rank=2)
    linear.requires_grad_(False)
    y, pullback = linear.vjp(np.ones((1, 4), np.float32))
    pullback(y)
    assert all(p.grad is None for p in linear.parameters())


def test_a_gradient_that_was_not_computed_is_none_later() -> None:
    layer = nn.Linear(2, 2, rng=rng())
    layer.requires_grad_(False)
    y, pullback = layer.vjp(np.ones((1, 2), np.float32))
    layer.requires_grad_(True)
    pullback(y)
    assert layer.weight.grad is None
    Adam(layer).step()


def test_what_is_no_flag_is_refused() -> None:
    wrong: Any = "no"
    with pytest.raises(TypeError, match=r"Linear.requires_grad_: expected True or False, found 'no'"):
        nn.Linear(1, 1).requires_grad_(wrong)
