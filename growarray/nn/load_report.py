"""What loading a state dict found, as a table: names and shapes that fit or do not, casts, names that look alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import cached_property
from heapq import nlargest
from itertools import takewhile
from typing import Any, NamedTuple

from growarray.display import Block, Displayed, Table, printable, text_of

Shape = tuple[int, ...]

_MOST_ROWS = 40  # of one kind in the table
_MOST_LISTED = 8  # names of one kind in the sentence of an error
_MOST_COMPARED = (100, 1000, 16)  # missing names, unexpected ones, and those of them compared letter by letter


class Misshapen(NamedTuple):
    """A name whose array has another shape than the module expects.

    >>> str(Misshapen("weight", (3, 2), (2, 3)))
    'weight has shape (3, 2), expected (2, 3) (transposed?)'
    """

    name: str
    found: Shape
    expected: Shape

    @property
    def transposed(self) -> str:
        """Which change of axes gives the expected shape: all reversed, the last or the first two; ``''`` for none.

        Shapes alone cannot tell for a square matrix, so that one is never found here.
        """
        found, expected = self.found, self.expected
        if len(found) < 2 or len(found) != len(expected) or found == expected:
            return ""
        if found[:-2] == expected[:-2] and found[-2:] == expected[:-3:-1]:
            return "last two axes swapped"
        if found == expected[::-1]:
            return "axes reversed"
        return "first two axes swapped" if found == (expected[1], expected[0], *expected[2:]) else ""

    def __str__(self) -> str:
        hint = " (transposed?)" if self.transposed else ""
        return f"{printable(self.name)} has shape {self.found}, expected {self.expected}{hint}"


class Cast(NamedTuple):
    """A name whose array has another dtype than the module: the name of each dtype."""

    name: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{printable(self.name)} from {self.found} to {self.expected}"


class _Row(NamedTuple):
    """A row of the table; the names of the fields are its head."""

    what: str
    name: str
    found: str = ""
    expected: str = ""
    remark: str = ""


@dataclass(frozen=True)
class LoadReport(Displayed):
    """What :meth:`Module.load_state_dict` found; ``str(report)`` is a table. Names are those after renaming.

    It is true if something did not fit, so ``assert not network.load_state_dict(state)`` says all is well.

    >>> shapes = {"fc.bias": (2,), "fc.biases": (2,)}
    >>> report = LoadReport(missing=("fc.bias",), unexpected=("fc.biases",), shapes=shapes)
    >>> report.suggestions
    {'fc.bias': ('fc.biases',)}
    >>> print(report)
    0 matched, 1 missing, 1 unexpected
    what        name       found  expected  remark
    missing     fc.bias           (2,)      near: fc.biases
    unexpected  fc.biases  (2,)
    """

    missing: tuple[str, ...] = ()
    """Names of the module that the state does not have."""
    unexpected: tuple[str, ...] = ()
    """Names of the state that the module does not have."""
    misshapen: tuple[Misshapen, ...] = ()
    """Names in both, of two shapes."""
    refused: tuple[Cast, ...] = ()
    """Names in both whose values the module's dtype could not hold: complex to real, float to integer, text, 1e39."""
    matched: tuple[str, ...] = ()
    """Names that fit."""
    casts: tuple[Cast, ...] = ()
    """Those of them whose dtype differs."""
    unused: tuple[str, ...] = ()
    """Entries of ``rename`` that apply to no name."""
    rounded: Mapping[str, float] = field(default_factory=dict)
    """Casts that lost digits: by name the largest change of a value, relative to it; 1 if one became zero."""
    beyond: Mapping[str, Any] = field(default_factory=dict)
    """Refused ones by name, with a value that is beyond the range of the module's dtype."""
    kept: tuple[str, ...] = ()
    """Buffers that a state of this version did not have yet; they keep their values, as in torch."""
    shapes: Mapping[str, Shape] = field(default_factory=dict, repr=False, compare=False)
    """Shapes of the missing and of the unexpected names, as far as they are known without reading."""

    def __bool__(self) -> bool:
        """True if something did not fit."""
        return bool(self.missing or self.unexpected or self.misshapen or self.refused)

    @property
    def transposed(self) -> tuple[Misshapen, ...]:
        """Misshapen names whose shape is the expected one with axes swapped; nothing is transposed without asking."""
        return tuple(entry for entry in self.misshapen if entry.transposed)

    @cached_property
    def suggestions(self) -> dict[str, tuple[str, ...]]:
        """For missing names the unexpected ones that look most like them, best first, the same shape before others."""
        return nearest_names(self.missing, self.unexpected, self.shapes)

    @cached_property
    def hint(self) -> dict[str, str]:
        """The ``rename`` that takes off, or puts on, one prefix and finds half of the missing names or more; or {}."""
        return prefix_hint(self.missing, self.unexpected)

    def with_values(self, rounded: Mapping[str, float], beyond: Mapping[str, Any]) -> LoadReport:
        """The report once the values have been read: those that do not fit are refused, too."""
        return replace(
            self,
            matched=tuple(name for name in self.matched if name not in beyond),
            casts=tuple(cast for cast in self.casts if cast.name not in beyond),
            refused=(*self.refused, *(cast for cast in self.casts if cast.name in beyond)),
            rounded=dict(rounded),
            beyond=dict(beyond),
        )

    def sentence(self) -> str:
        """What did not fit, in one line: a few names of each kind, and those that look like a missing one."""
        near = {name: f"{printable(name)} (near: {_listed(names)})" for name, names in self.suggestions.items()}
        parts = [
            ("missing", [near.get(name, printable(name)) for name in self.missing]),
            ("unexpected", [printable(name) for name in self.unexpected]),
            ("misshapen", list(map(str, self.misshapen))),
            ("refused casts", [_joined(str(entry), self._beyond(entry.name)) for entry in self.refused]),
        ]
        kinds = [f"{kind}: {_cut(texts)}" for kind, texts in parts if texts]
        return "; ".join(kinds + ([self._hint_text()] if self.hint else [])) or _ALL_WELL

    def __str__(self) -> str:
        kinds = ("matched", "missing", "unexpected", "misshapen", "refused", "casts", "kept")
        counts = [f"{len(getattr(self, kind))} {kind}" for kind in kinds if getattr(self, kind) or kind == "matched"]
        rows = list(self._rows())
        title = ", ".join(counts) + ("" if self else f": {_ALL_WELL}")
        lines = [f"rename: {_quoted(entry)} applies to no name" for entry in self.unused]
        blocks: list[Block] = [title, *([Table([_Row._fields, *rows], left=5)] if rows else []), *lines]
        return text_of(blocks + ([self._hint_text()] if self.hint else []))

    def _hint_text(self) -> str:
        old, new = next(iter(self.hint.items()))
        return f"try rename={{{_quoted(old)}: {_quoted(new)}}}"

    def _rows(self) -> Iterator[_Row]:
        kinds: dict[str, tuple[Sequence[Any], Callable[[Any], _Row]]] = {
            "missing": (self.missing, self._missing_row),
            "unexpected": (self.unexpected, self._unexpected_row),
            "misshapen": (self.misshapen, self._misshapen_row),
            "refused": (self.refused, self._refused_row),
        }
        for what, (entries, row) in kinds.items():
            yield from map(row, entries[:_MOST_ROWS])
            if len(entries) > _MOST_ROWS:
                yield _Row(what, f"… and {len(entries) - _MOST_ROWS} more")
        for dtypes, names in _by_dtypes(self.casts).items():
            yield self._cast_row(*dtypes, names)
        if self.kept:
            yield _Row("kept", _names_in_row(self.kept), remark="the state is older than this name")

    def _missing_row(self, name: str) -> _Row:
        near = self.suggestions.get(name, ())
        return _Row("missing", printable(name), "", self._shape(name), f"near: {_listed(near)}" if near else "")

    def _unexpected_row(self, name: str) -> _Row:
        return _Row("unexpected", printable(name), self._shape(name))

    def _misshapen_row(self, entry: Misshapen) -> _Row:
        remark = f"{entry.transposed}? transpose it yourself" if entry.transposed else ""
        return _Row("misshapen", printable(entry.name), str(entry.found), str(entry.expected), remark)

    def _refused_row(self, cast: Cast) -> _Row:
        remark = self._beyond(cast.name) or "values would change: cast it yourself"
        return _Row("refused", printable(cast.name), cast.found, cast.expected, remark)

    def _cast_row(self, found: str, expected: str, names: Sequence[str]) -> _Row:
        largest = max(names, key=lambda name: self.rounded.get(name, 0.0))
        change = self.rounded.get(largest, 0.0)
        remark = f"rounded by up to {change:.1e} of the value, in {printable(largest)}" if change else ""
        return _Row("cast", _names_in_row(names), found, expected, remark)

    def _shape(self, name: str) -> str:
        return str(self.shapes[name]) if name in self.shapes else ""

    def _beyond(self, name: str) -> str:
        """Why a value does not fit, and what to do; ``''`` for other names."""
        return f"{self.beyond[name]!r} is beyond its range: take a wider dtype" if name in self.beyond else ""


