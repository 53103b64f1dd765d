"""Budgets of a growth run: parameters, FLOPs, number of growths; never exceeded, and used as far as they reach."""

from __future__ import annotations

import numpy as np
import pytest

from growarray.growing.norm import GrowingBatchNorm1d
from growarray.networks import GrowingMLP
from growarray.nn import Sequential, Tanh
from tests.networks.runs import KINDS, loop, network

pytestmark = pytest.mark.filterwarnings("ignore:optimal_delta. S is singular")  # two biased branches read one input


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", [0, 1, 9, 37])
def test_the_budget_of_parameters_is_never_exceeded(extra: int, kind: str) -> None:
    start = network(kind).number_of_parameters()
    seen = []
    run = loop(
        kind,
        max_parameters=start + extra,
        epochs=8,
        neurons=3,
        callbacks=[lambda run, entry: seen.append(run.network.number_of_parameters())],
    )
    run.run()
    assert max(seen) <= start + extra
    cheapest = min(place.parameters_per_neuron for place in run.network.growing_layers)
    if run.finished_growing:
        assert start + extra - seen[-1] < cheapest
    assert run.finished_growing or extra > 20
    assert (seen[-1] > start) is (extra >= 9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", [0, 7, 40, 100])
def test_the_budget_of_flops_is_never_exceeded(extra: int, kind: str) -> None:
    start = network(kind).flops_per_sample()
    run = loop(kind, max_flops=start + extra, epochs=8, neurons=3)
    run.run()
    assert run.network.flops_per_sample() <= start + extra
    assert (run.network.flops_per_sample() > start) is (extra >= 40)


def test_a_budget_below_the_present_size_stops_growth_at_once() -> None:
    run = loop(max_parameters=1)
    history = run.run()
    assert [entry.get("refused") for entry in history.of("growth")] == ["the budget is used up"]
    assert run.network.widths == [2, 2]
    assert len(history.of("train")) == 4


def test_a_budget_counts_normalisation_too() -> None:
    norm = Sequential(GrowingBatchNorm1d(2, dtype=np.float64), Tanh())
    grown = GrowingMLP(4, 2, 2, activation=norm, dtype=np.float64, rng=np.random.default_rng(1))
    run = loop(network=grown, max_parameters=grown.number_of_parameters() + 7)
    run.run()
    assert grown.number_of_parameters() <= run.settings.max_parameters


def test_growths_stop_at_their_number() -> None:
    run = loop(growths=2, epochs=6)
    assert len(run.run().of("growth")) == run.growths == 2


@pytest.mark.parametrize(
    ("first", "every", "after"), [(1, 1, [1, 2, 3, 4, 5]), (2, 2, [2, 4]), (3, 2, [3, 5])], ids=str
)
def test_growth_comes_when_it_is_due_and_never_after_the_last_epoch(first: int, every: int, after: list[int]) -> None:
    history = loop(first=first, every=every, epochs=6, neurons=1).run()
    assert [entry["epoch"] for entry in history.of("growth")] == after
    assert [entry["epoch"] for entry in history.of("train")] == [1, 2, 3, 4, 5, 6]
