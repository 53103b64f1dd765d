"""What layers are called: after the weights and the nodes of the file."""

from __future__ import annotations

from growarray.onnx.graph import OpNode

LEAVES = ("weight", "bias", "kernel", "gamma", "beta", "scale", "running_mean", "running_var", "value", "alpha")
"""What exporters call the weights of a layer."""


def layer_name(label: str) -> str:
    """The layer that a weight of this name belongs to, ``''`` if the name does not tell.

    >>> layer_name("features.0.weight"), layer_name("onnx::Conv_17")
    ('features.0', '')
    """
    label = label.partition(":")[0] if not label.startswith("onnx::") else ""
    for mark in "./":
        layer, _, leaf = label.rpartition(mark)
        if layer and leaf in LEAVES:
            return layer.strip("/").replace("/", ".")
    computed = label.startswith(("/", "val_"))  # as exporters of torch call what they computed
    return "" if computed or not label.replace("_", "").replace(".", "").isalnum() else label


def node_name(node: OpNode) -> str:
    """The scope that an exporter writes into the name of a node, or the operator and a number.

    >>> node_name(OpNode(op="Relu", name="/layer1/layer1.0/relu/Relu"))
    'layer1.0.relu'
    """
    parts = [part for part in node.name.split("/") if part]
    if len(parts) > 1 and parts[-1].startswith(node.op) and parts[-2].rpartition(".")[2].lower() == node.op.lower():
        parts.pop()
    kept = [part for part, after in zip(parts, [*parts, ""][1:], strict=True) if not after.startswith(f"{part}.")]
    return ".".join(kept) or f"{node.op}_{node.index}"
