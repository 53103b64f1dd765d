"""A graph in the training-and-growing loop: it grows, what does not pay is undone, the history says so."""

from __future__ import annotations

import numpy as np
import pytest

from growarray.networks import GrowingDAG, Growth, GrowthSettings
from growarray.networks.line_search import LineSearch
from growarray.nn import Tanh
from growarray.optim import AdamW

pytestmark = pytest.mark.filterwarnings("ignore:optimal_delta. S is singular")


def run(samples: int = 300, **settings: object) -> Growth:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 4))
    labels = (x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) > 0).astype(np.int64)
    dag = GrowingDAG(4, 2, activation=Tanh(), name="n", dtype=np.float64, rng=rng)
    options = {"epochs": 10, "neurons": 4, "every": 2, "max_parameters": 200, **settings}
    return Growth(dag, AdamW(dag, lr=2e-2), (x, labels), settings=GrowthSettings(**options), rng=rng)


@pytest.mark.parametrize("choose", ["first_order", "per_parameter", "per_flop", "validation"])
def test_a_graph_grows_from_one_edge_and_learns(choose):
    loop = run(choose=choose)
    history = loop.run()
    grown = [entry for entry in history.of("growth") if "refused" not in entry]
    assert len(grown) >= 3
    assert grown[0]["where"] == "new node 1: start->end"
    assert all(entry["train_change"] < 0 for entry in grown)
    assert all(entry["predicted_change"] < 0 for entry in grown)
    assert 50 < loop.network.number_of_parameters() <= 200
    assert loop.evaluate(loop.data)[1] > 0.85  # the edge alone, a linear map, stays near 0.6
    assert loop.network.layers["start@n->1@n"].weight.slots


def test_what_does_not_pay_leaves_no_node_behind(monkeypatch):
    loop = run()
    loop.train_epoch()
    before, state = loop.network.export_dag_parameters(), loop.network.state_dict()
    far = LineSearch(50.0, 0.0, 1.0, ())
    monkeypatch.setattr(type(loop.planner), "search", lambda *_: far)
    entry = loop.grow()
    assert entry["undone"]
    assert entry["where"].startswith("new node")
    assert loop.network.export_dag_parameters() == before
    assert all(np.array_equal(value, state[name]) for name, value in loop.network.state_dict().items())
    assert loop.network.statistics is None


def test_bic_stops_growth_where_parameters_do_not_pay():
    loop = run(samples=40, choose="bic", patience=1)
    history = loop.run()
    assert history.of("growth")[-1]["refused"] == "no growth lowers the BIC"
    assert [entry["what"] for entry in history.of("stop")] == ["growing", "training"]
