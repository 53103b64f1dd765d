"""Graphs with several inputs and outputs, joins, and the way there and back: import, export, onnxruntime."""

import numpy as np
import pytest

from growarray import GrowingMLP, GrowingResidualMLP, load_checkpoint, nn
from growarray.checkpoint import from_onnx, to_onnx
from growarray.factorized import FactorizedConv
from growarray.nn import arithmetic
from growarray.nn.graph import Graph, Node
from growarray.nn.module import Parameter
from tests.checkpoint.files import rows
from tests.onnx.runtime import assert_close, export, run

RNG = np.random.default_rng(0)


def values(*size):
    return RNG.standard_normal(size).astype(np.float32)


def pair(module, *names):
    """A graph of one module."""
    return Graph([Node("only", module, names, "y")], names, ["y"])


JOINS = {
    "add": (arithmetic.Add(), (2, 3, 4), (2, 3, 4)),
    "sub": (arithmetic.Sub(), (2, 3, 4), (2, 1, 4)),
    "mul": (arithmetic.Mul(), (2, 1, 4), (2, 3, 1)),
    "div": (arithmetic.Div(), (2, 3), (2, 3)),
    "concat": (arithmetic.Concat(1), (2, 3, 4), (2, 2, 4)),
    "concat from the end": (arithmetic.Concat(-1), (2, 3, 4), (2, 3, 1)),
    "concat the batch": (arithmetic.Concat(0), (2, 3), (2, 3)),
    "matmul": (arithmetic.MatMul(), (2, 3, 4), (2, 4, 5)),
}


@pytest.mark.parametrize(("module", "first", "second"), rows(JOINS))
def test_joins(module, first, second, tmp_path):
    export(pair(module, "a", "b"), tmp_path / "model.onnx", first, second)


FIXED = {
    "add a number": (arithmetic.Add(1.5),),
    "number minus": (arithmetic.Sub(1.5, reverse=True),),
    "number over": (arithmetic.Div(1.5, reverse=True),),
    "times a constant": (arithmetic.Mul(values(3, 1)),),
    "plus a parameter": (arithmetic.Add(Parameter(values(4))),),
    "product": (arithmetic.MatMul(Parameter(values(4, 5))),),
    "product from the left": (arithmetic.MatMul(values(5, 3), reverse=True),),
    "product with a vector": (arithmetic.MatMul(values(4)),),
    "product of stacks": (arithmetic.MatMul(values(1, 4, 5)),),
    "vector times": (arithmetic.MatMul(values(3), reverse=True),),
}


@pytest.mark.parametrize("module", rows(FIXED))
def test_one_operand_may_be_fixed(module, tmp_path):
    export(nn.Sequential(module), tmp_path / "model.onnx", (2, 3, 4))


def wired():
    """Two inputs that follow the batch; outputs are a node's value, an input, and a value that others take too."""
    nodes = [
        Node("left", nn.Linear(4, 3, rng=RNG), ("x",), "l"),
        Node("right", nn.Sequential(nn.Linear(5, 3, rng=RNG), nn.Tanh()), ("z",), "r"),
        Node("sum", arithmetic.Add(), ("l", "r"), "s"),
        Node("table", arithmetic.Value(Parameter(values(1, 3))), (), "t"),
        Node("scaled", arithmetic.Mul(), ("s", "t"), "m"),
        Node("joined", arithmetic.Concat(1), ("m", "l", "s"), "y"),
    ]
    return Graph(nodes, ["x", "z"], ["y", "x", "s", "l"])


def test_graphs_keep_the_names_of_their_inputs_and_outputs(tmp_path):
    path = tmp_path / "model.onnx"
    used = export(wired(), path, (2, 4), (2, 5))
    assert "Identity" not in used
    network = from_onnx(path)
    assert (network.inputs, network.outputs) == (("x", "z"), ("y", "x", "s", "l"))


