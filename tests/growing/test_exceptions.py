"""Every misuse in the manifest's exception table: the class that is documented, and a message that says what to do.

Where the original asserts, a ValueError stands here; where it cannot grow after a merge, either it works (see
``test_merge_growth``) or the message says which call does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray.growing import LinearGrowingModule, LinearMergeGrowingModule, TensorStatistic
from growarray.growing.norm import GrowingGroupNorm
from growarray.nn import Linear, ReLU, Sequential
from tests.growing.pairs import MergeCase, Pair, layer

RNG = np.random.default_rng(9)
X, TARGET = RNG.standard_normal((30, 4)), RNG.standard_normal((30, 2))


def merge(**options: Any) -> LinearMergeGrowingModule:
    return LinearMergeGrowingModule(in_features=3, name="merge", **options)


def collected() -> Pair:
    return Pair.of().collect(X, lambda y, at: y - TARGET[at])


def planned() -> Pair:
    pair = collected()
    pair.second.compute_optimal_updates(max_new=2)
    return pair


def reader(**options: Any) -> LinearGrowingModule:
    """A layer after a merge that may not grow."""
    joint = MergeCase.of((4,), (2,), allow_growing=False, **options)
    joint.readers[0].init_computation()
    joint.back([X], lambda ys: [ys[0] - TARGET])
    joint.readers[0].update_computation()
    return joint.readers[0]


def with_extension_after_merge() -> LinearGrowingModule:
    module = reader()
    module.plan_input_extension(np.ones((2, 1)))
    return module


def foreign() -> LinearGrowingModule:
    return layer(4, 3, previous_module=Linear(2, 4), name="second")


def without_previous() -> LinearGrowingModule:
    """A layer that lost the module before it after its neurons were planned."""
    second = planned().second
    second.previous_module = None
    return second


def without_alpha() -> LinearGrowingModule:
    pair = planned()
    pair.first.set_output_extension(None)
    return pair.second


def n_update(next_module: Any) -> Any:
    module = layer(4, 3, next_module=next_module, name="first")
    module.store_input = True
    module.vjp(X)
    return module.compute_n_update()


def with_extension_bias() -> LinearGrowingModule:
    pair = planned()
    pair.second.extended_input_layer = Linear.of(np.ones((2, 2)), np.full(2, 0.5))
    return pair.second


Case = tuple[Callable[[], Any], type[Exception], str]
MERGE_CASES: dict[str, Case] = {
    "prev_wrong_type": (
        lambda: merge(previous_modules=[Linear(4, 3)]),
        TypeError,
        "merge: the previous module is a Linear; expected a growing layer or a merge",
    ),
    "prev_wrong_size": (
        lambda: merge(previous_modules=[layer(4, 2, name="first")]),
        ValueError,
        "previous module first has 2 outputs, the merge expects 3; give them the same width",
    ),
    "prev_merge_wrong_size": (
        lambda: LinearMergeGrowingModule(in_features=2, previous_modules=[merge()]),
        ValueError,
        "previous module merge has 3 outputs, the merge expects 2",
    ),
    "next_wrong_size": (
        lambda: merge(next_modules=[layer(2, 3, name="next")]),
        ValueError,
        "next module next has 2 inputs, the merge has 3 outputs",
    ),
    "next_plain_relu": (
        lambda: merge(next_modules=[ReLU()]),
        TypeError,
        "next module ReLU has no in_features; expected a layer",
    ),
    "no_in_features": (LinearMergeGrowingModule, TypeError, "in_features is required, the width of the branches' sum"),
    "full_activity_no_prev": (
        lambda: merge().construct_full_activity(),
        ValueError,
        "there are no previous layers; call set_previous_modules",
    ),
    "delta_no_prev": (lambda: merge().compute_optimal_delta(), ValueError, "there are no previous layers"),
    "delta_no_samples": (
        lambda: MergeCase.of().merge.compute_optimal_delta(),
        ValueError,
        r"S\[-1\]\(merge\): there are no samples, so there is no mean",
    ),
    "s_update_not_stored": (
        lambda: merge().compute_s_update(),
        ValueError,
        "no activity is kept; set store_activity or call",
    ),
    "scaling_bad_prev": (
        lambda: merge(previous_modules=[merge()]).update_scaling_factor(0.5),
        TypeError,
        "LinearMergeGrowingModule is not a growing layer, so it has no scaling; scale a chain of merges one by one",
    ),
    "scaling_bad_next": (
        lambda: merge(next_modules=[Linear(3, 2)]).update_scaling_factor(0.5),
        TypeError,
        "Linear is not a growing layer, so it has no scaling",
    ),
}


def no_forward() -> Any:
    joint = MergeCase.of()
    joint.merge.init_computation()
    return joint.merge.compute_s_update()


def no_delta() -> Any:
    joint = MergeCase.of(bias=(True, False))
    joint.collect([X, X[:, :3]], lambda ys: ys)
    return joint.merge.projected_v_goal()


MERGE_CASES["s_update_no_forward"] = (no_forward, ValueError, "no activity is kept; run a forward pass")
MERGE_CASES["v_proj_without_delta"] = (no_delta, TypeError, "branch0 has no optimal delta; call compute_optimal_delta")

AFTER_MERGE: dict[str, Case] = {
    "updates": (
        lambda: reader().compute_optimal_updates(),
        ValueError,
        "merge: growth through the merge is off; construct it with allow_growing=True",
    ),
    "sub_select": (lambda: reader().sub_select_optimal_added_parameters(1), ValueError, "no neurons are planned"),
    "apply_change": (
        lambda: with_extension_after_merge().apply_change(scaling_factor=0.1),
        ValueError,
        "branch0: there is no output extension to apply",
    ),
}


def storing(what: str) -> LinearGrowingModule:
    module = layer(4, 3, name="layer")
    setattr(module, what, True)
    return module


LAYER_CASES: dict[str, Case] = {
    "grow_without_prev": (lambda: layer(4, 3, allow_growing=True, name="a"), ValueError, "a: allow_growing needs a pr"),
    "input_not_stored": (lambda: layer(4, 3).input, ValueError, "no input is kept; set store_input or call init_comp"),
    "pre_activity_not_stored": (
        lambda: layer(4, 3).pre_activity,
        ValueError,
        "no pre_activity is kept; set store_pre_",
    ),
    "input_before_forward": (lambda: storing("store_input").input, ValueError, "run a forward pass and its pullback"),
    "s_growth_no_prev": (lambda: layer(4, 3).tensor_s_growth, ValueError, "there is no previous module, so no neurons"),
    "set_s_growth": (lambda: setattr(layer(4, 3), "tensor_s_growth", 1), AttributeError, "tensor_s_growth"),
    "added_no_prev": (lambda: layer(4, 3).compute_m_prev_update(), ValueError, "there is no previous module"),
    "stat_empty": (lambda: TensorStatistic(name="S")(), ValueError, "S: there are no samples, so there is no mean"),
    "x_ext_missing": (
        lambda: planned().second.extended_forward(np.ones((1, 3))),
        ValueError,
        "second: there is an input extension of 2 features, but x_ext is None",
    ),
    "ext_bias_not_null": (
        lambda: with_extension_bias().apply_change(),
        ValueError,
        "second: the input extension has a bias of up to 0.5, expected none; remove it",
    ),
    "extension_size_without_extension": (
        lambda: Pair.of().second.apply_change(extension_size=2),
        ValueError,
        "extension_size=2, but the planned input extension has 0 neurons",
    ),
    "scaling_bad_shape": (
        lambda: setattr(layer(4, 3), "scaling_factor", np.ones(2)),
        ValueError,
        "scaling_factor: expected one number, found an array of 2 elements",
    ),
    "scaling_bad_type": (
        lambda: setattr(layer(4, 3), "scaling_factor", "0.5"),
        TypeError,
        "scaling_factor: expected a number, found str '0.5'",
    ),
    "scaling_bool": (lambda: setattr(layer(4, 3), "scaling_factor", True), TypeError, "found bool True"),
    "scaling_foreign_prev": (
        lambda: setattr(foreign(), "scaling_factor", 0.5),
        TypeError,
        "second: the previous module is a Linear; expected a growing layer or a merge",
    ),
    "foreign_prev_init": (lambda: foreign().init_computation(), TypeError, "the previous module is a Linear"),
    "missing_neurons_no_target": (lambda: layer(4, 3).missing_neurons(), ValueError, "target_in_features is not set"),
    "neurons_to_add_unknown": (
        lambda: layer(4, 3, target_in_features=9).number_of_neurons_to_add("all"),
        ValueError,
        "unknown method 'all'; known: 'fixed_proportional'",
    ),
    "sub_select_before": (
        lambda: Pair.of().second.sub_select_optimal_added_parameters(1),
        ValueError,
        "no neurons are planned; call compute_optimal_updates",
    ),
    "sub_select_without_previous": (
        lambda: without_previous().sub_select_optimal_added_parameters(1),
        ValueError,
        "second: there is no previous module, so no neurons can be added before it",
    ),
    "sub_select_without_alpha": (
        lambda: without_alpha().sub_select_optimal_added_parameters(1),
        ValueError,
        "first: there is no output extension; compute or create it first",
    ),
    "n_update_without_next": (
        lambda: n_update(None),
        TypeError,
        "first: the next module is NoneType, expected a growing layer",
    ),
    "n_update_before_a_plain_layer": (
        lambda: n_update(Linear(3, 2)),
        TypeError,
        "first: the next module is Linear, expected a growing layer",
    ),
    "n_update_before_a_merge": (
        lambda: n_update(merge()),
        TypeError,
        "first: the next module is LinearMergeGrowingModule, expected a growing layer",
    ),
    "delta_before_stats": (lambda: layer(4, 3).compute_optimal_delta(), ValueError, "there are no samples"),
    "foi_before_delta": (
        lambda: Pair.of().second.first_order_improvement,
        ValueError,
        "no update is planned; call compute_optimal_updates",
    ),
    "select_both": (
        lambda: planned().second.sub_select_optimal_added_parameters(1, 0.5),
        ValueError,
        "pass either keep_neurons or threshold, found 1, 0.5",
    ),
    "wrong_input": (
        lambda: layer(4, 3)(np.ones((2, 5))),
        ValueError,
        r"shape \(2, 5\), weight expects a last axis of 4",
    ),
    "negative_width": (lambda: layer(-1, 3), ValueError, "features must not be negative"),
    "bias_missing": (lambda: layer(4, 3).layer_of_tensor(np.ones((3, 4))), ValueError, "but a bias was not given"),
    "bias_too_many": (
        lambda: layer(4, 3, bias=False).layer_of_tensor(np.ones((3, 4)), np.ones(3)),
        ValueError,
        "use_bias is False, but a bias was given",
    ),
    "omega_shape": (
        lambda: layer(4, 3).plan_input_extension(np.ones((2, 1))),
        ValueError,
        r"omega has shape \(2, 1\), expected \(3, new neurons\)",
    ),
    "alpha_shape": (
        lambda: layer(4, 3).set_output_extension(np.ones((2, 4))),
        ValueError,
        r"alpha has shape \(2, 4\), expected \(new neurons, 5\)",
    ),
    "add_nothing": (lambda: layer(4, 3).add_parameters(None, None), ValueError, "one at a time; found 0, 0"),
    "rows_without_bias": (
        lambda: layer(4, 3).layer_out_extension(np.ones((1, 4))),
        ValueError,
        "the layer has a bias, so its output extension needs one; pass bias=",
    ),
    "rows_and_biases": (
        lambda: layer(4, 3).layer_out_extension(np.ones((2, 4)), np.ones(1)),
        ValueError,
        "weight has 2 rows, bias 1 entries",
    ),
}


@pytest.mark.parametrize("case", MERGE_CASES)
def test_misuse_of_a_merge(case: str) -> None:
    attempt, error, message = MERGE_CASES[case]
    with pytest.raises(error, match=message):
        attempt()


@pytest.mark.parametrize("case", AFTER_MERGE)
def test_misuse_of_a_layer_after_a_merge(case: str) -> None:
    attempt, error, message = AFTER_MERGE[case]
    with pytest.raises(error, match=message):
        attempt()


@pytest.mark.parametrize("case", LAYER_CASES)
def test_misuse_of_a_layer(case: str) -> None:
    attempt, error, message = LAYER_CASES[case]
    with pytest.raises(error, match=message):
        attempt()


# What is allowed, with or without a warning.


def test_neighbours_that_the_original_accepts_are_accepted() -> None:
    merge(next_modules=[Linear(3, 2)])
    joint = MergeCase.of()
    joint.merge.update_scaling_factor(np.array([0.4]))
    assert joint.readers[0].scaling_factor == 0.4
    assert layer(4, 3).compute_optimal_updates is not None
    module = storing("store_input")
    module.store_pre_activity = True
    module.vjp(X)[1](np.ones((30, 3)))
    module.update_computation()
    assert module.compute_optimal_updates() == (None, None)  # updates_no_prev: the delta alone
    assert module.first_order_improvement > 0


def test_new_readers_of_a_merge_in_use_warn() -> None:
    joint = MergeCase.of(bias=(True, False)).collect([X, X[:, :3]], lambda ys: ys)
    with pytest.warns(UserWarning, match=r"merge: S\(merge\) holds 30 samples"):
        joint.merge.set_next_modules([])


@pytest.mark.filterwarnings("ignore:merge. M")
def test_new_branches_of_a_merge_in_use_warn() -> None:
    joint = MergeCase.of(bias=(True, False)).collect([X, X[:, :3]], lambda ys: ys)
    with pytest.warns(UserWarning, match=r"merge: S\[-1\]\(merge\) holds 30 samples"):
        joint.merge.set_previous_modules([])


def test_x_ext_without_extension_warns_and_is_ignored() -> None:
    pair = Pair.of()
    with pytest.warns(UserWarning, match="second: x_ext is given, but there is no input extension; it is ignored"):
        y, y_ext = pair.second.extended_forward(np.ones((1, 3)), np.ones((1, 2)))
    np.testing.assert_array_equal(y, pair.second(np.ones((1, 3))))
    assert y_ext is None


def test_a_scaling_of_zero_warns() -> None:
    pair = planned()
    with pytest.warns(UserWarning, match="second: the input extension is applied with scaling 0"):
        pair.second.apply_change()


def test_the_scaling_factor_fans_out() -> None:
    """Fact scaling_factor_fan_out."""
    pair = Pair.of()
    pair.first.scaling_factor = 0.5
    pair.second.scaling_factor = 0.4
    assert (pair.second.optimal_delta_scaling, pair.second.input_extension_scaling) == (pytest.approx(0.16), 0.4)
    assert (pair.first.output_extension_scaling, pair.first.scaling_factor) == (0.4, 0.5)
    assert pair.second.output_extension_scaling == 0.0


@pytest.mark.parametrize("value", [0.4, np.float32(0.4), np.array([0.4]), np.array(0.4)], ids=repr)
def test_a_scaling_factor_may_be_any_single_number(value: Any) -> None:
    module = layer(4, 3)
    module.scaling_factor = value
    assert module.scaling_factor == pytest.approx(0.4)
    assert type(module.scaling_factor) is float


def test_targets_say_how_many_neurons_are_missing() -> None:
    module = layer(3, 2, target_in_features=9)
    assert (module.missing_neurons(), module.number_of_neurons_to_add(number_of_growth_steps=4)) == (6, 1)


@pytest.mark.parametrize(("fan_in", "fan_out"), [(False, True), (True, False), (True, True), (False, False)], ids=str)
def test_a_selection_padded_with_zeros_keeps_both_sizes(fan_in: bool, fan_out: bool) -> None:
    """Fact sub_select_zeros_fan_in_false_truncates."""
    pair = planned()
    pair.second.sub_select_optimal_added_parameters(
        1, zeros_if_not_enough=True, zeros_fan_in=fan_in, zeros_fan_out=fan_out
    )
    inner, outer = pair.second.extended_input_layer, pair.first.extended_output_layer
    assert (inner.in_features, outer.out_features) == (2, 2)
    assert (outer.weight.data[1].any(), inner.weight.data[:, 1].any()) == (not fan_in, not fan_out)
    assert (outer.weight.data[0].any(), inner.weight.data[:, 0].any()) == (True, True)
    assert pair.second.eigenvalues_extension[1] == 0.0 < pair.second.eigenvalues_extension[0]
    pair.second.scaling_factor = 0.3
    extended = pair.extended(X)
    pair.second.apply_change()
    np.testing.assert_allclose(pair.forward(X), extended, atol=1e-12)


# A change that cannot be carried out changes nothing.


def without_extension(pair: Pair) -> dict[str, Any]:
    pair.first.set_output_extension(None)
    return {"scaling_factor": 0.5}


def with_group_norm(pair: Pair) -> dict[str, Any]:
    pair.first.post_layer_function = Sequential(GrowingGroupNorm(3, 3), ReLU())
    return {"scaling_factor": 0.5}


SPOILT: dict[str, tuple[Callable[[Pair], dict[str, Any]], type[Exception], str]] = {
    "no_output_extension": (without_extension, ValueError, "first: there is no output extension to apply"),
    "group_norm": (with_group_norm, ValueError, "5 channels cannot be split into 3 equal groups"),
    "bad_scaling": (
        lambda pair: {"scaling_factor": 0.5, "optimal_delta_scaling": "much"},
        TypeError,
        "second.optimal_delta_scaling: expected a number, found str 'much'",
    ),
    "size": (lambda pair: {"scaling_factor": 0.5, "extension_size": 3}, ValueError, "extension has 2 neurons"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_refused_change_changes_nothing(kind: str) -> None:
    spoil, error, message = SPOILT[kind]
    pair = planned()
    options = spoil(pair)
    arrays = [p.data for m in (pair.first, pair.second) for p in m.parameters()]
    with pytest.raises(error, match=message):
        pair.second.apply_change(**options)
    for parameter, array in zip([p for m in (pair.first, pair.second) for p in m.parameters()], arrays, strict=True):
        assert parameter.data is array
    assert pair.second.scaling_factor == pair.first.output_extension_scaling == 0.0
