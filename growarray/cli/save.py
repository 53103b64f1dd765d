"""What a run keeps in its folder: the checkpoint it can go on from, and the weights for others."""

from __future__ import annotations

import importlib
import io
import json
import math
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growarray.backend import asarray, is_array, to_numpy
from growarray.errors import ResumeError
from growarray.networks import Best, GrowingNetwork, Growth, Judgement, Snapshot, write_atomically

__all__ = [
    "CHECKPOINT",
    "HISTORY",
    "MODEL",
    "PICTURE",
    "WEIGHTS",
    "Checkpoint",
    "check_writable",
    "damaged",
    "make_folder",
    "new_folder",
    "read_checkpoint",
    "remove_leftovers",
    "restore",
    "take_checkpoint",
    "write_checkpoint",
    "write_weights",
]

CHECKPOINT, HISTORY, PICTURE, WEIGHTS = "checkpoint.npz", "history.json", "run.png", "weights"
MODEL = "network.onnx"
_FILES = (CHECKPOINT, HISTORY, PICTURE, f"{WEIGHTS}.safetensors", f"{WEIGHTS}.npz", MODEL)
_FORMAT = 2
_STATE = {"epoch", "steps", "growths", "failures", "finished_growing", "budget", "rng", "history"}
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a run is after an epoch; ``final`` is its result, None while it is not finished.

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


_PLAIN = {
    "options": dict,
    "data": str,
    "network": str,
    "widths": list,
    "state": dict,
    "seconds": float,
    "numbers": dict,
}
_NUMBER = int | float
_FIGURES = dict.fromkeys(("train_loss", "validation_loss", "validation_score"), _NUMBER)
_TRAINED = {"epoch": int, "parameters": int, "widths": list, **_FIGURES}
_GROWN = {
    **_TRAINED,
    "where": str,
    "added": int,
    **dict.fromkeys(("scaling", "predicted_change", "train_change"), _NUMBER),
}
_REFUSED = {"epoch": int, "refused": str}
_STOPPED = {"epoch": int, "what": str, "reason": str, "kept": int, "parameters": int, "widths": list}
_ENTRIES: dict[str, Mapping[str, Any]] = {"train": _TRAINED, "growth": _GROWN, "stop": _STOPPED}
_BEST = {"epoch": int, "widths": list, "loss": _NUMBER, "score": _NUMBER, "parts": list, "numbers": dict}
_RESULT = {
    "score_name": str,
    "test_score": _NUMBER | None,
    "test_loss": _NUMBER | None,
    "parameters": int,
    "widths": list,
    "seconds": _NUMBER,
}


# The folder.


def check_writable(folder: Path) -> None:
    """Raise ``OSError`` where no file can be made in ``folder``."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"--output {folder}: no file can be written there ({error.strerror}); name a folder that is yours"
        ) from error


def make_folder(folder: Path) -> None:
    """Make ``folder`` where it is missing; ``OSError`` where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"--output {folder}: expected a folder, or a name that one can be made under ({error.strerror}); "
            "name another folder"
        ) from error


