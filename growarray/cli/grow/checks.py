"""What a checkpoint must hold before anything is built from it; a message of its own for what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from growarray.errors import shown

_NUMBER = int | float
_FIGURES = dict.fromkeys(("train_loss", "validation_loss", "validation_score"), _NUMBER)
_TRAINED = {"epoch": int, "parameters": int, "widths": list, **_FIGURES}
_CHANGES = dict.fromkeys(("scaling", "predicted_change", "train_change"), _NUMBER)
_ENTRIES: dict[str, Mapping[str, Any]] = {
    "train": _TRAINED,
    "growth": {**_TRAINED, **_CHANGES, "where": str, "added": int},
    "refused": {"epoch": int, "refused": str},
    "stop": {"epoch": int, "what": str, "reason": str, "kept": int, "parameters": int, "widths": list},
}
_FIXED = {
    "test_score": _NUMBER | None, "test_loss": _NUMBER | None, "parameters": int, "widths": list, "seconds": _NUMBER,
}  # fmt: skip
_BEST = {"epoch": int, "widths": list, "loss": _NUMBER, "score": _NUMBER, "parts": list, "numbers": dict}
_RUN = {
    "options": dict, "data": str, "network": str, "widths": list, "state": dict, "seconds": float, "numbers": dict,
    "final": dict | None, "best": dict | None,
}  # fmt: skip
_STATE = {"epoch", "steps", "growths", "failures", "finished_growing", "budget", "rng", "history"}


def check_entries(run: dict[str, Any]) -> None:
    """Raise ``KeyError``, ``TypeError`` or ``ValueError`` unless every entry is there, of its type, and makes sense."""
    _check_keys("the entry 'run'", run, _RUN)
    _check_types("run", run, _RUN)
    if not 0.0 <= run["seconds"] < math.inf:
        raise ValueError(f"the seconds are {run['seconds']}")
    _check_widths("the run", run["widths"], len(run["widths"]))
    _check_state(run["state"], None if run["network"] == "dag" else len(run["widths"]))
    if run["best"] is not None:
        _check_types("best", run["best"], _BEST)
    if run["final"] is not None:
        _check_types("final", run["final"], {"score_name": str, **_FIXED})
        if run["final"].get("compare") is not None:
            _check_types("compare", run["final"]["compare"], _FIXED)


def _check_state(state: dict[str, Any], layers: int | None) -> None:
    _check_keys("the state", state, _STATE)
    steps = state["history"]
    if not isinstance(steps, list) or not all(isinstance(step, dict) and "event" in step for step in steps):
        raise TypeError("the history is not a list of entries")
    counts = dict.fromkeys(_ENTRIES, 0)
    for number, step in enumerate(steps):
        where, event = f"entry {number} of the history", "refused" if "refused" in step else step["event"]
        if event not in _ENTRIES:
            raise ValueError(f"{where} is {shown(event)}")
        counts[event] += 1
        _check_types(where, step, _ENTRIES[event])
        if "widths" in step:
            _check_widths(where, step["widths"], len(step["widths"]) if layers is None else layers)
    if state["growths"] != counts["growth"] or type(state["finished_growing"]) is not bool:
        raise ValueError(f"the history has {counts['growth']} growths, the counter says {state['growths']}")
    if state["epoch"] != counts["train"]:
        raise ValueError(f"the history has {counts['train']} epochs, the counter says {state['epoch']}")


def _check_keys(where: str, found: Mapping[str, Any], expected: Any) -> None:
    if set(found) != set(expected):
        raise KeyError(f"{where} has other keys: {', '.join(sorted(set(found) ^ set(expected)))}")


def _check_types(where: str, found: Any, types: Mapping[str, Any]) -> None:
    """Raise unless every entry that is named is there and of its type."""
    if not isinstance(found, dict):
        raise TypeError(f"{where} is {type(found).__name__}, not dict")
    for key, kind in types.items():
        if key not in found:
            raise KeyError(f"{where} has no entry '{key}'")
        if not isinstance(found[key], kind) or isinstance(found[key], bool):
            raise TypeError(f"{key} of {where} is {type(found[key]).__name__}")


def _check_widths(where: str, widths: list[Any], count: int) -> None:
    if len(widths) != count or not all(type(width) is int and width >= 0 for width in widths):
        raise ValueError(f"{where} has the widths {shown(widths)}")
