"""What formats share: a centre with one factor for each mode (CP, Tucker), or a chain of cores (trains and rings)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.contraction.checks import is_whole
from growarray.decompose.inputs import check_real
from growarray.errors import ShapeError, shown
from growarray.factorized.contracted import run_contraction
from growarray.factorized.format import Arrays, TensorFormat, Terms
from growarray.factorized.index import Item, take
from growarray.factorized.owner import refuse_lasso
from growarray.factorized.ranks import RankAxes
from growarray.factorized.tensor import FactorizedTensor
from growarray.nn.module import Parameter
from growarray.ops.sizes import whole_number


def parameter(value: Array | Parameter) -> Parameter:
    """The parameter itself, or a new one that holds this array; TypeError unless it holds real floating numbers."""
    if isinstance(value, Parameter):
        return value
    array = asarray(value)
    check_real(array, "a factor of a factorized tensor", "FactorizedTensor", "real floating")
    return Parameter(array)


def factor_dict(where: str, factors: Any, ndim: int) -> dict[str, Parameter]:
    """Factors with ``ndim`` axes each, under the names that a state dict of TensorLy-Torch gives them.

    >>> list(factor_dict("doc", [np.ones(2), np.ones(3)], 1))
    ['factor_0', 'factor_1']
    """
    if not isinstance(factors, Iterable):
        raise TypeError(f"FactorizedTensor: factors={shown(factors)}, expected a list of arrays, one for each mode")
    parameters = {f"factor_{i}": parameter(factor) for i, factor in enumerate(factors)}
    if not parameters:
        raise ShapeError(f"{where}: found no factors, expected one for each mode")
    for name, factor in parameters.items():
        if len(factor.shape) != ndim:
            raise ShapeError(f"{where}: {name} has shape {factor.shape}, expected {ndim} axes")
    return parameters


def no_fixed_modes(name: str, fixed: Any) -> None:
    """Raise ValueError if fixed modes are given to a format that has no rank for each mode."""
    if fixed is not None:
        raise ValueError(f"fixed_rank_modes={shown(fixed)} is for Tucker, found {name}; leave it out")


def check_mode(where: str, new_size: int, mode: int, order: int, position: int | None) -> None:
    """Raise unless a mode of ``new_size`` entries can be inserted before ``mode``, with its value at ``position``."""
    if whole_number(f"{where}.transduct", "new_size", new_size, 0) < 1:
        raise ShapeError(f"{where}.transduct: the new mode has {new_size} entries, expected at least 1")
    if not is_whole(mode) or not 0 <= mode <= order:
        raise ValueError(f"{where}.transduct: mode {shown(mode)} is out of range, expected 0 to {order}")
    if position is not None and (not is_whole(position) or not 0 <= position < new_size):
        raise ValueError(f"{where}.transduct: position {position} is out of range, the new mode has {new_size} entries")


def insertion(new_size: int, position: int | None, like: Array) -> Array:
    """Ones, or a one at ``position`` and zeros elsewhere.

    >>> insertion(3, 1, like=np.ones(1)).tolist()
    [0.0, 1.0, 0.0]
    """
    return asarray([float(position in (None, i)) for i in range(new_size)], like=like, dtype=like.dtype)


class _WithFactors(FactorizedTensor):
    """A tensor with a dictionary of factors."""

    factors: dict[str, Parameter]

    def _insert(self, mode: int, new: Array) -> tuple[Parameter, ...]:
        """A new factor before ``mode``; the factors are named anew."""
        values, inserted = list(self.factors.values()), Parameter(new)
        values.insert(mode, inserted)
        self.factors = {f"factor_{i}": value for i, value in enumerate(values)}
        return (inserted,)


class CentredFormat(TensorFormat):
    """The format of a :class:`CentredTensor`."""

    def select(self, arrays: Sequence[Array], items: Sequence[Item]) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
        """Rows of the factors; those of single entries are multiplied into the centre."""
        taken = [take(factor, 0, item) for factor, item in zip(arrays[1:], items, strict=True)]
        single = [isinstance(item, int) for item in items]
        ranks, *terms = self.terms([f"m{i}" for i in range(len(items))])
        rows = [term[1] for term, one in zip(terms, single, strict=True) if one]
        stay = {term[1] for term, one in zip(terms, single, strict=True) if not one}
        equation = f"{', '.join([' '.join(ranks), *rows])} -> {' '.join(r for r in ranks if r in stay)}"
        those = [factor for (factor, _), one in zip(taken, single, strict=True) if one]
        centre, back = run_contraction(equation, [arrays[0], *those]) if rows else (arrays[0], lambda d: (d,))

        def pullback(d_factors: Arrays) -> Arrays:
            d_centre, *d_rows = back(d_factors[0])
            singles, others = iter(d_rows), iter(d_factors[1:])
            return (d_centre, *(b(next(singles if one else others)) for (_, b), one in zip(taken, single, strict=True)))

        return (centre, *(factor for (factor, _), one in zip(taken, single, strict=True) if not one)), pullback


class CentredTensor(_WithFactors):
    """A centre, and one factor (size, r) for each mode; the centre is the first of the factors."""

    @property
    def _centre(self) -> Parameter:
        """The weights, or the core."""
        raise NotImplementedError(f"{type(self).__name__} must define _centre")

    @classmethod
    def of(cls, arrays: Sequence[Array | Parameter]) -> Self:
        """A tensor that holds a centre and factors."""
        make: Any = cls
        return make(arrays[0], arrays[1:])  # type: ignore[no-any-return]

    def all_factors(self) -> tuple[Parameter, ...]:
        """The centre, then the factors."""
        return (self._centre, *self.factors.values())

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each mode."""
        return tuple(factor.shape[0] for factor in self.factors.values())


