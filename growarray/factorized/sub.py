"""One of the layers of a joint layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growarray.backend import Array
from growarray.contraction import Plan
from growarray.nn.module import Module, Pullback

__all__ = ["SubFactorizedConv", "SubFactorizedLinear", "SubLayer"]


class SubLayer(Module):
    """One member of a joint layer, as a layer of its own; ``indices`` say which."""

    indices: Any

    @property
    def main(self) -> Any:
        """The joint layer."""
        raise NotImplementedError(f"{type(self).__name__} must define main")

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

    @property
    def main(self) -> Any:
        """The joint layer."""
        return self.main_conv

    def kernel(self) -> Array:
        """The dense kernel (out_channels, in_channels / groups, *kernel)."""
        return self.main_conv.kernel(self.indices)

    @property
    def bias(self) -> Array | None:
        """The bias of this convolution, or None."""
        main = self.main_conv
        return None if main.bias is None or not self._own("has_bias") else main.bias.data[self.indices]

    @property
    def stride(self) -> tuple[int, ...]:
        """Stride along each axis."""
        return self._own("stride")  # type: ignore[no-any-return]

    @property
    def padding(self) -> Any:
        """Padding, as in the joint layer."""
        return self._own("padding")

    @property
    def dilation(self) -> tuple[int, ...]:
        """Dilation along each axis."""
        return self._own("dilation")  # type: ignore[no-any-return]

    def _own(self, option: str) -> Any:
        value = getattr(self.main_conv, option)
        for i in self.indices:
            value = value[i]
        return value

    def extra_repr(self) -> str:
        """Where it is in the joint layer, and its options."""
        return f"indices={self.indices}, {self.main_conv.settings(self.indices)}"


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

    @property
    def main(self) -> Any:
        """The joint layer."""
        return self.main_linear

    def matrix(self) -> Array:
        """The dense weight (out_features, in_features)."""
        return self.main_linear.matrix(self.indices)
