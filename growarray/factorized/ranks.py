"""Vectors that scale the ranks of a factorized tensor: what tensor dropout and tensor lasso multiply in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from growarray.backend import Array, namespace
from growarray.errors import ShapeError
from growarray.nn.module import Parameter

RankAxes = tuple[tuple[tuple[int, int], ...], ...]
"""For each rank every (factor, axis) that has it; a vector is multiplied in at the first."""

OptionalArray = Array | None


class RankMask(Protocol):
    """What tensor dropout is to a tensor: ``p`` of the components are dropped, in evaluation too if ``drop_test``."""

    p: float
    drop_test: bool

    def draw(self, sizes: Sequence[int], training: bool) -> list[np.ndarray | None]:
        """For each rank what its components are multiplied by; None for one that is left alone."""


def as_tuple(rank: Any) -> tuple[int, ...]:
    """A rank as a tuple, whatever its format.

    >>> as_tuple(3), as_tuple((1, 2, 1))
    ((3,), (1, 2, 1))
    """
    return rank if isinstance(rank, tuple) else (rank,)


def scale_ranks(
    arrays: Sequence[Array], axes: RankAxes, vectors: Sequence[OptionalArray]
) -> tuple[tuple[Array, ...], Callable[[Sequence[OptionalArray]], tuple[list[OptionalArray], list[OptionalArray]]]]:
    """Factors of a tensor with one vector, or None, multiplied into each rank, and the way back. Keeps the factors.

    No two ranks come first in the same factor. The way back takes gradients of the factors, of which any may be None,
    and gives those of the factors as they were and of the vectors; None if the gradient or the vector is.

    Raises ShapeError if a vector has another size than its rank.

    >>> import numpy as np
    >>> (scaled, _), back = scale_ranks([np.ones(2), np.ones((3, 2))], (((0, 0), (1, 1)),), [np.asarray([2.0, 0.0])])
    >>> scaled.tolist(), back([np.ones(2), None])
    ([2.0, 0.0], ([array([2., 0.]), None], [array([1., 1.])]))
    """
    scaled, wide = list(arrays), {}
    for axes_of, vector in zip(axes, vectors, strict=True):
        if vector is not None:
            factor, axis = axes_of[0]
            if tuple(vector.shape) != (arrays[factor].shape[axis],):
                raise ShapeError(
                    f"lasso weights of shape {tuple(vector.shape)} for a rank of {arrays[factor].shape[axis]}; "
                    "call TensorLasso.remove before the rank changes"
                )
            shape = tuple(-1 if i == axis else 1 for i in range(arrays[factor].ndim))
            wide[factor] = namespace(vector).reshape(vector, shape)
            scaled[factor] = arrays[factor] * wide[factor]

    def pullback(gradients: Sequence[OptionalArray]) -> tuple[list[OptionalArray], list[OptionalArray]]:
        d_vectors: list[Any] = []
        for axes_of, vector in zip(axes, vectors, strict=True):
            factor, axis = axes_of[0]
            gradient = None if vector is None else gradients[factor]
            if gradient is not None:
                others = tuple(i for i in range(gradient.ndim) if i != axis)
                gradient = namespace(gradient).sum(gradient * arrays[factor], axis=others)
            d_vectors.append(gradient)
        return [d * wide[i] if d is not None and i in wide else d for i, d in enumerate(gradients)], d_vectors

    return tuple(scaled), pullback


def masked_factors(
    arrays: Sequence[Array], axes: RankAxes, masks: Sequence[OptionalArray], lasso: Sequence[Parameter]
) -> tuple[tuple[Array, ...], Callable[[Sequence[OptionalArray]], Sequence[OptionalArray]]]:
    """:func:`scale_ranks` by a mask, or None, for each rank, and by lasso weights if there are some.

    The way back takes and gives gradients of the factors, and adds to those of the lasso weights.
    """
    vectors = list(masks)
    if lasso:
        vectors = [w.data if mask is None else w.data * mask for w, mask in zip(lasso, masks, strict=True)]
    if all(vector is None for vector in vectors):
        return tuple(arrays), lambda gradients: gradients
    scaled, back = scale_ranks(arrays, axes, vectors)

    def pullback(gradients: Sequence[OptionalArray]) -> Sequence[OptionalArray]:
        d_factors, d_vectors = back(gradients)
        for weight, mask, d_vector in zip(lasso, masks, d_vectors, strict=False):
            if d_vector is not None:
                weight.accumulate(d_vector if mask is None else d_vector * mask)
        return d_factors

    return scaled, pullback
