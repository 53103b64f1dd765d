"""Training on CuPy, counted: a step waits for nothing, and a run gives the numbers of NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from growarray import nn, ops
from growarray.backend import to_host, to_numpy
from growarray.cuda import copy
from growarray.errors import GrowthError
from growarray.networks import GrowingMLP, Growth, GrowthSettings
from growarray.optim import AdamW, clip_gradients
from tests.cuda.device import Cuda, cuda

__all__ = ["cuda"]


def mlp() -> nn.Module:
    rng = np.random.default_rng(0)
    parts = (nn.Linear(6, 8, rng=rng), nn.ReLU(), nn.Dropout(0.5, rng), nn.Linear(8, 3, rng=rng))
    return nn.Sequential(*parts)


def cnn() -> nn.Module:
    rng = np.random.default_rng(0)
    first = (nn.Conv2d(2, 4, 3, padding=1, bias=False, rng=rng), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(4, 3, 3, padding=1, bias=False, rng=rng), nn.AvgPool2d(3), nn.Flatten())
    return nn.Sequential(*first, *second)


LINEAR = ["__matmul__"] * 5 + ["__iadd__", "sum"] * 2  # products and biases, forward and back
NETWORKS = {  # what makes it, its input, launches of a step, operations of CuPy; 8 are loss, clipping and AdamW
    "mlp": (mlp, (5, 6), 11, [*LINEAR, "__getitem__"]),
    "cnn": (cnn, (5, 2, 6, 6), 23, ["__add__", "__getitem__", "zeros"]),
}


def step(network: nn.Module, optimizer: Any, x: Any, labels: Any) -> Any:
    y, pullback = network.vjp(x)
    loss, back = ops.cross_entropy(y, labels)
    optimizer.zero_grad()
    pullback(back(), wrt_x=False)
    clip_gradients(network, 1.0)
    optimizer.step()
    return loss


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_waits_for_nothing(cuda: Cuda, name: str) -> None:
    make, shape, launches, operations = NETWORKS[name]
    here, there = make(), make()
    there.to(cuda.array(np.ones(1)))
    x = np.random.default_rng(1).standard_normal(shape).astype("float32")
    labels = np.arange(shape[0]) % 3
    optimizers = AdamW(here, lr=0.01), AdamW(there, lr=0.01)
    for _ in range(2):
        loss = step(here, optimizers[0], x, labels)
        clear(cuda)
        found = step(there, optimizers[1], cuda.array(x), cuda.array(labels))
        assert cuda.waits == []
        assert (len(cuda.launches), sorted(cuda.operations)) == (launches, sorted(operations))
        np.testing.assert_allclose(to_numpy(found), loss, rtol=1e-5)
    for key, value in here.state_dict().items():
        np.testing.assert_allclose(to_numpy(there.state_dict()[key]), value, rtol=1e-4, atol=1e-5)


def clear(cuda: Cuda) -> None:
    for log in (cuda.launches, cuda.operations, cuda.uploads, cuda.waits):
        log.clear()


def growth(place: Any, **options: Any) -> Growth:
    """A loop whose network and data ``place`` has put somewhere."""
    x = np.random.default_rng(0).standard_normal((40, 5)).astype("float32")
    network = GrowingMLP(5, 2, hidden_size=2, rng=np.random.default_rng(0))
    network.to(place(np.ones(1)))
    settings = GrowthSettings(epochs=3, first=1, neurons=2, batch_size=16, clip=1.0, **options)
    data = place(x), place((x[:, 0] > 0).astype(np.int64))
    return Growth(network, AdamW(network, lr=0.01), data, settings=settings, rng=np.random.default_rng(1))


def test_an_epoch_waits_once_and_a_plan_once_for_all_places(cuda: Cuda) -> None:
    here, there = growth(lambda x: x), growth(cuda.array)
    for _ in range(2):
        here.train_epoch()
        clear(cuda)
        there.train_epoch()
        assert cuda.waits == ["get"]  # losses, judgement and checks together
        assert "__pow__" not in cuda.operations  # parameters that grew are moved by kernels, too
        clear(cuda)
        there.planner.collect(there.data)
        assert cuda.waits == []
        there.network.compute_optimal_updates(there.planner.rule)
        assert cuda.waits == ["get"]  # means of all places, with the checks of labels
        there.network.reset_computation()
        rng = np.random.default_rng(2)
        here.rng = here.planner.rng = rng
        there.rng = there.planner.rng = np.random.default_rng(2)
        one, other = here.grow(), there.grow()
        assert (one["where"], one["added"], one["widths"]) == (other["where"], other["added"], other["widths"])
        np.testing.assert_allclose(other["promised"], one["promised"], rtol=1e-4)


def test_memory_of_an_epoch_is_that_of_one_batch(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.dry, rng = True, np.random.default_rng(0)
    x = cuda.array(rng.standard_normal((256, 5), dtype=np.float32))
    network = GrowingMLP(5, 2, hidden_size=50, number_hidden_layers=6, rng=rng).to(x)
    data, settings = (x, cuda.array(np.zeros(256, np.int64))), GrowthSettings(epochs=3, batch_size=64)
    loop, peaks = Growth(network, AdamW(network), data, settings=settings, rng=rng), []
    plain = loop.optimizer.step
    monkeypatch.setattr(loop.optimizer, "step", lambda: (plain(), peaks.append(cuda.peak)))
    loop.train_epoch()
    cuda.forget()
    loop.train_epoch()
    hidden = 4 * 64 * 50  # bytes of a hidden layer; the way back keeps six of them
    assert peaks[-1] - peaks[4] < hidden / 2


def test_a_loss_that_is_no_number_is_found_after_the_epoch_and_undone(cuda: Cuda) -> None:
    loop = growth(cuda.array)
    before = {name: to_numpy(value).copy() for name, value in loop.network.state_dict().items()}
    loop.optimizer.lr = math.nan
    with pytest.raises(GrowthError, match=r"epoch 1 is nan; .*; the weights are those before this epoch"):
        loop.train_epoch()
    for name, value in before.items():
        np.testing.assert_array_equal(to_numpy(loop.network.state_dict()[name]), value)


def test_a_statistic_that_is_spoilt_is_refused_when_it_is_planned_from(cuda: Cuda) -> None:
    loop = growth(cuda.array)
    loop.network.init_computation()
    x = np.ones((4, 5), np.float32)
    x[0, 0] = np.nan
    loop.network.collect_batch(cuda.array(x), cuda.array(np.zeros(4, np.int64)), loop.task.loss)
    with pytest.raises(GrowthError, match="holds NaN or infinite values"):
        loop.network.compute_optimal_updates()


def test_a_growth_waits_for_its_plan_its_trials_and_its_judgements(cuda: Cuda) -> None:
    loop = growth(cuda.array)
    loop.train_epoch()
    clear(cuda)
    loop.grow()
    trials = cuda.waits.count("__float__")
    assert cuda.waits == ["get", *["__float__"] * trials, "get"]
    assert 7 <= trials <= 20


def test_arrays_of_all_kinds_come_in_one_copy(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [np.arange(3.0), np.array(True), np.zeros((0, 2), "float16"), np.arange(6).reshape(2, 3).T, np.float32(2)]
    for most, copies in ((1 << 20, 1), (16, 3)):
        monkeypatch.setattr(copy, "_PACKED", most)
        clear(cuda)
        found = to_host([*map(cuda.array, arrays), 7.0])
        assert cuda.waits == ["get"] * copies
        for one, other in zip(found, [*arrays, 7.0], strict=True):
            np.testing.assert_array_equal(one, other, strict=True)


def test_what_another_stream_writes_is_waited_for(cuda: Cuda) -> None:
    cuda.stream = 5
    ops.cross_entropy(cuda.array(np.zeros((2, 3))), cuda.array(np.array([0, 3])))
    cuda.stream = 0
    clear(cuda)
    with pytest.raises(ValueError, match="label 3 is not one of the 3 classes"):
        to_numpy(cuda.array(np.ones(2)))
    assert cuda.waits == ["synchronize", "get"]
