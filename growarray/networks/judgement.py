"""Judging a network on held-out data, whether a difference may be chance, and restoring the best network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from growarray.backend import Array, is_array, namespace
from growarray.growing import GrowingModule, MergeGrowingModule
from growarray.networks.data import Task
from growarray.networks.network import GrowingNetwork
from growarray.nn import Module
from growarray.nn.owner import Owner

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

    @classmethod
    def of(cls, values: Sequence[float]) -> Judgement:
        """From the numbers that :func:`judged` gives."""
        return cls(values[0], values[1], tuple(values[2:]))

    def is_worse(self, other: Judgement, gain: float = 0.0) -> bool:
        """Whether the loss is not lower than ``other``'s, on the same data, by ``gain``, and that by more than chance.

        Chance is one standard error of the mean of the parts' differences; with a single part there is none.
        """
        differences = np.subtract(self.parts, other.parts) + gain
        rise, count = float(np.mean(differences)), len(differences)
        error = float(np.std(differences, ddof=1)) / math.sqrt(count) if count > 1 else 0.0
        noise = 1e-6 * abs(other.loss)  # what single precision leaves of no change
        return not rise <= max(error, noise)


def judged(task: Task, y: Array, target: Array) -> list[Any]:
    """Loss and score of predictions ``y``, and the losses of their parts: numbers, or arrays on the GPU of ``y``."""
    count = int(y.shape[0])
    parts = min(_PARTS, count)
    cuts = [count * part // parts for part in range(parts + 1)]
    losses = [task.loss(y[start:stop, ...], target[start:stop, ...])[0] for start, stop in itertools.pairwise(cuts)]
    return [task.loss(y, target)[0], task.score(y, target), *losses]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Copies of all that training and growth change in a network; :meth:`restore` brings them back, widths too.

    arrays : weights and running statistics under the names of the state dict
    slots : for each parameter what its optimizer keeps, arrays or numbers
    sizes : for each module the attributes that hold its widths, whole numbers or lists of them
    structures : for each network whose parts may change, such as a graph, what they are

    >>> from growarray.nn import Linear
    >>> layer = Linear(2, 1)
    >>> before = Snapshot.of(layer)
    >>> layer.weight.extend(1, layer.weight.data)
    >>> before.restore(layer)
    >>> layer.in_features
    2
    """

    arrays: Mapping[str, Array]
    slots: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, Mapping[str, Any]]
    structures: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, network: Module) -> Snapshot:
        """A snapshot of ``network``."""
        return cls(
            network.state_dict(),
            {name: {key: _copy(value) for key, value in p.slots.items()} for name, p in network.named_parameters()},
            {path: sizes for path, module in network.named_modules() if (sizes := _sizes(module))},
            {path: found for path, part in _networks(network) if (found := part.structure()) is not None},
        )

    def restore(self, network: Module) -> None:
        """Restore this state in ``network``: the original, or another with the same modules.

        Gradients are forgotten; statistics and planned changes, which fit other widths, start anew.
        """
        for path, part in _networks(network):
            if path in self.structures:
                part.restructure(self.structures[path])
        for path, module in network.named_modules():
            for name, value in self.sizes.get(path, {}).items():
                setattr(module, name, tuple(value) if isinstance(value, list | tuple) else value)
        for name, holder, attribute in network._named_arrays():
            setattr(holder, attribute, _copy(self.arrays[name]))
        for name, parameter in network.named_parameters():
            parameter.grad = None
            parameter.slots = {key: _copy(value) for key, value in self.slots[name].items()}
        growing = GrowingNetwork | GrowingModule | MergeGrowingModule
        planned: list[Any] = [module for module in network.modules() if isinstance(module, growing)]
        for module in planned:
            module.delete_update()
            if not isinstance(module, GrowingNetwork):
                module.declare_statistics()


def _networks(module: Module) -> list[tuple[str, GrowingNetwork]]:
    return [(path, part) for path, part in module.named_modules() if isinstance(part, GrowingNetwork)]


def _copy(value: Any) -> Any:
    return namespace(value).asarray(value, copy=True) if is_array(value) else value


def _sizes(module: Owner) -> dict[str, Any]:
    """Attributes that are whole numbers, or tuples of them: widths, if a layer keeps them beside its arrays."""
    return {name: value for name, value in vars(module).items() if _is_size(value)}


def _is_size(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_is_size(part) for part in value)
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, eq=False)
class Best:
    """The network with the lowest loss so far: after which epoch, how wide, how it was judged, and all that it was."""

    epoch: int
    widths: list[int]
    judgement: Judgement
    snapshot: Snapshot
