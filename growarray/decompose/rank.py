"""Ranks from a share of the parameters, by the rules of the originals, and what a rank costs and needs.

n_k sizes of the modes · N order · r rank; 'same' is the share 1.0
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from growarray.backend import load
from growarray.contraction.checks import is_whole
from growarray.decompose.arguments import check_choice, check_count, check_modes, check_sizes, is_real, is_share
from growarray.errors import shown

Rank = str | float | int | Sequence[int]
"""'same', a share of the dense parameters (float), one rank (int), or all of them; NumPy's numbers too."""

_ROUNDING: dict[str, Callable[[float], float]] = {"round": round, "floor": math.floor, "ceil": math.ceil}
_STD = {"cp": (0.5, 0), "tucker": (0.5, 1), "tt": (1.0, 0)}  # power of the product of ranks, factors beyond the modes
_LARGEST = 1e6  # share of the parameters: far above any use, and far below where the powers of a share overflow


def validate_cp_rank(shape: Sequence[int], rank: Rank = "same", rounding: str = "round") -> int:
    """Rank of a CP decomposition: ``share * prod(n) / sum(n)``, or the int itself; at least 1.

    Raises ShapeError, ValueError, TypeError: the shape is empty; the rank is not positive or of another kind; the
    rounding is unknown.

    Source: TensorLy, ``validate_cp_rank``, which can return 0.

    >>> validate_cp_rank((64, 32, 3, 3)), validate_cp_rank((64, 32, 3, 3), 0.5), validate_cp_rank((4, 3, 3), 0.05)
    (181, 90, 1)
    """
    where = "validate_cp_rank"
    sizes, integer = check_sizes(shape, where), rounding_of(rounding, where)
    share = share_of(rank, where)
    if share is not None:
        return max(int(integer(math.prod(sizes) * share / sum(sizes))), 1)
    if not is_whole(rank):
        raise TypeError(f"{where}: expected 'same', a float or an int, found {shown(rank)}")
    return at_least_one((rank,), where)[0]


def validate_tucker_rank(
    shape: Sequence[int], rank: Rank = "same", rounding: str = "round", fixed_modes: Collection[int] | None = None
) -> tuple[int, ...]:
    """Ranks of a Tucker decomposition, ``x n_k`` for the x that makes the parameters the share; each at least 1.

    x solves ``prod(n) x^m + (sum of n_k^2) x = share prod(n)`` with m free modes. Modes in ``fixed_modes`` keep their
    size, also beside an int, which stands for all other modes; ranks one by one must agree with them.

    Raises ShapeError, ValueError, TypeError: the shape is empty; ranks are not positive, of another number than the
    modes, or not the size of a mode that is fixed; the fixed modes are not axes; the rounding is unknown.

    Source: TensorLy, ``validate_tucker_rank``.

    >>> validate_tucker_rank((64, 32, 3, 3), 0.5), validate_tucker_rank((64, 32, 3, 3), 0.5, fixed_modes=(2, 3))
    ((47, 24, 2, 2), (37, 19, 3, 3))
    """
    where = "validate_tucker_rank"
    sizes, integer = check_sizes(shape, where), rounding_of(rounding, where)
    fixed = set() if fixed_modes is None else set(check_modes(fixed_modes, len(sizes), where, "fixed_modes"))
    share = share_of(rank, where)
    if share is not None:
        x = _tucker_fraction(sizes, share, fixed)
        return tuple(n if k in fixed else max(int(integer(n * x)), 1) for k, n in enumerate(sizes))
    if is_whole(rank):
        single = at_least_one((rank,), where)[0]
        return tuple(n if k in fixed else single for k, n in enumerate(sizes))
    ranks = all_ranks(rank, len(sizes), where, also="'same', a float, an int or ")
    for k in sorted(fixed):
        if ranks[k] != sizes[k]:
            raise ValueError(
                f"{where}: rank {ranks} has {ranks[k]} for mode {k}, which fixed_modes keeps at its size {sizes[k]}; "
                "give that, or leave the mode out of fixed_modes"
            )
    return ranks


