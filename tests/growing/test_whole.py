"""A change, a plan or a batch is taken whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray.errors import GrowthError, ShapeError
from growarray.growing import FISHER, TINY, GrowthUpdate, LinearGrowingModule, LinearMergeGrowingModule, optimal_delta
from growarray.growing import added_neurons as neurons
from growarray.growing.place import take
from growarray.growing.rule import GrowthRule
from growarray.nn import GELU

RNG = np.random.default_rng(3)
X = RNG.standard_normal((30, 4))
TARGET = np.sin(X[:, :3])


class Chain:
    """Three growing layers; ``collect`` adds a batch to the statistics of both places."""

    def __init__(self) -> None:
        kind: dict[str, Any] = {"rng": np.random.default_rng(0), "dtype": np.float64}
        self.a = LinearGrowingModule(4, 3, post_layer_function=GELU(), name="a", **kind)
        self.b = LinearGrowingModule(3, 2, post_layer_function=GELU(), previous_module=self.a, name="b", **kind)
        self.c = LinearGrowingModule(2, 3, previous_module=self.b, name="c", **kind)
        self.a.next_module, self.b.next_module = self.b, self.c
        for place in (self.b, self.c):
            place.init_computation()

    def batch(self, spoil: Callable[[np.ndarray], None] = lambda g: None) -> None:
        h, back_a = self.a.vjp(X)
        h, back_b = self.b.vjp(h)
        y, back_c = self.c.vjp(h)
        gradient = y - TARGET
        spoil(gradient)
        back_a(back_b(back_c(gradient)))

    def collect(self) -> Chain:
        self.batch()
        for place in (self.b, self.c):
            place.update_computation()
        return self

    def weights(self) -> list[np.ndarray]:
        return [p.data.copy() for place in (self.a, self.b, self.c) for p in place.parameters()]


def unchanged(chain: Chain, weights: list[np.ndarray]) -> bool:
    return all(np.array_equal(new, old) for new, old in zip(chain.weights(), weights, strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_batch_with_a_broken_gradient_is_left_out_of_every_statistic(value: float) -> None:
    chain = Chain().collect()
    before = [s() for s in (*chain.c.statistics.all, *chain.b.statistics.all)]

    def spoil(gradient: np.ndarray) -> None:
        gradient[0, 0] = value

    with np.errstate(invalid="ignore"):
        chain.batch(spoil)
        for place in (chain.c, chain.b):
            with pytest.raises(GrowthError, match="NaN or infinite values"):
                place.update_computation()
    for statistic, mean in zip((*chain.c.statistics.all, *chain.b.statistics.all), before, strict=True):
        assert statistic.samples == len(X)
        np.testing.assert_array_equal(statistic(), mean)


def test_a_merge_leaves_a_batch_with_a_broken_gradient_out_too() -> None:
    kind: dict[str, Any] = {"rng": np.random.default_rng(0), "dtype": np.float64}
    left, right = LinearGrowingModule(4, 2, **kind), LinearGrowingModule(4, 2, False, **kind)
    merge = LinearMergeGrowingModule(GELU(), [left, right], allow_growing=True, in_features=2)
    head = LinearGrowingModule(2, 3, previous_module=merge, **kind)
    merge.set_next_modules([head])
    merge.init_computation()
    for value in (0.0, np.nan):
        a, back_left = left.vjp(X)
        b, back_right = right.vjp(X)
        h, back_merge = merge.vjp(a + b)
        y, back_head = head.vjp(h)
        dz = back_merge(back_head(y - TARGET + value))
        back_left(dz), back_right(dz)
        if value == 0.0:
            merge.update_computation()
    with pytest.raises(GrowthError, match="NaN or infinite values"):
        merge.update_computation()
    assert {s.samples for s in merge.statistics.all} == {len(X)}


@pytest.mark.parametrize("first", ["b", "c"])
def test_a_plan_for_other_widths_is_refused_whole(first: str) -> None:
    chain = Chain().collect()
    for place in (chain.b, chain.c):
        place.compute_optimal_updates(max_new=2)
    done, stale = (chain.b, chain.c) if first == "b" else (chain.c, chain.b)
    done.apply_change(scaling_factor=0.5)
    weights = chain.weights()
    with pytest.raises(ShapeError, match=r"planned .*; call delete_update\(\)"):
        stale.apply_change(scaling_factor=0.5)
    assert unchanged(chain, weights)
    chain.c(chain.b(chain.a(X)))  # the widths still fit


def test_extensions_of_two_sizes_are_refused_before_one_is_applied() -> None:
    chain = Chain()
    chain.c.create_layer_extensions(2)
    chain.c.create_layer_in_extension(3)
    weights = chain.weights()
    with pytest.raises(ShapeError, match="b: the output extension has 2 neurons, the next module's input extension 3"):
        chain.c.apply_change(scaling_factor=1.0)
    assert unchanged(chain, weights)


def planned_merge() -> tuple[LinearGrowingModule, LinearGrowingModule, LinearMergeGrowingModule, LinearGrowingModule]:
    """Two layers into a merge, the layer after it, and a plan of one neuron."""
    kind: dict[str, Any] = {"rng": np.random.default_rng(0), "dtype": np.float64}
    left, right = LinearGrowingModule(4, 2, **kind), LinearGrowingModule(4, 2, **kind)
    merge = LinearMergeGrowingModule(GELU(), [left, right], allow_growing=True, in_features=2, name="merge")
    head = LinearGrowingModule(2, 3, previous_module=merge, name="head", **kind)
    merge.set_next_modules([head])
    ones = {"input_extension": np.ones((3, 1)), "output_extension": np.ones((1, 10)), "singular_values": np.ones(1)}
    take(merge, GrowthUpdate(**ones))
    return left, right, merge, head


def test_a_merge_refuses_a_plan_for_other_widths_of_its_next_layer() -> None:
    left, right, merge, head = planned_merge()
    with pytest.warns(UserWarning, match="its size changes"):
        head.add_parameters(None, None, added_out_features=1)
    with pytest.raises(ShapeError, match="head: the input extension was planned with shape"):
        merge.apply_change(0.5)
    assert (left.out_features, right.out_features, merge.in_features, head.in_features) == (2, 2, 2, 2)


def test_a_merge_s_change_is_applied_once_and_says_so() -> None:
    left, right, merge, head = planned_merge()
    merge.apply_change(0.5)
    with pytest.raises(GrowthError, match="head: the planned change has been applied"):
        merge.apply_change(0.5)
    assert (left.out_features, right.out_features, head.in_features) == (3, 3, 3)


def test_a_plan_that_fails_leaves_the_one_before() -> None:
    chain = Chain()
    chain.batch()
    chain.c.update_computation(update_covariance_loss_gradient=False)
    with pytest.raises(GrowthError, match=r"E\(c\): there are no samples"):
        chain.c.compute_optimal_updates(FISHER)
    with pytest.raises(GrowthError, match="no update is planned"):
        _ = chain.c.first_order_improvement
    chain.c.compute_optimal_updates(TINY, max_new=1)
    promised, update = chain.c.first_order_improvement, chain.c.update
    with pytest.raises(GrowthError, match=r"E\(c\)"):
        chain.c.compute_optimal_updates(FISHER)
    assert chain.c.first_order_improvement == promised
    assert chain.c.update is update
    assert chain.c.new_neurons == 1


@pytest.mark.parametrize("small", [1e-320, 1e-200])
def test_an_update_that_overflows_is_computed_by_the_pseudo_inverse(small: float) -> None:
    delta, decrease = optimal_delta(np.diag([small, 1.0]), np.array([[1e120], [1.0]]))
    np.testing.assert_array_equal(delta, [[0.0, 1.0]])
    assert decrease == 1.0


def test_an_update_that_overflows_even_so_is_zero_with_a_warning() -> None:
    with np.errstate(over="ignore"), pytest.warns(UserWarning, match="inverse overflows; the update is set to zero"):
        delta, decrease = optimal_delta(np.diag([1.0, 1.0]), np.array([[1e200], [1.0]]))
    assert (delta.any(), decrease) == (False, 0.0)


def test_what_is_no_rule_and_what_is_no_number_of_neurons_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a GrowthRule such as TINY, found 'tiny'"):
        neurons(np.eye(2), np.eye(2), rule="tiny")  # type: ignore[arg-type]
    for value in (2.5, "2", True):
        with pytest.raises(ValueError, match="max_new must be None or a whole number"):
            GrowthRule(max_new=value)  # type: ignore[arg-type]


def test_wrong_kinds_of_arguments_are_named() -> None:
    chain = Chain()
    merge = LinearMergeGrowingModule(in_features=2, name="merge")
    for role, call in (("previous", merge.set_previous_modules), ("next", merge.set_next_modules)):
        with pytest.raises(TypeError, match=rf"merge: {role}_modules is a LinearGrowingModule, expected a list"):
            call(chain.c)
    with pytest.raises(TypeError, match=r"in_features must be a whole number, found 2\.5"):
        LinearMergeGrowingModule(in_features=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in_features must be at least 0, found -1"):
        LinearMergeGrowingModule(in_features=-1)
    with pytest.raises(TypeError, match="extended_post_layer_function is a str"):
        LinearGrowingModule(2, 2, extended_post_layer_function="relu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"c: extension sizes must be whole numbers, found 2\.5"):
        chain.c.create_layer_extensions(2.5)  # type: ignore[arg-type]
    chain.c.target_in_neurons = 5
    with pytest.raises(ValueError, match="number_of_growth_steps must be at least 1, found 0"):
        chain.c.number_of_neurons_to_add(number_of_growth_steps=0)


@pytest.mark.parametrize("shape", [(30, 9), (4, 3), (30, 1), (1, 3)], ids=str)
@pytest.mark.parametrize("collecting", [True, False])
def test_a_gradient_of_another_shape_is_refused(shape: tuple[int, ...], collecting: bool) -> None:
    chain = Chain()
    if not collecting:
        chain.c.reset_computation()
    _, pullback = chain.c.vjp(np.ones((30, 2)))
    with pytest.raises(ShapeError, match=r"the gradient has shape .*, the result has \(30, 3\)"):
        pullback(np.ones(shape))
    assert chain.c.weight.grad is None
