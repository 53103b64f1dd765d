"""Judging growth: what harms is undone bit for bit, the best network is kept, budgets come from the data."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from growarray.growing import GRADMAX, GrowingModule, MergeGrowingModule
from growarray.growing.norm import GrowingBatchNorm1d
from growarray.networks import GrowingMLP, Judgement, Snapshot, default_budget
from growarray.nn import ReLU, Sequential, Tanh
from tests.networks.runs import KINDS, VALIDATION, X, assert_same, loop, network, weights

pytestmark = pytest.mark.filterwarnings("ignore:optimal_delta. S is singular")
NOISE = np.random.default_rng(8)
TARGET, HELD = NOISE.standard_normal((200, 1)), NOISE.standard_normal((60, 1))  # nothing can be learnt of it


def slots(grown: Any) -> dict[str, np.ndarray]:
    return {f"{n}/{key}": np.asarray(v) for n, p in grown.named_parameters() for key, v in p.slots.items()}


def noise_run(kind: str = "mlp", **options: Any) -> Any:
    grown = network(kind, outputs=1)
    return loop(kind, task="regression", network=grown, data=(X, TARGET), validation=(VALIDATION, HELD), **options)


# Judging.


def test_a_rise_within_its_standard_error_is_chance() -> None:
    before = Judgement(1.0, 0.0, (1.0, 1.0, 1.0, 1.0))
    assert Judgement(1.1, 0.0, (1.1, 1.1, 1.1, 1.1)).is_worse(before)
    spread = Judgement(1.1, 0.0, (1.5, 0.9, 0.8, 1.2))  # differences 0.5, -0.1, -0.2, 0.2: 0.1 with error 0.158
    assert not spread.is_worse(before)
    assert spread.is_worse(before, gain=0.1)
    assert Judgement(float("nan"), 0.0, (float("nan"),) * 4).is_worse(before)
    assert not before.is_worse(before)
    assert before.is_worse(before, gain=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_growth_that_harms_is_undone_bit_for_bit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = noise_run(kind, epochs=6, patience=2)
    run.train_epoch()
    before, kept, widths = weights(run.network), slots(run.network), list(run.network.widths)
    monkeypatch.setattr(Judgement, "is_worse", lambda *_: True)
    entry = run.grow()
    assert (entry["undone"], entry["added"], run.growths, run.failures) == (True, 0, 0, 1)
    assert entry["refused"].startswith("it ")
    assert f"-> {entry['refused'].split('-> ')[1]}" in entry["refused"]
    assert run.network.widths == widths
    assert_same(weights(run.network), before)
    assert_same(slots(run.network), kept)
    assert run.best.epoch == 1
    assert run.best.widths == widths
    assert run.best.judgement.loss == run.history.of("train")[0]["validation_loss"]
    run.train_epoch()  # and the run goes on


def test_several_growths_in_a_row_that_fail_end_growing_and_bring_the_best_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = noise_run(epochs=9, patience=3)
    monkeypatch.setattr(Judgement, "is_worse", lambda *_: True)
    history = run.run()
    assert [entry["epoch"] for entry in history.of("growth")] == [1, 2, 3]
    growing, training = history.of("stop")
    assert (growing["what"], growing["epoch"]) == ("growing", 3)
    assert growing["reason"] == "3 growths in a row came to nothing"
    assert (training["what"], training["epoch"], training["reason"]) == ("training", 9, "epoch 9 is the last")
    losses = [entry["validation_loss"] for entry in history.of("train")]
    assert training["kept"] == 1 + int(np.argmin(losses))
    assert training["validation_loss"] == min(losses) == run.evaluate(run.validation)[0]


def test_a_gain_that_is_demanded_for_each_parameter_is() -> None:
    run = loop(least_gain=10.0, epochs=4)
    assert all(entry["undone"] for entry in run.run().of("growth"))
    assert "it hardly lowered the training loss" in run.history.of("growth")[0]["refused"]
    assert run.network.widths == [2, 2]


def test_growth_that_changes_nothing_at_once_is_not_undone() -> None:
    run = loop(rule=GRADMAX, epochs=5)
    assert all("undone" not in entry for entry in run.run().of("growth"))
    assert run.growths == 4


# The best network.


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_network_is_back_at_the_end_smaller_than_the_last(kind: str) -> None:
    seen: list[tuple[float, list[int], dict[str, np.ndarray]]] = []

    def keep(run: Any, entry: dict[str, Any]) -> None:
        if "validation_loss" in entry and entry["event"] != "stop":
            seen.append((entry["validation_loss"], entry["widths"], weights(run.network)))

    run = loop(
        kind, epochs=6, patience=None, schedule=lambda step: 1e-2 if step < 14 else 0.8, callbacks=[keep]
    )  # from the third epoch on steps are far too long
    history = run.run()
    best = min(seen, key=lambda one: one[0])
    assert best[0] < seen[-1][0]
    assert_same(weights(run.network), best[2])
    assert run.network.widths == best[1] == history.steps[-1]["widths"]
    assert sum(run.network.widths) < sum(seen[-1][1])
    assert run.evaluate(run.validation)[0] == best[0] == history.of("stop")[-1]["validation_loss"]


def test_keep_best_can_be_left_out() -> None:
    run = loop(epochs=4, schedule=lambda step: 1e-2 if step < 14 else 0.8, keep_best=False)
    history = run.run()
    assert run.best is None
    assert history.of("stop")[-1]["kept"] == 4
    assert run.evaluate(run.validation)[0] == history.of("train")[-1]["validation_loss"]


def batch_normalised() -> Any:
    norm = Sequential(GrowingBatchNorm1d(2, dtype=np.float64), Tanh())
    return GrowingMLP(4, 2, 2, activation=norm, dtype=np.float64, rng=np.random.default_rng(1))


@pytest.mark.parametrize("make", [network, lambda: network("residual"), batch_normalised], ids=["mlp", "merge", "norm"])
def test_a_snapshot_brings_widths_weights_statistics_and_slots_back(make: Any) -> None:
    run = loop(network=make(), epochs=6, patience=None)
    run.run(until=2)
    before, y, widths = Snapshot.of(run.network), run.evaluate(run.data), list(run.network.widths)
    kept, state = slots(run.network), run.network.state_dict()
    run.run(until=5)
    assert sum(run.network.widths) > sum(widths)
    before.restore(run.network)
    assert run.network.widths == widths
    assert run.evaluate(run.data) == y
    assert_same(slots(run.network), kept)
    assert_same(run.network.state_dict(), state)
    run.run()  # trains and grows on
    assert np.isfinite(run.evaluate(run.data)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_going_back_starts_statistics_anew_and_forgets_every_plan(kind: str) -> None:
    run = loop(kind)
    before = Snapshot.of(run.network)
    run.planner.collect(run.data)
    run.network.compute_optimal_updates(max_new=1)
    growing = [m for m in run.network.modules() if isinstance(m, GrowingModule | MergeGrowingModule)]
    collected = [[statistic.samples for statistic in module.statistics.all] for module in growing]
    assert all(
        any(samples) for module, samples in zip(growing, collected, strict=True) if module in run.network.growing_layers
    )
    before.restore(run.network)
    assert not any(statistic.samples for module in growing for statistic in module.statistics.all)
    assert not any(module.new_neurons for module in run.network.growing_layers)


def test_a_snapshot_fits_another_network_of_the_same_modules() -> None:
    run = loop("residual", epochs=4)
    run.run()
    other = network("residual")
    Snapshot.of(run.network).restore(other)
    assert_same(weights(other), weights(run.network))
    np.testing.assert_array_equal(other(X), run.network(X))


def test_the_state_with_its_best_is_gone_on_from_after_growing_ended() -> None:
    whole = noise_run(epochs=8, patience=1)
    whole.run()
    first = noise_run(epochs=8, patience=1)
    first.run(until=5)
    state = json.loads(json.dumps(first.state()))
    second = noise_run(epochs=8, patience=1)
    Snapshot.of(first.network).restore(second.network)
    second.load_state(state, first.best)
    second.run()
    assert_same(weights(second.network), weights(whole.network))
    assert second.history.steps == whole.history.steps


# Budgets.


def test_the_budget_is_one_parameter_for_each_number_to_learn() -> None:
    assert loop().budget == 200 * 2
    assert loop(max_parameters=None).budget is None
    assert loop(max_parameters=77).budget == 77


def test_two_samples_do_not_grow_a_network_of_hundreds_of_parameters() -> None:
    grown = GrowingMLP(2, 2, 2, activation=ReLU(), dtype=np.float64, rng=np.random.default_rng(1))
    run = loop(network=grown, data=(X[:2, :2], np.array([0, 1])), epochs=40)
    run.run()
    assert run.budget == 12 + 2 * 5
    assert grown.number_of_parameters() <= 22


def test_a_wide_sample_leaves_room_for_one_growth() -> None:
    grown = GrowingMLP(1000, 2, 2, rng=np.random.default_rng(1))
    start = grown.number_of_parameters()
    assert default_budget(grown, np.zeros((50, 1000), np.float32), 8) == start + 8 * 1003


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_parameters": "all"}, "max_parameters must be a number, None or 'auto', found 'all'"),
        ({"least_gain": -1.0}, r"least_gain must be at least 0, found -1\.0"),
        ({"patience": 0}, "patience must be at least 1, found 0"),
    ],
    ids=str,
)
def test_settings_of_stopping_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loop(**options)
