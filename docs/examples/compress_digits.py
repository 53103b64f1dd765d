"""Compressing a small convolutional network, and growing one from rank 1: handwritten digits, 8 by 8 pixels.

A dense network is trained, its larger convolutions are decomposed at several budgets in three formats, and each copy
is trained on for a few epochs. Beside them start networks whose convolutions have rank 1: after every few epochs each
rank is doubled by components that are computed from the statistics of the gradient, their scaling found by a line
search on the training loss; Adam keeps its state. Test accuracy stands against parameters, operations and time.

Run it to draw the picture: python docs/examples/compress_digits.py FILE.png
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from growarray import nn
from growarray.datasets import load_digits
from growarray.factorized import FactorizedConv
from growarray.growing import RankStatistics
from growarray.networks.line_search import LineSearch, line_search
from growarray.ops import cross_entropy
from growarray.optim import Adam, cosine

FORMATS, BUDGETS = ("cp", "tucker", "tt"), (0.06, 0.12, 0.25, 0.5)
WIDTHS, BATCH, RATE = (16, 32, 32), 32, 2e-3
TRAIN, TUNE, STAGES, STAGE, SOME = 10, 5, 4, 5, 256  # epochs, but for the growths and the images they look at


class Images(NamedTuple):
    """Digits as images (n, 1, 8, 8), two fifths of them for testing."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @classmethod
    def load(cls) -> Images:
        """The digits of the package, each pixel less the mean of all."""
        data = load_digits(test_fraction=0.4)
        x, x_test = (part.reshape(-1, 1, 8, 8) - data.x_train.mean() for part in (data.x_train, data.x_test))
        return cls(x, data.y_train, x_test, data.y_test)


class Point(NamedTuple):
    """What a network costs and what it is worth; ``flops`` for an image."""

    parameters: int
    flops: float
    accuracy: float


