"""What happened in a run, entry by entry, as plain data that can be saved and read back."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growarray.errors import DataError
from growarray.networks.picture import figure_of

__all__ = ["History", "write_atomically"]


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename: the file is never half written."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class History:
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
            figure.savefig(path)
        return figure

    def to_json(self) -> str:
        """The entries and the summary as JSON text."""
        return json.dumps({"steps": self.steps, "final": self.final}, indent=1, allow_nan=True)

    @classmethod
    def from_json(cls, text: str) -> History:
        """Read back what :meth:`to_json` wrote; ``DataError`` on anything else."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"history: not JSON ({error}); write it with History.save") from error
        if not isinstance(data, Mapping) or not isinstance(data.get("steps"), list):
            raise DataError("history: expected an object with a list 'steps'; write it with History.save")
        if not all(isinstance(entry, dict) and isinstance(entry.get("event"), str) for entry in data["steps"]):
            raise DataError("history: expected entries with an 'event' in 'steps'; write it with History.save")
        if not isinstance(data.get("final"), dict | None):
            raise DataError("history: expected an object or null as 'final'; write it with History.save")
        return cls(data["steps"], data.get("final"))

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically."""
        write_atomically(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read a file that :meth:`save` wrote; ``DataError`` for another one, ``OSError`` where there is none."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not a history in UTF-8 ({error.reason}); write it with History.save") from error
        return cls.from_json(text)
