"""How graphs, and the modules that only graphs need, are written to ONNX: joins, changes of shape, functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from growarray.contraction.geometry import ConvAxis
from growarray.nn import elementwise, join, shape, sized
from growarray.nn.graph import Graph
from growarray.nn.module import Module
from growarray.onnx.lower import Edge, Lowering, OnnxGraph
from growarray.onnx.model import DATA_TYPES
from growarray.onnx.operators.conv_write import padded
from growarray.onnx.operators.layers_write import one_operator

__all__ = ["GRAPHS"]

_PADDING = {"constant": "zeros", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _graph(graph: OnnxGraph, network: Graph, *inputs: Edge) -> Any:
    if len(inputs) != len(network.inputs):
        raise TypeError(
            f"to_onnx: {graph.where} has the inputs {', '.join(network.inputs)}, found {len(inputs)} input shapes"
        )
    values = dict(zip(network.inputs, inputs, strict=True))
    for node in network.nodes:
        values[node.output] = graph.lower(node.name, node.module, *(values[name] for name in node.inputs))
    found = tuple(values[name] for name in network.outputs)
    return found[0] if len(found) == 1 else found


def _fixed(graph: OnnxGraph, layer: Any) -> Edge:
    """The array that a module holds, trained or not, or its number."""
    if layer.value is not None:
        return graph.parameter("value", layer.value)
    if layer.constant is not None:
        return graph.parameter("constant", layer.constant)
    return graph.constant(layer.number)


def _operands(graph: OnnxGraph, layer: Any, inputs: Sequence[Edge]) -> list[Edge]:
    if layer.operands == 2:
        return list(inputs)
    fixed = _fixed(graph, layer)
    return [fixed, *inputs] if layer.reverse else [*inputs, fixed]


def _follows(graph: OnnxGraph, operands: Sequence[Edge], ndim: int) -> int | None:
    """The axis of the result that follows the batch, axes counted from the last; refused where sizes would differ."""
    places = {x.batch + ndim - x.ndim for x in operands if x.batch is not None}
    if not places:
        return None
    if len(places) > 1:
        raise graph.refuse("the batch is on two axes of the result; pass dynamic_batch=False")
    (place,) = places
    for x in operands:
        own = place - ndim + x.ndim
        if x.batch is None and own >= 0 and x.shape[own] != 1:
            raise graph.refuse(
                f"an operand of shape {x.shape} fits one size of the batch only; pass dynamic_batch=False"
            )
    return place


def _pair(op: str) -> Lowering:
    def lowering(graph: OnnxGraph, layer: Any, *inputs: Edge) -> Edge:
        sizes = graph.shape_after(layer, *inputs)
        operands = _operands(graph, layer, inputs)
        return graph.node(op, *operands, shape=sizes, batch=_follows(graph, operands, len(sizes)))

    return lowering


def _matmul(graph: OnnxGraph, layer: join.MatMul, *inputs: Edge) -> Edge:
    sizes = graph.shape_after(layer, *inputs)
    a, b = _operands(graph, layer, inputs)
    if (a.batch is not None and a.batch == a.ndim - 1) or (b.batch is not None and b.batch == max(b.ndim - 2, 0)):
        raise graph.refuse("it sums over the batch; pass dynamic_batch=False")
    # As operands of (*batch, rows, columns), of which the other side broadcasts rows or columns.
    left = Edge("", (*((1,) * (a.ndim < 2)), *a.shape[:-1], 1), None if a.batch is None else a.batch)
    right = Edge("", (*b.shape[:-2], 1, b.shape[-1]) if b.ndim > 1 else (1, 1), b.batch)
    place = _follows(graph, [left, right], max(a.ndim, b.ndim, 2))
    if place is not None and a.ndim == 1:
        place -= int(place == max(b.ndim, 2) - 1)
    return graph.node("MatMul", a, b, shape=sizes, batch=place)


def _concat(graph: OnnxGraph, layer: join.Concat, *inputs: Edge) -> Edge:
    sizes = graph.shape_after(layer, *inputs)
    axis = layer.axis % len(sizes)
    batches = {x.batch for x in inputs}
    if len(batches) > 1:
        raise graph.refuse("some inputs follow the batch and some do not; pass dynamic_batch=False")
    return graph.node("Concat", *inputs, shape=sizes, axis=axis)


def _value(graph: OnnxGraph, layer: join.Value) -> Edge:
    return _fixed(graph, layer)


def _reshape(graph: OnnxGraph, layer: shape.Reshape, x: Edge) -> Edge:
    sizes = graph.shape_after(layer, x)
    batch = None
    if x.batch is not None:
        copied = x.batch < len(layer.shape) and layer.shape[x.batch] == 0 and not layer.allow_zero
        if not copied and -1 not in layer.shape:
            raise graph.refuse(f"shape {layer.shape} fits one size of the batch only; pass dynamic_batch=False")
        batch = x.batch if copied else layer.shape.index(-1)
    target = graph.constant(np.asarray(layer.shape, np.int64))
    options = {"allowzero": 1} if layer.allow_zero else {}
    edge = graph.node("Reshape", x, target, shape=sizes, **options)
    return Edge(edge.name, sizes, batch)


def _transpose(graph: OnnxGraph, layer: shape.Transpose, x: Edge) -> Edge:
    graph.shape_after(layer, x)
    return graph.transpose(x, tuple(reversed(range(x.ndim))) if layer.perm is None else layer.perm)


def _squeeze(graph: OnnxGraph, layer: shape.Squeeze, x: Edge) -> Edge:
    sizes = graph.shape_after(layer, x)
    if layer.axes is None and x.batch is not None and x.shape[x.batch] == 1:
        raise graph.refuse("without axes it takes a batch of one away; name the axes, or pass dynamic_batch=False")
    gone = [i for i, n in enumerate(x.shape) if n == 1] if layer.axes is None else [a % x.ndim for a in layer.axes]
    if x.batch in gone:
        raise graph.refuse(f"axes {layer.axes} name the batch; pass dynamic_batch=False")
    edge = graph.node("Squeeze", x, graph.constant(np.asarray(gone, np.int64)), shape=sizes)
    batch = None if x.batch is None else x.batch - sum(axis < x.batch for axis in gone)
    return Edge(edge.name, sizes, batch)


def _unsqueeze(graph: OnnxGraph, layer: shape.Unsqueeze, x: Edge) -> Edge:
    sizes = graph.shape_after(layer, x)
    new = [axis % len(sizes) for axis in layer.axes]
    kept = [i for i in range(len(sizes)) if i not in new]
    edge = graph.node("Unsqueeze", x, graph.constant(np.asarray(new, np.int64)), shape=sizes)
    return Edge(edge.name, sizes, None if x.batch is None else kept[x.batch])


def _sliced(graph: OnnxGraph, x: Edge, parts: dict[int, tuple[int, int, int]], sizes: Sequence[int]) -> Edge:
    """The positions (start, end, step) of some axes."""
    if x.batch in parts:
        raise graph.refuse("it cuts the batch; pass dynamic_batch=False")
    if not parts:
        return x
    rows = [list(column) for column in zip(*parts.values(), strict=True)]
    starts, ends, axes, steps = (
        graph.constant(np.asarray(values, np.int64)) for values in (*rows[:2], list(parts), rows[2])
    )
    return graph.node("Slice", x, starts, ends, axes, steps, shape=sizes)


def _slice(graph: OnnxGraph, layer: shape.Slice, x: Edge) -> Edge:
    sizes = graph.shape_after(layer, x)
    options = zip(layer.axes, layer.starts, layer.ends, layer.steps, strict=True)
    parts = {axis % x.ndim: (start, end, step) for axis, start, end, step in options}
    return _sliced(graph, x, parts, sizes)


def _gather(graph: OnnxGraph, layer: shape.Gather, x: Edge) -> Edge:
    sizes = graph.shape_after(layer, x)
    axis, single = layer.axis % x.ndim, isinstance(layer.indices, int)
    if x.batch == axis:
        raise graph.refuse("it takes entries of the batch; pass dynamic_batch=False")
    edge = graph.node("Gather", x, graph.constant(np.asarray(layer.indices, np.int64)), shape=sizes, axis=axis)
    return Edge(edge.name, sizes, None if x.batch is None else x.batch - (single and axis < x.batch))


def _pad(graph: OnnxGraph, layer: shape.Pad, x: Edge) -> Edge:
    sizes = graph.shape_after(layer, x)
    widths = {i: pair for i, pair in enumerate(layer.widths, start=x.ndim - len(layer.widths)) if any(pair)}
    if x.batch in widths:
        raise graph.refuse("it pads the batch; pass dynamic_batch=False")
    cut = {i: (max(-low, 0), x.shape[i] + min(high, 0), 1) for i, (low, high) in widths.items() if min(low, high) < 0}
    x = _sliced(graph, x, cut, [cut[i][1] - cut[i][0] if i in cut else n for i, n in enumerate(x.shape)])
    mode = _PADDING[layer.mode]
    by = {i: ConvAxis(before=max(a, 0), after=max(b, 0), padding_mode=mode) for i, (a, b) in widths.items()}
    y = padded(graph, x, by, layer.value)
    if y.shape != sizes:
        raise graph.refuse(f"widths {layer.widths} are not written")
    return y


def _mean(graph: OnnxGraph, layer: shape.ReduceMean, x: Edge) -> Edge:
    graph.shape_after(layer, x)
    axes = range(x.ndim) if layer.axes is None else [axis % x.ndim for axis in layer.axes]
    return graph.reduce_mean(x, list(axes), layer.keepdims) if axes else x


def _mish(graph: OnnxGraph, layer: Module, x: Edge) -> Edge:
    if graph.opset >= 18:
        return graph.node("Mish", x)
    return graph.node("Mul", x, graph.node("Tanh", graph.node("Softplus", x)))


def _clip(graph: OnnxGraph, layer: elementwise.Clip, x: Edge) -> Edge:
    low, high = (None if end is None else graph.constant(end) for end in (layer.low, layer.high))
    return graph.node("Clip", x, low, high)


def _power(graph: OnnxGraph, layer: elementwise.Pow, x: Edge) -> Edge:
    return graph.node("Pow", x, graph.constant(layer.exponent))


def _prelu(graph: OnnxGraph, layer: elementwise.PReLU, x: Edge) -> Edge:
    graph.shape_after(layer, x)
    slope, axis = graph.parameter("weight", layer.weight), layer.axis % x.ndim
    if slope.shape[0] > 1 and x.batch == axis:
        raise graph.refuse("it has a slope for each entry of the batch; pass dynamic_batch=False")
    thin = () if slope.shape[0] == 1 else (1,) * (x.ndim - 1 - axis)
    return graph.node("PRelu", x, graph.reshape(slope, (*slope.shape, *thin)))


def _cast(graph: OnnxGraph, layer: elementwise.Cast, x: Edge) -> Edge:
    if layer.through in (None, graph.dtype.name):
        return x  # every float in the file has one dtype
    half = graph.node("Cast", x, to={"float16": 10, "bfloat16": 16}[layer.through])
    return graph.node("Cast", half, to=DATA_TYPES[graph.dtype.name])


def _fitted(graph: OnnxGraph, layer: sized.SamePad, x: Edge) -> Edge:
    """Padding that follows the input's size is written for the size that it has here."""
    fitted: Edge = graph.lower("", layer.fitted(x.shape), x)
    return fitted


