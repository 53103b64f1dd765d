"""Adapters: low-rank changes beside frozen layers, grown from rank zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import load, save
from growarray.backend import to_numpy
from growarray.checkpoint import from_onnx, to_onnx
from growarray.errors import GrowthError, ShapeError
from growarray.growing import GRADMAX, TINY, Adapter, adapt, load_adapters, merge_adapters
from growarray.growing.update import inverse_sqrt
from growarray.networks import Growth, GrowthSettings
from growarray.networks.part import as_growing
from growarray.nn import (
    BatchNorm2d,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvNd,
    ConvTranspose2d,
    Flatten,
    Linear,
    MultiheadAttention,
    ReLU,
    Sequential,
)
from growarray.ops import mse
from growarray.optim import Adam
from growarray.testing import assert_close, check_vjp
from tests.conftest import LIBRARIES, Library
from tests.growing.pairs import layer as growing_layer

F64 = np.float64


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: Linear(4, 3, rng=rng(1), dtype=F64), (40, 4)),
    "linear over tokens": (lambda: Linear(4, 3, bias=False, rng=rng(1), dtype=F64), (20, 3, 4)),
    "conv1d": (lambda: Conv1d(2, 3, 3, padding=1, rng=rng(1), dtype=F64), (12, 2, 7)),
    "conv2d": (lambda: Conv2d(2, 3, 3, stride=2, padding=1, rng=rng(1), dtype=F64), (12, 2, 6, 6)),
    "conv2d, same": (lambda: Conv2d(2, 3, (3, 2), dilation=2, padding="same", rng=rng(1), dtype=F64), (12, 2, 6, 6)),
    "conv3d": (lambda: Conv3d(2, 3, 2, rng=rng(1), dtype=F64), (12, 2, 3, 3, 3)),
    "convNd": (lambda: ConvNd(4, 2, 3, 2, bias=False, rng=rng(1), dtype=F64), (8, 2, 3, 2, 2, 3)),
}
each_layer = pytest.mark.parametrize(("build", "shape"), CASES.values(), ids=CASES)


def problem(build: Any, shape: tuple[int, ...]) -> tuple[Adapter, Any, Any]:
    """An adapter of rank 0, inputs, and targets that its layer misses."""
    adapter = Adapter(build(), rng=rng(2))
    x = rng(3).standard_normal(shape)
    return adapter, x, adapter(x) + rng(4).standard_normal(adapter(x).shape)


def collect(adapter: Adapter, x: Any, target: Any) -> Any:
    """The place to grow, with statistics of half the squared error."""
    place = adapter.lora_B
    place.init_computation()
    y, pullback = adapter.vjp(x)
    pullback(y - target)
    place.update_computation()
    return place


def loss(adapter: Any, x: Any, target: Any) -> float:
    return float(np.sum((adapter(x) - target) ** 2)) / 2 / len(x)


def rows(adapter: Adapter, x: Any) -> np.ndarray:
    """What each output reads, unfolded by the columns of the identity: an independent way to the same numbers."""
    layer = adapter.layer
    if isinstance(layer, Linear):
        return x.reshape(-1, x.shape[-1])
    read = layer.weight.shape[1:]
    each = np.eye(int(np.prod(read))).reshape(-1, *read)
    options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")}
    put = type(layer).of(each, **options)(x)
    return np.moveaxis(put, 1, -1).reshape(-1, len(each))


@each_layer
def test_rank_zero_is_the_layer_and_so_is_a_new_one_of_any_rank(build: Any, shape: tuple[int, ...]) -> None:
    layer, x = build(), rng(3).standard_normal(shape)
    for rank in (0, 2):
        adapter = Adapter(build(), rank, rng=rng(2))
        assert np.array_equal(adapter(x), layer(x))
        assert adapter.rank == rank
        assert adapter.number_of_parameters() == rank * (layer.weight.size // layer.weight.shape[0] + 3)


@each_layer
def test_pullback_is_the_derivative_by_input_and_pair(build: Any, shape: tuple[int, ...]) -> None:
    adapter = Adapter(build(), 2, rng=rng(2))
    adapter.lora_B.weight.data = rng(5).standard_normal(adapter.lora_B.weight.shape)

    def function(x: Any, a: Any, b: Any) -> Any:
        adapter.lora_A.weight.data, adapter.lora_B.weight.data = a, b
        y, back = adapter.vjp(x)

        def pullback(dy: Any) -> Any:
            adapter.zero_grad()
            return back(dy), *(p.grad for p in adapter.parameters())

        return y, pullback

    x = rng(3).standard_normal((2, *shape[1:]))
    check_vjp(function, x, *[p.data for p in adapter.parameters()])
    y, back = adapter.vjp(x)
    assert back(y, wrt_x=False) is None
    assert adapter.layer.weight.grad is None


@each_layer
def test_new_ranks_are_the_truncated_svd_of_the_whitened_gradient(build: Any, shape: tuple[int, ...]) -> None:
    """The best change of W of rank 2: least squares of what is missing, by the formula, from unfolded inputs."""
    adapter, x, target = problem(build, shape)
    place = collect(adapter, x, target)
    place.compute_optimal_updates(TINY, max_new=2)
    place.apply_change(scaling_factor=1.0)
    read, missing = rows(adapter, x), target - adapter.layer(x)
    missing = missing if isinstance(adapter.layer, Linear) else np.moveaxis(missing, 1, -1)
    missing = missing.reshape(-1, missing.shape[-1])
    root = inverse_sqrt(read.T @ read, 1e-12)
    u, s, vh = np.linalg.svd(root @ read.T @ missing, full_matrices=False)
    best = (root @ (u[:, :2] * s[:2]) @ vh[:2]).T
    assert_close(adapter.merge().weight.data - adapter.layer.weight.data, best.reshape(adapter.layer.weight.shape))
    fallen = loss(adapter.layer, x, target) - loss(adapter, x, target)
    assert fallen == pytest.approx(np.sum(s[:2] ** 2) / 2 / len(x), rel=1e-10)
    assert place.update.decrease == 0.0


@each_layer
def test_what_is_promised_to_first_order_comes_and_scaling_zero_changes_nothing(
    build: Any, shape: tuple[int, ...]
) -> None:
    adapter, x, target = problem(build, shape)
    for rule in (TINY, TINY):  # from rank 0, and from rank 1
        place = collect(adapter, x, target)
        place.compute_optimal_updates(rule, max_new=1)
        before, promised = loss(adapter, x, target), place.predicted_decrease
        network = as_growing(Sequential(adapter))
        g = 0.05
        place.scaling_factor = g
        assert before - loss(network.extended_forward, x, target) == pytest.approx(g * g * promised, rel=1e-2)
        place.scaling_factor = 0.0
        assert_close(network.extended_forward(x), adapter(x), rtol=0.0)
        place.apply_change(scaling_factor=1.0)
        assert loss(adapter, x, target) < before
        place.delete_update()
        place.reset_computation()
    assert adapter.rank == 2


@each_layer
def test_merged_it_is_a_plain_layer_of_the_same_class_with_the_sum(build: Any, shape: tuple[int, ...]) -> None:
    adapter = Adapter(build(), 2, rng=rng(2))
    adapter.lora_B.weight.data = rng(5).standard_normal(adapter.lora_B.weight.shape)
    x, merged = rng(3).standard_normal(shape), adapter.merge()
    assert type(merged) is type(adapter.layer)
    assert merged.extra_repr() == build().extra_repr()
    assert_close(merged(x), adapter(x), rtol=1e-12)
    assert all(p.requires_grad for p in merged.parameters())
    assert not np.shares_memory(merged.weight.data, adapter.layer.weight.data)


@each_layer
def test_saved_it_comes_back_and_grows_on(build: Any, shape: tuple[int, ...], tmp_path: Any) -> None:
    adapter, x, target = problem(build, shape)
    collect(adapter, x, target).compute_optimal_updates(max_new=1)
    adapter.lora_B.apply_change(scaling_factor=1.0)
    adapter.lora_B.reset_computation()
    save(Sequential(adapter), tmp_path / "adapted.safetensors")
    (again,) = load(tmp_path / "adapted.safetensors")
    assert np.array_equal(again(x), adapter(x))
    assert [name for name, _ in again.named_parameters()] == ["lora_A.weight", "lora_B.weight"]
    found = [collect(a, x, target) for a in (adapter, again)]
    for place in found:
        place.delete_update()
        place.compute_optimal_updates(max_new=1)
        place.apply_change(scaling_factor=1.0)
    assert np.array_equal(again(x), adapter(x))
    assert again.rank == 2


def cnn() -> Sequential:
    make = {"rng": rng(1), "dtype": F64}
    stem = Conv2d(1, 3, 3, padding=1, **make), BatchNorm2d(3, dtype=F64), ReLU()
    return Sequential(*stem, Flatten(), Linear(48, 5, **make), ReLU(), Linear(5, 2, **make))


def test_a_network_is_adapted_in_a_copy_that_computes_the_same() -> None:
    network, x = cnn(), rng().standard_normal((6, 1, 4, 4))
    before = network.state_dict()
    adapted = adapt(network, rank={"4": 2}, rng=rng())
    assert [type(m).__name__ for m in adapted][::2] == ["Adapter", "ReLU", "Adapter", "Adapter"]
    assert np.array_equal(adapted.eval()(x), network.eval()(x))
    assert [(n, p.shape) for n, p in adapted.named_parameters() if p.requires_grad] == [
        ("0.lora_A.weight", (0, 1, 3, 3)), ("0.lora_B.weight", (3, 0, 1, 1)),
        ("4.lora_A.weight", (2, 48)), ("4.lora_B.weight", (5, 2)),
        ("6.lora_A.weight", (0, 5)), ("6.lora_B.weight", (2, 0)),
    ]  # fmt: skip
    state = adapted.state_dict()
    assert all(np.array_equal(state[name], value) for name, value in before.items())  # under the names it had
    adapted[0].layer.weight.data += 1.0
    assert np.array_equal(network[0].weight.data, before["0.weight"])
    assert all(p.requires_grad for p in network.parameters())


def test_the_output_of_attention_takes_one(tmp_path: Any) -> None:
    network, x = Sequential(MultiheadAttention(4, 2, rng=rng(1), dtype=F64)), rng(2).standard_normal((5, 3, 4))
    adapted = adapt(network, rank=1, rng=rng())
    assert np.array_equal(adapted(x), network(x))
    assert [name for name, p in adapted.named_parameters() if p.requires_grad] == [
        "0.out_proj.lora_A.weight", "0.out_proj.lora_B.weight",
    ]  # fmt: skip
    save(adapted, tmp_path / "adapted.safetensors")
    assert np.array_equal(load(tmp_path / "adapted.safetensors")(x), network(x))


def test_training_moves_the_pairs_alone_and_a_merged_copy_is_plain() -> None:
    x = rng().standard_normal((6, 1, 4, 4))
    adapted = adapt(cnn(), ["0", "6"], rank=1, rng=rng())
    before, optimizer = adapted.state_dict(), Adam(adapted, lr=0.1)
    for _ in range(3):
        y, pullback = adapted.vjp(x)
        optimizer.zero_grad()
        pullback(y)
        optimizer.step()
    moved = {name for name, value in adapted.state_dict().items() if not np.array_equal(value, before[name])}
    assert {name for name in moved if "running" not in name and "tracked" not in name} == {
        "0.lora_A.weight", "0.lora_B.weight", "6.lora_A.weight", "6.lora_B.weight",
    }  # fmt: skip
    merged = merge_adapters(adapted)
    assert merged.state_dict().keys() == cnn().state_dict().keys()
    assert_close(merged.eval()(x), adapted.eval()(x), rtol=1e-12)
    assert all(p.requires_grad for p in merged.parameters())


def test_the_loop_grows_it_within_a_budget_where_a_parameter_gains_most() -> None:
    """The target is the network with one layer changed by rank 1: it is that layer which is to grow."""
    network = Sequential(Linear(6, 6, rng=rng(1), dtype=F64), Linear(6, 4, rng=rng(2), dtype=F64))
    goal = merge_adapters(adapt(network, ["1"]))
    goal[1].weight.data += np.outer(rng(3).standard_normal(4), rng(4).standard_normal(6))
    x = rng(5).standard_normal((400, 6))
    adapted = adapt(network)
    settings = GrowthSettings(epochs=6, every=1, first=1, neurons=1, max_parameters=22, choose="per_parameter")
    loop = Growth(
        adapted, Adam(adapted, lr=1e-3), (x, goal(x)), validation=(x, goal(x)), task="regression", settings=settings,
        rng=rng(),
    )  # fmt: skip
    growths = loop.run().of("growth")
    assert [(e["where"], e["widens"], e["added"]) for e in growths[:1]] == [("1.lora_B", "1.lora_A", 1)]
    assert growths[0]["parameters"] == 10
    assert growths[0]["train_change"] < -0.99 * mse(network(x), goal(x))[0]
    assert adapted.number_of_parameters() <= 22


def test_every_library_gives_numpy_s_numbers(xp: Library) -> None:
    found = []
    for library in (LIBRARIES["numpy"], xp):
        adapter, x, target = problem(*CASES["conv2d"])
        library.adopt(adapter)
        collect(adapter, library.asarray(x), library.asarray(target)).compute_optimal_updates(max_new=2)
        adapter.lora_B.apply_change(scaling_factor=1.0)
        found.append(to_numpy(adapter.merge()(library.asarray(x))))
    assert_close(found[1], found[0], rtol=1e-12)


def test_it_is_written_to_onnx_as_a_plain_layer_under_its_name(tmp_path: Any) -> None:
    adapted, x = adapt(cnn(), rank=1, rng=rng()).eval(), rng().standard_normal((6, 1, 4, 4))
    for adapter in (adapted[0], adapted[4]):
        adapter.lora_B.weight.data = rng(5).standard_normal(adapter.lora_B.weight.shape)
    to_onnx(adapted, tmp_path / "adapted.onnx", input_shape=(1, 1, 4, 4), dtype=F64)
    again = from_onnx(tmp_path / "adapted.onnx")
    assert_close(again(x), adapted(x), rtol=1e-12)
    assert {"0.weight", "4.weight", "6.weight"} <= again.state_dict().keys()


def test_every_rule_grows_it() -> None:
    adapter, x, target = problem(*CASES["linear"])
    place = collect(adapter, x, target)
    place.compute_optimal_updates(GRADMAX, max_new=1)
    place.apply_change(scaling_factor=1.0)
    assert np.array_equal(adapter(x), adapter.layer(x))  # its incoming weights are zero
    assert adapter.rank == 1


def test_adapters_of_a_file_are_put_where_they_belong() -> None:
    network, x = cnn().eval(), rng().standard_normal((6, 1, 4, 4))
    a, b = rng(1).standard_normal((2, 1, 3, 3)), rng(2).standard_normal((3, 2, 1, 1))
    saved = {"base_model.model.0.lora_A.default.weight": a, "base_model.model.0.lora_B.default.weight": b}
    adapted = load_adapters(network, saved, scaling=0.5).eval()
    plain = cnn().eval()
    plain[0].weight.data = plain[0].weight.data + 0.5 * np.einsum("or, rikl -> oikl", b[:, :, 0, 0], a)
    assert_close(adapted(x), plain(x), rtol=1e-12)
    own = {name: value for name, value in adapted.state_dict().items() if "lora" in name}
    assert_close(load_adapters(network, own)(x), adapted(x), rtol=0.0)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "transposed": (
        lambda: Adapter(ConvTranspose2d(2, 3, 3)),
        TypeError,
        "found ConvTranspose2d.*expected one of Linear",
    ),
    "groups": (lambda: Adapter(Conv2d(4, 4, 3, groups=4)), NotImplementedError, "groups=4 and padding_mode='zeros'"),
    "padding": (lambda: Adapter(Conv2d(4, 4, 3, padding_mode="reflect")), NotImplementedError, "'reflect'"),
    "rank": (lambda: Adapter(Linear(2, 2), -1), ValueError, "rank"),
    "name": (lambda: adapt(cnn(), ["7"]), KeyError, "no layer '7' to adapt, expected names such as 0, 1, 2"),
    "rank of another": (lambda: adapt(cnn(), ["6"], {"0": 1}), KeyError, "no layer '0' to adapt"),
    "kind": (lambda: adapt(cnn(), ["1"]), TypeError, "found BatchNorm2d"),
    "growing": (lambda: adapt(Sequential(growing_layer(2, 2)), ["0.layer"]), TypeError, "0.layer belongs to Linear"),
    "again": (lambda: adapt(adapt(Linear(2, 2)), ["layer"]), TypeError, "layer belongs to Adapter"),
    "nothing": (lambda: adapt(Sequential(growing_layer(2, 2))), GrowthError, "Sequential has no layer that takes"),
    "no network": (lambda: adapt(3), TypeError, "network is 3, expected a Module"),
    "other weights": (lambda: load_adapters(cnn(), {"0.weight": 1.0}), KeyError, "found '0.weight'.*lora_A.weight"),
    "half": (lambda: load_adapters(cnn(), {"6.lora_A.weight": np.ones((1, 5))}), KeyError, "6.lora_A.weight alone"),
    "shape": (
        lambda: load_adapters(cnn(), {"6.lora_A.weight": np.ones((1, 4)), "6.lora_B.weight": np.ones((2, 1))}),
        ShapeError,
        r"6.lora_A.weight",
    ),
}


@pytest.mark.parametrize(("call", "kind", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_adapted_is_refused_by_name(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()
