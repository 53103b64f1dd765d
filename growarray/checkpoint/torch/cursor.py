"""A place in a pickle: every read is bounded by the bytes that are there, before anything is allocated."""

from __future__ import annotations

import struct
from typing import Any

from growarray.files.errors import Malformed, quote
from growarray.files.limits import Limits

_MOST_DIGITS = 1300  # of an integer written as text: parsing is quadratic
_MOST_INT_BYTES = 512


class Cursor:
    """Reads numbers, strings and lines one after another from ``data``, beginning at ``position``."""

    __slots__ = ("data", "end", "limits", "position")

    def __init__(self, data: memoryview, limits: Limits, position: int = 0) -> None:
        self.data = data
        self.position = position
        self.end = min(len(data), position + limits.metadata)
        self.limits = limits

    def byte(self) -> int:
        """The next byte."""
        position = self.position
        if position >= self.end:
            raise Malformed(self._cut_off(1))
        self.position = position + 1
        return self.data[position]

    def number(self, layout: struct.Struct) -> Any:
        """The next number, in a layout of one item."""
        start = self.position
        if start + layout.size > self.end:
            raise Malformed(self._cut_off(layout.size))
        self.position = start + layout.size
        return layout.unpack_from(self.data, start)[0]

    def ensure(self, length: int) -> None:
        """Refuse a length that the file gives, unless so many bytes are there."""
        if length < 0:
            raise Malformed(f"length {length} is negative")
        if length > self.limits.string:
            raise Malformed(f"string of {length} bytes; the limit is {self.limits.string} (Limits.string)")
        if self.position + length > self.end:
            raise Malformed(self._cut_off(length))

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes."""
        self.ensure(length)
        start = self.position
        self.position = start + length
        return bytes(self.data[start : start + length])

    def line(self, most: int = 1024) -> bytes:
        """The bytes up to the next newline, which is passed over; at most ``most``."""
        start, window = self.position, 256
        last = min(start + most + 1, self.end)
        while True:  # a window that doubles, so that a short line costs little
            text = bytes(self.data[start : min(start + window, last)])
            length = text.find(b"\n")
            if length >= 0:
                self.position = start + length + 1
                return text[:length]
            if start + window >= last:
                raise Malformed(f"line without an end within {last - start} bytes")
            window *= 2

    def integer(self, length: int) -> int:
        """The next ``length`` bytes as a signed little-endian integer."""
        if not 0 <= length <= _MOST_INT_BYTES:
            raise Malformed(f"integer of {length} bytes; expected 0 to {_MOST_INT_BYTES}")
        return int.from_bytes(self.take(length), "little", signed=True)

    def decimal(self, suffix: bytes = b"") -> int | bool:
        """The next line as a decimal integer, after ``suffix`` (the ``L`` of Python 2) is taken off.

        ``00`` and ``01`` are the booleans of protocol 0, if there is no suffix.
        """
        line = self.line(_MOST_DIGITS)
        if not suffix and line in (b"00", b"01"):
            return line == b"01"
        line = line.removesuffix(suffix)
        digits = line.removeprefix(b"-")
        if not digits.isdigit():
            raise Malformed(f"integer is written {quote(line)}; expected decimal digits")
        return int(line)

    def _cut_off(self, length: int) -> str:
        if self.end < len(self.data):
            return f"pickle is longer than {self.limits.metadata} bytes (Limits.metadata)"
        return f"needs {length} bytes at {self.position}, the file ends at {self.end}: it is cut off"
