"""Containers, and growing layers, merges and networks: what they compute, not what is planned for them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray import nn
from growarray.backend import to_numpy
from growarray.growing import (
    Adapter,
    Conv1dGrowingModule,
    Conv2dGrowingModule,
    Conv3dGrowingModule,
    FullConv2dGrowingModule,
    GrowingModule,
    LinearGrowingModule,
    MergeGrowingModule,
    RestrictedConv2dGrowingModule,
)
from growarray.networks import (
    Conv2dGrowingBlock,
    GrowingAttention,
    GrowingBlock,
    GrowingDAG,
    GrowingMLP,
    GrowingResidualMLP,
    GrowingResNet,
    GrowingTransformerBlock,
    GrowingVGG,
    LinearGrowingBlock,
)
from growarray.networks.block import GrowingResidualBlock
from growarray.networks.graph.structure import arrow
from growarray.networks.network import GrowingNetwork
from growarray.networks.scale import Scale
from growarray.nn.graph import Graph
from growarray.nn.module import Module
from growarray.onnx.lower import Edge, Lowering, OnnxGraph
from growarray.onnx.model import DATA_TYPES, Node
from growarray.onnx.operators.attention import attended


def _graph(graph: OnnxGraph, network: Graph, *inputs: Edge) -> Any:
    if len(inputs) != len(network.inputs):
        raise TypeError(
            f"to_onnx: {graph.where} has the inputs {', '.join(network.inputs)}, found {len(inputs)} input shapes"
        )
    values = dict(zip(network.inputs, inputs, strict=True))
    for node in network.nodes:
        values[node.output] = graph.lower(node.name, node.module, *(values[name] for name in node.inputs))
    found = tuple(values[name] for name in network.outputs)
    return found[0] if len(found) == 1 else found


def _sequential(graph: OnnxGraph, layer: nn.Sequential, x: Edge) -> Edge:
    for name, child in zip((str(i) for i in range(len(layer))), layer, strict=True):
        x = graph.lower(name, child, x)
    return x


def _layer(graph: OnnxGraph, layer: GrowingModule, x: Edge) -> Any:
    return graph.lower("post_layer_function", layer.post_layer_function, graph.lower("layer", layer.layer, x))


def _adapter(graph: OnnxGraph, layer: Adapter, x: Edge) -> Any:
    return graph.lower("", layer.merge(), x)


def _merge(graph: OnnxGraph, merge: MergeGrowingModule, x: Edge) -> Any:
    return graph.lower("post_merge_function", merge.post_merge_function, x)


def _block(graph: OnnxGraph, block: GrowingResidualBlock, x: Edge) -> Any:
    branch = graph.lower("second", block.second, graph.lower("first", block.first, x))
    return graph.lower("merge", block.merge, graph.node("Add", branch, graph.lower("shortcut", block.shortcut, x)))


def _growing_block(graph: OnnxGraph, block: GrowingBlock, x: Edge) -> Any:
    if not block.hidden_neurons:  # the branch is the same for every input
        same = graph.run(nn.Sequential(block.pre_activation, block.first_layer, block.second_layer), x)[:1, ...]
        return graph.node("Add", graph.lower("downsample", block.downsample, x), graph.constant(to_numpy(same)))
    branch = x
    for name in ("pre_activation", "first_layer", "second_layer"):
        branch = graph.lower(name, getattr(block, name), branch)
    return graph.node("Add", branch, graph.lower("downsample", block.downsample, x))


def _heads(graph: OnnxGraph, layer: GrowingAttention, x: Edge) -> Any:
    graph.check_batch(x)
    total: Any = None
    for h, parts in enumerate(zip(layer.query, layer.key, layer.value, layer.output, strict=True)):
        query, key, value, output = parts
        u = graph.lower(f"key.{h}", key, graph.lower(f"query.{h}", query, x))
        seen = attended(graph, u, x, x, layer.scale, layer.causal)
        part = graph.lower(f"output.{h}", output, graph.lower(f"value.{h}", value, seen))
        total = part if total is None else graph.node("Add", total, part)
    return total


def _transformer(graph: OnnxGraph, block: GrowingTransformerBlock, x: Edge) -> Any:
    z = graph.node("Add", x, graph.lower("attention", block.attention, graph.lower("norm1", block.norm1, x)))
    hidden = graph.lower("first", block.first, graph.lower("norm2", block.norm2, z))
    return graph.node("Add", z, graph.lower("second", block.second, hidden))


def _dag(graph: OnnxGraph, network: GrowingDAG, x: Edge) -> Any:
    """Write a graph: the sum of its edges at every node, in the order of computation."""
    values: dict[str, Any] = {network.root: _flat(graph, network, x)}
    for node in network.order:
        merge, total = network.merges[node], values.get(node)
        for source in network.predecessors(node):
            edge = arrow((source, node))
            function, value = network.reading(source, node).function, values[source]
            value = value if function is None else graph.lower(f"layers.{edge}", function, value)
            value = graph.lower(f"layers.{edge}", network.layers[edge], value)
            total = value if total is None else graph.node("Add", total, value)
        if total is None:
            raise TypeError(f"to_onnx: {graph.where}: no edge leads into node {node}; add one, or remove the node")
        values[node] = graph.lower(f"merges.{node}", merge, total)
    return values[network.end]


def _flat(graph: OnnxGraph, network: GrowingNetwork, x: Edge) -> Any:
    if network.image is not None and x.shape[1:] != network.image:
        return graph.reshape(x, (x.shape[0], *network.image))
    if not network.flatten or x.ndim == 2:
        return x
    graph.check_batch(x)
    return graph.reshape(x, (x.shape[0], math.prod(x.shape[1:])))


def _scale(graph: OnnxGraph, scale: Scale, x: Edge) -> Any:
    """Write a scale in double precision, in which the module computes, whatever the dtype of the graph."""
    own, wide = DATA_TYPES[graph.dtype.name], DATA_TYPES["float64"]
    x = graph.node("Cast", x, to=wide)
    for op, values in (("Sub", scale.offset), ("Mul", scale.factor)):
        name = graph.unique(f"{x.name}/{op}/Constant")
        graph.nodes.append(Node("Constant", [], [name], name, {"value": np.asarray(values, np.float64)}))
        x = graph.node(op, x, Edge(name, tuple(values.shape), None))
    return graph.node("Cast", x, to=own)


def _network(graph: OnnxGraph, network: GrowingNetwork, x: Edge) -> Any:
    names = {id(child): name for name, child in network.children()}
    x = _flat(graph, network, x)
    chain: list[Any] = network.chain
    for module in chain:
        x = graph.lower(names[id(module)], module, x)
    return x


WRITES: dict[type[Module], Lowering] = {
    Adapter: _adapter,
    Graph: _graph,
    GrowingAttention: _heads,
    GrowingDAG: _dag,
    GrowingNetwork: _network,
    GrowingResidualBlock: _block,
    GrowingTransformerBlock: _transformer,
    MergeGrowingModule: _merge,
    Scale: _scale,
    nn.Sequential: _sequential,
    **dict.fromkeys((GrowingMLP, GrowingResidualMLP, GrowingResNet, GrowingVGG), _network),
    **dict.fromkeys((GrowingBlock, LinearGrowingBlock, Conv2dGrowingBlock), _growing_block),
    **dict.fromkeys((LinearGrowingModule, RestrictedConv2dGrowingModule, FullConv2dGrowingModule), _layer),
    **dict.fromkeys((Conv1dGrowingModule, Conv2dGrowingModule, Conv3dGrowingModule), _layer),
}
"""What writes each class of module that is made of others."""
