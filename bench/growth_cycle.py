"""A whole growth cycle of the same MLP in both libraries: collect 10 batches, plan every place, apply the best.

Same weights, data and rule (TINY, at most 10 new neurons), float32, gradient of the summed cross entropy, no Fisher
statistic. Networks are built anew for every cycle, outside the time. The JSON holds a profile of ours, too.
"""

from __future__ import annotations

import cProfile
import io
import itertools
import pstats
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bench.timing import clock, compare_phases, geometric_mean, show, table, use_threads

__all__ = ["BATCHES", "Ours", "Theirs", "compare_cycles", "report", "run"]

BATCHES, NEW = 10, 10
COLUMNS = {
    "name": "network",
    "batch": "batch:d",
    "total_ours": "cycle, ours ms:.1f",
    "total_theirs": "GroMo ms:.1f",
    "total_ratio": "ratio:.2f",
    "collect_ours": "collect, ours ms:.1f",
    "collect_ratio": "ratio:.2f",
    "plan_ours": "plan, ours ms:.1f",
    "plan_ratio": "ratio:.2f",
    "spread": "spread:.2f",
    "others": "others:.0%",
}


@dataclass(frozen=True)
class Case:
    """An MLP with two hidden layers of one width, and the size of a batch."""

    inputs: int
    hidden: int
    outputs: int
    batch: int
    activation: str

    @property
    def name(self) -> str:
        """Widths from input to output, and the activation."""
        return f"{self.inputs}-{self.hidden}-{self.hidden}-{self.outputs} {self.activation}"


def _cases(quick: bool) -> list[Case]:
    sizes = [(64, 128, 10), (256, 512, 10), (784, 256, 10)]
    batches = (256,) if quick else (256, 1024)
    functions = ("SELU",) if quick else ("SELU", "ReLU")
    return [Case(*size, batch, name) for size in sizes for batch in batches for name in functions]


class _Data:
    """Batches that a teacher labels, and weights for both networks."""

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(0)
        teacher = rng.standard_normal((case.inputs, case.outputs))
        self.x = [rng.standard_normal((case.batch, case.inputs), dtype=np.float32) for _ in range(BATCHES)]
        self.y = [(np.tanh(x) @ teacher).argmax(axis=1) for x in self.x]
        sizes = [case.inputs, case.hidden, case.hidden, case.outputs]
        self.weights = []
        for width, outputs in itertools.pairwise(sizes):
            weight = rng.standard_normal((outputs, width), dtype=np.float32) * np.float32(width**-0.5)
            self.weights.append((weight, 0.1 * rng.standard_normal(outputs, dtype=np.float32)))


class Ours:
    """Our network, and the phases of a cycle."""

    def __init__(self, case: Case, data: _Data) -> None:
        from growarray import networks, nn, ops

        self.data, self._loss = data, ops.cross_entropy
        function = getattr(nn, case.activation)()
        self.network = networks.GrowingMLP(case.inputs, case.outputs, case.hidden, 2, activation=function)
        for layer, (weight, bias) in zip(self.network.layers, data.weights, strict=True):
            layer.layer.weight.data, layer.layer.bias.data = weight.copy(), bias.copy()

    def collect(self) -> None:
        self.network.init_computation()
        for x, target in zip(self.data.x, self.data.y, strict=True):
            logits, back = self.network.vjp(x)
            _, back_loss = self._loss(logits, target, reduction="sum")
            back(back_loss(), wrt_x=False)  # GroMo's graph leaves the input gradient out, too
            self.network.update_computation(update_covariance_loss_gradient=False)

    def plan(self) -> None:
        self.network.compute_optimal_updates(max_new=NEW)

    def apply(self) -> int:
        place = self.network.select_best_update()
        self.network.apply_change(scaling_factor=0.1)
        self.network.delete_update()
        self.network.reset_computation()
        return place

    def logits(self) -> np.ndarray:
        return self.network(self.data.x[0])


