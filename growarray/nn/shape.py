"""Modules that rearrange the axes of an array; options as in ONNX, no parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from growarray.backend import Array, namespace
from growarray.errors import ShapeError
from growarray.nn.module import Pullback
from growarray.nn.moved import Moved, counted_axes, whole_numbers


class _Reshaped(Moved):
    """A module that gives the same values another shape."""

    _shown = "{self.axes}"

    axes: tuple[int, ...] | None = None

    def target(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that an input of ``shape`` gets."""
        raise NotImplementedError

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The reshaped array; the pullback gives the shape of ``x`` back."""
        xp, shape = namespace(x), tuple(x.shape)
        return xp.reshape(x, self.target(shape)), lambda dy: xp.reshape(dy, shape)


class Flatten(_Reshaped):
    """Joins the axes from ``start_dim`` to ``end_dim``, both included, into one.

    Raises ShapeError if the input does not have these axes in this order.

    >>> import numpy as np
    >>> Flatten()(np.ones((2, 3, 4))).shape
    (2, 12)
    """

    _shown = "{self.start_dim}, {self.end_dim}"

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def target(self, shape: Sequence[int]) -> tuple[int, ...]:
        """``shape`` with these axes joined."""
        start, end = (d + len(shape) if d < 0 else d for d in (self.start_dim, self.end_dim))
        if not 0 <= start <= end < len(shape):
            raise ShapeError(
                f"Flatten: input has shape {shape}, expected axes {self.start_dim} to {self.end_dim} in this order"
            )
        return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])


class Reshape(_Reshaped):
    """The same values in another shape: -1, once, is what is left; 0 copies the axis of the same number.

    ``allow_zero`` takes 0 for an axis without entries instead.

    Raises ValueError for a second -1 or a size below it, ShapeError if the input does not fit.

    >>> import numpy as np
    >>> Reshape((0, -1))(np.ones((2, 3, 4))).shape
    (2, 12)
    """

    def __init__(self, shape: Sequence[int], *, allow_zero: bool = False) -> None:
        self.shape, self.allow_zero = whole_numbers("Reshape", "shape", shape), allow_zero
        if self.shape.count(-1) > 1 or any(n < -1 for n in self.shape):
            raise ValueError(f"Reshape: shape is {self.shape}, expected sizes of at least 0, and -1 at most once")

    def target(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that an input of ``shape`` gets."""
        copied = [
            shape[i] if n == 0 and not self.allow_zero and i < len(shape) else n for i, n in enumerate(self.shape)
        ]
        total, given = math.prod(shape), math.prod(n for n in copied if n != -1)
        if -1 in copied and given and not total % given:
            copied[copied.index(-1)] = total // given
        if -1 in copied or math.prod(copied) != total:
            raise ShapeError(
                f"Reshape: input has shape {tuple(shape)}, which does not fit into {self.shape}; write -1 for the size "
                "that varies (a graph that was exported for one batch size takes no other)"
            )
        return tuple(copied)

    def extra_repr(self) -> str:
        """The shape."""
        return f"{self.shape}" + (", allow_zero=True" if self.allow_zero else "")


class Squeeze(_Reshaped):
    """Removes axes of size 1: those in ``axes``, or all. Raises ShapeError if one has another size.

    >>> import numpy as np
    >>> Squeeze((-1,))(np.ones((2, 1, 1))).shape
    (2, 1)
    """

    def __init__(self, axes: Sequence[int] | None = None) -> None:
        self.axes = None if axes is None else whole_numbers("Squeeze", "axes", axes)

    def target(self, shape: Sequence[int]) -> tuple[int, ...]:
        """``shape`` without these axes."""
        ones = (
            [i for i, n in enumerate(shape) if n == 1]
            if self.axes is None
            else counted_axes("Squeeze", self.axes, len(shape))
        )
        if any(shape[axis] != 1 for axis in ones):
            raise ShapeError(f"Squeeze: input has shape {tuple(shape)}, expected size 1 on axes {self.axes}")
        return tuple(n for i, n in enumerate(shape) if i not in ones)


class Unsqueeze(_Reshaped):
    """Inserts axes of size 1, counted in the result. Raises ShapeError if one is not there or is named twice.

    >>> import numpy as np
    >>> Unsqueeze((0, -1))(np.ones(3)).shape
    (1, 3, 1)
    """

    axes: tuple[int, ...]

    def __init__(self, axes: Sequence[int]) -> None:
        self.axes = whole_numbers("Unsqueeze", "axes", axes)

    def target(self, shape: Sequence[int]) -> tuple[int, ...]:
        """``shape`` with these axes."""
        count, sizes = len(shape) + len(self.axes), iter(shape)
        new = counted_axes("Unsqueeze", self.axes, count)
        return tuple(1 if i in new else next(sizes) for i in range(count))


class Expand(Moved):
    """The input repeated along its axes of size 1, and along new ones in front, until it has ``shape``.

    A 1 in ``shape`` leaves the axis of the input as it is. Raises ShapeError if both do not fit.

    >>> import numpy as np
    >>> y, pullback = Expand((2, 3)).vjp(np.ones((1, 3)))
    >>> y.shape, pullback(y).tolist()
    ((2, 3), [[2.0, 2.0, 2.0]])
    """

    _shown = "{self.shape}"

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = whole_numbers("Expand", "shape", shape)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The repeated array; the pullback adds up the gradients of what was repeated."""
        xp, shape, count = namespace(x), tuple(x.shape), max(x.ndim, len(self.shape))
        aligned, target_sizes = ((*(1,) * (count - len(s)), *s) for s in (shape, self.shape))
        if any(m != n and 1 not in (m, n) for m, n in zip(aligned, target_sizes, strict=True)):
            raise ShapeError(f"Expand: input has shape {shape}, which does not expand to {self.shape}")
        target = tuple(m if n == 1 else n for m, n in zip(aligned, target_sizes, strict=True))
        repeated = tuple(i for i, (m, n) in enumerate(zip(aligned, target, strict=True)) if m != n)

        def pullback(dy: Array) -> Array:
            return xp.reshape(xp.sum(dy, axis=repeated, keepdims=True) if repeated else dy, shape)

        return xp.asarray(xp.broadcast_to(x, target), copy=True), pullback


class Transpose(Moved):
    """Axes in another order: axis ``i`` of the result is axis ``perm[i]`` of the input; None reverses them.

    Raises ValueError unless ``perm`` names every axis once, ShapeError for an input of another number of axes.

    >>> import numpy as np
    >>> Transpose((0, 2, 1))(np.ones((2, 3, 4))).shape
    (2, 4, 3)
    """

    _shown = "{self.perm}"

    def __init__(self, perm: Sequence[int] | None = None) -> None:
        self.perm = None if perm is None else whole_numbers("Transpose", "perm", perm)
        if self.perm is not None and sorted(self.perm) != list(range(len(self.perm))):
            raise ValueError(f"Transpose: perm is {self.perm}, expected every number from 0 to {len(self.perm) - 1}")

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The array with its axes in the new order; the pullback puts them back."""
        xp = namespace(x)
        perm = tuple(reversed(range(x.ndim))) if self.perm is None else self.perm
        if len(perm) != x.ndim:
            raise ShapeError(f"Transpose: input has shape {tuple(x.shape)}, expected {len(perm)} axes for perm {perm}")
        back = tuple(perm.index(i) for i in range(x.ndim))
        return xp.permute_dims(x, perm), lambda dy: xp.permute_dims(dy, back)
