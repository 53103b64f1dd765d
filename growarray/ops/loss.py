"""Losses: value and pullback, with torch's definitions.

Every loss returns ``(loss, pullback)``; ``pullback(dloss=1.0)`` is the gradient by the first argument.
With ``reduction='none'`` dloss is an array of the loss's shape, or a number for all entries.

Two differences from torch: the mean of nothing raises, where torch gives NaN; and a class of probability 0 adds nothing
to ``cross_entropy`` if its logit is -inf, where torch gives NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, device_of, is_array, namespace
from growarray.cuda.late import check
from growarray.cuda.loss import label_error, nothing_to_average
from growarray.errors import ShapeError, shown
from growarray.ops.activation import log_softmax
from growarray.ops.fused import fused, in_single
from growarray.ops.gradient import loss_gradient, slope_of_abs

LossVjp = Callable[..., Array]
_REDUCTIONS = ("mean", "sum", "none")


def _check_reduction(where: str, reduction: str) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{where}: reduction must be one of {', '.join(_REDUCTIONS)}, found {shown(reduction)}")


def _one_hot(xp: Any, logits: Array, target: Array, ignore_index: int) -> tuple[Array, Array]:
    """Boolean (n, c, *): the class of each target; and (n, 1, *): which targets count."""
    expected = (logits.shape[0], *logits.shape[2:])
    if tuple(target.shape) != expected:
        raise ShapeError(
            f"cross_entropy: target has shape {tuple(target.shape)}, expected class indices {expected} "
            f"or probabilities {tuple(logits.shape)}"
        )
    classes = logits.shape[1]
    counted = target != ignore_index
    outside = counted & ((target < 0) | (target >= classes))

    def judged(outside: Any, target: Any) -> Exception | None:
        return label_error(int(target[outside].ravel()[0]), classes, ignore_index) if outside.any() else None

    check(judged, outside, target)
    numbers = xp.arange(classes, dtype=target.dtype, device=device_of(logits))
    column = (1, classes, *(1,) * (logits.ndim - 2))
    return xp.expand_dims(target, axis=1) == xp.reshape(numbers, column), xp.expand_dims(counted, axis=1)


def _coefficients(
    xp: Any, logits: Array, target: Array, weight: Array | None, label_smoothing: float, ignore_index: int
) -> tuple[Array, Array | float]:
    """q with loss = -sum_c q_c log p_c, shaped like the logits, and what the mean divides the sum by."""
    classes = logits.shape[1]
    wide = None
    if weight is not None:
        if tuple(weight.shape) != (classes,):
            raise ShapeError(f"cross_entropy: weight has shape {tuple(weight.shape)}, expected ({classes},)")
        wide = xp.reshape(xp.astype(weight, logits.dtype, copy=False), (1, classes, *(1,) * (logits.ndim - 2)))
    smooth = label_smoothing / classes
    if not xp.isdtype(target.dtype, "integral"):
        if tuple(target.shape) != tuple(logits.shape):
            raise ShapeError(
                f"cross_entropy: target has shape {tuple(target.shape)} and dtype {target.dtype}, expected "
                f"probabilities {tuple(logits.shape)}, or class indices of an integer dtype"
            )
        q = (1.0 - label_smoothing) * xp.astype(target, logits.dtype, copy=False) + smooth
        return q if wide is None else q * wide, float(math.prod(logits.shape) // max(classes, 1))
    hot, counted = _one_hot(xp, logits, target, ignore_index)
    zeros, ones = xp.zeros_like(logits), xp.ones_like(logits)
    weights = ones if wide is None else ones * wide
    q = xp.where(hot, (1.0 - label_smoothing + smooth) * weights, smooth * weights)
    return xp.where(counted, q, zeros), xp.sum(xp.where(hot & counted, weights, zeros))


def cross_entropy(
    logits: Array,
    target: Array,
    *,
    weight: Array | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> tuple[Array, LossVjp]:
    """``loss = -sum_c q_c log softmax(logits)_c`` along axis 1, q the target distribution. Keeps log p and q.

    logits : (n, c) or (n, c, *)    target : class indices (n, *) or probabilities like logits    weight : (c,)
    ``label_smoothing`` s takes ``(1 - s) target + s / c``. ``reduction='mean'`` divides by the sum of the weights
    of the targets that count (class indices) or by the number of positions (probabilities), as torch does.
    Returns the loss, 0-d or (n, *), and a pullback ``dloss -> dlogits``.

    Raises ShapeError: target or weight has another shape than above; ValueError: a label is out of range, an option is
    unknown, or there is no target to take the mean of.

    >>> import numpy as np
    >>> loss, pullback = cross_entropy(np.zeros((1, 2)), np.array([1]))
    >>> round(float(loss), 4), pullback().tolist()
    (0.6931, [[0.5, -0.5]])
    """
    _check_reduction("cross_entropy", reduction)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"cross_entropy: label_smoothing must be between 0 and 1, found {label_smoothing}")
    namespace(logits, target, weight)
    if logits.ndim < 2 or logits.shape[1] < 1:
        raise ShapeError(f"cross_entropy: logits have shape {tuple(logits.shape)}, expected (n, c) or (n, c, ...)")
    loss, back = _entropy(logits, target, weight, label_smoothing, reduction, ignore_index)
    return loss, lambda dloss=1.0: back(loss_gradient(dloss, logits))


@fused
def _entropy(
    logits: Array, target: Array, weight: Array | None, label_smoothing: float, reduction: str, ignore_index: int
) -> tuple[Array, LossVjp]:
    xp = namespace(logits)
    q, total = _coefficients(xp, logits, target, weight, label_smoothing, ignore_index)
    if reduction == "mean":
        check(lambda found: None if found else nothing_to_average(), total if is_array(total) else np.asarray(total))
    log_p, _ = log_softmax(logits, axis=1)
    # a class that does not count adds 0 even if its log probability is -inf
    losses = -xp.sum(q * xp.where(q == 0.0, xp.zeros_like(q), log_p), axis=1)

    def vjp(dloss: Any) -> Array:
        gradient = xp.exp(log_p) * xp.sum(q, axis=1, keepdims=True) - q
        if reduction == "mean":
            gradient = gradient / total
        if reduction == "none" and not isinstance(dloss, float):
            dloss = xp.expand_dims(dloss, axis=1)
        return gradient * dloss

    if reduction == "none":
        return losses, vjp
    loss = xp.sum(losses)
    return asarray(loss / total if reduction == "mean" else loss, like=logits), vjp


def _difference(where: str, x: Array, target: Array, reduction: str) -> tuple[Any, Array, float]:
    """Namespace, x - target, and the factor by which the reduction scales the sum."""
    _check_reduction(where, reduction)
    xp = namespace(x, target)
    if tuple(x.shape) != tuple(target.shape):
        raise ShapeError(f"{where}: input has shape {tuple(x.shape)}, target {tuple(target.shape)}; they must agree")
    size = math.prod(x.shape)
    if reduction == "mean" and size == 0:
        raise ValueError(f"{where}: an input of shape {tuple(x.shape)} has no mean; use reduction='sum'")
    return xp, x - target, 1.0 / size if reduction == "mean" else 1.0


def _reduce(xp: Any, losses: Array, factor: float, reduction: str) -> Array:
    return losses if reduction == "none" else asarray(xp.sum(losses) * factor, like=losses)


@in_single
def mse(x: Array, target: Array, *, reduction: str = "mean") -> tuple[Array, LossVjp]:
    """``loss = (x - target)^2``, averaged, summed or as it is; any shape. Keeps the difference.

    Raises ShapeError: the shapes differ; nothing is broadcast; ValueError: the reduction is unknown, or there is
    nothing to take the mean of.

    >>> import numpy as np
    >>> loss, pullback = mse(np.array([1.0, 3.0]), np.zeros(2))
    >>> float(loss), pullback().tolist()
    (5.0, [1.0, 3.0])
    """
    xp, difference, factor = _difference("mse", x, target, reduction)
    loss = _reduce(xp, difference * difference, factor, reduction)
    return loss, lambda dloss=1.0: 2.0 * factor * difference * loss_gradient(dloss, difference)


@in_single
def l1(x: Array, target: Array, *, reduction: str = "mean") -> tuple[Array, LossVjp]:
    """``loss = |x - target|``, averaged, summed or as it is; any shape. The derivative at 0 and NaN is 0.

    Raises ShapeError: the shapes differ; nothing is broadcast; ValueError: the reduction is unknown, or there is
    nothing to take the mean of.

    >>> import numpy as np
    >>> loss, pullback = l1(np.array([1.0, -3.0]), np.zeros(2))
    >>> float(loss), pullback().tolist()
    (2.0, [0.5, -0.5])
    """
    xp, difference, factor = _difference("l1", x, target, reduction)
    loss = _reduce(xp, xp.abs(difference), factor, reduction)
    return loss, lambda dloss=1.0: factor * slope_of_abs(difference) * loss_gradient(dloss, difference)
