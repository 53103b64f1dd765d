"""Pooling over any number of spatial axes, channels first, with value and way back side by side.

All three work along one axis after another: a window of 3 x 3 costs 3 + 3 taps in place of 9.
n batch · c channels · * spatial axes. Along one of them: L positions · o windows, counted by i · k taps of a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from growarray.backend import Array, assign, device_of, namespace
from growarray.contraction.checks import is_whole
from growarray.errors import ShapeError, shown
from growarray.ops.fused import fused
from growarray.ops.gradient import checked, joined
from growarray.ops.sizes import each_axis

Vjp = Callable[[Array], Array]
Sizes = int | Sequence[int]
Padding = int | Sequence[int | Sequence[int]]


@dataclass(frozen=True, slots=True)
class PoolAxis:
    """Windows along one axis: window ``i`` and tap ``k`` read the input at ``i stride + k dilation - padding``.

    ``after`` is the padding behind the input if it differs from ``padding``, that in front of it.

    >>> PoolAxis(kernel=3, stride=2, padding=1).output_size(56)
    28
    """

    kernel: int
    stride: int
    padding: int = 0
    dilation: int = 1
    after: int | None = None

    @property
    def behind(self) -> int:
        """Padding behind the input."""
        return self.padding if self.after is None else self.after

    @property
    def reach(self) -> int:
        """Positions from the first to the last tap of a window, both included."""
        return self.dilation * (self.kernel - 1) + 1

    def output_size(self, size: int, ceil_mode: bool = False) -> int:
        """Number of windows over ``size`` positions; below 1 if none fits.

        With ``ceil_mode`` a last window may leave the padded input, if it starts in the input or the left padding.
        """
        spare = size + self.padding + self.behind - self.reach
        out = (spare + (self.stride - 1 if ceil_mode else 0)) // self.stride + 1
        return out - 1 if ceil_mode and (out - 1) * self.stride >= size + self.padding else out

    def taps(self, size: int, out: int) -> list[tuple[slice, slice]]:
        """For each tap the windows in which it meets the input, and the positions it meets there."""
        return [self._tap(k, size, out) for k in range(self.kernel)]

    def _tap(self, k: int, size: int, out: int) -> tuple[slice, slice]:
        shift = k * self.dilation - self.padding
        first = min(max(-(shift // self.stride), 0), out)
        stop = min((size - 1 - shift) // self.stride + 1, out)
        if first == stop:
            return slice(first, stop), slice(0, 0)
        start = first * self.stride + shift
        return slice(first, stop), slice(start, start + (stop - first - 1) * self.stride + 1, self.stride)

    def counts(self, size: int, out: int, include_pad: bool) -> list[int]:
        """Positions by which each window divides its sum: those in the padded input, or in the input alone."""
        low, high = (-self.padding, size + self.behind) if include_pad else (0, size)
        counts = []
        for start in (i * self.stride - self.padding for i in range(out)):
            first = max(-((start - low) // self.dilation), 0)
            last = min((high - 1 - start) // self.dilation, self.kernel - 1)
            counts.append(max(last - first + 1, 1))
        return counts


def pool_axes(
    where: str, axes: int, kernel_size: Sizes, stride: Sizes | None = None, padding: Padding = 0, dilation: Sizes = 1
) -> tuple[PoolAxis, ...]:
    """One :class:`PoolAxis` for each of ``axes`` spatial axes; ``stride`` is ``kernel_size`` unless given.

    Each option is one number, or a sequence with one for each axis; ``where`` begins the messages. An entry of a
    sequence of paddings may be a pair (before, after), as ONNX has it.

    Raises TypeError if an option is not a whole number, ValueError if one is out of range or has a wrong
    number of entries, if a padding is more than half of the kernel, or one of a pair as large as the window.

    >>> [axis.stride for axis in pool_axes("doc", 2, kernel_size=(2, 3))]
    [2, 3]
    """
    kernels = each_axis(where, "kernel_size", kernel_size, axes, 1)
    strides = kernels if stride is None else each_axis(where, "stride", stride, axes, 1)
    dilations = each_axis(where, "dilation", dilation, axes, 1)
    paired = isinstance(padding, tuple | list) and any(isinstance(pad, tuple | list) for pad in padding)
    befores = each_axis(where, "padding", [0 for _ in padding] if paired else padding, axes, 0)  # type: ignore[union-attr]
    pairs = [each_axis(where, "padding", pad, 2, 0) for pad in (padding if paired else befores)]  # type: ignore[union-attr]
    windows = tuple(
        PoolAxis(k, s, pair[0], d, pair[1]) for k, s, pair, d in zip(kernels, strides, pairs, dilations, strict=True)
    )
    for axis in windows:
        if not paired and 2 * axis.padding > axis.kernel:
            raise ValueError(
                f"{where}: padding {axis.padding} is more than half of kernel_size {axis.kernel}; pad at most "
                f"{axis.kernel // 2}"
            )
        if max(axis.padding, axis.behind) >= axis.reach:
            raise ValueError(f"{where}: padding {padding} reaches over a window of {axis.reach} positions; pad less")
    return windows


def adaptive_sizes(where: str, axes: int, output_size: int | Sequence[int | None] | None) -> tuple[int | None, ...]:
    """One output size for each of ``axes`` spatial axes; None keeps the size of the input.

    Raises TypeError if a size is not a whole number or None, ValueError if one is below 1 or their number
    is another than ``axes``.

    >>> adaptive_sizes("doc", 2, 7), adaptive_sizes("doc", 2, (None, 3))
    ((7, 7), (None, 3))
    """
    sizes = list(output_size) if isinstance(output_size, tuple | list) else [output_size] * axes
    numbers = each_axis(where, "output_size", [1 if size is None else size for size in sizes], axes, 1)
    return tuple(None if size is None else number for size, number in zip(sizes, numbers, strict=True))


def check_divisor(where: str, divisor_override: int | None) -> None:
    """Raise unless ``divisor_override`` is None (the number of positions) or a whole number other than 0."""
    if divisor_override is not None and not is_whole(divisor_override):
        raise TypeError(f"{where}: divisor_override must be a whole number or None, found {shown(divisor_override)}")
    if divisor_override == 0:
        raise ValueError(f"{where}: divisor_override must not be 0; None divides by the number of positions")


def _check_input(where: str, x: Array) -> None:
    """Raise unless ``x`` holds real floats over at least one spatial axis that is not empty."""
    xp = namespace(x)
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(
            f"{where}: input has dtype {x.dtype}, expected real floats; convert it with xp.astype(x, xp.float32)"
        )
    if x.ndim < 3:
        raise ShapeError(
            f"{where}: input has shape {tuple(x.shape)}, expected (n, c, *spatial) with at least one spatial axis; "
            "add a batch axis with x[None, ...] if it is missing"
        )
    if 0 in x.shape[2:]:
        raise ShapeError(
            f"{where}: input has shape {tuple(x.shape)}, expected at least one position on every spatial axis; "
            "leave empty inputs out (an empty batch may be pooled)"
        )


def _output_sizes(where: str, x: Array, axes: tuple[PoolAxis, ...], ceil_mode: bool) -> list[int]:
    sizes = [axis.output_size(size, ceil_mode) for axis, size in zip(axes, x.shape[2:], strict=True)]
    for axis, size, out in zip(axes, x.shape[2:], sizes, strict=True):
        if out < 1:
            raise ShapeError(
                f"{where}: kernel_size {axis.kernel} with dilation {axis.dilation} spans {axis.reach} positions, "
                f"input of shape {tuple(x.shape)} has {size} and padding {axis.padding} on either side; "
                "shrink the kernel or pool a larger input"
            )
    return sizes


def _at(axis: int, part: slice) -> Any:
    return (*(slice(None),) * axis, part, ...)


def _resized(x: Array, axis: int, size: int) -> tuple[int, ...]:
    return (*x.shape[:axis], size, *x.shape[axis + 1 :])


def _zeros(xp: Any, like: Array, shape: tuple[int, ...]) -> Array:
    return xp.zeros(shape, dtype=like.dtype, device=device_of(like))


def _spread(dx: Array, axis: int, window: PoolAxis, out: int, shares: Iterable[Array], fresh: bool = True) -> Array:
    """``dx`` with ``shares``, for each tap what it passes on of each of ``out`` windows, added where it meets ``dx``.

    ``fresh`` says that ``dx`` is 0. Then the first taps, of which no two ever meet at one position, write in place
    of adding, which takes a quarter of the time.
    """
    alone = window.stride // math.gcd(window.stride, window.dilation) if fresh else 0
    for k, ((windows, positions), share) in enumerate(zip(window.taps(dx.shape[axis], out), shares, strict=False)):
        dx = assign(dx, _at(axis, positions), share[_at(axis, windows)], add=k >= alone)
    return dx


def _max_along(xp: Any, x: Array, axis: int, window: PoolAxis, out: int) -> tuple[Array, Vjp]:
    """Maximum of each window along one axis. Keeps which tap won, one byte a window up to kernel size 256."""
    shape, grown = tuple(x.shape), _resized(x, axis, out)
    taps = window.taps(shape[axis], out)

    def tap(k: int) -> Array:
        windows, positions = taps[k]
        if windows == slice(0, out):  # a copy: maxima and comparisons of strided rows take four times as long
            return xp.asarray(x[_at(axis, positions)], copy=True)
        values = xp.full(grown, -math.inf, dtype=x.dtype, device=device_of(x))
        return assign(values, _at(axis, windows), x[_at(axis, positions)])

    small = xp.uint8 if window.kernel <= 2**8 else xp.int16 if window.kernel < 2**15 else xp.int32
    best = tap(window.kernel - 1)
    winner = xp.zeros(grown, dtype=small, device=device_of(x))  # counted from the tap that was looked at last
    for k in reversed(range(window.kernel - 1)):  # from the last tap on, so that the first of equal ones wins
        values = tap(k)
        behind = values < best
        behind |= xp.isnan(best)  # as in torch the last NaN of a window keeps the gradient
        padded = _at(axis, slice(0, taps[k][0].start))
        behind = assign(behind, padded, True)  # padding never wins, not even against -inf
        winner += 1
        winner *= xp.astype(behind, small)
        best = xp.maximum(values, best)

    def vjp(dy: Array) -> Array:
        nothing = xp.zeros((), dtype=dy.dtype, device=device_of(dy))  # not a product: 0 times infinity is not a number
        shares = (xp.where(winner == k, dy, nothing) for k in range(window.kernel))
        return _spread(_zeros(xp, dy, shape), axis, window, out, shares)

    return best, vjp


def max_pool(
    x: Array,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Vjp]:
    """Largest value of each window of each channel; keeps one byte for each window and axis, and not ``x``.

    x : (n, c, *), real floats    options : one number, or one for each spatial axis; stride is kernel_size by default;
        padding may be a pair (before, after) for an axis
    Returns y (n, c, *windows) and a pullback. As in torch padding never wins, the gradient goes to the first maximum
    of a window in reading order, and a NaN makes the maximum NaN; a window that holds padding only is -inf.

    Raises ShapeError if ``x`` has no spatial axis, an empty one, or one on which no window fits; TypeError if
    ``x`` does not hold real floats or an option is not a whole number; ValueError if an option is out of range.

    >>> import numpy as np
    >>> y, pullback = max_pool(np.array([[[1.0, 3.0, 2.0, 2.0]]]), 2)
    >>> y.tolist(), pullback(np.ones((1, 1, 2))).tolist()
    ([[[3.0, 2.0]]], [[[0.0, 1.0, 1.0, 0.0]]])
    """
    _check_input("max_pool", x)
    axes = pool_axes("max_pool", x.ndim - 2, kernel_size, stride, padding, dilation)
    sizes = _output_sizes("max_pool", x, axes, ceil_mode)
    return checked("max_pool", *_max_windows(x, axes, sizes))


@fused
def _max_windows(x: Array, axes: Sequence[PoolAxis], sizes: Sequence[int]) -> tuple[Array, Vjp]:
    xp, backs = namespace(x), []
    for i in reversed(range(len(axes))):  # the last axis first: of equal maxima that in the first row wins
        x, back = _max_along(xp, x, i + 2, axes[i], sizes[i])
        backs.append(back)
    return x, joined(backs)


def _sum_along(xp: Any, x: Array, axis: int, window: PoolAxis, out: int) -> Array:
    """Sum of each window along one axis; padding counts as 0."""
    y = _zeros(xp, x, _resized(x, axis, out))
    for windows, positions in window.taps(x.shape[axis], out):
        y = assign(y, _at(axis, windows), x[_at(axis, positions)], add=True)
    return y


def avg_pool(
    x: Array,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    dilation: Sizes = 1,
) -> tuple[Array, Vjp]:
    """Mean of each window of each channel; keeps shapes only.

    x : (n, c, *), real floats    options : one number, or one for each spatial axis; stride is kernel_size by default;
        padding may be a pair (before, after) for an axis
    Returns y (n, c, *windows) and a pullback. As in torch the sum is divided by ``divisor_override`` if that is
    given, else by the positions of the window: in the padded input, or without ``count_include_pad`` in the input.

    Raises ShapeError if ``x`` has no spatial axis, an empty one, or one on which no window fits; TypeError if
    ``x`` does not hold real floats or an option is not a whole number; ValueError if an option is out of range.

    >>> import numpy as np
    >>> y, pullback = avg_pool(np.array([[[1.0, 3.0, 2.0, 2.0]]]), 2)
    >>> y.tolist(), pullback(np.ones((1, 1, 2))).tolist()
    ([[[2.0, 2.0]]], [[[0.5, 0.5, 0.5, 0.5]]])
    """
    _check_input("avg_pool", x)
    axes = pool_axes("avg_pool", x.ndim - 2, kernel_size, stride, padding, dilation)
    check_divisor("avg_pool", divisor_override)
    sizes = _output_sizes("avg_pool", x, axes, ceil_mode)
    return checked("avg_pool", *_mean_windows(x, axes, sizes, count_include_pad, divisor_override))


@fused
def _mean_windows(
    x: Array, axes: Sequence[PoolAxis], sizes: Sequence[int], include_pad: bool, divisor_override: int | None
) -> tuple[Array, Vjp]:
    xp, shapes = namespace(x), []
    divisor = xp.ones((), dtype=x.dtype, device=device_of(x))
    for i, (window, out) in enumerate(zip(axes, sizes, strict=True)):
        counts = window.counts(x.shape[i + 2], out, include_pad)
        column = xp.asarray(counts, dtype=x.dtype, device=device_of(x))
        divisor = divisor * xp.reshape(column, (out, *(1,) * (len(axes) - 1 - i)))
        shapes.append(tuple(x.shape))
        x = _sum_along(xp, x, i + 2, window, out)
    if divisor_override is not None:
        divisor = divisor_override

    def vjp(dy: Array) -> Array:
        dy = dy / divisor
        for i in reversed(range(len(axes))):
            dy = _spread(_zeros(xp, dy, shapes[i]), i + 2, axes[i], sizes[i], repeat(dy))
        return dy

    return x / divisor, vjp


def _adaptive_windows(size: int, out: int) -> Iterator[tuple[slice, PoolAxis]]:
    """Output ``i`` averages from ``floor(i size / out)`` to ``ceil((i + 1) size / out)``.

    The pattern repeats ``gcd(size, out)`` times: outputs that far apart have windows of one size and one stride.
    """
    period = out // math.gcd(size, out)
    for i in range(period):
        start, stop = i * size // out, -(-(i + 1) * size // out)
        yield slice(i, None, period), PoolAxis(stop - start, size * period // out, padding=-start)


def _adaptive_along(xp: Any, x: Array, axis: int, out: int) -> tuple[Array, Vjp]:
    """Mean of ``out`` windows of nearly equal size along one axis."""
    shape, repeats = tuple(x.shape), math.gcd(x.shape[axis], out)
    y = _zeros(xp, x, _resized(x, axis, out))
    for outputs, window in _adaptive_windows(shape[axis], out):
        y = assign(y, _at(axis, outputs), _sum_along(xp, x, axis, window, repeats) / window.kernel)

    def vjp(dy: Array) -> Array:
        dx = _zeros(xp, dy, shape)
        for outputs, window in _adaptive_windows(shape[axis], out):
            dx = _spread(dx, axis, window, repeats, repeat(dy[_at(axis, outputs)] / window.kernel), repeats == out)
        return dx

    return y, vjp


def _global_mean(xp: Any, x: Array) -> tuple[Array, Vjp]:
    """Mean over all spatial axes, as a matrix-vector product: a sum over short rows takes six times as long."""
    n, c, *spatial = shape = tuple(x.shape)
    size = math.prod(spatial)
    ones = xp.ones((size,), dtype=x.dtype, device=device_of(x))
    y = xp.reshape(xp.reshape(x, (n * c, size)) @ ones / size, (n, c, *(1,) * len(spatial)))
    return y, lambda dy: xp.asarray(xp.broadcast_to(dy / size, shape), copy=True)


def adaptive_avg_pool(x: Array, output_size: int | Sequence[int | None] | None) -> tuple[Array, Vjp]:
    """Mean of as many windows as ``output_size`` says, of nearly equal size; 1 is global pooling. Keeps shapes only.

    x : (n, c, *), real floats    output_size : one number, or one for each spatial axis; None keeps the axis
    Returns y (n, c, *output_size) and a pullback. As in torch window i of o over L positions is floor(i L / o) to
    ceil((i + 1) L / o), so windows overlap if o does not divide L, and repeat positions if o > L.

    Raises ShapeError if ``x`` has no spatial axis or an empty one; TypeError if ``x`` does not hold real floats
    or a size is not a whole number; ValueError if a size is below 1, or their number is not that of spatial axes.

    >>> import numpy as np
    >>> y, pullback = adaptive_avg_pool(np.array([[[1.0, 3.0, 5.0]]]), 2)
    >>> y.tolist(), pullback(np.ones((1, 1, 2))).tolist()
    ([[[2.0, 4.0]]], [[[0.5, 1.0, 0.5]]])
    """
    _check_input("adaptive_avg_pool", x)
    wanted = adaptive_sizes("adaptive_avg_pool", x.ndim - 2, output_size)
    sizes = [size if out is None else out for size, out in zip(x.shape[2:], wanted, strict=True)]
    return checked("adaptive_avg_pool", *_adaptive(x, sizes))


@fused
def _adaptive(x: Array, sizes: Sequence[int]) -> tuple[Array, Vjp]:
    xp, backs = namespace(x), []
    if set(sizes) == {1}:
        return _global_mean(xp, x)
    for axis, out in enumerate(sizes, start=2):
        x, back = _adaptive_along(xp, x, axis, out)
        backs.append(back)
    return x, joined(backs)
