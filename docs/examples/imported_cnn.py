"""A network from an ONNX file: imported, trained on digits, compressed under a time budget, exported, run elsewhere.

The file is a small ResNet that torch.onnx wrote. Its last layer makes way for one of ten classes, and the handwritten
digits of the package, 8 by 8 pixels, are brought to its input. Its layers of 4 and 8 channels leave nothing to gain: no
budget of time below the whole can be met. So the network is also widened, such that it computes what the file says
until it is trained, and the wide one is compressed to half of its predicted time, trained on and exported.

Run it from a checkout: python docs/examples/imported_cnn.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from growarray import nn
from growarray.checkpoint import from_onnx, to_onnx
from growarray.datasets import load_digits
from growarray.networks import Compression, compress
from growarray.ops import cross_entropy
from growarray.optim import Adam, cosine

FILE = Path(__file__).parents[2] / "tests" / "corpus" / "data" / "good" / "onnx_resnet_bn.onnx"
WIDTH, BUDGET = 8, 0.5
BATCH, RATE, TUNING_RATE = 64, 1e-2, 2e-3
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


class Story(NamedTuple):
    """What came of each step; accuracies on the test images, times in seconds for a batch."""

    imported: nn.Graph
    refusal: str
    compression: Compression
    parameters: dict[str, int]
    accuracy: dict[str, float]
    agreement: float
    seconds: dict[str, tuple[float, float]]


def with_classes(net: nn.Graph, classes: int, rng: np.random.Generator) -> nn.Graph:
    """The network with another last layer."""
    net.replace("fc", nn.Linear(net["fc"].in_features, classes, rng=rng))
    return net


def widened(net: nn.Graph, factor: int, rng: np.random.Generator) -> nn.Graph:
    """The network with so many times the channels, computing the same: new ones reach no old one before training."""
    nodes = []
    for node in net.nodes:
        layer: Any = node.module
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.data
            out, inner = weight.shape[:2]
            channels = inner if inner == SHAPE[1] else factor * inner
            scale = (2.0 / (channels * weight[0, 0].size)) ** 0.5
            wide = rng.normal(0.0, scale, (factor * out, channels, *weight.shape[2:])).astype(weight.dtype)
            wide[:out, :inner], wide[:out, inner:] = weight, 0.0
            layer = nn.Conv2d.of(wide, stride=layer.stride, padding=layer.padding)
        elif isinstance(layer, nn.BatchNorm2d):
            old, layer = layer, nn.BatchNorm2d(factor * layer.num_features, eps=layer.eps)
            state = layer.state_dict()
            for name, values in old.state_dict().items():
                if values.ndim:
                    state[name][: len(values)] = values
            layer.load_state_dict(state)
        elif isinstance(layer, nn.Linear):
            weight = layer.weight.data
            zeros = np.zeros((weight.shape[0], (factor - 1) * weight.shape[1]), dtype=weight.dtype)
            layer = nn.Linear.of(np.concat([weight, zeros], axis=1), layer.bias.data)
        nodes.append(nn.Node(node.name, layer, node.inputs, node.output))
    wide_net = nn.Graph(nodes, net.inputs, net.outputs)
    wide_net.eval()
    return wide_net


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


def main(epochs: int = 12, tuning: int = 6, seed: int = 0, width: int = WIDTH, rounds: int = 100) -> Story:
    """All steps; ``epochs`` before and ``tuning`` after the compression."""
    images, rng = Images.load(), np.random.default_rng(seed)
    imported = from_onnx(FILE)

    net = with_classes(from_onnx(FILE), 10, rng)
    train(net, images, epochs, RATE, rng)
    found, sizes = {"imported": accuracy(net, images)}, {"imported": net.number_of_parameters()}
    try:
        compress(net, 0.9, by="time", input_shape=SHAPE)
        refusal = ""
    except ValueError as error:
        refusal = str(error)

    wide = with_classes(widened(imported, width, rng), 10, rng)
    train(wide, images, epochs, RATE, rng)
    found["widened"], sizes["widened"] = accuracy(wide, images), wide.number_of_parameters()

    report = compress(wide, BUDGET, by="time", input_shape=SHAPE, calibration=images.x[:256], measure=True)
    small = report.network
    found["compressed"], sizes["compressed"] = accuracy(small, images), small.number_of_parameters()
    train(small, images, tuning, TUNING_RATE, rng)
    found["trained on"], sizes["trained on"] = accuracy(small, images), small.number_of_parameters()

    with tempfile.TemporaryDirectory() as folder:
        whole, run = (exported(n, Path(folder) / f"{i}.onnx") for i, n in enumerate((wide, small)))
        expected = small(images.x_test)
        gap = float(np.max(np.abs(run(images.x_test) - expected)) / np.max(np.abs(expected)))
        x = images.x_test[:BATCH]
        times = seconds((wide, small, whole, run), x, rounds)
    return Story(
        imported, refusal, report, sizes, found, gap, {"growarray": times[:2], "onnxruntime": times[2:]}
    )  # fmt: skip


def show(story: Story) -> None:
    """All of it as text."""
    print("imported", *[f"{name} {value.shape}" for name, value in story.imported.state_dict().items()], sep="\n  ")
    print(f"\nas imported: {story.refusal}\n\n{story.compression}\n")
    for name, share in story.accuracy.items():
        print(f"{name:11s}{story.parameters[name]:8,d} parameters   {share:.1%} of the test images")
    print(f"\nonnxruntime differs by {story.agreement:.1e}")
    for name, (dense, small) in story.seconds.items():
        print(f"{name:12s} dense {1e3 * dense:.2f} ms, compressed {1e3 * small:.2f} ms for a batch of {BATCH}")


if __name__ == "__main__":
    show(main())
