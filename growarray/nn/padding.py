"""Pad: positions before and after each axis; options as in ONNX, no parameters."""

from __future__ import annotations

from collections.abc import Sequence

from growarray.backend import Array, assign, device_of, kind_of, namespace
from growarray.contraction.geometry import ConvAxis
from growarray.contraction.operand import pad, unpad
from growarray.errors import ShapeError, shown
from growarray.nn.module import Pullback
from growarray.nn.moved import Moved, at_axis, whole_numbers
from growarray.nn.part import Slice

PADDINGS = {"constant": "zeros", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
"""ONNX's names of the modes, and those of convolutions."""


class Pad(Moved):
    """Adds positions before and after each axis; a negative width takes positions away.

    widths : a pair (before, after) for each axis of the input, or for its last axes
    mode : ``'constant'`` (``value``), ``'reflect'`` (without the edge), ``'edge'`` (repeats it), ``'wrap'`` (periodic)

    Raises ValueError for an unknown mode or widths that are not pairs, ShapeError if the input has too few axes or
    positions.

    >>> import numpy as np
    >>> Pad(((1, 2),), mode="reflect")(np.array([1.0, 2.0, 3.0])).tolist()
    [2.0, 1.0, 2.0, 3.0, 2.0, 1.0]
    """

    def __init__(self, widths: Sequence[Sequence[int]], mode: str = "constant", value: float = 0.0) -> None:
        if mode not in PADDINGS:
            raise ValueError(f"Pad: mode is {shown(mode)}, expected one of {', '.join(PADDINGS)}")
        pairs = tuple(whole_numbers("Pad", "widths", pair) for pair in widths)
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
        middle = at_axis(x.ndim, axis, slice(before, before + size))
        if self.mode == "constant":
            longer = (*shape[:axis], before + size + after, *shape[axis + 1 :])
            y = xp.full(longer, self.value, dtype=x.dtype, device=device_of(x))
            return assign(y, middle, x), lambda dy: dy[middle]
        by = ConvAxis(before=before, after=after, padding_mode=PADDINGS[self.mode])
        return pad(xp, x, axis, by), lambda dy: unpad(xp, dy, axis, by)

    def extra_repr(self) -> str:
        """Widths, mode and value."""
        return f"{self.widths}, mode={self.mode!r}" + (f", value={self.value}" if self.value else "")
