"""How convolutions and transposed convolutions are written to ONNX, with every padding mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from growarray import nn
from growarray.contraction.geometry import ConvAxis
from growarray.nn.module import Module
from growarray.onnx.lower import Edge, Lowering, OnnxGraph
from growarray.ops.conv import conv_geometry
from growarray.ops.sizes import each_axis

__all__ = ["CONVOLUTIONS", "padded", "window_options"]

_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def padded(graph: OnnxGraph, x: Edge, by: Mapping[int, ConvAxis], value: float = 0.0) -> Edge:
    """The value padded along some axes, all by one mode; ``value`` is what zero padding puts there."""
    by = {axis: geometry for axis, geometry in by.items() if geometry.before or geometry.after}
    if not by:
        return x
    mode = next(iter(by.values())).padding_mode
    if mode == "circular" and graph.opset < 19:
        for axis, geometry in by.items():
            x = _wrapped(graph, x, axis, geometry)
        return x
    before, after = ([getattr(by[i], end) if i in by else 0 for i in range(x.ndim)] for end in ("before", "after"))
    shape = [n + low + high for n, low, high in zip(x.shape, before, after, strict=True)]
    inputs = [x, graph.constant(np.asarray(before + after, np.int64))]
    inputs += [graph.constant(value)] if mode == "zeros" else []
    return graph.node("Pad", *inputs, shape=shape, mode=_MODES[mode])


def _wrapped(graph: OnnxGraph, x: Edge, axis: int, by: ConvAxis) -> Edge:
    """Circular padding of one axis as pieces that are joined: Pad has it from operator set 19 on."""
    size = x.shape[axis]
    ends = [(size - by.before, size), (0, by.after)]
    front, back = (_slice(graph, x, axis, *end) if end[0] < end[1] else None for end in ends)
    shape = [n + (by.before + by.after if i == axis else 0) for i, n in enumerate(x.shape)]
    pieces = [piece for piece in (front, x, back) if piece is not None]
    return graph.node("Concat", *pieces, shape=shape, axis=axis)


def _slice(graph: OnnxGraph, x: Edge, axis: int, start: int, stop: int) -> Edge:
    bounds = [graph.constant(np.asarray([n], np.int64)) for n in (start, stop, axis)]
    shape = [stop - start if i == axis else n for i, n in enumerate(x.shape)]
    return graph.node("Slice", x, *bounds, shape=shape)


def window_options(axes: Mapping[int, ConvAxis], kernel: tuple[int, ...], groups: int) -> dict[str, Any]:
    """Attributes of Conv; ``axes`` are those of the spatial axes that are not padded by a node of its own."""
    geometry = [axes.get(i, ConvAxis()) for i in range(len(kernel))]
    return {
        "kernel_shape": kernel,
        "strides": tuple(a.stride for a in geometry),
        "pads": (*(a.before for a in geometry), *(a.after for a in geometry)),
        "dilations": tuple(a.dilation for a in geometry),
        "group": groups,
    }


def _conv(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
    graph.check_batch(x)
    shape = graph.shape_after(layer, x)
    weight = graph.parameter("weight", layer.weight)
    bias = None if layer.bias is None else graph.parameter("bias", layer.bias)
    axes = conv_geometry(layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.padding_mode)
    if layer.padding_mode != "zeros":
        x = padded(graph, x, dict(enumerate(axes, start=2)))
        axes = tuple(replace(axis, before=0, after=0) for axis in axes)
    options = window_options(dict(enumerate(axes)), layer.kernel_size, layer.groups)
    return graph.node("Conv", x, weight, bias, shape=shape, **options)


def _conv_transpose(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
    graph.check_batch(x)
    shape = graph.shape_after(layer, x)
    pads = each_axis("ConvTranspose", "padding", layer.padding, layer.axes, 0)
    pairs = list(zip(pads, layer.output_padding, strict=True))
    if any(extra - pad >= step for (pad, extra), step in zip(pairs, layer.stride, strict=True)):
        return _beyond_reach(graph, layer, x, pairs)
    weight = graph.parameter("weight", layer.weight)
    bias = None if layer.bias is None else graph.parameter("bias", layer.bias)
    options = {
        "kernel_shape": layer.kernel_size,
        "strides": layer.stride,
        # less padding at the end is more output: onnxruntime takes no output_padding of a stride or more
        "pads": (*pads, *(max(pad - extra, 0) for pad, extra in pairs)),
        "output_padding": tuple(max(extra - pad, 0) for pad, extra in pairs),
        "dilations": layer.dilation,
        "group": layer.groups,
    }
    return graph.node("ConvTranspose", x, weight, bias, shape=shape, **options)


def _beyond_reach(graph: OnnxGraph, layer: Any, x: Edge, pairs: list[tuple[int, int]]) -> Edge:
    """A transposed convolution whose output padding is more than a stride: zeros after all that an input reaches."""
    options: dict[str, Any] = {"kernel_shape": layer.kernel_size, "strides": layer.stride}
    geometry = zip(x.shape[2:], layer.stride, layer.dilation, layer.kernel_size, strict=True)
    sizes = [(size - 1) * step + spread * (taps - 1) + 1 for size, step, spread, taps in geometry]
    y = graph.node(
        "ConvTranspose", x, graph.parameter("weight", layer.weight), shape=[x.shape[0], layer.out_channels, *sizes],
        dilations=layer.dilation, group=layer.groups, **options,
    )  # fmt: skip
    y = padded(graph, y, {axis: ConvAxis(after=extra) for axis, (_, extra) in enumerate(pairs, start=2)})
    for axis, (pad, _) in enumerate(pairs, start=2):
        y = _slice(graph, y, axis, pad, y.shape[axis] - pad) if pad else y
    return y if layer.bias is None else graph.node("Add", y, graph.spread(graph.parameter("bias", layer.bias), y.ndim))


CONVOLUTIONS: dict[type[Module], Lowering] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvNd), _conv),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.ConvTransposeNd), _conv_transpose),
}
"""The function that writes each class of layer."""
