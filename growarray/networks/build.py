"""Networks that grow by the names that runs and their files use: kind, activation, widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from growarray.errors import shown
from growarray.growing import FullConv2dGrowingModule
from growarray.networks.block import GrowingResidualMLP
from growarray.networks.graph import GrowingDAG
from growarray.networks.images import GrowingVGG, image_shape
from growarray.networks.mixer import GrowingMLPMixer
from growarray.networks.mlp import GrowingMLP
from growarray.networks.network import GrowingNetwork
from growarray.networks.resnet import GrowingResNet
from growarray.nn import Module, ReLU, activation

_PLACES = {"mlp": 1, "residual": 2, "dag": 0, "cnn": 2, "resnet": 1, "mixer": 2}
NETWORKS = tuple(_PLACES)
_STREAM = 16  # channels of the residual stream in the first stage of a resnet; each next one has twice as many
_FEATURES = 32  # of a patch in a mixer


def hidden_activation(name: str, *, where: str = "activation") -> Module:
    """The activation between layers; ``ValueError`` that names ``where`` if it is not a function of single neurons.

    >>> hidden_activation("relu")
    ReLU(at_zero=1.0)
    """
    if name == "relu":
        # A neuron that starts with zero incoming weights sits at exactly 0: with the slope 0 there it never trains.
        return ReLU(at_zero=1.0)
    layer = activation(name)
    try:
        layer.slope_at_zero  # noqa: B018
    except NotImplementedError as error:
        raise ValueError(
            f"{where}: expected a function of each neuron alone, found {shown(name)}; take relu"
        ) from error
    return layer


def number_of_places(kind: str, hidden_layers: int) -> int:
    """Number of initial widths: one for each hidden layer, block or stage, none for a graph."""
    return hidden_layers * _PLACES[kind]


def build_network(
    kind: str,
    features: int,
    outputs: int,
    widths: list[int],
    *,
    function: Module,
    dtype: str,
    device: str,
    rng: np.random.Generator,
    image: Sequence[int] | None = None,
) -> GrowingNetwork:
    """A network with ``widths`` in the order of its growing layers, and of images those of :func:`image_shape`."""
    common: dict[str, Any] = {"activation": function, "device": device, "dtype": np.dtype(dtype), "rng": rng}
    if kind == "mlp":
        return GrowingMLP(features, outputs, hidden_size=widths, **common)
    if kind == "dag":  # of one edge: its state dict says what it has grown to
        return GrowingDAG(features, outputs, **common)
    if kind == "cnn":
        stages = list(zip(widths[::2], widths[1::2], strict=True))
        shape, kind_of = image_shape(features, image), FullConv2dGrowingModule
        return GrowingVGG(shape, outputs, stages, growing_conv_type=kind_of, **common)
    if kind == "mixer":
        shape, pairs = image_shape(features, image), (widths[::2], widths[1::2])
        return GrowingMLPMixer(shape, outputs, _patch_size(shape), _FEATURES, *pairs, len(pairs[0]), **common)
    if kind == "resnet":
        stream = [_STREAM * 2**i for i in range(len(widths))]
        return GrowingResNet(image_shape(features, image), outputs, stream, widths, **common)
    return GrowingResidualMLP(features, outputs, num_features=widths[1::2], hidden_features=widths[::2], **common)


def _patch_size(image: Sequence[int]) -> int:
    """The smallest size of squares that cut an image, at most 4 along its longer side, or the largest that cut it."""
    common = math.gcd(*image[1:])
    return next(
        size for size in range(1, common + 1) if common % size == 0 and (4 * size >= max(image[1:]) or size == common)
    )


def rebuild_network(
    kind: str,
    widths: list[int],
    activation: str,
    dtype: str,
    state: Mapping[str, Any],
    features: int | None = None,
    image: Sequence[int] | None = None,
) -> GrowingNetwork:
    """The network of a state dict; its last weight gives the outputs, its first the features if not given.

    Raises ValueError, KeyError, TypeError: kind, widths or activation are unknown, or the state dict is not that of
    such a network. Nothing of the size of wrong widths is made.

    >>> network = GrowingMLP(4, 3, hidden_size=[5])
    >>> rebuild_network("mlp", [5], "relu", "float32", network.state_dict()).in_features
    4
    """
    if kind not in NETWORKS:
        raise ValueError(f"network is {shown(kind)}, expected one of {', '.join(NETWORKS)}")
    if kind == "dag":
        return _rebuilt_graph(widths, activation, dtype, state)
    if not widths or len(widths) % number_of_places(kind, 1):
        raise ValueError(f"the widths {widths} do not fit a network of kind {shown(kind)}")
    first, last = (np.shape(state[f"{name}.weight"]) for name in _ends(kind, len(widths)))
    sizes = {n for value in state.values() for n in np.shape(value)}
    if not (_fits(kind, len(widths), features, first, last, image) and sizes.issuperset(widths)):
        raise ValueError(f"the widths {widths} do not match the weights")
    function, rng = hidden_activation(activation), np.random.default_rng(0)
    inputs = first[1] if features is None else features
    network = build_network(
        kind, inputs, last[0], widths, function=function, dtype=dtype, device="cpu", rng=rng, image=image
    )
    network.load_state_dict(state)
    return network


def _rebuilt_graph(widths: list[int], activation: str, dtype: str, state: Mapping[str, Any]) -> GrowingDAG:
    """The graph that the names of the weights describe."""
    shapes = {name: np.shape(value) for name, value in state.items() if name.endswith(".layer.weight")}
    first = [shape for name, shape in shapes.items() if name.startswith("layers.start@->") and len(shape) == 2]
    last = [shape for name, shape in shapes.items() if name.endswith("->end@.layer.weight") and len(shape) == 2]
    if not first or not last:
        raise ValueError("the weights do not form a graph from start to end")
    function = hidden_activation(activation)
    graph = GrowingDAG(first[0][1], last[0][0], activation=function, dtype=np.dtype(dtype))
    graph.match(state)
    if graph.widths != widths:
        raise ValueError(f"the widths {widths} do not match the weights")
    graph.load_state_dict(state)
    return graph


def _ends(kind: str, places: int) -> tuple[str, str]:
    """Names of the first and of the last layer."""
    if kind == "resnet":
        return "stem.0", "head.3"
    rows = {"residual": ("blocks.0.first.layer", "head.layer"), "mixer": ("patcher.0", "head.1")}
    return rows.get(kind, ("layers.0.layer", f"layers.{places}.layer"))


def _fits(
    kind: str,
    places: int,
    features: int | None,
    first: tuple[int, ...],
    last: tuple[int, ...],
    image: Sequence[int] | None,
) -> bool:
    """Whether the shapes of first and last weight are those of such a network."""
    if kind in ("mlp", "residual"):
        return len(first) == len(last) == 2 and features in (None, first[1])
    if type(features) is not int or len(first) != 4:
        return False
    channels, *sizes = image_shape(features, image)
    if kind == "mixer":
        size = _patch_size((channels, *sizes))
        return first[1:] == (channels, size, size) and last[1:] == (_FEATURES,)
    if kind == "resnet":
        return first[1] == channels and last[1:] == (_STREAM * 2 ** (places - 1),)
    for _ in range(places // 2):
        sizes = [-(-size // 2) for size in sizes]
    return first[1] == channels and last[2:] == tuple(sizes)
