"""Modules that rearrange, cut, pad or average an array along given axes; options as in ONNX, no parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from growarray.backend import Array, assign, device_of, kind_of, namespace
from growarray.contraction.checks import is_ordered, is_whole
from growarray.errors import ShapeError, shown
from growarray.nn.module import Module, Pullback
from growarray.nn.positions import positions

__all__ = ["Gather", "Pad", "ReduceMean", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"]

_MODES = ("constant", "reflect", "edge", "wrap")


def _numbers(where: str, option: str, values: Sequence[int]) -> tuple[int, ...]:
    found = tuple(values) if is_ordered(values) else ()
    if not is_ordered(values) or not all(is_whole(v) for v in found):
        raise TypeError(f"{where}: {option} must be whole numbers in order, found {shown(values)}")
    return tuple(int(v) for v in found)


def _axes(where: str, axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """The axes counted from the first; raises ShapeError where one is not there or is named twice."""
    found = tuple(axis + ndim if axis < 0 else axis for axis in axes)
    if any(not 0 <= axis < ndim for axis in found) or len(set(found)) < len(found):
        raise ShapeError(f"{where}: axes {tuple(axes)} of {ndim} axes; expected each from {-ndim} to {ndim - 1}, once")
    return found


def _part(ndim: int, axis: int, part: Any) -> tuple[Any, ...]:
    """The index that takes ``part`` along one axis, and everything along the others."""
    return (*(slice(None),) * axis, part, *(slice(None),) * (ndim - axis - 1))


class _Shape(Module):
    """A module that moves values and does not change them."""

    @property
    def slope_at_zero(self) -> float:
        """1: the values stay as they are."""
        return 1.0


class Reshape(_Shape):
    """The same values in another shape: -1, once, is what is left; 0 copies the axis of the input at that place.

    ``allow_zero`` takes 0 for an axis without entries instead.

    Raises ValueError for a second -1 or a size below it, ShapeError where the input does not fit.

    >>> import numpy as np
    >>> Reshape((0, -1))(np.ones((2, 3, 4))).shape
    (2, 12)
    """

    def __init__(self, shape: Sequence[int], *, allow_zero: bool = False) -> None:
        self.shape, self.allow_zero = _numbers("Reshape", "shape", shape), allow_zero
        if self.shape.count(-1) > 1 or any(n < -1 for n in self.shape):
            raise ValueError(f"Reshape: shape is {self.shape}, expected sizes of at least 0, and -1 at most once")

    def target(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that an input of ``shape`` gets."""
        copied = [
            shape[i] if n == 0 and not self.allow_zero and i < len(shape) else n for i, n in enumerate(self.shape)
        ]
        total, known = math.prod(shape), math.prod(n for n in copied if n != -1)
        if -1 in copied and known and not total % known:
            copied[copied.index(-1)] = total // known
        if -1 in copied or math.prod(copied) != total:
            raise ShapeError(
                f"Reshape: input has shape {tuple(shape)}, which does not fit into {self.shape}; write -1 for the size "
                "that varies (a graph that was exported for one batch size takes no other)"
            )
        return tuple(copied)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The reshaped array; the pullback gives the shape of ``x`` back."""
        xp, shape = namespace(x), tuple(x.shape)
        return xp.reshape(x, self.target(shape)), lambda dy: xp.reshape(dy, shape)

    def extra_repr(self) -> str:
        """The shape."""
        return f"{self.shape}" + (", allow_zero=True" if self.allow_zero else "")


class Transpose(_Shape):
    """Axes in another order: axis ``i`` of the result is axis ``perm[i]`` of the input; None reverses them.

    Raises ValueError unless ``perm`` names every axis once, ShapeError for an input of another number of axes.

    >>> import numpy as np
    >>> Transpose((0, 2, 1))(np.ones((2, 3, 4))).shape
    (2, 4, 3)
    """

    def __init__(self, perm: Sequence[int] | None = None) -> None:
        self.perm = None if perm is None else _numbers("Transpose", "perm", perm)
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

    def extra_repr(self) -> str:
        """The order of the axes."""
        return f"{self.perm}"


class Squeeze(_Shape):
    """Takes away axes of size 1: those in ``axes``, or all. Raises ShapeError where one has another size.

    >>> import numpy as np
    >>> Squeeze((-1,))(np.ones((2, 1, 1))).shape
    (2, 1)
    """

    def __init__(self, axes: Sequence[int] | None = None) -> None:
        self.axes = None if axes is None else _numbers("Squeeze", "axes", axes)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The array without these axes; the pullback gives them back."""
        xp, shape = namespace(x), tuple(x.shape)
        ones = [i for i, n in enumerate(shape) if n == 1] if self.axes is None else _axes("Squeeze", self.axes, x.ndim)
        if any(shape[axis] != 1 for axis in ones):
            raise ShapeError(f"Squeeze: input has shape {shape}, expected size 1 on axes {self.axes}")
        rest = tuple(n for i, n in enumerate(shape) if i not in ones)
        return xp.reshape(x, rest), lambda dy: xp.reshape(dy, shape)

    def extra_repr(self) -> str:
        """The axes."""
        return f"{self.axes}"


