"""The handwritten digits that come with growarray."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np

from growarray.datasets.dataset import Dataset, check_options, split_rows


def load_digits(*, test_fraction: float = 0.2, seed: int = 0, dtype: Any = np.float32) -> Dataset:
    """1,797 images of handwritten digits, 8 by 8 pixels, as rows of 64 features in [0, 1].

    Split by class and shuffled with ``numpy.random.default_rng(seed)``. ``test_fraction`` of the images of each
    class are for testing. Nothing is downloaded: the images are in the package.

    Source: E. Alpaydin and C. Kaynak (1998), *Optical Recognition of Handwritten Digits*, UCI Machine Learning
    Repository, https://doi.org/10.24432/C50P49, licence CC BY 4.0; these are the images of its test set, the same
    as in scikit-learn. ``LICENSE-digits.md`` beside this file says what was changed.

    Raises ValueError: ``test_fraction`` is not in [0, 1), or ``dtype`` is not a floating one.

    >>> data = load_digits()
    >>> data
    Dataset(classification, train=1438, test=359, features=64, outputs=10)
    >>> float(data.x_train.min()), float(data.x_train.max())
    (0.0, 1.0)
    """
    rng = check_options("classification", test_fraction, seed, dtype)
    with (
        files("growarray.datasets").joinpath("digits.npz").open("rb") as stream,
        np.load(stream, allow_pickle=False) as arrays,
    ):
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    x = images.astype(dtype) / np.dtype(dtype).type(16)
    train, test = split_rows(len(x), test_fraction, rng, classes=labels)
    names = tuple(str(digit) for digit in range(10))
    return Dataset(x[train], labels[train], x[test], labels[test], "classification", names, (1, 8, 8))
