"""Arithmetic, comparisons and logic with broadcasting, choices, and values that the file fixes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from growarray.files.errors import Malformed
from growarray.nn import arithmetic, elementwise
from growarray.nn.operation import Operation
from growarray.onnx.build import Builder, broadcast
from growarray.onnx.call import Calls
from growarray.onnx.fold import constant_array, narrowed, positive_axes
from growarray.onnx.graph import FIXED, OpNode
from growarray.onnx.lower import Edge, Lowering, OnnxGraph
from growarray.onnx.operators.row import ANY, Fold, Operator, Read, operation
from growarray.onnx.value import Array, Constant, Dynamic, letter


def _single(value: Constant, x: Dynamic) -> bool:
    """Whether a constant is one number that adds no axes to a value."""
    axes = 0 if x.shape is None else len(x.shape)
    return value.size == 1 and len(value.shape) <= axes and value.array.dtype.kind in "fiu"


def _check_alike(a: Constant | Dynamic, b: Constant | Dynamic) -> None:
    """Raise Malformed if floats meet whole numbers; half precision and its likes are all computed as floats."""
    if letter(a.kind) != letter(b.kind):
        raise Malformed(f"has operands of the types {a.kind} and {b.kind}; expected one type")


def _align(builder: Builder, node: OpNode) -> None:
    """Before opset 7 the second operand may meet the axes of the first from ``axis`` on: it gets axes behind."""
    axis = node.get("axis", "int") if builder.opset < 7 and node.flag("broadcast") else None
    if axis is None:
        return
    call = Calls(builder, node)
    a, b = (len(call.shape(name)) for name in node.inputs)
    (axis,) = positive_axes((axis,), a)
    if axis + b > a:
        raise Malformed(f"axis is {axis} for operands of {a} and {b} axes")
    node.inputs[1] = call("Unsqueeze", node.inputs[1], np.arange(b, a - axis)) if axis + b < a else node.inputs[1]


def _read(kind: Any, *, trained: bool) -> Read:
    """One of both operands may be a constant; a trained one is an initializer of some size."""

    def read(builder: Builder, node: OpNode) -> None:
        _align(builder, node)
        a, b = builder.value(node, 0), builder.value(node, 1)
        _check_alike(a, b)
        if isinstance(a, Constant) and isinstance(b, Constant):
            a = builder.as_node(a)
        if letter(a.kind) != "f":  # whole numbers stay what they are
            a, b = builder.dynamic(node, 0), builder.dynamic(node, 1)
        shape = broadcast(builder, a.shape, b.shape)
        if isinstance(a, Dynamic) and isinstance(b, Dynamic):
            whole = kind is arithmetic.Div and letter(a.kind) != "f"
            builder.bind_module(node, Operation("Div") if whole else kind(), [a, b], shape)
            return
        dynamic, fixed = (a, b) if isinstance(a, Dynamic) else (b, a)
        if not isinstance(dynamic, Dynamic) or not isinstance(fixed, Constant):
            raise Malformed("has no operand that depends on the input")
        value: Any
        weight = None
        if _single(fixed, dynamic):
            value = builder.as_float(fixed, "operand")
        elif trained and fixed.trained:
            value, weight = builder.parameter(fixed, "operand"), fixed
        else:
            value = builder.floats(fixed, "operand")
            weight = fixed if fixed.label.rpartition(".")[2] == FIXED else None
        builder.bind_module(node, kind(value, reverse=fixed is a), [dynamic], shape, weight)

    return read


def _read_several(kind: Any, *, mean: bool = False) -> Read:
    """Any number of operands, taken together two by two; constants stay fixed."""

    def read(builder: Builder, node: OpNode) -> None:
        first, *others = sorted(range(len(node.inputs)), key=lambda i: isinstance(builder.value(node, i), Constant))
        y = builder.dynamic(node, first)
        hint = builder.hint(node)
        for i in others:
            x = builder.value(node, i)
            _check_alike(y, x)
            x = x if letter(y.kind) == "f" else builder.dynamic(node, i)
            shape = broadcast(builder, y.shape, x.shape)
            if isinstance(x, Dynamic):
                y = builder.add(kind(), [y, x], shape, hint)
            else:
                single = _single(x, y)
                value = builder.as_float(x, "operand") if single else builder.floats(x, "operand")
                y = builder.add(kind(value), [y], shape, hint)
        if mean:
            y = builder.add(arithmetic.Div(float(len(node.inputs))), [y], y.shape, f"{hint}.mean")
        builder.bind(node, y)

    return read


def _fixed(graph: OnnxGraph, layer: Any) -> Edge:
    """The array that a module holds, trained or not."""
    if layer.value is not None:
        return graph.parameter("value", layer.value)
    return graph.parameter("constant", layer.constant)


def operands_of(graph: OnnxGraph, layer: Any, inputs: Sequence[Edge]) -> list[Edge]:
    """Both operands of a module: its inputs, or its input and what it holds."""
    if layer.operands == 2:
        return list(inputs)
    fixed = _fixed(graph, layer) if layer.number is None else graph.constant(layer.number)
    return [fixed, *inputs] if layer.reverse else [*inputs, fixed]


def batch_of(graph: OnnxGraph, operands: Sequence[Edge], ndim: int) -> int | None:
    """The axis of a broadcast result that follows the batch; refused if sizes would differ."""
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


def _write(op: str) -> Lowering:
    def lowering(graph: OnnxGraph, layer: Any, *inputs: Edge) -> Edge:
        sizes = graph.shape_after(layer, *inputs)
        operands = operands_of(graph, layer, inputs)
        return graph.node(op, *operands, shape=sizes, batch=batch_of(graph, operands, len(sizes)))

    return lowering


def account_broadcast(builder: Builder, *values: Array) -> None:
    """Count the bytes of a result that is as large as all of these together, broadcast."""
    builder.account(math.prod(np.broadcast_shapes(*(v.shape for v in values))) * max(v.itemsize for v in values))


def _fold(operation: Callable[[Any, Any], Any], neutral: Callable[[Any, Any], Any] = lambda m, n: None) -> Fold:
    """Fold two constants. Of a size that is a name ``neutral`` gives what is left if the other changes nothing."""

    def fold(builder: Builder, node: OpNode) -> Array | None:
        a, b = constant_array(builder, node, 0), constant_array(builder, node, 1)
        account_broadcast(builder, a, b)
        if object not in (a.dtype, b.dtype):
            return np.asarray(operation(a, b)).astype(a.dtype if a.dtype.kind != "b" else None, copy=False)
        left, right = np.broadcast_arrays(a, b)
        found = np.empty(left.size, dtype=object)
        for i, (m, n) in enumerate(zip(left.reshape(-1).tolist(), right.reshape(-1).tolist(), strict=True)):
            if isinstance(m, int) and isinstance(n, int):
                found[i] = int(operation(np.int64(m), np.int64(n)))
            else:
                kept = neutral(m, n)
                found[i] = builder.new_name() if kept is None else kept
        return narrowed(found.reshape(left.shape))

    return fold


def _divided(a: Any, b: Any) -> Any:
    """Division of ONNX: whole numbers are cut off towards zero."""
    if np.asarray(a).dtype.kind not in "iu":
        return a / b
    if np.any(np.asarray(b) == 0):
        raise Malformed("divides whole numbers by zero")
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def _read_power(builder: Builder, node: OpNode) -> None:
    """An exponent that is a number makes a layer of its own."""
    x, exponent = builder.dynamic(node, 0), builder.value(node, 1)
    if isinstance(exponent, Constant) and exponent.size == 1 and len(exponent.shape) <= 1 and letter(x.kind) == "f":
        number = builder.as_float(exponent, "exponent")
        builder.bind_module(node, elementwise.Pow(number), [x], broadcast(builder, x.shape, exponent.shape))
        return
    power = builder.dynamic(node, 1)
    builder.bind_module(node, Operation("Pow"), [x, power], broadcast(builder, x.shape, power.shape))


def _write_power(graph: OnnxGraph, layer: elementwise.Pow, x: Edge) -> Edge:
    return graph.node("Pow", x, graph.constant(layer.exponent))


def _arithmetic(name: str, kind: Any, fold: Fold, *, trained: bool = True) -> Operator:
    return Operator(name, _read(kind, trained=trained), {kind: _write(name)}, fold, (2, 2), kinds="fiu")


def _several(name: str, kind: Any, writes: dict[Any, Lowering]) -> Operator:
    return Operator(name, _read_several(kind), writes, inputs=(1, ANY), kinds="fiu")


WRITES: dict[Any, Lowering] = {arithmetic.Value: _fixed}
"""A value that the network holds is an initializer."""


def _fold_equal(builder: Builder, node: OpNode) -> Array:
    a, b = constant_array(builder, node, 0), constant_array(builder, node, 1)
    account_broadcast(builder, a, b)
    return np.asarray(a == b, dtype=np.bool_)


def _fold_where(builder: Builder, node: OpNode) -> Array:
    condition, a, b = (constant_array(builder, node, i) for i in range(3))
    account_broadcast(builder, condition, a, b)
    return narrowed(np.where(condition.astype(np.bool_), a, b))


def _rows(result: str | int, kinds: str, *names: str, count: int = 2, **options: Any) -> tuple[Operator, ...]:
    return tuple(operation(name, count, result, kinds=kinds, **options) for name in names)


ROWS = (
    _arithmetic("Add", arithmetic.Add, _fold(lambda a, b: a + b)),
    _arithmetic("Div", arithmetic.Div, _fold(_divided, lambda m, n: m if n == 1 else None), trained=False),
    _arithmetic("Mul", arithmetic.Mul, _fold(lambda a, b: a * b, lambda m, n: m if n == 1 else n if m == 1 else None)),
    operation("Mod", 2, kinds="fiu", fmod=0),
    _several("Max", arithmetic.Maximum, {arithmetic.Maximum: _write("Max")}),
    Operator("Mean", _read_several(arithmetic.Add, mean=True), inputs=(1, ANY)),
    _several("Min", arithmetic.Minimum, {arithmetic.Minimum: _write("Min")}),
    Operator("Pow", _read_power, {elementwise.Pow: _write_power}, _fold(lambda a, b: a**b), (2, 2), kinds="fiu"),
    _arithmetic("Sub", arithmetic.Sub, _fold(lambda a, b: a - b)),
    _several("Sum", arithmetic.Add, {}),
    *_rows("bool", "b", "And", "Or", "Xor"),
    *_rows("bool", "b", "Not", count=1),
    *_rows("bool", "fiu", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    *_rows(0, "iu", "BitwiseAnd", "BitwiseOr", "BitwiseXor", since=18),
    *_rows(0, "iu", "BitwiseNot", count=1, since=18),
    *_rows(0, "iu", "BitShift", direction=str),
    *_rows("bool", "f", "IsNaN", count=1),
    *_rows("bool", "f", "IsInf", count=1, detect_negative=1, detect_positive=1),
    replace(operation("Equal", 2, "bool"), fold=_fold_equal),
    replace(operation("Where", 3, 1), fold=_fold_where),
)
