"""check_vjp and assert_close must be able to fail, with a message that says where."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.testing import assert_close, check_vjp, tolerance
from tests.conftest import Library

X = np.linspace(-1.0, 1.0, 6).reshape(2, 3)


def square(x: Any) -> Any:
    return x * x, lambda dy: 2.0 * x * dy


def test_a_right_pullback_passes(xp: Library) -> None:
    check_vjp(square, xp.asarray(X))
    check_vjp(lambda a, b: (a * b, lambda dy: (b * dy, a * dy)), xp.asarray(X), xp.asarray(X + 2.0))


def test_a_wrong_factor_is_found(xp: Library) -> None:
    with pytest.raises(AssertionError, match=r"gradient of input 0: largest difference .* at index \(0, 0\)"):
        check_vjp(lambda x: (x * x, lambda dy: x * dy), xp.asarray(np.array([[4.0, 0.0]])))


def test_only_the_wrong_input_is_named() -> None:
    def half_right(a: Any, b: Any) -> Any:
        return a * b, lambda dy: (b * dy, 1.001 * a * dy)

    with pytest.raises(AssertionError, match="gradient of input 1"):
        check_vjp(half_right, X, X)
    check_vjp(half_right, X, X, wrt=[0])


def test_a_missing_gradient_is_found() -> None:
    with pytest.raises(AssertionError, match="input 1: the pullback returned no gradient"):
        check_vjp(lambda a, b: (a * b, lambda dy: b * dy), X, X)
    with pytest.raises(AssertionError, match="input 0: the pullback returned no gradient"):
        check_vjp(lambda a: (a, lambda dy: (None,)), X)


def test_a_wrong_shape_is_found() -> None:
    with pytest.raises(AssertionError, match=r"shape \(3,\), expected \(2, 3\)"):
        check_vjp(lambda x: (x, lambda dy: dy[0]), X)


def test_a_pullback_that_works_once_only_is_found() -> None:
    def forgetful(x: Any) -> Any:
        calls: list[int] = []

        def pullback(dy: Any) -> Any:
            calls.append(1)
            return dy * len(calls)

        return x, pullback

    with pytest.raises(AssertionError, match="input 0, second call of the pullback"):
        check_vjp(forgetful, X)


def test_float32_proves_nothing_and_is_refused() -> None:
    with pytest.raises(TypeError, match=r"check_vjp needs float64 inputs, found \['float32'\]"):
        check_vjp(square, X.astype(np.float32))


def test_assert_close_compares_with_the_largest_entry() -> None:
    assert_close(np.array([1e6, 1e-3]), np.array([1e6, 0.0]), rtol=1e-8)
    with pytest.raises(AssertionError, match=r"thing: largest difference 1.000e-03 above 1.0e-10 .* at index \(1,\)"):
        assert_close(np.array([1e6, 1e-3]), np.array([1e6, 0.0]), rtol=1e-10, what="thing")


def test_assert_close_refuses_nan_and_other_shapes() -> None:
    with pytest.raises(AssertionError, match="largest difference nan"):
        assert_close(np.array([np.nan]), np.array([1.0]))
    with pytest.raises(AssertionError, match=r"array: shape \(1,\), expected \(1, 1\)"):
        assert_close(np.ones(1), np.ones((1, 1)))
    assert_close(np.ones((0, 2)), np.ones((0, 2)))


def test_tolerance_follows_the_dtype(xp: Library) -> None:
    assert tolerance(xp.asarray(X).dtype) == tolerance(np.float64) == pytest.approx(2**-26 / 16)
    assert tolerance("float32", factor=2.0) == pytest.approx(2 * 2**-11.5 / 16)
