"""Base of factorized tensors: a tensor held as the parameters of a small contraction.

A format says which parameters there are and how they are contracted; everything else follows. Modes are named by the
caller, ranks by the format, so that the same terms make the tensor here and a convolution in ``conv.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from growarray.backend import Array, asarray, is_numpy, library, namespace, to_device
from growarray.contraction import Plan, plan
from growarray.decompose.arguments import check_sizes
from growarray.errors import ShapeError, shown
from growarray.factorized.fit import Fit, warn_lowered
from growarray.factorized.index import Item, full_index
from growarray.factorized.initial import drawn_parts, normal_parts
from growarray.factorized.parts import check_size, real_array, trained_dtype
from growarray.factorized.ranks import RankAxes, masked_parts
from growarray.nn.module import Module, Parameter

if TYPE_CHECKING:
    from growarray.factorized.dropout import TensorDropout

__all__ = ["FactorizedTensor", "formats", "run_contraction", "target_of"]

Arrays = tuple[Array, ...]
Terms = tuple[tuple[str, ...], ...]
_FORMATS: dict[str, type[FactorizedTensor]] = {}


def formats() -> tuple[str, ...]:
    """Names of the formats that exist.

    >>> formats()
    ('BlockTT', 'CP', 'Dense', 'TT', 'Tucker')
    """
    return tuple(sorted((kind.name for kind in _FORMATS.values()), key=str.lower))


def run_contraction(equation: str, arrays: Sequence[Array]) -> tuple[Array, Callable[[Array], Arrays]]:
    """Value of an equation of :mod:`growarray.contraction`, and the way back to every array.

    >>> import numpy as np
    >>> y, pullback = run_contraction("a r, r -> a", [np.ones((2, 3)), np.ones(3)])
    >>> y.tolist(), [d.shape for d in pullback(y)]
    ([3.0, 3.0], [(2, 3), (3,)])
    """
    return _planned(equation, tuple(tuple(a.shape) for a in arrays), *target_of(arrays[0])).vjp(*arrays)


@lru_cache(maxsize=512)
def _planned(equation: str, shapes: tuple[tuple[int, ...], ...], dtype: str, device: str) -> Plan:
    return plan(equation, *shapes, dtype=dtype, device=device)


def target_of(array: Array) -> tuple[str, str]:
    """Dtype and device of an array as a plan takes them; NumPy's letter for a dtype, its name takes 5 us to make.

    >>> target_of(np.ones(2))
    ('d', 'cpu')
    """
    if is_numpy(array):
        return array.dtype.char, "cpu"
    return str(array.dtype).rpartition(".")[2], "gpu"


class FactorizedTensor(Module):
    """A tensor in a factorized format. Make one with :meth:`new`, :meth:`from_tensor`, or its format's class.

    shape, rank : of the tensor and of its factorization    name : of the format
    Parameters carry the names that TensorLy-Torch gives them. ``tensor[index]`` takes integers, slices and ``...`` and
    gives a tensor of the same format with copies, or an array without modes where every mode is an integer.

    Examples
    --------
    >>> import numpy as np
    >>> t = FactorizedTensor.new((6, 4, 3), rank=2, factorization="CP", rng=np.random.default_rng(0))
    >>> t, t[1, ..., :2].shape, t.number_of_parameters()
    (CPTensor(shape=(6, 4, 3), rank=2), (4, 2), 28)
    """

    name: ClassVar[str]
    output_last: ClassVar[bool] = False  # whether a convolution keeps its output channels as the last mode
    dropout: TensorDropout | None = None
    lasso_weights: Sequence[Parameter] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in vars(cls):
            _FORMATS[cls.name.lower()] = cls

    # What a format defines.

    @classmethod
    def of(cls, arrays: Sequence[Array | Parameter]) -> Self:
        """A tensor that holds these arrays, in the order of :meth:`parts`."""
        raise NotImplementedError(f"{cls.__name__} must define of(arrays)")

    def parts(self) -> tuple[Parameter, ...]:
        """The parameters, in the order in which they are contracted."""
        raise NotImplementedError(f"{type(self).__name__} must define parts()")

    @classmethod
    def terms(cls, modes: Sequence[str]) -> Terms:
        """For each part the names of its modes, given those of the tensor; ranks have names of the format's own."""
        raise NotImplementedError(f"{cls.__name__} must define terms(modes)")

    @classmethod
    def rank_axes(cls, order: int) -> RankAxes:
        """For each rank every (part, axis) where it stands; what scales the rank is multiplied in at the first."""
        return ()

    @classmethod
    def part_shapes(cls, shape: Sequence[int], rank: Any) -> tuple[tuple[int, ...], ...]:
        """Shape of each part for a validated rank."""
        raise NotImplementedError(f"{cls.__name__} must define part_shapes(shape, rank)")

    @classmethod
    def validate_rank(cls, shape: Sequence[int], rank: Any, fixed_modes: Sequence[int] | None = None) -> Any:
        """The rank that ``'same'``, a fraction of the parameters, an int or a tuple stands for.

        fixed_modes : modes that keep their size as rank, in the Tucker format; the others raise ValueError
        """
        raise NotImplementedError(f"{cls.__name__} must define validate_rank(shape, rank)")

    @classmethod
    def usable_rank(cls, shape: Sequence[int], rank: Any) -> Any:
        """A validated rank, lowered to what a tensor of this shape can use."""
        return rank

    @classmethod
    def fit(cls, tensor: Array, rank: Any, /, **options: Any) -> tuple[Arrays, Fit]:
        """The parts of at most this rank that approximate ``tensor``, and how it went; options of the decomposition."""
        raise NotImplementedError(f"{cls.__name__} must define fit(tensor, rank)")

    @classmethod
    def select(cls, arrays: Sequence[Array], items: Sequence[Item]) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
        """Parts of the tensor at one item for each mode, at least one of them a slice, and the way back."""
        raise NotImplementedError(f"{cls.__name__} must define select(arrays, items)")

    def part_std(self, std: float) -> tuple[float | None, ...]:
        """Standard deviation of each part that gives the tensor's entries ``std``; None for a part of ones."""
        raise NotImplementedError(f"{type(self).__name__} must define part_std(std)")

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

        The tensor is repeated along it; with ``position`` it stands there only, and the rest is zero.
        Returns the parameters made for it; the others keep their gradients and optimizer state.
        """
        raise NotImplementedError(f"{type(self).__name__} must define transduct(new_size, mode)")

    # What follows.

    @staticmethod
    def kind(factorization: Any) -> type[FactorizedTensor]:
        """The class of a format, by its name in any case; ValueError lists those that exist."""
        if not isinstance(factorization, str) or factorization.lower() not in _FORMATS:
            raise ValueError(f"unknown factorization {shown(factorization)}; expected one of {', '.join(formats())}")
        return _FORMATS[factorization.lower()]

    @classmethod
    def _format(cls, factorization: str | None) -> type[FactorizedTensor]:
        """The class of a format; without a name that of the class itself, CP of the base."""
        own = cls if hasattr(cls, "name") else None
        kind = own or FactorizedTensor.kind("CP") if factorization is None else FactorizedTensor.kind(factorization)
        if own is not None and not issubclass(own, kind):
            raise ValueError(
                f"{cls.__name__} is not {shown(factorization)}; leave factorization out, or use FactorizedTensor"
            )
        return own or kind

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
        """A random tensor whose entries have standard deviation ``std``, see :meth:`draw_`; parts of zeros for None.

        factorization : name of a format; by default that of the class it is called on, CP on ``FactorizedTensor``
        rank : ``'same'`` (as many parameters as the dense tensor), a float (that fraction of them), an int or a tuple
        fixed_rank_modes : modes of a Tucker tensor that keep their size as rank    dtype : float32 by default

        Raises
        ------
        TypeError, ShapeError, ValueError
            The format, or the rank in it, makes no sense; the rank makes over 1000 times the parameters of the dense
            tensor; fixed modes for another format than Tucker; the dtype is not real floating.
        """
        kind = cls._format(factorization)
        sizes = check_sizes(shape, "FactorizedTensor.new")
        library(device)
        rank = kind.validate_rank(sizes, rank, fixed_rank_modes)
        dtype = trained_dtype(dtype)
        shapes = kind.part_shapes(sizes, rank)
        check_size(sizes, rank, shapes, kind.usable_rank(sizes, rank))
        tensor = kind.of([to_device(np.zeros(s, dtype), device) for s in shapes])
        return tensor if std is None else tensor.draw_(std, rng)

    @classmethod
    def from_tensor(
        cls, tensor: Any, rank: Any = "same", factorization: str | None = None, *,
        fixed_rank_modes: Sequence[int] | None = None, **options: Any,
    ) -> FactorizedTensor:  # fmt: skip
        """The decomposition of a dense tensor; options are those of the format's decomposition.

        A rank above what the tensor can use is lowered to it, with a warning where it is given as such.

        Raises
        ------
        TypeError, ShapeError, ValueError
            As :meth:`new`; the tensor is not real floating, not finite or without entries; an option is unknown.
        """
        kind, dense = cls._format(factorization), asarray(tensor)
        valid = kind.validate_rank(check_sizes(dense.shape, "from_tensor"), rank, fixed_rank_modes)
        found = kind.of(kind.fit(dense, valid, **options)[0])
        warn_lowered("from_tensor", rank, valid, found.rank, stacklevel=2)
        return found

    def init_from_tensor(self, tensor: Any, **options: Any) -> Self:
        """Take over the decomposition of ``tensor`` at this tensor's rank, in its dtype and on its device.

        The parameters stay, without their gradients and optimizer state; a rank above what is of use is lowered.
        """
        first = self.parts()[0].data
        dense = real_array("init_from_tensor: the tensor", tensor, first)
        if tuple(dense.shape) != self.shape:
            raise ShapeError(f"init_from_tensor: the tensor has shape {tuple(dense.shape)}, expected {self.shape}")
        for part, array in zip(self.parts(), type(self).fit(dense, self.rank, **options)[0], strict=True):
            part.data, part.grad, part.slots = asarray(array, like=first, dtype=first.dtype), None, {}
        self._reset_lasso()
        return self

    def draw_(self, std: float = 0.02, rng: np.random.Generator | None = None) -> Self:
        """Draw the parts so that the entries of the tensor have mean zero and standard deviation ``std``.

        One part is small, of half that size, so that the tensor trains about as fast as a dense one.
        """
        return self._fill(drawn_parts(self, std, rng))

    def normal_(self, mean: float = 0.0, std: float = 1.0, rng: np.random.Generator | None = None) -> Self:
        """Draw the parts as the original does: normal, equal, and in a tensor train smaller than ``std`` asks for."""
        return self._fill(normal_parts(self, mean, std, rng))

    def _fill(self, arrays: Sequence[np.ndarray]) -> Self:
        for part, host in zip(self.parts(), arrays, strict=True):
            part.data = asarray(host, like=part.data, dtype=part.data.dtype)
        self._reset_lasso()
        return self

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
        return self.parts()[0].data.dtype

    @classmethod
    def operand_shape(cls, part_shape: Sequence[int], part: int, parts: int) -> tuple[int, ...]:
        """Shape of a part as :meth:`terms` names it: without modes of one entry that a format keeps for symmetry."""
        return tuple(part_shape)

    @classmethod
    def operands(cls, arrays: Sequence[Array]) -> list[Array]:
        """The parts as :meth:`terms` names their modes."""
        shapes = [cls.operand_shape(a.shape, i, len(arrays)) for i, a in enumerate(arrays)]
        return [a if tuple(a.shape) == s else namespace(a).reshape(a, s) for a, s in zip(arrays, shapes, strict=True)]

    def arrays(self) -> Arrays:
        """Data of the parts, with the lasso weights multiplied in where there are some."""
        return self._scaled(drop=False)[0]

    def rank_sizes(self) -> tuple[int, ...]:
        """Components of each rank of :meth:`rank_axes`."""
        parts = self.parts()
        return tuple(parts[places[0][0]].shape[places[0][1]] for places in self.rank_axes(self.order))

    def refuse_lasso(self, where: str) -> None:
        """Raise ValueError where there are lasso weights, which what ``where`` does would not fit."""
        if self.lasso_weights:
            raise ValueError(
                f"{type(self).__name__}.{where}: there are lasso weights; TensorLasso.remove takes them off"
            )

    def _reset_lasso(self) -> None:
        for weight in self.lasso_weights:
            weight.data, weight.grad, weight.slots = namespace(weight.data).ones_like(weight.data), None, {}

    def parts_vjp(
        self, place: Sequence[int] = (), *, drop: bool = True
    ) -> tuple[Arrays, Callable[[Sequence[Any]], Sequence[Any]]]:
        """What is contracted: the parts at one entry of each of the first modes, and the way back to their gradients.

        The lasso weights are multiplied in, and so is a mask of :func:`growarray.factorized.tensor_dropout`, unless
        ``drop`` is False. The way back adds to the gradients of the lasso weights; without ``place`` a gradient that is
        None stays None.
        """
        arrays, back = self._scaled(drop)
        if not place:
            return arrays, back
        chosen, choice = self.select(arrays, (*place, *(slice(0, n, 1) for n in self.shape[len(place) :])))
        return chosen, lambda gradients: back(choice(tuple(gradients)))

    def _scaled(self, drop: bool) -> tuple[Arrays, Callable[[Sequence[Any]], Sequence[Any]]]:
        data = tuple(part.data for part in self.parts())
        if self.dropout is None and not self.lasso_weights:
            return data, lambda gradients: gradients
        axes = self.rank_axes(self.order)
        masks: list[Any] = [None] * len(axes)
        if drop and self.dropout is not None:
            drawn = self.dropout.draw(self.rank_sizes(), self.training)
            masks = [None if m is None else asarray(m, like=data[0], dtype=data[0].dtype) for m in drawn]
        return masked_parts(data, axes, masks, self.lasso_weights)

    def to_tensor(self) -> Array:
        """The dense tensor."""
        return self._plan()(*self.operands(self.arrays()))

    def tensor_vjp(self) -> tuple[Array, Callable[[Array], None]]:
        """The dense tensor and the way back: ``pullback(d_tensor)`` adds to the gradients of the parameters.

        Tensor dropout is active here, in training mode; :meth:`to_tensor` never drops.

        >>> import numpy as np
        >>> t = FactorizedTensor.new((4, 3, 2), rank=2, factorization="TT", rng=np.random.default_rng(0))
        >>> value, pullback = t.tensor_vjp()
        >>> pullback(value), t.factors["factor_1"].grad.shape
        (None, (2, 3, 2))
        """
        arrays, parts_back = self.parts_vjp()
        value, back = self._plan().vjp(*self.operands(arrays))

        def pullback(d_tensor: Array) -> None:
            shaped = [namespace(d).reshape(d, a.shape) for d, a in zip(back(d_tensor), arrays, strict=True)]
            for part, gradient in zip(self.parts(), parts_back(shaped), strict=True):
                part.accumulate(gradient)

        return value, pullback

    def _plan(self) -> Plan:
        parts = self.parts()
        shapes = tuple(self.operand_shape(p.shape, i, len(parts)) for i, p in enumerate(parts))
        return _planned(_tensor_equation(self.name, self.order), shapes, *target_of(parts[0].data))

    def __getitem__(self, index: Any) -> Any:
        items = full_index(index, self.shape)
        if all(isinstance(item, int) for item in items):
            last = items[-1]
            items = (*items[:-1], slice(last, last + 1))  # type: ignore[operator]
            value = type(self).of(self.select(self.arrays(), items)[0]).to_tensor()
            return namespace(value).reshape(value, ())
        chosen = self.select(self.arrays(), items)[0]
        return type(self).of([namespace(a).asarray(a, copy=True) for a in chosen])

    def extra_repr(self) -> str:
        """Shape and rank."""
        return f"shape={self.shape}, rank={self.rank}"


@lru_cache
def _tensor_equation(name: str, order: int) -> str:
    modes = ["m"] if order == 1 else [f"m{i}" for i in range(order)]
    return f"{', '.join(' '.join(term) for term in FactorizedTensor.kind(name).terms(modes))} -> {' '.join(modes)}"
