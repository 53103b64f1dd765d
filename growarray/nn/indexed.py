"""Reading and writing at positions that other arrays name: each is a choice of rows of a matrix, with its way back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray.backend import Array, assign, device_of, library_of, to_numpy
from growarray.errors import ShapeError
from growarray.nn.module import Pullback


def add_rows(array: Array, places: Array, rows: Array) -> Array:
    """``array`` (m, k) with each row added at its place; places may repeat. Use the result, as of :func:`assign`.

    >>> add_rows(np.zeros((2, 1)), np.array([1, 1]), np.ones((2, 1))).tolist()
    [[0.0], [2.0]]
    """
    if not isinstance(array, np.ndarray) and hasattr(array, "at"):
        return array.at[places].add(rows)
    if isinstance(array, np.ndarray) and array.dtype in (np.float32, np.float64):
        from scipy.sparse import csc_array  # its product adds in the order of numpy.add.at, forty times as fast

        ones, ends = np.ones(len(places), array.dtype), np.arange(len(places) + 1)
        return np.add(array, csc_array((ones, places, ends), shape=(len(array), len(places))) @ rows, out=array)
    together = getattr(library_of(array).add, "at", None)  # of NumPy and CuPy
    if together is not None:
        together(array, places, rows)
        return array
    for i, place in enumerate(to_numpy(places).tolist()):
        array[place, :] += rows[i, :]
    return array


def set_rows(array: Array, places: Array, rows: Array) -> Array:
    """``array`` (m, k) with each row set at its place. Use the result, as of :func:`assign`.

    >>> set_rows(np.zeros((2, 1)), np.array([1]), np.ones((1, 1))).tolist()
    [[0.0], [1.0]]
    """
    if getattr(library_of(array).add, "at", None) is not None or hasattr(array, "at"):
        return assign(array, places, rows)
    for i, place in enumerate(to_numpy(places).tolist()):
        array[place, :] = rows[i, :]
    return array


def _counted(xp: Any, indices: Array, size: int, where: str) -> Array:
    """Positions counted from the first. Raises ShapeError for one outside the axis."""
    indices = xp.astype(indices, xp.int64)
    if math.prod(indices.shape) and not (int(xp.min(indices)) >= -size and int(xp.max(indices)) < size):
        raise ShapeError(
            f"{where}: indices go from {int(xp.min(indices))} to {int(xp.max(indices))}, expected {-size} to {size - 1}"
        )
    return xp.where(indices < 0, indices + size, indices)


def _rows(xp: Any, x: Array, width: int, places: Array) -> tuple[Array, Pullback]:
    """The rows (n, width) at ``places`` of ``x``, whatever its shape, and the way back, which adds them up."""
    shape, flat = tuple(x.shape), xp.reshape(places, (-1,))
    count = math.prod(shape) // max(width, 1)
    y = xp.take(xp.reshape(x, (count, width)), flat, axis=0)

    def pullback(dy: Array) -> Array:
        dx = xp.zeros((count, width), dtype=dy.dtype, device=device_of(dy))
        return xp.reshape(add_rows(dx, flat, xp.reshape(dy, (-1, width))), shape)

    return y, pullback


def gather(xp: Any, x: Array, indices: Array, axis: int = 0) -> tuple[Array, Pullback]:
    """Entries along one axis, in place of which the axes of the indices come."""
    axis, shape = axis % x.ndim, tuple(x.shape)
    order = (axis, *(i for i in range(x.ndim) if i != axis))
    back = tuple(order.index(i) for i in range(x.ndim))
    width, rest = math.prod(shape) // max(shape[axis], 1), tuple(shape[i] for i in order[1:])
    places = _counted(xp, indices, shape[axis], "Gather")
    y, rows_back = _rows(xp, xp.permute_dims(x, order), width, places)
    count = len(indices.shape)  # the axes of the indices come first, and go to where the axis was
    spread = (*range(count, count + axis), *range(count), *range(count + axis, count + x.ndim - 1))
    joined = tuple(spread.index(i) for i in range(len(spread)))
    y = xp.permute_dims(xp.reshape(y, (*indices.shape, *rest)), spread)
    return y, lambda dy: (xp.permute_dims(rows_back(xp.permute_dims(dy, joined)), back), None)


def _elements(xp: Any, shape: tuple[int, ...], indices: Array, axis: int, where: str) -> Array:
    """Positions in the flat array of the entries that ``indices`` name along one axis."""
    axis, counted = axis % len(shape), _counted(xp, indices, shape[axis], where)
    places = counted * math.prod(shape[axis + 1 :])
    for i, n in enumerate(indices.shape):
        if i != axis:
            steps = xp.arange(n, dtype=xp.int64, device=device_of(indices)) * math.prod(shape[i + 1 :])
            places = places + xp.reshape(steps, tuple(n if j == i else 1 for j in range(len(shape))))
    return places


def gather_elements(xp: Any, x: Array, indices: Array, axis: int = 0) -> tuple[Array, Pullback]:
    """The entry that each index names along one axis, at its own place on the others."""
    y, back = _rows(xp, x, 1, _elements(xp, tuple(x.shape), indices, axis, "GatherElements"))
    return xp.reshape(y, tuple(indices.shape)), lambda dy: (back(dy), None)


def _tuples(xp: Any, shape: tuple[int, ...], indices: Array, batch: int, where: str) -> tuple[Array, int]:
    """Positions of the parts that tuples of indices name, and how many entries each part has."""
    depth = indices.shape[-1]
    width, lead = math.prod(shape[batch + depth :]), tuple(indices.shape[:-1])
    places = xp.zeros(lead, dtype=xp.int64, device=device_of(indices))
    for i in range(batch + depth):
        step = math.prod(shape[i + 1 : batch + depth])
        if i < batch:
            steps = xp.arange(shape[i], dtype=xp.int64, device=device_of(indices))
            offsets = xp.reshape(steps, tuple(shape[i] if j == i else 1 for j in range(len(lead))))
        else:
            offsets = _counted(xp, indices[..., i - batch], shape[i], where)
        places = places + offsets * step
    return places, width


def gather_nd(xp: Any, x: Array, indices: Array, batch_dims: int = 0) -> tuple[Array, Pullback]:
    """The part that each tuple on the last axis of the indices names."""
    shape = tuple(x.shape)
    places, width = _tuples(xp, shape, indices, batch_dims, "GatherND")
    y, back = _rows(xp, x, width, places)
    rest = shape[batch_dims + indices.shape[-1] :]
    return xp.reshape(y, (*indices.shape[:-1], *rest)), lambda dy: (back(dy), None)


def _written(xp: Any, x: Array, width: int, places: Array, updates: Array, add: bool) -> tuple[Array, Pullback]:
    """``x`` with rows put, or added, at ``places``."""
    flat, shape = xp.reshape(places, (-1,)), tuple(x.shape)
    count = math.prod(shape) // max(width, 1)
    rows, write = xp.reshape(updates, (-1, width)), add_rows if add else set_rows
    y = write(xp.asarray(xp.reshape(x, (count, width)), copy=True), flat, rows)

    def pullback(dy: Array) -> tuple[Any, ...]:
        d_rows = xp.reshape(dy, (count, width))
        d_updates = xp.reshape(xp.take(d_rows, flat, axis=0), tuple(updates.shape))
        d_x = d_rows if add else set_rows(xp.asarray(d_rows, copy=True), flat, xp.zeros_like(rows))
        return xp.reshape(d_x, shape), None, d_updates

    return xp.reshape(y, shape), pullback


def scatter_elements(
    xp: Any, x: Array, indices: Array, updates: Array, axis: int = 0, reduction: str = "none"
) -> tuple[Array, Pullback]:
    """``x`` with each update at the place that its index names along one axis."""
    places = _elements(xp, tuple(x.shape), indices, axis, "ScatterElements")
    return _written(xp, x, 1, places, updates, reduction == "add")


def scatter_nd(xp: Any, x: Array, indices: Array, updates: Array, reduction: str = "none") -> tuple[Array, Pullback]:
    """``x`` with the parts that tuples of indices name replaced, or added to."""
    places, width = _tuples(xp, tuple(x.shape), indices, 0, "ScatterND")
    return _written(xp, x, width, places, updates, reduction == "add")
