"""How new layers and tensors are drawn: as large as dense ones in every format, and by the original's name as small."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.factorized import FactorizedConv, FactorizedLinear, FactorizedTensor
from growarray.nn.module import Module
from growarray.ops import cross_entropy
from growarray.optim import Adam
from tests.factorized.kernels import rng

EVERY = ("Dense", "CP", "Tucker", "TT", "TR", "BlockTT")
RANKS = {"one": 1, "few": 2, "tenth": 0.1, "same": "same", "many": 12}
CONVS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "sequence": ((6, 4, (3,)), {}),
    "image": ((6, 4, (3, 2)), {}),
    "volume": ((3, 4, (3, 2, 2)), {}),
    "groups": ((6, 4, (3, 3)), {"groups": 2}),
    "joint": ((4, 3, (3, 3)), {"n_layers": 3}),
    "point": ((6, 4, (1, 1)), {}),
}


def assert_mean_is_one(values: list[float]) -> None:
    """A mean of draws, five standard errors of it wide; no draw may be so wild that this says nothing."""
    error = np.std(values) / math.sqrt(len(values))
    assert error < 0.08
    assert abs(np.mean(values) - 1.0) < 5 * error + 1e-12


def kernels() -> list[tuple[str, str, str]]:
    """Every rank of an image, and every other case at a few components; BlockTT takes an even number of modes."""
    cases = [("image", rank) for rank in RANKS] + [(case, "few") for case in CONVS if case != "image"]
    odd = ("sequence", "volume", "joint")
    return [(name, *case) for name in EVERY for case in cases if name != "BlockTT" or case[0] not in odd]


@pytest.mark.parametrize(("name", "case", "rank"), kernels())
def test_a_kernel_has_the_variance_of_that_of_a_dense_layer(name: str, case: str, rank: str) -> None:
    (sizes, options), source, found = CONVS[case], rng(7), []
    layer = FactorizedConv(*sizes, factorization=name, rank=RANKS[rank], rng=source, **options)
    for _ in range(150):
        layer.reset_parameters(rng=source)
        drawn = [layer.kernel(i) for i in range(options.get("n_layers", 1))]
        fan_in = math.prod(layer.kernel_shape[1:])
        found.append(float(np.mean(np.square(drawn))) * 3 * fan_in)
    assert_mean_is_one(found)


@pytest.mark.parametrize("rank", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("name", EVERY)
def test_a_matrix_has_the_variance_of_that_of_a_dense_layer(name: str, rank: Any) -> None:
    source, found = rng(8), []
    layer = FactorizedLinear((4, 6), (5, 3), factorization=name, rank=rank, rng=source)
    for _ in range(150):
        layer.reset_parameters(rng=source)
        found.append(float(np.mean(np.square(layer.matrix()))) * 3 * 24)
    assert_mean_is_one(found)


@pytest.mark.parametrize("name", EVERY)
def test_a_tensor_has_the_standard_deviation_asked_for(name: str) -> None:
    source, found = rng(9), []
    for _ in range(150):
        made = FactorizedTensor.new((4, 3, 5, 2), 3, name, std=0.5, rng=source, dtype=np.float64)
        found.append(float(np.mean(np.square(made.to_tensor()))) / 0.25)
    assert_mean_is_one(found)


def test_a_dense_kernel_is_drawn_as_that_of_a_dense_layer() -> None:
    made = FactorizedConv(6, 4, 3, 2, factorization="dense", rng=rng(1)).kernel()
    assert np.array_equal(made, nn.Conv2d(6, 4, 3, rng=rng(1)).weight.data)


def stack(make: Callable[[], Module], count: int = 10) -> float:
    """Mean square of what ten layers make of white noise."""
    x = rng(100).standard_normal((2, 32, 8, 8), dtype=np.float32)
    for _ in range(count):
        x = make()(x)
    return float(np.mean(x * x))


@pytest.mark.parametrize("rank", ["same", 0.25])
@pytest.mark.parametrize("name", EVERY)
def test_ten_layers_keep_as_much_variance_as_ten_dense_ones(name: str, rank: Any) -> None:
    ratios = []
    for seed in range(6):
        first, second = rng(seed), rng(seed)
        dense = stack(lambda r=first: nn.Conv2d(32, 32, 3, padding=1, bias=False, rng=r))  # type: ignore[misc]
        ratios.append(
            stack(lambda r=second: FactorizedConv(32, 32, 3, 2, padding=1, rank=rank, factorization=name, rng=r))  # type: ignore[misc]
            / dense
        )
    assert 0.5 < math.exp(np.mean(np.log(ratios))) < 2.0


@pytest.mark.parametrize("name", ["CP", "Tucker", "TT", "TR", "BlockTT"])
def test_the_leading_part_has_half_the_entries_of_a_dense_kernel(name: str) -> None:
    layer = FactorizedConv(32, 32, 3, 2, factorization=name, rank="same", rng=rng(2))
    dense = 1 / math.sqrt(3 * 32 * 9)
    sizes = [float(np.sqrt(np.mean(part.data**2))) for part in layer.weight.all_factors()]
    assert min(sizes) == pytest.approx(dense / 2, rel=0.05)
    assert sorted(sizes)[1] > 4 * dense  # all others are large: a step of an optimizer hardly changes them


@pytest.mark.parametrize("name", EVERY)
def test_the_original_is_there_by_its_name(name: str) -> None:
    layer = FactorizedConv(6, 4, (3, 3), factorization=name, rank=2, rng=rng(3), std="original")
    by_hand = FactorizedTensor.new(layer.weight.shape, 2, name, std=None).normal_(0.0, 0.02, rng(3))
    assert all(np.array_equal(a, b) for a, b in zip(layer.weight.arrays(), by_hand.arrays(), strict=True))
    layer.reset_parameters("original", rng(4))
    by_hand.normal_(0.0, 0.02, rng(4))
    assert all(np.array_equal(a, b) for a, b in zip(layer.weight.arrays(), by_hand.arrays(), strict=True))
    linear = FactorizedLinear((4, 6), (5, 3), factorization=name, rank=2, rng=rng(5), std="original")
    by_hand = FactorizedTensor.new((5, 3, 4, 6), 2, name, std=None).normal_(0.0, math.sqrt(5 / 24), rng(5))
    assert all(np.array_equal(a, b) for a, b in zip(linear.weight.arrays(), by_hand.arrays(), strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_a_number_is_the_standard_deviation_of_the_kernel(name: str) -> None:
    made = FactorizedConv(32, 32, 3, 2, factorization=name, rank=0.5, rng=rng(6), std=0.3)
    assert float(np.std(made.kernel())) == pytest.approx(0.3, rel=0.1)
    made.reset_parameters(0.1, rng(6))
    assert float(np.std(made.kernel())) == pytest.approx(0.1, rel=0.1)
    linear = FactorizedLinear((16, 16), (16, 16), factorization=name, rank=0.5, rng=rng(6), std=0.3)
    assert float(np.std(linear.matrix())) == pytest.approx(0.3, rel=0.1)
    linear.reset_parameters(rng(6))
    assert float(np.std(linear.matrix())) == pytest.approx(1 / math.sqrt(3 * 256), rel=0.1)


@pytest.mark.parametrize("name", ["CP", "Tucker", "TT", "TR", "BlockTT"])
def test_a_kernel_of_zeros_still_learns(name: str) -> None:
    layer = FactorizedConv(6, 4, (3, 3), factorization=name, rank=2, rng=rng(3), std=0.0)
    assert not layer.kernel().any()
    y, pullback = layer.vjp(np.ones((1, 6, 5, 5), dtype=np.float32))
    pullback(np.ones_like(y))
    assert any(part.grad is not None and part.grad.any() for part in layer.weight.all_factors())


@pytest.mark.parametrize(
    "make",
    [
        lambda std: FactorizedConv(6, 4, (3, 3), std=std),
        lambda std: FactorizedLinear(6, 4, std=std),
        lambda std: FactorizedConv(6, 4, (3, 3)).reset_parameters(std),
        lambda std: FactorizedLinear(6, 4).reset_parameters(std=std),
    ],
    ids=["conv", "linear", "reset conv", "reset linear"],
)
@pytest.mark.parametrize("std", ["orignal", -0.1, math.nan, True, [0.1]], ids=str)
def test_a_size_that_makes_no_sense_is_refused(make: Callable[[Any], Any], std: Any) -> None:
    with pytest.raises(ValueError, match=r"std is .*, expected a number of at least 0, 'original', or None"):
        make(std)


def test_the_size_of_a_tensor_that_is_given_is_its_own() -> None:
    conv = FactorizedTensor.new((4, 6, 3, 3), 2, "CP")
    with pytest.raises(ValueError, match="rank, fixed_rank_modes, std, device and dtype are those of the tensor"):
        FactorizedConv(6, 4, (3, 3), factorization=conv, std=0.1)
    with pytest.raises(ValueError, match="rank, std, device and dtype are those of the tensor"):
        FactorizedLinear(6, 4, factorization=FactorizedTensor.new((4, 6), 2, "CP"), std=0.1)
    before = conv.to_tensor()
    assert np.array_equal(FactorizedConv(6, 4, (3, 3), factorization=conv).kernel(), before)


def loss_after_training(make: Callable[[np.random.Generator], Module]) -> float:
    """Loss of three layers, a ReLU after each, on a task that takes all of them."""
    source = rng(0)
    x = source.standard_normal((32, 12, 4, 4), dtype=np.float32)
    labels = np.argmax(np.mean(x[:, :4] * x[:, 4:8], axis=(2, 3)), axis=1)
    layers = [layer for _ in range(3) for layer in (make(source), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 16, 4, rng=source))
    optimizer, loss = Adam(net, lr=1e-3), math.inf
    for _ in range(40):
        net.zero_grad()
        logits, pullback = net.vjp(x)
        value, back = cross_entropy(logits, labels)
        pullback(back())
        optimizer.step()
        loss = float(value)
    return loss


@cache
def loss_of_dense_layers() -> float:
    return loss_after_training(lambda source: nn.Conv2d(12, 12, 3, padding=1, rng=source))


@pytest.mark.parametrize("name", ["CP", "Tucker", "TT", "TR", "BlockTT"])
def test_layers_from_scratch_train_as_dense_ones_do(name: str) -> None:
    def factorized(source: np.random.Generator, std: Any = None) -> Module:
        return FactorizedConv(12, 12, 3, 2, padding=1, bias=True, factorization=name, rng=source, std=std)

    dense = loss_of_dense_layers()
    original = loss_after_training(lambda source: factorized(source, "original"))
    assert loss_after_training(factorized) < 1.1 * dense
    assert dense < 0.8 * original
