"""Tensor regression: an affine map from a tensor to a tensor, whose weight is a factorized tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from growarray.backend import namespace
from growarray.contraction.checks import is_whole
from growarray.errors import ShapeError, shown
from growarray.factorized.affine import FactorizedAffine
from growarray.factorized.linear_convert import read_linear
from growarray.factorized.parameters import real_array
from growarray.factorized.settings import mode_sizes, plain
from growarray.factorized.tensor import FactorizedTensor


class TRL(FactorizedAffine):
    """Tensor regression: the inner product of an input (n, *input_shape) with a factorized weight, plus a bias.

    The weight has the modes (*input_shape, *output_shape), and the output the shape (n, *output_shape). For CP:

        n i0 i1, r, i0 r, i1 r, o0 r -> n o0

    input_shape, output_shape : sizes of the modes, the batch left out; a number stands for one mode
    factorization, rank, implementation, n_layers, std : as for :class:`FactorizedLinear`, so a weight starts with the
        size of a dense one; ``std='original'`` draws entries of about 1, as TensorLy-Torch does
    verbose : 0; there is nothing to print in the original either

    Raises ValueError: an option makes no sense.

    Source: Kossaifi et al. 2020, Tensor regression networks. Names and signature are those of TensorLy-Torch, which
    reconstructs the weight at each call, and whose joint layers (``n_layers`` above 1) cannot be called; here
    ``layer(x, i)`` is one of them.

    >>> layer = TRL((4, 3), (5,), bias=True, factorization="tucker", rank=(2, 2, 3), rng=np.random.default_rng(0))
    >>> y, pullback = layer.vjp(np.ones((7, 4, 3), dtype=np.float32))
    >>> y.shape, pullback(y).shape, layer.weight.core.grad.shape
    ((7, 5), (7, 4, 3), (2, 2, 3))
    """

    _sizes = ("input_shape", "output_shape")
    _input_first = True

    def __init__(
        self,
        input_shape: int | Sequence[int],
        output_shape: int | Sequence[int],
        bias: bool = False,
        verbose: int = 0,
        factorization: str | FactorizedTensor = "cp",
        rank: Any = "same",
        n_layers: int = 1,
        device: str | None = None,
        dtype: Any = None,
        *,
        implementation: Any = "auto",
        rng: np.random.Generator | None = None,
        std: float | str | None = None,
    ) -> None:
        if verbose:
            raise ValueError(f"TRL: verbose={shown(verbose)} prints nothing; leave it out, and print layer.plan(shape)")
        self.input_shape = self._input = mode_sizes("TRL", "input_shape", input_shape)
        self.output_shape = self._output = mode_sizes("TRL", "output_shape", output_shape)
        self._build(bias, factorization, rank, implementation, n_layers, device, dtype, rng, std)

    def _original_std(self) -> float:
        return 1.0

    def init_from_linear(
        self, linear: Any, unsqueezed_modes: Sequence[int] | None = None, **decomposition: Any
    ) -> None:
        """Take over an affine layer of the flattened input: the decomposition of its weight, and its bias.

        unsqueezed_modes : modes of the input that the affine layer does not have, since their mean was taken before
            it; the weight starts with that mean, from which it can learn. Mode 0, the channels, is none of them.
        decomposition : options of the format's decomposition

        The original has ``unsqueezed_modes`` for Tucker of rank 1 in them alone; here any format and rank takes them.

        Raises TypeError, ShapeError, ValueError: the layer does not fit, or has a bias that this one has no place for.

        >>> from growarray import nn
        >>> pooled = nn.Linear(4, 2, bias=False, rng=np.random.default_rng(0), dtype=np.float64)
        >>> layer = TRL((4, 3), 2, factorization="tt", rank=4, dtype=np.float64)
        >>> layer.init_from_linear(pooled, unsqueezed_modes=[1])
        >>> x = np.random.default_rng(1).standard_normal((5, 4, 3))
        >>> bool(np.allclose(layer(x), pooled(x.mean(axis=2))))
        True
        """
        if self.n_layers > 1:
            raise ValueError(f"TRL.init_from_linear: the layer holds {self.n_layers} layers, expected one")
        dense = read_linear("TRL.init_from_linear", linear)
        new = self._new_modes(unsqueezed_modes)
        sizes = [1 if mode in new else size for mode, size in enumerate(self.input_shape)]
        expected = (math.prod(self.output_shape), math.prod(sizes))
        if tuple(dense.weight.shape) != expected:
            raise ShapeError(
                f"TRL.init_from_linear: the weight has shape {tuple(dense.weight.shape)}, expected {expected}"
            )
        if dense.bias is not None and self.bias is None:
            raise ValueError("TRL.init_from_linear: the layer has a bias; make the TRL with bias=True")
        xp, shape = namespace(dense.weight), (*self.input_shape, *self.output_shape)
        weight = xp.reshape(xp.matrix_transpose(dense.weight), (*sizes, *self.output_shape))
        mean = weight / math.prod(self.input_shape[mode] for mode in new)
        self.weight.init_from_tensor(xp.asarray(xp.broadcast_to(mean, shape), copy=True), **decomposition)
        if self.bias is not None:
            xp, old = namespace(self.bias.data), self.bias.data
            new_bias = xp.zeros_like(old) if dense.bias is None else real_array("TRL: bias", dense.bias, old)
            self.bias.data, self.bias.grad, self.bias.slots = xp.reshape(new_bias, self.output_shape), None, {}

    def _new_modes(self, modes: Any) -> set[int]:
        """Modes of the input but the first, as a user names them."""
        named = [] if modes is None else plain(modes)
        if not isinstance(named, list | tuple) or not all(is_whole(m) and 0 < m < len(self.input_shape) for m in named):
            raise ValueError(
                f"TRL.init_from_linear: unsqueezed_modes={shown(modes)}, expected modes of the input from 1 to "
                f"{len(self.input_shape) - 1}; mode 0 are the channels"
            )
        return set(map(int, named))
