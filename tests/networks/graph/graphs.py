"""Graphs and data that the tests of graphs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from growarray.networks import GrowingDAG
from growarray.ops import mse


def skip_graph(function: str = "tanh", **options: Any) -> GrowingDAG:
    """start -> 1 -> 2 -> end with skips from start to 2 and to the end; widths 4, 3, 2, 2."""
    sizes = {"start@n": (4, "id"), "1@n": (3, function), "2@n": (2, function), "end@n": (2, "id")}
    edges = [("start", "1"), ("1", "2"), ("2", "end"), ("start", "2"), ("start", "end")]
    described = {
        "edges": [(f"{a}@n", f"{b}@n") for a, b in edges],
        "node_attributes": {node: {"size": size, "activation": f} for node, (size, f) in sizes.items()},
    }
    options = {"activation": function, "name": "n", "dtype": np.float64, "rng": np.random.default_rng(0), **options}
    return GrowingDAG(4, 2, DAG_parameters=described, **options)


def image_graph(end: str = "linear", pool: str = "flatten", function: str = "tanh", **options: Any) -> GrowingDAG:
    """start -> 1 -> 2 -> end, images of 6 x 5, then 3 x 3; with an end of features 1 -> 3 -> end, else start -> end."""
    images = {"type": "convolution", "shape": [6, 5], "pool": pool}
    sizes = {"start@n": (2, "id"), "1@n": (3, function), "2@n": (2, function), "end@n": (2, "id")}
    nodes = {node: {**images, "size": size, "activation": f} for node, (size, f) in sizes.items()}
    nodes["2@n"]["shape"] = nodes["end@n"]["shape"] = [3, 3]
    edges = [("start", "1"), ("1", "2"), ("2", "end")]
    if end == "linear":
        nodes["end@n"]["type"], nodes["3@n"] = "linear", {"size": 3, "activation": function}
        edges += [("1", "3"), ("3", "end")]
    else:
        edges += [("start", "end")]
    described = {"edges": [(f"{a}@n", f"{b}@n") for a, b in edges], "node_attributes": nodes}
    options = {"activation": function, "name": "n", "dtype": np.float64, "rng": np.random.default_rng(0), **options}
    return GrowingDAG(2, 2, DAG_parameters=described, **options)


def images(dag: GrowingDAG, samples: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 2, 6, 5), and targets that the graph misses."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((samples, 2, 6, 5))
    y = dag(x)
    return x, y**2 + rng.standard_normal(y.shape)


def data(samples: int = 60, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, 4) and targets (n, 2) that no linear map of them gives."""
    x = np.random.default_rng(seed).standard_normal((samples, 4))
    return x, np.stack([np.sin(2 * x[:, 0]) * x[:, 1], x[:, 2] ** 2 - x[:, 3]], axis=1)


def collect(dag: GrowingDAG, x: np.ndarray, target: np.ndarray, size: int = 25) -> None:
    """One collection in batches, whose gradients are those of the sum of the sample losses."""
    dag.init_computation()
    for start in range(0, len(x), size):
        y, pullback = dag.vjp(x[start : start + size])
        pullback(mse(y, target[start : start + size])[1](float(len(y))), wrt_x=False)
        dag.update_computation()


def loss_of(dag: GrowingDAG, x: np.ndarray, target: np.ndarray) -> Callable[[Any, float], float]:
    """The loss with one expansion planned at a scaling."""

    def loss(expansion: Any, scaling: float) -> float:
        expansion.scaling_factor = scaling
        value = float(mse(dag.extended_forward(x), target)[0])
        expansion.scaling_factor = 0.0
        return value

    return loss
