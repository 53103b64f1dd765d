"""Factorized affine layers: value and derivative, paths, conversion, joint layers, refusals, on every array library."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growarray import nn
from growarray.errors import ShapeError
from growarray.factorized import BlockTTTensor, FactorizedConv, FactorizedLinear, FactorizedTensor, TTTensor, tensorize
from growarray.factorized.linear_plan import split_features
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library
from tests.factorized.kernels import as_function, dense_output, rng
from tests.factorized.kernels import layer as conv_layer
from tests.nn import test_contract as contract
from tests.nn.layers import Example
from tests.pairs import pairs

FORMATS = ("Dense", "CP", "Tucker", "TT", "TR", "BlockTT")
WAYS = ("auto", "factorized", "reconstructed")
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "one": ((4,), (3,)),
    "two": ((2, 3), (3, 2)),
    "three": ((2, 1, 3), (2, 2, 2)),
}
each_format = pytest.mark.parametrize("name", FORMATS)
each_way = pytest.mark.parametrize("way", WAYS)


def made(name: str, sizes: tuple[Any, ...] = SIZES["two"], rank: Any = 2, **options: Any) -> FactorizedLinear:
    return FactorizedLinear(*sizes, factorization=name, rank=rank, rng=rng(1), **{"dtype": np.float64, **options})


def dense(inner: int = 12, outer: int = 8, seed: int = 0, bias: bool = True) -> nn.Linear:
    return nn.Linear(inner, outer, bias, rng=rng(seed), dtype=np.float64)


@pytest.mark.parametrize(("name", "way", "size"), pairs(FORMATS, WAYS, list(SIZES)))
def test_it_is_the_dense_layer_with_its_matrix(name: str, way: str, size: str) -> None:
    sizes = SIZES[size]
    layer = made(name, sizes, implementation=way)
    reference = nn.Linear.of(layer.matrix(), layer.bias.data if layer.bias else None)
    for lead in ((3,), (2, 3), ()):
        x = rng(2).standard_normal((*lead, math.prod(sizes[0])))
        y, pullback = layer.vjp(x)
        expected, back = reference.vjp(x)
        assert_close(y, expected, rtol=1e-12)
        assert_close(layer(x), expected, rtol=1e-12)
        assert_close(pullback(expected), back(expected), rtol=1e-12)


@each_way
@each_format
def test_pullback_is_the_derivative(name: str, way: str) -> None:
    layer = made(name, implementation=way)
    check_vjp(as_function(layer), rng(3).standard_normal((2, 6)), *[p.data for p in layer.parameters()], rtol=2e-7)


def test_input_and_output_may_have_other_numbers_of_modes() -> None:
    for name in ("CP", "Tucker", "TT", "TR"):
        for way in WAYS:
            layer = made(name, ((2, 3, 2), (5,)), implementation=way)
            x = rng(0).standard_normal((4, 12))
            assert_close(layer(x), x @ layer.matrix().T + layer.bias.data, rtol=1e-12)  # type: ignore[union-attr]


@each_format
def test_the_way_decides_whether_the_weight_is_made(name: str) -> None:
    sizes = ((8, 8), (8, 8))
    plans = {way: made(name, sizes, rank=2, implementation=way).plan((1, 64)) for way in WAYS}
    if name != "Dense":
        assert plans["factorized"].peak_bytes < 64 * 64 * 8 <= plans["reconstructed"].peak_bytes
    assert plans["auto"].seconds <= 1.05 * min(plan.seconds for plan in plans.values())


def test_batches_of_about_one_size_share_a_path() -> None:
    layer = made("Tucker", ((8, 8), (8, 8)), rank=4)
    plans = [layer.plan((n, 64)) for n in (33, 50, 64)]
    assert {plan.path for plan in plans} == {plans[-1].path}
    assert [plan.output_shape[0] for plan in plans] == [33, 50, 64]
    assert plans[0].flops < plans[1].flops < plans[2].flops


def test_parameters_have_the_names_of_the_original() -> None:
    assert list(made("CP").state_dict()) == [
        "weight.weights", *[f"weight.factors.factor_{i}" for i in range(4)], "bias",
    ]  # fmt: skip
    assert next(iter(made("Tucker", bias=False).state_dict())) == "weight.core"
    layer = made("BlockTT")
    assert [p.shape for p in layer.weight.all_factors()] == [(1, 3, 2, 2), (2, 2, 3, 1)]
    other = made("BlockTT", dtype=np.float32)
    other.load_state_dict(layer.state_dict())
    assert_close(other.matrix(), layer.matrix(), rtol=1e-6)


def test_block_tt_is_the_sum_over_its_bonds() -> None:
    held = FactorizedTensor.new((2, 3, 2, 4, 2, 3), 3, "BlockTT", std=1.0, rng=rng(0), dtype=np.float64)
    expected = np.einsum("zadb,becf,fghy->aegdch", *held.arrays())
    assert_close(held.to_tensor(), expected, rtol=1e-12)
    assert_close(held[:1, 1:, ..., ::2].to_tensor(), expected[:1, 1:, ..., ::2], rtol=1e-12)
    with pytest.raises(NotImplementedError, match="integer index leaves a mode without its pair"):
        held[0]


def test_block_tt_of_full_rank_is_exact() -> None:
    whole = rng(0).standard_normal((2, 3, 2, 4, 2, 3))
    held = FactorizedTensor.from_tensor(whole, (1, 8, 6, 1), "BlockTT")
    assert isinstance(held, BlockTTTensor)
    assert_close(held.to_tensor(), whole, rtol=1e-12)


def test_block_tt_is_a_kernel_of_an_even_number_of_modes() -> None:
    conv = conv_layer("BlockTT", 4, 6, (3, 3), padding=1)
    x = rng(0).standard_normal((2, 4, 5, 5))
    assert_close(conv(x), dense_output(conv, x), rtol=1e-12)
    with pytest.raises(ShapeError, match="found 3 modes, expected an even number"):
        FactorizedConv(4, 6, (3,), factorization="blocktt")


@pytest.mark.parametrize("name", ["CP", "Tucker", "TT", "TR", "BlockTT", "Dense"])
def test_initial_weights_have_the_size_of_those_of_a_dense_layer(name: str) -> None:
    layer = FactorizedLinear((8, 8), (8, 8), factorization=name, rank=0.5, rng=rng(0))
    assert float(np.std(layer.matrix())) == pytest.approx(1 / math.sqrt(3 * 64), rel=0.35)
    assert layer.bias is not None
    assert 0.5 / 8 < float(np.max(np.abs(layer.bias.data))) <= 1 / 8


@pytest.mark.parametrize("name", ["CP", "Tucker", "TT", "TR", "BlockTT"])
def test_from_linear_of_a_factorized_weight_is_exact(name: str) -> None:
    known = made(name, ((2, 3, 2), (2, 2, 2)))
    source = nn.Linear.of(known.matrix(), rng(5).standard_normal(8))
    # a ring of the rank need not be found, one that holds any tensor is
    rank = known.weight.format.largest_rank(known.weight.shape) if name == "TR" else known.rank
    small = FactorizedLinear.from_linear(
        source, rank=rank, factorization=name, in_tensorized_features=(2, 3, 2), out_tensorized_features=(2, 2, 2)
    )
    x = rng(6).standard_normal((4, 12))
    assert_close(small(x), source(x), rtol=1e-5 if name == "CP" else 1e-10)
    assert type(small.weight) is FactorizedTensor.kind(name)
    small.bias.data[...] = 0.0  # type: ignore[union-attr]
    assert float(np.abs(source.bias.data).min()) > 0.0  # type: ignore[union-attr]  # a copy


def test_one_mode_is_the_low_rank_matrix() -> None:
    source = dense(20, 12)
    left, values, right = np.linalg.svd(source.weight.data)
    expected = (left[:, :4] * values[:4]) @ right[:4]
    for name, rank in (("CP", 4), ("TT", 4), ("Tucker", (4, 4))):
        small = FactorizedLinear.from_linear(source, rank, n_tensorized_modes=1, factorization=name)
        assert_close(small.matrix(), expected, rtol=1e-8)


@pytest.mark.parametrize("name", ["CP", "TT"])
def test_a_share_of_a_matrix_is_that_share(name: str) -> None:
    layer = FactorizedLinear(64, 64, bias=False, factorization=name, rank=0.5, rng=rng(0))
    assert 0.45 < layer.number_of_parameters() / 64**2 < 0.52


def test_from_linear_reads_any_layer_and_keeps_its_dtype() -> None:
    class Foreign:
        def __init__(self, weight: Any, bias: Any = None) -> None:
            self.weight, self.bias = weight, bias

    weight = rng(0).standard_normal((6, 8)).astype(np.float32)
    small = FactorizedLinear.from_linear(Foreign(weight), rank=0.5, factorization="tucker")
    assert small.bias is None
    assert small.weight.dtype == np.float32
    assert FactorizedLinear.from_linear(dense(), bias=False).bias is None
    with pytest.raises(ShapeError, match=r"from_linear: weight of Foreign has shape \(6, 8, 1\)"):
        FactorizedLinear.from_linear(Foreign(weight[..., None]))
    with pytest.raises(ShapeError, match=r"bias of Foreign has shape \(5,\), expected \(6,\)"):
        FactorizedLinear.from_linear(Foreign(weight, weight[0, :5]))
    with pytest.raises(TypeError, match="Foreign has no weight"):
        FactorizedLinear.from_linear(Foreign(None))
    with pytest.raises(ValueError, match="weight of Foreign holds a NaN or an infinity"):
        FactorizedLinear.from_linear(Foreign(weight * np.float32(np.nan)))


def test_from_linear_lowers_a_rank_above_what_is_of_use() -> None:
    with pytest.warns(UserWarning, match=r"from_linear: rank \(1, 99, 1\) is above .*lowered to \(1, 8, 1\)") as caught:
        small = FactorizedLinear.from_linear(dense(), 99, n_tensorized_modes=1, factorization="tt")
    assert small.rank == (1, 8, 1)
    assert caught[0].filename == __file__


def test_cp_of_many_components_takes_few_sweeps_unless_told_otherwise() -> None:
    source = dense(36, 36)
    quick = FactorizedLinear.from_linear(source, 300)
    told = {"init": "random", "starts": 1, "max_iterations": 30, "correct": False}
    assert_close(quick.matrix(), FactorizedLinear.from_linear(source, 300, decomposition_kwargs=told).matrix(), rtol=0)
    fewer = FactorizedLinear.from_linear(source, 300, decomposition_kwargs={"max_iterations": 1})
    off = [float(np.linalg.norm(layer.matrix() - source.weight.data)) for layer in (quick, fewer)]
    assert off[0] < 0.5 * off[1]


@pytest.mark.parametrize("name", ["CP", "Tucker", "TT", "TR", "Dense"])
def test_joint_layers_share_one_factorization(name: str) -> None:
    sources = [dense(seed=i) for i in range(3)]
    joint = FactorizedLinear.from_linear_list(sources, (3, 4), (2, 4), rank=1.0, factorization=name)
    x = rng(7).standard_normal((5, 12))
    for i in (0, 2, -1):
        bias = joint.bias.data[i]  # type: ignore[union-attr]
        assert_close(bias, sources[i].bias.data, rtol=0)  # type: ignore[union-attr]
        assert_close(joint(x, i), x @ joint.matrix(i).T + bias, rtol=1e-12)
    if name == "Dense":
        assert_close(joint.matrix(1), sources[1].weight.data, rtol=0)
    part = joint[1]
    assert_close(part(x), joint(x, 1), rtol=0)
    assert [id(p) for p in part.parameters()] == [id(p) for p in joint.parameters()]
    small = made(name, ((2, 2), (3,)), n_layers=2)
    check_vjp(as_function(small, 1), rng(3).standard_normal((2, 4)), *[p.data for p in small.parameters()], rtol=2e-7)


def test_automatic_modes() -> None:
    assert tensorize(512, 512) == ((8, 8, 8), (8, 8, 8))
    assert tensorize(512, 512, 2) == ((16, 32), (16, 32))
    assert tensorize(97, 512) == ((97,), (512,))
    assert tensorize(1, 6) == ((1,), (6,))
    with pytest.raises(ValueError, match="n_tensorized_modes must be at least 1, found 0"):
        tensorize(4, 4, 0)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_automatic_modes_multiply_to_the_features(inner: int, outer: int, modes: int) -> None:
    found = tensorize(inner, outer, modes)
    assert tuple(map(math.prod, found)) == (inner, outer)
    assert 1 <= len(found[0]) == len(found[1]) <= modes
    for sizes in found:
        assert len(sizes) == 1 or min(sizes) >= 2
        assert list(sizes) == sorted(sizes)


@given(st.integers(2, 2000))
@settings(max_examples=40, deadline=None)
def test_two_modes_are_the_divisors_nearest_to_the_root(number: int) -> None:
    pairs = [(d, number // d) for d in range(2, math.isqrt(number) + 1) if number % d == 0]
    assert split_features(number, 2) == (max(pairs) if pairs else ())


REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "format": ({"factorization": "svd"}, ValueError, "unknown factorization 'svd'; expected one of BlockTT, CP, Dense"),
    "empty": ({"in_tensorized_features": ()}, ShapeError, "in_tensorized_features is empty"),
    "size": ({"out_tensorized_features": (2, 0)}, ValueError, "out_tensorized_features must be at least 1, found 0"),
    "kind": ({"in_tensorized_features": (2.5,)}, TypeError, "must be a whole number, found 2.5"),
    "rank": ({"rank": 0}, ValueError, "found rank 0, expected at least 1"),
    "rank-kind": ({"rank": "all"}, ValueError, "found rank 'all'"),
    "rank-length": ({"rank": (1, 2), "factorization": "tucker"}, ValueError, r"rank \(1, 2\) has 2 entries"),
    "pairs": ({"in_tensorized_features": 6, "factorization": "blocktt"}, ShapeError, "found 3 modes, expected an even"),
    "way": ({"implementation": "mobilenet"}, ValueError, "'mobilenet' is for convolutions; expected 'auto'"),
    "path": ({"implementation": [(0, 9)]}, ValueError, "implementation .* cannot be used"),
    "layers": ({"n_layers": 0}, ValueError, "n_layers must be at least 1, found 0"),
    "pairs-layers": ({"n_layers": 2, "factorization": "blocktt"}, NotImplementedError, "BlockTT, whose modes come"),
    "tensor": ({"factorization": FactorizedTensor.new((2, 2))}, ShapeError, r"for a weight with modes \(3, 2, 2, 3\)"),
    "tensor-dtype": (
        {"factorization": FactorizedTensor.new((3, 2, 2, 3)), "dtype": np.float32}, ValueError, "leave them out",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FactorizedLinear(**{"in_tensorized_features": (2, 3), "out_tensorized_features": (3, 2), **options})


def test_features_that_do_not_fit_are_refused() -> None:
    layer = made("TT")
    with pytest.raises(ShapeError, match=r"input has shape \(2, 7\), expected a last axis of 6 for modes \(2, 3\)"):
        layer(np.ones((2, 7)))
    with pytest.raises(ShapeError, match=r"gradient has shape \(2, 5\), the result had \(2, 6\)"):
        layer.vjp(np.ones((2, 6)))[1](np.ones((2, 5)))
    with pytest.raises(IndexError, match="indices=1 is out of range, n_layers=1"):
        layer(np.ones((2, 6)), 1)
    with pytest.raises(ValueError, match="get_linear is for joint ones"):
        layer[0]
    for features, message in (
        ({"in_tensorized_features": (3, 3), "out_tensorized_features": 8}, r"product 9, expected 12, the in_features"),
        ({"in_tensorized_features": (3, 4)}, "give both or neither"),
        ({"auto_tensorize": True, "out_tensorized_features": 8}, "pass only one of the two ways"),
        ({"auto_tensorize": False}, "give both or neither"),
    ):
        with pytest.raises(ValueError, match=message):
            FactorizedLinear.from_linear(dense(), **features)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"layer 1 has a weight \(8, 6\) of float64, layer 0 \(8, 12\)"):
        FactorizedLinear.from_linear_list([dense(), dense(6)])
    with pytest.raises(ValueError, match="the list is empty"):
        FactorizedLinear.from_linear_list([])


def test_a_given_tensor_is_held() -> None:
    held = FactorizedTensor.new((3, 2, 2, 3), 2, "TT", rng=rng(0))
    layer = FactorizedLinear((2, 3), (3, 2), factorization=held)
    assert layer.weight is held
    assert isinstance(held, TTTensor)


def test_it_trains() -> None:
    from growarray.optim import Adam

    x = rng(0).standard_normal((64, 12))
    target = x @ made("TT", ((3, 4), (2, 4)), rank=2).matrix().T
    layer = FactorizedLinear((3, 4), (2, 4), factorization="tt", rank=3, rng=rng(9), dtype=np.float64)
    optimizer = Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(200):
        layer.zero_grad()
        y, pullback = layer.vjp(x)
        losses.append(float(np.mean((y - target) ** 2)))
        pullback(2 * (y - target) / y.size)
        optimizer.step()
    assert losses[-1] < 0.01 * losses[0]


EXAMPLES = {
    "CP": Example(lambda: made("CP"), (4, 6), (4, 6)),
    "BlockTT": Example(lambda: made("BlockTT", SIZES["three"]), (2, 3, 6), (2, 3, 8)),
}


@pytest.mark.parametrize("check", contract.PLAIN, ids=lambda check: check.__name__)
@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_layer_contract(example: Example, check: Any) -> None:
    check(example)


@pytest.mark.parametrize("check", contract.ON_LIBRARIES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_layer_contract_on_every_library(example: Example, check: Any, xp: Library) -> None:
    check(example, xp)


def test_a_rank_far_above_what_is_of_use_is_lowered_before_its_parts_are_made() -> None:
    dense = nn.Linear(24, 16, rng=np.random.default_rng(0), dtype=np.float64)
    with pytest.warns(UserWarning, match="from_linear: rank .* above what the tensor can use"):
        made = FactorizedLinear.from_linear(dense, 5000, factorization="tucker")
    np.testing.assert_allclose(made.matrix(), dense.weight.data, atol=1e-12)


def test_cp_of_one_mode_each_is_the_truncated_svd_at_any_rank() -> None:
    weight = np.random.default_rng(0).standard_normal((320, 300))
    u, s, vh = np.linalg.svd(weight, full_matrices=False)
    made = FactorizedLinear.from_linear(nn.Linear.of(weight), 280, n_tensorized_modes=1)
    np.testing.assert_allclose(made.matrix(), (u[:, :280] * s[:280]) @ vh[:280], atol=1e-9)


def test_modes_may_be_arrays_of_numpy() -> None:
    dense = nn.Linear(6, 4, rng=rng())
    made = FactorizedLinear.from_linear(
        dense, in_tensorized_features=np.asarray([2, 3]), out_tensorized_features=np.asarray([2, 2]), rank=8
    )
    assert (made.in_tensorized_features, made.out_tensorized_features) == ((2, 3), (2, 2))
