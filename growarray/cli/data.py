"""The data of a run: read, split in three, put on one scale, moved to the device."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from growarray.backend import Array, to_device
from growarray.datasets import Dataset, load_digits, load_table, standardise
from growarray.datasets.dataset import Task, split_rows
from growarray.errors import DataError

__all__ = ["DIGITS", "RunData", "as_options", "load_data"]

DIGITS = "digits"
Pair = tuple[Array, Array]


@dataclass(frozen=True, eq=False)
class RunData:
    """Pairs (features, targets) to train on, to choose by and to test with; None where a part is empty.

    scaling : what was subtracted from features and targets and what they were multiplied by, None where nothing was
    digest : SHA-256 of every array, by which a run that goes on knows its data again
    """

    train: Pair
    validation: Pair | None
    test: Pair | None
    features: int
    outputs: int
    classes: tuple[str, ...]
    scaling: dict[str, list[float]] | None
    digest: str

    def parts(self) -> list[tuple[str, Pair | None]]:
        """Name and pair of each part."""
        return [("training", self.train), ("validation", self.validation), ("test", self.test)]


def load_data(
    source: str,
    *,
    labels: str | None,
    label_column: str | None,
    task: str,
    test_fraction: float,
    validation_fraction: float,
    seed: int,
    dtype: str,
    scaled: bool,
    device: str,
) -> RunData:
    """``'digits'`` or a table from a file; ``scaled`` brings features, and real targets, to mean 0 and deviation 1.

    The validation part is taken from the training part, by class for classification. Both splits follow ``seed``.
    """
    if source == DIGITS:
        data = load_digits(test_fraction=test_fraction, seed=seed, dtype=dtype)
    else:
        kind: dict[str, Any] = {"test_fraction": test_fraction, "seed": seed, "dtype": dtype}
        try:
            data = load_table(source, labels=labels, label_column=label_column, task=cast(Task, task), **kind)
        except (DataError, ValueError) as error:
            raise type(error)(as_options(source, str(error))) from error
    scaling = None
    if scaled:
        data, scaling = _scaled(data)
    keep, held = np.arange(len(data.x_train)), np.arange(0)
    if validation_fraction > 0:
        classes = data.y_train if data.task == "classification" else None
        keep, held = split_rows(len(keep), validation_fraction, np.random.default_rng([seed, 1]), classes=classes)
    parts = [
        (data.x_train[keep], data.y_train[keep]),
        (data.x_train[held], data.y_train[held]),
        (data.x_test, data.y_test),
    ]
    digest = _digest([array for part in parts for array in part])
    train, validation, test = (
        (to_device(x, device), to_device(y, device)) if len(x) or index == 0 else None
        for index, (x, y) in enumerate(parts)
    )
    return RunData(cast(Pair, train), validation, test, data.features, data.outputs, data.classes, scaling, digest)


def as_options(source: str, message: str) -> str:
    """A message of the loader with the options of the command line in place of arguments; the file's name stays.

    >>> as_options("a.csv", "a.csv: real targets need task='regression', labels= a .npy file")
    'a.csv: real targets need --task regression, --labels a .npy file'
    """
    start = source if message.startswith(source) else ""
    text = re.sub(r"\btask='(\w+)'", r"--task \1", message.removeprefix(start)).replace(
        "dtype=float64", "--dtype float64"
    )
    text = text.replace("label_column='", "--label-column '").replace("label_column=", "--label-column")
    return start + text.replace("labels=", "--labels")


def _scaled(data: Dataset) -> tuple[Dataset, dict[str, list[float]]]:
    """Features, and targets of a regression, with mean 0 and deviation 1 in training; and how they got there."""
    offset, factor = _moments(data.x_train)
    scaling = {"feature_offset": offset.tolist(), "feature_factor": factor.tolist()}
    result = standardise(data)
    if data.task == "regression":  # targets in the thousands would ask for weights in the thousands
        offset, factor = _moments(data.y_train)
        factor = np.where(factor == 0.0, 1.0, factor)
        scaling |= {"target_offset": offset.tolist(), "target_factor": factor.tolist()}
        y_train, y_test = (((y - offset) * factor).astype(y.dtype) for y in (data.y_train, data.y_test))
        result = replace(result, y_train=y_train, y_test=y_test)
    return result, scaling


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each column, and 1 over its deviation: 0 where the column is constant."""
    wide = values.astype(np.float64)
    constant = wide.min(axis=0) == wide.max(axis=0)
    return wide.mean(axis=0), np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, wide.std(axis=0)))


def _digest(arrays: list[np.ndarray]) -> str:
    summary = hashlib.sha256()
    for array in arrays:
        summary.update(f"{array.dtype.str}{array.shape}".encode())
        summary.update(np.ascontiguousarray(array).tobytes())
    return summary.hexdigest()
