"""Linear: what is refused when a layer is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import nn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_features": 2.5}, r"features must be whole numbers, found 2\.5 -> 3"),
        ({"out_features": "3"}, "features must be whole numbers, found 2 -> '3'"),
        ({"rng": 0}, r"rng: expected a numpy.random.Generator, found 0; use numpy.random.default_rng\(0\)"),
        ({"dtype": np.int64}, "dtype: expected a real floating dtype such as numpy.float32, found int64"),
        ({"dtype": complex}, "dtype: expected a real floating dtype .*, found complex128"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        nn.Linear(**{"in_features": 2, "out_features": 3, **options})


def test_convolutions_refuse_the_same() -> None:
    with pytest.raises(TypeError, match="dtype: expected a real floating dtype"):
        nn.Conv2d(2, 3, 3, dtype=np.int32)


def test_widths_of_numpy_are_taken() -> None:
    assert nn.Linear(np.int64(2), np.int32(3)).weight.shape == (3, 2)  # type: ignore[arg-type]
