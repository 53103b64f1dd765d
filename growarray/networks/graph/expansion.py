"""Expansion: one way in which a graph may grow, with its plan, its promise, and its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.errors import GrowthError, shown
from growarray.growing import TINY, GrowthRule, GrowthUpdate, Rule
from growarray.growing.checks import as_scalar
from growarray.growing.means import on_host
from growarray.growing.rule import PlaceMeans, planned, rule_of
from growarray.growing.update import activation_slope
from growarray.networks.graph.sampled import best_features
from growarray.networks.graph.statistics import Features
from growarray.networks.graph.structure import Edge, arrow
from growarray.nn import Module
from growarray.ops.sizes import whole_number


class ExpansionType(Enum):
    """What an expansion adds."""

    NEW_EDGE = "new edge"
    NEW_NODE = "new node"
    EXPANDED_NODE = "wider node"


class Expansion:
    """A place to grow in a graph: an edge, a node with two edges, or more neurons in a node.

    Nothing of it is in the graph before :meth:`apply_change`. Its plan is a :class:`GrowthUpdate` of float64 matrices:
    ``output_extension`` are incoming weights of new neurons over :attr:`front`, ``input_extension`` what all
    :attr:`next_nodes` read of them, one above the other, and ``deltas`` what their edges lose. New neurons are those of
    the rule, or the best of those that were sampled if these promise more. A new edge, and what is read of sampled
    neurons, is the joint optimum with the deltas: a delta over more inputs.

    previous_node, next_node : of a new edge or node    expanding_node : the new or the wider node
    """

    readers: tuple[Any, ...] = ()  # a graph's edges read its new neurons: nothing for `balance` to bring to size
    update: GrowthUpdate[Array]
    _planned_for: Any  # signature of the graph
    _reads: tuple[Features, ...]  # what the deltas are over
    _sampled: tuple[Rule, np.ndarray] | None  # where the new weights come from more inputs: which candidates
    _gain: float

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
        self.scaling_factor: Any = 0.0
        self.delete_update()

    # Where it is.

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
        if self.type is ExpansionType.EXPANDED_NODE:
            return self.dag.reads(self.expanding_node)  # type: ignore[no-any-return]
        ones = self.dag.use_bias and not (self.is_edge and self.dag.reads(self.next_node).ones)
        return Features(tuple(self.previous_nodes), ones)

    @property
    def function_before(self) -> Module:
        """The activation of new neurons."""
        if self.type is ExpansionType.EXPANDED_NODE:
            return self.dag.merges[self.expanding_node].post_merge_function  # type: ignore[no-any-return]
        return self.dag.function_of_new_nodes()  # type: ignore[no-any-return]

    @property
    def sampled_as(self) -> str | None:
        """Name of the candidates for its neurons, shared by expansions with the same input and function."""
        return None if self.is_edge else f"{self.front} {self.function_before!r}"

    @property
    def changed_layers(self) -> list[Any]:
        """The layers that growth changes: those into its next nodes, and into a wider node."""
        into = [node for node in (*self.next_nodes, self.expanding_node) if node in self.dag.merges]
        return [layer for node in into for layer in self.dag.merges[node].previous_modules]

    # What it costs.

    def _width(self, nodes: Sequence[str]) -> int:
        return sum(self.dag.merges[node].in_features for node in nodes)

    @property
    def parameters_per_neuron(self) -> int:
        """Scalars that one more neuron costs, or the whole edge."""
        before, after, biases = self._width(self.previous_nodes), self._width(self.next_nodes), int(self.front.ones)
        if self.is_edge:
            return (before + biases) * after
        if self.type is ExpansionType.EXPANDED_NODE:
            biases = sum(int(layer.use_bias) for layer in self.dag.merges[self.expanding_node].previous_modules)
        return before + biases + after + self.function_before.parameters_per_feature

    @property
    def new_neurons(self) -> int:
        """Number of planned neurons; 0 for an edge."""
        alpha = self.update.output_extension
        return 0 if alpha is None else int(alpha.shape[0])

    @property
    def in_neurons(self) -> int:
        """Neurons of the node that gets wider, 0 of what is new."""
        return self._width([str(self.expanding_node)] if self.type is ExpansionType.EXPANDED_NODE else [])

    @property
    def parameters_added(self) -> int:
        """Scalars that the plan adds."""
        units = int(self.update.input_extension is not None) if self.is_edge else self.new_neurons
        return units * self.parameters_per_neuron

    @property
    def flops_added(self) -> int:
        """Multiplications and additions by the weights that the plan adds, for one sample."""
        units = self._width(self.previous_nodes) if self.is_edge else self.new_neurons
        read = 0 if self.is_edge else self._width(self.previous_nodes)
        return 2 * units * (read + self._width(self.next_nodes)) if self.parameters_added else 0

    # Its plan.

    def means(self) -> PlaceMeans:
        """Means of the statistics, for a rule to plan neurons from."""
        held, dag, nodes = self.dag.collected(), self.dag, self.next_nodes
        front = held.columns(self.front)
        layers = tuple(held.target(node, held.columns(dag.reads(node)), front) for node in nodes)
        ones = len(front) - 1 if self.front.ones else None
        return PlaceMeans(layers, lambda: held.gradient_moment(nodes), lambda: held.second_moment(front, front), ones)

    def compute_optimal_updates(self, rule: Rule = TINY, **options: Any) -> None:
        """Plan the new weights by ``rule`` in closed form, and the deltas of the weights beside them."""
        rule = rule_of(rule, options)
        if isinstance(rule, GrowthRule) and (rule.alpha_zero or rule.omega_zero):
            raise NotImplementedError(
                "GrowingDAG: a rule whose neurons start at zero cannot tell where to grow; use TINY or FISHER"
            )
        with on_host(self.dag):
            self._plan(rule)

    def _plan(self, rule: Rule) -> None:
        held = self.dag.collected()
        self.delete_update()
        if self.is_edge:
            self._take_inputs(rule, held.columns(Features((str(self.previous_node),), False)), None)
            return
        self.take(planned(rule, self.means()).on(self._like))
        if self.sampled_as not in held.sampled:
            return
        neurons, promised = self.update, self._gain
        columns = held.candidates(self.sampled_as)[1]
        undone = [held.left_undone(node, held.columns(self._kept(rule, node)), columns) for node in self.next_nodes]
        most = rule.max_new if isinstance(rule, GrowthRule) and rule.max_new is not None else self.dag.neurons
        order = np.asarray(best_features(undone, most), dtype=np.int64)
        if len(order):
            self._take_sampled(rule, order)
        if not self._gain > promised:
            self.delete_update()
            self.take(neurons)

    def take(self, change: GrowthUpdate[Array]) -> None:
        """Store a change as the plan: neurons whose weights on both sides grow with the scaling."""
        self.update, self._sampled, self._planned_for = change, None, self.dag.signature
        slope = activation_slope(self.function_before) if change.singular_values is not None else 0.0
        self._gain = change.improvement(slope)

    def _kept(self, rule: Rule, node: str) -> Features:
        """The inputs of a node whose weights the plan may change."""
        if isinstance(rule, GrowthRule) and not rule.compute_delta:
            return Features((), self.is_edge and self.front.ones)
        reads = self.dag.reads(node)
        return Features(reads.nodes, reads.ones or (self.is_edge and self.front.ones))

    def _take_sampled(self, rule: Rule, order: np.ndarray) -> None:
        """Plan the sampled neurons ``order``."""
        weights, columns = self.dag.collected().candidates(self.sampled_as)
        alpha = namespace(weights).take(weights, asarray(order, like=weights), axis=0)
        with on_host(self.dag):
            self._take_inputs(rule, columns[order], alpha)
        self._sampled = (rule, order)  # the first of them are the best, however many are kept

    @property
    def _like(self) -> Array:
        return next(iter(self.dag.parameters())).data

    def _take_inputs(self, rule: Rule, columns: np.ndarray, alpha: Array | None) -> None:
        """Plan what the next nodes read of more inputs, the neurons ``alpha`` or the previous node, and the deltas."""
        held, nodes = self.dag.collected(), self.next_nodes
        kept = [held.columns(self._kept(rule, node)) for node in nodes]
        layers = [held.target(node, np.concatenate([old, columns])) for node, old in zip(nodes, kept, strict=True)]
        solves = replace(rule, compute_delta=True) if isinstance(rule, GrowthRule) else rule
        change = planned(solves, PlaceMeans(tuple(layers), lambda: held.gradient_moment(nodes)))
        if not change.deltas:
            raise GrowthError(f"{self}: the rule plans no delta, but a new edge needs one")
        old = [delta[:, : len(part)] for delta, part in zip(change.deltas, kept, strict=True)]
        new = [-delta[:, len(part) :] for delta, part in zip(change.deltas, kept, strict=True)]
        alone = [held.target(node, part) for node, part in zip(nodes, kept, strict=True) if len(part)]
        known = [planned(solves, PlaceMeans((target,), target.e)).decreases for target in alone]
        omega = new[0] if len(new) == 1 else namespace(*new).concat(new, axis=0)
        plan = replace(change, deltas=tuple(old), solutions=(), input_extension=omega, output_extension=alpha)
        self.update = plan.on(self._like)
        self._reads = tuple(self._kept(rule, node) for node in nodes)
        self._planned_for, self._gain = self.dag.signature, sum(change.decreases) - sum(map(sum, known))
        self._sampled = (rule, columns)

    @property
    def new_neurons_fo_improvement(self) -> float:
        """First-order improvement by the new weights alone, next to the deltas of the others."""
        return self._gain

    @property
    def _promised(self) -> float:
        if self._planned_for is None:
            raise GrowthError(f"{self}: nothing is planned; call compute_optimal_updates() first")
        return float(self.update.decrease or 0.0)

    @property
    def first_order_improvement(self) -> float:
        """Decrease of the loss that the whole plan promises to first order, at scaling 1."""
        return self._promised + (self._gain if self._sampled is None else 0.0)

    @property
    def predicted_decrease(self) -> float:
        """Exact first-order decrease per squared scaling, for activations that are smooth, and zero at zero."""
        slope = activation_slope(self.function_before) if self.update.slopes is not None else 0.0
        return self._promised + self.update.exact_improvement(slope)

    def sub_select_optimal_added_parameters(self, keep_neurons: int) -> None:
        """Keep the first ``keep_neurons`` planned neurons; an edge stays whole, or is dropped with 0."""
        keep = whole_number(str(self), "keep_neurons", keep_neurons, 0)
        omega, alpha = self.update.input_extension, self.update.output_extension
        if self.is_edge or keep == 0:
            if not keep:
                self.delete_update()
        elif omega is not None and alpha is not None and keep < self.new_neurons:
            if self._sampled is None:
                kept = self.update.with_neurons(omega[:, :keep], keep)
                self.take(replace(kept, output_extension=alpha[:keep, :]))
            else:
                rule, order = self._sampled
                self._take_sampled(rule, order[:keep])

    def delete_update(self) -> None:
        """Forget what is planned."""
        self.update, self.scaling_factor, self._gain = GrowthUpdate(), 0.0, 0.0
        self._planned_for, self._sampled, self._reads = None, None, ()

    # Computing with it, and carrying it out.

    def _scales(self, g: float) -> tuple[float, float]:
        """Scales of the weights into and out of new neurons: sampled ones have their incoming weights at once."""
        return (g, g) if self._sampled is None else (1.0, g**2)

    def _changed(self, node: str, index: int) -> Features:
        """The inputs that the delta of a next node covers."""
        return self._reads[index] if self._reads else self.dag.reads(node)

    def added_to(self, node: str, total: Array, activities: Mapping[str, Array]) -> Array:
        """The sum at a node with what the plan adds to it, at the scaling that is set."""
        if node not in self.next_nodes or self._planned_for is None:
            return total
        xp, g, index = namespace(total), float(self.scaling_factor), self.next_nodes.index(node)

        def cast(matrix: Array) -> Array:
            return xp.astype(matrix, total.dtype, copy=False)

        if self.update.deltas and self.update.deltas[index].shape[1]:
            total = total - self._changed(node, index).values(cast(g**2 * self.update.deltas[index]), activities)
        alpha, omega = self.update.output_extension, self.update.input_extension
        if omega is None:
            return total
        inner, outer = self._scales(g)
        if alpha is None:
            hidden = activities[str(self.previous_node)]
        else:
            pre = self.front.values(cast(inner * alpha), activities)
            hidden = self.function_before.extended_forward(None, pre)[1]
        start = self._width(self.next_nodes[:index])
        rows = cast(outer * omega[start : start + self._width([node]), :])
        return total + hidden @ xp.matrix_transpose(rows)

    def apply_change(self, scaling_factor: Any = None) -> None:
        """Apply the plan at this scaling, by default the one that is set; this changes the graph.

        Raises
        ------
        GrowthError
            Nothing is planned, or the graph has changed since; nothing has changed then.
        """
        dag, nodes = self.dag, self.next_nodes
        if self._planned_for is None:
            raise GrowthError(f"{self}: nothing is planned; call compute_optimal_updates() first")
        if self._planned_for != dag.signature:
            raise GrowthError(
                f"{self}: the graph has changed since this was planned; collect statistics and plan again"
            )
        g = as_scalar(self.scaling_factor if scaling_factor is None else scaling_factor, f"{self}: scaling_factor")
        if not self.is_edge and self.new_neurons:
            self.function_before.check_extend(self.new_neurons)
        changes = [(nodes[i], self._changed(nodes[i], i), delta) for i, delta in enumerate(self.update.deltas)]
        if self.is_edge:
            dag.add_direct_edge(self.previous_node, self.next_node, {"use_bias": self.front.ones}, zero_weights=True)
        for node, reads, delta in changes:
            for edge, rows in dag.rows_of(node, reads, -(g**2) * delta).items():
                step = dag.layers[edge].part_of(rows)
                dag.layers[edge].parameter_step(step.weight.data, None if step.bias is None else step.bias.data)
        if self.is_edge:
            layer = dag.get_edge_module(self.previous_node, self.next_node)
            weights: Any = self.update.input_extension
            layer.parameter_step(g**2 * weights)
        elif self.new_neurons:
            self._widen(*self._scales(g))
        self.delete_update()

    def _widen(self, inner: float, outer: float) -> None:
        """Put the new neurons into their node, which is made if there is none."""
        dag, node, front, targets = self.dag, str(self.expanding_node), self.front, self.next_nodes
        alpha: Any = self.update.output_extension
        omega: Any = self.update.input_extension
        count, start = self.new_neurons, 0
        if self.type is ExpansionType.NEW_NODE:
            node = node.split("_")[0]
            dag.add_node_with_two_edges(self.previous_node, node, self.next_node, {"size": 0})
        merge = dag.merges[node]
        for edge, rows in dag.rows_of(node, front, inner * alpha).items():
            part = dag.layers[edge].part_of(rows)
            dag.layers[edge].layer_out_extension(part.weight.data, None if part.bias is None else part.bias.data)
        for target in targets:
            layer, width = dag.get_edge_module(node, target), dag.merges[target].in_features
            columns = layer.columns_of(outer * omega[start : start + width, :])
            layer.layer_in_extension(columns.weight.data)
            start += width
        merge.update_size()
        merge.post_merge_function.extend(count)
