"""Factorized layers trained from scratch: embedded digits, a stem, three layers, a head, Adam, six epochs.

Side by side: a dense network, new factorized layers as they are drawn by default and as the original draws them, and
decompositions of random dense layers. A mean over seeds, with the least and the greatest; no other library takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.timing import show, table
from growarray import nn
from growarray.datasets import load_digits
from growarray.factorized import FactorizedConv
from growarray.ops import cross_entropy
from growarray.optim import Adam

__all__ = ["report", "run"]

WIDTH, EPOCHS, BATCH, RATE, SEEDS = 16, 6, 64, 1e-3, 5
FORMATS, RANKS = ("cp", "tucker", "tt"), ("same", 0.25)
COLUMNS = {
    "layers": "three layers",
    "rank": "rank",
    "parameters": "parameters:d",
    "accuracy": "test accuracy:.3f",
    "least": "least:.3f",
    "greatest": "greatest:.3f",
    "loss": "training loss:.3f",
}

Make = Callable[[np.random.Generator], nn.Module]


def _dense(rng: np.random.Generator) -> nn.Module:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1, rng=rng)


def _decomposed(name: str, rank: Any) -> Make:
    return lambda rng: FactorizedConv.from_conv(_dense(rng), rank=rank, factorization=name, rng=rng)


def _drawn(name: str, rank: Any, std: Any) -> Make:
    return lambda rng: FactorizedConv(
        WIDTH, WIDTH, 3, 2, padding=1, bias=True, rank=rank, factorization=name, rng=rng, std=std
    )


def _network(make: Make, rng: np.random.Generator) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 3, padding=1, rng=rng), nn.ReLU(),
        make(rng), nn.ReLU(), make(rng), nn.ReLU(), nn.MaxPool2d(2), make(rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4 * WIDTH, 10, rng=rng),
    )  # fmt: skip


def _train(make: Make, seed: int) -> tuple[int, float, float]:
    """Parameters, accuracy on the two fifths for testing, and loss on the rest."""
    data = load_digits(test_fraction=0.4)
    x, test = (part.reshape(-1, 1, 8, 8) - data.x_train.mean() for part in (data.x_train, data.x_test))
    rng = np.random.default_rng(seed)
    network = _network(make, rng)
    optimizer = Adam(network, lr=RATE)
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            network.zero_grad()
            logits, pullback = network.vjp(x[rows])
            pullback(cross_entropy(logits, data.y_train[rows])[1]())
            optimizer.step()
    accuracy = float(np.mean(np.argmax(network(test), axis=1) == data.y_test))
    return network.number_of_parameters(), accuracy, float(cross_entropy(network(x), data.y_train)[0])


def _cases(quick: bool) -> dict[tuple[str, str], Make]:
    cases: dict[tuple[str, str], Make] = {("dense", "–"): _dense}
    for rank in RANKS[:1] if quick else RANKS:
        for name in FORMATS:
            cases[f"{name}, new", str(rank)] = _drawn(name, rank, None)
            cases[f"{name}, std='original'", str(rank)] = _drawn(name, rank, "original")
            cases[f"{name}, from_conv of a random layer", str(rank)] = _decomposed(name, rank)
    return cases


def run(*, quick: bool = False, progress: object = None) -> dict[str, Any]:
    """Every kind of layer, with three seeds in the quick form."""
    rows = []
    for (layers, rank), make in _cases(quick).items():
        found = [_train(make, seed) for seed in range(3 if quick else SEEDS)]
        scores = [accuracy for _, accuracy, _ in found]
        row = {
            "layers": layers, "rank": rank, "parameters": found[0][0], "accuracy": float(np.mean(scores)),
            "least": min(scores), "greatest": max(scores), "loss": float(np.mean([loss for *_, loss in found])),
        }  # fmt: skip
        rows.append(row)
        show(f"{layers:36} rank {rank:5}: {row['accuracy']:.3f}")
    return {"rows": rows}


def report(results: Mapping[str, Any]) -> str:
    """The table."""
    return table(results["rows"], COLUMNS)
