"""LinearGrowingModule: what it keeps, what it collects, and the facts that the original gets wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.growing import LinearGrowingModule, Stream, cross_moment
from growarray.nn import GELU, Sequential
from growarray.ops import cross_entropy
from growarray.testing import check_vjp
from tests.conftest import Library, frozen
from tests.growing.pairs import Pair, layer, square_loss

RNG = np.random.default_rng(6)
X, TARGET = frozen(RNG.standard_normal((30, 4))), frozen(RNG.standard_normal((30, 2)))
LOSS, GRADIENT = square_loss(TARGET)
TOKENS = frozen(RNG.standard_normal((5, 6, 4)))


def ones_after(x: np.ndarray) -> np.ndarray:
    """Rows with a column of ones."""
    rows = x.reshape(-1, x.shape[-1])
    return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)


# Names of the original.


def test_the_gradient_of_the_last_batch_can_be_forgotten() -> None:
    module = layer(4, 3)
    module.store_input = module.store_pre_activity = True
    _, pullback = module.vjp(X)
    pullback(2.0 * np.ones((30, 3)))
    np.testing.assert_array_equal(module.pre_activity_grad, np.full((30, 3), 2.0))
    module.clear_pre_activity_grad()
    assert module.pre_activity_grad is None
    np.testing.assert_array_equal(module.input, X)
    np.testing.assert_array_equal(module.pre_activity, X @ module.weight.data.T + module.layer.bias.data)


@pytest.mark.parametrize("bias", [False, True], ids=["unbiased", "biased"])
def test_a_layer_is_scaled_in_place(bias: bool) -> None:
    inner = layer(4, 3, bias).layer
    before = {name: np.array(value) for name, value in inner.state_dict().items()}
    assert LinearGrowingModule.scale_layer(inner, -1.5) is inner
    after = inner.state_dict()
    assert after.keys() == before.keys() == ({"weight", "bias"} if bias else {"weight"})
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], -1.5 * value)


# Value and way back.


@pytest.mark.parametrize("storing", [False, True], ids=["plain", "storing"])
@pytest.mark.parametrize("bias", [False, True], ids=["unbiased", "biased"])
@pytest.mark.parametrize("x", [X[:4], TOKENS[:2]], ids=["samples", "tokens"])
def test_the_pullback_agrees_with_differences(x: np.ndarray, bias: bool, storing: bool) -> None:
    module = layer(4, 3, bias, post_layer_function=GELU())
    if storing:
        module.store_input = module.store_pre_activity = True

    def function(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> Any:
        module.layer.weight.data = w
        if bias:
            module.layer.bias.data = b
        y, pullback = module.vjp(x)

        def gradients(dy: np.ndarray) -> Any:
            module.zero_grad()
            return pullback(dy), module.layer.weight.grad, module.layer.bias.grad if bias else None

        return y, gradients

    wrt = range(3) if bias else range(2)
    check_vjp(function, np.array(x), np.array(module.weight.data), np.ones(3), wrt=wrt)


@pytest.mark.parametrize("storing", [False, True], ids=["plain", "storing"])
def test_the_way_back_goes_through_the_weights_of_the_way_there(storing: bool) -> None:
    module = layer(4, 3)
    module.store_input = module.store_pre_activity = storing
    old = module.weight.data
    _, pullback = module.vjp(X)
    module.layer.weight.data = 7 * old  # an optimizer's step between
    np.testing.assert_allclose(pullback(np.ones((30, 3))), np.ones((30, 3)) @ old)


@pytest.mark.parametrize("storing", [False, True], ids=["plain", "storing"])
def test_a_pullback_may_be_called_twice(storing: bool) -> None:
    module = layer(4, 3)
    module.store_input = module.store_pre_activity = storing
    y, pullback = module.vjp(X)
    first = pullback(y)
    once = module.layer.weight.grad
    assert np.array_equal(pullback(y), first)
    np.testing.assert_allclose(module.layer.weight.grad, 2 * once)
    if storing:
        np.testing.assert_allclose(module.compute_m_update()[0], ones_after(X).T @ y)


def test_a_layer_without_inputs_gives_its_bias(xp: Library) -> None:
    module = xp.adopt(layer(0, 3))
    module.store_input = module.store_pre_activity = True
    y, pullback = module.vjp(xp.asarray(np.zeros((5, 0))))
    np.testing.assert_array_equal(to_numpy(y), np.tile(to_numpy(module.bias.data), (5, 1)))
    assert pullback(y).shape == (5, 0)
    assert to_numpy(module.input_extended).tolist() == [[1.0]] * 5
    np.testing.assert_allclose(to_numpy(module.compute_s_update()[0]), [[5.0]])
    np.testing.assert_allclose(to_numpy(module.layer.bias.grad), 5 * to_numpy(module.bias.data))
    plain = xp.adopt(layer(0, 3, bias=False))
    assert not to_numpy(plain(xp.asarray(np.zeros((5, 0))))).any()


# What is kept.


def held(module: LinearGrowingModule) -> list[Any]:
    return [module.recorder.get(what) for what in ("input", "pre_activity", "gradient", "moment")]


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_nothing_is_kept_unless_somebody_asks(mode: bool) -> None:
    module = layer(4, 3)
    module.train(mode)
    y, pullback = module.vjp(X)
    pullback(y)
    assert held(module) == [None] * 4


def test_what_nobody_needs_any_longer_is_let_go() -> None:
    pair = Pair.of().collect(X, GRADIENT)
    assert all(value is not None for value in held(pair.second))
    pair.second.reset_computation()
    for module in (pair.first, pair.second):
        assert held(module) == [None] * 4
        assert (module.store_input, module.store_pre_activity) == (0, 0)  # fact reset_leaves_previous_store_input_on
        assert module.tensor_s.samples == 0


def test_one_collections_end_takes_nothing_from_another() -> None:
    pair = Pair.of()
    pair.first.store_input = True
    pair.first.init_computation()
    pair.second.init_computation()
    pair.second.reset_computation()
    pair.back(X, GRADIENT)
    pair.first.update_computation()
    assert pair.first.input is X
    pair.first.reset_computation()
    assert pair.first.store_input == 1
    pair.first.store_input = False
    assert pair.first.store_input == 0


def test_a_gradient_of_an_earlier_batch_is_never_paired_with_a_later_input() -> None:
    module = layer(4, 3)
    module.store_input = module.store_pre_activity = True
    y, pullback = module.vjp(X)
    pullback(y)
    module.store_pre_activity = False
    module.vjp(2 * X)
    with pytest.raises(ValueError, match="no pre_activity gradient is kept; set store_pre_activity or call init"):
        module.compute_m_update()


def test_two_forwards_before_a_pullback_keep_the_latest() -> None:
    module = layer(4, 3)
    module.init_computation()
    y1, back1 = module.vjp(X[:10])
    y2, back2 = module.vjp(X[10:])
    back2(y2)
    back1(y1)
    module.update_computation()
    np.testing.assert_allclose(module.tensor_m(), ones_after(X[10:]).T @ y2 / 20)
    np.testing.assert_allclose(module.layer.weight.grad, y1.T @ X[:10] + y2.T @ X[10:])


def test_the_same_input_twice_is_two_forwards_too() -> None:
    module = layer(4, 3)
    module.init_computation()
    y, back1 = module.vjp(X)
    _, back2 = module.vjp(X)
    back2(y)
    back1(5 * y)
    np.testing.assert_allclose(module.compute_m_update()[0], ones_after(X).T @ y)
    np.testing.assert_allclose(module.layer.weight.grad, 6 * y.T @ X)


def test_the_callers_arrays_are_neither_changed_nor_needed_writable() -> None:
    x, dy = frozen(X), frozen(RNG.standard_normal((30, 2)))
    copies = x.copy(), dy.copy()
    pair = Pair.of()
    pair.second.init_computation()
    for _ in range(2):
        pair.back(x, lambda y: dy)
        pair.second.update_computation()
    pair.second.compute_optimal_updates()
    pair.second.apply_change(scaling_factor=0.1)
    assert np.array_equal(x, copies[0])
    assert np.array_equal(dy, copies[1])


# Statistics.


@pytest.mark.parametrize("bias", [(True, True), (False, False)], ids=["biased", "unbiased"])
@pytest.mark.parametrize("tokens", [False, True], ids=["samples", "tokens"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=lambda dtype: dtype.__name__)
def test_statistics_are_the_moments_of_all_batches(dtype: type, tokens: bool, bias: tuple[bool, bool]) -> None:
    pair = Pair.of(bias=bias, dtype=dtype)
    x = (TOKENS if tokens else X).astype(dtype)
    dy = RNG.standard_normal((*x.shape[:-1], 2)).astype(dtype)
    pair.collect(x, lambda y, at: dy[at], batches=3)
    n, d = len(x), dy.reshape(-1, 2).astype(np.float64)
    wide = [
        ones_after(a.astype(np.float64))[:, : None if b else -1] for a, b in zip((x, pair.first(x)), bias, strict=True)
    ]
    tolerance = {"rtol": 0, "atol": 1e-12 if dtype is np.float64 else 3e-6}
    second = pair.second
    for statistic, expected in (
        (second.tensor_s, wide[1].T @ wide[1]),
        (second.tensor_m, wide[1].T @ d),
        (second.tensor_m_prev, wide[0].T @ d),
        (second.cross_covariance, wide[0].T @ wide[1]),
        (second.covariance_loss_gradient, d.T @ d),
        (second.tensor_s_growth, wide[0].T @ wide[0]),
    ):
        np.testing.assert_allclose(statistic(), expected / n, **tolerance)  # type: ignore[arg-type]
        assert statistic().dtype == np.float64
        assert statistic.samples == n  # the first axis alone: fact token_inputs_divide_by_batch_only


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=lambda dtype: dtype.__name__)
def test_the_pullbacks_product_serves_as_m(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    module = layer(4, 3, dtype=dtype)
    module.init_computation()
    x, dy = X.astype(dtype), RNG.standard_normal((30, 3)).astype(dtype)
    module.vjp(x)[1](dy)
    explicit = cross_moment(Stream(x, bias=True), Stream(dy))
    import growarray.growing.statistics as statistics

    monkeypatch.setattr(statistics, "cross_moment", lambda *a: pytest.fail("computed again"))
    found, samples = module.compute_m_update()
    assert samples == 30
    assert np.array_equal(found, explicit)
    np.testing.assert_allclose(module.layer.weight.grad, dy.T @ x, rtol=0, atol=1e-5)
    assert module.layer.weight.grad.dtype == dtype


def test_tokens_count_for_the_goal_of_the_layer_before() -> None:
    pair = Pair.of()
    pair.collect(TOKENS, lambda y, at: y).second.compute_optimal_delta()
    pair.second.store_input = True
    assert pair.first.compute_n_update()[1] == 30  # fact token_inputs_divide_by_batch_only


def test_a_second_update_for_one_batch_changes_nothing() -> None:
    pair = Pair.of().collect(X, GRADIENT)
    pair.second.update_computation()
    assert {s.samples for s in (pair.second.tensor_s, pair.second.tensor_m, pair.first.tensor_s)} == {30}


def test_e_counts_samples_once_over_several_passes() -> None:
    pair = Pair.of().collect(X, GRADIENT)
    once = pair.second.covariance_loss_gradient() * 30
    pair.second.update_covariance_loss_gradient(count_samples=False)
    np.testing.assert_allclose(pair.second.covariance_loss_gradient(), 2 * once / 30)


def test_a_wanted_activation_takes_the_place_of_the_gradient() -> None:
    pair = Pair.of().collect(X, GRADIENT)
    wanted = RNG.standard_normal((30, 2))
    np.testing.assert_allclose(pair.second.compute_m_update(wanted)[0], ones_after(pair.first(X)).T @ wanted)
    np.testing.assert_allclose(pair.second.compute_m_prev_update(wanted)[0], ones_after(X).T @ wanted)


def test_residual_and_goal_fit_together() -> None:
    pair = Pair.of().collect(X, GRADIENT)
    with pytest.raises(ValueError, match="the optimal delta is not computed"):
        _ = pair.second.tensor_n
    pair.second.compute_optimal_delta()
    residual = pair.second.projected_v_goal()
    np.testing.assert_allclose(ones_after(pair.first(X)).T @ residual, 0.0, atol=1e-10)
    np.testing.assert_allclose(pair.second.tensor_n, -ones_after(X).T @ residual / 30, atol=1e-12)


def test_statistics_start_anew_after_growth_and_a_second_round_works() -> None:
    pair = Pair.of()
    sizes = []
    for _ in range(3):
        pair.collect(X, GRADIENT)
        pair.second.compute_optimal_updates(max_new=1)
        before = LOSS(pair.forward(X))
        pair.second.apply_change(scaling_factor=0.05)
        pair.second.delete_update()
        assert LOSS(pair.forward(X)) < before
        sizes.append((pair.first.out_features, pair.second.in_features))
        assert pair.second.tensor_s.samples == pair.second.tensor_m.samples == 0
    assert sizes == [(4, 4), (5, 5), (6, 6)]


def test_updates_are_float64_and_plans_have_the_layers_dtype() -> None:
    """Fact default_compute_dtype_float32."""
    single, double = Pair.of(dtype=np.float32), Pair.of()
    for pair in (single, double):
        for ours, theirs in ((pair.first, single.first), (pair.second, single.second)):
            ours.layer.weight.data = theirs.weight.data.astype(ours.weight.data.dtype)
            ours.layer.bias.data = theirs.bias.data.astype(ours.bias.data.dtype)
        pair.collect(X.astype(pair.first.weight.data.dtype), GRADIENT)
    delta, bias, decrease = single.second.compute_optimal_delta()
    expected, _, promised = double.second.compute_optimal_delta()
    assert delta.dtype == bias.dtype == np.float64
    np.testing.assert_allclose(delta, expected, rtol=1e-4, atol=1e-5)
    assert decrease == pytest.approx(promised, rel=1e-5)
    single.second.compute_optimal_updates()
    for part in (single.second.optimal_delta_layer, single.second.extended_input_layer):
        assert part.weight.data.dtype == np.float32
    assert single.second.eigenvalues_extension.dtype == np.float64


def test_a_singular_e_of_cross_entropy_is_handled_with_a_warning() -> None:
    """Fact fisher_singular_for_cross_entropy."""
    pair, labels = Pair.of((4, 3, 3)), RNG.integers(0, 3, 30)
    pair.collect(X, lambda y, at: cross_entropy(y, labels[at])[1](30.0))
    with pytest.warns(UserWarning, match="optimal_delta: E is singular"):
        pair.second.compute_optimal_updates(use_fisher=True)
    assert pair.second.parameter_update_decrease > 0
    assert np.abs(pair.second.optimal_delta_layer.weight.data).max() < 1e3
    delta = pair.second.delta_raw
    np.testing.assert_allclose(delta.sum(axis=0), 0.0, atol=1e-9)  # nothing along the direction that E does not see


def test_every_library_grows_the_same(xp: Library) -> None:
    def grown(to: Any, adopt: Any) -> list[np.ndarray]:
        pair = Pair.of()
        adopt(pair.first), adopt(pair.second)
        target = to(TARGET)
        pair.second.init_computation()
        pair.back(to(X), lambda y: y - target)
        pair.second.update_computation()
        pair.second.compute_optimal_updates(use_fisher=True, fisher_shrinkage=0.1)
        pair.second.sub_select_optimal_added_parameters(threshold=1e-9)
        pair.second.normalize_optimal_updates(0.1)
        pair.second.apply_change(scaling_factor=0.5)
        pair.second.delete_update()
        pair.second.reset_computation()
        return [to_numpy(p.data) for m in (pair.first, pair.second) for p in m.parameters()]

    for ours, theirs in zip(grown(xp.asarray, xp.adopt), grown(frozen, lambda m: m), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_sequence_of_functions_extends_with_the_layer() -> None:
    pair = Pair.of()
    pair.first.post_layer_function = Sequential(GELU(), GELU())
    pair.collect(X, GRADIENT).second.compute_optimal_updates()
    assert pair.second.activation_gradient == 0.25
    pair.second.scaling_factor = 0.1
    extended = pair.extended(X)
    pair.second.apply_change()
    np.testing.assert_allclose(pair.forward(X), extended, atol=1e-12)
