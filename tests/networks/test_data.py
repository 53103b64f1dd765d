"""Tasks and batches: what the loop measures, and in which order it sees the samples."""

from __future__ import annotations

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.errors import ShapeError
from growarray.networks import accuracy, batches, task_named
from growarray.testing import check_vjp
from tests.conftest import Library

X = np.arange(20.0).reshape(10, 2)
LABELS = np.arange(10)


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_batches_cover_everything_once_in_order(size: int, xp: Library) -> None:
    found = list(batches(xp.asarray(X), xp.asarray(LABELS), size))
    assert [int(x.shape[0]) for x, _ in found] == [min(size, 10 - s) for s in range(0, 10, size)]
    np.testing.assert_array_equal(np.concatenate([to_numpy(x) for x, _ in found]), X)
    np.testing.assert_array_equal(np.concatenate([to_numpy(t) for _, t in found]), LABELS)


def test_shuffled_batches_are_the_same_on_every_library(xp: Library) -> None:
    found = [
        (to_numpy(x), to_numpy(t)) for x, t in batches(xp.asarray(X), xp.asarray(LABELS), 4, np.random.default_rng(0))
    ]
    order = np.random.default_rng(0).permutation(10)
    assert [len(x) for x, _ in found] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([t for _, t in found]), order)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), X[order])


def test_batches_refuse_what_does_not_fit() -> None:
    with pytest.raises(ShapeError, match="batches: 10 samples, 9 targets; the numbers must agree"):
        next(batches(X, LABELS[:9], 3))
    with pytest.raises(ValueError, match="size must be at least 1, found 0"):
        next(batches(X, LABELS, 0))


def test_accuracy_counts_the_largest_logit(xp: Library) -> None:
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [9.0, 1.0, 5.0]], np.float32)
    for dtype in (np.int64, np.int32, np.uint8):
        assert accuracy(xp.asarray(logits), xp.asarray(np.array([0, 1, 1, 2], dtype))) == 0.5


def test_accuracy_takes_probabilities_and_refuses_other_shapes(xp: Library) -> None:
    logits, labels = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0]]), np.array([0, 2, 2])
    assert accuracy(xp.asarray(logits), xp.asarray(np.eye(3)[labels])) == pytest.approx(2 / 3)
    images = np.stack([logits, logits], axis=2)
    assert accuracy(xp.asarray(images), xp.asarray(np.stack([labels, labels], axis=1))) == pytest.approx(2 / 3)
    with pytest.raises(ShapeError, match=r"labels have shape \(3, 1\), expected \(3,\) or probabilities \(3, 3\)"):
        accuracy(xp.asarray(logits), xp.asarray(labels[:, None]))


def test_r2_is_one_for_perfect_and_zero_for_the_mean(xp: Library) -> None:
    score = task_named("regression").score
    target = np.random.default_rng(0).standard_normal((50, 3))
    assert score(xp.asarray(target), xp.asarray(target)) == 1.0
    mean = np.broadcast_to(target.mean(axis=0), target.shape)
    assert float(score(xp.asarray(mean), xp.asarray(target))) == pytest.approx(0.0, abs=1e-12)
    assert score(xp.asarray(target), xp.asarray(np.ones_like(target))) == 0.0


def test_the_losses_have_the_right_way_back() -> None:
    rng = np.random.default_rng(0)
    target = rng.standard_normal((5, 3))
    for name, goal in (("regression", target), ("classification", np.array([0, 1, 2, 1, 0]))):
        task = task_named(name)

        def loss(y: np.ndarray, task=task, goal=goal):  # type: ignore[no-untyped-def]
            value, pullback = task.loss(y, goal)
            return np.asarray(value), lambda d: pullback(float(d))

        check_vjp(loss, rng.standard_normal((5, 3)))


def test_targets_of_one_axis_are_one_a_sample(xp: Library) -> None:
    task, rng = task_named("regression"), np.random.default_rng(0)
    y, target = xp.asarray(rng.standard_normal((6, 1))), rng.standard_normal(6)
    flat, column = xp.asarray(target), xp.asarray(target[:, None])
    (loss, back), (expected, expected_back) = task.loss(y, flat), task.loss(y, column)
    assert float(loss) == float(expected)
    np.testing.assert_array_equal(to_numpy(back()), to_numpy(expected_back()))
    assert task.score(y, flat) == task.score(y, column)


def test_misuse_of_a_task_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"targets have shape \(5,\), predictions \(5, 2\); make them \(n, t\)"):
        task_named("regression").loss(np.ones((5, 2)), np.ones(5))
    with pytest.raises(ValueError, match="unknown task 'ranking'; known: classification, regression"):
        task_named("ranking")


def test_a_classification_may_be_judged_by_f1() -> None:
    logits = np.eye(3)[[0, 2, 2, 1, 1]]
    labels = np.array([0, 1, 2, 2, 1])
    assert task_named("classification", score="f1_macro").score(logits, labels) == pytest.approx(2 / 3)
    assert task_named("classification", score="f1_micro").score(logits, labels) == pytest.approx(0.6)
    assert task_named("classification", score="accuracy") is task_named("classification")
    with pytest.raises(ValueError, match="score of a regression must be one of r2, found 'f1_macro'"):
        task_named("regression", score="f1_macro")
    with pytest.raises(ValueError, match="score of a classification must be one of accuracy, f1_macro, f1_micro"):
        task_named("classification", score="auc")
