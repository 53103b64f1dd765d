"""One result, whoever computes it: here, in threads, in processes, in a cluster whose workers die."""

import asyncio
import os
import re
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from dask import delayed
from dask.distributed import Client, LocalCluster

from growarray.distributed import collect, from_dask, statistics_of
from growarray.distributed.shards import DaskShard
from growarray.errors import GrowthError, ShapeError
from growarray.growing import FISHER
from growarray.networks import GrowingMLP
from growarray.ops import mse
from growarray.optim import Adam
from tests.distributed.test_value import bits

X = np.random.default_rng(0).standard_normal((230, 4))
TARGET = np.sin(X[:, :2])
SHARDS = list(zip(np.split(X, 23), np.split(TARGET, 23), strict=True))


@pytest.fixture
def network():
    return GrowingMLP(4, 2, (3, 3), rng=np.random.default_rng(0), dtype=np.float64)


@pytest.fixture(scope="module")
def client():
    options = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": ":0", "silence_logs": 50}
    patience = {"distributed.comm.timeouts.connect": "5s"}  # so long is a worker called that is dead, 30 s by default
    with dask.config.set(patience), LocalCluster(**options) as cluster, Client(cluster) as connected:
        yield connected


def by_hand(network, shards, size):
    """Sums of so many in a row, then of so many of these, until there is one."""
    found = [statistics_of(network, shard, mse) for shard in shards]
    while len(found) > 1:
        groups = [found[start : start + size] for start in range(0, len(found), size)]
        found = []
        for group in groups:
            total = group[0]
            for part in group[1:]:
                total = total + part
            found.append(total)
    return found[0]


@pytest.mark.parametrize("size", [2, 3, 8, 40])
def test_the_places_of_the_shards_order_the_sum(network, size):
    expected = bits(by_hand(network, SHARDS, size))
    assert bits(collect(network, SHARDS, mse, split_every=size)) == expected
    # what is looked at on the way changes nothing
    assert bits(collect(network, SHARDS, mse, split_every=size, precise=1e-9)) == expected


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_executors_give_the_bits_of_one_process(network, kind):
    for layer in network.growing_layers:  # what an optimizer keeps does not travel
        layer.weight.slots["m"] = np.full(10**6, 1.0)
    expected = bits(collect(network, SHARDS, mse))
    pool = ThreadPoolExecutor(3) if kind == "threads" else ProcessPoolExecutor(2, get_context("spawn"))
    with pool:
        assert bits(collect(network, SHARDS, mse, executor=pool)) == expected
        early = collect(network, SHARDS, mse, executor=pool, split_every=2, precise=0.5)
    assert bits(early) == bits(collect(network, SHARDS, mse, split_every=2, precise=0.5))
    with pytest.raises(RuntimeError, match="after shutdown"):
        collect(network, SHARDS, mse, executor=pool)


def test_a_cluster_gives_the_bits_of_one_process(network, client):
    for rule in ({}, {"rule": FISHER}):
        assert bits(collect(network, SHARDS, mse, executor=client, **rule)) == bits(
            collect(network, SHARDS, mse, **rule)
        )


def test_weights_that_have_moved_are_sent_anew(network, client):
    before = collect(network, SHARDS, mse, executor=client)
    Adam(network, lr=0.1)
    network.layers[0].weight.data += 1.0
    after = collect(network, SHARDS, mse, executor=client)
    assert after.fingerprint != before.fingerprint
    assert bits(after) == bits(collect(network, SHARDS, mse))


def test_a_worker_that_dies_changes_nothing(network, client, tmp_path):
    marks = [tmp_path / "first", tmp_path / "second"]
    place = {3: str(marks[0]), 15: str(marks[1])}

    def shard(index):
        def load():
            mark = place.get(index)
            if mark is not None and not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return SHARDS[index]

        return load

    workers = set(client.scheduler_info()["workers"])
    found = collect(network, [shard(index) for index in range(23)], mse, executor=client, split_every=3)
    assert all(mark.exists() for mark in marks)
    client.wait_for_workers(2)
    assert set(client.scheduler_info()["workers"]) != workers
    assert bits(found) == bits(collect(network, SHARDS, mse, split_every=3))


@pytest.mark.parametrize("enough", [4, 12])
def test_collection_stops_when_it_is_precise(network, client, enough):
    loaded = []

    def shard(index):
        def load():
            loaded.append(index)
            return SHARDS[index]

        return load

    prefixes = {count: collect(network, SHARDS[:count], mse, split_every=2) for count in range(2, 23, 2)}
    precise = prefixes[enough].relative_error()
    expected = min(count for count, prefix in prefixes.items() if prefix.relative_error() <= precise)
    found = collect(network, [shard(index) for index in range(23)], mse, split_every=2, precise=precise)
    assert loaded == list(range(expected))
    assert bits(found) == bits(prefixes[expected])
    assert bits(collect(network, SHARDS, mse, split_every=2, precise=precise, executor=client)) == bits(found)


