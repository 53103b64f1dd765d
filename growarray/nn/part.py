"""Modules that take parts of an array along given axes; options as in ONNX, no parameters."""

from __future__ import annotations

from collections.abc import Sequence

from growarray.backend import Array, assign, device_of, namespace
from growarray.contraction.checks import is_whole
from growarray.errors import ShapeError
from growarray.nn.module import Pullback
from growarray.nn.moved import Moved, at_axis, counted_axes, whole_numbers


def positions(size: int, start: int, end: int, step: int) -> range:
    """Every ``step``-th position from ``start`` to before ``end`` of an axis; negative ones count from its end.

    What lies outside is moved to the nearest position, so that a negative step begins at 0 if ``start`` is before
    the axis; there a Python slice is empty. Source: the operator Slice of ONNX.

    >>> list(positions(5, 1, 9, 2)), list(positions(3, -5, -7, -2)), list(range(3))[-5:-7:-2]
    ([1, 3], [0], [])
    """
    start, end = (i + size if i < 0 else i for i in (start, end))
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


class Slice(Moved):
    """Every ``step``-th position from ``start`` to before ``end`` along each axis of ``axes``, see :func:`positions`.

    Axes are 0, 1, … and steps 1 unless given; steps may be negative.

    Raises ValueError if the options differ in length or a step is 0, ShapeError if an axis is not there.

    >>> import numpy as np
    >>> y, pullback = Slice((1,), (3,), axes=(1,)).vjp(np.ones((1, 4)))
    >>> y.shape, pullback(y).tolist()
    ((1, 2), [[0.0, 1.0, 1.0, 0.0]])
    """

    _shown = "{self.starts}, {self.ends}, axes={self.axes}, steps={self.steps}"

    def __init__(
        self,
        starts: Sequence[int],
        ends: Sequence[int],
        axes: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
    ) -> None:
        self.starts, self.ends = whole_numbers("Slice", "starts", starts), whole_numbers("Slice", "ends", ends)
        count = len(self.starts)
        self.axes = tuple(range(count)) if axes is None else whole_numbers("Slice", "axes", axes)
        self.steps = (1,) * count if steps is None else whole_numbers("Slice", "steps", steps)
        if not len(self.ends) == len(self.axes) == len(self.steps) == count or 0 in self.steps:
            raise ValueError(
                f"Slice: starts {self.starts}, ends {self.ends}, axes {self.axes}, steps {self.steps}; "
                "expected as many of each, and no step of 0"
            )

    def ranges(self, shape: Sequence[int]) -> dict[int, range]:
        """The positions that are taken of an input of ``shape``, by axis."""
        axes = counted_axes("Slice", self.axes, len(shape))
        slices = zip(axes, self.starts, self.ends, self.steps, strict=True)
        return {axis: positions(shape[axis], start, end, step) for axis, start, end, step in slices}

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The part; the pullback puts its gradient among zeros."""
        xp, shape = namespace(x), tuple(x.shape)
        index, backwards = [slice(None)] * x.ndim, []
        for axis, taken in self.ranges(shape).items():
            if taken.step < 0:  # taken forwards and flipped: not every library has slices that go back
                taken = taken[::-1]
                backwards.append(axis)
            index[axis] = slice(taken[0], taken[-1] + 1, taken.step) if len(taken) else slice(0, 0)
        part = tuple(index)

        def flipped(values: Array) -> Array:
            return xp.flip(values, axis=tuple(backwards)) if backwards else values

        def pullback(dy: Array) -> Array:
            dx = xp.zeros(shape, dtype=dy.dtype, device=device_of(dy))
            return assign(dx, part, flipped(dy))

        return flipped(x[part]), pullback


class Gather(Moved):
    """The entries at ``indices`` along ``axis``: a number takes the axis away, a sequence may name one more than once.

    Raises TypeError for indices that are not whole numbers, ShapeError for one out of range.

    >>> import numpy as np
    >>> y, pullback = Gather((2, 2, 0), axis=0).vjp(np.array([1.0, 2.0, 3.0]))
    >>> y.tolist(), pullback(y).tolist()
    ([3.0, 3.0, 1.0], [1.0, 0.0, 6.0])
    """

    _shown = "{self.indices}, axis={self.axis}"

    def __init__(self, indices: int | Sequence[int], axis: int = 0) -> None:
        self.indices = int(indices) if is_whole(indices) else whole_numbers("Gather", "indices", indices)  # type: ignore[arg-type]
        self.axis = axis

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The entries; the pullback adds their gradients up where they came from."""
        xp, shape = namespace(x), tuple(x.shape)
        (axis,) = counted_axes("Gather", (self.axis,), x.ndim)
        single = isinstance(self.indices, int)
        asked: tuple[int, ...] = (self.indices,) if isinstance(self.indices, int) else self.indices
        if any(not -shape[axis] <= i < shape[axis] for i in asked):
            raise ShapeError(f"Gather: input has shape {shape}, expected indices {asked} of axis {axis} to lie in it")
        counted = [i + shape[axis] if i < 0 else i for i in asked]
        if single:
            y = x[at_axis(x.ndim, axis, counted[0])]
        else:
            y = xp.take(x, xp.asarray(counted, dtype=xp.int64, device=device_of(x)), axis=axis)

        def pullback(dy: Array) -> Array:
            dx = xp.zeros(shape, dtype=dy.dtype, device=device_of(dy))
            for i, index in enumerate(counted):
                place = at_axis(x.ndim, axis, index)
                dx = assign(dx, place, dy if single else dy[at_axis(x.ndim, axis, i)], add=True)
            return dx

        return y, pullback
