"""A rule of one's own: one class with ``plan``, at a layer and at a merge; what it returns is checked."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from growarray.errors import ShapeError
from growarray.growing import TINY, GrowthUpdate, added_neurons, neuron_goal
from tests.conftest import frozen
from tests.growing.pairs import MergeCase, Pair, square_loss

RNG = np.random.default_rng(11)
X, T = frozen(RNG.standard_normal((40, 4))), frozen(RNG.standard_normal((40, 2)))
XS = [frozen(RNG.standard_normal((40, 4))), frozen(RNG.standard_normal((40, 3)))]
LOSS, GRADIENT = square_loss(T)


class HalfSteps:
    """Half of each optimal delta, and the two best neurons for what is then left."""

    def plan(self, statistics: Any) -> GrowthUpdate[Any]:
        deltas = tuple(layer.optimal_delta()[0] / 2 for layer in statistics.layers)
        goals = [
            neuron_goal(layer.m_prev(), layer.p(), delta)
            for layer, delta in zip(statistics.layers, deltas, strict=True)
        ]
        alpha, omega, values = added_neurons(statistics.s_prev(), np.concatenate(goals, axis=1))
        return GrowthUpdate(deltas, omega[:, :2], alpha[:2], values[:2])


def collected() -> Pair:
    return Pair.of().collect(X, GRADIENT)


def joined() -> MergeCase:
    return MergeCase.of(outputs=(2, 2), bias=(True, False)).collect(XS, lambda ys: [y - T for y in ys])


def test_a_rule_of_ones_own_plans_for_a_layer() -> None:
    mine, tiny = collected(), collected()
    mine.second.compute_optimal_updates(HalfSteps())
    tiny.second.compute_optimal_updates(TINY)
    half, whole = mine.second.optimal_delta_layer.weight.data, tiny.second.optimal_delta_layer.weight.data
    np.testing.assert_allclose(half, whole / 2)
    assert mine.second.new_neurons == 2
    assert mine.second.parameter_update_decrease == pytest.approx(tiny.second.parameter_update_decrease / 2)
    base = LOSS(mine.forward(X))
    mine.second.scaling_factor = 1e-3
    found = (base - LOSS(mine.extended(X))) / 1e-6
    assert found == pytest.approx(mine.second.predicted_decrease, rel=1e-2)  # the promise is the library's, and kept


def test_a_rule_of_ones_own_plans_through_a_merge() -> None:
    joint = joined()
    joint.merge.compute_optimal_updates(HalfSteps())
    base = sum(LOSS(y) for y in joint.forward(XS))
    promised = joint.merge.predicted_decrease
    joint.merge.scaling_factor = 1e-3
    found = (base - sum(LOSS(y) for y in joint.extended(XS))) / 1e-6
    assert found == pytest.approx(promised, rel=1e-2)
    joint.merge.apply_change()
    assert {m.out_features for m in joint.branches} == {m.in_features for m in joint.readers} == {5}


def with_parts(**parts: Any) -> Any:
    class Fixed:
        def plan(self, statistics: Any) -> Any:
            return GrowthUpdate(**parts)

    return Fixed()


class Nothing:
    def plan(self, statistics: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (Nothing(), TypeError, r"Nothing\.plan: found None, expected a GrowthUpdate"),
        (with_parts(deltas=(np.ones((2, 4)), np.ones((2, 4)))), ShapeError, r"found 2 deltas, expected none, or 1"),
        (with_parts(deltas=(np.ones((4, 2)),)), ShapeError, r"delta has shape \(4, 2\), expected \(2, 4\)"),
        (
            with_parts(input_extension=np.ones((3, 1)), output_extension=np.ones((1, 5))),
            ShapeError,
            r"alpha \(1, 5\) and omega \(3, 1\), expected \(k, 5\) and \(2, k\)",
        ),
        (
            with_parts(input_extension=np.ones((2, 1)), output_extension=np.ones((1, 4))),
            ShapeError,
            r"alpha \(1, 4\) and omega \(2, 1\), expected \(k, 5\) and \(2, k\)",
        ),
    ],
    ids=["no update", "two deltas", "turned", "omega", "alpha"],
)
def test_what_a_rule_returns_is_checked_and_the_plan_before_stays(
    rule: Any, error: type[Exception], message: str
) -> None:
    pair = collected()
    pair.second.compute_optimal_updates(TINY, max_new=1)
    update, rows = pair.second.update, pair.first.extended_output_layer
    with pytest.raises(error, match=message):
        pair.second.compute_optimal_updates(rule)
    assert pair.second.update is update
    assert pair.first.extended_output_layer is rows


def test_a_rule_of_ones_own_takes_no_options_of_the_librarys() -> None:
    with pytest.raises(TypeError, match="rule: expected a GrowthRule such as TINY, found"):
        collected().second.compute_optimal_updates(HalfSteps(), max_new=1)


def test_an_update_is_never_altered() -> None:
    """What is done to a plan makes another: one that was kept is what it was."""
    pair = collected()
    pair.second.compute_optimal_updates(TINY, max_new=2)
    kept = pair.second.update
    arrays = [kept.delta.weight.data, kept.input_extension.weight.data, kept.singular_values, kept.slopes]
    copies = [array.copy() for array in arrays]
    with pytest.raises(FrozenInstanceError):
        kept.linear = True  # type: ignore[misc]
    pair.second.sub_select_optimal_added_parameters(keep_neurons=1)
    pair.second.normalize_optimal_updates(0.3)
    pair.second.apply_change(scaling_factor=0.5)
    pair.second.delete_update()
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert (kept.applied, pair.second.update.applied) == (frozenset(), frozenset())
    assert pair.second.update.is_empty


def test_a_selection_keeps_the_promise_of_what_is_left() -> None:
    """``predicted_decrease`` is a sum over neurons, so a selection promises its own share."""
    pair = collected()
    pair.second.compute_optimal_updates(TINY)
    slopes, delta = pair.second.update.slopes, pair.second.parameter_update_decrease
    pair.second.sub_select_optimal_added_parameters(keep_neurons=1)
    assert pair.second.predicted_decrease == pytest.approx(delta + slopes[0], rel=1e-12)
    base = LOSS(pair.forward(X))
    pair.second.scaling_factor = 1e-3
    assert (base - LOSS(pair.extended(X))) / 1e-6 == pytest.approx(pair.second.predicted_decrease, rel=1e-2)


def test_a_merge_selects_by_threshold_as_a_layer_does() -> None:
    joint = joined()
    joint.merge.compute_optimal_updates(TINY)
    values = joint.merge.eigenvalues_extension
    joint.merge.sub_select_optimal_added_parameters(threshold=float(values[1]))
    assert joint.merge.new_neurons == 2
    np.testing.assert_array_equal(joint.merge.eigenvalues_extension, values[:2])
    assert {m.extended_output_layer.out_features for m in joint.branches} == {2}
    assert {m.extended_input_layer.in_features for m in joint.readers} == {2}
