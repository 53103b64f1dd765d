"""Statistics of many shards: here, on one and on two workers of Dask, and what a thousand shards cost besides the work.

A shard is drawn in the worker, on one thread. What shards cost besides their work are seconds of the processor in all
processes, scheduler and client too, for as many shards of one sample each: passing a shard on, what a sample costs, and
sums. Other processes on the machine lengthen the seconds of the wall, not those of the processor.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.timing import show, table, use_threads
from growarray.distributed import collect
from growarray.networks import GrowingMLP
from growarray.ops import cross_entropy

__all__ = ["report", "run"]

WIDTHS = (64, 128, 10)
ALLOCATION = {
    "MALLOC_TRIM_THRESHOLD_": 2**30,
    "MALLOC_MMAP_THRESHOLD_": 2**25,
}  # keep memory: what docs/cluster.md advises
COLUMNS = {
    "shards": "shards:.0f",
    "samples": "samples a shard:.0f",
    "where": "where",
    "wall": "s of the wall:.2f",
    "processor": "of the processor:.2f",
    "each": "ms a shard, processor:.2f",
    "same": "same bits",
}


def shard(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels, the same for a seed everywhere."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, WIDTHS[0]), dtype=np.float32)
    return x, np.argmax(x[:, : WIDTHS[-1]], axis=1)


def _spent(client: Any) -> float:
    """Seconds of the processor so far: of this process, where the scheduler is too, and of the workers."""
    workers = client.run(time.process_time).values() if client is not None else ()
    return time.process_time() + sum(workers)


def run(*, quick: bool = False, progress: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """Sixteen shards of 100,000 samples and a thousand of one; ``quick`` takes a tenth."""
    import dask
    from dask.distributed import Client, LocalCluster

    use_threads(1)
    of_workers = {f"{library}_NUM_THREADS": 1 for library in ("OMP", "OPENBLAS", "MKL")} | ALLOCATION
    dask.config.set({"distributed.nanny.pre-spawn-environ": of_workers})
    network = GrowingMLP(WIDTHS[0], WIDTHS[-1], WIDTHS[1], rng=np.random.default_rng(0))
    cases = [(16, 10_000), (100, 1)] if quick else [(16, 100_000), (1000, 1)]
    rows: list[dict[str, Any]] = []
    sums: dict[tuple[int, int], list[bytes]] = {}
    for workers in (0, 1, 2):
        options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": ":0"}
        with LocalCluster(**options) as cluster, Client(cluster) as connected:
            client = connected if workers else None
            collect(network, [functools.partial(shard, 1, seed) for seed in range(20)], cross_entropy, executor=client)
            for count, samples in cases:
                shards = [functools.partial(shard, samples, seed) for seed in range(count)]
                wall, processor = time.perf_counter(), _spent(client)
                found = collect(network, shards, cross_entropy, executor=client)
                wall, processor = time.perf_counter() - wall, _spent(client) - processor
                bits = [moment().tobytes() for moment in found.moments.values()]
                rows.append({"shards": count, "samples": samples, "wall": wall, "processor": processor,
                             "each": 1e3 * processor / count, "where": f"{workers} workers" if workers else "here",
                             "same": "yes" if sums.setdefault((count, samples), bits) == bits else "no"})  # fmt: skip
                show(
                    f"{rows[-1]['where']}: {count} shards of {samples}, {wall:.2f} s, {processor:.2f} of the processor"
                )
    return {"rows": rows}


def report(results: Mapping[str, Any]) -> str:
    """The table, and the share of the work that shards cost besides."""
    rows = results["rows"]
    work = next(row for row in rows if row["samples"] > 1 and row["where"] == "here")
    besides = next(row for row in rows if row["samples"] == 1 and row["where"] == "2 workers")
    return (
        f"{table(rows, COLUMNS)}\n\nOn two workers a shard costs {besides['each']:.1f} ms besides its work, "
        f"{besides['each'] / work['each']:.1%} of it at {work['samples']} samples."
    )
