"""Equations with named modes and convolution modes: ``"n c y x, o c y x -> n o y x | y, x"``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from growarray.errors import PlanError

ELLIPSIS = "..."
_NAME = re.compile(r"[^\W\d]\w*|\.\.\.|[^\x00-\x7f\s]")  # opt_einsum.get_symbol gives signs such as × too


@dataclass(frozen=True, slots=True)
class Equation:
    """What an equation says: the modes of every operand, of the output, and which of them are convolution modes.

    >>> str(parse("ij,jk->ik"))
    'i j, j k -> i k'
    """

    terms: tuple[tuple[str, ...], ...]
    output: tuple[str, ...]
    convolved: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{', '.join(' '.join(term) for term in self.terms)} -> {' '.join(self.output)}"
        return f"{text} | {', '.join(self.convolved)}" if self.convolved else text


def parse(text: str) -> Equation:
    """Read an equation.

    Modes are names separated by blanks (``"batch in, out in -> batch out"``). If no term has a blank inside, every
    letter is a mode, as in :func:`numpy.einsum` (``"ij,jk->ik"``), of any alphabet, as in opt_einsum. ``...`` stands
    for any number of leading, shared modes. Without ``->`` the output is every mode that occurs once, in alphabetical
    order. After ``|`` come the convolution modes: each is in two operands, the feature map first and the kernel second,
    and in the output.

    Raises PlanError: the text is not an equation; the message points at the place.

    >>> parse("n c x, o c x -> n o x | x").convolved
    ('x',)
    """
    if not isinstance(text, str):
        raise PlanError(f"equation: expected a string such as 'ij,jk->ik', found {type(text).__name__}")
    return _parsed(text)


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Equation:
    body, bar, tail = text.partition("|")
    left, arrow, right = body.partition("->")
    for mark, place in (("->", len(left) + 2 if arrow else -1), ("|", len(body) + 1 if bar else -1)):
        if place >= 0 and mark in text[place:]:
            _fail(text, text.index(mark, place), f"a second {mark!r}")
    pieces = left.split(",")
    named = any(len(piece.split()) > 1 for piece in [*pieces, right])
    start, terms = 0, []
    for piece in pieces:
        terms.append(_modes(text, start, piece, named))
        start += len(piece) + 1
    output = _modes(text, len(left) + 2, right, named) if arrow else _implicit(terms)
    convolved: list[str] = []
    start = len(body) + 1
    for piece in tail.split(",") if bar else []:
        convolved += _modes(text, start, piece, named)
        start += len(piece) + 1
    equation = Equation(tuple(terms), output, tuple(convolved))
    _check(text, equation, (len(left) + 2 if arrow else 0), len(body) + 1)
    return equation


def _modes(text: str, start: int, piece: str, named: bool) -> tuple[str, ...]:
    """The modes of one term, which begins at ``start`` of the text."""
    modes, place = [], 0
    while place < len(piece):
        if piece[place].isspace():
            place += 1
            continue
        found = _NAME.match(piece, place)
        if found is None:
            _fail(text, start + place, f"unexpected {piece[place]!r}, expected a name, ',', '->' or '|'")
        name = found.group()
        if not named and name != ELLIPSIS:
            name = piece[place]
            if name.isascii() and not name.isalpha():
                _fail(text, start + place, f"unexpected {name!r}; separate named modes by blanks")
        if name == ELLIPSIS and name in modes:
            _fail(text, start + place, "a second '...' in one term")
        modes.append(name)
        place += len(name)
    return tuple(modes)


def _implicit(terms: list[tuple[str, ...]]) -> tuple[str, ...]:
    every = [mode for term in terms for mode in term]
    once = sorted(mode for mode in set(every) if mode != ELLIPSIS and every.count(mode) == 1)
    return (ELLIPSIS, *once) if ELLIPSIS in every else tuple(once)


def _check(text: str, equation: Equation, output: int, convolved: int) -> None:
    """Refuse equations that parse but have no meaning."""
    for mode in equation.output:
        if not any(mode in term for term in equation.terms):
            _fail(text, _place(text, mode, output), f"output mode {mode!r} is not in any operand")
        if equation.output.count(mode) > 1:
            _fail(text, _place(text, mode, output), f"output mode {mode!r} occurs twice; take a diagonal afterwards")
    for mode in equation.convolved:
        place = _place(text, mode, convolved)
        terms = [term for term in equation.terms if mode in term]
        if equation.convolved.count(mode) > 1:
            _fail(text, place, f"convolution mode {mode!r} is named twice")
        if mode == ELLIPSIS:
            _fail(text, place, "'...' cannot be a convolution mode; name the modes")
        if len(terms) != 2 or any(term.count(mode) > 1 for term in terms):
            _fail(
                text,
                place,
                f"convolution mode {mode!r} is in {len(terms)} operands, expected once in exactly two: "
                "the feature map first, the kernel second",
            )
        if mode not in equation.output:
            _fail(text, place, f"convolution mode {mode!r} must be in the output; sum over it afterwards")


def _place(text: str, mode: str, start: int) -> int:
    """Where a mode is written, from ``start`` on."""
    found = re.compile(rf"(?<!\w){re.escape(mode)}(?!\w)").search(text, start)
    return found.start() if found else max(text.find(mode, start), 0)


def _fail(text: str, place: int, what: str) -> NoReturn:
    raise PlanError(f"equation, character {place + 1}: {what}\n  {text}\n  {' ' * place}^")
