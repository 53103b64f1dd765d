"""A network from an ONNX file: imported, trained on digits, compressed under a budget of time, exported and run.

The file is a small ResNet that torch.onnx wrote. Its last layer makes way for one of ten classes, and the handwritten
digits of the package, 8 by 8 pixels, are brought to its input. Convolutions of 4 and 8 channels leave nothing to gain,
so no budget of time below the whole can be met. A copy is widened to 32 and 64 channels, computing the same until it is
trained; that one is compressed to four fifths of its predicted time, trained on, exported, and run by onnxruntime.
Times are planned for two cores, unless GROWARRAY_THREADS says otherwise: the more cores, the less there is to gain.

Run it from a checkout: python docs/examples/imported_cnn.py
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from growarray import nn
from growarray.checkpoint import from_onnx, to_onnx
from growarray.compression import Compression, compress
from growarray.datasets import load_digits
from growarray.factorized.report import Change
from growarray.ops import cross_entropy
from growarray.optim import Adam, cosine

FILE = Path(__file__).parents[2] / "tests" / "corpus" / "data" / "good" / "onnx_resnet_bn.onnx"
WIDTH, BUDGET = 8, 0.7
BATCH, RATE, TUNING_RATE = 64, 1e-2, 1e-4
SHAPE = (BATCH, 3, 16, 16)


class Images(NamedTuple):
    """Digits as the network takes them (n, 3, 16, 16)."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @classmethod
    def load(cls) -> Images:
        """The digits of the package less their mean, each pixel four times in three channels."""
        data = load_digits()
        larger = np.ones((1, 3, 2, 2), dtype=np.float32)
        x, x_test = (
            np.kron(part.reshape(-1, 1, 8, 8) - data.x_train.mean(), larger) for part in (data.x_train, data.x_test)
        )
        return cls(x, data.y_train, x_test, data.y_test)


class Point(NamedTuple):
    """What a network costs and what it is worth on the test images."""

    parameters: int
    accuracy: float


class Story(NamedTuple):
    """What came of each step.

    halved : the network as imported, compressed to half of its parameters    compression : the widened one
    agreement : largest difference between onnxruntime and this library, as a share of the largest output
    seconds : for a batch, dense and compressed, by each library
    """

    imported: nn.Graph
    refusal: str
    halved: Compression
    compression: Compression
    points: dict[str, Point]
    agreement: float
    seconds: dict[str, tuple[float, float]]


def with_classes(net: nn.Graph, rng: np.random.Generator) -> nn.Graph:
    """The network with a new last layer, of ten classes."""
    net.replace("fc", nn.Linear(net["fc"].in_features, 10, rng=rng))
    return net


def widened(net: nn.Graph, factor: int, rng: np.random.Generator) -> nn.Graph:
    """A copy with so many times the channels that computes the same: no old channel takes anything from a new one.

    For graphs of convolutions without groups and biases, batch normalisation and one linear layer.
    """
    wide, more = copy.deepcopy(net), factor - 1
    for node in wide.nodes:
        layer: Any = node.module
        if isinstance(layer, nn.BatchNorm2d):
            layer.extend(more * layer.num_features)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            out, inner, *taps = layer.weight.shape
            if inner != SHAPE[1]:  # the images keep their channels
                layer.weight.extend(1, np.zeros((out, more * inner, *taps), dtype=np.float32))
        if isinstance(layer, nn.Conv2d):
            rest = layer.weight.shape[1:]
            drawn = rng.normal(0.0, np.sqrt(2.0 / np.prod(rest)), (more * out, *rest))
            layer.weight.extend(0, drawn.astype(np.float32))
    return wide


