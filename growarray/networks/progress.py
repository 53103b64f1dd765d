"""What a run of the loop says while it goes on, a line for each entry of its history."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from growarray.errors import shown

__all__ = ["line_of", "showing"]


def line_of(entry: dict[str, Any], epochs: int, score_name: str) -> str:
    """One entry of a history as a line of text.

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
    if entry["event"] == "stop":
        return f"{start}  {entry['what']} ends: {entry['reason']}; kept is epoch {entry['kept']}  widths {widths}"
    if entry["event"] == "growth":
        change = f"training loss {entry['train_loss'] - entry['train_change']:.4f} -> {entry['train_loss']:.4f}"
        return f"{start}  {entry['where']} grew by {entry['added']}  {change}  widths {widths}"
    score = f"{entry['validation_score']:.2%}" if score_name == "accuracy" else f"{entry['validation_score']:.4f}"
    validation = f"validation loss {entry['validation_loss']:.4f}, {'R2' if score_name == 'r2' else score_name} {score}"
    return f"{start}  loss {entry['train_loss']:.4f}  {validation}  widths {widths}"


@contextmanager
def showing(loop: Any, progress: bool | Callable[[str], Any]) -> Iterator[None]:
    """Within it every entry of the loop is a line on standard error, or is handed to a function as one."""
    if not (isinstance(progress, bool) or callable(progress)):
        raise TypeError(
            f"Growth.run: progress is {shown(progress)}, expected True, False, or a function that takes a line"
        )
    if progress is False:
        yield
        return
    show: Callable[[str], Any] = _on_standard_error if isinstance(progress, bool) else progress

    def callback(loop: Any, entry: dict[str, Any]) -> None:
        show(line_of(entry, loop.settings.epochs, loop.task.score_name))

    loop.callbacks.append(callback)
    try:
        yield
    finally:
        loop.callbacks.remove(callback)


def _on_standard_error(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
