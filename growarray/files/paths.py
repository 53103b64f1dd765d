"""Names of files: those that stay inside a folder on every system, and files that appear whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def is_safe_name(name: str) -> bool:
    """Whether a name is relative, printable and inside its folder on every system.

    >>> [is_safe_name(name) for name in ("a/data.pkl", "../a", "/a", "a//b", "C:/a", "a\\\\b")]
    [True, False, False, False, False, False]
    """
    if not name or len(name) > 4096 or "\\" in name or not name.isprintable() or re.match(r"[A-Za-z]:", name):
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the name ``path`` once it is whole and on disk, and is gone if anything raises."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected the name of a file, found a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
