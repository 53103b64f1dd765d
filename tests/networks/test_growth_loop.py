"""The loop: what it promises it measures, budgets hold, refusals change nothing, and a stopped run goes on exactly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from growarray.growing import FISHER, GRADMAX, TINY
from growarray.networks import GrowingMLP, GrowthSettings, bic, f1, planner, task_named
from growarray.networks.choice import CHOICES
from growarray.networks.line_search import LineSearch
from growarray.nn import Linear, ReLU, Sequential
from growarray.ops import cross_entropy
from growarray.optim import SGD, Adam
from tests.conftest import Library
from tests.networks.runs import KINDS, LABELS, VALIDATION, X, assert_same, loop, network, weights

pytestmark = pytest.mark.filterwarnings("ignore:optimal_delta. S is singular")  # two biased branches read one input


# One growth.


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("kind", KINDS)
def test_growth_lowers_the_training_loss_by_what_it_says(kind: str, task: str) -> None:
    run = loop(kind, task=task)
    for _ in range(3):
        run.train_epoch()
        before, widths = run.evaluate(run.data)[0], list(run.network.widths)
        entry = run.grow()
        after = run.evaluate(run.data)[0]
        assert after < before
        assert entry["train_change"] == pytest.approx(after - before)
        assert entry["train_loss"] == pytest.approx(after)
        assert entry["predicted_change"] < 0 < entry["promised"]
        assert run.network.widths[entry["layer_index"]] == widths[entry["layer_index"]] + entry["added"]
        assert entry["where"] == run.network.growing_layers[entry["layer_index"]].name
        assert entry["parameters"] == run.network.number_of_parameters()
        assert entry["widths"] == run.network.widths


@pytest.mark.parametrize("kind", KINDS)
def test_the_place_of_the_greatest_promise_grows(kind: str) -> None:
    run = loop(kind)
    twin = loop(kind)
    rule = replace(TINY, max_new=2)
    twin.planner.collect(twin.data)
    twin.network.compute_optimal_updates(rule)
    promises = [place.first_order_improvement for place in twin.network.growing_layers]
    entry = run.grow()
    assert entry["layer_index"] == int(np.argmax(promises))
    assert entry["promised"] == pytest.approx(max(promises), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_may_choose_the_place(kind: str) -> None:
    labels = (VALIDATION[:, 0] * VALIDATION[:, 1] > 0).astype(np.int64)
    run = loop(kind, choose="validation", validation=(VALIDATION, labels))
    run.train_epoch()
    before = run.evaluate(run.validation)[0]
    twin = loop(kind, choose="validation", validation=(VALIDATION, labels))
    twin.train_epoch()
    twin.planner.collect(twin.data)
    twin.network.eval()
    twin.network.compute_optimal_updates(replace(TINY, max_new=2))
    losses = [twin.planner.search(place, twin.validation).loss for place in twin.network.growing_layers]
    entry = run.grow()
    assert entry["layer_index"] == int(np.argmin(losses))
    assert entry["validation_change"] < 0
    assert entry["validation_loss"] == pytest.approx(min(losses), rel=1e-9)
    assert entry["validation_loss"] - entry["validation_change"] == pytest.approx(before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_growth_leaves_every_bit_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = loop(kind)
    run.train_epoch()
    before, slots = weights(run.network), {n: dict(p.slots) for n, p in run.network.named_parameters()}
    loss = run.evaluate(run.data)
    monkeypatch.setattr(planner, "line_search", lambda loss: LineSearch(0.0, loss(0.0), loss(0.0), ((1.0, loss(1.0)),)))
    entry = run.grow()
    assert (entry["refused"], entry["added"], run.growths) == ("no scaling lowers the training loss", 0, 0)
    assert_same(weights(run.network), before)
    for name, parameter in run.network.named_parameters():
        assert all(parameter.slots[key] is value for key, value in slots[name].items())
        assert parameter.grad is None
    assert run.evaluate(run.data) == loss
    for place in run.network.growing_layers:
        assert place.new_neurons == 0
    run.train_epoch()  # and the run goes on


def test_a_search_leaves_the_scalings_at_zero_and_the_weights_alone() -> None:
    run = loop("residual")
    run.planner.collect(run.data)
    run.network.compute_optimal_updates(replace(TINY, max_new=2))
    before, plain = weights(run.network), run.network(X)
    for place in run.network.growing_layers:
        result = run.planner.search(place, run.data)
        assert result.factor > 0
        assert result.loss < result.start
    assert_same(weights(run.network), before)
    np.testing.assert_array_equal(run.network.extended_forward(X), plain)


@pytest.mark.parametrize("rule", [GRADMAX, FISHER], ids=["gradmax", "fisher"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_rules_run_in_the_loop(kind: str, rule: Any) -> None:
    run = loop(kind, rule=replace(rule, fisher_shrinkage=0.1 if rule.use_fisher else 0.0), epochs=5)
    history = run.run()
    grown = history.of("growth")
    assert all(entry["added"] in (1, 2) or "refused" in entry for entry in grown)
    assert run.growths >= (3 if rule is GRADMAX else 0)
    assert run.growths == sum(entry["added"] > 0 for entry in grown)
    assert sum(run.network.widths) == sum(network(kind).widths) + sum(entry["added"] for entry in grown)
    if rule is GRADMAX:
        assert all(entry["train_change"] == pytest.approx(0.0, abs=1e-12) for entry in grown)
    assert all(np.isfinite(array).all() for array in weights(run.network).values())


class Own:
    """A rule of one's own: it plans what TINY does, and knows nothing else of growth."""

    def plan(self, statistics: Any) -> Any:
        return replace(TINY, max_new=2).plan(statistics)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_of_ones_own_runs_in_the_loop(kind: str) -> None:
    own, theirs = loop(kind, rule=Own()), loop(kind)
    assert own.run().steps == theirs.run().steps
    assert own.growths > 0
    assert_same(weights(own.network), weights(theirs.network))


