"""Growing convolutions: their statistics, what they promise, growth in several rounds, and what they refuse."""

from __future__ import annotations

from typing import Any

import array_api_strict
import numpy as np
import pytest

from growarray.errors import GrowthError, PlanError, ShapeError
from growarray.growing import (
    FISHER,
    GRADMAX,
    TINY,
    Conv1dGrowingModule,
    Conv2dGrowingModule,
    Conv3dGrowingModule,
    FullConv2dGrowingModule,
    GrowthRule,
    JoinedStream,
    LinearGrowingModule,
    RestrictedConv2dGrowingModule,
    Stream,
    cross_moment,
)
from growarray.growing.norm import GrowingBatchNorm2d
from growarray.nn import AvgPool2d, Sequential, activation
from growarray.ops.windows import windows
from tests.pairs import pairs

KINDS = [RestrictedConv2dGrowingModule, FullConv2dGrowingModule]
BIASES = [(True, True), (False, True), (True, False), (False, False)]
NO_PROJECTION = GrowthRule(compute_delta=False, use_projection=False)
GEOMETRIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "same": ({"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "padding": 1}),
    "strides": (
        {"kernel_size": (3, 2), "stride": (2, 1)},
        {"kernel_size": (2, 3), "stride": (1, 2), "padding": (1, 0)},
    ),
    "dilations": ({"kernel_size": 2, "dilation": (2, 1)}, {"kernel_size": 3, "dilation": (1, 2), "padding": "same"}),
    "points": ({"kernel_size": 1}, {"kernel_size": 1}),
}


class Pair:
    """Two convolutions, and the mean over images of half the squared distance to what is wanted."""

    def __init__(
        self, kind: type[Conv2dGrowingModule], geometry: str = "same", function: Any = "identity", hidden: int = 3,
        bias: tuple[bool, bool] = (True, True), images: int = 6, dtype: Any = np.float64,
    ) -> None:  # fmt: skip
        self.rng = rng = np.random.default_rng(3)
        first, second = GEOMETRIES[geometry]
        function = activation(function) if isinstance(function, str) else function
        common = {"dtype": dtype, "rng": rng}
        self.first = Conv2dGrowingModule(
            2, hidden, **first, use_bias=bias[0], post_layer_function=function, name="first", **common
        )
        self.second = kind(hidden, 2, **second, use_bias=bias[1], previous_module=self.first, name="second", **common)
        self.first.next_module = self.second
        self.x = rng.standard_normal((images, 2, 8, 7)).astype(dtype)
        self.target = rng.standard_normal(self.second(self.first(self.x)).shape).astype(dtype)

    def loss(self, y: Any) -> float:
        return float(((y - self.target) ** 2).sum() / 2 / len(self.x))

    def back(self) -> None:
        """One pass there and back, with the gradient of the sum of the images' losses."""
        h, back_first = self.first.vjp(self.x)
        y, back_second = self.second.vjp(h)
        back_first(back_second(y - self.target))

    def collect(self) -> Any:
        self.second.init_computation()
        self.back()
        self.second.update_computation()
        return self.second

    def extended(self) -> Any:
        return self.second.extended_forward(*self.first.extended_forward(self.x))[0]

    def measured(self, factor: float) -> float:
        """Decrease of the loss over the square of the scaling factor."""
        self.second.scaling_factor = factor
        return (self.loss(self.second(self.first(self.x))) - self.loss(self.extended())) / factor**2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("geometry", "bias", "function"), pairs(GEOMETRIES, BIASES, ["identity", "tanh", "gelu"]))
def test_the_loss_changes_as_predicted(kind: Any, geometry: str, bias: tuple[bool, bool], function: str) -> None:
    pair = Pair(kind, geometry, function, 2, bias)
    for rule in (TINY, FISHER, NO_PROJECTION):
        pair.collect().compute_optimal_updates(rule)
        assert pair.second.predicted_decrease > 0
        scale = max(1.0, pair.second.predicted_decrease) ** 0.5  # the Fisher rule takes large steps
        for factor in (1e-3 / scale, 3e-4 / scale):
            assert pair.measured(factor) == pytest.approx(pair.second.predicted_decrease, rel=1e-2)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", ["identity", "tanh", "gelu"])
