"""A planned change: there must be one, each part of it is applied once, and forgetting it forgets its scalings."""

from __future__ import annotations

import numpy as np
import pytest

from growarray.errors import GrowthError
from growarray.growing import GRADMAX, TINY, GrowthRule
from tests.conftest import frozen
from tests.growing.pairs import MergeCase, Pair, layer, square_loss

RNG = np.random.default_rng(7)
X, T = frozen(RNG.standard_normal((30, 4))), frozen(RNG.standard_normal((30, 2)))
LOSS, GRADIENT = square_loss(T)


def planned(rule: GrowthRule = TINY) -> Pair:
    pair = Pair.of().collect(X, GRADIENT)
    pair.second.compute_optimal_updates(rule, max_new=1)
    return pair


def joined(*, plan: bool = True) -> MergeCase:
    joint = MergeCase.of(outputs=(2, 2), bias=(True, False))
    rng = np.random.default_rng(1)
    xs = [rng.standard_normal((30, 4)), rng.standard_normal((30, 3))]
    joint.collect(xs, lambda ys: [y - T for y in ys])
    if plan:
        joint.merge.compute_optimal_updates(max_new=1)
    return joint


@pytest.mark.parametrize("options", [{}, {"apply_extension": False}, {"scaling_factor": 0.5}], ids=str)
def test_a_layer_without_a_planned_change_says_so(options: dict[str, float]) -> None:
    pair = Pair.of()
    pair.second.scaling_factor = 2.0
    before = pair.second.weight.data.copy()
    for place in (pair.first, pair.second):
        with pytest.raises(GrowthError, match=f"{place.name}: no change is planned; call compute_optimal_updates"):
            place.apply_change(**options)
    np.testing.assert_array_equal(pair.second.weight.data, before)
    assert pair.second.scaling_factor == 2.0


def test_a_change_that_was_forgotten_is_not_applied() -> None:
    pair = planned()
    pair.second.delete_update()
    with pytest.raises(GrowthError, match="second: no change is planned"):
        pair.second.apply_change(scaling_factor=0.5)


def test_a_plan_without_the_part_that_is_asked_for_changes_nothing() -> None:
    """A preset without delta: the plan is there, and its delta is to leave everything as it is."""
    pair = planned(GRADMAX)
    before = pair.second.weight.data.copy()
    pair.second.apply_change(scaling_factor=0.5, apply_extension=False)
    np.testing.assert_array_equal(pair.second.weight.data, before)
    lone = layer(4, 2)
    lone.init_computation()
    lone.vjp(X)[1](T)
    lone.update_computation()
    lone.compute_optimal_updates(GRADMAX)
    lone.apply_change(scaling_factor=0.5)


def test_a_merge_without_a_planned_change_says_so() -> None:
    joint = joined(plan=False)
    before = [module.weight.data.copy() for module in joint.branches + joint.readers]
    joint.merge.compute_optimal_delta()  # the branches' own change, which each branch applies
    with pytest.raises(GrowthError, match="merge: no change is planned"):
        joint.merge.apply_change(scaling_factor=0.5)
    for module, weight in zip(joint.branches + joint.readers, before, strict=True):
        np.testing.assert_array_equal(module.weight.data, weight)


def test_a_merge_applies_the_delta_of_the_one_reader_that_has_one() -> None:
    joint = joined(plan=False)
    joint.readers[0].compute_optimal_delta()
    before = [module.weight.data.copy() for module in joint.readers]
    joint.merge.apply_change(scaling_factor=1.0)
    moved = [not np.array_equal(m.weight.data, w) for m, w in zip(joint.readers, before, strict=True)]
    assert moved == [True, False]


