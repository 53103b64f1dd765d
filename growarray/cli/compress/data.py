"""Accuracy before and after a compression, on samples whose classes are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from growarray.backend import to_numpy
from growarray.datasets import load_table
from growarray.errors import DataError, shown

_BATCH = 256


def labelled(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Samples for an input of ``shape``, batch first, and the number of the output that is right for each.

    Raises DataError: the file cannot be read, its samples have another size, or its classes are not whole numbers from
    0.
    """
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"--data {path}: expected a .npz file; save samples and classes with numpy.savez(path, x=..., y=...)"
        )
    table = load_table(path, task="classification", test_fraction=0.0)
    if table.features != math.prod(shape[1:]):
        raise DataError(
            f"--data {path}: a sample has {table.features} values, the graph's input of shape {shape[1:]} takes "
            f"{math.prod(shape[1:])}; give the data that the network was trained for"
        )
    wrong = [name for name in table.classes if not name.isdecimal()]
    if wrong:
        raise DataError(
            f"--data {path}: expected the number of the right output as the class, from 0, found {shown(wrong[0])}; "
            "number the classes as the network does"
        )
    numbers = np.array([int(name) for name in table.classes])
    return table.x_train.reshape(-1, *shape[1:]), numbers[table.y_train]


def accuracy(network: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Share of the samples whose largest output is the right one; ``DataError`` if there are no such outputs."""
    right = 0
    for start in range(0, len(x), _BATCH):
        scores = to_numpy(network(x[start : start + _BATCH]))
        if scores.ndim != 2 or scores.shape[1] <= y.max():
            raise DataError(
                f"--data: the network's output has shape {scores.shape}, expected one score for each of "
                f"{y.max() + 1} classes or more, (n, classes); leave --data out"
            )
        right += int(np.sum(np.argmax(scores, axis=1) == y[start : start + _BATCH]))
    return right / len(x)
