"""Factorized convolutions beside TensorLy-Torch: our layer against the fastest of its implementations, same factors.

The cases are those of the fixed suite (:mod:`bench.suite`, so the extra ``cli`` must be there), float32. Both sides
are layers: ours :class:`growarray.FactorizedConv`, theirs ``tltorch.FactorizedConv`` in every implementation it has.
Ratios are theirs over ours; above 1 ours is faster.

forward : the value alone    both : value, then gradients of the input and of every factor for one given output gradient
latency : forward of one image, every layer of the suite with batch 1
memory : what the first forward and backward of the layer adds to the resident set of a process of its own, and that
    process as a whole, beside the implementation that is fastest in both:
    ``python -m bench.factorized SIDE NUMBER``, where SIDE is ``ours`` or the name of an implementation
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.suite import CASES, Case
from bench.timing import (
    Comparison,
    compare,
    geometric_mean,
    measure,
    product_rate,
    repository,
    show,
    table,
    use_threads,
)
from growarray import FactorizedConv
from growarray.cli.bench.layer import Layer

__all__ = ["report", "run"]

QUICK = (1, 4, 6, 11, 13, 18, 21, 22, 26, 29)
"""Numbers of the suite's cases, from 1: every format, order, stride, batch 1 and 8, small and large ranks."""

NEAR = 1.4  # implementations up to so many times as slow as the fastest, at first sight, are compared with care
SETTLE = 0.04  # seconds in which the threads of the library before go to sleep
LEAST = 0.9  # ratio below which the report names a case
SEED = 0
COLUMNS = {
    "number": "#",
    "name": "layer",
    "path": "path",
    "rate": "of the product rate:.0%",
    "forward_ours": "forward, ours ms:.2f",
    "forward_theirs": "theirs ms:.2f",
    "forward_best": "their fastest",
    "forward_ratio": "ratio:.2f",
    "both_ours": "forward + backward, ours ms:.2f",
    "both_theirs": "theirs ms:.2f",
    "both_best": "their fastest",
    "both_ratio": "ratio:.2f",
    "memory_ours": "increase, ours MiB:.1f",
    "memory_theirs": "theirs MiB:.1f",
    "total_ours": "process, ours MiB:.0f",
    "total_theirs": "theirs MiB:.0f",
    "error": "error:.0e",
    "others": "others:.0%",
}
LATENCY = {
    "number": "#",
    "name": "layer",
    "ours": "ours ms:.3f",
    "theirs": "theirs ms:.3f",
    "best": "their fastest",
    "ratio": "ratio:.2f",
    "others": "others:.0%",
}

Call = Callable[[], Any]
Arrays = Sequence[np.ndarray]


@dataclass
class Sides:
    """One layer of the suite in both libraries: calls by ``ours`` and the names of TensorLy-Torch's implementations."""

    name: str
    path: str
    flops: int
    forward: dict[str, Call] = field(default_factory=dict)
    both: dict[str, Call] = field(default_factory=dict)

    @property
    def theirs(self) -> list[str]:
        """The implementations."""
        return [name for name in self.forward if name != "ours"]

    def error(self) -> float:
        """Largest difference between the two outputs, or gradients of the input, over the largest entry."""
        pairs = (
            (self.forward["ours"](), self.forward["reconstructed"]()),
            (self.both["ours"](), self.both["reconstructed"]()[0]),
        )
        return max(float(np.abs(ours - np.asarray(b)).max() / np.abs(np.asarray(b)).max()) for ours, b in pairs)


