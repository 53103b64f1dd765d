"""GrowingMLP: a chain of growing linear layers."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, namespace
from growarray.errors import GrowthError, shown
from growarray.growing import LinearGrowingModule
from growarray.networks.balance import is_homogeneous
from growarray.networks.network import GrowingNetwork
from growarray.networks.widths import check_chain, listed_widths, sample_width
from growarray.nn import SELU, Module
from growarray.ops.sizes import whole_number


class GrowingMLP(GrowingNetwork):
    """Linear layers with an activation between them, each hidden width able to grow.

    in_features : width of a sample, or its shape
    flatten : whether a sample of several axes is flattened; else the layers act on its last axis
    hidden_size : width of every hidden layer, or a sequence of widths (then ``number_hidden_layers`` follows from it)
    activation : copied for every hidden layer, default SELU as in the original; a Sequential with a norm will do

    State-dict names are ``layers.0.layer.weight``, ``layers.0.layer.bias``, ….

    >>> import numpy as np
    >>> network = GrowingMLP(4, 3, hidden_size=2, number_hidden_layers=2, rng=np.random.default_rng(0))
    >>> network(np.zeros((5, 4), dtype=np.float32)).shape, network.widths
    ((5, 3), [2, 2])
    """

    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int,
        hidden_size: int | Sequence[int],
        number_hidden_layers: int | None = None,
        activation: Module | None = None,
        use_bias: bool = True,
        flatten: bool = True,
        device: str | None = None,
        *,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        count = 1 if number_hidden_layers is None else number_hidden_layers
        hidden = listed_widths("GrowingMLP", "hidden_size", hidden_size, count)
        if number_hidden_layers is not None and len(hidden) != number_hidden_layers:
            raise ValueError(f"GrowingMLP: {len(hidden)} hidden sizes for {number_hidden_layers} hidden layers")
        rng = np.random.default_rng() if rng is None else rng
        self.in_features = sample_width("GrowingMLP", in_features, flatten=flatten)
        self.out_features = whole_number("GrowingMLP", "out_features", out_features, 1)
        self.flatten = flatten
        sizes = [self.in_features, *hidden, self.out_features]
        function = SELU() if activation is None else activation
        self.layers: list[LinearGrowingModule] = []
        for index, (width, outputs) in enumerate(itertools.pairwise(sizes)):
            last = index == len(sizes) - 2
            before = self.layers[-1] if self.layers else None
            layer = LinearGrowingModule(
                width, outputs, use_bias, None if last else copy.deepcopy(function),
                previous_module=before, name=f"layers.{index}", device=device, dtype=dtype, rng=rng,
            )  # fmt: skip
            if before is not None:
                before.next_module = layer
            self.layers.append(layer)

    _held = ("in_features", "out_features", "flatten", "layers")

    def _check_held(self) -> None:
        check_chain("GrowingMLP", self.in_features, self.layers, self.out_features)

    @property
    def chain(self) -> list[LinearGrowingModule]:
        """The layers, from input to output."""
        return self.layers

    @property
    def growing_layers(self) -> list[LinearGrowingModule]:
        """Every layer but the first: its input is a hidden width."""
        return self.layers[1:]

    @staticmethod
    def normalisation_factor(values: Array) -> Array:
        """Factors that bring positive values to their geometric mean, so that their product stays what it is.

        >>> import numpy as np
        >>> GrowingMLP.normalisation_factor(np.array([1.0, 4.0])).tolist()
        [2.0, 0.5]
        """
        return namespace(values).prod(values) ** (1.0 / math.prod(values.shape)) / values

    def normalise(self) -> None:
        """Rescale pairs of layers so that incoming and outgoing weights of each hidden neuron have equal norms.

        Neuron by neuron the incoming weights and bias are divided, the outgoing multiplied, by
        ``sqrt(|incoming| / |outgoing|)``; a positively homogeneous activation, ``f(c x) = c f(x)`` for c > 0, leaves
        the function unchanged.

        Raises GrowthError: an activation is not positively homogeneous (the default, SELU, is not; ReLU, LeakyReLU and
        the identity are). Nothing has changed then.
        """
        for layer in self.layers[:-1]:
            if not is_homogeneous(layer.post_layer_function, layer.weight.data):
                raise GrowthError(
                    f"GrowingMLP.normalise: {layer.name} is followed by {shown(layer.post_layer_function)}, expected a "
                    "positively homogeneous function such as ReLU() or LeakyReLU(): with another one rescaled weights "
                    "compute something else; do not call normalise()"
                )
        for first, second in itertools.pairwise(self.layers):
            w_in, w_out = first.weight.data, second.weight.data
            xp = namespace(w_in)
            incoming = xp.sqrt(xp.sum(w_in**2, axis=1))
            outgoing = xp.sqrt(xp.sum(w_out**2, axis=0))
            usable = (incoming > 0) & (outgoing > 0)
            ones = xp.ones_like(incoming)
            factor = xp.sqrt(xp.where(usable, incoming / xp.where(usable, outgoing, ones), ones))
            first.layer.weight.data = w_in / factor[:, None]
            if first.layer.bias is not None:
                first.layer.bias.data = first.layer.bias.data / factor
            second.layer.weight.data = w_out * factor[None, :]
