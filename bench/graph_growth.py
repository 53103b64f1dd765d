"""One growth step of a DAG beside GroMo, and what choosing where to grow costs by the number of samples.

Both sides have the same graph, weights and data in float32. A step looks at all expansions, plans their new weights,
judges each on validation data, chooses the one with the lowest loss and carries it out. GroMo trains the new weights
by AdamW for ``neuron_epochs`` (its default 100, and a tenth of that) on all activities and gradients, which it keeps,
and evaluates each at scaling 1; here they come in closed form from moments of one pass, and each is searched along
its scaling. The deeper the graph, the more expansions there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.memory import increase
from bench.timing import clock, compare, geometric_mean, show, table, use_threads

__all__ = ["report", "run"]

NEW, VALIDATION = 8, 500
STEP = {
    "name": "graph",
    "expansions": "expansions:d",
    "epochs": "neuron epochs:d",
    "ours": "ours ms:.1f",
    "theirs": "GroMo ms:.1f",
    "ratio": "ratio:.2f",
    "spread": "spread:.2f",
    "others": "others:.0%",
}
CHOOSING = {"samples": "samples:d", "seconds": "seconds:.2f", "rate": "per 1000 samples ms:.2f", "memory": "MiB:.1f"}


@dataclass(frozen=True)
class Case:
    """A chain of hidden nodes with an edge from input to output, samples, and the epochs of the other side."""

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    samples: int
    epochs: int

    @property
    def name(self) -> str:
        """Widths, and samples."""
        return f"{'-'.join(map(str, (self.inputs, *self.hidden, self.outputs)))}, {self.samples} samples"

    @property
    def nodes(self) -> dict[str, int]:
        """Names and widths of all nodes."""
        inner = {f"{i}@g": width for i, width in enumerate(self.hidden, 1)}
        return {"start@g": self.inputs, **inner, "end@g": self.outputs}

    @property
    def edges(self) -> list[tuple[str, str]]:
        """The chain, and the direct edge."""
        names = list(self.nodes)
        return [*itertools.pairwise(names), ("start@g", "end@g")]

    def describe(self) -> dict[str, Any]:
        """The description that both sides are built from."""
        nodes = {
            node: {"type": "linear", "size": width, "activation": "selu" if node[0].isdigit() else "id"}
            for node, width in self.nodes.items()
        }
        for attributes in nodes.values():
            attributes["use_layer_norm"] = False
        return {"edges": self.edges, "node_attributes": nodes, "edge_attributes": {"type": "linear", "use_bias": True}}


class _Data:
    """Samples that a teacher labels, training and validation."""

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(0)
        teacher = rng.standard_normal((case.inputs, case.outputs))
        x = rng.standard_normal((case.samples + VALIDATION, case.inputs), dtype=np.float32)
        y = (np.sin(2 * x) @ teacher).argmax(axis=1)
        self.train, self.validation = (x[VALIDATION:], y[VALIDATION:]), (x[:VALIDATION], y[:VALIDATION])
        sizes = case.nodes
        self.weights = {
            edge: rng.standard_normal((sizes[edge[1]], sizes[edge[0]]), dtype=np.float32)
            * np.float32(sizes[edge[0]] ** -0.5)
            for edge in case.edges
        }


def _ours(case: Case, data: _Data) -> tuple[Any, Any]:
    """The graph, and a function that takes one step."""
    from growarray.networks import GrowingDAG, Growth, GrowthSettings
    from growarray.optim import AdamW

    dag = GrowingDAG(case.inputs, case.outputs, NEW, name="g", DAG_parameters=case.describe(), dtype=np.float32)
    for edge, weight in data.weights.items():
        dag.get_edge_module(*edge).weight.data = weight.copy()
    settings = GrowthSettings(neurons=NEW, choose="validation", max_parameters=None, collect_batch=256)
    loop = Growth(dag, AdamW(dag, lr=1e-3), data.train, validation=data.validation, settings=settings)
    return dag, loop.grow


def _theirs(case: Case, data: _Data) -> tuple[Any, Any]:
    import torch
    from gromo.containers.growing_dag import GrowingDAG
    from gromo.containers.growing_graph_network import GrowingGraphNetwork
    from torch.utils.data import DataLoader, TensorDataset

    loss = torch.nn.CrossEntropyLoss()
    network = GrowingGraphNetwork(
        case.inputs, case.outputs, loss, NEW, neuron_epochs=case.epochs, name="g", device="cpu"
    )
    network.dag = GrowingDAG(
        case.inputs, case.outputs, NEW, True, False, name="g", DAG_parameters=case.describe(), device="cpu"
    )
    for edge, weight in data.weights.items():
        network.dag.get_edge_module(*edge).layer.weight.data = torch.from_numpy(weight.copy())
    train, validation = (
        DataLoader(TensorDataset(*map(torch.from_numpy, part)), batch_size=256)
        for part in (data.train, data.validation)
    )

    def step() -> None:
        actions = network.dag.define_next_actions()
        bottleneck, activity = network.dag.calculate_bottleneck(actions, train, loss)
        network.execute_expansions(
            actions, bottleneck, activity, amplitude_factor=False, evaluate=True, train_dataloader=validation,
            dev_dataloader=validation, val_dataloader=validation,
        )  # fmt: skip
        network.choose_growth_best_action(actions)
        network.apply_change()

    return network.dag, step


def _step(case: Case) -> dict[str, Any]:
    data = _Data(case)
    mine, other = (side(case, data) for side in (_ours, _theirs))
    expansions = [len(dag.define_next_actions()) for dag, _ in (mine, other)]
    if expansions[0] != expansions[1]:
        raise AssertionError(f"{case.name}: {expansions[0]} expansions here, {expansions[1]} in GroMo")

    def once(side: Any) -> Any:
        return lambda: side(case, data)[1]()

    one = compare(once(_ours), once(_theirs), repeat=5, warmup=0, budget=30)
    return {
        "name": case.name, "epochs": case.epochs, "expansions": expansions[0], "ours": 1e3 * one.ours,
        "theirs": 1e3 * one.theirs, "ratio": one.ratio, "spread": max(one.ours_spread, one.theirs_spread),
        "others": one.others,
    }  # fmt: skip


def _choosing(samples: int, case: Case) -> dict[str, Any]:
    """Seconds and memory of statistics over ``samples``, drawn batch by batch, and of planning every expansion."""
    from growarray.ops import cross_entropy

    dag, rng, size = _ours(case, _Data(case))[0], np.random.default_rng(1), 1000

    def choose() -> None:
        dag.init_computation()
        for _ in range(samples // size):
            x = rng.standard_normal((size, case.inputs), dtype=np.float32)
            y, pullback = dag.vjp(x)
            pullback(cross_entropy(y, rng.integers(0, case.outputs, size))[1](float(size)), wrt_x=False)
            dag.update_computation()
        dag.compute_optimal_updates()
        dag.reset_computation()

    start = clock()
    memory = increase(choose)
    seconds = clock() - start
    return {"samples": samples, "seconds": seconds, "rate": 1e6 * seconds / samples, "memory": memory / 2**20}


def run(*, quick: bool = False, progress: object = None) -> dict[str, Any]:
    """Steps of some graphs, and choosing from 10,000 to 1,000,000 samples."""
    import torch  # noqa: F401  (before the number of threads is set)

    use_threads()
    chains: list[tuple[tuple[int, ...], int]] = [((16,), 10), ((32, 16), 10)]
    rows = []
    for hidden, epochs in chains if quick else [*chains, ((16,), 100), ((32, 16, 16), 10)]:
        rows.append(_step(Case(64, hidden, 10, 2000, epochs)))
        show(f"{rows[-1]['name']:28} {epochs:4} epochs: {rows[-1]['ratio']:.2f}")
    case = Case(64, (32, 16), 10, 2000, 0)
    _choosing(2000, case)  # libraries loaded, threads started, buffers made
    choosing = []
    for samples in (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000):
        choosing.append(_choosing(samples, case))
        show(f"{samples:9} samples: {choosing[-1]['seconds']:.2f} s, {choosing[-1]['memory']:.1f} MiB")
    return {"rows": rows, "choosing": choosing, "geometric_mean": geometric_mean(row["ratio"] for row in rows)}


def report(results: Mapping[str, Any]) -> str:
    """Both tables."""
    return (
        f"{table(results['rows'], STEP)}\n\ngeometric mean {results['geometric_mean']:.2f}\n\n"
        f"{table(results['choosing'], CHOOSING)}"
    )
