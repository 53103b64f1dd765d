"""Attention by scaled dot products: the formula, its derivative, masks, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.errors import ShapeError
from growarray.ops import attention
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library

RNG = np.random.default_rng(0)
Q, K, V = RNG.standard_normal((2, 3, 4)), RNG.standard_normal((2, 5, 4)), RNG.standard_normal((2, 5, 2))
MASK = np.where(np.arange(5) == 3, -np.inf, 0.1 * np.arange(5))
CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "scaled": {"scale": 0.7}, "causal": {"causal": True}, "masked": {"mask": MASK},
    "both": {"mask": RNG.standard_normal((3, 5)), "causal": True},
}  # fmt: skip
each_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)


def formula(mask: Any = None, causal: bool = False, scale: float = 0.5) -> np.ndarray:
    """Query by query, key by key."""
    y = np.zeros((2, 3, 2))
    for n, i in np.ndindex(2, 3):
        seen = [j for j in range(5) if not (causal and j > i)]
        scores = np.array([scale * Q[n, i] @ K[n, j] for j in seen])
        scores = scores if mask is None else scores + np.broadcast_to(mask, (3, 5))[i, seen]
        share = np.exp(scores) / np.exp(scores).sum()
        y[n, i] = share @ V[n, seen]
    return y


@each_case
def test_value_and_derivative(options: dict[str, Any]) -> None:
    assert_close(attention(Q, K, V, **options)[0], formula(**options), rtol=1e-14)
    check_vjp(lambda q, k, v: attention(q, k, v, **options), Q, K, V)


@each_case
def test_every_library_gives_numpy_s_numbers(options: dict[str, Any], xp: Library) -> None:
    given = {name: xp.asarray(value) if name == "mask" else value for name, value in options.items()}
    y, back = attention(*map(xp.asarray, (Q, K, V)), **given)
    own, own_back = attention(Q, K, V, **options)
    assert_close(y, own, rtol=1e-13)
    for found, expected in zip(back(y), own_back(own), strict=True):
        assert_close(found, expected, rtol=1e-12)


def test_a_key_that_is_hidden_changes_nothing() -> None:
    other = K.copy(), V.copy()
    for array in other:
        array[:, 3] = 1e3
    assert_close(attention(Q, *other, MASK)[0], attention(Q, K, V, MASK)[0], rtol=0.0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3, 4\), \(2, 5, 4\), \(2, 3, 4\), expected \(\.\.\., t, d\)"):
        attention(Q, K, Q)
    with pytest.raises(ShapeError, match=r"the mask has shape \(4, 5\), the scores \(2, 3, 5\)"):
        attention(Q, K, V, np.zeros((4, 5)))
    with pytest.raises(TypeError, match="the mask is of bool, expected floats to add: 0, or -inf to hide a key"):
        attention(Q, K, V, np.zeros((3, 5), bool))