class Unsqueeze(_Shape):
    """Puts in axes of size 1, counted in the result. Raises ShapeError where one is not there or is named twice.

    >>> import numpy as np
    >>> Unsqueeze((0, -1))(np.ones(3)).shape
    (1, 3, 1)
    """

    def __init__(self, axes: Sequence[int]) -> None:
        self.axes = _numbers("Unsqueeze", "axes", axes)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The array with these axes; the pullback takes them away."""
        xp, shape = namespace(x), tuple(x.shape)
        new, sizes = _axes("Unsqueeze", self.axes, x.ndim + len(self.axes)), iter(shape)
        target = tuple(1 if i in new else next(sizes) for i in range(x.ndim + len(new)))
        return xp.reshape(x, target), lambda dy: xp.reshape(dy, shape)

    def extra_repr(self) -> str:
        """The axes."""
        return f"{self.axes}"


class Slice(_Shape):
    """Every ``step``-th position from ``start`` to before ``end`` along each axis of ``axes``, see :func:`positions`.

    Axes are 0, 1, … and steps 1 unless given; steps may be negative.

    Raises ValueError where the options differ in length or a step is 0, ShapeError where an axis is not there.

    >>> import numpy as np
    >>> y, pullback = Slice((1,), (3,), axes=(1,)).vjp(np.ones((1, 4)))
    >>> y.shape, pullback(y).tolist()
    ((1, 2), [[0.0, 1.0, 1.0, 0.0]])
    """

    def __init__(
        self,
        starts: Sequence[int],
        ends: Sequence[int],
        axes: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
    ) -> None:
        self.starts, self.ends = _numbers("Slice", "starts", starts), _numbers("Slice", "ends", ends)
        count = len(self.starts)
        self.axes = tuple(range(count)) if axes is None else _numbers("Slice", "axes", axes)
        self.steps = (1,) * count if steps is None else _numbers("Slice", "steps", steps)
        if not len(self.ends) == len(self.axes) == len(self.steps) == count or 0 in self.steps:
            raise ValueError(
                f"Slice: starts {self.starts}, ends {self.ends}, axes {self.axes}, steps {self.steps}; "
                "expected as many of each, and no step of 0"
            )

    def ranges(self, shape: Sequence[int]) -> dict[int, range]:
        """The positions that are taken of an input of ``shape``, by axis."""
        found = {}
        for axis, *part in zip(_axes("Slice", self.axes, len(shape)), self.starts, self.ends, self.steps, strict=True):
            found[axis] = positions(shape[axis], *part)
        return found

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The part; the pullback puts its gradient among zeros."""
        xp, shape = namespace(x), tuple(x.shape)
        index, backwards = [slice(None)] * x.ndim, []
        for axis, places in self.ranges(shape).items():
            if places.step < 0:  # taken forwards and flipped: not every library has slices that go back
                places = places[::-1]
                backwards.append(axis)
            index[axis] = slice(places.start, places.stop, places.step) if len(places) else slice(0, 0)
        part = tuple(index)

        def flipped(values: Array) -> Array:
            return xp.flip(values, axis=tuple(backwards)) if backwards else values

        def pullback(dy: Array) -> Array:
            dx = xp.zeros(shape, dtype=dy.dtype, device=device_of(dy))
            return assign(dx, part, flipped(dy))

        return flipped(x[part]), pullback

    def extra_repr(self) -> str:
        """Every option."""
        return f"{self.starts}, {self.ends}, axes={self.axes}, steps={self.steps}"


