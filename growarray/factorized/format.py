"""What a format of factorized tensors defines: its factors, ranks, decomposition, and all that depends on it.

Modes are named by the caller, ranks by the format, so that the same terms make a tensor and a convolution.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from growarray.backend import Array, namespace
from growarray.decompose import Degeneracy
from growarray.decompose.arguments import check_options, is_share, options_of
from growarray.errors import shown
from growarray.factorized.index import Item
from growarray.factorized.ranks import RankAxes, as_tuple

if TYPE_CHECKING:
    from growarray.factorized.increment import Added, Goal
    from growarray.factorized.spectra import Spectra
Arrays = tuple[Array, ...]
Terms = tuple[tuple[str, ...], ...]
_RANK_OPTIONS = ("error", "modes")  # options of the decompositions that a format replaces by its rank


class Fit(NamedTuple):
    """What a format's decomposition reports; None if the format does not say.

    error : relative Frobenius error of the tensor    iterations : sweeps    reason : why they ended
    asked : rank before it was lowered to what the tensor can use

    >>> Fit(0.25, 12, "converged").degeneracy is None
    True
    """

    error: float | None = None
    iterations: int | None = None
    reason: str | None = None
    degeneracy: Degeneracy | None = None
    asked: Any = None


def checked_kwargs(where: str, kwargs: Any) -> dict[str, Any]:
    """``decomposition_kwargs`` as a dictionary; TypeError if they are not a mapping from names.

    >>> checked_kwargs("doc", None)
    {}
    """
    options = {} if kwargs is None else kwargs
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise TypeError(
            f"{where}: decomposition_kwargs={shown(kwargs)}, expected a mapping from names of options, such as "
            "{'max_iterations': 100}"
        )
    return dict(options)


def warn_lowered(where: str, asked: Any, valid: Any, used: Any, stacklevel: int) -> None:
    """Warn if a rank that was given as such, not as a share of the parameters, could not be used.

    stacklevel : of the user's line, 1 being the caller of this function
    """
    if used != valid and not is_share(asked):
        warnings.warn(
            f"{where}: rank {valid} is above what the tensor can use, lowered to {used}", stacklevel=stacklevel + 1
        )


class TensorFormat:
    """What a new format overrides; :attr:`FactorizedTensor.format` is one.

    aliases : other names that users write    decomposition : of growarray.decompose; None if no kernel is compressed so
    growable : whether :meth:`initial_components` is defined
    mode_ranks : whether each mode has a rank of its own, which may be fixed to its size
    output_last : whether a convolution keeps its output channels as the last mode
    takes_integers : whether an integer index leaves a tensor of the format
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    decomposition: ClassVar[Callable[..., Any] | None] = None
    growable: ClassVar[bool] = False
    mode_ranks: ClassVar[bool] = False
    output_last: ClassVar[bool] = False
    takes_integers: ClassVar[bool] = True

    def terms(self, modes: Sequence[str]) -> Terms:
        """For each factor the names of its modes, given those of the tensor; ranks have names of the format's own."""
        raise NotImplementedError(f"{type(self).__name__} must define terms(modes)")

    def operand_shape(self, shape: Sequence[int], factor: int, count: int) -> tuple[int, ...]:
        """Shape of one of ``count`` factors as in :meth:`terms`, without modes of one entry that have no name there."""
        return tuple(shape)

    def operands(self, arrays: Sequence[Array]) -> list[Array]:
        """The factors as :meth:`terms` names their modes."""
        shapes = [self.operand_shape(a.shape, i, len(arrays)) for i, a in enumerate(arrays)]
        return [a if tuple(a.shape) == s else namespace(a).reshape(a, s) for a, s in zip(arrays, shapes, strict=True)]

    def rank_axes(self, order: int) -> RankAxes:
        """For each rank every (factor, axis) that has it; what scales the rank is multiplied in at the first."""
        return ()

    def rank_of(self, sizes: Sequence[int]) -> Any:
        """The rank, given the size of each entry of :meth:`rank_axes`."""
        return tuple(sizes)

    def factor_shapes(self, shape: Sequence[int], rank: Any) -> tuple[tuple[int, ...], ...]:
        """Shape of each factor for a validated rank."""
        raise NotImplementedError(f"{type(self).__name__} must define factor_shapes(shape, rank)")

    def sizes_of(self, shape: Sequence[int], rank: Any) -> tuple[int, ...]:
        """The size of each entry of :meth:`rank_axes` for a rank: :meth:`rank_of` takes them back."""
        shapes = self.factor_shapes(shape, rank)
        return tuple(shapes[axes[0][0]][axes[0][1]] for axes in self.rank_axes(len(shape)))

    def validate_rank(self, shape: Sequence[int], rank: Any, fixed_modes: Sequence[int] | None = None) -> Any:
        """The rank that ``'same'``, a fraction of the parameters, an int or a tuple stands for.

        fixed_modes : modes that keep their size as rank; ValueError unless the format has :attr:`mode_ranks`
        """
        raise NotImplementedError(f"{type(self).__name__} must define validate_rank(shape, rank)")

    def largest_rank(self, shape: Sequence[int]) -> Any:
        """The rank above which no tensor of this shape gains anything."""
        raise NotImplementedError(f"{type(self).__name__} must define largest_rank(shape)")

    def usable_rank(self, shape: Sequence[int], rank: Any) -> Any:
        """A validated rank, lowered to what a tensor of this shape can use."""
        most = self.largest_rank(shape)
        return tuple(map(min, rank, most)) if isinstance(rank, tuple) else min(rank, most)

    def usable_growth(self, shape: Sequence[int], rank: tuple[int, ...], by: tuple[int, ...]) -> tuple[int, ...]:
        """By how much each entry of the rank may rise, of what is asked for."""
        limits = zip(by, as_tuple(self.largest_rank(shape)), rank, strict=True)
        return tuple(min(b, max(most - r, 0)) for b, most, r in limits)

    def fit(self, tensor: Array, rank: Any, /, **options: Any) -> tuple[Arrays, Fit]:
        """Factors of at most this rank that approximate ``tensor``, and how it went; options of the decomposition."""
        raise NotImplementedError(f"{type(self).__name__} must define fit(tensor, rank)")

    def fit_options(self, options: Any) -> dict[str, Any]:
        """Options of the decomposition; TypeError names one that it does not have, and lists those it has.

        >>> from growarray.factorized import TTTensor
        >>> TTTensor.format.fit_options({"sweeps": 3})
        Traceback (most recent call last):
        TypeError: TT, by growarray.decompose.tensor_train: unknown option 'sweeps'; it has weighted
        """
        decomposition: Any = self.decomposition
        known = options_of(decomposition, _RANK_OPTIONS)
        return check_options(options, known, f"{self.name}, by growarray.decompose.{decomposition.__name__}")

    def quick_options(self, rank: Any) -> dict[str, Any]:
        """Options of the decomposition of a large weight matrix, unless the caller says otherwise."""
        return {}

    def search_options(self, size: int, rank: Any, rng: np.random.Generator) -> dict[str, Any]:
        """Options that bound the time for one of many decompositions, of a kernel with ``size`` entries."""
        return {}

    def candidates(self, spectra: Spectra) -> Iterator[tuple[Any, float]]:
        """Ranks that a kernel may be compressed to, with the squared relative errors that they are likely to make."""
        raise NotImplementedError(f"{type(self).__name__} must define candidates(spectra)")

    def initial_components(
        self, old: list[Array], goal: Goal, by: tuple[int, ...], groups: int, rng: np.random.Generator | None
    ) -> Added:
        """What the float64 factors of a kernel gain if its rank rises by ``by``: components that follow the goal."""
        raise NotImplementedError(f"{type(self).__name__} must define initial_components(old, goal, by, groups, rng)")

    def select(self, arrays: Sequence[Array], items: Sequence[Item]) -> tuple[Arrays, Callable[[Arrays], Arrays]]:
        """Factors of the tensor at one item for each mode, at least one of them a slice, and the way back."""
        raise NotImplementedError(f"{type(self).__name__} must define select(arrays, items)")

    def factor_std(self, order: int, rank: Any, std: float) -> tuple[float | None, ...]:
        """Standard deviation of each factor that gives the tensor's entries ``std``; None for a factor of ones."""
        raise NotImplementedError(f"{type(self).__name__} must define factor_std(order, rank, std)")
