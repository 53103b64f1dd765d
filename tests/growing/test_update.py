"""The equations of growth: inverse roots, optimal deltas, new neurons; each by the property that defines it."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.errors import GrowthError, ShapeError
from growarray.growing import (
    GRADMAX,
    TINY,
    GrowthRule,
    Stream,
    added_neurons,
    cross_moment,
    inverse_sqrt,
    neuron_goal,
    optimal_delta,
    pseudo_inverse,
    shrink,
)
from growarray.growing.rule import rule_of
from growarray.growing.update import activation_slope, rounding_floor, triangular_solve
from growarray.nn import Identity, ReLU, Sequential
from tests.conftest import Library, frozen

RNG = np.random.default_rng(3)


def features(n: int = 50, d: int = 4) -> np.ndarray:
    return RNG.standard_normal((n, d))


def moment_of(b: np.ndarray, right: np.ndarray | None = None) -> np.ndarray:
    return frozen(b.T @ (b if right is None else right) / len(b))


def duplicated() -> np.ndarray:
    b = features()
    return np.concatenate([b, b[:, 1:2]], axis=1)


def two_ones() -> np.ndarray:
    b = features(50, 5)
    b[:, 2] = b[:, 4] = 1.0
    return b


# Inverses.


def test_the_inverse_root_whitens(xp: Library) -> None:
    s = moment_of(features())
    root = to_numpy(inverse_sqrt(xp.asarray(s)))
    np.testing.assert_allclose(root @ s @ root, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(root, root.T, atol=1e-12)


def test_a_feature_that_is_almost_nothing_does_not_stop_a_growth() -> None:
    tiny = 1e-320  # definite once features are scaled alike, and not as it is
    mixed = (1 - 1e-8) * np.sqrt(tiny)
    alpha, omega, values = added_neurons(np.array([[1.0, mixed], [mixed, tiny]]), np.array([[2.0], [0.0]]))
    np.testing.assert_allclose(np.abs(alpha), [[np.sqrt(2.0), 0.0]], atol=1e-12)
    np.testing.assert_allclose(np.abs(omega), [[np.sqrt(2.0)]], atol=1e-12)
    assert values.tolist() == [2.0]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_triangle_of_several_blocks_is_solved(xp: Library, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    factor = np.tril(rng.standard_normal((150, 150))) / 12.0 + np.eye(150)
    x = rng.standard_normal((150, 3))
    right = (factor.T if transposed else factor) @ x
    found = triangular_solve(xp.asarray(factor), xp.asarray(right), transposed=transposed)
    np.testing.assert_allclose(to_numpy(found), x, atol=1e-9)


def test_the_inverse_root_ignores_what_is_under_the_threshold(xp: Library) -> None:
    s = np.diag([4.0, 1e-5, 1.0001e-5, 0.0])
    assert to_numpy(inverse_sqrt(xp.asarray(s))).tolist() == np.diag([0.5, 0.0, 1.0001e-5**-0.5, 0.0]).tolist()
    assert float(to_numpy(inverse_sqrt(xp.asarray(s), 1e-7))[1, 1]) == pytest.approx(1e-5**-0.5)


def test_the_pseudo_inverse_satisfies_moore_and_penrose(xp: Library) -> None:
    s = moment_of(duplicated())
    found = to_numpy(pseudo_inverse(xp.asarray(s)))
    np.testing.assert_allclose(s @ found @ s, s, atol=1e-10)
    np.testing.assert_allclose(found, np.linalg.pinv(s, hermitian=True), atol=1e-9)
    assert pseudo_inverse(xp.asarray(np.zeros((0, 0)))).shape == (0, 0)
    assert not to_numpy(pseudo_inverse(xp.asarray(np.zeros((2, 2))))).any()


BROKEN = {
    "not_square": (np.ones((2, 3)), ShapeError, r"square matrix, found shape \(2, 3\)"),
    "nan": (np.full((2, 2), np.nan), GrowthError, "NaN or infinite"),
    "inf": (np.diag([1.0, np.inf]), GrowthError, "NaN or infinite"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("function", [inverse_sqrt, pseudo_inverse], ids=lambda f: f.__name__)
def test_inverses_refuse_a_broken_matrix(function: Any, kind: str) -> None:
    matrix, error, message = BROKEN[kind]
    with pytest.raises(error, match=rf"{function.__name__}: the matrix.*{message}"):
        function(matrix)


def test_the_inverse_root_refuses_a_skew_matrix() -> None:
    with pytest.raises(GrowthError, match=r"not symmetric \(largest difference 1.00e\+00\); symmetrise it"):
        inverse_sqrt(np.array([[2.0, 1.0], [0.0, 2.0]]))


# Optimal delta.


def test_the_delta_is_the_least_squares_fit_of_the_gradient(xp: Library) -> None:
    b, g = features(), features(50, 2)
    delta, decrease = optimal_delta(xp.asarray(moment_of(b)), xp.asarray(moment_of(b, g)))
    expected = np.linalg.lstsq(b, g, rcond=None)[0].T
    np.testing.assert_allclose(to_numpy(delta), expected, rtol=1e-10)
    assert decrease == pytest.approx(np.sum((b @ expected.T) ** 2) / 50)


@pytest.mark.parametrize("make", [duplicated, two_ones], ids=lambda f: f.__name__)
def test_a_singular_s_gives_the_solution_of_least_norm_with_a_warning(make: Any, xp: Library) -> None:
    b, g = make(), features(50, 2)
    with pytest.warns(UserWarning, match="optimal_delta: S is singular or indefinite: the pseudo-inverse gives"):
        delta, decrease = optimal_delta(xp.asarray(moment_of(b)), xp.asarray(moment_of(b, g)))
    np.testing.assert_allclose(to_numpy(delta), np.linalg.lstsq(b, g, rcond=None)[0].T, atol=1e-9)
    assert decrease > 0
    forced, _ = optimal_delta(moment_of(b), moment_of(b, g), pseudo_inverse=True)  # asked for: no warning
    np.testing.assert_allclose(forced, to_numpy(delta), atol=1e-12)


SCALES = {"wide": np.array([1e-6, 1e-3, 1.0, 1e6]), "tiny": np.full(4, 1e-9), "huge": np.full(4, 1e9)}


@pytest.mark.parametrize("kind", SCALES)
def test_badly_scaled_features_are_not_called_singular(kind: str, xp: Library) -> None:
    b, g = features() * SCALES[kind], features(50, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        delta, decrease = optimal_delta(xp.asarray(moment_of(b)), xp.asarray(moment_of(b, g)))
    expected = np.linalg.lstsq(b / SCALES[kind], g, rcond=None)[0].T
    np.testing.assert_allclose(to_numpy(delta) * SCALES[kind], expected, rtol=1e-6)
    assert decrease == pytest.approx(np.sum((b @ to_numpy(delta).T) ** 2) / 50, rel=1e-6)


def test_a_negative_decrease_becomes_no_update_with_a_warning(xp: Library) -> None:
    with warnings.catch_warnings(record=True) as caught:  # fact negative_decrease_path
        warnings.simplefilter("always")
        delta, decrease = optimal_delta(xp.asarray(-np.eye(3)), xp.asarray(np.ones((3, 2))))
    texts = [str(warning.message) for warning in caught]
    assert "singular or indefinite" in texts[0]
    assert "the first-order decrease is -6.000e+00, so S is not positive semi-definite" in texts[-1]
    assert decrease == 0.0
    assert delta.shape == (2, 3)
    assert not to_numpy(delta).any()


def test_the_fisher_delta_is_preconditioned_on_both_sides(xp: Library) -> None:
    b, g = features(), features(50, 3)
    s, m, e = moment_of(b), moment_of(b, g), moment_of(g)
    delta, decrease = optimal_delta(xp.asarray(s), xp.asarray(m), e=xp.asarray(e))
    expected = np.linalg.inv(e) @ m.T @ np.linalg.inv(s)
    np.testing.assert_allclose(to_numpy(delta), expected, rtol=1e-9)
    assert decrease == pytest.approx(np.trace(m @ expected))


def test_a_singular_e_is_solved_by_the_pseudo_inverse_with_a_warning(xp: Library) -> None:
    b, g = features(), features(50, 3)
    g -= g.mean(axis=1, keepdims=True)  # as cross entropy's: rows add up to zero
    s, m, e = moment_of(b), moment_of(b, g), moment_of(g)
    with pytest.warns(UserWarning, match="optimal_delta: E is singular"):
        delta, decrease = optimal_delta(xp.asarray(s), xp.asarray(m), e=xp.asarray(e))
    expected = np.linalg.pinv(e, rcond=1e-10) @ m.T @ np.linalg.inv(s)
    np.testing.assert_allclose(to_numpy(delta), expected, rtol=1e-7, atol=1e-9)
    assert decrease > 0


REFUSED: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "s_nan": ((np.full((2, 2), np.nan), np.ones((2, 1))), GrowthError, "S holds NaN"),
    "m_nan": ((np.eye(2), np.full((2, 1), np.nan)), GrowthError, "M holds NaN"),
    "e_nan": ((np.eye(2), np.ones((2, 1)), np.full((1, 1), np.nan)), GrowthError, "E holds NaN"),
    "s_not_square": ((np.ones((2, 3)), np.ones((2, 1))), ShapeError, "S must be a square matrix"),
    "rows": ((np.eye(2), np.ones((3, 1))), ShapeError, r"S has shape \(2, 2\), M \(3, 1\); their rows must agree"),
    "m_vector": ((np.eye(2), np.ones(2)), ShapeError, r"M \(2,\); their rows must agree"),
    "e_size": ((np.eye(2), np.ones((2, 1)), np.eye(2)), ShapeError, r"E has shape \(2, 2\), M \(2, 1\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_delta_refuses_what_does_not_fit(kind: str) -> None:
    (s, m, *rest), error, message = REFUSED[kind]
    with pytest.raises(error, match=message):
        optimal_delta(s, m, e=rest[0] if rest else None)


@pytest.mark.parametrize(("d", "o"), [(0, 3), (3, 0), (0, 0)])
def test_empty_sides_give_empty_updates(d: int, o: int, xp: Library) -> None:
    delta, decrease = optimal_delta(xp.asarray(np.eye(d)), xp.asarray(np.zeros((d, o))), e=xp.asarray(np.eye(o)))
    assert (delta.shape, decrease) == ((o, d), 0.0)
    for floor in (0.0, 1e-6):
        alpha, omega, values = added_neurons(xp.asarray(np.eye(d)), xp.asarray(np.zeros((d, o))), floor=floor)
        assert (alpha.shape, omega.shape, values.shape) == ((0, d), (o, 0), (0,))


@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0])
def test_shrinking_moves_towards_a_multiple_of_the_identity(amount: float, xp: Library) -> None:
    e = moment_of(features())
    found = to_numpy(shrink(xp.asarray(e), amount))
    np.testing.assert_allclose(found, (1 - amount) * e + amount * np.trace(e) / 4 * np.eye(4), rtol=1e-14)
    assert np.trace(found) == pytest.approx(np.trace(e))


# New neurons.


def best_product(s: np.ndarray, n: np.ndarray, e: np.ndarray | None, rank: int) -> np.ndarray:
    """argmin over rank-k X of ``|S^(1/2) (X^T - S^-1 N E^-1) E^(1/2)|``, by another route than the code's."""
    left = np.linalg.cholesky(s)
    right = np.eye(n.shape[1]) if e is None else np.linalg.cholesky(e)
    u, values, vh = np.linalg.svd(np.linalg.inv(left) @ n @ np.linalg.inv(right).T)
    cut = (u[:, :rank] * values[:rank]) @ vh[:rank]
    return (np.linalg.inv(left).T @ cut @ np.linalg.inv(right)).T


