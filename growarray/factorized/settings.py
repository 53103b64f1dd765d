"""Stride, padding, dilation and bias of each of the convolutions that one layer holds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from growarray.contraction.checks import is_whole
from growarray.contraction.geometry import ConvAxis
from growarray.errors import ShapeError, shown
from growarray.ops.conv import conv_geometry, paddings
from growarray.ops.sizes import each_axis, whole_number


@dataclass(frozen=True)
class ConvSettings:
    """Geometry of one convolution, and whether it has a bias.

    >>> ConvSettings.of((3, 3), padding="same").options["padding"]
    ((1, 1), (1, 1))
    """

    axes: tuple[ConvAxis, ...]
    padding: Any
    padding_mode: str
    has_bias: bool

    @classmethod
    def of(
        cls, kernel: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, padding_mode: str = "zeros",
        has_bias: bool = False,
    ) -> ConvSettings:  # fmt: skip
        """Settings for a kernel of these sizes, as a user writes them; PlanError if an option makes no sense."""
        axes = conv_geometry(kernel, stride, padding, dilation, padding_mode)
        return cls(axes, padding if isinstance(padding, str) else paddings(axes), padding_mode, has_bias)

    @property
    def stride(self) -> tuple[int, ...]:
        """Stride along each axis."""
        return tuple(axis.stride for axis in self.axes)

    @property
    def dilation(self) -> tuple[int, ...]:
        """Dilation along each axis."""
        return tuple(axis.dilation for axis in self.axes)

    @cached_property
    def options(self) -> dict[str, Any]:
        """What a plan takes."""
        pairs = tuple((axis.before, axis.after) for axis in self.axes)
        return {
            "stride": self.stride, "padding": pairs, "dilation": self.dilation, "padding_mode": self.padding_mode,
        }  # fmt: skip

    def with_axis(self, mode: int, axis: ConvAxis) -> ConvSettings:
        """These settings with one more axis before ``mode``."""
        axes = (*self.axes[:mode], axis, *self.axes[mode:])
        return ConvSettings(axes, paddings(axes), self.padding_mode, self.has_bias)

    def __str__(self) -> str:
        one, none = (1,) * len(self.axes), (0,) * len(self.axes)
        parts = [f"stride={self.stride}"] if self.stride != one else []
        parts += [f"padding={self.padding}"] if self.padding not in (none, "valid") else []
        parts += [f"dilation={self.dilation}"] if self.dilation != one else []
        parts += [f"padding_mode={self.padding_mode}"] if self.padding_mode != "zeros" else []
        return ", ".join([*parts, *([] if self.has_bias else ["bias=False"])])


def layers_of(n_layers: Any) -> tuple[int, ...]:
    """Shape of the modes that select a convolution: none for one convolution.

    >>> layers_of(1), layers_of(3), layers_of((2, 2))
    ((), (3,), (2, 2))
    """
    n_layers = plain(n_layers)
    if isinstance(n_layers, tuple | list):
        if not n_layers:
            raise ValueError("FactorizedConv: n_layers is empty, expected a number or one for each leading mode")
        return tuple(whole_number("FactorizedConv", "n_layers", n, 1) for n in n_layers)
    count = whole_number("FactorizedConv", "n_layers", n_layers, 1)
    return () if count == 1 else (count,)


def layer_indices(layers: Sequence[int]) -> list[tuple[int, ...]]:
    """The index of every convolution."""
    return list(itertools.product(*(range(n) for n in layers)))


def layer_index_of(indices: Any, layers: Sequence[int]) -> tuple[int, ...]:
    """The index of a convolution that a user names by a number, or by one number for each leading mode.

    Raises ValueError: the layer holds one convolution and another is asked for, or there are too few or too many
    numbers; IndexError: a number is out of range.
    """
    if type(indices) is int and indices == 0 and not layers:
        return ()
    indices = plain(indices)
    numbers = tuple(indices) if isinstance(indices, tuple | list) else (indices,)
    if any(isinstance(i, bool) or not hasattr(i, "__index__") for i in numbers):
        raise ValueError(
            f"FactorizedConv: indices={shown(indices)}, expected whole numbers, one for each of {len(layers)}"
        )
    if not layers:
        if any(int(i) != 0 for i in numbers) or len(numbers) > 1:
            raise ValueError(f"FactorizedConv: holds one convolution, found indices={shown(indices)}; leave them out")
        return ()
    if len(numbers) != len(layers):
        raise ValueError(
            f"FactorizedConv: indices={shown(indices)} has {len(numbers)} numbers, expected {len(layers)} for "
            f"{tuple(layers)}"
        )
    for i, n in zip(numbers, layers, strict=True):
        if not -n <= int(i) < n:
            raise IndexError(f"FactorizedConv: indices={shown(indices)} is out of range, n_layers={tuple(layers)}")
    return tuple(int(i) % n for i, n in zip(numbers, layers, strict=True))


def flags_of(bias: Any, has_bias: Any, layers: tuple[int, ...]) -> dict[tuple[int, ...], bool]:
    """Which convolutions have a bias: all or none, or those that ``has_bias`` names one by one."""
    bias = flag("FactorizedConv", "bias", bias)
    try:
        flags = np.asarray(has_bias)
    except ValueError as error:
        raise ValueError(
            f"FactorizedConv: has_bias={shown(has_bias)}, expected one entry for each of {layers}"
        ) from error
    if flags.dtype.kind not in "bi" or not ((flags == 0) | (flags == 1)).all():
        raise TypeError(
            f"FactorizedConv: has_bias={shown(has_bias)}, expected True or False, or one for each of {layers}"
        )
    if flags.ndim == 0:
        return dict.fromkeys(layer_indices(layers), bias or bool(flags))
    if flags.shape != layers:
        raise ValueError(f"FactorizedConv: has_bias has shape {flags.shape}, expected one entry for each of {layers}")
    return {index: bool(flags[index]) for index in layer_indices(layers)}


def nested(values: Mapping[tuple[int, ...], Any], layers: Sequence[int], index: tuple[int, ...] = ()) -> Any:
    """Values by index as nested tuples; the value itself if there is one convolution."""
    if len(index) == len(layers):
        return values[index]
    return tuple(nested(values, layers, (*index, i)) for i in range(layers[len(index)]))


def taps_of(kernel_size: Any, order: int | None) -> tuple[int, ...]:
    """Taps along each axis; ``order`` must agree with a sequence, and must be there for a number."""
    kernel_size = plain(kernel_size)
    if order is None:
        if not isinstance(kernel_size, tuple | list):
            raise ValueError(
                f"FactorizedConv: kernel_size={shown(kernel_size)} without order; give order=2 for images, or a tuple"
            )
        order = len(kernel_size)
    whole_number("FactorizedConv", "order", order, 1)
    if isinstance(kernel_size, tuple | list) and len(kernel_size) != order:
        raise ValueError(f"FactorizedConv: order={order} does not agree with kernel_size={tuple(kernel_size)}")
    return each_axis("FactorizedConv", "kernel_size", kernel_size, order, 1)


def joint_index(where: str, indices: Any, n_layers: int) -> tuple[int, ...]:
    """The leading index of one of ``n_layers`` layers: none if there is one only.

    >>> joint_index("doc", 0, 1), joint_index("doc", -1, 3)
    ((), (2,))
    """
    indices = plain(indices)
    if not is_whole(indices):
        raise ValueError(f"{where}: indices={shown(indices)}, expected a whole number")
    at = int(indices)
    if not -n_layers <= at < n_layers:
        raise IndexError(f"{where}: indices={at} is out of range, n_layers={n_layers}")
    return (at % n_layers,) if n_layers > 1 else ()


def fixed_modes_of(fixed: Any, lead: int, axes: int) -> Any:
    """Modes that keep their size: ``'spatial'`` are the ``axes`` of the kernel, behind leading modes and channels.

    >>> fixed_modes_of("spatial", 1, 2), fixed_modes_of([0], 1, 2)
    ((3, 4), [0])
    """
    if not isinstance(fixed, str):
        return fixed
    if fixed != "spatial":
        raise ValueError(f"FactorizedConv: fixed_rank_modes={shown(fixed)}, expected 'spatial' or a list of modes")
    return tuple(range(lead + 2, lead + 2 + axes))


def flag(where: str, option: str, value: Any) -> bool:
    """``value`` as a bool; raises TypeError if it is neither a bool, of Python or NumPy, nor 0 or 1.

    >>> flag("doc", "bias", np.True_)
    True
    """
    if not isinstance(value, bool | np.bool_) and not (is_whole(value) and int(value) in (0, 1)):
        raise TypeError(f"{where}: {option}={shown(value)}, expected True or False")
    return bool(value)


def plain(value: Any) -> Any:
    """A NumPy array of whole numbers as the list or the number that it holds; anything else as it is.

    >>> plain(np.asarray([2, 3])), plain(4)
    ([2, 3], 4)
    """
    return value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind in "iub" else value


def mode_sizes(where: str, option: str, sizes: Any) -> tuple[int, ...]:
    """Sizes of modes as a tuple of ints of at least 1; a number stands for one mode.

    >>> mode_sizes("doc", "rank", 3)
    (3,)
    """
    sizes = plain(sizes)
    values = tuple(sizes) if isinstance(sizes, tuple | list) else (sizes,)
    if not values:
        raise ShapeError(f"{where}: {option} is empty, expected the size of at least one mode")
    return tuple(whole_number(where, option, value, 1) for value in values)


def shape_of(where: str, x: Any) -> tuple[int, ...]:
    """Shape of an input or a gradient; raises TypeError if it is not an array."""
    try:
        return tuple(x.shape)
    except AttributeError as error:
        raise TypeError(
            f"{where}: expected an array, found {type(x).__name__}; convert it with growarray.backend.asarray(x)"
        ) from error


def planned_shape(where: str, shape: Any) -> tuple[int, ...]:
    """The shape of an input to plan for; raises TypeError if it is not a shape.

    >>> planned_shape("doc", [1, 2])
    (1, 2)
    """
    shape = plain(shape)
    if not isinstance(shape, tuple | list) or not all(map(is_whole, shape)):
        raise TypeError(f"{where}: expected the shape of an input, whole numbers (n, …), found {shown(shape)}")
    return tuple(map(int, shape))


def hashable(path: Any) -> Any:
    """A path of the planner with its lists as tuples."""
    return tuple(hashable(p) for p in path) if isinstance(path, tuple | list) else path
