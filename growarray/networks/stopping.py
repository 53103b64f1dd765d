"""Judging growth: what was better on data held out, by how much it may be chance, and how large a network may grow."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from growarray.backend import Array
from growarray.networks.network import GrowingNetwork
from growarray.networks.snapshot import Snapshot

__all__ = ["Best", "Judgement", "default_budget", "judge"]

_PARTS = 16  # of the data: enough for a standard error, few enough to cost nothing


@dataclass(frozen=True)
class Judgement:
    """Loss and score on some data, and the loss of each of up to 16 equal parts of them.

    >>> before, after = Judgement(0.5, 0.0, (0.4, 0.6)), Judgement(0.6, 0.0, (0.5, 0.7))
    >>> after.is_worse(before), before.is_worse(after), after.is_worse(after)
    (True, False, False)
    """

    loss: float
    score: float
    parts: tuple[float, ...]

    def is_worse(self, other: Judgement, gain: float = 0.0) -> bool:
        """Whether the loss is not lower than ``other``'s, on the same data, by ``gain``, and that by more than chance.

        Chance is one standard error of the mean of the parts' differences; with a single part there is none.
        """
        differences = np.subtract(self.parts, other.parts) + gain
        rise, count = float(np.mean(differences)), len(differences)
        error = float(np.std(differences, ddof=1)) / math.sqrt(count) if count > 1 else 0.0
        noise = 1e-6 * abs(other.loss)  # what single precision leaves of a change that is none
        return not rise <= max(error, noise)


def judge(task: Any, y: Array, target: Array) -> Judgement:
    """Loss and score of predictions ``y``, and the losses of their parts.

    task : what has ``loss(y, target) -> (loss, pullback)`` and ``score(y, target)``
    """
    count = int(y.shape[0])
    parts = min(_PARTS, count)
    cuts = [count * part // parts for part in range(parts + 1)]
    losses = tuple(
        float(task.loss(y[start:stop, ...], target[start:stop, ...])[0]) for start, stop in itertools.pairwise(cuts)
    )
    return Judgement(float(task.loss(y, target)[0]), float(task.score(y, target)), losses)


@dataclass(frozen=True, eq=False)
class Best:
    """The network with the lowest loss so far: after which epoch, how wide, how it was judged, and all that it was."""

    epoch: int
    widths: list[int]
    judgement: Judgement
    snapshot: Snapshot


def default_budget(network: GrowingNetwork, x: Array, neurons: int) -> int:
    """Parameters that a network may grow to on the samples ``x``: one for every number that it is to learn.

    These are samples times outputs of a sample. A network that has more from the start, because a sample is wide, may
    still add one growth: ``neurons`` neurons where it is cheapest, and no more than there are samples.

    >>> import numpy as np
    >>> from growarray.networks import GrowingMLP
    >>> network = GrowingMLP(4, 2, hidden_size=2, dtype=np.float64)
    >>> default_budget(network, np.zeros((100, 4)), 8), default_budget(network, np.zeros((3, 4)), 8)
    (200, 37)
    """
    samples = int(x.shape[0])
    learnt = samples * math.prod(int(size) for size in _outputs(network, x[:1, ...]).shape[1:])
    costs = [int(place.parameters_per_neuron) for place in network.growing_layers]
    return max(learnt, network.number_of_parameters() + min(neurons, samples) * min(costs, default=0))


def _outputs(network: GrowingNetwork, x: Array) -> Array:
    training = network.training
    network.eval()
    try:
        return network(x)
    finally:
        network.train(training)
