"""What a kernel reads at each output position: a stream of features that is never one array."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from growarray.backend import Array, assign, device_of, namespace
from growarray.contraction.problem import Axis
from growarray.contraction.routines.windows import window
from growarray.errors import ShapeError, shown
from growarray.ops.conv import conv_geometry
from growarray.ops.sizes import each_axis


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of an array, as features (c, *kernel) flattened, as in torch's ``unfold``. Made by :func:`windows`.

    array : (n, c, *sizes)    axes : one of each spatial axis: taps, outputs, and which positions they read
    bias : whether one more feature, the last, is 1 everywhere
    """

    array: Array
    axes: tuple[Axis, ...]
    bias: bool = False

    @property
    def parts(self) -> tuple[Windows, ...]:
        """These windows alone; streams of growing layers may have several parts."""
        return (self,)

    @property
    def width(self) -> int:
        """Number of features, that of the bias included."""
        return int(self.array.shape[1]) * math.prod(axis.taps for axis in self.axes) + int(self.bias)

    @property
    def samples(self) -> int:
        """Number of images."""
        return int(self.array.shape[0])

    @property
    def positions(self) -> tuple[int, ...]:
        """Outputs along each axis."""
        return tuple(axis.out for axis in self.axes)

    def materialise(self) -> Array:
        """The windows as one array (n, *positions, width); moments never need it.

        >>> import numpy as np
        >>> windows(np.arange(4.0).reshape(1, 1, 4), (2,), bias=True).materialise()[0, 1].tolist()
        [1.0, 2.0, 1.0]
        """
        x, xp = self.array, namespace(self.array)
        taps = list(itertools.product(*(range(axis.taps) for axis in self.axes)))
        shape = (self.samples, *self.positions, int(x.shape[1]), len(taps))
        out = xp.zeros(shape, dtype=x.dtype, device=device_of(x))
        for i, tap in enumerate(taps):
            windows_read = [window(axis, t, 0, axis.out) for axis, t in zip(self.axes, tap, strict=True)]
            read = x[(slice(None), slice(None), *(part for *_, part in windows_read))]
            place = (slice(None), *(slice(low, high) for low, high, _ in windows_read), slice(None), i)
            out = assign(out, place, xp.moveaxis(read, 1, -1))
        out = xp.reshape(out, (*shape[:-2], shape[-2] * shape[-1]))
        ones = xp.ones((*shape[:-2], 1), dtype=x.dtype, device=device_of(x))
        return xp.concat([out, ones], axis=-1) if self.bias else out

    def cropped(self, outputs: Sequence[slice]) -> Windows:
        """The windows of some outputs, those from ``start`` to ``stop`` along each axis, and what they read alone."""
        axes, read = [], []
        for axis, part in zip(self.axes, outputs, strict=True):
            out, first = max(part.stop - part.start, 0), part.start * axis.stride - axis.before
            low = min(max(first, 0), axis.size)
            reach = (out - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1
            high = max(min(first + reach, axis.size), low)
            axes.append(axis._replace(size=high - low, out=out, before=low - first))
            read.append(slice(low, high))
        return replace(self, array=self.array[(slice(None), slice(None), *read)], axes=tuple(axes))

    def read_by(self, axes: Sequence[Axis], taps: Sequence[int]) -> tuple[Windows, tuple[slice, ...]]:
        """Windows whose outputs one tap of a following convolution reads, and its outputs that read any.

        axes : those of the windows of the following convolution, over the outputs of this one    taps : one for each

        >>> import numpy as np
        >>> first = windows(np.ones((1, 1, 5)), (3,), padding=1)
        >>> following = windows(np.ones((1, 1, 5)), (3,), padding=1)
        >>> first.read_by(following.axes, (0,))[1]
        (slice(1, 5, None),)
        """
        following, outputs = [], []
        for axis, after, tap in zip(self.axes, axes, taps, strict=True):
            low, high, _ = window(after._replace(size=axis.out), tap, 0, after.out)
            start = low * after.stride + tap * after.dilation - after.before
            before = axis.before - start * axis.stride
            following.append(axis._replace(out=high - low, stride=axis.stride * after.stride, before=before))
            outputs.append(slice(low, high))
        return replace(self, axes=tuple(following)), tuple(outputs)


def windows(
    array: Array, kernel: Sequence[int], *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, bias: bool = False
) -> Windows:
    """The windows of a convolution's input (n, c, *sizes), zeros around it; options as for :func:`growarray.ops.conv`.

    Raises ShapeError: the number of spatial axes is not that of the kernel; PlanError: an option does not make sense,
    or the kernel is larger than the padded input; TypeError: the input is not an array of real numbers.

    >>> import numpy as np
    >>> w = windows(np.ones((8, 3, 16, 16)), (3, 3), stride=2, padding=1, bias=True)
    >>> w.width, w.positions
    (28, (8, 8))
    """
    namespace(array, where="windows: ")
    shape = tuple(array.shape)
    if len(shape) != len(kernel) + 2 or not len(kernel):
        raise ShapeError(
            f"windows: the input has shape {shape}, expected (n, c) and one more axis for each number of the kernel "
            f"{shown(tuple(kernel))}; add a batch axis with x[None, ...] if it is missing"
        )
    taps = each_axis("windows", "kernel", tuple(kernel), len(kernel), 1)
    geometry = conv_geometry(taps, stride, padding, dilation)
    axes = (
        Axis(str(i), size, k, a.output_size(size, k, f"axis {i}"), a.stride, a.before, a.dilation)
        for i, (size, k, a) in enumerate(zip(shape[2:], taps, geometry, strict=True))
    )
    return Windows(array, tuple(axes), bias)
