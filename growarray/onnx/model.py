"""ONNX models on disk: the messages of ``onnx.proto`` that an exported network needs, without copies of weights.

Field numbers are those of ``onnx.proto`` (IR version 13); messages are protocol buffers, as in :mod:`.protobuf`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from growarray.files.paths import replacing
from growarray.onnx.protobuf import BYTES, FIXED32, VARINT, encode_varint

LARGEST = 2**31 - 1  # bytes of a message of protocol buffers
DATA_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float16": 10, "float64": 11}
_IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}  # the first that has the operator set
_SMALL = 1024  # bytes below which a tensor stays in the model
_PAGE = 4096  # where external tensors begin, so that a runtime can map them
_EXTERNAL = 1  # DataLocation
_FLOAT, _INT, _STRING, _TENSOR, _INTS = 1, 2, 3, 4, 7  # AttributeType

Buffer = bytes | memoryview


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named array of one of :data:`DATA_TYPES`."""

    name: str
    array: np.ndarray

    def data(self) -> Buffer:
        """The values, little-endian, without a copy if they are stored so already."""
        if not self.array.size:
            return b""
        flat = np.ascontiguousarray(self.array, dtype=self.array.dtype.newbyteorder("<"))
        return flat.reshape(-1).view(np.uint8).data


@dataclass
class Node:
    """One operator; an empty input name is an input that is left out."""

    op: str
    inputs: list[str]
    outputs: list[str]
    name: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Port:
    """An input or output of the model; a dimension is a size, a symbol, or None if it is not known.

    ``kind`` is its type, None for the floats of the model.
    """

    name: str
    shape: tuple[int | str | None, ...]
    kind: str | None = None


@dataclass
class Model:
    """A graph with everything that its file says; ``dtype`` is that of inputs and outputs."""

    name: str
    dtype: np.dtype[Any]
    opset: int
    producer: tuple[str, str]
    nodes: list[Node]
    initializers: list[Tensor]
    inputs: list[Port]
    outputs: list[Port]
    metadata: Mapping[str, str] = field(default_factory=dict)


class _Message:
    """A message in pieces, so that its length is known before anything is joined or written."""

    def __init__(self) -> None:
        self.pieces: list[Buffer] = []
        self.size = 0

    def _add(self, *pieces: Buffer) -> None:
        self.pieces += pieces
        self.size += sum(len(piece) for piece in pieces)

    def _tag(self, number: int, wire: int) -> None:
        self._add(encode_varint(number << 3 | wire))

    def integer(self, number: int, value: int) -> None:
        """A varint; negative numbers as their two's complement of 64 bits."""
        self._tag(number, VARINT)
        self._add(encode_varint(value % 2**64))

    def real(self, number: int, value: float) -> None:
        """A float of 32 bits."""
        self._tag(number, FIXED32)
        self._add(struct.pack("<f", value))

    def data(self, number: int, value: str | Buffer) -> None:
        """A string or bytes."""
        raw = value.encode() if isinstance(value, str) else value
        self._tag(number, BYTES)
        self._add(encode_varint(len(raw)), raw)

    def message(self, number: int, value: _Message) -> None:
        """A message inside this one."""
        self._tag(number, BYTES)
        self._add(encode_varint(value.size))
        self.pieces += value.pieces
        self.size += value.size


def _pair(key: str, value: str) -> _Message:
    """``StringStringEntryProto``."""
    message = _Message()
    message.data(1, key)
    message.data(2, value)
    return message


def _tensor(tensor: Tensor, place: tuple[str, int] | None = None) -> _Message:
    """``TensorProto``, with its values, or with the file and the offset where they lie."""
    message = _Message()
    for size in tensor.array.shape:
        message.integer(1, size)
    message.integer(2, DATA_TYPES[tensor.array.dtype.name])
    message.data(8, tensor.name)
    if place is None:
        message.data(9, tensor.data())
        return message
    entries = {"location": place[0], "offset": str(place[1]), "length": str(tensor.array.nbytes)}
    for key, value in entries.items():
        message.message(13, _pair(key, value))
    message.integer(14, _EXTERNAL)
    return message


