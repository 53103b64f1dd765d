"""The parts of a graph: a merge of features or of images at a node, a linear layer or a convolution on an edge."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from growarray.errors import shown
from growarray.growing import (
    Conv2dMergeGrowingModule,
    FullConv2dGrowingModule,
    LinearGrowingModule,
    LinearMergeGrowingModule,
)
from growarray.growing.norm import GrowingLayerNorm
from growarray.networks.graph.reading import POOLS, AsWindows, Images, Reading
from growarray.nn import Identity, Module, Sequential
from growarray.nn import activation as activation_named
from growarray.ops.sizes import whole_number

NODE_TYPES = ("linear", "convolution")
Merge = LinearMergeGrowingModule | Conv2dMergeGrowingModule
Layer = LinearGrowingModule | FullConv2dGrowingModule


def new_merge(node: str, attributes: Mapping[str, Any], inner: bool, dtype: Any) -> tuple[Merge, dict[str, Any]]:
    """The merge of a node, and what it was made of but for its size; an ``inner`` one may get wider.

    Raises KeyError if there is no size, or no shape of images; NotImplementedError for another type.
    """
    if "size" not in attributes:
        raise KeyError(f"GrowingDAG: node {node} needs a size, for example {{'size': 4}}")
    kind = attributes.get("type", "linear")
    if kind not in NODE_TYPES:
        raise NotImplementedError(
            f"GrowingDAG: node {node} has the type {shown(kind)}; supported: {', '.join(map(repr, NODE_TYPES))}"
        )
    kept = {name: attributes[name] for name in ("activation", "use_layer_norm")}
    size = whole_number("GrowingDAG", f"size of {node}", attributes["size"], 0)
    options: dict[str, Any] = {"allow_growing": inner, "name": node}
    if kind == "linear":
        function = node_function(size, **kept, shape=(), dtype=dtype)
        return LinearMergeGrowingModule(function, in_features=size, **options), kept
    images = Images.of(node, {"kernel_size": 3, "pool": "flatten", **attributes})
    function = node_function(size, **kept, shape=images.shape, dtype=dtype)
    merge = Conv2dMergeGrowingModule(size, images.shape, images.kernel, function, POOLS[images.pool], **options)
    return merge, kept | images.described()


def node_function(
    size: int, activation: str | Module, use_layer_norm: bool, shape: tuple[int, ...], dtype: Any
) -> Module:
    """What a node of this width applies to its sum."""
    function = copy.deepcopy(activation) if isinstance(activation, Module) else None
    if function is None:
        function = Identity() if activation == "id" else activation_named(str(activation))
    if not use_layer_norm:
        return function
    return Sequential(GrowingLayerNorm((size, *shape), elementwise_affine=False, dtype=dtype), function)


def new_layer(reading: Reading, channels: int, outputs: int, **options: Any) -> Layer:
    """The layer of an edge that reads so many channels."""
    if isinstance(reading, AsWindows):
        return FullConv2dGrowingModule(
            channels, outputs, reading.kernel, *reading.geometry, input_size=reading.shape, **options
        )
    return LinearGrowingModule(channels * reading.taps, outputs, **options)


def described(layer: Layer) -> dict[str, Any]:
    """The attributes of an edge, from which :func:`new_layer` takes how to read, and whether to have a bias."""
    names = ("kernel_size", "stride", "padding", "dilation") if isinstance(layer, FullConv2dGrowingModule) else ()
    geometry = {name: getattr(layer, name) for name in names}
    return {"type": NODE_TYPES[layer.spatial], "use_bias": layer.use_bias, **geometry}
