"""Products of matrices: linear layers, and products of two values of the network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray import nn
from growarray.contraction.equation import ELLIPSIS, parse
from growarray.errors import PlanError
from growarray.files.errors import Malformed, quote
from growarray.nn.arithmetic import Add, MatMul, Mul, Value
from growarray.nn.operation import Operation
from growarray.nn.shape import Transpose
from growarray.onnx.build import Builder, broadcast
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, OnnxGraph
from growarray.onnx.operators.arithmetic import batch_of, operands_of
from growarray.onnx.operators.row import ANY, Operator
from growarray.onnx.value import Constant, Dynamic, Shape


def _affine(builder: Builder, node: OpNode, x: Dynamic, weight: Constant, transposed: bool, alpha: float) -> Dynamic:
    """``alpha x W``, or ``alpha x W^T``, as a linear layer; a weight that is taken both ways stays one parameter."""
    width, out = weight.shape[::-1] if transposed else weight.shape
    if x.shape is not None and isinstance(x.shape[-1], int) and x.shape[-1] != width:
        raise Malformed(f"input of shape {x.shape} and a weight for {width} features do not fit")
    shape = None if x.shape is None else (*x.shape[:-1], out)
    hint = builder.hint(node, weight)
    held, factor = builder.layouts.setdefault(weight.key, (transposed, alpha))
    parameter = builder.parameter(
        weight, "weight", "linear", lambda w: (w if held else w.T) * (1.0 if factor == 1.0 else w.dtype.type(factor))
    )
    if held == transposed:
        layer = nn.Linear.of(parameter.data)
        layer.weight = parameter
        found = builder.add(layer, [x], shape, hint)
    else:
        value = builder.add(Value(parameter), (), (out, width), f"{hint}.transposed")
        found = builder.add(MatMul(), [x, value], shape, hint)
    return found if factor == alpha else builder.add(Mul(alpha / factor), [found], shape, f"{hint}.alpha")


def _read_gemm(builder: Builder, node: OpNode) -> None:
    """``alpha A' B' + beta C``; a linear layer if B and C are constants."""
    alpha, beta = node.get("alpha", "float", 1.0), node.get("beta", "float", 1.0)
    node.get("broadcast", "int")  # before opset 7, without which C has all axes already
    flip_a, flip_b = node.flag("transA"), node.flag("transB")
    x, weight = builder.dynamic(node, 0), builder.value(node, 1)
    if x.shape is not None and len(x.shape) != 2:
        raise Malformed(f"input has shape {x.shape}; expected two axes")
    if flip_a:
        x = builder.add(Transpose((1, 0)), [x], None if x.shape is None else x.shape[::-1], "transpose")
    if isinstance(weight, Constant):
        if len(weight.shape) != 2:
            raise Malformed(f"weight has shape {weight.shape}; expected two axes")
        y = _affine(builder, node, x, weight, flip_b, alpha)
    else:
        if flip_b:
            weight = builder.add(Transpose((1, 0)), [weight], weight.shape and weight.shape[::-1], "transpose")
        y = _product(builder, node, x, weight)
        y = y if alpha == 1.0 else builder.add(Mul(alpha), [y], y.shape, "alpha")
    if not builder.has(node, 2):
        builder.bind(node, y)
        return
    bias = builder.value(node, 2)
    layer = builder.nodes[-1].module
    flat = isinstance(bias, Constant) and math.prod(bias.shape[:-1]) == 1
    if isinstance(bias, Constant) and isinstance(layer, nn.Linear) and flat and bias.size in (1, layer.out_features):
        out = layer.out_features
        layer.bias = builder.parameter(bias, "bias", (out, beta), lambda b: _spread(b, out, beta), out)
        builder.bind(node, y)
        return
    term = builder.dynamic(node, 2)
    if beta != 1.0:
        term = builder.add(Mul(beta), [term], term.shape, "beta")
    builder.bind_module(node, Add(), [y, term], broadcast(builder, y.shape, term.shape))


def _spread(bias: Any, out: int, beta: float) -> Any:
    """A bias for each of ``out`` outputs, times ``beta``."""
    found = bias.reshape(-1) if bias.size == out else np.repeat(bias.reshape(-1), out)
    return found if beta == 1.0 else found * bias.dtype.type(beta)


def _write_linear(graph: OnnxGraph, layer: nn.Linear, x: Edge) -> Edge:
    shape = graph.shape_after(layer, x)
    graph.check_features(x)
    rows = graph.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    y = graph.node("Gemm", rows, *graph.weights(layer), shape=(rows.shape[0], shape[-1]), transB=1)
    return graph.reshape(y, shape, x.batch or 0)


def _product(builder: Builder, node: OpNode, a: Dynamic, b: Dynamic) -> Dynamic:
    """A product of two values of the network."""
    shape: Shape = None
    if a.shape is not None and b.shape is not None:
        if not a.shape or not b.shape:
            raise Malformed(f"operands have shapes {a.shape} and {b.shape}; expected at least one axis each")
        inner = (a.shape[-1], b.shape[max(len(b.shape) - 2, 0)])
        if all(isinstance(n, int) for n in inner) and inner[0] != inner[1]:
            raise Malformed(f"operands have shapes {a.shape} and {b.shape}, which do not fit")
        lead = broadcast(builder, a.shape[:-2], b.shape[:-2]) or ()
        shape = (*lead, *(a.shape[-2:-1] if len(a.shape) > 1 else ()), *(b.shape[-1:] if len(b.shape) > 1 else ()))
    return builder.add(MatMul(), [a, b], shape, builder.hint(node))


def _read_matmul(builder: Builder, node: OpNode) -> None:
    """A linear layer without bias if the second operand is a constant matrix."""
    second = builder.value(node, 1)
    if isinstance(second, Constant) and len(second.shape) == 2:
        builder.bind(node, _affine(builder, node, builder.dynamic(node, 0), second, False, 1.0))
    else:
        builder.bind(node, _product(builder, node, builder.dynamic(node, 0), builder.dynamic(node, 1)))


def _write_matmul(graph: OnnxGraph, layer: MatMul, *inputs: Edge) -> Edge:
    sizes = graph.shape_after(layer, *inputs)
    a, b = operands_of(graph, layer, inputs)
    if (a.batch is not None and a.batch == a.ndim - 1) or (b.batch is not None and b.batch == max(b.ndim - 2, 0)):
        raise graph.refuse("it sums over the batch; pass dynamic_batch=False")
    # As operands of (*batch, rows, columns), of which the other side broadcasts rows or columns.
    left = Edge("", (*((1,) * (a.ndim < 2)), *a.shape[:-1], 1), None if a.batch is None else a.batch)
    right = Edge("", (*b.shape[:-2], 1, b.shape[-1]) if b.ndim > 1 else (1, 1), b.batch)
    place = batch_of(graph, [left, right], max(a.ndim, b.ndim, 2))
    if place is not None and a.ndim == 1:
        place -= int(place == max(b.ndim, 2) - 1)
    return graph.node("MatMul", a, b, shape=sizes, batch=place)


def _read_einsum(builder: Builder, node: OpNode) -> None:
    """Read an einsum for the contraction engine; the sizes of the result are known if every mode has a letter."""
    equation = "".join((node.get("equation", "string") or "").split())
    inputs = [builder.dynamic(node, i) for i in range(len(node.inputs))]
    try:
        parsed = parse(equation)
    except PlanError as fault:
        raise Malformed(str(fault)) from None
    sizes: dict[str, Any] = {}
    for x, term in zip(inputs, parsed.terms, strict=False):
        sizes |= dict(zip(term, x.shape or (), strict=False)) if len(term) == len(x.shape or ()) else {}
    if len(parsed.terms) != len(inputs) or parsed.convolved:
        raise Malformed(f"equation is {quote(equation)} for {len(inputs)} inputs")
    known = ELLIPSIS not in parsed.output and all(mode in sizes for mode in parsed.output)
    shape = tuple(sizes[mode] for mode in parsed.output) if known else None
    builder.bind_module(node, Operation("Einsum", equation=equation), inputs, shape)


ROWS = (
    Operator("Einsum", _read_einsum, inputs=(1, ANY)),
    Operator("Gemm", _read_gemm, {nn.Linear: _write_linear}, inputs=(2, 3)),
    Operator("MatMul", _read_matmul, {MatMul: _write_matmul}, inputs=(2, 2)),
)