def _attribute(name: str, value: Any) -> _Message:
    """``AttributeProto`` of a whole number, a float, a string, an array, or a sequence of whole numbers."""
    message = _Message()
    message.data(1, name)
    if isinstance(value, str):
        message.data(4, value)
        kind = _STRING
    elif isinstance(value, float):
        message.real(2, value)
        kind = _FLOAT
    elif isinstance(value, np.ndarray):
        message.message(5, _tensor(Tensor("", value)))
        kind = _TENSOR
    elif isinstance(value, tuple | list):
        for item in value:
            message.integer(8, int(item))
        kind = _INTS
    else:
        message.integer(3, int(value))
        kind = _INT
    message.integer(20, kind)
    return message


def _node(node: Node) -> _Message:
    """``NodeProto``."""
    message = _Message()
    for name in node.inputs:
        message.data(1, name)
    for name in node.outputs:
        message.data(2, name)
    message.data(3, node.name)
    message.data(4, node.op)
    for name, value in node.attributes.items():
        message.message(5, _attribute(name, value))
    return message


def _port(port: Port, dtype: np.dtype[Any]) -> _Message:
    """``ValueInfoProto``."""
    shape, tensor, kind, message = _Message(), _Message(), _Message(), _Message()
    for size in port.shape:
        dimension = _Message()
        if isinstance(size, str):
            dimension.data(2, size)
        elif size is not None:
            dimension.integer(1, size)
        shape.message(1, dimension)
    tensor.integer(1, DATA_TYPES[port.kind or dtype.name])
    tensor.message(2, shape)
    kind.message(1, tensor)
    message.data(1, port.name)
    message.message(2, kind)
    return message


def _model(model: Model, places: Mapping[str, tuple[str, int]]) -> _Message:
    """``ModelProto``."""
    graph, opset, message = _Message(), _Message(), _Message()
    for node in model.nodes:
        graph.message(1, _node(node))
    graph.data(2, model.name)
    for tensor in model.initializers:
        graph.message(5, _tensor(tensor, places.get(tensor.name)))
    for port in model.inputs:
        graph.message(11, _port(port, model.dtype))
    for port in model.outputs:
        graph.message(12, _port(port, model.dtype))
    opset.data(1, "")
    opset.integer(2, model.opset)
    message.integer(1, _IR_VERSIONS[model.opset])
    message.data(2, model.producer[0])
    message.data(3, model.producer[1])
    message.message(7, graph)
    message.message(8, opset)
    for key, value in model.metadata.items():
        message.message(14, _pair(key, value))
    return message


def write_model(path: Path, model: Model, *, external: bool | None = None) -> None:
    """Write the model to ``path`` under a temporary name, then rename it: the file is never half written.

    external : whether weights go to ``<path>.data`` beside it; None: if the model would exceed :data:`LARGEST` bytes

    A file of weights that the model at ``path`` points to is not written again, since no two names change at once: the
    new weights are in ``<path>.data`` and ``<path>.data.2`` in turn, and the old ones go once the new model is there.
    """
    message = None if external else _model(model, {})
    if message is not None and (external is False or message.size <= LARGEST):
        if message.size > LARGEST:
            raise ValueError(
                f"to_onnx: the model has {message.size} bytes, one file holds {LARGEST}; do not pass external_data"
            )
        with replacing(path) as file:
            file.writelines(message.pieces)
        return
    files = [path.with_name(f"{path.name}{suffix}") for suffix in (".data", ".data.2")]
    old = [file for file in files if _points_to(path, file.name)]
    data = files[files[0] in old]
    large = [tensor for tensor in model.initializers if tensor.array.nbytes >= _SMALL]
    offsets, end = [], 0
    for tensor in large:
        offsets.append(-(-end // _PAGE) * _PAGE)
        end = offsets[-1] + tensor.array.nbytes
    places = {tensor.name: (data.name, offset) for tensor, offset in zip(large, offsets, strict=True)}
    with replacing(path) as file:
        file.writelines(_model(model, places).pieces)
        if large:
            file.flush()
            os.fsync(file.fileno())  # before the values take their name: nothing but the model's name is left to fail
            with replacing(data) as values:
                for tensor, offset in zip(large, offsets, strict=True):
                    values.write(bytes(offset - values.tell()))
                    values.write(tensor.data())
    for unused in old:
        if unused != data or not large:
            with suppress(OSError):  # Windows removes no file that is open
                unused.unlink()


def _points_to(path: Path, name: str) -> bool:
    """Whether tensors of the model at ``path``, if there is one, lie in the file ``name``: it has the pair of both."""
    pair = b"".join(_pair("location", name).pieces)
    try:
        with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as old:
            return old.find(pair) >= 0
    except (OSError, ValueError):  # no file, or an empty one
        return False