@pytest.mark.parametrize("fisher", [False, True], ids=["plain", "fisher"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_new_neurons_are_the_best_of_their_number(rank: int, fisher: bool, xp: Library) -> None:
    b, g = features(), features(50, 3)
    s, n, e = moment_of(b), moment_of(b, g), moment_of(g) if fisher else None
    rule = dataclasses.replace(TINY, max_new=rank, statistical_threshold=0.0)
    given = xp.asarray(s), xp.asarray(n)
    alpha, omega, values = map(to_numpy, added_neurons(*given, e=None if e is None else xp.asarray(e), rule=rule))
    assert (alpha.shape, omega.shape, values.shape) == ((rank, 4), (3, rank), (rank,))
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(omega @ alpha, best_product(s, n, e, rank), atol=1e-10)
    np.testing.assert_allclose(alpha @ s @ alpha.T, np.diag(values), atol=1e-12)  # both sides carry sqrt(s)
    metric = np.eye(3) if e is None else e
    np.testing.assert_allclose(omega.T @ metric @ omega, np.diag(values), atol=1e-12)
    assert (np.take_along_axis(omega, np.abs(omega).argmax(axis=0)[None], axis=0) > 0).all()


def test_every_library_finds_the_same_neurons(xp: Library) -> None:
    s, n = moment_of(two_ones()), moment_of(two_ones(), features(50, 3))
    for rule in (TINY, GRADMAX, GrowthRule(omega_zero=True), GrowthRule(ignore_singular_values=True)):
        found = added_neurons(xp.asarray(s), xp.asarray(n), rule=rule)
        for ours, theirs in zip(found, added_neurons(s, n, rule=rule), strict=True):
            np.testing.assert_allclose(to_numpy(ours), theirs, atol=1e-10)


@pytest.mark.parametrize(
    ("values", "options", "kept"),
    [
        ([4.0, 1.0, 1e-4], {}, 2),
        ([4.0, 1.0, 1e-4], {"statistical_threshold": 1e-5}, 3),
        ([4.0, 1.0, 1e-4], {"max_new": 1}, 1),
        ([4.0, 1.0, 1e-4], {"max_new": 0}, 0),
        ([4.0, 1.0, 1e-4], {"max_new": 9}, 2),
        ([1e-9, 1e-9, 1e-9], {}, 3),  # fact threshold_is_capped_by_largest_singular_value
        ([1e-8, 1e-9, 1e-9], {}, 1),
        ([0.0, 0.0, 0.0], {}, 3),
        ([0.0, 0.0, 0.0], {"max_new": 0}, 0),
    ],
    ids=str,
)
def test_thresholds_say_how_many_neurons_stay(values: list[float], options: dict[str, Any], kept: int) -> None:
    alpha, omega, found = added_neurons(None, np.diag(values), rule=GrowthRule(**options))
    assert (alpha.shape, omega.shape) == ((kept, 3), (3, kept))
    np.testing.assert_allclose(found, values[:kept], rtol=1e-12)


def test_zeroed_sides_are_zero_and_the_other_side_stays() -> None:
    n = moment_of(features(), features(50, 3))
    alpha, omega, values = added_neurons(None, n)
    for name in ("alpha_zero", "omega_zero"):
        a, o, v = added_neurons(None, n, rule=GrowthRule(**{name: True}))
        np.testing.assert_array_equal(a, 0 * alpha if name == "alpha_zero" else alpha)
        np.testing.assert_array_equal(o, 0 * omega if name == "omega_zero" else omega)
        np.testing.assert_array_equal(v, values)
    a, o, v = added_neurons(None, n, rule=GrowthRule(ignore_singular_values=True))
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1.0)
    np.testing.assert_allclose((o * v) @ a, omega @ alpha, atol=1e-12)


def test_neurons_read_nothing_where_s_is_zero() -> None:
    s = np.diag([1.0, 0.0, 1.0, 0.0])
    alpha, _, _ = added_neurons(s, moment_of(features(), features(50, 3)))
    assert not alpha[:, [1, 3]].any()


def test_a_skew_s_is_symmetrised_with_a_warning() -> None:
    s = np.eye(4)
    s[0, 1] = 0.1
    n = moment_of(features(), features(50, 3))
    with pytest.warns(UserWarning, match=r"S is not symmetric \(largest difference 1.00e-01\)"):
        found = added_neurons(s, n)
    for ours, theirs in zip(found, added_neurons((s + s.T) / 2, n), strict=True):
        np.testing.assert_allclose(ours, theirs)


BAD_SIDES: dict[str, tuple[Any, Any, Any, type[Exception], str]] = {
    "s_size": (np.eye(3), np.ones((4, 2)), None, ShapeError, r"shapes \[\(3, 3\), \(4, 2\), None\]"),
    "e_size": (np.eye(4), np.ones((4, 2)), np.eye(3), ShapeError, r"expected \(p, p\), \(p, o\), \(o, o\)"),
    "n_vector": (np.eye(4), np.ones(4), None, ShapeError, r"\(4,\)"),
    "n_nan": (None, np.full((2, 2), np.nan), None, GrowthError, "N holds NaN"),
    "s_nan": (np.full((2, 2), np.nan), np.eye(2), None, GrowthError, "S holds NaN"),
    "e_nan": (None, np.eye(2), np.full((2, 2), np.nan), GrowthError, "E holds NaN"),
}


@pytest.mark.parametrize("kind", BAD_SIDES)
def test_new_neurons_refuse_what_does_not_fit(kind: str) -> None:
    s, n, e, error, message = BAD_SIDES[kind]
    with pytest.raises(error, match=message):
        added_neurons(s, n, e=e)


def test_the_goal_is_what_the_delta_leaves_undone(xp: Library) -> None:
    m, p, delta = features(3, 2), features(3, 5), features(2, 5)
    given = [xp.asarray(a) for a in (m, p, delta)]
    np.testing.assert_allclose(to_numpy(neuron_goal(*given)), -m + p @ delta.T)
    np.testing.assert_allclose(to_numpy(neuron_goal(given[0])), -m)


# Rules.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new": -1}, "max_new must be None or at least 0, found -1"),
        ({"fisher_shrinkage": 1.5}, r"fisher_shrinkage must lie in \[0, 1\], found 1.5"),
        ({"fisher_shrinkage": float("nan")}, r"fisher_shrinkage must lie in \[0, 1\], found nan"),
    ],
    ids=str,
)
def test_a_rule_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GrowthRule(**options)
    with pytest.raises(ValueError, match=message):
        rule_of(TINY, options)


