"""Losses and scores of predictions y (n, k) against targets (n, k + 1), whose last column is the samples' weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from growarray.networks.data import Task
from growarray.ops.loss import cross_entropy


def _weights(target: Any) -> Any:
    return target[:, -1]


def _cross_entropy(y: Any, target: Any) -> Any:
    return cross_entropy(y, target[:, :-1] * target[:, -1:])


def _accuracy(y: Any, target: Any) -> float:
    right = np.argmax(y, axis=1) == np.argmax(target[:, :-1], axis=1)
    return float(np.average(right, weights=target[:, -1]))


def _square(y: Any, target: Any) -> Any:
    difference, weight = y - target[:, :-1], target[:, -1:]
    loss = np.sum(weight * difference**2) / difference.size
    return loss, lambda dloss=1.0: (2.0 * dloss / difference.size) * weight * difference


def _r2(y: Any, target: Any) -> float:
    values, weight = target[:, :-1].astype(np.float64), target[:, -1:]
    mean = np.average(values, axis=0, weights=weight[:, 0])
    total = float(np.sum(weight * (values - mean) ** 2))
    return 1.0 - float(np.sum(weight * (y - values) ** 2)) / total if total > 0 else 0.0


CLASSIFICATION = Task("classification", _cross_entropy, _accuracy, "accuracy", _weights)
REGRESSION = Task("regression", _square, _r2, "r2", _weights)


def weighted_moments(values: Any, weight: Any) -> tuple[Any, Any]:
    """Weighted mean of each column, and 1 over its deviation: 0 if the column is constant."""
    values, share = values.astype(np.float64), weight[:, None] / weight.sum()
    constant = values.min(axis=0) == values.max(axis=0)
    mean = np.where(constant, values[0], np.sum(share * values, axis=0))
    deviation = np.sqrt(np.sum(share * (values - mean) ** 2, axis=0))
    return mean, np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation))