class Theirs:
    """GroMo's network, and the phases of a cycle."""

    def __init__(self, case: Case, data: _Data) -> None:
        import torch
        from gromo.containers.growing_mlp import GrowingMLP

        self.x, self.y = [torch.from_numpy(x) for x in data.x], [torch.from_numpy(y) for y in data.y]
        self._loss = torch.nn.CrossEntropyLoss(reduction="sum")
        function, device = getattr(torch.nn, case.activation)(), torch.device("cpu")
        self.network = GrowingMLP(case.inputs, case.outputs, case.hidden, 2, activation=function, device=device)
        for layer, (weight, bias) in zip(self.network.layers, data.weights, strict=True):
            layer.layer.weight.data = torch.from_numpy(weight.copy())
            layer.layer.bias.data = torch.from_numpy(bias.copy())

    def collect(self) -> None:
        self.network.init_computation()
        for x, target in zip(self.x, self.y, strict=True):
            self._loss(self.network(x), target).backward()
            self.network.update_computation(update_covariance_loss_gradient=False)

    def plan(self) -> None:
        self.network.compute_optimal_updates(maximum_added_neurons=NEW)

    def apply(self) -> int:
        place = self.network.select_best_update()
        self.network.set_scaling_factor(0.1)
        self.network.apply_change()
        self.network.reset_computation()
        return int(place)

    def logits(self) -> np.ndarray:
        return self.network(self.x[0]).detach().numpy()


def _cycle(make: type, case: Any, data: Any) -> Mapping[str, float]:
    side = make(case, data)
    times = [clock()]
    for phase in (side.collect, side.plan, side.apply):
        phase()
        times.append(clock())
    return {
        "collect": times[1] - times[0],
        "plan": times[2] - times[1],
        "apply": times[3] - times[2],
        "total": times[3] - times[0],
    }


def _check(makes: tuple[type, type], case: Any, data: Any) -> float:
    """Largest relative difference of the logits after one cycle; raises where the libraries choose differently."""
    sides = [make(case, data) for make in makes]
    places = []
    for side in sides:
        side.collect()
        side.plan()
        places.append(side.apply())
    if places[0] != places[1]:
        raise AssertionError(f"{case.name}: ours grows place {places[0]}, GroMo {places[1]}")
    mine, other = (side.logits() for side in sides)
    return float(np.abs(mine - other).max() / np.abs(other).max())


def _profile(make: type, case: Any, data: Any) -> list[str]:
    """Functions of ours by their own time, in one cycle."""
    side = make(case, data)
    profile = cProfile.Profile()
    profile.enable()
    side.collect()
    side.plan()
    side.apply()
    profile.disable()
    out = io.StringIO()
    pstats.Stats(profile, stream=out).strip_dirs().sort_stats("tottime").print_stats(14)
    return [line for line in out.getvalue().splitlines() if line.strip()]


def run(*, quick: bool = False, progress: object = None) -> dict[str, Any]:
    """All networks and batch sizes, with a profile of ours for each."""
    return compare_cycles(_cases(quick), _Data, (Ours, Theirs), quick=quick)


def compare_cycles(cases: Iterable[Any], data_of: type, makes: tuple[type, type], *, quick: bool) -> dict[str, Any]:
    """One cycle of both sides for each case; ``makes`` build ours and theirs from a case and its data."""
    import torch  # noqa: F401  (before the number of threads is set)

    use_threads()
    rows = []
    for case in cases:
        data = data_of(case)
        difference = _check(makes, case, data)
        ours, theirs = (partial(_cycle, make, case, data) for make in makes)
        result = compare_phases(
            ours,
            theirs,
            repeat=7 if quick else 15,
            budget=3 if quick else 5,
        )
        row: dict[str, Any] = {"name": case.name, "batch": case.batch, "difference": difference}
        for name, one in result.items():
            row |= {f"{name}_ours": 1e3 * one.ours, f"{name}_theirs": 1e3 * one.theirs, f"{name}_ratio": one.ratio}
        row["spread"] = max(result["total"].ours_spread, result["total"].theirs_spread)
        row |= {"others": result["total"].others, "disturbed": result["total"].disturbed}
        row["profile"] = _profile(makes[0], case, data)
        rows.append(row)
        show(f"{case.name:26} batch {case.batch:5}: {row['total_ratio']:.2f}")
    return {"rows": rows, "geometric_mean": mean(rows)}


def mean(rows: list[dict[str, Any]]) -> float:
    """Geometric mean of the ratios of what other processes did not disturb."""
    return geometric_mean(row["total_ratio"] for row in rows if not row["disturbed"])


def report(results: Mapping[str, Any]) -> str:
    """The table, and the largest difference between the two grown networks."""
    worst = max(row["difference"] for row in results["rows"])
    return (
        f"{table(results['rows'], COLUMNS)}\n\ngeometric mean {results['geometric_mean']:.2f} "
        f"without {sum(row['disturbed'] for row in results['rows'])} disturbed; "
        f"logits of the grown networks differ by at most {worst:.1e} of the largest"
    )
