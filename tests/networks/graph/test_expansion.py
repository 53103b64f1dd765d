"""Expansions: their promises, their weights, their costs, and the graph after them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from growarray.errors import GrowthError
from growarray.growing import FISHER, GRADMAX, TINY, GrowthUpdate
from growarray.networks import Expansion, ExpansionType, GrowingDAG
from growarray.networks.graph.features import Features
from growarray.networks.graph.reading import AsFeatures
from growarray.ops import mse
from tests.networks.graph.graphs import collect, data, loss_of, skip_graph

RULES = {
    "tiny": TINY,
    "one": replace(TINY, max_new=1),
    "without_delta": replace(TINY, compute_delta=False),
    "fisher": FISHER,
}


@pytest.mark.parametrize("sampled", [0, 32])
@pytest.mark.parametrize("function", ["tanh", "gelu"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_promises_of_all_expansions_hold_to_one_percent(rule, function, sampled):
    dag, (x, target) = skip_graph(function, sampled=sampled), data()
    collect(dag, x, target)
    dag.compute_optimal_updates(rule)
    loss, seen = loss_of(dag, x, target), set()
    for expansion in dag.growing_layers:
        promised, step = expansion.predicted_decrease, 1e-4
        start = loss(expansion, 0.0)
        found = (start - loss(expansion, step)) / step**2
        assert abs(found - promised) <= 0.01 * promised + 1e-6, expansion
        if promised > 1e-3:
            seen.add(expansion.type)
    assert seen >= {ExpansionType.NEW_EDGE, ExpansionType.EXPANDED_NODE}
    assert not sampled or ExpansionType.NEW_NODE in seen


def test_edge_takes_off_the_bottleneck_what_it_gains():
    dag, (x, target) = skip_graph(), data()
    collect(dag, x, target)
    dag.compute_optimal_updates()
    edge = next(e for e in dag.growing_layers if e.type is ExpansionType.NEW_EDGE)
    assert str(edge) == "new edge 1->end"
    before, gain = dag.bottlenecks()["end@n"], edge.new_neurons_fo_improvement
    edge.apply_change(0.0)
    assert dag.get_edge_module("1@n", "end@n").weight.data.any() == np.False_
    collect(dag, x, target)
    np.testing.assert_allclose(dag.bottlenecks()["end@n"], before - gain, rtol=1e-9)


def test_neurons_are_the_svd_of_what_is_left_undone():
    """Against the plain formula, from all samples at once: the graph itself keeps none of them."""
    dag, (x, target) = skip_graph(sampled=0), data()
    dag.remove_edge("start@n", "2@n")  # through which the gain of node 1 would be made already
    collect(dag, x, target)
    dag.compute_optimal_updates(TINY)
    wider = next(e for e in dag.growing_layers if e.expanding_node == "1@n")
    dag.init_computation()
    y, pullback = dag.vjp(x)
    pullback(mse(y, target)[1](float(len(x))))
    wanted = dag.merges["2@n"].pre_activity_grad
    hidden, ones = dag.merges["1@n"].recorder.need("activity"), np.ones((len(x), 1))
    reads = np.concatenate([hidden, ones], axis=1)
    left = wanted - reads @ np.linalg.lstsq(reads, wanted)[0]
    front = np.concatenate([x, ones], axis=1)
    values, vectors = np.linalg.eigh(front.T @ front / len(x))
    whitener = vectors / np.sqrt(values) @ vectors.T
    u, s, v = np.linalg.svd(-whitener @ front.T @ left / len(x), full_matrices=False)
    np.testing.assert_allclose(wider.update.singular_values, s, rtol=1e-9)
    product = whitener @ u * s @ v
    omega, alpha = wider.update.input_extension, wider.update.output_extension
    np.testing.assert_allclose((omega @ alpha).T, product, atol=1e-12)


@pytest.mark.parametrize("scaling", [0.0, 0.5])
def test_growth_gives_the_planned_output_and_parameters(scaling):
    x, target = data()
    for index in range(len(skip_graph().growing_layers)):
        dag = skip_graph()
        collect(dag, x, target)
        dag.compute_optimal_updates(max_new=2)
        expansion, before, old = dag.growing_layers[index], dag(x), dag.number_of_parameters()
        expansion.scaling_factor = scaling
        expected, added, name = dag.extended_forward(x), expansion.parameters_added, str(expansion)
        dag.reset_computation()
        expansion.apply_change()
        np.testing.assert_allclose(dag(x), expected, rtol=1e-12, atol=1e-14, err_msg=name)
        assert dag.number_of_parameters() == old + added, name
        if scaling == 0.0:
            np.testing.assert_allclose(dag(x), before, rtol=1e-12, atol=1e-14, err_msg=name)


def test_one_pass_of_batches_is_the_whole():
    x, target = data()
    plans = []
    for size in (60, 7):
        dag = skip_graph(sampled=0)  # candidates are drawn from the first batch, so they would differ
        collect(dag, x, target, size)
        dag.compute_optimal_updates()
        plans.append([expansion.first_order_improvement for expansion in dag.growing_layers])
    np.testing.assert_allclose(*plans, rtol=1e-10)


def test_selection_keeps_the_first_neurons_and_drops_an_edge():
    dag, (x, target) = skip_graph(), data()
    collect(dag, x, target)
    dag.compute_optimal_updates()
    edge, node, *_ = dag.growing_layers
    alpha = node.update.output_extension
    node.sub_select_optimal_added_parameters(1)
    assert node.new_neurons == 1
    np.testing.assert_array_equal(node.update.output_extension, alpha[:1])
    assert node.parameters_added == node.parameters_per_neuron
    edge.sub_select_optimal_added_parameters(1)
    assert edge.parameters_added == 3 * 2
    edge.sub_select_optimal_added_parameters(0)
    assert edge.parameters_added == 0


def test_layer_norm_leaves_new_neurons_alone_until_they_are_there():
    """The original's extended forward raises here; norms pass new features through, as everywhere."""
    options = {"activation": "tanh", "dtype": np.float64, "rng": np.random.default_rng(0)}
    dag = GrowingDAG(4, 2, use_layer_norm=True, name="n", **options)
    dag.add_node_with_two_edges("start@n", "1@n", "end@n", {"size": 3})
    x, target = data()
    dag.remove_edge("start@n", "end@n")
    collect(dag, x, target)
    dag.compute_optimal_updates(max_new=2)
    wider = next(e for e in dag.growing_layers if e.type is ExpansionType.EXPANDED_NODE)
    wider.scaling_factor = 0.5
    assert np.isfinite(dag.extended_forward(x)).all()
    wider.apply_change()
    assert dag.widths == [5]
    assert dag(x).shape == (60, 2)


