"""Tensor regression and contraction, tables in factors, and their functions: value, derivative, peer, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growarray import load, nn, save
from growarray.errors import ShapeError
from growarray.factorized import TCL, TRL, FactorizedConv, FactorizedEmbedding, FactorizedLinear, FactorizedTensor
from growarray.factorized import functional as F
from growarray.nn.module import Parameter
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library
from tests.factorized.kernels import as_function, rng, tensor
from tests.nn import test_contract as contract
from tests.nn.layers import Example

FORMATS = ("Dense", "CP", "Tucker", "TT", "TR", "BlockTT")
each_format = pytest.mark.parametrize("name", FORMATS)
NUMBERS = np.asarray([[3, 0, 11], [3, 7, 4]])


def regression(name: str = "CP", output: Any = (2, 2), **options: Any) -> TRL:
    made = TRL((3, 4), output, True, factorization=name, **{"rank": 2, "dtype": np.float64, "rng": rng(1), **options})
    made.reset_parameters(rng(2), std=1.0)
    return made


def projection(**options: Any) -> TCL:
    return TCL((3, 4), (2, 5), bias=True, **{"dtype": np.float64, "rng": rng(1), **options})


def embedding(name: str = "BlockTT", **options: Any) -> FactorizedEmbedding:
    sizes = {"tensorized_num_embeddings": (3, 4), "tensorized_embedding_dim": (2, 3)}
    made = {**sizes, "factorization": name, "rank": 3, "dtype": np.float64, "rng": rng(1), **options}
    return FactorizedEmbedding(12, 6, **made)


def by_parameters(layer: FactorizedEmbedding, x: Any) -> Any:
    """A look-up as a pure function of the factors."""

    def function(*values: Any) -> Any:
        for parameter, value in zip(layer.parameters(), values, strict=True):
            parameter.data = value
        y, back = layer.vjp(x)

        def pullback(dy: Any) -> Any:
            layer.zero_grad()
            back(dy)
            return tuple(p.grad for p in layer.parameters())

        return y, pullback

    return function


@pytest.mark.parametrize("way", ["auto", "factorized", "reconstructed"])
@each_format
def test_regression_is_the_inner_product_with_its_weight(name: str, way: str) -> None:
    layer = regression(name, implementation=way)
    assert layer.bias is not None
    for lead in ((5,), (2, 3), ()):
        x = rng(3).standard_normal((*lead, 3, 4))
        expected = np.einsum("...ij,ijkl->...kl", x, layer.weight.to_tensor()) + layer.bias.data
        assert_close(layer(x), expected, rtol=1e-12)
    check_vjp(as_function(layer), rng(3).standard_normal((2, 3, 4)), *[p.data for p in layer.parameters()], rtol=2e-7)


def test_regression_has_the_equation_with_the_input_s_modes_first() -> None:
    plan = regression("CP", 5).plan((7, 3, 4))
    assert plan.equation == "n i0 i1, r, i0 r, i1 r, o0 r -> n o0"
    assert regression("TT", 5).plan((7, 3, 4)).equation == "n i0 i1, i0 b1, b1 i1 b2, b2 o0 -> n o0"
    assert plan.output_shape == (7, 5)


@pytest.mark.parametrize("name", ["Dense", "CP", "Tucker", "TT", "TR"])
def test_joint_regressions_share_one_factorization(name: str) -> None:
    layer = regression(name, 2, n_layers=3)
    whole, x = layer.weight.to_tensor(), rng(3).standard_normal((5, 3, 4))
    for i in (0, 2, -1):
        assert_close(layer(x, i), np.tensordot(x, whole[i], 2) + layer.bias.data[i], rtol=1e-12)  # type: ignore[union-attr]
    check_vjp(as_function(layer, 1), x[:2], *[p.data for p in layer.parameters()], rtol=2e-7)


@each_format
def test_regression_takes_over_an_affine_layer(name: str) -> None:
    dense = nn.Linear(12, 4, rng=rng(4), dtype=np.float64)
    full = {"Dense": "same", "BlockTT": (1, 6, 1)}  # of the others the largest that is of use
    layer = regression(name, rank=full.get(name) or FactorizedTensor.kind(name).format.largest_rank((3, 4, 2, 2)))
    layer.init_from_linear(dense)
    x = rng(5).standard_normal((5, 3, 4))
    assert_close(layer(x), dense(x.reshape(5, 12)).reshape(5, 2, 2), rtol=1e-4 if name == "CP" else 1e-10)


def test_a_mode_that_was_averaged_comes_back_as_a_mean() -> None:
    dense = nn.Linear(3, 4, rng=rng(4), dtype=np.float64)
    x = rng(5).standard_normal((5, 3, 4))
    for name, rank in (("Tucker", (3, 1, 2, 2)), ("TT", (1, 3, 3, 2, 1)), ("Dense", "same")):
        layer = regression(name, rank=rank)
        layer.init_from_linear(dense, unsqueezed_modes=[1])
        assert_close(layer(x), dense(x.mean(axis=2)).reshape(5, 2, 2), rtol=1e-10)


def test_contraction_is_a_matrix_for_each_mode() -> None:
    layer, x = projection(), rng(3).standard_normal((5, 3, 4))
    first, second = (factor.data for factor in layer.factors)
    assert_close(layer(x), np.einsum("nij,ri,sj->nrs", x, first, second) + layer.bias.data, rtol=1e-12)  # type: ignore[union-attr]
    check_vjp(as_function(layer), x[:2], *[p.data for p in layer.parameters()], rtol=2e-7)
    assert layer.plan((5, 3, 4)).equation == "n i0 i1, r0 i0, r1 i1 -> n r0 r1"
    assert list(layer.state_dict()) == ["factor_0", "factor_1", "bias"]
    assert (TCL(6, 2).rank, TCL((3, 4), 2).rank) == ((2,), (2, 2))
    assert all(float(np.abs(f.data).max()) <= f.shape[1] ** -0.5 for f in layer.factors)


@each_format
def test_a_look_up_is_a_row_of_the_table(name: str) -> None:
    layer = embedding(name)
    assert_close(layer(NUMBERS), layer.table()[NUMBERS], rtol=1e-12)
    assert_close(layer.vjp(NUMBERS)[0], layer.table()[NUMBERS], rtol=1e-12)
    assert layer(np.zeros((0,), np.int8)).shape == (0, 6)
    assert_close(layer(np.asarray(11)), layer.table()[11], rtol=1e-12)
    check_vjp(by_parameters(layer, NUMBERS), *[p.data for p in layer.parameters()], rtol=2e-7)
    assert float(np.std(embedding(name, rng=rng(0)).table())) == pytest.approx(1 / 6, rel=0.35)
    assert layer.plan(NUMBERS.shape).output_shape[0] == 6


def test_a_look_up_has_the_equation_of_its_rows() -> None:
    assert embedding("BlockTT").plan((5,)).equation == "n e0 b1, n b1 e1 -> n e0 e1"
    assert embedding("CP").plan((5,)).equation == "r, n r, n r, e0 r, e1 r -> n e0 e1"
    assert embedding("BlockTT").plan((5,)).peak_bytes < 12 * 6 * 8 * 10


@pytest.mark.parametrize("name", ["Dense", "CP", "Tucker", "TT", "TR"])
def test_joint_tables_share_one_factorization(name: str) -> None:
    tables = [nn.Linear(6, 12, rng=rng(i), dtype=np.float64) for i in range(3)]
    layer = FactorizedEmbedding.from_embedding_list(tables, rank=1.0, factorization=name)
    whole = layer.weight.to_tensor().reshape(3, 12, 6)
    for i in (0, 2, -1):
        assert_close(layer(NUMBERS, i), whole[i][NUMBERS], rtol=1e-12)
    assert_close(layer[1](NUMBERS), layer(NUMBERS, 1), rtol=0)
    assert_close(layer[1].table(), whole[1], rtol=1e-12)
    assert [id(p) for p in layer[1].parameters()] == [id(p) for p in layer.parameters()]
    if name == "Dense":
        assert_close(layer.table(2), tables[2].weight.data, rtol=0)


def test_a_table_of_full_rank_is_exact() -> None:
    dense = nn.Linear(6, 12, rng=rng(4), dtype=np.float64)
    layer = FactorizedEmbedding.from_embedding(dense, rank=6)
    assert (layer.tensorized_num_embeddings, layer.tensorized_embedding_dim) == ((3, 4), (2, 3))
    assert_close(layer(NUMBERS), dense.weight.data[NUMBERS], rtol=1e-10)
    drawn = FactorizedEmbedding.from_embedding(dense, rank=2, decompose_weights=False, rng=rng(0))
    assert drawn.rank == (1, 2, 1)


def test_a_table_learns() -> None:
    from growarray.optim import Adam

    target = rng(0).standard_normal((12, 6))
    layer, numbers = embedding(rank=(1, 6, 1)), np.arange(12)
    optimizer, losses = Adam(layer.parameters(), lr=0.05), []
    for _ in range(200):
        layer.zero_grad()
        y, pullback = layer.vjp(numbers)
        losses.append(float(np.mean((y - target) ** 2)))
        pullback(2 * (y - target) / y.size)
        optimizer.step()
    assert losses[-1] < 0.01 * losses[0]


@each_format
def test_functions_are_the_layers(name: str) -> None:
    weight, x = tensor(name, (3, 2, 2, 3)), rng(1).standard_normal((5, 3, 2))
    bias = Parameter(rng(2).standard_normal((2, 3)))
    y, pullback = F.trl(x, weight, bias)
    layer = TRL((3, 2), (2, 3), factorization=weight)
    assert_close(y, layer(x) + bias.data, rtol=1e-12)
    dx = pullback(y)
    assert_close(dx, layer.vjp(x)[1](y), rtol=1e-12)
    assert_close(bias.grad, y.sum(axis=0), rtol=1e-12)
    flat = F.factorized_linear(x.reshape(5, 6), weight)[0]
    assert_close(flat, FactorizedLinear((2, 3), (3, 2), bias=False, factorization=weight)(x.reshape(5, 6)), rtol=1e-12)
    assert_close(F.tensor_dot(x, weight, 2)[0], np.tensordot(x, weight.to_tensor(), ((1, 2), (0, 1))), rtol=1e-12)


def test_a_convolution_with_a_kernel_in_factors() -> None:
    kernel, x = tensor("Tucker", (4, 3, 3, 3)), rng(1).standard_normal((2, 3, 6, 6))
    layer = FactorizedConv.from_factorization(kernel, stride=2, padding=1, bias=np.arange(4.0))
    y, pullback = F.convolve(x, kernel, np.arange(4.0), 2, 1)
    assert_close(y, layer(x), rtol=1e-12)
    assert_close(pullback(y), layer.vjp(x)[1](y), rtol=1e-12)


@each_format
def test_tensors_meet_over_any_modes(name: str) -> None:
    weight, x = tensor(name, (3, 2, 2, 4)), rng(1).standard_normal((2, 4, 5))
    y, _ = F.tensor_dot(x, weight, ([1], [3]), ([0], [2]))
    assert_close(y, np.einsum("cdx,abcd->xabc", x, weight.to_tensor()), rtol=1e-12)

    def function(x: Any, *values: Any) -> Any:
        for factor, value in zip(weight.all_factors(), values, strict=True):
            factor.data = value
        y, back = F.tensor_dot(x, weight, ([1], [3]), ([0], [2]))

        def pullback(dy: Any) -> Any:
            weight.zero_grad()
            return (back(dy), *[f.grad for f in weight.all_factors()])

        return y, pullback

    check_vjp(function, x, *[f.data for f in weight.all_factors()], rtol=2e-7)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of NumPy, for the peer
def test_the_peer_computes_the_same() -> None:
    torch, peer = pytest.importorskip("torch"), pytest.importorskip("tltorch")
    double, x, dy = {"dtype": torch.float64}, rng(1).standard_normal((5, 3, 4)), rng(2).standard_normal((5, 6))
    two = {"auto_tensorize": False, "tensorized_num_embeddings": (3, 4), "tensorized_embedding_dim": (2, 3)}
    numbers = np.asarray([3, 0, 11, 3, 7])
    pairs = [
        (peer.TRL((3, 4), (6,), True, factorization=name, rank=rank, **double),
         TRL((3, 4), 6, True, factorization=name, rank=rank, dtype=np.float64), x, dy)
        for name, rank in (("cp", 3), ("tucker", (2, 3, 2)), ("tt", (1, 2, 3, 1)))
    ]  # fmt: skip
    pairs += [
        (peer.FactorizedEmbedding(12, 6, **two, factorization=name, rank=3, **double), embedding(name), numbers, dy)
        for name in ("blocktt", "cp")
    ]
    pairs.append((peer.TCL((3, 4), (2, 5), **double), projection(), x, dy[:, :2, None] * np.ones(5)))
    pairs[-1][1].bias = None
    for theirs, ours, x, dy in pairs:
        ours.load_state_dict({name: value.detach().numpy() for name, value in theirs.state_dict().items()})
        given = torch.tensor(x, requires_grad=x.dtype.kind == "f")
        expected = theirs(given)
        expected.backward(torch.tensor(dy))
        y, pullback = ours.vjp(x)
        assert_close(y, expected.detach().numpy(), rtol=1e-12)
        dx = pullback(dy)
        assert dx is None or assert_close(dx, given.grad.numpy(), rtol=1e-12) is None
        own = dict(ours.named_parameters())
        for name, value in theirs.named_parameters():
            assert_close(own[name].grad, value.grad.numpy(), rtol=1e-12, what=name)


REFUSALS: dict[str, tuple[Any, type[Exception], str]] = {
    "trl input": (lambda: regression()(np.ones((2, 12))), ShapeError, r"input has shape \(2, 12\), .* \(n, 3, 4\)"),
    "trl verbose": (lambda: TRL(3, 2, verbose=1), ValueError, "verbose=1 prints nothing"),
    "trl format": (lambda: TRL(3, 2, factorization="svd"), ValueError, "unknown factorization 'svd'"),
    "trl tensor": (lambda: TRL(3, 2, factorization=tensor("CP", (2, 3))), ShapeError, r"weight with modes \(3, 2\)"),
    "trl layers": (lambda: TRL(3, 2, n_layers=2, factorization="blocktt"), NotImplementedError, "modes come in pairs"),
    "trl bias": (lambda: TRL(3, 2).init_from_linear(nn.Linear(3, 2)), ValueError, "make the TRL with bias=True"),
    "trl weight": (lambda: regression().init_from_linear(nn.Linear(3, 2)), ShapeError, r"\(2, 3\), expected \(4, 12\)"),
    "trl modes": (lambda: regression().init_from_linear(nn.Linear(3, 4), [0]), ValueError, r"modes=\[0\], expected"),
    "trl joint": (lambda: TRL(3, 2, n_layers=2).init_from_linear(nn.Linear(3, 2)), ValueError, "holds 2 layers"),
    "tcl rank": (lambda: TCL((3, 4), (2, 2, 2)), ShapeError, r"rank \(2, 2, 2\) has 3 entries, input_shape \(3, 4\)"),
    "tcl verbose": (lambda: TCL(3, 2, verbose=1), ValueError, "verbose=1 prints nothing"),
    "tcl input": (lambda: projection()(np.ones((2, 3))), ShapeError, r"TCL: input has shape \(2, 3\)"),
    "tcl size": (lambda: TCL((3, 0), 2), ValueError, "input_shape must be at least 1, found 0"),
    "numbers": (lambda: embedding()(np.asarray([0, 12])), IndexError, "numbers from 0 to 12, expected 0 to 11"),
    "negative": (lambda: embedding()(np.asarray([-1])), IndexError, "numbers from -1 to -1"),
    "floats": (lambda: embedding()(np.ones(2)), TypeError, "x holds float64, expected whole numbers"),
    "gradient": (lambda: embedding().vjp(NUMBERS)[1](np.ones(6)), ShapeError, r"gradient has shape \(6,\)"),
    "modes": (lambda: embedding(tensorized_num_embeddings=(3, 3)), ShapeError, "product 9, expected 12, the num_emb"),
    "one side": (lambda: FactorizedEmbedding(12, 6, tensorized_embedding_dim=6), ValueError, "give both or neither"),
    "both ways": (lambda: embedding(auto_tensorize=True), ValueError, "pass only one of the two ways"),
    "tables": (lambda: embedding(n_layers=2), NotImplementedError, "n_layers=2 with BlockTT"),
    "one table": (lambda: embedding()[0], ValueError, "get_embedding is for joint ones"),
    "no weight": (lambda: FactorizedEmbedding.from_embedding(nn.ReLU()), TypeError, "ReLU has no weight"),
    "weight": (lambda: F.trl(np.ones((2, 3)), np.ones((3, 2))), TypeError, "weight is a ndarray, expected a"),  # type: ignore[arg-type]
    "axes": (lambda: F.trl(np.ones(3), tensor("CP", (3, 2))), ShapeError, "input has 1 axes, expected 2 to 2"),
    "features": (
        lambda: F.factorized_linear(np.ones((2, 4)), tensor("CP", (3, 2))), ShapeError, "no last modes .* product 4",
    ),
    "bias": (lambda: F.trl(np.ones((2, 3)), tensor("CP", (3, 2)), np.ones(3)), ShapeError, r"\(3,\), expected \(2,\)"),
    "pair": (lambda: F.tensor_dot(np.ones((2, 3)), tensor("CP", (3, 2)), ([0], [0])), ShapeError, "pairs mode 0"),
    "twice": (lambda: F.tensor_dot(np.ones((3, 3)), tensor("CP", (3, 2)), ([0, 1], [0, 0])), ValueError, "mode twice"),
    "sides": (lambda: F.tensor_dot(np.ones((3, 3)), tensor("CP", (3, 2)), ([0, 1], [0])), ValueError, "as many modes"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_table_that_changes_at_a_look_up_is_refused() -> None:
    class Foreign:
        weight, max_norm = np.ones((12, 6)), 1.0

    with pytest.raises(ValueError, match="a layer has max_norm"):
        FactorizedEmbedding.from_embedding(Foreign())


EXAMPLES = {
    "TRL": Example(lambda: regression("Tucker"), (5, 3, 4), (5, 2, 2)),
    "TCL": Example(projection, (2, 3, 3, 4), (2, 3, 2, 5)),
}


@pytest.mark.parametrize("check", contract.PLAIN, ids=lambda check: check.__name__)
@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_layer_contract(example: Example, check: Any) -> None:
    check(example)


@pytest.mark.parametrize("check", contract.ON_LIBRARIES, ids=lambda check: check.__name__)
def test_layer_contract_on_every_library(check: Any, xp: Library) -> None:
    check(EXAMPLES["TCL"], xp)


def test_look_ups_on_every_library(xp: Library) -> None:
    layer, numbers = embedding("Tucker"), xp.asarray(NUMBERS)
    expected, back = layer.vjp(NUMBERS)
    back(expected)
    gradients = [p.grad for p in layer.parameters()]
    layer.zero_grad()
    xp.adopt(layer)
    y, pullback = layer.vjp(numbers)
    assert_close(y, expected, rtol=1e-12)
    assert pullback(y) is None
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        assert_close(parameter.grad, gradient, rtol=1e-12)


def test_a_saved_table_is_the_same(tmp_path: Path) -> None:
    for layer in (embedding("CP", n_layers=2), nn.Sequential(embedding())):
        save(layer, tmp_path / "table.safetensors")
        assert_close(load(tmp_path / "table.safetensors")(NUMBERS), layer(NUMBERS), rtol=0)


def test_a_held_tensor_is_not_copied() -> None:
    weight = FactorizedTensor.new((3, 2), 2, rng=rng(0))
    assert TRL(3, 2, factorization=weight).weight is weight
    assert FactorizedEmbedding(3, 2, n_tensorized_modes=1, factorization=weight).weight is weight
