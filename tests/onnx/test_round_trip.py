"""What is written to ONNX comes back with its names; what no output needs is left out; what is made is counted."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from growarray import nn
from growarray.checkpoint import Limits, from_onnx, load_checkpoint, to_onnx
from growarray.compression import compress
from growarray.errors import CheckpointError
from growarray.nn.module import Module
from tests.checkpoint.files import rows
from tests.onnx.models import Made, build, feeds, ints
from tests.onnx.runtime import assert_close

RNG = np.random.default_rng(3)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(np.ones(shape, np.float32))


LONE = {
    "linear": (lambda: nn.Linear(3, 2), (2, 3)),
    "linear over more axes": (lambda: nn.Linear(3, 2), (2, 4, 3)),
    "linear without bias": (lambda: nn.Linear(3, 2, bias=False), (2, 3)),
    "convolution": (lambda: nn.Conv2d(2, 4, 3, groups=2), (1, 2, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3), (1, 2, 5, 5)),
    "batch norm": (lambda: nn.BatchNorm1d(3), (2, 3)),
    "batch norm, not affine": (lambda: nn.BatchNorm2d(3, affine=False), (2, 3, 4, 4)),
    "layer norm": (lambda: nn.LayerNorm(3), (2, 3)),
    "layer norm without bias": (lambda: nn.LayerNorm(3, bias=False), (2, 3)),
    "layer norm, not affine": (lambda: nn.LayerNorm((2, 3), elementwise_affine=False), (2, 2, 3)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3)),
    "group norm of features": (lambda: nn.GroupNorm(2, 4), (2, 4)),
    "group norm, not affine": (lambda: nn.GroupNorm(2, 4, affine=False), (2, 4, 3)),
    "slopes": (lambda: nn.PReLU(3), (2, 3)),
    "sum": (lambda: nn.Add(parameter(3)), (2, 3)),
    "no weights": (nn.GELU, (2, 3)),
    "several": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()), (1, 2, 5, 5)),
}


@pytest.mark.parametrize("opset", [17, 18, 21])
@pytest.mark.parametrize(("make", "shape"), rows(LONE))
def test_a_network_comes_back_with_the_names_that_it_had(make: Any, shape: Any, opset: int, tmp_path: Path) -> None:
    layer: Module = make()
    for _, array in layer.named_parameters():
        array.data = RNG.uniform(0.5, 1.5, array.shape).astype(np.float32)
    layer.eval()
    path, again = tmp_path / "model.onnx", tmp_path / "again.onnx"
    to_onnx(layer, path, shape, opset=opset)
    network = from_onnx(path)
    assert list(network.state_dict()) == list(layer.state_dict())
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(network.state_dict()[name], array, strict=True)
    x = RNG.standard_normal(shape).astype(np.float32)
    assert_close(network(x), layer(x))
    assert not network.load_state_dict(layer.state_dict())
    assert not make().load_state_dict(network.state_dict())
    to_onnx(network, again, shape, opset=opset)
    assert list(load_checkpoint(again)) == list(load_checkpoint(path))


def test_a_lone_layer_is_shown_replaced_and_compressed_without_a_name(tmp_path: Path) -> None:
    to_onnx(nn.Linear(12, 12), tmp_path / "model.onnx", (1, 12))
    network = from_onnx(tmp_path / "model.onnx")
    assert repr(network) == "Graph(input -> output, Linear(12, 12, bias=True))"
    assert [name for name, _ in network.named_parameters()] == ["weight", "bias"]
    smaller = compress(network, 0.5, calibration=RNG.standard_normal((20, 12)).astype(np.float32), rng=RNG)
    assert [name for name, _ in smaller.network.named_parameters()][-1] == "bias"
    assert all(not name.startswith(".") for name in smaller.network.state_dict())
    network.replace("", nn.Identity())
    assert not network.state_dict()


HELD = {
    "a threshold": Made(
        [("Greater", ["x", "c"], ["b"], {}), ("Where", ["b", "x", "w"], ["y"], {})],
        {"x": ("n", 3)},
        fixed={"c": np.float32([0.1]), "w": np.float32([1, 2, 3])},
    ),
    "a computed operand": Made(
        [("Gather", ["w", "i"], ["z"], {}), ("Add", ["x", "z"], ["y"], {})],
        {"x": ("n", 3)},
        fixed={"w": np.float32([[1, 2, 3]]), "i": ints(0)},
    ),
}


@pytest.mark.parametrize("made", HELD.values(), ids=HELD)
def test_what_is_not_trained_keeps_its_name_and_stays_so(made: Made, tmp_path: Path) -> None:
    network = from_onnx(io.BytesIO(build(made).SerializeToString()))
    for _ in range(2):
        to_onnx(network, tmp_path / "again.onnx", (2, 3))
        again = from_onnx(tmp_path / "again.onnx")
        assert list(again.state_dict()) == list(network.state_dict())
        assert dict(again.named_parameters()).keys() == dict(network.named_parameters()).keys()
        network = again


def test_names_that_say_nothing_stay_apart() -> None:
    fixed = {"weight": np.full((2, 1), 2.0, np.float32), "bias": np.full((3, 1, 1), 1.0, np.float32)}
    nodes = [("Mul", ["x", "weight"], ["h"], {}), ("Add", ["h", "bias"], ["y"], {})]
    network = from_onnx(io.BytesIO(build(Made(nodes, {"x": ("n", 3, 2, 4)}, fixed=fixed)).SerializeToString()))
    assert list(network.state_dict()) == ["weight.value", "bias.value"]


# Nodes that no output depends on.

X = {"x": ("n", 3)}
DEAD = {
    "operator": [("NoSuchOperator", ["x"], ["d"], {})],
    "operator of constants": [("Floor", ["x"], ["d"], {})],
    "attribute": [("Relu", ["x"], ["d"], {"slope": 3})],
    "missing input": [("Relu", ["nowhere"], ["d"], {})],
    "chain": [
        ("Relu", ["x"], ["d"], {}),
        ("Einsum", ["d"], ["e"], {"equation": "ij->j"}),
        ("Cast", ["e"], ["f"], {"to": 7}),
    ],
    "second output": [("MaxPool", ["z"], ["m", "i"], {"kernel_shape": [1]}), ("Add", ["i", "i"], ["d"], {})],
    "shape that does not fit": [("MatMul", ["x", "w"], ["d"], {})],
}


@pytest.mark.parametrize("name", DEAD)
@pytest.mark.parametrize("first", [True, False])
def test_what_no_output_needs_is_no_reason_to_refuse(name: str, first: bool) -> None:
    living = [("Unsqueeze", ["x", "one"], ["z"], {}), ("MaxPool", ["z"], ["p"], {"kernel_shape": [3]})]
    nodes = [*living, *DEAD[name], ("Squeeze", ["p", "one"], ["y"], {})]
    if first and name != "second output":
        nodes = [*DEAD[name], *living, nodes[-1]]
    made = Made(nodes, X, fixed={"one": ints(1), "w": np.ones((5, 2), np.float32)})
    model = build(made)
    model.graph.node[0 if first else 2].domain = "" if name != "operator" else "com.other"
    network = from_onnx(io.BytesIO(model.SerializeToString()))
    x = feeds(made)["x"]
    assert network.run({"x": x})["y"].tolist() == x.max(axis=1, keepdims=True).tolist()
    assert not network.state_dict()


def test_an_output_that_only_such_a_node_takes_is_not_asked_for() -> None:
    nodes = [("MaxPool", ["x"], ["y", "i"], {"kernel_shape": [2]}), ("Neg", ["i"], ["d"], {})]
    network = from_onnx(io.BytesIO(build(Made(nodes, {"x": ("n", 1, 4)})).SerializeToString()))
    assert network.run({"x": np.float32([[[1, 3, 2, 0]]])})["y"].tolist() == [[[3.0, 3.0, 2.0]]]


def test_what_an_output_needs_is_still_refused() -> None:
    nodes = [("NoSuchOperator", ["x"], ["h"], {}), ("Relu", ["h"], ["y"], {})]
    with pytest.raises(CheckpointError, match=r"operator 'NoSuchOperator' \(node 'n0'\): is not supported"):
        from_onnx(io.BytesIO(build(Made(nodes, X)).SerializeToString()))
    with pytest.raises(CheckpointError, match="value 'y' is given twice"):
        from_onnx(
            io.BytesIO(build(Made([("Relu", ["x"], ["y"], {}), ("Neg", ["x"], ["y"], {})], X)).SerializeToString())
        )


# Layers are counted.


def split(count: int, *outputs: str) -> io.BytesIO:
    """One node with many outputs."""
    made = Made([("Split", ["x"], [f"y{i}" for i in range(count)], {})], {"x": (count, 1)}, outputs=outputs)
    return io.BytesIO(build(made).SerializeToString())


def test_the_outputs_of_a_split_are_counted() -> None:
    names = [f"y{i}" for i in range(900)]
    limits = replace(Limits(), steps=20_000)
    with pytest.raises(
        CheckpointError, match=r"'Split' .*: network has more than 500 layers \(40 of Limits\.steps each\)"
    ):
        from_onnx(split(900, *names), limits=limits)
    assert len(from_onnx(split(900, *names))) == 900
    few = from_onnx(split(900, "y899", "y3"), limits=limits)
    assert len(few) == 2
    found = few.run({"x": np.arange(900, dtype=np.float32)[:, None]})
    assert {name: value.tolist() for name, value in found.items()} == {"y899": [[899.0]], "y3": [[3.0]]}


def test_a_function_of_the_model_is_refused_where_it_is_used_alone() -> None:
    model = build(Made([("Relu", ["x"], ["y"], {}), ("Twice", ["x"], ["d"], {})], X))
    body = [helper.make_node("Add", ["x", "x"], ["y"])]
    model.functions.append(helper.make_function("", "Twice", ["x"], ["y"], body, [helper.make_opsetid("", 17)]))
    assert len(from_onnx(io.BytesIO(model.SerializeToString()))) == 1
