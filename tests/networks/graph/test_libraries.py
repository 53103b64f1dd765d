"""Graphs on every array library: the plans and the grown values of NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.networks import GrowingDAG
from growarray.ops import mse
from tests.conftest import Library
from tests.networks.graph.graphs import data, image_graph, images, skip_graph


def _image_graph() -> GrowingDAG:
    return image_graph("linear", "mean", sampled=8)


GROWTHS = [*((skip_graph, index) for index in (0, 1, -1)), *((_image_graph, index) for index in (2, 10))]


@pytest.mark.parametrize(("graph", "index"), GROWTHS, ids=["edge", "node", "wider", "kernel", "map"])
def test_a_growth_is_that_of_numpy(xp: Library, graph: Callable[[], GrowingDAG], index: int) -> None:
    x, target = data() if graph is skip_graph else images(graph())
    values, plans = [], []
    for make in (np.asarray, xp.asarray):
        dag = graph()
        if values:
            xp.adopt(dag)
        dag.init_computation()
        features, wanted = make(x), make(target)
        y, pullback = dag.vjp(features)
        pullback(mse(y, wanted)[1](float(len(x))), wrt_x=False)
        dag.update_computation()
        dag.compute_optimal_updates(max_new=2)
        expansion = dag.growing_layers[index]
        plans.append([expansion.predicted_decrease, *dag.bottlenecks().values()])
        expansion.scaling_factor = 0.5
        planned = to_numpy(dag.extended_forward(features))
        expansion.apply_change()
        values.append(to_numpy(dag(features)))
        np.testing.assert_allclose(values[-1], planned, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(*plans, rtol=1e-9)
    np.testing.assert_allclose(*values, rtol=1e-9, atol=1e-9)
