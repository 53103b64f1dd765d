"""Activations: value and pullback side by side. Every one keeps the shape, dtype and device of ``x``.

Derivatives at a kink follow torch: 0 for relu, the slope of the negative side for leaky_relu and elu,
0 at both ends of hardtanh. NaN passes through. Where torch's derivative depends on how it is computed, this one does
not: NaN at NaN for elu and selu, 0 and 1 at the infinite ends of gelu by tanh.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from growarray.backend import Array, is_numpy, kind_of, namespace
from growarray.errors import shown
from growarray.ops.erf import erf as error_function
from growarray.ops.fused import fused, in_single

Vjp = Callable[[Array], Array]

_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805
_SOFTPLUS_THRESHOLD = 20.0  # torch's: above it softplus(x) is x


def identity(x: Array) -> tuple[Array, Vjp]:
    """``y = x``, any shape. Value and gradient are the very objects passed in.

    >>> import numpy as np
    >>> x = np.ones(3)
    >>> y, pullback = identity(x)
    >>> y is x, pullback(x) is x
    (True, True)
    """
    namespace(x)  # raises for what the other functions refuse
    return x, lambda dy: dy


@fused
def relu(x: Array, *, at_zero: float = 0.0) -> tuple[Array, Vjp]:
    """``y = max(x, 0)``, any shape. Keeps one or two masks, one byte an element.

    ``at_zero`` is the derivative taken at exactly 0: 0 in torch, 1 in the growing ReLU of GroMo.

    >>> import numpy as np
    >>> y, pullback = relu(np.array([-1.0, 0.0, 2.0]), at_zero=1.0)
    >>> y.tolist(), pullback(np.ones(3)).tolist()
    ([0.0, 0.0, 2.0], [0.0, 1.0, 1.0])
    """
    xp = namespace(x)
    alive = ~(x < 0.0 if at_zero == 1.0 else x <= 0.0)  # at NaN too, as in torch
    kink = None if at_zero in (0.0, 1.0) else x == 0.0

    def vjp(dy: Array) -> Array:
        dx = dy * xp.astype(alive, dy.dtype)  # a product: NumPy's where takes ten times as long on a random mask
        return dx if kink is None else xp.where(kink, at_zero * dy, dx)

    return xp.maximum(x, 0.0), vjp


@fused
def leaky_relu(x: Array, slope: float = 0.01) -> tuple[Array, Vjp]:
    """``y = x`` if x > 0, else ``slope * x``; any shape. Keeps the sign mask.

    >>> import numpy as np
    >>> leaky_relu(np.array([-1.0, 2.0]), 0.5)[0].tolist()
    [-0.5, 2.0]
    """
    xp, slope = namespace(x), float(slope)  # a number of NumPy would widen the result
    positive = x > 0.0
    y = xp.maximum(x, 0.0) + slope * xp.minimum(x, 0.0)
    return y, lambda dy: dy * (slope + (1.0 - slope) * xp.astype(positive, dy.dtype))


@fused
def elu(x: Array, alpha: float = 1.0) -> tuple[Array, Vjp]:
    """``y = x`` if x > 0, else ``alpha * (exp(x) - 1)``; any shape. Keeps the derivative.

    >>> import numpy as np
    >>> elu(np.array([-1000.0, 0.0, 2.0]), 0.7)[0].tolist()
    [-0.7, 0.0, 2.0]
    """
    xp, alpha = namespace(x), float(alpha)
    low = xp.minimum(x, 0.0)
    slope = xp.exp(low) * (alpha + (1.0 - alpha) * xp.astype(x > 0.0, x.dtype))
    return xp.maximum(x, 0.0) + alpha * xp.expm1(low), lambda dy: dy * slope


@fused
def selu(x: Array) -> tuple[Array, Vjp]:
    """``y = 1.0507… * elu(x, 1.6733…)``, any shape. Keeps the derivative. Source: Klambauer et al. 2017.

    >>> import numpy as np
    >>> selu(np.array([1.0]))[0].tolist()
    [1.0507009873554805]
    """
    xp, depth = namespace(x), _SELU_SCALE * _SELU_ALPHA
    low = xp.minimum(x, 0.0)
    if is_numpy(x) and x.dtype == np.float32:
        # expm1(2 a) = 2 t / (1 - t), t = tanh(a): NumPy's expm1 takes three times as long, and this errs less
        bent = np.tanh(0.5 * low).astype(np.float64)
        bend = (2.0 * depth * bent / (1.0 - bent)).astype(np.float32)
    else:
        bend = depth * xp.expm1(low)
    slope = depth * xp.exp(low) - (depth - _SELU_SCALE) * xp.astype(x > 0.0, low.dtype)
    return _SELU_SCALE * xp.maximum(x, 0.0) + bend, lambda dy: dy * slope


@fused
def gelu(x: Array, *, approximate: str = "none") -> tuple[Array, Vjp]:
    """``y = x * Phi(x)``, any shape, with Phi the normal distribution function. Keeps the derivative.

    ``approximate='tanh'`` takes ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`` instead.

    Raises ValueError: ``approximate`` is neither 'none' nor 'tanh'.

    >>> import numpy as np
    >>> y, pullback = gelu(np.zeros(1))
    >>> float(y[0]), float(pullback(np.ones(1))[0])
    (0.0, 0.5)
    """
    xp = namespace(x)
    if approximate == "none":
        below = 0.5 * (1.0 + error_function(x * math.sqrt(0.5)))
        slope = below + x * xp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
    elif approximate == "tanh":
        root = math.sqrt(2.0 / math.pi)
        near = xp.clip(x, -32.0, 32.0)  # bend is 1 long before, and inf * 0 is not a number
        bend = xp.tanh(root * (near + 0.044715 * near * near * near))
        below = 0.5 * (1.0 + bend)
        slope = below + 0.5 * near * (1.0 - bend * bend) * root * (1.0 + 3 * 0.044715 * near * near)
    else:
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', found {shown(approximate)}")
    return x * below, lambda dy: dy * slope


def _logistic(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    xp = namespace(x)
    small = xp.exp(-xp.abs(x))
    return xp.where(x >= 0.0, xp.ones_like(x), small) / (1.0 + small)


@fused
def silu(x: Array) -> tuple[Array, Vjp]:
    """``y = x * sigmoid(x)``, any shape. Keeps the derivative.

    >>> import numpy as np
    >>> silu(np.array([-1000.0, 0.0, 1000.0]))[0].tolist()
    [-0.0, 0.0, 1000.0]
    """
    s = _logistic(x)
    slope = s * (1.0 + x * (1.0 - s))
    return x * s, lambda dy: dy * slope


@fused
def tanh(x: Array) -> tuple[Array, Vjp]:
    """``y = tanh(x)``, any shape. Keeps y.

    >>> import numpy as np
    >>> y, pullback = tanh(np.array([0.0, 1000.0]))
    >>> y.tolist(), pullback(np.ones(2)).tolist()
    ([0.0, 1.0], [1.0, 0.0])
    """
    y = namespace(x).tanh(x)
    return y, lambda dy: dy * (1.0 - y * y)


@fused
def sigmoid(x: Array) -> tuple[Array, Vjp]:
    """``y = 1 / (1 + exp(-x))``, any shape, without overflow. Keeps y.

    >>> import numpy as np
    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0]))[0].tolist()
    [0.0, 0.5, 1.0]
    """
    y = _logistic(x)
    slope = y * _logistic(-x)  # not y (1 - y): 1 - y is 0 long before the slope is
    return y, lambda dy: dy * slope


@fused
def softplus(x: Array) -> tuple[Array, Vjp]:
    """``y = log(1 + exp(x))``, and x itself above 20 as in torch; any shape. Keeps the derivative.

    >>> import numpy as np
    >>> softplus(np.array([-1000.0, 1000.0]))[0].tolist()
    [0.0, 1000.0]
    """
    xp = namespace(x)
    large = x > _SOFTPLUS_THRESHOLD
    slope = xp.where(large, xp.ones_like(x), _logistic(x))
    bend = xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))
    return xp.where(large, x, bend), lambda dy: dy * slope


@in_single
def softmax(x: Array, axis: int = -1) -> tuple[Array, Vjp]:
    """``y = exp(x) / sum(exp(x))`` along ``axis``, any shape. Keeps y.

    >>> import numpy as np
    >>> softmax(np.array([1000.0, 1000.0]))[0].tolist()
    [0.5, 0.5]
    """
    xp = namespace(x)
    if 0 in x.shape:
        return x, lambda dy: dy
    power = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    y = power / xp.sum(power, axis=axis, keepdims=True)
    return y, lambda dy: y * (dy - xp.sum(dy * y, axis=axis, keepdims=True))


@in_single
def log_softmax(x: Array, axis: int = -1) -> tuple[Array, Vjp]:
    """``y = x - log(sum(exp(x)))`` along ``axis``, any shape. Keeps y.

    >>> import numpy as np
    >>> y, pullback = log_softmax(np.array([0.0, 0.0]))
    >>> np.exp(y).tolist(), pullback(np.ones(2)).tolist()
    ([0.5, 0.5], [0.0, 0.0])
    """
    xp = namespace(x)
    if 0 in x.shape:
        return x, lambda dy: dy
    shifted = x - xp.max(x, axis=axis, keepdims=True)
    y = shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))
    return y, lambda dy: dy - xp.exp(y) * xp.sum(dy, axis=axis, keepdims=True)


def hardtanh(x: Array, low: float = -1.0, high: float = 1.0) -> tuple[Array, Vjp]:
    """``y = min(max(x, low), high)``, any shape. Keeps one mask; the derivative at both ends is 0.

    Raises ValueError: ``low`` is not below ``high``.

    >>> import numpy as np
    >>> y, pullback = hardtanh(np.array([-2.0, 0.5, 1.0]))
    >>> y.tolist(), pullback(np.ones(3)).tolist()
    ([-1.0, 0.5, 1.0], [0.0, 1.0, 0.0])
    """
    if not low < high:
        raise ValueError(f"hardtanh: low must be below high, found {low} and {high}")
    xp, low, high = namespace(x), float(low), float(high)
    kind = kind_of(x)
    if kind != "f" and (kind != "i" or low % 1.0 or high % 1.0):  # whole numbers cannot hold such bounds
        x = xp.astype(x, xp.float64)
    under, over = x <= low, x >= high
    y = xp.where(under, xp.full_like(x, low), xp.where(over, xp.full_like(x, high), x))
    flat = under | over
    return y, lambda dy: xp.where(flat, xp.zeros_like(dy), dy)


def relu6(x: Array) -> tuple[Array, Vjp]:
    """``y = min(max(x, 0), 6)``, any shape. Keeps one mask.

    >>> import numpy as np
    >>> relu6(np.array([-1.0, 3.0, 7.0]))[0].tolist()
    [0.0, 3.0, 6.0]
    """
    return hardtanh(x, 0.0, 6.0)
