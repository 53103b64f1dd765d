"""What a run keeps in its folder: the checkpoint it can go on from, and the weights for others."""

from __future__ import annotations

import importlib
import io
import json
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growarray.backend import asarray, is_array, to_numpy
from growarray.errors import ResumeError
from growarray.networks import GrowingNetwork, Growth, write_atomically

__all__ = [
    "CHECKPOINT",
    "HISTORY",
    "PICTURE",
    "WEIGHTS",
    "Checkpoint",
    "check_writable",
    "damaged",
    "new_folder",
    "read_checkpoint",
    "remove_leftovers",
    "restore",
    "take_checkpoint",
    "write_checkpoint",
    "write_weights",
]

CHECKPOINT, HISTORY, PICTURE, WEIGHTS = "checkpoint.npz", "history.json", "run.png", "weights"
_FORMAT = 1
_STATE = {"epoch", "steps", "growths", "finished_growing", "rng", "history"}
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All that a run is after an epoch; ``final`` is its result, None while it is not finished.

    network, widths : what the network is built from;  weights : its state dict;  state : of the loop
    slots : for each parameter what its optimizer keeps, arrays or numbers;  data : digest of the data
    """

    options: dict[str, Any]
    data: str
    network: str
    widths: list[int]
    state: dict[str, Any]
    seconds: float
    final: dict[str, Any] | None
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


def new_folder(folder: Path) -> None:
    """Make ``folder`` where it is missing, and see that files can be written and none would be overwritten.

    Raises
    ------
    ResumeError
        A run, or a file by the name of one that a run writes, is in it.
    OSError
        It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"--output {folder}: expected a folder, or a name that one can be made under ({error.strerror}); "
            "name another folder"
        ) from error
    names = [CHECKPOINT, HISTORY, PICTURE, f"{WEIGHTS}.safetensors", f"{WEIGHTS}.npz"]
    found = [name for name in names if (folder / name).exists()]
    if found:
        raise ResumeError(
            f"--output {folder}: expected no run in the folder, found {', '.join(found)}; "
            "add --resume to go on with it, or name another folder"
        )
    check_writable(folder)
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Delete what a run that was killed while it wrote has left beside the files."""
    for name in (CHECKPOINT, HISTORY, PICTURE, f"{WEIGHTS}.safetensors", f"{WEIGHTS}.npz"):
        for path in folder.glob(f".{name}.*"):
            path.unlink(missing_ok=True)


# The checkpoint.


def take_checkpoint(
    loop: Growth, *, options: dict[str, Any], data: str, kind: str, seconds: float, final: dict[str, Any] | None
) -> Checkpoint:
    """The state of ``loop`` and of its network, on the host."""
    network = loop.network
    return Checkpoint(
        options,
        data,
        kind,
        list(network.widths),
        loop.state(),
        seconds,
        final,
        {name: to_numpy(value) for name, value in network.state_dict().items()},
        {
            name: {key: to_numpy(v) if is_array(v) else v for key, v in parameter.slots.items()}
            for name, parameter in network.named_parameters()
        },
    )


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: arrays as they are, all else as JSON in the entry ``run``."""
    arrays: dict[str, Any] = {f"weights/{name}": value for name, value in checkpoint.weights.items()}
    numbers: dict[str, dict[str, Any]] = {}
    for name, slots in checkpoint.slots.items():
        numbers[name] = {key: value for key, value in slots.items() if not isinstance(value, np.ndarray)}
        arrays |= {f"slots/{name}/{key}": value for key, value in slots.items() if isinstance(value, np.ndarray)}
    plain = {key: value for key, value in vars(checkpoint).items() if key not in ("weights", "slots")}
    text = json.dumps({"format": _FORMAT, **plain, "numbers": numbers})
    stream = io.BytesIO()
    np.savez(stream, run=np.frombuffer(text.encode(), dtype=np.uint8), **arrays)
    write_atomically(path, stream.getvalue())


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
    expected = {*_PLAIN, "final"}
    if set(plain) != expected:
        raise KeyError(f"the entry 'run' has other keys: {', '.join(sorted(set(plain) ^ expected))}")
    for key, kind in _PLAIN.items():
        if not isinstance(plain[key], kind):
            raise TypeError(f"{key} is {type(plain[key]).__name__}, not {kind.__name__}")
    if not isinstance(plain["final"], dict | None):
        raise TypeError(f"final is {type(plain['final']).__name__}")
    if not all(type(width) is int and width >= 0 for width in plain["widths"]):
        raise ValueError(f"the widths are {plain['widths']}")
    _check_state(plain["state"])
    weights, slots = {}, plain.pop("numbers")
    for name, value in arrays.items():
        group, _, rest = name.partition("/")
        if group == "weights":
            weights[rest] = value
        elif group == "slots":
            parameter, _, key = rest.rpartition("/")
            slots.setdefault(parameter, {})[key] = value
        else:
            raise KeyError(f"unknown entry {name!r}")
    return Checkpoint(**plain, weights=weights, slots=slots)


def _check_state(state: dict[str, Any]) -> None:
    if set(state) != _STATE:
        raise KeyError(f"the state has other keys: {', '.join(sorted(set(state) ^ _STATE))}")
    steps = state["history"]
    if not isinstance(steps, list) or not all(isinstance(s, dict) and "event" in s for s in steps):
        raise TypeError("the history is not a list of entries")
    trained = sum(step["event"] == "train" for step in steps)
    if trained != state["epoch"]:
        raise ValueError(f"the history has {trained} epochs, the counter says {state['epoch']}")


def restore(path: Path, checkpoint: Checkpoint, loop: Growth) -> None:
    """Put weights, slots and state into a loop that was built with the checkpoint's options and widths."""
    parameters = dict(loop.network.named_parameters())
    try:
        loop.network.load_state_dict(checkpoint.weights)
        if set(checkpoint.slots) != set(parameters):
            raise KeyError(f"slots of other parameters: {', '.join(sorted(set(checkpoint.slots) ^ set(parameters)))}")
        for name, slots in checkpoint.slots.items():
            parameter = parameters[name]
            for key, value in slots.items():
                if not isinstance(value, np.ndarray) and type(value) not in (int, float):
                    raise TypeError(f"slot {key} of {name} is {type(value).__name__}")
                if isinstance(value, np.ndarray) and value.shape != parameter.shape:
                    raise ValueError(f"slot {key} of {name} has shape {value.shape}, expected {parameter.shape}")
            parameter.slots = {
                key: asarray(value, like=parameter.data) if isinstance(value, np.ndarray) else value
                for key, value in slots.items()
            }
        loop.load_state(checkpoint.state)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, str(error.args[0] if error.args else error)) from error


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
