"""Networks from ONNX graphs: onnxruntime's outputs, gradients, names, and what is refused."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from growarray import nn
from growarray.checkpoint import Limits, from_onnx
from growarray.errors import CheckpointError
from growarray.nn.graph import Graph
from growarray.optim import SGD
from growarray.testing import assert_close, check_vjp
from tests.onnx.models import CASES, Made, build, draw, feeds, ints, one

onnxruntime.set_default_logger_severity(4)
C, K = draw(3), draw(4, 3)
SIZES = ({}, {"n": 3, "h": 8, "w": 9, "t": 4})
UNLIKE = {"layernorm-spread", "quantised-weight"}  # of which onnxruntime computes something else


def imported(made: Made, **options: Any) -> Graph:
    return from_onnx(io.BytesIO(build(made).SerializeToString()), **options)


def expected(made: Made, values: dict[str, np.ndarray], other: bool = False) -> list[np.ndarray]:
    model = build(made)
    if other:
        return onnx.reference.ReferenceEvaluator(model).run(list(made.outputs), values)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(made.outputs), values)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_onnxruntime(name: str) -> None:
    made = CASES[name].made
    network = imported(made)
    for sizes in SIZES:
        values = feeds(made, sizes)
        results = network.run(values)
        assert tuple(results) == made.outputs
        for output, wanted in zip(made.outputs, expected(made, values, name in UNLIKE), strict=True):
            assert results[output].dtype == wanted.dtype
            assert_close(results[output], wanted, rtol=1e-5, what=output)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.gradient])
def test_gradients_by_inputs_and_parameters(name: str) -> None:
    made = CASES[name].made
    network = imported(made, dtype="float64")
    count, parameters = len(network.inputs), network.parameters()

    def function(*arrays: Any) -> Any:
        for parameter, value in zip(parameters, arrays[count:], strict=True):
            parameter.data = value
        y, back = network.vjp(*arrays[:count])

        def pullback(dy: Any) -> Any:
            network.zero_grad()
            found = back(dy)
            return (*(found if count > 1 else (found,)), *[p.grad for p in parameters])

        return y, pullback

    values = [value.astype(np.float64) for value in feeds(made, {"n": 1, "h": 3, "w": 3}).values()]
    check_vjp(function, *values, *[p.data for p in parameters], rtol=1e-6)


def transposed(output_padding: int) -> Made:
    node = ("ConvTranspose", ["x", "w"], ["y"], {"dilations": [3], "output_padding": [output_padding]})
    return Made([node], {"x": (1, 1, 4)}, fixed={"w": np.ones((1, 1, 2), np.float32)})


def test_an_output_padding_of_a_stride_or_more_is_zeros() -> None:
    """ONNX asks for less than stride or dilation; neither onnxruntime nor the onnx package runs it."""
    network = imported(transposed(2))
    assert network.run({"x": np.float32([[[1, 2, 3, 4]]])})["y"].tolist() == [[[1, 2, 3, 5, 2, 3, 4, 0, 0]]]
    message = r"output_padding \(3,\) with strides \(1,\) and dilations \(3,\); expected less than the larger"
    with pytest.raises(CheckpointError, match=message):
        imported(transposed(3))


BY_HAND: dict[str, Any] = {
    "Add": (one("Add", (2, 3, 4, 2), 6, C, broadcast=1, axis=1), lambda x: x + C[:, None, None]),
    "Mul": (one("Mul", (2, 4, 3), 6, C, broadcast=1), lambda x: x * C),
    "Gemm": (one("Gemm", (2, 4), 6, K, C, broadcast=1), lambda x: x @ K + C),
    "PRelu": (one("PRelu", (2, 3, 4), 6, C), lambda x: np.where(x > 0, x, x * C[:, None])),
    "BatchNormalization": (
        one("BatchNormalization", (2, 3, 4), 6, C, C, C, C * C, is_test=1, epsilon=0.25),
        lambda x: (x - C[:, None]) / np.sqrt((C * C + 0.25)[:, None]) * C[:, None] + C[:, None],
    ),
    "Dropout": (one("Dropout", (2, 3), 6, is_test=1), lambda x: x),
    "LRN-even": (
        one("LRN", (2, 3, 1), 13, size=2, alpha=0.5, beta=0.5),  # each channel with the one after it
        lambda x: x / np.sqrt(1.0 + 0.25 * (x**2 + np.concatenate([x[:, 1:] ** 2, 0 * x[:, :1]], axis=1))),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_onnxruntime_does_not_run(name: str) -> None:
    """Operators before opset 7, and windows of an even size."""
    case, expected = BY_HAND[name]
    (x,) = feeds(case.made).values()
    assert_close(imported(case.made).run({"x": x})["y"], expected(x), rtol=1e-6)


def test_quantised_values_hand_gradients_through() -> None:
    nodes = [("QuantizeLinear", ["x", "s", "o"], ["q"], {}), ("DequantizeLinear", ["q", "s", "o"], ["y"], {})]
    fixed = {"s": np.float32(0.5), "o": np.uint8(1)}
    network = imported(Made(nodes, {"x": ("n",)}, fixed=fixed))
    y, back = network.vjp(np.float32([-3.0, -0.5, 0.3, 2.0, 126.9, 200.0]))
    assert y.tolist() == [-0.5, -0.5, 0.5, 2.0, 127.0, 127.0]
    assert back(np.ones(6, np.float32)).tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]


def test_outputs_may_be_chosen_among_all_values() -> None:
    made = Made([("Relu", ["x"], ["h"], {}), ("Det", ["h"], ["y"], {}), ("Add", ["z", "h"], ["w"], {})], {"x": ("n", 2),
                "z": (2,)}, ("y", "w"))  # fmt: skip
    network = imported(made, outputs=["h"])
    assert (network.inputs, network.outputs) == (("x",), ("h",))
    assert network.run({"x": np.float32([[-1, 2]])})["h"].tolist() == [[0.0, 2.0]]
    assert imported(made, outputs=["w", "x"]).inputs == ("x", "z")
    with pytest.raises(CheckpointError, match="outputs has 'q', which no node gives; the file's outputs are 'y', 'w'"):
        imported(made, outputs=["q"])


NAMES = {
    "linear-transposed": ["fc.weight"],
    "layernorm-decomposed": ["ln.weight", "ln.bias"],
    "gelu-decomposed": [],
    "silu-decomposed": [],
    "linear-bias": ["w.weight", "w.bias"],
    "shared": ["w.value", "w_1.value"],
    "view-heads": [],
}


@pytest.mark.parametrize("name", NAMES)
def test_names_follow_the_initializers(name: str) -> None:
    assert list(imported(CASES[name].made).state_dict()) == NAMES[name]


def kinds(network: Graph) -> list[type]:
    return [type(node.module) for node in network.nodes]


def test_layers_that_were_taken_apart_are_put_together() -> None:
    assert kinds(imported(CASES["layernorm-decomposed"].made)) == [nn.LayerNorm]
    assert kinds(imported(CASES["gelu-decomposed"].made)) == [nn.GELU]
    assert kinds(imported(CASES["silu-decomposed"].made)) == [nn.SiLU]
    assert kinds(imported(CASES["linear-bias"].made)) == [nn.Linear]
    assert kinds(imported(CASES["view-heads"].made)) == [nn.Reshape]
    constants = dict(CASES["groupnorm-decomposed"].made.fixed)
    neutral = {f"/{name}": constants.pop(name) for name in ("ones", "zeros")}  # as torch names what it computed
    nodes = [
        (op, [f"/{name}" if f"/{name}" in neutral else name for name in takes], gives, attributes)
        for op, takes, gives, attributes in CASES["groupnorm-decomposed"].made.nodes
    ]
    made = Made(nodes, {"x": ("n", 4, "h", "w")}, fixed={**constants, **neutral})
    network = imported(made)
    assert kinds(network) == [nn.GroupNorm]
    values = feeds(made, {"n": 2, "h": 3, "w": 5})
    assert_close(network.run(values)["y"], expected(made, values)[0], rtol=1e-5)


def test_what_is_used_elsewhere_stays_apart() -> None:
    made = CASES["gelu-decomposed"].made
    network = imported(Made(made.nodes, made.inputs, ("y", "e"), made.fixed))
    assert nn.Erf in kinds(network)


def test_a_network_is_trained_after_import() -> None:
    rng = np.random.default_rng(2)
    made = Made(
        [("Gemm", ["x", "fc.weight", "fc.bias"], ["h"], {"transB": 1}), ("Relu", ["h"], ["y"], {})],
        {"x": ("n", 4)},
        fixed={"fc.weight": rng.standard_normal((3, 4), np.float32), "fc.bias": rng.standard_normal(3, np.float32)},
    )
    network = imported(made)
    optimizer, x = SGD(network.parameters(), 0.1), feeds(made, {"n": 32})["x"]
    losses = []
    for _ in range(60):
        network.zero_grad()
        y, back = network.vjp(x)
        losses.append(float(np.mean((y - 1.0) ** 2)))
        back((y - 1.0) / len(x))
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


def test_evaluation_mode_is_what_comes_and_train_turns_dropout_on() -> None:
    network = imported(CASES["dropout"].made)
    x = np.ones((50, 4), np.float32)
    assert network(x) is x
    network.train()
    assert (network(x) == 0.0).any()


def test_a_shared_initializer_is_one_parameter() -> None:
    network = imported(CASES["matmul-tied"].made)
    assert len(network.parameters()) == 1


def test_the_file_is_not_changed_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(build(CASES["gemm"].made).SerializeToString())
    before = path.read_bytes()
    network = from_onnx(path)
    for parameter in network.parameters():
        parameter.data[...] = 0.0
    assert path.read_bytes() == before
    path.unlink()
    assert not network(np.ones((1, 4), np.float32)).any()


@pytest.mark.parametrize(("element", "wide"), [(TensorProto.FLOAT16, "float32"), (TensorProto.DOUBLE, "float64")])
def test_other_float_types(element: int, wide: str) -> None:
    kind = helper.tensor_dtype_to_np_dtype(element)
    made = Made(
        [("Gemm", ["x", "w", "b"], ["h"], {}), ("Tanh", ["h"], ["y"], {})],
        {"x": ("n", 4)},
        fixed={"w": draw(4, 3).astype(kind), "b": draw(3).astype(kind)},
        element=element,
    )
    values = feeds(made)
    network = imported(made)
    y = network.run(values)["y"]
    assert y.dtype == network.parameters()[0].data.dtype == np.dtype(wide)
    assert_close(y, expected(made, values)[0].astype(y.dtype), rtol=2e-3 if wide == "float32" else 1e-12)
    with pytest.raises(ValueError, match="dtype is 'int8', expected 'float32', 'float64' or None"):
        imported(made, dtype="int8")


def test_bfloat16_initializers_are_widened() -> None:
    made = Made([("Mul", ["x", "w"], ["y"], {})], {"x": ("n", 2)})
    model = build(made)
    bits = np.array([0x3FC0, 0xC020], np.uint16)  # 1.5 and -2.5
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.BFLOAT16, [2], bits.tobytes(), raw=True))
    network = from_onnx(io.BytesIO(model.SerializeToString()))
    assert network(np.ones((1, 2), np.float32)).tolist() == [[1.5, -2.5]]


def node(op: str, *takes: str, **attributes: Any) -> Any:
    return (op, list(takes), ["y"], attributes)


IMAGE = {"x": ("n", 4, 7, 6)}
W, B = draw(2, 4, 3, 3), draw(4)

REFUSED: dict[str, tuple[Made, str]] = {
    "operator": (Made([node("Det", "x")], IMAGE), r"operator 'Det' \(node 'n0'\): is not supported; supported: Abs"),
    "if": (Made([("If", ["c"], ["y"], {})], IMAGE), r"operator 'If' \(node 'n0'\): is not supported"),
    "attribute": (Made([node("Relu", "x", slope=1.0)], IMAGE), r"'Relu' \(node 'n0'\): attribute 'slope' is not"),
    "attribute-kind": (Made([node("Elu", "x", alpha="1")], IMAGE), "attribute 'alpha' is of the kind string"),
    "undefined": (Made([node("Add", "x", "z")], IMAGE), "input 'z' is given by no node before it"),
    "cycle": (Made([node("Add", "x", "y")], IMAGE), "input 'y' is given by no node before it"),
    "arity": (Made([node("Relu", "x", "x")], IMAGE), "has 2 inputs; expected 1 to 1"),
    "missing": (Made([node("Add", "x", "")], IMAGE), "input 1 is missing"),
    "twice": (Made([node("Relu", "x"), node("Tanh", "x")], IMAGE), "value 'y' is given twice"),
    "no-output": (Made([node("Relu", "x")], IMAGE, ("z",)), "output 'z': is given by no node"),
    "second-output": (
        Made([("MaxPool", ["x"], ["m", "i"], {"kernel_shape": [2, 2]}), node("Add", "m", "i")], IMAGE),
        "input 'i' is given by no node|output 'i' is used by another node",
    ),
    "live-weight": (Made([node("Conv", "x", "x")], IMAGE), "weight 'x' depends on the input; expected a constant"),
    "channels": (Made([node("Conv", "x", "w")], {"x": (1, 3, 7, 6)}, fixed={"w": W}), "input has 3 channels"),
    "rank": (Made([node("Conv", "x", "w")], {"x": (1, 4, 7)}, fixed={"w": W}), "input has 3 axes"),
    "kernel": (
        Made([node("Conv", "x", "w", kernel_shape=[2, 2])], IMAGE, fixed={"w": W}), "kernel_shape is .2, 2., the weight"
    ),
    "pads": (Made([node("Conv", "x", "w", pads=[0, 0, 0, 2**40])], IMAGE, fixed={"w": W}), "pads is"),
    "negative-pads": (Made([node("Conv", "x", "w", pads=[-1, 0, 0, 0])], IMAGE, fixed={"w": W}), "pads is"),
    "auto-pad": (Made([node("Conv", "x", "w", auto_pad="SAME")], IMAGE, fixed={"w": W}), "auto_pad is 'SAME'"),
    "too-small": (Made([node("Conv", "x", "w")], {"x": (1, 4, 2, 2)}, fixed={"w": W}), "does not fit into 2"),
    "group": (Made([node("Conv", "x", "w", group=3)], IMAGE, fixed={"w": W}), "group is 3"),
    "training": (
        Made([node("BatchNormalization", "x", "b", "b", "b", "b", training_mode=1)], IMAGE, fixed={"b": B}),
        "training_mode is 1; export the model in evaluation mode",
    ),
    "statistics": (
        Made([node("BatchNormalization", "x", "b", "b", "b", "c")], IMAGE, fixed={"b": B, "c": draw(3)}),
        r"variance has shape \(3,\); expected \(4,\)",
    ),
    "noop": (Made([node("ReduceL2", "x", noop_with_empty_axes=1)], IMAGE, opset=18), "noop_with_empty_axes is 1"),
    "tile": (Made([node("Tile", "x", "r")], IMAGE, fixed={"r": ints(2, 2)}), "repeats are .2, 2. for an input"),
    "block": (Made([node("DepthToSpace", "x", blocksize=3)], IMAGE), "blocksize does not divide an input of shape"),
    "block-size": (Made([node("SpaceToDepth", "x", blocksize=2)], {"x": (1, 4, "h", 6)}), "export the model"),
    "axes": (Made([node("ReduceMean", "x", axes=[0, -4])], IMAGE), "expected distinct axes of 4"),
    "reshape": (Made([node("Reshape", "x", "s")], {"x": (2, 3)}, fixed={"s": ints(4, 2)}), "does not fit into"),
    "reshape-live": (Made([node("Reshape", "x", "x")], IMAGE), "shape 'x' depends on the input"),
    "spread": (Made([node("Add", "x", "b")], {"x": (2, 3)}, fixed={"b": draw(2)}), "which do not fit"),
    "integers": (Made([node("Gather", "x", "i")], {"x": (3,)}, fixed={"i": ints(5)}), "outside axis 0 of size 3"),
    "bomb": (
        Made([("ConstantOfShape", ["s"], ["c"], {}), node("Add", "x", "c")], IMAGE, fixed={"s": ints(2**20, 2**20)}),
        r"'ConstantOfShape' \(node 'n0'\): constants need more bytes",
    ),
    "expand-bomb": (
        Made([("Expand", ["c", "s"], ["e"], {}), node("Add", "x", "e")], IMAGE, fixed={"c": draw(1), "s": ints(2**40)}),
        "constants need more bytes",
    ),
    "concat-bomb": (
        Made(
            [("Concat", [f"c{i}"] * 32, [f"c{i + 1}"], {"axis": 0}) for i in range(8)] + [node("Add", "x", "c8")],
            IMAGE, fixed={"c0": draw(4)},
        ),
        "constants need more bytes",
    ),
    "copies-bomb": (
        Made(
            [("Transpose", ["w"], [f"w{i}"], {}) for i in range(200)]
            + [("MatMul", ["x", f"w{i}"], [f"y{i}"], {}) for i in range(200)],
            {"x": (1, 250_000)}, tuple(f"y{i}" for i in range(200)), {"w": np.zeros((1, 250_000), np.float32)},
        ),
        "constants need more bytes",
    ),
    "live-bomb": (
        Made([node("Pad", "x", "p")], {"x": (1, 1, 1, 1)}, fixed={"p": ints(*(2**19,) * 8)}), "more than 4294967296"
    ),
    "group-norm-bomb": (
        Made([node("GroupNormalization", "x", "b", "b", num_groups=4)], {"x": (1, 2**28, 1)}, fixed={"b": B}, opset=18),
        "constants need more bytes",
    ),
    "opset-old": (Made([node("Relu", "x")], IMAGE, opset=5), "opset is 5; supported are 6 to"),
    "opset-new": (Made([node("Relu", "x")], IMAGE, opset=999), "opset is 999; supported are"),
    "integer-input": (
        Made([node("Sigmoid", "x")], IMAGE, element=TensorProto.INT32), "'Sigmoid' .* has an input of the type int32"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_imported_is_refused_by_name(name: str) -> None:
    made, message = REFUSED[name]
    start = time.thread_time()  # others of this process are not meant
    with pytest.raises(CheckpointError, match=message) as caught:
        imported(made)
    assert time.thread_time() - start < 1.0
    assert str(caught.value).isprintable()
    if made.nodes[0][0] in str(caught.value) and "(node" in str(caught.value):
        assert "node 'n" in str(caught.value)


def test_functions_domains_and_subgraphs_are_refused() -> None:
    model = build(CASES["activation-Relu"].made)
    model.graph.node[0].domain = "com.evil"
    with pytest.raises(CheckpointError, match=r"is of the domain 'com\.evil'"):
        from_onnx(io.BytesIO(model.SerializeToString()))
    model = build(CASES["activation-Relu"].made)
    body = [helper.make_node("Neg", ["x"], ["y"])]
    model.functions.append(helper.make_function("", "Relu", ["x"], ["y"], body, [helper.make_opsetid("", 17)]))
    with pytest.raises(CheckpointError, match="is a function that the model defines itself"):
        from_onnx(io.BytesIO(model.SerializeToString()))
    model = build(CASES["activation-Relu"].made)
    del model.opset_import[:]
    with pytest.raises(CheckpointError, match="opset_import does not name the default domain"):
        from_onnx(io.BytesIO(model.SerializeToString()))
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "b", [], [])
    made = Made([("If", ["x"], ["y"], {"then_branch": branch, "else_branch": branch})], IMAGE)
    with pytest.raises(CheckpointError, match=r"operator 'If' \(node 'n0'\): is not supported"):
        imported(made)


def test_limits_bound_the_graph_and_its_constants() -> None:
    made = Made([("Relu", [f"v{i}"], [f"v{i + 1}"], {}) for i in range(50)], {"v0": (2,)}, ("v50",))
    assert len(imported(made)) == 50
    with pytest.raises(CheckpointError, match=r"Limits\.memory"):
        imported(made, limits=Limits(memory=20_000))
    with pytest.raises(CheckpointError, match=r"Limits\.inflated"):
        imported(CASES["conv-2d"].made, limits=Limits(inflated=100))
    with pytest.raises(CheckpointError, match=r"Limits\.expanded"):
        imported(_expanded(), limits=Limits(expanded=64))


def _expanded() -> Made:
    fixed = {"c": np.float32(1.0), "s": ints(1000)}
    return Made([("Expand", ["c", "s"], ["e"], {}), ("Add", ["x", "e"], ["y"], {})], {"x": (1,)}, fixed=fixed)


def test_external_data_is_read_and_stays_in_its_folder(tmp_path: Path) -> None:
    made = CASES["gemm"].made
    model, path = build(made), tmp_path / "inner" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    values = feeds(made)
    assert_close(from_onnx(path).run(values)["y"], expected(made, values)[0], rtol=1e-6)
    (tmp_path / "weights.bin").write_bytes((path.parent / "weights.bin").read_bytes())
    raw = path.read_bytes()
    assert b"weights.bin" in raw
    path.write_bytes(raw.replace(b"weights.bin", b"../weig.bin"))
    with pytest.raises(CheckpointError, match="not a plain relative path"):
        from_onnx(path)


def test_damaged_models_are_refused_or_built() -> None:
    rng = np.random.default_rng(5)
    seeds = [build(case.made).SerializeToString() for case in CASES.values()]
    built, messages = 0, []
    for _ in range(3000):
        data = bytearray(seeds[rng.integers(len(seeds))])
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(len(data)))
            data[place] = int(rng.integers(256)) if rng.integers(2) else data[place] ^ (1 << int(rng.integers(8)))
        try:
            from_onnx(io.BytesIO(bytes(data)))
            built += 1
        except CheckpointError as refusal:
            messages.append(str(refusal))
    assert all(message.isprintable() for message in messages)
    assert 0 < built < 3000


def test_an_initializer_may_be_a_graph_input_too() -> None:
    model = build(CASES["gemm"].made)
    model.graph.input.append(helper.make_tensor_value_info("c0", TensorProto.FLOAT, (4, 3)))
    assert from_onnx(io.BytesIO(model.SerializeToString())).inputs == ("x",)


def test_a_weight_in_a_constant_node_is_trained() -> None:
    made = Made([("MatMul", ["x", "w"], ["y"], {})], {"x": ("n", 4)})
    model = build(made)
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(draw(4, 3)))
    model.graph.node.insert(0, constant)
    assert list(from_onnx(io.BytesIO(model.SerializeToString())).state_dict()) == ["w.weight"]


def test_a_layer_is_called_after_its_bias_where_the_weight_has_no_name() -> None:
    made = Made(
        [("MatMul", ["x", "val_3"], ["h"], {}), ("Add", ["h", "block.fc.bias"], ["y"], {})],
        {"x": ("n", 3, 4)},
        fixed={"val_3": draw(4, 2), "block.fc.bias": draw(2)},
    )
    assert list(imported(made).state_dict()) == ["block.fc.weight", "block.fc.bias"]
    model = build(CASES["conv-2d"].made)
    model.graph.node[0].name, model.graph.node[0].input[1] = "/block/conv1/Conv", "onnx::Conv_9"
    model.graph.initializer[0].name = "onnx::Conv_9"
    network = from_onnx(io.BytesIO(model.SerializeToString()))
    assert list(network.state_dict()) == ["block.conv1.weight", "block.conv1.bias"]


def test_a_kernel_that_is_computed_from_weights_is_one_weight() -> None:
    """As torch's exporter leaves weight normalization from operator set 18 on."""
    norm = [("ReduceL2", ["v", "axes"], ["n"], {}), ("Div", ["v", "n"], ["u"], {}), ("Mul", ["u", "g"], ["w"], {})]
    made = Made(
        [*norm, ("Conv", ["x", "w"], ["h"], {}), ("Conv", ["h", "w"], ["y"], {})],
        {"x": ("n", 3, 9)},
        fixed={"v": draw(3, 3, 3), "g": draw(3, 1, 1), "axes": np.array([1, 2])},
        opset=20,
    )
    network, values = imported(made), feeds(made, {})
    assert [parameter.data.shape for parameter in network.parameters()] == [(3, 3, 3)]
    assert_close(network.run(values)["y"], *expected(made, values), rtol=1e-5)
