"""What a run shows in the terminal: a bar over the epochs, a row for each growth, tables at the end."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from growarray.cli.data import DIGITS, RunData
from growarray.cli.run import RunOptions
from growarray.cli.terminal import Bar, show_line, show_table
from growarray.networks import Growth, History

__all__ = ["Show", "growth_table", "result_table"]


def _change(value: float) -> str:
    if value == 0.0:
        return "0"
    return f"{value:+.4f}" if abs(value) >= 1e-4 else f"{value:+.1e}"


def _score(value: float | None, name: str) -> str:
    if value is None:
        return "no test part"
    return f"{value:.2%}" if name == "accuracy" else f"{value:.4f}"


def _score_name(name: str) -> str:
    return "R2" if name == "r2" else name


def _widths(widths: list[int]) -> str:
    return " ".join(map(str, widths))


class Show:
    """Shows one run on a console; as a context it holds the bar. ``quiet`` leaves the last line alone."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self._bar = Bar(console, hidden=quiet)

    def __enter__(self) -> Show:
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, at)

    def line(self, text: str) -> None:
        """One line, left out when quiet."""
        if not self.quiet:
            show_line(self.console, text)

    def start(self, options: RunOptions, data: RunData, loop: Growth) -> None:
        """What is trained, on what."""
        parts = [("training", data.train), ("validation", data.validation), ("test", data.test)]
        sizes = ", ".join(f"{pair[0].shape[0]} {name}" for name, pair in parts if pair is not None)
        source = "digits" if options.data == DIGITS else options.data
        kind = f"{data.outputs} classes" if data.classes else f"{data.outputs} real target(s)"
        self.line(f"data     {source}, {data.features} features, {kind}")
        self.line(f"samples  {sizes}")
        self.line(
            f"network  {options.network}, {options.activation}, widths {_widths(loop.network.widths)}, "
            f"{loop.network.number_of_parameters()} parameters, rule {options.rule}"
        )
        if loop.epoch:
            self.line(f"resumed  after epoch {loop.epoch} of {options.epochs}")
        self._bar.start("epoch", options.epochs, loop.epoch)

    def start_fixed(self, options: RunOptions) -> None:
        """From now on the entries are those of the fixed network."""
        self.line("training a fixed network of the same widths, from the start, to compare")
        self._bar.start("fixed", options.epochs)

    def entry(self, loop: Growth, entry: dict[str, Any]) -> None:
        """One entry of the history, as it comes."""
        if entry["event"] == "train":
            score = _score(entry["validation_score"], loop.task.score_name)
            figures = f"loss {entry['train_loss']:.4f}  validation {score}  widths {_widths(entry['widths'])}"
            self._bar.update(entry["epoch"], figures=figures)
        elif entry["event"] == "growth":
            where = entry.get("where", "everywhere")
            if "refused" in entry:
                self.line(f"epoch {entry['epoch']:>3}  {where:<14} growth refused: {entry['refused']}")
                return
            self.line(
                f"epoch {entry['epoch']:>3}  {where:<14} +{entry['added']} -> {entry['parameters']} parameters, "
                f"loss {_change(entry['train_change'])}"
            )

    def result(self, options: RunOptions, history: History, final: dict[str, Any]) -> None:
        """The tables, and one last line with the test figure."""
        if not self.quiet:
            self.console.print()
            show_table(self.console, growth_table(history, final["score_name"]))
            for text in _remarks(history):
                self.line(text)
            self.console.print()
            show_table(self.console, result_table(options, final))
        name, score = _score_name(final["score_name"]), _score(final["test_score"], final["score_name"])
        text = f"test {name} {score}, {final['parameters']} parameters, {final['seconds']:.1f} s"
        show_line(self.console, text)


def _remarks(history: History) -> list[str]:
    """One line for each reason why growths were refused, and for each note on how they were computed."""
    epochs: dict[str, list[str]] = {}
    for entry in history.of("growth"):
        refused = [f"growth refused, {entry['refused']}"] if "refused" in entry else []
        for text in (*refused, *entry.get("notes", ())):
            epochs.setdefault(text, []).append(str(entry["epoch"]))
    return [f"after epoch {', '.join(those)}: {text}" for text, those in epochs.items()]


def growth_table(history: History, score_name: str) -> Table:
    """One row for each growth step. Fits 80 columns.

    first order : the change of the training loss that the derivatives promise at the scaling taken
    change : what the growth did to the training loss;  loss, score : after the growth, before it is trained further
    """
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, title="growth steps")
    table.title_justify = "left"
    table.add_column("after\nepoch", justify="right")
    table.add_column("where", overflow="fold")
    for header in ("new", "param-\neters", "scale", "first\norder", "real\nchange", "train\nloss", "valid.\nloss"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column(
        "valid.\n" + ("acc." if score_name == "accuracy" else _score_name(score_name)), justify="right", no_wrap=True
    )
    for entry in history.of("growth"):
        start = [str(entry["epoch"]), escape(entry.get("where", "everywhere"))]
        if "refused" in entry:
            promised = _change(-entry["promised"]) if "promised" in entry else "-"
            table.add_row(*start, "0", "-", "refused", promised, *("-" * 4), style="yellow")
            continue
        table.add_row(
            *start,
            f"+{entry['added']}",
            str(entry["parameters"]),
            f"{entry['scaling']:.3g}",
            _change(entry["predicted_change"]),
            _change(entry["train_change"]),
            f"{entry['train_loss']:.4f}",
            f"{entry['validation_loss']:.4f}",
            _score(entry["validation_score"], score_name),
        )
    return table


def result_table(options: RunOptions, final: dict[str, Any]) -> Table:
    """The final figures, beside those of the fixed network where one was trained."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, title="result")
    table.title_justify = "left"
    columns = {"grown": final, **({"fixed": final["compare"]} if final.get("compare") else {})}
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    name = final["score_name"]
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        (f"test {_score_name(name)}", lambda f: _score(f["test_score"], name)),
        ("test loss", lambda f: "no test part" if f["test_loss"] is None else f"{f['test_loss']:.4f}"),
        ("parameters", lambda f: str(f["parameters"])),
        ("widths", lambda f: _widths(f["widths"])),
        ("seconds", lambda f: f"{f['seconds']:.1f}"),
    ]
    for title, text in rows:
        table.add_row(title, *(text(figures) for figures in columns.values()))
    return table
