"""Which node of an ONNX model reads which initializer, and the graph's inputs and outputs; nothing is built or run.

Field numbers are those of ``onnx.proto`` (IR version 13). The tensors have been checked before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from growarray.files.errors import Malformed
from growarray.files.limits import Limits
from growarray.files.source import Source
from growarray.onnx.protobuf import BYTES, Field, GraphWire

_GRAPH, _NODE, _INITIALIZER, _INPUT, _OUTPUT = 7, 1, 5, 11, 12
_SUBGRAPHS = (6, 11)  # in AttributeProto: one graph, and several


class Use(NamedTuple):
    """One input of one node: its operator, its name or number, and which input, from 0."""

    operator: str
    node: str
    position: int


class Port(NamedTuple):
    """An input or output of the graph: axes are sizes, names, or ``'?'``; None if the file gives no shape."""

    name: str
    shape: tuple[int | str, ...] | None


@dataclass
class GraphOutline:
    """Inputs that are not initializers, outputs, number of nodes by operator, and uses by name of initializer."""

    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    operators: dict[str, int] = field(default_factory=dict)
    uses: dict[str, list[Use]] = field(default_factory=dict)


def outline_graph(source: Source, limits: Limits, initializers: Collection[str]) -> GraphOutline:
    """The outline of the model in ``source``. Nodes in the bodies of ``If`` and ``Loop`` are looked at too."""
    return _Walker(source, limits, set(initializers)).model()


class _Walker:
    """Walks through the nodes of one model."""

    def __init__(self, source: Source, limits: Limits, initializers: set[str]) -> None:
        self.limits = limits
        self.initializers = initializers
        self.wire = GraphWire(source, limits)
        self.found = GraphOutline()

    def model(self) -> GraphOutline:
        for part in self.wire.fields(0, len(self.wire.data)):
            if part.number == _GRAPH:
                self._graph(part, self.initializers, "", 1)
                self._ports(part)
        return self.found

    def _ports(self, graph: Field) -> None:
        """Inputs and outputs of the outer graph; an initializer listed as an input does not count."""
        for part in self.wire.parts(graph):
            if part.number in (_INPUT, _OUTPUT):
                info = self.wire.value_info(part)
                port = Port(info.name, info.shape)
                if part.number == _OUTPUT:
                    self.found.outputs.append(port)
                elif port.name not in self.initializers:
                    self.found.inputs.append(port)

    def _graph(self, message: Field, visible: set[str], place: str, depth: int) -> None:
        """Nodes of a graph; ``visible`` are initializers of the model that no name of an inner graph hides."""
        if depth > self.limits.depth:
            raise Malformed(f"graphs are nested deeper than {self.limits.depth} (Limits.depth)")
        if depth > 1:
            visible = visible - set(self._names(message))
        nodes = (part for part in self.wire.parts(message) if part.number == _NODE)
        for index, node in enumerate(nodes):
            self._node(node, visible, place, index, depth)

    def _names(self, message: Field) -> Iterator[str]:
        """Names that an inner graph gives itself: inputs, initializers and results."""
        for part in self.wire.parts(message):
            if part.number in (_INPUT, _INITIALIZER, _NODE):
                number = {_INPUT: 1, _INITIALIZER: 8, _NODE: 2}[part.number]
                yield from (self.wire.name(inner) for inner in self.wire.parts(part) if inner.number == number)

    def _node(self, message: Field, visible: set[str], place: str, index: int, depth: int) -> None:
        inputs, operator, name, bodies = [], "", "", []
        for part in self.wire.parts(message):
            if part.number == 1:
                inputs.append(self.wire.name(part))
            elif part.number == 3:
                name = self.wire.name(part)
            elif part.number == 4:
                operator = self.wire.name(part)
            elif part.number == 5:
                bodies += [
                    inner for inner in self.wire.parts(part) if inner.number in _SUBGRAPHS and inner.wire == BYTES
                ]
        self.found.operators[operator] = self.found.operators.get(operator, 0) + 1
        full = place + (name or f"number {index}")
        for position, text in enumerate(inputs):
            if text in visible:
                self.found.uses.setdefault(text, []).append(Use(operator, full, position))
        for body in bodies:
            self._graph(body, visible, f"{full}/", depth + 1)
