"""One of the layers of a joint layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growarray.backend import Array
from growarray.contraction import Plan
from growarray.nn.module import Module, Pullback


class SubLayer(Module):
    """One member of a joint layer, as a layer of its own; ``indices`` say which."""

    indices: Any
    main: Any

    def forward(self, x: Array) -> Array:
        """Value of this member."""
        return self.main.forward(x, self.indices)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback; the pullback adds to the gradients of the joint layer."""
        found: tuple[Array, Pullback] = self.main.vjp(x, self.indices)
        return found

    def plan(self, shape: Sequence[int], training: bool = False) -> Plan:
        """The contraction that runs for an input of this shape."""
        found: Plan = self.main.plan(shape, training, self.indices)
        return found


class SubFactorizedConv(SubLayer):
    """What ``layer[indices]`` gives: a layer of its own that shares parameters and gradients with the joint one.

    Its parameters are those of ``main_conv``; a later ``main_conv.set(indices, …)`` changes it.

    >>> import numpy as np
    >>> from growarray.factorized import FactorizedConv
    >>> joint = FactorizedConv(2, 3, (3, 3), n_layers=2, rank=4, rng=np.random.default_rng(0))
    >>> y, pullback = joint[1].vjp(np.ones((1, 2, 5, 5), dtype=np.float32))
    >>> pullback(y).shape, joint.weight.weights.grad.shape
    ((1, 2, 5, 5), (4,))
    """

    def __init__(self, main_conv: Any, indices: tuple[int, ...]) -> None:
        self.main_conv = main_conv
        self.indices = indices

    main = property(lambda layer: layer.main_conv, doc="The joint layer.")

    def kernel(self) -> Array:
        """The dense kernel (out_channels, in_channels / groups, *kernel)."""
        return self.main_conv.kernel(self.indices)

    stride = property(lambda layer: layer._settings.stride, doc="Stride along each axis.")
    padding = property(lambda layer: layer._settings.padding, doc="Padding, as in the joint layer.")
    dilation = property(lambda layer: layer._settings.dilation, doc="Dilation along each axis.")

    @property
    def bias(self) -> Array | None:
        """The bias of this convolution, or None."""
        bias = self.main_conv.bias
        return None if bias is None or not self._settings.has_bias else bias.data[self.indices]

    @property
    def _settings(self) -> Any:
        return self.main_conv.settings(self.indices)

    def extra_repr(self) -> str:
        """Its indices in the joint layer, and its options."""
        return f"indices={self.indices}, {self._settings}"


class SubFactorizedLinear(SubLayer):
    """What ``layer[i]`` gives: a layer of its own that shares parameters and gradients with the joint one.

    >>> import numpy as np
    >>> from growarray.factorized import FactorizedLinear
    >>> joint = FactorizedLinear((2, 3), (2, 2), n_layers=2, rank=4, rng=np.random.default_rng(0))
    >>> y, pullback = joint[1].vjp(np.ones((5, 6), dtype=np.float32))
    >>> pullback(y).shape, joint.weight.weights.grad.shape
    ((5, 6), (4,))
    """

    _shown = "indices={self.indices}"

    def __init__(self, main_linear: Any, indices: int) -> None:
        self.main_linear = main_linear
        self.indices = indices

    main = property(lambda layer: layer.main_linear, doc="The joint layer.")

    def matrix(self) -> Array:
        """The dense weight (out_features, in_features)."""
        return self.main_linear.matrix(self.indices)


class SubFactorizedEmbedding(SubLayer):
    """What ``layer[i]`` gives: a table of its own that shares parameters and gradients with the joint one.

    >>> import numpy as np
    >>> from growarray.factorized import FactorizedEmbedding
    >>> joint = FactorizedEmbedding(6, 4, factorization="cp", n_layers=2, rng=np.random.default_rng(0))
    >>> joint[1](np.asarray([5, 0])).shape
    (2, 4)
    """

    _shown = "indices={self.indices}"

    def __init__(self, main_layer: Any, indices: int) -> None:
        self.main_layer = main_layer
        self.indices = indices

    main = property(lambda layer: layer.main_layer, doc="The joint layer.")

    def table(self) -> Array:
        """The dense table (num_embeddings, embedding_dim)."""
        return self.main_layer.table(self.indices)