def test_chunks_of_dask_arrays_are_shards(network, client):
    x, y = da.from_array(X, chunks=(30, 4)), da.from_array(TARGET, chunks=(30, 2))
    cuts = range(30, 230, 30)
    plain = list(zip(np.split(X, cuts), np.split(TARGET, cuts), strict=True))
    expected = bits(collect(network, plain, mse))
    assert bits(collect(network, from_dask(x, y), mse)) == expected
    assert bits(collect(network, from_dask(x, y), mse, executor=client)) == expected
    kept = client.persist(x), client.persist(y)
    assert bits(collect(network, from_dask(*kept), mse, executor=client)) == expected


def test_partitions_may_be_frames(network, client):
    shards = [DaskShard(delayed(pd.DataFrame(x)), delayed(pd.DataFrame(y))) for x, y in SHARDS]
    contiguous = [tuple(np.asarray(pd.DataFrame(part)) for part in shard) for shard in SHARDS]
    expected = bits(collect(network, contiguous, mse))
    assert bits(collect(network, shards, mse)) == expected
    assert bits(collect(network, shards, mse, executor=client)) == expected


def test_chunks_that_do_not_meet_are_refused():
    x, y = da.zeros((20, 4), chunks=(5, 4)), da.zeros((20, 2), chunks=(5, 2))
    with pytest.raises(TypeError, match="x is a ndarray, expected a Dask array, frame or series"):
        from_dask(np.zeros((20, 4)), y)
    with pytest.raises(ShapeError, match=re.escape("x is chunked along several axes; call x.rechunk({1: -1})")):
        from_dask(x.rechunk((5, 2)), y)
    with pytest.raises(GrowthError, match="x has 4 chunks, y has 2; chunk both at the same samples"):
        from_dask(x, y.rechunk((10, 2)))
    with pytest.raises(ShapeError, match=re.escape("chunked at different samples; call y.rechunk({0: x.chunks[0]})")):
        from_dask(x, y.rechunk(((5, 5, 6, 4), 2)))


@pytest.mark.parametrize("where", ["here", "cluster"])
def test_a_shard_that_does_not_fit_is_named_by_its_number(network, client, where):
    executor = client if where == "cluster" else None
    for bad, error, message in (
        ((X[:0], TARGET[:0]), GrowthError, "a shard has no samples; omit it"),
        ((X[:, :3], TARGET), ShapeError, "3"),
        (lambda: X, TypeError, "a shard must be a pair"),
        (lambda: np.load("nowhere"), FileNotFoundError, "nowhere"),
    ):
        with pytest.raises(error, match=message) as caught:
            collect(network, [*SHARDS[:4], bad, *SHARDS[5:]], mse, executor=executor)
        assert caught.value.__notes__ == ["in shard 4"]


def test_what_waits_is_cancelled_if_a_shard_fails(network):
    begun, go = [], threading.Event()

    def shard(index):
        def load():
            begun.append(index)
            if index == 1:
                raise OSError("unreadable")
            if index > 1:
                go.wait(10)
            return SHARDS[index]

        return load

    with ThreadPoolExecutor(2) as pool:
        with pytest.raises(OSError, match="unreadable"):
            collect(network, [shard(index) for index in range(23)], mse, executor=pool)
        go.set()
    assert max(begun) < 6


def test_what_cannot_work_is_refused_before_anything_runs(network):
    def never():
        raise AssertionError("loaded")

    for options, error, message in (
        ({"executor": 2}, TypeError, "executor is a int, expected None, an executor of concurrent.futures"),
        ({"split_every": 1}, ValueError, "split_every must be at least 2, found 1"),
        ({"precise": 0.0}, ValueError, "precise must be positive, found 0.0"),
    ):
        with pytest.raises(error, match=message):
            collect(network, [never], mse, **options)
    with pytest.raises(GrowthError, match="there are no shards"):
        collect(network, [], mse)
    with pytest.raises(TypeError, match="expected a GrowingNetwork"):
        collect(np.zeros(3), [never], mse)


def test_a_client_that_is_closed_is_refused(network, client):
    other = Client(client.scheduler.address)
    other.close()
    with pytest.raises(GrowthError, match="the Dask client is closed; pass one that is connected"):
        collect(network, SHARDS, mse, executor=other)


def test_an_asynchronous_client_is_refused(network, client):
    async def ask():
        async with Client(client.scheduler.address, asynchronous=True) as other:
            collect(network, SHARDS, mse, executor=other)

    with pytest.raises(GrowthError, match="the Dask client is asynchronous"):
        asyncio.run(ask())
