"""Optimizers whose parameters lie on a GPU: one launch, and the numbers of NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.errors import DeviceError
from growarray.nn.module import Parameter
from growarray.optim import SGD, Adam, AdamW, clip_gradients
from tests.cuda import nvrtc
from tests.cuda.device import Cuda, cuda

__all__ = ["cuda"]

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.1, weight_decay=0.1, betas=(0.8, 0.9)),
    "amsgrad": lambda p: Adam(p, lr=0.1, amsgrad=True),
    "adamw": lambda p: AdamW(p, lr=0.1, weight_decay=0.1),
}
SHAPES = [(3, 4), (5,), (), (300, 2)]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_one_launch_moves_all_parameters_as_numpy_does(cuda: Cuda, make: Callable[[Any], Any], dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    here, there = [Parameter(v.copy()) for v in values], [Parameter(cuda.array(v.copy())) for v in values]
    ours, theirs = make(here), make(there)
    first = [p.data for p in there]
    for step in range(3):
        ours.lr = theirs.lr = 0.1 / (step + 1)
        for p, q in zip(here, there, strict=True):
            p.grad = rng.standard_normal(p.shape).astype(dtype)
            q.grad = cuda.array(p.grad)
        ours.step()
        theirs.step()
    assert len(cuda.launches) == 3
    tolerance = 50 * np.finfo(dtype).eps
    for p, q, old, value in zip(here, there, first, values, strict=True):
        np.testing.assert_allclose(to_numpy(q.data), p.data, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(to_numpy(old), value)  # replaced, not changed in place
        assert p.slots.keys() == q.slots.keys()
        for name, slot in p.slots.items():
            np.testing.assert_allclose(to_numpy(q.slots[name]), slot, rtol=tolerance, atol=tolerance)
    if nvrtc.LIBRARY is not None:
        assert all(".entry growarray(" in nvrtc.compiled(text) for text in cuda.texts)


def test_a_parameter_that_has_grown_counts_steps_by_entry(cuda: Cuda) -> None:
    p = Parameter(cuda.array(np.ones(2)))
    p.grad = cuda.array(np.ones(2))
    optimizer = Adam([p], lr=0.5, eps=0.0)
    optimizer.step()
    p.extend(0, cuda.array(np.ones(1)))
    p.grad = cuda.array(np.ones(3))
    optimizer.step()
    np.testing.assert_allclose(to_numpy(p.data), [0.0, 0.0, 0.5], atol=1e-12)
    assert to_numpy(p.slots["step"]).tolist() == [2.0, 2.0, 1.0]
    assert (len(cuda.launches), cuda.waits) == (2, ["get", "get"])


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1), lambda p: SGD(p, lr=0.1, momentum=0.5), Adam])
def test_without_weight_decay_an_infinite_weight_stays(cuda: Cuda, make: Callable[[Any], Any]) -> None:
    p = Parameter(cuda.array(np.array([np.inf, 1.0])))
    p.grad = cuda.array(np.ones(2))
    make([p]).step()
    assert np.isposinf(to_numpy(p.data)).tolist() == [True, False]


def test_a_subclass_keeps_its_own_update(cuda: Cuda) -> None:
    class Halved(SGD):
        def update(self, parameter: Parameter, gradient: Any, lr: float) -> Any:
            return parameter.data - lr / 2 * gradient

    p = Parameter(cuda.array(np.ones(2)))
    p.grad = cuda.array(np.ones(2))
    Halved([p], lr=1.0).step()
    assert to_numpy(p.data).tolist() == [0.5, 0.5]
    assert cuda.launches == []


@pytest.mark.parametrize("make", [OPTIMIZERS["sgd"], OPTIMIZERS["adamw"]], ids=["sgd", "adamw"])
def test_parameters_of_a_resnet_take_one_launch_and_one_copy_of_their_table(cuda: Cuda, make: Any) -> None:
    sizes = np.random.default_rng(0).integers(1, 3000, 62)
    pairs = [(Parameter(np.arange(n) * 1.0), Parameter(cuda.array(np.arange(n) * 1.0))) for n in sizes]
    for p, q in pairs:
        p.grad, q.grad = np.cos(p.data), cuda.array(np.cos(p.data))
    make([p for p, _ in pairs]).step()
    make([q for _, q in pairs]).step()
    for p, q in pairs:
        np.testing.assert_allclose(to_numpy(q.data), p.data, rtol=1e-14)
    assert (len(cuda.launches), len(cuda.uploads), cuda.operations) == (1, 1, [])


@pytest.mark.parametrize("most", [0.5, 1e9, 0.0])
def test_gradients_are_cut_without_a_wait(cuda: Cuda, most: float) -> None:
    rng = np.random.default_rng(0)
    here = [Parameter(np.zeros(shape, np.float32)) for shape in [(3, 4), (5,), (), (3000,)]]
    there = [Parameter(cuda.array(p.data)) for p in here]
    for p, q in zip(here, there, strict=True):
        p.grad = rng.standard_normal(p.shape, np.float32)
        q.grad = cuda.array(p.grad.T.copy().T)
    norm, found = clip_gradients(here, most), clip_gradients(there, most)
    assert (len(cuda.launches), cuda.waits) == (3, [])
    np.testing.assert_allclose(float(found), norm, rtol=1e-12)
    for p, q in zip(here, there, strict=True):
        np.testing.assert_allclose(to_numpy(q.grad), p.grad, rtol=1e-6)
        assert q.grad.shape == q.shape


def test_a_norm_that_is_no_number_spoils_all_gradients(cuda: Cuda) -> None:
    there = [Parameter(cuda.array(np.zeros(2))) for _ in range(2)]
    there[0].grad, there[1].grad = cuda.array(np.array([np.nan, 1.0])), cuda.array(np.ones(2))
    assert np.isnan(float(clip_gradients(there, 1.0)))
    assert np.isnan(to_numpy(there[1].grad)).all()


def test_without_memory_for_all_parameters_none_is_moved(cuda: Cuda) -> None:
    small, large = Parameter(cuda.array(np.zeros(2))), Parameter(cuda.array(np.zeros(99, np.float32)))
    for p in (small, large):
        p.grad = cuda.array(np.ones(p.shape, p.data.dtype))
    cuda.room = 500
    with pytest.raises(DeviceError, match="the GPU has no 800 bytes left"):
        Adam([small, large], lr=1.0).step()
    assert (to_numpy(small.data).tolist(), small.slots, large.slots) == ([0.0, 0.0], {}, {})


def test_a_step_holds_five_arrays_a_parameter(cuda: Cuda) -> None:
    cuda.dry, p = True, Parameter(cuda.array(np.zeros(1 << 16, np.float32)))
    p.grad, optimizer = cuda.array(np.zeros(1 << 16, np.float32)), AdamW([p])
    optimizer.step()
    cuda.forget()
    optimizer.step()
    assert cuda.peak <= 5 * p.data.size * 4 + 1024  # data, gradient, two moments, and new data: no temporary array
