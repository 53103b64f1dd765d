"""Layers with statistics, for the tests of rank growth."""

from __future__ import annotations

from typing import Any

import numpy as np

from growarray.factorized import FactorizedConv
from growarray.growing import RankStatistics
from growarray.ops.conv import conv
from tests.factorized.kernels import layer, rng

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": True},
    "stride": {"stride": (2, 1), "padding": 1, "bias": True},
    "dilation": {"dilation": (1, 2), "padding": ((0, 1), (2, 0))},
    "groups": {"groups": 2, "bias": True, "padding": "same"},
    "depthwise": {"groups": 4, "padding": 1, "bias": True},
    "reflect": {"padding": 1, "padding_mode": "reflect", "bias": True},
    "circular": {"padding": 1, "padding_mode": "circular", "groups": 2},
}


class Case:
    """A layer, a batch, and the loss: half the squared distance from a dense convolution's output, mean of samples."""

    def __init__(self, name: str, rank: Any = 1, channels: tuple[int, int] = (4, 8), **options: Any) -> None:
        kernel = options.pop("kernel", (3, 2))
        self.conv: FactorizedConv = layer(name, *channels, kernel, rank=rank, **options)
        self.x = rng(11).standard_normal((12, channels[0], *(6 + i for i in range(len(kernel)))))
        self.x += 0.5 * np.roll(self.x, 1, axis=1) + 1.0  # correlated channels, not centred
        dense = rng(12).standard_normal(self.conv.kernel_shape)
        bias = rng(13).standard_normal(channels[1])
        settings = self.conv.settings().options
        self.target = conv(self.x, dense, bias, groups=self.conv.groups, **settings)[0]
        self.start = self.conv(self.x)

    def gradient(self) -> Any:
        """At the output, of the loss summed over the samples."""
        return self.conv(self.x) - self.target

    def loss(self, output: Any = None) -> float:
        """The mean loss."""
        y = self.conv(self.x) if output is None else output
        return 0.5 * float(np.sum((y - self.target) ** 2)) / len(self.x)

    def statistics(self) -> RankStatistics:
        """Of the whole batch."""
        return RankStatistics(self.conv).update(self.x, self.gradient())
