"""The tensor train of a matrix: a chain of cores, each with one mode of the rows and one of the columns.

m0 … of the rows, mk … of the columns · b1, b2, … bonds: ``m0 mk b1, b1 m1 mk+1 b2, … -> m0 m1 … mk mk+1 …``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from growarray.backend import Array, namespace
from growarray.errors import ShapeError
from growarray.factorized.format import Arrays, Fit
from growarray.factorized.formats.bases import ChainFormat, ChainTensor, no_fixed_modes
from growarray.factorized.formats.tt import TTTensor
from growarray.factorized.index import Item, take
from growarray.nn.module import Parameter


class _Format(ChainFormat):
    name = "BlockTT"
    takes_integers = False
    width = 2

    def grouped(self, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The values of the first half beside those of the second."""
        half, odd = divmod(len(values), 2)
        if odd or not half:
            raise ShapeError(
                f"BlockTT: found {len(values)} modes, expected an even number: as many for the rows as for the columns"
            )
        return list(zip(values[:half], values[half:], strict=True))

    def _products(self, shape: Sequence[int]) -> list[int]:
        """The shape of the train over the pairs of modes."""
        return list(map(math.prod, self.grouped(shape)))

    def validate_rank(
        self, shape: Sequence[int], rank: Any, fixed_modes: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """One number for each bond, and the two ends; those of a tensor train over the pairs of modes."""
        no_fixed_modes(self.name, fixed_modes)
        return TTTensor.format.validate_rank(self._products(shape), rank)

    def usable_rank(self, shape: Sequence[int], rank: Any) -> tuple[int, ...]:
        """That of a tensor train over the pairs of modes."""
        return TTTensor.format.usable_rank(self._products(shape), rank)

    def fit(self, tensor: Array, rank: Any, /, **options: Any) -> tuple[Arrays, Fit]:
        """TT-SVD over the pairs of modes, :func:`growarray.decompose.tt.tensor_train`."""
        xp, shape = namespace(tensor), tuple(tensor.shape)
        paired = xp.permute_dims(tensor, tuple(axis for pair in self.grouped(range(tensor.ndim)) for axis in pair))
        cores, fit = TTTensor.format.fit(xp.reshape(paired, tuple(self._products(shape))), rank, **options)
        shapes = self.factor_shapes(shape, (1, *(core.shape[2] for core in cores)))
        return tuple(xp.reshape(core, sizes) for core, sizes in zip(cores, shapes, strict=True)), fit

    def select(self, arrays: Sequence[Array], items: Sequence[Item]) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
        """Slices of the cores; a single entry would leave a core without its pair, and raises NotImplementedError."""
        if not all(isinstance(item, slice) for item in items):
            raise NotImplementedError("BlockTT: an integer index leaves a mode without its pair; index to_tensor()")
        slices = []
        for core, (row, column) in zip(arrays, self.grouped(items), strict=True):
            rows, row_back = take(core, 1, row)
            slices.append((*take(rows, 2, column), row_back))

        def pullback(d_factors: Arrays) -> Arrays:
            return tuple(first(second(d)) for d, (_, second, first) in zip(d_factors, slices, strict=True))

        return tuple(core for core, _, _ in slices), pullback


class BlockTTTensor(ChainTensor):
    """One core (r_i, row size, column size, r_{i+1}) for each pair of modes; the ranks at both ends are 1.

    A tensor of 2 k modes, those of the rows first, so that mode i stands beside mode k + i. Indices are slices only.
    Source: Oseledets, "Approximation of 2^d x 2^d matrices using tensor decomposition", 2010; TensorLy-Torch's BlockTT.

    >>> import numpy as np
    >>> t = BlockTTTensor([np.ones((1, 2, 3, 2)), np.ones((2, 4, 5, 1))])
    >>> t.shape, t.rank, t.to_tensor()[0, 0, 0].tolist()
    ((2, 4, 3, 5), (1, 2, 1), [2.0, 2.0, 2.0, 2.0, 2.0])
    """

    format = _Format()

    def transduct(self, new_size: int, mode: int, position: int | None = None) -> tuple[Parameter, ...]:
        """Refused: one more mode would have no pair."""
        raise NotImplementedError("BlockTT: transduct would make a mode without its pair; use CP, Tucker or TT")
