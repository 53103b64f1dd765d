"""The dense format: the tensor itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from growarray.backend import Array, namespace
from growarray.decompose.arguments import check_options
from growarray.decompose.inputs import check_tensor
from growarray.factorized.format import Arrays, Fit, TensorFormat
from growarray.factorized.formats.bases import check_mode, insertion, no_fixed_modes, parameter
from growarray.factorized.index import Item, take
from growarray.factorized.tensor import FactorizedTensor
from growarray.nn.module import Parameter


class _Format(TensorFormat):
    name = "Dense"

    def terms(self, modes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return (tuple(modes),)

    def rank_of(self, sizes: Sequence[int]) -> None:
        """None."""

    def factor_shapes(self, shape: Sequence[int], rank: Any) -> tuple[tuple[int, ...], ...]:
        return (tuple(shape),)

    def validate_rank(self, shape: Sequence[int], rank: Any, fixed_modes: Sequence[int] | None = None) -> None:
        no_fixed_modes(self.name, fixed_modes)

    def usable_rank(self, shape: Sequence[int], rank: Any) -> None:
        """None."""

    def fit(self, tensor: Array, rank: Any, /, **options: Any) -> tuple[Arrays, Fit]:
        """A copy of the tensor; there are no options."""
        check_options(options, (), f"{self.name}, which is not decomposed")
        shape, xp = check_tensor(tensor, self.name), namespace(tensor)
        if not bool(xp.all(xp.isfinite(tensor))):
            raise ValueError(f"{self.name}: the tensor of shape {shape} holds NaN or infinite values; clean it first")
        return (xp.asarray(tensor, copy=True),), Fit(0.0)

    def select(self, arrays: Sequence[Array], items: Sequence[Item]) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
        """The selected entries of the tensor."""
        (tensor,) = arrays
        backs, axis = [], 0
        for item in items:
            tensor, back = take(tensor, axis, item)
            backs.append(back)
            axis += isinstance(item, slice)

        def pullback(d_factors: Arrays) -> Arrays:
            (gradient,) = d_factors
            for back in reversed(backs):
                gradient = back(gradient)
            return (gradient,)

        return (tensor,), pullback

    def factor_std(self, order: int, rank: Any, std: float) -> tuple[float | None, ...]:
        """Each entry is drawn by itself."""
        return (std,)


class DenseTensor(FactorizedTensor):
    """A tensor that is not factorized, so that dense and factorized layers have one interface. Its rank is None.

    >>> import numpy as np
    >>> DenseTensor(np.ones((2, 3)))[1].to_tensor().tolist()
    [1.0, 1.0, 1.0]
    """

    format = _Format()

    def __init__(self, tensor: Array | Parameter) -> None:
        self.tensor = parameter(tensor)

    @classmethod
    def of(cls, arrays: Sequence[Array | Parameter]) -> Self:
        """A tensor that holds the only array."""
        (tensor,) = arrays
        return cls(tensor)

    def all_factors(self) -> tuple[Parameter, ...]:
        """The tensor."""
        return (self.tensor,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each mode."""
        return self.tensor.shape

    @property
    def rank(self) -> None:
        """None."""

    def to_tensor(self) -> Array:
        """A copy of the tensor."""
        return namespace(self.tensor.data).asarray(self.tensor.data, copy=True)

    def transduct(self, new_size: int, mode: int, position: int | None = None) -> tuple[Parameter, ...]:
        """Insert a mode; the whole tensor is made for it, so its gradient and optimizer state are dropped."""
        check_mode("DenseTensor", new_size, mode, self.order, position)
        data, xp = self.tensor.data, namespace(self.tensor.data)
        along = xp.reshape(insertion(new_size, position, like=data), (new_size, *(1,) * (self.order - mode)))
        self.tensor = Parameter(xp.expand_dims(data, axis=mode) * along)
        return (self.tensor,)
