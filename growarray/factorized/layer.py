"""What a layer with a factorized kernel holds: parameters, sizes, and the settings of each of its convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, assign, namespace
from growarray.errors import ShapeError
from growarray.factorized.equation import dense_kernel, kernel_sizes
from growarray.factorized.owner import draw_weight
from growarray.factorized.parameters import real_array
from growarray.factorized.settings import ConvSettings, layer_index_of, nested
from growarray.factorized.tensor import FactorizedTensor
from growarray.nn.module import Module, Parameter

LayerIndex = tuple[int, ...]
Arrays = tuple[Array, ...]


def _each(option: str, text: str) -> Any:
    """A property: this setting of each convolution."""

    def read(layer: FactorizedKernel) -> Any:
        return nested({index: getattr(s, option) for index, s in layer._settings.items()}, layer.layers_shape)

    return property(read, doc=text)


class FactorizedKernel(Module):
    """Base of :class:`growarray.factorized.FactorizedConv`: everything but the convolution itself.

    weight : the factorized kernels    bias : one row for each convolution, or None
    layers_shape : of the modes that select a convolution, empty for one    groups : blocks of channels
    """

    weight: FactorizedTensor
    bias: Parameter | None
    layers_shape: tuple[int, ...]
    groups: int
    _settings: dict[LayerIndex, ConvSettings]

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(out_channels, in_channels / groups, *kernel)."""
        return kernel_sizes(self.weight.format, self.weight.shape[len(self.layers_shape) :])

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Taps along each spatial axis."""
        return self.kernel_shape[2:]

    @property
    def order(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_shape) - 2

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.kernel_shape[0]

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.kernel_shape[1] * self.groups

    @property
    def rank(self) -> Any:
        """Rank of the factorization."""
        return self.weight.rank

    stride = _each(
        "stride", "Stride along each axis; of a joint layer nested tuples, as of all that :meth:`set` changes."
    )
    padding = _each("padding", "Padding along each axis, a number or a pair, or ``'same'`` or ``'valid'``.")
    dilation = _each("dilation", "Dilation along each axis.")
    has_bias = _each("has_bias", "Whether a bias is added.")

    @property
    def padding_mode(self) -> str:
        """What is beyond the border."""
        return next(iter(self._settings.values())).padding_mode

    def settings(self, indices: Any = 0) -> ConvSettings:
        """Geometry and bias flag of one convolution."""
        return self._settings[layer_index_of(indices, self.layers_shape)]

    def _factors(
        self, layer_index: LayerIndex, drop: bool = True
    ) -> tuple[Arrays, Callable[[Sequence[Any]], Sequence[Any]]]:
        """:meth:`FactorizedTensor.factors_vjp` of the kernel."""
        return self.weight.factors_vjp(layer_index, drop=drop)

    def kernel(self, indices: Any = 0) -> Array:
        """The dense kernel (out_channels, in_channels / groups, *kernel) of one convolution."""
        layer_index = layer_index_of(indices, self.layers_shape)
        return dense_kernel(self.weight.of(self._factors(layer_index, drop=False)[0]))

    def reset_parameters(self, std: float | str | None = None, rng: np.random.Generator | None = None) -> None:
        """Draw the kernel anew, and set the bias to zero.

        std : of the kernel's entries; None for a dense layer's, ``1 / sqrt(3 fan_in)``, ``'original'`` for 0.02 with
            the formulas of TensorLy-Torch; see :meth:`FactorizedTensor.draw_` and :meth:`FactorizedTensor.normal_`
        """
        draw_weight("FactorizedConv", self.weight, std, math.prod(self.kernel_shape[1:]), 0.02, rng)
        if self.bias is not None:
            self.bias.data = namespace(self.bias.data).zeros_like(self.bias.data)

    def set(self, indices: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, bias: Any = None) -> None:
        """Give one convolution its own stride, padding, dilation and bias; what is left out goes back to its default.

        bias : values (out_channels,), True or False to switch it on or off, or None to leave it as it is
        """
        layer_index = layer_index_of(indices, self.layers_shape)
        flag = self._settings[layer_index].has_bias
        if bias is not None:
            flag = bool(bias) if isinstance(bias, bool | np.bool_) else True
        settings = ConvSettings.of(self.kernel_size, stride, padding, dilation, self.padding_mode, flag)
        if flag and self.bias is None:
            raise ValueError("FactorizedConv.set: the layer was made without a bias; make it with bias=True")
        if bias is not None and not isinstance(bias, bool | np.bool_) and self.bias is not None:
            values = bias.data if isinstance(bias, Parameter) else bias
            old = self.bias.data
            row = real_array("FactorizedConv.set: bias", values, old)
            if tuple(row.shape) != (self.out_channels,):
                raise ShapeError(
                    f"FactorizedConv.set: bias has shape {tuple(row.shape)}, expected ({self.out_channels},)"
                )
            self.bias.data = assign(namespace(old).asarray(old, copy=True), (*layer_index, ...), row)
        self._settings[layer_index] = settings

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters whose gradient is not computed; an optimizer leaves them as they are."""
        return tuple(name for name, parameter in self.named_parameters() if not parameter.requires_grad)

    def unfreeze(self) -> None:
        """Train every parameter again: ``requires_grad_(True)``."""
        self.requires_grad_(True)

    def _take_bias(self, bias: Any) -> None:
        if bias is None or self.bias is None:
            return
        new = real_array("FactorizedConv: bias", bias.data if isinstance(bias, Parameter) else bias, self.bias.data)
        if tuple(new.shape) != self.bias.shape:
            raise ShapeError(f"FactorizedConv: bias has shape {tuple(new.shape)}, expected {self.bias.shape}")
        self.bias.data = namespace(new).asarray(new, copy=True)
