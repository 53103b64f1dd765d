"""A network of each kind, and what belongs to one: what a file has to hold."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np

from growarray import nn
from growarray.compression import compress
from growarray.factorized import TCL, TRL, FactorizedConv, FactorizedLinear, TensorLasso, tensor_dropout
from growarray.growing import FullConv2dGrowingModule, RestrictedConv2dGrowingModule
from growarray.networks import (
    GrowingDAG,
    GrowingMLP,
    GrowingMLPMixer,
    GrowingResidualMLP,
    GrowingResNet,
    GrowingVGG,
    Growth,
    GrowthSettings,
)
from growarray.networks.part import as_growing
from growarray.networks.scale import Scale
from growarray.onnx.read import from_onnx
from growarray.optim import AdamW
from tests.onnx.models import CASES, build

Made = tuple[nn.Module, tuple[int, ...]]
X = np.random.default_rng(5).standard_normal((60, 4)).astype(np.float32)
LABELS = (X[:, 0] * X[:, 1] > 0).astype(np.int64)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def grown(network: Any = None, epochs: int = 4) -> Growth:
    """A loop whose network has grown, before its last epoch."""
    network = GrowingMLP(4, 2, hidden_size=[1, 2], activation=nn.Tanh(), rng=rng()) if network is None else network
    settings = GrowthSettings(epochs=epochs, every=1, first=1, neurons=2, max_parameters=400)
    loop = Growth(network, AdamW(network, lr=1e-2), (X, LABELS), settings=settings, rng=rng())
    loop.run(until=3)
    return loop


def dag() -> nn.Module:
    network = GrowingDAG(4, 3, use_layer_norm=True, activation="gelu", name="one", rng=rng())
    network.add_node_with_two_edges("start@one", "middle", "end@one", {"size": 5, "activation": nn.Tanh()})
    return network


def stem() -> nn.Module:
    layers = [nn.Conv2d(1, 3, 3, padding=1, rng=rng()), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Dropout(0.2, rng()), GrowingMLP((3, 4, 4), 2, hidden_size=3, rng=rng())).eval()


def convolutions(kind: Any) -> nn.Module:
    first = kind(1, 3, 3, padding=1, post_layer_function=nn.ReLU(), rng=rng())
    second = kind(3, 2, 3, padding="same", previous_module=first, input_size=(8, 8), name="second", rng=rng())
    first.next_module = second
    return nn.Sequential(first, second)


def joint() -> nn.Module:
    layer = FactorizedConv(2, 4, 3, order=2, n_layers=2, bias=True, rank=3, factorization="tucker", rng=rng())
    layer.set(1, stride=2, padding=(1, 2))
    return nn.Sequential(layer[0], layer[1].main_conv[1])


def masked() -> nn.Module:
    layer = tensor_dropout(FactorizedConv(2, 4, 3, order=2, rank=5, rng=rng()), 0.4, rng=rng())
    other = FactorizedConv(4, 4, 3, order=2, rank=4, padding="same", rng=rng())
    TensorLasso().apply(other)
    return nn.Sequential(layer, other)


def small() -> nn.Module:
    dense = nn.Sequential(nn.Conv2d(4, 8, 3, rng=rng()), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10, rng=rng()))
    return compress(dense, dense.number_of_parameters() // 2, input_shape=(1, 4, 8, 8), rng=rng()).network


def tied() -> nn.Module:
    layer = nn.Linear(4, 4, rng=rng())
    other = nn.Linear(4, 4, rng=rng())
    other.weight = layer.weight
    other.requires_grad_(False)
    return nn.Sequential(layer, other, layer)


NETWORKS: dict[str, Callable[[], Made]] = {
    "mlp": lambda: (GrowingMLP(4, 3, hidden_size=[5, 2], activation=nn.PReLU(), rng=rng()), (6, 4)),
    "residual": lambda: (GrowingResidualMLP(4, 3, [3, 2], [2, 5], rng=rng()), (6, 4)),
    "grown": lambda: (grown().network, (6, 4)),
    "grown residual": lambda: (grown(GrowingResidualMLP(4, 2, [2, 2], [1, 2], rng=rng())).network, (6, 4)),
    "dag": lambda: (dag(), (6, 4)),
    "vgg": lambda: (GrowingVGG((1, 6, 6), 3, [(2, 3), 2], rng=rng()), (2, 1, 6, 6)),
    "resnet": lambda: (
        GrowingResNet((1, 6, 6), 3, (2, 3), (1, 0), normalization=nn.BatchNorm2d, dropout_rate=0.2, rng=rng()),
        (2, 1, 6, 6),
    ),
    "mixer": lambda: (GrowingMLPMixer((1, 6, 6), 3, 3, 4, [2, 0], 3, 2, dropout=0.2, rng=rng()), (2, 1, 6, 6)),
    "stem": lambda: (stem(), (2, 1, 8, 8)),
    "partly growing": lambda: (as_growing(stem()), (2, 1, 8, 8)),
    "restricted convolutions": lambda: (convolutions(RestrictedConv2dGrowingModule), (2, 1, 8, 8)),
    "full convolutions": lambda: (convolutions(FullConv2dGrowingModule), (2, 1, 8, 8)),
    **{
        f"factorized {kind}": lambda kind=kind: (
            FactorizedConv(4, 6, (3, 2), padding=(1, (0, 1)), rank=0.5, factorization=kind, bias=True, rng=rng()),
            (2, 4, 5, 5),
        )
        for kind in ("cp", "tucker", "tt", "tr", "dense")
    },
    "grouped": lambda: (FactorizedConv(4, 6, 3, order=2, groups=2, rank=4, dilation=2, rng=rng()), (2, 4, 7, 7)),
    "joint": lambda: (joint()[0], (2, 2, 7, 7)),
    "joint, the other": lambda: (joint()[1], (2, 2, 7, 7)),
    "masked": lambda: (masked().eval(), (2, 2, 7, 7)),
    "linear": lambda: (FactorizedLinear((2, 3), (4, 5), factorization="blocktt", rank=3, rng=rng()), (3, 6)),
    "joint linear": lambda: (FactorizedLinear((2, 3), (2, 2), n_layers=3, rank=4, rng=rng())[2], (3, 6)),
    "tensor regression": (
        lambda: (
            nn.Sequential(TCL((3, 4), (2, 3), bias=True, rng=rng()), TRL((2, 3), (2, 2), True, rank=3, rng=rng())),
            (3, 3, 4),
        )
    ),
    "compressed": lambda: (small(), (2, 4, 8, 8)),
    "scaled": lambda: (nn.Sequential(Scale([1.0, 2.0], [0.5, 3.0]), nn.Softmax()), (3, 2)),
    "tied": lambda: (tied(), (3, 4)),
    "double": lambda: (GrowingMLP(4, 3, hidden_size=2, dtype=np.float64, rng=rng()), (6, 4)),
}


def graph(name: str) -> Any:
    """The network of a case of the ONNX tests."""
    return from_onnx(io.BytesIO(build(CASES[name].made).SerializeToString()))