def _tucker_fraction(sizes: Sequence[int], share: float, fixed: Collection[int]) -> float:
    """The x of :func:`validate_tucker_rank`, by Brent's method."""
    total, squares = math.prod(sizes), sum(n * n for n in sizes)
    power = len(sizes) - len(fixed)
    if not power:
        return 1.0  # no rank is left to choose

    def excess(x: float) -> float:
        return float(total * x**power + squares * x - share * total)

    return float(load("scipy.optimize").brentq(excess, 0.0, max(share, 1.0)))


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

    Raises ShapeError, ValueError, TypeError: the shape is empty; ranks are not positive, do not start and end with 1,
    or are too many or few.

    Source: TensorLy, ``validate_tt_rank``; of a matrix with ``constant_rank`` it returns a fraction, here rounded.

    >>> validate_tt_rank((64, 32, 3, 3), 0.5), validate_tt_rank((4, 3, 3), 3)
    ((1, 25, 9, 2, 1), (1, 3, 3, 1))
    """
    where = "validate_tt_rank"
    sizes, integer = check_sizes(shape, where), rounding_of(rounding, where)
    share = share_of(rank, where)
    if share is not None:
        inner = _tt_inner(sizes, share, constant_rank)
        ranks = (1, *(max(int(integer(r)), 1) for r in inner), 1)
    elif is_whole(rank):
        ranks = (1, *at_least_one((rank,), where) * (len(sizes) - 1), 1)
    else:
        ranks = all_ranks(rank, len(sizes) + 1, where, also="'same', a float, an int or ")
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
    sizes = check_sizes(shape, "largest_cp_rank")
    return math.prod(sizes) // max(sizes)


def largest_tucker_rank(shape: Sequence[int]) -> tuple[int, ...]:
    """Ranks that the unfoldings of every tensor of this shape have at most.

    >>> largest_tucker_rank((64, 2, 3, 3))
    (18, 2, 3, 3)
    """
    sizes = check_sizes(shape, "largest_tucker_rank")
    return tuple(min(n, math.prod(sizes) // n) for n in sizes)


def largest_tt_rank(shape: Sequence[int]) -> tuple[int, ...]:
    """Ranks above which a tensor train of this shape gains nothing, the two ends included.

    >>> largest_tt_rank((4, 3, 3, 6))
    (1, 4, 12, 6, 1)
    """
    sizes = check_sizes(shape, "largest_tt_rank")
    inner = (min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes)))
    return (1, *inner, 1)


def cp_parameters(shape: Sequence[int], rank: int) -> int:
    """Number of parameters of a CP decomposition, weights included: ``r (1 + sum(n))``.

    >>> cp_parameters((6, 4, 3, 3), 14)
    238
    """
    sizes = check_sizes(shape, "cp_parameters")
    return check_count(rank, "rank", "cp_parameters", least=1) * (1 + sum(sizes))


def tucker_parameters(shape: Sequence[int], rank: Sequence[int]) -> int:
    """Number of parameters of a Tucker decomposition of all modes: ``prod(r) + sum(n r)``.

    >>> tucker_parameters((6, 4, 3, 3), (5, 4, 3, 3))
    244
    """
    where = "tucker_parameters"
    sizes = check_sizes(shape, where)
    ranks = all_ranks(rank, len(sizes), where)
    return math.prod(ranks) + sum(n * r for n, r in zip(sizes, ranks, strict=True))


def tt_parameters(shape: Sequence[int], rank: Sequence[int]) -> int:
    """Number of parameters of a tensor train or ring: the sum of ``r_k n_k r_k+1``, both ends of the ranks included.

    >>> tt_parameters((4, 3, 3, 6), (1, 5, 4, 7, 1))
    206
    """
    where = "tt_parameters"
    sizes = check_sizes(shape, where)
    ranks = all_ranks(rank, len(sizes) + 1, where)
    return sum(r * n * s for r, n, s in zip(ranks, sizes, ranks[1:], strict=False))


def factor_std(kind: str, order: int, rank: int | Sequence[int], std: float) -> float:
    """Standard deviation of the factors' entries that gives the dense tensor's entries ``std``.

    kind : 'cp', 'tucker' or 'tt'    order : number of modes    rank : as validated
    The formulas are the originals'; that of 'tt' makes the tensor smaller than asked, and is kept so that
    initial weights agree.

    Raises ValueError, TypeError: the kind is unknown; the order or a rank is not a whole number above 0; ``std`` is
    negative or not a number.

    Source: TensorLy-Torch, ``normal_`` of each factorization.

    >>> round(factor_std("cp", 4, 3, 0.02), 4), round(factor_std("tt", 4, (1, 2, 2, 2, 1), 0.02), 4)
    (0.3278, 0.2236)
    """
    where = "factor_std"
    check_choice(kind, tuple(_STD), "kind", where)
    check_count(order, "order", where, least=1)
    if not is_real(std) or not 0.0 <= std < math.inf:
        raise ValueError(f"{where}: expected std as a finite number of at least 0, found {shown(std)}")
    terms = math.prod(at_least_one((rank,), where) if is_whole(rank) else all_ranks(rank, None, where))
    power, more = _STD[kind]
    return float((std / terms**power) ** (1 / (order + more)))


def rounding_of(rounding: str, where: str) -> Callable[[float], float]:
    """The function that makes whole numbers: 'round', 'floor' or 'ceil'."""
    return _ROUNDING[check_choice(rounding, tuple(_ROUNDING), "rounding", where)]


def share_of(rank: Rank, where: str) -> float | None:
    """The share of the parameters, or None if the rank is given as such."""
    if not is_share(rank):
        return None
    if isinstance(rank, str):
        if rank != "same":
            raise ValueError(f"{where}: found rank {shown(rank)}, expected 'same', a share (float) or ranks (int)")
        return 1.0
    share = float(rank)  # type: ignore[arg-type]
    if not 0.0 < share <= _LARGEST:
        raise ValueError(
            f"{where}: found rank {shown(rank)}, expected a share of the parameters above 0 and at most {_LARGEST:g}"
        )
    return share


def all_ranks(rank: Rank, length: int | None, where: str, also: str = "") -> tuple[int, ...]:
    """Ranks one by one, each at least 1, so many if ``length`` is known; ``also`` is what else would be taken."""
    if isinstance(rank, str) or not isinstance(rank, Sequence) or not all(map(is_whole, rank)):
        ints = "ints" if length is None else f"{length} ints"
        raise TypeError(f"{where}: expected rank as {also}{ints}, found {shown(rank)}")
    ranks = tuple(map(int, rank))
    if length is not None and len(ranks) != length:
        raise ValueError(f"{where}: rank {ranks} has {len(ranks)} entries, expected {length}")
    return at_least_one(ranks, where)


def at_least_one(ranks: Sequence[Any], where: str) -> tuple[int, ...]:
    """Ranks as ints; ValueError if one is below 1."""
    low = [r for r in ranks if r < 1]
    if low:
        raise ValueError(f"{where}: found rank {low[0]}, expected at least 1")
    return tuple(map(int, ranks))