def network(rng: np.random.Generator, convolution: Any = nn.Conv2d) -> nn.Sequential:
    """Three convolutions and a linear layer; ``convolution`` makes the second and the third."""
    a, b, c = WIDTHS
    return nn.Sequential(
        nn.Conv2d(1, a, 3, padding=1, rng=rng), nn.ReLU(),
        convolution(a, b, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        convolution(b, c, 3, padding=1, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4 * c, 10, rng=rng),
    )  # fmt: skip


def batches(images: Images, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch in random order."""
    order = rng.permutation(len(images.x))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        yield images.x[rows], images.y[rows]


def train(net: nn.Sequential, images: Images, epochs: int, optimizer: Adam, rng: np.random.Generator) -> None:
    """Some epochs of cross entropy, the rate falling from ``RATE`` to 0."""
    schedule = cosine(RATE, epochs)
    for epoch in range(epochs):
        optimizer.lr = schedule(epoch)
        for x, y in batches(images, rng):
            net.zero_grad()
            logits, pullback = net.vjp(x)
            pullback(cross_entropy(logits, y)[1]())
            optimizer.step()


def loss(net: nn.Sequential, x: np.ndarray, y: np.ndarray) -> float:
    """Mean cross entropy."""
    return float(cross_entropy(net(x), y)[0])


def measure(net: nn.Sequential, images: Images) -> Point:
    """Accuracy on the test images, and the cost; operations as planned."""
    x, flops = images.x_test[:1], 0.0
    for layer in net:
        if hasattr(layer, "plan"):
            flops += layer.plan(x.shape).flops
        elif isinstance(layer, nn.Linear):
            flops += 2.0 * layer.weight.size
        x = layer(x)
    accuracy = float(np.mean(np.argmax(net(images.x_test), axis=1) == images.y_test))
    return Point(net.number_of_parameters(), flops, accuracy)


def seconds(nets: list[nn.Sequential], batch: np.ndarray, rounds: int = 100) -> np.ndarray:
    """Least time of a forward pass of each; all take their turn in every round, so that a busy machine is fair."""
    best = np.full(len(nets), np.inf)
    for _ in range(rounds):
        for i, net in enumerate(nets):
            start = time.perf_counter()
            net(batch)
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def compressed(net: nn.Sequential, budget: float, name: str) -> nn.Sequential:
    """A copy with the second and third convolution decomposed to a fraction of their parameters."""
    layers = [copy.deepcopy(layer) for layer in net]
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 1:
            layers[i] = FactorizedConv.from_conv(layer, rank=budget, factorization=name)
    return nn.Sequential(*layers)


def rank_one(name: str, rng: np.random.Generator) -> nn.Sequential:
    """The same network with convolutions of rank 1."""

    def convolution(inputs: int, outputs: int, size: int, **options: Any) -> FactorizedConv:
        made = FactorizedConv(inputs, outputs, size, 2, bias=True, factorization=name, rank=1, **options)
        made.reset_parameters(std=(2.0 / (inputs * size**2)) ** 0.5, rng=rng)
        return made

    return network(rng, convolution)


def grow(net: nn.Sequential, x: np.ndarray, y: np.ndarray) -> LineSearch:
    """Double every rank by what the gradient of these images asks for; returns how the scaling was found."""
    statistics = {
        layer: RankStatistics(layer, pseudo_inverse=True)  # a channel may be zero for every image
        for layer in net
        if isinstance(layer, FactorizedConv)
    }
    watched = nn.Sequential(*(statistics.get(layer, layer) for layer in net))
    logits, pullback = watched.vjp(x)
    pullback(cross_entropy(logits, y, reduction="sum")[1]())
    growths = [layer.grow_rank(s, by=np.max(layer.rank).item(), scaling=0.0) for layer, s in statistics.items()]

    def at(scaling: float) -> float:
        for growth in growths:
            growth.rescale(scaling)
        return loss(net, x, y)

    found = line_search(at, refinements=3)
    at(found.factor)
    return found


def grown(name: str, images: Images, seed: int, *, stages: int = STAGES, epochs: int = STAGE) -> list[nn.Sequential]:
    """A network from rank 1: copies before each growth and at the end."""
    rng = np.random.default_rng(seed)
    net, copies = rank_one(name, rng), []
    optimizer = Adam(net)
    for stage in range(stages + 1):
        if stage:
            rows = rng.permutation(len(images.x))[:SOME]
            grow(net, images.x[rows], images.y[rows])
        train(net, images, epochs, optimizer, rng)
        copies.append(copy.deepcopy(net))
    return copies


def dense(images: Images, seed: int, epochs: int = TRAIN) -> nn.Sequential:
    """The trained dense network."""
    rng = np.random.default_rng(seed)
    net = network(rng)
    train(net, images, epochs, Adam(net), rng)
    return net


def tuned(net: nn.Sequential, budget: float, name: str, images: Images, epochs: int = TUNE) -> nn.Sequential:
    """A compressed copy, trained on."""
    small, rng = compressed(net, budget, name), np.random.default_rng(0)
    train(small, images, epochs, Adam(small), rng)
    return small


def results(images: Images, seed: int = 0) -> dict[tuple[str, str], np.ndarray]:
    """For each format and way (n, 4): parameters, operations, seconds for a batch, accuracy."""
    whole = dense(images, seed)
    nets = {("dense", "dense"): [whole]}
    for name in FORMATS:
        nets[name, "compressed"] = [tuned(whole, budget, name, images) for budget in BUDGETS]
        nets[name, "grown"] = grown(name, images, seed)
    times = iter(seconds([net for row in nets.values() for net in row], images.x_test[:BATCH]))
    rows: dict[tuple[str, str], Any] = {}
    for key, row in nets.items():
        points = [(*measure(net, images), next(times)) for net in row]
        rows[key] = np.asarray(points)[:, [0, 1, 3, 2]]
    return rows


def show(rows: dict[tuple[str, str], np.ndarray]) -> None:
    """All points as a table."""
    for (name, way), points in rows.items():
        for parameters, flops, time_, accuracy in points:
            print(
                f"{name:7s}{way:11s}{parameters:8.0f} parameters {flops / 1e6:7.3f} MFLOP "
                f"{1e3 * time_:6.2f} ms   {accuracy:.2%}"
            )


def draw(rows: dict[tuple[str, str], np.ndarray], path: str) -> None:
    """All points as a picture with three panels."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    titles = ("parameters", "MFLOP for an image", f"ms for a batch of {BATCH}")
    colours = {"cp": "#0b6e4f", "tucker": "#c8553d", "tt": "#3d5a98", "dense": "#222222"}
    figure, axes = plt.subplots(1, 3, figsize=(11.0, 4.2), sharey=True, layout="constrained")
    for panel, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        for (name, way), points in rows.items():
            style = {"compressed": "o-", "grown": "s--", "dense": "*"}[way]
            style = style[0] if panel == 2 else style  # times hardly follow the rank: no line
            label = name if way == "dense" else f"{name.upper() if name != 'tucker' else 'Tucker'}, {way}"
            ax.plot(
                points[:, panel] * (1.0, 1e-6, 1e3)[panel], 100 * points[:, 3], style, label=label,
                color=colours[name], markersize=13 if way == "dense" else 5, linewidth=1.4,
                markerfacecolor="white" if way == "grown" else colours[name],
            )  # fmt: skip
        ax.set(xlabel=title)
        if panel < 2:
            ticks = ((2000, 4000, 8000, 16000), (0.03, 0.1, 0.3, 1.0))[panel]
            ax.set(xscale="log", xticks=ticks, xticklabels=[f"{t:,}" for t in ticks])
            ax.minorticks_off()
        else:
            ax.set_xlim(0, None)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test accuracy, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    found = results(Images.load())
    show(found)
    draw(found, sys.argv[1] if len(sys.argv) > 1 else "compress_digits.png")
