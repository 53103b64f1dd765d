"""Activations: pullbacks against finite differences, values against SciPy, ends, kinks and NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

import growarray.ops.activation as act
from growarray.backend import namespace, to_numpy
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library, frozen

CASES: dict[str, Callable[[Any], Any]] = {
    "elu": act.elu,
    "elu-alpha": lambda x: act.elu(x, np.float64(0.3)),
    "gelu": act.gelu,
    "gelu-tanh": lambda x: act.gelu(x, approximate="tanh"),
    "hardtanh": act.hardtanh,
    "hardtanh-ends": lambda x: act.hardtanh(x, np.float64(-0.3), np.float64(2.0)),
    "identity": act.identity,
    "leaky_relu": act.leaky_relu,
    "leaky_relu-slope": lambda x: act.leaky_relu(x, np.float64(0.2)),
    "log_softmax": act.log_softmax,
    "log_softmax-axis0": lambda x: act.log_softmax(x, 0),
    "relu": act.relu,
    "relu-at_zero": lambda x: act.relu(x, at_zero=1.0),
    "relu6": act.relu6,
    "selu": act.selu,
    "sigmoid": act.sigmoid,
    "silu": act.silu,
    "softmax": act.softmax,
    "softmax-axis0": lambda x: act.softmax(x, 0),
    "softplus": act.softplus,
    "tanh": act.tanh,
}
# no entry within 1e-3 of a kink of any of them (-1, -0.3, 0, 1, 2, 6)
POINTS = np.array([[-30.0, -3.2, -0.7, -0.1], [0.2, 0.9, 1.7, 3.3], [5.5, 7.0, 19.5, 21.0]])
SCIPY: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: x * special.ndtr(x),
    "sigmoid": special.expit,
    "softplus": lambda x: np.logaddexp(0.0, x),
    "log_softmax": lambda x: special.log_softmax(x, axis=-1),
    "softmax": lambda x: special.softmax(x, axis=-1),
}


@pytest.mark.parametrize("name", CASES)
def test_pullback_is_the_derivative(name: str, xp: Library) -> None:
    check_vjp(CASES[name], xp.asarray(POINTS))


@pytest.mark.parametrize("name", CASES)
def test_dtype_and_shape_stay(name: str, xp: Library) -> None:
    x = xp.asarray(POINTS.astype(np.float32))
    y, pullback = CASES[name](x)
    for result in (y, pullback(x)):
        assert result.dtype == x.dtype
        assert tuple(result.shape) == POINTS.shape
        assert namespace(result, x) is namespace(x)
    wide, _ = CASES[name](frozen(POINTS))
    assert_close(y, wide, rtol=1e-6)


@pytest.mark.parametrize("name", SCIPY)
def test_value_agrees_with_scipy(name: str, xp: Library) -> None:
    assert_close(CASES[name](xp.asarray(POINTS))[0], SCIPY[name](POINTS), rtol=2e-10)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_large_inputs_stay_finite(name: str, size: float) -> None:
    y, pullback = CASES[name](frozen([[-size, 0.0, size]]))
    assert np.isfinite(y).all()
    assert np.isfinite(pullback(np.ones((1, 3)))).all()


@pytest.mark.parametrize("name", [n for n in CASES if "max" not in n])
def test_nan_passes_through(name: str) -> None:
    y, _ = CASES[name](frozen([np.nan, 1.0]))
    assert np.isnan(y).tolist() == [True, False]


@pytest.mark.parametrize("name", ["relu", "relu-at_zero", "relu6", "hardtanh"])
def test_the_gradient_at_a_nan_passes_as_in_torch(name: str) -> None:
    _, pullback = CASES[name](frozen([np.nan, -1.0]))
    assert pullback(np.full(2, 3.0)).tolist() == [3.0, 0.0]


def test_sigmoid_keeps_its_slope_where_one_minus_y_is_zero() -> None:
    _, pullback = act.sigmoid(np.array([40.0]))
    assert pullback(np.ones(1))[0] == pytest.approx(np.exp(-40.0), rel=1e-12)


@pytest.mark.parametrize(("name", "alpha"), [("elu", 1.0), ("elu-alpha", 0.3), ("selu", 1.6732632423543772)])
def test_elu_keeps_its_slope_where_its_value_is_all_but_flat(name: str, alpha: float) -> None:
    _, pullback = CASES[name](np.array([-20.0, -100.0]))
    scale = 1.0507009873554805 if name == "selu" else 1.0
    assert_close(pullback(np.ones(2)), scale * alpha * np.exp([-20.0, -100.0]), rtol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_half_precision_stays_and_does_not_overflow(name: str) -> None:
    x = np.array([[-710.0, -30.0, -3.2], [0.2, 19.5, 710.0]], np.float16)
    found, wide = CASES[name](x), CASES[name](x.astype(np.float64))
    for half, exact in ((found[0], wide[0]), (found[1](x), wide[1](x.astype(np.float64)))):
        assert half.dtype == np.float16
        np.testing.assert_allclose(half, exact, rtol=2e-3, atol=1e-4)


def test_identity_returns_the_same_objects() -> None:
    x, dy = np.ones(2), np.ones(2)
    y, pullback = act.identity(x)
    assert y is x
    assert pullback(dy) is dy


@pytest.mark.parametrize("at_zero", [0.0, 0.25, 1.0])
def test_relu_takes_the_asked_derivative_at_zero(at_zero: float, xp: Library) -> None:
    _, pullback = act.relu(xp.asarray([-1.0, 0.0, 1.0]), at_zero=at_zero)
    assert to_numpy(pullback(xp.asarray([2.0, 2.0, 2.0]))).tolist() == [0.0, 2.0 * at_zero, 2.0]


@pytest.mark.parametrize(
    ("function", "point", "slope"),
    [
        pytest.param(act.leaky_relu, 0.0, 0.01, id="leaky_relu"),
        pytest.param(lambda x: act.elu(x, 0.7), 0.0, 0.7, id="elu"),
        pytest.param(act.hardtanh, -1.0, 0.0, id="hardtanh-low"),
        pytest.param(act.hardtanh, 1.0, 0.0, id="hardtanh-high"),
        pytest.param(act.relu6, 6.0, 0.0, id="relu6"),
    ],
)
def test_derivative_at_a_kink_is_torch_s(function: Callable[[Any], Any], point: float, slope: float) -> None:
    assert function(np.array([point]))[1](np.ones(1))[0] == pytest.approx(slope)


def test_softmax_sums_to_one_and_its_gradient_to_zero(xp: Library) -> None:
    y, pullback = act.softmax(xp.asarray(POINTS), 0)
    assert_close(to_numpy(y).sum(axis=0), np.ones(4))
    assert_close(to_numpy(pullback(xp.asarray(POINTS))).sum(axis=0), np.zeros(4))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="approximate must be 'none' or 'tanh', found 'erf'"):
        act.gelu(np.ones(1), approximate="erf")
    with pytest.raises(ValueError, match="low must be below high, found 1 and 0"):
        act.hardtanh(np.ones(1), 1, 0)
