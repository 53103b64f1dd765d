"""GrowthStatistics: all moments of a network over some samples, as a value that can be added and sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from growarray.backend import to_numpy
from growarray.errors import GrowthError, ShapeError, shown
from growarray.growing import TINY, GrowingModule, MergeGrowingModule, Rule, TensorStatistic
from growarray.networks.data import Loss, batches, loaded
from growarray.networks.graph import GraphStatistics, GrowingDAG
from growarray.networks.network import GrowingNetwork
from growarray.networks.part import as_growing
from growarray.networks.planner import needs_fisher
from growarray.nn import Module
from growarray.nn.inference import evaluating


@dataclass(frozen=True, eq=False)
class GrowthStatistics:
    """Sums of all moments that plan a growth, over ``samples`` samples; two of the same network can be added.

    moments : a :class:`TensorStatistic` by place and name;  fingerprint : of the weights that they were taken with

    >>> import numpy as np
    >>> from growarray.networks import GrowingMLP
    >>> from growarray.ops import mse
    >>> rng = np.random.default_rng(0)
    >>> network, x = GrowingMLP(4, 2, 3, rng=rng, dtype=np.float64), rng.standard_normal((50, 4))
    >>> first, second = (statistics_of(network, (part, part[:, :2] ** 2), mse) for part in (x[:20], x[20:]))
    >>> (first + second).put(network)
    >>> network.compute_optimal_updates(max_new=1)
    >>> (first + second).samples, network.growing_layers[0].new_neurons
    (50, 1)
    """

    moments: Mapping[str, TensorStatistic]
    samples: int
    fingerprint: str

    @classmethod
    def of(cls, network: GrowingNetwork, samples: int, fingerprint: str) -> GrowthStatistics:
        """The statistics that ``network`` has collected."""
        return cls({name: _alone(held) for name, held in _held(network) if held.samples}, samples, fingerprint)

    def __add__(self, other: GrowthStatistics) -> GrowthStatistics:
        """The sum of both.

        Raises GrowthError if they were taken with other weights, or for rules that need other moments.
        """
        if not isinstance(other, GrowthStatistics):
            return NotImplemented
        if self.fingerprint != other.fingerprint:
            raise GrowthError(
                f"statistics of the weights {self.fingerprint} and {other.fingerprint} cannot be added; "
                "collect both with the same weights"
            )
        if self.moments.keys() != other.moments.keys():
            only = sorted(self.moments.keys() ^ other.moments.keys())
            raise GrowthError(
                f"statistics for different rules cannot be added: only one of them has {shown(only)}; "
                "collect both for the same rule"
            )
        moments = {name: moment + other.moments[name] for name, moment in self.moments.items()}
        return GrowthStatistics(moments, self.samples + other.samples, self.fingerprint)

    def put(self, network: Module) -> None:
        """Set these as the statistics of ``network``, for ``compute_optimal_updates``.

        Raises GrowthError if the network has other weights or other places to grow; it collects nothing then.
        ``reset_computation()`` forgets them.
        """
        network = as_growing(network)
        found = fingerprint_of(network)
        if found != self.fingerprint:
            raise GrowthError(
                f"statistics of the weights {self.fingerprint} do not fit a network of the weights {found}; "
                "collect them with its current weights"
            )
        network.init_computation()
        like, held = next(iter(network.parameters())).data, dict(_held(network))
        try:
            if more := sorted(self.moments.keys() - held.keys()):
                raise GrowthError(f"the network has no place for the statistics {shown(more)}; collect them with it")
            for name, moment in self.moments.items():
                held[name].load_state_dict(moment.state_dict(), like=like)
        except BaseException:
            network.reset_computation()
            raise

    def relative_error(self) -> float:
        """Largest estimated relative error of an M, infinite for a single batch."""
        return max(m.relative_error() for m in self.moments.values() if m.trace_precision is not None)

    def state_dict(self) -> dict[str, Any]:
        """Plain data: numbers, text and NumPy arrays."""
        moments = {name: moment.state_dict() for name, moment in self.moments.items()}
        return {"samples": self.samples, "fingerprint": self.fingerprint, "moments": moments}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> GrowthStatistics:
        """Restore the result of :meth:`state_dict`; GrowthError for anything else."""
        if not isinstance(state, Mapping) or set(state) != {"samples", "fingerprint", "moments"}:
            raise GrowthError(
                f"GrowthStatistics: state is {shown(state)}, expected the result of state_dict(): samples, "
                "fingerprint, moments"
            )
        moments = {}
        for name, saved in state["moments"].items():
            precision = _TRACE if name.endswith(".m") else None  # M alone estimates its error
            moments[name] = TensorStatistic(name=name, trace_precision=precision)
            moments[name].load_state_dict(saved)
        return cls(moments, int(state["samples"]), str(state["fingerprint"]))

    def __repr__(self) -> str:
        return f"GrowthStatistics({len(self.moments)} moments, samples={self.samples}, weights={self.fingerprint})"


_TRACE = 1e-3  # relative change of a trace below which it is known


def _held(network: GrowingNetwork) -> Iterator[tuple[str, TensorStatistic]]:
    """Every statistic of a network, by the path of its layer or merge and the statistic's name."""
    for path, module in network.named_modules():
        if isinstance(module, GrowingModule | MergeGrowingModule | GrowingDAG) and module.statistics is not None:
            found = module.statistics
            for name, held in found.named() if isinstance(found, GraphStatistics) else vars(found).items():
                if isinstance(held, TensorStatistic):
                    yield f"{path}.{name}", held


