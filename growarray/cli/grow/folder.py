"""The folder of a run: the names of its files, none overwritten, and one run at a time by a lock of the system."""

from __future__ import annotations

import errno
import importlib
import io
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from growarray.backend import to_numpy
from growarray.cli.files import check_writable, make_folder
from growarray.display import printable
from growarray.errors import ResumeError
from growarray.networks import GrowingNetwork, write_atomically

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

CHECKPOINT, HISTORY, PICTURE, MODEL = "checkpoint.npz", "history.json", "run.png", "network.onnx"
GRAPH = "graph.png"  # of a network that is a graph: how it grew
_NPZ, _SAFETENSORS = "weights.npz", "weights.safetensors"
_FILES = (CHECKPOINT, HISTORY, PICTURE, GRAPH, _SAFETENSORS, _NPZ, MODEL)
LOCK = "run.lock"
_HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}  # what the systems say of a lock that another process has
_FAR = 1 << 30  # the byte that is locked on Windows: beyond the text, which others read


def new_folder(folder: Path) -> None:
    """Make ``folder`` if it is missing, and see that files can be written and none would be overwritten.

    Raises ResumeError: a run, or a file by the name of one that a run writes, is in it; OSError: it cannot be made or
    written to.
    """
    make_folder(folder)
    existing = [name for name in _FILES if (folder / name).exists()]
    if existing:
        raise ResumeError(
            f"--output {folder}: expected no run in the folder, found {', '.join(existing)}; "
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder``, which exists, for this process; the lock goes with the process, however that ends.

    The file says who holds it, and is removed at the end. A file system without locks is said in a warning.

    Raises ResumeError if another process holds it, and names that one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
    ...     try:
    ...         with locked(Path(folder)):
    ...             pass
    ...     except ResumeError as error:
    ...         print("is in use" in str(error))
    True
    """
    path = folder / LOCK
    file = _acquired(path)
    try:
        yield
    finally:
        if sys.platform == "win32":
            file.close()  # first: Windows removes no open file, and none that the next run has opened by now
            with suppress(OSError):
                path.unlink()
        else:
            path.unlink(missing_ok=True)  # first: nobody else can hold what is about to go
            file.close()


def _acquired(path: Path) -> IO[str]:
    """The lock file, open and locked."""
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            _lock(file)
            if not _is_at(file, path):  # removed by the one who held it until now
                file.close()
                continue
            owner = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
            with suppress(OSError):  # the lock holds without it on a full disk
                file.truncate(0)
                os.write(file.fileno(), owner.encode())
        except OSError as error:
            if error.errno in _HELD:
                file.seek(0)
                owner = printable(file.read(200).strip()) or "another process"
                file.close()
                raise ResumeError(
                    f"--output {path.parent} is in use by another run ({owner}); wait until it ends, or name another "
                    "folder"
                ) from error
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                file.close()
                raise
            warnings.warn(
                f"--output {path.parent}: its file system has no locks; start no other run in it", stacklevel=4
            )
        except BaseException:
            file.close()
            raise
        return file


def _lock(file: IO[str]) -> None:
    """Lock an open file, or raise OSError at once."""
    if sys.platform == "win32":
        file.seek(_FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether the open file is still the one under ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
