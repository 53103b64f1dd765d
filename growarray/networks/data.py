"""What the loop needs to know of a task: its loss, its figure of merit, and batches in a given order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.errors import ShapeError, shown
from growarray.ops import cross_entropy, mse

__all__ = ["Task", "accuracy", "batches", "task_named"]

Loss = Callable[[Array, Array], tuple[Any, Callable[..., Array]]]


def accuracy(logits: Array, labels: Array) -> float:
    """Share of samples whose greatest logit is the label's; logits (n, c, *), labels (n, *) or probabilities (n, c, *).

    Raises ShapeError where the labels have another shape.

    >>> import numpy as np
    >>> accuracy(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0]))
    0.5
    """
    xp = namespace(logits, labels)
    if tuple(labels.shape) == tuple(logits.shape):
        labels = xp.argmax(labels, axis=1)
    elif tuple(labels.shape) != (logits.shape[0], *logits.shape[2:]):
        raise ShapeError(
            f"accuracy: labels have shape {tuple(labels.shape)}, expected {(logits.shape[0], *logits.shape[2:])} "
            f"or probabilities {tuple(logits.shape)}"
        )
    right = xp.astype(xp.argmax(logits, axis=1), labels.dtype) == labels
    return float(xp.mean(xp.astype(right, xp.float64)))


def _r2(prediction: Array, target: Array) -> float:
    """1 - residual over total sum of squares: 1 is perfect, 0 the mean's."""
    xp, target = namespace(prediction, target), _columns(target, prediction)
    total = float(xp.sum((target - xp.mean(target, axis=0)) ** 2))
    return 1.0 - float(xp.sum((prediction - target) ** 2)) / total if total else 0.0


def _columns(target: Array, y: Array) -> Array:
    """Targets (n,) as (n, 1) where there is one prediction a sample: its axis may be left out."""
    return target[..., None] if target.ndim == y.ndim - 1 and y.shape[-1] == 1 else target


def _mean_square(y: Array, target: Array) -> tuple[Any, Callable[..., Array]]:
    target = _columns(target, y)
    if tuple(y.shape) != tuple(target.shape):
        raise ShapeError(f"targets have shape {tuple(target.shape)}, predictions {tuple(y.shape)}; make them (n, t)")
    return mse(y, target)


@dataclass(frozen=True)
class Task:
    """A mean loss ``(y, target) -> (loss, pullback)`` and a figure of merit ``(y, target) -> float``, larger better."""

    name: str
    loss: Loss
    score: Callable[[Array, Array], float]
    score_name: str


_TASKS = {
    "classification": Task("classification", cross_entropy, accuracy, "accuracy"),
    "regression": Task("regression", _mean_square, _r2, "r2"),
}


def task_named(name: str) -> Task:
    """``'classification'`` (cross entropy, accuracy) or ``'regression'`` (mean squared error, R²).

    Regression targets are (n, t), or (n,) where there is one a sample.

    >>> task_named("regression").score_name
    'r2'
    """
    if name not in _TASKS:
        raise ValueError(f"unknown task {shown(name)}; known: {', '.join(_TASKS)}")
    return _TASKS[name]


def batches(
    x: Array, target: Array, size: int, rng: np.random.Generator | None = None
) -> Iterator[tuple[Array, Array]]:
    """Batches of at most ``size`` samples, in order, or shuffled by ``rng``; the last one may be smaller.

    The permutation is drawn in NumPy, so that every library sees the same batches.
    """
    if x.shape[0] != target.shape[0]:
        raise ShapeError(f"batches: {x.shape[0]} samples, {target.shape[0]} targets; they must be as many")
    if size < 1:
        raise ValueError(f"batches: size must be at least 1, found {size}")
    xp = namespace(x, target)
    order = None if rng is None else asarray(rng.permutation(int(x.shape[0])), like=x)
    count = int(x.shape[0])
    for start in range(0, count, size):
        stop = min(start + size, count)
        if order is None:
            yield x[start:stop, ...], target[start:stop, ...]
        else:
            chosen = order[start:stop]
            yield xp.take(x, chosen, axis=0), xp.take(target, chosen, axis=0)