_ALL_WELL = "every name and shape agrees"


def nearest_names(
    missing: Sequence[str], unexpected: Sequence[str], shapes: Mapping[str, Shape]
) -> dict[str, tuple[str, ...]]:
    """For each missing name up to three unexpected ones that look like it, those of its shape first.

    Compared are the last parts of the dotted names, then letters; the work is bounded, so of thousands of names only
    the first have suggestions.
    """
    most_missing, most_unexpected, most_compared = _MOST_COMPARED
    split = {name: name.split(".") for name in unexpected[:most_unexpected]}
    result = {}
    for name in missing[:most_missing]:
        parts, shape = name.split("."), shapes.get(name)

        def likeness(
            other: str, name: str = name, parts: list[str] = parts, shape: Shape | None = shape
        ) -> tuple[float, int]:
            same = 2 * (shape is not None and shapes.get(other) == shape)
            return same + _equal(reversed(parts), reversed(split[other])), _equal(name, other)

        scored = []
        for other in nlargest(most_compared, split, key=likeness):
            ratio = SequenceMatcher(None, name, other, autojunk=False).ratio()
            same = shape is not None and shapes.get(other) == shape
            if ratio >= 0.6 or (same and ratio >= 0.4 and parts[-1] == split[other][-1]):
                scored.append((same, ratio, other))
        if scored:
            scored.sort(key=lambda found: (not found[0], -found[1]))
            result[name] = tuple(other for _, _, other in scored[:3])
    return result


