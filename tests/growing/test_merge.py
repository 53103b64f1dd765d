"""LinearMergeGrowingModule: statistics over all branches, one solve for their deltas, and what it keeps."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.growing import LinearGrowingModule, LinearMergeGrowingModule, layer_vjp
from growarray.nn import ReLU
from growarray.testing import check_vjp
from tests.conftest import Library, frozen
from tests.growing.pairs import MergeCase, layer

LAYER_PARTS = ("input", "pre_activity", "gradient", "moment")
RNG = np.random.default_rng(7)
XS = [frozen(RNG.standard_normal((30, d))) for d in (4, 3, 5)]
TARGETS = [frozen(RNG.standard_normal((30, o))) for o in (2, 3)]


def gradients(ys: list[Any]) -> list[Any]:
    return [y - target for y, target in zip(ys, TARGETS, strict=False)]


def wide(xs: list[np.ndarray], biases: list[bool]) -> np.ndarray:
    """All inputs side by side, each with its ones."""
    parts = [np.concatenate([x, np.ones((len(x), int(b)))], axis=1) for x, b in zip(xs, biases, strict=True)]
    return np.concatenate(parts, axis=1)


def test_the_pullback_agrees_with_differences() -> None:
    merge = LinearMergeGrowingModule(ReLU(), in_features=3)
    check_vjp(merge.vjp, RNG.standard_normal((4, 3)))


@pytest.mark.parametrize("same", [True, False], ids=["one_input", "two_inputs"])
def test_what_branches_make_of_one_gradient_is_made_once(same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same input with the same gradient is one moment; it is made anew for a batch in the same memory."""
    rng, made, inner = np.random.default_rng(0), list[int](), layer_vjp.cross_moment
    monkeypatch.setattr(layer_vjp, "cross_moment", lambda *args: made.append(1) or inner(*args))
    a, b = (LinearGrowingModule(4, 2, rng=rng, dtype=np.float64) for _ in range(2))
    merge = LinearMergeGrowingModule(previous_modules=[a, b], in_features=2)
    merge.init_computation()
    x, dz = np.empty((5, 4)), np.empty((5, 2))
    other = x if same else np.empty((5, 4))
    total = 0.0
    for _ in range(2):
        x[...], other[...], dz[...] = (rng.standard_normal(array.shape) for array in (x, other, dz))
        (ya, back_a), (yb, back_b) = a.vjp(x), b.vjp(other)
        gradient = merge.vjp(ya + yb)[1](dz)
        back_a(gradient)
        back_b(gradient)
        merge.update_computation()
        total = total + wide([x, other], [True, True]).T @ dz
        np.testing.assert_allclose(b.weight.grad, total[5:9].T, rtol=1e-13)
    np.testing.assert_allclose(merge.previous_tensor_m(), total / 10, rtol=1e-13)
    assert len(made) == (2 if same else 4)
    assert a.recorder.pool is b.recorder.pool
    merge.reset_computation()
    assert not a.recorder.pool


BRANCHES = {
    "both_biased": ((4, 3), (True, True), (0, 1)),
    "one_biased": ((4, 3), (False, True), (0, 1)),
    "unbiased": ((4, 3), (False, False), (0, 1)),
    "shared_input": ((4, 4), (True, False), (0, 0)),
    "three": ((4, 3, 5), (True, True, False), (0, 1, 2)),
}


@pytest.mark.parametrize("kind", BRANCHES)
def test_statistics_run_over_the_full_activity(kind: str) -> None:
    inputs, biases, sources = BRANCHES[kind]
    joint = MergeCase.of(inputs, (2, 3), bias=biases, sources=sources, function="relu")
    joint.collect(XS, gradients)
    full = wide([XS[source] for source in sources], list(biases))
    np.testing.assert_allclose(joint.merge.construct_full_activity(), full)
    activity = np.concatenate([joint.merge.activity, np.ones((30, 1))], axis=1)
    dz = joint.merge.pre_activity_grad
    both = np.concatenate([reader.pre_activity_grad for reader in joint.readers], axis=1)
    for statistic, expected in (
        (joint.merge.tensor_s, activity.T @ activity),
        (joint.merge.previous_tensor_s, full.T @ full),
        (joint.merge.previous_tensor_m, full.T @ dz),
        (joint.merge.tensor_m_prev, full.T @ both),
        (joint.merge.cross_covariance, full.T @ activity),
        (joint.merge.covariance_loss_gradient, both.T @ both),
        (joint.readers[1].tensor_m, activity.T @ joint.readers[1].pre_activity_grad),
    ):
        np.testing.assert_allclose(statistic(), expected / 30, atol=1e-12)
        assert statistic.samples == 30
    assert joint.readers[0].tensor_s is joint.merge.tensor_s


