"""``TensorProto`` of ONNX: values as raw bytes, as typed numbers, or in a file beside the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growarray.files.dtypes import BY_NAME, DType
from growarray.files.errors import Malformed, at, quote
from growarray.files.limits import Limits
from growarray.files.paths import ExternalFiles
from growarray.files.source import Region, Source
from growarray.files.tensor import PackedTensor, StoredTensor, count_of
from growarray.onnx.protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    Field,
    Wire,
    count_varints,
    decode_varints,
    encode_varint,
)

_FLOAT, _INT32, _STRING, _INT64, _RAW, _DOUBLE, _UINT64 = 4, 5, 6, 7, 9, 10, 11

_TYPES = {  # data_type: name, and the typed field that may hold its values
    1: ("float32", _FLOAT),
    2: ("uint8", _INT32),
    3: ("int8", _INT32),
    4: ("uint16", _INT32),
    5: ("int16", _INT32),
    6: ("int32", _INT32),
    7: ("int64", _INT64),
    9: ("bool", _INT32),
    10: ("float16", _INT32),
    11: ("float64", _DOUBLE),
    12: ("uint32", _UINT64),
    13: ("uint64", _UINT64),
    14: ("complex64", _FLOAT),
    15: ("complex128", _DOUBLE),
    16: ("bfloat16", _INT32),
    17: ("float8_e4m3fn", _INT32),
    18: ("float8_e4m3fnuz", _INT32),
    19: ("float8_e5m2", _INT32),
    20: ("float8_e5m2fnuz", _INT32),
    21: ("uint4", _INT32),
    22: ("int4", _INT32),
    23: ("float4_e2m1fn", _INT32),
    24: ("float8_e8m0fnu", _INT32),
    25: ("uint2", _INT32),
    26: ("int2", _INT32),
}
_UNREAD = {0: "UNDEFINED", 8: "STRING"}
TYPE_NAMES = {number: name for number, (name, _) in _TYPES.items()} | {8: "string"}
"""Name of every element type by its number."""
_WIRES = {_FLOAT: FIXED32, _DOUBLE: FIXED64, _INT32: VARINT, _INT64: VARINT, _UINT64: VARINT}
_FIELD_NAMES = {
    _FLOAT: "float_data",
    _INT32: "int32_data",
    _STRING: "string_data",
    _INT64: "int64_data",
    _RAW: "raw_data",
    _DOUBLE: "double_data",
    _UINT64: "uint64_data",
}


@dataclass
class TensorFields:
    """The fields of one ``TensorProto``, before they are checked against each other."""

    name: str = ""
    data_type: int = 0
    dims: list[int] = field(default_factory=list)
    location: int = 0
    segmented: bool = False
    external: dict[str, str] = field(default_factory=dict)
    data: dict[int, tuple[int, int] | bytearray] = field(default_factory=dict)

    @property
    def has_strings(self) -> bool:
        """Whether the values are strings, which no array of numbers holds."""
        return self.data_type == 8


class _Numbers(StoredTensor):
    """A tensor whose integers are written as varints; for small floats they are the bits of each element."""

    __slots__ = ()

    def _elements(self) -> NDArray[Any]:
        code = np.dtype(self.dtype.raw)
        if self.size == 0:
            return np.empty(self.shape, code)
        with at(self.region.name):
            numbers = decode_varints(self.region.view(), self.size)
            if self.dtype.name == "uint64":
                return numbers.view(np.uint64).reshape(self.shape)
            least, most = (
                (0, 1) if code.kind == "b" else (int(np.iinfo(_integer(code)).min), int(np.iinfo(_integer(code)).max))
            )
            if numbers.min() < least or numbers.max() > most:
                raise Malformed(f"a value does not fit {self.dtype.name}, {least} to {most}")
            bits = numbers.astype(np.uint8 if code.kind == "b" else _integer(code))
            return bits.view(code).reshape(self.shape)


def _integer(code: np.dtype[Any]) -> Any:
    """The integer type with the bits of an element."""
    return code if code.kind in "iu" else np.dtype(f"u{code.itemsize}")


def read_tensor_fields(wire: Wire, message: Field, limits: Limits) -> TensorFields:
    """The fields of the ``TensorProto`` in a field of another message."""
    result = TensorFields()
    for part in wire.parts(message):
        number = part.number
        if number == 1:
            _read_dims(wire, part, result.dims)
        elif number == 2:
            result.data_type = wire.expect(part, VARINT).value
        elif number == 3:
            result.segmented = True
        elif number in _FIELD_NAMES:
            _read_data(wire, part, result)
        elif number == 8:
            result.name = wire.text(part, limits.string, "Limits.string")
        elif number == 13:
            key, value = _read_entry(wire, part)
            if key in result.external:
                raise Malformed(f"external_data has the key {quote(key)} twice")
            result.external[key] = value
        elif number == 14:
            result.location = wire.expect(part, VARINT).value
    return result


def _read_dims(wire: Wire, part: Field, dims: list[int]) -> None:
    if part.wire == BYTES:
        data = wire.data[part.start : part.end]
        count = count_varints(data)
        if count > 64:
            raise Malformed(f"has {count} axes; an array has at most 64")
        dims += decode_varints(data, count).tolist()
    else:
        value = wire.expect(part, VARINT).value
        dims.append(value - 2**64 if value >= 2**63 else value)
    if len(dims) > 64:
        raise Malformed("has more than 64 axes, the most an array can have")


def _read_data(wire: Wire, part: Field, result: TensorFields) -> None:
    """Note where values lie; pieces of one field are joined."""
    number, known = part.number, result.data.get(part.number)
    if part.wire == BYTES or number in (_RAW, _STRING):
        wire.expect(part, BYTES)
        if known is None:
            result.data[number] = (part.start, part.end)
            return
        if number == _STRING:
            return  # the first one tells that there are strings
        if number == _RAW:
            raise Malformed("has raw_data twice")
        piece = bytes(wire.data[part.start : part.end])
    else:
        wire.expect(part, _WIRES[number])
        piece = encode_varint(part.value) if part.wire == VARINT else bytes(wire.data[part.start : part.end])
    if known is None:
        result.data[number] = bytearray(piece)
    elif isinstance(known, tuple):
        result.data[number] = bytearray(wire.data[slice(*known)]) + piece
    else:
        known += piece


def _read_entry(wire: Wire, message: Field) -> tuple[str, str]:
    """Key and value of a ``StringStringEntryProto``."""
    both = {1: "", 2: ""}
    for part in wire.parts(message):
        if part.number in both:
            both[part.number] = wire.text(part, 65536)
    return both[1], both[2]


def stored_tensor(source: Source, fields: TensorFields, external: ExternalFiles) -> StoredTensor:
    """The tensor that the fields describe, its values still in the file. Raises Malformed unless they fit exactly."""
    if fields.data_type not in _TYPES:
        name = _UNREAD.get(fields.data_type, "unknown")
        raise Malformed(f"has the data type {fields.data_type} ({name}), which is not read; only numbers are")
    if fields.segmented:
        raise Malformed("is a segment of a larger tensor, which is not read")
    name, typed = _TYPES[fields.data_type]
    dtype = BY_NAME[name]
    count = count_of(fields.dims, itemsize=dtype.itemsize, what="dims")
    shape = tuple(fields.dims)
    nbytes = (count * dtype.bits + 7) // 8
    kind = PackedTensor if dtype.bits < 8 else StoredTensor
    place = f"tensor {quote(fields.name)}"
    if fields.location == 1:
        return kind(_external(fields, external, place, nbytes), dtype, shape)
    if fields.location != 0 or fields.external:
        raise Malformed(
            f"has data_location {fields.location} and external_data {quote(fields.external)}; expected both or none"
        )
    found = [number for number, data in fields.data.items() if data != (0, 0) and _length(data)]
    if len(found) > 1 or (found and found[0] not in (_RAW, typed)):
        names = " and ".join(_FIELD_NAMES[number] for number in found)
        raise Malformed(f"has {names}; a tensor of type {name} has raw_data or {_FIELD_NAMES[typed]}")
    if not found:
        if count:
            raise Malformed(f"of shape {shape} has no data")
        return StoredTensor(Region(source, place, 0, 0), dtype, shape)
    region = _region(source, fields.data[found[0]], place)
    if found[0] != _RAW and _WIRES[typed] == VARINT:
        return _numbers(region, dtype, shape, count)
    if region.nbytes != nbytes:
        raise Malformed(f"of shape {shape} and type {name} has {region.nbytes} bytes, expected {nbytes}")
    return kind(region, dtype, shape)


def _length(data: tuple[int, int] | bytearray) -> int:
    return data[1] - data[0] if isinstance(data, tuple) else len(data)


def _region(source: Source, data: tuple[int, int] | bytearray, place: str) -> Region:
    if isinstance(data, tuple):
        return Region(source, place, data[0], data[1] - data[0])
    return Region(Source.of_bytes(data, source.name), place, 0, len(data))


def _numbers(region: Region, dtype: DType, shape: tuple[int, ...], count: int) -> StoredTensor:
    """A tensor of varints: one an element, or one a byte of packed elements."""
    numbers = (count * dtype.bits + 7) // 8 if dtype.bits < 8 else count
    found = count_varints(region.view())
    if found != numbers:
        raise Malformed(f"of shape {shape} and type {dtype.name} has {found} numbers, expected {numbers}")
    if dtype.bits >= 8:
        return _Numbers(region, dtype, shape)
    values = decode_varints(region.view(), numbers)
    if values.min() < 0 or values.max() > 255:
        raise Malformed(f"has packed {dtype.name} values that are not bytes")
    packed = values.astype(np.uint8).tobytes()
    return PackedTensor(Region(Source.of_bytes(packed, region.source.name), region.name, 0, len(packed)), dtype, shape)


def _external(fields: TensorFields, external: ExternalFiles, place: str, nbytes: int) -> Region:
    """The stretch of the file beside the model, which must be there and exactly as long as the tensor."""
    known = {"location", "offset", "length", "checksum"}
    unknown = sorted(set(fields.external) - known)
    if unknown:
        raise Malformed(f"external_data has the key {quote(unknown[0])}; known are {', '.join(sorted(known))}")
    if any(map(_length, fields.data.values())):
        raise Malformed("has values in the model and in an external file")
    if "location" not in fields.external:
        raise Malformed("external_data has no location")
    source = external.find(fields.external["location"])
    offset = _decimal(fields.external, "offset", 0)
    length = _decimal(fields.external, "length", nbytes)
    if length != nbytes:
        raise Malformed(f"external_data has {length} bytes, shape and type need {nbytes}")
    if offset + nbytes > source.size:
        raise Malformed(f"external_data from {offset} with {nbytes} bytes goes past the end of the file, {source.size}")
    return Region(source, place, offset, nbytes)


def _decimal(entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise Malformed(f"external_data has the {key} {quote(text)}; expected decimal digits")
    return int(text)
