"""Resizing: options are constants, sizes of the input may be unknown."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray.files.errors import Malformed
from growarray.nn.resize import Resize
from growarray.onnx.build import Builder
from growarray.onnx.fold import positive_axes
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, OnnxGraph
from growarray.onnx.operators.row import Operator
from growarray.onnx.operators.window import MOST
from growarray.onnx.value import known_axes


def _floats(builder: Builder, node: OpNode, index: int, what: str) -> list[float]:
    if not builder.has(node, index):
        return []
    return [float(value) for value in builder.constant(node, index, what).array.reshape(-1)]


def _read(builder: Builder, node: OpNode) -> None:
    """Since opset 11 with regions and sizes; ``Upsample`` and opset 10 have factors alone."""
    x, get, old = builder.dynamic(node, 0), node.get, node.op == "Upsample" or builder.opset < 11
    shape = list(known_axes(x))
    sizes: tuple[int, ...] = ()
    if old:
        factors = get("scales", "floats") or _floats(builder, node, 1, "scales")
        transform, rounding, region = "asymmetric", "floor", []
    else:
        region, factors = _floats(builder, node, 1, "roi"), _floats(builder, node, 2, "scales")
        sizes = builder.whole_numbers(node, 3, "sizes") if builder.has(node, 3) else ()
        transform = get("coordinate_transformation_mode", "string", "half_pixel")
        rounding = get("nearest_mode", "string", "round_prefer_floor")
    axes = positive_axes(tuple(get("axes", "ints", list(range(len(shape))))), len(shape))
    options: dict[str, Any] = {"transform": transform, "rounding": rounding, "region": region or None}
    options |= {"mode": get("mode", "string", "nearest"), "cubic": get("cubic_coeff_a", "float", -0.75)}
    options |= {"exclude": node.flag("exclude_outside"), "antialias": node.flag("antialias")}
    options |= {"policy": get("keep_aspect_ratio_policy", "string", "stretch")}
    options |= {"outside": get("extrapolation_value", "float", 0.0)}
    if options["policy"] != "stretch" and not all(isinstance(shape[axis], int) for axis in axes):
        raise Malformed(f"keeps the proportions of an input of shape {x.shape}; export the model with fixed sizes")
    if any(not 0 < f <= MOST for f in factors) or any(not 0 < n <= MOST for n in sizes):
        raise Malformed(f"scales are {factors} and sizes {sizes}; expected numbers from above 0 to {MOST}")
    options["mode"] = {"bilinear": "linear"}.get(options["mode"], options["mode"])
    layer = Resize(axes, factors=factors or None, sizes=sizes or None, **options)
    for i, axis in enumerate(axes):
        own = shape[axis]
        if sizes and options["policy"] == "stretch":
            shape[axis] = sizes[i]
        elif factors and factors[i] != 1.0:
            shape[axis] = math.floor(own * factors[i]) if isinstance(own, int) else builder.new_name()
    if options["policy"] != "stretch":
        for axis, (count, _) in zip(axes, layer.counts([int(shape[axis]) for axis in axes]), strict=True):
            shape[axis] = count
    builder.bind_module(node, layer, [x], tuple(shape))


def _write(graph: OnnxGraph, layer: Resize, x: Edge) -> Edge:
    """Every axis is written, with its size if it is fixed, else with its factor."""
    shape = graph.shape_after(layer, x)
    axes = [axis % x.ndim for axis in layer.axes]
    mode, transform, rounding, cubic, exclude, antialias = layer.options
    if (graph.opset < 18 and antialias) or (graph.opset < 19 and transform == "half_pixel_symmetric"):
        raise graph.refuse(f"Resize has no such option in operator set {graph.opset}")
    if graph.dtype != np.float32:
        raise graph.refuse(f"Resize takes scales in float32 only, the file has {graph.dtype}; pass dtype='float32'")
    if x.batch in axes and layer.factors is None:
        raise graph.refuse("it resizes the batch; pass dynamic_batch=False")
    region = dict(zip(axes, zip(layer.region[: len(axes)], layer.region[len(axes) :], strict=True), strict=True))
    ends = [region.get(i, (0.0, 1.0)) for i in range(x.ndim)]
    roi = graph.constant([float(start) for start, _ in ends] + [float(end) for _, end in ends])
    options: dict[str, Any] = {
        "coordinate_transformation_mode": transform,
        "mode": mode,
        "extrapolation_value": layer.outside,
    }
    options |= {"nearest_mode": rounding, "cubic_coeff_a": cubic, "exclude_outside": int(exclude)}
    options |= {"antialias": 1} if antialias else {}
    if layer.factors is None and x.batch is None:
        return graph.node("Resize", x, roi, None, graph.integers(shape), shape=shape, **options)
    factors = dict(zip(axes, layer.factors or (), strict=False))
    scales = [factors.get(i, shape[i] / x.shape[i]) for i in range(x.ndim)]
    return graph.node("Resize", x, roi, graph.constant(scales), shape=shape, **options)


ROWS = (
    Operator("Resize", _read, {Resize: _write}, inputs=(1, 4)),
    Operator("Upsample", _read, inputs=(1, 2)),
)
