"""How a module prints: on one line, or with the modules inside on a line each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

_WIDTH = 100


def describe(kind: str, options: str, inner: Sequence[tuple[str, str]], *, a_line_each: bool = False) -> str:
    """``kind(options, name=text, …)``; if that is long, or a text has several lines, each on its own line.

    A module without a name is its text alone.

    >>> print(describe("Sequential", "", [("0", "Linear(2, 3)"), ("1", "ReLU()")], a_line_each=True))
    Sequential(
      (0): Linear(2, 3)
      (1): ReLU()
    )
    """
    first = [options] if options else []
    line = f"{kind}({', '.join([*first, *(f'{name}={text}' if name else text for name, text in inner)])})"
    if not inner or not (a_line_each or "\n" in line or len(line) > _WIDTH):
        return line
    rows = [*first, *(f"({name}): {text}" if name else text for name, text in inner)]
    return "\n".join([f"{kind}(", *(textwrap.indent(row, "  ") for row in rows), ")"])