def test_neurons_that_gradmax_adds_learn() -> None:
    run = loop(rule=GRADMAX, epochs=2, network=GrowingMLP(4, 2, 2, dtype=np.float64, rng=np.random.default_rng(1)))
    run.train_epoch()
    run.grow()
    added = run.network.layers[0].weight.data[2:].copy()
    assert not added.any()
    run.train_epoch()
    assert (np.abs(run.network.layers[0].weight.data[2:]) > 0).all()


# Collecting.


def test_collection_stops_when_it_is_precise_enough() -> None:
    whole = loop(collect_batch=10)
    assert whole.planner.collect(whole.data) == 200
    early = loop(collect_batch=10, relative_error=0.5)
    assert 20 <= early.planner.collect(early.data) < 200
    never = loop(collect_batch=10, relative_error=1e-9)
    assert never.planner.collect(never.data) == 200
    single = loop(collect_batch=200, relative_error=1e9)
    assert single.planner.collect(single.data) == 200  # one batch tells nothing of its error


@pytest.mark.parametrize("kind", KINDS)
def test_collecting_leaves_no_gradient_and_no_change(kind: str) -> None:
    run = loop(kind)
    before = weights(run.network)
    run.planner.collect(run.data)
    assert all(p.grad is None for p in run.network.parameters())
    assert_same(weights(run.network), before)


def test_the_gradient_is_that_of_the_sum_whatever_the_batches() -> None:
    whole, parts = loop(collect_batch=200), loop(collect_batch=7)
    for run in (whole, parts):
        run.planner.collect(run.data)
    for ours, theirs in zip(whole.network.growing_layers, parts.network.growing_layers, strict=True):
        np.testing.assert_allclose(ours.tensor_m(), theirs.tensor_m(), atol=1e-12)
        np.testing.assert_allclose(ours.tensor_s(), theirs.tensor_s(), atol=1e-12)


# Going on.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_run_that_stopped_goes_on_bit_for_bit(stop: int, kind: str) -> None:
    whole = loop(kind)
    whole.run()
    first = loop(kind)
    first.run(until=stop)
    state = json.loads(json.dumps(first.state()))
    second = loop(kind, seed=99, network=first.network, optimizer=first.optimizer)
    second.load_state(state, first.best)
    second.run()
    assert_same(weights(second.network), weights(whole.network))
    assert second.history.steps == whole.history.steps
    assert (second.epoch, second.steps, second.growths) == (whole.epoch, whole.steps, whole.growths)


