"""What every decomposition asks of its input, checked before any work, and the tensor made ready."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from growarray.backend import Array, namespace
from growarray.errors import ShapeError

__all__ = [
    "Prepared",
    "check_bound",
    "check_count",
    "check_rank",
    "check_tensor",
    "check_weights",
    "prepare",
    "rank_or_bound",
]


@dataclass(frozen=True)
class Prepared:
    """A tensor ready for work: float64, divided by its largest entry, so that squares neither overflow nor vanish."""

    array: Array
    scale: float
    norm: float
    dtype: Any
    xp: Any

    def restore(self, part: Array, *, scaled: bool = False) -> Array:
        """A part of the result in the dtype of the input; ``scaled`` for the one part that carries the size."""
        return self.xp.astype(part * self.scale if scaled else part, self.dtype, copy=False)

    def relative(self, distance: float) -> float:
        """A distance from the tensor as a share of its norm; a tensor of zeros is met exactly."""
        return distance / self.norm if self.norm else 0.0


def check_tensor(tensor: Array, where: str) -> tuple[int, ...]:
    """The shape of a tensor that can be decomposed: real floating, with axes and entries; its values are not read.

    Raises
    ------
    TypeError
        Not an array, or not of a real floating dtype.
    ShapeError
        No axes, or no entries.
    """
    xp = namespace(tensor)
    shape = tuple(int(n) for n in tensor.shape)
    if not xp.isdtype(tensor.dtype, "real floating"):
        raise TypeError(
            f"{where}: expected a tensor of a real floating dtype, found {tensor.dtype}; "
            "convert it, for example with xp.astype(tensor, xp.float64)"
        )
    if not shape or 0 in shape:
        raise ShapeError(f"{where}: expected a tensor with at least one axis and one entry, found shape {shape}")
    return shape


def prepare(tensor: Array, where: str) -> Prepared:
    """The tensor in float64, checked and scaled; the input is left as it is.

    Raises
    ------
    TypeError
        Not an array, or not of a real floating dtype.
    ShapeError
        No axes, or no entries.
    ValueError
        NaN or infinite entries.
    """
    xp = namespace(tensor)
    shape = check_tensor(tensor, where)
    array = xp.astype(tensor, xp.float64, copy=True)
    flat = xp.reshape(array, (-1,))
    scale = max(float(xp.max(flat)), -float(xp.min(flat)))
    if not math.isfinite(scale):
        raise ValueError(f"{where}: the tensor of shape {shape} holds NaN or infinite values; clean the weights first")
    if scale == 0.0:
        scale = 1.0
    flat /= scale
    norm = math.sqrt(float(flat @ flat))
    return Prepared(xp.reshape(flat, shape), scale, norm, tensor.dtype, xp)


def check_rank(rank: Any, limits: Sequence[int], where: str, names: str = "modes") -> tuple[int, ...]:
    """A rank for each limit: an int stands for all, at most the limit of each; a tuple is taken as it is.

    Raises
    ------
    TypeError, ValueError
        Not whole numbers, less than 1, above what is possible, or a tuple of another length.
    """
    single = isinstance(rank, int) and not isinstance(rank, bool)
    ranks = (rank,) * len(limits) if single else tuple(rank) if isinstance(rank, Sequence) else None
    if ranks is None or isinstance(rank, str) or any(isinstance(r, bool) or not isinstance(r, int) for r in ranks):
        raise TypeError(
            f"{where}: expected rank as an int or {len(limits)} ints, found {rank!r}; fractions of the parameters "
            "become ranks by growarray.decompose.validate_cp_rank, validate_tucker_rank or validate_tt_rank"
        )
    if len(ranks) != len(limits):
        raise ValueError(f"{where}: rank {tuple(ranks)} has {len(ranks)} entries, expected one for each of the "
                         f"{len(limits)} {names}")  # fmt: skip
    low = [r for r in ranks if r < 1]
    if low:
        raise ValueError(f"{where}: rank {rank!r} has entry {low[0]}, expected at least 1")
    if single and rank <= max(limits):
        return tuple(min(rank, limit) for limit in limits)
    for i, (r, limit) in enumerate(zip(ranks, limits, strict=True)):
        if r > limit:
            raise ValueError(f"{where}: rank {r} is above {limit}, the largest possible there (entry {i}, largest "
                             f"ranks {tuple(limits)}); lower it")  # fmt: skip
    return ranks


def check_bound(error: Any, where: str) -> float:
    """A relative error bound: a number from 0 up to, but not including, 1."""
    if isinstance(error, bool) or not isinstance(error, int | float) or not 0.0 <= error < 1.0:
        raise ValueError(f"{where}: expected a relative error bound 0 <= error < 1, found {error!r}")
    return float(error)


def check_count(value: Any, name: str, where: str, least: int = 0) -> int:
    """A whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{where}: expected {name} as a whole number of at least {least}, found {value!r}")
    return value


def rank_or_bound(rank: Any, error: Any, where: str) -> None:
    """Exactly one of the two says how much to keep."""
    if (rank is None) == (error is None):
        found = "neither" if rank is None else f"rank={rank!r} and error={error!r}"
        raise ValueError(f"{where}: expected either rank= or error=, found {found}; give one of them")


def check_weights(weighted: Mapping[int, Array] | None, shape: Sequence[int], where: str) -> dict[int, Array]:
    """Second moments by mode, each square of the mode's size; negative modes count from the end."""
    moments: dict[int, Array] = {}
    for mode, moment in (weighted or {}).items():
        k = mode + len(shape) if mode < 0 else mode
        if not 0 <= k < len(shape):
            raise ShapeError(f"{where}: weighted names mode {mode}, the tensor has {len(shape)} modes")
        if tuple(moment.shape) != (shape[k], shape[k]):
            raise ShapeError(
                f"{where}: the second moment of mode {mode} has shape {tuple(moment.shape)}, "
                f"expected {(shape[k], shape[k])}, the size of that mode twice"
            )
        moments[k] = moment
    return moments
