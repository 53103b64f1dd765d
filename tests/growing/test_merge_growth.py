"""Growth through a merge: every branch and every reader widen together, or nothing changes at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.errors import GrowthError
from growarray.growing import GRADMAX, TINY, LinearMergeGrowingModule
from growarray.growing.norm import GrowingBatchNorm1d, GrowingGroupNorm
from growarray.nn import ReLU, Sequential, Tanh
from growarray.optim import SGD, Adam
from tests.conftest import Library, frozen
from tests.growing.pairs import MergeCase, Pair, layer

RNG = np.random.default_rng(8)
XS = [frozen(RNG.standard_normal((40, d))) for d in (4, 3)]
TARGETS = [frozen(RNG.standard_normal((40, o))) for o in (2, 3)]
BIAS = (True, False)


def gradients(ys: list[Any]) -> list[Any]:
    return [y - target for y, target in zip(ys, TARGETS, strict=False)]


def planned(outputs: tuple[int, ...] = (2, 3), **options: Any) -> MergeCase:
    joint = MergeCase.of((4, 3), outputs, bias=BIAS, **options).collect(XS, gradients)
    joint.merge.compute_optimal_updates(max_new=2)
    return joint


def snapshot(joint: MergeCase) -> list[Any]:
    """Weights, widths, scalings and plans."""
    found: list[Any] = []
    for module in (*joint.branches, *joint.readers):
        found += [module.layer.weight.data.copy(), module.optimal_delta_scaling, module.output_extension_scaling]
        for part in (module.optimal_delta_layer, module.extended_input_layer, module.extended_output_layer):
            found.append(None if part is None else part.weight.data.copy())
    return [*found, joint.merge.in_features, joint.merge.new_neurons]


def assert_unchanged(joint: MergeCase, before: list[Any]) -> None:
    for now, then in zip(snapshot(joint), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_every_library_grows_the_same(xp: Library) -> None:
    def grown(to: Any, adopt: Any) -> list[np.ndarray]:
        joint = MergeCase.of((4, 3), (2, 3), bias=BIAS)
        for module in (*joint.branches, *joint.readers):
            adopt(module)
        targets = [to(target) for target in TARGETS]
        joint.collect([to(x) for x in XS], lambda ys: [y - t for y, t in zip(ys, targets, strict=True)])
        joint.merge.compute_optimal_updates(use_fisher=True, fisher_shrinkage=0.1)
        joint.merge.sub_select_optimal_added_parameters(2)
        joint.merge.apply_change(scaling_factor=0.5)
        joint.merge.delete_update()
        joint.merge.reset_computation()
        return [to_numpy(p.data) for m in (*joint.branches, *joint.readers) for p in m.parameters()]

    for ours, theirs in zip(grown(xp.asarray, xp.adopt), grown(frozen, lambda m: m), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_reader_asks_its_merge_to_plan() -> None:
    joint, other = MergeCase.of((4, 3), (2,), bias=BIAS).collect(XS, gradients), planned((2,))
    assert joint.readers[0].compute_optimal_updates(max_new=2) == (None, None)
    np.testing.assert_array_equal(
        joint.readers[0].extended_input_layer.weight.data, other.readers[0].extended_input_layer.weight.data
    )


def test_a_single_reader_may_carry_the_change_out() -> None:
    joint, other = planned((2,)), planned((2,))
    joint.readers[0].apply_change(scaling_factor=0.3)
    other.merge.apply_change(scaling_factor=0.3)
    for ours, theirs in zip(joint.forward(XS), other.forward(XS), strict=True):
        np.testing.assert_allclose(ours, theirs)
    assert joint.merge.in_features == joint.readers[0].in_features == 5


def test_one_of_several_readers_may_not() -> None:
    joint = planned()
    before = snapshot(joint)
    with pytest.raises(GrowthError, match="merge: 2 layers read this merge and must widen together; call the merge's"):
        joint.readers[0].apply_change(scaling_factor=0.3)
    assert_unchanged(joint, before)


@pytest.mark.parametrize("keep", [0, 1, 2, 9])
def test_a_selection_holds_on_both_sides(keep: int) -> None:
    joint = planned()
    values = joint.merge.eigenvalues_extension.copy()
    joint.merge.sub_select_optimal_added_parameters(keep)
    left = min(keep, 2)
    assert joint.merge.new_neurons == left
    np.testing.assert_array_equal(joint.merge.eigenvalues_extension, values[:left])
    joint.merge.scaling_factor = 0.4
    extended = joint.extended(XS)
    joint.merge.apply_change()
    assert joint.merge.in_features == 3 + left
    for y, expected in zip(joint.forward(XS), extended, strict=True):
        np.testing.assert_allclose(y, expected, atol=1e-12)


def test_forgetting_a_plan_leaves_the_function_alone() -> None:
    joint = planned()
    before = joint.forward(XS)
    joint.merge.delete_update()
    assert joint.merge.new_neurons == 0
    assert all(b.extended_output_layer is None for b in joint.branches)
    assert all(r.extended_input_layer is None and r.optimal_delta_layer is None for r in joint.readers)
    for y, kept in zip(joint.extended(XS), before, strict=True):
        np.testing.assert_array_equal(y, kept)
    with pytest.raises(GrowthError, match="no update is planned"):
        _ = joint.merge.first_order_improvement


def test_gradmax_leaves_alpha_zero_and_sums_the_values() -> None:
    joint = planned()
    joint.merge.compute_optimal_updates(GRADMAX)
    assert not any(b.extended_output_layer.weight.data.any() for b in joint.branches)
    assert joint.merge.first_order_improvement == pytest.approx(joint.merge.eigenvalues_extension.sum())


# Optimizer state.


def slots_of(module: Any) -> dict[str, dict[str, np.ndarray]]:
    return {
        name: {key: np.broadcast_to(value, p.shape).copy() for key, value in p.slots.items()}
        for name, p in module.named_parameters()
    }


def corner(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array[tuple(slice(0, n) for n in shape)]


OPTIMIZERS = {
    "sgd": lambda modules: SGD([p for m in modules for p in m.parameters()], 0.01, momentum=0.9),
    "adam": lambda modules: Adam([p for m in modules for p in m.parameters()], 0.01),
    "amsgrad": lambda modules: Adam([p for m in modules for p in m.parameters()], 0.01, amsgrad=True),
}


@pytest.mark.parametrize("where", ["pair", "merge"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_state_survives_growth(kind: str, where: str) -> None:
    network: Any = Pair.of((4, 3, 2)) if where == "pair" else MergeCase.of((4, 3), (2, 3), bias=BIAS)
    modules = [network.first, network.second] if where == "pair" else [*network.branches, *network.readers]
    optimizer = OPTIMIZERS[kind](modules)

    def back() -> None:
        optimizer.zero_grad()
        if where == "pair":
            network.back(XS[0], lambda y: y - TARGETS[0])
        else:
            network.back(XS, gradients)

    for _ in range(3):
        back()
        optimizer.step()
    if where == "pair":
        network.collect(XS[0], lambda y, at: y - TARGETS[0][at])
        place = network.second
    else:
        place = network.collect(XS, gradients).merge
    place.compute_optimal_updates(max_new=2)
    before = [(m, slots_of(m)) for m in modules]
    place.apply_change(scaling_factor=0.1)
    place.delete_update()
    place.reset_computation()
    for module, old in before:
        new = slots_of(module)
        for name, parameter in module.named_parameters():
            for key, value in old[name].items():
                grown = new[name][key]
                assert np.array_equal(corner(grown, value.shape), value), (name, key)
                assert np.count_nonzero(grown) == np.count_nonzero(value)  # new entries start at zero
            assert {v.shape for v in new[name].values()} == {parameter.shape}
    back()
    weights = [p.data for m in modules for p in m.parameters()]
    optimizer.step()
    for p, old_data in zip([p for m in modules for p in m.parameters()], weights, strict=True):
        assert np.isfinite(p.data).all()
        assert (p.data != old_data).mean() > 0.9


# What is refused, before anything changes.


def test_a_chain_of_merges_is_refused_by_name() -> None:
    inner = LinearMergeGrowingModule(in_features=3, previous_modules=[layer(4, 3)], name="inner")
    outer = LinearMergeGrowingModule(
        Tanh(), [inner, layer(3, 3)], [layer(3, 2)], allow_growing=True, in_features=3, name="outer"
    )
    message = r"outer: growth through a chain of merges \(inner\) is not supported; supported: growing layers"
    for attempt in (outer.init_computation, outer.compute_optimal_updates, outer.apply_change):
        with pytest.raises(NotImplementedError, match=message):
            attempt()
    before = LinearMergeGrowingModule(
        Tanh(), [layer(4, 3)], [LinearMergeGrowingModule(in_features=3, name="after")], True, 3, name="before"
    )
    with pytest.raises(NotImplementedError, match=r"chain of merges \(after\)"):
        before.compute_optimal_updates()


def test_a_function_before_the_sum_is_refused_by_name() -> None:
    branch = layer(4, 3, post_layer_function=ReLU(), name="bent")
    merge = LinearMergeGrowingModule(Tanh(), [branch], [layer(3, 2)], True, 3)
    with pytest.raises(NotImplementedError, match="previous layer bent applies ReLU before the sum"):
        merge.init_computation()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "off": ({"allow_growing": False}, "growth through the merge is off; construct it with allow_growing=True"),
    "no_readers": ({"outputs": ()}, "growth needs previous layers and next layers; set both first"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_growth_that_cannot_be_is_refused(kind: str) -> None:
    options, message = REFUSED[kind]
    with pytest.raises(GrowthError, match=message):
        MergeCase.of(**{"outputs": (2,), **options}).merge.compute_optimal_updates()


def test_nothing_is_planned_without_samples() -> None:
    joint = MergeCase.of()
    with pytest.raises(GrowthError, match=r"S\(merge\): there are no samples, so there is no mean"):
        joint.merge.compute_optimal_updates(TINY)
    with pytest.raises(GrowthError, match="no neurons are planned; call compute_optimal_updates"):
        joint.merge.sub_select_optimal_added_parameters(1)


def test_a_function_that_cannot_widen_refuses_before_anything_changes() -> None:
    joint = planned()
    joint.merge.post_merge_function = Sequential(GrowingGroupNorm(3, 3), Tanh())
    before = snapshot(joint)
    with pytest.raises(ValueError, match="5 channels cannot be split into 3 equal groups"):
        joint.merge.apply_change(scaling_factor=0.1)
    assert_unchanged(joint, before)


def test_a_plan_that_lost_a_part_is_refused_before_anything_changes() -> None:
    for spoil, message in (
        (lambda branch: branch.set_output_extension(None), "branch1: there is no output extension to apply"),
        (lambda branch: branch.keep_output_extension(1), r"the previous layers' extensions have \[1, 2\] neurons"),
    ):
        joint = planned()
        spoil(joint.branches[1])
        before = snapshot(joint)
        for attempt in (lambda j=joint: j.merge.apply_change(scaling_factor=0.1), joint.merge.apply_output_extension):
            with pytest.raises(GrowthError, match=message):
                attempt()
            assert_unchanged(joint, before)


def test_normalisation_behind_a_merge_widens_with_it() -> None:
    joint = MergeCase.of((4, 3), (2,), bias=BIAS)
    joint.merge.post_merge_function = Sequential(GrowingBatchNorm1d(3, dtype=np.float64), Tanh())
    joint.collect(XS, gradients).merge.compute_optimal_updates(max_new=2)
    joint.merge.apply_change(scaling_factor=0.1)
    assert joint.merge.post_merge_function[0].num_features == 5
    assert joint.forward(XS)[0].shape == (40, 2)
