"""Two graphs as one: the node where they meet gets wider, and what cannot be joined is refused."""

from __future__ import annotations

import numpy as np
import pytest

from growarray.errors import GrowthError, ShapeError
from growarray.networks import ExpansionType, GrowingDAG
from growarray.ops import mse
from tests.networks.graph.graphs import collect, data, loss_of, skip_graph


def second(width: int = 2, name: str = "b", end: str = "id", **root: object) -> GrowingDAG:
    described = {
        "edges": [(f"start@{name}", f"1@{name}"), (f"1@{name}", f"end@{name}"), (f"start@{name}", f"end@{name}")],
        "node_attributes": {
            f"start@{name}": {"size": width, "activation": "id", **root},
            f"1@{name}": {"size": 3, "activation": "tanh"},
            f"end@{name}": {"size": 2, "activation": end},
        },
    }
    return GrowingDAG(
        width, 2, name=name, DAG_parameters=described, dtype=np.float64, rng=np.random.default_rng(5), sampled=8
    )


def test_the_place_between_two_graphs_grows_as_promised():
    dag, other, (x, target) = skip_graph(), second(activation="tanh"), data()
    expected = other(dag(x))
    dag.append(other)
    np.testing.assert_array_equal(dag(x), expected)
    assert (dag.end, dag.widths) == ("end@b", [3, 2, 2, 3])
    assert dag.successors("end@n") == ["1@b", "end@b"]
    collect(dag, x, target)
    dag.compute_optimal_updates(max_new=2)
    loss = loss_of(dag, x, target)
    between = next(e for e in dag.growing_layers if e.expanding_node == "end@n")
    assert between.type is ExpansionType.EXPANDED_NODE
    assert between.previous_nodes == ["2@n", "start@n"]
    promised, step = between.predicted_decrease, 1e-4
    assert promised > 0.01
    assert loss(between, 0.0) == float(mse(expected, target)[0])
    assert (loss(between, 0.0) - loss(between, step)) / step**2 == pytest.approx(promised, rel=1e-2)
    before = dag(x)
    between.apply_change(0.0)
    np.testing.assert_array_equal(dag(x), before)
    assert dag.widths == [3, 2, 4, 3]


def test_two_graphs_in_one_go_out_and_in():
    dag = skip_graph()
    dag.append(second(activation="tanh"))
    again = GrowingDAG(4, 2, name="n", dtype=np.float64)
    again.rename_nodes({"end@n": "end@b"})
    again.restructure(dag.export_dag_parameters())
    again.load_state_dict(dag.state_dict())
    x, _ = data(5)
    np.testing.assert_array_equal(again(x), dag(x))


@pytest.mark.parametrize(
    ("other", "error", "text"),
    [
        (lambda _: second(3), ShapeError, "ends in 2 features, the other one reads 3"),
        (lambda _: second(name="n"), GrowthError, "node 1@n exists already"),
        (lambda dag: dag, TypeError, "expected another GrowingDAG"),
    ],
)
def test_what_cannot_be_joined_changes_nothing(other, error, text):
    dag = skip_graph()
    before = dag.export_dag_parameters()
    with pytest.raises(error, match=text):
        dag.append(other(dag))
    assert dag.export_dag_parameters() == before


def test_a_node_has_one_function():
    dag = second(name="a", end="tanh")
    with pytest.raises(GrowthError, match="end@a and start@b become one node and both have a function"):
        dag.append(second(activation="tanh"))
    assert dag.end == "end@a"
