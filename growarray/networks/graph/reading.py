"""How an edge reads a node: its features, its images as features, or its images by the windows of a kernel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from growarray.backend import Array, namespace
from growarray.contraction.problem import Axis
from growarray.errors import PlanError, ShapeError, shown
from growarray.growing import JoinedStream, Stream
from growarray.growing.stream import StreamLike
from growarray.nn import AdaptiveAvgPool2d, Flatten, Module, Sequential
from growarray.ops.conv import conv
from growarray.ops.sizes import each_axis
from growarray.ops.windows import Windows, windows

POOLS: dict[str, Module] = {"flatten": Flatten(), "mean": Sequential(AdaptiveAvgPool2d(1), Flatten())}
Outputs = tuple[slice, ...] | None
View = tuple[StreamLike, Outputs]


class Images(NamedTuple):
    """What a node of images has besides its channels.

    shape : height and width    kernel : of the convolutions that read it    pool : how linear layers read it
    """

    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    pool: str

    @classmethod
    def of(cls, node: str, attributes: Mapping[str, Any]) -> Images:
        """From the attributes of a node; raises KeyError without a shape, ValueError for what does not make sense."""
        if attributes.get("shape") is None:
            raise KeyError(f"GrowingDAG: node {node} needs the sizes of its images, for example {{'shape': (8, 8)}}")
        where = f"GrowingDAG: node {node}"
        shape, kernel = (each_axis(where, key, attributes[key], 2, 1) for key in ("shape", "kernel_size"))
        if attributes["pool"] not in POOLS:
            raise ValueError(
                f"GrowingDAG: pool of node {node} is {shown(attributes['pool'])}, expected one of {', '.join(POOLS)}"
            )
        return cls(shape, kernel, attributes["pool"])

    def described(self) -> dict[str, Any]:
        """The attributes of a node that :meth:`of` reads."""
        return {"shape": list(self.shape), "kernel_size": list(self.kernel), "pool": self.pool}


@dataclass(frozen=True)
class AsFeatures:
    """What a linear layer reads: features, or with ``pool`` the numbers of images, or the means of their channels.

    taps : weights that an output has for one channel
    """

    pool: str = ""
    shape: tuple[int, ...] = ()
    kernel: ClassVar[tuple[int, ...]] = ()

    @property
    def taps(self) -> int:
        """Numbers that a channel gives."""
        return math.prod(self.shape) if self.pool == "flatten" else 1

    @property
    def function(self) -> Module | None:
        """What is applied before the layer, or None."""
        return POOLS[self.pool] if self.pool else None

    def _flat(self, activity: Array) -> Array:
        return POOLS[self.pool](activity) if self.pool else activity

    def stream(self, activity: Array, bias: bool = False) -> Stream:
        """What is read of a batch."""
        return Stream(self._flat(activity), bias=bias)

    def values(self, rows: Array, activity: Array) -> Array:
        """Products (n, k) of rows (k, channels * taps) with what is read."""
        return self._flat(activity) @ namespace(rows).matrix_transpose(rows)

    def views(self, front: StreamLike) -> list[View]:
        """For each tap, what new neurons that read ``front`` would show this reader through it."""
        if not self.pool:
            return [(front, None)]
        put, xp = front.materialise(), namespace(front.parts[0].array)
        flat = self._flat(xp.moveaxis(put, -1, 1))
        taps = xp.reshape(flat, (put.shape[0], put.shape[-1], self.taps))
        return [(Stream(taps[:, :, tap]), None) for tap in range(self.taps)]


@dataclass(frozen=True)
class AsWindows:
    """What a convolution reads: windows of images of these sizes.

    Raises PlanError if the padded images are smaller than the kernel.
    """

    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    function: ClassVar[Module | None] = None

    @property
    def taps(self) -> int:
        """Weights that an output has for one channel."""
        return math.prod(self.kernel)

    @property
    def geometry(self) -> tuple[Any, Any, Any]:
        """Stride, padding and dilation."""
        return self.stride, self.padding, self.dilation

    @property
    def _options(self) -> dict[str, Any]:
        return dict(zip(("stride", "padding", "dilation"), self.geometry, strict=True))

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """Which positions each output reads."""
        return self.stream(np.zeros((1, 1, *self.shape))).axes

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the output."""
        return tuple(axis.out for axis in self.axes)

    def stream(self, activity: Array, bias: bool = False) -> Windows:
        """What is read of a batch."""
        return windows(activity, self.kernel, **self._options, bias=bias)

    def values(self, rows: Array, activity: Array) -> Array:
        """Products (n, k, *positions) of rows (k, channels * taps) with what is read."""
        kernels = namespace(rows).reshape(rows, (rows.shape[0], activity.shape[1], *self.kernel))
        return conv(activity, kernels, **self._options)[0]

    def views(self, front: StreamLike) -> list[View]:
        """For each tap, the windows of ``front`` that this reader would see through it, and its outputs that do."""
        found: list[View] = []
        for tap in itertools.product(*map(range, self.kernel)):
            parts = [part.read_by(self.axes, tap) for part in front.parts]
            found.append((JoinedStream([seen for seen, _ in parts]), parts[0][1]))
        return found


