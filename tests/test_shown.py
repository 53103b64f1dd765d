"""What a session shows of the main objects: one line or a table, never an address or the numbers of an array."""

from __future__ import annotations

import numpy as np
import pytest

import growarray
from growarray.compression import compress
from growarray.growing import TINY, GrowthUpdate, LinearGrowingModule, Stream
from growarray.networks import Batches, GrowingMLP, Growth, GrowthSettings
from growarray.nn import Linear, Sequential
from growarray.optim import SGD, AdamW


def test_a_run_its_optimizer_and_its_history() -> None:
    x = np.random.default_rng(0).standard_normal((40, 3)).astype("float32")
    network = GrowingMLP(3, 2, 1, rng=np.random.default_rng(0))
    loop = Growth(network, AdamW(network, lr=0.01), (x, (x[:, 0] > 0).astype(np.int64)), settings=GrowthSettings(2))
    assert repr(loop) == "Growth(GrowingMLP, widths=[1], epoch=0, epochs=2, growths=0)"
    assert repr(loop.optimizer).startswith("AdamW(lr=0.01, betas=(0.9, 0.999), eps=1e-08, weight_decay=")
    assert repr(loop.optimizer).endswith(", parameters=4)")
    loop.history.add("train", epoch=1, train_loss=0.5)
    assert repr(loop.history) == "History(epochs=1, growths=0)"
    assert str(loop.history).splitlines()[1].split() == [
        "event", "where", "epoch", "train", "loss", "validation", "loss", "validation", "score", "parameters",
    ]  # fmt: skip
    assert repr(SGD(network, 0.1)).startswith("SGD(lr=0.1, momentum=")


def test_statistics_and_what_is_planned_of_them() -> None:
    rng = np.random.default_rng(0)
    first = LinearGrowingModule(3, 2, rng=rng, dtype=np.float64)
    second = LinearGrowingModule(2, 1, previous_module=first, rng=rng, dtype=np.float64)
    second.init_computation()
    x = rng.standard_normal((20, 3))
    (_, back), (y, back_second) = first.vjp(x), second.vjp(first(x))
    back(back_second(y - x[:, :1]))
    second.update_computation()
    second.compute_optimal_updates(TINY, max_new=1)
    assert repr(second.statistics) == "LayerStatistics(samples: S 20, M 20, M_prev 20, P 20, E 20)"
    assert repr(second.update).startswith("GrowthUpdate(deltas=(Linear(2, 1, bias=True),), input_extension=Linear(1, 1")
    assert "singular_values=ndarray of float64 and shape (1,)" in repr(second.update)
    assert repr(GrowthUpdate()) == "GrowthUpdate()"
    assert repr(Stream(x, bias=True)) == "Stream(array=ndarray of float64 and shape (20, 3), bias=True)"


def test_batches_and_a_compressed_network() -> None:
    assert repr(Batches(np.zeros((5, 3)), np.zeros(5), 2)) == (
        "Batches(samples=5, size=2, shuffle=True, seed=0, shift=0, flip=False, crop=None)"
    )
    found = compress(Sequential(Linear(20, 20)), 0.5)
    assert repr(found) == str(found)


@pytest.mark.parametrize("module", [growarray, growarray.checkpoint])
def test_completion_offers_public_names_alone(module: object) -> None:
    assert [name for name in dir(module) if not name.startswith("__")] == [
        name for name in sorted(module.__all__) if not name.startswith("__")  # type: ignore[attr-defined]
    ]  # fmt: skip
