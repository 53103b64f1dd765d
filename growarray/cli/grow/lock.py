"""One run at a time in a folder: a lock of the operating system, which a killed run does not leave behind."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from growarray.checkpoint.report import printable
from growarray.errors import ResumeError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = "run.lock"
_HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}  # what the systems say of a lock that another process has
_FAR = 1 << 30  # the byte that is locked on Windows: beyond the text, which others read


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
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            file.flush()
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
