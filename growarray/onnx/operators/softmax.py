"""Softmax and its logarithm: along one axis since operator set 13, over all axes from one on before."""

from __future__ import annotations

from typing import Any

from growarray import nn
from growarray.files.errors import Malformed
from growarray.nn.shape import Reshape
from growarray.onnx.build import Builder, product
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, OnnxGraph
from growarray.onnx.operators.row import Operator


def _softmax(name: str, kind: Any) -> Operator:
    def read(builder: Builder, node: OpNode) -> None:
        x, hint = builder.dynamic(node, 0), builder.hint(node)
        axis: int = node.get("axis", "int", -1 if builder.opset >= 13 else 1)
        count = None if x.shape is None else len(x.shape)
        if count is not None and not -count <= axis < max(count, 1):
            raise Malformed(f"axis is {axis} for an input of {count} axes")
        if builder.opset >= 13 or axis == -1 or (count is not None and axis == count - 1):
            builder.result(node, kind(axis), [x], x.shape)
            return
        if x.shape is None:
            raise Malformed("the number of axes of its input is not known; export the model with shapes")
        lead, joined = x.shape[:axis], x.shape[axis:]
        if sum(isinstance(n, str) for n in joined) > 1:
            raise Malformed(f"joins axes {joined} of unknown sizes; export the model with fixed sizes")
        flat = (*lead, product(builder, joined))
        y = builder.step(kind(-1), [builder.step(nn.Flatten(axis, -1), [x], flat, f"{hint}.joined")], flat, hint)
        back = Reshape((*(0,) * len(lead), *(-1 if isinstance(n, str) else n for n in joined)))
        builder.give(node, builder.step(back, [y], x.shape, f"{hint}.back"))

    def write(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
        graph.shape_after(layer, x)
        return graph.node(name, x, axis=layer.axis)

    return Operator(name, read, {kind: write})


ROWS = (_softmax("LogSoftmax", nn.LogSoftmax), _softmax("Softmax", nn.Softmax))
"""The operators of this family."""
