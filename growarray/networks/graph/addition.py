"""Where a graph may grow: what would be added, what reads it, and what it costs."""

from __future__ import annotations

from enum import Enum
from typing import Any

from growarray.errors import GrowthError, shown
from growarray.networks.graph.features import Features
from growarray.networks.graph.reading import Reading
from growarray.networks.graph.structure import Edge, arrow
from growarray.nn import Module


class ExpansionType(Enum):
    """What an expansion adds."""

    NEW_EDGE = "new edge"
    NEW_NODE = "new node"
    EXPANDED_NODE = "wider node"


class Addition:
    """An edge, a node with two edges, or more neurons in a node; nothing of it is in the graph.

    previous_node, next_node : of a new edge or node    expanding_node : the new or the wider node
    """

    def __init__(
        self,
        dag: Any,
        exp_type: ExpansionType,
        previous_node: str | None = None,
        next_node: str | None = None,
        expanding_node: str | None = None,
    ) -> None:
        if not isinstance(exp_type, ExpansionType):
            raise GrowthError(f"Expansion: exp_type must be an ExpansionType, found {shown(exp_type)}")
        wider, edge = exp_type is ExpansionType.EXPANDED_NODE, exp_type is ExpansionType.NEW_EDGE
        needed = {"previous_node": not wider, "next_node": not wider, "expanding_node": not edge}
        given = {"previous_node": previous_node, "next_node": next_node, "expanding_node": expanding_node}
        for name, value in given.items():
            if (value is not None) != needed[name]:
                raise GrowthError(
                    f"Expansion: a {exp_type.value} {'needs' if needed[name] else 'takes no'} {name}, "
                    f"found {shown(value)}"
                )
        self.dag, self.type = dag, exp_type
        self.previous_node, self.next_node, self.expanding_node = previous_node, next_node, expanding_node
        for node in (*self.previous_nodes, *self.next_nodes):
            dag.get_node_module(node)
        self.delete_update()

    def delete_update(self) -> None:
        """Forget what is planned."""

    @property
    def previous_nodes(self) -> list[str]:
        """The nodes that new weights read."""
        return [self.previous_node] if self.previous_node else self.dag.predecessors(self.expanding_node)

    @property
    def next_nodes(self) -> list[str]:
        """The nodes whose sums they add to."""
        return [self.next_node] if self.next_node else self.dag.successors(self.expanding_node)

    @property
    def new_edges(self) -> list[Edge]:
        """The edges that get new weights."""
        if self.is_edge:
            return [(str(self.previous_node), str(self.next_node))]
        node = str(self.expanding_node)
        return [*((before, node) for before in self.previous_nodes), *((node, after) for after in self.next_nodes)]

    def __str__(self) -> str:
        names = [str(node).split("@")[0] for node in (self.expanding_node, self.previous_node, self.next_node) if node]
        ends = [arrow((names[-2], names[-1]))] if self.previous_node else []
        return f"{self.type.value} {': '.join([*([] if self.is_edge else names[:1]), *ends])}"

    __repr__ = __str__
    name = widens = property(__str__, doc="What it adds, and where.")

    @property
    def is_edge(self) -> bool:
        """Whether it adds an edge, and no neurons."""
        return self.type is ExpansionType.NEW_EDGE

    @property
    def front(self) -> Features:
        """What new neurons read, or a new edge; with ones if they get biases."""
        dag, before, after = self.dag, str(self.previous_node), str(self.next_node)
        if self.type is ExpansionType.EXPANDED_NODE:
            return dag.reads(self.expanding_node)  # type: ignore[no-any-return]
        if self.is_edge:
            ones = dag.use_bias and not dag.reads(after).ones
            return Features(((before, self.read_by(after)),), ones, dag.shape_of(after))
        return Features(((before, dag.new_reading(before, before)),), dag.use_bias, dag.shape_of(before))

    def read_by(self, node: str) -> Reading:
        """How a next node reads the new neurons, or what an edge leads to it."""
        if self.type is ExpansionType.EXPANDED_NODE:
            return self.dag.reading(self.expanding_node, node)  # type: ignore[no-any-return]
        return self.dag.new_reading(self.previous_node, node)  # type: ignore[no-any-return]

    @property
    def function_before(self) -> Module:
        """The activation of new neurons."""
        if self.type is ExpansionType.EXPANDED_NODE:
            return self.dag.merges[self.expanding_node].post_merge_function  # type: ignore[no-any-return]
        return self.dag.function_of_new_nodes(self.front.shape)  # type: ignore[no-any-return]

    @property
    def sampled_as(self) -> str | None:
        """Name of the candidates for its neurons, shared by expansions with the same input and function."""
        return None if self.is_edge else f"{self.front} {self.function_before!r}"

    @property
    def changed_layers(self) -> list[Any]:
        """The layers that growth changes: those into its next nodes, and into a wider node."""
        into = [node for node in (*self.next_nodes, self.expanding_node) if node in self.dag.merges]
        return [layer for node in into for layer in self.dag.merges[node].previous_modules]

    @property
    def _read(self) -> int:
        """Weights that a new neuron has for what it reads, or an output for what an edge leads to it."""
        return sum(int(self.dag.merges[node].in_features) * reading.taps for node, reading in self.front.parts)

    @property
    def _goals(self) -> list[int]:
        """Outgoing weights of a new neuron for each next node."""
        taps = [1 if self.is_edge else self.read_by(node).taps for node in self.next_nodes]
        return [self.dag.merges[node].in_features * count for node, count in zip(self.next_nodes, taps, strict=True)]

    @property
    def parameters_per_neuron(self) -> int:
        """Scalars that one more neuron costs, or the whole edge."""
        before, after, biases = self._read, sum(self._goals), int(self.front.ones)
        if self.is_edge:
            return (before + biases) * after
        if self.type is ExpansionType.EXPANDED_NODE:
            biases = sum(int(layer.use_bias) for layer in self.dag.merges[self.expanding_node].previous_modules)
        return before + biases + after + self.function_before.parameters_per_feature

    @property
    def in_neurons(self) -> int:
        """Neurons of the node that gets wider, 0 of what is new."""
        wider = self.type is ExpansionType.EXPANDED_NODE
        return int(self.dag.merges[self.expanding_node].in_features) if wider else 0
