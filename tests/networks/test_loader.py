"""Training data in batches: drawn anew in every epoch, images moved, from disk; and the loop that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.errors import GrowthError, ShapeError
from growarray.networks import Batches, GrowingMLP, Growth, GrowthSettings
from growarray.nn import Tanh
from growarray.optim import Adam
from tests.conftest import Library
from tests.networks.runs import LABELS, VALIDATION, X

IMAGES = np.arange(1.0, 1.0 + 7 * 2 * 4 * 5).reshape(7, 2, 4, 5)
HELD_OUT = (VALIDATION, (VALIDATION[:, 0] * VALIDATION[:, 1] > 0).astype(np.int64))


def all_of(batches: Any) -> tuple[np.ndarray, np.ndarray]:
    x, target = zip(*batches, strict=True)
    return np.concatenate([to_numpy(part) for part in x]), np.concatenate([to_numpy(part) for part in target])


def test_every_epoch_has_another_order_and_a_seed_gives_it_again() -> None:
    data = Batches(X, np.arange(200), 32, seed=3)
    first, second = all_of(data)[1], all_of(data)[1]
    assert len(data) == 7
    assert sorted(first) == sorted(second) == list(range(200))
    assert not np.array_equal(first, second)
    again = Batches(X, np.arange(200), 32, seed=3)
    again.epoch = 1
    np.testing.assert_array_equal(all_of(again)[1], second)
    np.testing.assert_array_equal(all_of(data.plain())[1], np.arange(200))
    np.testing.assert_array_equal(all_of(Batches(X, np.arange(200), 32, shuffle=False))[1], np.arange(200))


def test_shifted_images_are_the_images_at_another_place(xp: Library) -> None:
    data = Batches(xp.asarray(IMAGES), xp.asarray(np.arange(7)), 3, shift=1, seed=1)
    bordered = np.pad(IMAGES, ((0, 0), (0, 0), (1, 1), (1, 1)))
    places = set()
    for _ in range(12):
        for image, index in zip(*all_of(data), strict=True):
            windows = {(i, j): bordered[index, :, i : i + 4, j : j + 5] for i in range(3) for j in range(3)}
            (place,) = (place for place, window in windows.items() if np.array_equal(window, image))
            places.add(place)
    assert len(places) == 9


def test_flipped_and_cropped_images(xp: Library) -> None:
    data = Batches(xp.asarray(IMAGES), xp.asarray(np.arange(7)), 7, flip=True, crop=(3, 4))
    turned = 0
    for _ in range(4):
        images, index = all_of(data)
        assert images.shape == (7, 2, 3, 4)
        for image, i in zip(images, index, strict=True):
            windows = [IMAGES[i, :, a : a + 3, b : b + 4] for a in range(2) for b in range(2)]
            straight = sum(np.array_equal(w, image) for w in windows)
            turned += sum(np.array_equal(w[..., ::-1], image) for w in windows)
            assert straight + sum(np.array_equal(w[..., ::-1], image) for w in windows) == 1
    assert 7 < turned < 21
    np.testing.assert_array_equal(all_of(data.plain())[0], IMAGES[:, :, 0:3, 0:4])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": np.zeros(3)}, ShapeError, "7 samples, 3 targets"),
        ({"size": 0}, ValueError, "size"),
        ({"shift": -1}, ValueError, "shift"),
        ({"crop": (5, 5)}, ValueError, r"crop is \(5, 5\), expected \(h, w\) within \(4, 5\)"),
        ({"crop": (4,)}, ValueError, "crop is"),
        ({"x": np.zeros((7, 3)), "flip": True}, ShapeError, r"shape \(7, 3\), images need \(n, c, h, w\)"),
    ],
    ids=["number", "size", "shift", "crop", "crop of one axis", "no images"],
)
def test_bad_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Batches(**{"x": IMAGES, "target": np.arange(7), **options})


def loop(data: Any, **options: Any) -> Growth:
    network = GrowingMLP(4, 2, (2, 2), activation=Tanh(), dtype=np.float64, rng=np.random.default_rng(1))
    settings = GrowthSettings(**{"epochs": 4, "every": 1, "first": 1, "neurons": 2, **options})
    rng = np.random.default_rng(0)
    return Growth(network, Adam(network, lr=1e-2), data, validation=HELD_OUT, settings=settings, rng=rng)


def test_a_list_of_batches_trains_as_the_same_batches_of_arrays() -> None:
    parts = [(X[i : i + 40], LABELS[i : i + 40]) for i in range(0, 200, 40)]
    whole, found = loop((X, LABELS)), loop(parts)
    assert found.budget == whole.budget
    entry = found.train_epoch()
    assert found.steps == 5
    assert entry["train_loss"] > 0.0
    np.testing.assert_allclose(found.evaluate(parts), found.evaluate((X, LABELS)), rtol=1e-12)


def test_the_loop_grows_on_batches_and_goes_on_to_the_last_bit() -> None:
    whole, first = (loop(Batches(X, LABELS, 32)) for _ in range(2))
    whole.run()
    first.run(until=2)
    again = loop(Batches(X, LABELS, 32))
    for network in (again.network,):
        state, widths = first.state(), first.network.widths
        network = GrowingMLP(4, 2, widths, activation=Tanh(), dtype=np.float64)
        network.load_state_dict(first.network.state_dict())
        optimizer = Adam(network, lr=1e-2)
        optimizer.load_state_dict(first.optimizer.state_dict())
        again.network = again.planner.network = network
        again.optimizer = optimizer
    again.load_state(state, first.best)
    again.run()
    assert whole.network.widths != [2, 2]
    assert again.history.steps == whole.history.steps
    assert whole.history.of("growth")[0]["samples"] == 200


def test_a_memory_map_trains_to_the_same_bits(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert loop((mapped, LABELS)).run().steps == loop((X, LABELS)).run().steps


def test_values_that_are_not_finite_are_found_in_any_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("growarray.networks.data._LOOKED_AT", 100)
    broken = X.copy()
    broken[173, 2] = np.nan
    with pytest.raises(GrowthError, match="the features of data: sample 173 holds NaN"):
        loop((broken, LABELS))
    with pytest.raises(GrowthError, match="the features of batch 1 of data: sample 73 holds NaN"):
        loop(Batches(broken, LABELS, 100, shuffle=False))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (lambda: iter([(X, LABELS)]), TypeError, "a generator is exhausted after one"),
        (lambda: [(X, LABELS), X], TypeError, "batch 1 of data is"),
        (lambda: [(X, LABELS[:3])], ShapeError, "batch 0 of data has 200 samples and 3 targets"),
        (list, GrowthError, "there are no training samples"),
        (lambda: None, TypeError, "data must be a pair"),
    ],
    ids=["generator", "no pair", "number", "empty", "none"],
)
def test_batches_that_cannot_be_trained_on_are_refused(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        loop(data())


def test_batches_need_validation_data() -> None:
    network = GrowingMLP(4, 2, 2)
    with pytest.raises(TypeError, match=r"pass validation=\(x, target\)"):
        Growth(network, Adam(network), Batches(X, LABELS))