def _alone(held: TensorStatistic) -> TensorStatistic:
    """A copy on the host without a link to a layer."""
    copy = TensorStatistic(name=held.name, trace_precision=held.trace_precision)
    copy.load_state_dict(held.state_dict())
    return copy


def fingerprint_of(network: Module) -> str:
    """32 hexadecimal digits that change with the names, shapes, dtypes or values of the weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in network.state_dict().items():
        host = np.ascontiguousarray(to_numpy(array))
        digest.update(f"{name} {host.dtype} {host.shape} ".encode())
        digest.update(host.data if host.size else b"")
    return digest.hexdigest()


def load_shard(shard: Any) -> tuple[Any, Any]:
    """The arrays of a shard, loaded if it is a callable; frames and series become arrays."""
    found = loaded(shard)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise TypeError(f"a shard must be a pair of arrays (x, target), or a function that returns one; {shown(found)}")
    x, target = found
    samples, targets = x.shape[0], target.shape[0]
    if samples != targets:
        raise ShapeError(f"a shard has {samples} samples and {targets} targets; the numbers must agree")
    if samples == 0:
        raise GrowthError("a shard has no samples; omit it")
    return x, target


def statistics_of(
    network: Module,
    shard: Any,
    loss: Loss,
    *,
    rule: Rule = TINY,
    batch_size: int = 1024,
    fingerprint: str | None = None,
) -> GrowthStatistics:
    """The statistics of one shard of the data, for ``rule`` to plan from.

    network : a growing network, or a module with one inside; it stays as it is, but for a collection that was begun
    shard : (x, target), or a function without arguments that loads them
    loss : the mean loss ``(y, target) -> (loss, pullback)``;  batch_size : samples in memory at a time
    fingerprint : that of the network's weights if it is known, to spare its computation

    Raises GrowthError, ShapeError, TypeError: the shard has no samples, is no pair, its parts differ in number, or
    samples have another width than the network expects.
    """
    network, (x, target) = as_growing(network), load_shard(shard)
    if any(isinstance(module, GrowingDAG) and module.sampled for module in network.modules()):
        raise GrowthError(
            "statistics_of: a GrowingDAG draws different candidates from each shard; construct it with sampled=0"
        )
    with evaluating(network):
        try:
            network.init_computation(trace_precision=_TRACE)
            for part in batches(x, target, batch_size):
                network.collect_batch(*part, loss, fisher=needs_fisher(rule))
            return GrowthStatistics.of(network, int(x.shape[0]), fingerprint or fingerprint_of(network))
        finally:
            network.reset_computation()
            network.zero_grad()