def _grouped_norm(graph: OnnxGraph, layer: sized.GroupedNorm, x: Edge) -> Edge:
    graph.check_batch(x)
    graph.shape_after(layer, x)
    weights = [graph.parameter(name, getattr(layer, name)) for name in ("weight", "bias")]
    groups = weights[0].shape[0]
    rows = graph.reshape(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))
    z = graph.node("InstanceNormalization", rows, *weights, epsilon=float(layer.eps))
    return graph.reshape(z, x.shape)


GRAPHS: dict[type[Module], Lowering] = {
    Graph: _graph,
    elementwise.Abs: one_operator("Abs"),
    elementwise.Cast: _cast,
    elementwise.Clip: _clip,
    elementwise.Erf: one_operator("Erf"),
    elementwise.Exp: one_operator("Exp"),
    elementwise.HardSigmoid: one_operator("HardSigmoid", alpha="alpha", beta="beta"),
    elementwise.HardSwish: one_operator("HardSwish"),
    elementwise.Log: one_operator("Log"),
    elementwise.Mish: _mish,
    elementwise.Neg: one_operator("Neg"),
    elementwise.PReLU: _prelu,
    elementwise.Pow: _power,
    elementwise.Reciprocal: one_operator("Reciprocal"),
    elementwise.Softsign: one_operator("Softsign"),
    elementwise.Sqrt: one_operator("Sqrt"),
    join.Add: _pair("Add"),
    join.Concat: _concat,
    join.Div: _pair("Div"),
    join.MatMul: _matmul,
    join.Mul: _pair("Mul"),
    join.Sub: _pair("Sub"),
    join.Value: _value,
    shape.Gather: _gather,
    shape.Pad: _pad,
    shape.ReduceMean: _mean,
    shape.Reshape: _reshape,
    shape.Slice: _slice,
    shape.Squeeze: _squeeze,
    shape.Transpose: _transpose,
    shape.Unsqueeze: _unsqueeze,
    sized.GroupedNorm: _grouped_norm,
    sized.SamePad: _fitted,
    sized.SamePool: _fitted,
}
"""The function that writes each class of module."""
