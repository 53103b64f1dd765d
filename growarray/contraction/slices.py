"""Modes cut in pieces, so that partial results are small: which part of which operand each slice takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from growarray.contraction.checks import is_whole
from growarray.contraction.geometry import ConvAxis
from growarray.contraction.problem import Conv, Problem
from growarray.errors import PlanError, shown

Range = tuple[slice, slice, ConvAxis | None]


class Piece(NamedTuple):
    """One slice: the part of every operand that it takes, the part of the result that it gives, its convolutions."""

    operands: tuple[tuple[slice, ...], ...]
    output: tuple[slice, ...]
    shapes: tuple[tuple[int, ...], ...]
    axes: tuple[ConvAxis, ...]


def positions(problem: Problem, mode: str) -> int:
    """Positions that a mode can be cut at: those of the output for a convolution mode."""
    conv = problem.conv.get(mode)
    return problem.size[mode] if conv is None else conv.out


def sliceable(problem: Problem) -> list[str]:
    """Modes that can be cut: in what is multiplied, and padded by nothing but zeros."""
    used = {mode for operand in problem.operands for mode in operand.modes}
    modes = [m for m in problem.operands_with_mode if m in used]
    return [
        m for m in modes if positions(problem, m) > 1 and not (m in problem.conv and problem.conv[m].is_padded)
    ]  # fmt: skip


def checked_cuts(problem: Problem, given: Any) -> dict[str, int]:
    """The modes that a user cuts, and in how many pieces. Raises PlanError for what cannot be cut."""
    known = sliceable(problem)
    if not isinstance(given, Mapping):
        raise PlanError(f"slices: found {shown(given)}, expected pieces by mode such as {{'r': 4}}")
    for mode, count in given.items():
        if mode not in known:
            raise PlanError(f"slices: {shown(mode)} is not a mode that can be cut; known are {', '.join(known)}")
        if not is_whole(count) or not 1 <= count <= positions(problem, mode):
            raise PlanError(
                f"slices: found {shown(count)} for {shown(mode)}, expected a whole number from 1 to "
                f"{positions(problem, mode)}"
            )
    return {mode: int(count) for mode, count in given.items() if count > 1}


def pieces(problem: Problem, cuts: Mapping[str, int]) -> Iterator[Piece]:
    """Every slice, each mode of ``cuts`` in so many ranges of about equal size (one a position, if there are fewer)."""
    for chosen in itertools.product(*(_ranges(problem, mode, count) for mode, count in cuts.items())):
        yield _piece(problem, dict(zip(cuts, chosen, strict=True)))


def kinds(problem: Problem, cuts: Mapping[str, int]) -> list[tuple[Piece, int]]:
    """One slice of each size, the largest first, and how many there are."""
    modes = []
    for mode, count in cuts.items():
        alike: dict[Any, list[Range]] = {}
        for one in _ranges(problem, mode, count):
            alike.setdefault((*(part.stop - part.start for part in one[:2]), one[2]), []).append(one)
        modes.append(
            [(same[0], len(same)) for _, same in sorted(alike.items(), key=lambda item: item[0][:2], reverse=True)]
        )
    found = []
    for chosen in itertools.product(*modes):
        ranges = {mode: one for mode, (one, _) in zip(cuts, chosen, strict=True)}
        found.append((_piece(problem, ranges), math.prod(count for _, count in chosen)))
    return found


def sliced_problem(problem: Problem, piece: Piece) -> Problem:
    """The problem of one slice."""
    return Problem(problem.equation, piece.shapes, itemsize=problem.itemsize, **geometry_of(piece.axes))


def geometry_of(axes: tuple[ConvAxis, ...]) -> dict[str, Any]:
    """Options of a problem for given axes."""
    return {
        "stride": [a.stride for a in axes],
        "padding": [(a.before, a.after) for a in axes],
        "dilation": [a.dilation for a in axes],
        "padding_mode": [a.padding_mode for a in axes],
    }


def _ranges(problem: Problem, mode: str, count: int) -> list[Range]:
    """Of the output's positions, and of the feature map's: for each of them its convolution, with the padding left."""
    size, conv = positions(problem, mode), problem.conv.get(mode)
    count, found = max(1, min(count, size)), list[Range]()
    for i in range(count):
        out = slice(size * i // count, size * (i + 1) // count)
        found.append((out, out, None) if conv is None else (out, *_window(conv, out)))
    return found


def _window(conv: Conv, out: slice) -> tuple[slice, ConvAxis]:
    """What a range of outputs reads of the feature map."""
    axis = conv.axis
    start = out.start * axis.stride - axis.before
    end = (out.stop - 1) * axis.stride + (conv.taps - 1) * axis.dilation + 1 - axis.before
    low, high = min(max(start, 0), conv.size), min(max(end, 0), conv.size)
    before, after = max(min(low, end) - start, 0), max(end - max(high, start), 0)  # of zeros alone too
    return slice(low, high), ConvAxis(axis.stride, before, after, axis.dilation, axis.padding_mode)


def _piece(problem: Problem, cuts: Mapping[str, Range]) -> Piece:
    indices = []
    for i, (term, operand) in enumerate(zip(problem.terms, problem.operands, strict=True)):
        index = []
        for axis, mode in enumerate(term):
            conv = problem.conv.get(mode)
            if mode not in cuts or axis in operand.dropped or (conv is not None and conv.kernel == i):
                index.append(slice(None))
            else:
                index.append(cuts[mode][1])
        indices.append(tuple(index))
    shapes = [
        tuple(len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True))
        for index, shape in zip(indices, problem.shapes, strict=True)
    ]
    axes = [
        conv.axis if (found := cuts.get(mode)) is None or found[2] is None else found[2]
        for mode, conv in problem.conv.items()
    ]
    output = tuple(cuts[mode][0] if mode in cuts else slice(None) for mode in problem.output)
    return Piece(tuple(indices), output, tuple(shapes), tuple(axes))
