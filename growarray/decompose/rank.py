"""Ranks from a share of the parameters, by the rules of the originals, and what a rank costs and needs.

n_k sizes of the modes · N order · r rank; 'same' is the share 1.0
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Collection, Sequence

from growarray.errors import ShapeError

__all__ = [
    "cp_parameters",
    "factor_std",
    "largest_cp_rank",
    "largest_tt_rank",
    "largest_tucker_rank",
    "tt_parameters",
    "tucker_parameters",
    "validate_cp_rank",
    "validate_tt_rank",
    "validate_tucker_rank",
]

Rank = str | float | int | Sequence[int]
"""'same', a share of the dense parameters (float), one rank (int), or all of them."""

_ROUNDING: dict[str, Callable[[float], float]] = {"round": round, "floor": math.floor, "ceil": math.ceil}


def validate_cp_rank(shape: Sequence[int], rank: Rank = "same", rounding: str = "round") -> int:
    """Rank of a CP decomposition: ``share * prod(n) / sum(n)``, or the int itself; at least 1.

    Raises
    ------
    ShapeError, ValueError, TypeError
        The shape is empty; the rank is not positive or of another kind; the rounding is unknown.

    Source: TensorLy, ``validate_cp_rank``, which can return 0.

    Examples
    --------
    >>> validate_cp_rank((64, 32, 3, 3)), validate_cp_rank((64, 32, 3, 3), 0.5), validate_cp_rank((4, 3, 3), 0.05)
    (181, 90, 1)
    """
    sizes, integer = _checked(shape, "validate_cp_rank"), _rounding(rounding, "validate_cp_rank")
    share = _share(rank, "validate_cp_rank")
    if share is not None:
        return max(int(integer(math.prod(sizes) * share / sum(sizes))), 1)
    if not isinstance(rank, int):
        raise TypeError(f"validate_cp_rank: expected 'same', a float or an int, found {rank!r}")
    return _positive((rank,), "validate_cp_rank")[0]


def validate_tucker_rank(
    shape: Sequence[int],
    rank: Rank = "same",
    rounding: str = "round",
    fixed_modes: Collection[int] | None = None,
) -> tuple[int, ...]:
    """Ranks of a Tucker decomposition, ``x n_k`` for the x that makes the parameters the share; each at least 1.

    x solves ``prod(n) x^m + (sum of n_k^2 over free modes) x + (sum over fixed modes) x = share prod(n)`` with m free
    modes. Modes in ``fixed_modes`` keep their size, also beside an int, which stands for all other modes.

    Raises
    ------
    ShapeError, ValueError, TypeError
        The shape is empty; ranks are not positive, or of another number than the modes; an option is unknown.

    Source: TensorLy, ``validate_tucker_rank``.

    Examples
    --------
    >>> validate_tucker_rank((64, 32, 3, 3), 0.5), validate_tucker_rank((64, 32, 3, 3), 0.5, fixed_modes=(2, 3))
    ((47, 24, 2, 2), (37, 19, 3, 3))
    """
    where = "validate_tucker_rank"
    sizes, integer = _checked(shape, where), _rounding(rounding, where)
    fixed = {k + len(sizes) if k < 0 else k for k in fixed_modes or ()}
    if not fixed <= set(range(len(sizes))):
        raise ShapeError(f"{where}: fixed_modes {tuple(fixed_modes or ())} are not all axes of shape {sizes}")
    share = _share(rank, where)
    if share is not None:
        x = _tucker_fraction(sizes, share, fixed)
        return tuple(n if k in fixed else max(int(integer(n * x)), 1) for k, n in enumerate(sizes))
    if isinstance(rank, int):
        single = _positive((rank,), where)[0]
        return tuple(n if k in fixed else single for k, n in enumerate(sizes))
    return _positive(_sequence(rank, len(sizes), where), where)


def _tucker_fraction(sizes: Sequence[int], share: float, fixed: Collection[int]) -> float:
    """The x of :func:`validate_tucker_rank`, by Brent's method."""
    total, squares = math.prod(sizes), sum(n * n for n in sizes)
    power = len(sizes) - len(fixed)

    def excess(x: float) -> float:
        return float(total * x**power + squares * x - share * total)

    return float(importlib.import_module("scipy.optimize").brentq(excess, 0.0, max(share, 1.0)))