def new_folder(folder: Path) -> None:
    """Make ``folder`` where it is missing, and see that files can be written and none would be overwritten.

    Raises
    ------
    ResumeError
        A run, or a file by the name of one that a run writes, is in it.
    OSError
        It cannot be made or written to.
    """
    make_folder(folder)
    found = [name for name in _FILES if (folder / name).exists()]
    if found:
        raise ResumeError(
            f"--output {folder}: expected no run in the folder, found {', '.join(found)}; "
            "add --resume to go on with it, or name another folder"
        )
    check_writable(folder)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Delete what a run that was killed while it wrote has left beside the files."""
    for name in _FILES:
        for path in folder.glob(f".{name}.*"):
            path.unlink(missing_ok=True)


# The checkpoint.


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
    return Checkpoint(
        options,
        data,
        kind,
        list(network.widths),
        loop.state(),
        seconds,
        final,
        best,
        _host(now.arrays),
        {name: _host(slots) for name, slots in now.slots.items()},
    )


def _host(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: to_numpy(value) if is_array(value) else value for name, value in values.items()}


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
    """Put the arrays of ``state`` among ``arrays``; returns what is left of it, the slots that are numbers too."""
    numbers: dict[str, dict[str, Any]] = {}
    arrays |= {f"{prefix}weights/{name}": value for name, value in state["weights"].items()}
    for name, slots in state["slots"].items():
        numbers[name] = {key: value for key, value in slots.items() if not isinstance(value, np.ndarray)}
        arrays |= {
            f"{prefix}slots/{name}/{key}": value for key, value in slots.items() if isinstance(value, np.ndarray)
        }
    return {key: value for key, value in state.items() if key not in ("weights", "slots")} | {"numbers": numbers}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read what :func:`write_checkpoint` wrote; nothing is changed.

    Raises
    ------
    ResumeError
        There is no checkpoint, or it is not one that this version wrote: cut off, changed, or something else.
    """
    if not path.is_file():
        raise ResumeError(
            f"--resume: {path.parent} holds no {path.name}, so there is no run to go on with; "
            "check the folder, or leave --resume out to start one"
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
    expected = {*_PLAIN, "final", "best"}
    if set(plain) != expected:
        raise KeyError(f"the entry 'run' has other keys: {', '.join(sorted(set(plain) ^ expected))}")
    _check_kinds("run", plain, _PLAIN)
    if not 0.0 <= plain["seconds"] < math.inf:
        raise ValueError(f"the seconds are {plain['seconds']}")
    if not all(type(width) is int and width >= 0 for width in plain["widths"]):
        raise ValueError(f"the widths are {plain['widths']}")
    _check_state(plain["state"], len(plain["widths"]))
    final = plain["final"]
    if final is not None:
        _check_kinds("final", final, _RESULT)
        if final.get("compare") is not None:
            _check_kinds("compare", final["compare"], {key: _RESULT[key] for key in _RESULT if key != "score_name"})
    best = plain.pop("best")
    if best is not None:
        _check_kinds("best", best, _BEST)
        best |= _joined("best ", best.pop("numbers"), arrays)
    state = _joined("", plain.pop("numbers"), arrays)
    if arrays:
        raise KeyError(f"unknown entry {next(iter(arrays))!r}")
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


def _check_kinds(where: str, found: Any, kinds: Mapping[str, Any]) -> None:
    """Raise unless every entry named in ``kinds`` is there and of its kind."""
    if not isinstance(found, dict):
        raise TypeError(f"{where} is {type(found).__name__}, not dict")
    for key, kind in kinds.items():
        if key not in found:
            raise KeyError(f"{where} has no entry {key!r}")
        if not isinstance(found[key], kind) or isinstance(found[key], bool):
            raise TypeError(f"{key} of {where} is {type(found[key]).__name__}")


def _check_state(state: dict[str, Any], places: int) -> None:
    if set(state) != _STATE:
        raise KeyError(f"the state has other keys: {', '.join(sorted(set(state) ^ _STATE))}")
    steps = state["history"]
    if not isinstance(steps, list) or not all(isinstance(s, dict) and "event" in s for s in steps):
        raise TypeError("the history is not a list of entries")
    for number, step in enumerate(steps):
        if step["event"] not in _ENTRIES:
            raise ValueError(f"entry {number} of the history is a {step['event']!r}")
        kinds = _REFUSED if "refused" in step else _ENTRIES[step["event"]]
        _check_kinds(f"entry {number} of the history", step, kinds)
        widths = step.get("widths", [0] * places)
        if len(widths) != places or not all(type(width) is int and width >= 0 for width in widths):
            raise ValueError(f"entry {number} of the history has the widths {widths}")
    grown = sum(step["event"] == "growth" and "refused" not in step for step in steps)
    if state["growths"] != grown or type(state["finished_growing"]) is not bool:
        raise ValueError(f"the history has {grown} growths, the counter says {state['growths']}")
    trained = sum(step["event"] == "train" for step in steps)
    if trained != state["epoch"]:
        raise ValueError(f"the history has {trained} epochs, the counter says {state['epoch']}")


def restore(path: Path, checkpoint: Checkpoint, loop: Growth, twin: Growth | None) -> None:
    """Put weights, slots and state into a loop that was built with the checkpoint's options and widths.

    twin : the same with the widths of the best network, None where there is none
    """
    steps = checkpoint.state["epoch"] * math.ceil(loop.data[0].shape[0] / loop.settings.batch_size)
    try:
        if checkpoint.state["steps"] != steps:
            raise ValueError(f"{checkpoint.state['steps']} steps, expected {steps}")
        best = None
        if checkpoint.best is not None and twin is not None:
            found = checkpoint.best
            _restore_network(twin.network, found["weights"], found["slots"])
            judgement = Judgement(float(found["loss"]), float(found["score"]), tuple(map(float, found["parts"])))
            best = Best(found["epoch"], found["widths"], judgement, Snapshot.of(twin.network))
        _restore_network(loop.network, checkpoint.weights, checkpoint.slots)
        loop.load_state(checkpoint.state, best)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, str(error.args[0] if error.args else error)) from error


def _restore_network(network: GrowingNetwork, weights: dict[str, np.ndarray], saved: dict[str, dict[str, Any]]) -> None:
    """Weights and slots into a network of their widths; raises where something does not fit or is not finite."""
    parameters = dict(network.named_parameters())
    network.load_state_dict(weights)
    for name, value in weights.items():
        if name in parameters and value.dtype != to_numpy(parameters[name].data).dtype:
            raise TypeError(f"{name} has dtype {value.dtype}")
        _check_values(name, value)
    if len({frozenset(slots) for slots in saved.values() if slots}) > 1:
        raise KeyError("a slot of a parameter is missing")
    if set(saved) != set(parameters):
        raise KeyError(f"slots of other parameters: {', '.join(sorted(set(saved) ^ set(parameters)))}")
    for name, slots in saved.items():
        parameter = parameters[name]
        for key, value in slots.items():
            if not isinstance(value, np.ndarray) and type(value) not in (int, float):
                raise TypeError(f"slot {key} of {name} is {type(value).__name__}")
            _check_values(f"slot {key} of {name}", value)
            if isinstance(value, np.ndarray) and value.shape != parameter.shape:
                raise ValueError(f"slot {key} of {name} has shape {value.shape}, expected {parameter.shape}")
        parameter.slots = {
            key: asarray(value, like=parameter.data) if isinstance(value, np.ndarray) else value
            for key, value in slots.items()
        }


def _check_values(name: str, value: Any) -> None:
    """Raise where an array or number of a checkpoint is not real, or holds what no run goes on from."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} has dtype {array.dtype}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} holds NaN or infinite values")


# The weights.


def write_weights(folder: Path, network: GrowingNetwork) -> Path:
    """The state dict as ``weights.safetensors`` where safetensors is installed, else as ``weights.npz``."""
    state: dict[str, Any] = {
        name: np.ascontiguousarray(to_numpy(value)) for name, value in network.state_dict().items()
    }
    try:
        save = importlib.import_module("safetensors.numpy").save
    except ImportError:
        stream = io.BytesIO()
        np.savez(stream, **state)
        path, content = folder / f"{WEIGHTS}.npz", stream.getvalue()
    else:
        path, content = folder / f"{WEIGHTS}.safetensors", save(state)
    write_atomically(path, content)
    return path
