"""About what error a kernel makes at each rank, from singular values, without decomposing it.

Discarding tails of unfoldings bounds the error of Tucker and of a tensor train from above and is close; CP lies between
the tail of a balanced unfolding, which no sum of r terms can beat, and that of the singular values of the kernel's
slices, which r terms reach. All are relative and squared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from growarray.backend import Array, namespace, to_numpy
from growarray.decompose.unfolding import mode_product, unfold

LEVELS = tuple(np.geomspace(8.0, 1e-4, 32))
"""Squared errors for which ranks are chosen; all modes share one."""
WIDEST = 2048
"""Rows of an unfolding above which its singular values are not computed."""
_RANKS = 48  # ranks of CP and of a matrix that are looked at


class Tail:
    """What is lost of the squared norm of a matrix, or of a stack of them, if so many singular values are kept.

    >>> tail = Tail(np.diag([2.0, 1.0, 1.0]))
    >>> tail.at(1), tail.at(9), tail.fewest(0.2)
    (0.3333333333333333, 0.0, 2)
    """

    def __init__(self, matrix: Array) -> None:
        xp = namespace(matrix)
        transposed = xp.matrix_transpose(matrix)
        wide = matrix.shape[-2] <= matrix.shape[-1]
        squares = to_numpy(xp.linalg.eigvalsh(matrix @ transposed if wide else transposed @ matrix))
        squares = np.sort(np.maximum(squares.reshape(-1), 0.0))
        lost = np.concatenate([np.cumsum(squares)[::-1], [0.0]])
        self.values = lost / lost[0] if lost[0] else lost

    def at(self, rank: int) -> float:
        """The share that is lost."""
        return float(self.values[min(rank, len(self.values) - 1)])

    def fewest(self, level: float) -> int:
        """The fewest singular values, at least one, whose rest is within the level."""
        return max(1, int(np.sum(self.values > level)))


class Spectra:
    """Tails of the unfoldings of a kernel (o, c, *taps), each computed if it is asked for."""

    def __init__(self, kernel: Array) -> None:
        self.kernel = kernel
        self.shape = tuple(int(n) for n in kernel.shape)
        self._tails: dict[tuple[int, ...], Tail] = {}

    def tail(self, rows: Sequence[int]) -> Tail:
        """Of the unfolding with these modes as rows; that of the input channels in place of one that is too wide."""
        key = tuple(sorted(rows))
        if key not in self._tails:
            others = [k for k in range(len(self.shape)) if k not in key]
            if len(key) > 1 and len(others) == 1:
                key, others = tuple(others), list(key)
        if key not in self._tails:
            height = math.prod(self.shape[k] for k in key)
            transposed = namespace(self.kernel).permute_dims(self.kernel, (*key, *others))
            matrix = namespace(transposed).reshape(transposed, (height, -1))
            narrow = len(key) == 1 or min(matrix.shape) <= WIDEST
            self._tails[key] = Tail(matrix) if narrow else self.tail((1,))
        return self._tails[key]

    @cached_property
    def modes(self) -> list[Tail]:
        """Of each mode against all others."""
        return [self.tail((k,)) for k in range(len(self.shape))]

    @cached_property
    def bonds(self) -> list[Tail]:
        """Between the modes of a train (c, *taps, o)."""
        return [self.tail(range(1, k)) for k in range(2, len(self.shape))] + [self.modes[0]]

    @cached_property
    def slices(self) -> Tail:
        """Of the kernel's slices, with the taps in the basis in which few of them carry most."""
        kernel, xp = self.kernel, namespace(self.kernel)
        for k in range(2, kernel.ndim):
            vectors = xp.linalg.eigh(unfold(kernel, k) @ xp.matrix_transpose(unfold(kernel, k)))[1]
            kernel = mode_product(kernel, xp.matrix_transpose(vectors), k)
        return Tail(xp.permute_dims(xp.reshape(kernel, (*self.shape[:2], -1)), (2, 0, 1)))


def geometric(largest: int) -> list[int]:
    """Ranks from 1 to the largest, in steps of about one ratio.

    >>> geometric(5)
    [1, 2, 3, 4, 5]
    """
    return sorted({round(r) for r in np.geomspace(1, max(largest, 1), _RANKS)})
