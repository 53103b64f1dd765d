"""Pooling layers: no parameters, the options of :mod:`growarray.ops.pool`, on one, two or three spatial axes.

Every channel is pooled alone, so channels that growth adds pass as those that were there before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from growarray.backend import Array, namespace
from growarray.errors import ShapeError
from growarray.nn.module import Module, Pullback
from growarray.ops.pool import (
    Padding,
    Sizes,
    adaptive_avg_pool,
    adaptive_sizes,
    avg_pool,
    check_divisor,
    max_pool,
    pool_axes,
)


class _Pool(Module):
    """A layer over inputs (n, c, *) of as many spatial axes as ``_spatial`` names."""

    _spatial: ClassVar[tuple[str, ...]]
    slope_at_zero = 1.0  # a constant stays what it is

    def _check(self, x: Array) -> None:
        namespace(x)
        if x.ndim != 2 + len(self._spatial):
            raise ShapeError(
                f"{type(self).__name__}: input has shape {tuple(x.shape)}, expected (n, c, {', '.join(self._spatial)})"
                "; add a batch axis with x[None, ...], or take the layer for another number of axes"
            )


class _MaxPool(_Pool):
    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Padding = 0,
        dilation: Sizes = 1,
        *,
        ceil_mode: bool = False,
    ) -> None:
        pool_axes(type(self).__name__, len(self._spatial), kernel_size, stride, padding, dilation)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.dilation, self.ceil_mode = padding, dilation, ceil_mode

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Maxima (n, c, *windows), and a pullback to the first maximum of each window."""
        self._check(x)
        return max_pool(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    def extra_repr(self) -> str:
        """Every option, as torch prints them."""
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class MaxPool1d(_MaxPool):
    """Largest value of each window of (n, c, length); see :class:`MaxPool2d`."""

    _spatial = ("length",)


class MaxPool2d(_MaxPool):
    """Largest value of each window of (n, c, height, width); see :func:`growarray.ops.pool.max_pool`.

    Options are torch's, ``ceil_mode`` by name and without ``return_indices``. Wrong ones raise TypeError or ValueError
    when the layer is made.

    >>> import numpy as np
    >>> MaxPool2d(3, stride=2, padding=1)(np.ones((2, 3, 7, 8))).shape
    (2, 3, 4, 4)
    """

    _spatial = ("height", "width")


class MaxPool3d(_MaxPool):
    """Largest value of each window of (n, c, depth, height, width); see :class:`MaxPool2d`."""

    _spatial = ("depth", "height", "width")


class _AvgPool(_Pool):
    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        dilation: Sizes = 1,
    ) -> None:
        name = type(self).__name__
        axes = pool_axes(name, len(self._spatial), kernel_size, stride, padding, dilation)
        check_divisor(name, divisor_override)
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding, self.ceil_mode, self.count_include_pad = padding, ceil_mode, count_include_pad
        self.divisor_override, self.dilation = divisor_override, dilation
        self._positions = math.prod(axis.kernel for axis in axes)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Means (n, c, *windows), and a pullback that shares each gradient out evenly over its window."""
        self._check(x)
        options = (self.padding, self.ceil_mode, self.count_include_pad, self.divisor_override, self.dilation)
        return avg_pool(x, self.kernel_size, self.stride, *options)

    @property
    def slope_at_zero(self) -> float:  # type: ignore[override]
        """1, a constant stays what it is; or the positions of a window over ``divisor_override``."""
        return 1.0 if self.divisor_override is None else self._positions / self.divisor_override

    def extra_repr(self) -> str:
        """Kernel, stride and padding as torch prints them, and every other option that is not the default."""
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        others = {"ceil_mode": False, "count_include_pad": True, "divisor_override": None, "dilation": 1}
        changed = [f", {name}={getattr(self, name)}" for name, value in others.items() if getattr(self, name) != value]
        return text + "".join(changed)


class AvgPool1d(_AvgPool):
    """Mean of each window of (n, c, length), as in torch without ``divisor_override``; see :class:`AvgPool2d`."""

    _spatial = ("length",)

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        dilation: Sizes = 1,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, count_include_pad, dilation=dilation)


class AvgPool2d(_AvgPool):
    """Mean of each window of (n, c, height, width); see :func:`growarray.ops.pool.avg_pool`.

    Options are torch's, and ``dilation``; wrong ones raise TypeError or ValueError when the layer is made.

    >>> import numpy as np
    >>> AvgPool2d(2)(np.ones((2, 3, 7, 8))).shape
    (2, 3, 3, 4)
    """

    _spatial = ("height", "width")


class AvgPool3d(_AvgPool):
    """Mean of each window of (n, c, depth, height, width); see :class:`AvgPool2d`."""

    _spatial = ("depth", "height", "width")


class _AdaptiveAvgPool(_Pool):
    _shown = "output_size={self.output_size}"

    def __init__(self, output_size: int | Sequence[int | None] | None) -> None:
        adaptive_sizes(type(self).__name__, len(self._spatial), output_size)
        self.output_size = output_size

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Means (n, c, *output_size), and a pullback that shares each gradient out evenly over its window."""
        self._check(x)
        return adaptive_avg_pool(x, self.output_size)


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """Mean of ``output_size`` windows of (n, c, length); see :class:`AdaptiveAvgPool2d`."""

    _spatial = ("length",)


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """Mean of ``output_size`` windows of (n, c, height, width); see :func:`growarray.ops.pool.adaptive_avg_pool`.

    output_size : one number, or one for each spatial axis; None keeps the size of the input
    A wrong one raises TypeError or ValueError when the layer is made.

    >>> import numpy as np
    >>> AdaptiveAvgPool2d((None, 3))(np.ones((2, 3, 7, 8))).shape
    (2, 3, 7, 3)
    """

    _spatial = ("height", "width")


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    """Mean of ``output_size`` windows of (n, c, depth, height, width); see :class:`AdaptiveAvgPool2d`."""

    _spatial = ("depth", "height", "width")
