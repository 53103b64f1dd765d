"""How the layers of :mod:`growarray.nn` without windows are written to ONNX: affine, activations, norms, containers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray import nn
from growarray.nn.module import Module
from growarray.onnx.lower import Edge, Lowering, OnnxGraph

__all__ = ["LAYERS", "one_operator"]


def _linear(graph: OnnxGraph, layer: nn.Linear, x: Edge) -> Edge:
    shape = graph.shape_after(layer, x)
    graph.check_features(x)
    weight = graph.parameter("weight", layer.weight)
    bias = None if layer.bias is None else graph.parameter("bias", layer.bias)
    rows = graph.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    y = graph.node("Gemm", rows, weight, bias, shape=(rows.shape[0], shape[-1]), transB=1)
    return graph.reshape(y, shape, x.batch or 0)


def _same(graph: OnnxGraph, layer: Module, x: Edge) -> Edge:
    return x


def one_operator(op: str, **names: str) -> Lowering:
    """What writes a layer as one operator on each element: attributes of the operator, and the fields they are in."""

    def lowering(graph: OnnxGraph, layer: Module, x: Edge) -> Edge:
        options: dict[str, Any] = {key: float(getattr(layer, name)) for key, name in names.items()}
        return graph.node(op, x, **options)

    return lowering


def _gelu(graph: OnnxGraph, layer: nn.GELU, x: Edge) -> Edge:
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


def _silu(graph: OnnxGraph, layer: nn.SiLU, x: Edge) -> Edge:
    return graph.node("Mul", x, graph.node("Sigmoid", x))


def _clip(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
    low, high = (0.0, 6.0) if isinstance(layer, nn.ReLU6) else (layer.low, layer.high)
    return graph.node("Clip", x, graph.constant(low), graph.constant(high))


def _along(op: str) -> Lowering:
    def lowering(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
        graph.shape_after(layer, x)
        return graph.node(op, x, axis=layer.axis)

    return lowering


def _flatten(graph: OnnxGraph, layer: nn.Flatten, x: Edge) -> Edge:
    shape = graph.shape_after(layer, x)
    if shape == x.shape:
        return x
    if x.batch in (0, None) and len(shape) == 2 and layer.start_dim == 1:
        return graph.node("Flatten", x, shape=shape, axis=1)
    start = layer.start_dim % x.ndim
    gone = x.ndim - len(shape)
    batch = 0 if x.batch is None else x.batch if x.batch < start else max(start, x.batch - gone)
    return graph.reshape(x, shape, batch)


def _sequential(graph: OnnxGraph, layer: nn.Sequential, x: Edge) -> Edge:
    for name, child in zip((str(i) for i in range(len(layer))), layer, strict=True):
        x = graph.lower(name, child, x)
    return x


def _weight(graph: OnnxGraph, layer: Any, shape: tuple[int, ...]) -> Edge:
    return graph.constant(np.ones(shape)) if layer.weight is None else graph.parameter("weight", layer.weight)


def _bias(graph: OnnxGraph, layer: Any, shape: tuple[int, ...]) -> Edge:
    return graph.constant(np.zeros(shape)) if layer.bias is None else graph.parameter("bias", layer.bias)


def _scaled(graph: OnnxGraph, layer: Any, z: Edge) -> Edge:
    """Times the weight and plus the bias of each channel, where the norm has them."""
    for op, name in (("Mul", "weight"), ("Add", "bias")):
        if (value := getattr(layer, name)) is not None:
            z = graph.node(op, z, graph.spread(graph.parameter(name, value), z.ndim))
    return z


def _batch_norm(graph: OnnxGraph, layer: nn.BatchNorm, x: Edge) -> Edge:
    graph.check_batch(x)
    graph.shape_after(layer, x)
    if layer.track_running_stats:
        running = [graph.parameter(name, getattr(layer, name)) for name in ("running_mean", "running_var")]
        weights = [make(graph, layer, (layer.num_features,)) for make in (_weight, _bias)]
        return graph.node("BatchNormalization", x, *weights, *running, epsilon=float(layer.eps))
    axes = (0, *range(2, x.ndim))
    centred = graph.node("Sub", x, graph.reduce_mean(x, axes))
    var = graph.reduce_mean(graph.node("Mul", centred, centred), axes)
    deviation = graph.node("Sqrt", graph.node("Add", var, graph.constant(layer.eps)))
    return _scaled(graph, layer, graph.node("Div", centred, deviation))


def _layer_norm(graph: OnnxGraph, layer: nn.LayerNorm, x: Edge) -> Edge:
    graph.shape_after(layer, x)
    weight = _weight(graph, layer, layer.normalized_shape)
    bias = None if layer.bias is None else graph.parameter("bias", layer.bias)
    return graph.node(
        "LayerNormalization", x, weight, bias, axis=-len(layer.normalized_shape), epsilon=float(layer.eps)
    )


def _group_norm(graph: OnnxGraph, layer: nn.GroupNorm, x: Edge) -> Edge:
    graph.check_batch(x)
    graph.shape_after(layer, x)
    groups, eps = layer.num_groups, float(layer.eps)
    if graph.opset >= 21:  # before, the standard had one weight for each group
        weights = [make(graph, layer, (layer.num_channels,)) for make in (_weight, _bias)]
        return graph.node("GroupNormalization", x, *weights, num_groups=groups, epsilon=eps)
    rows = graph.reshape(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))
    ones, zeros = graph.constant(np.ones(groups)), graph.constant(np.zeros(groups))
    z = graph.node("InstanceNormalization", rows, ones, zeros, epsilon=eps)
    return _scaled(graph, layer, graph.reshape(z, x.shape))


LAYERS: dict[type[Module], Lowering] = {
    nn.BatchNorm: _batch_norm,
    nn.Dropout: _same,  # of which inference knows nothing
    nn.ELU: one_operator("Elu", alpha="alpha"),
    nn.Flatten: _flatten,
    nn.GELU: _gelu,
    nn.GroupNorm: _group_norm,
    nn.Hardtanh: _clip,
    nn.Identity: _same,
    nn.LayerNorm: _layer_norm,
    nn.LeakyReLU: one_operator("LeakyRelu", alpha="slope"),
    nn.Linear: _linear,
    nn.LogSoftmax: _along("LogSoftmax"),
    nn.ReLU: one_operator("Relu"),
    nn.ReLU6: _clip,
    nn.SELU: one_operator("Selu"),
    nn.Sequential: _sequential,
    nn.SiLU: _silu,
    nn.Sigmoid: one_operator("Sigmoid"),
    nn.Softmax: _along("Softmax"),
    nn.Softplus: one_operator("Softplus"),
    nn.Tanh: one_operator("Tanh"),
}
"""The function that writes each class of layer."""
