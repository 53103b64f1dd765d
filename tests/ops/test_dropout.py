"""Dropout: which entries fall, that the rest is scaled, and that every library drops the same."""

from __future__ import annotations

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.ops.dropout import dropout
from growarray.testing import check_vjp
from tests.conftest import Library


def test_pullback_is_the_derivative(xp: Library) -> None:
    check_vjp(lambda x: dropout(x, 0.4, np.random.default_rng(2)), xp.asarray(np.linspace(-1.0, 2.0, 12).reshape(3, 4)))


def test_every_library_drops_the_same_entries(xp: Library) -> None:
    y, _ = dropout(xp.asarray(np.ones((5, 6))), 0.4, np.random.default_rng(7))
    host, _ = dropout(np.ones((5, 6)), 0.4, np.random.default_rng(7))
    assert np.array_equal(to_numpy(y), host)


def test_kept_entries_are_scaled_and_their_share_is_one_minus_p() -> None:
    y, _ = dropout(np.ones(20_000), 0.3, np.random.default_rng(0))
    assert set(np.unique(y)) == {0.0, 1.0 / 0.7}
    assert np.mean(y > 0) == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(("p", "expected"), [(0.0, 3.0), (1.0, 0.0)])
def test_ends(p: float, expected: float) -> None:
    y, pullback = dropout(np.full(8, 3.0), p, np.random.default_rng(0))
    assert (y == expected).all()
    assert (pullback(np.full(8, 3.0)) == expected).all()


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_p_outside_zero_to_one_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="p must be between 0 and 1"):
        dropout(np.ones(2), p, np.random.default_rng(0))