def train(net: nn.Graph, images: Images, epochs: int, rate: float, rng: np.random.Generator) -> None:
    """Some epochs of cross entropy with Adam, the rate falling to 0."""
    optimizer, steps = Adam(net), -(-len(images.x) // BATCH)
    schedule = cosine(rate, epochs * steps)
    net.train()
    for epoch in range(epochs):
        order = rng.permutation(len(images.x))
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            optimizer.lr = schedule(epoch * steps + step)
            optimizer.zero_grad()
            logits, pullback = net.vjp(images.x[rows])
            pullback(cross_entropy(logits, images.y[rows])[1]())
            optimizer.step()
    net.eval()


def accuracy(net: nn.Graph, images: Images) -> float:
    """Share of the test images that are told right."""
    return float(np.mean(np.argmax(net(images.x_test), axis=1) == images.y_test))


def exported(net: nn.Graph, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The network as onnxruntime runs it from a file."""
    import onnxruntime

    to_onnx(net, path, SHAPE)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {net.inputs[0]: x})[0]


def seconds(functions: Sequence[Callable[[np.ndarray], Any]], x: np.ndarray, rounds: int) -> tuple[float, ...]:
    """Least time of each; all take their turn in every round, so that a busy machine is fair."""
    best = np.full(len(functions), np.inf)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function(x)
            best[i] = min(best[i], time.perf_counter() - start)
    return tuple(best.tolist())


def main(epochs: int = 4, tuning: int = 4, seed: int = 0, rounds: int = 100, images: Images | None = None) -> Story:
    """All steps; ``epochs`` before and ``tuning`` after the compression, ``rounds`` of timing."""
    images, rng = images or Images.load(), np.random.default_rng(seed)
    imported = from_onnx(FILE)
    nets = {"as imported": with_classes(copy.deepcopy(imported), rng)}
    train(nets["as imported"], images, 2 * epochs, RATE, rng)
    refusal = refused(nets["as imported"])
    halved = compress(nets["as imported"], 0.5, input_shape=SHAPE, measure=True)

    nets["widened"] = with_classes(widened(imported, WIDTH, rng), rng)
    train(nets["widened"], images, epochs, RATE, rng)
    report = compress(nets["widened"], BUDGET, by="time", input_shape=SHAPE, calibration=images.x[:256], measure=True)
    nets["compressed"], nets["trained on"] = report.network, copy.deepcopy(report.network)
    train(nets["trained on"], images, tuning, TUNING_RATE, rng)

    points = {name: Point(net.number_of_parameters(), accuracy(net, images)) for name, net in nets.items()}
    agreement, times = deployed(nets["widened"], nets["trained on"], images, rounds)
    return Story(imported, refusal, halved, report, points, agreement, times)


def refused(net: nn.Graph) -> str:
    """What :func:`compress` says to a budget of half the time."""
    try:
        compress(net, 0.5, by="time", input_shape=SHAPE)
    except ValueError as error:
        return str(error)
    return ""


def deployed(
    wide: nn.Graph, small: nn.Graph, images: Images, rounds: int
) -> tuple[float, dict[str, tuple[float, float]]]:
    """Largest difference of the exported network's output, relative to the largest output; and times of both."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [exported(net, Path(folder) / f"{i}.onnx") for i, net in enumerate((wide, small))]
    expected = small(images.x_test)
    gap = np.max(np.abs(runs[1](images.x_test) - expected)) / np.max(np.abs(expected))
    a, b, c, d = seconds((wide, small, *runs), images.x_test[:BATCH], rounds)
    return float(gap), {"growarray": (a, b), "onnxruntime": (c, d)}


def measured(report: Compression) -> str:
    """Time of each layer that was replaced, dense and factorized, predicted and measured."""
    rows = [
        f"{name:16s}{_change(r.predicted_time)} predicted {_change(r.measured_time)} measured"
        for name, r in report.reports.items()
        if r.predicted_time and r.measured_time
    ]
    return "\n".join(rows)


def _change(time_: Change) -> str:
    return f"{1e6 * time_.before:6,.0f} -> {1e6 * time_.after:5,.0f} us ({time_.ratio:.0%})"


def show(story: Story) -> None:
    """All of it as text."""
    layers: dict[str, list[str]] = {}
    for name, values in story.imported.state_dict().items():
        layer, _, kind = name.rpartition(".")
        layers.setdefault(layer, []).append(kind if values.ndim < 2 else f"{kind} {values.shape}")
    for layer, kinds in layers.items():
        print(f"{layer:22s}{', '.join(kinds)}")
    print(f"\n{story.refusal}")
    for report in (story.halved, story.compression):
        print(f"\n{report}\n{measured(report)}")
    print()
    for name, point in story.points.items():
        print(f"{name:12s}{point.parameters:7,d} parameters  {point.accuracy:.1%} of the test images")
    print(f"\nonnxruntime agrees to {story.agreement:.1e}")
    for name, (dense, small) in story.seconds.items():
        print(f"{name:12s}{1e3 * dense:6.2f} ms dense  {1e3 * small:6.2f} ms compressed, for a batch of {BATCH}")


if __name__ == "__main__":
    os.environ.setdefault("GROWARRAY_THREADS", "2")
    show(main())
