"""What the commands do with a terminal: a bar while work goes on, tables at any width, a quiet end."""

from __future__ import annotations

import errno
import os
import sys
import time
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_BETWEEN = 0.1  # seconds from one drawing of a bar to the next
_NAME = 16  # columns that a long name is folded to in a narrow terminal
_WIDE = 70  # columns in which a bar and the time left fit beside a count and figures


class Screen(Console):
    """A console that tells the command, and not the process, when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """Raise what the end of the pipe raised."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def can_move_cursor(console: Console) -> bool:
    """Whether the console is a terminal that can draw over a line; colour may be forced without one."""
    return console.file.isatty() and console.is_interactive and not console.is_dumb_terminal


class _Count(ProgressColumn):
    """``name 3/10``, or only the name while the total is unknown."""

    def render(self, task: Task) -> Text:
        count = "" if task.total is None else f" {task.completed:.0f}/{task.total:.0f}"
        return Text(f"{task.description}{count}", no_wrap=True)


class _Figures(ProgressColumn):
    """A few words beside the bar, as many as fit."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


class Bar:
    """One line that is drawn over and gone in the end; nothing at all if the console is no terminal.

    It is drawn by :meth:`update` alone, a few times a second: no thread disturbs what is being measured.

    >>> with Bar(Console(quiet=True)) as bar:
    ...     bar.start("case")
    ...     bar.update(1, 3)
    """

    def __init__(self, console: Console, *, hidden: bool = False) -> None:
        wide = console.width >= _WIDE
        self._progress = Progress(
            _Count(),
            *([BarColumn(bar_width=14)] if wide else []),
            _Figures(),
            *([TimeRemainingColumn()] if wide else []),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=hidden or not can_move_cursor(console),
        )
        self._task: TaskID | None = None
        self._drawn = 0.0

    def __enter__(self) -> Bar:
        _shown.append(self)
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was before; a second call changes nothing."""
        self._progress.stop()
        if self in _shown:
            _shown.remove(self)

    def start(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Start a new count; the total may be given later."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=total, completed=done, figures="")
        self._draw(now=True)

    def update(self, done: int, total: int | None = None, figures: str = "") -> None:
        """Show how many are done, and of how many if ``total`` is given."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, figures=figures)
            self._draw()

    def _draw(self, *, now: bool = False) -> None:
        if now or time.monotonic() - self._drawn >= _BETWEEN:
            self._progress.refresh()
            self._drawn = time.monotonic()


_shown: list[Bar] = []
"""The bars that are drawn: Ctrl-C may come while one starts, before its ``with`` would end it."""


def stderr_bar(name: str, total: int | None = None) -> Bar:
    """A bar beside a result that goes to the standard output."""
    bar = Bar(Screen(stderr=True))
    bar.start(name, total)
    return bar


def plain_table(title: str = "", *, space: int = 2) -> Table:
    """A table without a box, its title on the left."""
    return Table(box=None, padding=(0, space, 0, 0), pad_edge=False, title=title or None, title_justify="left")


def show_line(console: Console, text: str) -> None:
    """Text as it is, without markup; broken between words in a terminal, and left whole for a file or a pipe.

    A line with a path that is longer than the terminal is left to it, so that the path can be copied.
    """
    long = any(cell_len(word) > console.width for word in text.split())
    console.print(Text(text), soft_wrap=long or not console.is_terminal)


def show_table(console: Console, table: Table) -> None:
    """The table if its columns fit; else each row as ``header cell`` pairs, so that no figure is cut."""
    if _least_width(table) <= console.width:
        console.print(table)
        return
    if table.title:
        console.print(Text(str(table.title)))
    headers = [_plain(column.header).replace("-\n", "").replace("\n", " ").strip() for column in table.columns]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        pairs = [(header, _plain(cell)) for header, cell in zip(headers, row, strict=True) if _plain(cell)]
        console.print(Text("  ".join(" ".join(pair).strip() for pair in pairs)))


def _least_width(table: Table) -> int:
    """Columns that a table without a box, padded on the right, needs for its figures; a name may be folded."""
    widths = []
    for column in table.columns:
        texts = [_plain(cell) for cell in (column.header, *column.cells)]
        pieces = [piece for text in texts for piece in (text.splitlines() if column.no_wrap else text.split())]
        longest = max(map(cell_len, pieces), default=1)
        widths.append(max(min(longest, _NAME) if column.overflow == "fold" else longest, column.min_width or 1))
    return sum(widths) + table.padding[1] * (len(widths) - 1)


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def say_interrupted(text: str) -> None:
    """One line on the standard error; in a terminal over the ``^C`` that it shows."""
    for bar in tuple(_shown):
        bar.stop()
    start = "\r" if sys.stderr.isatty() else ""
    sys.stderr.write(f"{start}{text}\n")
    sys.stderr.flush()
