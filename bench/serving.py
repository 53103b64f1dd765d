"""A network run by onnxruntime beside the same network here: inference, one thread a side, ratios of medians."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from bench.timing import compare, table, use_threads
from growarray import FactorizedConv, GrowingMLP, nn

__all__ = ["report", "run"]

COLUMNS = {
    "name": "network",
    "n": "batch:d",
    "ours": "here, ms:.3f",
    "theirs": "onnxruntime, ms:.3f",
    "ratio": "here / onnxruntime:.2f",
    "error": "error:.0e",
}


def _networks(rng: np.random.Generator) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Networks by name, each with the shape of a sample."""

    def stack(c: int) -> nn.Module:
        return nn.Sequential(*[m for _ in range(3) for m in (nn.Conv2d(c, c, 3, padding=1, rng=rng), nn.ReLU())])

    factorized = FactorizedConv(64, 64, 3, order=2, padding=1, rank=28, rng=rng)
    return {
        "MLP 64-32-10": (GrowingMLP(64, 10, hidden_size=32, activation=nn.ReLU(), rng=rng), (64,)),
        "MLP 784-512-512-10": (GrowingMLP(784, 10, hidden_size=[512, 512], activation=nn.ReLU(), rng=rng), (784,)),
        "3 of Conv2d 64 > 64, 28²": (stack(64), (64, 28, 28)),
        "3 of Conv2d 128 > 128, 14²": (stack(128), (128, 14, 14)),
        "CP convolution 64 > 64, rank 28, 28²": (nn.Sequential(factorized), (64, 28, 28)),
    }


def run(*, quick: bool = False, progress: object = None) -> dict[str, Any]:
    """One row a network and batch."""
    use_threads(1)
    rng, rows = np.random.default_rng(0), []
    for name, (network, sample) in _networks(rng).items():
        served = network.eval().compile(threads=1)
        for n in (1,) if quick else (1, 32):
            x = rng.standard_normal((n, *sample)).astype(np.float32)
            expected, found = network(x), served(x)
            error = float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
            both = compare(partial(network, x), partial(served, x))
            times = {"ours": both.ours * 1e3, "theirs": both.theirs * 1e3, "ratio": both.ours / both.theirs}
            rows.append({"name": name, "n": n, **times, "error": error})
    return {"rows": rows}


def report(results: Mapping[str, Any]) -> str:
    """The table."""
    return table(results["rows"], COLUMNS)
