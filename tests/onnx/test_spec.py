"""Operators over many random options, beside onnxruntime: what the file computes is what the network computes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from growarray.checkpoint import from_onnx, to_onnx
from growarray.errors import CheckpointError
from growarray.onnx.build import Builder
from tests.checkpoint.files import rows
from tests.onnx.models import Made, build, ints

onnxruntime.set_default_logger_severity(4)
FLOATS = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.DOUBLE: "float64"}


def both(made: Made, x: np.ndarray, result: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What the network gives and what onnxruntime does, which is told to leave the graph as it is."""
    model = build(made)
    if result:
        model.graph.output[0].type.tensor_type.elem_type = result
    data, options = model.SerializeToString(), onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return from_onnx(io.BytesIO(data)).run({"x": x})["y"], session.run(None, {"x": x})[0]


# Slice.


def slicing(rng: np.random.Generator) -> tuple[tuple[int, ...], dict[str, list[int]], int]:
    """A shape, the options of a slice of it, many of which reach over an end, and an opset."""
    shape = tuple(map(int, rng.integers(0 if rng.random() < 0.1 else 1, 6, rng.integers(1, 4))))
    axes = [int(axis) - (len(shape) if rng.random() < 0.5 else 0) for axis in rng.permutation(len(shape))]
    axes = axes[: rng.integers(1, len(shape) + 1)]
    found: dict[str, list[int]] = {"starts": [], "ends": [], "axes": axes, "steps": []}
    for _ in axes:
        step = int(rng.choice([-(2**62), -3, -2, -1, 1, 2, 3, 2**62], p=[0.02, *[0.16] * 6, 0.02]))
        outside = [-(2**63), -(2**31)] + [2**31 - 1, 2**63 - 1] * (step > 0)  # backwards, onnxruntime reads these as -1
        for name in ("starts", "ends"):
            far = rng.random() < 0.1
            found[name].append(int(rng.choice(outside)) if far else int(rng.integers(-9, 10)))
        found["steps"].append(step)
    return shape, found, int(rng.choice([10, 13, 17]))


@pytest.mark.parametrize("seed", range(6))
def test_slices_reach_over_the_ends_as_onnxruntime_s_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(25):
        shape, options, opset = slicing(rng)
        fixed = {name: np.array(values, np.int64) for name, values in options.items()}
        known = tuple(n if rng.random() < 0.6 else f"axis{i}" for i, n in enumerate(shape))
        x = rng.standard_normal(shape).astype(np.float32)
        found, expected = both(Made([("Slice", ["x", *fixed], ["y"], {})], {"x": known}, fixed=fixed, opset=opset), x)
        np.testing.assert_array_equal(found, expected, strict=True, err_msg=f"{shape} {options}")
        constant = [("Slice", ["c", *fixed], ["z"], {}), ("Add", ["x", "z"], ["y"], {})]
        folded = Made(constant, {"x": ()}, fixed={"c": x, **fixed}, opset=opset)
        np.testing.assert_array_equal(both(folded, np.zeros((), np.float32))[0], expected, strict=True)


def test_a_start_before_the_beginning_is_the_beginning() -> None:
    fixed = {name: ints(n) for name, n in {"starts": -5, "ends": -7, "axes": 0, "steps": -2}.items()}
    made = Made([("Slice", ["x", *fixed], ["y"], {})], {"x": (3,)}, fixed=fixed)
    assert from_onnx(io.BytesIO(build(made).SerializeToString())).run({"x": np.float32([7, 8, 9])})["y"].tolist() == [
        7.0
    ]


def test_a_constant_is_cut_along_each_axis_once() -> None:
    fixed = {"c": np.ones((2, 2), np.float32), "starts": ints(0, 1), "ends": ints(2, 2), "axes": ints(1, -1)}
    made = Made([("Slice", list(fixed), ["z"], {}), ("Add", ["x", "z"], ["y"], {})], {"x": ("n", 2)}, fixed=fixed)
    with pytest.raises(CheckpointError, match=r"axis -1 .* each of them once"):
        from_onnx(io.BytesIO(build(made).SerializeToString()))


# Cast.


