"""What an array must be, asked at every door: real numbers, no mask, no objects; layers, operations and what grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray import decompose, growing, ops, optim
from growarray.backend import namespace
from growarray.contraction import Rows, contract, plan, row_products, transpose
from growarray.factorized import FactorizedConv, FactorizedLinear, FactorizedTensor
from growarray.growing import LinearGrowingModule, LinearMergeGrowingModule, RankStatistics, Stream, TensorStatistic
from growarray.networks import GrowingMLP, accuracy
from growarray.nn import Linear, Parameter
from growarray.testing import check_vjp
from tests.nn.layers import EXAMPLES

F64 = np.float64
Door = Callable[[Any], Any]

BAD: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "masked": (lambda x: np.ma.masked_array(x, mask=x > 0.8), r"found a MaskedArray, .* as in x\.filled"),
    "objects": (lambda x: x.astype(object), "object"),
    "complex": (lambda x: x + 1j, "complex128"),
    "text": (lambda x: x.astype(str), "<U"),
}


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def drawn(*shape: int) -> np.ndarray:
    return rng().random(shape) + 0.5


def layer(**options: Any) -> LinearGrowingModule:
    return LinearGrowingModule(4, 3, dtype=F64, rng=rng(), **options)


def step(gradient: Any) -> None:
    parameter = Parameter(drawn(3, 4))
    parameter.grad = gradient
    optim.SGD([parameter], 0.1).step()


X, W, SQUARE, IMAGE, TENSOR = drawn(3, 4), drawn(2, 4), drawn(4, 4), drawn(2, 3, 6, 6), drawn(3, 4, 5)
LABELS = np.array([0, 3, 1])
PRODUCT = plan("ij,jk->ik", (3, 4), (4, 2))
# A door, and an array that it takes.
DOORS: dict[str, tuple[Door, np.ndarray]] = {
    **{f"layer {name}": (lambda x, e=e: e.build().vjp(x), drawn(*e.shape))  # type: ignore[misc]
       for name, e in EXAMPLES.items() if name != "Sequential-empty"},  # which hands on what it is given
    **{name: (getattr(ops, name), X) for name in (
        "elu", "gelu", "hardtanh", "identity", "leaky_relu", "log_softmax", "relu", "relu6", "selu", "sigmoid", "silu",
        "softmax", "softplus", "tanh", "batch_statistics", "batch_norm", "layer_norm")},
    "dropout": (lambda x: ops.dropout(x, 0.5, rng()), X),
    "group_norm": (lambda x: ops.group_norm(x, 2), X),
    "layer_norm weight": (lambda w: ops.layer_norm(X, w), drawn(4)),
    "batch_norm mean": (lambda m: ops.batch_norm(X, mean=m, var=drawn(4), training=False), drawn(4)),
    "linear": (lambda x: ops.linear(x, W), X),
    "linear weight": (lambda w: ops.linear(X, w), W),
    "linear bias": (lambda b: ops.linear(X, W, b), drawn(2)),
    "linear gradient": (lambda dy: Linear.of(W).vjp(X)[1](dy), drawn(3, 2)),
    "conv": (lambda x: ops.conv(x, drawn(2, 3, 3, 3)), IMAGE),
    "conv weight": (lambda w: ops.conv(IMAGE, w), drawn(2, 3, 3, 3)),
    "conv_transpose": (lambda x: ops.conv_transpose(x, drawn(3, 2, 3, 3)), IMAGE),
    "conv_transpose weight": (lambda w: ops.conv_transpose(IMAGE, w), drawn(3, 2, 3, 3)),
    "max_pool": (lambda x: ops.max_pool(x, 2), IMAGE),
    "avg_pool": (lambda x: ops.avg_pool(x, 2), IMAGE),
    "adaptive_avg_pool": (lambda x: ops.adaptive_avg_pool(x, 2), IMAGE),
    "mse": (lambda x: ops.mse(x, X), X),
    "mse target": (lambda t: ops.mse(X, t), X),
    "l1": (lambda x: ops.l1(x, X), X),
    "l1 target": (lambda t: ops.l1(X, t), X),
    "cross_entropy": (lambda x: ops.cross_entropy(x, LABELS), X),
    "cross_entropy target": (lambda t: ops.cross_entropy(X, t), LABELS),
    "cross_entropy weight": (lambda w: ops.cross_entropy(X, LABELS, weight=w), drawn(4)),
    "contract": (lambda x: contract("ij,jk->ik", x, W.T), X),
    "plan": (lambda x: plan("ij,jk->ik", x, W.T), X),
    "a plan": (lambda x: PRODUCT(x, W.T), X),
    "a plan, second operand": (lambda w: PRODUCT(X, w), W.T),
    "vjp of a plan": (lambda x: PRODUCT.vjp(x, W.T), X),
    "a bound plan": (lambda w: PRODUCT.bind([w]), W.T),
    "a bound plan, called": (lambda x: PRODUCT.bind([W.T])(x), X),
    "transpose": (lambda dy: transpose(PRODUCT, dy, W.T), drawn(3, 2)),
    "row_products": (lambda x: row_products([Rows(x)], [(0, 0)], []), X),
    "FactorizedConv": (lambda x: FactorizedConv(3, 2, (3, 3), rank=2, dtype=F64, rng=rng())(x), IMAGE),
    "FactorizedConv.from_conv": (
        lambda w: FactorizedConv.from_conv(Conv(w), rank=2, factorization="tucker"), drawn(4, 3, 3, 3)),
    "FactorizedLinear": (lambda x: FactorizedLinear((2, 2), (3, 2), rank=2, dtype=F64, rng=rng())(x), X),
    "FactorizedTensor": (lambda t: FactorizedTensor.from_tensor(t, 2, "tucker"), TENSOR),
    "cp": (lambda t: decompose.cp(t, 2, rng=rng()), TENSOR),
    "tucker": (lambda t: decompose.tucker(t, 2), TENSOR),
    "tensor_train": (lambda t: decompose.tensor_train(t, 2), TENSOR),
    "vbmf": (decompose.vbmf, X),
    "vbmf_rank": (decompose.vbmf_rank, TENSOR),
    "channel_moment": (lambda m: decompose.channel_moment(m, 2), SQUARE),
    "output_error": (lambda a: decompose.output_error(TENSOR, a, np.eye(20)), TENSOR),
    "rank_for_error": (lambda t: decompose.rank_for_error(t, 0.5), TENSOR),
    "Stream": (Stream, X),
    "cross_moment": (growing.cross_moment, X),
    "cross_moment right": (lambda x: growing.cross_moment(X, x), X),
    "TensorStatistic": (lambda x: TensorStatistic().update(x, 3), X),
    "optimal_delta": (lambda s: growing.optimal_delta(s, X.T), SQUARE @ SQUARE.T + np.eye(4)),
    "optimal_delta m": (lambda m: growing.optimal_delta(np.eye(4), m), X.T),
    "added_neurons": (lambda n: growing.added_neurons(None, n), X),
    "added_neurons s": (lambda s: growing.added_neurons(s, X), np.eye(3)),
    "neuron_goal": (growing.neuron_goal, X),
    "inverse_sqrt": (growing.inverse_sqrt, np.eye(3)),
    "pseudo_inverse": (growing.pseudo_inverse, np.eye(3)),
    "shrink": (lambda e: growing.shrink(e, 0.5), np.eye(3)),
    "LinearGrowingModule": (lambda x: layer().vjp(x), X),
    "extended_forward": (lambda x: layer().extended_forward(x), X),
    "LinearMergeGrowingModule": (lambda x: LinearMergeGrowingModule(in_features=4).vjp(x), X),
    "RankStatistics": (
        lambda x: RankStatistics(FactorizedConv(3, 2, (3, 3), rank=2, dtype=F64, rng=rng())).vjp(x), IMAGE),
    "GrowingMLP": (lambda x: GrowingMLP(4, 2, 3, dtype=F64, rng=rng())(x), X),
    "accuracy": (lambda x: accuracy(x, LABELS), X),
    "Parameter.accumulate": (lambda g: Parameter(X).accumulate(g), X),
    "Parameter.extend": (lambda b: Parameter(X).extend(0, b), X),
    "SGD": (step, X),
    "clip_gradients": (lambda g: optim.clip_gradients(with_gradient(g), 1.0), X),
    "check_vjp": (lambda x: check_vjp(ops.tanh, x), X),
    "namespace": (namespace, X),
}  # fmt: skip


class Conv:
    """A dense convolution of another library."""

    stride, padding, dilation, groups, bias = (1, 1), (0, 0), (1, 1), 1, None

    def __init__(self, weight: Any) -> None:
        self.weight = weight


def with_gradient(gradient: Any) -> Parameter:
    parameter = Parameter(X)
    parameter.grad = gradient
    return parameter


@pytest.mark.parametrize("door", DOORS)
def test_every_door_asks_what_an_array_is(door: str) -> None:
    enter, good = DOORS[door]
    enter(good)
    for kind, (spoil, found) in BAD.items():
        with pytest.raises((TypeError, ValueError), match=found) as refusal:
            enter(spoil(good))
        assert len(str(refusal.value)) < 300, kind