def test_shapes_may_be_given_by_name(tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx(wired(), path, {"z": (1, 5), "x": (1, 4)})
    x, z = values(3, 4), values(3, 5)
    assert_close(run(path, x, z)[0], wired_output(path, x, z))
    with pytest.raises(ValueError, match="input_shape has 'x', 'w'; the inputs are x, z"):
        to_onnx(wired(), path, {"x": (1, 4), "w": (1, 5)})
    with pytest.raises(ValueError, match="1 input shapes for the inputs x, z"):
        to_onnx(wired(), path, (1, 4))


def wired_output(path, x, z):
    return from_onnx(path).run({"x": x, "z": z})["y"]


def test_an_input_of_another_first_size_keeps_it(tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx(pair(arithmetic.MatMul(), "x", "w"), path, [(2, 4), (4, 5)])
    x, w = values(7, 4), values(4, 5)
    assert_close(run(path, x, w)[0], x @ w)


def test_one_output_under_two_names_of_modules_that_share_weights(tmp_path):
    shared = nn.Linear(4, 4, rng=RNG)
    nodes = [Node("a", shared, ("x",), "h"), Node("b", shared, ("h",), "y")]
    export(Graph(nodes, ["x"], ["y"]), tmp_path / "model.onnx", (2, 4))


@pytest.mark.parametrize("at", [0, 1])
def test_places_in_graphs_are_named(at, tmp_path):
    class Odd(nn.Module):
        def vjp(self, x):
            return x, lambda dy: dy

    inner = Graph([Node("odd", Odd(), ("h",), "o")], ["h"], ["o"])
    network = Graph([Node("first", inner, ("x",), "y")], ["x"], ["y"])
    with pytest.raises(NotImplementedError, match=r"module 'first\.odd' \(Odd\) is of a class that cannot be exported"):
        to_onnx([network, nn.Sequential(network)][0], tmp_path / "model.onnx", (2, 3))


def convolutional():
    layers = [
        nn.Conv2d(3, 8, 3, padding=1, rng=RNG), nn.BatchNorm2d(8), nn.GELU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=2, padding="same", rng=RNG), nn.GroupNorm(4, 8), nn.SiLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2, rng=RNG), nn.LeakyReLU(0.2), nn.AvgPool2d(3, 2, 1),
        nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 6, rng=RNG), nn.LayerNorm(6),
        nn.Softmax(),
    ]  # fmt: skip
    return nn.Sequential(*layers)


def reshaping():
    return nn.Sequential(
        nn.Reshape((0, 3, -1)), nn.Transpose((0, 2, 1)), nn.Linear(3, 4, rng=RNG), nn.SELU(), nn.Softmax(1),
        nn.ReduceMean((1,), keepdims=False), nn.Unsqueeze((1,)), nn.BatchNorm1d(1), nn.Squeeze((1,)),
        nn.Pad(((1, 1),), mode="reflect"), arithmetic.Mul(2.5),
    )  # fmt: skip


NETWORKS = {
    "convolutional": (convolutional, (2, 3, 12, 12)),
    "reshaping": (reshaping, (2, 12)),
    "mlp": (lambda: GrowingMLP((2, 3), 4, 5, 2, rng=RNG), (2, 2, 3)),
    "mlp that keeps its axes": (lambda: GrowingMLP(3, 4, 5, 2, nn.ReLU(), flatten=False, rng=RNG), (2, 2, 3)),
    "mlp of one layer": (lambda: GrowingMLP(6, 4, [], rng=RNG), (2, 6)),
    "residual": (lambda: GrowingResidualMLP(6, 3, [4, 5], [2, 3], activation=nn.ELU(), rng=RNG), (2, 6)),
    "factorized": (
        lambda: nn.Sequential(
            FactorizedConv(3, 6, 3, order=2, padding=1, rank=4, implementation="factorized", bias=True, rng=RNG),
            nn.ReLU(),
            FactorizedConv(6, 4, 3, order=2, factorization="tucker", implementation="mobilenet", rng=RNG),
        ),
        (2, 3, 7, 6),
    ),
}


@pytest.mark.parametrize(("make", "size"), rows(NETWORKS))
@pytest.mark.parametrize("opset", [17, 21])
def test_networks_come_back_and_go_out_again(make, size, opset, tmp_path):
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    network = make().eval()
    export(network, first, size, opset=opset)
    imported = from_onnx(first)
    export(imported, second, size, opset=opset)
    x = values(5, *size[1:])
    assert_close(imported(x), network(x))
    assert_close(run(second, x)[0], network(x))


def test_what_no_output_needs_is_left_out(tmp_path, capfd):
    nodes = [Node("used", nn.Linear(4, 3, rng=RNG), ("x",), "y"), Node("idle", nn.Linear(4, 3, rng=RNG), ("x",), "z")]
    path = tmp_path / "model.onnx"
    assert export(Graph(nodes, ["x"], ["y"]), path, (2, 4)) == ["Gemm"]
    assert set(load_checkpoint(path)) == {"used.weight", "used.bias"}
    assert capfd.readouterr().err == ""


def test_one_value_may_have_two_names(tmp_path):
    network = nn.Sequential(nn.Identity())
    assert export(network, tmp_path / "model.onnx", (2, 3)) == ["Identity"]
    double = Graph([Node("a", nn.ReLU(), ("x",), "h"), Node("b", nn.Identity(), ("h",), "y")], ["x"], ["h", "y"])
    assert export(double, tmp_path / "model.onnx", (2, 3)) == ["Relu", "Identity"]
