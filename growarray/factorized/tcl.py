"""Tensor contraction: each mode of a tensor is projected by a matrix of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from growarray.backend import Array, library
from growarray.errors import ShapeError, shown
from growarray.factorized.affine import ContractedLayer
from growarray.factorized.parameters import checked_bias
from growarray.factorized.settings import flag, mode_sizes
from growarray.nn.linear import uniform
from growarray.nn.module import Parameter


class TCL(ContractedLayer):
    """Tensor contraction: every mode of an input (n, *input_shape) goes through a matrix, to (n, *rank). For two modes:

        n i0 i1, r0 i0, r1 i1 -> n r0 r1

    input_shape : sizes of the modes, the batch left out    rank : of the output's modes, a number for all of them
    verbose : 0; there is nothing to print in the original either
    Factors (``factor_0`` (r0, i0), …) and bias are drawn as those of :class:`growarray.nn.Linear`.

    Raises ValueError, ShapeError: an option makes no sense.

    Source: Kossaifi et al. 2017, Tensor contraction layers for parsimonious deep nets. Names and signature are those
    of TensorLy-Torch, which cannot make the layer with a bias, nor with a number as ``input_shape``.

    >>> layer = TCL((4, 6), (2, 3), rng=np.random.default_rng(0))
    >>> y, pullback = layer.vjp(np.ones((7, 4, 6), dtype=np.float32))
    >>> y.shape, pullback(y).shape, layer.factor_1.grad.shape
    ((7, 2, 3), (7, 4, 6), (3, 6))
    """

    _shown = "{self.input_shape}, {self.rank}"

    def __init__(
        self,
        input_shape: int | Sequence[int],
        rank: int | Sequence[int],
        verbose: int = 0,
        bias: bool = False,
        device: str | None = None,
        dtype: Any = None,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        if verbose:
            raise ValueError(f"TCL: verbose={shown(verbose)} prints nothing; leave it out, and print layer.plan(shape)")
        library(device)
        self.input_shape = self._input = self._modes = mode_sizes("TCL", "input_shape", input_shape)
        ranks = mode_sizes("TCL", "rank", rank)
        self.rank = self._output = ranks * len(self.input_shape) if np.ndim(rank) == 0 else ranks
        if len(self.rank) != len(self.input_shape):
            raise ShapeError(f"TCL: rank {self.rank} has {len(self.rank)} entries, input_shape {self.input_shape}")
        rng = np.random.default_rng() if rng is None else rng
        for i, (r, size) in enumerate(zip(self.rank, self.input_shape, strict=True)):
            setattr(self, f"factor_{i}", Parameter(uniform((r, size), 1.0 / math.sqrt(size), rng, dtype, device)))
        bound = 1.0 / math.sqrt(math.prod(self.input_shape))
        biased = flag("TCL", "bias", bias)
        self._hold(Parameter(uniform(self.rank, bound, rng, dtype, device)) if biased else None)

    def _saved(self) -> dict[str, Any]:
        return {"factors": self.factors, "bias": self.bias}

    @classmethod
    def _restored(cls, factors: list[Parameter], bias: Parameter | None) -> Self:
        ranks, sizes = zip(*(factor.shape for factor in factors), strict=True)
        layer = cls(sizes, ranks)
        vars(layer).update({f"factor_{i}": factor for i, factor in enumerate(factors)})
        layer.bias = checked_bias(bias, ranks)
        return layer

    @property
    def factors(self) -> list[Parameter]:
        """The matrix (r, size) of each mode."""
        return [getattr(self, f"factor_{i}") for i in range(len(self.input_shape))]

    @property
    def _equation(self) -> str:
        modes = range(len(self.input_shape))
        factors = ", ".join(f"r{k} i{k}" for k in modes)
        return f"n {' '.join(f'i{k}' for k in modes)}, {factors} -> n {' '.join(f'r{k}' for k in modes)}"

    def _operands(
        self, layer_index: tuple[int, ...], drop: bool = True
    ) -> tuple[Sequence[Array], Callable[[Sequence[Array]], None]]:
        def accumulate(gradients: Sequence[Array]) -> None:
            for factor, gradient in zip(self.factors, gradients, strict=True):
                factor.accumulate(gradient)

        return [factor.data for factor in self.factors], accumulate
