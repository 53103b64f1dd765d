"""Convolutions that collect statistics and grow by channels.

What a kernel reads is a stream of windows, whose moments need no unfolding. New channels of the layer before are seen
through the taps of this layer's kernel: the tap at its centre alone, or every tap.
"""

from __future__ import annotations

import itertools
import math
from operator import attrgetter
from typing import Any, ClassVar, Self

import numpy as np

from growarray.backend import Array, asarray, assign, device_of, namespace
from growarray.errors import GrowthError, ShapeError
from growarray.growing.compat import LayerNames
from growarray.growing.conv_statistics import ConvStatistics, FullConvStatistics, unfolded
from growarray.growing.layer import GrowingModule
from growarray.growing.layer_vjp import layer_vjp
from growarray.growing.neighbour import Reading, is_neighbour
from growarray.growing.statistics import LayerStatistics
from growarray.nn import Conv1d, Conv2d, Conv3d, Module
from growarray.ops.conv import conv, conv_geometry
from growarray.ops.sizes import each_axis
from growarray.ops.windows import Windows, windows

Sizes = int | tuple[int, ...]


class Conv2dGrowingModule(LayerNames, GrowingModule):
    """A convolution of (n, c, height, width) that collects statistics and takes the optimal delta.

    in_channels, out_channels, kernel_size, stride, padding, dilation, use_bias : as in :class:`growarray.nn.Conv2d`
    input_size : spatial sizes of the input, for sizes asked for before the first batch; each batch renews them
    target_in_channels : channels that :meth:`complete_growth` fills up to; the rest as in LinearGrowingModule

    The second moment of its windows is computed without unfolding them. Channels are added before it if it is a
    :class:`RestrictedConv2dGrowingModule` or a :class:`FullConv2dGrowingModule`; this class plans its delta alone, and
    takes channels that are drawn.

    Differs from the original: statistics fit after a growth; sizes include dilation; ``padding='same'`` works.

    >>> import numpy as np
    >>> layer = Conv2dGrowingModule(3, 8, 3, padding=1, input_size=(16, 16), rng=np.random.default_rng(0))
    >>> layer(np.ones((2, 3, 16, 16), dtype=np.float32)).shape, layer.in_features, layer.output_volume
    ((2, 8, 16, 16), 27, 2048)
    """

    _statistics_of: ClassVar[type[LayerStatistics]] = ConvStatistics
    _layer_of: ClassVar[Any] = Conv2d
    spatial = property(lambda _: True, doc="Whether its output is images: True.")

    in_channels = property(attrgetter("layer.in_channels"), doc="Channels of the input.")
    out_channels = property(attrgetter("layer.out_channels"), doc="Channels of the output.")
    kernel_size = property(attrgetter("layer.kernel_size"), doc="Taps along each axis.")
    stride = property(attrgetter("layer.stride"), doc="Stride along each axis.")
    padding = property(attrgetter("layer.padding"), doc="Padding along each axis.")
    dilation = property(attrgetter("layer.dilation"), doc="Dilation along each axis.")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Any = 0,
        dilation: Sizes = 1,
        input_size: Sizes | None = None,
        use_bias: bool = True,
        post_layer_function: Module | None = None,
        extended_post_layer_function: Module | None = None,
        previous_module: Any = None,
        next_module: Any = None,
        allow_growing: bool = False,
        device: str | None = None,
        name: str | None = None,
        target_in_channels: int | None = None,
        *,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        layer = self._layer_of(
            in_channels, out_channels, kernel_size, stride, padding, dilation, 1, use_bias,
            rng=rng, dtype=dtype, device=device,
        )  # fmt: skip
        self._input_size: tuple[int, ...] | None = None
        super().__init__(
            layer,
            post_layer_function,
            extended_post_layer_function,
            previous_module,
            next_module,
            allow_growing,
            name,
            target_in_channels,
        )
        self.update_input_size(input_size)

    def _saved(self) -> dict[str, Any]:
        return {**super()._saved(), "input_size": self._input_size}

    @classmethod
    def _restored(cls, input_size: Sizes | None = None, **saved: Any) -> Self:
        module = cls.__new__(cls)
        module._input_size = None
        GrowingModule.__init__(module, **saved)
        module.update_input_size(input_size)
        return module

    @property
    def growth_taps(self) -> list[tuple[int, ...]]:
        """Taps through which new channels are seen: here none."""
        return []

    def _geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def value(self, x: Array) -> tuple[Array, Any]:
        """Pre-activity and its way back."""
        y, back = conv(x, self.weight.data, None if self.bias is None else self.bias.data, **self._geometry())
        self._input_size = tuple(int(size) for size in x.shape[2:])
        return y, back

    vjp = layer_vjp

    @property
    def input_stream(self) -> Windows:
        """Windows of the input of the last batch."""
        if self.recorder.roots is not None:
            raise NotImplementedError(f"{self.name}: sample weights are not supported for convolutions; omit them")
        x, options = self.recorder.need("input"), {**self._geometry(), "bias": self.use_bias}
        return self.recorder.once("windows", x, lambda: windows(x, self.kernel_size, **options))

    def gradient_stream(self, desired_activation: Array | None = None) -> Windows:
        """Gradient at the pre-activity in the last batch, or the desired change if given, as windows of one tap."""
        gradient = self.recorder.need("gradient") if desired_activation is None else desired_activation
        ones = (1,) * len(self.kernel_size)
        return self.recorder.once("gradient", gradient, lambda: windows(gradient, ones))

    @property
    def input_size(self) -> tuple[int, ...]:
        """Spatial sizes of the last input, or the sizes that were set."""
        if self._input_size is None:
            raise GrowthError(f"{self.name}: the input size is unknown; run a batch or call update_input_size(size)")
        return self._input_size

    def update_input_size(
        self, input_size: Sizes | None = None, compute_from_previous: bool = False, force_update: bool = True
    ) -> tuple[int, ...] | None:
        """Set the spatial sizes of the input, or take them from the previous convolution; returns them if known.

        ``force_update=False`` keeps sizes that are known. Each batch sets them anew.
        """
        if input_size is not None:
            self._input_size = each_axis(self.name, "input_size", input_size, len(self.kernel_size), 1)
        elif compute_from_previous and (force_update or self._input_size is None):
            before = self.previous_module.known_output_size if is_neighbour(self.previous_module) else None
            self._input_size = before or self._input_size
        return self._input_size

    @property
    def known_output_size(self) -> tuple[int, ...] | None:
        """Spatial sizes of the output, or None if those of the input are unknown."""
        return None if self.update_input_size(None, True, False) is None else self.output_size

    @property
    def reads(self) -> Reading:
        """Kernel and geometry of its windows."""
        return Reading(self.kernel_size, **self._geometry())

    @property
    def output_size(self) -> tuple[int, ...]:
        """Spatial sizes of the output."""
        geometry = conv_geometry(self.kernel_size, **self._geometry())
        axes = zip(geometry, self.input_size, self.kernel_size, strict=True)
        return tuple(axis.output_size(size, taps, f"axis {i}") for i, (axis, size, taps) in enumerate(axes))

    out_width = property(lambda layer: layer.output_size[0], doc="Outputs along the first axis.")
    out_height = property(lambda layer: layer.output_size[1], doc="Outputs along the second axis.")
    input_volume = property(lambda layer: layer.in_channels * math.prod(layer.input_size), doc="Size of an input.")
    output_volume = property(lambda layer: layer.out_channels * math.prod(layer.output_size), doc="Size of an output.")

    @property
    def unfolded_extended_input(self) -> Array:
        """Windows of the last input as one array (n, features, positions); statistics never need it."""
        return unfolded(self.input_stream)

    def get_fan_in_from_layer(self, layer: Any = None, num_neurons: int | None = None) -> int:  # type: ignore[override]
        """Fan-in of ``layer``, or of ``num_neurons`` new channels."""
        fan_in = LayerNames.get_fan_in_from_layer(layer, num_neurons)
        return fan_in if layer is not None else fan_in * math.prod(self.kernel_size)

    def compute_n_update(self) -> tuple[Array, int]:
        """Not supported for convolutions; use ``tensor_n`` of the next layer."""
        raise GrowthError(
            f"{self.name}: compute_n_update() is not supported for convolutions; use tensor_n of the next layer"
        )


