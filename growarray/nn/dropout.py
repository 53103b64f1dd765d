"""Dropout layer."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from growarray.backend import Array
from growarray.errors import shown
from growarray.nn.module import Module, Pullback
from growarray.ops.dropout import dropout


class Dropout(Module):
    """Drops entries with probability ``p`` and divides the rest by ``1 - p``, in training; in evaluation ``y = x``.

    ``rng`` defaults to a fresh unseeded generator; its numbers are those of NumPy, whatever library ``x`` is of.
    Raises ValueError unless ``0 <= p <= 1``.

    >>> import numpy as np
    >>> layer = Dropout(0.5, np.random.default_rng(0))
    >>> layer(np.ones(4)).tolist(), layer.eval()(np.ones(4)).tolist()
    ([2.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0])
    """

    slope_at_zero = 1.0  # the mean of the slope over masks
    _shown = "p={self.p}"
    _per_entry: int | None = None  # the first axes over which masks are drawn, None for all

    def __init__(self, p: float = 0.5, rng: np.random.Generator | None = None) -> None:
        share: Any = p  # it may come from anywhere
        if not (isinstance(share, Real) and 0.0 <= float(share) <= 1.0):
            raise ValueError(f"Dropout: p must be between 0 and 1, found {shown(p)}")
        self.p = p
        self.rng = np.random.default_rng() if rng is None else rng

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, which drops the same entries of the gradient."""
        return dropout(x, self.p if self.training else 0.0, self.rng, axes=self._per_entry)
