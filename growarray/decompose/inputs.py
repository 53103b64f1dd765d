"""What every decomposition asks of its input, checked before any work, and the tensor made ready."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from growarray.backend import Array, is_array, kind_of, library_of, namespace
from growarray.contraction.checks import is_whole
from growarray.decompose.arguments import is_real
from growarray.errors import ShapeError, shown


@dataclass(frozen=True)
class Prepared:
    """A tensor ready for work: float64, divided by its largest entry, so that squares neither overflow nor vanish."""

    array: Array
    scale: float
    norm: float
    dtype: Any
    xp: Any

    def restore(self, part: Array, *, scaled: bool = False) -> Array:
        """A part of the result in the dtype of the input; ``scaled`` for the one part that carries the size.

        Raises ValueError if the dtype does not reach so far: a tensor's norm is above its largest entry.
        """
        if scaled:
            most, largest = float(self.xp.finfo(self.dtype).max), float(self.xp.max(self.xp.abs(part)))
            if largest > most / self.scale:
                raise ValueError(
                    f"decomposition: the largest weight is {largest * self.scale:.3g}, and {self.dtype} holds up to "
                    f"{most:.3g}; decompose the tensor in a wider dtype, or a multiple of it"
                )
            part = part * self.scale
        return self.xp.astype(part, self.dtype, copy=False)

    def relative(self, distance: float) -> float:
        """A distance from the tensor as a share of its norm; a tensor of zeros is met exactly."""
        return distance / self.norm if self.norm else 0.0


def check_real(array: Any, what: str, where: str, kinds: str | tuple[str, ...] = ("integral", "real floating")) -> None:
    """Raise TypeError unless ``array`` is an array without a mask, of a dtype of one of the ``kinds``."""
    if not is_array(array):
        raise TypeError(
            f"{where}: expected an array as {what}, found {type(array).__name__}; convert it with "
            "growarray.backend.asarray(x)"
        )
    if not isinstance(array, np.matrix):  # which the decompositions take as the array that it is
        try:
            library_of(array)
        except TypeError as error:
            raise TypeError(f"{where}: {what}: {error}") from None
    letters = {"integral": "iu", "real floating": "f"}
    if not any(kind_of(array) in letters[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        wanted = kinds if isinstance(kinds, str) else " or ".join(kinds)
        raise TypeError(
            f"{where}: expected {what} of a {wanted} dtype, found {array.dtype}; convert it, for example with "
            "xp.astype(x, xp.float64)"
        )


def check_tensor(tensor: Array, where: str) -> tuple[int, ...]:
    """The shape of a tensor that can be decomposed: real floating, with axes and entries; its values are not read.

    Raises TypeError: not an array, or not of a real floating dtype; ShapeError: no axes, or no entries.
    """
    check_real(tensor, "a tensor", where, "real floating")
    shape = tuple(int(n) for n in tensor.shape)
    if not shape or 0 in shape:
        raise ShapeError(f"{where}: expected a tensor with at least one axis and one entry, found shape {shape}")
    return shape


def prepare(tensor: Array, where: str) -> Prepared:
    """The tensor in float64, checked and scaled; the input is left as it is.

    Raises TypeError: not an array, or not of a real floating dtype; ShapeError: no axes, or no entries; ValueError: NaN
    or infinite entries.
    """
    shape = check_tensor(tensor, where)
    plain = np.asarray(tensor) if isinstance(tensor, np.matrix) else tensor
    xp = namespace(plain)
    array = xp.astype(xp.asarray(plain), xp.float64, copy=True)  # asarray: a plain array of any other subclass
    flat = xp.reshape(array, (-1,))
    scale = max(float(xp.max(flat)), -float(xp.min(flat)))
    if not math.isfinite(scale):
        raise ValueError(f"{where}: the tensor of shape {shape} holds NaN or infinite values; clean the weights first")
    if scale == 0.0:
        scale = 1.0
    flat = flat / scale
    norm = math.sqrt(float(flat @ flat))
    return Prepared(xp.reshape(flat, shape), scale, norm, tensor.dtype, xp)


def check_rank(rank: Any, limits: Sequence[int], where: str, names: str = "modes") -> tuple[int, ...]:
    """A rank for each limit: an int stands for all, at most the limit of each; a tuple is taken as it is.

    names : of what a tuple has an entry for; without, only an int will do

    Raises TypeError, ValueError: not whole numbers, less than 1, above what is possible, or a tuple of another length.
    """
    single = is_whole(rank)
    many = bool(names) and isinstance(rank, Sequence) and not isinstance(rank, str) and all(map(is_whole, rank))
    if not single and not many:
        expected = f"an int or {len(limits)} ints" if names else "an int"
        raise TypeError(
            f"{where}: expected rank as {expected}, found {shown(rank)}; fractions of the parameters become ranks by "
            "growarray.decompose.validate_cp_rank, validate_tucker_rank or validate_tt_rank"
        )
    ranks = (int(rank),) * len(limits) if single else tuple(map(int, rank))
    if len(ranks) != len(limits):
        raise ValueError(f"{where}: rank {ranks} has {len(ranks)} entries, expected one for each of the "
                         f"{len(limits)} {names}")  # fmt: skip
    low = [r for r in ranks if r < 1]
    if low:
        raise ValueError(f"{where}: rank {shown(rank)} has entry {low[0]}, expected at least 1")
    if single and rank > max(limits):
        raise ValueError(f"{where}: rank {rank} is above {max(limits)}, the largest possible; lower it")
    if single:
        return tuple(map(min, ranks, limits))
    for i, (r, limit) in enumerate(zip(ranks, limits, strict=True)):
        if r > limit:
            raise ValueError(f"{where}: rank {r} is above {limit}, the largest possible there (entry {i}, largest "
                             f"ranks {tuple(limits)}); lower it")  # fmt: skip
    return ranks


def check_bound(error: Any, where: str, name: str = "a relative error bound") -> float:
    """A relative error bound: a number from 0 up to, but not including, 1."""
    if not is_real(error) or not 0.0 <= error < 1.0:
        raise ValueError(f"{where}: expected {name} 0 <= error < 1, found {shown(error)}")
    return float(error)


def check_tolerance(value: Any, where: str) -> float:
    """A finite number of at least 0."""
    if not is_real(value) or not 0.0 <= value < math.inf:
        raise ValueError(f"{where}: expected tolerance as a finite number of at least 0, found {shown(value)}")
    return float(value)


def check_rng(rng: Any, where: str) -> np.random.Generator:
    """The generator, or one with seed 0 for None."""
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"{where}: expected rng as a numpy.random.Generator, found {shown(rng)}; make one of a seed with "
            "numpy.random.default_rng(seed)"
        )
    return np.random.default_rng(0) if rng is None else rng


def rank_or_bound(rank: Any, error: Any, where: str) -> None:
    """Exactly one of the two says how much to keep."""
    if (rank is None) == (error is None):
        found = "neither" if rank is None else f"rank={shown(rank)} and error={shown(error)}"
        raise ValueError(f"{where}: expected either rank= or error=, found {found}; give one of them")


def check_weights(weighted: Mapping[int, Array] | None, shape: Sequence[int], where: str) -> dict[int, Array]:
    """Second moments by mode, each square of the mode's size; negative modes count from the end."""
    if weighted is not None and not isinstance(weighted, Mapping):
        raise TypeError(f"{where}: expected weighted as a mapping {{mode: second moment}}, found {shown(weighted)}")
    moments: dict[int, Array] = {}
    for mode, moment in (weighted or {}).items():
        if not is_whole(mode):
            raise TypeError(f"{where}: weighted names mode {shown(mode)}, expected a whole number")
        k = int(mode) + len(shape) if mode < 0 else int(mode)
        if not 0 <= k < len(shape):
            raise ShapeError(f"{where}: weighted names mode {mode}, the tensor has {len(shape)} modes")
        if k in moments:
            raise ValueError(f"{where}: weighted names mode {k} twice, as {k} and {k - len(shape)}; give it once")
        check_real(moment, f"the second moment of mode {mode}", where)
        if tuple(moment.shape) != (shape[k], shape[k]):
            raise ShapeError(
                f"{where}: the second moment of mode {mode} has shape {tuple(moment.shape)}, "
                f"expected {(shape[k], shape[k])}, the size of that mode twice"
            )
        moments[k] = moment
    return moments
