"""A checkpoint as a table: names, shapes, types and bytes, without reading a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from growarray.files.tensor import StoredTensor


def table(
    stored: Mapping[str, StoredTensor], *, title: str, tied: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    """Text with a line for each tensor, then the groups of tied names and the notes."""
    rows = [(printable(name), shape_text(t.shape), t.dtype.name, f"{t.nbytes:,}") for name, t in stored.items()]
    rows = [("name", "shape", "dtype", "bytes"), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [title]
    for name, shape, dtype, nbytes in rows:
        lines.append(f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {dtype:<{widths[2]}}  {nbytes:>{widths[3]}}")
    lines.append(f"{len(stored)} tensors, {sum(t.nbytes for t in stored.values()):,} bytes")
    lines += [f"tied: {', '.join(map(printable, group))}" for group in tied]
    lines += [f"note: {note}" for note in notes]
    return "\n".join(lines)


def shape_text(shape: tuple[int, ...]) -> str:
    """``2x3``, or ``scalar``."""
    return "x".join(map(str, shape)) or "scalar"


def printable(name: str) -> str:
    """A name as it is, or escaped if a terminal would obey it or show nothing.

    >>> printable("a\\x1b[2J")
    'a\\\\x1b[2J'
    """
    return name if name.isprintable() else ascii(name)[1:-1]
