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


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_a_bias_of_another_dtype_counts_in_full_and_stays_as_it_was(dtype: type) -> None:
    x, w = frozen(np.ones((2, 3), np.float32)), frozen(np.ones((4, 3), np.float32))
    y, _ = linear(x, w, frozen(np.full(4, 0.1, dtype)))
    assert y.dtype == dtype
    assert np.array_equal(y, np.full((2, 4), 3.0, np.float32) + np.full(4, 0.1, dtype))


@pytest.mark.parametrize("left_out", ["wrt_x", "wrt_w", "wrt_b"])
def test_a_gradient_that_nobody_wants_is_left_out(left_out: str) -> None:
    y, pullback = linear(np.ones((2, 5, 3)), np.ones((4, 3)), np.ones(4))
    whole, found = pullback(y), pullback(y, **{left_out: False})
    for name, one, other in zip(("wrt_x", "wrt_w", "wrt_b"), whole, found, strict=True):
        assert other is None if name == left_out else np.array_equal(one, other)


def test_wrong_width_is_named() -> None:
    with pytest.raises(ShapeError, match=r"input has shape \(2, 4\), weight expects a last axis of 3"):
        linear(np.ones((2, 4)), np.ones((5, 3)))
