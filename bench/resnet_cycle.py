"""A whole growth cycle of the same small ResNet in both libraries, as in :mod:`bench.growth_cycle`.

One stage of residual blocks with restricted convolutions: a 3x3 convolution to the residual channels, blocks with a few
hidden channels, the mean over positions, a linear head; ReLU, no norm, no biases as in GroMo. Same weights, data and
rule, float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import growth_cycle
from bench.growth_cycle import BATCHES, compare_cycles

__all__ = ["report", "run"]

report = growth_cycle.report


@dataclass(frozen=True)
class Case:
    """Channels and size of the images, channels of the residual stream, hidden channels of each block."""

    inputs: int
    size: int
    channels: int
    hidden: tuple[int, ...]
    batch: int
    outputs: int = 10

    @property
    def name(self) -> str:
        """Images, residual channels, hidden channels."""
        return f"{self.inputs} x {self.size}², {self.channels}, {'-'.join(map(str, self.hidden))}"


CASES = (
    Case(1, 8, 16, (8, 8), 128),
    Case(3, 16, 16, (8, 8, 8), 64),
    Case(3, 32, 16, (16, 16), 32),
    Case(3, 16, 64, (32, 32), 64),
    Case(3, 32, 32, (32, 32), 64),
)


class Data:
    """Batches with random labels, and weights for both networks in the order of our parameters."""

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(0)
        shape = (case.batch, case.inputs, case.size, case.size)
        self.x = [rng.standard_normal(shape, dtype=np.float32) for _ in range(BATCHES)]
        self.y = [rng.integers(0, case.outputs, case.batch) for _ in range(BATCHES)]

        def drawn(*sizes: int) -> np.ndarray:
            return rng.standard_normal(sizes, dtype=np.float32) * np.float32(np.prod(sizes[1:]) ** -0.5)

        c = case.channels
        self.weights = [drawn(c, case.inputs, 3, 3)]
        for h in case.hidden:
            self.weights += [drawn(h, c, 3, 3), drawn(c, h, 3, 3)]
        self.weights += [drawn(case.outputs, c), np.zeros(case.outputs, np.float32)]


class Ours(growth_cycle.Ours):
    """Our ResNet."""

    def __init__(self, case: Case, data: Any) -> None:
        from growarray import networks, nn, ops

        self.data, self._loss = data, ops.cross_entropy
        self.network: Any = networks.GrowingResNet(
            (case.inputs, case.size, case.size),
            case.outputs,
            [case.channels],
            case.hidden,
            len(case.hidden),
            nn.ReLU(),
            use_bias=False,
        )
        for parameter, value in zip(self.network.parameters(), data.weights, strict=True):
            parameter.data = value.copy()


class Theirs(growth_cycle.Theirs):
    """GroMo's ResNet."""

    def __init__(self, case: Case, data: Any) -> None:
        import torch
        from gromo.containers.resnet import init_full_resnet_structure

        self.x, self.y = [torch.from_numpy(x) for x in data.x], [torch.from_numpy(y) for y in data.y]
        self._loss = torch.nn.CrossEntropyLoss(reduction="sum")
        self.network: Any = init_full_resnet_structure(
            (case.inputs, case.size, case.size), out_features=case.outputs, hidden_channels=(case.hidden,),
            small_inputs=True, number_of_blocks_per_stage=len(case.hidden), inplanes=case.channels, nb_stages=1,
            normalization=None, device=torch.device("cpu"),
        )  # fmt: skip
        self.network.set_growing_layers("all")
        for parameter, value in zip(self.network.parameters(), data.weights, strict=True):
            parameter.data = torch.from_numpy(value.copy())


def run(*, quick: bool = False, progress: object = None) -> Mapping[str, Any]:
    """Every case, with a profile of ours."""
    return compare_cycles(CASES[:1] if quick else CASES, Data, (Ours, Theirs), quick=quick)
