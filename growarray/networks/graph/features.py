"""Features: what is read of some nodes side by side, and neurons that are drawn to read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import Array, asarray, namespace, to_numpy
from growarray.growing import JoinedStream
from growarray.networks.graph.reading import Reading
from growarray.networks.graph.sampled import neurons_between
from growarray.nn import Module

_ROWS = 4096  # of windows that neurons are drawn between


def joined(arrays: Iterable[Array], axis: int = -1) -> Array:
    """Arrays side by side; a single one as it is."""
    parts = list(arrays)
    return parts[0] if len(parts) == 1 else namespace(*parts).concat(parts, axis=axis)


class Features(NamedTuple):
    """What is read of some nodes side by side, and with ``ones`` a last column of ones for their biases.

    parts : nodes, and how each is read    shape : of the images at whose positions they are read
    """

    parts: tuple[tuple[str, Reading], ...]
    ones: bool
    shape: tuple[int, ...] = ()

    def values(self, matrix: Array, activities: Mapping[str, Array]) -> Array:
        """The product of ``matrix`` (k, width of all) with the features of a batch: (n, k, *shape)."""
        total, start = None, 0
        for node, reading in self.parts:
            width = int(activities[node].shape[1]) * reading.taps
            product = reading.values(matrix[:, start : start + width], activities[node])
            start += width
            total = product if total is None else total + product
        if not self.ones:
            return total
        ones = namespace(matrix).reshape(matrix[:, start], (-1, *(1 for _ in self.shape)))
        return ones if total is None else total + ones

    def cut(self, matrix: Array, channels: Mapping[str, int]) -> tuple[dict[str, Array], Array | None]:
        """The columns of ``matrix`` by node, and those of the ones; ``channels`` of each node."""
        blocks, start = {}, 0
        for node, reading in self.parts:
            stop = start + channels[node] * reading.taps
            blocks[node] = matrix[:, start:stop]
            start = stop
        return blocks, matrix[:, start] if self.ones else None

    def stream(self, activities: Mapping[str, Array]) -> JoinedStream:
        """The features of a batch."""
        last = len(self.parts) - 1
        streams = [
            reading.stream(activities[node], bias=self.ones and index == last)
            for index, (node, reading) in enumerate(self.parts)
        ]
        return JoinedStream(streams)

    def rows(self, activities: Mapping[str, Array], rng: np.random.Generator, most: int) -> tuple[np.ndarray, Any]:
        """Features (rows, width) without ones: all of a batch, or if they are images about ``most``; with their places.

        Places are the positions along each axis, at each of which all images are read.
        """
        streams: list[Any] = [reading.stream(activities[node]) for node, reading in self.parts]
        if not self.shape:
            return to_numpy(joined(stream.materialise() for stream in streams)), None
        count = min(math.prod(self.shape), max(1, most // streams[0].samples))
        chosen = rng.choice(math.prod(self.shape), count, replace=False)
        places = [tuple(map(int, place)) for place in zip(*np.unravel_index(chosen, self.shape), strict=True)]
        found = []
        for place in places:
            at = [slice(i, i + 1) for i in place]
            put = joined(stream.cropped(at).materialise() for stream in streams)
            found.append(to_numpy(put).reshape(put.shape[0], -1))
        return np.concatenate(found), places


@dataclass(eq=False)
class Sampled:
    """Candidates for neurons that read ``front``, behind ``function``; drawn from the first batch."""

    front: Features
    function: Module
    count: int
    weights: Array | None = None  # (count, width of front)

    def hidden(self, activities: Mapping[str, Array]) -> Array:
        """Their values on a batch, (n, count, *shape)."""
        pre = self.front.values(self.weights, activities)
        return self.function.extended_forward(None, pre)[1]

    def draw(self, activities: Mapping[str, Array], gradient: Array, rng: np.random.Generator) -> None:
        """Draw their weights between samples of this batch; ``gradient`` is that of the end."""
        rows, places = self.front.rows(activities, rng, _ROWS)
        wants = to_numpy(gradient)
        if places is not None:
            if wants.shape[2:] == self.front.shape:
                wants = np.concatenate([wants[(slice(None), slice(None), *place)] for place in places])
            else:
                wants = np.concatenate([wants.reshape(len(wants), -1)] * len(places))
        weights = neurons_between(rows, wants, self.count, rng, bias=self.front.ones)
        self.weights = asarray(weights, like=gradient, dtype=gradient.dtype)