@pytest.mark.parametrize("kind", BRANCHES)
def test_one_solve_serves_all_branches(kind: str) -> None:
    inputs, biases, sources = BRANCHES[kind]
    joint = MergeCase.of(inputs, bias=biases, sources=sources).collect(XS, gradients)
    full, dz = wide([XS[source] for source in sources], list(biases)), joint.merge.pre_activity_grad
    singular = int(np.linalg.matrix_rank(full)) < full.shape[1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        deltas = joint.merge.compute_optimal_delta(return_deltas=True)
    assert [str(w.message).startswith("optimal_delta: S is singular") for w in caught] == [True] * singular
    expected = np.linalg.lstsq(full, dz, rcond=None)[0]  # of least norm where there are many
    start = 0
    for branch, (weight, bias) in zip(joint.branches, deltas, strict=True):
        stop = start + branch.in_features
        np.testing.assert_allclose(weight, expected[start:stop].T, atol=1e-9)
        assert (bias is None) is not branch.use_bias
        if bias is not None:
            np.testing.assert_allclose(bias, expected[stop], atol=1e-9)
        np.testing.assert_allclose(branch.optimal_delta_layer.weight.data, weight)
        start = stop + int(branch.use_bias)
    np.testing.assert_allclose(joint.merge.projected_v_goal(), dz - full @ expected, atol=1e-9)
    assert joint.merge.parameter_update_decrease == pytest.approx(np.sum((full @ expected) ** 2) / 30)


def test_a_delta_that_is_only_asked_for_is_not_planned() -> None:
    joint = MergeCase.of(bias=(True, False)).collect(XS, gradients)
    assert len(joint.merge.compute_optimal_delta(update=False, return_deltas=True)) == 2
    assert all(branch.optimal_delta_layer is None for branch in joint.branches)
    assert joint.merge.compute_optimal_delta() is None


def test_a_next_layer_without_bias_is_solved_without_the_ones() -> None:
    """Fact merge_next_without_bias_three_prev_shared_1."""
    joint = MergeCase.of(next_bias=False, bias=(True, False)).collect(XS, gradients)
    weight, bias, _ = joint.readers[0].compute_optimal_delta()
    dy = joint.readers[0].pre_activity_grad
    np.testing.assert_allclose(weight, np.linalg.lstsq(joint.merge.activity, dy, rcond=None)[0].T, atol=1e-10)
    assert bias is None


def test_a_branch_of_another_dtype_keeps_it() -> None:
    """Fact buffers_use_default_dtype."""
    joint = MergeCase.of(bias=(True, False), dtype=np.float32)
    joint.collect([x.astype(np.float32) for x in XS], lambda ys: ys)
    assert joint.merge.construct_full_activity().dtype == np.float32
    assert joint.merge.previous_tensor_m().dtype == np.float64
    joint.merge.compute_optimal_delta()
    assert joint.branches[0].optimal_delta_layer.weight.data.dtype == np.float32


# What is kept.


def test_counters_never_go_negative() -> None:
    """Fact merge_store_input_counter_goes_negative."""
    joint = MergeCase.of(allow_growing=False)
    joint.branches[0].next_module = joint.merge
    found = []
    joint.merge.init_computation()
    found.append(joint.merge.store_input)
    joint.merge.reset_computation()
    joint.merge.reset_computation()
    found.append(joint.merge.store_input)
    assert found == [1, 0]
    assert [branch.store_input for branch in joint.branches] == [0, 0]
    joint.merge.init_computation()
    joint.back(XS, gradients)
    joint.merge.update_computation()
    assert joint.merge.previous_tensor_s.samples == 30


def test_everything_is_let_go_at_the_end() -> None:
    joint = MergeCase.of().collect(XS, gradients)
    joint.merge.reset_computation()
    assert [joint.merge.recorder.get(what) for what in ("input", "activity", "gradient")] == [None] * 3
    for module in (*joint.branches, *joint.readers):
        assert [module.recorder.get(what) for what in LAYER_PARTS] == [None] * 4
    assert {m.store_input for m in joint.modules} == {0}
    assert joint.merge.tensor_s.samples == 0


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_nothing_is_kept_unless_somebody_asks(mode: bool) -> None:
    merge = LinearMergeGrowingModule(in_features=3)
    merge.train(mode)
    y, pullback = merge.vjp(np.ones((2, 3)))
    pullback(y)
    assert [merge.recorder.get(what) for what in ("input", "activity", "gradient")] == [None] * 3


def test_a_second_collection_of_a_reader_forgets_the_first() -> None:
    joint = MergeCase.of(allow_growing=False, bias=(True, False))
    reader = joint.readers[0]
    for scale in (1.0, 2.0):
        reader.init_computation()
        joint.back([scale * x for x in XS], gradients)
        reader.update_computation()
        activity = np.concatenate([joint.merge.activity, np.ones((30, 1))], axis=1)
        np.testing.assert_allclose(reader.tensor_s(), activity.T @ activity / 30)
        assert reader.tensor_s.samples == 30
        reader.reset_computation()
        assert joint.merge.store_activity == 0


def test_a_pair_behind_a_merge_collects_on_its_own() -> None:
    joint = MergeCase.of(allow_growing=False)
    last = layer(2, 2, previous_module=joint.readers[0])
    last.init_computation()
    z = sum(branch(x) for branch, x in zip(joint.branches, XS, strict=False))
    a, _ = joint.merge.vjp(z)
    h, back = joint.readers[0].vjp(a)
    y, back_last = last.vjp(h)
    back(back_last(y - TARGETS[0]))
    last.update_computation()
    activity = np.concatenate([a, np.ones((30, 1))], axis=1)
    np.testing.assert_allclose(last.tensor_s_growth(), activity.T @ activity / 30)
    last.compute_optimal_updates(max_new=1)
    last.apply_change(scaling_factor=0.1)
    assert (joint.readers[0].out_features, last.in_features) == (3, 3)
    last.reset_computation()
    assert (joint.merge.store_activity, joint.readers[0].store_input) == (0, 0)


def test_a_merge_inside_the_branches_contributes_nothing_of_its_own() -> None:
    inner = LinearMergeGrowingModule(in_features=3, previous_modules=[layer(4, 3)])
    outer = LinearMergeGrowingModule(in_features=3, previous_modules=[inner, layer(5, 3)])
    assert outer.total_in_features == 6
    assert outer.previous_tensor_s.shape == (6, 6)


# Neighbours.


def test_sizes_follow_the_neighbours() -> None:
    joint = MergeCase.of(allow_growing=False)
    merge = joint.merge
    for branch in joint.branches:
        with pytest.warns(UserWarning, match="its size changes"):
            branch.add_parameters(None, None, added_out_features=2)
    with pytest.warns(UserWarning, match="its size changes"):
        joint.readers[0].add_parameters(None, None, added_in_features=2)
    merge.update_size()
    merge.grow()
    assert (merge.in_features, merge.tensor_s.shape, merge.previous_tensor_m.shape) == (5, (6, 6), (9, 5))
    merge.add_previous_module(layer(2, 5))
    merge.add_next_module(layer(5, 1))
    assert (merge.number_of_predecessors, merge.number_of_successors, merge.sum_out_features()) == (3, 2, 3)
    assert merge.previous_tensor_s.shape == (12, 12)


def test_refused_neighbours_change_nothing() -> None:
    joint = MergeCase.of()
    before, after = list(joint.merge.previous_modules), list(joint.merge.next_modules)
    with pytest.raises(ValueError, match="previous module wrong has 2 outputs, the merge expects 3"):
        joint.merge.set_previous_modules([layer(4, 3), layer(4, 2, name="wrong")])
    with pytest.raises(ValueError, match="next module wrong has 2 inputs, the merge has 3 outputs"):
        joint.merge.set_next_modules([layer(3, 3), layer(2, 2, name="wrong")])
    assert (joint.merge.previous_modules, joint.merge.next_modules) == (before, after)


def test_one_factor_scales_all_neighbours_or_none() -> None:
    joint = MergeCase.of()
    joint.merge.scaling_factor = np.array([0.4])
    assert joint.merge.scaling_factor == 0.4
    assert {b.output_extension_scaling for b in joint.branches} == {0.4, joint.merge.output_extension_scaling}
    reader = joint.readers[0]
    assert (reader.scaling_factor, reader.optimal_delta_scaling) == (0.4, pytest.approx(0.16))
    joint.merge.next_modules.append(ReLU())
    with pytest.raises(TypeError, match="ReLU is not a growing layer, so it has no scaling"):
        joint.merge.update_scaling_factor(0.7)
    assert {b.output_extension_scaling for b in joint.branches} == {0.4}


def test_every_library_collects_the_same(xp: Library) -> None:
    joint = MergeCase.of((4, 3), (2, 3), bias=(True, False))
    for module in (*joint.branches, *joint.readers):
        xp.adopt(module)
    targets = [xp.asarray(target) for target in TARGETS]
    joint.collect([xp.asarray(x) for x in XS], lambda ys: [y - t for y, t in zip(ys, targets, strict=True)])
    joint.merge.compute_optimal_delta()
    reference = MergeCase.of((4, 3), (2, 3), bias=(True, False)).collect(XS, gradients)
    reference.merge.compute_optimal_delta()
    for ours, theirs in zip(joint.branches, reference.branches, strict=True):
        for p, q in zip(ours.optimal_delta_layer.parameters(), theirs.optimal_delta_layer.parameters(), strict=True):
            np.testing.assert_allclose(to_numpy(p.data), q.data, atol=1e-10)
    assert isinstance(ours, LinearGrowingModule)
