"""Statistics for rank growth: equal to the explicit sums, for every option of a convolution."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.backend import to_numpy
from growarray.errors import GrowthError, PlanError, ShapeError
from growarray.factorized import FactorizedConv
from growarray.growing import RankStatistics, rank
from growarray.ops.conv import conv
from growarray.testing import assert_close
from tests.conftest import LIBRARIES
from tests.factorized.growing_layers import OPTIONS, Case
from tests.factorized.kernels import layer, rng

each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
PADS = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def unfolded(made: FactorizedConv, x: Any) -> list[np.ndarray]:
    """For each group the windows (n * positions, c * taps), one window after the other, and ones for a bias."""
    settings = made.settings()
    pads = [(0, 0), (0, 0), *settings.options["padding"]]
    padded = np.pad(x, pads, mode=PADS[settings.padding_mode])  # type: ignore[call-overload]
    reach = [(k - 1) * d + 1 for k, d in zip(made.kernel_size, settings.dilation, strict=True)]
    starts = [range(0, n - r + 1, s) for n, r, s in zip(padded.shape[2:], reach, settings.stride, strict=True)]
    dy, dx = settings.dilation
    rows = [
        padded[i, :, a : a + reach[0] : dy, b : b + reach[1] : dx]
        for i in range(len(x))
        for a in starts[0]
        for b in starts[1]
    ]
    split = np.stack(rows).reshape(len(rows), made.groups, -1).transpose(1, 0, 2)
    ones = np.ones((len(rows), 1))
    return [np.concatenate([w, ones], axis=1) if settings.has_bias else w for w in split]


@each_option
def test_moments_are_the_explicit_sums(options: dict[str, Any]) -> None:
    case = Case("CP", **options)
    gradient = case.gradient()
    s, m = case.statistics().moments()
    windows = unfolded(case.conv, case.x)
    rows = gradient.reshape(len(case.x), case.conv.groups, -1, int(np.prod(gradient.shape[2:])))
    for k, own in enumerate(windows):
        flat = rows[:, k].transpose(0, 2, 1).reshape(len(own), -1)
        assert_close(s[k], own.T @ own / len(case.x), rtol=1e-13)
        assert_close(m[k], own.T @ flat / len(case.x), rtol=1e-13)


@each_option
def test_m_is_the_gradient_of_the_dense_kernel(options: dict[str, Any]) -> None:
    case = Case("TT", **options)
    kernel, d = case.conv.kernel(), int(np.prod(case.conv.kernel_shape[1:]))
    _, back = conv(case.x, kernel, groups=case.conv.groups, **case.conv.settings().options)
    expected = back(case.gradient())[1] / len(case.x)
    _, m = case.statistics().moments()
    assert_close(m[:, :d].transpose(0, 2, 1).reshape(kernel.shape), expected, rtol=1e-12)


@each_option
def test_the_optimal_delta_makes_the_gradient_orthogonal_to_the_input(options: dict[str, Any]) -> None:
    case = Case("Dense", **options)
    before, d = case.loss(), int(np.prod(case.conv.kernel_shape[1:]))
    delta, decrease = case.statistics().optimal_delta()
    case.conv.weight.tensor.data = case.conv.weight.tensor.data - delta[:, :d].reshape(case.conv.kernel_shape)
    if case.conv.bias is not None:
        case.conv.bias.data = case.conv.bias.data - delta[:, d]
    assert before - case.loss() == pytest.approx(decrease / 2, rel=1e-9)
    assert float(np.abs(case.statistics().moments()[1]).max()) < 1e-9


def test_blocks_and_batches_and_workers_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("Tucker", bias=True, groups=2)
    gradient, whole = case.gradient(), case.statistics()
    monkeypatch.setattr(rank, "_ROOM", 1000)  # three images at a time
    twin = copy.deepcopy(case.conv)
    halves = [
        RankStatistics(c).update(case.x[i], gradient[i]) for c, i in ((case.conv, slice(5)), (twin, slice(5, 12)))
    ]
    total = RankStatistics(case.conv) + halves[0] + halves[1]
    assert (total.samples, total.layer) == (12, case.conv)
    for one, other in zip(total.moments(), whole.moments(), strict=True):
        assert_close(one, other, rtol=1e-13)


def test_in_place_of_the_layer_in_a_network() -> None:
    made = layer("CP", 1, 3, (3, 3), bias=True)
    net = nn.Sequential(made, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 2, dtype=np.float64, rng=rng()))
    statistics = RankStatistics(made)
    watched = nn.Sequential(statistics, *list(net)[1:])
    x, dy = rng(1).standard_normal((5, 1, 6, 6)), rng(2).standard_normal((5, 2))
    np.testing.assert_array_equal(watched(x), net(x))
    assert statistics.samples == 0
    y, pullback = watched.vjp(x)
    y_net, pullback_net = net.vjp(x)
    np.testing.assert_array_equal(y, y_net)
    np.testing.assert_array_equal(pullback(dy), pullback_net(dy))
    assert statistics.samples == 5
    assert watched.parameters() == net.parameters()
    statistics.reset()
    assert repr(statistics).startswith("RankStatistics(\n  samples=0\n  (layer): FactorizedConv(\n")


@pytest.mark.parametrize("library", ["numpy", "array_api_strict", "double"])
def test_other_libraries_and_float32(library: str) -> None:
    case, xp = Case("CP", bias=True, groups=2, padding=1, padding_mode="reflect"), LIBRARIES[library]
    gradient, expected = case.gradient(), case.statistics().moments()
    for p in case.conv.parameters():
        p.data = p.data.astype(np.float32)
    xp.adopt(case.conv)
    statistics = RankStatistics(case.conv)
    statistics.update(xp.asarray(case.x.astype(np.float32)), xp.asarray(gradient.astype(np.float32)))
    for one, other in zip(statistics.moments(), expected, strict=True):
        assert one.dtype == statistics.moments()[0].dtype
        assert to_numpy(one).dtype == np.float64
        assert_close(to_numpy(one), other, rtol=1e-6)


def test_bad_batches_change_nothing() -> None:
    case = Case("CP", bias=True)
    statistics, gradient = case.statistics(), case.gradient()
    held = [a.copy() for a in statistics.moments()]
    broken = case.x.copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(GrowthError, match="RankStatistics: the update holds NaN or infinite values"):
        statistics.update(broken, gradient)
    with pytest.raises(GrowthError, match="holds NaN or infinite"):
        statistics.update(case.x, np.where(gradient == gradient.max(), np.inf, gradient))
    with pytest.raises(ShapeError, match=r"gradient has shape \(12, 8, 4\), expected \(12, 8, 4, 6\)"):
        statistics.update(case.x, gradient[..., 0])
    with pytest.raises(ShapeError, match="the gradient has shape"):
        statistics.update(case.x, gradient[:3])
    with pytest.raises(ShapeError, match="expected"):
        statistics.update(case.x[:, :2], gradient)
    with pytest.raises(PlanError, match="spans"):
        statistics.update(case.x[..., :1, :1], gradient)
    for one, other in zip(statistics.moments(), held, strict=True):
        np.testing.assert_array_equal(one, other)
    assert statistics.samples == 12


def test_a_batch_of_nothing_adds_nothing() -> None:
    case = Case("CP")
    statistics = RankStatistics(case.conv).update(case.x[:0], case.gradient()[:0])
    assert statistics.samples == 0
    with pytest.raises(GrowthError, match="there are no samples"):
        statistics.optimal_delta()


def test_a_layer_that_grew_needs_new_statistics() -> None:
    case = Case("CP")
    statistics = case.statistics()
    case.conv.grow_rank(statistics)
    with pytest.raises(GrowthError, match="collected at rank 1, the layer has rank 2 now"):
        statistics.update(case.x, case.gradient())
    statistics.reset()
    assert statistics.update(case.x, case.gradient()).samples == 12


def test_layers_that_have_no_statistics() -> None:
    with pytest.raises(TypeError, match="found a Conv2d, expected a FactorizedConv"):
        RankStatistics(nn.Conv2d(2, 2, 3))  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="joint layers"):
        RankStatistics(FactorizedConv(2, 2, (3,), n_layers=2))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: Case("CP", rank=2), "rank 1 and 2"),
        (lambda: Case("TT"), "format CP and TT"),
        (lambda: Case("CP", padding=1), "options .* cannot be added"),
        (lambda: Case("CP", channels=(4, 4)), "kernel"),
    ],
)
def test_statistics_of_different_layers_do_not_add(other: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Case("CP").statistics() + other().statistics()
    with pytest.raises(TypeError):
        Case("CP").statistics() + 1


def test_a_gradient_that_is_refused_leaves_no_trace() -> None:
    made = layer("CP", 3, 4, (3, 3), padding=1)
    statistics = RankStatistics(made)
    y, pullback = statistics.vjp(rng(1).standard_normal((2, made.in_channels, 6, 7)))
    with pytest.raises(GrowthError, match="NaN"):
        pullback(np.full(y.shape, np.nan))
    assert statistics.samples == 0
    assert all(parameter.grad is None for parameter in made.parameters())


@pytest.mark.parametrize("changed", [{"padding": 0}, {"padding": 1, "bias": False}], ids=["padding", "bias"])
def test_statistics_of_another_geometry_are_refused(changed: dict[str, Any]) -> None:
    made = FactorizedConv(3, 4, (3, 3), padding=1, rank=2, bias=True, dtype=np.float64, rng=rng(0))
    x = rng(1).standard_normal((2, 3, 6, 7))
    statistics = RankStatistics(made).update(x, made(x))
    made.set(0, **changed)
    before = made.state_dict()
    for use in (lambda: made.grow_rank(statistics), lambda: statistics.update(x, made(x)), statistics.moments):
        with pytest.raises(GrowthError, match=r"collected with padding=.* the layer has .* now"):
            use()
    assert made.rank == 2
    assert all(np.array_equal(before[name], value) for name, value in made.state_dict().items())
    statistics.reset()
    assert made.grow_rank(statistics.update(x, made(x))).rank == 3
