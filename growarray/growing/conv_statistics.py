"""Statistics of growing convolutions: moments of windows, and of those that each tap reads in the layer before."""

from __future__ import annotations

import math
from typing import Any

from growarray.backend import Array, assign, device_of, namespace
from growarray.growing.moment import TensorStatistic, cross_moment
from growarray.growing.statistics import BatchRecorder, LayerStatistics
from growarray.growing.stream import JoinedStream, StreamLike, windows_over


def unfolded(stream: StreamLike) -> Array:
    """Windows as one array (n, features, positions); moments never need it."""
    return positions_last(stream.materialise())


def positions_last(put: Array) -> Array:
    """Windows (n, *positions, features) as (n, features, positions)."""
    xp, (n, *positions, features) = namespace(put), put.shape
    return xp.matrix_transpose(xp.reshape(put, (n, math.prod(positions), features)))


class ConvStatistics(LayerStatistics):
    """Statistics of a convolution, which reads the layer before it tap by tap."""

    def views(self) -> list[tuple[JoinedStream, tuple[slice, ...]]]:
        """For each tap of growth: the windows of the layer before that it reads, and the outputs that read them.

        Raises GrowthError if what is before works at other positions than this layer.
        """
        layer, stream = self.layer, self.layer.input_stream

        def make() -> list[tuple[JoinedStream, tuple[slice, ...]]]:
            sizes = tuple(int(size) for size in stream.array.shape[2:])
            parts = windows_over(layer.previous.input_stream, sizes, layer.name)
            taps = [[part.read_by(stream.axes, tap) for part in parts] for tap in layer.growth_taps]
            return [(JoinedStream([seen for seen, _ in tap]), tap[0][1]) for tap in taps]

        recorder: BatchRecorder = layer.recorder
        return recorder.once("views", stream, make)

    @property
    def sees_front(self) -> bool:
        """Whether growth before the layer is planned from its own statistics; False if it has no taps of growth."""
        return super().sees_front and bool(self.layer.growth_taps)

    def check_front(self) -> None:
        """Raise ``GrowthError`` if the module before works at other positions."""
        self.views()

    def m_prev_of_batch(self, desired_activation: Array | None = None, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``B_prev^T dA`` for each tap, (p, o * taps), those of one output side by side."""
        gradient = self.layer.gradient_stream(desired_activation)
        moments = [cross_moment(stream, gradient.cropped(outputs)) for stream, outputs in self.views()]
        joined = namespace(*moments).stack(moments, axis=-1)
        return namespace(joined).reshape(joined, (joined.shape[0], -1)), gradient.samples

    def p_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``B_prev^T B``, (p, d); for each tap, (taps, p, d), if every tap counts."""
        inputs = self.layer.input_stream
        moments = [cross_moment(stream, inputs.cropped(outputs)) for stream, outputs in self.views()]
        return namespace(*moments).stack(moments, axis=0) if self.layer.every_tap else moments[0], inputs.samples

    def seen(self) -> Array:
        """The windows of the layer before that each tap reads, (taps, n, p, positions), zeros in the padding."""
        layer, xp = self.layer, namespace(self.layer.input)
        parts, shape = [], layer.input_stream.positions
        for stream, outputs in self.views():
            put = stream.materialise()
            full = xp.zeros((stream.samples, *shape, stream.width), dtype=put.dtype, device=device_of(put))
            full = assign(full, (slice(None), *outputs), put)
            parts.append(positions_last(full))
        return xp.stack(parts, axis=0)


class FullConvStatistics(ConvStatistics):
    """Statistics in which every tap counts: S of what new channels read, summed over the taps, is the layer's own."""

    def declare(self) -> None:
        """Reset all statistics for the current widths."""
        super().declare()
        self.s_growth = TensorStatistic(None, self.s_growth_of_batch, name=f"S_growth({self.layer.name})")

    @property
    def all(self) -> tuple[TensorStatistic, ...]:
        """All statistics that belong to the layer."""
        return (*super().all, self.s_growth)

    @property
    def s_prev(self) -> TensorStatistic:
        """Second moment of the input of new neurons before the layer."""
        return self.s_growth

    def s_growth_of_batch(self) -> tuple[Array, int]:
        """Sum of ``B_prev^T B_prev`` over all taps and the outputs that they serve, (p, p)."""
        moments = [cross_moment(stream) for stream, _ in self.views()]
        return sum(moments[1:], moments[0]), self.layer.input_stream.samples