def test_a_run_that_is_over_stays_over() -> None:
    run = loop(epochs=2)
    run.run()
    before = weights(run.network)
    assert run.run() is run.history
    assert_same(weights(run.network), before)


def test_a_state_does_not_change_when_the_run_goes_on() -> None:
    run = loop()
    run.run(until=1)
    state = run.state()
    entries = len(state["history"])
    run.run(until=3)
    assert len(state["history"]) == entries


# Training.


def test_schedule_clip_and_callbacks_are_heard() -> None:
    seen: list[tuple[str, int]] = []
    asked: list[int] = []
    run = loop(
        epochs=2,
        batch_size=50,
        clip=1e-9,
        optimizer=None,
        schedule=lambda step: asked.append(step) or 0.125,  # type: ignore[func-returns-value]
        callbacks=[lambda run, entry: seen.append((entry["event"], entry["step"]))],
        network=network(),
        growths=0,
    )
    run.optimizer = SGD(run.network, lr=1.0)
    before = weights(run.network)
    history = run.run()
    assert asked == list(range(8))
    assert seen == [("train", 0), ("train", 1), ("stop", 2)]
    assert history.of("train")[0]["lr"] == 0.125
    for name, array in weights(run.network).items():
        assert np.abs(array - before[name]).max() <= 8 * 0.125 * 1e-9


def test_training_learns_and_reports_what_evaluate_reports() -> None:
    run = loop(epochs=20, every=5, optimizer=None)
    history = run.run().of("train")
    assert history[-1]["train_loss"] < history[0]["train_loss"] < 1.0
    loss, score = run.evaluate(run.validation)
    assert (history[-1]["validation_loss"], history[-1]["validation_score"]) == (loss, score)
    assert score > 0.6
    assert history[-1]["widths"] == run.network.widths


def test_figures_of_an_evaluation_do_not_depend_on_its_batches() -> None:
    run = loop()
    np.testing.assert_allclose(run.evaluate(run.data, batch_size=7), run.evaluate(run.data), rtol=1e-12)


def test_r2_of_an_evaluation_does_not_depend_on_its_batches() -> None:
    run = loop(task="regression")
    np.testing.assert_allclose(run.evaluate(run.data, batch_size=7), run.evaluate(run.data), rtol=1e-12)


def test_every_library_runs_the_same(xp: Library) -> None:
    kind = "mlp" if xp.name == "jax" else "residual"  # it compiles an operation for every shape

    def ran(to: Any, adopt: Any) -> list[np.ndarray]:
        grown = network(kind)
        adopt(grown)
        run = loop(network=grown, data=(to(X[:128]), to(LABELS[:128])), batch_size=64, epochs=2)
        run.run()
        assert run.growths == 1
        return list(weights(run.network).values())

    for ours, theirs in zip(ran(xp.asarray, xp.adopt), ran(np.asarray, lambda m: m), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"choose": "best"},
            f"choose must be one of {', '.join(CHOICES)}, found .best.",
        ),
        *[({name: 0}, f"{name} must be at least 1, found 0") for name in ("epochs", "batch_size", "neurons", "every")],
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GrowthSettings(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3.0}, r"epochs must be a whole number, found 3\.0"),
        ({"neurons": True}, "neurons must be a whole number, found True"),
        ({"first": 1.5}, r"first must be a whole number, found 1\.5"),
    ],
    ids=str,
)
def test_settings_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GrowthSettings(**options)
    with pytest.raises(TypeError, match="rule must be a GrowthRule such as TINY, found 'tiny'"):
        GrowthSettings(rule="tiny")  # type: ignore[arg-type]


def test_settings_take_the_whole_numbers_of_numpy_and_no_budget_that_is_none() -> None:
    settings = GrowthSettings(epochs=np.int64(3))  # type: ignore[arg-type]
    assert type(settings.epochs) is int
    with pytest.raises(ValueError, match="max_parameters must be at least 0, found nan"):
        GrowthSettings(max_parameters=float("nan"))  # type: ignore[arg-type]


