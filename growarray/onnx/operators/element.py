"""Operators on each element of one value: activations, ends of a range, casts, dropout."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from growarray import nn
from growarray.files.errors import Malformed
from growarray.nn import elementwise as more
from growarray.nn.arithmetic import Div, Mul
from growarray.nn.cast import rounded
from growarray.nn.module import Module
from growarray.onnx.build import Builder, broadcast
from growarray.onnx.call import Calls
from growarray.onnx.fold import constant_array
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, Lowering, OnnxGraph
from growarray.onnx.model import DATA_TYPES
from growarray.onnx.operators.row import ALL, Operator, elementwise, folded, one_operator
from growarray.onnx.tensor import TYPE_NAMES
from growarray.onnx.value import Array, letter

_SELU = (1.67326319217681884765625, 1.05070102214813232421875)  # what the operator's definition says
_FLOATS = {"float16": 10, "bfloat16": 16, "float32": 1}
_HELD = (
    "float16", "float32", "float64", "bool",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip


def same(graph: OnnxGraph, layer: Module, x: Edge) -> Edge:
    """Write nothing: the layer hands its input on in inference."""
    return x


def _read_gelu(builder: Builder, node: OpNode) -> None:
    x = builder.dynamic(node, 0)
    builder.bind_module(node, nn.GELU(node.get("approximate", "string", "none")), [x], x.shape)


def _write_gelu(graph: OnnxGraph, layer: nn.GELU, x: Edge) -> Edge:
    bent = layer.approximate == "tanh"
    if graph.opset >= 20 and not (bent and graph.dtype == np.float64):  # of which onnxruntime has the parts only
        return graph.node("Gelu", x, approximate=layer.approximate)
    if bent:
        cube = graph.node("Mul", graph.node("Mul", x, x), x)
        bend = graph.node("Add", x, graph.node("Mul", cube, graph.constant(0.044715)))
        bend = graph.node("Tanh", graph.node("Mul", bend, graph.constant(math.sqrt(2.0 / math.pi))))
    else:
        bend = graph.node("Erf", graph.node("Div", x, graph.constant(math.sqrt(2.0))))
    below = graph.node("Mul", x, graph.node("Add", bend, graph.constant(1.0)))
    return graph.node("Mul", below, graph.constant(0.5))


def _write_mish(graph: OnnxGraph, layer: more.Mish, x: Edge) -> Edge:
    if graph.opset >= 18:
        return graph.node("Mish", x)
    return graph.node("Mul", x, graph.node("Tanh", graph.node("Softplus", x)))


def _write_silu(graph: OnnxGraph, layer: nn.SiLU, x: Edge) -> Edge:
    return graph.node("Mul", x, graph.node("Sigmoid", x))


def _read_selu(builder: Builder, node: OpNode) -> None:
    """Constants other than the usual ones make it a scaled ``Elu``."""
    x = builder.dynamic(node, 0)
    alpha, gamma = node.get("alpha", "float", _SELU[0]), node.get("gamma", "float", _SELU[1])
    if abs(alpha - _SELU[0]) < 1e-6 and abs(gamma - _SELU[1]) < 1e-6:
        builder.bind_module(node, nn.SELU(), [x], x.shape)
        return
    inner = builder.add(nn.ELU(alpha), [x], x.shape, builder.hint(node))
    builder.bind(node, builder.add(Mul(gamma), [inner], x.shape, f"{builder.hint(node)}.gamma"))


def _read_celu(builder: Builder, node: OpNode) -> None:
    """``alpha elu(x / alpha)``."""
    x, alpha = builder.dynamic(node, 0), node.get("alpha", "float", 1.0)
    if not alpha > 0.0:
        raise Malformed(f"alpha is {alpha}; expected a number above 0")
    hint = builder.hint(node)
    scaled = builder.add(Div(alpha), [x], x.shape, f"{hint}.scaled")
    inner = builder.add(nn.ELU(), [scaled], x.shape, hint)
    builder.bind(node, builder.add(Mul(alpha), [inner], x.shape, f"{hint}.alpha"))


def _read_prelu(builder: Builder, node: OpNode) -> None:
    """One slope, or one for each entry of one axis."""
    x, slope = builder.dynamic(node, 0), builder.constant(node, 1, "slope")
    wide = [i for i, n in enumerate(slope.shape) if n != 1]
    if len(wide) > 1 or slope.size == 0:
        raise Malformed(f"slope has shape {slope.shape}; expected at most one axis with more than one entry")
    by_channel = builder.opset < 7 and len(slope.shape) == 1  # later slopes are broadcast as any operand
    axis = wide[0] - len(slope.shape) if wide and not by_channel else 1
    if wide and not by_channel and x.shape is not None:
        axis += len(x.shape)
    layer = more.PReLU(slope.size, axis=axis)
    layer.weight = builder.parameter(slope, "slope", "flat", lambda array: array.reshape(-1))
    builder.bind_module(node, layer, [x], x.shape if by_channel else broadcast(builder, x.shape, slope.shape), slope)


def _write_prelu(graph: OnnxGraph, layer: more.PReLU, x: Edge) -> Edge:
    graph.shape_after(layer, x)
    slope, axis = graph.parameter("weight", layer.weight), layer.axis % x.ndim
    if slope.shape[0] > 1 and x.batch == axis:
        raise graph.refuse("it has a slope for each entry of the batch; pass dynamic_batch=False")
    thin = () if slope.shape[0] == 1 else (1,) * (x.ndim - 1 - axis)
    return graph.node("PRelu", x, graph.reshape(slope, (*slope.shape, *thin)))


def _read_clip(builder: Builder, node: OpNode) -> None:
    """Its ends are inputs since opset 11, attributes before; limits of the type or beyond count as absent."""
    x = builder.dynamic(node, 0)

    def end(index: int, name: str, sign: float) -> float | None:
        if builder.opset < 11:
            found, dtype = node.get(name, "float"), np.float32
        else:
            value = builder.optional(node, index, name)
            found = None if value is None else float(builder.one_number(value, name).reshape(-1)[0])
            dtype = np.float32 if value is None else builder.float_type(value.array.dtype)
        return None if found is None or sign * found >= float(np.finfo(dtype).max) else found

    low, high = end(1, "min", -1.0), end(2, "max", 1.0)
    builder.bind_module(node, nn.ReLU6() if (low, high) == (0.0, 6.0) else more.Clip(low, high), [x], x.shape)


def _write_clip(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
    ends = (0.0, 6.0) if isinstance(layer, nn.ReLU6) else (layer.low, layer.high)
    return graph.node("Clip", x, *(None if end is None else graph.constant(end) for end in ends))


def _cast_target(node: OpNode) -> str:
    """The name of the type that a ``Cast`` gives."""
    to = node.get("to", "int")
    node.get("saturate", "int"), node.get("round_mode", "string")  # of 8-bit floats alone
    return TYPE_NAMES.get(to, f"number {to}")


def _read_cast(builder: Builder, node: OpNode) -> None:
    _cast(builder, node, _cast_target(node))


def _read_cast_like(builder: Builder, node: OpNode) -> None:
    """To the type of the second input, whatever its values."""
    _cast(builder, node, builder.value(node, 1).kind)


def _cast(builder: Builder, node: OpNode, to: str) -> None:
    """The values of half precision are computed with in single."""
    x = builder.dynamic(node, 0)
    if to not in (*_HELD, "bfloat16"):
        raise Malformed(f"to the type {to} is not supported")
    half = to if to in ("float16", "bfloat16") else None
    name = np.dtype(builder.float_type(np.dtype("float32" if half else to))).name if letter(to) == "f" else to
    if to == x.kind:
        builder.bind(node, x)
    else:
        builder.bind_module(node, more.Cast(name, half), [x], x.shape, kind=to)


def _write_cast(graph: OnnxGraph, layer: more.Cast, x: Edge) -> Edge:
    kind = None if layer.dtype.startswith("float") else layer.dtype
    if kind is not None or x.kind is not None:
        return replace(graph.node("Cast", x, to=DATA_TYPES[kind or graph.dtype.name]), kind=kind)
    through = layer.through or layer.dtype
    if through == graph.dtype.name or (layer.through is None and (through, graph.dtype.name) != ("float32", "float64")):
        return x  # every float in the file has one dtype, which loses nothing
    narrow = graph.node("Cast", x, to=_FLOATS[through])
    return graph.node("Cast", narrow, to=DATA_TYPES[graph.dtype.name])


def _fold_cast(builder: Builder, node: OpNode) -> Array | None:
    value, to = constant_array(builder, node, 0), _cast_target(node)
    if to == "bfloat16":
        builder.account(value.size * 4)
        return np.asarray(rounded(value.astype(np.float64), to)).astype(np.float32)
    if to not in _HELD:
        raise Malformed(f"to the type {to} is not supported")
    if value.dtype == object:
        return value if np.dtype(to).kind in "iu" else None
    builder.account(value.size * np.dtype(to).itemsize)
    return value.astype(to)


def _read_dropout(builder: Builder, node: OpNode) -> None:
    """It does nothing until ``.train()``."""
    x = builder.dynamic(node, 0)
    node.get("seed", "int"), node.get("is_test", "int")
    if builder.opset >= 12:
        ratio = builder.optional_number(node, 1, "ratio")
        if builder.optional_number(node, 2, "training_mode"):
            raise Malformed("training_mode is true; export the model in evaluation mode")
    else:
        ratio = node.get("ratio", "float", 0.5)
    builder.bind_module(node, nn.Dropout(0.5 if ratio is None else ratio), [x], x.shape)
    if any(name in builder.used for name in node.outputs[1:]):
        call = Calls(builder, node)
        call.bind(call("Not", call("Less", call.input(0), call.input(0))), 1)  # nothing is dropped


def _read_function(builder: Builder, node: OpNode) -> None:
    x = builder.dynamic(node, 0)
    builder.bind_module(node, nn.Function(node.op), [x], x.shape)


def _write_function(graph: OnnxGraph, layer: nn.Function, x: Edge) -> Edge:
    return graph.node(layer.name, x)


def _read_identity(builder: Builder, node: OpNode) -> None:
    """Another name for the same value."""
    builder.bind(node, builder.value(node, 0))


ROWS = (
    elementwise("Abs", more.Abs, kinds="fiu"),
    Operator("Cast", _read_cast, {more.Cast: _write_cast}, _fold_cast, moves=True, kinds=ALL),
    Operator("CastLike", _read_cast_like, inputs=(2, 2), moves=True, kinds=ALL),
    Operator("Celu", _read_celu),
    Operator("Clip", _read_clip, dict.fromkeys((more.Clip, nn.Hardtanh, nn.ReLU6), _write_clip), inputs=(1, 3)),
    elementwise("Cos", more.Cos),
    Operator("Dropout", _read_dropout, {nn.Dropout: same}, inputs=(1, 3), outputs=2),
    elementwise("Elu", nn.ELU, alpha=("alpha", 1.0), double=False),
    elementwise("Erf", more.Erf, double=False),
    elementwise("Exp", more.Exp),
    Operator("Gelu", _read_gelu, {nn.GELU: _write_gelu}, since=20, double=False),
    elementwise("HardSigmoid", more.HardSigmoid, alpha=("alpha", 0.2), beta=("beta", 0.5), double=False),
    elementwise("HardSwish", more.HardSwish, since=14, double=False),
    Operator("Identity", _read_identity, {nn.Identity: same}, kinds=ALL),
    elementwise("LeakyRelu", nn.LeakyReLU, alpha=("slope", 0.01), double=False),
    elementwise("Log", more.Log),
    elementwise("Mish", more.Mish, writes={more.Mish: _write_mish}, since=18, double=False),
    elementwise("Neg", more.Neg, fold=folded(np.negative), kinds="fi"),
    Operator("PRelu", _read_prelu, {more.PReLU: _write_prelu}, inputs=(2, 2), double=False),
    elementwise("Reciprocal", more.Reciprocal),
    elementwise("Relu", nn.ReLU, kinds="fi"),
    Operator("Selu", _read_selu, {nn.SELU: one_operator("Selu")}, double=False),
    elementwise("Sigmoid", nn.Sigmoid, writes={nn.SiLU: _write_silu}),
    elementwise("Sin", more.Sin),
    elementwise("Softplus", nn.Softplus, double=False),
    elementwise("Softsign", more.Softsign, double=False),
    elementwise("Sqrt", more.Sqrt, fold=folded(np.sqrt)),
    elementwise("Tanh", nn.Tanh),
    *(
        Operator(name, _read_function, fold=folded(operation), double=double)
        for name, operation, double in (
            ("Acos", np.arccos, False),
            ("Acosh", np.arccosh, False),
            ("Asin", np.arcsin, False),
            ("Asinh", np.arcsinh, False),
            ("Atan", np.arctan, False),
            ("Atanh", np.arctanh, False),
            ("Ceil", np.ceil, True),
            ("Cosh", np.cosh, False),
            ("Floor", np.floor, True),
            ("Round", np.rint, True),
            ("Sign", np.sign, True),
            ("Sinh", np.sinh, False),
            ("Tan", np.tan, False),
        )
    ),
)

WRITES: dict[Any, Lowering] = {nn.Function: _write_function}
"""A function is written as the operator of its name."""
