"""Adapters grown from rank 0 beside adapters of a fixed rank, on the digits turned by 30 degrees, five seeds.

A network learns the upright digits and is frozen. Then its adapters learn the turned ones: of a fixed rank, the same
in every layer; or grown from rank 0, one rank at a time where a parameter gains most, up to as many parameters. Both
have the same training, validation and test images, steps, learning rate and choice of the best epoch.

``python -m bench adapters``
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.ndimage import rotate

from bench.timing import show, table, use_threads
from growarray.datasets import load_digits
from growarray.growing import adapt
from growarray.networks import Growth, GrowthSettings, accuracy
from growarray.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from growarray.ops import cross_entropy
from growarray.optim import Adam

__all__ = ["report", "run"]

ANGLE, SEEDS = 30.0, range(5)
UPRIGHT, TURNED, EVERY = 20, 24, 1  # epochs on the upright digits and on the turned ones, and between growths
COLUMNS = {
    "network": "network",
    "rank": "fixed rank",
    "parameters_fixed": "parameters:.0f",
    "parameters_grown": "grown:.0f",
    "frozen": "frozen: loss:.3f",
    "loss_fixed": "fixed: loss:.3f",
    "loss_grown": "grown: loss:.3f",
    "better": "seeds grown is better",
    "accuracy_frozen": "frozen: accuracy:.1%",
    "accuracy_fixed": "fixed: accuracy:.1%",
    "accuracy_grown": "grown: accuracy:.1%",
}


def turned(x: np.ndarray) -> np.ndarray:
    """Images of 8 x 8 pixels in rows, turned about their centres; pixels between others are linear, outside is 0."""
    return rotate(x.reshape(-1, 8, 8), ANGLE, axes=(2, 1), reshape=False, order=1).reshape(-1, 1, 8, 8)


def _mlp(rng: np.random.Generator) -> Sequential:
    return Sequential(
        Flatten(), Linear(64, 32, rng=rng), ReLU(), Linear(32, 32, rng=rng), ReLU(), Linear(32, 10, rng=rng)
    )


def _cnn(rng: np.random.Generator) -> Sequential:
    stem = (Conv2d(1, 8, 3, padding=1, rng=rng), ReLU(), Conv2d(8, 16, 3, padding=1, rng=rng), ReLU(), MaxPool2d(2))
    return Sequential(*stem, Flatten(), Linear(256, 10, rng=rng))


NETWORKS: dict[str, Callable[[np.random.Generator], Sequential]] = {"MLP": _mlp, "CNN": _cnn}


class Digits:
    """Images of one seed, upright and turned: training, validation and test parts with their labels."""

    def __init__(self, seed: int) -> None:
        data = load_digits(seed=seed)
        held = len(data.x_train) // 10
        self.y, self.y_validation, self.y_test = data.y_train[held:], data.y_train[:held], data.y_test
        self.upright = data.x_train.reshape(-1, 1, 8, 8)[held:]
        self.x, self.x_validation = turned(data.x_train)[held:], turned(data.x_train)[:held]
        self.x_test = turned(data.x_test)


def trained(kind: str, digits: Digits, seed: int) -> Sequential:
    """The network that is frozen: it has learnt the upright digits."""
    rng = np.random.default_rng(seed)
    network = NETWORKS[kind](rng)
    optimizer = Adam(network, lr=3e-3)
    for _ in range(UPRIGHT):
        order = rng.permutation(len(digits.y))
        for rows in np.array_split(order, len(order) // 32):
            optimizer.zero_grad()
            y, pullback = network.vjp(digits.upright[rows])
            pullback(cross_entropy(y, digits.y[rows])[1](), wrt_x=False)
            optimizer.step()
    return network


def judged(network: Any, digits: Digits) -> tuple[float, float]:
    """Loss and accuracy on the turned test images."""
    y = network.predict(digits.x_test)
    return float(cross_entropy(y, digits.y_test)[0]), accuracy(y, digits.y_test)


def adapted(network: Sequential, digits: Digits, seed: int, rank: int, budget: int | None = None) -> Any:
    """Adapters of this rank, trained; with a budget they grow up to as many parameters. Returns loop and network."""
    rng = np.random.default_rng(seed)
    result = adapt(network, rank=rank, rng=rng)
    settings = GrowthSettings(
        epochs=TURNED, every=EVERY, first=0, neurons=1, growths=None if budget else 0, max_parameters=budget,
        choose="per_parameter", patience=None,
    )  # fmt: skip
    data, validation = (digits.x, digits.y), (digits.x_validation, digits.y_validation)
    loop = Growth(result, Adam(result, lr=3e-3), data, validation=validation, settings=settings, rng=rng)
    if budget:
        loop.grow()  # rank 0 has nothing to train
    loop.run()
    return loop, result


def _one(kind: str, rank: int, seed: int) -> dict[str, Any]:
    digits = Digits(seed)
    network = trained(kind, digits, seed)
    (fixed, plain), found = adapted(network, digits, seed, rank), {}
    budget = plain.number_of_parameters()
    grown, other = adapted(network, digits, seed, 0, budget)
    for name, net in (("frozen", network), ("fixed", plain), ("grown", other)):
        loss, score = judged(net, digits)
        found |= {f"loss_{name}": loss, f"accuracy_{name}": score, f"parameters_{name}": net.number_of_parameters()}
    curves = {
        n: [e["validation_loss"] for e in loop.history.of("train")] for n, loop in (("fixed", fixed), ("grown", grown))
    }
    sizes = [e["parameters"] for e in grown.history.of("train")]
    return {**found, "curves": curves, "sizes": sizes, "ranks": grown.network.widths}


def run(*, quick: bool = False, progress: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """Both networks with ranks 1, 2 and 4, five seeds; ``quick`` takes rank 2 and two seeds."""
    use_threads()
    rows = []
    for kind in NETWORKS:
        for rank in (2,) if quick else (1, 2, 4):
            results = [_one(kind, rank, seed) for seed in (range(2) if quick else SEEDS)]
            row = {key: float(np.mean([r[key] for r in results])) for key in results[0] if "_" in key}
            won = sum(r["loss_grown"] <= r["loss_fixed"] for r in results)
            row |= {"network": kind, "rank": rank, "frozen": row["loss_frozen"], "better": f"{won} of {len(results)}"}
            rows.append({**row, "runs": results})
            show(f"{kind} {rank}: fixed {row['loss_fixed']:.3f}, grown {row['loss_grown']:.3f}")
            if progress is not None:
                progress({"rows": rows})
    return {"rows": rows}


def report(results: Mapping[str, Any]) -> str:
    """The table."""
    return table(results["rows"], COLUMNS)
