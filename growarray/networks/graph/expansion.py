"""Expansion: one way in which a graph may grow, with its plan, its predicted decrease, and its cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.errors import GrowthError
from growarray.growing import TINY, GrowthRule, GrowthUpdate, Rule
from growarray.growing.checks import as_scalar
from growarray.growing.means import of_goals, on_host
from growarray.growing.rule import PlaceMeans, planned, rule_of
from growarray.growing.update import activation_slope
from growarray.networks.graph.addition import Addition, ExpansionType
from growarray.networks.graph.features import Features
from growarray.networks.graph.reading import by_neuron, by_output
from growarray.networks.graph.sampled import best_features
from growarray.ops.sizes import whole_number


class _Sampled(NamedTuple):
    """Sampled neurons that are planned, the best first, and the rule that planned them; none for an edge."""

    rule: Rule
    order: np.ndarray


class Expansion(Addition):
    """A place to grow in a graph: an edge, a node with two edges, or more neurons in a node.

    Nothing of it is in the graph before :meth:`apply_change`. Its plan is a :class:`GrowthUpdate` of float64 matrices:
    ``output_extension`` are incoming weights of new neurons over :attr:`front`, ``input_extension`` what all
    :attr:`next_nodes` read of them, one above the other, and ``deltas`` what their edges lose. New neurons are those of
    the rule, or the best of those that were sampled if these gain more. A new edge, and what is read of sampled
    neurons, is the joint optimum with the deltas: a delta over more inputs.
    """

    readers: tuple[Any, ...] = ()  # a graph's edges read its new neurons: nothing for `balance` to bring to size
    update: GrowthUpdate[Array]
    _planned_for: Any  # signature of the graph
    _reads: tuple[Features, ...]  # what the deltas are over
    _sampled: _Sampled | None  # if the new weights were solved for jointly with the deltas
    _gain: float

    @property
    def new_neurons(self) -> int:
        """Number of planned neurons; 0 for an edge."""
        alpha = self.update.output_extension
        return 0 if alpha is None else int(alpha.shape[0])

    @property
    def parameters_added(self) -> int:
        """Scalars that the plan adds."""
        units = int(self.update.input_extension is not None) if self.is_edge else self.new_neurons
        return units * self.parameters_per_neuron

    @property
    def flops_added(self) -> int:
        """Multiplications and additions by the weights that the plan adds, for one sample."""
        if not self.parameters_added:
            return 0
        read, units = (0, self._read) if self.is_edge else (self._read, self.new_neurons)
        places = [math.prod(self.dag.shape_of(node)) for node in self.next_nodes]
        outgoing = sum(goal * count for goal, count in zip(self._goals, places, strict=True))
        return int(2 * units * (read * math.prod(self.front.shape) + outgoing))

    def means(self) -> PlaceMeans:
        """Means of the statistics, for a rule to plan neurons from."""
        statistics, dag, nodes = self.dag.collected(), self.dag, self.next_nodes
        reads = {node: statistics.columns(node, dag.reads(node)) for node in nodes}
        fronts = {node: statistics.shown(node, self.front, self.read_by(node), reads[node]) for node in nodes}
        layers = tuple(statistics.target(node, reads[node], fronts[node]) for node in nodes)
        taps = [self.read_by(node).taps for node in nodes]
        outputs = [dag.merges[node].in_features for node in nodes]

        def s_prev() -> Array:
            moments = [fronts[node].s() for node in nodes]
            return sum(moments[1:], moments[0]) / len(moments)

        ones = self._read if self.front.ones else None
        return PlaceMeans(layers, lambda: of_goals(statistics.gradient_moment(nodes), outputs, taps), s_prev, ones)

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
        statistics = self.dag.collected()
        self.delete_update()
        if self.is_edge:
            columns = statistics.columns(str(self.next_node), Features(self.front.parts, False))
            self._plan_joint(rule, [columns], None)
            return
        self.take(planned(rule, self.means()).on(self._like))
        if self.sampled_as in statistics.sampled:
            self._plan_sampled(rule)

    def _plan_sampled(self, rule: Rule) -> None:
        """Replace the neurons that are planned by the best sampled ones, if these gain more."""
        statistics, nodes = self.dag.collected(), self.next_nodes
        solved, solved_gain = self.update, self._gain
        undone = [
            statistics.left_undone(node, statistics.columns(node, self._changeable(rule, node)), self._candidates(node))
            for node in nodes
        ]
        most = rule.max_new if isinstance(rule, GrowthRule) and rule.max_new is not None else self.dag.neurons
        order = np.asarray(best_features(undone, most, [self.read_by(node).taps for node in nodes]), np.int64)
        if len(order):
            self._take_sampled(rule, order)
        if not self._gain > solved_gain:
            self.delete_update()
            self.take(solved)

    def take(self, change: GrowthUpdate[Array]) -> None:
        """Store a change as the plan: neurons whose weights on both sides grow with the scaling."""
        self.update, self._sampled, self._planned_for = change, None, self.dag.signature
        slope = activation_slope(self.function_before) if change.singular_values is not None else 0.0
        self._gain = change.improvement(slope)

    def _changeable(self, rule: Rule, node: str) -> Features:
        """The inputs of a node whose weights the plan may change."""
        if isinstance(rule, GrowthRule) and not rule.compute_delta:
            return Features((), self.is_edge and self.front.ones, self.dag.shape_of(node))
        reads: Features = self.dag.reads(node)
        return reads._replace(ones=reads.ones or (self.is_edge and self.front.ones))

    def _candidates(self, node: str) -> np.ndarray:
        """Columns of the sampled neurons as a next node reads them, those of one neuron side by side."""
        return self.dag.collected().candidates(node, str(self.sampled_as), self.read_by(node))  # type: ignore[no-any-return]

    def _take_sampled(self, rule: Rule, order: np.ndarray) -> None:
        """Plan the sampled neurons ``order``."""
        weights = self.dag.collected().sampled[self.sampled_as].weights
        alpha = namespace(weights).take(weights, asarray(order, like=weights), axis=0)
        columns = [self._candidates(node).reshape(weights.shape[0], -1)[order].ravel() for node in self.next_nodes]
        with on_host(self.dag):
            self._plan_joint(rule, columns, alpha)
        self._sampled = _Sampled(rule, order)

    @property
    def _like(self) -> Array:
        return next(iter(self.dag.parameters())).data

    def _plan_joint(self, rule: Rule, columns: list[np.ndarray], alpha: Array | None) -> None:
        """Plan jointly what the next nodes read of more inputs, and the deltas of their weights.

        columns : for each next node those of the inputs, which are the neurons ``alpha`` or the previous node
        """
        statistics, nodes = self.dag.collected(), self.next_nodes
        present = [statistics.columns(node, self._changeable(rule, node)) for node in nodes]
        targets = [
            statistics.target(node, np.concatenate([old, new]))
            for node, old, new in zip(nodes, present, columns, strict=True)
        ]
        with_delta = replace(rule, compute_delta=True) if isinstance(rule, GrowthRule) else rule
        change = planned(with_delta, PlaceMeans(tuple(targets), lambda: statistics.gradient_moment(nodes)))
        if not change.deltas:
            raise GrowthError(f"{self}: the rule plans no delta, but a new edge needs one")
        deltas = [delta[:, : len(part)] for delta, part in zip(change.deltas, present, strict=True)]
        weights = [-delta[:, len(part) :] for delta, part in zip(change.deltas, present, strict=True)]
        if alpha is not None:
            weights = [by_neuron(rows, self.read_by(node).taps) for node, rows in zip(nodes, weights, strict=True)]
        omega = weights[0] if len(weights) == 1 else namespace(*weights).concat(weights, axis=0)
        alone = [statistics.target(node, part) for node, part in zip(nodes, present, strict=True) if len(part)]
        without = [planned(with_delta, PlaceMeans((target,), target.e)).decreases for target in alone]
        self.update = replace(
            change, deltas=tuple(deltas), solutions=(), input_extension=omega, output_extension=alpha
        ).on(self._like)
        self._reads = tuple(self._changeable(rule, node) for node in nodes)
        self._planned_for, self._gain = self.dag.signature, sum(change.decreases) - sum(map(sum, without))
        self._sampled = _Sampled(rule, np.zeros(0, np.int64))

    @property
    def new_neurons_fo_improvement(self) -> float:
        """First-order improvement by the new weights alone, next to the deltas of the others."""
        return self._gain

    @property
    def _predicted(self) -> float:
        if self._planned_for is None:
            raise GrowthError(f"{self}: nothing is planned; call compute_optimal_updates() first")
        return float(self.update.decrease or 0.0)

    @property
    def first_order_improvement(self) -> float:
        """Decrease of the loss that the whole plan promises to first order, at scaling 1."""
        return self._predicted + (self._gain if self._sampled is None else 0.0)

    @property
    def predicted_decrease(self) -> float:
        """Exact first-order decrease per squared scaling, for activations that are smooth, and zero at zero."""
        slope = activation_slope(self.function_before) if self.update.slopes is not None else 0.0
        return self._predicted + self.update.exact_improvement(slope)

    def sub_select_optimal_added_parameters(self, keep_neurons: int) -> None:
        """Keep the first ``keep_neurons`` planned neurons; an edge stays whole, or is dropped with 0."""
        keep = whole_number(str(self), "keep_neurons", keep_neurons, 0)
        omega, alpha = self.update.input_extension, self.update.output_extension
        if self.is_edge or keep == 0:
            if not keep:
                self.delete_update()
        elif omega is not None and alpha is not None and keep < self.new_neurons:
            if self._sampled is None:
                update = self.update.with_neurons(omega[:, :keep], keep)
                self.take(replace(update, output_extension=alpha[:keep, :]))
            else:
                self._take_sampled(self._sampled.rule, self._sampled.order[:keep])

    def delete_update(self) -> None:
        """Forget what is planned."""
        self.update, self.scaling_factor, self._gain = GrowthUpdate(), 0.0, 0.0
        self._planned_for, self._sampled, self._reads = None, None, ()

    def _scales(self, g: float) -> tuple[float, float]:
        """Scales of the weights into and out of new neurons: sampled ones have their incoming weights at once."""
        return (g, g) if self._sampled is None else (1.0, g**2)

    def _covered(self, node: str, index: int) -> Features:
        """The inputs that the delta of a next node covers."""
        return self._reads[index] if self._reads else self.dag.reads(node)

    def added_to(self, node: str, total: Array, activities: Mapping[str, Array]) -> Array:
        """The sum at a node with what the plan adds to it, at the scaling that is set."""
        nodes = self.next_nodes if self._planned_for is not None else []
        if node not in nodes:
            return total
        xp, g, index = namespace(total), float(self.scaling_factor), nodes.index(node)

        def cast(matrix: Array) -> Array:
            return xp.astype(matrix, total.dtype, copy=False)

        if self.update.deltas and self.update.deltas[index].shape[1]:
            total = total - self._covered(node, index).values(cast(g**2 * self.update.deltas[index]), activities)
        alpha, omega = self.update.output_extension, self.update.input_extension
        if omega is None:
            return total
        inner, outer = self._scales(g)
        rows, reading = cast(outer * self._outgoing(index)), self.read_by(node)
        if alpha is None:
            return total + reading.values(rows, activities[str(self.previous_node)])
        pre = self.front.values(cast(inner * alpha), activities)
        hidden = self.function_before.extended_forward(None, pre)[1]
        return total + reading.values(by_output(rows, reading.taps), hidden)

    def _outgoing(self, index: int) -> Array:
        """The planned weights of the next node ``index``."""
        omega: Any = self.update.input_extension
        goals = [0, *itertools.accumulate(self._goals)]
        return omega[goals[index] : goals[index + 1], :]

    def apply_change(self, scaling_factor: Any = None) -> None:
        """Apply the plan at this scaling, by default the one that is set; this changes the graph.

        Raises GrowthError: nothing is planned, or the graph has changed since; nothing has changed then.
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
        deltas = [(nodes[i], self._covered(nodes[i], i), delta) for i, delta in enumerate(self.update.deltas)]
        if self.is_edge:
            dag.add_direct_edge(self.previous_node, self.next_node, {"use_bias": self.front.ones}, zero_weights=True)
        for node, reads, delta in deltas:
            for edge, rows in dag.rows_of(node, reads, -(g**2) * delta).items():
                step = dag.layers[edge].part_of(rows)
                dag.layers[edge].parameter_step(step.weight.data, None if step.bias is None else step.bias.data)
        if self.is_edge:
            layer = dag.get_edge_module(self.previous_node, self.next_node)
            weights: Any = self.update.input_extension
            layer.parameter_step(namespace(weights).reshape(g**2 * weights, layer.weight.shape))
        elif self.new_neurons:
            self._widen(*self._scales(g))
        self.delete_update()

    def _widen(self, inner: float, outer: float) -> None:
        """Put the new neurons into their node, which is made if there is none."""
        dag, node, front, targets = self.dag, str(self.expanding_node), self.front, self.next_nodes
        alpha: Any = self.update.output_extension
        count = self.new_neurons
        rows = [by_output(outer * self._outgoing(i), self.read_by(node).taps) for i, node in enumerate(targets)]
        if self.type is ExpansionType.NEW_NODE:
            node = node.split("_")[0]
            dag.add_node_with_two_edges(self.previous_node, node, self.next_node, {"size": 0})
        merge = dag.merges[node]
        for edge, incoming in dag.rows_of(node, front, inner * alpha).items():
            part = dag.layers[edge].part_of(incoming)
            dag.layers[edge].layer_out_extension(part.weight.data, None if part.bias is None else part.bias.data)
        for target, weights in zip(targets, rows, strict=True):
            layer = dag.get_edge_module(node, target)
            shape = (weights.shape[0], -1, *layer.weight.shape[2:])
            layer.layer_in_extension(namespace(weights).reshape(weights, shape))
        merge.update_size()
        merge.post_merge_function.extend(count)
