"""Affine layers whose weight matrix is a factorized tensor, alone or several with one factorization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from growarray.backend import Array, namespace
from growarray.contraction.checks import known_precision
from growarray.factorized.affine import FactorizedAffine
from growarray.factorized.linear_convert import Scheme, linear_layer_of, read_linears, split_shape
from growarray.factorized.settings import mode_sizes
from growarray.factorized.sub import SubFactorizedLinear
from growarray.factorized.tensor import FactorizedTensor


class FactorizedLinear(FactorizedAffine):
    """``y = x W^T + b`` over the last axis, ``W`` (out_features, in_features) read as a factorized tensor.

    Both features split into modes, and W is the tensor (*out_tensorized_features, *in_tensorized_features) with rows
    and columns flattened. With one mode each it is the product of two matrices, a low-rank W.

    in_tensorized_features, out_tensorized_features : sizes of the modes; a number stands for one mode
    factorization : ``'cp'``, ``'tucker'``, ``'tt'`` (a chain through the modes of the output, then the input),
        ``'ring'`` (the same chain, closed), ``'blocktt'`` (a chain of pairs, mode k of the output beside mode k of the
        input, as many for both), ``'dense'``, or a :class:`FactorizedTensor`, which is then held
    rank : ``'same'`` (as many parameters as the dense weight), a float (a fraction of them), an int, or a tuple
    implementation : ``'auto'`` (the path of least predicted time), ``'factorized'`` (the input goes through one factor
        after the other), ``'reconstructed'`` (the dense weight first), or any ``optimize`` that
        :func:`growarray.contraction.plan` takes
    n_layers : layers that share one factorization, in any format but ``'blocktt'``; ``layer(x, i)`` is one of them

    std : of the entries of W at the start. None is that of :class:`growarray.nn.Linear`, ``1 / sqrt(3 in_features)``,
        in every format; ``'original'`` is the ``sqrt(5 / in_features)`` of TensorLy-Torch, by its formulas except for
        ``'blocktt'``, where W has that size. The bias is drawn as that of ``Linear``.
    precision : on a GPU, as in :func:`growarray.contraction.plan`; a CPU multiplies float32 in full

    Raises ValueError: an option makes no sense; the message lists what does. ShapeError and PlanError are ValueErrors.

    >>> layer = FactorizedLinear((4, 8), (2, 5), factorization="tt", rank=3, rng=np.random.default_rng(0))
    >>> y, pullback = layer.vjp(np.ones((7, 32), dtype=np.float32))
    >>> y.shape, pullback(y).shape, layer.weight.factors["factor_1"].grad.shape
    ((7, 10), (7, 32), (3, 5, 3))
    """

    _sizes = ("in_tensorized_features", "out_tensorized_features")

    def __init__(
        self,
        in_tensorized_features: int | Sequence[int],
        out_tensorized_features: int | Sequence[int],
        bias: bool = True,
        factorization: str | FactorizedTensor = "cp",
        rank: Any = "same",
        implementation: Any = "auto",
        n_layers: int = 1,
        device: str | None = None,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
        std: float | str | None = None,
        precision: str | None = None,
    ) -> None:
        self.precision = known_precision(precision)
        self.in_tensorized_features = mode_sizes("FactorizedLinear", "in_tensorized_features", in_tensorized_features)
        self.out_tensorized_features = mode_sizes(
            "FactorizedLinear", "out_tensorized_features", out_tensorized_features
        )
        self._input = (math.prod(self.in_tensorized_features),)
        self._output = (math.prod(self.out_tensorized_features),)
        self._build(bias, factorization, rank, implementation, n_layers, device, dtype, rng, std)

    def _saved(self) -> dict[str, Any]:
        return {**super()._saved(), "precision": self.precision}

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self._input[0]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self._output[0]

    def _expected(self) -> str:
        return f"a last axis of {self.in_features} for modes {self.in_tensorized_features}; flatten the input"

    def _original_std(self) -> float:
        return math.sqrt(5.0 / self.in_features)

    def matrix(self, indices: Any = 0) -> Array:
        """The dense weight (out_features, in_features) of one layer."""
        dense = type(self.weight).of(self.weight.factors_vjp(self._layer_index(indices), drop=False)[0]).to_tensor()
        return namespace(dense).reshape(dense, (self.out_features, self.in_features))

    def get_linear(self, indices: Any) -> SubFactorizedLinear:
        """One layer by itself, which shares the parameters and their gradients."""
        if self.n_layers == 1:
            raise ValueError(
                "FactorizedLinear: holds one layer, which is the layer itself; get_linear is for joint ones"
            )
        return SubFactorizedLinear(self, self._layer_index(indices)[0])

    def __getitem__(self, indices: Any) -> SubFactorizedLinear:
        return self.get_linear(indices)

    @classmethod
    def from_linear(
        cls,
        linear: Any,
        rank: Any = "same",
        auto_tensorize: bool | None = None,
        n_tensorized_modes: int = 3,
        in_tensorized_features: int | Sequence[int] | None = None,
        out_tensorized_features: int | Sequence[int] | None = None,
        bias: bool = True,
        factorization: str = "CP",
        implementation: Any = "auto",
        decomposition_kwargs: Mapping[str, Any] | None = None,
        *,
        dtype: Any = None,
    ) -> Self:
        """The factorized form of an affine layer: ours, torch's, or anything with ``weight`` and perhaps ``bias``.

        auto_tensorize : find the modes by :func:`growarray.factorized.tensorize`; by default if none are given
        n_tensorized_modes : modes that it looks for; 1 makes W a product of two matrices, the ordinary low rank
        bias : False leaves the layer's bias out
        decomposition_kwargs : options of the decomposition, see :mod:`growarray.decompose`; CP of more than 256
            components takes 30 sweeps from one random start unless they say otherwise
        The arrays are copied. A rank above what the weight can use is lowered to it, with a warning if it is given
        as such, not as a share.

        >>> from growarray import nn
        >>> dense = nn.Linear(32, 30, rng=np.random.default_rng(0))
        >>> layer = FactorizedLinear.from_linear(dense, rank=0.5, factorization="tucker")
        >>> layer.in_tensorized_features, layer.out_tensorized_features, layer.rank
        ((2, 4, 4), (2, 3, 5), (2, 3, 4, 2, 3, 3))
        """
        dense = read_linears("from_linear", [linear], bias)
        features = (in_tensorized_features, out_tensorized_features)
        sides = split_shape("from_linear", cls._sizes, dense[0].shape, auto_tensorize, n_tensorized_modes, *features)
        scheme = Scheme(rank, factorization, decomposition_kwargs, dtype)
        return linear_layer_of(cls, dense, sides, scheme, implementation)

    @classmethod
    def from_linear_list(
        cls,
        linear_list: Sequence[Any],
        in_tensorized_features: int | Sequence[int] | None = None,
        out_tensorized_features: int | Sequence[int] | None = None,
        rank: Any = "same",
        bias: bool = True,
        factorization: str = "CP",
        implementation: Any = "auto",
        decomposition_kwargs: Mapping[str, Any] | None = None,
        *,
        n_tensorized_modes: int = 3,
        dtype: Any = None,
    ) -> Self:
        """Layers of one shape as a joint layer with one factorization; a missing bias is zero in a joint layer."""
        dense = read_linears("from_linear_list", linear_list, bias)
        features = (in_tensorized_features, out_tensorized_features)
        sides = split_shape("from_linear", cls._sizes, dense[0].shape, None, n_tensorized_modes, *features)
        scheme = Scheme(rank, factorization, decomposition_kwargs, dtype)
        return linear_layer_of(cls, dense, sides, scheme, implementation)