def test_what_the_loop_cannot_train_is_refused_at_once() -> None:
    grown = network()
    for options, message in (
        ({"network": Sequential(Linear(4, 2))}, "network is a Sequential, expected a GrowingNetwork"),
        ({"optimizer": 3}, "optimizer is a int, expected one such as AdamW"),
        ({"task": 3}, "task is a int, expected 'classification'"),
    ):
        with pytest.raises(TypeError, match=message):
            loop(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the optimizer holds no parameter of the network"):
        loop(network=grown, optimizer=Adam(network(), lr=0.1))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_are_not_finite_are_refused_by_sample(value: float, xp: Library) -> None:
    spoilt = X.copy()
    spoilt[3, 1] = value
    for name in ("data", "validation"):
        with pytest.raises(ValueError, match=f"the features of {name}: sample 3 holds NaN or infinite"):
            loop(**{name: (xp.asarray(spoilt), xp.asarray(LABELS))})
    with pytest.raises(ValueError, match="the targets of data: sample 3 holds NaN or infinite"):
        loop(data=(xp.asarray(X), xp.asarray(spoilt)), task="regression")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_moves_no_weight(value: float) -> None:
    task = replace(task_named("classification"), loss=lambda y, target: (value, lambda dloss=1.0: np.ones_like(y)))
    run = loop(task=task)
    before = weights(run.network)
    with pytest.raises(ValueError, match=f"loss of a batch in epoch 1 is {value}; look for NaN"):
        run.train_epoch()
    assert_same(weights(run.network), before)
    assert run.epoch == 0


def test_the_scaling_is_that_of_the_lowest_validation_loss() -> None:
    labels = 1 - (VALIDATION[:, 0] * VALIDATION[:, 1] > 0).astype(np.int64)  # the opposite of what is taught
    assert loop().grow()["added"] > 0
    run = loop(validation=(VALIDATION, labels))
    twin = loop(validation=(VALIDATION, labels))
    twin.planner.collect(twin.data)
    twin.network.eval()
    twin.network.compute_optimal_updates(replace(TINY, max_new=2))
    place = max(twin.network.growing_layers, key=lambda one: one.first_order_improvement)
    on_training, on_validation = twin.planner.search(place, twin.data), twin.planner.search(place, twin.validation)
    assert on_validation.factor < on_training.factor
    entry = run.grow()
    assert entry.get("scaling", 0.0) == pytest.approx(on_validation.factor, rel=1e-9)
    assert (entry.get("refused") == "no scaling lowers the validation loss") == (on_validation.factor == 0.0)


def test_a_line_search_of_few_samples_runs_on_every_library(xp: Library) -> None:
    run = loop(network=xp.adopt(network(dtype=np.float64)), data=(xp.asarray(X), xp.asarray(LABELS)), search_samples=20)
    assert run.grow()["added"] > 0


def test_a_line_search_sees_samples_from_all_over_sorted_data() -> None:
    order = np.argsort(LABELS, kind="stable")
    seen = []

    def loss(y: Any, target: Any) -> Any:
        seen.append(target)
        return cross_entropy(y, target)

    task = replace(task_named("classification"), loss=loss)
    run = loop(data=(X[order], LABELS[order]), task=task, search_samples=20, choose="first_order")
    run.train_epoch()
    run.grow()
    searched = [target for target in seen if len(target) == 20]
    assert searched
    for target in searched:
        assert np.mean(target) == pytest.approx(np.mean(LABELS), abs=0.05)


def test_a_network_without_places_says_so() -> None:
    grown = GrowingMLP(4, 2, [], dtype=np.float64)
    assert loop(network=grown).grow()["refused"] == "the network has no layer that can grow"


def test_a_state_of_another_generator_changes_nothing() -> None:
    run = loop()
    state = {**run.state(), "epoch": 3, "rng": np.random.Generator(np.random.MT19937(0)).bit_generator.state}
    with pytest.raises(ValueError, match="PCG64"):
        run.load_state(state)
    assert run.epoch == 0


def test_no_data_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no training samples"):
        loop(data=(X[:0], LABELS[:0]))


def test_empty_validation_data_is_refused() -> None:
    with pytest.raises(ValueError, match="no validation samples"):
        loop(validation=(X[:0], LABELS[:0])).train_epoch()


def test_gradmax_is_refused_before_a_relu_without_gradient_at_zero() -> None:
    grown = GrowingMLP(4, 2, 2, activation=ReLU(), dtype=np.float64, rng=np.random.default_rng(1))
    run = loop(rule=GRADMAX, network=grown)
    run.train_epoch()
    with pytest.raises(ValueError, match=r"would never learn behind ReLU\(\); use ReLU\(at_zero=1.0\)"):
        run.grow()


def test_neurons_that_gradmax_adds_behind_a_relu_with_a_gradient_at_zero_learn() -> None:
    grown = GrowingMLP(4, 2, 2, activation=ReLU(at_zero=1.0), dtype=np.float64, rng=np.random.default_rng(1))
    run = loop(rule=GRADMAX, network=grown)
    run.train_epoch()
    run.grow()
    run.train_epoch()
    assert grown.layers[0].weight.data[2:].any()


@pytest.mark.parametrize("choose", ["per_parameter", "per_flop"])
def test_a_choice_by_cost_takes_the_most_for_it(choose: str) -> None:
    run = loop(kind="residual", choose=choose)
    run.planner.collect(run.data)
    run.network.compute_optimal_updates(max_new=2)
    layer = run.planner.choose(run.planner.rule, run.validation).layer
    cost = {"per_parameter": "parameters_added", "per_flop": "flops_added"}[choose]
    layers = [each for each in run.network.growing_layers if each.parameters_added]
    assert len({getattr(each, cost) // each.new_neurons for each in layers}) > 1
    assert layer is max(layers, key=lambda each: each.new_neurons_fo_improvement / getattr(each, cost))


def test_the_narrowest_place_grows_and_of_equals_the_first() -> None:
    grown = GrowingMLP(4, 2, [4, 3, 3], dtype=np.float64, rng=np.random.default_rng(0))
    run = loop(network=grown, choose="narrowest")
    for widths in ([4, 4, 3], [4, 4, 4], [5, 4, 4]):
        run.planner.collect(run.data)
        run.network.compute_optimal_updates(max_new=1)
        layer = run.planner.choose(run.planner.rule, run.validation).layer
        layer.apply_change(0.1)
        run.network.delete_update()
        assert grown.widths == widths


def test_bic_refuses_what_costs_more_than_it_brings() -> None:
    chance = np.random.default_rng(5).integers(0, 2, len(X))  # there is nothing to learn
    run = loop(choose="bic", data=(X, chance), epochs=20)
    for _ in range(10):
        run.train_epoch()
    size = run.network.number_of_parameters()
    entry = run.grow()
    assert entry["refused"] == "no growth lowers the BIC"
    assert entry["promised"] > 0  # though the loss would fall
    assert run.network.number_of_parameters() == size


def test_bic_counts_parameters_and_samples() -> None:
    classes, values = task_named("classification"), task_named("regression")
    assert bic(3, 0.5, 100, classes) == pytest.approx(3 * math.log(100) + 100)
    assert bic(3, 0.5, 100, values) == pytest.approx(3 * math.log(100) + 100 * math.log(0.5))


def test_the_place_with_the_best_score_grows_by_f1_as_well() -> None:
    run = loop(choose="score", epochs=2, task=task_named("classification", score="f1_macro"))
    entry = run.run().of("growth")[0]
    again = loop(choose="score", epochs=2, task=task_named("classification", score="f1_macro"))
    again.train_epoch()
    plans = again.planner
    with plans.planning():
        plans.collect(again.data)
        again.network.compute_optimal_updates(plans.rule)
        places = again.network.growing_layers
        trials = [plans.search(place, again.validation) for place in places]
        scores = [plans.score(p, t.factor, again.validation) for p, t in zip(places, trials, strict=True)]
        for place, trial, score in zip(places, trials, scores, strict=True):
            again.network.set_scaling_factor(0.0)
            place.scaling_factor = trial.factor
            predicted = np.argmax(again.network.extended_forward(X), axis=1)
            assert score == f1(predicted, LABELS)
        again.network.delete_update()
    best = max(range(len(places)), key=lambda i: (scores[i], -trials[i].loss))
    assert entry["layer_index"] == best
    assert again.history.of("train")[0]["validation_score"] == run.history.of("train")[0]["validation_score"]