def _sides(case: Case, only: str | None = None) -> Sides:
    """Both libraries with the same input, factors and gradient of the output, or one side only."""
    layer = case.layer()
    arrays = layer.arrays(SEED)
    conv = _our_layer(layer, arrays)
    plan = conv.plan(arrays[0].shape)
    gradient = np.random.default_rng(SEED + 1).standard_normal(plan.output_shape, dtype=np.float32)
    names = ("factorized", "mobilenet", "reconstructed") if case.format == "cp" else ("factorized", "reconstructed")
    sides = Sides(str(case), " ".join(f"{i}{j}" for i, j in plan.path), plan.flops)
    for name in ("ours", *names):
        if only in (None, name):
            calls = _ours(conv, arrays[0], gradient) if name == "ours" else _theirs(layer, arrays, gradient, name)
            sides.forward[name], sides.both[name] = calls
    use_threads()
    return sides


def _our_layer(layer: Layer, arrays: Arrays) -> FactorizedConv:
    """The layer that holds these factors."""
    weight = layer.kind.of([a.reshape(s) for a, s in zip(arrays[1:], layer.factor_shapes, strict=True)])
    return FactorizedConv.from_factorization(weight, stride=layer.stride, padding=layer.padding)


def _ours(conv: FactorizedConv, x: np.ndarray, gradient: np.ndarray) -> tuple[Call, Call]:
    parameters = list(conv.parameters())

    def both() -> Any:
        for parameter in parameters:
            parameter.grad = None
        _, pullback = conv.vjp(x)
        return pullback(gradient)

    return lambda: conv(x), both


def _theirs(layer: Layer, arrays: Arrays, gradient: np.ndarray, implementation: str) -> tuple[Call, Call]:
    import tltorch
    import torch

    rank = layer.kind.format.rank_of(layer.rank)
    conv = tltorch.FactorizedConv(
        layer.in_channels,
        layer.out_channels,
        layer.kernel,
        stride=layer.stride,
        padding=tuple(before for before, _ in layer.padding),  # the same after: half of an odd kernel
        factorization=layer.format,
        rank=rank if layer.format == "cp" else list(rank),
        implementation=implementation,
    )
    x, dy = torch.from_numpy(arrays[0]).requires_grad_(), torch.from_numpy(gradient)
    parameters = list(conv.weight.parameters())
    with torch.no_grad():
        for parameter, value in zip(parameters, arrays[1:], strict=True):
            parameter.copy_(torch.from_numpy(value).reshape(parameter.shape))

    def forward() -> Any:
        with torch.no_grad():
            return conv(x)

    return forward, lambda: torch.autograd.grad(conv(x), [x, *parameters], dy)


def _fastest(calls: Mapping[str, Call], theirs: Sequence[str], budget: float) -> tuple[str, Comparison]:
    """The fastest of their implementations beside ours: a first look at all, then with care at those that are near."""
    first = {}
    for name in theirs:
        time.sleep(SETTLE)
        first[name] = measure(calls[name], repeat=3, warmup=1)
    near = [name for name in theirs if first[name] <= NEAR * min(first.values())]
    found = {name: compare(calls["ours"], calls[name], budget=budget) for name in near}
    best = min(found, key=lambda name: found[name].theirs)
    return best, found[best]


def _row(number: int, budget: float, peak: float) -> dict[str, Any]:
    sides = _sides(CASES[number - 1])
    forward_best, forward = _fastest(sides.forward, sides.theirs, budget)
    both_best, both = _fastest(sides.both, sides.theirs, budget)
    row = {
        "number": number,
        "name": sides.name,
        "path": sides.path,
        "rate": sides.flops / forward.ours / peak,
        "forward_ours": 1e3 * forward.ours,
        "forward_theirs": 1e3 * forward.theirs,
        "forward_best": forward_best,
        "forward_ratio": forward.ratio,
        "both_ours": 1e3 * both.ours,
        "both_theirs": 1e3 * both.theirs,
        "both_best": both_best,
        "both_ratio": both.ratio,
        "error": sides.error(),
        "others": max(forward.others, both.others),
        "disturbed": forward.disturbed or both.disturbed,
    }
    for side, which in (("ours", "ours"), ("theirs", both_best)):
        found = _memory(which, number)
        row |= {f"memory_{side}": found["increase"] / 2**20, f"total_{side}": found["total"] / 2**20}
    return row


