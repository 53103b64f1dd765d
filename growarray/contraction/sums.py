"""Float64 sums that are added to in place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from growarray.backend import Array, is_numpy
from growarray.contraction import workspace
from growarray.contraction.kernels import Rows, spans

_STRIP = 128  # columns whose products are made at a time, about: 256 take up to 28 % longer if rows are few


class RunningSum:
    """A float64 sum of arrays of one shape, or of squares ``B^T B``, which are laid out when the sum is read.

    >>> import numpy as np
    >>> total = RunningSum()
    >>> total.add_square([Rows(np.array([[1.0], [2.0]]))], np.array([0, 0, 1]))
    True
    >>> total.array.tolist()
    [[5.0, 5.0, 3.0], [5.0, 5.0, 3.0], [3.0, 3.0, 2.0]]
    """

    __slots__ = ("_array", "_squares")

    def __init__(self, array: Array | None = None) -> None:
        self._array = array
        self._squares: _Squares | None = None

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the sum; None before anything is added."""
        if self._squares is not None:
            return (len(self._squares.columns),) * 2
        return None if self._array is None else tuple(self._array.shape)

    @property
    def array(self) -> Array | None:
        """The sum, or None before anything is added; not a copy."""
        if self._squares is not None:
            squares, self._squares = self._squares.laid_out(), None
            self.add(squares)
        return self._array

    def add(self, values: Array) -> None:
        """Add float64 ``values`` of the shape of the sum, in place if the library can; it keeps the first ones."""
        total = self.array
        if total is None:
            total = values
        else:
            total += values
        self._array = total

    def writable(self, shape: tuple[int, int]) -> np.ndarray | None:
        """The sum to add to in place, zeros at first; None if it has another shape or is no NumPy array."""
        if self.shape is None:
            self._array = np.zeros(shape)
        total = self.array if self.shape == shape else None
        return total if is_numpy(total) else None

    def add_square(self, arrays: Sequence[Rows], columns: np.ndarray) -> bool:
        """Add ``B^T B``: column k of B is column ``columns[k]`` of the arrays side by side, followed by one of ones.

        As precise as :func:`row_products`. Returns False, and adds nothing, if the arrays are not NumPy's, differ in
        rows, or hold values that are not finite or whose squares overflow single precision, or if the shapes differ.
        """
        rows = arrays[0].array.shape[0]
        for a in arrays:
            if not is_numpy(a.array) or a.array.shape[0] != rows:
                return False
        if self._squares is None or self._squares.columns is not columns:
            if self.shape not in (None, (len(columns),) * 2) or not (self.array is None or is_numpy(self.array)):
                return False
            self._squares = _Squares([a.array.shape[1] for a in arrays], columns)
        return workspace.lent(partial(self._squares.add, arrays))


class _Squares:
    """The upper triangle of a sum of squares, each different column once, in strips that lie in one piece.

    Narrow arrays are put side by side, so that their products are large enough for BLAS; wide ones are not copied.
    """

    def __init__(self, widths: Sequence[int], columns: np.ndarray) -> None:
        self.columns, self.width = columns, sum(widths)
        self.joins = min(widths) < _STRIP
        self.strips: list[tuple[int, int, np.ndarray]] = []  # the array, the first of its columns, the sum
        self.ones = np.zeros(self.width + 1)
        left = self.width
        for i, width in enumerate([left] if self.joins else widths):
            count = max(-(-width // _STRIP), 1)
            for start, stop in itertools.pairwise(width * k // count for k in range(count + 1)):
                self.strips.append((i, start, np.zeros((stop - start, left))))
                left -= stop - start

    def add(self, arrays: Sequence[Rows], space: Any) -> bool:
        """Add the products of the arrays' columns with each other and with ones, if these are moderate."""
        if not all(a.is_moderate for a in arrays):
            return False
        for part in spans(arrays):
            blocks, sums = zip(*[a.block(*part) for a in arrays], strict=True)
            if self.joins and len(blocks) > 1:
                joined = space["side by side", (len(blocks[0]), self.width), blocks[0].dtype]
                blocks = (np.concatenate(blocks, axis=1, out=joined),)
            for i, start, strip in self.strips:
                left, at = blocks[i][:, start : start + len(strip)], 0
                product = space["product", strip.shape, left.dtype]
                for right in (blocks[i][:, start:], *blocks[i + 1 :]):
                    np.matmul(left.T, right, out=product[:, at : at + right.shape[1]])
                    at += right.shape[1]
                strip += product
            self.ones[:-1] += sums[0] if len(sums) == 1 else np.concatenate(sums)
        self.ones[-1] += len(arrays[0].array)
        return True

    def laid_out(self) -> np.ndarray:
        """The whole sum, with every column as often as it stands in B."""
        whole = np.empty((len(self.ones),) * 2)
        for _, _, strip in self.strips:
            start, stop = self.width - strip.shape[1], self.width - strip.shape[1] + len(strip)
            corner = np.triu(strip[:, : len(strip)])
            whole[start:stop, start:-1], whole[start:-1, start:stop] = strip, strip.T
            whole[start:stop, start:stop] = corner + np.triu(corner, k=1).T
        whole[-1], whole[:, -1] = self.ones, self.ones
        return whole if np.array_equal(self.columns, np.arange(len(whole))) else whole[self.columns][:, self.columns]
