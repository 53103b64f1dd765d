"""Rank growth: what it promises, what it keeps, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.errors import GrowthError
from growarray.factorized import FactorizedConv, TensorLasso
from growarray.growing import RankStatistics
from growarray.nn.module import Parameter
from growarray.ops import gelu
from growarray.optim import SGD, Adam
from growarray.testing import assert_close, check_vjp
from tests.conftest import LIBRARIES
from tests.factorized.growing_layers import OPTIONS, Case
from tests.factorized.kernels import FACTORED, as_function, rng

each_format = pytest.mark.parametrize("name", FACTORED)


def old_entries(parameter: Parameter, shape: tuple[int, ...], values: Any) -> np.ndarray:
    assert values.shape == parameter.shape
    return np.asarray(values[tuple(slice(0, n) for n in shape)])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@each_format
def test_the_loss_falls_as_promised(name: str, options: dict[str, Any]) -> None:
    case = Case(name, **options)
    before = case.loss()
    growth = case.conv.grow_rank(case.statistics(), by=2, scaling=1e-4)
    small = before - case.loss()
    assert small == pytest.approx(1e-4 * growth.first_order_decrease, rel=1e-3)
    assert small == pytest.approx(growth.predicted_decrease(), rel=1e-6)
    growth.rescale(1.0)  # the loss is a parabola, and the new components are its minimum along their direction
    assert before - case.loss() == pytest.approx(growth.predicted_decrease(), rel=1e-9)
    assert growth.predicted_decrease() == growth.first_order_decrease / 2
    assert 0.05 < growth.share <= 1.0 + 1e-9


@each_format
def test_the_loss_falls_as_promised_where_it_is_not_a_parabola(name: str) -> None:
    case = Case(name, bias=True, padding=1)

    def loss() -> tuple[float, Any]:
        value, back = gelu(case.conv(case.x))
        return float(np.sum(np.sqrt(1.0 + value**2))) / len(case.x), back(value / np.sqrt(1.0 + value**2))

    before, gradient = loss()
    statistics = RankStatistics(case.conv).update(case.x, gradient)
    growth = case.conv.grow_rank(statistics, by=1, scaling=1e-5)
    assert before - loss()[0] == pytest.approx(1e-5 * growth.first_order_decrease, rel=1e-2)


@pytest.mark.parametrize("kernel", [(3,), (2, 3, 2)], ids=["one axis", "three axes"])
@each_format
def test_any_number_of_axes(name: str, kernel: tuple[int, ...]) -> None:
    case = Case(name, kernel=kernel, bias=True)
    before = case.loss()
    growth = case.conv.grow_rank(case.statistics())
    assert before - case.loss() == pytest.approx(growth.predicted_decrease(), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "rank", "by", "after"),
    [
        ("CP", 2, 3, 5),
        ("Tucker", (2, 1, 1, 1), 1, (3, 2, 2, 2)),
        ("Tucker", (8, 2, 3, 1), 1, (8, 3, 3, 2)),
        ("Tucker", (2, 2, 2, 2), (1, 0, 1, 0), (3, 2, 3, 2)),
        ("Tucker", (2, 2, 2, 2), (0, 2, 0, 0), (2, 4, 2, 2)),
        ("TT", (1, 1, 1, 1, 1), 2, (1, 3, 3, 3, 1)),
        ("TT", (1, 2, 2, 2, 1), (0, 1, 0, 0, 0), (1, 3, 2, 2, 1)),
        ("TT", (1, 2, 2, 2, 1), (0, 0, 1, 2, 0), (1, 2, 3, 4, 1)),
        ("TT", (1, 2, 2, 2, 1), (0, 0, 0, 2, 0), (1, 2, 2, 4, 1)),
        ("TR", 2, 1, (3, 3, 3, 3, 3)),
        ("TR", (2, 1, 3, 2, 2), (1, 2, 2, 1, 1), (3, 3, 5, 3, 3)),
    ],
)
def test_ranks_rise_by_what_is_asked(name: str, rank: Any, by: Any, after: Any) -> None:
    case = Case(name, rank=rank, bias=True)
    before, had = case.loss(), case.conv.rank
    growth = case.conv.grow_rank(case.statistics(), by=by)
    assert (growth.before, growth.rank, case.conv.rank) == (had, after, after)
    assert before - case.loss() == pytest.approx(growth.predicted_decrease(), rel=1e-9)
    assert growth.first_order_decrease > 0


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_separate_bonds_of_a_train_keep_the_promise_to_first_order(rank: int) -> None:
    case = Case("TT", rank=rank)
    before = case.loss()
    growth = case.conv.grow_rank(case.statistics(), by=(0, 1, 0, 1, 0), scaling=1e-6)
    assert case.conv.rank == (1, rank + 1, rank, rank + 1, 1)
    assert before - case.loss() == pytest.approx(1e-6 * growth.first_order_decrease, rel=1e-4)
    assert 0.0 < growth.share <= 1.0 + 1e-9


@each_format
def test_a_rank_that_is_missing_is_found_whole(name: str) -> None:
    case = Case(name, rank=1, channels=(4, 6))
    wanted = Case(name, rank=1, channels=(4, 6), seed=40)
    case.target = case.conv(case.x) + wanted.conv(case.x)
    growth = case.conv.grow_rank(case.statistics(), by=1)
    assert growth.share == pytest.approx(1.0, abs=1e-3)
    assert case.loss() < 1e-3 * case.loss(case.start)


@each_format
def test_more_components_promise_more_and_never_more_than_the_dense_change(name: str) -> None:
    shares = []
    for by in (1, 2, 4):
        case = Case(name, padding=1)
        shares.append(case.conv.grow_rank(case.statistics(), by=by).share)
    assert 0 < shares[0] < shares[1] < shares[2] <= 1.0 + 1e-9


@each_format
def test_growth_repeated_comes_close_to_what_a_dense_layer_reaches(name: str) -> None:
    case = Case(name, channels=(2, 3), kernel=(2,), bias=True)
    start = case.loss()
    for _ in range(2 if name in ("Tucker", "TT") else 3):  # then the rank is full
        case.conv.grow_rank(case.statistics(), by=1)
    assert case.loss() < 1e-2 * start  # components found one by one are not the best of their number


@pytest.mark.parametrize("optimizer", [lambda m: SGD(m, lr=1e-3, momentum=0.9), lambda m: Adam(m, lr=1e-2)])
@each_format
def test_optimizer_state_survives(name: str, optimizer: Callable[[FactorizedConv], Any]) -> None:
    case = Case(name, rank=2, bias=True)
    case.conv.reset_parameters(0.1, rng())
    steps = optimizer(case.conv)

    def train() -> None:
        case.conv.zero_grad()
        y, pullback = case.conv.vjp(case.x)
        pullback((y - case.target) / y.size)
        steps.step()

    for _ in range(3):
        train()
    parameters = case.conv.parameters()
    held = [(p.shape, p.data.copy(), p.grad.copy(), copy.deepcopy(p.slots)) for p in parameters]
    case.conv.grow_rank(case.statistics(), by=1, scaling=0.1)
    assert [id(p) for p in case.conv.parameters()] == [id(p) for p in parameters]
    for p, (shape, data, grad, slots) in zip(parameters, held, strict=True):
        if p is not case.conv.bias:
            np.testing.assert_array_equal(old_entries(p, shape, p.data), data)
        np.testing.assert_array_equal(old_entries(p, shape, p.grad), grad)
        assert slots
        assert p.slots.keys() == slots.keys()
        for key, slot in slots.items():
            if np.ndim(slot) or p.shape != shape:
                np.testing.assert_array_equal(old_entries(p, shape, p.slots[key]), slot)
    grown = case.loss()
    for _ in range(20):
        train()
    assert case.loss() < grown


@each_format
def test_gradients_are_right_after_growth(name: str) -> None:
    case = Case(name, bias=True, padding=1, groups=2)
    case.conv.grow_rank(case.statistics(), by=1)
    x = case.x[:2, :, :4, :4]
    check_vjp(as_function(case.conv), x, *[p.data for p in case.conv.parameters()], rtol=1e-6)


@each_format
def test_scaling_zero_changes_nothing_and_still_trains(name: str) -> None:
    case = Case(name, bias=True)
    growth = case.conv.grow_rank(case.statistics(), by=2, scaling=0.0)
    np.testing.assert_allclose(case.conv(case.x), case.start, rtol=0, atol=1e-12)
    case.conv.zero_grad()
    case.conv.vjp(case.x)[1](case.gradient())
    moved = [
        p for p in case.conv.weight.all_factors() if p.shape != (0,) and float(np.abs(np.asarray(p.grad)).max()) > 0
    ]
    assert moved
    growth.rescale(1.0)
    assert case.loss() < case.loss(case.start)
    growth.rescale(0.0)
    np.testing.assert_allclose(case.conv(case.x), case.start, rtol=0, atol=1e-12)


@each_format
def test_rescaling_is_growing_at_that_scaling(name: str) -> None:
    one, other = Case(name, bias=True), Case(name, bias=True)
    one.conv.grow_rank(one.statistics(), by=1, scaling=0.3)
    other.conv.grow_rank(other.statistics(), by=1).rescale(0.3)
    for p, q in zip(one.conv.parameters(), other.conv.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)


@each_format
def test_rescaling_a_trained_layer_is_refused(name: str) -> None:
    case = Case(name)
    growth = case.conv.grow_rank(case.statistics(), by=1)
    for p in case.conv.parameters():
        p.data = p.data * 1.01
    with pytest.raises(GrowthError, match="changed since it grew"):
        growth.rescale(0.5)
    assert growth.scaling == 1.0


@pytest.mark.parametrize("library", ["numpy", "array_api_strict", "double"])
@each_format
def test_other_libraries_and_float32(name: str, library: str) -> None:
    case, xp = Case(name, bias=True, groups=2), LIBRARIES[library]
    twin = Case(name, bias=True, groups=2)
    gradient = xp.asarray(twin.gradient().astype(np.float32))
    for p, q in zip(twin.conv.parameters(), case.conv.parameters(), strict=True):
        p.data = q.data.astype(np.float32)
    xp.adopt(twin.conv)
    x = xp.asarray(twin.x.astype(np.float32))
    expected = case.conv.grow_rank(case.statistics(), by=1)
    growth = twin.conv.grow_rank(RankStatistics(twin.conv).update(x, gradient), by=1)
    assert growth.first_order_decrease == pytest.approx(expected.first_order_decrease, rel=1e-2)
    y = twin.conv(x)
    assert type(y) is type(x)
    assert y.dtype == x.dtype
    assert twin.loss(to_numpy(y)) == pytest.approx(case.loss(), rel=2e-2)


def state(conv: FactorizedConv) -> dict[str, Any]:
    return {key: value.copy() for key, value in conv.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "by", "error", "message"),
    [
        ("CP", 0, ValueError, "by=0, expected whole numbers"),
        ("CP", -1, ValueError, "by=-1"),
        ("CP", True, TypeError, "by=True, expected a whole number for"),
        ("CP", 1.5, TypeError, r"by=1\.5"),
        ("CP", (1,), TypeError, "expected a whole number for a kernel in CP form"),
        ("Tucker", (1, 1), ValueError, "2 numbers, expected 4"),
        ("Tucker", (0, 0, 0, 0), ValueError, "one at least of 1"),
        ("Tucker", (1, 0, -1, 0), ValueError, "at least 0"),
        ("TT", "2", TypeError, "or 5 of them"),
        ("TR", (1, 1, 1), ValueError, "3 numbers, expected 5"),
        ("TR", (0, 1, 1, 0, 0), ValueError, "for every bond of a tensor ring"),
        ("TR", (1, 1, 1, 1, 2), ValueError, "the first one again at the end"),
    ],
)
def test_by_that_makes_no_sense(name: str, by: Any, error: type[Exception], message: str) -> None:
    case = Case(name)
    before, statistics = state(case.conv), case.statistics()
    with pytest.raises(error, match=message):
        case.conv.grow_rank(statistics, by=by)
    assert_same(case.conv, before)


def assert_same(conv: FactorizedConv, before: dict[str, Any]) -> None:
    after = conv.state_dict()
    assert list(after) == list(before)
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)


@pytest.mark.parametrize(
    ("name", "rank", "by", "after"),
    [
        ("CP", 2, 100, 24),
        ("CP", 24, 1, 24),
        ("Tucker", 2, 100, (8, 4, 3, 2)),
        ("Tucker", (2, 4, 2, 2), (1, 1, 1, 0), (3, 4, 3, 2)),
        ("TT", (1, 4, 12, 8, 1), 1, (1, 4, 12, 8, 1)),
        ("TT", 1, 100, (1, 4, 10, 8, 1)),
        ("TT", (1, 1, 1, 1, 1), (0, 0, 5, 0, 0), (1, 1, 3, 1, 1)),
        ("TR", 1, 100, (4, 4, 13, 7, 4)),
        ("TR", (3, 3, 12, 6, 3), 1, (3, 3, 12, 6, 3)),
        ("TT", (1, 1, 1, 1, 1), (0, 1, 0, 0, 1), (1, 2, 1, 1, 1)),
    ],
)
def test_more_than_is_of_use_is_lowered_with_a_warning(name: str, rank: Any, by: Any, after: Any) -> None:
    case = Case(name, rank=rank)
    before, statistics = state(case.conv), case.statistics()
    with pytest.warns(UserWarning, match="grow_rank: by=.* lowered to"):
        growth = case.conv.grow_rank(statistics, by=by)
    assert case.conv.rank == growth.rank == after
    if growth.rank == growth.before:
        assert growth.first_order_decrease == 0.0
        assert_same(case.conv, before)


@pytest.mark.parametrize("scaling", [-1.0, np.nan, np.inf, "1", True])
def test_wrong_scaling(scaling: Any) -> None:
    case = Case("CP")
    before, statistics = state(case.conv), case.statistics()
    with pytest.raises(ValueError, match=r"scaling=.*, expected a finite number of at least 0"):
        case.conv.grow_rank(statistics, scaling=scaling)
    assert_same(case.conv, before)


def test_statistics_that_are_not_this_layers() -> None:
    case, other = Case("CP"), Case("CP")
    with pytest.raises(GrowthError, match="statistics are those of another layer"):
        case.conv.grow_rank(other.statistics())
    with pytest.raises(TypeError, match=r"found a dict, expected growarray\.growing\.RankStatistics"):
        case.conv.grow_rank({})  # type: ignore[arg-type]
    with pytest.raises(GrowthError, match="there are no samples"):
        case.conv.grow_rank(RankStatistics(case.conv))
    statistics = case.statistics()
    case.conv.grow_rank(statistics)
    with pytest.raises(GrowthError, match="collected at rank 1, the layer has rank 2 now; reset them"):
        case.conv.grow_rank(statistics)
    statistics.reset()
    case.conv.grow_rank(statistics.update(case.x, case.gradient()))
    assert case.conv.rank == 3


def test_a_gradient_of_zero() -> None:
    case = Case("TT")
    with pytest.raises(GrowthError, match="gradient is zero in every direction"):
        case.conv.grow_rank(RankStatistics(case.conv).update(case.x, np.zeros(case.target.shape)))


def test_a_gradient_that_the_bias_takes_alone() -> None:
    case = Case("CP", bias=True)
    with pytest.raises(GrowthError, match="no components were found"):
        case.conv.grow_rank(RankStatistics(case.conv).update(case.x, np.ones(case.target.shape)))


@each_format
def test_collinear_channels_as_behind_a_layer_of_rank_one_do_not_blow_the_change_up(name: str) -> None:
    case = Case(name, bias=True, kernel=(3, 3))
    case.x = np.maximum(case.x[:, :1] * np.asarray([1.0, 0.3, -0.2, -2.0])[None, :, None, None], 0.0)
    before, old = case.loss(), case.conv.kernel()
    statistics = RankStatistics(case.conv, pseudo_inverse=True).update(case.x, case.gradient())
    d = old[0].size
    assert np.linalg.matrix_rank(statistics.moments()[0][0]) < d
    whole, _ = statistics.optimal_delta()
    growth = case.conv.grow_rank(statistics, by=2)
    assert np.linalg.norm(case.conv.kernel() - old) < 3 * np.linalg.norm(whole[:, :d])
    assert before - case.loss() == pytest.approx(growth.predicted_decrease(), rel=1e-9)


@pytest.mark.parametrize("name", FACTORED)
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_an_input_that_is_constant(name: str, value: float) -> None:
    case = Case(name, bias=True)
    before, statistics = state(case.conv), RankStatistics(case.conv, pseudo_inverse=True)
    with pytest.raises(GrowthError, match="no components were found"):
        case.conv.grow_rank(statistics.update(np.full_like(case.x, value), case.gradient()))
    assert_same(case.conv, before)


def test_layers_that_cannot_grow() -> None:
    dense = Case("Dense")
    with pytest.raises(
        NotImplementedError, match="Dense form has no rank that can grow; supported: CP, TR, TT, Tucker"
    ):
        dense.conv.grow_rank(dense.statistics())
    joint = FactorizedConv(2, 2, (3,), n_layers=2)
    with pytest.raises(NotImplementedError, match=r"joint layers \(n_layers=\(2,\)\)"):
        joint.grow_rank(Case("CP").statistics())
    lasso = Case("TT")
    TensorLasso().apply(lasso.conv.weight)
    with pytest.raises(ValueError, match=r"grow_rank: the tensor has lasso weights; call TensorLasso\.remove"):
        lasso.conv.grow_rank(RankStatistics(lasso.conv))
    video = Case("CP")
    video.conv.transduct(3, padding=1)
    with pytest.raises(ValueError, match=r"weight\.weights, .* frozen; call unfreeze"):
        video.conv.grow_rank(RankStatistics(video.conv))


def test_an_input_without_full_rank_warns_and_keeps_the_promise() -> None:
    case = Case("CP", bias=True)
    case.x[:, 3] = case.x[:, 2]
    before = case.loss()
    with pytest.warns(UserWarning, match="singular or indefinite"):
        growth = case.conv.grow_rank(case.statistics(), scaling=1e-4)
    quiet = Case("CP", bias=True)
    quiet.x[:, 3] = quiet.x[:, 2]
    statistics = RankStatistics(quiet.conv, pseudo_inverse=True).update(quiet.x, quiet.gradient())
    assert quiet.conv.grow_rank(statistics, scaling=1e-4).first_order_decrease == growth.first_order_decrease
    assert before - case.loss() == pytest.approx(growth.predicted_decrease(), rel=1e-5)


def test_the_same_statistics_give_the_same_components() -> None:
    kernels = []
    for _ in range(2):
        case = Case("CP", rank=2)
        case.conv.grow_rank(case.statistics(), by=6, rng=rng(5))
        kernels.append(case.conv.kernel())
    assert_close(kernels[0], kernels[1], rtol=0)


def test_numbers_of_numpy_are_numbers() -> None:
    case = Case("TT", bias=True)
    before = case.conv.rank
    by = [np.int64(0), np.int32(1), 0, 0, 0]
    growth = case.conv.grow_rank(case.statistics(), by, scaling=np.float32(0.5))  # type: ignore[arg-type]
    assert case.conv.rank == (*before[:1], before[1] + 1, *before[2:])
    assert type(growth.scaling) is float