def test_a_delta_is_applied_once() -> None:
    """The original moves the weights again at each call."""
    pair = planned()
    pair.second.apply_change(scaling_factor=0.5, apply_extension=False)
    once = pair.second.weight.data.copy()
    with pytest.raises(GrowthError, match=r"has been applied; call delete_update\(\) and plan anew"):
        pair.second.apply_change(scaling_factor=0.5)
    np.testing.assert_array_equal(pair.second.weight.data, once)
    pair.second.apply_change(scaling_factor=0.5, apply_delta=False)  # the other part is still to come
    assert (pair.first.out_features, pair.second.in_features) == (4, 4)
    with pytest.raises(GrowthError, match="has been applied"):
        pair.second.apply_change(scaling_factor=0.5, apply_delta=False)


def test_both_parts_one_after_the_other_are_the_whole() -> None:
    parts, whole = planned(), planned()
    parts.second.apply_change(scaling_factor=0.5, apply_extension=False)
    parts.second.apply_change(scaling_factor=0.5, apply_delta=False)
    whole.second.apply_change(scaling_factor=0.5)
    np.testing.assert_array_equal(parts.forward(X), whole.forward(X))


def test_a_new_delta_may_be_applied_without_forgetting_the_old_one() -> None:
    pair = planned()
    for _ in range(2):
        pair.second.compute_optimal_delta()
        pair.second.apply_change(scaling_factor=0.5, apply_extension=False)


def test_completing_growth_after_a_change_that_was_not_forgotten() -> None:
    pair = planned()
    pair.second.apply_change(scaling_factor=0.5)
    pair.second.target_in_neurons = 6
    pair.second.complete_growth({"rng": np.random.default_rng(0)})
    assert (pair.first.out_features, pair.second.in_features) == (6, 6)


def test_forgetting_a_change_forgets_its_scalings() -> None:
    """As in the original: the next plan is not applied, or looked at, with the factor of the last one."""
    pair = planned()
    base = pair.forward(X)
    pair.second.scaling_factor = 0.7
    pair.second.delete_update()
    assert (pair.second.scaling_factor, pair.first.output_extension_scaling) == (0.0, 0.0)
    pair.second.compute_optimal_updates(TINY, max_new=1)
    np.testing.assert_array_equal(pair.extended(X), base)
    joint = joined()
    joint.merge.scaling_factor = 0.7
    joint.merge.delete_update()
    assert joint.merge.scaling_factor == joint.merge.output_extension_scaling == 0.0
    assert [reader.scaling_factor for reader in joint.readers] == [0.0, 0.0]


def test_the_parts_of_a_plan_are_no_parameters_of_the_layer() -> None:
    pair = planned()
    pair.second.apply_change(scaling_factor=0.5)
    assert sorted(pair.second.state_dict()) == ["layer.bias", "layer.weight"]
    assert len(pair.second.parameters()) == 2


def test_e_of_a_merge_may_be_collected_over_several_passes() -> None:
    """Several pullbacks of one forward pass: as with a layer, the samples count once."""
    joint = joined(plan=False)
    once = joint.merge.covariance_loss_gradient()
    joint.merge.update_covariance_loss_gradient(count_samples=False)
    assert joint.merge.covariance_loss_gradient.samples == 30
    np.testing.assert_allclose(joint.merge.covariance_loss_gradient(), 2 * once)
    closed = MergeCase.of(allow_growing=False)
    closed.merge.update_covariance_loss_gradient()  # nothing to collect, as in the original
    assert closed.merge.covariance_loss_gradient.samples == 0


def hand_made(pair: Pair) -> None:
    """An extension of one's own, with singular values 2 and 1 and a delta that promises nothing."""
    pair.second.create_layer_extensions(2, rng=np.random.default_rng(0))
    pair.second.eigenvalues_extension = np.array([2.0, 1.0])
    pair.second.parameter_update_decrease = 0.0


@pytest.mark.parametrize("forget", [True, False], ids=["delete_update", "planned over"])
def test_the_next_plan_does_not_take_the_singular_values_of_gradmax(forget: bool) -> None:
    """They count once in GRADMAX, squared everywhere else."""
    pair = planned(GRADMAX)
    values = pair.second.eigenvalues_extension.copy()
    assert pair.second.first_order_improvement == pytest.approx(values.sum(), rel=1e-14)
    if forget:
        pair.second.delete_update()
    hand_made(pair)
    assert pair.second.first_order_improvement == pytest.approx(5.0, rel=1e-14)


