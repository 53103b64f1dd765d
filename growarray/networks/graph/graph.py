"""LayerGraph: merges as nodes and layers as edges, by name; adding, removing, renaming, and its description."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from growarray.backend import namespace
from growarray.errors import GrowthError, shown
from growarray.networks.graph.parts import NODE_TYPES, Layer, Merge, described, new_layer, new_merge, node_function
from growarray.networks.graph.reading import Images, Reading, reading_between
from growarray.networks.graph.structure import Edge, ancestors, arrow, in_order
from growarray.networks.network import GrowingNetwork
from growarray.networks.widths import check_widths
from growarray.nn import Module


class LayerGraph(GrowingNetwork):
    """A graph of layers: a merge at each node, of features or of images, and a layer on each edge.

    merges, layers : by the name of the node, and of the edge as ``first->second``
    """

    in_features: int
    out_features: int

    def __init__(
        self,
        ends: tuple[str, str],
        structure: Mapping[str, Any],
        *,
        use_bias: bool,
        use_layer_norm: bool,
        activation: str | Module,
        dtype: Any,
        device: str | None,
        rng: np.random.Generator,
    ) -> None:
        self.root, self.end = ends
        self.use_bias, self.use_layer_norm, self.activation = use_bias, use_layer_norm, activation
        self._kind: dict[str, Any] = {"device": device, "dtype": dtype, "rng": rng}
        self._attributes: dict[str, dict[str, Any]] = {}
        self.merges: dict[str, Merge] = {}
        self.layers: dict[str, Layer] = {}
        self._ends: dict[str, Edge] = {}
        self.restructure(structure)

    _held: ClassVar[tuple[str, ...]] = (
        "root", "end", "use_bias", "use_layer_norm", "activation", "merges", "layers", "_ends", "_attributes",
    )  # fmt: skip

    def _check_held(self) -> None:
        self._kind = {"device": None, "dtype": next((p.data.dtype for p in self.parameters()), None), "rng": None}
        self._connect()
        for edge, (source, target) in self._ends.items():
            layer, inputs = self.layers[edge], self.merges[source].in_features * self._readings[edge].taps
            check_widths(edge, inputs, [(layer.in_features, layer.out_features)], self.merges[target].in_features)

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes, in the order in which they were added."""
        return list(self.merges)

    @property
    def edges(self) -> list[Edge]:
        """Pairs of nodes, by their first node in the order of :attr:`nodes`."""
        return sorted(self._ends.values(), key=lambda edge: self.nodes.index(edge[0]))

    @property
    def order(self) -> list[str]:
        """The nodes in the order of computation: every edge leads forward."""
        return list(self._order)

    @property
    def ancestors(self) -> dict[str, frozenset[str]]:
        """For every node, itself and all nodes that it can be reached from."""
        return ancestors(self._order, self._ends.values())

    @property
    def signature(self) -> tuple[Any, ...]:
        """Nodes with their widths, and edges with how they read: what statistics and plans are made for."""
        return tuple((n, m.in_features) for n, m in self.merges.items()), tuple(self._readings.items())

    def predecessors(self, node: str) -> list[str]:
        """The nodes whose edges lead into ``node``."""
        return [edge[0] for edge in self._ends.values() if edge[1] == self._known(node)]

    def successors(self, node: str) -> list[str]:
        """The nodes that the edges of ``node`` lead to."""
        return [edge[1] for edge in self._ends.values() if edge[0] == self._known(node)]

    def images_of(self, node: str) -> Images | None:
        """What a node of images is; None for one of features."""
        attributes = self._attributes[node if node in self._attributes else self._known(node)]
        return Images.of(node, attributes) if "shape" in attributes else None

    def shape_of(self, node: str) -> tuple[int, ...]:
        """Height and width of the images at a node, () for features."""
        return self._shapes[self._known(node)]

    def reading(self, source: str, target: str) -> Reading:
        """How the edge between two nodes reads the first of them; if there is none, how a new one would."""
        known = self._readings.get(arrow((source, target)))
        return self.new_reading(source, target) if known is None else known

    def new_reading(self, source: str, target: str) -> Reading:
        """How a new edge between two nodes, or nodes like them, reads if nothing else is said.

        Raises ShapeError or NotImplementedError if there can be none.
        """
        if (source, target) not in self._new_readings:
            images = self.images_of(source), self.images_of(target)
            self._new_readings[source, target] = reading_between(arrow((source, target)), *images, {})
        return self._new_readings[source, target]

    def _may_read(self, source: str, target: str) -> bool:
        try:
            self.new_reading(source, target)
        except (ValueError, NotImplementedError):
            return False
        return True

    def get_node_module(self, node: str) -> Merge:
        """The merge at a node."""
        return self.merges[self._known(node)]

    def get_edge_module(self, prev_node: str, next_node: str) -> Layer:
        """The layer on an edge."""
        edge = arrow((self._known(prev_node), self._known(next_node)))
        if edge not in self.layers:
            raise GrowthError(f"GrowingDAG: there is no edge {edge}; its edges are {', '.join(self.layers) or 'none'}")
        return self.layers[edge]

    def _known(self, node: str) -> str:
        if node not in self.merges:
            raise GrowthError(f"GrowingDAG: there is no node {shown(node)}; its nodes are {', '.join(self.merges)}")
        return node

    def add_direct_edge(
        self,
        prev_node: str,
        next_node: str,
        edge_attributes: Mapping[str, Any] | None = None,
        zero_weights: bool = False,
    ) -> None:
        """Add a layer between two nodes; ``edge_attributes`` may say ``use_bias``.

        Between nodes of images they may say ``stride``, ``padding`` and ``dilation``; the kernel is the first node's.

        Raises GrowthError if a node does not exist, the edge does, or it would close a cycle; ShapeError if
        sizes of images do not fit together; NotImplementedError from features to images. Nothing has changed then.
        """
        edge = (self._known(prev_node), self._known(next_node))
        if arrow(edge) in self.layers:
            raise GrowthError(f"GrowingDAG: the edge {arrow(edge)} exists already; remove it first")
        self._check_edges(self.merges, [*self._ends.values(), edge])
        self.layers[arrow(edge)] = self._layer(edge, edge_attributes or {}, zero_weights)
        self._ends[arrow(edge)] = edge
        self._connect()

    def add_node_with_two_edges(
        self,
        prev_node: str,
        new_node: str,
        next_node: str,
        node_attributes: Mapping[str, Any],
        edge_attributes: Mapping[str, Any] | None = None,
        zero_weights: bool = False,
    ) -> None:
        """Add a node of ``node_attributes['size']`` between two others; its second edge has no bias.

        It is like the node before it, images of the same shape say, but for its attributes: ``type``, ``activation``,
        ``use_layer_norm``; of images ``shape``, ``kernel_size`` of the edges that read it, ``pool``.

        Raises GrowthError if a node does not exist, the new one does, or its edges would close a cycle, KeyError
        without a size; else as :meth:`add_direct_edge`. Nothing has changed then.
        """
        self._check_new(new_node)
        edges = [(self._known(prev_node), new_node), (new_node, self._known(next_node))]
        self._check_edges([*self.merges, new_node], [*self._ends.values(), *edges])
        attributes, like = edge_attributes or {}, self._like(prev_node)
        new = {new_node: self._merge(new_node, {**like, **node_attributes})}
        try:
            layers = [
                self._layer(edge, {**attributes, **more}, zero_weights, {**self.merges, **new})
                for edge, more in zip(edges, ({}, {"use_bias": False}), strict=True)
            ]
        except BaseException:
            del self._attributes[new_node]
            raise
        self.merges |= new
        self.layers |= {arrow(edge): layer for edge, layer in zip(edges, layers, strict=True)}
        self._ends |= {arrow(edge): edge for edge in edges}
        self._connect()

    def _like(self, node: str) -> dict[str, Any]:
        """Attributes of a new node after ``node``, besides those of every new node."""
        images = self.images_of(node)
        return {"type": "linear"} if images is None else {"type": "convolution", **images.described()}

    def _check_edges(self, nodes: Iterable[str], edges: list[Edge]) -> None:
        """Raise GrowthError if these edges form a cycle, or one leads into the root."""
        in_order("GrowingDAG", nodes, edges)
        for edge in edges:
            if edge[1] == self.root:
                raise GrowthError(f"GrowingDAG: the edge {arrow(edge)} leads into the root, which is the input")

    def _check_new(self, node: str) -> None:
        if not isinstance(node, str) or not node or "." in node or "->" in node:
            raise GrowthError(f"GrowingDAG: a node needs a name without '.' and '->', found {shown(node)}")
        if node in self.merges:
            raise GrowthError(f"GrowingDAG: the node {node} exists already; choose another name")

    def remove_edge(self, prev_node: str, next_node: str) -> None:
        """Remove the layer between two nodes; a node that no edge leads into has the sum 0."""
        self.get_edge_module(prev_node, next_node)
        edge = arrow((prev_node, next_node))
        del self.layers[edge], self._ends[edge]
        self._connect()

    def remove_node(self, node: str) -> None:
        """Remove a node with all its edges; root and end stay."""
        if self._known(node) in (self.root, self.end):
            raise GrowthError(f"GrowingDAG: {node} is the graph's root or end, which cannot be removed")
        for edge in [edge for edge, ends in self._ends.items() if node in ends]:
            del self.layers[edge], self._ends[edge]
        del self.merges[node], self._attributes[node]
        self._connect()

    def rename_nodes(self, mapping: Mapping[str, str]) -> None:
        """Give nodes new names, everywhere: in edges, modules and the state dict; root and end may be renamed too."""
        for old, new in mapping.items():
            if self._known(old) != new:
                self._check_new(new)
        names = {node: mapping.get(node, node) for node in self.merges}
        if len(set(names.values())) != len(names):
            raise GrowthError(f"GrowingDAG: two nodes would have the same name: {', '.join(names.values())}")
        self.root, self.end = names[self.root], names[self.end]
        self.merges = {names[node]: merge for node, merge in self.merges.items()}
        self._attributes = {names[node]: attributes for node, attributes in self._attributes.items()}
        ends = [(names[source], names[target]) for source, target in self._ends.values()]
        self.layers = {arrow(edge): layer for edge, layer in zip(ends, self.layers.values(), strict=True)}
        self._ends = {arrow(edge): edge for edge in ends}
        self._connect()

    def _merge(self, node: str, attributes: Mapping[str, Any]) -> Merge:
        """A new merge; what it was made of is kept for :meth:`export_dag_parameters`."""
        defaults = {name: getattr(self, name) for name in ("activation", "use_layer_norm")}
        inner = node not in (self.root, self.end)
        merge, self._attributes[node] = new_merge(node, {**defaults, **attributes}, inner, self._kind["dtype"])
        return merge

    def function_of_new_nodes(self, shape: tuple[int, ...] = ()) -> Module:
        """What a new node applies to its sum, of images with ``shape``."""
        return node_function(0, self.activation, self.use_layer_norm, shape, self._kind["dtype"])

    def _layer(
        self,
        edge: Edge,
        attributes: Mapping[str, Any],
        zero_weights: bool = False,
        merges: Mapping[str, Merge] | None = None,
    ) -> Layer:
        """A new layer between two nodes."""
        reading = reading_between(arrow(edge), self.images_of(edge[0]), self.images_of(edge[1]), attributes)
        widths = [(merges or self.merges)[node].in_features for node in edge]
        layer = new_layer(
            reading, *widths, use_bias=attributes.get("use_bias", self.use_bias), name=arrow(edge), **self._kind
        )
        if (other := next(iter(self.layers.values()), None)) is not None:
            layer.to(other.weight.data)  # wherever the graph is by now
        for parameter in layer.parameters() if zero_weights else ():
            parameter.data = namespace(parameter.data).zeros_like(parameter.data)
        return layer

    def _connect(self) -> None:
        """Order of computation and links between neighbours, after every change of nodes or edges."""
        self._order = in_order("GrowingDAG", self.merges, self._ends.values())
        self._into = {node: [e for e, ends in self._ends.items() if ends[1] == node] for node in self.merges}
        images = {node: self.images_of(node) for node in self.merges}
        self._readings = {
            edge: reading_between(edge, images[source], images[target], described(self.layers[edge]))
            for edge, (source, target) in self._ends.items()
        }
        self._new_readings: dict[Edge, Reading] = {}
        self._shapes = {node: () if found is None else found.shape for node, found in images.items()}
        shape = self._shapes[self.root]
        self.image, self.flatten = (self.merges[self.root].in_features, *shape) if shape else None, not shape
        for edge, (source, target) in self._ends.items():
            layer = self.layers[edge]
            layer.name, layer.previous_module, layer.next_module = edge, self.merges[source], self.merges[target]
        for node, merge in self.merges.items():
            merge.name = node
            merge.set_previous_modules([self.layers[edge] for edge in self._into[node]])
            merge.set_next_modules([self.layers[edge] for edge, ends in self._ends.items() if ends[0] == node])

    def export_dag_parameters(self) -> dict[str, Any]:
        """Edges and attributes of nodes and edges, from which ``GrowingDAG(…, DAG_parameters=…)`` is built again."""
        return {
            "edges": self.edges,
            "node_attributes": {
                node: {"type": NODE_TYPES[merge.spatial], "size": merge.in_features, **self._attributes[node]}
                for node, merge in self.merges.items()
            },
            "edge_attributes": {str(edge): described(self.get_edge_module(*edge)) for edge in self.edges},
        }

    structure = export_dag_parameters

    def outline(self) -> dict[str, Any]:
        """Widths of the nodes by name, and edges, as plain data."""
        widths = {node: merge.in_features for node, merge in self.merges.items()}
        return {"nodes": widths, "edges": [list(edge) for edge in self.edges]}

    def to_networkx(self) -> Any:
        """The graph as a ``networkx.DiGraph``: nodes with their ``size``, edges with their number of ``parameters``.

        Raises ImportError if networkx is missing.
        """
        try:
            import networkx
        except ImportError as error:
            raise ImportError(f'to_networkx: {error}; install it with: pip install "growarray[graph]"') from error
        graph = networkx.DiGraph()
        graph.add_nodes_from((node, {"size": merge.in_features}) for node, merge in self.merges.items())
        for edge in self.edges:
            graph.add_edge(*edge, parameters=self.get_edge_module(*edge).number_of_parameters())
        return graph

    def match(self, state: Mapping[str, Any]) -> None:
        """Take on the nodes, edges and widths of the graph in a state dict.

        Raises GrowthError if its names and shapes are not those of a graph between the same root and end;
        NotImplementedError if these are images, whose sizes are not in a state dict.
        """
        if self.image is not None:
            raise NotImplementedError(
                "GrowingDAG: a state dict does not tell the sizes of images; build the graph with DAG_parameters=, as "
                "export_dag_parameters() gives them, then load the state dict"
            )
        shapes = {}
        for name, value in state.items():
            edge = name.removeprefix("layers.").removesuffix(".layer.weight")
            if name == f"layers.{edge}.layer.weight" and np.ndim(value) == 2:
                shapes[edge] = np.shape(value)
        ends = [tuple(edge.split("->")) for edge in shapes]
        widths: dict[str, set[int]] = {node: {self.merges[node].in_features} for node in (self.root, self.end)}
        for (outputs, inputs), (source, target) in zip(shapes.values(), ends, strict=True):
            widths.setdefault(source, set()).add(inputs)
            widths.setdefault(target, set()).add(outputs)
        torn = [node for node, found in widths.items() if len(found) != 1]
        if torn or not ends:
            raise GrowthError(
                f"GrowingDAG: the state dict does not describe a graph from {self.root} to {self.end} of these widths"
                + (f"; node {torn[0]} has the widths {sorted(widths[torn[0]])}" if torn else "")
            )
        biases = {str(tuple(e.split("->"))): {"use_bias": f"layers.{e}.layer.bias" in state} for e in shapes}
        sizes = {node: {"size": found.pop()} for node, found in widths.items()}
        own = {node: self._attributes[node] for node in (self.root, self.end)}
        described = {node: sizes[node] | own.get(node, {}) for node in (self.root, *sizes)}
        self.restructure({"edges": ends, "node_attributes": described, "edge_attributes": biases})

    def restructure(self, structure: Mapping[str, Any]) -> None:
        """Take on the nodes and edges of a description; existing ones keep their weights and widths.

        Raises GrowthError for a cycle, a missing root or end, or an edge between nodes that are not described;
        nothing has changed then.
        """
        nodes = structure["node_attributes"]
        edges = [(str(source), str(target)) for source, target in structure["edges"]]
        attributes = structure.get("edge_attributes", {})
        for node in (self.root, self.end, *(node for edge in edges for node in edge)):
            if node not in nodes:
                raise GrowthError(f"GrowingDAG: node {shown(node)} has no attributes; give its size in node_attributes")
        self._check_edges(nodes, edges)
        for node in nodes:
            if node not in self.merges:
                self._check_new(node)
        before = dict(self._attributes)
        try:
            merges = {node: self.merges.get(node) or self._merge(node, nodes[node]) for node in nodes}
            per_edge = any(isinstance(value, dict) for value in attributes.values())
            layers = {
                arrow(edge): self.layers.get(arrow(edge))
                or self._layer(edge, attributes.get(str(edge), {}) if per_edge else attributes, merges=merges)
                for edge in edges
            }
        except BaseException:
            self._attributes = before
            raise
        self.merges, self.layers, self._ends = merges, layers, {arrow(edge): edge for edge in edges}
        self._attributes = {node: self._attributes[node] for node in merges}
        self._connect()
