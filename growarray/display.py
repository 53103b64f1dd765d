"""Lines and tables as text, and as escaped HTML for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from html import escape
from typing import Any, NamedTuple

from growarray.errors import shown


class Table(NamedTuple):
    """Rows of cells, the first of which is the head. The first ``left`` columns are text, the others numbers."""

    rows: Sequence[Sequence[str]]
    left: int = 2


Block = str | Table


def text_of(blocks: Sequence[Block]) -> str:
    """Blocks as lines of text, tables with aligned columns.

    >>> print(text_of(["sizes", Table([["name", "size"], ["a", "10"]], left=1)]))
    sizes
    name  size
    a       10
    """
    return "\n".join(line.rstrip() for block in blocks for line in _lines(block))


def _lines(block: Block) -> list[str]:
    if isinstance(block, str):
        return [block]
    widths = [max(map(len, column)) for column in zip(*block.rows, strict=True)]
    sides = [str.ljust if k < block.left else str.rjust for k in range(len(widths))]
    return ["  ".join(side(c, w) for side, c, w in zip(sides, row, widths, strict=True)) for row in block.rows]


def html_of(blocks: Sequence[Block]) -> str:
    """Blocks as HTML.

    >>> html_of(["a < b", Table([["name"], ["<script>"]])])
    '<pre>a &lt; b</pre><table><tr><th>name</th></tr><tr><td style="text-align:left">&lt;script&gt;</td></tr></table>'
    """
    return "".join(_html(block) for block in blocks if block)


def _html(block: Block) -> str:
    if isinstance(block, str):
        return f"<pre>{escape(block)}</pre>"
    head, *rows = block.rows
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    for row in rows:
        sides = ("left" if k < block.left else "right" for k in range(len(row)))
        lines.append(
            "".join(f'<td style="text-align:{side}">{escape(cell)}</td>' for side, cell in zip(sides, row, strict=True))
        )
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def printable(name: str) -> str:
    """A name as it is, or escaped if a terminal would obey a part of it or not show it.

    >>> printable("a\\x1b[2J")
    'a\\\\x1b[2J'
    """
    return name if name.isprintable() else ascii(name)[1:-1]


def fields_of(value: Any) -> str:
    """The ``repr`` of a dataclass, with arrays by their shape and without the fields that have their default.

    >>> from growarray.growing import Stream
    >>> import numpy as np
    >>> fields_of(Stream(np.zeros((5, 2))))
    'Stream(array=ndarray of float64 and shape (5, 2))'
    """
    pairs = ((field, getattr(value, field.name)) for field in fields(value) if field.repr)
    texts = (f"{field.name}={shown(entry)}" for field, entry in pairs if entry is not field.default)
    return f"{type(value).__name__}({', '.join(texts)})"


class Displayed:
    """What notebooks show as HTML: its blocks, by default its ``str`` alone."""

    def _blocks(self) -> Sequence[Block]:
        return [str(self)]

    def _repr_html_(self) -> str:
        return html_of(self._blocks())