class Gather(_Shape):
    """The entries at ``indices`` along ``axis``: a number takes the axis away, a sequence may name one more than once.

    Raises TypeError for indices that are no whole numbers, ShapeError for one that is not there.

    >>> import numpy as np
    >>> y, pullback = Gather((2, 2, 0), axis=0).vjp(np.array([1.0, 2.0, 3.0]))
    >>> y.tolist(), pullback(y).tolist()
    ([3.0, 3.0, 1.0], [1.0, 0.0, 6.0])
    """

    def __init__(self, indices: int | Sequence[int], axis: int = 0) -> None:
        self.indices = int(indices) if is_whole(indices) else _numbers("Gather", "indices", indices)  # type: ignore[arg-type]
        self.axis = axis

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The entries; the pullback adds their gradients up where they came from."""
        xp, shape = namespace(x), tuple(x.shape)
        (axis,) = _axes("Gather", (self.axis,), x.ndim)
        single = isinstance(self.indices, int)
        asked: tuple[int, ...] = (self.indices,) if isinstance(self.indices, int) else self.indices
        if any(not -shape[axis] <= i < shape[axis] for i in asked):
            raise ShapeError(f"Gather: input has shape {shape}, expected indices {asked} of axis {axis} to lie in it")
        places = [i + shape[axis] if i < 0 else i for i in asked]
        if single:
            y = x[_part(x.ndim, axis, places[0])]
        else:
            y = xp.take(x, xp.asarray(places, dtype=xp.int64, device=device_of(x)), axis=axis)

        def pullback(dy: Array) -> Array:
            dx = xp.zeros(shape, dtype=dy.dtype, device=device_of(dy))
            for i, place in enumerate(places):
                here = _part(x.ndim, axis, place)
                dx = assign(dx, here, dy if single else dy[_part(x.ndim, axis, i)], add=True)
            return dx

        return y, pullback

    def extra_repr(self) -> str:
        """Indices and axis."""
        return f"{self.indices}, axis={self.axis}"


class Pad(_Shape):
    """Adds positions before and after each axis; a negative width takes positions away.

    widths : a pair (before, after) for each axis of the input, or for its last axes
    mode : ``'constant'`` (``value``), ``'reflect'`` (without the edge), ``'edge'`` (repeats it), ``'wrap'`` (periodic)

    Raises ValueError for an unknown mode or widths that are no pairs, ShapeError where the input has too few axes or
    positions.

    >>> import numpy as np
    >>> Pad(((1, 2),), mode="reflect")(np.array([1.0, 2.0, 3.0])).tolist()
    [2.0, 1.0, 2.0, 3.0, 2.0, 1.0]
    """

    def __init__(self, widths: Sequence[Sequence[int]], mode: str = "constant", value: float = 0.0) -> None:
        if mode not in _MODES:
            raise ValueError(f"Pad: mode is {shown(mode)}, expected one of {', '.join(_MODES)}")
        pairs = tuple(_numbers("Pad", "widths", pair) for pair in widths)
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"Pad: widths are {shown(pairs)}, expected a pair (before, after) for each axis")
        self.widths, self.mode, self.value = pairs, mode, float(value)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The padded array; the pullback adds the gradients of copies to what was copied."""
        namespace(x)
        backs = []
        if self.mode == "constant" and self.value % 1.0 and kind_of(x) != "f":
            raise TypeError(f"Pad: input is {x.dtype}, which cannot hold value={self.value}; convert it with astype")
        if len(self.widths) > x.ndim:
            raise ShapeError(f"Pad: input has shape {tuple(x.shape)}, expected at least {len(self.widths)} axes")
        for axis, (before, after) in enumerate(self.widths, start=x.ndim - len(self.widths)):
            for step in ((min(before, 0), min(after, 0)), (max(before, 0), max(after, 0))):
                if step != (0, 0):
                    x, back = self._along(x, axis, *step)
                    backs.append(back)

        def pullback(dy: Array) -> Array:
            for back in reversed(backs):
                dy = back(dy)
            return dy

        return x, pullback

    def _along(self, x: Array, axis: int, before: int, after: int) -> tuple[Array, Pullback]:
        """One axis: both widths negative or zero, or both positive or zero."""
        xp, shape, size = namespace(x), tuple(x.shape), int(x.shape[axis])
        reach = {"reflect": size - 1, "wrap": size, "edge": max(before, after) * (size > 0)}
        if -before - after > size or (max(before, after) > reach.get(self.mode, max(before, after))):
            raise ShapeError(
                f"Pad: input has shape {shape}, too few on axis {axis} for widths {self.widths}, {self.mode}"
            )
        if before < 0 or after < 0:
            y, back = Slice((-before,), (size + after,), (axis,)).vjp(x)
            return y, back
        middle = _part(x.ndim, axis, slice(before, before + size))
        if self.mode == "constant":
            longer = (*shape[:axis], before + size + after, *shape[axis + 1 :])
            y = xp.full(longer, self.value, dtype=x.dtype, device=device_of(x))
            return assign(y, middle, x), lambda dy: dy[middle]
        copies = [_part(x.ndim, axis, part) for part in self._copied(size, before, after)]
        starts = (0, before + size)
        added = [_part(x.ndim, axis, slice(start, start + n)) for start, n in zip(starts, (before, after), strict=True)]
        flip = self.mode == "reflect"
        pieces = [xp.flip(x[c], axis=axis) if flip else x[c] for c in copies]
        if self.mode == "edge":
            pieces = [
                xp.broadcast_to(p, (*shape[:axis], n, *shape[axis + 1 :]))
                for p, n in zip(pieces, (before, after), strict=True)
            ]

        def pullback(dy: Array) -> Array:
            dx = xp.asarray(dy[middle], copy=True)
            for there, here in zip(added, copies, strict=True):
                share = dy[there]
                if self.mode == "edge":
                    share = xp.sum(share, axis=axis, keepdims=True)
                dx = assign(dx, here, xp.flip(share, axis=axis) if flip else share, add=True)
            return dx

        return xp.concat([pieces[0], x, pieces[1]], axis=axis), pullback

    def _copied(self, size: int, before: int, after: int) -> tuple[slice, slice]:
        """The positions that are copied to before, and to after."""
        if self.mode == "reflect":
            return slice(1, before + 1), slice(size - 1 - after, size - 1)
        if self.mode == "wrap":
            return slice(size - before, size), slice(0, after)
        return slice(0, 1), slice(size - 1, size)

    def extra_repr(self) -> str:
        """Widths, mode and value."""
        return f"{self.widths}, mode={self.mode!r}" + (f", value={self.value}" if self.value else "")


