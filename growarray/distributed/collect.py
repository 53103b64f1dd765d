"""Statistics of many shards, summed in an order that does not depend on which finishes first."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from growarray.distributed.runners import runner_for
from growarray.distributed.value import GrowthStatistics
from growarray.errors import GrowthError, shown
from growarray.growing import TINY, Rule
from growarray.networks.data import Loss
from growarray.networks.part import as_growing
from growarray.nn import Module
from growarray.ops.sizes import whole_number


def collect(
    network: Module,
    shards: Iterable[Any],
    loss: Loss,
    *,
    rule: Rule = TINY,
    executor: Any = None,
    split_every: int = 8,
    precise: float | None = None,
    batch_size: int = 1024,
) -> GrowthStatistics:
    """The statistics of ``network`` over all shards, or over as many as make them precise.

    shards : each (x, target), or a function without arguments that loads them where it is called
    executor : None to compute here, an executor of ``concurrent.futures``, or a ``dask.distributed.Client``
    split_every : how many are added up at a time: first so many shards in a row, then so many of these sums
    precise : stop once every M is known to this relative error, which is looked at after each ``split_every`` shards
    rule, loss, batch_size : as in :func:`statistics_of`

    Sums are formed by the places of the shards alone, so that the result is the same bit for bit with every executor.
    Processes get the weights once, without what optimizers keep. What a dead worker held is computed anew by Dask.

    Raises GrowthError, ShapeError, TypeError: there are no shards, the executor is closed or of another kind, or what
    :func:`statistics_of` raises, with a note of the shard's number.

    >>> import numpy as np
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from growarray.networks import GrowingMLP
    >>> from growarray.ops import mse
    >>> rng = np.random.default_rng(0)
    >>> network, x = GrowingMLP(4, 2, 3, rng=rng), rng.standard_normal((60, 4), dtype=np.float32)
    >>> shards = [(part, part[:, :2]) for part in np.split(x, 12)]
    >>> with ThreadPoolExecutor(2) as pool:
    ...     collect(network, shards, mse, executor=pool).samples
    60
    """
    shards = list(shards)
    whole_number("collect", "split_every", split_every, 2)
    if precise is not None and not precise > 0:
        raise ValueError(f"collect: precise must be positive, found {shown(precise)}")
    if not shards:
        raise GrowthError("collect: there are no shards; pass at least one (x, target)")
    run = runner_for(executor, as_growing(network), {"loss": loss, "rule": rule, "batch_size": batch_size})
    nodes = [run.total([run.one(*pair) for pair in group]) for group in _groups(list(enumerate(shards)), split_every)]
    first = list(nodes)
    try:
        if precise is None:
            while len(nodes) > 1:
                nodes = [run.total(group) for group in _groups(nodes, split_every)]
            return run.result(nodes[0])
        found = _Tree(split_every)
        for node in nodes:
            found.add(run.result(node))
            if found.total().relative_error() <= precise:
                break
        return found.total()
    finally:
        run.cancel(first)


def _groups(items: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


class _Tree:
    """Running sums of values, added ``size`` at a time, level by level."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.levels: list[list[GrowthStatistics]] = []

    def add(self, value: GrowthStatistics, level: int = 0) -> None:
        """Add a value; complete sums go up a level."""
        if level == len(self.levels):
            self.levels.append([])
        held = self.levels[level]
        held.append(value)
        if len(held) == self.size:
            self.levels[level] = []
            self.add(functools.reduce(operator.add, held), level + 1)

    def total(self) -> GrowthStatistics:
        """The sum of all values."""
        found: list[GrowthStatistics] = []
        for held in self.levels:
            parts = [*held, *found]
            found = [functools.reduce(operator.add, parts)] if parts else []
        return found[0]