def test_the_promised_improvement_is_kept(kind: Any, geometry: str, function: str) -> None:
    pair = Pair(kind, geometry, function)
    pair.collect().compute_optimal_updates(NO_PROJECTION)
    assert pair.second.first_order_improvement > 0
    for factor in (1e-3, 3e-4):
        assert pair.measured(factor) == pytest.approx(pair.second.first_order_improvement, rel=1e-2)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", ["tanh", "gelu"])
def test_channels_grow_from_none_as_promised(kind: Any, geometry: str, function: str) -> None:
    pair = Pair(kind, geometry, function, hidden=0)
    pair.collect().compute_optimal_updates(NO_PROJECTION)
    for factor in (1e-3, 3e-4):
        assert pair.measured(factor) == pytest.approx(pair.second.first_order_improvement, rel=1e-2)
    expected = pair.extended()
    pair.second.apply_change()
    np.testing.assert_allclose(pair.second(pair.first(pair.x)), expected, rtol=0, atol=1e-13)
    assert pair.first.out_channels == pair.second.in_channels > 0


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_all_taps_promise_at_least_what_the_centre_does_for_the_same_size_of_step(geometry: str) -> None:
    """Without covariance s^2 is the squared gradient by the new weights: the centre's is a part of that of all taps."""
    gains = []
    for kind in KINDS:
        pair = Pair(kind, geometry)
        pair.collect().compute_optimal_updates(GRADMAX)
        gains.append(float((pair.second.eigenvalues_extension**2).sum()))
    assert gains[1] >= gains[0] * (1 - 1e-12)
    if geometry == "points":
        assert gains[1] == pytest.approx(gains[0], rel=1e-12)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_statistics_are_moments_of_the_unfolded_input(geometry: str, dtype: Any) -> None:
    pair = Pair(FullConv2dGrowingModule, geometry, "tanh", dtype=dtype)
    second, rtol = pair.collect(), 1e-12 if dtype == np.float64 else 1e-5
    put, n = second.unfolded_extended_input.astype(np.float64), len(pair.x)
    seen = second.masked_unfolded_prev_input.astype(np.float64)
    gradient = second.pre_activity_grad.reshape(n, 2, -1).astype(np.float64)
    expected = {
        "tensor_s": np.einsum("iax,ibx->ab", put, put),
        "tensor_m": np.einsum("iax,ibx->ab", put, gradient),
        "covariance_loss_gradient": np.einsum("iax,ibx->ab", gradient, gradient),
        "tensor_m_prev": np.einsum("ixta,icx->act", seen, gradient).reshape(seen.shape[-1], -1),
        "cross_covariance": np.einsum("ixta,ibx->tab", seen, put),
        "tensor_s_growth": np.einsum("ixta,ixtb->ab", seen, seen),
    }
    for name, value in expected.items():
        found = getattr(second, name)()
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, value / n, rtol=0, atol=rtol * np.abs(value).max(), err_msg=name)


def test_what_the_taps_see_is_what_the_mask_lets_through() -> None:
    pair = Pair(FullConv2dGrowingModule, "strides")
    second = pair.collect()
    mask = second.mask_tensor_t
    unfolded = pair.first.unfolded_extended_input
    assert set(np.unique(mask)) == {0.0, 1.0}
    np.testing.assert_array_equal(second.masked_unfolded_prev_input, np.einsum("xty,iay->ixta", mask, unfolded))
    h = pair.first(pair.x).reshape(len(pair.x), 3, -1)
    by_mask = np.einsum("xty,icy,oct->iox", mask, h, second.weight.data.reshape(2, 3, -1))
    by_mask += second.bias.data[:, None]
    np.testing.assert_allclose(second(pair.first(pair.x)).reshape(by_mask.shape), by_mask, rtol=0, atol=1e-12)


def test_windows_put_together_are_numpys() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5))
    put = windows(x, (3, 2), stride=(2, 1), padding=(1, 0), bias=True).materialise()
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (3, 2), axis=(2, 3))[:, :, ::2]
    np.testing.assert_array_equal(put[..., :-1], np.moveaxis(view, 1, 3).reshape(2, 3, 4, 18))
    assert np.all(put[..., -1] == 1.0)