class RestrictedConv2dGrowingModule(Conv2dGrowingModule):
    """A growing convolution that reads new channels through its centre tap alone, ``kernel_size // 2``.

    New channels get outgoing weights (out, k, *kernel) that are zero but at the centre. S for their growth is that of
    the previous layer, over all its outputs, as in the original: with a stride these are more than the centres read.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> first = Conv2dGrowingModule(1, 2, 3, padding=1, rng=rng, dtype=np.float64)
    >>> second = RestrictedConv2dGrowingModule(2, 1, 3, padding=1, previous_module=first, rng=rng, dtype=np.float64)
    >>> second.init_computation()
    >>> x = rng.standard_normal((8, 1, 6, 6))
    >>> h, back1 = first.vjp(x)
    >>> y, back2 = second.vjp(h)
    >>> _ = back1(back2(y - x**2))
    >>> second.update_computation()
    >>> _ = second.compute_optimal_updates(max_new=1)
    >>> second.apply_change(scaling_factor=0.1)
    >>> first.out_channels, second.in_channels, second.weight.shape
    (3, 3, (1, 3, 3, 3))
    """

    @property
    def growth_taps(self) -> list[tuple[int, ...]]:
        """The centre tap."""
        return [tuple(taps // 2 for taps in self.kernel_size)]

    def columns_of(self, omega: Array) -> Any:
        """Outgoing weights (out, k) of new channels as a layer: at the centre; (out, k, *kernel) as they are."""
        if omega.ndim != 2:
            return super().columns_of(omega)
        xp = namespace(omega)
        kernel = xp.zeros((*omega.shape, *self.kernel_size), dtype=omega.dtype, device=device_of(omega))
        return super().columns_of(assign(kernel, (slice(None), slice(None), *self.growth_taps[0]), omega))

    linear_layer_of_tensor = columns_of

    @property
    def bordered_unfolded_extended_prev_input(self) -> Array:
        """Windows of the previous layer that the centre tap reads, (n, features, positions), zeros in the padding."""
        return self.statistics.seen()[0, ...]


class FullConv2dGrowingModule(Conv2dGrowingModule):
    """A growing convolution that reads new channels through every tap of its kernel.

    M_prev has a column for each output and tap, (p, out * taps), P is (taps, p, d), and S for growth sums over the taps
    the windows that each reads. The Fisher rule, which the original refuses, whitens the outputs of each tap by E.
    """

    _statistics_of: ClassVar[type[LayerStatistics]] = FullConvStatistics
    every_tap = property(lambda _: True, doc="New channels are seen through every tap.")

    @property
    def growth_taps(self) -> list[tuple[int, ...]]:
        """Every tap, the last axis fastest."""
        return list(itertools.product(*(range(taps) for taps in self.kernel_size)))

    @property
    def goal_width(self) -> int:
        """Columns of M_prev: outputs times taps."""
        return int(self.out_features * math.prod(self.kernel_size))

    def columns_of(self, omega: Array) -> Any:
        """Outgoing weights (out * taps, k) of new channels as a layer; (out, k, *kernel) as they are."""
        if omega.ndim != 2:
            return super().columns_of(omega)
        if omega.shape[0] != self.goal_width:
            shape = tuple(omega.shape)
            raise ShapeError(f"{self.name}: omega has shape {shape}, expected ({self.goal_width}, new channels)")
        xp = namespace(omega)
        kernel = xp.reshape(omega, (self.out_features, *self.kernel_size, omega.shape[1]))
        return super().columns_of(xp.moveaxis(kernel, -1, 1))

    @property
    def mask_tensor_t(self) -> Array:
        """T: 1 if this tap of this output reads this input position, (outputs, taps, inputs); for ``input_size``."""
        count = math.prod(self.input_size)
        ones = asarray(np.eye(count), like=self.weight.data, dtype=self.weight.data.dtype)
        xp = namespace(ones)
        put = windows(xp.reshape(ones, (count, 1, *self.input_size)), self.kernel_size, **self._geometry())
        return xp.permute_dims(xp.reshape(put.materialise(), (count, -1, put.width)), (1, 2, 0))

    @property
    def masked_unfolded_prev_input(self) -> Array:
        """Windows of the previous layer that each tap reads, (n, positions, taps, features), zeros in the padding."""
        seen = self.statistics.seen()
        return namespace(seen).permute_dims(seen, (1, 3, 0, 2))


class Conv1dGrowingModule(FullConv2dGrowingModule):
    """A growing convolution of (n, c, length), which reads new channels through every tap; the rest is the same.

    >>> import numpy as np
    >>> Conv1dGrowingModule(2, 3, 3, padding=1)(np.ones((4, 2, 7), dtype=np.float32)).shape
    (4, 3, 7)
    """

    _layer_of = Conv1d


class Conv3dGrowingModule(FullConv2dGrowingModule):
    """A growing convolution of (n, c, depth, height, width), which reads new channels through every tap.

    >>> import numpy as np
    >>> Conv3dGrowingModule(2, 3, 2, stride=2)(np.ones((4, 2, 4, 4, 6), dtype=np.float32)).shape
    (4, 3, 2, 2, 3)
    """

    _layer_of = Conv3d