def test_drawn_neurons_promise_nothing_that_computed_ones_did() -> None:
    for draw in (
        lambda pair: pair.second.create_layer_in_extension(2),
        lambda pair: pair.second.initialize_extensions("zeros", "zeros"),
        lambda pair: pair.second.apply_neuron_pairing("vv_z_negz", 0.0),
    ):
        pair = planned()
        pair.second.compute_optimal_updates(TINY, max_new=2)
        draw(pair)
        assert pair.second.new_neurons == 2
        assert pair.second.eigenvalues_extension is None
        delta = pair.second.parameter_update_decrease
        assert pair.second.first_order_improvement == pair.second.predicted_decrease == delta
        with pytest.raises(GrowthError, match="second: no neurons are planned"):
            pair.second.sub_select_optimal_added_parameters(1)


def test_a_plan_without_the_previous_module_leaves_it_no_neurons_of_an_old_one() -> None:
    pair = planned(GRADMAX)
    pair.second.compute_optimal_updates(TINY, max_new=1, update_previous=False)
    assert pair.first.extended_output_layer is None
    assert pair.second.predicted_decrease == pair.second.parameter_update_decrease
    with pytest.raises(GrowthError, match="first: there is no output extension to apply"):
        pair.second.apply_change(scaling_factor=0.5)


def test_the_scaling_of_a_delta_alone_is_forgotten_in_the_previous_module_too() -> None:
    pair = Pair.of().collect(X, GRADIENT)
    pair.second.compute_optimal_delta()
    pair.second.scaling_factor = 0.7
    pair.second.delete_update()
    assert pair.first.output_extension_scaling == pair.second.scaling_factor == 0.0


def test_a_delta_ends_with_the_statistics_it_was_solved_from() -> None:
    pair = planned()
    assert pair.second.tensor_n.shape == (5, 2)
    pair.collect(X, GRADIENT)
    with pytest.raises(GrowthError, match="second: the optimal delta is not computed"):
        _ = pair.second.tensor_n
    assert pair.second.has_plan  # the plan itself is kept until it is forgotten


def test_a_merge_forgets_what_it_planned_and_what_its_readers_did() -> None:
    joint = joined(plan=False)
    joint.merge.compute_optimal_updates(GRADMAX, max_new=1)
    linear = joint.merge.first_order_improvement
    joint.merge.delete_update()
    assert joint.merge.new_neurons == 0
    assert [reader.has_plan for reader in joint.readers] == [False, False]
    joint.merge.set_output_extension(np.ones((2, 8)))
    joint.merge.eigenvalues_extension = np.array([2.0, 1.0])
    assert joint.merge.first_order_improvement == pytest.approx(5.0, rel=1e-14) != linear


def test_a_merge_whose_delta_was_applied_can_be_planned_anew() -> None:
    joint = joined(plan=False)
    joint.readers[0].compute_optimal_delta()
    joint.merge.apply_change(scaling_factor=1.0)
    joint.merge.delete_update()
    assert not joint.readers[0].has_plan
    assert joint.readers[0].scaling_factor == joint.merge.output_extension_scaling == 0.0
    with pytest.raises(GrowthError, match="merge: no change is planned"):
        joint.merge.apply_change()


def test_a_reader_that_forgets_takes_the_neurons_of_its_merge_along() -> None:
    joint = MergeCase.of(outputs=(2,), bias=(True, False))
    rng = np.random.default_rng(1)
    joint.collect([rng.standard_normal((30, 4)), rng.standard_normal((30, 3))], lambda ys: [y - T for y in ys])
    joint.merge.compute_optimal_updates(max_new=1)
    joint.readers[0].delete_update()
    assert (joint.merge.new_neurons, joint.merge.new_neurons_fo_improvement) == (0, 0.0)
    joint.readers[0].compute_optimal_delta()
    joint.merge.apply_change(scaling_factor=0.5)  # the delta alone
    assert joint.merge.in_features == 3
