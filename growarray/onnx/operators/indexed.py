"""Operators that read and write at positions that other values name, and that give such positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from growarray.files.errors import Malformed
from growarray.nn.cast import dtype_name
from growarray.nn.operation import Operation
from growarray.nn.shape import Reshape
from growarray.nn.sized import DynamicShape
from growarray.onnx.build import Builder
from growarray.onnx.call import Calls, written
from growarray.onnx.fold import positive_axes
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, Lowering, OnnxGraph
from growarray.onnx.operators.row import ALL, Operator, operation
from growarray.onnx.value import Shape, known_axes


def _elements(builder: Builder, shapes: Sequence[Any], options: Mapping[str, Any]) -> Shape:
    _axis(options["axis"], shapes[0])
    if len(shapes[0]) != len(shapes[1]):
        raise Malformed(f"indices have shape {shapes[1]} for an input of shape {shapes[0]}; expected as many axes")
    found: Shape = shapes[1]
    return found


def _axis(axis: int, shape: Sequence[Any]) -> int:
    return positive_axes((axis,), len(shape))[0]


def _first(builder: Builder, shapes: Sequence[Any], options: Mapping[str, Any]) -> Shape:
    found: Shape = shapes[0]
    return found


def _parts(builder: Builder, shapes: Sequence[Any], options: Mapping[str, Any]) -> Shape:
    batch, depth = options["batch_dims"], shapes[1][-1] if shapes[1] else 0
    if not isinstance(depth, int) or not 0 <= batch <= batch + depth <= len(shapes[0]) or batch >= len(shapes[1]):
        raise Malformed(f"indices have shape {shapes[1]} and batch_dims {batch} for an input of shape {shapes[0]}")
    return (*shapes[1][:-1], *shapes[0][batch + depth :])


def _counted(builder: Builder, shapes: Sequence[Any], options: Mapping[str, Any]) -> Shape:
    return (len(shapes[0]), builder.new_name())


def _extreme(name: str) -> Operator:
    def reduced(builder: Builder, shapes: Sequence[Any], options: Mapping[str, Any]) -> Shape:
        axis, keep = _axis(options["axis"], shapes[0]), options["keepdims"]
        return tuple(1 if i == axis else n for i, n in enumerate(shapes[0]) if keep or i != axis)

    return operation(name, 1, "int64", shape=reduced, kinds="fiu", axis=0, keepdims=1, select_last_index=0)


def _scatter(row: Operator, name: str = "") -> Operator:
    """Updates are put or added; other reductions have no row."""

    def read(builder: Builder, node: OpNode) -> None:
        reduction = node.get("reduction", "string", "none")
        if reduction not in ("none", "add"):
            raise Malformed(f"reduction is {reduction!r}, which is not supported; none and add are")
        if row.read is not None:
            row.read(builder, node)

    return Operator(name or row.name, read, inputs=row.inputs, kinds=ALL)


def _along(name: str) -> Operator:
    """Running sums and products along an axis that is a constant."""

    since = 26 if name == "CumProd" else 1

    def read(builder: Builder, node: OpNode) -> None:
        x, (axis,) = builder.dynamic(node, 0), builder.whole_numbers(node, 1, "axis")
        if x.shape is not None:
            _axis(axis, x.shape)
        options = {key: int(node.flag(key)) for key in ("exclusive", "reverse")}
        builder.bind_module(node, Operation(name, axis=axis, **options), [x], x.shape)

    return Operator(name, read, inputs=(2, 2), kinds="fiu", since=since)


def _read_trilu(builder: Builder, node: OpNode) -> None:
    x, upper = builder.dynamic(node, 0), node.flag("upper", True)
    k = builder.whole_numbers(node, 1, "k")[0] if builder.has(node, 1) else 0
    if x.shape is not None and len(x.shape) < 2:
        raise Malformed(f"input has shape {x.shape}; expected at least two axes")
    if abs(k) > 2**31:
        raise Malformed(f"k is {k}; expected a number of diagonals")
    builder.bind_module(node, Operation("Trilu", k=k, upper=int(upper)), [x], x.shape)


def _read_top_k(builder: Builder, node: OpNode) -> None:
    """Positions, and the entries there."""
    x, axis, largest = builder.dynamic(node, 0), node.get("axis", "int", -1), node.flag("largest", True)
    node.flag("sorted", True)
    k = node.get("k", "int") if builder.opset < 10 else builder.whole_numbers(node, 1, "k")[0]
    x_shape = known_axes(x)
    axis = _axis(axis, x_shape)
    size = x_shape[axis]
    if k is None or k < 0 or (isinstance(size, int) and k > size):
        raise Malformed(f"k is {k} for an axis of size {size}")
    shape, hint = tuple(k if i == axis else n for i, n in enumerate(x_shape)), builder.hint(node)
    module = Operation("TopK", k=k, axis=axis, largest=int(largest))
    places = builder.add(module, [x], shape, f"{hint}.places", "int64")
    builder.bind(node, builder.add(Operation("GatherElements", axis=axis), [x, places], shape, hint))
    if len(node.outputs) > 1 and node.outputs[1]:
        builder.bind(node, places, 1)


def _one_hot(call: Calls) -> None:
    """A comparison with every position; off and on values are chosen by it."""
    indices, depth = call.input(0), int(call.builder.optional_number(call.node, 1, "depth") or 0)
    axis, kind = call.node.get("axis", "int", -1), call.value(indices).kind
    count = len(call.shape(indices)) + 1
    axis = _axis(axis, (1,) * count)
    if not 0 < depth < 2**31:
        raise Malformed(f"depth is {depth}; expected a number of classes")
    call.builder.account(8 * depth)
    places = np.arange(depth, dtype=kind).reshape((depth, *(1,) * (count - 1 - axis)))
    found = call("Unsqueeze", indices, np.array([axis]))
    negative = call("Less", found, 0)
    found = call("Where", negative, call("Add", found, depth), found)
    off, on = (call("Gather", call.input(2), np.array(i)) for i in (0, 1))
    call.bind(call("Where", call("Equal", found, places), on, off))


def _hardmax(call: Calls) -> None:
    """1 at the first largest entry; before opset 13, of all axes from ``axis`` on."""
    x, axis = call.input(0), call.node.get("axis", "int", -1 if call.builder.opset >= 13 else 1)
    shape = call.sizes(x)
    axis = _axis(axis, shape)
    if call.builder.opset < 13 and axis != len(shape) - 1:
        raise Malformed("takes several axes together, which is not supported before opset 13")
    call.builder.account(8 * shape[axis])
    places = np.arange(shape[axis]).reshape((-1, *(1,) * (len(shape) - 1 - axis)))
    chosen = call("Equal", call("ArgMax", x, axis=axis), places)
    call.bind(call("CastLike", chosen, x))


def _compress(call: Calls) -> None:
    x, axis = call.input(0), call.node.get("axis", "int")
    if axis is None:
        x, axis = call("Reshape", x, np.array([-1])), 0
    call.bind(call("Gather", x, call("Squeeze", call("NonZero", call.input(1)), np.array([0])), axis=axis))


_INPUTS = {"CumProd": "axis", "CumSum": "axis", "TopK": "k", "Trilu": "k"}  # options that are inputs there


def _write(graph: OnnxGraph, layer: Operation, *inputs: Edge) -> Edge:
    """Write an operation as the operator of its name, with its options as attributes."""
    if layer.name in ("FakeQuantize", "Recurrent"):
        raise graph.refuse(f"{layer.name} is not written")
    options, name = dict(layer.options), _INPUTS.get(layer.name, "")
    more = [graph.integers([options.pop(name)] if layer.name == "TopK" else options.pop(name))] if name else []
    tried = [replace(x, kind="bool") for x in inputs] if layer.name == "NonZero" else inputs  # which finds all
    made, batch = graph.run(layer, *tried), graph.batch_after(layer, *tried)
    shape, kind = tuple(made.shape), dtype_name(made.dtype)
    y = graph.node(layer.name, *inputs, *more, shape=shape, **options)
    if layer.name == "TopK":  # positions are its second output
        graph.nodes[-1].outputs = [graph.unique(f"{y.name}/values"), y.name]
    return Edge(y.name, shape, batch, None if kind.startswith("float") else kind)


def _write_dynamic(graph: OnnxGraph, layer: DynamicShape, x: Edge, *others: Edge) -> Edge:
    """Write a dynamic shape as the sizes that it has here, of which one may follow the batch."""
    shape, batch = graph.shape_after(layer, x, *others), graph.batch_after(layer, x, *others)
    if layer.kind is Reshape:
        return graph.reshape(x, shape, batch or 0)
    if batch is not None:
        raise graph.refuse("it repeats a value for each entry of the batch; pass dynamic_batch=False")
    return Edge(graph.node("Expand", x, graph.integers(shape)).name, shape, None, x.kind)


ROWS = (
    _extreme("ArgMax"),
    _extreme("ArgMin"),
    Operator("Compress", written(_compress), inputs=(2, 2), kinds=ALL),
    _along("CumProd"),
    _along("CumSum"),
    operation("GatherElements", 2, 0, shape=_elements, alike=False, axis=0),
    operation("GatherND", 2, 0, shape=_parts, alike=False, batch_dims=0),
    Operator("Hardmax", written(_hardmax)),
    operation("NonZero", 1, "int64", shape=_counted),
    Operator("OneHot", written(_one_hot), inputs=(3, 3), kinds=ALL),
    _scatter(operation("ScatterElements", 3, 0, shape=_first, alike=False, axis=0), "Scatter"),
    _scatter(operation("ScatterElements", 3, 0, shape=_first, alike=False, axis=0, reduction="none")),
    _scatter(operation("ScatterND", 3, 0, shape=_first, alike=False, reduction="none")),
    Operator("TopK", _read_top_k, inputs=(1, 2), outputs=2, kinds="fiu"),
    Operator("Trilu", _read_trilu, inputs=(1, 2), kinds=ALL),
)

WRITES: dict[Any, Lowering] = {DynamicShape: _write_dynamic, Operation: _write}
"""An operation is written as the operator of its name."""
