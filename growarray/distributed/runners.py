"""Runners compute the statistics of shards: in this thread, by an executor of ``concurrent.futures``, or by Dask."""

from __future__ import annotations

import copy
import functools
import operator
import pickle
import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Protocol

from growarray.distributed.shards import DaskShard
from growarray.distributed.value import GrowthStatistics, fingerprint_of, statistics_of
from growarray.errors import GrowthError
from growarray.networks.network import GrowingNetwork


class Runner(Protocol):
    """Makes nodes: future statistics of a shard, or future sums of them."""

    def one(self, index: int, shard: Any) -> Any:
        """The statistics of a shard."""

    def total(self, nodes: list[Any]) -> Any:
        """The sum of nodes, from left to right."""

    def result(self, node: Any) -> GrowthStatistics:
        """The value of a node."""

    def cancel(self, nodes: Sequence[Any]) -> None:
        """Drop nodes that are no longer needed."""


def runner_for(executor: Any, network: GrowingNetwork, options: Mapping[str, Any]) -> Runner:
    """The runner of an executor; TypeError for one of another kind, GrowthError for a client that is not connected."""
    if executor is None or isinstance(executor, Executor):
        return _Local(executor, network, options)
    client: Any = getattr(sys.modules.get("distributed"), "Client", ())
    if not isinstance(executor, client):
        raise TypeError(
            f"collect: executor is a {type(executor).__name__}, expected None, an executor of concurrent.futures, or a "
            "dask.distributed.Client"
        )
    if executor.status != "running" or executor.asynchronous:
        state = "asynchronous" if executor.asynchronous else executor.status
        raise GrowthError(f"collect: the Dask client is {state}; pass one that is connected, such as Client(address)")
    return _Dask(executor, network, options)


@dataclass(frozen=True)
class _Travelling:
    """A network sent to other threads and processes, each of which unpacks its own copy once."""

    data: bytes
    fingerprint: str
    token: str

    @classmethod
    def of(cls, network: GrowingNetwork) -> _Travelling:
        """Weights without gradients, optimizer slots and statistics."""
        twin = copy.deepcopy(network)
        twin.reset_computation()
        for parameter in twin.parameters():
            parameter.grad, parameter.slots = None, {}
        return cls(pickle.dumps(twin), fingerprint_of(network), secrets.token_hex(8))

    def network(self) -> GrowingNetwork:
        """This thread's own network."""
        if getattr(_here, "token", None) != self.token:
            _here.network, _here.token = pickle.loads(self.data), self.token
        return _here.network  # type: ignore[no-any-return]


_here = threading.local()


def _statistics_of_shard(
    network: _Travelling | GrowingNetwork, fingerprint: str, index: int, shard: Any, options: Mapping[str, Any]
) -> GrowthStatistics:
    own = network.network() if isinstance(network, _Travelling) else network
    try:
        return statistics_of(own, shard, fingerprint=fingerprint, **options)
    except Exception as error:
        error.add_note(f"in shard {index}")
        raise


def _sum(parts: Sequence[GrowthStatistics]) -> GrowthStatistics:
    return functools.reduce(operator.add, parts)


class _Local:
    """Shards by an executor or in this thread; sums in this thread, so that few values are held at a time."""

    def __init__(self, executor: Executor | None, network: GrowingNetwork, options: Mapping[str, Any]) -> None:
        self.executor, self.options = executor, options
        self.network = network if executor is None else _Travelling.of(network)
        self.fingerprint = fingerprint_of(network)

    def one(self, index: int, shard: Any) -> Any:
        call = functools.partial(_statistics_of_shard, self.network, self.fingerprint, index, shard, self.options)
        return call if self.executor is None else self.executor.submit(call)

    def total(self, nodes: list[Any]) -> Any:
        return nodes

    def result(self, node: Any) -> GrowthStatistics:
        if isinstance(node, list):
            node.reverse()
            parts = (self.result(node.pop()) for _ in range(len(node)))  # what has been added is let go
            return functools.reduce(operator.add, parts)
        return node.result() if isinstance(node, Future) else node()  # type: ignore[no-any-return]

    def cancel(self, nodes: Sequence[Any]) -> None:
        for node in nodes:
            if isinstance(node, list):
                self.cancel(node)
            elif isinstance(node, Future):
                node.cancel()


class _Dask:
    """Shards and sums as tasks of a cluster; the weights are a task too, so that a lost copy is made again."""

    def __init__(self, client: Any, network: GrowingNetwork, options: Mapping[str, Any]) -> None:
        travelling = _Travelling.of(network)
        self.client, self.options, self.fingerprint = client, options, travelling.fingerprint
        self.network = client.submit(_same, travelling, pure=False)

    def one(self, index: int, shard: Any) -> Any:
        if isinstance(shard, DaskShard):
            shard = tuple(self.client.compute([shard.x, shard.target]))
        call = _statistics_of_shard, self.network, self.fingerprint, index, shard, self.options
        return self.client.submit(*call, pure=False)

    def total(self, nodes: list[Any]) -> Any:
        return self.client.submit(_sum, nodes, pure=False)

    def result(self, node: Any) -> GrowthStatistics:
        return node.result()  # type: ignore[no-any-return]

    def cancel(self, nodes: Sequence[Any]) -> None:
        self.client.cancel(nodes)


def _same(value: Any) -> Any:
    return value
