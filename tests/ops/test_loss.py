"""Losses: pullbacks against finite differences, values against a plain loop, messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growarray.backend import asarray, to_numpy
from growarray.errors import ShapeError
from growarray.ops.loss import cross_entropy, l1, mse
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library, frozen

RNG = np.random.default_rng(5)
LOGITS, IMAGE = RNG.standard_normal((4, 3)), RNG.standard_normal((2, 3, 2, 2))
LABELS, IMAGE_LABELS = np.array([0, 2, -100, 1]), np.array([[[0, 1], [2, 2]], [[1, -100], [0, 2]]])
PROB = RNG.dirichlet(np.ones(3), 4)
WEIGHT = np.array([0.5, 2.0, 1.5])


def plain_cross_entropy(
    logits: np.ndarray, labels: np.ndarray, weight: np.ndarray, smoothing: float
) -> tuple[np.ndarray, float]:
    """Loss of every label by a loop over torch's definition, and the sum of weights; logits (n, c)."""
    losses, total = np.zeros(len(labels)), 0.0
    for i, label in enumerate(labels):
        if label != -100:
            log_p = logits[i] - np.log(np.exp(logits[i]).sum())
            losses[i] = -(1 - smoothing) * weight[label] * log_p[label] - smoothing * (weight * log_p).mean()
            total += weight[label]
    return losses, total


TARGETS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "labels": (LOGITS, LABELS),
    "image": (IMAGE, IMAGE_LABELS),
    "probabilities": (LOGITS, PROB),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"weight": WEIGHT, "label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("kind", TARGETS)
def test_cross_entropy_pullback(kind: str, options: dict[str, Any], reduction: str, xp: Library) -> None:
    logits, target = (xp.asarray(a) for a in TARGETS[kind])
    moved = {k: xp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    check_vjp(lambda x: cross_entropy(x, target, reduction=reduction, **moved), logits)


@pytest.mark.parametrize("loss", [mse, l1])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_difference_losses_pullback(loss: Callable[..., Any], reduction: str, xp: Library) -> None:
    target = xp.asarray(np.zeros((4, 3)))
    check_vjp(lambda x: loss(x, target, reduction=reduction), xp.asarray(LOGITS))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 5), c=st.integers(1, 4), smoothing=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 99))
def test_cross_entropy_is_the_plain_loop(n: int, c: int, smoothing: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, weight = frozen(rng.standard_normal((n, c))), frozen(rng.random(c) + 0.1)
    labels = rng.integers(0, c, n)
    labels[1:][rng.random(n - 1) < 0.3] = -100
    losses, total = plain_cross_entropy(logits, labels, weight, smoothing)
    options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing}
    assert_close(cross_entropy(logits, frozen(labels), reduction="none", **options)[0], losses)
    assert float(cross_entropy(logits, labels, **options)[0]) == pytest.approx(losses.sum() / total, rel=1e-12)


def test_probabilities_that_are_one_hot_are_labels(xp: Library) -> None:
    labels = np.array([0, 2, 1, 1])
    by_label, _ = cross_entropy(xp.asarray(LOGITS), xp.asarray(labels))
    by_probability, _ = cross_entropy(xp.asarray(LOGITS), xp.asarray(np.eye(3)[labels]))
    assert_close(by_probability, to_numpy(by_label))


@pytest.mark.parametrize("loss", [lambda x, **k: cross_entropy(x, LABELS, **k), lambda x, **k: mse(x, PROB, **k)])
def test_dloss_scales_the_gradient(loss: Callable[..., Any]) -> None:
    _, mean = loss(LOGITS)
    assert_close(mean(3.0), 3.0 * mean())
    _, each = loss(LOGITS, reduction="none")
    assert_close(each(np.ones_like(loss(LOGITS, reduction="none")[0])), each())


def test_a_class_of_probability_zero_costs_nothing_unless_it_is_the_label() -> None:
    logits = np.array([[0.0, -np.inf], [0.0, 0.0]])
    loss, pullback = cross_entropy(logits, np.array([0, 1]), reduction="none")
    assert_close(loss, np.array([0.0, np.log(2.0)]))
    assert np.isfinite(pullback()).all()