def _latency(number: int, budget: float) -> dict[str, Any]:
    """Forward of one image."""
    sides = _sides(CASES[number - 1]._replace(batch=1))
    best, found = _fastest(sides.forward, sides.theirs, budget)
    return {
        "number": number,
        "name": sides.name,
        "ours": 1e3 * found.ours,
        "theirs": 1e3 * found.theirs,
        "best": best,
        "ratio": found.ratio,
        "others": found.others,
        "disturbed": found.disturbed,
    }


def _status(name: str) -> int:
    """Bytes of one line of ``/proc/self/status``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}; peak memory needs Linux")


def _memory(which: str, number: int) -> dict[str, int]:
    """Bytes that a forward and backward adds to the resident set, and the whole at its peak, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.factorized", which, str(number)],
        capture_output=True,
        text=True,
        check=True,
        cwd=repository(),
        env={**os.environ, "PYTHONPATH": str(repository())},
    )
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(which: str, number: str) -> None:
    """Print the peak memory of one side as JSON."""
    warnings.filterwarnings("ignore")
    case = CASES[int(number) - 1]
    tiny = case._replace(in_channels=8, out_channels=8, size="x".join("4" for _ in case.size.split("x")), batch=2)
    _sides(tiny, which).both[which]()  # libraries are loaded and threads started
    step = _sides(case, which).both[which]
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    step()
    peak = _status("VmHWM")
    print(json.dumps({"increase": peak - before, "total": peak}))


def run(quick: bool = False, progress: Callable[[Mapping[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Every case with its memory, every layer with one image, and the geometric means."""
    warnings.filterwarnings("ignore")
    budget = 1.5 if quick else 5.0
    peak = product_rate()
    rows: list[dict[str, Any]] = []
    latency: list[dict[str, Any]] = []
    result: dict[str, Any] = {"product_gflops": peak / 1e9, "rows": rows, "latency": latency}
    for number in QUICK if quick else range(1, len(CASES) + 1):
        rows.append(_row(number, budget, peak))
        latency.append(_latency(number, budget))
        row = rows[-1]
        show(f"{row['name']}: {row['forward_ratio']:.2f} {row['both_ratio']:.2f} {latency[-1]['ratio']:.2f}")
        for key in ("forward_ratio", "both_ratio"):
            result[key] = geometric_mean(r[key] for r in rows)
        result["latency_ratio"] = geometric_mean(r["ratio"] for r in latency)
        progress(result)
    return result


def report(result: Mapping[str, Any]) -> str:
    """The means beside the goals, what misses them, and the tables."""
    rows, latency = result["rows"], result["latency"]
    slow = [
        f"{row['number']} ({min(row['forward_ratio'], row['both_ratio']):.2f})"
        for row in rows
        if min(row["forward_ratio"], row["both_ratio"]) < LEAST
    ]
    large = [str(row["number"]) for row in rows if row["memory_ours"] > row["memory_theirs"]]
    lines = [
        f"Product rate {result['product_gflops']:.0f} GFLOP/s. Geometric mean of TensorLy-Torch's fastest "
        f"implementation over ours, {len(rows)} layers: {result['forward_ratio']:.2f} forward (goal 1.3), "
        f"{result['both_ratio']:.2f} forward + backward (goal 1.3), {result['latency_ratio']:.2f} forward of one image "
        "(goal 1.5).",
        f"Cases below {LEAST:g}: {', '.join(slow) or 'none'}. Cases that take more memory than theirs: "
        f"{', '.join(large) or 'none'}.",
        f"Rows that other processes disturbed: {sum(row['disturbed'] for row in (*rows, *latency))} of "
        f"{len(rows) + len(latency)}.",
    ]
    tables = (table(rows, COLUMNS), "Forward of one image:", table(latency, LATENCY))
    return "\n\n".join((" ".join(lines), *tables))


if __name__ == "__main__":
    main(*sys.argv[1:])
