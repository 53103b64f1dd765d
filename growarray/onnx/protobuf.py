"""The wire format of protocol buffers, each field bounded by its message, and of the names and shapes of ONNX.

Source: https://protobuf.dev/programming-guides/encoding. Groups, which proto3 does not have, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from growarray.files.errors import Malformed
from growarray.files.limits import Limits
from growarray.files.source import Source

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MOST_AXES = 64
_MOST_AXIS_NAME = 64  # bytes
_BLOCK = 2**20


class Field(NamedTuple):
    """One field: its value lies in bytes ``start`` to ``end``; a varint is decoded into ``value``."""

    number: int
    wire: int
    start: int
    end: int
    value: int = 0


class Wire:
    """Reads the messages of one buffer; ``steps`` bounds how many fields all of them may have together."""

    def __init__(self, data: memoryview, steps: int) -> None:
        self.data = data
        self.steps = steps

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message in bytes ``start`` to ``end``."""
        position = start
        while position < end:
            self.steps -= 1
            if self.steps < 0:
                raise Malformed("has more fields than Limits.steps")
            place = position
            tag, position = self._varint(position, end)
            number, wire = tag >> 3, tag & 7
            if not 0 < number < 2**29:
                raise Malformed(f"byte {place}: field number {number}; expected 1 to 2**29 - 1")
            value = 0
            if wire == VARINT:
                first = position
                value, position = self._varint(position, end)
                yield Field(number, wire, first, position, value)
                continue
            if wire == BYTES:
                length, position = self._varint(position, end)
            elif wire in (FIXED32, FIXED64):
                length = 4 if wire == FIXED32 else 8
            else:
                raise Malformed(f"byte {place}: wire type {wire} of field {number}; expected 0, 1, 2 or 5")
            if length > end - position:
                raise Malformed(
                    f"byte {place}: field {number} has {length} bytes, {end - position} are left: it is cut off"
                )
            yield Field(number, wire, position, position + length)
            position += length

    def parts(self, message: Field) -> Iterator[Field]:
        """The fields of a message inside another."""
        self.expect(message, BYTES)
        return self.fields(message.start, message.end)

    def expect(self, field: Field, wire: int) -> Field:
        """The field, if it has the wire type that its number asks for."""
        if field.wire != wire:
            raise Malformed(f"byte {field.start}: field {field.number} has the wire type {field.wire}, expected {wire}")
        return field

    def text(self, field: Field, most: int, bound: str = "") -> str:
        """The string of a field: UTF-8, at most ``most`` bytes, as the field ``bound`` of the limits has it."""
        self.expect(field, BYTES)
        if field.end - field.start > most:
            limit = f"{most} ({bound})" if bound else f"{most}"
            raise Malformed(f"byte {field.start}: string of {field.end - field.start} bytes; the limit is {limit}")
        try:
            return str(self.data[field.start : field.end], "utf-8")
        except UnicodeDecodeError:
            raise Malformed(f"byte {field.start}: string of field {field.number} is not UTF-8") from None

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """The number at ``position``, of at most ten bytes and 64 bits, and where it ends."""
        if position < end and self.data[position] < 0x80:
            return self.data[position], position + 1
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                raise Malformed(f"byte {position}: number is cut off")
            byte = self.data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 2**64:
                    break
                return value, position
        raise Malformed(f"byte {position}: number is longer than 64 bits")


def encode_varint(value: int) -> bytes:
    """A number as it is written.

    >>> encode_varint(300)
    b'\\xac\\x02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def count_varints(data: memoryview) -> int:
    """How many numbers a packed field holds. Raises Malformed if the last one is cut off."""
    packed = np.frombuffer(data, np.uint8)
    if packed.size and packed[-1] >= 0x80:
        raise Malformed("packed numbers are cut off")
    return sum(int(np.count_nonzero(packed[i : i + _BLOCK] < 0x80)) for i in range(0, packed.size, _BLOCK))


def decode_varints(data: memoryview, count: int) -> NDArray[Any]:
    """The ``count`` numbers of a packed field as int64, a block at a time. Those of 2**63 and more come out negative.

    >>> decode_varints(memoryview(bytes([1, 0xAC, 2])), 2).tolist()
    [1, 300]
    """
    packed = np.frombuffer(data, np.uint8)
    out = np.empty(count, np.int64)
    filled = position = 0
    while position < packed.size:
        block = packed[position : position + _BLOCK]
        ends = np.flatnonzero(block < 0x80)
        if not ends.size:
            raise Malformed("packed number is longer than 64 bits")
        block = block[: ends[-1] + 1]
        starts = np.concatenate(([0], ends[:-1] + 1))
        lengths = ends - starts + 1
        if lengths.max() > 10:
            raise Malformed("packed number is longer than 64 bits")
        shifts = 7 * (np.arange(block.size) - np.repeat(starts, lengths))
        parts = (block & np.uint8(0x7F)).astype(np.uint64) << shifts.astype(np.uint64)
        out[filled : filled + ends.size] = np.add.reduceat(parts, starts).view(np.int64)
        filled += ends.size
        position += block.size
    return out


@dataclass(frozen=True)
class ValueInfo:
    """A graph input or output: its element type (0 if it is not a tensor), and its axes: sizes from 1, or names.

    The name of an axis that the file leaves open is ``'?'``; ``shape`` is None if the file gives none.
    """

    name: str
    element: int = 0
    shape: tuple[int | str, ...] | None = None


class GraphWire(Wire):
    """Reads one model; what is kept of it is counted against ``Limits.memory`` and the size of the file."""

    def __init__(self, source: Source, limits: Limits) -> None:
        super().__init__(source.view, limits.steps)
        self.limits = limits
        self.memory = limits.memory + source.size

    def count(self, nbytes: int) -> None:
        """Count memory before it is used."""
        self.memory -= nbytes
        if self.memory < 0:
            raise Malformed(f"graph needs more than {self.limits.memory} bytes and the file's size (Limits.memory)")

    def name(self, part: Field) -> str:
        """A string that is kept."""
        self.count(100 + part.end - part.start)
        return self.text(part, self.limits.string, "Limits.string")

    def value_info(self, message: Field) -> ValueInfo:
        """``ValueInfoProto``: name, and the element type and shape of a tensor."""
        self.count(500)
        name, element, shape = "", 0, None
        for part in self.parts(message):
            if part.number == 1:
                name = self.name(part)
            elif part.number == 2:
                for kind in self.parts(part):
                    if kind.number == 1:  # tensor_type, not a sequence, a map, an optional or a sparse tensor
                        element, shape = self._tensor_type(kind)
        return ValueInfo(name, element, shape)

    def _tensor_type(self, message: Field) -> tuple[int, tuple[int | str, ...] | None]:
        element, shape = 0, None
        for part in self.parts(message):
            if part.number == 1:
                element = self.expect(part, VARINT).value
            elif part.number == 2:
                shape = tuple(self._axis(axis, place) for place, axis in enumerate(self.parts(part)))
        return element, shape

    def _axis(self, message: Field, place: int) -> int | str:
        """The size of an axis, or a name for one that is not known: exporters write 0 and -1 for that too."""
        self.count(200)
        if place >= _MOST_AXES:
            raise Malformed(f"a graph input or output has more than {_MOST_AXES} axes")
        found: int | str = "?"
        for part in self.parts(message):
            if part.number == 1:
                value = self.expect(part, VARINT).value
                found = value if 0 < value < 2**63 else "?"
            elif part.number == 2:
                found = (self.name(part) if part.end - part.start <= _MOST_AXIS_NAME else "") or "?"
        return found