@pytest.mark.parametrize("given", FLOATS)
@pytest.mark.parametrize("seed", range(4))
def test_casts_round_as_onnxruntime_s_do(given: int, seed: int, tmp_path: Any) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(6):
        x = (rng.standard_normal(40) * 10.0 ** rng.integers(-9, 5, 40)).astype(FLOATS[given])
        path = [int(kind) for kind in rng.choice([1, 10, 11, 16], rng.integers(1, 4))]
        path.append(int(rng.choice([TensorProto.FLOAT, TensorProto.DOUBLE])))
        names = ["x", *(f"v{i}" for i in range(1, len(path))), "y"]
        nodes = [("Cast", [names[i]], [names[i + 1]], {"to": kind}) for i, kind in enumerate(path)]
        made = Made(nodes, {"x": ("n",)}, element=given)
        found, expected = both(made, x, path[-1])
        np.testing.assert_array_equal(found, expected, strict=True, err_msg=str(path))
        if given != TensorProto.FLOAT16:
            dtype = FLOATS[given]
            network = from_onnx(io.BytesIO(build(made).SerializeToString()))
            to_onnx(network, tmp_path / "again.onnx", (40,), dtype=dtype)
            again = from_onnx(tmp_path / "again.onnx").run({"x": x})["y"]
            np.testing.assert_array_equal(again, expected.astype(dtype), strict=True)
        inner = [("Cast", ["c"], ["v"], {"to": path[0]}), ("Cast", ["v"], ["w"], {"to": path[-1]})]
        folded = Made([*inner, ("Add", ["x", "w"], ["y"], {})], {"x": ("n",)}, fixed={"c": x}, element=path[-1])
        np.testing.assert_array_equal(*both(folded, np.zeros(40, FLOATS[path[-1]])), strict=True)


@pytest.mark.parametrize(
    ("kind", "to", "expected"),
    rows(
        {
            "half": ("float32", TensorProto.FLOAT16, [0.47900390625, np.inf, -np.inf]),
            "brain": ("float32", TensorProto.BFLOAT16, [0.478515625, 999424.0, -999424.0]),
            "double to half": ("float64", TensorProto.FLOAT16, [0.47900390625, np.inf, -np.inf]),
        }
    ),
)
def test_a_cast_to_half_precision_rounds(kind: str, to: int, expected: Any) -> None:
    made = Made([("Cast", ["x"], ["y"], {"to": to})], {"x": ("n",)}, element=1 if kind == "float32" else 11)
    network = from_onnx(io.BytesIO(build(made).SerializeToString()))
    found = network.run({"x": np.array([0.47892547, 1e6, -1e6], kind)})["y"]
    assert (found.tolist(), found.dtype) == (expected, np.float32)


@pytest.mark.parametrize(
    ("to", "name"),
    [(TensorProto.FLOAT8E4M3FN, "float8_e4m3fn"), (TensorProto.INT4, "int4"), (8, "string"), (99, "number 99")],
)
def test_casts_to_other_types_are_refused_by_name(to: int, name: str) -> None:
    nodes = [("Cast", ["x"], ["y"], {"to": to})]
    for made in (Made(nodes, {"x": ("n",)}), Made(nodes, {}, fixed={"x": np.ones(1, np.float32)})):
        with pytest.raises(CheckpointError, match=f"operator 'Cast' .*to the type {name} is not supported"):
            from_onnx(io.BytesIO(build(made).SerializeToString()))


# Sizes that only the input tells.


