"""Dropout, and its way back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.errors import ShapeError
from growarray.ops.fused import fused


def dropout(
    x: Array, p: float, rng: np.random.Generator, *, axes: int | None = None
) -> tuple[Array, Callable[[Array], Array]]:
    """``y = x * mask / (1 - p)``, any shape; an entry is dropped with probability ``p``. Keeps the mask.

    axes : entries that agree on the first ``axes`` axes fall together, whole channels for 2; default each by itself
    Every library drops the same entries: those that ``rng`` draws in NumPy. On CuPy the numbers of ``default_rng`` are
    computed there, unless ``axes`` are given; those of another generator are drawn in NumPy and moved.

    Raises ValueError: ``p`` is not between 0 and 1; ShapeError: ``x`` has fewer axes.

    >>> import numpy as np
    >>> y, pullback = dropout(np.ones(4), 0.5, np.random.default_rng(0))
    >>> y.tolist(), pullback(np.ones(4)).tolist()
    ([2.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0])
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout: p must be between 0 and 1, found {p}")
    shape = tuple(x.shape)
    namespace(x)
    if axes is not None and len(shape) < axes:
        raise ShapeError(f"dropout: input has shape {shape}, expected at least {axes} axes")
    if p == 0.0:
        return x, lambda dy: dy
    return _dropped(x, p, rng, shape[:axes] + (1,) * (len(shape) - len(shape[:axes])))


@fused
def _dropped(
    x: Array, p: float, rng: np.random.Generator, drawn: tuple[int, ...]
) -> tuple[Array, Callable[[Array], Array]]:
    """:func:`dropout` of what has been checked, by a mask of shape ``drawn``."""
    xp = namespace(x)
    keep = asarray(rng.random(drawn) >= p, like=x)
    scale = 0.0 if p == 1.0 else 1.0 / (1.0 - float(p))  # a number of NumPy would widen the result

    def masked(values: Array) -> Array:
        return xp.where(keep, scale * values, xp.zeros_like(values))

    return masked(x), masked
