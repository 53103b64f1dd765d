"""Values that a module takes over: beyond a range, rounded, older than a buffer, or tensors of another library."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.checkpoint import load_checkpoint, to_onnx
from growarray.nn.module import Module
from tests.checkpoint.files import ordered, rows, storage, tensor, torch_zip
from tests.foreign import Tensor, Uninitialized


def kept(layer: Module, before: dict[str, Any]) -> bool:
    return all(np.array_equal(value, before[name]) for name, value in layer.state_dict().items())


# Ranges and rounding.


def test_a_value_beyond_the_range_is_refused_before_anything_changes() -> None:
    layer = nn.Linear(2, 1)
    before = layer.state_dict()
    state = {"weight": np.array([[1.0, 1e39]]), "bias": np.array([7.0])}
    with pytest.raises(ValueError, match=r"weight from float64 to float32 \(1e\+39 is beyond its range: take a wider"):
        layer.load_state_dict(state)
    assert kept(layer, before)


def test_lax_loading_leaves_a_value_beyond_the_range_out_and_says_so() -> None:
    layer = nn.Linear(2, 1)
    before = layer.state_dict()
    report = layer.load_state_dict({"weight": np.array([[1.0, 1e39]]), "bias": np.array([7.0])}, strict=False)
    assert report
    assert (report.matched, report.beyond) == (("bias",), {"weight": 1e39})
    assert list(map(tuple, report.refused)) == [("weight", "float64", "float32")]
    assert str(report).splitlines() == [
        "1 matched, 1 refused, 1 casts",
        "what     name    found    expected  remark",
        "refused  weight  float64  float32   1e+39 is beyond its range: take a wider dtype",
        "cast     bias    float64  float32",
    ]
    assert kept(layer, {**before, "bias": np.float32([7.0])})


def test_infinities_are_taken_as_they_are() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.load_state_dict({"weight": np.array([[np.inf, np.nan]])})
    np.testing.assert_array_equal(layer.weight.data, np.float32([[np.inf, np.nan]]))


def test_the_report_says_where_digits_were_lost() -> None:
    layer = nn.Linear(2, 1)
    report = layer.load_state_dict({"weight": np.array([[0.5, 1.0 + 2.0**-24]]), "bias": np.array([0.5])})
    assert report.rounded == {"weight": 2.0**-24 / (1.0 + 2.0**-24)}
    assert str(report).splitlines()[2] == (
        "cast  weight, bias  float64  float32   rounded by up to 6.0e-08 of the value, in weight"
    )
    assert not layer.load_state_dict({"weight": np.ones((1, 2)), "bias": np.ones(1)}).rounded


# Batch normalisation of torch before 0.4.1 counted no batches.

SIX = np.arange(6, dtype="<f4").tobytes()


def old_file(*versions: tuple[str, int], prefix: str = "") -> io.BytesIO:
    """A checkpoint of ``Sequential(Linear, BatchNorm1d)`` without ``num_batches_tracked``."""

    def vector(first: int, *shape: int) -> Any:
        return tensor(storage("0", 6), first, shape or (2,), (2, 1)[-len(shape or (2,)) :])

    names = {"0.weight": vector(0, 2, 2), "0.bias": vector(1)}
    names |= {f"1.{leaf}": vector(i) for i, leaf in enumerate(("weight", "bias", "running_mean", "running_var"))}
    metadata = {"_metadata": {prefix + path: {"version": version} for path, version in versions}}
    return io.BytesIO(torch_zip(ordered({prefix + name: value for name, value in names.items()}, metadata), {"0": SIX}))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_old_state_has_no_count_of_batches(prefix: str) -> None:
    layers = network()
    layers[1].num_batches_tracked = np.array(3)
    report = layers.load_state_dict(load_checkpoint(old_file(("1", 1), prefix=prefix)))
    assert not report
    assert report.kept == ("1.num_batches_tracked",)
    assert layers[1].num_batches_tracked == 3
    assert layers[1].running_var.tolist() == [3.0, 4.0]
    assert (
        str(report).splitlines()[-1]
        == "kept  1.num_batches_tracked                   the state is older than this name"
    )


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_of_now_must_have_it(prefix: str) -> None:
    checkpoint = load_checkpoint(old_file(("0", 1), ("1", 2), prefix=prefix))
    assert checkpoint.versions == {"0": 1, "1": 2}
    with pytest.raises(KeyError, match=r"missing: 1\.num_batches_tracked"):
        network().load_state_dict(checkpoint)
    other = nn.Sequential(nn.Identity(), *network())
    with pytest.raises(KeyError, match=r"missing: 2\.num_batches_tracked"):
        other.load_state_dict(checkpoint, rename={"0.": "1.", "1.": "2."})


@pytest.mark.parametrize(("version", "fits"), [(None, True), (1, True), (2, False)])
def test_mappings_are_judged_by_what_torch_notes_on_them(version: int | None, fits: bool) -> None:
    class State(OrderedDict[str, Any]):
        _metadata: Any = None

    state = State((name, value) for name, value in network().state_dict().items() if "num" not in name)
    if version is not None:
        state._metadata = {"": {"version": 1}, "1": {"version": version}}
    assert (network().load_state_dict(state, strict=False).kept == ("1.num_batches_tracked",)) is fits
    if fits:
        assert not network().load_state_dict(state)


def test_other_names_stay_required() -> None:
    state = {name: value for name, value in network().state_dict().items() if "running" not in name}
    with pytest.raises(KeyError, match=r"missing: 1\.running_mean, 1\.running_var"):
        network().load_state_dict(state)


def test_an_exported_network_is_loaded_back(tmp_path: Any) -> None:
    layers, path = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), tmp_path / "own.onnx"
    layers[1].running_mean[:] = [3.0, 4.0]
    to_onnx(layers, path, (1, 1, 4, 4))
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert not other.load_state_dict(load_checkpoint(path))
    assert other[1].running_mean.tolist() == [3.0, 4.0]


# Tensors of another library.


def test_tensors_are_taken_without_their_library() -> None:
    layer = nn.Linear(2, 2)
    halves = Tensor(np.float32([1.0, -2.5]), "bfloat16")
    report = layer.load_state_dict({"weight": Tensor(np.eye(2)), "bias": halves})
    assert list(map(tuple, report.casts)) == [("weight", "float64", "float32"), ("bias", "bfloat16", "float32")]
    assert layer.bias is not None
    assert layer.bias.data.tolist() == [1.0, -2.5]


@pytest.mark.parametrize(
    ("value", "message"),
    rows(
        {
            "meta": (Tensor(np.ones(2), device="meta"), r"^'bias': a tests\.foreign\.Tensor without values"),
            "gradient": (Tensor(np.ones(2), grad=True), r"^'bias': .* requires a gradient .*; pass x\.detach\(\)"),
            "lazy": (
                Uninitialized(np.ones(2)),
                "^the value of 'bias' is a .*Uninitialized; expected an array that has",
            ),
            "elsewhere": (
                Tensor(np.ones(2), device="xpu:0"),
                r"^'bias': .* on xpu:0 .* \(Unsupported tensor\); pass a dense",
            ),
        }
    ),
)
@pytest.mark.parametrize("strict", [True, False])
def test_tensors_without_values_at_hand_are_refused_by_name(value: Any, message: str, strict: bool) -> None:
    layer = nn.Linear(2, 2)
    before = layer.state_dict()
    with pytest.raises(TypeError, match=message):
        layer.load_state_dict({"weight": np.ones((2, 2)), "bias": value}, strict=strict)
    assert kept(layer, before)


def test_a_parameter_of_a_foreign_tensor_is_an_array_of_its_own() -> None:
    values = np.float32([[1.0, -2.5]])
    layer = nn.Linear.of(Tensor(values), Tensor(np.float32([3.0]), "bfloat16"))
    values[:] = 0.0
    assert layer.weight.data.tolist() == [[1.0, -2.5]]
    assert layer.weight.data.flags.writeable
    assert layer(np.float32([[1.0, 1.0]])).tolist() == [[1.5]]
    for make in (nn.Linear.of, nn.Conv2d.of, nn.Parameter):
        with pytest.raises(TypeError, match="Uninitialized without values cannot be taken"):
            make(Uninitialized(np.ones(1)))
