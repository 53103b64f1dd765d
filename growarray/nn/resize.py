"""Resizing by interpolation along axes, as ONNX has it: a product with one small matrix for each axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.errors import ShapeError, shown
from growarray.nn.module import Module, Pullback
from growarray.nn.moved import counted_axes

Vector = np.ndarray[Any, np.dtype[Any]]
# i positions of the result · k size of the input · n size of the result, before rounding · r its region's two ends
Transform = Callable[[Vector, int, float, Any], Any]

_TRANSFORMS: dict[str, Transform] = {
    "align_corners": lambda i, k, n, r: i * (k - 1) / (n - 1) if n != 1 else 0.0 * i,
    "asymmetric": lambda i, k, n, r: i * k / n,
    "half_pixel": lambda i, k, n, r: (i + 0.5) * k / n - 0.5,
    "half_pixel_symmetric": lambda i, k, n, r: k / 2 * (1 - len(i) / n) + (i + 0.5) * k / n - 0.5,
    "pytorch_half_pixel": lambda i, k, n, r: (i + 0.5) * k / n - 0.5 if n != 1 else 0.0 * i,
    "tf_crop_and_resize": lambda i, k, n, r: (
        (r[0] + i * (r[1] - r[0]) / (n - 1)) * (k - 1) if n != 1 else 0.0 * i + (r[0] + r[1]) * (k - 1) / 2
    ),
}
_ROUNDINGS: dict[str, Callable[[Vector], Vector]] = {
    "ceil": np.ceil,
    "floor": np.floor,
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
}


def _kernel(mode: str, t: Vector, a: float) -> Vector:
    """How much an entry at the distance t counts: a tent, or two cubics on each side."""
    t = np.abs(t)
    if mode == "linear":
        return np.maximum(1.0 - t, 0.0)
    near, far = ((a + 2) * t - (a + 3)) * t * t + 1, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


@lru_cache(maxsize=64)
def _matrix(
    size: int, count: int, exact: float, region: tuple[float, float], options: tuple[Any, ...]
) -> tuple[Vector, Vector]:
    """What each position of the result takes of the input, (count, size), and which lie outside of it."""
    mode, transform, rounding, a, exclude, antialias = options
    at = _TRANSFORMS[transform](np.arange(count, dtype=np.float64), size, exact, region)
    matrix, rows = np.zeros((count, size)), np.arange(count)
    outside = (at < 0) | (at > size - 1) if transform == "tf_crop_and_resize" else np.zeros(count, bool)
    if mode == "nearest":
        matrix[rows, np.clip(_ROUNDINGS[rounding](at), 0, size - 1).astype(np.int64)] = 1.0
        return matrix, outside
    narrow = min(exact / size, 1.0) if antialias else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) / narrow)
    taps = np.floor(at)[:, None] + np.arange(-reach, reach + 2)
    weights = _kernel(mode, (taps - at[:, None]) * narrow, a)
    if exclude:
        weights = np.where((taps >= 0) & (taps < size), weights, 0.0)
    if exclude or antialias:
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total == 0.0, 1.0, total)
    np.add.at(matrix, (rows[:, None], np.clip(taps, 0, size - 1).astype(np.int64)), weights)
    return matrix, outside


class Resize(Module):
    """An input with other sizes along ``axes``: ``factors`` times its own, rounded down, or ``sizes``.

    mode : ``'nearest'``, ``'linear'`` or ``'cubic'``, whose coefficient is ``cubic``
    transform, rounding : where a position lies in the input, and which entry is the nearest, by their names in ONNX
    exclude : leave out what lies beyond the ends    antialias : when it shrinks, let every entry of the input count
    policy : of ``sizes``, ``'stretch'``, or ``'not_larger'`` and ``'not_smaller'``, which keep the proportions
    region, outside : for ``'tf_crop_and_resize'``, both ends of each axis from 0 to 1, and the value beyond the input

    Raises ValueError for an option that is not known, ShapeError for an axis that is not there.

    >>> import numpy as np
    >>> y, pullback = Resize((0,), factors=(2.0,)).vjp(np.array([1.0, 3.0]))
    >>> y.tolist(), pullback(y).tolist()
    ([1.0, 1.0, 3.0, 3.0], [2.0, 6.0])
    """

    def __init__(
        self,
        axes: Sequence[int],
        *,
        factors: Sequence[float] | None = None,
        sizes: Sequence[int] | None = None,
        mode: str = "nearest",
        transform: str = "half_pixel",
        rounding: str = "round_prefer_floor",
        cubic: float = -0.75,
        exclude: bool = False,
        antialias: bool = False,
        policy: str = "stretch",
        region: Sequence[float] | None = None,
        outside: float = 0.0,
    ) -> None:
        for name, value, known in (
            ("mode", mode, ("nearest", "linear", "cubic")),
            ("transform", transform, _TRANSFORMS),
            ("rounding", rounding, _ROUNDINGS),
            ("policy", policy, ("stretch", "not_larger", "not_smaller")),
        ):
            if value not in known:
                raise ValueError(f"Resize: {name} is {shown(value)}, expected one of {', '.join(known)}")
        count, asked = len(tuple(axes)), sizes if factors is None else factors
        if asked is None or (factors is not None and sizes is not None) or len(asked) != count:
            raise ValueError(f"Resize: factors are {factors} and sizes {sizes}, expected {count} of one of them")
        self.axes, self.policy, self.outside = tuple(axes), policy, float(outside)
        self.factors = None if factors is None else tuple(float(f) for f in factors)
        self.sizes = None if sizes is None else tuple(int(n) for n in sizes)
        self.region = (0.0,) * count + (1.0,) * count if region is None else tuple(float(r) for r in region)
        self.options = (mode, transform, rounding, float(cubic), bool(exclude), bool(antialias))

    def _saved(self) -> dict[str, Any]:
        names = ("mode", "transform", "rounding", "cubic", "exclude", "antialias")
        own = {name: getattr(self, name) for name in ("axes", "factors", "sizes", "policy", "region", "outside")}
        return own | dict(zip(names, self.options, strict=True))

    def counts(self, input_sizes: Sequence[int]) -> list[tuple[int, float]]:
        """For each axis the size of the result, rounded and before it is rounded."""
        if self.factors is not None:
            return [(math.floor(n * f), n * f) for n, f in zip(input_sizes, self.factors, strict=True)]
        sizes = self.sizes or ()
        if self.policy == "stretch":
            return [(n, float(n)) for n in sizes]
        ratios = [n / k for n, k in zip(sizes, input_sizes, strict=True)]
        ratio = min(ratios) if self.policy == "not_larger" else max(ratios)
        return [(math.floor(ratio * k + 0.5), ratio * k) for k in input_sizes]

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """The result; the pullback multiplies by the transposed matrices."""
        xp, axes = namespace(x), counted_axes("Resize", self.axes, x.ndim)
        input_sizes = [x.shape[axis] for axis in axes]
        if 0 in x.shape:
            raise ShapeError(f"Resize: input has shape {tuple(x.shape)}, expected no size of 0")
        y, steps = x, []
        for i, (axis, size, (count, exact)) in enumerate(zip(axes, input_sizes, self.counts(input_sizes), strict=True)):
            region = (self.region[i], self.region[i + len(axes)])
            matrix, outside = _matrix(size, count, exact, region, self.options)
            if count == size and np.array_equal(matrix, np.eye(size)):
                continue
            if self.options[0] == "nearest":
                y = xp.take(y, asarray(np.argmax(matrix, axis=1), like=x), axis=axis)
            else:
                y = _product(xp, y, matrix, axis)
            if outside.any():
                matrix = np.where(outside[:, None], 0.0, matrix)
                outside_mask = xp.reshape(asarray(outside, like=x), (-1, *(1,) * (x.ndim - 1 - axis)))
                y = xp.where(outside_mask, xp.full_like(y, self.outside), y)
            steps.append((matrix, axis))

        def pullback(dy: Array) -> Array:
            for matrix, axis in reversed(steps):
                dy = _product(xp, dy, matrix.T, axis)
            return dy

        return y, pullback

    def extra_repr(self) -> str:
        """Axes, factors or sizes, and the mode."""
        asked = f"sizes={self.sizes}" if self.factors is None else f"factors={self.factors}"
        return f"{self.axes}, {asked}, mode={self.options[0]!r}"


def _product(xp: Any, x: Array, matrix: Vector, axis: int) -> Array:
    """The matrix times every line of the array along one axis."""
    weights = asarray(np.ascontiguousarray(matrix.T), like=x, dtype=x.dtype)
    return xp.moveaxis(xp.matmul(xp.moveaxis(x, axis, -1), weights), -1, axis)
