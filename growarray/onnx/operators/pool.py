"""Pools: one operator if it means the same, else with padding, weights, or a product with a matrix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray import nn
from growarray.contraction.geometry import ConvAxis
from growarray.files.errors import Malformed
from growarray.nn.reduce import Reduce, ReduceMean
from growarray.nn.sized import SamePool
from growarray.onnx.build import Builder
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, OnnxGraph
from growarray.onnx.operators.row import Operator
from growarray.onnx.operators.window import Windows, padded, write_fitted
from growarray.onnx.value import Dim
from growarray.ops.pool import PoolAxis, adaptive_sizes, pool_axes

_MAX: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVERAGE: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_ADAPTIVE: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


def _read(builder: Builder, node: OpNode, kinds: dict[int, Any], **options: Any) -> None:
    """A pooling layer; padding that torch does not allow is given as pairs."""
    x = builder.dynamic(node, 0)
    kernel = node.get("kernel_shape", "ints")
    if not kernel or len(kernel) not in kinds:
        raise Malformed(f"kernel_shape is {kernel}; expected 1, 2 or 3 numbers")
    windows = Windows(node, x, kernel)
    windows.ceil_mode = node.flag("ceil_mode")
    pads = windows.pads()
    usual = all(before == after and 2 * before <= k for (before, after), k in zip(pads, kernel, strict=True))
    padding: Any = 0 if windows.open else tuple(before for before, _ in pads) if usual else tuple(pads)
    options |= {"dilation": windows.dilation, "ceil_mode": windows.ceil_mode}
    module = kinds[len(kernel)](windows.kernel, windows.stride, padding, **options)
    if windows.open:
        module = SamePool(module, windows.reach, windows.stride, lower=windows.lower)
    lead: tuple[Dim, ...] = (builder.new_name(), builder.new_name()) if x.shape is None else x.shape[:2]
    builder.bind_module(node, module, [x], (*lead, *windows.outputs(builder, pads)))


def _read_max_pool(builder: Builder, node: OpNode) -> None:
    """The order of its indices does not matter, for they are not given."""
    node.get("storage_order", "int")
    _read(builder, node, _MAX)


def _read_average_pool(builder: Builder, node: OpNode) -> None:
    _read(builder, node, _AVERAGE, count_include_pad=node.flag("count_include_pad"))


def _read_global(builder: Builder, node: OpNode) -> None:
    x = builder.dynamic(node, 0)
    if x.shape is None or len(x.shape) < 3:
        raise Malformed("input has no known spatial axes; export the model with shapes")
    count = len(x.shape) - 2
    axes = tuple(range(2, count + 2))
    if node.op == "GlobalMaxPool":
        module: Any = Reduce("Max", axes)
    else:
        module = _ADAPTIVE[count](1) if count in _ADAPTIVE else ReduceMean(axes)
    builder.bind_module(node, module, [x], (*x.shape[:2], *(1,) * count))


def _missing(axes: tuple[PoolAxis, ...], sizes: tuple[int, ...], outs: tuple[int, ...]) -> list[int]:
    """Positions that the last window of each axis needs after the input: padding, and what ceil_mode adds."""
    ends = zip(axes, sizes, outs, strict=True)
    return [max((out - 1) * a.stride + a.reach - a.padding - size, 0) for a, size, out in ends]


def _widened(graph: OnnxGraph, x: Edge, axes: tuple[PoolAxis, ...], after: list[int], value: float) -> Edge:
    """The input with its padding made explicit."""
    by = {i: ConvAxis(before=a.padding, after=end) for i, (a, end) in enumerate(zip(axes, after, strict=True), start=2)}
    return padded(graph, x, by, value)


def _options(axes: tuple[PoolAxis, ...], pads: tuple[int, ...]) -> dict[str, Any]:
    options = {"kernel_shape": tuple(a.kernel for a in axes), "strides": tuple(a.stride for a in axes), "pads": pads}
    dilations = tuple(a.dilation for a in axes)
    return options if set(dilations) == {1} else {**options, "dilations": dilations}


def _narrow(axes: tuple[PoolAxis, ...], after: list[int]) -> bool:
    """Whether there is less padding than taps on every side, as runtimes want it."""
    return all(max(a.padding, end) < a.kernel for a, end in zip(axes, after, strict=True))


def _write_max_pool(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
    graph.check_batch(x)
    shape = graph.shape_after(layer, x)
    axes = pool_axes("MaxPool", x.ndim - 2, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    after = _missing(axes, x.shape[2:], shape[2:])
    pads = (*(a.padding for a in axes), *after)
    if not _narrow(axes, after) or _some_window_is_padding(axes, x, shape):
        x, pads = _widened(graph, x, axes, after, -math.inf), (0,) * len(pads)
    return graph.node("MaxPool", x, shape=shape, **_options(axes, pads))


def _some_window_is_padding(axes: tuple[PoolAxis, ...], x: Edge, shape: tuple[int, ...]) -> bool:
    for a, size, out in zip(axes, x.shape[2:], shape[2:], strict=True):
        met = np.zeros(out, bool)
        for windows, _ in a.taps(size, out):
            met[windows] = True
        if not met.all():
            return True
    return False


def _write_average_pool(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
    graph.check_batch(x)
    shape = graph.shape_after(layer, x)
    axes = pool_axes("AvgPool", x.ndim - 2, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    if any(a.dilation != 1 for a in axes) and graph.opset < 19:
        raise graph.refuse(f"AveragePool has dilation from operator set 19 on, opset is {graph.opset}")
    after = _missing(axes, x.shape[2:], shape[2:])
    inside = all(end <= a.behind and a.dilation == 1 for a, end in zip(axes, after, strict=True))
    if inside and _narrow(axes, after) and layer.divisor_override is None:
        pads = (*(a.padding for a in axes), *after)
        options = {**_options(axes, pads), "count_include_pad": int(layer.count_include_pad)}
        return graph.node("AveragePool", x, shape=shape, **options)
    # Runtimes disagree about the divisor of windows that leave the padded input: means over whole windows, corrected.
    wide = _widened(graph, x, axes, after, 0.0)
    means = graph.node("AveragePool", wide, shape=shape, **_options(axes, (0,) * 2 * len(axes)))
    if wide is x and layer.divisor_override is None:
        return means
    return graph.node("Mul", means, graph.constant(_corrections(layer, axes, x.shape[2:], shape[2:])))


def _corrections(layer: Any, axes: tuple[PoolAxis, ...], sizes: tuple[int, ...], outs: tuple[int, ...]) -> np.ndarray:
    """Positions of a window over the divisor of each window, (1, 1, *windows)."""
    whole = math.prod(a.kernel for a in axes)
    if layer.divisor_override is not None:
        return np.asarray(whole / layer.divisor_override)
    divisor = np.ones((1, 1))
    for a, size, out in zip(axes, sizes, outs, strict=True):
        divisor = divisor[..., None] * np.asarray(a.counts(size, out, layer.count_include_pad))
    return whole / divisor


def _write_adaptive(graph: OnnxGraph, layer: Any, x: Edge) -> Edge:
    graph.check_batch(x)
    shape = graph.shape_after(layer, x)
    wanted = adaptive_sizes("AdaptiveAvgPool", x.ndim - 2, layer.output_size)
    if set(shape[2:]) == {1} and None not in wanted:
        return graph.node("GlobalAveragePool", x, shape=shape)
    even = [size // out if size % out == 0 else 1 for size, out in zip(x.shape[2:], shape[2:], strict=True)]
    if any(step > 1 for step in even):
        sizes = (*x.shape[:2], *(size // step for size, step in zip(x.shape[2:], even, strict=True)))
        x = graph.node("AveragePool", x, shape=sizes, kernel_shape=tuple(even), strides=tuple(even))
    for axis in range(2, x.ndim):
        if x.shape[axis] != shape[axis]:
            x = _averaged(graph, x, axis, shape[axis])
    return x


def _averaged(graph: OnnxGraph, x: Edge, axis: int, out: int) -> Edge:
    """Means of windows of unequal size along one axis, as a product with a matrix (out, size)."""
    size = x.shape[axis]
    matrix = np.zeros((out, size))
    for i in range(out):
        start, stop = i * size // out, -(-(i + 1) * size // out)
        matrix[i, start:stop] = 1.0 / (stop - start)
    lead, rest = x.shape[:axis], x.shape[axis + 1 :]
    columns = graph.reshape(x, (*lead, size, math.prod(rest)))
    product = graph.node("MatMul", graph.constant(matrix), columns, shape=(*lead, out, math.prod(rest)), batch=x.batch)
    return graph.reshape(product, (*lead, out, *rest))


ROWS = (
    Operator(
        "AveragePool",
        _read_average_pool,
        {**dict.fromkeys(_AVERAGE.values(), _write_average_pool), SamePool: write_fitted},
        double=False,
    ),
    Operator("GlobalAveragePool", _read_global, dict.fromkeys(_ADAPTIVE.values(), _write_adaptive), double=False),
    Operator("GlobalMaxPool", _read_global),
    Operator("MaxPool", _read_max_pool, dict.fromkeys(_MAX.values(), _write_max_pool), outputs=2),
)
