"""The messages of an ONNX graph: its names, inputs and outputs, every object counted before it is made.

Field numbers are those of ``onnx.proto`` (IR version 13).
"""

from __future__ import annotations

from dataclasses import dataclass

from growarray.files.errors import Malformed
from growarray.files.limits import Limits
from growarray.files.source import Source
from growarray.onnx.protobuf import VARINT, Field, Wire

_MOST_AXES = 64
_MOST_AXIS_NAME = 64  # bytes


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
