"""Adapters grown from rank 0 beside adapters of a fixed rank, on the digits turned by 30 degrees, five seeds.

A network learns the upright digits and is frozen. Then adapters learn the turned ones: in every linear layer and
convolution or in one layer; of a fixed rank, or grown from rank 0, one rank before each epoch where a parameter gains
most, up to as many parameters. Both have the same images for training, validation and test, the same
steps, and the best epoch and learning rate by the validation loss; a growth looks at the training images once more.

``python -m bench adapters --json FILE``; ``python -m bench.adapters FILE PICTURE`` then draws the losses by epoch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
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

__all__ = ["draw", "report", "run"]

ANGLE, SEEDS = 30.0, range(5)
UPRIGHT, TURNED = 20, 24  # epochs on the upright digits, and on the turned ones
RATES = (3e-3, 1e-2)
COLUMNS = {
    "network": "network",
    "where": "adapters",
    "rank": "fixed rank",
    "parameters_fixed": "parameters:.0f",
    "parameters_grown": "grown:.0f",
    "loss_frozen": "frozen loss:.3f",
    "loss_fixed": "fixed loss:.3f",
    "loss_grown": "grown loss:.3f",
    "better": "seeds grown is better",
    "accuracy_frozen": "frozen accuracy:.1%",
    "accuracy_fixed": "fixed accuracy:.1%",
    "accuracy_grown": "grown accuracy:.1%",
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


def adapted(*settings: Any) -> Any:
    """:func:`adapted_at` with the learning rate that does best on the validation images."""
    return min((adapted_at(rate, *settings) for rate in RATES), key=lambda loop: loop.best.judgement.loss)


def adapted_at(
    rate: float, network: Sequential, digits: Digits, seed: int, names: Any, rank: int, budget: int = 0
) -> Any:
    """Adapters of this rank, or grown from rank 0 within a budget, trained."""
    rng = np.random.default_rng(seed)
    result = adapt(network, names, 0 if budget else rank, rng=rng)
    settings = GrowthSettings(
        epochs=TURNED, every=1, first=0, growths=None if budget else 0, neurons=1, max_parameters=budget or None,
        choose="per_parameter",
    )  # fmt: skip
    data, validation = (digits.x, digits.y), (digits.x_validation, digits.y_validation)
    loop = Growth(result, Adam(result, lr=rate), data, validation=validation, settings=settings, rng=rng)
    if budget:
        loop.grow()  # rank 0 has nothing to train
    loop.run()
    return loop


CASES = (("MLP", None, 1), ("MLP", None, 2), ("MLP", ["1"], 4), ("CNN", None, 2), ("CNN", ["2"], 4))
"""Network, layers with adapters, and the rank of those that are fixed."""


def _one(kind: str, names: Any, rank: int, seed: int) -> dict[str, Any]:
    digits = Digits(seed)
    network = trained(kind, digits, seed)
    fixed = adapted(network, digits, seed, names, rank)
    grown = adapted(network, digits, seed, names, rank, fixed.network.number_of_parameters())
    loops, found = {"fixed": fixed, "grown": grown}, dict[str, Any]()
    for name, net in (("frozen", network), ("fixed", fixed.network), ("grown", grown.network)):
        trains = sum(p.size for p in net.parameters() if p.requires_grad)
        loss, score = judged(net, digits)
        found |= {f"loss_{name}": loss, f"accuracy_{name}": score, f"parameters_{name}": trains}
    found |= {f"rate_{name}": float(loop.optimizer.lr) for name, loop in loops.items()}
    curves = {name: [e["validation_loss"] for e in loop.history.of("train")] for name, loop in loops.items()}
    return {**found, "curves": curves, "ranks": grown.network.widths}


def run(*, quick: bool = False, progress: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """All cases with five seeds; ``quick`` takes the first and two seeds."""
    use_threads()
    rows = []
    for kind, names, rank in CASES[:1] if quick else CASES:
        results = [_one(kind, names, rank, seed) for seed in (range(2) if quick else SEEDS)]
        row: dict[str, Any] = {key: float(np.mean([r[key] for r in results])) for key in results[0] if "_" in key}
        won = sum(r["loss_grown"] <= r["loss_fixed"] for r in results)
        row |= {"network": kind, "where": "everywhere" if names is None else f"layer {names[0]}", "rank": rank}
        rows.append({**row, "better": f"{won} of {len(results)}", "runs": results})
        show(f"{kind} {row['where']}: fixed {row['loss_fixed']:.3f}, grown {row['loss_grown']:.3f}")
        if progress is not None:
            progress({"rows": rows})
    return {"rows": rows}


def report(results: Mapping[str, Any]) -> str:
    """The table."""
    return table(results["rows"], COLUMNS)


def draw(results: Mapping[str, Any], picture: str) -> None:
    """Validation loss by epoch, mean and range over the seeds, a panel for each case."""
    from matplotlib.figure import Figure

    rows = results["rows"]
    figure = Figure(figsize=(3.2 * len(rows), 3.2), layout="constrained")
    for axes, row in zip(np.ravel(figure.subplots(1, len(rows), sharey=True)), rows, strict=True):
        for name, colour in (("fixed", "tab:gray"), ("grown", "tab:green")):
            curves = np.array([r["curves"][name] for r in row["runs"]])
            epochs = np.arange(1, curves.shape[1] + 1)
            axes.plot(epochs, curves.mean(axis=0), color=colour, label=name)
            axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        axes.set(title=f"{row['network']}, {row['where']}, rank {row['rank']}", xlabel="epoch", yscale="log")
    figure.axes[0].set_ylabel("validation loss")
    figure.axes[0].legend()
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    held = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    draw(held.get("adapters", held), sys.argv[2])
