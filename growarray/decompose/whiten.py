"""Weighting by second moments, so that the error is measured where the data is.

W (o, d) weights · S (d, d) second moment of the input, S = E[x x^T] · |W x|^2 on average is |W S^(1/2)|_F^2
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from growarray.backend import Array, namespace
from growarray.decompose.arguments import check_count
from growarray.decompose.inputs import Prepared, check_real, check_weights, prepare
from growarray.decompose.unfolding import mode_product, norm
from growarray.errors import ShapeError


def roots(moment: Array) -> tuple[Array, Array]:
    """``S^(1/2)`` and its pseudo-inverse ``S^(-1/2)``, both (d, d), symmetric, float64.

    Eigenvalues below ``d eps`` times the largest are directions the data does not take; both roots are zero there.

    Raises ValueError: the moment is not finite, not symmetric (to 1e-5 relative), or has clearly negative eigenvalues.
    """
    xp = namespace(moment)
    s = xp.astype(moment, xp.float64)
    size = float(xp.max(xp.abs(s)))
    if not np.isfinite(size):
        raise ValueError(
            "the second moment holds NaN or infinite values; compute it again without the batch that has them"
        )
    skew = float(xp.max(xp.abs(s - xp.matrix_transpose(s))))
    if skew > 1e-5 * size:
        raise ValueError(f"the second moment is not symmetric (largest difference {skew:.2e}); expected E[x x^T]")
    values, vectors = xp.linalg.eigh((s + xp.matrix_transpose(s)) / 2)
    if float(values[0]) < -1e-5 * size:
        raise ValueError(f"the second moment has eigenvalue {float(values[0]):.2e}; expected at least 0")
    positive = values > s.shape[0] * float(np.finfo(np.float64).eps) * max(float(values[-1]), 0.0)
    safe = xp.sqrt(xp.where(positive, values, xp.ones_like(values)))
    zero = xp.zeros_like(values)
    back = xp.matrix_transpose(vectors)
    root, inverse = xp.where(positive, safe, zero), xp.where(positive, 1 / safe, zero)
    return (vectors * root[None, :]) @ back, (vectors * inverse[None, :]) @ back


def weight(tensor: Array, moments: Mapping[int, Array]) -> tuple[Array, dict[int, Array]]:
    """The tensor times ``S^(1/2)`` along each weighted mode, and the matrices that undo it."""
    undo = {}
    for mode, moment in moments.items():
        root, undo[mode] = roots(moment)
        tensor = mode_product(tensor, root, mode)
    return tensor, undo


def prepare_weighted(
    tensor: Array, weighted: Mapping[int, Array] | None, where: str
) -> tuple[Prepared, dict[int, Array]]:
    """The checked and weighted tensor, and the matrices that undo the weighting."""
    moments = check_weights(weighted, tuple(tensor.shape), where)
    ready = prepare(tensor, where)
    array, undo = weight(ready.array, moments)
    return replace(ready, array=array, norm=norm(array)), undo


def unweight(factors: Sequence[Array], undo: Mapping[int, Array], axis: int = 0) -> list[Array]:
    """Factors of the weighted tensor as factors of the tensor; ``axis`` is where a factor has its mode."""
    return [mode_product(f, undo[k], axis) if k in undo else f for k, f in enumerate(factors)]


def channel_moment(moment: Array, channels: int) -> Array:
    """Second moment of the channels from that of an unfolded input: the mean over the positions of a window.

    moment : (channels * positions, channels * positions), channels first, as growth collects it
    Returns (channels, channels).

    Weighting the input-channel mode with it is exact if the positions of a window are uncorrelated and alike,
    always for 1x1 kernels; otherwise it is the best weighting of one mode alone.

    Raises TypeError, ValueError: the moment is not an array of real numbers, or ``channels`` is not a whole number of
    at least 1; ShapeError: the moment is not square, or its size is not a multiple of ``channels`` (remove a bias
    column first).

    >>> channel_moment(np.diag([1.0, 3.0, 5.0, 5.0]), 2).tolist()
    [[2.0, 0.0], [0.0, 5.0]]
    """
    channels = check_count(channels, "channels", "channel_moment", least=1)
    check_real(moment, "the second moment", "channel_moment")
    size = moment.shape[0] if moment.ndim else 0
    if moment.ndim != 2 or moment.shape[1] != size or not size or size % channels:
        raise ShapeError(
            f"channel_moment: expected ({channels} * positions) squared, found shape {tuple(moment.shape)}; "
            "remove the bias column if there is one"
        )
    return mode_moment(moment, (channels, size // channels), 0)


def mode_moment(moment: Array, sizes: Sequence[int], mode: int) -> Array:
    """Second moment along one mode of an unfolded input of these sizes: the mean over the positions of all others.

    >>> mode_moment(np.diag([1.0, 3.0, 5.0, 5.0]), (2, 2), 1).tolist()
    [[3.0, 0.0], [0.0, 4.0]]
    """
    xp, n = namespace(moment), sizes[mode]
    before, after = math.prod(sizes[:mode]), math.prod(sizes[mode + 1 :])
    split = xp.reshape(moment, (before, n, after, before, n, after))
    blocks = xp.reshape(xp.permute_dims(split, (1, 4, 0, 2, 3, 5)), (n, n, before * after, before * after))
    return xp.linalg.trace(blocks) / (before * after)


def output_error(tensor: Array, approximation: Array, moment: Array) -> float:
    """Relative error of the output: ``|(W - W') S^(1/2)|_F / |W S^(1/2)|_F`` over the unfolded input.

    tensor, approximation : (o, …) with the input behind the output channel    moment : (d, d), d = entries per row
    If the exact output is zero, the error is 0 or infinity.

    Raises TypeError: one of them is not an array of real numbers; ShapeError: the shapes do not fit together, or have
    no entries; ValueError: one of them holds a NaN or an infinity.

    >>> output_error(np.eye(2), np.diag([1.0, 0.0]), np.diag([1.0, 0.0]))  # the second input never comes
    0.0
    """
    where = "output_error"
    for label, array in (("the tensor", tensor), ("its approximation", approximation), ("the second moment", moment)):
        check_real(array, label, where)
    xp = namespace(tensor, approximation, moment)
    if not tensor.ndim or 0 in tensor.shape:
        raise ShapeError(f"{where}: expected a tensor (o, …) with entries, found shape {tuple(tensor.shape)}")
    if tuple(tensor.shape) != tuple(approximation.shape):
        raise ShapeError(f"output_error: shapes {tuple(tensor.shape)} and {tuple(approximation.shape)} must agree")
    w = xp.reshape(xp.astype(tensor, xp.float64), (tensor.shape[0], -1))
    if tuple(moment.shape) != (w.shape[1], w.shape[1]):
        raise ShapeError(
            f"output_error: the second moment has shape {tuple(moment.shape)}, expected {(w.shape[1], w.shape[1])}, "
            f"the unfolded input of a kernel of shape {tuple(tensor.shape)}"
        )
    s = xp.astype(moment, xp.float64)
    gap = w - xp.reshape(xp.astype(approximation, xp.float64), tuple(w.shape))
    lost, whole = float(xp.sum((gap @ s) * gap)), float(xp.sum((w @ s) * w))
    if not math.isfinite(lost) or not math.isfinite(whole):
        raise ValueError(f"{where}: tensor, approximation or second moment hold a NaN or an infinity; clean them first")
    return math.sqrt(max(lost, 0.0) / whole) if whole > 0.0 else math.inf if lost > 0.0 else 0.0
