"""GrowingDAG: a graph whose nodes are merges and whose edges are growing layers, which chooses where it grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from growarray.backend import Array, namespace
from growarray.errors import GrowthError, ShapeError, shown
from growarray.growing import TINY, GrowthRule, Rule
from growarray.networks.graph.addition import ExpansionType
from growarray.networks.graph.append import append
from growarray.networks.graph.expansion import Expansion
from growarray.networks.graph.features import Features
from growarray.networks.graph.graph import LayerGraph
from growarray.networks.graph.parts import NODE_TYPES
from growarray.networks.graph.statistics import GraphStatistics
from growarray.networks.graph.structure import Edge, candidate_suffix, possible_edges, possible_paths
from growarray.networks.widths import sample_width
from growarray.nn import Module
from growarray.nn.module import Pullback
from growarray.ops.sizes import whole_number


class GrowingDAG(LayerGraph):
    """A network that grows by edges, by nodes and by the width of its nodes; at first one edge from input to output.

    in_features, out_features : of the nodes ``root`` and ``end``, their channels if these are images
    neurons : most neurons that one growth adds, if the rule does not say
    use_bias : whether new edges have a bias, but for the second edge of a new node, which has none
    use_layer_norm : whether there is a LayerNorm before the activation of new nodes and of the end
    activation : of new nodes, a name or a module, which is copied
    sampled : neurons to choose from at each place, besides those of the rule; see :mod:`.sampled`
    default_layer_type : ``'linear'``, or ``'convolution'``: root and end are images (n, channels, *input_shape), which
        kernels of ``kernel_size`` read; with ``end_type='linear'`` the end is features, which read all numbers of
        images, or with ``pool='mean'`` the means of their channels
    name : nodes are called ``start@name``, ``1@name``, …, ``end@name``
    DAG_parameters : edges and nodes to begin with, as :meth:`export_dag_parameters` gives them

    Signature, names and order of the nodes are the original's. State-dict names are
    ``layers.start@name->end@name.layer.weight``, …. :attr:`growing_layers` are all expansions that are possible now.

    Differs from the original: candidates are values, not nodes and edges that are put into the graph; they are planned
    in closed form from statistics of one pass; ancestors and names never go stale; the order of candidates is sorted.

    Raises GrowthError: the edges form a cycle, a name is taken, or a node does not exist.

    >>> import numpy as np
    >>> dag = GrowingDAG(4, 2, rng=np.random.default_rng(0))
    >>> dag.add_node_with_two_edges("start@", "1@", "end@", {"size": 3})
    >>> dag(np.zeros((5, 4), np.float32)).shape, dag.widths
    ((5, 2), [3])
    >>> [str(expansion) for expansion in dag.define_next_actions()]
    ['new node 2: 1->end', 'new node 2: start->1', 'wider node 1']
    """

    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int,
        neurons: int = 20,
        use_bias: bool = True,
        use_layer_norm: bool = False,
        default_layer_type: str = "linear",
        activation: str | Module = "selu",
        name: str = "",
        root: str = "start",
        end: str = "end",
        DAG_parameters: Mapping[str, Any] | None = None,
        device: str | None = None,
        *,
        kernel_size: int | Sequence[int] = 3,
        input_shape: Sequence[int] | None = None,
        pool: str = "flatten",
        end_type: str | None = None,
        sampled: int = 64,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        if default_layer_type not in NODE_TYPES:
            raise NotImplementedError(
                f"GrowingDAG: default_layer_type {shown(default_layer_type)} is not supported; supported: "
                f"{', '.join(map(repr, NODE_TYPES))}"
            )
        if any(mark in name for mark in ("_", ".", "->")):
            raise GrowthError(f"GrowingDAG: name must not contain '_', '.' or '->', found {shown(name)}")
        self.in_features = sample_width("GrowingDAG", in_features)
        self.out_features = whole_number("GrowingDAG", "out_features", out_features, 1)
        self.neurons = whole_number("GrowingDAG", "neurons", neurons, 1)
        self.name = name
        self.sampled = whole_number("GrowingDAG", "sampled", sampled, 0)
        self.rng = np.random.default_rng() if rng is None else rng
        self.statistics: GraphStatistics | None = None
        images = {"type": default_layer_type, "shape": input_shape, "kernel_size": kernel_size, "pool": pool}
        first = {
            "edges": [(f"{root}@{name}", f"{end}@{name}")],
            "node_attributes": {
                f"{root}@{name}": {**images, "size": self.in_features, "activation": "id", "use_layer_norm": False},
                f"{end}@{name}": {
                    **images, "type": end_type or default_layer_type, "size": self.out_features, "activation": "id",
                },
            },
        }  # fmt: skip
        super().__init__(
            (f"{root}@{name}", f"{end}@{name}"),
            first if DAG_parameters is None else DAG_parameters,
            use_bias=use_bias,
            use_layer_norm=use_layer_norm,
            activation=activation,
            dtype=dtype,
            device=device,
            rng=self.rng,
        )

    _held = ("in_features", "out_features", "neurons", "name", "sampled", "rng", *LayerGraph._held)

    def _check_held(self) -> None:
        super()._check_held()
        self.statistics, self._kind["rng"] = None, self.rng
        ends = self.merges[self.root], self.merges[self.end]
        widths = tuple(end.in_features for end in ends)
        if widths != (self.in_features, self.out_features):
            raise ShapeError(
                f"GrowingDAG: root and end must have widths {self.in_features, self.out_features}, found {widths}"
            )

    def _connect(self) -> None:
        super()._connect()
        self._reads = {node: self._read_by(node) for node in self.merges}
        self._expansions: list[Expansion] | None = None

    append = append

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Output (n, out_features), and the way back to a gradient of the shape of ``x``."""
        shape, flat = x.shape, self._flat(x)
        values: dict[str, Array] = {}
        backs: dict[str, Pullback] = {}
        if self.statistics is not None:
            self.statistics.expect()
        for node in self._order:
            total = flat if node == self.root else None
            for edge in self._into[node]:
                y, backs[edge] = self._edge_vjp(edge, values[self._ends[edge][0]])
                total = y if total is None else total + y
            values[node], backs[node] = self.merges[node].vjp(self._nothing(node, flat) if total is None else total)

        def pullback(dy: Array, *, wrt_x: bool = True) -> Array:
            gradients = {self.end: dy}
            for node in reversed(self._order):
                if node not in gradients:  # nothing reads it
                    gradients[node] = namespace(values[node]).zeros_like(values[node])
                gradients[node] = backs[node](gradients[node])
                for edge in self._into[node]:
                    source = self._ends[edge][0]
                    part = backs[edge](gradients[node], wrt_x=wrt_x or source != self.root)
                    if part is not None:
                        gradients[source] = gradients[source] + part if source in gradients else part
            return namespace(dy).reshape(gradients[self.root], shape) if wrt_x else None

        return values[self.end], pullback

    def _edge_vjp(self, edge: str, x: Array) -> tuple[Array, Any]:
        """Value of a layer, and its way back; a linear one reads images in the way that its node sets."""
        function, layer = self._readings[edge].function, self.layers[edge]
        if function is None:
            return layer.vjp(x)
        flat, back = function.vjp(x)
        y, layer_back = layer.vjp(flat)

        def pullback(dy: Array, *, wrt_x: bool = True) -> Array | None:
            dx = layer_back(dy, wrt_x=wrt_x)
            return back(dx) if wrt_x else None

        return y, pullback

    def _nothing(self, node: str, x: Array) -> Array:
        """The sum at a node that no edge leads into."""
        shape = (x.shape[0], self.merges[node].in_features, *self.shape_of(node))
        return namespace(x).zeros(shape, dtype=x.dtype, device=x.device)

    def extended_forward(self, x: Array, x_ext: Array | None = None) -> Array:
        """Output with every planned change at the scalings that are set: of edges, and of expansions."""
        flat, values = self._flat(x), dict[str, Array]()
        active = [expansion for expansion in self._expansions or () if expansion.scaling_factor]
        for node in self._order:
            total = flat if node == self.root else None
            for edge in self._into[node]:
                layer, value, read = self.layers[edge], values[self._ends[edge][0]], self._readings[edge].function
                value = value if read is None else read(value)
                y, _ = layer.extended_forward(value, None, use_extended_input=False, use_extended_output=False)
                total = y if total is None else total + y
            total = self._nothing(node, flat) if total is None else total
            for expansion in active:
                total = expansion.added_to(node, total, values)
            values[node] = self.merges[node].post_merge_function(total)
        return values[self.end]

    @property
    def chain(self) -> list[Any]:
        """Not supported: a graph is not a chain."""
        raise NotImplementedError(f"{type(self).__name__}: a graph has no chain of modules; walk its nodes and edges")

    def reads(self, node: str) -> Features:
        """What the edges into a node read: the activities before it, and ones if one of them has a bias."""
        return self._reads[node]

    def _read_by(self, node: str) -> Features:
        biased = any(self.layers[edge].use_bias for edge in self._into[node])
        parts = tuple((self._ends[edge][0], self._readings[edge]) for edge in self._into[node])
        return Features(parts, biased, self._shapes[node])

    def init_computation(self, *, trace_precision: float | None = None) -> None:
        """Start a collection for all nodes and all that may be added; see :class:`GraphStatistics`."""
        self.reset_computation()
        self.statistics = GraphStatistics(self, trace_precision)

    def update_computation(self, update_covariance_loss_gradient: bool = True) -> None:
        """Add the last batch to every statistic."""
        self.collected().update(update_covariance_loss_gradient)

    def update_covariance_loss_gradient(self, count_samples: bool = True) -> None:
        """Add the present gradients to E, whether or not it has been updated for this batch."""
        self.collected().update_e(count_samples)

    def reset_computation(self) -> None:
        """End the collection."""
        self.weigh(None)
        if self.statistics is not None:
            self.statistics.stop()
            self.statistics = None

    def collected(self) -> GraphStatistics:
        """The statistics; GrowthError if there are none, or the graph has changed since they were started."""
        if self.statistics is None:
            raise GrowthError(
                "GrowingDAG: no statistics are collected; call init_computation(), then for each batch forward, "
                "pullback, update_computation()"
            )
        if self.statistics.signature != self.signature:
            raise GrowthError(
                "GrowingDAG: the graph has changed since its statistics were started; call init_computation() and "
                "collect again"
            )
        return self.statistics

    def relative_error(self) -> float:
        """Estimated relative error of the moments of activities and gradients."""
        return self.collected().relative_error()

    def compute_optimal_delta(self, force_pseudo_inverse: bool = False) -> None:
        """Plan for every edge its part of the joint optimal delta of all edges into the same node."""
        for node, (matrix, decrease) in self.joint_deltas(force_pseudo_inverse).items():
            merge = self.merges[node]
            merge.update = replace(merge.update, decreases=(decrease,))
            for edge, rows in self.rows_of(node, self.reads(node), matrix).items():
                layer = self.layers[edge]
                layer.update = layer.update.with_delta(layer.part_of(rows), None)

    def joint_deltas(self, pseudo_inverse: bool = False) -> dict[str, tuple[Array, float]]:
        """For every node with edges into it, their joint optimal delta over :meth:`reads`, and its decrease."""
        held, nodes = self.collected(), [node for node in self.merges if self._into[node]]
        means = {node: held.target(node, held.columns(node, self.reads(node))) for node in nodes}
        return {node: replace(mean, pseudo_inverse=pseudo_inverse).optimal_delta() for node, mean in means.items()}

    def rows_of(self, node: str, features: Features, matrix: Array) -> dict[str, Array]:
        """Rows over features cut by edge into ``node``, the column of ones shared by the edges with a bias.

        An edge whose source is not among the features has zeros.
        """
        blocks, ones = features.cut(matrix, {name: merge.in_features for name, merge in self.merges.items()})
        biased, xp, rows = [e for e in self._into[node] if self.layers[e].use_bias], namespace(matrix), {}
        for edge in self._into[node]:
            layer, block = self.layers[edge], blocks.get(self._ends[edge][0])
            zeros = xp.zeros((matrix.shape[0], layer.in_features), dtype=matrix.dtype, device=matrix.device)
            rows[edge] = zeros if block is None else block
            if layer.use_bias:
                share = xp.zeros_like(zeros[:, :1]) if ones is None else ones[:, None] / len(biased)
                rows[edge] = xp.concat([rows[edge], share], axis=1)
        return rows

    def bottlenecks(self) -> dict[str, float]:
        """Expressivity bottleneck of every node: mean squared norm of the wanted change that no edge can supply.

        That is ``tr E - tr(M dW)``: the gradient's square, less the decrease that the joint optimal delta promises.
        """
        held, deltas = self.collected(), self.joint_deltas()
        bottleneck = {}
        for node in (node for node in self.merges if node != self.root):
            e = held.gradient_moment([node])
            bottleneck[node] = float(namespace(e).linalg.trace(e)) - (deltas[node][1] if node in deltas else 0.0)
        return bottleneck

    def find_possible_extensions(self) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """Edges that may be added, and places for new nodes with two edges, sorted by name."""
        before, edges = self.ancestors, list(self._ends.values())
        new = self._new_name()

        def inside(pairs: list[Edge]) -> list[Edge]:
            return [(a, b) for a, b in pairs if a != self.end and b != self.root and self._may_read(a, b)]

        paths = [(a, b) for a, b in inside(possible_paths(before, edges)) if self._may_read(a, a)]
        return (
            [{"previous_node": a, "next_node": b} for a, b in inside(possible_edges(before, edges))],
            [{"previous_node": a, "new_node": new, "next_node": b} for a, b in paths],
        )

    def _new_name(self) -> str:
        """The first free number, starting where the original does; after a removal that may be taken."""
        number = len(self.merges) - 1
        while f"{number}@{self.name}" in self.merges:
            number += 1
        return f"{number}@{self.name}"

    def define_next_actions(self) -> list[Expansion]:
        """All expansions that are possible now: new edges, new nodes, wider nodes."""
        direct, paths = self.find_possible_extensions()
        edges = [Expansion(self, ExpansionType.NEW_EDGE, **names) for names in direct]
        nodes = [
            Expansion(
                self, ExpansionType.NEW_NODE, p["previous_node"], p["next_node"],
                f"{p['new_node']}_{candidate_suffix(index)}",
            )
            for index, p in enumerate(paths)
        ]  # fmt: skip
        inner = [node for node in self.merges if self.predecessors(node) and self.successors(node)]
        return [*edges, *nodes, *(Expansion(self, ExpansionType.EXPANDED_NODE, expanding_node=node) for node in inner)]

    @property
    def growing_layers(self) -> list[Any]:
        """The expansions that are possible now, the same objects until nodes or edges change."""
        if self._expansions is None:
            self._expansions = self.define_next_actions()
        return self._expansions

    def compute_optimal_updates(self, rule: Rule = TINY, **options: Any) -> None:
        """Plan every expansion by ``rule``, from what one pass over the data has collected."""
        if isinstance(rule, GrowthRule) and rule.max_new is None:
            options = {"max_new": self.neurons, **options}
        super().compute_optimal_updates(rule, **options)

    @property
    def widths(self) -> list[int]:
        """Widths of the nodes between root and end."""
        return [merge.in_features for node, merge in self.merges.items() if node not in (self.root, self.end)]

    @property
    def width_names(self) -> list[str]:
        """Names of the nodes between root and end."""
        return [node.split("@")[0] for node in self.merges if node not in (self.root, self.end)]

    def collectors(self) -> Iterator[Any]:
        """The graph itself, which collects for all its nodes."""
        yield self
