"""Which pairs of kernel taps read a feature map at the same lag, what summing them costs, and which axes are worth it.

Output position q and tap t of an axis read position ``q stride + t dilation - before`` of the feature map: its phase is
the remainder of ``t dilation`` by the stride, its offset the quotient, so that with the strides taken out of the map
the tap reads index ``q + offset`` of its phase. Two taps multiply phase r with phase r' at a lag of their offsets, over
the run of indices ``offset <= m < offset + out``. Pairs with equal phases and lag multiply the same things, over runs
that differ by little at both ends.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from growarray.contraction.machine import machine_for
from growarray.contraction.problem import Axis

# bytes of one block of images with what is made of them: more would not stay in the cache, or fill a GPU
_BLOCK = {"cpu": 7 << 19, "gpu": 1 << 28}
_LARGEST = {"cpu": 1 << 24, "gpu": 1 << 28}  # bytes of a block that is not taken in pieces, however large an image is
_SHARED = 2e-3  # seconds from which on work is shared

LANES = 2  # blocks that are worked on side by side
DEEP = 4096  # positions in one product in single precision, which is then added in double
MIXED = 8  # images that are mixed together; see contraction.kernels
_NARROW = 8  # features whose product takes twice its time to pack them, and as long in single precision as in double
_MIXING = 8  # gathered elements that mixing one costs
_CALLS = 4  # calls into the library around one product

Pairs = tuple[tuple[int, int], ...]


class Run(NamedTuple):
    """Stored indices ``start`` to ``stop`` of the left phase, and the pairs of taps that sum over all of them."""

    start: int
    stop: int
    pairs: Pairs


class Lag(NamedTuple):
    """Phases of both sides, how far the right index is ahead of the left one, and the runs, which do not overlap."""

    left: int
    right: int
    lag: int
    runs: tuple[Run, ...]

    @property
    def key(self) -> tuple[int, int, int]:
        """What the products are."""
        return self.left, self.right, self.lag

    @property
    def mirrored(self) -> tuple[int, int, int]:
        """The key of the transposed products, if both sides are the same."""
        return self.right, self.left, -self.lag

    @property
    def spans(self) -> dict[tuple[int, int], slice]:
        """The runs that each pair of taps sums over, which follow one another."""
        spans: dict[tuple[int, int], slice] = {}
        for i, run in enumerate(self.runs):
            for pair in run.pairs:
                spans[pair] = slice(spans.get(pair, slice(i, i)).start, i + 1)
        return spans


@dataclass(frozen=True, slots=True)
class LaggedAxis:
    """An axis whose windows are not unfolded: indices ``first`` to ``first + count`` of each phase are stored."""

    first: int
    count: int
    lags: tuple[Lag, ...]

    def phases(self, side: str) -> tuple[int, ...]:
        """Those of the left or the right side that stand in a product."""
        return tuple(sorted({getattr(lag, side) for lag in self.lags}))


def _offsets(axis: Axis) -> list[tuple[int, int]]:
    """Phase and offset of each tap."""
    return [divmod(tap * axis.dilation, axis.stride)[::-1] for tap in range(axis.taps)]


def _inside(axis: Axis, phase: int) -> tuple[int, int]:
    """First index of a phase that does not lie in the padding before, and the first that lies behind the map."""
    return -((phase - axis.before) // axis.stride), (axis.size - 1 - phase + axis.before) // axis.stride + 1


@lru_cache(maxsize=512)
def lagged_axis(left: Axis, right: Axis) -> LaggedAxis:
    """The lags of one axis; ``left`` and ``right`` have equally many outputs. Runs leave out what lies in the padding.

    >>> [(lag.lag, len(lag.runs)) for lag in lagged_axis(*[Axis("x", 5, 2, 4)] * 2).lags]
    [(0, 3), (1, 1), (-1, 1)]
    """
    groups: dict[tuple[int, int, int], list[tuple[int, tuple[int, int]]]] = {}
    for (s, (r, offset)), (t, (u, other)) in itertools.product(enumerate(_offsets(left)), enumerate(_offsets(right))):
        groups.setdefault((r, u, other - offset), []).append((offset, (s, t)))
    runs_of = {key: _runs(left, right, key, members) for key, members in groups.items()}
    ends = [
        (run.start + ahead, run.stop + ahead)
        for (*_, lag), runs in runs_of.items()
        for run in runs
        for ahead in (0, lag)
    ]
    first = min((start for start, _ in ends), default=0)
    count = max((stop for _, stop in ends), default=first + 1) - first
    lags = [
        Lag(*key, tuple(run._replace(start=run.start - first, stop=run.stop - first) for run in runs))
        for key, runs in runs_of.items()
        if runs
    ]
    return LaggedAxis(first, count, tuple(lags))


def _runs(
    left: Axis, right: Axis, key: tuple[int, int, int], members: Sequence[tuple[int, tuple[int, int]]]
) -> list[Run]:
    """Cut the indices of the left phase where a pair of taps begins or ends; what is padding on one side is zero."""
    (low, high), (other_low, other_high) = _inside(left, key[0]), _inside(right, key[1])
    low, high = max(low, other_low - key[2]), min(high, other_high - key[2])
    runs = []
    for start, stop in itertools.pairwise(
        sorted({end for offset, _ in members for end in (offset, offset + left.out)})
    ):
        pairs = tuple(pair for offset, pair in members if offset <= start and stop <= offset + left.out)
        if pairs and max(start, low) < min(stop, high):
            runs.append(Run(max(start, low), min(stop, high), pairs))
    return runs


@dataclass(frozen=True, slots=True)
class MomentPlan:
    """How a moment is summed: the lagged axes, the outer one first; all others are unfolded. Holds no arrays.

    lagged : axes    outer, inner : their lags; for an axis that is not lagged those of a single position
    single : whether products are made in single precision, from images that are mixed
    images : of one block    pieces : of an image, cut along its longest axis    shared : whether it is worth threads
    seconds : predicted on one core
    """

    lagged: tuple[int, ...]
    outer: LaggedAxis
    inner: LaggedAxis
    single: bool
    images: int
    pieces: int
    shared: bool
    seconds: float


_POINT = Axis("", 1)


def orders(axes: int) -> Iterator[tuple[int, ...]]:
    """The choices of at most two lagged axes, outer before inner.

    >>> list(orders(2))
    [(), (0,), (1,), (0, 1), (1, 0)]
    """
    for count in range(min(axes, 2) + 1):
        yield from itertools.permutations(range(axes), count)


@lru_cache(maxsize=512)
def moment_plan(
    left: tuple[Axis, ...],
    right: tuple[Axis, ...],
    sizes: tuple[int, int, int],
    symmetric: bool,
    lagged: tuple[int, ...] | None = None,
    single: bool = False,
    device: str = "cpu",
) -> MomentPlan:
    """The cheapest choice of lagged axes, or the given one, in single precision too if ``single`` allows it.

    sizes : images, channels left and right

    >>> axes = (Axis("y", 56, 3, 54), Axis("x", 56, 3, 54))
    >>> moment_plan(axes, axes, (32, 64, 64), True).lagged
    (0, 1)
    """
    choices = orders(len(left)) if lagged is None else (lagged,)
    precisions = (False, True) if single and sizes[0] >= MIXED else (False,)
    plans = (
        _plan(left, right, sizes, symmetric, one, precision, device)
        for one, precision in itertools.product(choices, precisions)
    )
    return min(plans, key=lambda plan: plan.seconds)


def _plan(
    left: tuple[Axis, ...],
    right: tuple[Axis, ...],
    sizes: tuple[int, int, int],
    symmetric: bool,
    lagged: tuple[int, ...],
    single: bool,
    device: str,
) -> MomentPlan:
    machine = machine_for(device)
    point = lagged_axis(_POINT, _POINT)
    outer, inner = [*(lagged_axis(left[i], right[i]) for i in lagged), point, point][:2]
    rest = [i for i in range(len(left)) if i not in lagged]
    f, g = (n * math.prod(side[i].taps for i in rest) for n, side in zip(sizes[1:], (left, right), strict=True))
    spread = math.prod(left[i].out for i in rest)
    stored = f * len(outer.phases("left")) * len(inner.phases("left"))
    stored += 0 if symmetric else g * len(outer.phases("right")) * len(inner.phases("right"))
    stored *= outer.count * inner.count * spread
    itemsize = 4 if single else 8
    half = 0.5 if symmetric else 1.0
    rows = sum(run.stop - run.start for lag in outer.lags for run in lag.runs)
    columns = sum(_depth(run, inner.count) for lag in inner.lags for run in lag.runs)
    calls, sums = (_each(outer, what) * _each(inner, what) for what in ("runs", "pairs"))
    product = machine.element
    if f * g > 1:
        narrow = _NARROW * (3 if single else 1) / min(f, g)
        product = machine.product(1, f, DEEP, g, itemsize) / DEEP * (1 + narrow)
    if single:
        product += _CALLS * machine.call / DEEP
    seconds = stored * sizes[0] * (1.5 if single else 2) * (2 if len(lagged) == 2 else 1) * machine.copied
    if single:
        seconds += sum(sizes[1:]) / 2 * math.prod(axis.size for axis in left) * sizes[0] * _MIXING * machine.copied
    seconds += half * rows * columns * spread * sizes[0] * product
    adding = half * calls * (_CALLS * machine.call + f * g * 4 * machine.element) * (2 if single else 1)
    shared = seconds > max(_SHARED, 2 * adding)
    images, blocks = _blocks(sizes[0], MIXED if single else 1, itemsize * max(stored, 1), shared, device)
    pieces = max(1, -(-itemsize * stored * images // _LARGEST[device]))
    if shared and blocks == 1 and not lagged:
        pieces = max(pieces, LANES)
    seconds += blocks * adding + half * sums * f * g * 4 * machine.element
    pairs = math.prod(left[i].taps * right[i].taps for i in lagged)
    seconds += pairs * (_CALLS * machine.call + f * g * 2 * machine.gathered)
    return MomentPlan(lagged, outer, inner, single, images, pieces, shared, seconds)


def _blocks(samples: int, unit: int, size: int, shared: bool, device: str) -> tuple[int, int]:
    """Images of a block, a multiple of ``unit``, and how many blocks there are: if they are shared, the same for each
    lane.

    size : bytes of one image with what is made of it
    """
    count = max(1, -(-samples * size // _BLOCK[device]))
    count += shared and count % LANES
    images = unit * max(1, -(-(samples // unit) // count))
    return images, max(1, -(-(samples - samples % unit) // images))


def reads_all(run: Run, count: int) -> bool:
    """Whether a product over a run of the inner axis reads all ``count`` columns, the others as zeros: if it has most.

    >>> reads_all(Run(1, 9, ()), 10), reads_all(Run(0, 2, ()), 10)
    (True, False)
    """
    return 2 * (run.stop - run.start) > count


def _depth(run: Run, count: int) -> int:
    return count if reads_all(run, count) else run.stop - run.start


def _each(axis: LaggedAxis, what: str) -> int:
    runs = [run for lag in axis.lags for run in lag.runs]
    return len(runs) if what == "runs" else sum(len(run.pairs) for run in runs)
