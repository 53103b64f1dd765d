"""The checkpoint of a run: all that it is after an epoch, in one file, checked before it is used.

It is no file of :func:`growarray.save`: a run goes on with its own options or not at all, and they say what is built,
in which dtype and where. The file holds what they do not say, for two networks, the present and the best one, whose
sizes are checked against the options before a network of them is made.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growarray.backend import is_array, to_host
from growarray.errors import ResumeError, shown
from growarray.networks import Growth, Snapshot, write_atomically

_FORMAT = 2
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, NotImplementedError)
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


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a run is after an epoch; ``final`` is its result, None before it is finished.

    network, widths : what the network is built from;  weights : its state dict;  state : of the loop
    slots : for each parameter what its optimizer keeps, arrays or numbers;  data : digest of the data
    best : the same of the best network so far, its ``epoch``, and how it was judged; None before the first epoch
    """

    options: dict[str, Any]
    data: str
    network: str
    widths: list[int]
    state: dict[str, Any]
    seconds: float
    final: dict[str, Any] | None
    best: dict[str, Any] | None
    weights: dict[str, np.ndarray]
    slots: dict[str, dict[str, Any]]


def take_checkpoint(
    loop: Growth, *, options: dict[str, Any], data: str, kind: str, seconds: float, final: dict[str, Any] | None
) -> Checkpoint:
    """The state of ``loop`` and of its network, on the host."""
    network, best = loop.network, None
    now = Snapshot.of(network)
    if loop.best is not None:
        judged = loop.best.judgement
        best = {"epoch": loop.best.epoch, "widths": loop.best.widths, "loss": judged.loss, "score": judged.score}
        best |= {"parts": list(judged.parts), "weights": _host(loop.best.snapshot.arrays)}
        best |= {"slots": {name: _host(slots) for name, slots in loop.best.snapshot.slots.items()}}
    slots = {name: _host(slots) for name, slots in now.slots.items()}
    widths, weights = list(network.widths), _host(now.arrays)
    return Checkpoint(options, data, kind, widths, loop.state(), seconds, final, best, weights, slots)


def _host(values: Mapping[str, Any]) -> dict[str, Any]:
    arrays = {name: value for name, value in values.items() if is_array(value)}
    return {**values, **dict(zip(arrays, to_host(list(arrays.values())), strict=True))}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: arrays as they are, all else as JSON in the entry ``run``."""
    arrays: dict[str, Any] = {}
    plain = _split("", vars(checkpoint), arrays)
    if checkpoint.best is not None:
        plain["best"] = _split("best ", checkpoint.best, arrays)
    text = json.dumps({"format": _FORMAT, **plain})
    stream = io.BytesIO()
    np.savez(stream, run=np.frombuffer(text.encode(), dtype=np.uint8), **arrays)
    write_atomically(path, stream.getvalue())


def _split(prefix: str, state: Mapping[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """Put the arrays of ``state`` among ``arrays``; returns the rest of it, with the slots that are numbers."""
    numbers: dict[str, dict[str, Any]] = {}
    arrays |= {f"{prefix}weights/{name}": value for name, value in state["weights"].items()}
    for name, slots in state["slots"].items():
        slot_arrays = {key: value for key, value in slots.items() if isinstance(value, np.ndarray)}
        numbers[name] = {key: value for key, value in slots.items() if key not in slot_arrays}
        arrays |= {f"{prefix}slots/{name}/{key}": value for key, value in slot_arrays.items()}
    return {key: value for key, value in state.items() if key not in ("weights", "slots")} | {"numbers": numbers}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`write_checkpoint` wrote; nothing is changed.

    Raises ResumeError: there is no checkpoint, or it is not one that this version wrote: cut off, changed, or something
    else.
    """
    if not path.is_file():
        raise ResumeError(
            f"--resume: {path.parent} holds no {path.name}, so there is no run to go on with; "
            "check the folder, or leave --resume out to start a run"
        )
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        return _checkpoint(arrays)
    except _UNREADABLE as error:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        raise damaged(path, text or type(error).__name__) from error


def damaged(path: Path, found: str) -> ResumeError:
    """The error for a checkpoint that cannot be gone on from."""
    return ResumeError(
        f"{path}: expected the checkpoint of a run, found it damaged ({found.splitlines()[0]}); "
        "start the run again with another --output, nothing in this folder was changed"
    )


def _checkpoint(arrays: dict[str, np.ndarray]) -> Checkpoint:
    if "run" not in arrays:
        raise KeyError(f"no entry 'run' among {', '.join(sorted(arrays)[:5]) or 'no entries'}")
    plain = json.loads(arrays.pop("run").tobytes().decode())
    if not isinstance(plain, dict) or plain.pop("format", None) != _FORMAT:
        raise ValueError(f"the entry 'run' is not of format {_FORMAT}")
    check_entries(plain)
    best = plain.pop("best")
    if best is not None:
        best |= _joined("best ", best.pop("numbers"), arrays)
    state = _joined("", plain.pop("numbers"), arrays)
    if arrays:
        raise KeyError(f"unknown entry {shown(next(iter(arrays)))}")
    return Checkpoint(**plain, best=best, **state)


def _joined(prefix: str, slots: dict[str, dict[str, Any]], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Weights and slots from ``arrays``, from which they are taken out, and the slots that are numbers."""
    weights = {}
    for entry in [name for name in arrays if name.startswith((f"{prefix}weights/", f"{prefix}slots/"))]:
        group, _, name = entry.removeprefix(prefix).partition("/")
        if group == "weights":
            weights[name] = arrays.pop(entry)
        else:
            parameter, _, key = name.rpartition("/")
            slots.setdefault(parameter, {})[key] = arrays.pop(entry)
    return {"weights": weights, "slots": slots}
