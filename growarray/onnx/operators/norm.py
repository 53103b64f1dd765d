"""Normalisation over channels, groups, or the last axes, and softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray import nn
from growarray.files.errors import Malformed
from growarray.nn.arithmetic import Add, Mul
from growarray.nn.shape import Reshape
from growarray.nn.sized import GroupedNorm
from growarray.onnx.build import Builder, broadcast, product
from growarray.onnx.call import Calls
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, OnnxGraph
from growarray.onnx.operators.row import Operator
from growarray.onnx.value import Constant, Dynamic, known_axes


def _vector(builder: Builder, node: OpNode, index: int, label: str, size: int | None = None) -> Constant:
    value = builder.constant(node, index, label)
    if len(value.shape) != 1 or (size is not None and value.shape != (size,)):
        raise Malformed(f"{label} has shape {value.shape}; expected {'one axis' if size is None else (size,)}")
    return value


_NOT_WEIGHTS = ("val_", "onnx::")  # how torch names what is not a weight


def _neutral(scale: Constant, bias: Constant | None) -> bool:
    """Whether an exporter made up a scale of ones and a bias of zeros for a layer that has neither."""

    def made_up(value: Constant, number: float) -> bool:
        unnamed = not value.trained or value.label.startswith(_NOT_WEIGHTS)
        return unnamed and bool((value.array == number).all())

    return made_up(scale, 1.0) and (bias is None or made_up(bias, 0.0))


def _channels(x: Dynamic, count: int) -> None:
    if x.shape is not None and (len(x.shape) < 2 or (isinstance(x.shape[1], int) and x.shape[1] != count)):
        raise Malformed(f"input has shape {x.shape}; expected {count} channels")


def _weights(graph: OnnxGraph, layer: Any, shape: tuple[int, ...]) -> list[Edge]:
    """Weight and bias of a layer, ones and zeros if it has none."""
    return [
        graph.constant(np.full(shape, neutral)) if value is None else graph.parameter(name, value)
        for name, value, neutral in (("weight", layer.weight, 1.0), ("bias", layer.bias, 0.0))
    ]


def _scaled(graph: OnnxGraph, layer: Any, z: Edge) -> Edge:
    """Multiply by the weight and add the bias of each channel, if the norm has them."""
    for op, name in (("Mul", "weight"), ("Add", "bias")):
        if (value := getattr(layer, name)) is not None:
            z = graph.node(op, z, graph.spread(graph.parameter(name, value), z.ndim))
    return z


def _read_batch_norm(builder: Builder, node: OpNode) -> None:
    """With the statistics of the file; ``.train()`` makes it take those of the batch."""
    x, scale = builder.dynamic(node, 0), _vector(builder, node, 1, "scale")
    count = scale.shape[0]
    bias, *statistics = (
        _vector(builder, node, i, what, count) for i, what in ((2, "bias"), (3, "mean"), (4, "variance"))
    )
    _channels(x, count)
    if node.flag("training_mode") or node.get("is_test", "int", 1) == 0:
        raise Malformed("training_mode is 1; export the model in evaluation mode")
    if not node.flag("spatial", True):
        raise Malformed("spatial is 0, which is not supported")
    node.get("consumed_inputs", "ints")
    eps, momentum = node.get("epsilon", "float", 1e-5), 1.0 - node.get("momentum", "float", 0.9)
    kinds: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    kind = nn.BatchNorm if x.shape is None else kinds.get(len(x.shape), nn.BatchNorm)
    layer = kind(count, eps, round(momentum, 6), affine=False)
    neutral = _neutral(scale, bias)
    if not neutral:
        layer.weight, layer.bias = builder.parameter(scale, "scale"), builder.parameter(bias, "bias")
    layer.running_mean, layer.running_var = (builder.floats(value, "statistics") for value in statistics)
    builder.bind_module(node, layer, [x], x.shape, statistics[0] if neutral else scale)


def _write_batch_norm(graph: OnnxGraph, layer: nn.BatchNorm, x: Edge) -> Edge:
    graph.check_batch(x)
    graph.shape_after(layer, x)
    if layer.track_running_stats:
        running = [graph.parameter(name, getattr(layer, name)) for name in ("running_mean", "running_var")]
        weights = _weights(graph, layer, (layer.num_features,))
        return graph.node("BatchNormalization", x, *weights, *running, epsilon=float(layer.eps))
    axes = (0, *range(2, x.ndim))
    centred = graph.node("Sub", x, graph.reduce("ReduceMean", x, axes))
    var = graph.reduce("ReduceMean", graph.node("Mul", centred, centred), axes)
    deviation = graph.node("Sqrt", graph.node("Add", var, graph.constant(layer.eps)))
    return _scaled(graph, layer, graph.node("Div", centred, deviation))


def _read_layer_norm(builder: Builder, node: OpNode) -> None:
    """Over the axes from ``axis`` on; a scale that is broadcast becomes a product of its own."""
    x, scale = builder.dynamic(node, 0), builder.constant(node, 1, "scale")
    bias = builder.optional(node, 2, "bias")
    axis, eps = node.get("axis", "int", -1), node.get("epsilon", "float", 1e-5)
    if node.get("stash_type", "int", 1) != 1:
        raise Malformed("stash_type is not 1, which is not supported")
    if x.shape is None:
        axes: tuple[Any, ...] = scale.shape
    elif -len(x.shape) <= axis < len(x.shape):
        axes = x.shape[axis:]
    else:
        raise Malformed(f"axis is {axis} for an input of {len(x.shape)} axes")
    if not all(isinstance(n, int) for n in axes):
        raise Malformed(f"normalises axes of sizes {axes}; expected fixed sizes")
    whole = scale.shape == tuple(axes) and (bias is None or bias.shape == scale.shape)
    layer = nn.LayerNorm(tuple(int(n) for n in axes), eps, elementwise_affine=False)
    neutral = whole and _neutral(scale, bias)
    hint = builder.hint(node, None if neutral else scale)
    if whole and not neutral:
        layer.weight = builder.parameter(scale, "scale")
        layer.bias = None if bias is None else builder.parameter(bias, "bias")
    y = builder.add(layer, [x], x.shape, hint)
    if not whole:
        y = builder.add(Mul(builder.parameter(scale, "scale")), [y], broadcast(builder, y.shape, scale.shape), hint)
        if bias is not None:
            shape = broadcast(builder, y.shape, bias.shape)
            y = builder.add(Add(builder.parameter(bias, "bias")), [y], shape, hint)
    builder.bind(node, y)
    if any(name in builder.used for name in node.outputs[1:]):
        call, over = Calls(builder, node), np.arange(-len(axes), 0)
        mean = call("ReduceMean", call.input(0), over)
        centred = call("Sub", call.input(0), mean)
        call.bind(mean, 1)
        variance = call("ReduceMean", call("Mul", centred, centred), over)
        call.bind(call("Reciprocal", call("Sqrt", call("Add", variance, eps))), 2)


def _write_layer_norm(graph: OnnxGraph, layer: nn.LayerNorm, x: Edge) -> Edge:
    graph.shape_after(layer, x)
    weight, bias = _weights(graph, layer, layer.normalized_shape)
    inputs = (x, weight, None if layer.bias is None else bias)
    return graph.node("LayerNormalization", *inputs, axis=-len(layer.normalized_shape), epsilon=float(layer.eps))


def _group_layer(groups: int, channels: int, eps: float, weight: Any, bias: Any) -> nn.GroupNorm:
    layer = nn.GroupNorm(groups, channels, eps, affine=False)
    layer.weight, layer.bias = weight, bias
    return layer


def _read_group_norm(builder: Builder, node: OpNode) -> None:
    """A scale for each channel since opset 21, for each group before."""
    x, groups, eps = builder.dynamic(node, 0), node.get("num_groups", "int"), node.get("epsilon", "float", 1e-5)
    node.get("stash_type", "int", 1)
    scale = _vector(builder, node, 1, "scale")
    bias = _vector(builder, node, 2, "bias", scale.shape[0])
    known = None if x.shape is None or len(x.shape) < 2 else x.shape[1]
    by_group = builder.opset < 21 and scale.shape[0] == groups
    if by_group and groups and not isinstance(known, int):
        grouped = GroupedNorm(builder.parameter(scale, "scale"), builder.parameter(bias, "bias"), eps)
        builder.bind_module(node, grouped, [x], x.shape, scale)
        return
    channels = known if isinstance(known, int) else scale.shape[0]
    if not isinstance(groups, int) or groups < 1 or channels % groups or scale.shape[0] not in (groups, channels):
        raise Malformed(f"num_groups {groups}, {channels} channels and a scale of {scale.shape[0]} do not fit")
    weights: list[Any] = [None, None]
    if by_group:
        form, each = ("groups", channels // groups), channels // groups
        weights = [
            builder.parameter(v, "scale", form, lambda array: np.repeat(array, each), channels) for v in (scale, bias)
        ]
    elif not _neutral(scale, bias):
        weights = [builder.parameter(v, "scale") for v in (scale, bias)]
    _channels(x, channels)
    layer = _group_layer(groups, channels, eps, *weights)
    builder.bind_module(node, layer, [x], x.shape, None if weights[0] is None else scale)


def _rows(graph: OnnxGraph, x: Edge, groups: int) -> Edge:
    """The input with the entries of each group on one axis: (n, groups, rest)."""
    return graph.reshape(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))


def _write_group_norm(graph: OnnxGraph, layer: nn.GroupNorm, x: Edge) -> Edge:
    graph.check_batch(x)
    graph.shape_after(layer, x)
    groups, eps = layer.num_groups, float(layer.eps)
    if graph.opset >= 21:  # before, the standard had one weight for each group
        weights = _weights(graph, layer, (layer.num_channels,))
        stash = 11 if graph.dtype == np.float64 else 1  # the type of mean and variance: double, or float
        return graph.node("GroupNormalization", x, *weights, num_groups=groups, epsilon=eps, stash_type=stash)
    ones, zeros = graph.constant(np.ones(groups)), graph.constant(np.zeros(groups))
    z = graph.node("InstanceNormalization", _rows(graph, x, groups), ones, zeros, epsilon=eps)
    return _scaled(graph, layer, graph.reshape(z, x.shape))


def _write_grouped_norm(graph: OnnxGraph, layer: GroupedNorm, x: Edge) -> Edge:
    graph.check_batch(x)
    graph.shape_after(layer, x)
    weights = [graph.parameter(name, getattr(layer, name)) for name in ("weight", "bias")]
    rows = _rows(graph, x, weights[0].shape[0])
    return graph.reshape(graph.node("InstanceNormalization", rows, *weights, epsilon=float(layer.eps)), x.shape)


def _read_instance_norm(builder: Builder, node: OpNode) -> None:
    """A group for each channel; a scale of ones that an exporter made up is left out."""
    x, eps = builder.dynamic(node, 0), node.get("epsilon", "float", 1e-5)
    scale = _vector(builder, node, 1, "scale")
    count = scale.shape[0]
    bias = _vector(builder, node, 2, "bias", count)
    _channels(x, count)
    neutral = _neutral(scale, bias)
    weights = (None, None) if neutral else (builder.parameter(scale, "scale"), builder.parameter(bias, "bias"))
    builder.bind_module(node, _group_layer(count, count, eps, *weights), [x], x.shape, None if neutral else scale)


def _softmax(name: str, kind: Any) -> Operator:
    def read(builder: Builder, node: OpNode) -> None:
        x, hint = builder.dynamic(node, 0), builder.hint(node)
        axis: int = node.get("axis", "int", -1 if builder.opset >= 13 else 1)
        count = None if x.shape is None else len(x.shape)
        if count is not None and not -count <= axis < max(count, 1):
            raise Malformed(f"axis is {axis} for an input of {count} axes")
        if builder.opset >= 13 or axis == -1 or (count is not None and axis == count - 1):
            builder.bind_module(node, kind(axis), [x], x.shape)
            return
        shape = known_axes(x)
        lead, joined = shape[:axis], shape[axis:]
        if sum(isinstance(n, str) for n in joined) > 1:
            raise Malformed(f"joins axes {joined} of unknown sizes; export the model with fixed sizes")
        flat = (*lead, product(builder, joined))
        y = builder.add(kind(-1), [builder.add(nn.Flatten(axis, -1), [x], flat, f"{hint}.joined")], flat, hint)
        back = Reshape((*(0,) * len(lead), *(-1 if isinstance(n, str) else n for n in joined)))
        builder.bind(node, builder.add(back, [y], x.shape, f"{hint}.back"))

    def write(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
        graph.shape_after(layer, x)
        return graph.node(name, x, axis=layer.axis)

    return Operator(name, read, {kind: write})


ROWS = (
    Operator("BatchNormalization", _read_batch_norm, {nn.BatchNorm: _write_batch_norm}, inputs=(5, 5), outputs=5),
    Operator("GroupNormalization", _read_group_norm, {nn.GroupNorm: _write_group_norm}, inputs=(3, 3), since=21),
    Operator(
        "InstanceNormalization", _read_instance_norm, {GroupedNorm: _write_grouped_norm}, inputs=(3, 3), double=False
    ),
    Operator(
        "LayerNormalization", _read_layer_norm, {nn.LayerNorm: _write_layer_norm}, inputs=(2, 3), outputs=3, since=17
    ),
    _softmax("LogSoftmax", nn.LogSoftmax),
    _softmax("Softmax", nn.Softmax),
)
