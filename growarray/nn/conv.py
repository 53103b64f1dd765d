"""Convolution and transposed convolution layers, over one, two, three or any number of spatial axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from growarray.backend import Array, library
from growarray.contraction import Plan
from growarray.contraction.checks import known_precision
from growarray.errors import ShapeError, shown
from growarray.nn.linear import uniform
from growarray.nn.module import Module, Parameter, Pullback
from growarray.nn.parameter import as_parameter
from growarray.ops.conv import (
    Sizes,
    check_output_padding,
    conv,
    conv_geometry,
    conv_plan,
    conv_transpose,
    conv_transpose_plan,
    paddings,
    plan_target,
)
from growarray.ops.sizes import checked_groups, each_axis, whole_number


class _Conv(Module):
    """What convolutions and transposed ones share: a kernel, a bias, and options with one entry for each axis.

    axes : number of spatial axes    stride, dilation, kernel_size : tuples, one number for each of them
    padding : ``'same'``, ``'valid'``, or a tuple with a number or a pair (before, after) for each axis
    """

    axes: int
    output_padding: tuple[int, ...] = ()
    precision: str | None = None
    _transposed: ClassVar[bool]
    _options: ClassVar[tuple[str, ...]]
    _run: ClassVar[Any]
    _planned: ClassVar[Any]

    def _draw(
        self, out: int, inner: int, kernel: Sizes, groups: int, bias: bool, rng: Any, dtype: Any, device: str | None
    ) -> None:
        """Check the channels, and draw weight and bias."""
        checked_groups(type(self).__name__, inner, out, groups, 0)
        library(device)
        lead = (inner, out // groups) if self._transposed else (out, inner // groups)
        taps = each_axis(type(self).__name__, "kernel_size", kernel, self.axes, 1)
        rng = np.random.default_rng() if rng is None else rng
        bound = 1.0 / math.sqrt(max(lead[1] * math.prod(taps), 1))
        self.weight = Parameter(uniform((*lead, *taps), bound, rng, dtype, device))
        self.bias = Parameter(uniform((out,), bound, rng, dtype, device)) if bias else None

    def _hold(self, weight: Array | Parameter, bias: Array | Parameter | None, groups: int) -> None:
        self.weight, self.bias = as_parameter(weight), None if bias is None else as_parameter(bias)
        axes = len(self.weight.shape) - 2
        expected = getattr(type(self), "axes", max(axes, 1))
        if axes != expected:
            raise ShapeError(
                f"{type(self).__name__}.of: weight has shape {self.weight.shape}, expected {expected} spatial axes "
                "after the two of the channels; take the class for another number of axes"
            )
        if not hasattr(type(self), "axes"):
            self.axes = axes
        self.groups = groups
        checked_groups(type(self).__name__, self.in_channels, self.out_channels, groups, 0)
        if self.bias is not None and self.bias.shape != (self.out_channels,):
            raise ShapeError(
                f"{type(self).__name__}.of: bias has shape {self.bias.shape}, expected ({self.out_channels},)"
            )

    def _saved(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("weight", "bias", *self._options)}

    def _set_geometry(self, stride: Any, padding: Any, dilation: Any, groups: int, padding_mode: str) -> None:
        axes = conv_geometry(self.kernel_size, stride, padding, dilation, padding_mode)
        self.stride, self.dilation = tuple(a.stride for a in axes), tuple(a.dilation for a in axes)
        self.padding: Any = padding if isinstance(padding, str) else paddings(axes)
        self.groups, self.padding_mode = groups, padding_mode

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Taps along each spatial axis."""
        return self.weight.shape[2:]

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.weight.shape[0] if self._transposed else self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.weight.shape[1] * self.groups if self._transposed else self.weight.shape[0]

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, which adds to ``weight.grad`` and ``bias.grad``; with ``wrt_x=False`` it returns None."""
        options = {name: getattr(self, name) for name in self._options}
        y, back = self._run(x, self.weight.data, None if self.bias is None else self.bias.data, **options)
        wrt_w = self.weight.requires_grad

        def pullback(dy: Array, *, wrt_x: bool = True) -> Array:
            dx, dw, db = back(dy, wrt_x=wrt_x, wrt_w=wrt_w)
            self.weight.accumulate(dw, fresh=True)
            if self.bias is not None:
                self.bias.accumulate(db, fresh=True)
            return dx

        return y, pullback

    def plan(self, shape: Sequence[int], training: bool = False) -> Plan:
        """The contraction that runs for an input of this shape, or whose transpose does: its steps, cost and memory."""
        options = {name: getattr(self, name) for name in self._options}
        options |= plan_target(self.weight.data, self.precision)
        plan: Plan = self._planned(shape, self.weight.shape, training=training, **options)
        return plan

    def extra_repr(self) -> str:
        """Channels, kernel and stride as torch prints them, and every other option that is not the default."""
        zeros, ones = (0,) * self.axes, (1,) * self.axes
        options = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        options += [f"padding={self.padding}"] if self.padding != zeros else []
        options += [f"dilation={self.dilation}"] if self.dilation != ones else []
        options += [f"output_padding={self.output_padding}"] if any(self.output_padding) else []
        options += [f"groups={self.groups}"] if self.groups != 1 else []
        options += ["bias=False"] if self.bias is None else []
        options += [f"padding_mode={self.padding_mode}"] if self.padding_mode != "zeros" else []
        options += [f"precision={self.precision}"] if self.precision else []
        return ", ".join(options)


class _Forward(_Conv):
    """Convolution of (n, in_channels, *spatial), options as in torch."""

    _transposed = False
    _options = ("stride", "padding", "dilation", "groups", "padding_mode", "precision")
    _run, _planned = staticmethod(conv), staticmethod(conv_plan)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Any = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = None,
        device: str | None = None,
        precision: str | None = None,
    ) -> None:
        self._draw(out_channels, in_channels, kernel_size, groups, bias, rng, dtype, device)
        self.precision = known_precision(precision)
        self._set_geometry(stride, padding, dilation, groups, padding_mode)

    @classmethod
    def of(
        cls,
        weight: Array | Parameter,
        bias: Array | Parameter | None = None,
        *,
        stride: Sizes = 1,
        padding: Any = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        precision: str | None = None,
    ) -> Self:
        """A layer that holds these arrays, weight (out_channels, in_channels / groups, *kernel)."""
        layer = cls.__new__(cls)
        layer._hold(weight, bias, groups)
        layer.precision = known_precision(precision)
        layer._set_geometry(stride, padding, dilation, groups, padding_mode)
        return layer

    _restored = of


class Conv1d(_Forward):
    """Convolution of (n, c, length); see :class:`Conv2d`."""

    axes = 1


class Conv2d(_Forward):
    """Convolution of (n, c, height, width); constructor, state dict and initial weights are torch's.

    >>> import numpy as np
    >>> layer = Conv2d(3, 8, 3, stride=2, padding=1, rng=np.random.default_rng(0))
    >>> y, pullback = layer.vjp(np.ones((2, 3, 28, 28), dtype=np.float32))
    >>> y.shape, pullback(y).shape, layer.weight.grad.shape
    ((2, 8, 14, 14), (2, 3, 28, 28), (8, 3, 3, 3))
    """

    axes = 2


class Conv3d(_Forward):
    """Convolution of (n, c, depth, height, width); see :class:`Conv2d`."""

    axes = 3


class ConvNd(_Forward):
    """Convolution over any number of spatial axes, given first; the rest as in :class:`Conv2d`.

    >>> import numpy as np
    >>> layer = ConvNd(4, 2, 3, 2, rng=np.random.default_rng(0))
    >>> layer(np.ones((1, 2, 3, 3, 4, 4), dtype=np.float32)).shape
    (1, 3, 2, 2, 3, 3)
    """

    def __init__(self, axes: int, *channels_kernel_and_options: Any, **options: Any) -> None:
        self.axes = whole_number(type(self).__name__, "axes", axes, 1)
        super().__init__(*channels_kernel_and_options, **options)


class _Transpose(_Conv):
    """Transposed convolution of (n, in_channels, *spatial), options as in torch."""

    _transposed = True
    _options = ("stride", "padding", "output_padding", "groups", "dilation", "precision")
    _run, _planned = staticmethod(conv_transpose), staticmethod(conv_transpose_plan)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        padding_mode: str = "zeros",
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = None,
        device: str | None = None,
        precision: str | None = None,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(
                f"{type(self).__name__}: padding_mode {shown(padding_mode)} is not supported; take 'zeros'"
            )
        self._draw(out_channels, in_channels, kernel_size, groups, bias, rng, dtype, device)
        self.precision = known_precision(precision)
        self._set_options(stride, padding, output_padding, groups, dilation)

    def _set_options(self, stride: Any, padding: Any, output_padding: Any, groups: int, dilation: Any) -> None:
        name = type(self).__name__
        paddings = each_axis(name, "padding", padding, self.axes, 0)
        self._set_geometry(stride, paddings, dilation, groups, "zeros")
        self.output_padding = each_axis(name, "output_padding", output_padding, self.axes, 0)
        for options in zip(self.output_padding, self.stride, self.dilation, strict=True):
            check_output_padding(name, *options)

    @classmethod
    def of(
        cls,
        weight: Array | Parameter,
        bias: Array | Parameter | None = None,
        *,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        dilation: Sizes = 1,
        precision: str | None = None,
    ) -> Self:
        """A layer that holds these arrays, weight (in_channels, out_channels / groups, *kernel)."""
        layer = cls.__new__(cls)
        layer._hold(weight, bias, groups)
        layer.precision = known_precision(precision)
        layer._set_options(stride, padding, output_padding, groups, dilation)
        return layer

    _restored = of


class ConvTranspose1d(_Transpose):
    """Transposed convolution of (n, c, length); see :class:`ConvTranspose2d`."""

    axes = 1


class ConvTranspose2d(_Transpose):
    """Transposed convolution of (n, c, height, width); constructor, state dict and initial weights are torch's.

    >>> import numpy as np
    >>> layer = ConvTranspose2d(8, 3, 3, stride=2, padding=1, output_padding=1, rng=np.random.default_rng(0))
    >>> layer(np.ones((2, 8, 7, 7), dtype=np.float32)).shape
    (2, 3, 14, 14)
    """

    axes = 2


class ConvTranspose3d(_Transpose):
    """Transposed convolution of (n, c, depth, height, width); see :class:`ConvTranspose2d`."""

    axes = 3


class ConvTransposeNd(_Transpose):
    """Transposed convolution over any number of spatial axes, given first; the rest as in :class:`ConvTranspose2d`."""

    def __init__(self, axes: int, *channels_kernel_and_options: Any, **options: Any) -> None:
        self.axes = whole_number(type(self).__name__, "axes", axes, 1)
        super().__init__(*channels_kernel_and_options, **options)
