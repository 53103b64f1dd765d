"""The affine map: pullback for every number of axes, and messages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growarray.errors import ShapeError
from growarray.ops.linear import linear
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library, frozen


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 4, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_pullback_is_the_derivative(shape: tuple[int, ...], bias: bool, xp: Library) -> None:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(s) for s in ([shape, (5, 3), (5,)] if bias else [shape, (5, 3)])]
    check_vjp(linear, *[xp.asarray(a) for a in arrays])


@settings(max_examples=30, deadline=None)
@given(
    lead=st.lists(st.integers(0, 3), max_size=3),
    d=st.integers(1, 4),
    o=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_any_shape_is_the_sum_over_the_last_axis(lead: list[int], d: int, o: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w, b = (frozen(rng.standard_normal(s)) for s in ((*lead, d), (o, d), (o,)))
    y, pullback = linear(x, w, b)
    assert_close(y, np.einsum("...d,od->...o", x, w) + b)
    dx, dw, db = pullback(np.ones_like(y))
    assert_close(dx, np.broadcast_to(w.sum(axis=0), x.shape))
    assert_close(dw, np.broadcast_to(x.reshape(-1, d).sum(axis=0), w.shape))
    assert_close(db, np.full(o, float(np.prod(lead))))


def test_wrong_width_is_named() -> None:
    with pytest.raises(ShapeError, match=r"input has shape \(2, 4\), weight expects a last axis of 3"):
        linear(np.ones((2, 4)), np.ones((5, 3)))
