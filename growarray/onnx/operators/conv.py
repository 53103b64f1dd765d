"""Convolutions and transposed convolutions, of any number of axes, with every padding mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from growarray import nn
from growarray.contraction.geometry import ConvAxis
from growarray.files.errors import Malformed
from growarray.nn.padding import Pad
from growarray.nn.sized import CutTo, SamePad
from growarray.onnx.build import Builder
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, OnnxGraph
from growarray.onnx.operators.row import Operator
from growarray.onnx.operators.window import MOST, Pairs, Windows, options_of, padded, sliced
from growarray.onnx.value import Constant, Dim, Dynamic
from growarray.ops.conv import conv_geometry
from growarray.ops.sizes import each_axis

_KINDS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _read_weight(builder: Builder, node: OpNode, x: Dynamic) -> tuple[Constant, Windows, int]:
    """The weight, its windows over the input, and the number of groups, all of which fit."""
    weight = builder.constant(node, 1, "weight")
    if len(weight.shape) < 3 or 0 in weight.shape:
        raise Malformed(f"weight has shape {weight.shape}; expected two axes of channels and a kernel")
    kernel = node.get("kernel_shape", "ints", list(weight.shape[2:]))
    if tuple(kernel) != weight.shape[2:]:
        raise Malformed(f"kernel_shape is {tuple(kernel)}, the weight has {weight.shape[2:]}")
    windows = Windows(node, x, weight.shape[2:])
    group: int = node.get("group", "int", 1)
    if not 1 <= group <= max(weight.shape[0], 1) or weight.shape[0] % group:
        raise Malformed(f"group is {group}, which does not divide the {weight.shape[0]} channels of the weight")
    found = x.shape[1] if x.shape is not None else None
    if isinstance(found, int) and found != (weight.shape[1] * group if node.op == "Conv" else weight.shape[0]):
        raise Malformed(f"input has {found} channels, a weight of shape {weight.shape} in {group} groups does not fit")
    return weight, windows, group


def _filled(builder: Builder, node: OpNode, layer: Any, weight: Constant, channels: int) -> Any:
    """The layer with the parameters of the node."""
    layer.weight = builder.parameter(weight, "weight")
    bias = builder.optional(node, 2, "bias")
    if bias is not None:
        if bias.shape != (channels,):
            raise Malformed(f"bias has shape {bias.shape}; expected {(channels,)}")
        layer.bias = builder.parameter(bias, "bias")
    return layer


def _read_conv(builder: Builder, node: OpNode) -> None:
    x = builder.dynamic(node, 0)
    weight, windows, group = _read_weight(builder, node, x)
    pads = windows.pads()
    shape = (
        x.shape[0] if x.shape is not None else builder.new_name(),
        weight.shape[0],
        *windows.outputs(builder, pads),
    )
    if windows.open:
        before = SamePad(windows.reach, windows.stride, lower=windows.lower)
        x = builder.add(before, [x], None, f"{builder.hint(node, weight)}.padded")
        pads = [(0, 0)] * len(pads)
    layer = _KINDS.get(len(windows.kernel), nn.ConvNd).of(
        builder.parameter(weight, "weight").data,
        stride=windows.stride, padding=tuple(pads), dilation=windows.dilation, groups=group,
    )  # fmt: skip
    builder.bind_module(node, _filled(builder, node, layer, weight, weight.shape[0]), [x], shape, weight)


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


def _write_conv(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
    graph.check_batch(x)
    shape = graph.shape_after(layer, x)
    weights = graph.weights(layer)
    axes = conv_geometry(layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.padding_mode)
    if layer.padding_mode != "zeros":
        x = padded(graph, x, dict(enumerate(axes, start=2)))
        axes = tuple(replace(axis, before=0, after=0) for axis in axes)
    options = window_options(dict(enumerate(axes)), layer.kernel_size, layer.groups)
    return graph.node("Conv", x, *weights, shape=shape, **options)


def _read_conv_transpose(builder: Builder, node: OpNode) -> None:
    """Padding that differs before and after cuts the full result."""
    x = builder.dynamic(node, 0)
    weight, windows, group = _read_weight(builder, node, x)
    count, channels = len(windows.kernel), weight.shape[1] * group
    extra = options_of(node, "output_padding", [0] * count, 0)
    if any(e >= max(steps) for e, *steps in zip(extra, windows.stride, windows.dilation, strict=True)):
        raise Malformed(
            f"output_padding {extra} with strides {windows.stride} and dilations {windows.dilation}; expected less "
            "than the larger of both on each axis"
        )
    wanted = _wanted(node, count)
    if wanted is not None and not all(isinstance(size, int) for size in windows.sizes):
        _fit_later(builder, node, x, weight, windows, extra, group, wanted)
        return
    pads = _cut_off(node, windows, extra, wanted)
    geometry = zip(windows.sizes, windows.stride, windows.reach, extra, pads, strict=True)
    spatial = [
        (size - 1) * stride + reach + e - sum(pad) if isinstance(size, int) else builder.new_name()
        for size, stride, reach, e, pad in geometry
    ]
    if any(isinstance(n, int) and n < 1 for n in spatial):
        raise Malformed(f"gives {tuple(spatial)} positions; expected at least 1 on each axis")
    even = all(before == after >= 0 for before, after in pads)
    padding = tuple(before for before, _ in pads) if even else (0,) * count
    layer = _TRANSPOSED.get(count, nn.ConvTransposeNd).of(
        builder.parameter(weight, "weight").data,
        stride=windows.stride, padding=padding, output_padding=extra, groups=group, dilation=windows.dilation,
    )  # fmt: skip
    _filled(builder, node, layer, weight, channels)
    lead: tuple[Dim, ...] = (x.shape[0] if x.shape is not None else builder.new_name(), channels)
    if even:
        builder.bind_module(node, layer, [x], (*lead, *spatial), weight)
        return
    hint = builder.hint(node, weight)
    whole = builder.add(layer, [x], (*lead, *(builder.new_name() for _ in spatial)), hint)
    cut = Pad([(-before, -after) for before, after in pads])
    builder.bind(node, builder.add(cut, [whole], (*lead, *spatial), f"{hint}.cut"))


def _wanted(node: OpNode, count: int) -> tuple[int, ...] | None:
    """The positions that ``output_shape`` asks for, on each axis."""
    shape = node.get("output_shape", "ints")
    if shape is not None and len(shape) == count + 2:
        shape = shape[2:]  # some writers put batch and channels in front
    if shape is not None and (len(shape) != count or any(not 0 < n <= MOST for n in shape)):
        raise Malformed(f"output_shape is {shape}; expected {count} numbers from 1 to {MOST}")
    return None if shape is None else tuple(shape)


def _cut_off(node: OpNode, windows: Windows, extra: Sequence[int], wanted: tuple[int, ...] | None) -> Pairs:
    """What is cut off the full result before and after, on each axis; a negative number adds zeros."""
    if wanted is None and not windows.same:
        return windows.given
    pairs = []
    for i, (size, stride, reach) in enumerate(zip(windows.sizes, windows.stride, windows.reach, strict=True)):
        # without a shape the output is stride times the input, or as much as there is
        total = max(reach - stride + extra[i], 0)
        if wanted is not None and isinstance(size, int):
            total = stride * (size - 1) + extra[i] + reach - wanted[i]
        if total < 0 and len(node.inputs) > 2:
            raise Malformed(f"output_shape {wanted} is larger than the whole result; use output_padding")
        pairs.append(windows.halves(total))
    return pairs


def _fit_later(
    builder: Builder, node: OpNode, x: Dynamic, weight: Constant, windows: Windows, extra: Any, group: int, wanted: Any
) -> None:
    """The whole result, cut to what ``output_shape`` asks for when the size of the input is known."""
    channels = weight.shape[1] * group
    layer = _TRANSPOSED.get(len(wanted), nn.ConvTransposeNd).of(
        builder.parameter(weight, "weight").data,
        stride=windows.stride, output_padding=extra, groups=group, dilation=windows.dilation,
    )  # fmt: skip
    lead: tuple[Dim, ...] = (x.shape[0] if x.shape is not None else builder.new_name(), channels)
    hint, layer = builder.hint(node, weight), _filled(builder, node, layer, weight, channels)
    whole = builder.add(layer, [x], (*lead, *(builder.new_name() for _ in wanted)), hint)
    cut = CutTo(wanted, lower=windows.auto != "SAME_UPPER")
    builder.bind(node, builder.add(cut, [whole], (*lead, *wanted), f"{hint}.cut"))


def _write_conv_transpose(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
    graph.check_batch(x)
    shape = graph.shape_after(layer, x)
    pads = each_axis("ConvTranspose", "padding", layer.padding, layer.axes, 0)
    pairs = list(zip(pads, layer.output_padding, strict=True))
    if any(extra - pad >= step for (pad, extra), step in zip(pairs, layer.stride, strict=True)):
        return _beyond_reach(graph, layer, x, pairs)
    options = {
        "kernel_shape": layer.kernel_size,
        "strides": layer.stride,
        # less padding at the end is more output: onnxruntime takes no output_padding of a stride or more
        "pads": (*pads, *(max(pad - extra, 0) for pad, extra in pairs)),
        "output_padding": tuple(max(extra - pad, 0) for pad, extra in pairs),
        "dilations": layer.dilation,
        "group": layer.groups,
    }
    return graph.node("ConvTranspose", x, *graph.weights(layer), shape=shape, **options)


def _beyond_reach(graph: OnnxGraph, layer: Any, x: Edge, pairs: list[tuple[int, int]]) -> Edge:
    """A transposed convolution whose output padding is more than a stride: zeros after all that an input reaches."""
    options: dict[str, Any] = {"kernel_shape": layer.kernel_size, "strides": layer.stride}
    geometry = zip(x.shape[2:], layer.stride, layer.dilation, layer.kernel_size, strict=True)
    sizes = [(size - 1) * step + spread * (taps - 1) + 1 for size, step, spread, taps in geometry]
    weight, bias = graph.weights(layer)
    y = graph.node(
        "ConvTranspose", x, weight, shape=[x.shape[0], layer.out_channels, *sizes],
        dilations=layer.dilation, group=layer.groups, **options,
    )  # fmt: skip
    y = padded(graph, y, {axis: ConvAxis(after=extra) for axis, (_, extra) in enumerate(pairs, start=2)})
    y = sliced(graph, y, {axis: (pad, y.shape[axis] - pad, 1) for axis, (pad, _) in enumerate(pairs, start=2) if pad})
    return y if bias is None else graph.node("Add", y, graph.spread(bias, y.ndim))


ROWS = (
    Operator(
        "Conv", _read_conv, dict.fromkeys((*_KINDS.values(), nn.ConvNd), _write_conv), inputs=(2, 3), double=False
    ),
    Operator(
        "ConvTranspose",
        _read_conv_transpose,
        dict.fromkeys((*_TRANSPOSED.values(), nn.ConvTransposeNd), _write_conv_transpose),
        inputs=(2, 3),
        double=False,
    ),
)
