"""Layers that take channels and padding from their input: values, gradients, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.backend import to_numpy
from growarray.errors import ShapeError
from growarray.nn.sized import GroupedNorm, SamePad, SamePool, same_pads
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library

RNG = np.random.default_rng(4)


def norm() -> GroupedNorm:
    return GroupedNorm(nn.Parameter(np.array([2.0, -1.0, 0.5])), nn.Parameter(np.array([0.0, 1.0, 3.0])), 1e-3)


@pytest.mark.parametrize("shape", [(2, 3), (2, 6), (1, 9, 4), (2, 6, 3, 2), (0, 6, 2)])
def test_a_weight_for_each_group_is_one_for_each_of_its_channels(shape: tuple[int, ...]) -> None:
    layer, each = norm(), shape[1] // 3
    x, dy = RNG.standard_normal(shape), RNG.standard_normal(shape)
    same = nn.GroupNorm(3, shape[1], 1e-3, dtype=np.float64)
    same.load_state_dict({name: np.repeat(p.data, each) for name, p in layer.named_parameters()})
    (y, back), (expected, expected_back) = layer.vjp(x), same.vjp(x)
    assert_close(y, expected, rtol=1e-12)
    assert_close(back(dy), expected_back(dy), rtol=1e-12)
    for (_, p), (_, wide) in zip(layer.named_parameters(), same.named_parameters(), strict=True):
        assert_close(p.grad, np.sum(np.reshape(wide.grad, (3, each)), axis=1), rtol=1e-12)


def test_channels_that_the_groups_do_not_divide_are_refused() -> None:
    for shape in ((2, 4), (2,)):
        with pytest.raises(
            ShapeError, match=r"GroupedNorm: input has shape .*, expected channels that 3 groups divide"
        ):
            norm()(np.ones(shape))


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize(("reach", "stride"), [(1, 1), (2, 1), (3, 2), (2, 3), (5, 4), (4, 2)])
def test_there_are_as_many_windows_as_the_size_over_the_stride(reach: int, stride: int, lower: bool) -> None:
    for size in range(1, 12):
        ((before, after),) = same_pads((size,), (reach,), (stride,), lower=lower)
        assert (max(size + before + after, reach) - reach) // stride + 1 == -(-size // stride)
        assert (before - after) in ((0, 1) if lower else (0, -1))


LAYERS: dict[str, Any] = {
    "pad": SamePad((3, 2), (2, 1)),
    "maxima": SamePool(nn.MaxPool2d((3, 2), (2, 3)), (3, 2), (2, 3)),
    "means": SamePool(nn.AvgPool2d((3, 4), 2, count_include_pad=False), (3, 4), (2, 2), lower=True),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", [(4, 5), (5, 4), (1, 1), (7, 2)])
def test_one_layer_takes_inputs_of_every_size(name: str, size: tuple[int, int], xp: Library) -> None:
    layer, x = LAYERS[name], RNG.standard_normal((2, 3, *size))
    strides = layer.stride if name != "pad" else (1, 1)
    y = layer(xp.asarray(x))
    if name != "pad":
        assert tuple(y.shape) == (2, 3, *(-(-n // step) for n, step in zip(size, strides, strict=True)))
    assert_close(to_numpy(y), layer(x), rtol=1e-12)
    check_vjp(layer.vjp, x, rtol=1e-6)


def test_the_number_of_axes_is_checked() -> None:
    with pytest.raises(ShapeError, match=r"SamePool: input has shape \(2, 3, 4\), expected 4 axes"):
        LAYERS["maxima"](np.ones((2, 3, 4)))
