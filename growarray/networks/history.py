"""What happened in a run, entry by entry, as plain data that can be saved, read back and shown as lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from growarray.display import Block, Displayed, Table, text_of
from growarray.errors import DataError
from growarray.files.paths import write_atomically
from growarray.networks.picture import figure_of, saved


class History(Displayed):
    """A list of entries, dictionaries with an ``event`` (``'train'`` or ``'growth'``), and a ``final`` summary.

    >>> history = History()
    >>> history.add("train", epoch=1, train_loss=0.5)
    >>> history.of("train")[0]["train_loss"]
    0.5
    """

    def __init__(self, steps: list[dict[str, Any]] | None = None, final: dict[str, Any] | None = None) -> None:
        self.steps = [] if steps is None else list(steps)
        self.final = final

    def add(self, event: str, **figures: Any) -> None:
        """Append one entry."""
        self.steps.append({"step": len(self.steps), "event": event, **figures})

    def of(self, event: str) -> list[dict[str, Any]]:
        """All entries of one kind."""
        return [entry for entry in self.steps if entry["event"] == event]

    def plot(self, path: str | Path | None = None) -> Any:
        """A matplotlib ``Figure`` of loss, score and widths over the epochs, growths marked; notebooks show it.

        path : also write it there, in the format of the ending: ``.png``, ``.pdf``, ``.svg``

        Raises ImportError if matplotlib is missing, ValueError if no epoch has been trained.

        >>> history = History()
        >>> history.add("train", epoch=1, train_loss=2.0, validation_loss=2.1, validation_score=0.3, widths=[2])
        >>> len(history.plot().axes)
        3
        """
        figure = figure_of(self.steps, self.final)
        if path is not None:
            name = Path(path) if Path(path).suffix else Path(path).with_suffix(".png")
            write_atomically(name, saved(figure, name.suffix[1:]))
        return figure

    def __repr__(self) -> str:
        return f"History(epochs={len(self.of('train'))}, growths={len(self.of('growth'))})"

    def __str__(self) -> str:
        return text_of(self._blocks())

    def _blocks(self) -> list[Block]:
        figures = ("epoch", "train_loss", "validation_loss", "validation_score", "parameters")
        rows = [["event", "where", *(name.replace("_", " ") for name in figures)]]
        for entry in self.steps:
            where = entry.get("refused") or entry.get("where") or entry.get("reason") or ""
            rows.append([str(entry["event"]), str(where), *(_figure(entry.get(name)) for name in figures)])
        return [f"{len(self.steps)} entries", Table(rows)]

    def to_json(self) -> str:
        """The entries and the summary as JSON text."""
        return json.dumps({"steps": self.steps, "final": self.final}, indent=1, allow_nan=True)

    @classmethod
    def from_json(cls, text: str) -> History:
        """Read back what :meth:`to_json` wrote; ``DataError`` on anything else."""

        def check(right: bool, expected: str) -> None:
            if not right:
                raise DataError(f"history: expected {expected}; write it with History.save")

        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"history: not JSON ({error}); write it with History.save") from error
        check(isinstance(data, dict) and isinstance(data.get("steps"), list), "an object with a list 'steps'")
        named = all(isinstance(entry, dict) and isinstance(entry.get("event"), str) for entry in data["steps"])
        check(named, "entries with an 'event' in 'steps'")
        check(isinstance(data.get("final"), dict | None), "an object or null as 'final'")
        return cls(data["steps"], data.get("final"))

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read a file that :meth:`save` wrote; ``DataError`` for another one, ``OSError`` if there is none."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not a history in UTF-8 ({error.reason}); write it with History.save") from error
        return cls.from_json(text)


def _figure(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def line_of(entry: dict[str, Any], epochs: int, score_name: str) -> str:
    """One entry as a line of text.

    >>> trained = {"event": "train", "epoch": 3, "train_loss": 0.5, "validation_score": 0.75, "widths": [8]}
    >>> line_of({**trained, "validation_loss": 0.625}, 10, "accuracy")
    'epoch  3/10  loss 0.5000  validation loss 0.6250, accuracy 75.00%  widths 8'
    >>> line_of({"event": "growth", "epoch": 3, "refused": "the budget is used up"}, 10, "accuracy")
    'epoch  3/10  growth refused: the budget is used up'
    """
    start = f"epoch {entry['epoch']:>{len(str(epochs))}}/{epochs}"
    if "refused" in entry:
        return f"{start}  growth {'undone' if entry.get('undone') else 'refused'}: {entry['refused']}"
    if entry["event"] == "stop":
        return f"{start}  {entry['what']} ends: {entry['reason']}; the network of epoch {entry['kept']} is kept"
    widths = " ".join(map(str, entry["widths"]))
    if entry["event"] == "growth":
        change = f"training loss {entry['train_loss'] - entry['train_change']:.4f} -> {entry['train_loss']:.4f}"
        return f"{start}  {entry['where']} grew by {entry['added']}  {change}  widths {widths}"
    score = f"{entry['validation_score']:.2%}" if score_name == "accuracy" else f"{entry['validation_score']:.4f}"
    validation = f"validation loss {entry['validation_loss']:.4f}, {'R2' if score_name == 'r2' else score_name} {score}"
    return f"{start}  loss {entry['train_loss']:.4f}  {validation}  widths {widths}"
