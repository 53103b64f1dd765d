"""Merges of convolutions: sums of images, read by convolutions or, flattened, by linear layers."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import numpy as np

from growarray.backend import Array, asarray
from growarray.errors import ShapeError
from growarray.growing.checks import check_function
from growarray.growing.compat import MergeNames
from growarray.growing.conv_statistics import unfolded
from growarray.growing.merge import MergeGrowingModule
from growarray.growing.neighbour import Neighbour, Reading, is_neighbour
from growarray.nn import Identity, Module
from growarray.ops.sizes import each_axis
from growarray.ops.windows import Windows, windows

Sizes = int | tuple[int, ...]


def _of_reading(what: str) -> Any:
    def read(merge: Any) -> Any:
        if not merge.next_modules:
            warnings.warn(f"{merge.name}: there is no next module to take the {what} from", stacklevel=2)
        return getattr(merge.reads, what)

    return property(read, doc=f"The {what} along each axis with which the first next module reads the merge.")


class Conv2dMergeGrowingModule(MergeNames, MergeGrowingModule):
    """A merge of convolutions: ``post_merge_function(sum of the previous modules' outputs)``, (n, c, height, width).

    in_channels, input_size : of the sum    next_kernel_size : of the convolutions that read it
    post_merge_function : may pool; ``reshape_function``, what the caller applies before linear layers read the output,
        is not called but for ``output_volume``, as in the original
    input_volume : checked if given; the rest as in LinearMergeGrowingModule

    S is the second moment of the windows that the first next convolution reads, which others of its geometry share.
    Linear layers after it have an S of their own. ``allow_growing=True`` lets the merge widen by channels, which the
    original refuses: they read the windows of every previous convolution, and each next one reads them as a
    :class:`RestrictedConv2dGrowingModule` or a :class:`FullConv2dGrowingModule` does.

    Differs from the original: previous modules may be dilated, or merges; a linear layer may follow at once.

    >>> from growarray.growing import Conv2dGrowingModule
    >>> a, b = Conv2dGrowingModule(3, 2, 3, padding=1), Conv2dGrowingModule(4, 2, 1, use_bias=False)
    >>> merge = Conv2dMergeGrowingModule(2, (8, 8), 3, previous_modules=[a, b])
    >>> merge.total_in_features, merge.input_volume
    (32, 128)
    """

    spatial = property(lambda _: True, doc="Whether its output is images: True.")
    in_channels = property(attrgetter("in_features"), doc="Channels of the sum.")
    out_channels = property(attrgetter("in_features"), doc="Channels of the output.")
    output_size = property(attrgetter("input_size"), doc="Same as ``input_size``, as in the original.")
    next_kernel_size = property(attrgetter("kernel_size"), doc="Kernel size of the convolutions that read it.")
    stride = _of_reading("stride")
    padding = _of_reading("padding")
    dilation = _of_reading("dilation")

    def __init__(
        self,
        in_channels: int,
        input_size: Sizes,
        next_kernel_size: Sizes,
        post_merge_function: Module | None = None,
        reshape_function: Module | None = None,
        previous_modules: Iterable[Any] | None = None,
        next_modules: Iterable[Any] | None = None,
        allow_growing: bool = False,
        input_volume: int | None = None,
        device: str | None = None,
        name: str | None = None,
    ) -> None:
        where = name or type(self).__name__
        axes = 2 if isinstance(input_size, int) else len(input_size)
        self.input_size = each_axis(where, "input_size", input_size, axes, 1)
        self.kernel_size = each_axis(where, "next_kernel_size", next_kernel_size, axes, 1)
        check_function(reshape_function, "reshape_function", where)
        self.reshape_function = reshape_function or Identity()
        super().__init__(post_merge_function, previous_modules, next_modules, allow_growing, in_channels, device, name)
        if input_volume is not None and input_volume != self.input_volume:
            raise ShapeError(
                f"{self.name}: input_volume is {input_volume}, but {self.in_channels} channels of {self.input_size} "
                f"are {self.input_volume}; leave it out"
            )

    def check_previous(self, module: Neighbour) -> None:
        """Raise if the output of ``module`` is not images of the merge's sizes."""
        if not module.spatial:
            raise TypeError(
                f"{self.name}: previous module {module.name} does not output images; expected a convolution"
            )
        self._check_width("previous", module, "channels", module.out_features, self.in_channels)
        size = module.known_output_size
        if size is not None and size != self.input_size:
            raise ShapeError(
                f"{self.name}: previous module {module.name} gives images of {size}, the merge expects "
                f"{self.input_size}; choose stride and padding so that all branches give the same"
            )

    def check_next(self, module: Any) -> None:
        """Raise if ``module`` reads other channels, windows of another kernel, or another number of features."""
        if not is_neighbour(module) or module.reads is None:
            super().check_next(module)
            return
        self._check_width("next", module, "channels", module.in_neurons, self.in_channels)
        kernel = module.reads.kernel
        if module.weighted_layers and kernel != self.kernel_size:
            raise ShapeError(
                f"{self.name}: next module {module.name} has kernel size {kernel}, expected next_kernel_size, "
                f"which is {self.kernel_size}; use the same kernel size in all next convolutions"
            )

    def _width_of(self, module: Neighbour) -> int:
        return module.out_features

    @property
    def reads(self) -> Reading:
        """Kernel and geometry of the windows of its activity: the first next convolution's, else stride 1."""
        following, ones = self.next_modules[0] if self.next_modules else None, (1,) * len(self.kernel_size)
        if is_neighbour(following) and following.reads is not None:
            return following.reads
        padding = tuple((taps - 1) // 2 if self.next_modules else 0 for taps in self.kernel_size)
        return Reading(self.kernel_size, ones, padding, ones)

    @property
    def activity_stream(self) -> Windows:
        """Windows of the activity of the last batch, ones last."""
        return windows(self.recorder.need("activity"), **self.reads._asdict(), bias=True)

    @property
    def activity_width(self) -> int:
        """Columns of ``activity_stream``."""
        return int(self.in_features * math.prod(self.kernel_size)) + 1

    input_volume = property(lambda merge: merge.in_channels * math.prod(merge.input_size), doc="Size of the sum.")

    def _shape_after(self, *functions: Module) -> tuple[int, ...]:
        x = np.zeros((1, self.in_channels, *self.input_size))
        parameters = [parameter.data for function in functions for parameter in function.parameters()]
        x = asarray(x, like=parameters[0], dtype=parameters[0].dtype) if parameters else x
        for function in functions:
            x = copy.deepcopy(function).eval()(x)
        return tuple(x.shape)

    @property
    def known_output_size(self) -> tuple[int, ...]:
        """Spatial sizes of the output, pooled if ``post_merge_function`` pools."""
        return self._shape_after(self.post_merge_function)[2:]

    @property
    def output_volume(self) -> int:
        """Numbers in the output for a sample, after ``reshape_function``."""
        return math.prod(self._shape_after(self.post_merge_function, self.reshape_function))

    def construct_full_activity(self) -> Array:
        """The full activity of the last batch as one array (n, total_in_features, positions)."""
        return unfolded(self.input_stream)

    @property
    def unfolded_extended_activity(self) -> Array:
        """Windows of the activity as one array (n, features, positions); statistics never need it."""
        return unfolded(self.activity_stream)