def _equal(first: Iterable[str], second: Iterable[str]) -> int:
    """How many parts or letters are equal before the first that differ."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def prefix_hint(missing: Sequence[str], unexpected: Sequence[str]) -> dict[str, str]:
    """A renaming of one prefix that turns unexpected names into at least half of the missing ones; {} for none.

    >>> prefix_hint(["fc.weight", "fc.bias"], ["model.fc.weight", "model.fc.bias"])
    {'model.': ''}
    """
    counts: Counter[tuple[str, str]] = Counter()
    wanted, there = set(missing), set(unexpected)
    counts.update((prefix, "") for name in unexpected for prefix, rest in _heads(name) if rest in wanted)
    counts.update(("", prefix) for name in missing for prefix, rest in _heads(name) if rest in there)
    if not counts:
        return {}
    (old, new), count = counts.most_common(1)[0]
    return {old: new} if 2 * count >= len(missing) else {}


def _heads(name: str) -> Iterator[tuple[str, str]]:
    """Every way to split a name after a dot; of very deep names the first."""
    dot = -1
    for _ in range(32):
        dot = name.find(".", dot + 1)
        if dot < 0:
            return
        yield name[: dot + 1], name[dot + 1 :]


def _by_dtypes(casts: Sequence[Cast]) -> dict[tuple[str, str], list[str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for cast in casts:
        groups.setdefault((cast.found, cast.expected), []).append(cast.name)
    return groups


def _cut(texts: Sequence[str], most: int = _MOST_LISTED) -> str:
    more = f" … and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def _names_in_row(names: Sequence[str]) -> str:
    return _cut([printable(name) for name in names], 2)


def _joined(text: str, remark: str) -> str:
    return f"{text} ({remark})" if remark else text


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names))


def _quoted(name: str) -> str:
    return repr(name) if name.isprintable() else ascii(name)
