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
        ({3, 4}, TypeError, r"hidden_size must be a whole number or a sequence of them, found \{3, 4\}"),
        ({3: 4}, TypeError, r"hidden_size must be a whole number or a sequence of them, found \{3: 4\}"),
        (-2, ValueError, "hidden_size must be at least 0, found -2"),
    ],
    ids=str,
)
def test_other_widths_are_named(widths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"GrowingMLP: {message}"):
        GrowingMLP(4, 2, widths)


@pytest.mark.parametrize("network", [GrowingMLP, GrowingResidualMLP])
def test_a_shape_is_no_set(network: Any) -> None:
    """Its product is right; its last size is whichever comes last."""
    options = {GrowingMLP: (2, 3), GrowingResidualMLP: (2, 3, 4, 1)}[network]
    with pytest.raises(TypeError, match=f"{network.__name__}: in_features must be a whole number or a sequence"):
        network({4, 10}, *options)


def test_without_flatten_the_width_is_the_last_size() -> None:
    """As in the original: the layers act on the last axis of (n, 10, 4)."""
    network = GrowingMLP((10, 4), 2, 3, flatten=False, rng=np.random.default_rng(0), dtype=np.float64)
    x = np.random.default_rng(1).standard_normal((5, 10, 4))
    y, back = network.vjp(x)
    assert (network.in_features, y.shape, back(np.ones_like(y)).shape) == (4, (5, 10, 2), x.shape)
    np.testing.assert_allclose(y[:, 7, :], network(x[:, 7, :]), rtol=1e-14)
    assert GrowingMLP((10, 4), 2, 3).in_features == 40
    with pytest.raises(ValueError, match="GrowingMLP: in_features is an empty shape; without flatten"):
        GrowingMLP((), 2, 3, flatten=False)
