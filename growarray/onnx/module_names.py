"""Names of a network's modules: those of their weights in the file, else of its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from growarray.nn.graph import Node
from growarray.onnx.graph import LEAVES, OpNode, layer_name, node_name
from growarray.onnx.value import Constant

_LONGEST = 200


class ModuleNames:
    """The names that modules of one network have so far."""

    def __init__(self) -> None:
        self._copies: dict[str, int] = {}  # by name: how many were numbered after it
        self._bases: dict[str, str] = {}  # numbered names without their number
        self._of_weights: set[str] = set()
        self._bare: set[str] = set()  # weights that are named without a layer, such as 'weight'

    def preferred(self, node: OpNode, weight: Constant | None = None) -> str:
        """The name of a module for a node: that of its weight, of the node, or of the operator."""
        if weight is None:
            return node_name(node)
        name = layer_name(weight.label)
        if name in LEAVES:
            self._bare.add(name)
        if name not in ("", weight.label):
            self._of_weights.add(name)
        return name or node_name(node).removesuffix(f".{node.op}")

    def is_of_weight(self, name: str) -> bool:
        """Whether a module has its name from its weight, which is the best name."""
        return self._bases.get(name, name) in self._of_weights

    def unique(self, preferred: str) -> str:
        """A name that no module has yet, numbered if another has it."""
        name = preferred if 0 < len(preferred) <= _LONGEST and preferred.isprintable() else "node"
        base = name
        while name in self._copies:
            self._copies[base] += 1
            name = f"{base}_{self._copies[base]}"
            self._bases[name] = base
        self._copies[name] = 0
        return name

    def renamed(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes of the network; a number comes off a name if the name itself has become free.

        A node alone with weights that name no layer has no name, so that they keep theirs.
        """
        taken = {node.name for node in nodes}
        bases = [self._bases.get(node.name, node.name) for node in nodes]
        bare = [base for base in bases if base in self._bare]
        result = []
        for node, base in zip(nodes, bases, strict=True):
            name = "" if bare == [base] else node.name if base in taken else base
            result.append(replace(node, name=name))
            taken.add(base)
        return result
