"""The state of an optimizer: written, read back, and refused where it does not belong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.backend import asarray, namespace
from growarray.checkpoint import load_checkpoint, save_npz, save_safetensors
from growarray.errors import ShapeError
from growarray.optim import SGD, Adam, AdamW, Optimizer
from tests.conftest import Library
from tests.test_optim import OPTIMIZERS

WRITERS: dict[str, Callable[..., Any]] = {"safetensors": save_safetensors, "npz": save_npz}


def network(hidden: int = 4) -> nn.Sequential:
    rng = np.random.default_rng(0)
    return nn.Sequential(nn.Linear(3, hidden, rng=rng), nn.ReLU(), nn.Linear(hidden, 2, rng=rng))


def step(net: nn.Sequential, optimizer: Optimizer, seed: int) -> None:
    x = asarray(np.random.default_rng(seed).standard_normal((5, 3)), like=net.parameters()[0].data, dtype=None)
    xp = namespace(x)
    optimizer.zero_grad()
    y, pullback = net.vjp(xp.astype(x, net.parameters()[0].data.dtype))
    pullback(y)
    optimizer.step()


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("grown", [False, True], ids=["as_made", "grown"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_bit_for_bit_from_a_file(name: str, grown: bool, kind: str, tmp_path: Path) -> None:
    net = network()
    optimizer = OPTIMIZERS[name](net)
    step(net, optimizer, 0)
    if grown:  # each entry counts its own steps from here on
        net[0].weight.extend(0, np.ones((1, 3)))  # type: ignore[attr-defined]
        net[0].bias.extend(0, np.ones(1))  # type: ignore[attr-defined]
        net[2].weight.extend(1, np.ones((2, 1)))  # type: ignore[attr-defined]
    step(net, optimizer, 1)
    optimizer.lr = 0.05
    path = tmp_path / f"optimizer.{kind}"
    WRITERS[kind](optimizer.state_dict(), path)
    other = network(4 + int(grown))
    other.load_state_dict(net.state_dict())
    again = type(optimizer)(other, lr=1.0)
    again.load_state_dict(load_checkpoint(path, mmap=False))
    assert again.lr == 0.05
    assert {n: getattr(again, n) for n in again._options} == {n: getattr(optimizer, n) for n in again._options}
    for seed in (2, 3):
        step(net, optimizer, seed)
        step(other, again, seed)
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        np.testing.assert_array_equal(ours.data, theirs.data)
        assert ours.slots.keys() == theirs.slots.keys()
        assert all(type(ours.slots[key]) is type(value) for key, value in theirs.slots.items())


def test_names_are_those_of_the_module_or_places_in_the_list() -> None:
    net = network()
    optimizer = Adam(net)
    step(net, optimizer, 0)
    slots = ("exp_avg", "exp_avg_sq", "step")
    options = {"lr", "betas", "eps", "weight_decay", "amsgrad"}
    named = {f"{name}.{slot}" for name, _ in net.named_parameters() for slot in slots}
    assert set(optimizer.state_dict()) == named | options
    listed = Adam(net.parameters())
    assert set(listed.state_dict()) == {f"{place}.{slot}" for place in range(4) for slot in slots} | options


def test_a_state_of_other_libraries_arrays(xp: Library) -> None:
    net = xp.adopt(network())
    optimizer = SGD(net, 0.1, momentum=0.9)
    step(net, optimizer, 0)
    other = xp.adopt(network())
    again = SGD(other, 0.1)
    again.load_state_dict(optimizer.state_dict())
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        assert namespace(ours.slots["momentum_buffer"]) is namespace(theirs.data)


def test_what_is_handed_out_is_a_copy_and_what_was_kept_is_forgotten() -> None:
    net = network()
    optimizer = AdamW(net)
    fresh = optimizer.state_dict()
    step(net, optimizer, 0)
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    step(net, optimizer, 1)
    assert all(np.array_equal(state[name], kept[name]) for name in state)
    optimizer.load_state_dict(fresh)
    assert all(p.slots == {} for p in net.parameters())


def test_a_shared_parameter_is_named_once() -> None:
    layer = nn.Linear(2, 2)
    optimizer = SGD(nn.Sequential(layer, layer), 0.1, momentum=0.5)
    for parameter in layer.parameters():
        parameter.accumulate(np.ones(parameter.shape, np.float32))
    optimizer.step()
    assert {name for name in optimizer.state_dict() if "." in name} == {
        "0.weight.momentum_buffer",
        "0.bias.momentum_buffer",
    }


def broken(**changes: Any) -> dict[str, Any]:
    net = network()
    optimizer = Adam(net)
    step(net, optimizer, 0)
    state = {**optimizer.state_dict(), **changes}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"betas": None}, KeyError, "missing betas; expected the state of a Adam of this network"),
        ({"momentum": np.zeros(())}, KeyError, "unknown momentum"),
        ({"7.weight.exp_avg": np.zeros(2)}, KeyError, r"unknown 7\.weight\.exp_avg"),
        (
            {"0.weight.exp_avg": np.zeros((5, 3))},
            ShapeError,
            r"0\.weight\.exp_avg: found shape \(5, 3\), the parameter",
        ),
        ({"0.bias.exp_avg": np.zeros(4, complex)}, TypeError, r"0\.bias\.exp_avg: found ndarray of dtype complex128"),
        ({"0.bias.exp_avg": "many"}, TypeError, r"0\.bias\.exp_avg: found str of dtype <U4, expected real numbers"),
        ({"lr": np.zeros(2)}, ShapeError, r"lr: found shape \(2,\), expected \(\)"),
        ({"betas": np.zeros(3)}, ShapeError, r"betas: found shape \(3,\), expected \(2,\)"),
    ],
    ids=["option", "other_option", "parameter", "shape", "complex", "text", "lr", "betas"],
)
def test_what_does_not_belong_changes_nothing(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    net = network()
    optimizer = Adam(net, lr=0.25)
    step(net, optimizer, 5)
    before = optimizer.state_dict()
    with pytest.raises(error, match=r"Adam.load_state_dict: " + message):
        optimizer.load_state_dict(broken(**changes))
    after = optimizer.state_dict()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
