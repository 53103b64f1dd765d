"""Graphs of images: values and statistics beside GroMo's, promises of all expansions, growth, refusals."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

import growarray
from growarray.distributed import GrowthStatistics, statistics_of
from growarray.errors import GrowthError, ShapeError
from growarray.growing import FISHER, TINY, Conv2dGrowingModule, FullConv2dGrowingModule
from growarray.networks import ExpansionType, GrowingDAG, Growth, GrowthSettings, Snapshot
from growarray.nn import Tanh
from growarray.ops import mse
from growarray.optim import AdamW
from growarray.testing import check_vjp
from tests.networks.graph.graphs import collect, image_graph, images, loss_of

pytestmark = pytest.mark.filterwarnings("ignore:optimal_delta. S is singular")
ENDS = [("linear", "flatten"), ("linear", "mean"), ("convolution", "flatten")]
RULES = {"tiny": TINY, "without_delta": replace(TINY, compute_delta=False), "fisher": FISHER}


def _drawn(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape) * 0.3


def _gromo() -> GrowingDAG:
    """A graph with the description and the weights of one that GroMo 0.1.0 was run with."""
    sizes = {"start@g": (2, "id"), "1@g": (3, "selu"), "2@g": (2, "selu"), "end@g": (1, "id")}
    edges = [("start@g", "1@g"), ("1@g", "2@g"), ("2@g", "end@g"), ("start@g", "2@g"), ("start@g", "end@g")]
    described = {
        "edges": edges,
        "node_attributes": {
            node: {"type": "convolution", "size": size, "shape": (5, 4), "kernel_size": (3, 3), "activation": function}
            for node, (size, function) in sizes.items()
        },
        "edge_attributes": {"type": "convolution", "use_bias": True, "kernel_size": (3, 3)},
    }
    dag = GrowingDAG(2, 1, 2, True, False, "convolution", "selu", "g", DAG_parameters=described, dtype=np.float64)
    for seed, edge in enumerate(edges):
        layer = dag.get_edge_module(*edge)
        layer.weight.data = _drawn(layer.weight.shape, seed)
        layer.bias.data = _drawn(layer.bias.shape, seed + 10)
    return dag


def test_values_deltas_and_candidates_are_those_of_gromo():
    dag = _gromo()
    dag.init_computation()
    y, pullback = dag.vjp(_drawn((6, 2, 5, 4), 3) * 2)
    row = [-0.401048190580, 3.771020949771, -2.141622106992, 3.046532818205]
    np.testing.assert_allclose(y[0, 0, 0], row, rtol=1e-11)
    pullback(y - _drawn((6, 1, 5, 4), 5))
    dag.update_computation()
    dag.compute_optimal_delta()
    expected = {"1@g": 29.1484, "2@g": 56.2359, "end@g": 55.3412}  # as printed: it solves in float32
    assert {n: round(dag.merges[n].update.decrease, 4) for n in expected} == pytest.approx(expected, rel=2e-6)
    norms = {"start@g->1@g": 2.450904, "1@g->2@g": 4.554662, "2@g->end@g": 1.139132, "start@g->2@g": 4.853241}
    found = {edge: np.linalg.norm(dag.layers[edge].update.delta.weight.data) for edge in norms}
    assert found == pytest.approx(norms, rel=2e-5)
    assert list(map(str, dag.define_next_actions())) == [
        "new edge 1->end", "new node 3: 1->2", "new node 3: 2->end", "new node 3: start->1", "wider node 1",
        "wider node 2",
    ]  # fmt: skip


@pytest.mark.parametrize(("end", "pool"), ENDS)
def test_gradients_are_those_of_finite_differences(end, pool):
    dag = image_graph(end, pool)
    x, _ = images(dag, 2)
    check_vjp(dag.vjp, x)
    rows = dag.vjp(x.reshape(2, -1))[1]
    assert rows(np.ones_like(dag(x))).shape == (2, 60)


@pytest.mark.parametrize(
    ("end", "pool", "rule", "sampled"),
    [
        ("linear", "flatten", "tiny", 0),
        ("linear", "flatten", "tiny", 32),
        ("linear", "mean", "tiny", 0),
        ("linear", "mean", "fisher", 32),
        ("convolution", "flatten", "without_delta", 32),
        ("convolution", "flatten", "fisher", 0),
    ],
)
def test_promises_of_all_expansions_hold_to_one_percent(end, pool, rule, sampled):
    dag = image_graph(end, pool, sampled=sampled)
    x, target = images(dag)
    collect(dag, x, target, 12)
    dag.compute_optimal_updates(RULES[rule], max_new=2)
    loss, seen, step = loss_of(dag, x, target), set(), 1e-4
    start = float(mse(dag(x), target)[0])
    for expansion in dag.growing_layers:
        assert loss(expansion, 0.0) == start  # nothing changes at zero scaling
        promised, found = expansion.predicted_decrease, (start - loss(expansion, step)) / step**2
        assert abs(found - promised) <= 0.01 * promised + 1e-6, expansion
        if expansion.new_neurons_fo_improvement > 1e-3:
            seen.add(expansion.type)
    assert seen == set(ExpansionType)


@pytest.mark.parametrize(("end", "pool"), ENDS)
def test_growth_gives_the_planned_output_and_parameters(end, pool):
    planned = image_graph(end, pool, sampled=16)
    x, target = images(planned, 12)
    collect(planned, x, target)
    planned.compute_optimal_updates(max_new=2)
    for index, _ in enumerate(planned.growing_layers):
        dag = copy.deepcopy(planned)
        expansion, old = dag.growing_layers[index], dag.number_of_parameters()
        expansion.scaling_factor = 0.5
        expected, added, name = dag.extended_forward(x), expansion.parameters_added, str(expansion)
        expansion.apply_change()
        np.testing.assert_allclose(dag(x), expected, rtol=1e-9, atol=1e-12, err_msg=name)
        assert dag.number_of_parameters() == old + added, name


def test_an_edge_takes_off_the_bottleneck_what_it_gains():
    dag = image_graph("linear", "mean", sampled=0)
    x, target = images(dag, 60)
    collect(dag, x, target, 60)
    dag.compute_optimal_updates()
    edge = next(e for e in dag.growing_layers if str(e) == "new edge start->2")
    before, gain = dag.bottlenecks()["2@n"], edge.new_neurons_fo_improvement
    output = dag(x)
    edge.apply_change(0.0)
    np.testing.assert_array_equal(dag(x), output)
    assert dag.get_edge_module("start@n", "2@n").stride == (2, 2)
    collect(dag, x, target, 60)
    np.testing.assert_allclose(dag.bottlenecks()["2@n"], before - gain, rtol=1e-9)


def test_channels_are_those_of_a_full_convolution_in_a_chain():
    rng = np.random.default_rng(0)
    first = Conv2dGrowingModule(2, 3, 3, padding=1, post_layer_function=Tanh(), rng=rng, dtype=np.float64)
    second = FullConv2dGrowingModule(3, 2, 3, padding=1, previous_module=first, rng=rng, dtype=np.float64)
    dag = GrowingDAG(
        2, 2, default_layer_type="convolution", input_shape=(6, 5), activation="tanh", sampled=0, dtype=np.float64
    )
    dag.add_node_with_two_edges("start@", "1@", "end@", {"size": 3})
    dag.remove_edge("start@", "end@")
    dag.remove_edge("1@", "end@")
    dag.add_direct_edge("1@", "end@")
    for layer, edge in ((first, "start@->1@"), (second, "1@->end@")):
        for parameter, same in zip(dag.layers[edge].parameters(), layer.parameters(), strict=True):
            parameter.data = same.data
    x = rng.standard_normal((40, 2, 6, 5))
    target = dag(x) ** 2
    collect(dag, x, target)
    dag.compute_optimal_updates(max_new=2)
    second.init_computation()
    hidden, back = first.vjp(x)
    y, end = second.vjp(hidden)
    back(end(mse(y, target)[1](float(len(x)))))
    second.update_computation()
    second.compute_optimal_updates(max_new=2)
    wider, plan = dag.growing_layers[-1].update, second.update
    np.testing.assert_allclose(wider.singular_values, plan.singular_values, rtol=1e-9)
    np.testing.assert_allclose(wider.output_extension, first.output_extension, rtol=1e-8, atol=1e-12)
    columns = second.columns_of(wider.input_extension).weight.data
    np.testing.assert_allclose(columns, plan.input_extension.weight.data, rtol=1e-8, atol=1e-12)


def test_one_pass_of_batches_is_the_whole_and_takes_the_same_memory():
    plans, sizes = [], []
    for size in (30, 7):
        dag = image_graph(sampled=0)
        x, target = images(dag)
        collect(dag, x, target, size)
        dag.compute_optimal_updates()
        plans.append([expansion.first_order_improvement for expansion in dag.growing_layers])
        sizes.append([statistic().size for name, statistic in dag.collected().named() if not name.endswith("e")])
    np.testing.assert_allclose(*plans, rtol=1e-8)
    assert sizes[0] == sizes[1]


def test_costs_count_every_position():
    dag = image_graph("linear", "mean", sampled=0)
    collect(dag, *images(dag))
    dag.compute_optimal_updates(max_new=1)
    costs = {str(e): (e.parameters_added, e.flops_added) for e in dag.growing_layers}
    assert costs["new edge start->2"] == (2 * 9 * 2, 2 * 2 * 9 * 2 * 9)
    assert costs["new edge 1->end"] == (3 * 2, 2 * 3 * 2)
    assert costs["new node 4: 2->end"] == (2 * 9 + 1 + 2, 2 * (2 * 9 * 9 + 2))
    assert costs["wider node 1"] == (2 * 9 + 1 + 2 * 9 + 3, 2 * (2 * 9 * 30 + 2 * 9 * 9 + 3))


def test_description_snapshot_and_file_bring_the_graph_back(tmp_path):
    dag = image_graph("linear", "mean")
    x, target = images(dag)
    described = dag.export_dag_parameters()
    assert described["node_attributes"]["2@n"] == {
        "type": "convolution", "size": 2, "activation": "tanh", "use_layer_norm": False, "shape": [3, 3],
        "kernel_size": [3, 3], "pool": "mean",
    }  # fmt: skip
    again = GrowingDAG(2, 2, name="n", dtype=np.float64, DAG_parameters=json.loads(json.dumps(described)))
    assert again.export_dag_parameters() == described
    again.load_state_dict(dag.state_dict())
    np.testing.assert_array_equal(again(x), dag(x))
    growarray.save(dag, tmp_path / "graph.npz")
    np.testing.assert_array_equal(growarray.load(tmp_path / "graph.npz")(x), dag(x))
    y, before = dag(x), Snapshot.of(dag)
    collect(dag, x, target)
    dag.compute_optimal_updates(max_new=2)
    dag.growing_layers[0].apply_change(0.5)
    before.restore(dag)
    np.testing.assert_array_equal(dag(x), y)


def test_the_place_between_two_graphs_of_images_grows():
    options = {"default_layer_type": "convolution", "input_shape": (5, 4), "activation": "tanh", "dtype": np.float64}
    first, second = (GrowingDAG(2, 2, name=name, rng=np.random.default_rng(0), **options) for name in "ab")
    x = np.random.default_rng(1).standard_normal((20, 2, 5, 4))
    expected = second(first(x))
    with pytest.raises(ShapeError, match=r"ends in Images\(shape=\(5, 4\), .* the other one reads features"):
        first.append(GrowingDAG(2, 2, name="c"))
    first.append(second)
    np.testing.assert_array_equal(first(x), expected)
    collect(first, x, expected**2)
    first.compute_optimal_updates(max_new=1)
    between = first.growing_layers[-1]
    assert str(between) == "wider node end"
    between.apply_change(0.1)
    assert first.widths == [3]


def test_shards_add_up_to_the_whole():
    dag = image_graph("linear", "mean", sampled=0)
    x, target = images(dag)
    parts = [statistics_of(dag, (x[part], target[part]), mse) for part in (slice(0, 11), slice(11, 30))]
    GrowthStatistics.from_state_dict((parts[0] + parts[1]).state_dict()).put(dag)
    dag.compute_optimal_updates(max_new=1)
    found = [expansion.first_order_improvement for expansion in dag.growing_layers]
    collect(dag, x, target, 30)
    dag.compute_optimal_updates(max_new=1)
    np.testing.assert_allclose(found, [e.first_order_improvement for e in dag.growing_layers], rtol=1e-8)


def test_a_graph_of_images_grows_from_one_edge_and_learns():
    rng = np.random.default_rng(0)
    x, labels = 0.3 * rng.standard_normal((200, 1, 5, 5)), rng.integers(0, 2, 200)
    for image, upright, (row, column) in zip(x[:, 0], labels, rng.integers(0, 3, (200, 2)), strict=True):
        image[(slice(row, row + 3), column) if upright else (row, slice(column, column + 3))] += 1.0
    dag = GrowingDAG(
        1, 2, default_layer_type="convolution", input_shape=(5, 5), end_type="linear", pool="mean", activation="relu",
        sampled=16, dtype=np.float64, rng=rng,
    )  # fmt: skip
    settings = GrowthSettings(epochs=8, neurons=4, every=2, max_parameters=150)
    loop = Growth(dag, AdamW(dag, lr=2e-2), (x, labels), settings=settings, rng=rng)
    history = loop.run()
    grown = [entry for entry in history.of("growth") if "refused" not in entry]
    assert grown[0]["where"] == "new node 1: start->end"
    assert all(entry["train_change"] < 0 for entry in grown)
    assert loop.evaluate(loop.data)[1] > 0.8  # the edge alone reads the mean, which is the same for both kinds of bars


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda d: d.add_direct_edge("2@n", "1@n"), GrowthError, "the edges run in a cycle"),
        (lambda d: d.add_direct_edge("3@n", "4@n"), GrowthError, "no node '4@n'"),
        (lambda d: d.add_direct_edge("start@n", "2@n", {"stride": 1}), ShapeError,
         r"edge start@n->2@n gives images of \(6, 5\), its node has \(3, 3\); use an odd kernel, or choose stride"),
        (lambda d: d.add_direct_edge("start@n", "2@n", {"kernel_size": 5}), ShapeError,
         r"has kernel size \(5, 5\), but all that read its node have \(3, 3\)"),
        (lambda d: d.add_node_with_two_edges("2@n", "4@n", "end@n", {"size": 1, "shape": (6, 5)}), ShapeError,
         r"gives images of \(3, 3\), its node has \(6, 5\)"),
        (lambda d: d.add_node_with_two_edges("start@n", "4@n", "2@n", {"size": 1, "kernel_size": 4}), ShapeError,
         r"edge 4@n->2@n gives images of \(3, 2\), its node has \(3, 3\); use an odd kernel"),
        (lambda d: d.add_node_with_two_edges("2@n", "4@n", "end@n", {"size": 1, "shape": (1, 1)}, {"padding": 0,
         "dilation": 2}), ShapeError, r"2@n->4@n cannot read images of \(3, 3\): .* add padding of 2, or shrink"),
        (lambda d: d.add_node_with_two_edges("start@n", "4@n", "2@n", {"size": 1, "type": "linear"}),
         NotImplementedError, "4@n->2@n leads from features to images, .* let nodes of images come first"),
        (lambda d: d.add_node_with_two_edges("start@n", "4@n", "2@n", {"size": 1, "pool": "max"}), ValueError,
         "pool of node 4@n is 'max', expected one of flatten, mean"),
        (lambda d: d.add_node_with_two_edges("3@n", "4@n", "end@n", {"size": 1, "type": "convolution"}), KeyError,
         "4@n needs the sizes of its images"),
        (lambda d: d.add_node_with_two_edges("1@n", "4@n", "end@n", {"size": 1, "type": "foo"}), NotImplementedError,
         "has the type 'foo'; supported: 'linear', 'convolution'"),
        (lambda d: d.restructure({**d.structure(), "edges": [("3@n", "2@n")]}), NotImplementedError, "to images"),
        (lambda d: d.match(d.state_dict()), NotImplementedError, "does not tell the sizes of images; build the graph"),
        (lambda d: d(np.zeros((2, 2, 5, 5))), ShapeError, r"have shape \(2, 5, 5\), expected images \(2, 6, 5\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_changes_nothing(change, error, text):
    dag = image_graph()
    before, state = dag.export_dag_parameters(), dag.state_dict()
    with pytest.raises(error, match=text):
        change(dag)
    assert dag.export_dag_parameters() == before
    assert all(np.array_equal(value, state[name]) for name, value in dag.state_dict().items())


def test_a_node_that_nothing_leads_into_gets_what_the_bottleneck_asks_for():
    dag = image_graph(sampled=8)
    x, target = images(dag)
    dag.remove_edge("1@n", "2@n")
    collect(dag, x, target)
    dag.compute_optimal_updates(max_new=1)
    gains = {str(e): e.new_neurons_fo_improvement for e in dag.growing_layers if str(e).endswith("->2")}
    assert set(gains) == {"new edge 1->2", "new edge start->2", "new node 4: 1->2", "new node 4: start->2"}
    assert min(gains.values()) > 0.0
    assert max(gains.values()) < dag.bottlenecks()["2@n"]


def test_a_batch_that_is_broken_or_weighted_is_in_no_statistic():
    dag = image_graph()
    x, target = images(dag)
    collect(dag, x, target)
    held = dag.collected()
    before = [statistic.samples for _, statistic in held.named()]
    y, pullback = dag.vjp(x)
    pullback(np.where(np.arange(len(x))[:, None] == 3, np.nan, y))
    with pytest.raises(GrowthError, match="has NaN or infinite activities or gradients"):
        dag.update_computation()
    dag.weigh(np.ones(len(x)))
    y, pullback = dag.vjp(x)
    pullback(y)
    with pytest.raises(NotImplementedError, match="sample weights are not supported for nodes of images"):
        dag.update_computation()
    assert [statistic.samples for _, statistic in held.named()] == before