def validate_tt_rank(
    shape: Sequence[int],
    rank: Rank = "same",
    constant_rank: bool = False,
    rounding: str = "round",
    allow_overparametrization: bool = True,
) -> tuple[int, ...]:
    """All ranks of a tensor train, the two ends (1) included; each at least 1.

    A share makes rank k proportional to the mean of the sizes beside it, or, with ``constant_rank``, all the same.
    ``allow_overparametrization=False`` cuts each rank to what a tensor of this shape can use.

    Raises
    ------
    ShapeError, ValueError, TypeError
        The shape is empty; ranks are not positive, do not start and end with 1, or are too many or few.

    Source: TensorLy, ``validate_tt_rank``; of a matrix with ``constant_rank`` it returns a fraction, here rounded.

    Examples
    --------
    >>> validate_tt_rank((64, 32, 3, 3), 0.5), validate_tt_rank((4, 3, 3), 3)
    ((1, 25, 9, 2, 1), (1, 3, 3, 1))
    """
    where = "validate_tt_rank"
    sizes, integer = _checked(shape, where), _rounding(rounding, where)
    share = _share(rank, where)
    if share is not None:
        inner = _tt_inner(sizes, share, constant_rank)
        ranks = (1, *(max(int(integer(r)), 1) for r in inner), 1)
    elif isinstance(rank, int):
        ranks = (1, *_positive((rank,) * (len(sizes) - 1), where), 1)
    else:
        ranks = _positive(_sequence(rank, len(sizes) + 1, where), where)
        if ranks[0] != 1 or ranks[-1] != 1:
            raise ValueError(f"{where}: rank {ranks} must start and end with 1")
    if allow_overparametrization:
        return ranks
    possible = [1]
    for k in range(1, len(sizes)):
        possible.append(min(ranks[k], ranks[k - 1] * sizes[k - 1], math.prod(sizes[k:])))
    return (*possible, 1)


def _tt_inner(sizes: Sequence[int], share: float, constant: bool) -> list[float]:
    """Inner ranks before rounding: the positive root of ``a x^2 + b x = share prod(n)``, times what they follow."""
    goal = math.prod(sizes) * share
    if len(sizes) == 1:
        return []
    if constant:
        follow = [1.0] * (len(sizes) - 1)
        a, b = float(sum(sizes[1:-1])), float(sizes[0] + sizes[-1])
    else:
        follow = [(m + n) / 2 for m, n in itertools.pairwise(sizes)]
        a = sum(follow[k - 1] * sizes[k] * follow[k] for k in range(1, len(sizes) - 1))
        a = a if len(sizes) > 2 else follow[0] ** 2 * sizes[0]
        b = sizes[0] * follow[0] + sizes[-1] * follow[-1]
    x = goal / b if a == 0 else (-b + math.sqrt(b * b + 4 * a * goal)) / (2 * a)
    return [f * x for f in follow]


def largest_cp_rank(shape: Sequence[int]) -> int:
    """A rank that every tensor of this shape has at most: its size over that of its largest mode.

    >>> largest_cp_rank((64, 32, 3, 3))
    288
    """
    return math.prod(shape) // max(shape)


