"""The folder of a run: the names of its files, and that none is overwritten."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from growarray.backend import to_numpy
from growarray.cli.files import check_writable, make_folder
from growarray.errors import ResumeError
from growarray.networks import GrowingNetwork, write_atomically

CHECKPOINT, HISTORY, PICTURE, MODEL = "checkpoint.npz", "history.json", "run.png", "network.onnx"
GRAPH = "graph.png"  # of a network that is a graph: how it grew
_NPZ, _SAFETENSORS = "weights.npz", "weights.safetensors"
_FILES = (CHECKPOINT, HISTORY, PICTURE, GRAPH, _SAFETENSORS, _NPZ, MODEL)


def new_folder(folder: Path) -> None:
    """Make ``folder`` if it is missing, and see that files can be written and none would be overwritten.

    Raises ResumeError: a run, or a file by the name of one that a run writes, is in it; OSError: it cannot be made or
    written to.
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


def write_weights(folder: Path, network: GrowingNetwork) -> Path:
    """The state dict as ``weights.safetensors`` if safetensors is installed, else as ``weights.npz``."""
    state: dict[str, Any] = {
        name: np.ascontiguousarray(to_numpy(value)) for name, value in network.state_dict().items()
    }
    try:
        save = importlib.import_module("safetensors.numpy").save
    except ImportError:
        stream = io.BytesIO()
        np.savez(stream, **state)
        path, content = folder / _NPZ, stream.getvalue()
    else:
        path, content = folder / _SAFETENSORS, save(state)
    write_atomically(path, content)
    return path
