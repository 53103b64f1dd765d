"""Pruning to a budget: the neurons that cost the loss least go, and those that stay take over what they can."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace, to_numpy
from growarray.errors import GrowArrayError, GrowthError
from growarray.growing import GrowingModule, MergeGrowingModule, cross_moment
from growarray.growing.fisher import softmax_fisher_seeds
from growarray.growing.update import alike, pseudo_inverse, rounding_floor
from growarray.networks.data import Task, task_named
from growarray.networks.network import is_frozen
from growarray.networks.part import as_growing
from growarray.nn import Module
from growarray.nn.inference import evaluating, gradients_kept
from growarray.ops.sizes import whole_number


@dataclass(frozen=True)
class Pruning:
    """What was pruned: neurons of each place by the module that has lost them, counted as they were before.

    increase : of the mean loss, as the quadratic model has it    before, after : parameters of the network
    """

    removed: dict[str, tuple[int, ...]]
    increase: float
    before: int
    after: int


def prune(
    network: Module,
    x: Array,
    parameters: int,
    *,
    task: str | Task = "classification",
    batch_size: int = 1024,
    least: int = 1,
) -> Pruning:
    """Take neurons, or channels, out of a growing network until it has at most ``parameters``; returns what went.

    x : samples like those it works on; targets are not needed    task : whether outputs are logits of a softmax
    least : neurons that every place keeps

    To second order around weights that are trained, the neuron with outgoing weights w costs the mean loss
    ``w^T E w / (2 (S^-1)_jj)``, if the others take over what of it they can supply: S is the second moment of the
    activations, E the curvature of the loss by what the layer after them gives, the exact Fisher of a softmax or that
    of the mean squared error. The neuron that costs least for each parameter goes, and the weights beside it change by
    ``w S_jo S_oo^-1``; then all is computed anew. One that is always 0 costs nothing and changes nothing.

    Growth goes on from there: gradients, optimizer state and norms lose the same neurons. A LayerNorm or GroupNorm then
    takes its mean over fewer, which the cost does not include. Places with a frozen parameter, or with a norm whose
    groups would not be equal, are left alone. Each neuron that goes takes an eigendecomposition of S.

    Raises GrowthError: the budget cannot be reached so, or there are no samples; nothing has changed then.

    Source: Hassibi & Stork 1993, *Second order derivatives for network pruning: optimal brain surgeon*; with factored
    curvature Wang et al. 2019, *EigenDamage*.

    >>> from growarray.networks import GrowingMLP
    >>> network = GrowingMLP(4, 3, hidden_size=8, dtype=np.float64, rng=np.random.default_rng(0))
    >>> found = prune(network, np.random.default_rng(1).standard_normal((50, 4)), parameters=50)
    >>> network.widths, found.before, found.after, len(found.removed["layers.0"])
    ([5], 67, 43, 3)
    """
    growing = as_growing(network)
    task = task_named(task) if isinstance(task, str) else task
    target = whole_number("prune", "parameters", parameters, 0)
    whole_number("prune", "least", least, 0)
    whole_number("prune", "batch_size", batch_size, 1)
    namespace(x)  # says what is wrong with a list
    if not int(x.shape[0]):
        raise GrowthError("prune: there are no samples to judge neurons by; give x some rows")
    places = list(_places(growing))
    layers = _collect(growing, places, x, task, batch_size)
    before = size = growing.number_of_parameters()
    increase = 0.0
    while size > target:
        open_places = [place for place in places if len(place.kept) > least]
        if not open_places:
            raise GrowthError(
                f"prune: {size} parameters are left where every place has {least} neurons, expected at most {target}"
            )
        best = min(open_places, key=lambda place: float(place.costs(layers).min()) / place.parameters(layers))
        index = int(best.costs(layers).argmin())
        size -= best.parameters(layers)
        increase += float(best.costs(layers)[index])
        best.remove(index, layers)
        for place in places:
            if place is best or any(id(reader) in {id(layer) for layer in best.before} for reader in place.readers):
                place.known = None
    pruned = [place for place in places if place.removed]
    removed = {place.front.name: place.removed for place in pruned}
    growing.delete_update()
    growing.reset_computation()
    for place in pruned:
        place.narrow()
    for reader in (reader for place in pruned for reader in place.readers):
        part = reader.part_of(asarray(layers[id(reader)].weight, like=reader.weight.data))
        reader.weight.data = part.weight.data
        if reader.bias is not None:
            reader.bias.data = part.bias.data
    return Pruning(removed, increase, before, growing.number_of_parameters())


@dataclass(eq=False)
class _Layer:
    """A layer that reads a place: its weights over all that it reads, and both moments."""

    weight: np.ndarray  # (o, d)
    s: np.ndarray  # (d, d)
    e: np.ndarray  # (o, o)
    floor: float  # what rounding leaves of S, relative to its size

    def precision(self) -> np.ndarray:
        """Inverse of S, in which directions without activity have as good as none."""
        scaled, root = alike(self.s)
        values, vectors = np.linalg.eigh(scaled)
        limit = max(len(values) * float(np.finfo(np.float64).eps), self.floor)
        least = limit * max(float(values[-1]), float(np.finfo(np.float64).tiny))
        rows = vectors / root[:, None]
        inverse: np.ndarray = (rows / np.maximum(values, least)) @ rows.T
        return inverse


@dataclass(eq=False)
class _Place:
    """A width between a front and its readers; ``known`` are the costs of its neurons until something changes."""

    front: Any
    readers: tuple[Any, ...]
    width: int
    kept: list[int] = field(default_factory=list)
    known: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.kept, self.before = list(range(self.width)), list(self.front.layers_before)

    @property
    def removed(self) -> tuple[int, ...]:
        return tuple(sorted(set(range(self.width)) - set(self.kept)))

    def taps(self, reader: Any) -> int:
        """Weights from one neuron to one output of a reader."""
        return int(np.prod(reader.weight.shape[2:], dtype=np.int64))

    def parameters(self, layers: dict[int, _Layer]) -> int:
        """Scalars that one neuron costs now."""
        reads = [
            layers[id(layer)].weight.shape[1] if id(layer) in layers else layer.stream_width for layer in self.before
        ]
        feeds = [layers[id(reader)].weight.shape[0] * self.taps(reader) for reader in self.readers]
        return int(sum(reads) + sum(feeds)) + int(self.front.output_function.parameters_per_feature)

    def costs(self, layers: dict[int, _Layer]) -> np.ndarray:
        """What the loss rises by without each of the neurons, (kept,)."""
        if self.known is None:
            total = np.zeros(len(self.kept))
            for reader in self.readers:
                layer, taps = layers[id(reader)], self.taps(reader)
                columns = len(self.kept) * taps
                blocks = layer.precision()[:columns, :columns].reshape(len(self.kept), taps, len(self.kept), taps)
                diagonal = np.stack([blocks[j, :, j, :] for j in range(len(self.kept))])
                outgoing = layer.weight[:, :columns].reshape(-1, len(self.kept), taps)
                wanted = np.einsum("ojs,op,pjt->jst", outgoing, layer.e, outgoing, optimize=True)
                active = np.diagonal(layer.s)[:columns].reshape(-1, taps).any(axis=1)
                total += np.where(active, np.trace(np.linalg.solve(diagonal, wanted), axis1=1, axis2=2) / 2, 0.0)
            self.known = np.maximum(total, 0.0)
        return self.known

    def remove(self, index: int, layers: dict[int, _Layer]) -> None:
        """Take one neuron out of the weights and moments around; the neurons beside it take over what they can."""
        for reader in self.readers:
            layer, taps = layers[id(reader)], self.taps(reader)
            gone = np.arange(index * taps, (index + 1) * taps)
            rest = np.delete(np.arange(len(layer.s)), gone)
            others = layer.s[np.ix_(rest, rest)]
            share = layer.s[np.ix_(gone, rest)] @ pseudo_inverse(others, layer.floor)
            layer.weight = layer.weight[:, rest] + layer.weight[:, gone] @ share
            layer.s = others
        for module in self.before:
            if id(module) in layers:
                layer = layers[id(module)]
                layer.weight = np.delete(layer.weight, index, axis=0)
                layer.e = np.delete(np.delete(layer.e, index, axis=0), index, axis=1)
        del self.kept[index]

    def narrow(self) -> None:
        """Have the front and the readers lose these neurons."""
        index = np.array(self.kept, np.int64)
        self.front.keep_outputs(asarray(index, like=self.before[0].weight.data))
        for reader in self.readers:
            reader.keep_inputs(asarray(index, like=reader.weight.data))


def _places(network: Module) -> Iterator[_Place]:
    """The widths that can shrink: those that could grow if nothing were frozen."""
    for module in network.modules():
        if not isinstance(module, GrowingModule | MergeGrowingModule) or module.front is None:
            continue
        place: Any = module
        if place.front.plans_for_readers and place.front is not place:
            continue  # a merge answers for what reads it
        try:
            place.check_growable()
            place.front.output_function._check_keep(place.in_neurons - 1)
        except GrowArrayError:
            continue
        if not is_frozen(place) and all(reader.in_neurons == place.front.out_features for reader in place.readers):
            yield _Place(place.front, tuple(place.readers), place.in_neurons)


def _curvature(task: Task, y: Array) -> Iterator[Array]:
    """Gradients at the outputs whose squares add up to the curvature of the loss of each sample."""
    if task.name != "regression":
        yield from softmax_fisher_seeds(y)
        return
    xp, outputs = namespace(y), int(y.shape[1])
    for k in range(outputs):
        row = xp.eye(outputs, dtype=y.dtype, device=y.device)[k, :]
        yield xp.zeros_like(y) + row * (2.0 / outputs) ** 0.5


def _collect(network: Any, places: list[_Place], x: Array, task: Task, batch_size: int) -> dict[int, _Layer]:
    """Weights and moments of every layer that reads a place, by its ``id``."""
    readers = {id(reader): reader for place in places for reader in place.readers}
    count = int(x.shape[0])
    s: dict[int, Any] = {}
    e: dict[int, Any] = dict.fromkeys(readers, 0.0)
    for reader in readers.values():
        for what in ("input", "pre_activity"):
            reader.request(what, network)
    try:
        with evaluating(network), gradients_kept(network):
            for start in range(0, count, batch_size):
                y, pullback = network.vjp(x[start : min(start + batch_size, count), ...])
                for key, reader in readers.items():
                    s[key] = s.get(key, 0.0) + cross_moment(reader.input_stream)
                for seed in _curvature(task, y):
                    pullback(seed, wrt_x=False)
                    for key, reader in readers.items():
                        shape = reader.recorder.need("gradient").shape
                        positions = math.prod(shape) // (int(shape[0]) * reader.out_features)
                        e[key] = e[key] + cross_moment(reader.gradient_stream()) / positions
    finally:
        for reader in readers.values():
            for what in ("input", "pre_activity"):
                reader.release(what, network)
    layers = {}
    for key, reader in readers.items():
        moment = to_numpy(s[key]) / count
        weight = to_numpy(reader.rows_of(reader.layer)).astype(np.float64)
        layers[key] = _Layer(weight, moment, to_numpy(e[key]) / count, rounding_floor(reader.weight.data))
    return layers
