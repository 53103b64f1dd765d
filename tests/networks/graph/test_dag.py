"""GrowingDAG: values and gradients, nodes and edges, and its description."""

from __future__ import annotations

import json

import numpy as np
import pytest

from growarray.errors import GrowthError
from growarray.networks import GrowingDAG, Snapshot
from growarray.optim import AdamW
from growarray.testing import check_vjp
from tests.networks.graph.graphs import collect, data, skip_graph


def test_value_is_the_sum_over_all_paths():
    dag, (x, _) = skip_graph(), data()
    w = {edge: (layer.weight.data, layer.bias.data) for edge, layer in dag.layers.items()}

    def edge(a, b, value):
        weight, bias = w[f"{a}@n->{b}@n"]
        return value @ weight.T + bias

    first = np.tanh(edge("start", "1", x))
    second = np.tanh(edge("1", "2", first) + edge("start", "2", x))
    np.testing.assert_allclose(dag(x), edge("2", "end", second) + edge("start", "end", x), rtol=1e-12)


def test_gradients_are_those_of_finite_differences():
    dag, (x, _) = skip_graph(), data(5)
    check_vjp(dag.vjp, x)
    pullback = dag.vjp(x)[1]
    assert pullback(np.ones((5, 2)), wrt_x=False) is None
    assert dag.vjp(x.reshape(5, 2, 2))[1](np.ones((5, 2))).shape == (5, 2, 2)


def test_node_without_edges_has_the_sum_zero_and_passes_no_gradient():
    dag, (x, _) = skip_graph(), data(5)
    dag.remove_edge("2@n", "end@n")
    dag.remove_edge("start@n", "end@n")
    y, pullback = dag.vjp(x)
    assert not y.any()
    assert not pullback(np.ones_like(y)).any()


@pytest.mark.filterwarnings("ignore:optimal_delta. S is singular")  # what nothing leads into is constant
def test_a_node_that_nothing_leads_into_or_out_of_stands_aside():
    dag, (x, target) = skip_graph(), data()
    dag.remove_edge("start@n", "1@n")
    dag.add_node_with_two_edges("start@n", "3@n", "end@n", {"size": 2})
    dag.remove_edge("3@n", "end@n")
    collect(dag, x, target)
    dag.compute_optimal_updates(max_new=1)
    assert {str(e) for e in dag.growing_layers if e.type.value == "wider node"} == {"wider node 2"}
    assert dag.bottlenecks()["3@n"] == 0.0
    assert dag.layers["start@n->2@n"].weight.grad.any()


def test_ancestors_and_candidates_follow_a_removal():
    """The original's ancestors are only ever added to, so that it never proposes 2 -> 1 again."""
    dag = GrowingDAG(3, 2, name="n")
    for node in ("1@n", "2@n"):
        dag.add_node_with_two_edges("start@n", node, "end@n", {"size": 2})
    dag.add_direct_edge("1@n", "2@n")
    assert dag.ancestors["2@n"] == {"1@n", "2@n", "start@n"}
    dag.remove_edge("1@n", "2@n")
    assert dag.ancestors["2@n"] == {"2@n", "start@n"}
    direct, _ = dag.find_possible_extensions()
    assert {"previous_node": "2@n", "next_node": "1@n"} in direct


def test_a_new_name_reaches_everything():
    dag, (x, _) = skip_graph(), data(5)
    y = dag(x)
    dag.rename_nodes({"1@n": "7@n", "end@n": "out@n"})
    np.testing.assert_array_equal(dag(x), y)
    assert dag.nodes == ["start@n", "7@n", "2@n", "out@n"]
    assert dag.get_node_module("7@n").name == "7@n"
    assert "layers.start@n->7@n.layer.weight" in dag.state_dict()
    assert not any("1@n" in name for name in [*dag.state_dict(), *dag.ancestors, *dag.ancestors["out@n"]])
    assert dag.end == "out@n"


def test_description_goes_out_and_in():
    dag = skip_graph()
    text = json.loads(json.dumps(dag.export_dag_parameters()))
    again = GrowingDAG(4, 2, name="n", dtype=np.float64, DAG_parameters=text)
    assert again.export_dag_parameters() == dag.export_dag_parameters()
    again.load_state_dict(dag.state_dict())
    x, _ = data(5)
    np.testing.assert_array_equal(again(x), dag(x))


