"""Operators that reduce axes."""

from __future__ import annotations

from growarray.nn.shape import ReduceMean
from growarray.onnx.build import Builder, Shape
from growarray.onnx.fold import axes_of, positive_axes
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, OnnxGraph
from growarray.onnx.operators.row import Operator

__all__ = ["ROWS"]


def _read_mean(builder: Builder, node: OpNode) -> None:
    x, axes, keep = builder.dynamic(node, 0), axes_of(builder, node, 18), node.flag("keepdims", True)
    if node.flag("noop_with_empty_axes") and not axes:
        builder.give(node, x)
        return
    axes = axes or None
    shape: Shape = None
    if x.shape is not None:
        gone = range(len(x.shape)) if axes is None else positive_axes(axes, len(x.shape))
        shape = tuple(1 if i in gone else n for i, n in enumerate(x.shape) if keep or i not in gone)
    builder.result(node, ReduceMean(axes, keepdims=keep), [x], shape)


def _write_mean(graph: OnnxGraph, layer: ReduceMean, x: Edge) -> Edge:
    graph.shape_after(layer, x)
    axes = range(x.ndim) if layer.axes is None else [axis % x.ndim for axis in layer.axes]
    return graph.reduce_mean(x, list(axes), layer.keepdims) if axes else x


ROWS = (Operator("ReduceMean", _read_mean, {ReduceMean: _write_mean}, inputs=(1, 2)),)
"""The operators of this family."""