class ReduceMean(Module):
    """Mean over ``axes``, or over all; ``keepdims`` leaves them with size 1.

    Raises ShapeError where an axis is not there or is named twice.

    >>> import numpy as np
    >>> y, pullback = ReduceMean((1,), keepdims=False).vjp(np.array([[1.0, 3.0]]))
    >>> y.tolist(), pullback(y).tolist()
    ([2.0], [[1.0, 1.0]])
    """

    def __init__(self, axes: Sequence[int] | None = None, *, keepdims: bool = True) -> None:
        self.axes = None if axes is None else _numbers("ReduceMean", "axes", axes)
        self.keepdims = keepdims

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The means; the pullback shares each gradient out evenly."""
        xp, shape = namespace(x), tuple(x.shape)
        axes = _axes("ReduceMean", range(x.ndim) if self.axes is None else self.axes, x.ndim)
        kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
        count = max(math.prod(shape[axis] for axis in axes), 1)

        def pullback(dy: Array) -> Array:
            return xp.asarray(xp.broadcast_to(xp.reshape(dy, kept) / count, shape), copy=True)

        y = xp.mean(x, axis=axes, keepdims=self.keepdims) if axes else xp.asarray(x, copy=True)
        return y, pullback

    @property
    def slope_at_zero(self) -> float:
        """1: a constant stays what it is."""
        return 1.0

    def extra_repr(self) -> str:
        """Axes and ``keepdims``."""
        return f"{self.axes}, keepdims={self.keepdims}"