def named(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[int | str, ...]:
    return tuple(n if rng.random() < 0.3 else f"axis{i}" for i, n in enumerate(shape))


@pytest.mark.parametrize("opset", [18, 19, 20])
@pytest.mark.parametrize("rest", [(), (4,), (3, 5)])
def test_group_norms_take_any_channels_before_opset_21(opset: int, rest: tuple[int, ...], tmp_path: Any) -> None:
    rng = np.random.default_rng(opset)
    fixed = {name: rng.standard_normal(3).astype(np.float32) for name in ("norm.weight", "norm.bias")}
    axes = ("n", "channels", *("height", "width")[: len(rest)])
    node = ("GroupNormalization", ["x", *fixed], ["y"], {"num_groups": 3, "epsilon": 1e-3})
    made = Made([node], {"x": axes}, fixed=fixed, opset=opset)
    for channels in (3, 6, 12):
        found, expected = both(made, x := rng.standard_normal((2, channels, *rest)).astype(np.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, strict=True)
        network = from_onnx(io.BytesIO(build(made).SerializeToString()))
        assert list(network.state_dict()) == ["norm.weight", "norm.bias"]
        to_onnx(network, tmp_path / "again.onnx", x.shape)
        again = from_onnx(tmp_path / "again.onnx")(x)
        np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-5, strict=True)


@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
def test_windows_follow_a_size_that_has_a_name(op: str, auto: str, tmp_path: Any) -> None:
    rng = np.random.default_rng(len(op) + len(auto))
    for _ in range(12):
        kernel = [int(n) for n in rng.integers(1, 5, 2)]
        strides = [int(rng.integers(1, k + 1)) for k in kernel]  # onnxruntime knows no window below its stride
        options: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "auto_pad": auto}
        fixed = {"w": rng.standard_normal((4, 3, *kernel)).astype(np.float32)} if op == "Conv" else {}
        if op == "AveragePool":
            options["count_include_pad"] = int(rng.integers(2))
        shape = (2, 3, *map(int, rng.integers(1, 9, 2)))
        made = Made([(op, ["x", *fixed], ["y"], options)], {"x": ("n", 3, *named(shape[2:], rng))}, fixed=fixed)
        found, expected = both(made, x := rng.standard_normal(shape).astype(np.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, strict=True, err_msg=f"{shape} {options}")
        to_onnx(from_onnx(io.BytesIO(build(made).SerializeToString())), tmp_path / "again.onnx", shape)
        np.testing.assert_allclose(from_onnx(tmp_path / "again.onnx")(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("named_axes", [True, False])
def test_a_window_larger_than_its_input_may_reach_over_the_end(named_axes: bool) -> None:
    for size, kernel, stride in ((2, 3, 2), (1, 4, 4), (2, 5, 4), (3, 5, 4)):
        options = {"kernel_shape": [kernel], "strides": [stride], "ceil_mode": 1}
        made = Made([("MaxPool", ["x"], ["y"], options)], {"x": ("n", 1, "width" if named_axes else size)})
        x = np.arange(1.0, size + 1, dtype=np.float32)[None, None]
        found, expected = both(made, x)
        np.testing.assert_array_equal(found, expected, strict=True)
        assert found.tolist() == [[[float(size)]]]


# Graphs that once failed.

FAILED = {
    "the size of a value that has its name from the file": Made(
        [
            ("Concat", ["c", "x"], ["z"], {"axis": 0}),
            ("Shape", ["z"], ["s"], {}),
            ("ConstantOfShape", ["s"], ["y"], {}),
        ],
        {"x": ("n", 3)},
        fixed={"c": np.ones((2, 3), np.float32)},
    ),
    "log softmax of nothing": Made([("LogSoftmax", ["x"], ["y"], {"axis": -1})], {"x": (2, 0)}),
    "softmax of nothing": Made([("Softmax", ["x"], ["y"], {"axis": 0})], {"x": (0, 3)}),
    "nothing, tiled": Made([("Tile", ["x", "r"], ["y"], {})], {"x": (3, 2, 0)}, fixed={"r": ints(2, 1, 3)}),
}


@pytest.mark.parametrize("made", FAILED.values(), ids=FAILED)
def test_graphs_that_once_failed(made: Made) -> None:
    x = np.ones([4 if isinstance(n, str) else n for n in made.inputs["x"]], np.float32)
    found, expected = both(made, x)
    np.testing.assert_array_equal(found, expected, strict=True)


ONE = {  # graphs that take positions in an axis of one entry
    "TopK": Made([("TopK", ["x", "k"], ["y", "i"], {"axis": 1})], {"x": (2, 1)}, fixed={"k": ints(1)}),
    "ScatterND": Made(
        [("ScatterND", ["x", "i", "u"], ["y"], {})],
        {"x": (1, 2)},
        fixed={"i": np.zeros((1, 1), np.int64), "u": np.float32([[3, 4]])},
    ),
}


@pytest.mark.parametrize("made", ONE.values(), ids=ONE)
def test_positions_in_an_axis_of_one_entry_are_written(made: Made, tmp_path: Any) -> None:
    x = np.ones(made.inputs["x"], np.float32)
    found, expected = both(made, x)
    to_onnx(from_onnx(io.BytesIO(build(made).SerializeToString())), tmp_path / "again.onnx", x.shape)
    again = onnxruntime.InferenceSession(tmp_path / "again.onnx").run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, expected, strict=True)
    np.testing.assert_array_equal(again, expected, strict=True)


def test_celu_of_a_negative_alpha_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'Celu'.*alpha is -0\.5; expected a number above 0"):
        from_onnx(io.BytesIO(build(Made([("Celu", ["x"], ["y"], {"alpha": -0.5})], {"x": (2,)})).SerializeToString()))


@pytest.mark.parametrize("size", [1, 3])
def test_one_entry_of_a_cubic_resize_is_the_first(size: int) -> None:
    options = {"mode": "cubic", "coordinate_transformation_mode": "pytorch_half_pixel"}
    nodes = [("Resize", ["x", "", "", "s"], ["y"], options)]
    made = Made(nodes, {"x": (1, 1, 4, 5)}, fixed={"s": ints(1, 1, 1, size)})
    x = np.arange(20, dtype=np.float32).reshape(1, 1, 4, 5) % 7
    found, expected = both(made, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_mean_of_whole_numbers_is_refused_if_they_are_constants_too() -> None:
    nodes = [("ReduceMean", ["c"], ["m"], {"keepdims": 0}), ("Reshape", ["x", "m"], ["y"], {})]
    made = Made(nodes, {"x": (2, 2)}, fixed={"c": ints(3, 4)})
    with pytest.raises(CheckpointError, match=r"'ReduceMean'.*type int64, which is not supported here"):
        from_onnx(io.BytesIO(build(made).SerializeToString()))


HUGE = {  # small files that ask for constants of gigabytes
    "OneHot": Made([("OneHot", ["x", "d", "v"], ["y"], {})], {"x": (2,)}, fixed={"d": ints(2**30), "v": np.eye(2)[0]}),
    "Hardmax": Made([("Hardmax", ["x"], ["y"], {})], {"x": (1, 2**29)}),
    "Attention": Made([("Attention", ["x", "x", "x"], ["y"], {"is_causal": 1})], {"x": (1, 1, 2**15, 4)}, opset=23),
}


@pytest.mark.parametrize("made", HUGE.values(), ids=HUGE)
def test_what_a_constant_takes_is_counted_before_it_is_made(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "arange", lambda *a, **k: pytest.fail(f"made {a}"))
    with pytest.raises(CheckpointError, match=r"constants need more bytes than half of Limits\.expanded"):
        from_onnx(io.BytesIO(build(made).SerializeToString()))


COLUMN, ROW = np.ones((9000, 1), np.float32), np.ones((1, 9000), np.float32)
WIDE = {  # small constants whose result is large
    "MatMul": Made([("MatMul", ["/a", "/b"], ["z"], {})], {"x": (1,)}, ("z",), {"/a": COLUMN, "/b": ROW}),
    "Max": Made([("Max", ["/a", "/b"], ["z"], {})], {"x": (1,)}, ("z",), {"/a": COLUMN, "/b": ROW}),
    "Less": Made([("Less", ["/a", "/b"], ["z"], {})], {"x": (1,)}, ("z",), {"/a": COLUMN, "/b": ROW}),
    "MaxPool": Made(
        [("MaxPool", ["/a"], ["z"], {"kernel_shape": [9000, 9000], "pads": [8999] * 4})],
        {"x": (1,)},
        ("z",),
        {"/a": np.ones((1, 1, 4, 4), np.float32)},
    ),
}


@pytest.mark.parametrize("made", WIDE.values(), ids=WIDE)
def test_what_is_computed_of_constants_is_counted_before(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Builder, "_compute", lambda *a: pytest.fail("computed"))
    with pytest.raises(CheckpointError, match=r"constants need more bytes than half of Limits\.expanded"):
        from_onnx(io.BytesIO(build(made).SerializeToString()))


def test_blocks_of_scales_cover_what_they_scale() -> None:
    fixed = {"s": np.float32([1.0, 2.0])}
    made = Made(
        [("QuantizeLinear", ["x", "s"], ["y"], {"axis": 0, "block_size": 2})], {"x": (5,)}, fixed=fixed, opset=21
    )
    with pytest.raises(CheckpointError, match=r"block_size is 2 for 5 entries and 2 scales"):
        from_onnx(io.BytesIO(build(made).SerializeToString()))