def largest_tucker_rank(shape: Sequence[int]) -> tuple[int, ...]:
    """Ranks that the unfoldings of every tensor of this shape have at most.

    >>> largest_tucker_rank((64, 2, 3, 3))
    (18, 2, 3, 3)
    """
    return tuple(min(n, math.prod(shape) // n) for n in shape)


def largest_tt_rank(shape: Sequence[int]) -> tuple[int, ...]:
    """Ranks above which a tensor train of this shape gains nothing, the two ends included.

    >>> largest_tt_rank((4, 3, 3, 6))
    (1, 4, 12, 6, 1)
    """
    return tuple(min(math.prod(shape[:k]), math.prod(shape[k:])) for k in range(len(shape) + 1))


def cp_parameters(shape: Sequence[int], rank: int) -> int:
    """Number of parameters of a CP decomposition, weights included: ``r (1 + sum(n))``.

    >>> cp_parameters((6, 4, 3, 3), 14)
    238
    """
    return rank * (1 + sum(shape))


def tucker_parameters(shape: Sequence[int], rank: Sequence[int]) -> int:
    """Number of parameters of a Tucker decomposition of all modes: ``prod(r) + sum(n r)``.

    >>> tucker_parameters((6, 4, 3, 3), (5, 4, 3, 3))
    244
    """
    return math.prod(rank) + sum(n * r for n, r in zip(shape, rank, strict=True))


def tt_parameters(shape: Sequence[int], rank: Sequence[int]) -> int:
    """Number of parameters of a tensor train: the sum of ``r_k n_k r_k+1``.

    >>> tt_parameters((4, 3, 3, 6), (1, 5, 4, 7, 1))
    206
    """
    return sum(rank[k] * n * rank[k + 1] for k, n in enumerate(shape))


def factor_std(kind: str, order: int, rank: int | Sequence[int], std: float) -> float:
    """Standard deviation of the entries of all parts for which those of the dense tensor have ``std``.

    kind : 'cp', 'tucker' or 'tt'    order : number of modes    rank : as validated
    The formulas are the originals'; that of 'tt' makes the tensor smaller than asked, and is kept so that
    initial weights agree.

    Raises
    ------
    ValueError
        The kind is unknown.

    Source: TensorLy-Torch, ``normal_`` of each factorization.

    Examples
    --------
    >>> round(factor_std("cp", 4, 3, 0.02), 4), round(factor_std("tt", 4, (1, 2, 2, 2, 1), 0.02), 4)
    (0.3278, 0.2236)
    """
    terms = math.prod((rank,) if isinstance(rank, int) else rank)
    if kind == "cp":
        return float((std / math.sqrt(terms)) ** (1 / order))
    if kind == "tucker":
        return float((std / math.sqrt(terms)) ** (1 / (order + 1)))
    if kind == "tt":
        return float((std / terms) ** (1 / order))
    raise ValueError(f"factor_std: found kind {kind!r}, expected 'cp', 'tucker' or 'tt'")


def _checked(shape: Sequence[int], where: str) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in shape)
    if not sizes or min(sizes) < 1:
        raise ShapeError(f"{where}: expected a shape of at least one mode with sizes of at least 1, found {sizes}")
    return sizes


def _rounding(rounding: str, where: str) -> Callable[[float], float]:
    if rounding not in _ROUNDING:
        raise ValueError(f"{where}: found rounding {rounding!r}, expected 'round', 'floor' or 'ceil'")
    return _ROUNDING[rounding]


def _share(rank: Rank, where: str) -> float | None:
    """The share of the parameters, or None where the rank is given as such."""
    if isinstance(rank, str):
        if rank != "same":
            raise ValueError(f"{where}: found rank {rank!r}, expected 'same', a share (float) or ranks (int)")
        return 1.0
    if not isinstance(rank, float):
        return None
    if not (math.isfinite(rank) and rank > 0.0):
        raise ValueError(f"{where}: found rank {rank!r}, expected a share of the parameters above 0")
    return rank


def _sequence(rank: Rank, length: int, where: str) -> tuple[int, ...]:
    if not isinstance(rank, Sequence) or any(isinstance(r, bool) or not isinstance(r, int) for r in rank):
        raise TypeError(f"{where}: expected 'same', a float, an int or {length} ints, found {rank!r}")
    ranks = tuple(int(r) for r in rank)
    if len(ranks) != length:
        raise ValueError(f"{where}: rank {ranks} has {len(ranks)} entries, expected {length}")
    return ranks


def _positive(ranks: tuple[int, ...], where: str) -> tuple[int, ...]:
    if any(isinstance(r, bool) for r in ranks):
        raise TypeError(f"{where}: expected rank as ints, found {ranks}")
    if any(r < 1 for r in ranks):
        raise ValueError(f"{where}: found rank {min(ranks)}, expected at least 1")
    return ranks
