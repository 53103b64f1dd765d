"""Widths of networks: whole numbers of any library, one or several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.networks import GrowingMLP, GrowingResidualMLP
from growarray.networks.widths import listed_widths, sample_width


def test_widths_of_numpy_and_of_sequences_are_taken() -> None:
    assert sample_width("x", np.int64(5)) == 5  # type: ignore[arg-type]
    assert sample_width("x", (2, np.int64(3))) == 6  # type: ignore[arg-type]
    assert listed_widths("x", "w", np.array([3, 4]), 1) == [3, 4]  # type: ignore[arg-type]
    assert GrowingMLP(np.int64(4), np.int64(2), np.int64(3), 2).widths == [3, 3]  # type: ignore[arg-type]
    assert GrowingResidualMLP(4, 2, np.int64(3), [5, 6], 2).widths == [5, 3, 6, 3]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("widths", "error", "message"),
    [
        (2.5, TypeError, r"hidden_size must be a whole number or a sequence of them, found 2\.5"),
        ("33", TypeError, "hidden_size must be a whole number or a sequence of them, found '33'"),
        ([3, 2.5], TypeError, r"hidden_size\[1\] must be a whole number, found 2\.5"),
        (-2, ValueError, "hidden_size must be at least 0, found -2"),
    ],
    ids=str,
)
def test_other_widths_are_named(widths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"GrowingMLP: {message}"):
        GrowingMLP(4, 2, widths)
