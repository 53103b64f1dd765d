"""Networks of images that grow by channels: convolutions in stages, each of which ends in half the size."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from growarray.contraction.checks import is_ordered
from growarray.errors import ShapeError, shown
from growarray.growing import Conv2dGrowingModule, FullConv2dGrowingModule, RestrictedConv2dGrowingModule
from growarray.networks.network import GrowingNetwork
from growarray.networks.widths import check_widths, listed_widths
from growarray.nn import Flatten, Module, ReLU, Sequential
from growarray.ops.sizes import each_axis, whole_number

Normalization = Callable[[int], Module]


def image_shape(features: int, sizes: Sequence[int] | None = None) -> tuple[int, int, int]:
    """Channels, height and width of images: ``sizes``, or those of square ones of one channel, or else of three.

    Raises ShapeError: there are no such images, or ``sizes`` are of other images, or have the channels last.

    >>> image_shape(64), image_shape(3072), image_shape(24, (1, 4, 6))
    ((1, 8, 8), (3, 32, 32), (1, 4, 6))
    """
    if sizes is not None:
        channels, height, width = each_axis("image", "sizes", tuple(sizes), 3, 1)
        if channels > 4 and width in (1, 3, 4):
            raise ShapeError(
                f"images have shape {channels, height, width}, expected (channels, height, width); their channels seem "
                "to be last: save x.transpose(0, 3, 1, 2)"
            )
        if channels * height * width != features:
            raise ShapeError(f"images of shape {channels, height, width} do not have {features} features")
        return channels, height, width
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if side and channels * side**2 == features:
            return channels, side, side
    raise ShapeError(
        f"{features} features are no square image, expected size * size, or 3 * size * size; give images in a .npz "
        "file as (n, c, h, w) or (n, h, w), or use a network of linear layers"
    )


def function_of(channels: int, activation: Module, normalization: Normalization | None) -> Module:
    """A copy of the activation, with a norm of its own before it if ``normalization`` makes one."""
    function = copy.deepcopy(activation)
    return function if normalization is None else Sequential(normalization(channels), function)


class ImageNetwork(GrowingNetwork):
    """What networks of images share: samples are (n, channels, height, width), or rows (n, features) of as many."""

    flatten = False
    image: tuple[int, ...]

    def __init__(self, in_features: Sequence[int], out_features: int) -> None:
        where = type(self).__name__
        self.image = each_axis(where, "in_features", in_features, 3, 1)
        self.in_features = math.prod(self.image)
        self.out_features = whole_number(where, "out_features", out_features, 1)

    def _check_held(self) -> None:
        if math.prod(each_axis(type(self).__name__, "in_features", self.image, 3, 1)) != self.in_features:
            raise ShapeError(f"{type(self).__name__}: images {self.image} have not {self.in_features} numbers")


class GrowingVGG(ImageNetwork):
    """Stages of 3x3 convolutions, all of whose widths grow, and a head over what is left of the image.

    in_features : channels, height and width of an image
    stages : for each stage the channels of its convolutions, one number for a single one. The last of a stage has
        stride 2, where VGG pools: new channels need the same positions before and after them
    activation : copied behind every convolution, default ReLU    normalization : makes the norm before it, as
        ``GrowingBatchNorm2d`` does of a number of channels; default none
    growing_conv_type : how a convolution reads new channels; the head reads them through every tap

    The head is a convolution as large as the image that is left: a linear layer of all its numbers. State-dict names
    are ``layers.0.layer.weight``, …

    >>> import numpy as np
    >>> network = GrowingVGG((1, 8, 8), 10, stages=[(2, 3), (4, 5)], rng=np.random.default_rng(0))
    >>> network(np.zeros((6, 64), dtype=np.float32)).shape, network.widths, network.layers[-1].kernel_size
    ((6, 10), [2, 3, 4, 5], (2, 2))
    """

    def __init__(
        self,
        in_features: Sequence[int],
        out_features: int,
        stages: Sequence[int | Sequence[int]],
        activation: Module | None = None,
        normalization: Normalization | None = None,
        growing_conv_type: type[Conv2dGrowingModule] = RestrictedConv2dGrowingModule,
        device: str | None = None,
        *,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        function = ReLU(at_zero=1.0) if activation is None else activation
        kind: dict[str, Any] = {"device": device, "dtype": dtype, "rng": rng or np.random.default_rng()}
        self.layers: list[Conv2dGrowingModule] = []
        channels, *size = self.image
        if not is_ordered(stages):
            raise TypeError(f"GrowingVGG: stages must be a sequence, one entry for each stage, found {shown(stages)}")
        for widths in (listed_widths("GrowingVGG", f"stages[{i}]", stage, 1) for i, stage in enumerate(stages)):
            for j, width in enumerate(widths):
                stride = 2 if j == len(widths) - 1 else 1
                options: dict[str, Any] = {"stride": stride, "padding": 1, "input_size": tuple(size)}
                post = function_of(width, function, normalization)
                self._append(growing_conv_type(channels, width, 3, **options, post_layer_function=post, **kind))
                channels, size = width, list(self.layers[-1].output_size)
        self._append(FullConv2dGrowingModule(channels, self.out_features, tuple(size), **kind))
        self.flattened = Flatten()

    def _append(self, layer: Conv2dGrowingModule) -> None:
        layer.name = f"layers.{len(self.layers)}"
        if self.layers:
            layer.previous_module, self.layers[-1].next_module = self.layers[-1], layer
        self.layers.append(layer)

    _held = ("image", "in_features", "out_features", "layers", "flattened")

    def _check_held(self) -> None:
        parts = [(layer.in_channels, layer.out_channels) for layer in self.layers]
        check_widths("GrowingVGG", self.image[0], parts, self.out_features)
        super()._check_held()

    @property
    def chain(self) -> list[Any]:
        """The layers, from input to output."""
        return [*self.layers, self.flattened]

    def outline(self) -> dict[str, Any]:
        """Channels of the image, of each convolution and of the output, one after the other, as plain data."""
        names = ["image", *(f"conv {i}" for i in range(1, len(self.layers))), "output"]
        widths = [self.image[0], *(layer.out_channels for layer in self.layers)]
        return {"nodes": dict(zip(names, widths, strict=True)), "edges": [list(e) for e in itertools.pairwise(names)]}

    @property
    def growing_layers(self) -> list[Any]:
        """Every layer but the first: its input is a width that grows."""
        return self.layers[1:]