def test_streams_of_windows_are_joined_block_by_block() -> None:
    rng = np.random.default_rng(0)
    a = windows(rng.standard_normal((4, 2, 6, 6)), (3, 3), padding=1, bias=True)
    b = windows(rng.standard_normal((4, 1, 7, 7)), (2, 2))
    both = JoinedStream((a, b, a))
    put = both.materialise().reshape(-1, both.width)
    for one, other, expected in (
        (both, None, put.T @ put),
        (both, b, put.T @ b.materialise().reshape(-1, b.width)),
        (a, b, a.materialise().reshape(-1, a.width).T @ b.materialise().reshape(-1, b.width)),
    ):
        np.testing.assert_allclose(cross_moment(one, other), expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    moment = cross_moment(both)
    assert np.array_equal(moment, moment.T)
    with pytest.raises(TypeError, match="windows of a convolution do not fit features without positions"):
        cross_moment(JoinedStream((a, Stream(np.ones((4, 2))))))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_gradients_are_the_same_whether_statistics_are_collected_or_not(dtype: Any) -> None:
    plain, collecting = (Pair(FullConv2dGrowingModule, "strides", "tanh", dtype=dtype) for _ in range(2))
    plain.back()
    collecting.collect()
    tolerance = 64 * np.finfo(dtype).eps
    for name in ("first", "second"):
        for one, other in zip(getattr(plain, name).parameters(), getattr(collecting, name).parameters(), strict=True):
            assert other.grad.dtype == dtype
            scale = float(np.abs(one.grad).max())
            np.testing.assert_allclose(other.grad, one.grad, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", KINDS)
def test_growth_goes_on_for_several_rounds(kind: Any, geometry: str, norm: bool) -> None:
    function = Sequential(GrowingBatchNorm2d(3, dtype=np.float64), activation("tanh")) if norm else "tanh"
    pair = Pair(kind, geometry, function)
    for round_ in range(3):
        pair.collect().compute_optimal_updates(max_new=1)
        for module in (pair.first, pair.second):
            module.eval()
        before = pair.second(pair.first(pair.x))
        pair.second.scaling_factor = 0.0
        np.testing.assert_array_equal(pair.extended(), before)
        pair.second.scaling_factor = 0.05
        extended = pair.extended()
        assert np.abs(extended - before).max() > 1e-6
        pair.second.apply_change()
        # A new channel's running variance is 1, to which a norm adds eps = 1e-5; the extended forward does not.
        bound = 1e-5 * np.abs(extended - before).max() if norm else 1e-12
        np.testing.assert_allclose(pair.second(pair.first(pair.x)), extended, rtol=0, atol=bound)
        pair.second.delete_update()
        assert (pair.first.out_channels, pair.second.in_channels) == (4 + round_, 4 + round_)
        for module in (pair.first, pair.second):
            module.train()


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_another_size_and_a_wider_input_need_no_reminder(kind: Any) -> None:
    pair = Pair(kind)
    pair.collect()
    pair.x, pair.target = pair.x[:, :, :6, :5], pair.target[:, :, :6, :5]
    assert pair.collect().input_size == (6, 5)
    with pytest.warns(UserWarning, match="its size changes"):
        pair.first.add_parameters(None, None, added_in_features=1)
    pair.x = pair.rng.standard_normal((6, 3, 6, 5))
    assert pair.collect().tensor_m_prev().shape[0] == 3 * 9 + 1


def test_sizes_know_of_dilation_and_of_padding_by_name() -> None:
    layer = Conv2dGrowingModule(2, 2, 3, dilation=2, input_size=(9, 8))
    assert (layer.out_width, layer.out_height, layer.output_volume, layer.input_volume) == (5, 4, 40, 144)
    same = Conv2dGrowingModule(2, 2, 3, padding="same", input_size=(9, 8))
    assert same.output_size == (9, 8)
    after = Conv2dGrowingModule(2, 2, 3, previous_module=layer)
    with pytest.raises(GrowthError, match="input size is unknown; run a batch"):
        _ = after.output_size
    assert after.update_input_size(compute_from_previous=True) == (5, 4)
    assert after.get_fan_in_from_layer(num_neurons=4) == 36 == after.get_fan_in_from_layer(Conv2dGrowingModule(4, 1, 3))


@pytest.mark.parametrize("kind", [Conv2dGrowingModule, *KINDS])
def test_drawn_channels_are_selected_and_applied_without_a_bias_of_their_own(kind: Any) -> None:
    pair = Pair(kind)
    pair.second.create_layer_extensions(4)
    assert pair.second.extended_input_layer.weight.shape == (2, 4, 3, 3)
    pair.second.eigenvalues_extension = np.arange(4.0, 0.0, -1.0)
    pair.second.sub_select_optimal_added_parameters(keep_neurons=2)
    assert pair.second.extended_input_layer.bias is None
    pair.second.apply_change(scaling_factor=1.0)
    assert (pair.first.weight.shape, pair.second.weight.shape) == ((5, 2, 3, 3), (2, 5, 3, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_restricted_growth_uses_the_centre_and_a_full_one_every_tap(kind: Any) -> None:
    pair = Pair(kind)
    pair.collect().compute_optimal_updates(max_new=2)
    used = np.abs(pair.second.extended_input_layer.weight.data).sum(axis=(0, 1)) > 0
    assert used.sum() == (1 if kind is RestrictedConv2dGrowingModule else 9)
    assert used[1, 1]


def test_the_plain_convolution_plans_its_delta_and_no_channels() -> None:
    pair = Pair(Conv2dGrowingModule)
    second = pair.collect()
    second.compute_optimal_updates()
    assert second.extended_input_layer is None
    assert second.predicted_decrease > 0
    for factor in (1e-2, 1e-3):
        assert pair.measured(factor) == pytest.approx(second.predicted_decrease, rel=1e-2)
    second.apply_change(scaling_factor=1.0)
    pair.collect().compute_optimal_updates()
    assert second.predicted_decrease == pytest.approx(0.0, abs=1e-12)  # least squares are solved in one step


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_fisher_rule_whitens_the_outputs_of_every_tap(geometry: str) -> None:
    pair = Pair(FullConv2dGrowingModule, geometry, "tanh", hidden=2)
    second = pair.collect()
    second.compute_optimal_updates(FISHER, statistical_threshold=0.0)
    (s, e), n = (
        [np.linalg.eigh(matrix) for matrix in (second.tensor_s_growth(), second.covariance_loss_gradient())],
        second.tensor_m_prev(),
    )
    plain = second.compute_optimal_delta(update=False)[0].reshape(2, -1)
    bias = second.compute_optimal_delta(update=False)[1][:, None]
    taken = second.cross_covariance() @ np.concatenate([plain, bias], axis=1).T  # (taps, p, o)
    goal = np.moveaxis(taken, 0, -1).reshape(n.shape) - n
    roots = [vectors / np.sqrt(values) @ vectors.T for values, vectors in (s, e)]
    whitened = np.einsum("pq,qot,oc->pct", roots[0], goal.reshape(len(n), 2, -1), roots[1]).reshape(n.shape)
    values = np.linalg.svd(whitened, compute_uv=False)[: second.new_neurons]
    np.testing.assert_allclose(second.eigenvalues_extension, values, rtol=1e-9, atol=1e-9 * values[0])


@pytest.mark.parametrize(("kind", "sizes"), [(Conv1dGrowingModule, (9,)), (Conv3dGrowingModule, (4, 3, 5))])
def test_one_and_three_axes_grow_by_the_same_code(kind: Any, sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    common = {"dtype": np.float64, "rng": rng}
    first = kind(2, 2, 3, padding=1, post_layer_function=activation("tanh"), **common)
    second = kind(2, 3, 2, previous_module=first, **common)
    first.next_module = second
    x = rng.standard_normal((8, 2, *sizes))
    before = second(first(x))
    target = before + rng.standard_normal(before.shape)
    second.init_computation()
    h, back_first = first.vjp(x)
    y, back_second = second.vjp(h)
    back_first(back_second(y - target))
    second.update_computation()
    put = windows(h, second.kernel_size, bias=True).materialise().reshape(-1, second.stream_width)
    np.testing.assert_allclose(second.tensor_s(), put.T @ put / 8, rtol=1e-12, atol=1e-12)
    second.compute_optimal_updates(max_new=2)

    def loss() -> float:
        return float(((second.extended_forward(*first.extended_forward(x))[0] - target) ** 2).sum() / 2 / 8)

    np.testing.assert_array_equal(second.extended_forward(*first.extended_forward(x))[0], before)
    start, predicted = loss(), second.predicted_decrease
    second.scaling_factor = factor = 1e-3 / max(1.0, predicted) ** 0.5
    assert (start - loss()) / factor**2 == pytest.approx(predicted, rel=1e-2)
    expected = second.extended_forward(*first.extended_forward(x))[0]
    second.apply_change()
    assert (first.out_channels, second.in_channels, second.weight.shape) == (4, 4, (3, 4, *(2,) * len(sizes)))
    np.testing.assert_allclose(second(first(x)), expected, rtol=0, atol=1e-12)


def test_another_library_gives_the_same() -> None:
    pair, strict = (Pair(FullConv2dGrowingModule, "strides", "tanh") for _ in range(2))
    for module in (strict.first, strict.second):
        for parameter in module.parameters():
            parameter.data = array_api_strict.asarray(parameter.data)
    strict.x, strict.target = array_api_strict.asarray(strict.x), array_api_strict.asarray(strict.target)
    for one in (pair, strict):
        one.collect().compute_optimal_updates(max_new=2)
        one.second.apply_change(scaling_factor=0.3)
    np.testing.assert_allclose(np.asarray(strict.second.weight.data), pair.second.weight.data, rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.asarray(strict.first.weight.data), pair.first.weight.data, rtol=0, atol=1e-9)


def test_what_cannot_be_is_refused_with_what_to_do() -> None:
    head = LinearGrowingModule(6, 1, previous_module=Conv2dGrowingModule(1, 1, 1, dtype=np.float64), dtype=np.float64)
    head.init_computation()
    h, _ = head.previous_module.vjp(np.ones((2, 1, 3, 2)))
    y, back = head.vjp(h.reshape(2, -1))
    back(y)
    with pytest.raises(GrowthError, match="is a convolution, and this layer reads features without positions"):
        head.update_computation()
    assert head.tensor_m.samples == 0
    pooled = Pair(FullConv2dGrowingModule, function=Sequential(activation("relu"), AvgPool2d(2)))
    with pytest.raises(GrowthError, match=r"gives images of \(8, 7\), this one reads \(4, 3\)"):
        pooled.collect()
    assert pooled.second.tensor_m.samples == 0
    pair = Pair(FullConv2dGrowingModule)
    with pytest.raises(ShapeError, match=r"omega has shape \(2, 4\), expected \(18, new channels\)"):
        pair.second.plan_input_extension(np.ones((2, 4)))
    with pytest.raises(GrowthError, match="use tensor_n of the next layer"):
        pair.first.compute_n_update()
    with pytest.raises(GrowthError, match="there are no samples, so there is no mean"):
        pair.second.compute_optimal_updates()


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_of_before_a_growth_are_refused_after_it(kind: Any) -> None:
    pair = Pair(kind, function="tanh")
    pair.collect().compute_optimal_updates(max_new=1)
    pair.second.apply_change(scaling_factor=0.1)
    pair.second.delete_update()
    with pytest.raises(GrowthError, match="there are no samples, so there is no mean"):
        pair.second.compute_optimal_updates()
    with pytest.raises(
        ShapeError, match=r"update has shape \(28, 2\), expected \(37, 2\); run a batch since the layer"
    ):
        pair.second.update_computation()
    pair.collect().compute_optimal_updates(max_new=1)
    assert pair.second.tensor_m().shape == (37, 2)


@pytest.mark.parametrize("kind", [Conv2dGrowingModule, *KINDS])
def test_an_image_smaller_than_the_kernel_is_refused(kind: Any) -> None:
    layer = kind(2, 3, 5, padding=1)
    message = "a kernel of 5 with dilation 1 spans 5 positions, the padded input has 4; add padding of 1"
    with pytest.raises(PlanError, match=message):
        layer(np.ones((1, 2, 2, 6), dtype=np.float32))
    layer.update_input_size((2, 6))
    with pytest.raises(PlanError, match=message):
        _ = layer.output_size
