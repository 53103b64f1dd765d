"""safetensors: eight bytes of length, a JSON header, and the tensors one after another without a gap."""

from __future__ import annotations

from itertools import islice
from typing import Any

from growarray.checkpoint.strict_json import expect_string, parse_json
from growarray.files.dtypes import BY_NAME
from growarray.files.errors import Malformed, at, quote
from growarray.files.limits import Limits
from growarray.files.source import Region, Source
from growarray.files.tensor import Contents, StoredTensor, count_of

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
"""Name of each element type, by its code in the header."""

_FIELDS = {"dtype", "shape", "data_offsets"}


def read_safetensors(source: Source, limits: Limits) -> Contents:
    """All tensors of a file, still in it. Raises Malformed if header and data do not fit exactly."""
    data = source.view
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 2 <= length <= len(data) - 8:
        raise Malformed(f"header has {length} bytes; expected 2 to {len(data) - 8}: the file is cut off")
    if length > limits.metadata:
        raise Malformed(f"header has {length} bytes; the limit is {limits.metadata} (Limits.metadata)")
    with at("header"):
        if data[8] != ord("{"):
            raise Malformed(f"starts with {quote(bytes(data[8:24]))}; expected '{{'")
        header = parse_json(data[8 : 8 + length], memory=limits.memory + source.size)
        metadata = _metadata(header.pop("__metadata__", {}))
        if len(header) > limits.tensors:
            raise Malformed(f"has {len(header)} tensors; the limit is {limits.tensors} (Limits.tensors)")
        tensors = {}
        for name, entry in header.items():
            with at(f"tensor {quote(name)}"):
                tensors[name] = _tensor(source, entry, name, 8 + length)
        _check_cover(tensors, 8 + length, len(data))
    aliases = {alias: kept for alias, kept in metadata.items() if kept in tensors and alias not in tensors}
    return Contents("safetensors", tensors, metadata=metadata, aliases=aliases)


def _metadata(metadata: Any) -> dict[str, Any]:
    if type(metadata) is not dict:
        raise Malformed(f"__metadata__ is {quote(metadata)}; expected an object")
    for key, value in metadata.items():
        expect_string(value, f"__metadata__ {quote(key)}")
    return metadata


def _tensor(source: Source, entry: Any, name: str, base: int) -> StoredTensor:
    """The tensor of one entry; its offsets count from ``base``, the end of the header."""
    if type(entry) is not dict or set(entry) != _FIELDS:
        fields = ", ".join(sorted(map(quote, islice(entry, 8)))) if type(entry) is dict else quote(entry)
        raise Malformed(f"is described by {fields}; expected dtype, shape, data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(code) is not str or code not in DTYPES:
        raise Malformed(f"has the dtype {quote(code)}; expected one of {', '.join(DTYPES)}")
    dtype = BY_NAME[DTYPES[code]]
    if type(shape) is not list:
        raise Malformed(f"has the shape {quote(shape)}; expected a list")
    nbytes = count_of(shape, itemsize=dtype.itemsize) * dtype.itemsize
    if type(offsets) is not list or len(offsets) != 2 or any(type(o) is not int for o in offsets):
        raise Malformed("has data_offsets that are not two integers")
    begin, end = offsets
    if not 0 <= begin <= end or end - begin != nbytes:
        raise Malformed(
            f"has the offsets {begin} to {end}, and {nbytes} bytes by shape {tuple(shape)} and dtype {code}"
        )
    region = Region(source, f"tensor {quote(name)}", base + begin, nbytes)
    return StoredTensor(region, dtype, tuple(shape))


def _check_cover(tensors: dict[str, StoredTensor], start: int, end: int) -> None:
    """Refuse gaps, overlaps and bytes that belong to no tensor: something could hide in them."""
    place = start
    for region in sorted((t.region for t in tensors.values()), key=lambda r: (r.offset, r.nbytes)):
        if region.offset != place:
            what = "overlaps the one before it" if region.offset < place else "leaves a gap before it"
            raise Malformed(f"{region.name} starts at byte {region.offset}, expected {place}: it {what}")
        place += region.nbytes
    if place != end:
        raise Malformed(f"tensors end at byte {place}, the file at {end}: it is cut off, or something was appended")