class ChainFormat(TensorFormat):
    """The format of a :class:`ChainTensor`.    width : modes of each core"""

    closed: ClassVar[bool] = False
    width: ClassVar[int] = 1

    def grouped(self, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """What belongs to the modes of each core."""
        return [(value,) for value in values]

    def terms(self, modes: Sequence[str]) -> Terms:
        """``b0 m0 b1``, ``b1 m1 b2``, …; without the ends if the chain is open."""
        groups = self.grouped(modes)
        names: list[tuple[str, ...]] = [(f"b{k}",) for k in range(len(groups))]
        if not self.closed or len(groups) == 1:
            names[0] = ()
        return tuple((*names[k], *group, *names[(k + 1) % len(groups)]) for k, group in enumerate(groups))

    def rank_axes(self, order: int) -> RankAxes:
        """The bonds: of the core before, then of the core after."""
        count, last = order // self.width, self.width + 1
        bonds = range(0 if self.closed and count > 1 else 1, count)
        return tuple((((bond - 1) % count, last), (bond, 0)) for bond in bonds)

    def rank_of(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """The bonds with both ends."""
        return (*sizes, sizes[0]) if self.closed and sizes else (1, *sizes, 1)

    def operand_shape(self, shape: Sequence[int], factor: int, count: int) -> tuple[int, ...]:
        """The shape of a core, without the ends of an open chain."""
        if self.closed and count > 1:
            return tuple(shape)
        return tuple(shape[factor == 0 : len(shape) - (factor == count - 1)])

    def factor_shapes(self, shape: Sequence[int], rank: Any) -> tuple[tuple[int, ...], ...]:
        """(r_k, *sizes, r_{k+1}) for each core."""
        groups = self.grouped(shape)
        return tuple((left, *group, right) for left, group, right in zip(rank[:-1], groups, rank[1:], strict=True))

    def select(self, arrays: Sequence[Array], items: Sequence[Item]) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
        """Slices of the cores; a single entry is a matrix, multiplied into the last core before it that stays."""
        taken = [take(core, 1, item) for core, item in zip(arrays, items, strict=True)]
        chains = _chains([isinstance(item, int) for item in items], self.closed)
        made = [
            (taken[chain[0]][0], None) if len(chain) == 1 else run_contraction(equation, [taken[i][0] for i in chain])
            for chain, equation in chains
        ]
        ones = [namespace(core).reshape(core, (1, -1, 1)) if core.ndim == 1 else core for core, _ in made]

        def pullback(d_factors: Arrays) -> Arrays:
            gradients: dict[int, Array] = {}
            for (chain, _), (core, back), d in zip(chains, made, d_factors, strict=True):
                d_core = namespace(d).reshape(d, core.shape)
                gradients |= zip(chain, (d_core,) if back is None else back(d_core), strict=True)
            return tuple(back(gradients[i]) for i, (_, back) in enumerate(taken))

        return tuple(ones), pullback

    def factor_std(self, order: int, rank: Any, std: float) -> tuple[float | None, ...]:
        """The cores together make the tensor's entries ``std``; an entry is a sum of as many products as bonds have."""
        count = order // self.width
        return (float((std / math.sqrt(math.prod(rank[:-1]))) ** (1 / count)),) * count


class ChainTensor(_WithFactors):
    """Cores (r_k, *sizes, r_{k+1}), each bound to the next one; a closed chain binds the last to the first."""

    format: ClassVar[ChainFormat]

    def __init__(self, factors: Sequence[Array | Parameter]) -> None:
        where, sizes = type(self).__name__, "size" if self.format.width == 1 else "row, column"
        self.factors = factor_dict(where, factors, self.format.width + 2)
        shapes = [factor.shape for factor in self.factors.values()]
        ends, end = (shapes[0][0], shapes[-1][-1]), "r_0" if self.format.closed and len(shapes) > 1 else 1
        closes = ends[0] == ends[1] if end == "r_0" else ends == (1, 1)
        if not closes or any(a[-1] != b[0] for a, b in pairwise(shapes)):
            raise ShapeError(
                f"{where}: the cores have shapes {shapes}, expected ({end}, {sizes}, r_1), (r_1, {sizes}, r_2), … "
                f"(r_n, {sizes}, {end})"
            )

    @classmethod
    def of(cls, arrays: Sequence[Array | Parameter]) -> Self:
        """A tensor that holds these cores."""
        return cls(arrays)

    def all_factors(self) -> tuple[Parameter, ...]:
        """The cores."""
        return tuple(self.factors.values())

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each mode."""
        shapes = [core.shape for core in self.factors.values()]
        return tuple([shape[1 + k] for k in range(self.format.width) for shape in shapes])

    @property
    def rank(self) -> tuple[int, ...]:
        """Size of each bond, with those at both ends, which are one if the chain is open."""
        cores = self.all_factors()
        return (cores[0].shape[0], *[core.shape[-1] for core in cores])

    def transduct(self, new_size: int, mode: int, position: int | None = None) -> tuple[Parameter, ...]:
        """Insert a core of identities, or of one identity at ``position``."""
        check_mode(type(self).__name__, new_size, mode, self.order, position)
        refuse_lasso(self, "transduct")
        like = self.all_factors()[0].data
        xp, identity = namespace(like), asarray(np.eye(self.rank[mode]), like=like, dtype=like.dtype)
        along = xp.reshape(insertion(new_size, position, like=like), (1, new_size, 1))
        return self._insert(mode, along * xp.expand_dims(identity, axis=1))


def _chains(single: Sequence[bool], closed: bool) -> list[tuple[list[int], str]]:
    """The cores that become one, and their equation; at least one of ``single`` is false."""
    starts = [i for i, one in enumerate(single) if not one]
    starts[0] = 0
    chains = [list(range(start, stop)) for start, stop in pairwise([*starts, len(single)])]
    whole = closed and len(chains) == 1 and len(single) > 1  # what is left of a ring has no neighbour but itself
    return [(chain, _chain_equation([single[i] for i in chain], whole)) for chain in chains]


def _chain_equation(single: Sequence[bool], whole: bool) -> str:
    """``b0 b1, b1 m b2 -> b0 m b2`` for one single entry before a core that stays; ``whole``: a ring that closes."""
    last = 0 if whole else len(single)
    names = [f"b{i}" for i in range(len(single))] + [f"b{last}"]
    terms = [f"{a} {b}" if one else f"{a} m {b}" for one, (a, b) in zip(single, pairwise(names), strict=True)]
    return f"{', '.join(terms)} -> {'m' if whole else f'b0 m b{last}'}"
