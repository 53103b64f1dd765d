"""The scale of features and targets that a network was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.nn.module import Module, Pullback


class Scale(Module):
    """``y = (x - offset) * factor`` over the last axis, computed in float64 and given in the dtype of ``x``.

    offset, factor : (d,), fixed. :meth:`inverse` is the scale that undoes it.

    >>> import numpy as np
    >>> scale = Scale([10.0, 0.0], [0.5, 2.0])
    >>> scale(np.array([[12.0, 3.0]])).tolist(), scale.inverse()(np.array([[1.0, 6.0]])).tolist()
    ([[1.0, 6.0]], [[12.0, 3.0]])
    """

    _buffers = ("offset", "factor")

    def __init__(self, offset: Any, factor: Any) -> None:
        self.offset: Array = np.asarray(offset, np.float64)
        self.factor: Array = np.asarray(factor, np.float64)

    def inverse(self) -> Scale:
        """The scale that undoes it; no factor may be 0."""
        return Scale(-self.offset * self.factor, 1.0 / self.factor)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, both of the shape of ``x``."""
        xp = namespace(x)
        offset, factor = (asarray(values, like=x, dtype=xp.float64) for values in (self.offset, self.factor))

        def cast(values: Array) -> Array:
            return xp.astype(values, x.dtype, copy=False)

        y = cast((xp.astype(x, xp.float64) - offset) * factor)
        return y, lambda dy: cast(xp.astype(dy, xp.float64) * factor)

    def extra_repr(self) -> str:
        """Number of features."""
        return f"{len(self.offset)}"
