"""Bars and tables by themselves; the commands in a terminal are in test_screens and test_interrupt."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from growarray.cli import terminal
from growarray.cli.terminal import Bar, say_interrupted, show_line, show_table
from tests.cli.terminal import screen


class Tty(io.StringIO):
    """A stream that says to be a terminal."""

    def isatty(self) -> bool:
        return True


def console(stream: io.StringIO, width: int = 80, **options: bool) -> Console:
    return Console(file=stream, width=width, force_terminal=True, _environ={}, **options)


def on_screen(stream: io.StringIO, width: int) -> list[str]:
    """A terminal adds the carriage returns."""
    return screen(stream.getvalue().replace("\n", "\r\n"), width)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_BETWEEN", 0.0)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_bar_is_drawn_before_anybody_knows_of_how_many(width: int) -> None:
    stream = Tty()
    with Bar(console(stream, width)) as bar:
        bar.start("round")
        assert screen(stream.getvalue(), width)[0].split()[0] == "round"
        bar.update(1, 3)
        assert "round 1/3" in screen(stream.getvalue(), width)[-1]
        bar.update(2, figures="loss 0.1234  validation 98.33%  widths 2 4 8 16 32 64 128 256 512 1024 2048")
        last = screen(stream.getvalue(), width)
        assert last[-1].startswith("round 2/3")
        assert len(last) == 1  # one line, however narrow
        assert "loss 0.1234" in last[-1]
        bar.start("fixed", 5, 4)
        assert "fixed 4/5" in screen(stream.getvalue(), width)[-1]
    assert screen(stream.getvalue(), width) == []


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("stream", [io.StringIO(), Tty()], ids=["pipe", "quiet"])
def test_no_bar_where_nobody_looks(stream: io.StringIO) -> None:
    with Bar(console(stream), hidden=isinstance(stream, Tty)) as bar:
        bar.start("case", 2)
        bar.update(1)
    assert stream.getvalue() == ""


def test_an_interrupted_bar_gives_the_terminal_back(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C between the start of a bar and the ``with`` that would end it."""
    stream = Tty()
    bar = Bar(console(stream)).__enter__()
    bar.start("round", 3)
    say_interrupted("growarray: interrupted")
    assert stream.getvalue().count("\x1b[?25h") == 1  # the cursor is shown again
    assert capsys.readouterr().err == "growarray: interrupted\n"
    assert terminal._shown == []


def growths() -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, title="steps")
    table.add_column("where", overflow="fold")
    for header in ("param-\neters", "train\nloss"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_row("layers.1", "760", "0.9698")
    table.add_row(Text("[red]a name from a file, long enough to be folded"), "", "1.0000")
    return table


def shown(width: int) -> list[str]:
    stream = io.StringIO()
    show_table(console(stream, width, no_color=True), growths())
    return on_screen(stream, width)


def test_a_table_that_fits_is_a_table() -> None:
    lines = shown(40)
    assert lines[1].split() == ["param-", "train"]
    assert lines[3].split() == ["layers.1", "760", "0.9698"]


def test_a_table_that_does_not_fit_says_every_figure_with_its_header() -> None:
    assert " ".join(shown(20)) == (
        "steps where layers.1  parameters 760  train loss 0.9698 "
        "where [red]a name from a file, long enough to be folded  train loss 1.0000"
    )
    assert max(map(len, shown(20))) <= 20


def test_a_line_is_broken_between_words_in_a_terminal_alone() -> None:
    text = "growth [refused]: the budget is used up"
    tty, pipe = Tty(), io.StringIO()
    show_line(console(tty, 20), text)
    show_line(Console(file=pipe, width=20, _environ={}), text)
    assert on_screen(tty, 20) == ["growth [refused]:", "the budget is used", "up"]
    assert pipe.getvalue() == f"{text}\n"
