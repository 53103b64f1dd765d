"""The data of a run: read, split in three, put on one scale, moved to the device."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from growarray.backend import Array, to_device
from growarray.cli.grow.options import DIGITS, RunOptions
from growarray.datasets import Dataset, load_digits, load_table, standardise
from growarray.datasets.dataset import moments, split_rows
from growarray.errors import DataError

Pair = tuple[Array, Array]


@dataclass(frozen=True, eq=False)
class RunData:
    """Pairs (features, targets) to train on, to choose by and to test with; None if a part is empty.

    image : channels, height and width of a sample, None if it is no image
    scaling : what was subtracted from features and targets and what they were multiplied by, None if nothing was
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
    image: tuple[int, ...] | None = None

    def parts(self) -> list[tuple[str, Pair | None]]:
        """Name and pair of each part."""
        return [("training", self.train), ("validation", self.validation), ("test", self.test)]


def load_data(options: RunOptions) -> RunData:
    """The digits, a table from a file, or images, split in three.

    The validation part is taken from the training part, by class for classification. Both splits follow the seed.
    """
    source, kind = options.data, {"test_fraction": options.test_fraction, "seed": options.seed, "dtype": options.dtype}
    if source == DIGITS:
        data = load_digits(**kind)  # type: ignore[arg-type]
    else:
        names: Any = {"labels": options.labels, "label_column": options.label_column, "task": options.task}
        try:
            data = load_table(source, **names, **kind)  # type: ignore[arg-type]
        except (DataError, ValueError) as error:
            raise type(error)(as_options(source, str(error))) from error
    scaling = None
    if source != DIGITS if options.standardise is None else options.standardise:
        data, scaling = _scaled(data)
    keep, held = np.arange(len(data.x_train)), np.arange(0)
    if options.validation_fraction > 0:
        classes, rng = data.y_train if data.task == "classification" else None, np.random.default_rng([options.seed, 1])
        keep, held = split_rows(len(keep), options.validation_fraction, rng, classes=classes)
    x, y = data.x_train, data.y_train
    parts = [(x[keep], y[keep]), (x[held], y[held]), (data.x_test, data.y_test)]
    digest = _digest([array for part in parts for array in part])
    train, validation, test = (
        (to_device(x, options.device), to_device(y, options.device)) if len(x) or index == 0 else None
        for index, (x, y) in enumerate(parts)
    )
    return RunData(
        cast(Pair, train), validation, test, data.features, data.outputs, data.classes, scaling, digest, data.image
    )


def as_options(source: str, message: str) -> str:
    """A message of the loader with the options of the command line in place of arguments; the file's name stays.

    >>> as_options("a.csv", "a.csv: real targets need task='regression', labels= a .npy file")
    'a.csv: real targets need --task regression, --labels a .npy file'
    """
    start = source if message.startswith(source) else ""
    text = re.sub(r"\btask='(\w+)'", r"--task \1", message.removeprefix(start))
    text = text.replace("dtype=float64", "--dtype float64").replace("label_column='", "--label-column '")
    return start + text.replace("label_column=", "--label-column").replace("labels=", "--labels")


def _scaled(data: Dataset) -> tuple[Dataset, dict[str, list[float]]]:
    """Features, and targets of a regression, with mean 0 and deviation 1 in training; and how they got there."""
    offset, factor = moments(data.x_train)
    scaling = {"feature_offset": offset.tolist(), "feature_factor": factor.tolist()}
    result = standardise(data)
    if data.task == "regression":  # targets in the thousands would ask for weights in the thousands
        offset, factor = moments(data.y_train)
        factor = np.where(factor == 0.0, 1.0, factor)
        scaling |= {"target_offset": offset.tolist(), "target_factor": factor.tolist()}
        y_train, y_test = (((y - offset) * factor).astype(y.dtype) for y in (data.y_train, data.y_test))
        result = replace(result, y_train=y_train, y_test=y_test)
    return result, scaling


def _digest(arrays: list[np.ndarray]) -> str:
    summary = hashlib.sha256()
    for array in arrays:
        summary.update(f"{array.dtype.str}{array.shape}".encode())
        summary.update(np.ascontiguousarray(array).tobytes())
    return summary.hexdigest()