Reading = AsFeatures | AsWindows


def reading_between(edge: str, source: Images | None, target: Images | None, attributes: Mapping[str, Any]) -> Reading:
    """How an edge reads, from what its ends are; ``attributes`` may say stride, padding and dilation.

    Without them a kernel is centred on every position, or with images of several sizes on every second, third, ….
    Raises ShapeError if the sizes do not fit, NotImplementedError if features would lead to images.
    """
    if target is None:
        return AsFeatures() if source is None else AsFeatures(source.pool, source.shape)
    if source is None:
        raise NotImplementedError(
            f"GrowingDAG: edge {edge} leads from features to images, which is not supported; let nodes of images come "
            "first, and features after them"
        )
    kernel = each_axis(f"GrowingDAG: edge {edge}", "kernel_size", attributes.get("kernel_size", source.kernel), 2, 1)
    if kernel != source.kernel:
        raise ShapeError(
            f"GrowingDAG: edge {edge} has kernel size {kernel}, but all that read its node have {source.kernel}; "
            "set kernel_size in the attributes of the node"
        )
    steps = tuple(-(-size // out) for size, out in zip(source.shape, target.shape, strict=True))
    options = {"stride": steps, "padding": tuple((taps - 1) // 2 for taps in kernel), "dilation": (1, 1)}
    reading = AsWindows(source.shape, kernel, **{name: attributes.get(name, options[name]) for name in options})
    try:
        positions = reading.positions
    except PlanError as error:
        raise ShapeError(f"GrowingDAG: edge {edge} cannot read images of {source.shape}: {error}") from error
    if positions != target.shape:
        raise ShapeError(
            f"GrowingDAG: edge {edge} gives images of {positions}, its node has {target.shape}; use an odd "
            "kernel, or choose stride and padding in edge_attributes"
        )
    return reading


def by_output(omega: Array, taps: int) -> Array:
    """Outgoing weights of k neurons (o * taps, k) as rows of what a reader reads of them, (o, k * taps).

    >>> by_output(np.array([[1, 5], [2, 6], [3, 7], [4, 8]]), 2).tolist()
    [[1, 2, 5, 6], [3, 4, 7, 8]]
    """
    if taps == 1:
        return omega
    xp, (rows, k) = namespace(omega), omega.shape
    return xp.reshape(xp.moveaxis(xp.reshape(omega, (rows // taps, taps, k)), 1, 2), (rows // taps, k * taps))


def by_neuron(rows: Array, taps: int) -> Array:
    """The inverse of :func:`by_output`."""
    if taps == 1:
        return rows
    xp, (o, width) = namespace(rows), rows.shape
    return xp.reshape(xp.moveaxis(xp.reshape(rows, (o, width // taps, taps)), 2, 1), (o * taps, width // taps))
