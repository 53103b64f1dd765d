"""ReduceMean: the mean over given axes; options as in ONNX, no parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from growarray.backend import Array, namespace
from growarray.nn.module import Pullback
from growarray.nn.moved import Moved, counted_axes, whole_numbers

__all__ = ["ReduceMean"]


class ReduceMean(Moved):
    """Mean over ``axes``, or over all; ``keepdims`` leaves them with size 1.

    Raises ShapeError if an axis is not there or is named twice.

    >>> import numpy as np
    >>> y, pullback = ReduceMean((1,), keepdims=False).vjp(np.array([[1.0, 3.0]]))
    >>> y.tolist(), pullback(y).tolist()
    ([2.0], [[1.0, 1.0]])
    """

    def __init__(self, axes: Sequence[int] | None = None, *, keepdims: bool = True) -> None:
        self.axes = None if axes is None else whole_numbers("ReduceMean", "axes", axes)
        self.keepdims = keepdims

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The means; the pullback shares each gradient out evenly."""
        xp, shape = namespace(x), tuple(x.shape)
        axes = counted_axes("ReduceMean", range(x.ndim) if self.axes is None else self.axes, x.ndim)
        kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
        count = max(math.prod(shape[axis] for axis in axes), 1)

        def pullback(dy: Array) -> Array:
            return xp.asarray(xp.broadcast_to(xp.reshape(dy, kept) / count, shape), copy=True)

        y = xp.mean(x, axis=axes, keepdims=self.keepdims) if axes else xp.asarray(x, copy=True)
        return y, pullback

    def extra_repr(self) -> str:
        """Axes and ``keepdims``."""
        return f"{self.axes}, keepdims={self.keepdims}"
