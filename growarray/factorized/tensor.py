"""Base of factorized tensors: a tensor held as the parameters of a small contraction.

A format, see ``format.py``, says which factors there are and how they are contracted; everything else follows here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np

from growarray.backend import Array, asarray, library, namespace, target_of, to_device
from growarray.contraction import Plan
from growarray.decompose.arguments import check_sizes
from growarray.errors import ShapeError, shown
from growarray.factorized.contracted import planned
from growarray.factorized.format import Arrays, TensorFormat, warn_lowered
from growarray.factorized.index import full_index
from growarray.factorized.initial import drawn_factors, normal_factors
from growarray.factorized.parameters import check_size, real_array
from growarray.factorized.ranks import RankMask, masked_factors
from growarray.nn.linear import real_dtype
from growarray.nn.owner import Owner
from growarray.nn.parameter import Parameter

_FORMATS: dict[str, type[FactorizedTensor]] = {}
_DEFAULT = "CP"

_data = operator.attrgetter("data")


def kinds() -> list[type[FactorizedTensor]]:
    """The class of each format, sorted by name."""
    return sorted(set(_FORMATS.values()), key=lambda kind: kind.name.lower())


def formats() -> tuple[str, ...]:
    """Names of the formats that exist.

    >>> formats()
    ('BlockTT', 'CP', 'Dense', 'TR', 'TT', 'Tucker')
    """
    return tuple(kind.name for kind in kinds())


class FactorizedTensor(Owner):
    """A tensor in a factorized format. Make one with :meth:`new`, :meth:`from_tensor`, or its format's class.

    shape, rank : of the tensor and of its factorization    name : of the format
    Parameters carry the names that TensorLy-Torch gives them. ``tensor[index]`` takes integers, slices and ``...`` and
    gives a tensor of the same format with copies, or an array without modes if every mode gets an integer.

    >>> import numpy as np
    >>> t = FactorizedTensor.new((6, 4, 3), rank=2, factorization="CP", rng=np.random.default_rng(0))
    >>> t, t[1, ..., :2].shape, t.number_of_parameters()
    (CPTensor(shape=(6, 4, 3), rank=2), (4, 2), 28)
    """

    _shown = "shape={self.shape}, rank={self.rank}"

    name: ClassVar[str]
    format: ClassVar[TensorFormat]
    dropout: RankMask | None = None
    lasso_weights: Sequence[Parameter] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "format" in vars(cls):
            cls.name = cls.format.name
            _FORMATS.update(dict.fromkeys(map(str.lower, (cls.name, *cls.format.aliases)), cls))

    @staticmethod
    def kind(factorization: Any) -> type[FactorizedTensor]:
        """The class of a format, by its name in any case; ValueError lists those that exist."""
        if not isinstance(factorization, str) or factorization.lower() not in _FORMATS:
            raise ValueError(f"unknown factorization {shown(factorization)}; expected one of {', '.join(formats())}")
        return _FORMATS[factorization.lower()]

    @classmethod
    def _format(cls, factorization: str | None) -> type[FactorizedTensor]:
        """The class of a format; without a name that of the class itself, CP of the base."""
        if factorization is None:
            return FactorizedTensor.kind(_DEFAULT) if cls is FactorizedTensor else cls
        kind = FactorizedTensor.kind(factorization)
        if cls is not FactorizedTensor and not issubclass(cls, kind):
            raise ValueError(
                f"{cls.__name__} is not {shown(factorization)}; leave factorization out, or use FactorizedTensor"
            )
        return kind if cls is FactorizedTensor else cls

    @classmethod
    def new(
        cls,
        shape: Sequence[int],
        rank: Any = "same",
        factorization: str | None = None,
        *,
        fixed_rank_modes: Sequence[int] | None = None,
        std: float | None = 0.02,
        rng: np.random.Generator | None = None,
        dtype: Any = None,
        device: str | None = None,
    ) -> FactorizedTensor:
        """A random tensor whose entries have standard deviation ``std``, see :meth:`draw_`; factors of zeros for None.

        factorization : name of a format; by default that of the class it is called on, CP on ``FactorizedTensor``
        rank : ``'same'`` (as many parameters as the dense tensor), a float (that fraction of them), an int or a tuple
        fixed_rank_modes : modes of a Tucker tensor that keep their size as rank    dtype : float32 by default

        Raises TypeError, ShapeError, ValueError: the format, or the rank in it, makes no sense; the rank makes over
        1000 times the parameters of the dense tensor; fixed modes for another format than Tucker; the dtype is not real
        floating.
        """
        kind = cls._format(factorization)
        sizes = check_sizes(shape, "FactorizedTensor.new")
        library(device)
        rank = kind.format.validate_rank(sizes, rank, fixed_rank_modes)
        dtype = real_dtype(dtype)
        shapes = kind.format.factor_shapes(sizes, rank)
        check_size(sizes, rank, shapes, kind.format.usable_rank(sizes, rank))
        tensor = kind.of([Parameter(to_device(np.zeros(s, dtype), device)) for s in shapes])
        return tensor if std is None else tensor.draw_(std, rng)

    @classmethod
    def from_tensor(
        cls, tensor: Any, rank: Any = "same", factorization: str | None = None, *,
        fixed_rank_modes: Sequence[int] | None = None, **options: Any,
    ) -> FactorizedTensor:  # fmt: skip
        """The decomposition of a dense tensor; options are those of the format's decomposition.

        A rank above what the tensor can use is lowered to it, with a warning if it is given as such.

        Raises TypeError, ShapeError, ValueError: as :meth:`new`; the tensor is not real floating, not finite or without
        entries; an option is unknown.
        """
        kind, dense = cls._format(factorization), asarray(tensor)
        valid = kind.format.validate_rank(check_sizes(dense.shape, "from_tensor"), rank, fixed_rank_modes)
        factorized = kind.of(kind.format.fit(dense, valid, **options)[0])
        warn_lowered("from_tensor", rank, valid, factorized.rank, stacklevel=2)
        return factorized

    def init_from_tensor(self, tensor: Any, **options: Any) -> Self:
        """Take over the decomposition of ``tensor`` at this tensor's rank, in its dtype and on its device.

        The parameters stay, without their gradients and optimizer state; a rank above what is of use is lowered.
        """
        first = self.all_factors()[0].data
        dense = real_array("init_from_tensor: the tensor", tensor, first)
        if tuple(dense.shape) != self.shape:
            raise ShapeError(f"init_from_tensor: the tensor has shape {tuple(dense.shape)}, expected {self.shape}")
        for factor, array in zip(self.all_factors(), self.format.fit(dense, self.rank, **options)[0], strict=True):
            factor.data, factor.grad, factor.slots = asarray(array, like=first, dtype=first.dtype), None, {}
        self._reset_lasso()
        return self

    def draw_(self, std: float = 0.02, rng: np.random.Generator | None = None) -> Self:
        """Draw the factors so that the entries of the tensor have mean zero and standard deviation ``std``.

        One factor is small, of half that size, so that the tensor trains about as fast as a dense one.
        """
        return self._fill(drawn_factors(f"{type(self).__name__}.draw_", self.format, self.shape, self.rank, std, rng))

    def normal_(self, mean: float = 0.0, std: float = 1.0, rng: np.random.Generator | None = None) -> Self:
        """Draw the factors as the original does: normal, equal, and in a tensor train smaller than ``std`` asks for."""
        where = f"{type(self).__name__}.normal_"
        if mean != 0.0:
            raise ValueError(f"{where}: mean is {mean}, only a mean of 0 can be drawn in factors")
        return self._fill(normal_factors(where, self.format, self.shape, self.rank, std, rng))

    def _fill(self, arrays: Sequence[np.ndarray]) -> Self:
        for factor, host in zip(self.all_factors(), arrays, strict=True):
            factor.data = asarray(host, like=factor.data, dtype=factor.data.dtype)
        self._reset_lasso()
        return self

    @classmethod
    def of(cls, arrays: Sequence[Array | Parameter]) -> Self:
        """A tensor that holds these arrays, in the order of :meth:`all_factors`."""
        raise NotImplementedError(f"{cls.__name__} must define of(arrays)")

    def all_factors(self) -> tuple[Parameter, ...]:
        """The parameters, in the order in which they are contracted."""
        raise NotImplementedError(f"{type(self).__name__} must define all_factors()")

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each mode."""
        raise NotImplementedError(f"{type(self).__name__} must define shape")

    @property
    def rank(self) -> Any:
        """Rank of the factorization: None, a number, or one for each mode or bond."""
        raise NotImplementedError(f"{type(self).__name__} must define rank")

    def transduct(self, new_size: int, mode: int, position: int | None = None) -> tuple[Parameter, ...]:
        """Insert a mode of ``new_size`` entries before ``mode``, in place.

        The tensor is repeated along it; with ``position`` it is there only, and the rest is zero.
        Returns the parameters made for it; the others keep their gradients and optimizer state.
        """
        raise NotImplementedError(f"{type(self).__name__} must define transduct(new_size, mode)")

    @property
    def order(self) -> int:
        """Number of modes."""
        return len(self.shape)

    @property
    def ndim(self) -> int:
        """Number of modes, under NumPy's name."""
        return self.order

    @property
    def numel(self) -> int:
        """Entries of the tensor, as if it were dense; :meth:`number_of_parameters` counts what is held."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        """Dtype of the parameters."""
        return self.all_factors()[0].data.dtype

    def _saved(self) -> dict[str, Any]:
        return {"factors": self.all_factors(), "dropout": self.dropout, "lasso_weights": list(self.lasso_weights)}

    @classmethod
    def _restored(cls, factors: Sequence[Parameter], dropout: RankMask | None, lasso_weights: Any) -> Self:
        tensor = cls.of(factors)
        if lasso_weights and [w.shape for w in lasso_weights] != [
            (size,) for size in tensor.format.sizes_of(tensor.shape, tensor.rank)
        ]:
            raise ShapeError(f"{cls.__name__}: the lasso weights do not fit the ranks {tensor.rank}")
        if dropout is not None:
            tensor.dropout = dropout
        if lasso_weights:
            tensor.lasso_weights = lasso_weights
        return tensor

    def arrays(self) -> Arrays:
        """Data of the factors, with the lasso weights multiplied in if there are some."""
        return self._scaled(drop=False)[0]

    def _reset_lasso(self) -> None:
        for weight in self.lasso_weights:
            weight.data, weight.grad, weight.slots = namespace(weight.data).ones_like(weight.data), None, {}

    def factors_vjp(
        self, layer_index: Sequence[int] = (), *, drop: bool = True
    ) -> tuple[Arrays, Callable[[Sequence[Any]], Sequence[Any]]]:
        """What is contracted: the factors at one entry of each of the first modes, and the way back to their gradients.

        The lasso weights are multiplied in, and so is a mask of :func:`growarray.factorized.tensor_dropout`, unless
        ``drop`` is False. The way back adds to the gradients of the lasso weights; without ``layer_index`` a
        gradient that is None stays None.
        """
        arrays, back = self._scaled(drop)
        if not layer_index:
            return arrays, back
        chosen, choice = self.format.select(
            arrays, (*layer_index, *(slice(0, n, 1) for n in self.shape[len(layer_index) :]))
        )
        return chosen, lambda gradients: back(choice(tuple(gradients)))

    def _operands_vjp(
        self, layer_index: Sequence[int] = (), *, drop: bool = True
    ) -> tuple[list[Array], Callable[[Sequence[Array]], None]]:
        """:meth:`factors_vjp` as the format names modes; the way back adds to the gradients of the parameters."""
        arrays, back = self.factors_vjp(layer_index, drop=drop)

        def accumulate(gradients: Sequence[Array]) -> None:
            shaped = [namespace(d).reshape(d, a.shape) for d, a in zip(gradients, arrays, strict=True)]
            for factor, gradient in zip(self.all_factors(), back(tuple(shaped)), strict=True):
                factor.accumulate(gradient)

        return self.format.operands(arrays), accumulate

    def _scaled(self, drop: bool) -> tuple[Arrays, Callable[[Sequence[Any]], Sequence[Any]]]:
        data = tuple(map(_data, self.all_factors()))
        if self.dropout is None and not self.lasso_weights:
            return data, lambda gradients: gradients
        axes = self.format.rank_axes(self.order)
        masks: list[Any] = [None] * len(axes)
        if drop and self.dropout is not None:
            drawn = self.dropout.draw(self.format.sizes_of(self.shape, self.rank), self.training)
            masks = [None if m is None else asarray(m, like=data[0], dtype=data[0].dtype) for m in drawn]
        return masked_factors(data, axes, masks, self.lasso_weights)

    def to_tensor(self) -> Array:
        """The dense tensor."""
        return self._plan()(*self.format.operands(self.arrays()))

    def tensor_vjp(self) -> tuple[Array, Callable[[Array], None]]:
        """The dense tensor and the way back: ``pullback(d_tensor)`` adds to the gradients of the parameters.

        Tensor dropout is active here, in training mode; :meth:`to_tensor` never drops.

        >>> import numpy as np
        >>> t = FactorizedTensor.new((4, 3, 2), rank=2, factorization="TT", rng=np.random.default_rng(0))
        >>> value, pullback = t.tensor_vjp()
        >>> pullback(value), t.factors["factor_1"].grad.shape
        (None, (2, 3, 2))
        """
        operands, accumulate = self._operands_vjp()
        value, back = self._plan().vjp(*operands)
        return value, lambda d_tensor: accumulate(back(d_tensor))

    def _plan(self) -> Plan:
        factors = self.all_factors()
        shapes = tuple(self.format.operand_shape(f.shape, i, len(factors)) for i, f in enumerate(factors))
        return planned(_tensor_equation(self.name, self.order), shapes, *target_of(factors[0].data))

    def __getitem__(self, index: Any) -> Any:
        items = full_index(index, self.shape)
        if all(isinstance(item, int) for item in items):
            last = items[-1]
            items = (*items[:-1], slice(last, last + 1))  # type: ignore[operator]
            value = type(self).of(self.format.select(self.arrays(), items)[0]).to_tensor()
            return namespace(value).reshape(value, ())
        chosen = self.format.select(self.arrays(), items)[0]
        return type(self).of([namespace(a).asarray(a, copy=True) for a in chosen])


@lru_cache
def _tensor_equation(name: str, order: int) -> str:
    modes = ["m"] if order == 1 else [f"m{i}" for i in range(order)]
    return (
        f"{', '.join(' '.join(term) for term in FactorizedTensor.kind(name).format.terms(modes))} -> {' '.join(modes)}"
    )
