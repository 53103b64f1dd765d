"""Norm layers: running statistics, extension with optimizer state, refused extensions, the growing names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growarray import nn
from growarray.errors import ShapeError
from growarray.growing.norm import GrowingBatchNorm1d, GrowingBatchNorm2d, GrowingGroupNorm, GrowingLayerNorm
from growarray.nn.module import Module
from growarray.optim import Adam
from growarray.testing import assert_close
from tests.conftest import Library

F64 = np.float64


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 5),
    c=st.integers(1, 3),
    rest=st.lists(st.integers(1, 3), max_size=2),
    momentum=st.sampled_from([None, 0.1, 1.0]),
    seed=st.integers(0, 99),
)
def test_running_statistics_follow_the_batches(
    n: int, c: int, rest: list[int], momentum: float | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    layer = nn.BatchNorm(c, momentum=momentum, dtype=F64)
    mean, var = np.zeros(c), np.ones(c)
    for batch in (1, 2, 3):
        x = rng.standard_normal((n, c, *rest)) * 2.0 + 1.0
        layer(x)
        share = 1.0 / batch if momentum is None else momentum
        axes = (0, *range(2, x.ndim))
        mean = (1 - share) * mean + share * x.mean(axis=axes)
        var = (1 - share) * var + share * x.var(axis=axes, ddof=1)
    assert_close(layer.running_mean, mean)
    assert_close(layer.running_var, var)
    assert layer.num_batches_tracked is not None
    assert (layer.num_batches_tracked.shape, layer.num_batches_tracked.dtype, int(layer.num_batches_tracked)) == (
        (),
        np.int64,
        3,
    )


def test_evaluation_uses_and_keeps_the_running_statistics(xp: Library) -> None:
    layer = nn.BatchNorm1d(2, dtype=F64)
    layer.running_mean, layer.running_var = np.array([1.0, 2.0]), np.array([4.0, 9.0])
    xp.adopt(layer.eval())
    x = np.array([[3.0, 5.0]])
    assert_close(layer(xp.asarray(x)), (x - [1.0, 2.0]) / np.sqrt(np.array([4.0, 9.0]) + 1e-5))
    assert_close(layer.running_mean, np.array([1.0, 2.0]))


def test_rescale_moves_the_running_statistics_with_the_input() -> None:
    layer, other = nn.BatchNorm1d(2, eps=0.0, dtype=F64), nn.BatchNorm1d(2, eps=0.0, momentum=1.0, dtype=F64)
    x = np.random.default_rng(0).standard_normal((6, 2))
    layer.momentum = 1.0
    layer(x)
    other(x * -3.0)
    layer.rescale(-3.0)
    assert_close(layer.running_mean, other.running_mean)
    assert_close(layer.running_var, other.running_var)


GROWN: dict[str, tuple[Callable[[], Any], int, tuple[int, ...], tuple[int, ...]]] = {
    "LayerNorm": (lambda: nn.LayerNorm(3, dtype=F64), 2, (4, 3), (4, 5)),
    "LayerNorm-image": (lambda: nn.LayerNorm((2, 3), dtype=F64), 1, (4, 2, 3), (4, 3, 3)),
    "LayerNorm-no-bias": (lambda: nn.LayerNorm(3, bias=False, dtype=F64), 1, (4, 3), (4, 4)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(3, dtype=F64), 2, (4, 3), (4, 5)),
    "BatchNorm1d-no-affine": (lambda: nn.BatchNorm1d(3, affine=False, dtype=F64), 2, (4, 3), (4, 5)),
    "BatchNorm2d-untracked": (
        lambda: nn.BatchNorm2d(3, track_running_stats=False, dtype=F64),
        1,
        (2, 3, 2, 2),
        (2, 4, 2, 2),
    ),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4, dtype=F64), 2, (3, 4), (3, 6)),
}


@pytest.mark.parametrize("name", GROWN)
def test_extend_adds_neutral_features_and_keeps_objects_and_optimizer_state(name: str, xp: Library) -> None:
    build, by, small, large = GROWN[name]
    layer, rng = build(), np.random.default_rng(1)
    xp.adopt(layer)
    x, dy = xp.asarray(rng.standard_normal(small)), xp.asarray(rng.standard_normal(small))
    held = dict(layer.named_parameters())
    if held:
        layer.vjp(x)[1](dy)
        Adam(layer, lr=0.1).step()
    before, moments = layer.state_dict(), {n: p.slots["exp_avg"] for n, p in held.items()}
    layer.extend(by)
    default = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    for key, value in layer.state_dict().items():
        if key in default:
            old = before[key].shape[0]
            assert_close(value[:old, ...], before[key], rtol=0.0)
            assert_close(value[old:, ...], np.full((by, *value.shape[1:]), default[key]), rtol=0.0)
    for key, p in layer.named_parameters():
        assert p is held[key]
        assert_close(p.slots["exp_avg"][: moments[key].shape[0], ...], moments[key], rtol=0.0)
        assert tuple(p.slots["exp_avg"].shape) == p.shape == tuple(p.grad.shape)
    wide = xp.asarray(rng.standard_normal(large))
    assert tuple(layer.vjp(wide)[1](wide).shape) == large


def test_extend_takes_given_blocks() -> None:
    layer = nn.BatchNorm1d(1, dtype=F64)
    layer.extend(2, np.array([2.0, 3.0]), np.array([4.0, 5.0]), np.array([6.0, 7.0]), np.array([8.0, 9.0]))
    state = {name: value.tolist() for name, value in layer.state_dict().items()}
    assert state == {
        "weight": [1.0, 2.0, 3.0],
        "bias": [0.0, 4.0, 5.0],
        "running_mean": [0.0, 6.0, 7.0],
        "running_var": [1.0, 8.0, 9.0],
        "num_batches_tracked": 0,
    }


ONE, TWO = np.ones(1), np.ones(2)


@pytest.mark.parametrize(
    ("layer", "grow", "message"),
    [
        pytest.param(GrowingBatchNorm1d(3), lambda m: m.grow(0), "at least 1, found 0", id="batch-0"),
        pytest.param(GrowingBatchNorm2d(3), lambda m: m.grow(-1), "at least 1, found -1", id="batch-negative"),
        pytest.param(GrowingBatchNorm1d(3), lambda m: m.grow(2, ONE), r"weight has shape \(1,\)", id="batch-weight"),
        pytest.param(
            GrowingBatchNorm1d(3),
            lambda m: m.grow(2, TWO, TWO, TWO, ONE),
            r"running_var has shape \(1,\), expected \(2,\)",
            id="batch-running-var",
        ),
        pytest.param(
            GrowingBatchNorm1d(3, affine=False), lambda m: m.grow(1, ONE), "layer has no weight", id="batch-no-affine"
        ),
        pytest.param(GrowingLayerNorm(3), lambda m: m.grow(0), "at least 1", id="layer-0"),
        pytest.param(
            GrowingLayerNorm((2, 3)), lambda m: m.grow(1, np.ones((1, 2))), r"expected \(1, 3\)", id="layer-weight"
        ),
        pytest.param(GrowingGroupNorm(1, 3), lambda m: m.grow(0), "at least 1", id="group-0"),
        pytest.param(GrowingGroupNorm(3, 3), lambda m: m.grow(2), "5 channels cannot be split into 3", id="group-cut"),
        pytest.param(GrowingGroupNorm(3, 3), lambda m: m.grow(3, TWO), r"weight has shape \(2,\)", id="group-weight"),
        pytest.param(
            GrowingGroupNorm(3, 3), lambda m: m.grow(3, new_num_groups=4), "6 channels cannot be split", id="group-new"
        ),
    ],
)
def test_a_refused_growth_changes_nothing(layer: Any, grow: Callable[[Any], None], message: str) -> None:
    before, info = layer.state_dict(), layer.get_growth_info()
    with pytest.raises(ValueError, match=message):
        grow(layer)
    assert layer.get_growth_info() == info
    for name, value in layer.state_dict().items():
        assert np.array_equal(value, before[name])


def test_group_norm_may_change_its_groups() -> None:
    layer = GrowingGroupNorm(1, 3, dtype=F64)
    layer.grow(3, new_num_groups=3)
    x = np.random.default_rng(0).standard_normal((2, 6))
    assert_close(layer(x), nn.GroupNorm(3, 6, dtype=F64)(x))


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        pytest.param(nn.LayerNorm((2, 3)), (4, 3), r"last axes to be \(2, 3\)", id="layer"),
        pytest.param(nn.BatchNorm1d(3), (4, 5), "expected 2 or 3 axes and 3 channels", id="batch-channels"),
        pytest.param(nn.BatchNorm1d(3), (4, 3, 2, 2), "expected 2 or 3 axes", id="batch1d-image"),
        pytest.param(nn.BatchNorm2d(3), (4, 3), "expected 4 axes", id="batch2d-flat"),
        pytest.param(nn.BatchNorm(3), (3,), "expected at least 2 axes", id="batch-axes"),
        pytest.param(nn.BatchNorm1d(3), (1, 3), "more than one value per channel", id="batch-one-value"),
        pytest.param(nn.GroupNorm(1, 3), (4, 5), "and 3 channels", id="group-channels"),
    ],
)
def test_wrong_inputs_are_named(layer: Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        layer(np.ones(shape))


def test_wrong_sizes_are_refused_when_the_layer_is_made() -> None:
    with pytest.raises(ShapeError, match="4 channels cannot be split into 3 equal groups"):
        nn.GroupNorm(3, 4)
    with pytest.raises(ShapeError, match="at least one axis"):
        nn.LayerNorm(())
    with pytest.raises(ValueError, match="num_features must be at least 0, found -1"):
        nn.BatchNorm1d(-1)
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        nn.BatchNorm1d(1, device="gpu")


@pytest.mark.parametrize("eps", [-1e-5, float("nan"), float("inf")])
def test_an_eps_that_is_negative_or_not_finite_is_refused(eps: float) -> None:
    for make in (lambda: nn.LayerNorm(3, eps), lambda: nn.BatchNorm1d(3, eps), lambda: nn.GroupNorm(1, 3, eps)):
        with pytest.raises(ValueError, match="eps must be finite and at least 0, found"):
            make()


def test_a_momentum_outside_of_0_to_1_is_refused() -> None:
    for momentum in (-0.1, 2.0, float("nan")):
        with pytest.raises(ValueError, match="BatchNorm1d: momentum must be between 0 and 1, or None, found"):
            nn.BatchNorm1d(3, momentum=momentum)


def test_a_width_of_numpy_is_one_axis() -> None:
    assert nn.LayerNorm(np.int64(3)).normalized_shape == (3,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(4), nn.LayerNorm((4, 3)), nn.GroupNorm(2, 4)], ids=lambda layer: type(layer).__name__
)
def test_features_that_are_not_kept_go_with_all_that_is_known_of_them(layer: Any) -> None:
    rng = np.random.default_rng(0)
    names = ["weight", "bias", *(["running_mean", "running_var"] if isinstance(layer, nn.BatchNorm2d) else [])]
    for name in names:
        held = getattr(layer, name)
        if isinstance(held, nn.Parameter):
            held.data = rng.standard_normal(held.shape)
            held.grad, held.slots = held.data + 1, {"m": held.data + 2, "step": 3}
        else:
            setattr(layer, name, rng.uniform(1.0, 2.0, held.shape))
    before = {name: getattr(layer, name) for name in names}
    kept = {n: (v.data, v.grad, v.slots["m"]) if isinstance(v, nn.Parameter) else (v,) for n, v in before.items()}
    layer._check_keep(2)
    layer._keep(np.array([0, 3]))
    for name in names:
        held = getattr(layer, name)
        found = (held.data, held.grad, held.slots["m"]) if isinstance(held, nn.Parameter) else (held,)
        for array, old in zip(found, kept[name], strict=True):
            np.testing.assert_array_equal(array, old[[0, 3]])
    assert layer.weight.slots["step"] == 3
    x = rng.standard_normal((5, 2, 3) if isinstance(layer, nn.LayerNorm) else (5, 2, 3, 3))
    assert layer.eval()(x).shape == x.shape
    if isinstance(layer, nn.GroupNorm):
        with pytest.raises(ShapeError, match="3 channels cannot be split into 2 equal groups"):
            layer._check_keep(3)
