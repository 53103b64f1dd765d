"""The table of addresses that launches read, and one block of memory whose pieces are taken again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from growarray.contraction.routines.cupy import Launches
from growarray.cuda.convolution import Convolution, convolution_launch
from growarray.cuda.device import Kernel, StridedProduct, kernel_launch, product_launch

_READY: dict[type, Callable[[Any], Callable[[Sequence[int]], object]]] = {
    Kernel: kernel_launch,
    StridedProduct: product_launch,
    Convolution: convolution_launch,
}


class _Memory:
    """Pieces of one block of memory; what is given back is taken again."""

    def __init__(self) -> None:
        self.size = 0
        self._free: list[tuple[int, int]] = []

    def take(self, count: int) -> tuple[int, int]:
        """A piece of at least so many bytes."""
        count = -(-count // 256) * 256
        fits = [piece for piece in self._free if piece[1] >= count]
        if fits:
            found = min(fits, key=lambda piece: piece[1])
            self._free.remove(found)
            return found
        self.size += count
        return self.size - count, count

    def give(self, piece: tuple[int, int]) -> None:
        """Let a piece be taken again."""
        self._free.append(piece)


class Table:
    """The slots of one sequence of launches: addresses that are given, then pieces of memory.

    apart : whether work space lies apart from partial results, which are kept
    """

    def __init__(self, given: int, apart: bool = False) -> None:
        self.given, self.memory = given, _Memory()
        self.temporary = _Memory() if apart else self.memory
        self.launches: Launches = []
        self._offsets: list[tuple[bool, int]] = []  # whether it is work space that lies apart, and where in it
        self._pieces: dict[int, tuple[int, int]] = {}
        self._lent: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.given + len(self._offsets)

    def take(self, count: int) -> int:
        """A slot with a piece of so many bytes."""
        piece = self.memory.take(count)
        self._offsets.append((False, piece[0]))
        self._pieces[len(self) - 1] = piece
        return len(self) - 1

    def give(self, slot: int) -> None:
        """The piece of a slot, if it has one, may be taken again."""
        if slot in self._pieces:
            self.memory.give(self._pieces.pop(slot))

    def reserve(self, count: int, dtype: str) -> int:
        """A slot with work space for so many elements, until the launches that are added next."""
        piece = self.temporary.take(np.dtype(dtype).itemsize * count)
        self._lent.append(piece)
        self._offsets.append((self.temporary is not self.memory, piece[0]))
        return len(self) - 1

    def add(self, launches: Launches) -> None:
        """Launches, which follow those that are there; what comes after them may use their work space."""
        self.launches += launches
        while self._lent:
            self.temporary.give(self._lent.pop())

    def addresses(self, memory: int, temporary: int) -> list[int]:
        """Those of the pieces, given where the memory and the work space begin."""
        bases = memory, temporary
        return [bases[apart] + offset for apart, offset in self._offsets]

    def ready(self) -> list[Callable[[Sequence[int]], object]]:
        """The launches, ready to run."""
        return [_READY[type(one)](one) for one in self.launches]
