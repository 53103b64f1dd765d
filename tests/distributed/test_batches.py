"""Data larger than memory, in the loop and in the estimators: chunks are batches, one at a time."""

from __future__ import annotations

import re
import threading
import weakref
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from dask import delayed

from growarray.distributed import from_dask
from growarray.distributed.shards import DaskShard
from growarray.errors import GrowthError
from growarray.networks import Batches, GrowingMLP, Growth, GrowthSettings
from growarray.optim import Adam
from growarray.sklearn import GrowingClassifier, GrowingRegressor

RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, 4))
LABELS = (X[:, 0] * X[:, 1] > 0).astype(np.int64)
HELD_OUT = X[:80], LABELS[:80]
PARTS = [(X[i : i + 40], LABELS[i : i + 40]) for i in range(80, 400, 40)]


class Counted:
    """Chunks that are made when they are asked for, and counted while they live."""

    def __init__(self) -> None:
        self.alive, self.most, self.made, self.lock = 0, 0, 0, threading.Lock()

    def chunk(self, start: int) -> np.ndarray:
        chunk = X[start : start + 40].copy()
        with self.lock:
            self.alive, self.made = self.alive + 1, self.made + 1
            self.most = max(self.most, self.alive)
        weakref.finalize(chunk, self.gone)
        return chunk

    def gone(self) -> None:
        with self.lock:
            self.alive -= 1

    def array(self) -> Any:
        parts = [da.from_delayed(delayed(self.chunk)(i), (40, 4), X.dtype) for i in range(80, 400, 40)]
        return da.concatenate(parts)


def loop(data: Any) -> Growth:
    network = GrowingMLP(4, 2, 2, dtype=np.float64, rng=np.random.default_rng(1))
    settings = GrowthSettings(epochs=3, every=1, first=1, neurons=2)
    rng = np.random.default_rng(0)
    return Growth(network, Adam(network, lr=1e-2), data, validation=HELD_OUT, settings=settings, rng=rng)


def test_chunks_of_dask_train_as_the_same_batches_and_one_is_in_memory() -> None:
    counted = Counted()
    found = loop(from_dask(counted.array(), da.from_array(LABELS[80:], chunks=40)))
    found.run()
    expected = loop(PARTS)
    assert found.history.steps == expected.run().steps
    assert found.network.widths[0] > 2
    assert counted.made >= 8 * 3
    assert counted.most <= 2  # the one that is used, and the next one while it is made
    assert counted.alive <= 1


def test_partitions_of_frames_train_as_the_same_batches() -> None:
    shards = [DaskShard(delayed(pd.DataFrame(x)), delayed(pd.Series(y))) for x, y in PARTS]
    contiguous = [(np.asarray(pd.DataFrame(x)), y) for x, y in PARTS]
    assert loop(shards).run().steps == loop(contiguous).run().steps


def test_dask_arrays_in_place_of_arrays_are_refused_with_the_way_to_take_them() -> None:
    x, y = da.from_array(X, chunks=40), da.from_array(LABELS, chunks=40)
    with pytest.raises(TypeError, match=r"found tuple of Array, Array; growarray.distributed.from_dask\(x, target\)"):
        loop((x, y))
    broken = [*PARTS[:2], lambda: (np.full((3, 4), np.nan), np.zeros(3, np.int64))]
    with pytest.raises(GrowthError, match="the features of batch 2 of data: sample 0 holds NaN"):
        loop(broken)


def test_an_estimator_takes_chunks_one_at_a_time() -> None:
    counted = Counted()
    model = GrowingClassifier(max_iter=6, random_state=0)
    model.fit_batches(from_dask(counted.array(), da.from_array(LABELS[80:], chunks=40)), HELD_OUT)
    assert counted.most <= 2
    listed = GrowingClassifier(max_iter=6, random_state=0).fit_batches(PARTS, HELD_OUT)
    assert np.array_equal(model.predict_proba(X), listed.predict_proba(X))
    assert (model.n_features_in_, model.classes_.tolist(), model.n_iter_) == (4, [0, 1], 6)
    assert model._grown.widths[0] > 2
    assert model.score(X, LABELS) > 0.8


def test_chunks_without_names_go_with_a_frame_to_validate_on() -> None:
    frame = pd.DataFrame(HELD_OUT[0], columns=list("abcd"))
    model = GrowingClassifier(max_iter=2, random_state=0).fit_batches(
        PARTS, (frame, HELD_OUT[1])
    )  # warnings are errors
    assert model.feature_names_in_.tolist() == list("abcd")


def test_an_estimator_takes_files_that_numpy_maps(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", X[80:])
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for kind, y in ((GrowingClassifier, LABELS), (GrowingRegressor, np.sin(X[:, 0]))):
        held_out = X[:80], y[:80]
        found, expected = (
            kind(max_iter=4, random_state=0).fit_batches(Batches(x, y[80:], 40), held_out) for x in (mapped, X[80:])
        )
        assert np.array_equal(found.predict(X), expected.predict(X))
        assert np.array_equal(kind(max_iter=2, random_state=0).fit(mapped, y[80:]).predict(X[:9]),
                              kind(max_iter=2, random_state=0).fit(X[80:], y[80:]).predict(X[:9]))  # fmt: skip
    # the last of 4 x 8 steps along a cosine
    assert found._optimizer.lr == pytest.approx(1e-2 * (1 + np.cos(np.pi * 31 / 32)) / 2)


def test_batches_that_do_not_fit_are_refused() -> None:
    model = GrowingClassifier(max_iter=2, random_state=0)
    for batches, error, message in (
        (iter(PARTS), TypeError, "batches are used up after one epoch"),
        ([*PARTS, X], TypeError, "batch 8 is"),
        ([], GrowthError, "there are no training samples"),
        ([*PARTS, (X[:9, :3], LABELS[:9])], ValueError, "X has 3 features, but GrowingClassifier is expecting 4"),
        ([*PARTS, (X[:9], LABELS[:9] + 1)], ValueError, "y: found classes [1, 2], expected [0, 1]"),
        ([*PARTS, (X[:9], LABELS[:8])], ValueError, "inconsistent numbers of samples"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            model.fit_batches(batches, HELD_OUT)
