"""Float64 sums that are added to in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from growarray.backend import Array, is_numpy
from growarray.contraction import workspace
from growarray.contraction.kernels import Rows, is_moderate, row_blocks

_STRIP = 256  # columns whose products are made and added at a time, while they are in the cache


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

    def add_square(self, arrays: Sequence[Rows], columns: np.ndarray) -> bool:
        """Add ``B^T B``: column k of B is column ``columns[k]`` of the arrays side by side, followed by one of ones.

        As precise as :func:`row_products`. Returns False, and adds nothing, if the arrays are not NumPy's, differ in
        rows, or hold values that are not finite or whose squares overflow single precision, or if the shapes differ.
        """
        rows = arrays[0].array.shape[0]
        if not all(is_numpy(a.array) and a.array.shape[0] == rows and is_moderate(a) for a in arrays):
            return False
        if self._squares is None or self._squares.columns is not columns:
            if self.shape not in (None, (len(columns),) * 2) or not (self.array is None or is_numpy(self.array)):
                return False
            self._squares = _Squares(sum(a.array.shape[1] for a in arrays), columns)
        workspace.lent(partial(self._squares.add, arrays))
        return True


class _Squares:
    """The upper triangle of a sum of squares, each different column once, in strips that lie in one piece."""

    def __init__(self, width: int, columns: np.ndarray) -> None:
        self.columns = columns
        self.strips = [np.zeros((min(_STRIP, width - at), width - at)) for at in range(0, width, _STRIP)]
        self.ones = np.zeros(width + 1)

    def add(self, arrays: Sequence[Rows], space: Any) -> None:
        """Add the products of the arrays' columns with each other and with ones."""
        width = len(self.ones) - 1
        for blocks, sums in row_blocks(arrays):
            block = blocks[0]
            if len(blocks) > 1:
                block = space["side by side", (len(block), width), block.dtype]
                np.concatenate(blocks, axis=1, out=block)
            for strip in self.strips:
                start, stop = width - strip.shape[1], width - strip.shape[1] + strip.shape[0]
                product = space["product", strip.shape, block.dtype]
                strip += np.matmul(block[:, start:stop].T, block[:, start:], out=product)
            self.ones[:-1] += sums[0] if len(sums) == 1 else np.concatenate(sums)
        self.ones[-1] += arrays[0].array.shape[0]

    def laid_out(self) -> np.ndarray:
        """The whole sum, with every column as often as it stands in B."""
        whole = np.empty((len(self.ones),) * 2)
        for start, strip in zip(range(0, len(whole), _STRIP), self.strips, strict=False):
            stop = start + len(strip)
            corner = np.triu(strip[:, : len(strip)])
            whole[start:stop, start:-1], whole[start:-1, start:stop] = strip, strip.T
            whole[start:stop, start:stop] = corner + np.triu(corner, k=1).T
        whole[-1], whole[:, -1] = self.ones, self.ones
        return whole if np.array_equal(self.columns, np.arange(len(whole))) else whole[self.columns][:, self.columns]
