"""The bytes of one file: mapped when they are first needed, or held in memory."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from growarray.files.crc import crc32
from growarray.files.errors import Malformed


class Source:
    """A regular file, or bytes: ``view`` is a memoryview of it, a private map that never writes to the file.

    The file is opened when its bytes are first asked for, and must then be as it was when it was found.
    ``checksums=False`` leaves those of the tensors unchecked.
    """

    def __init__(self, name: str, size: int, path: Path | None, stamp: tuple[int, ...], *, mapped: bool) -> None:
        self.name = name
        self.size = size
        self._path = path
        self._stamp = stamp
        self._mapped = mapped
        self.checksums = True
        self._view: memoryview | None = None
        self._map: mmap.mmap | None = None

    @classmethod
    def of(cls, path: str | os.PathLike[str] | BinaryIO, *, name: str, mapped: bool) -> Source:
        """The file at a path, or the rest of an open one; ``name`` as :func:`source_name` gives it."""
        if isinstance(path, str | os.PathLike):
            return cls.of_file(Path(path), name=name, mapped=mapped)
        return cls.of_stream(path)

    @classmethod
    def of_file(cls, path: Path, *, name: str | None = None, mapped: bool = True) -> Source:
        """The file at ``path``, which must be a regular one: a pipe or a device could hang or never end."""
        try:
            found = os.stat(path)
        except ValueError as fault:
            raise Malformed(f"is not a path: {fault}") from None
        if stat.S_ISDIR(found.st_mode):
            raise Malformed(
                "is a folder; pass the file of weights inside it, or the index (*.index.json) of its shards"
            )
        if not stat.S_ISREG(found.st_mode):
            raise Malformed("is not a regular file (a pipe, a socket or a device); copy its content into a file first")
        return cls(name or str(path), found.st_size, path, _stamp(found), mapped=mapped)

    @classmethod
    def of_bytes(cls, data: bytes | bytearray | memoryview, name: str) -> Source:
        """Bytes that are in memory already."""
        source = cls(name, len(data), None, (), mapped=False)
        source._view = memoryview(data)
        return source

    @classmethod
    def of_stream(cls, stream: BinaryIO) -> Source:
        """The rest of an open binary file, read whole."""
        data = stream.read()
        if not isinstance(data, bytes | bytearray):
            raise Malformed(
                f"read() returned {type(data).__name__}, expected bytes; open the file in binary mode ('rb')"
            )
        return cls.of_bytes(data, source_name(stream))

    @property
    def folder(self) -> Path | None:
        """Where further files of the model lie; None for bytes in memory."""
        return None if self._path is None else self._path.parent

    @property
    def view(self) -> memoryview:
        """All bytes; refused if the file has changed since it was found."""
        if self._view is None:
            self._view = self._open()
        elif self._path is not None:
            self._check()
        return self._view

    def _open(self) -> memoryview:
        if self._path is None or self.size == 0:
            return memoryview(b"")
        descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            if _stamp(os.fstat(file.fileno())) != self._stamp:
                raise Malformed(_CHANGED)
            if not self._mapped:
                data = bytearray(self.size)
                if file.readinto(data) != self.size:
                    raise Malformed(_CHANGED)
                return memoryview(data)
            self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_COPY)
        return memoryview(self._map)

    def _check(self) -> None:
        """Refuse a mapped file that has changed since it was checked."""
        if self._map is None or self._path is None:
            return
        try:
            now = os.stat(self._path)
        except OSError:
            return  # deleted: the map still holds the bytes
        replaced = _stamp(now)[:2] != self._stamp[:2]  # another file has taken the name: the map holds the old one
        if not replaced and _stamp(now) != self._stamp:
            raise Malformed(_CHANGED)


def source_name(path: object) -> str:
    """What messages call a file: its path, or the type of an open one. Raises TypeError for anything else."""
    if hasattr(path, "read"):
        return f"<{type(path).__name__}>"
    if isinstance(path, str | os.PathLike):
        return os.fsdecode(os.fspath(path))
    found = type(path).__name__
    remedy = "; wrap the content of a file in io.BytesIO" if isinstance(path, bytes | bytearray) else ""
    raise TypeError(f"expected a path, or a file that is open in binary mode, found {found}{remedy}")


_CHANGED = "has changed while it was read; load it again, or pass mmap=False to read it at once"


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class Region:
    """A stretch of a file that holds elements: ``crc`` is checked when its bytes are first asked for."""

    __slots__ = ("big_endian", "crc", "name", "nbytes", "offset", "source")

    def __init__(
        self, source: Source, name: str, offset: int, nbytes: int, *, crc: int | None = None, big_endian: bool = False
    ) -> None:
        self.source = source
        self.name = name
        self.offset = offset
        self.nbytes = nbytes
        self.crc = crc
        self.big_endian = big_endian

    def view(self) -> memoryview:
        """The bytes; never more than the file has."""
        whole = self.source.view
        if self.offset < 0 or self.offset + self.nbytes > len(whole):
            end = self.offset + self.nbytes
            raise Malformed(f"{self.name}: bytes {self.offset} to {end} expected, the file ends at {len(whole)}")
        part = whole[self.offset : self.offset + self.nbytes]
        if self.crc is not None and self.source.checksums:
            check_crc(part, self.crc, self.name)
            self.crc = None
        return part

    def __reduce__(self) -> Any:
        raise TypeError("a lazy tensor cannot be pickled; read it first: dict(checkpoint)")


def check_crc(data: memoryview | bytes | bytearray, expected: int, name: str) -> None:
    """Raise Malformed unless the bytes have the recorded CRC-32."""
    compare_crc(crc32(data), expected, name)


def compare_crc(found: int, expected: int, name: str) -> None:
    """Refuse a CRC-32 that is not the recorded one."""
    if found != expected:
        raise Malformed(
            f"{name}: CRC-32 is {found:08x}, the file records {expected:08x}; it is damaged, fetch it again"
        )
