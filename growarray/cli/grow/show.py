"""What a run shows in the terminal: a bar over the epochs, a row for each growth, tables at the end."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from growarray.cli.grow.data import RunData
from growarray.cli.grow.options import DIGITS, RunOptions
from growarray.cli.terminal import Bar, plain_table, show_line, show_table
from growarray.networks import Growth, History


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
    return " ".join(map(str, widths)) or "none"


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
        sizes = ", ".join(f"{pair[0].shape[0]} {name}" for name, pair in data.parts() if pair is not None)
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
            part = "training" if loop.validation is loop.data else "validation"
            score = _score(entry["validation_score"], loop.task.score_name)
            figures = f"loss {entry['train_loss']:.4f}  {part} {score}  widths {_widths(entry['widths'])}"
            self._bar.update(entry["epoch"], figures=figures)
        elif entry["event"] == "growth":
            start = f"epoch {entry['epoch']:>3}  {entry.get('widens', 'everywhere'):<14}"
            if "refused" in entry:
                self.line(f"{start} growth {_came_to(entry)}: {entry['refused']}")
                return
            after = entry["train_loss"]
            self.line(
                f"{start} +{entry['added']} -> {entry['parameters']} parameters, "
                f"training loss {after - entry['train_change']:.4f} -> {after:.4f}"
            )

    def result(self, options: RunOptions, history: History, final: dict[str, Any]) -> None:
        """The tables, and one last line with the test figure."""
        if not self.quiet:
            self.console.print()
            show_table(self.console, growth_table(history, final))
            for text in (*_remarks(history), *_endings(options, history)):
                self.line(text)
            self.console.print()
            show_table(self.console, result_table(final))
        name, score = _score_name(final["score_name"]), _score(final["test_score"], final["score_name"])
        text = f"test {name} {score}, {final['parameters']} parameters, {final['seconds']:.1f} s"
        show_line(self.console, text)


def _came_to(entry: dict[str, Any]) -> str:
    return "undone" if entry.get("undone") else "refused"


_SINGULAR = (
    "some inputs of the grown layer are always zero or follow from others, so that several changes are equally good; "
    "the smallest was taken"
)


def _remarks(history: History) -> list[str]:
    """One line for each reason why growths came to nothing, and for each note on how they were computed."""
    epochs: dict[str, list[str]] = {}
    for entry in history.of("growth"):
        reasons = [f"growth {_came_to(entry)}, {entry['refused']}"] if "refused" in entry else []
        notes = dict.fromkeys(_SINGULAR if "singular" in note else note for note in entry.get("notes", ()))
        for text in (*reasons, *notes):
            epochs.setdefault(text, []).append(str(entry["epoch"]))
    return [f"after epoch {', '.join(those)}: {text}" for text, those in epochs.items()]


def _endings(options: RunOptions, history: History) -> list[str]:
    """Why growing and training ended, and which network is kept.

    >>> history = History()
    >>> history.add("stop", what="training", epoch=9, reason="epoch 9 is the last", kept=7, validation_loss=0.25)
    >>> _endings(RunOptions(), history)
    ['training ended after epoch 9: epoch 9 is the last; back to the better network of epoch 7, validation loss 0.2500']
    """
    lines = []
    for entry in history.of("stop"):
        text = f"{entry['what']} ended after epoch {entry['epoch']}: {entry['reason']}"
        if entry["kept"] < entry["epoch"]:
            part = "validation" if options.validation_fraction else "training"
            text += f"; back to the better network of epoch {entry['kept']}, {part} loss {entry['validation_loss']:.4f}"
        elif "budget" in entry["reason"]:
            text += "; a larger --max-parameters lets it go on"
        lines.append(text)
    return lines


def growth_table(history: History, final: dict[str, Any]) -> Table:
    """One row for each growth step. Fits 80 columns.

    widens : the layer that got wider;  scale : how far the line search went along what was planned
    promised : the change of the training loss that the slope at the start promises for that scale, on a parabola
    came : what the growth did to it;  loss, score : after the growth, before it is trained further
    """
    options, score_name = final.get("options", {}), final["score_name"]
    smoothing = options.get("label_smoothing", 0.0)
    title = "growth steps" + (f" (losses of labels smoothed by {smoothing})" if smoothing else "")
    table = plain_table(title, space=1)
    table.add_column("after\nepoch", justify="right")
    table.add_column("widens", overflow="fold")
    held_out = final.get("samples", {}).get("validation", 1)
    score = "acc." if score_name == "accuracy" else _score_name(score_name)
    judged = ["valid.\nloss", f"valid.\n{score}"] if held_out else [f"train\n{score}"]
    for header in ("new", "param-\neters", "scale", "change\nprom.", "change\ncame", "train\nloss", *judged):
        table.add_column(header, justify="right", no_wrap=True)
    for entry in history.of("growth"):
        start = [str(entry["epoch"]), escape(entry.get("widens", "everywhere"))]
        changes = [_change(entry[key]) if key in entry else "-" for key in ("predicted_change", "train_change")]
        if "refused" in entry:
            table.add_row(*start, "0", "-", _came_to(entry), *changes, "-", *("-" * len(judged)), style="yellow")
            continue
        size = [f"+{entry['added']}", str(entry["parameters"]), f"{entry['scaling']:.3g}"]
        losses = [f"{entry[key]:.4f}" for key in ("train_loss", *(["validation_loss"] if held_out else []))]
        table.add_row(*start, *size, *changes, *losses, _score(entry["validation_score"], score_name))
    return table


def result_table(final: dict[str, Any]) -> Table:
    """The final figures, beside those of the fixed network if one was trained."""
    table = plain_table("result")
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
