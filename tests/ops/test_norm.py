"""Normalisations: pullbacks against finite differences, values against their definition, any shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growarray.errors import ShapeError
from growarray.ops.norm import batch_norm, batch_statistics, group_norm, layer_norm
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library, frozen

RNG = np.random.default_rng(3)
X2, X3, X4 = (RNG.standard_normal(s) for s in ((5, 4), (3, 4, 3), (2, 4, 2, 3)))
W4, B4, W23, B23 = (RNG.standard_normal(s) for s in ((4,), (4,), (2, 3), (2, 3)))
MEAN, VAR = RNG.standard_normal(4), RNG.random(4) + 0.5

CASES: dict[str, tuple[Callable[..., Any], list[np.ndarray]]] = {
    "layer": (layer_norm, [X2, W4, B4]),
    "layer-plain": (layer_norm, [X2]),
    "layer-no-bias": (lambda x, w: layer_norm(x, w, None), [X2, W4]),
    "layer-two-axes": (lambda x, w, b: layer_norm(x, w, b, 2, 1e-3), [X4, W23, B23]),
    "layer-all-axes": (lambda x, w, b: layer_norm(x, w, b, 2), [X4[0, 0], W23, B23]),
    "batch": (batch_norm, [X2, W4, B4]),
    "batch-plain": (batch_norm, [X2]),
    "batch-sequence": (batch_norm, [X3, W4, B4]),
    "batch-image": (batch_norm, [X4, W4, B4]),
    "group-1": (lambda x, w, b: group_norm(x, 1, w, b), [X4, W4, B4]),
    "group-2": (lambda x, w, b: group_norm(x, 2, w, b), [X4, W4, B4]),
    "group-4": (lambda x, w, b: group_norm(x, 4, w, b), [X3, W4, B4]),
    "group-plain": (lambda x: group_norm(x, 2), [X2]),
}


@pytest.mark.parametrize("name", CASES)
def test_pullback_is_the_derivative(name: str, xp: Library) -> None:
    function, arrays = CASES[name]
    check_vjp(function, *[xp.asarray(a) for a in arrays])


@pytest.mark.parametrize("name", CASES)
def test_half_precision_stays_and_its_squares_do_not_overflow(name: str) -> None:
    function, arrays = CASES[name]
    half = [(arrays[0] * 100.0 + 200.0).astype(np.float16), *(a.astype(np.float16) for a in arrays[1:])]
    (y, back), (wide, wide_back) = function(*half), function(*(a.astype(np.float64) for a in half))
    dy = RNG.standard_normal(y.shape).astype(np.float16)
    for found, exact in zip((y, *back(dy)[1:]), (wide, *wide_back(dy.astype(np.float64))[1:]), strict=True):
        if exact is not None:
            assert found.dtype == np.float16
            np.testing.assert_allclose(found, exact, rtol=2e-3, atol=2e-3)


def test_evaluation_takes_given_statistics_as_constants(xp: Library) -> None:
    mean, var = xp.asarray(MEAN), xp.asarray(VAR)

    def function(x: Any, w: Any, b: Any) -> Any:
        return batch_norm(x, w, b, mean=mean, var=var, training=False)

    check_vjp(function, *[xp.asarray(a) for a in (X2, W4, B4)])
    y, _ = function(*[xp.asarray(a) for a in (X2, W4, B4)])
    assert_close(y, (X2 - MEAN) / np.sqrt(VAR + 1e-5) * W4 + B4)


def test_given_batch_statistics_change_nothing_in_training() -> None:
    mean, var = batch_statistics(X3)
    (y, back), (again, back_again) = batch_norm(X3, W4, B4), batch_norm(X3, W4, B4, mean=mean, var=var)
    assert_close(again, y, rtol=0.0)
    for a, b in zip(back(X3), back_again(X3), strict=True):
        assert_close(a, b, rtol=0.0)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 3),
    groups=st.integers(1, 3),
    width=st.integers(1, 3),
    rest=st.lists(st.integers(1, 3), max_size=2),
    seed=st.integers(0, 99),
)
def test_every_norm_leaves_mean_zero_and_variance_one(
    n: int, groups: int, width: int, rest: list[int], seed: int
) -> None:
    x = frozen(np.random.default_rng(seed).standard_normal((n, groups * width, *rest)) * 3.0 + 1.0)
    channels_last = tuple(range(1, x.ndim))
    results = {
        "layer": (layer_norm(x, None, None, x.ndim - 1)[0].reshape(n, -1), x.reshape(n, -1)),
        "group": (group_norm(x, groups)[0].reshape(n * groups, -1), x.reshape(n * groups, -1)),
        "batch": (
            np.moveaxis(batch_norm(x)[0], 1, 0).reshape(x.shape[1], -1),
            np.moveaxis(x, 1, 0).reshape(x.shape[1], -1),
        ),
    }
    assert channels_last
    for name, (rows, given_rows) in results.items():
        var = given_rows.var(axis=1)
        assert_close(rows.mean(axis=1), np.zeros(len(rows)), what=f"{name} mean")
        assert_close(rows.var(axis=1), var / (var + 1e-5), what=f"{name} variance")


def test_batch_statistics_are_numpy_s(xp: Library) -> None:
    mean, var = batch_statistics(xp.asarray(X4))
    assert_close(mean, X4.mean(axis=(0, 2, 3)))
    assert_close(var, X4.var(axis=(0, 2, 3)))


@pytest.mark.parametrize("shape", [(5000, 3), (800, 3, 5, 5)], ids=["rows", "images"])
def test_batch_statistics_of_large_means_lose_no_digits_to_the_number_of_samples(shape: tuple[int, ...]) -> None:
    x = (np.random.default_rng(0).standard_normal(shape) + 1e4).astype(np.float32)
    mean, var = batch_statistics(x)
    axes, exact = (0, *range(2, x.ndim)), x.astype(np.float64)
    assert mean.dtype == var.dtype == np.float32
    off = np.abs(mean - exact.mean(axis=axes))
    assert (off <= np.spacing(mean)).all(), f"mean is {off.max():.1e} off"
    # both the variance around a rounded mean, and its own rounding
    np.testing.assert_allclose(var, exact.var(axis=axes) + off**2, rtol=8 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(
            lambda: layer_norm(X2, np.ones(3)), r"weight has shape \(3,\), expected \(4,\)", id="layer-weight"
        ),
        pytest.param(lambda: layer_norm(X2, None, None, 3), "cannot normalise 3 axes", id="layer-axes"),
        pytest.param(
            lambda: batch_norm(X2, bias=np.ones(5)), r"bias has shape \(5,\), expected \(4,\)", id="batch-bias"
        ),
        pytest.param(lambda: batch_norm(np.ones(3)), r"expected \(n, c\)", id="batch-axes"),
        pytest.param(lambda: batch_statistics(np.ones((0, 3))), "has no values to average", id="batch-empty"),
        pytest.param(lambda: group_norm(X2, 3), "4 channels cannot be split into 3 groups", id="group-cut"),
        pytest.param(lambda: group_norm(X2, 2, np.ones(2)), r"weight has shape \(2,\)", id="group-weight"),
    ],
)
def test_wrong_shapes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()


def test_evaluation_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluation needs mean and var"):
        batch_norm(X2, training=False)
