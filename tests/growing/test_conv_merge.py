"""Growth between kinds of layers: through merges of convolutions, and from linear layers into convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.errors import GrowthError, ShapeError
from growarray.growing import (
    FISHER,
    TINY,
    Conv2dGrowingModule,
    Conv2dMergeGrowingModule,
    FullConv2dGrowingModule,
    GrowthRule,
    LinearGrowingModule,
    LinearMergeGrowingModule,
    RestrictedConv2dGrowingModule,
)
from growarray.nn import AvgPool2d, Flatten, Linear, Sequential, activation

KINDS = [RestrictedConv2dGrowingModule, FullConv2dGrowingModule]
NO_PROJECTION = GrowthRule(compute_delta=False, use_projection=False)


class MergeCase:
    """Two convolutions that meet in a merge, and two that read it; half the squared distance to what is wanted."""

    def __init__(self, kind: Any, function: str = "identity", stride: Any = 1, readers: int = 2) -> None:
        rng, common = np.random.default_rng(5), {"dtype": np.float64}
        self.a = Conv2dGrowingModule(2, 3, 3, padding=1, rng=rng, name="a", **common)
        self.b = Conv2dGrowingModule(1, 3, 2, use_bias=False, rng=rng, name="b", **common)
        self.merge = Conv2dMergeGrowingModule(
            3, (6, 5), 3, activation(function), previous_modules=[self.a, self.b], allow_growing=True, name="merge"
        )
        self.readers = [
            kind(3, 2 + i, 3, stride, 1, previous_module=self.merge, name=f"reader{i}", rng=rng, **common)
            for i in range(readers)
        ]
        self.merge.set_next_modules(self.readers)
        self.xs = rng.standard_normal((7, 2, 6, 5)), rng.standard_normal((7, 1, 7, 6))
        self.targets = [rng.standard_normal(y.shape) for y in self.forward()]

    def forward(self) -> list[Any]:
        a = self.merge(self.a(self.xs[0]) + self.b(self.xs[1]))
        return [reader(a) for reader in self.readers]

    def extended(self) -> list[Any]:
        (a, a_ext), (b, b_ext) = (m.extended_forward(x) for m, x in zip((self.a, self.b), self.xs, strict=True))
        z, z_ext = self.merge.extended_forward(a + b, None if a_ext is None else a_ext + b_ext)
        return [reader.extended_forward(z, z_ext)[0] for reader in self.readers]

    def loss(self, ys: list[Any]) -> float:
        return sum(float(((y - t) ** 2).sum()) for y, t in zip(ys, self.targets, strict=True)) / 2 / len(self.xs[0])

    def collect(self) -> Any:
        self.merge.init_computation()
        (a, back_a), (b, back_b) = (m.vjp(x) for m, x in zip((self.a, self.b), self.xs, strict=True))
        z, back = self.merge.vjp(a + b)
        dz = 0.0
        for reader, target in zip(self.readers, self.targets, strict=True):
            y, back_reader = reader.vjp(z)
            dz = dz + back_reader(y - target)
        for one in (back_a, back_b):
            one(back(dz))
        self.merge.update_computation()
        return self.merge

    def measured(self, factor: float) -> float:
        self.merge.scaling_factor = factor
        return (self.loss(self.forward()) - self.loss(self.extended())) / factor**2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", ["identity", "tanh"])
@pytest.mark.parametrize("stride", [1, (2, 1)])
def test_the_loss_changes_as_predicted_through_a_merge(kind: Any, function: str, stride: Any) -> None:
    for rule in (TINY, FISHER, NO_PROJECTION):
        merge_case = MergeCase(kind, function, stride)
        merge = merge_case.collect()
        merge.compute_optimal_updates(rule)
        predicted = merge.predicted_decrease
        assert predicted > 0
        assert merge.new_neurons > 0
        for factor in (1e-3, 3e-4):
            assert merge_case.measured(factor / max(1.0, predicted) ** 0.5) == pytest.approx(predicted, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_widens_for_several_rounds_and_gives_what_was_planned(kind: Any) -> None:
    merge_case = MergeCase(kind, "tanh")
    for round_ in range(2):
        merge = merge_case.collect()
        merge.compute_optimal_updates(max_new=2)
        before = merge_case.forward()
        merge.scaling_factor = 0.0
        for one, other in zip(merge_case.extended(), before, strict=True):
            np.testing.assert_array_equal(one, other)
        merge.scaling_factor = 0.1
        extended = merge_case.extended()
        merge.apply_change()
        for one, other in zip(merge_case.forward(), extended, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
        merge.delete_update()
        width = 5 + 2 * round_
        assert (merge.in_channels, merge_case.a.out_channels, merge_case.b.out_channels) == (width,) * 3
        assert [reader.in_channels for reader in merge_case.readers] == [width] * 2
        assert merge.tensor_s.shape == (9 * width + 1,) * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_of_one_convolution_plans_what_the_convolution_alone_does(kind: Any) -> None:
    rng = np.random.default_rng(2)
    x, slope = rng.standard_normal((6, 2, 6, 5)), rng.standard_normal((6, 2, 6, 5))
    plans = []
    for merged in (False, True):
        options = {"padding": 1, "rng": np.random.default_rng(0), "dtype": np.float64}
        first = Conv2dGrowingModule(2, 3, 3, post_layer_function=None if merged else activation("tanh"), **options)
        merge = Conv2dMergeGrowingModule(3, (6, 5), 3, activation("tanh"), None, [first], allow_growing=True)
        second = kind(3, 2, 3, previous_module=merge if merged else first, **options)
        merge.set_next_modules([second])
        place = merge if merged else second
        place.init_computation()
        h, back_first = first.vjp(x)
        h, back_merge = merge.vjp(h) if merged else (h, lambda dz: dz)
        back_first(back_merge(second.vjp(h)[1](slope)))
        place.update_computation()
        place.compute_optimal_updates(FISHER)
        size = len(place.eigenvalues_extension)
        plans.append((place.eigenvalues_extension, place.predicted_decrease, second.optimal_delta_layer.weight.data))
        assert second.extended_input_layer.weight.shape == (2, size, 3, 3)
    for one, other in zip(*plans, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(4,), (12, 4)])
@pytest.mark.parametrize("through_merge", [False, True])
def test_a_neuron_of_a_linear_layer_becomes_a_channel(kind: Any, shape: tuple[int, ...], through_merge: bool) -> None:
    rng = np.random.default_rng(1)
    x, sizes = rng.standard_normal((9, *shape)), (3, 4) if len(shape) > 1 else (1, 1)
    function = activation("tanh")
    first = LinearGrowingModule(
        4, 2, post_layer_function=None if through_merge else function, dtype=np.float64, rng=rng, name="first"
    )
    merge = LinearMergeGrowingModule(function, [first], in_features=2, allow_growing=True)
    second = kind(2, 3, 3, padding=1, previous_module=merge if through_merge else first, dtype=np.float64, rng=rng)
    merge.set_next_modules([second])
    target = rng.standard_normal((9, 3, *sizes))

    def images(h: Any) -> Any:
        return None if h is None else np.moveaxis(h.reshape(9, *sizes, -1), -1, 1)

    def extended() -> Any:
        h = first.extended_forward(x)
        h = merge.extended_forward(*h) if through_merge else h
        return second.extended_forward(*map(images, h))[0]

    def loss(y: Any) -> float:
        return float(((y - target) ** 2).sum() / 18)

    place = merge if through_merge else second
    place.init_computation()
    h, back_first = first.vjp(x)
    a, back_merge = merge.vjp(h) if through_merge else (h, lambda dz: dz)
    y, back = second.vjp(images(a))
    back_first(back_merge(np.moveaxis(back(y - target), 1, -1).reshape(h.shape)))
    place.update_computation()
    for rule in (TINY, NO_PROJECTION):
        place.compute_optimal_updates(rule, force_pseudo_inverse=True)  # a kernel on one position sees zeros around it
        factor = 1e-3 / max(1.0, place.predicted_decrease) ** 0.5
        place.scaling_factor = 0.0
        before = loss(extended())
        place.scaling_factor = factor
        assert (before - loss(extended())) / factor**2 == pytest.approx(place.predicted_decrease, rel=1e-2)
    expected = extended()
    place.apply_change()
    h = merge(first(x)) if through_merge else first(x)
    np.testing.assert_allclose(second(images(h)), expected, rtol=0, atol=1e-12)
    assert first.out_features == second.in_channels > 2


def test_a_linear_layer_may_follow_a_merge_of_convolutions_at_once() -> None:
    rng = np.random.default_rng(0)
    first = Conv2dGrowingModule(1, 2, 3, dilation=2, input_size=(9, 8), rng=rng, dtype=np.float64)
    merge = Conv2dMergeGrowingModule(2, (5, 4), 1, activation("relu"), Flatten(), [first])
    head = LinearGrowingModule(40, 3, previous_module=merge, rng=rng, dtype=np.float64)
    merge.set_next_modules([head])
    for module in (merge, head):
        module.init_computation()
    h, back_first = first.vjp(rng.standard_normal((30, 1, 9, 8)))
    z, back_merge = merge.vjp(h)
    flat = z.reshape(30, -1)
    y, back = head.vjp(flat)
    back_first(back_merge(back(y).reshape(z.shape)))
    for module in (merge, head):
        module.update_computation()
    put = np.concatenate([flat, np.ones((30, 1))], axis=1)
    np.testing.assert_allclose(head.tensor_s(), put.T @ put / 30, rtol=0, atol=1e-12)
    weight, bias, _ = head.compute_optimal_delta(force_pseudo_inverse=True)
    np.testing.assert_allclose(flat @ weight.T + bias, y, rtol=0, atol=1e-9)  # the gradient itself is linear in put
    assert (merge.tensor_s.shape, merge.previous_tensor_s.samples) == ((3, 3), 30)


def test_a_merge_skips_merges_before_it_and_knows_what_pooling_leaves() -> None:
    first = Conv2dGrowingModule(1, 2, 3, padding=1)
    pooled = Conv2dMergeGrowingModule(2, 6, 3, AvgPool2d(2), previous_modules=[first])
    assert (pooled.known_output_size, pooled.output_volume, pooled.output_size) == ((3, 3), 18, (6, 6))
    other = Conv2dGrowingModule(1, 2, 2, 2, input_size=6)
    merge = Conv2dMergeGrowingModule(2, 3, 3, None, Sequential(AvgPool2d(3), Flatten()), [pooled, other])
    assert (merge.total_in_features, merge.output_volume) == (other.in_features + 1, 2)
    merge.set_next_modules([Linear(2, 5)])
    with pytest.warns(UserWarning, match="no next module to take the stride from"):
        assert pooled.stride == (1, 1)


def test_what_cannot_meet_in_a_merge_is_refused() -> None:
    conv = Conv2dGrowingModule(1, 2, 3, input_size=6, name="conv")
    merge = Conv2dMergeGrowingModule(2, (4, 4), 3, previous_modules=[conv], name="merge")
    linear = LinearGrowingModule(5, 2, name="linear")
    with pytest.raises(TypeError, match="previous module linear does not output images"):
        merge.add_previous_module(linear)
    with pytest.raises(TypeError, match="is a Linear; expected a growing layer or a merge"):
        merge.add_previous_module(Linear(2, 2))
    with pytest.raises(ShapeError, match="has 3 channels, the merge expects 2"):
        merge.add_previous_module(Conv2dGrowingModule(1, 3, 3))
    with pytest.raises(ShapeError, match=r"gives images of \(6, 6\), the merge expects \(4, 4\)"):
        merge.add_previous_module(Conv2dGrowingModule(1, 2, 3, padding=1, input_size=6))
    with pytest.raises(ShapeError, match=r"has kernel size \(5, 5\), expected next_kernel_size, which is \(3, 3\)"):
        merge.add_next_module(Conv2dGrowingModule(2, 1, 5))
    with pytest.raises(ShapeError, match="has 3 channels, the merge has 2 outputs"):
        merge.add_next_module(Conv2dGrowingModule(3, 1, 3))
    with pytest.raises(ShapeError, match="has 31 inputs, the merge has 32 outputs"):
        merge.add_next_module(LinearGrowingModule(31, 1))
    with pytest.raises(TypeError, match="AvgPool2d has no in_features"):
        merge.add_next_module(AvgPool2d(2))
    with pytest.raises(ShapeError, match="input_volume is 31, but 2 channels of"):
        Conv2dMergeGrowingModule(2, (4, 4), 3, input_volume=31)
    with pytest.raises(TypeError, match="is a convolution, expected a layer of features"):
        LinearMergeGrowingModule(previous_modules=[conv], in_features=32)
    assert (merge.previous_modules, merge.next_modules) == ([conv], [])


def test_what_cannot_grow_through_a_merge_is_refused() -> None:
    def merge_into(*readers: Any) -> Any:
        conv = Conv2dGrowingModule(1, 2, 3, input_size=6, name="conv")
        merge = Conv2dMergeGrowingModule(2, (4, 4), 3, None, Flatten(), [conv], allow_growing=True, name="merge")
        merge.set_next_modules(readers)
        return merge

    with pytest.raises(GrowthError, match="cannot read new channels; use a Restricted"):
        merge_into(Conv2dGrowingModule(2, 1, 3)).init_computation()
    with pytest.raises(NotImplementedError, match="reads images as features"):
        merge_into(LinearGrowingModule(32, 1)).init_computation()
    with pytest.raises(NotImplementedError, match="in 2 different ways"):
        merge_into(*(kind(2, 1, 3) for kind in KINDS)).init_computation()
    with pytest.raises(NotImplementedError, match="in 2 different ways"):
        merge_into(*(FullConv2dGrowingModule(2, 1, 3, stride) for stride in (1, 2))).init_computation()