def test_a_snapshot_brings_nodes_and_edges_back():
    dag, (x, target) = skip_graph(), data()
    optimizer = AdamW(dag, lr=1e-2)
    y, pullback = dag.vjp(x)
    pullback(y - target)
    optimizer.step()
    y, before = dag(x), Snapshot.of(dag)
    for _ in range(3):
        collect(dag, x, target)
        dag.compute_optimal_updates(max_new=2)
        dag.growing_layers[1].apply_change(0.5)
    dag.remove_edge("start@n", "end@n")
    grown = Snapshot.of(dag)
    assert not np.allclose(dag(x), y)
    before.restore(dag)
    np.testing.assert_array_equal(dag(x), y)
    assert {"exp_avg", "exp_avg_sq"} <= set(dag.layers["start@n->end@n"].weight.slots)
    grown.restore(dag)
    assert Snapshot.of(dag).structures == grown.structures


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.add_direct_edge("2@n", "1@n"), r"the edges run in a cycle, .*; remove or reverse one"),
        (lambda d: d.add_direct_edge("1@n", "1@n"), "in a cycle"),
        (lambda d: d.restructure({**d.structure(), "edges": [("1@n", "start@n")]}), "leads into the root"),
        (lambda d: d.add_direct_edge("1@n", "8@n"), r"no node '8@n'; its nodes are start@n, 1@n, 2@n, end@n"),
        (lambda d: d.add_direct_edge("1@n", "2@n"), "1@n->2@n exists already"),
        (lambda d: d.add_node_with_two_edges("2@n", "3@n", "1@n", {"size": 1}), "in a cycle"),
        (lambda d: d.add_node_with_two_edges("1@n", "2@n", "end@n", {"size": 1}), "node 2@n exists already"),
        (lambda d: d.add_node_with_two_edges("1@n", "a.b", "end@n", {"size": 1}), "needs a name without"),
        (lambda d: d.remove_edge("1@n", "end@n"), r"no edge 1@n->end@n; its edges are start@n->1@n"),
        (lambda d: d.remove_node("end@n"), "cannot be removed"),
        (lambda d: d.remove_node("8@n"), "no node '8@n'"),
        (lambda d: d.rename_nodes({"1@n": "2@n"}), "exists already"),
        (lambda d: d.rename_nodes({"8@n": "9@n"}), "no node '8@n'"),
        (lambda d: d.rename_nodes({"1@n": "9@n", "2@n": "9@n"}), "two nodes would have the same name"),
        (lambda d: d.restructure({"edges": [("1@n", "end@n")], "node_attributes": {}}), "'start@n' has no attributes"),
        (lambda d: d.bottlenecks(), "no statistics are collected"),
        (lambda d: d.update_computation(), "no statistics are collected"),
    ],
)
def test_what_cannot_be_changes_nothing(change, text):
    dag = skip_graph()
    before, state = dag.export_dag_parameters(), dag.state_dict()
    with pytest.raises(GrowthError, match=text):
        change(dag)
    assert dag.export_dag_parameters() == before
    assert all(np.array_equal(value, state[name]) for name, value in dag.state_dict().items())


def test_what_is_not_built_is_refused_by_name():
    with pytest.raises(NotImplementedError, match="'foo' is not supported"):
        GrowingDAG(3, 2, default_layer_type="foo")
    with pytest.raises(GrowthError, match="must not contain"):
        GrowingDAG(3, 2, name="a_b")
    with pytest.raises(KeyError, match="needs a size"):
        GrowingDAG(3, 2).add_node_with_two_edges("start@", "1@", "end@", {"type": "linear"})
    with pytest.raises(NotImplementedError, match="leads from features to images"):
        GrowingDAG(3, 2).add_node_with_two_edges(
            "start@", "1@", "end@", {"type": "convolution", "size": 2, "shape": (4, 4)}
        )
    with pytest.raises(NotImplementedError, match="no chain"):
        _ = GrowingDAG(3, 2).chain
