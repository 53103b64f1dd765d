"""Sequential, Flatten and Dropout: names, chained hooks, modes, messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.errors import ShapeError, shown
from growarray.testing import assert_close


def test_children_are_named_as_in_a_torch_state_dict() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Sequential(nn.BatchNorm1d(3)))
    assert list(net.state_dict()) == [
        "0.weight",
        "0.bias",
        "2.0.weight",
        "2.0.bias",
        "2.0.running_mean",
        "2.0.running_var",
        "2.0.num_batches_tracked",
    ]
    assert [name for name, _ in net.children()] == ["0", "1", "2"]
    assert len(net) == 3
    assert [type(m) for m in net] == [nn.Linear, nn.ReLU, nn.Sequential]
    assert net[1] is next(iter(m for m in net if isinstance(m, nn.ReLU)))


def test_slope_is_the_product_and_one_for_nothing() -> None:
    assert nn.Sequential(nn.Sigmoid(), nn.BatchNorm1d(2), nn.Dropout(), nn.GELU()).slope_at_zero == 0.125
    assert nn.Sequential().slope_at_zero == 1.0
    with pytest.raises(NotImplementedError, match="not elementwise"):
        _ = nn.Sequential(nn.Softmax()).slope_at_zero


def test_extended_passes_go_around_the_norms_and_through_the_rest() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2, dtype=np.float64), nn.Tanh())
    x, x_ext = np.array([[1.0, 2.0], [3.0, -1.0]]), np.array([[5.0], [0.5]])
    (y, y_ext), pullback = net.extended_vjp(x, x_ext)
    assert_close(y, net(x))
    assert_close(y_ext, np.tanh(x_ext))
    dx, dx_ext = pullback(np.ones((2, 2)), np.ones((2, 1)))
    assert_close(dx_ext, 1.0 - np.tanh(x_ext) ** 2)
    assert_close(dx, net.vjp(x)[1](np.ones((2, 2))))
    none, alone = net.extended_forward(None, x_ext)
    assert none is None
    assert_close(alone, y_ext, rtol=0.0)
    assert_close(net.extended_forward(x, x_ext)[0], y, rtol=0.0)


def test_extend_and_rescale_reach_every_child() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU(), nn.LayerNorm(2))
    net.extend(3)
    assert net(np.random.default_rng(0).standard_normal((4, 5))).shape == (4, 5)
    net[0].running_mean = np.full(5, 2.0)  # type: ignore[attr-defined]
    net.rescale(3.0)
    assert net[0].running_mean.tolist() == [6.0] * 5  # type: ignore[attr-defined]


def test_extend_is_all_or_nothing() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.GroupNorm(2, 4))
    with pytest.raises(ShapeError, match="5 channels cannot be split into 2"):
        net.extend(1)
    assert net[0].num_features == 4  # type: ignore[attr-defined]


def test_what_is_no_module_is_refused() -> None:
    wrong: Any = np.tanh
    with pytest.raises(TypeError, match="entry 1 is a ufunc, expected a Module"):
        nn.Sequential(nn.ReLU(), wrong)


@pytest.mark.parametrize(
    ("dims", "shape", "expected"),
    [
        ((1, -1), (2, 3, 4), (2, 12)),
        ((0, -1), (2, 3, 4), (24,)),
        ((-2, -1), (2, 3, 4), (2, 12)),
        ((1, 1), (2, 3), (2, 3)),
        ((1, -1), (0, 3, 4), (0, 12)),
    ],
    ids=str,
)
def test_flatten_joins_the_axes(dims: tuple[int, int], shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    x = np.arange(float(np.prod(shape))).reshape(shape)
    y, pullback = nn.Flatten(*dims).vjp(x)
    assert y.shape == expected
    assert np.array_equal(pullback(y), x)


@pytest.mark.parametrize("dims", [(2, 1), (1, 3), (3, -1)], ids=str)
def test_flatten_refuses_axes_that_are_not_there(dims: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=r"Flatten: input has shape \(2, 3, 4\)"):
        nn.Flatten(*dims)(np.ones((2, 3, 4)))


def test_dropout_works_in_training_only() -> None:
    layer = nn.Dropout(0.5, np.random.default_rng(0))
    x = np.ones(1000)
    assert 300 < np.sum(layer(x) == 0.0) < 700
    assert np.array_equal(layer.eval()(x), x)
    with pytest.raises(ValueError, match="p must be between 0 and 1, found 2"):
        nn.Dropout(2)


def test_repr_has_a_line_for_each_layer() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))
    assert repr(net).splitlines() == [
        "Sequential(",
        "  (0): Linear(2, 3, bias=True)",
        "  (1): Sequential(",
        "    (0): ReLU()",
        "    (1): Dropout(p=0.5)",
        "  )",
        ")",
    ]
    assert repr(nn.Sequential()) == "Sequential()"


def test_messages_name_a_module_on_one_line() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))
    expected = "Sequential( (0): Linear(2, 3, bias=True) (1): Sequential( (0): ReLU() (1): Dropout(p=0.5) ) )"
    assert shown(net) == expected


def test_other_modules_take_lines_where_they_do_not_fit_on_one() -> None:
    class Pair(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            self.first, self.second = nn.ReLU(), layer

        def extra_repr(self) -> str:
            return "two of them"

    assert repr(Pair(nn.Tanh())) == "Pair(two of them, first=ReLU(), second=Tanh())"
    wide = nn.Conv2d(100, 100, 3, padding=1, groups=100, dilation=2, padding_mode="circular")
    assert repr(Pair(wide)).splitlines() == [
        "Pair(",
        "  two of them",
        "  (first): ReLU()",
        f"  (second): {wide!r}",
        ")",
    ]
    assert len(repr(Pair(nn.Sequential(nn.Tanh()))).splitlines()) == 7
