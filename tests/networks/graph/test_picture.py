"""Pictures and outlines of graphs, and what networkx makes of them."""

from __future__ import annotations

import networkx
import numpy as np
import pytest

from growarray.errors import GrowthError
from growarray.networks import GrowingDAG, GrowingResNet, GrowingVGG
from growarray.networks.graph.picture import bend, frames_of, graph_figure, places
from tests.networks.graph.graphs import skip_graph


def test_every_edge_leads_to_the_right_and_no_two_nodes_are_in_one_place():
    outline = skip_graph().outline()
    at = places(outline)
    assert len(set(at.values())) == len(outline["nodes"]) == 4
    assert all(at[source][0] < at[target][0] for source, target in outline["edges"])


def test_an_edge_bends_around_a_node_that_it_does_not_join():
    edges = ["start end", "start 1", "1 end", "start 2", "2 1", "2 3", "3 1", "3 4", "4 1"]
    outline = {"nodes": dict.fromkeys(("start", "end", "1", "2", "3", "4"), 8), "edges": [e.split() for e in edges]}
    at = places(outline)
    assert bend(at, "start", "end", 15.0) == 0.25
    assert bend(at, "start", "1", 15.0) == -0.25  # bent the other way it would run through node 3


def test_a_strip_has_a_panel_for_the_start_and_each_growth():
    start, outline = GrowingDAG(4, 2, name="n").outline(), skip_graph().outline()
    wider = {**outline, "nodes": {**outline["nodes"], "1@n": 5}}
    steps = [
        {"event": "train", "graph": start},
        {"event": "growth", "epoch": 2, "where": "new node 1", "graph": outline},
        {"event": "growth", "epoch": 4, "where": "wider node 1", "graph": wider},
        {"event": "growth", "epoch": 6, "where": "x", "refused": "no", "graph": wider},
    ]
    assert frames_of(steps[:2]) == [("start", start), ("epoch 2: new node 1", outline)]
    assert frames_of(steps) == [("start", start), ("epoch 2: new node 1\nuntil epoch 4", wider)]
    figure = graph_figure(frames_of(steps[:2]))
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert {"start\n4", "1\n3", "2\n2", "end\n2"} <= set(texts)
    with pytest.raises(ValueError, match="no graph to draw"):
        graph_figure(frames_of([{"event": "train"}]))


def test_a_graph_that_only_widens_has_its_start_and_seven_growths():
    network = GrowingVGG((1, 8, 8), 10, [(2, 3)])
    start = network.outline()
    assert start == {
        "nodes": {"image": 1, "conv 1": 2, "conv 2": 3, "output": 10},
        "edges": [["image", "conv 1"], ["conv 1", "conv 2"], ["conv 2", "output"]],
    }
    outlines = [{**start, "nodes": {**start["nodes"], "conv 1": 2 + i}} for i in range(1, 21)]
    growths = [{"event": "growth", "epoch": i, "parameters": 1000 * i, "graph": g} for i, g in enumerate(outlines, 1)]
    frames = frames_of([{"event": "train", "graph": start}, *growths])
    assert [frame["nodes"]["conv 1"] for _, frame in frames] == [2, 3, 6, 9, 13, 16, 19, 22]
    assert frames[-1][0] == "epoch 20: 20,000 parameters"
    assert len(frames_of([{"event": "train", "graph": start}, *growths[:3]])) == 4


def test_a_residual_network_shows_its_stream_and_its_blocks():
    outline = GrowingResNet((3, 8, 8), 10, (4, 8), (0, 5)).outline()
    assert outline["nodes"] == {
        "image": 3, "sum 0": 4, "block 1": 0, "sum 1": 4, "block 2": 5, "sum 2": 8, "output": 10,
    }  # fmt: skip
    assert ["sum 1", "sum 2"] in outline["edges"]
    assert graph_figure([("start", outline)]).axes[0].get_title() == "start"


def test_networkx_has_nodes_with_sizes_and_edges_with_parameters():
    graph = skip_graph().to_networkx()
    assert networkx.is_directed_acyclic_graph(graph)
    assert graph.nodes["1@n"] == {"size": 3}
    assert graph.edges["start@n", "1@n"] == {"parameters": 15}
    assert sum(parameters for *_, parameters in graph.edges.data("parameters")) == skip_graph().number_of_parameters()


def test_a_state_dict_tells_its_graph():
    dag, other = skip_graph(), GrowingDAG(4, 2, name="n", activation="tanh", dtype=np.float64)
    other.match(dag.state_dict())
    other.load_state_dict(dag.state_dict())
    x = np.random.default_rng(0).standard_normal((5, 4))
    np.testing.assert_array_equal(other(x), dag(x))
    before = other.export_dag_parameters()
    torn = {**dag.state_dict(), "layers.1@n->2@n.layer.weight": np.zeros((2, 7))}
    with pytest.raises(GrowthError, match=r"node 1@n has the widths \[3, 7\]"):
        other.match(torn)
    assert other.export_dag_parameters() == before
