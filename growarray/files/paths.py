"""Names of files: safe ones, files that appear whole or not at all, and those beside a model."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from growarray.files.errors import Malformed, at, quote
from growarray.files.limits import Limits
from growarray.files.source import Source

# what writing to a full disk says, without the file's name
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


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
    opened = _new_file(temporary, path)
    try:
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            error.filename = str(path)
        raise


def _new_file(temporary: Path, path: Path) -> BinaryIO:
    """``temporary``, made and opened; an error names the file that it stands for."""
    try:
        return open(temporary, "xb")
    except OSError as error:
        raise type(error)(
            f"{path}: cannot be written ({error.strerror}); name a file in a folder that is yours"
        ) from error


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    with replacing(Path(path)) as file:
        file.write(data)


class ExternalFiles:
    """Finds the files beside one model, each once."""

    def __init__(self, model: Source, limits: Limits, *, follow_links: bool, mapped: bool) -> None:
        self.model = model
        self.limits = limits
        self.follow_links = follow_links
        self.mapped = mapped
        self.nbytes = 0  # of all files found so far
        self._found: dict[str, Source] = {}

    def find(self, location: str) -> Source:
        """The file at ``location``. Raises Malformed for a path that leaves the folder, by name or by a link."""
        if location not in self._found:
            if len(self._found) >= self.limits.files:
                raise Malformed(f"more than {self.limits.files} additional files (Limits.files)")
            with at(f"file {quote(location)}"):
                self._found[location] = found = self._open(location)
                self.nbytes += found.size
        return self._found[location]

    def _open(self, location: str) -> Source:
        folder = self.model.folder
        if folder is None:
            raise Malformed("lies next to the model, but the model was not given as a path; pass its path")
        location = "/".join(part for part in location.split("/") if part != ".")  # some writers begin with ./
        if not is_safe_name(location) or "://" in location:
            raise Malformed("is not a plain relative path inside the model's folder")
        path = folder / location
        real = Path(os.path.realpath(path))
        if not self.follow_links and not real.is_relative_to(os.path.realpath(folder)):
            raise Malformed("is a link that leaves the model's folder; pass follow_links=True if you trust it")
        if not real.exists():
            raise Malformed("is missing; fetch it and put it next to the model")
        source = Source.of_file(real, name=str(path), mapped=self.mapped)
        source.checksums = self.model.checksums
        return source
