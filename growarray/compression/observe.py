"""Inputs of the layers while a network runs, and their effect on its output."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.compression.targets import Target
from growarray.errors import ShapeError
from growarray.nn.module import Module, Pullback

_CHUNK = 32  # samples that are run at a time
_WIDEST = 2048  # input features above which no second moment is kept: its root would take half a minute
_UNKNOWN = 0.9  # share of the identity in a shrunk moment above which it says too little to be used
_NOISE = 0.1  # size of the disturbance, relative to the weights of a layer, by which its influence is measured
_SAMPLES = 16  # of the calibration data, for that


class _Probe(Module):
    """Stands in for a layer while the network runs; each use of it calls :meth:`seen`."""

    _links = ("target",)

    def __init__(self, target: Target) -> None:
        self.target = target

    def seen(self, x: Array, y: Array) -> Array:
        """The value that the network goes on with."""
        self.target.shapes.append(tuple(x.shape))
        return y

    def forward(self, x: Array) -> Array:
        """The value of the layer, as :meth:`seen` changes it."""
        return self.seen(x, self.target.layer.forward(x))

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """For networks that run forwards by ``vjp`` only; the pullback raises."""

        def pullback(dy: Array) -> Array:
            raise NotImplementedError("compress runs a network forwards only")

        return self.forward(x), pullback


class _Moment(_Probe):
    """Adds to the second moment of the channels of the input."""

    def seen(self, x: Array, y: Array) -> Array:
        """Take the moment of the input."""
        xp, layer = namespace(x), self.target.layer
        width = self.target.kernel.shape[1]
        if 1 < width <= _WIDEST:
            last = x if self.target.is_linear else xp.moveaxis(x, 1, -1)
            rows = xp.reshape(xp.astype(last, xp.float64), (-1, 1 if self.target.is_linear else layer.groups, width))
            columns = xp.permute_dims(rows, (1, 2, 0))
            found = xp.sum(columns @ xp.matrix_transpose(columns), axis=0)
            self.target.rows += int(rows.shape[0])
            self.target.moment = found if self.target.moment is None else self.target.moment + found
        return y


class _Gap(_Probe):
    """Compares the layer with another one, both at the same input."""

    def __init__(self, target: Target, other: Module) -> None:
        super().__init__(target)
        self.other = other
        self.gap = self.size = 0.0

    def compare(self, x: Array, y: Array) -> Array:
        """Sum up the squares; the value of the other layer."""
        z = self.other(x)
        gap, size = _squares(z, y)
        self.gap, self.size = self.gap + gap, self.size + size
        return z

    def seen(self, x: Array, y: Array) -> Array:
        """The value of the dense layer."""
        self.compare(x, y)
        return y


class _Other(_Gap):
    """Returns the value of the other layer."""

    def seen(self, x: Array, y: Array) -> Array:
        """The value of the other layer."""
        return self.compare(x, y)


class _Noise(_Other):
    """Returns the value of the layer with disturbed weights.

    Not a disturbed output: noise that differs from place to place would be lost where places are averaged, while a
    kernel that is off is off everywhere alike.
    """

    def __init__(self, target: Target, rng: np.random.Generator) -> None:
        noisy, kernel = swapped(target.layer, {}), target.kernel
        xp = namespace(kernel)
        size = _NOISE * math.sqrt(float(xp.mean(xp.astype(kernel, xp.float64) ** 2)))
        drawn = asarray(rng.normal(0.0, size, tuple(kernel.shape)), like=kernel, dtype=kernel.dtype)
        noisy.weight.data = kernel + drawn
        super().__init__(target, noisy)


def swapped(network: Module, layers: Mapping[int, Any]) -> Any:
    """A copy of the network in which the objects with these ids are replaced, wherever they are held."""
    memo: dict[int, Any] = dict(layers)
    return copy.deepcopy(network, memo)


def outputs_of(network: Any, inputs: Any) -> list[Array]:
    """All outputs of a network, for an array or for a mapping from the names of its inputs."""
    found = network.run(inputs) if isinstance(inputs, Mapping) else network(inputs)
    if isinstance(found, Mapping):
        return list(found.values())
    return list(found) if isinstance(found, list | tuple) else [found]


def _chunks(inputs: Any, limit: int | None = None, step: int = _CHUNK) -> Iterator[Any]:
    """The inputs, a few samples at a time."""
    arrays = inputs if isinstance(inputs, Mapping) else {"": inputs}
    count = min(int(a.shape[0]) for a in arrays.values())
    count = count if limit is None else min(count, limit)
    for start in range(0, count, step):
        part = {name: a[start : min(start + step, count), ...] for name, a in arrays.items()}
        yield part if isinstance(inputs, Mapping) else part[""]


def _run(
    network: Module, probes: Sequence[_Probe], inputs: Any, limit: int | None = None, step: int = _CHUNK
) -> list[list[Array]]:
    """Outputs of a copy of the network with probes in the place of layers, in evaluation mode; it shares parameters."""
    shared = {id(parameter): parameter for parameter in network.parameters()}
    probing = swapped(network, {**shared, **{id(p.target.layer): p for p in probes}})
    if isinstance(probing, Module):
        probing.eval()
    try:
        return [outputs_of(probing, part) for part in _chunks(inputs, limit, step)]
    except ValueError as error:
        shapes = {k: tuple(a.shape) for k, a in inputs.items()} if isinstance(inputs, Mapping) else tuple(inputs.shape)
        raise ShapeError(f"compress: the network does not take an input of shape {shapes}: {error}") from error


def observe(network: Module, targets: Sequence[Target], sample: Any, data: Any) -> None:
    """Run the network on ``sample`` for the shapes, and on calibration ``data``, if any, for the moments.

    Raises ShapeError if the network does not take them.
    """
    _run(network, [_Probe(t) for t in targets], sample, step=sys.maxsize)  # each use once: times are of the whole batch
    if data is None:
        return
    _run(network, [_Moment(t) for t in targets], data)
    for target in targets:
        target.moment = _shrunk(target)


def _shrunk(target: Target) -> Array | None:
    """The moment shrunk towards a multiple of the identity, more strongly if it has few rows for its entries."""
    if target.moment is None:
        return None
    xp, d = namespace(target.moment), target.moment.shape[0]
    share, size = d / (d + target.rows), float(xp.linalg.trace(target.moment)) / d
    if share > _UNKNOWN or size == 0.0:
        return None
    eye = xp.eye(d, dtype=xp.float64, device=target.moment.device)
    return (1.0 - share) * target.moment + share * size * eye


def sensitivity(network: Module, targets: Sequence[Target], data: Any, rng: np.random.Generator) -> list[list[Array]]:
    """Influence of each layer: how much the network's output changes if its weights are disturbed.

    Returns the outputs without a disturbance.
    """
    plain = _run(network, [], data, _SAMPLES)
    if not all(math.isfinite(_squares(y, y)[1]) for part in plain for y in part):
        raise ValueError(
            "compress: the output of the network on the calibration data is not finite; check the data and the weights"
        )
    for target in targets:
        noise = _Noise(target, rng)
        gap, size = _distance(_run(network, [noise], data, _SAMPLES), plain)
        target.influence = gap / size / (noise.gap / noise.size) if size and noise.gap and noise.size else 0.0
    return plain


def effect(network: Module, target: Target, layer: Module, data: Any, plain: Sequence[Sequence[Array]]) -> float:
    """Squared relative change of the network's output if only this layer replaces the target.

    plain : what :func:`sensitivity` returned
    """
    gap, size = _distance(_run(network, [_Other(target, layer)], data, _SAMPLES), plain)
    return gap / size if size else 0.0


def compare_outputs(
    network: Module, small: Module, replaced: Mapping[str, tuple[Target, Module]], data: Any
) -> tuple[float, dict[str, float]]:
    """Relative error of the compressed network's output on ``data``, and of each layer's output alone."""
    probes = {name: _Gap(target, layer) for name, (target, layer) in replaced.items()}
    plain = _run(network, list(probes.values()), data)
    found = _run(small, [], data)
    return _root(*_distance(found, plain)), {name: _root(p.gap, p.size) for name, p in probes.items()}


def _squares(found: Array, expected: Array) -> tuple[float, float]:
    """Squared distance, and squared norm of what is expected."""
    xp = namespace(found, expected)
    wide = xp.astype(expected, xp.float64)
    return float(xp.sum((xp.astype(found, xp.float64) - wide) ** 2)), float(xp.sum(wide * wide))


def _distance(found: Sequence[Sequence[Array]], expected: Sequence[Sequence[Array]]) -> tuple[float, float]:
    """:func:`_squares` of all outputs."""
    gaps = [_squares(a, b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)]
    gap, size = map(sum, zip(*gaps, strict=True))
    return gap, size


def _root(gap: float, size: float) -> float:
    return math.sqrt(gap / size) if size else 0.0 if gap == 0.0 else math.inf