def test_features_are_products_of_blocks():
    activities = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones((2, 1))}
    features, matrix = Features((("a", AsFeatures()), ("b", AsFeatures())), True), np.arange(10.0).reshape(2, 5)
    joined = np.concatenate([activities["a"], activities["b"], np.ones((2, 1))], axis=1)
    np.testing.assert_allclose(features.values(matrix, activities), joined @ matrix.T)
    blocks, ones = features.cut(matrix, {"a": 3, "b": 1})
    np.testing.assert_array_equal(np.concatenate([blocks["a"], blocks["b"], ones[:, None]], axis=1), matrix)


def test_refusals():
    dag, (x, target) = skip_graph(), data()
    wider = dag.growing_layers[-1]
    with pytest.raises(GrowthError, match=r"no statistics are collected; call init_computation"):
        wider.compute_optimal_updates()
    with pytest.raises(GrowthError, match="nothing is planned"):
        wider.apply_change(1.0)
    with pytest.raises(GrowthError, match="nothing is planned"):
        _ = wider.first_order_improvement
    dag.init_computation()
    with pytest.raises(GrowthError, match="there are no samples"):
        wider.compute_optimal_updates()
    collect(dag, x, target)
    dag.compute_optimal_updates()
    edge = dag.growing_layers[0]
    wider.apply_change(0.5)
    weights = dag.state_dict()
    with pytest.raises(GrowthError, match="changed since this was planned; collect statistics and plan again"):
        edge.apply_change(0.5)
    with pytest.raises(GrowthError, match="changed since its statistics were started; call init_computation"):
        edge.compute_optimal_updates()
    assert all(np.array_equal(value, weights[name]) for name, value in dag.state_dict().items())
    with pytest.raises(NotImplementedError, match="cannot tell where to grow"):
        dag.compute_optimal_updates(GRADMAX)


def test_a_rule_without_deltas_plans_no_edge():
    class Nothing:
        def plan(self, statistics):
            return GrowthUpdate()

    dag = skip_graph()
    collect(dag, *data())
    with pytest.raises(GrowthError, match="plans no delta"):
        dag.growing_layers[0].compute_optimal_updates(Nothing())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("edge",), "must be an ExpansionType"),
        ((ExpansionType.NEW_EDGE, "start@n"), "a new edge needs next_node"),
        ((ExpansionType.NEW_EDGE, "start@n", "end@n", "1@n"), "takes no expanding_node"),
        ((ExpansionType.EXPANDED_NODE, None, None, "9@n"), "no node '9@n'"),
        ((ExpansionType.NEW_NODE, "start@n", "9@n", "3@n"), "no node '9@n'"),
    ],
)
def test_an_expansion_says_what_it_needs(arguments, text):
    with pytest.raises(GrowthError, match=text):
        Expansion(skip_graph(), *arguments)


@pytest.mark.parametrize("rule", [TINY, replace(TINY, compute_delta=False)], ids=["with_deltas", "without"])
def test_an_edge_brings_the_bias_to_a_node_that_has_none(rule):
    dag, (x, target) = skip_graph(), data()
    for edge in [edge for edge in dag.edges if edge[1] == "end@n"]:
        dag.remove_edge(*edge)
        dag.add_direct_edge(*edge, {"use_bias": False})
    collect(dag, x, target)
    dag.compute_optimal_updates(rule)
    edge = next(e for e in dag.growing_layers if str(e) == "new edge 1->end")
    loss, step = loss_of(dag, x, target), 1e-4
    found = (loss(edge, 0.0) - loss(edge, step)) / step**2
    assert abs(found - edge.predicted_decrease) <= 0.01 * edge.predicted_decrease
    edge.scaling_factor, old = 0.5, dag.number_of_parameters()
    expected, added = dag.extended_forward(x), edge.parameters_added
    edge.apply_change()
    assert added == 3 * 2 + 2 == dag.number_of_parameters() - old
    assert dag.get_edge_module("1@n", "end@n").bias.data.all()
    np.testing.assert_allclose(dag(x), expected, rtol=1e-12, atol=1e-14)


def test_gain_with_fisher_is_next_to_the_deltas_with_fisher():
    dag, (x, target) = skip_graph(), data()
    collect(dag, x, target)
    dag.compute_optimal_updates(FISHER)
    edge = dag.growing_layers[0]
    reads = dag.collected().columns("end@n", dag.reads("end@n"))
    alone = dag.collected().target("end@n", reads).optimal_delta(fisher=True)[1]
    np.testing.assert_allclose(edge.new_neurons_fo_improvement, edge.first_order_improvement - alone, rtol=1e-12)