def test_single_options_replace_those_of_a_rule() -> None:
    assert rule_of(TINY, {"maximum_added_neurons": 3, "use_fisher": True}) == GrowthRule(max_new=3, use_fisher=True)
    assert rule_of(GRADMAX, {}) == GRADMAX
    with pytest.raises(TypeError, match=r"unknown growth options \['use_fischer'\]; known: \['alpha_zero'"):
        rule_of(TINY, {"use_fischer": True})


def test_the_slope_is_the_modules_own_and_finite() -> None:
    assert activation_slope(Sequential(ReLU(), Identity())) == 1.0
    broken = Identity()
    broken.slope_at_zero = float("nan")
    with pytest.raises(GrowthError, match="Identity: slope_at_zero is nan; define a finite one"):
        activation_slope(broken)


@pytest.mark.parametrize("amount", [-0.1, 1.5, np.nan])
def test_a_ridge_outside_of_its_range_is_refused(amount: float) -> None:
    with pytest.raises(ValueError, match=r"shrink: the amount must lie in \[0, 1\], found"):
        shrink(np.eye(2), amount)


@pytest.mark.parametrize("value", ["yes", np.nan, 1, None], ids=str)
def test_a_switch_of_a_rule_is_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match="GrowthRule: use_fisher must be True or False, found"):
        GrowthRule(use_fisher=value)
    assert GrowthRule(use_fisher=np.True_).use_fisher  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["s", "e"])
