"""A data set split into training and test part, and the steps that all loaders share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np

from growarray.errors import DataError, shown

Task = Literal["classification", "regression"]
_FEW_CLASSES, _LEAST_PER_CLASS = 20, 3  # more labels, of fewer samples on average, are not classes


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Features and targets, training and test part, all NumPy arrays.

    x_train : (n, d)   x_test : (m, d) of one floating dtype
    y_train : (n,) int64 numbers of classes 0 to k - 1, or (n, t) real targets for regression
    classes : the k names of the classes, in the order of their numbers; empty for regression
    image : channels, height and width if the samples are images, whose numbers then follow in this order

    >>> import numpy as np
    >>> x, y = np.zeros((3, 2)), np.array([0, 1, 1])
    >>> Dataset(x, y, x, y, "classification", ("cat", "dog"))
    Dataset(classification, train=3, test=3, features=2, outputs=2)
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    task: Task
    classes: tuple[str, ...] = ()
    image: tuple[int, ...] | None = None

    @property
    def features(self) -> int:
        """Width d of the features: the inputs of a network."""
        return int(self.x_train.shape[1])

    @property
    def outputs(self) -> int:
        """Number of classes, or of regression targets: the outputs of a network."""
        return len(self.classes) if self.task == "classification" else int(self.y_train.shape[1])

    def __repr__(self) -> str:
        return (
            f"Dataset({self.task}, train={len(self.x_train)}, test={len(self.x_test)}, "
            f"features={self.features}, outputs={self.outputs})"
        )


def standardise(dataset: Dataset) -> Dataset:
    """Copy with features of mean 0 and standard deviation 1, both measured on the training part alone.

    A feature that is constant in training becomes 0 in both parts. Targets stay.

    >>> import numpy as np
    >>> x, y = np.array([[1.0, 7.0], [3.0, 7.0]]), np.array([0, 1])
    >>> standardise(Dataset(x, y, x + 2, y, "classification", ("a", "b"))).x_test.tolist()
    [[1.0, 0.0], [3.0, 0.0]]
    """
    mean, scale = moments(dataset.x_train)

    def scaled(values: np.ndarray) -> np.ndarray:
        return np.asarray((values - mean) * scale, dtype=values.dtype)

    return replace(dataset, x_train=scaled(dataset.x_train), x_test=scaled(dataset.x_test))


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each column, and 1 over its deviation: 0 if the column is constant."""
    wide = values.astype(np.float64)
    constant = wide.min(axis=0) == wide.max(axis=0)  # not deviation == 0: the rounding of the mean can leave 1e-17
    return wide.mean(axis=0), np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, wide.std(axis=0)))


def check_options(task: str, test_fraction: Any, seed: Any, dtype: Any) -> np.random.Generator:
    """The generator of the seed; raises ``ValueError`` unless the four options that all loaders share are valid."""
    if task not in get_args(Task):
        raise ValueError(f"unknown task {shown(task)}; expected 'classification' or 'regression'")
    if not (isinstance(test_fraction, Real) and 0.0 <= float(test_fraction) < 1.0):
        raise ValueError(
            f"test_fraction must lie in [0, 1), found {shown(test_fraction)}; 0.2 keeps a fifth for testing"
        )
    if np.dtype(dtype).kind != "f":
        raise ValueError(f"dtype must be a floating one, found {np.dtype(dtype)}; use numpy.float32 or numpy.float64")
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"seed must be a whole number of at least 0, found {shown(seed)}") from error


def class_values(labels: np.ndarray, *, where: Callable[[int], str]) -> np.ndarray:
    """Labels (n,) in one spelling: integers if all are whole numbers, written as numbers or as text, else text.

    ``where(i)`` names the place of label ``i`` in messages.

    Raises DataError: the labels are numbers and one is not whole.

    >>> class_values(np.array(["1.0", "02"]), where=str).tolist()
    [1, 2]
    """
    if labels.dtype.kind == "U":
        try:
            labels = labels.astype(np.float64)
        except ValueError:
            return labels
    if labels.dtype.kind != "f":
        return labels
    broken = np.flatnonzero(~(np.abs(labels) < 2.0**53) | (labels != np.round(labels)))
    if broken.size:
        raise DataError(
            f"{where(int(broken[0]))}: label {labels[broken[0]]} is not a whole number; "
            "classes are text or whole numbers, and real targets need task='regression'"
        )
    return labels.astype(np.int64)


def encode_classes(labels: np.ndarray, *, where: Callable[[int], str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) as numbers 0 to k - 1, and the k names: by size if they are numbers, else alphabetical.

    Raises DataError: a label is a number and not whole, all labels are the same, or nearly all are different.

    >>> encode_classes(np.array(["9", "10", "9"]), where=str)[1]
    ('9', '10')
    """
    values, numbers = np.unique(class_values(labels, where=where), return_inverse=True)
    if len(values) < 2:
        raise DataError(
            f"{where(0)}: all {len(labels)} labels are {shown(str(values[0]))}; classification needs at least 2 classes"
        )
    if len(values) > _FEW_CLASSES and len(labels) < _LEAST_PER_CLASS * len(values):
        instead = (
            "text labels that rarely occur twice look like names; name the column of the classes with label_column="
            if values.dtype.kind == "U"
            else "numbers to predict need task='regression'"
        )
        raise DataError(
            f"{where(0)}: {len(values)} different labels in {len(labels)} samples, expected classes of at least "
            f"{_LEAST_PER_CLASS} samples on average; {instead}"
        )
    return numbers.reshape(-1).astype(np.int64), tuple(str(v) for v in values)


def split_rows(
    rows: int, test_fraction: float, rng: np.random.Generator, *, classes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled row numbers of the training and of the test part.

    With ``classes`` (n,) every class gives the same fraction to the test part, to within one row, and keeps
    at least one row for training. With ``test_fraction > 0`` the test part has at least one row if it can.

    >>> train, test = split_rows(10, 0.2, np.random.default_rng(0), classes=np.arange(10) % 2)
    >>> sorted(int(i) % 2 for i in test)
    [0, 1]
    """
    groups = [np.arange(rows)] if classes is None else [np.flatnonzero(classes == c) for c in np.unique(classes)]
    sizes = np.array([len(g) for g in groups])
    total = max(1, round(rows * test_fraction)) if test_fraction > 0 else 0
    total = min(total, int(np.sum(sizes - 1)))
    share = np.minimum(sizes * total / rows, sizes - 1)
    counts = np.floor(share).astype(np.int64)
    while counts.sum() < total:  # largest remainder first; a class that has one row left keeps it
        counts[np.argmax(np.where(counts < sizes - 1, share - counts, -np.inf))] += 1
    shuffled = [rng.permutation(g) for g in groups]
    test = np.concatenate([g[:c] for g, c in zip(shuffled, counts, strict=True)])
    train = np.concatenate([g[c:] for g, c in zip(shuffled, counts, strict=True)])
    return rng.permutation(train), rng.permutation(test)