@pytest.mark.parametrize("loss", [cross_entropy, mse, l1])
def test_a_mean_of_half_precision_is_one_though_the_sum_overflows(loss: Callable[..., Any]) -> None:
    x = np.full((4096, 2), 40.0, np.float16) * np.array([-1, 1], np.float16)
    target = np.zeros(4096, np.int64) if loss is cross_entropy else np.zeros_like(x)
    value, pullback = loss(x, target)
    wide, wide_pullback = loss(x.astype(np.float64), target.astype(np.int64 if loss is cross_entropy else np.float64))
    assert value.dtype == pullback().dtype == np.float16
    assert float(value) == pytest.approx(float(wide), rel=1e-3)
    np.testing.assert_allclose(pullback(), wide_pullback(), rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_stay_arrays_of_the_dtype(reduction: str, xp: Library) -> None:
    x, zeros = xp.asarray(LOGITS.astype(np.float32)), xp.asarray(np.zeros((4, 3), np.float32))
    results = [mse(x, zeros, reduction=reduction), l1(x, zeros, reduction=reduction)]
    results.append(cross_entropy(x, xp.asarray(LABELS), weight=xp.asarray(WEIGHT), reduction=reduction))
    for loss, pullback in results:
        assert loss.dtype == x.dtype
        assert (loss.ndim == 0) == (reduction != "none")
        assert type(asarray(loss, like=x)) is type(x)
        assert pullback().dtype == x.dtype


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda: cross_entropy(LOGITS, np.array([0, 3, 1, 1])),
            ValueError,
            "label 3 is not one of the 3 classes 0 to 2",
            id="label-high",
        ),
        pytest.param(
            lambda: cross_entropy(LOGITS, np.array([0, -1, 1, 1])), ValueError, "label -1 is not", id="label-low"
        ),
        pytest.param(
            lambda: cross_entropy(LOGITS, np.array([0, 1])), ShapeError, r"target has shape \(2,\)", id="labels"
        ),
        pytest.param(
            lambda: cross_entropy(LOGITS, np.ones(4)),
            ShapeError,
            "or class indices of an integer dtype",
            id="float-labels",
        ),
        pytest.param(lambda: cross_entropy(np.ones(3), LABELS), ShapeError, r"expected \(n, c\)", id="logits"),
        pytest.param(
            lambda: cross_entropy(LOGITS, LABELS, weight=np.ones(2)), ShapeError, r"expected \(3,\)", id="weight"
        ),
        pytest.param(
            lambda: cross_entropy(LOGITS, LABELS, reduction="avg"),
            ValueError,
            "mean, sum, none, found 'avg'",
            id="reduction",
        ),
        pytest.param(
            lambda: cross_entropy(LOGITS, LABELS, label_smoothing=1.5),
            ValueError,
            "between 0 and 1, found 1.5",
            id="smooth",
        ),
        pytest.param(
            lambda: cross_entropy(LOGITS, LABELS * 0 - 100), ValueError, "every target is ignored", id="nothing-counts"
        ),
        pytest.param(lambda: mse(LOGITS, np.ones(3)), ShapeError, "they must agree", id="mse-broadcast"),
        pytest.param(lambda: l1(LOGITS, LOGITS, reduction="x"), ValueError, "l1: reduction must be", id="l1-reduction"),
        pytest.param(lambda: mse(np.ones((0, 2)), np.ones((0, 2))), ValueError, "has no mean", id="mse-empty"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("seed", [np.float64(2.0), np.array(2.0), 2, 2.0], ids=repr)
def test_the_gradient_stays_float32_whatever_the_seed(seed: Any) -> None:
    logits = LOGITS.astype(np.float32)
    for call in (
        lambda: cross_entropy(logits, LABELS),
        lambda: mse(logits, logits * 2),
        lambda: l1(logits, logits * 2),
    ):
        pullback = call()[1]
        gradient = pullback(seed)
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, 2 * pullback(), rtol=1e-6)


def test_l1_has_no_slope_at_a_nan_as_in_torch() -> None:
    loss, pullback = l1(np.array([np.nan, 0.0, -3.0]), np.zeros(3), reduction="sum")
    assert np.isnan(loss)
    assert pullback().tolist() == [0.0, 0.0, -1.0]
