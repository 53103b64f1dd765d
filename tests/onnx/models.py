"""ONNX models of one node or a few, built with the onnx package: what the importer is tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["CASES", "Case", "Made", "build", "feeds"]

RNG = np.random.default_rng(7)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Made:
    """Nodes as (operator, inputs, outputs, attributes); ``fixed`` are initializers; inputs have these shapes."""

    nodes: Sequence[tuple[str, Sequence[str], Sequence[str], dict[str, Any]]]
    inputs: dict[str, tuple[int | str, ...]]
    outputs: tuple[str, ...] = ("y",)
    fixed: dict[str, np.ndarray] = field(default_factory=dict)
    opset: int = 17
    element: int = TensorProto.FLOAT


@dataclass(frozen=True)
class Case:
    """A model, and where its gradient is checked too."""

    made: Made
    gradient: bool = True


def build(made: Made) -> onnx.ModelProto:
    """The model, not checked."""
    nodes = [
        helper.make_node(op, list(takes), list(gives), name=f"n{i}", **attributes)
        for i, (op, takes, gives, attributes) in enumerate(made.nodes)
    ]
    values = [helper.make_tensor_value_info(name, made.element, shape) for name, shape in made.inputs.items()]
    results = [helper.make_tensor_value_info(name, made.element, None) for name in made.outputs]
    initializers = [numpy_helper.from_array(array, name) for name, array in made.fixed.items()]
    graph = helper.make_graph(nodes, "g", values, results, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", made.opset)], ir_version=8)


def feeds(made: Made, sizes: dict[str, int] | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs; axes that have a name get the size of ``sizes``, 2 by default."""
    rng, kind = np.random.default_rng(seed), helper.tensor_dtype_to_np_dtype(made.element)
    shapes = {
        name: tuple(n if isinstance(n, int) else (sizes or {}).get(n, 2) for n in shape)
        for name, shape in made.inputs.items()
    }
    return {name: rng.standard_normal(shape).astype(kind) for name, shape in shapes.items()}


def one(
    op: str, shape: tuple[int | str, ...], opset: int = 17, *constants: np.ndarray | None, **attributes: Any
) -> Case:
    """One node of the input ``x`` and of constants."""
    names = [f"c{i}" if c is not None else "" for i, c in enumerate(constants)]
    fixed = {name: c for name, c in zip(names, constants, strict=True) if c is not None}
    return Case(Made([(op, ["x", *names], ["y"], attributes)], {"x": shape}, fixed=fixed, opset=opset))


def conv(
    shape: tuple[int | str, ...],
    weight: tuple[int, ...],
    *,
    op: str = "Conv",
    opset: int = 17,
    bias: int = 0,
    **options: Any,
) -> Case:
    return one(op, shape, opset, draw(*weight), draw(bias) if bias else None, **options)


def chain(shape: tuple[int | str, ...], *nodes: Any, opset: int = 17, **fixed: np.ndarray) -> Case:
    return Case(Made(nodes, {"x": shape}, fixed=fixed, opset=opset))


IMAGE = ("n", 4, 7, 6)

