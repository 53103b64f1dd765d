"""Names of the command line and what they stand for: rules, activations, networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from growarray.growing import FISHER, GRADMAX, TINY, GrowthRule
from growarray.networks import GrowingMLP, GrowingNetwork, GrowingResidualMLP
from growarray.nn import Module, ReLU, activation

__all__ = ["NETWORKS", "RULES", "build_network", "hidden_activation", "number_of_places"]

RULES: dict[str, GrowthRule] = {"tiny": TINY, "gradmax": GRADMAX, "fisher": FISHER}
NETWORKS = ("mlp", "residual")


def hidden_activation(name: str) -> Module:
    """The activation between layers; ``ValueError`` where growth has no use for it.

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
            f"--activation: expected a function of each neuron alone, found {name!r}; take relu"
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
    """A network with ``widths`` in the order of its places."""
    common: dict[str, Any] = {"activation": function, "device": device, "dtype": np.dtype(dtype), "rng": rng}
    if kind == "mlp":
        return GrowingMLP(features, outputs, hidden_size=widths, **common)
    return GrowingResidualMLP(features, outputs, num_features=widths[1::2], hidden_features=widths[::2], **common)
