"""Several convolutions with one factorization: selection, settings, sub-layers that share parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import optim
from growarray.factorized import SubFactorizedConv
from growarray.nn.container import Sequential
from growarray.testing import assert_close
from tests.factorized.kernels import FORMATS, dense_output, layer, rng

each_format = pytest.mark.parametrize("name", FORMATS)


def run(made: Any, x: Any, *indices: Any) -> dict[str, Any]:
    y, pullback = made.vjp(x, *indices)
    result = {"y": y, "dx": pullback(np.ones_like(y))}
    return result | {f"d{i}": p.grad for i, p in enumerate(made.parameters())}


@each_format
def test_sub_layers_share_parameters_and_gradients(name: str) -> None:
    joint = layer(name, 2, 3, (2, 2), n_layers=2, bias=True, padding=1)
    x = rng(1).standard_normal((2, 2, 4, 4))
    first, second = joint[0], joint.get_conv(1)
    assert isinstance(first, SubFactorizedConv)
    assert first.parameters() == second.parameters() == joint.parameters()
    for place, sub in enumerate((first, second)):
        joint.zero_grad()
        expected = run(joint, x, place)
        joint.zero_grad()
        for key, value in run(sub, x).items():
            assert_close(value, expected[key], rtol=0.0, what=key)
        assert_close(sub(x), joint(x, place), rtol=0.0)
        assert_close(sub.kernel(), joint.kernel(place), rtol=0.0)
        assert_close(sub.bias, joint.bias.data[place], rtol=0.0)  # type: ignore[union-attr]
        assert str(sub.plan(x.shape)) == str(joint.plan(x.shape, indices=place))
    joint.zero_grad()
    first.vjp(x)[1](np.ones((2, 3, 5, 5)))
    once = [p.grad for p in joint.parameters()]
    second.vjp(x)[1](np.ones((2, 3, 5, 5)))
    assert all(not np.array_equal(p.grad, g) for p, g in zip(joint.parameters(), once, strict=True))


def test_a_network_of_sub_layers_trains_the_joint_parameters_once() -> None:
    joint = layer("CP", 2, 2, (3, 3), n_layers=2, bias=True, padding=1, rank=3)
    joint.reset_parameters(0.3, rng(2))
    net, x = Sequential(joint[0], joint[1], joint[0]), rng(1).standard_normal((4, 2, 5, 5))
    assert len(net.parameters()) == len(joint.parameters())
    optimizer, losses = optim.SGD(net.parameters(), lr=1e-5), []
    for _ in range(5):
        optimizer.zero_grad()
        y, pullback = net.vjp(x)
        losses.append(float(np.sum(y * y)))
        pullback(2 * y)
        optimizer.step()
    assert losses == sorted(losses, reverse=True)


@each_format
def test_set_gives_one_convolution_its_own_settings(name: str) -> None:
    joint = layer(name, 2, 3, (2, 2), n_layers=(2, 2), stride=2, padding=1, has_bias=[[True, False], [False, False]])
    sub = joint[1, 0]
    joint.set((1, 0), dilation=2, padding="same", bias=np.arange(3.0))
    assert joint.stride == (((2, 2), (2, 2)), ((1, 1), (2, 2)))
    assert joint.padding == (((1, 1), (1, 1)), ("same", (1, 1)))
    assert joint.dilation == (((1, 1), (1, 1)), ((2, 2), (1, 1)))
    assert joint.has_bias == ((True, False), (True, False))
    assert (sub.stride, sub.padding, sub.dilation, sub.bias.tolist()) == ((1, 1), "same", (2, 2), [0.0, 1.0, 2.0])  # type: ignore[union-attr]
    x = rng(1).standard_normal((1, 2, 5, 5))
    for place in [(0, 0), (0, 1), (1, 0), (-1, 1)]:
        settled = (place[0] % 2, place[1])
        assert_close(joint(x, place), dense_output(joint, x, settled), rtol=1e-12)
    joint.set((1, 0), bias=False)
    assert joint[1, 0].bias is None
    joint.set((1, 0), bias=True)
    assert_close(joint[1, 0].bias, np.arange(3.0))


def test_a_bias_that_is_off_gets_no_gradient() -> None:
    joint = layer("CP", 2, 3, (2,), n_layers=2, has_bias=[False, True])
    x = rng(1).standard_normal((1, 2, 4))
    joint.vjp(x, 0)[1](np.ones((1, 3, 3)))
    assert joint.bias.grad is None  # type: ignore[union-attr]
    joint.vjp(x, 1)[1](np.ones((1, 3, 3)))
    assert joint.bias.grad.tolist() == [[0.0] * 3, [3.0] * 3]  # type: ignore[union-attr]


@pytest.mark.parametrize("index", [0, np.int64(0), (0,), [0]], ids=str)
def test_one_number_may_be_written_in_many_ways(index: Any) -> None:
    joint = layer("TT", 2, 3, (2,), n_layers=2)
    assert joint[index].indices == (0,)
    assert_close(joint(np.ones((1, 2, 4)), index), joint(np.ones((1, 2, 4)), 0), rtol=0.0)


@pytest.mark.parametrize(
    ("n_layers", "index", "error", "message"),
    [
        (1, 1, ValueError, "holds one convolution, found indices=1"),
        (1, (0, 0), ValueError, "holds one convolution"),
        (2, 2, IndexError, r"indices=2 is out of range, n_layers=\(2,\)"),
        (2, -3, IndexError, "out of range"),
        (2, (0, 1), ValueError, "has 2 numbers, expected 1"),
        (2, slice(0, 1), ValueError, "expected whole numbers"),
        (2, "a", ValueError, "expected whole numbers"),
        ((2, 2), (0,), ValueError, "has 1 numbers, expected 2"),
        ((2, 2), 0, ValueError, "has 1 numbers, expected 2"),
        ((2, 2), (0, 2), IndexError, "out of range"),
        ((2, 2), (0, True), ValueError, "expected whole numbers"),
    ],
    ids=str,
)
def test_places_that_are_not_there_are_refused(n_layers: Any, index: Any, error: Any, message: str) -> None:
    joint = layer("CP", 2, 3, (2,), n_layers=n_layers)
    for call in (joint.forward, joint.vjp):
        with pytest.raises(error, match=message):
            call(np.ones((1, 2, 4)), index)
    with pytest.raises(error, match=message):
        joint.set(index)
    with pytest.raises((error, ValueError), match="convolution" if n_layers == 1 else message):
        joint[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": np.ones(2)}, r"bias has shape \(2,\), expected \(3,\)"),
        ({"stride": (1, 2)}, "stride: 2 values for 1"),
        ({"padding": "same", "stride": 2}, "'same' needs stride 1"),
        ({"dilation": 0}, "dilation of 'x': found 0"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_change_nothing(options: dict[str, Any], message: str) -> None:
    joint = layer("CP", 2, 3, (2,), n_layers=2, bias=True, padding=1)
    before, bias = joint.settings(1), joint.bias.data.copy()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=message):
        joint.set(1, **options)
    assert joint.settings(1) == before
    assert np.array_equal(joint.bias.data, bias)  # type: ignore[union-attr]


def test_a_bias_for_a_layer_without_one_is_refused() -> None:
    with pytest.raises(ValueError, match="made without a bias; make it with bias=True"):
        layer("CP", 2, 3, (2,), n_layers=2).set(0, bias=np.ones(3))


def test_repr_has_a_line_for_each_convolution() -> None:
    joint = layer("CP", 2, 3, (2, 2), n_layers=2, has_bias=[True, False], groups=1)
    joint.set(0, stride=2)
    assert joint.extra_repr() == (
        "2, 3, kernel_size=(2, 2), factorization=CP, rank=2, n_layers=2\n"
        " * Conv(0,): stride=(2, 2)\n"
        " * Conv(1,): bias=False"
    )
    assert joint[0].extra_repr() == "indices=(0,), stride=(2, 2)"
    single = layer("TT", 4, 4, (3,), groups=2, padding="same", implementation="factorized")
    assert single.extra_repr() == (
        "4, 4, kernel_size=(3,), factorization=TT, rank=(1, 2, 2, 1), groups=2, implementation='factorized', "
        "padding=same, bias=False"
    )


@pytest.mark.parametrize("implementation", ["greedy", ((0, 1),) * 5], ids=["name", "path"])
@pytest.mark.parametrize("n_layers", [(2, 2), (1, 2)], ids=str)
def test_layers_along_several_modes_take_any_path(n_layers: Any, implementation: Any) -> None:
    made = layer("CP", 2, 3, (3, 2), n_layers=n_layers, bias=True, implementation=implementation)
    x = rng(5).standard_normal((2, 2, 6, 5))
    assert_close(made(x, (0, 1)), dense_output(made, x, (0, 1)), rtol=1e-12)
    with pytest.raises(ValueError, match=r"cannot be used.*operands are left"):
        layer("CP", 2, 3, (3, 2), n_layers=n_layers, implementation=((0, 1),))