CASES: dict[str, Case] = {
    # convolutions
    "conv-1d": conv(("n", 2, 9), (3, 2, 3), bias=3, pads=[1, 2], strides=[2]),
    "conv-2d": conv(IMAGE, (6, 4, 3, 3), bias=6, pads=[1, 1, 1, 1]),
    "conv-2d-free": conv(("n", 4, "h", "w"), (6, 4, 3, 3), pads=[1, 1, 1, 1]),
    "conv-3d": conv(("n", 2, 4, 5, 4), (2, 2, 2, 3, 2), strides=[1, 2, 1]),
    "conv-group": conv(IMAGE, (6, 2, 3, 2), bias=6, group=2, dilations=[2, 1]),
    "conv-depthwise": conv(IMAGE, (4, 1, 3, 3), group=4, pads=[0, 1, 2, 0]),
    "conv-valid": conv(IMAGE, (2, 4, 3, 3), auto_pad="VALID"),
    "conv-same-upper": conv(IMAGE, (2, 4, 2, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv-same-lower": conv(IMAGE, (2, 4, 4, 2), auto_pad="SAME_LOWER"),
    "conv-same-free": conv(("n", 4, "h", "w"), (2, 4, 4, 3), auto_pad="SAME_UPPER"),
    "conv-same-stride-free": conv(("n", 4, "h", "w"), (2, 4, 4, 3), auto_pad="SAME_LOWER", strides=[2, 1], bias=2),
    "conv-opset9": conv(IMAGE, (2, 4, 1, 1), opset=9, kernel_shape=[1, 1]),
    "convtranspose-1d": conv(
        ("n", 3, 5), (3, 2, 3), op="ConvTranspose", bias=2, strides=[2], output_padding=[1], pads=[1, 1]
    ),
    "convtranspose-2d": conv(IMAGE, (4, 3, 3, 3), op="ConvTranspose", bias=3, strides=[2, 3], pads=[1, 1, 1, 1]),
    "convtranspose-uneven": conv(IMAGE, (4, 3, 3, 3), op="ConvTranspose", bias=3, strides=[2, 2], pads=[0, 1, 2, 1]),
    "convtranspose-group": conv(IMAGE, (4, 2, 2, 3), op="ConvTranspose", bias=4, group=2, dilations=[2, 1]),
    "convtranspose-shape": conv(IMAGE, (4, 2, 3, 3), op="ConvTranspose", strides=[2, 2], output_shape=[14, 12]),
    "convtranspose-shape-upper": conv(
        IMAGE, (4, 2, 3, 3), op="ConvTranspose", strides=[2, 2], output_shape=[14, 12], auto_pad="SAME_UPPER"
    ),
    "convtranspose-shape-free": conv(
        ("n", 4, "h", "w"), (4, 2, 5, 5), op="ConvTranspose", bias=2, strides=[2, 2], output_shape=[4, 5]
    ),
    "convtranspose-same": conv(IMAGE, (4, 2, 3, 3), op="ConvTranspose", strides=[2, 2], auto_pad="SAME_LOWER"),
    "convtranspose-extra": conv(
        IMAGE, (4, 3, 3, 2), op="ConvTranspose", bias=3, strides=[2, 2], pads=[1, 0, 0, 1], output_padding=[1, 1]
    ),
    "convtranspose-same-small": conv(IMAGE, (4, 2, 1, 1), op="ConvTranspose", strides=[2, 2], auto_pad="SAME_UPPER"),
    # products of matrices
    "gemm": one("Gemm", ("n", 4), 17, draw(4, 3), draw(3)),
    "gemm-transb": one("Gemm", ("n", 4), 17, draw(3, 4), draw(3), transB=1),
    "gemm-alpha": one("Gemm", ("n", 4), 17, draw(3, 4), draw(1, 3), transB=1, alpha=0.5, beta=2.0),
    "gemm-scalar-c": one("Gemm", ("n", 4), 11, draw(4, 3), np.float32(0.7)),
    "gemm-matrix-c": one("Gemm", (2, 4), 11, draw(4, 3), draw(2, 3), beta=0.5),
    "gemm-transa": one("Gemm", (4, "n"), 17, draw(4, 3), transA=1),
    "gemm-no-c": one("Gemm", ("n", 4), 17, draw(4, 3), None),
    "gemm-two-inputs": Case(
        Made([("Gemm", ["x", "z"], ["y"], {"transB": 1, "alpha": 0.5})], {"x": ("n", 4), "z": (3, 4)})
    ),
    "matmul": one("MatMul", ("n", 5, 4), 17, draw(4, 3)),
    "matmul-vector": one("MatMul", ("n", 4), 17, draw(4)),
    "matmul-batch": one("MatMul", ("n", 3, 2, 4), 17, draw(3, 4, 3)),
    "matmul-first": chain((4, "n"), ("MatMul", ["w", "x"], ["y"], {}), w=draw(3, 4)),
    "matmul-two": Case(Made([("MatMul", ["x", "z"], ["y"], {})], {"x": ("n", 2, 3, 4), "z": (2, 4, 5)})),
    "matmul-tied": chain(
        ("n", 4), ("MatMul", ["x", "w"], ["h"], {}), ("Gemm", ["h", "w"], ["y"], {"transB": 1, "alpha": 2.0}),
        w=draw(4, 3),
    ),
    # normalisation
    "batchnorm-2d": one("BatchNormalization", IMAGE, 15, draw(4), draw(4), draw(4), draw(4) ** 2 + 0.1, epsilon=1e-3),
    "batchnorm-opset9": one("BatchNormalization", ("n", 4), 9, draw(4), draw(4), draw(4), draw(4) ** 2 + 0.1),
    "batchnorm-3d": one("BatchNormalization", ("n", 4, 2, 2, 2), 9, draw(4), draw(4), draw(4), draw(4) ** 2 + 0.1),
    "layernorm": one("LayerNormalization", ("n", 3, 5), 17, draw(5), draw(5)),
    "layernorm-axis": one("LayerNormalization", ("n", 3, 5), 17, draw(3, 5), axis=1, epsilon=1e-2),
    "layernorm-spread": one("LayerNormalization", ("n", 3, 5), 17, draw(5), draw(5), axis=1),
    "groupnorm-21": one("GroupNormalization", IMAGE, 21, draw(4), draw(4), num_groups=2),
    "groupnorm-18-free": one("GroupNormalization", ("n", "t", "h", "w"), 18, draw(2), draw(2), num_groups=2),
    "groupnorm-18": one("GroupNormalization", IMAGE, 18, draw(2), draw(2), num_groups=2),
    "instancenorm": one("InstanceNormalization", IMAGE, 17, draw(4), draw(4)),
    # pooling
    "maxpool": one("MaxPool", IMAGE, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    "maxpool-1d": one("MaxPool", ("n", 3, 9), kernel_shape=[3]),
    "maxpool-3d": one("MaxPool", ("n", 2, 4, 4, 4), kernel_shape=[2, 2, 2], strides=[2, 2, 2]),
    "maxpool-ceil": one("MaxPool", ("n", 2, 8, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "maxpool-dilated": one("MaxPool", ("n", 2, 9, 9), kernel_shape=[3, 2], dilations=[2, 3], pads=[2, 1, 2, 1]),
    "maxpool-same": one("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "maxpool-same-free": one(
        "MaxPool", ("n", 2, "h", "w"), kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_LOWER"
    ),
    "maxpool-beyond": one("MaxPool", ("n", 2, 2, 7), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "maxpool-same-lower": one("MaxPool", IMAGE, 9, kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
    "avgpool": one("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "avgpool-include": one("AveragePool", IMAGE, 11, kernel_shape=[3, 2], pads=[1, 1, 0, 0], count_include_pad=1),
    "avgpool-uneven": one("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 2, 1]),
    "avgpool-ceil": one("AveragePool", IMAGE, 19, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "avgpool-ceil-include": one(
        "AveragePool", ("n", 2, 8, 7), 19, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1,
        count_include_pad=1,
    ),
    "avgpool-dilated": one("AveragePool", ("n", 2, 9, 9), 19, kernel_shape=[3, 2], dilations=[2, 3]),
    "avgpool-same": one("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    "global-average": one("GlobalAveragePool", IMAGE),
    "global-average-1d": one("GlobalAveragePool", ("n", 3, 5)),
    # shapes
    "flatten": one("Flatten", IMAGE),
    "flatten-0": one("Flatten", IMAGE, axis=0),
    "flatten-2": one("Flatten", IMAGE, axis=2),
    "flatten-last": one("Flatten", IMAGE, 11, axis=-1),
    "flatten-end": one("Flatten", ("n", 3), axis=2),
    "reshape": one("Reshape", IMAGE, 17, ints(0, -1, 3)),
    "reshape-fixed": one("Reshape", (2, 6), 13, ints(4, 3)),
    "reshape-allowzero": one("Reshape", (2, 6), 17, ints(4, 3), allowzero=1),
    "transpose": one("Transpose", IMAGE, perm=[0, 2, 3, 1]),
    "transpose-default": one("Transpose", ("n", 2, 3)),
    "squeeze-attr": one("Squeeze", ("n", 1, 3, 1), 11, axes=[1, -1]),
    "squeeze-input": one("Squeeze", ("n", 1, 3, 1), 13, ints(3)),
    "squeeze-all": one("Squeeze", (2, 1, 3, 1), 13),
    "unsqueeze-attr": one("Unsqueeze", ("n", 3), 11, axes=[0, 2]),
    "unsqueeze-input": one("Unsqueeze", ("n", 3), 13, ints(-1)),
    "concat": Case(
        Made([("Concat", ["x", "z", "c"], ["y"], {"axis": -1})], {"x": (2, 3), "z": (2, 2)}, fixed={"c": draw(2, 1)})
    ),
    "split": Case(
        Made(
            [("Split", ["x", "s"], ["a", "b", "c"], {"axis": 1}), ("Mul", ["a", "c"], ["y"], {})],
            {"x": ("n", 5, 2)}, fixed={"s": ints(2, 1, 2)},
        )
    ),
    "split-equal": Case(
        Made([("Split", ["x"], ["a", "b"], {"axis": -1}), ("Sub", ["b", "a"], ["y"], {})], {"x": ("n", 4)}, opset=11)
    ),
    "slice": one("Slice", IMAGE, 13, ints(1, -1), ints(3, -5), ints(1, 3), ints(1, -2)),
    "slice-attr": one("Slice", IMAGE, 9, starts=[1, 0], ends=[9223372036854775807, -1], axes=[1, 2]),
    "gather-scalar": one("Gather", IMAGE, 13, np.int64(-1), axis=2),
    "gather-vector": one("Gather", IMAGE, 13, ints(0, 2, 2), axis=1),
    "pad-constant": one("Pad", ("n", 2, 3), 13, ints(0, 1, 2, 0, 0, 1), np.float32(0.5)),
    "pad-negative": one("Pad", ("n", 4, 5), 13, ints(0, -1, 2, 0, 0, -2)),
    "pad-reflect": one("Pad", ("n", 4, 5), 13, ints(0, 1, 2, 0, 0, 4), mode="reflect"),
    "pad-edge": one("Pad", ("n", 4, 5), 11, ints(0, 1, 2, 0, 3, 0), mode="edge"),
    "pad-wrap": one("Pad", ("n", 4, 5), 19, ints(0, 1, 2, 0, 3, 4), mode="wrap"),
    "pad-axes": one("Pad", ("n", 4, 5), 18, ints(1, 2), None, ints(-1)),
    "pad-attr": one("Pad", ("n", 4, 5), 10, pads=[0, 0, 1, 0, 2, 0], value=2.0),
    "reduce-attr": one("ReduceMean", IMAGE, 13, axes=[2, 3], keepdims=0),
    "reduce-input": one("ReduceMean", IMAGE, 18, ints(-1)),
    "reduce-all": one("ReduceMean", ("n", 3), 13),
    "reduce-noop": one("ReduceMean", ("n", 3), 18, noop_with_empty_axes=1),
    # arithmetic
    "add-scalar": one("Add", IMAGE, 17, np.float32(1.5)),
    "add-vector": one("Add", IMAGE, 17, draw(4, 1, 1)),
    "sub-reverse": chain(("n", 3), ("Sub", ["c", "x"], ["y"], {}), c=draw(3)),
    "div-reverse": chain(("n", 3), ("Exp", ["x"], ["e"], {}), ("Div", ["c", "e"], ["y"], {}), c=draw(3)),
    "div-scalar": one("Div", ("n", 3), 13, np.float32(1.4142135)),
    "mul-grow": one("Mul", (3,), 13, draw(2, 3)),
    "add-two": Case(Made([("Add", ["x", "z"], ["y"], {})], {"x": ("n", 3, 1), "z": (1, 4)})),
    "mul-two": Case(Made([("Mul", ["x", "z"], ["y"], {})], {"x": ("n", 3, 1), "z": (1, 4)})),
    "sub-same": chain(("n", 3), ("Relu", ["x"], ["h"], {}), ("Sub", ["x", "h"], ["y"], {})),
    "div-two": chain(("n", 3), ("Exp", ["x"], ["h"], {}), ("Div", ["x", "h"], ["y"], {})),
    "square": chain(("n", 3), ("Mul", ["x", "x"], ["y"], {})),
    "shared": chain(("n", 3), ("Mul", ["x", "w"], ["h"], {}), ("Add", ["h", "w"], ["y"], {}), w=draw(3)),
    # activations
    **{
        f"activation-{op}": one(op, ("n", 5), 18, **attributes)
        for op, attributes in {
            "Abs": {}, "Cos": {}, "Elu": {"alpha": 0.7}, "Erf": {}, "Exp": {}, "HardSigmoid": {}, "HardSwish": {},
            "LeakyRelu": {"alpha": 0.2}, "Mish": {}, "Neg": {}, "Relu": {}, "Selu": {}, "Sigmoid": {}, "Sin": {},
            "Softplus": {}, "Softsign": {}, "Tanh": {}, "Celu": {"alpha": 0.5}, "LogSoftmax": {},
            "Asinh": {}, "Atan": {}, "Ceil": {}, "Cosh": {}, "Floor": {}, "Round": {}, "Sign": {}, "Sinh": {},
            "Tan": {},
        }.items()
    },
    **{
        f"activation-{op}": chain(("n", 5), ("Tanh", ["x"], ["h"], {}), (op, ["h"], ["y"], {}))
        for op in ("Acos", "Asin", "Atanh")
    },
    "activation-Acosh": chain(
        ("n", 5), ("Exp", ["x"], ["h"], {}), ("Exp", ["h"], ["g"], {}), ("Acosh", ["g"], ["y"], {})
    ),
    **{
        f"several-{op}": Case(
            Made([(op, ["x", "c", "z", "s"], ["y"], {})], {"x": ("n", 3), "z": ("n", 1)},
                 fixed={"c": draw(3), "s": np.array(0.2, np.float32)})
        )
        for op in ("Max", "Mean", "Min", "Sum")
    },
    # reductions, repetitions, blocks
    **{
        f"reduce-{op}": one(f"Reduce{op}", ("n", 3, 4), 18, ints(-1, 1), keepdims=keep)
        for op, keep in (
            ("L1", 1), ("L2", 0), ("LogSumExp", 1), ("Max", 0), ("Min", 1), ("Prod", 0), ("Sum", 1), ("SumSquare", 0),
        )
    },
    "reduce-log-sum": chain(
        ("n", 3), ("Exp", ["x"], ["h"], {}), ("ReduceLogSum", ["h"], ["y"], {"axes": [1]}), opset=17
    ),
    "reduce-sum-attribute": one("ReduceSum", ("n", 3), 11, axes=[-1], keepdims=0),
    "reduce-sum-all": one("ReduceSum", ("n", 3), 13),
    "reduce-nothing": one("ReduceSum", ("n", 3), 13, noop_with_empty_axes=1),
    "global-max-pool": one("GlobalMaxPool", IMAGE),
    "expand": one("Expand", ("n", 1, 4), 13, ints(1, 3, 4)),
    "expand-front": one("Expand", (3, 1), 13, ints(2, 1, 4)),
    "tile": one("Tile", ("n", 2, 3), 13, ints(1, 2, 3)),
    "tile-nothing": one("Tile", ("n", 2), 13, ints(1, 1)),
    "depth-to-space": one("DepthToSpace", ("n", 8, 2, 3), 13, blocksize=2),
    "depth-to-space-crd": one("DepthToSpace", ("n", 8, 2, 3), 13, blocksize=2, mode="CRD"),
    "space-to-depth": one("SpaceToDepth", ("n", 2, 4, 6), 13, blocksize=2),
    "several-alone": one("Max", ("n", 3)),
    "gelu": one("Gelu", ("n", 5), 20),
    "gelu-tanh": one("Gelu", ("n", 5), 20, approximate="tanh"),
    "selu-other": one("Selu", ("n", 5), 18, alpha=1.5, gamma=1.1),
    "sqrt-of-square": chain(("n", 3), ("Pow", ["x", "two"], ["h"], {}), ("Sqrt", ["h"], ["y"], {}), two=np.float32(2)),
    "power-3": one("Pow", ("n", 3), 15, np.float32(3)),
    "log-of-exp": chain(
        ("n", 3), ("Exp", ["x"], ["h"], {}), ("Log", ["h"], ["g"], {}), ("Reciprocal", ["h"], ["r"], {}),
        ("Add", ["g", "r"], ["y"], {}),
    ),
    "prelu": one("PRelu", IMAGE, 16, draw(4, 1, 1)),
    "prelu-one": one("PRelu", IMAGE, 16, draw(1)),
    "prelu-last": one("PRelu", ("n", 3), 9, draw(3)),
    "clip-attr": one("Clip", ("n", 5), 9, min=-0.5, max=0.25),
    "clip-input": one("Clip", ("n", 5), 13, None, np.float32(0.25)),
    "clip-none": one("Clip", ("n", 5), 13),
    "relu6": one("Clip", ("n", 5), 13, np.float32(0), np.float32(6)),
    "softmax-13": one("Softmax", ("n", 3, 4), 13, axis=1),
    "softmax-11": one("Softmax", ("n", 3, 4), 11, axis=1),
    "softmax-9": one("Softmax", ("n", 4), 9),
    "logsoftmax-11": one("LogSoftmax", ("n", 3, 4), 11, axis=-2),
    "dropout": one("Dropout", ("n", 4), 13, np.float32(0.3)),
    "dropout-attr": one("Dropout", ("n", 4), 9, ratio=0.3),
    # folded shapes
    "view-batch": chain(
        ("n", 2, 3),
        ("Shape", ["x"], ["s"], {}), ("Gather", ["s", "zero"], ["b"], {}), ("Unsqueeze", ["b", "axis"], ["u"], {}),
        ("Concat", ["u", "rest"], ["t"], {"axis": 0}), ("Reshape", ["x", "t"], ["y"], {}),
        zero=np.int64(0), axis=ints(0), rest=ints(-1),
    ),
    "view-patches": chain(
        ("n", 4, "h", "w"),
        ("Shape", ["x"], ["s"], {}), ("Slice", ["s", "zero", "two"], ["lead"], {}),
        ("Concat", ["lead", "rest"], ["t"], {"axis": 0}), ("Reshape", ["x", "t"], ["r"], {}),
        ("Transpose", ["r"], ["y"], {"perm": [0, 2, 1]}), zero=ints(0), two=ints(2), rest=ints(-1),
    ),
    "view-heads": chain(
        ("n", "t", 6),
        ("Shape", ["x"], ["s"], {}), ("Gather", ["s", "zero"], ["b"], {}), ("Gather", ["s", "one"], ["t"], {}),
        ("Unsqueeze", ["b", "axis"], ["bu"], {}), ("Unsqueeze", ["t", "axis"], ["tu"], {}),
        ("Concat", ["bu", "tu", "heads", "width"], ["target"], {"axis": 0}), ("Reshape", ["x", "target"], ["y"], {}),
        zero=np.int64(0), one=np.int64(1), axis=ints(0), heads=ints(2), width=ints(3),
    ),
    "groupnorm-decomposed": chain(
        IMAGE,
        ("Shape", ["x"], ["s"], {}), ("Reshape", ["x", "groups"], ["r"], {}),
        ("InstanceNormalization", ["r", "ones", "zeros"], ["i"], {}), ("Reshape", ["i", "s"], ["b"], {}),
        ("Mul", ["b", "w"], ["m"], {}), ("Add", ["m", "c"], ["y"], {}),
        groups=ints(0, 2, -1), ones=np.ones(2, np.float32), zeros=np.zeros(2, np.float32),
        w=draw(4, 1, 1), c=draw(4, 1, 1),
    ),
    "layernorm-decomposed": chain(
        ("n", 5),
        ("ReduceMean", ["x"], ["m"], {"axes": [-1]}), ("Sub", ["x", "m"], ["d"], {}), ("Pow", ["d", "two"], ["p"], {}),
        ("ReduceMean", ["p"], ["v"], {"axes": [-1]}), ("Add", ["v", "eps"], ["e"], {}), ("Sqrt", ["e"], ["q"], {}),
        ("Div", ["d", "q"], ["z"], {}), ("Mul", ["z", "ln.weight"], ["g"], {}), ("Add", ["g", "ln.bias"], ["y"], {}),
        two=np.float32(2), eps=np.float32(1e-5), **{"ln.weight": draw(5), "ln.bias": draw(5)},
    ),
    "gelu-decomposed": chain(
        ("n", 5),
        ("Div", ["x", "root"], ["a"], {}), ("Erf", ["a"], ["e"], {}), ("Add", ["e", "one"], ["o"], {}),
        ("Mul", ["x", "o"], ["h"], {}), ("Mul", ["h", "half"], ["y"], {}),
        root=np.float32(2**0.5), one=np.float32(1), half=np.float32(0.5),
    ),
    "silu-decomposed": chain(("n", 5), ("Sigmoid", ["x"], ["s"], {}), ("Mul", ["x", "s"], ["y"], {})),
    "linear-bias": chain(
        ("n", 3, 4), ("MatMul", ["x", "w"], ["h"], {}), ("Add", ["b", "h"], ["y"], {}), w=draw(4, 3), b=draw(3)
    ),
    "linear-transposed": chain(
        ("n", 4), ("Transpose", ["fc.weight"], ["t"], {"perm": [1, 0]}), ("MatMul", ["x", "t"], ["y"], {}),
        **{"fc.weight": draw(3, 4)},
    ),
    # written in other operators
    "lrn": one("LRN", ("n", 5, 3, 2), 13, size=3, alpha=0.5, bias=1.5),
    "lppool": one("LpPool", ("n", 2, 6, 5), 13, kernel_shape=[2, 3], pads=[1, 0, 0, 1], strides=[2, 1], p=3),
    "rmsnorm": one("RMSNormalization", ("n", 3, 5), 23, np.abs(draw(5)) + 0.5, epsilon=1e-3),
    "swish": one("Swish", ("n", 5), 24, alpha=1.5),
    "einsum": one("Einsum", ("n", 3, 4), 13, draw(4, 5), equation="nij,jk->nik"),
    "einsum-rest": one("Einsum", ("n", 3, 3), 13, equation="...ii->...i"),
    "embedding-like": one("GatherElements", ("n", 4), 13, np.array([[0, 2]]), axis=1),
    "cumsum": one("CumSum", ("n", 4), 14, np.int64(1), exclusive=1, reverse=1),
    "trilu": one("Trilu", ("n", 4, 4), 14, np.int64(-1), upper=0),
    "where": chain(
        ("n", 4), ("Greater", ["x", "c"], ["g"], {}), ("Where", ["g", "x", "c"], ["y"], {}), c=draw(1, 4)
    ),
    "mod": one("Mod", ("n", 4), 13, np.float32([1.5, -0.7, 0.3, 2.0]), fmod=1),
    "pow-array": chain(("n", 3), ("Exp", ["x"], ["e"], {}), ("Pow", ["e", "p"], ["y"], {}), p=draw(3)),
    "topk": Case(
        Made(
            [("TopK", ["x", "k"], ["y", "i"], {"axis": 1, "largest": 0}), ("Cast", ["i"], ["j"], {"to": 1}),
             ("Mul", ["y", "j"], ["z"], {})],
            {"x": ("n", 6)}, ("z",), fixed={"k": ints(3)}, opset=11,
        )
    ),
    "scatter": one("ScatterElements", (2, 4), 18, np.array([[0, 2], [1, 1]]), draw(2, 2), axis=1, reduction="add"),
    "resize-linear": one("Resize", ("n", 2, 5, 4), 13, None, np.float32([1, 1, 2.0, 0.6]), mode="linear"),
    "resize-cubic": one(
        "Resize", (2, 2, 5, 4), 13, None, None, ints(2, 2, 3, 7), mode="cubic",
        coordinate_transformation_mode="align_corners",
    ),
    "upsample": one("Upsample", ("n", 2, "h", "w"), 9, np.float32([1, 1, 2, 3]), mode="nearest"),
    "lstm": Case(
        Made(
            [("LSTM", ["x", "w", "r", "b", "", "h", "c"], ["s", "p", "z"],
              {"hidden_size": 3, "direction": "bidirectional"}),
             ("Sum", ["p", "z"], ["q"], {}), ("ReduceSum", ["s"], ["t"], {}), ("Mul", ["q", "t"], ["y"], {})],
            {"x": (4, "n", 2), "h": (2, "n", 3), "c": (2, "n", 3)}, opset=14,
            fixed={"w": draw(2, 12, 2), "r": draw(2, 12, 3), "b": draw(2, 24)},
        )
    ),
    "gru-reverse": Case(
        Made(
            [("GRU", ["x", "w", "r"], ["", "y"], {"hidden_size": 3, "direction": "reverse"})],
            {"x": (4, "n", 2)}, fixed={"w": draw(1, 9, 2), "r": draw(1, 9, 3)}, opset=14,
        )
    ),
    "gru-before": Case(
        Made(
            [("GRU", ["x", "w", "r", "b"], ["y"], {"hidden_size": 3, "linear_before_reset": 1})],
            {"x": (4, "n", 2)}, fixed={"w": draw(1, 9, 2), "r": draw(1, 9, 3), "b": draw(1, 18)}, opset=14,
        )
    ),
    "quantised-weight": Case(
        Made(
            [("DequantizeLinear", ["q", "s", "o"], ["w"], {"axis": 1}), ("MatMul", ["x", "w"], ["y"], {})],
            {"x": ("n", 3)}, opset=19,
            fixed={"q": np.arange(-6, 6, dtype=np.int8).reshape(3, 4), "s": np.abs(draw(4)), "o": np.zeros(4, np.int8)},
        )
    ),
    # sizes that the input tells
    "expand-to-shape": Case(
        Made(
            [("Shape", ["x"], ["s"], {}), ("Expand", ["c", "s"], ["e"], {}), ("Expand", ["z", "s"], ["f"], {}),
             ("Add", ["e", "f"], ["g"], {}), ("Mul", ["g", "x"], ["y"], {})],
            {"x": ("n", 2), "z": (1, 2)}, fixed={"c": draw(2)},
        )
    ),
    "reshape-two-free": chain(
        ("n", "t", 6), ("Shape", ["x"], ["s"], {}), ("Gather", ["s", "first"], ["a"], {}), ("Concat", ["a", "p"], ["b"],
        {"axis": 0}), ("Reshape", ["x", "b"], ["y"], {}), first=ints(0, 1), p=ints(2, 3),
    ),
    "position-embedding": chain(
        ("n", "t", 3), ("Shape", ["x"], ["s"], {}), ("Gather", ["s", "one"], ["t"], {}), ("Range", ["zero", "t", "one"],
        ["r"], {}), ("Gather", ["wpe.weight", "r"], ["e"], {}), ("Add", ["x", "e"], ["y"], {}),
        one=np.int64(1), zero=np.int64(0), **{"wpe.weight": draw(5, 3)},
    ),
    "several": Case(
        Made(
            [("Relu", ["x"], ["h"], {}), ("Add", ["h", "z"], ["y"], {}), ("Identity", ["x"], ["same"], {})],
            {"x": ("n", 3), "z": ("n", 3)}, ("y", "same", "h"),
        ),
        gradient=False,
    ),
    "input-is-output": Case(Made([("Relu", ["x"], ["y"], {})], {"x": ("n", 3)}, ("y", "x")), gradient=False),
    "constant-output": chain(("n", 3), ("Relu", ["x"], ["h"], {}), ("Mul", ["h", "c"], ["y"], {}), c=draw(1, 3)),
}  # fmt: skip
