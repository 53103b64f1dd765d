"""Operators that reduce axes: means, sums, products, extremes and norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from growarray.files.errors import Malformed
from growarray.nn.reduce import Reduce, ReduceMean
from growarray.onnx.build import Builder
from growarray.onnx.fold import axes_of, constant_array, positive_axes
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, Lowering, OnnxGraph
from growarray.onnx.operators.row import Fold, Operator, Read
from growarray.onnx.value import Array, Shape

_IDENTICAL = ("Max", "Mean", "Min", "Prod", "Sum")  # of no axes, these leave the value as it is


def _options(builder: Builder, node: OpNode, since: int) -> tuple[tuple[int, ...] | None, bool, bool]:
    """Axes, None for all; whether they stay; whether nothing is reduced."""
    axes, keep = axes_of(builder, node, since), node.flag("keepdims", True)
    nothing = node.flag("noop_with_empty_axes") and not axes
    return axes or None, keep, nothing


def _read(name: str, since: int) -> Read:
    def read(builder: Builder, node: OpNode) -> None:
        x, (axes, keep, nothing) = builder.dynamic(node, 0), _options(builder, node, since)
        if nothing:
            if name not in _IDENTICAL:
                raise Malformed("noop_with_empty_axes is 1, which is not supported here; name the axes")
            builder.bind(node, x)
            return
        shape: Shape = None
        if x.shape is not None:
            gone = range(len(x.shape)) if axes is None else positive_axes(axes, len(x.shape))
            shape = tuple(1 if i in gone else n for i, n in enumerate(x.shape) if keep or i not in gone)
        layer = ReduceMean(axes, keepdims=keep) if name == "Mean" else Reduce(name, axes, keepdims=keep)
        builder.bind_module(node, layer, [x], shape)

    return read


def _write(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
    graph.shape_after(layer, x)
    axes = range(x.ndim) if layer.axes is None else [axis % x.ndim for axis in layer.axes]
    name = layer.name if isinstance(layer, Reduce) else "Mean"
    if not axes and name not in _IDENTICAL:
        raise graph.refuse("it reduces no axes, which is not written")
    return graph.reduce(f"Reduce{name}", x, list(axes), layer.keepdims) if axes else x


def _fold(operation: Callable[..., Any], since: int) -> Fold:
    def fold(builder: Builder, node: OpNode) -> Array | None:
        value, (axes, keep, nothing) = constant_array(builder, node, 0), _options(builder, node, since)
        if value.dtype == object:
            return None
        builder.account(value.nbytes)
        return value if nothing else np.asarray(operation(value, axis=axes, keepdims=keep)).astype(value.dtype)

    return fold


def _reduction(name: str, operation: Callable[..., Any] | None = None, since: int = 18) -> Operator:
    """The row of one reduction; ``since`` is the operator set in which its axes became an input."""
    fold = None if operation is None else _fold(operation, since)
    return Operator(f"Reduce{name}", _read(name, since), fold=fold, inputs=(1, 2))


ROWS = (
    _reduction("L1"),
    _reduction("L2"),
    _reduction("LogSum"),
    _reduction("LogSumExp"),
    _reduction("Max", np.max),
    _reduction("Mean"),
    _reduction("Min", np.min),
    _reduction("Prod", np.prod),
    _reduction("Sum", np.sum, since=13),
    _reduction("SumSquare"),
)

WRITES: dict[Any, Lowering] = {Reduce: _write, ReduceMean: _write}
"""A reduction is written as the operator of its name."""