def test_what_single_precision_leaves_of_nothing_is_not_inverted(part: str) -> None:
    """Features that add up to zero do so to 6e-8 in float32, and the second moment of that is no direction."""
    rng = np.random.default_rng(4)
    b, g = rng.standard_normal((2000, 6)), 0.1 * rng.standard_normal((2000, 10))
    summed = b if part == "s" else g
    summed -= summed.mean(axis=1, keepdims=True)
    rounded = [np.asarray(a.astype(np.float32), np.float64) for a in (b, g)]
    moments = [(x.T @ x / 2000, x.T @ y / 2000, y.T @ y / 2000) for x, y in ((b, g), rounded)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (exact, promise), (found, decrease) = (
            optimal_delta(s, m, e=e if part == "e" else None, floor=rounding_floor(np.ones(1, np.float32)))
            for s, m, e in moments
        )
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
    assert decrease == pytest.approx(promise, rel=1e-5)
    assert np.abs(found.sum(axis=1 if part == "s" else 0)).max() < 1e-5


def test_more_features_than_samples_give_single_precision_the_plan_of_double() -> None:
    """Large products are made in single precision, and what that leaves of zero is no direction either."""
    rng = np.random.default_rng(5)
    b, g = 5 * rng.standard_normal((64, 128)).astype(np.float32), rng.standard_normal((64, 10)).astype(np.float32)
    plans = []
    for dtype in (np.float64, np.float32):
        x, floor = Stream(b.astype(dtype), bias=True), rounding_floor(b.astype(dtype))
        s, m = cross_moment(x) / 64, cross_moment(x, Stream(g.astype(dtype))) / 64
        alpha, omega, _ = added_neurons(s, -m, rule=GrowthRule(max_new=3), floor=floor)
        plans.append((optimal_delta(s, m, pseudo_inverse=True, floor=floor)[0], omega @ alpha))
    for exact, found in zip(*plans, strict=True):
        assert np.linalg.norm(found - exact) < 1e-5 * np.linalg.norm(exact)


def test_the_precision_of_given_statistics_says_what_counts_as_zero() -> None:
    b, g = features(50, 8) @ features(8, 12), features(50, 2)
    narrow = moment_of(b).astype(np.float32), moment_of(b, g).astype(np.float32)
    with pytest.warns(UserWarning, match="S is singular"):
        found, _ = optimal_delta(*narrow)
    np.testing.assert_allclose(found, np.linalg.lstsq(b, g, rcond=None)[0].T, atol=12 * np.finfo(np.float32).eps)


def test_a_singular_s_does_not_lose_small_features_to_large_ones() -> None:
    scale = np.array([1e-2, 1.0, 1.0, 1e2, 1.0])
    b, g = duplicated(), features(50, 2)
    with pytest.warns(UserWarning, match="S is singular"):
        delta, decrease = optimal_delta(moment_of(b * scale), moment_of(b * scale, g), floor=1e-6)
    np.testing.assert_allclose(delta * scale, np.linalg.lstsq(b, g, rcond=None)[0].T, rtol=1e-6)
    assert decrease == pytest.approx(np.sum((b * scale @ delta.T) ** 2) / 50)


def test_features_that_are_always_zero_leave_the_others_alone() -> None:
    b, g = features(50, 6) @ features(6, 8), features(50, 2)
    b = np.concatenate([b, np.zeros((50, 3))], axis=1)
    expected = np.linalg.lstsq(b, g, rcond=None)[0].T
    for floor in (0.0, 1e-6):
        found = optimal_delta(moment_of(b), moment_of(b, g), pseudo_inverse=True, floor=floor)[0]
        np.testing.assert_allclose(found, expected, atol=1e-10)
