"""Shapes bound to an equation: ``...`` written out as modes, broadcast axes dropped, the size of every mode."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from growarray.contraction.equation import ELLIPSIS, Equation
from growarray.errors import PlanError, shown


@dataclass(frozen=True, slots=True)
class Operand:
    """How an operand becomes one with every mode once: drop broadcast axes, take diagonals, sum what no other needs."""

    dropped: tuple[int, ...]
    diagonals: tuple[tuple[int, int], ...]
    summed: tuple[int, ...]
    modes: tuple[str, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the operand is used as it is."""
        return not (self.dropped or self.diagonals or self.summed)


def checked_shapes(equation: Equation, shapes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Shapes as tuples of whole numbers. Raises PlanError for anything else."""
    try:
        found = tuple(tuple(operator.index(d) for d in shape) for shape in shapes)
    except TypeError as error:
        raise PlanError(f"'{equation}': expected shapes of whole numbers, found {shown(list(shapes))}") from error
    if any(d < 0 for shape in found for d in shape):
        raise PlanError(f"'{equation}': shapes must not be negative, found {list(found)}")
    return found


def expand(
    equation: Equation, shapes: Sequence[tuple[int, ...]]
) -> tuple[list[tuple[str, ...]], tuple[str, ...], list[tuple[int, ...]]]:
    """Write ``...`` out as modes of their own; axes of size 1 that others broadcast are dropped."""
    if len(shapes) != len(equation.terms):
        raise PlanError(f"'{equation}' has {len(equation.terms)} operands, found {len(shapes)} arrays")
    counts = []
    for i, (term, shape) in enumerate(zip(equation.terms, shapes, strict=True)):
        named = len(term) - (ELLIPSIS in term)
        if len(shape) < named or (len(shape) > named and ELLIPSIS not in term):
            raise PlanError(
                f"operand {i} of '{equation}' has {len(shape)} axes {shape}, its term '{' '.join(term)}' names {named}"
            )
        counts.append(len(shape) - named if ELLIPSIS in term else 0)
    most = max(counts, default=0)
    hidden = tuple(f"...{k}" for k in range(most))
    terms, dropped = [], []
    for term, shape, count in zip(equation.terms, shapes, counts, strict=True):
        place = term.index(ELLIPSIS) if ELLIPSIS in term else 0
        own = hidden[most - count :] if count else ()
        terms.append(term[:place] + own + term[place + (ELLIPSIS in term) :])
        dropped.append(tuple(place + k for k in range(count) if shape[place + k] == 1))
    largest: dict[str, int] = dict.fromkeys(hidden, 1)
    for term, shape in zip(terms, shapes, strict=True):
        for name, size in zip(term, shape, strict=True):
            if name in largest and size != 1:
                largest[name] = size
    kept = [tuple(axis for axis in axes if largest[term[axis]] != 1) for term, axes in zip(terms, dropped, strict=True)]
    if most and ELLIPSIS not in equation.output:
        raise PlanError(f"'{equation}': '...' stands for {most} modes that the output lacks; write '...' there too")
    at = equation.output.index(ELLIPSIS) if ELLIPSIS in equation.output else len(equation.output)
    return terms, equation.output[:at] + hidden + equation.output[at + 1 :], kept


def sizes_of(
    equation: Equation,
    terms: Sequence[tuple[str, ...]],
    shapes: Sequence[tuple[int, ...]],
    dropped: Sequence[tuple[int, ...]],
) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Size of every plain mode, and (feature, kernel) of every convolution mode."""
    sizes: dict[str, int] = {}
    holder: dict[str, int] = {}
    pairs: dict[str, list[int]] = {name: [] for name in equation.convolved}
    for i, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        for axis, (name, size) in enumerate(zip(term, shape, strict=True)):
            if name in pairs:
                pairs[name].append(size)
            elif axis not in dropped[i] and sizes.setdefault(name, size) != size:
                raise PlanError(
                    f"'{equation}': mode {shown(name)} has size {sizes[name]} in operand {holder[name]} and {size} in "
                    f"operand {i}; shapes are {[tuple(s) for s in shapes]}"
                )
            holder.setdefault(name, i)
    return sizes, pairs


def operand_of(
    index: int,
    term: tuple[str, ...],
    dropped: tuple[int, ...],
    output: tuple[str, ...],
    operands_with_mode: dict[str, int],
) -> Operand:
    """What is done to an operand before the first product; ``operands_with_mode`` is a mask for each mode."""
    modes = [name for axis, name in enumerate(term) if axis not in dropped]
    diagonals = []
    for name in dict.fromkeys(modes):
        while modes.count(name) > 1:
            first = modes.index(name)
            second = modes.index(name, first + 1)
            diagonals.append((first, second))
            del modes[second]
    lone = [m for m in modes if m not in output and operands_with_mode[m] == 1 << index]
    summed = tuple(axis for axis, name in enumerate(modes) if name in lone)
    return Operand(dropped, tuple(diagonals), summed, tuple(m for m in modes if m not in lone))
