"""Networks that grow by the names that runs and their files use: kind, activation, widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from growarray.errors import shown
from growarray.networks.block import GrowingResidualMLP
from growarray.networks.mlp import GrowingMLP
from growarray.networks.network import GrowingNetwork
from growarray.nn import Module, ReLU, activation

__all__ = ["NETWORKS", "build_network", "hidden_activation", "number_of_places", "rebuild_network"]

NETWORKS = ("mlp", "residual")


def hidden_activation(name: str, *, where: str = "activation") -> Module:
    """The activation between layers; ``ValueError`` if growth has no use for it, which says ``where`` it stands.

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
    """How many widths a network has: one a hidden layer, two a residual block."""
    return hidden_layers * (1 if kind == "mlp" else 2)


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
) -> GrowingNetwork:
    """A network with ``widths`` in the order of its growing layers."""
    common: dict[str, Any] = {"activation": function, "device": device, "dtype": np.dtype(dtype), "rng": rng}
    if kind == "mlp":
        return GrowingMLP(features, outputs, hidden_size=widths, **common)
    return GrowingResidualMLP(features, outputs, num_features=widths[1::2], hidden_features=widths[::2], **common)


def rebuild_network(
    kind: str, widths: list[int], activation: str, dtype: str, state: Mapping[str, Any]
) -> GrowingNetwork:
    """The network of a state dict, whose features and outputs are those of its first and last matrix.

    Raises
    ------
    ValueError, KeyError, TypeError
        Kind, widths or activation are unknown, or the state dict is not that of such a network. Nothing of the
        size of wrong widths is made.

    >>> network = GrowingMLP(4, 3, hidden_size=[5])
    >>> rebuild_network("mlp", [5], "relu", "float32", network.state_dict()).in_features
    4
    """
    if kind not in NETWORKS:
        raise ValueError(f"network is {shown(kind)}, expected {' or '.join(NETWORKS)}")
    if not widths or len(widths) % number_of_places(kind, 1):
        raise ValueError(f"the widths {widths} are not those of a network of the kind {shown(kind)}")
    ends = {"mlp": ("layers.0", f"layers.{len(widths)}"), "residual": ("blocks.0.first", "head")}[kind]
    first, last = (np.shape(state[f"{name}.layer.weight"]) for name in ends)
    if len(first) != 2 or len(last) != 2 or not {n for v in state.values() for n in np.shape(v)}.issuperset(widths):
        raise ValueError(f"the widths {widths} are not those of the weights")
    network = build_network(
        kind,
        first[1],
        last[0],
        widths,
        function=hidden_activation(activation),
        dtype=dtype,
        device="cpu",
        rng=np.random.default_rng(0),
    )
    network.load_state_dict(state)
    return network
