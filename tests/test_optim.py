"""Optimizers: one step by hand, state through growth, schedules, clipping, messages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growarray import nn
from growarray.backend import namespace, to_numpy
from growarray.nn.module import Parameter
from growarray.optim import SGD, Adam, AdamW, Optimizer, clip_gradients, constant, cosine, warm_up
from growarray.testing import assert_close
from tests.conftest import Library, frozen

START, GRADIENTS = np.array([1.0, -2.0, 3.0]), [np.array([0.5, -1.0, 2.0]), np.array([-0.3, 0.2, 1.0])]
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p: SGD(p, 0.1),
    "sgd-all": lambda p: SGD(p, 0.1, momentum=0.9, dampening=0.2, weight_decay=0.01),
    "sgd-nesterov": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, 0.1),
    "adam-all": lambda p: Adam(p, 0.1, (0.8, 0.9), 1e-6, 0.05, True),
    "adam-no-memory": lambda p: Adam(p, 0.1, (0.0, 0.0)),
    "adamw": lambda p: AdamW(p, 0.1, weight_decay=0.1, amsgrad=True),
}


def run(make: Callable[..., Optimizer], start: Any, gradients: list[Any]) -> Parameter:
    p = Parameter(start)
    optimizer = make([p])
    for gradient in gradients:
        optimizer.zero_grad()
        p.accumulate(gradient)
        optimizer.step()
    return p


def test_sgd_with_everything_is_torch_s_formula() -> None:
    p, b = START.copy(), np.zeros(3)
    for i, g in enumerate(GRADIENTS):
        d = g + 0.01 * p
        b = d if i == 0 else 0.9 * b + 0.8 * d
        p = p - 0.1 * b
    assert_close(run(OPTIMIZERS["sgd-all"], START, GRADIENTS).data, p, rtol=1e-14)


def test_adamw_with_amsgrad_is_torch_s_formula() -> None:
    p, m, v, largest = START.copy(), np.zeros(3), np.zeros(3), np.zeros(3)
    for t, g in enumerate(GRADIENTS, 1):
        p = p * (1 - 0.1 * 0.1)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        largest = np.maximum(largest, v)
        p = p - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(largest / (1 - 0.999**t)) + 1e-8)
    assert_close(run(OPTIMIZERS["adamw"], START, GRADIENTS).data, p, rtol=1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_library_gives_numpy_s_numbers_and_inputs_stay(name: str, xp: Library) -> None:
    start = xp.asarray(START)
    p = run(OPTIMIZERS[name], start, [xp.asarray(g) for g in GRADIENTS])
    assert_close(p.data, run(OPTIMIZERS[name], START, GRADIENTS).data, rtol=1e-14)
    assert np.array_equal(to_numpy(start), START)
    assert namespace(p.data, *[s for s in p.slots.values() if not isinstance(s, int)]) is namespace(start)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float32_stays_float32(name: str) -> None:
    p = run(OPTIMIZERS[name], frozen(START.astype(np.float32)), [g.astype(np.float32) for g in GRADIENTS])
    assert p.data.dtype == np.float32
    assert all(s.dtype == np.float32 for s in p.slots.values() if not isinstance(s, int))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_old_entries_go_on_after_growth_as_if_nothing_had_happened(name: str, xp: Library) -> None:
    p = Parameter(xp.asarray(START))
    optimizer = OPTIMIZERS[name]([p])
    p.accumulate(xp.asarray(GRADIENTS[0]))
    optimizer.step()
    p.extend(0, xp.asarray([7.0]))
    optimizer.zero_grad()
    p.accumulate(xp.asarray([*GRADIENTS[1], 0.4]))
    optimizer.step()
    assert_close(p.data[:3], run(OPTIMIZERS[name], START, GRADIENTS).data, rtol=1e-13)


@pytest.mark.parametrize("name", ["adam", "adam-all", "adamw"])
def test_new_entries_start_their_own_count_of_steps(name: str, xp: Library) -> None:
    p = Parameter(xp.asarray(START))
    optimizer = OPTIMIZERS[name]([p])
    for gradient in (GRADIENTS[0], GRADIENTS[1]):
        optimizer.zero_grad()
        p.accumulate(xp.asarray(gradient))
        optimizer.step()
    p.extend(0, xp.asarray([7.0]))
    optimizer.zero_grad()
    p.accumulate(xp.asarray([0.1, 0.1, 0.1, 0.4]))
    optimizer.step()
    fresh = run(OPTIMIZERS[name], np.array([7.0]), [np.array([0.4])])
    assert_close(p.data[3:], fresh.data, rtol=1e-13)
    assert to_numpy(p.slots["step"]).tolist() == [3.0, 3.0, 3.0, 1.0]


def test_parameters_without_gradient_are_left_alone() -> None:
    p, q = Parameter(frozen(START)), Parameter(frozen(START))
    p.accumulate(GRADIENTS[0])
    Adam([p, q], lr=0.1, weight_decay=0.5).step()
    assert q.data.tolist() == START.tolist()
    assert q.slots == {}
    assert not np.array_equal(p.data, START)


def test_the_momentum_buffer_is_not_the_gradient() -> None:
    p = Parameter(frozen(START))
    p.accumulate(GRADIENTS[0])
    SGD([p], 0.1, momentum=0.9).step()
    assert not np.shares_memory(p.slots["momentum_buffer"], p.grad)


def test_a_module_is_asked_at_every_step_and_lr_may_be_set() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False, dtype=np.float64))
    optimizer = SGD(net, lr=1.0)
    net.layers.append(nn.Linear(2, 1, bias=False, dtype=np.float64))
    added = net.layers[1].parameters()[0]
    before = added.data
    added.accumulate(np.ones((1, 2)))
    optimizer.lr = np.float64(0.25)
    optimizer.step()
    assert_close(added.data, before - 0.25)
    optimizer.zero_grad()
    assert added.grad is None


def test_a_shared_parameter_moves_once() -> None:
    p = Parameter(frozen(START))
    p.accumulate(np.ones(3))
    SGD([p, p], lr=1.0).step()
    assert_close(p.data, START - 1.0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        pytest.param(lambda p: SGD(p, -1.0), ValueError, "SGD: lr must not be negative, found -1.0", id="lr"),
        pytest.param(lambda p: SGD(p, float("nan")), ValueError, "lr must not be negative, found nan", id="lr-nan"),
        pytest.param(lambda p: SGD(p, "a"), TypeError, "SGD: lr must be a number, found 'a'", id="lr-text"),
        pytest.param(lambda p: SGD(p[0], 0.1), TypeError, r"found one Parameter; write \[parameter\]", id="one"),
        pytest.param(lambda p: Adam(p, betas=(0.9,)), ValueError, "betas must be a pair", id="betas"),
        pytest.param(lambda p: Adam(p, betas=0.9), ValueError, r"betas must be a pair.*found 0\.9", id="betas-number"),
        pytest.param(lambda p: SGD(p, 1.0, momentum=-0.1), ValueError, "momentum must not be negative", id="momentum"),
        pytest.param(lambda p: SGD(p, 1.0, nesterov=True), ValueError, "nesterov needs momentum > 0", id="nesterov"),
        pytest.param(lambda p: SGD(p, 1.0, 0.9, 0.1, nesterov=True), ValueError, "no dampening", id="dampening"),
        pytest.param(lambda p: Adam(p, betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be at least 0", id="beta"),
        pytest.param(lambda p: Adam(p, eps=-1.0), ValueError, "Adam: eps must not be negative", id="eps"),
        pytest.param(lambda p: AdamW(p, weight_decay=-1.0), ValueError, "AdamW: weight_decay", id="weight-decay"),
        pytest.param(lambda p: SGD([], 0.1), ValueError, "there are no parameters to optimise", id="empty"),
        pytest.param(
            lambda p: SGD([p[0].data], 0.1), TypeError, "expected Parameters or a Module, found ndarray", id="type"
        ),
    ],
)
def test_wrong_options_are_refused(make: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make([Parameter(START)])


@settings(max_examples=30, deadline=None)
@given(lr=st.floats(1e-4, 1.0), final=st.floats(0.0, 1e-4), steps=st.integers(1, 50))
def test_cosine_falls_from_lr_to_final(lr: float, final: float, steps: int) -> None:
    schedule = cosine(lr, steps, final)
    rates = [schedule(step) for step in range(steps + 3)]
    assert rates[0] == pytest.approx(lr)
    assert rates[steps:] == pytest.approx([final] * 3)
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert schedule(steps // 2) + schedule(steps - steps // 2) == pytest.approx(lr + final)


def test_warm_up_rises_to_the_schedule_and_then_follows_it() -> None:
    inner = cosine(1.0, 10)
    rising = warm_up(inner, 4)
    assert [rising(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [rising(step) for step in range(4, 9)] == [inner(step) for step in range(5)]
    assert warm_up(constant(0.5), 0)(0) == 0.5
    with pytest.raises(ValueError, match="cosine: steps must be at least 1, found 0"):
        cosine(1.0, 0)
    with pytest.raises(ValueError, match="warm_up: steps must not be negative"):
        warm_up(inner, -1)


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), max_norm=st.floats(0.0, 1e3))
def test_clipping_bounds_the_norm_of_all_gradients_together(values: list[float], max_norm: float) -> None:
    parameters = [Parameter(np.zeros(1)) for _ in values]
    for p, value in zip(parameters, values, strict=True):
        p.accumulate(frozen([value]))
    norm = math.sqrt(sum(v * v for v in values))
    assert clip_gradients(parameters, max_norm) == pytest.approx(norm)
    after = np.array([p.grad[0] for p in parameters if p.grad is not None])
    assert np.linalg.norm(after) <= max_norm * (1 + 1e-12)
    assert_close(after, np.array(values) * min(1.0, max_norm / (norm + 1e-6)), rtol=1e-12)


def test_clipping_passes_over_missing_gradients_and_counts_shared_ones_once(xp: Library) -> None:
    p, q = Parameter(xp.asarray(np.zeros((2, 2), np.float32))), Parameter(xp.asarray(START))
    assert clip_gradients([p, q], 1.0) == 0.0
    p.accumulate(xp.asarray(np.full((2, 2), 2.0, np.float32)))
    assert float(clip_gradients([p, p, q], 1.0)) == pytest.approx(4.0)
    assert_close(p.grad, np.full((2, 2), 0.5), rtol=1e-6)
    assert p.grad is not None
    assert p.grad.dtype == p.data.dtype
    assert q.grad is None
    with pytest.raises(ValueError, match="max_norm must not be negative"):
        clip_gradients([p], -1.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_lowers_a_loss(name: str) -> None:
    p = Parameter(np.array([3.0, -2.0]))
    optimizer = OPTIMIZERS[name]([p])
    for _ in range(200):
        optimizer.zero_grad()
        p.accumulate(2.0 * p.data)
        optimizer.step()
    assert float(np.sum(p.data**2)) < 0.05
