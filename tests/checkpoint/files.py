"""Small files of every kind, made by hand, so that each can be made wrong in one place."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any

import numpy as np
import pytest

MAGIC = 0x1950A86A20F9469CFC6C


def rows(table: dict[str, tuple[Any, ...]]) -> list[Any]:
    """Cases of a parametrized test, each under its name."""
    return [pytest.param(*row, id=name) for name, row in table.items()]


class Raw(bytes):
    """Opcodes that stand where a value is expected."""


def glob(module: str, name: str) -> Raw:
    """GLOBAL."""
    return Raw(f"c{module}\n{name}\n".encode())


def op(value: Any) -> bytes:
    """Opcodes that push a value."""
    if isinstance(value, Raw):
        return bytes(value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(op, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(op, value)) + b"e"
    assert isinstance(value, dict)
    return b"}(" + b"".join(op(k) + op(v) for k, v in value.items()) + b"u"


def pickled(value: Any) -> bytes:
    """A pickle of protocol 2."""
    return b"\x80\x02" + op(value) + b"."


def call(module: str, name: str, *arguments: Any) -> Raw:
    """GLOBAL, arguments, REDUCE."""
    return Raw(glob(module, name) + op(tuple(arguments)) + b"R")


def storage(key: str, numel: Any, kind: str = "FloatStorage", *view: Any, location: Any = "cpu") -> Raw:
    """BINPERSID of a storage; ``view`` is the sixth item of legacy files."""
    return Raw(op(("storage", glob("torch", kind), key, location, numel, *view)) + b"Q")


EMPTY = call("collections", "OrderedDict")


def tensor(stored: Any, offset: Any, size: Any, stride: Any, *metadata: Any, grad: Any = False) -> Raw:
    """``_rebuild_tensor_v2``."""
    return call("torch._utils", "_rebuild_tensor_v2", stored, offset, size, stride, grad, EMPTY, *metadata)


def ordered(items: dict[Any, Any], state: Any = None) -> Raw:
    """An OrderedDict, with a state if there is one."""
    built = op(state) + b"b" if state is not None else b""
    return Raw(EMPTY + b"(" + b"".join(op(k) + op(v) for k, v in items.items()) + b"u" + built)


def zipped(records: dict[str, bytes], *, method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    """A zip archive of these members, their bytes at multiples of 64 as torch writes them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in records.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            padding = -(file.tell() + 30 + len(name) + 4) % 64
            info.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
            archive.writestr(info, data)
        archive.comment = comment
    return file.getvalue()


def torch_zip(root: Any, storages: dict[str, bytes] | None = None, **records: bytes) -> bytes:
    """A zip checkpoint of a structure and its storages."""
    inside = {"data.pkl": root if type(root) is bytes else pickled(root), "version": b"3\n", **records}
    inside |= {f"data/{key}": data for key, data in (storages or {}).items()}
    return zipped({f"m/{name}": data for name, data in inside.items()})


def torch_legacy(root: Any, storages: dict[str, tuple[int, bytes]], keys: Any = None) -> bytes:
    """A legacy checkpoint: storages are counts of elements and bytes."""
    head = b"".join(map(pickled, (MAGIC, 1001, {"little_endian": True}, root)))
    head += pickled(list(storages) if keys is None else keys)
    return head + b"".join(struct.pack("<q", numel) + data for numel, data in storages.values())


FLOATS = np.arange(6, dtype="<f4")
SIX = FLOATS.tobytes()
WEIGHT = tensor(storage("0", 6), 0, (2, 3), (3, 1))


def simple_zip(**names: Any) -> bytes:
    """A zip checkpoint of one float tensor, or of these tensors over the same storage of six."""
    return torch_zip(ordered(names or {"w": WEIGHT}), {"0": SIX})


def simple_legacy() -> bytes:
    """A legacy checkpoint of one float tensor."""
    weight = tensor(storage("0", 6, "FloatStorage", None), 0, (2, 3), (3, 1))
    return torch_legacy(ordered({"w": weight}), {"0": (6, SIX)})


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file; ``length`` lies about the header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: Any, begin: int, end: int) -> dict[str, Any]:
    """A tensor of a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def simple_safetensors() -> bytes:
    """A safetensors file of two tensors."""
    return safetensors({"w": entry("F32", [2, 3], 0, 24), "b": entry("I64", [1], 24, 32)}, SIX + bytes(8))


def varint(value: int) -> bytes:
    """A number of protocol buffers."""
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    """A field of protocol buffers: a varint, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value % 2**64)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_proto(name: str, dims: list[int], data_type: int, *fields: bytes) -> bytes:
    """``TensorProto``."""
    return b"".join(field(1, n) for n in dims) + field(2, data_type) + field(8, name.encode()) + b"".join(fields)


def external(**entries: Any) -> bytes:
    """Fields of a tensor that lies in another file."""
    pairs = (field(1, key.encode()) + field(2, str(value).encode()) for key, value in entries.items())
    return b"".join(field(13, pair) for pair in pairs) + field(14, 1)


def onnx(*initializers: bytes, graph: bytes = b"", model: bytes = b"") -> bytes:
    """``ModelProto`` with these initializers."""
    inside = b"".join(field(5, tensor) for tensor in initializers) + graph
    return field(1, 9) + model + field(7, inside) + field(8, field(2, 18))


def simple_onnx() -> bytes:
    """An ONNX model with one float initializer."""
    return onnx(tensor_proto("w", [2, 3], 1, field(9, SIX)))


def simple_npz(**arrays: Any) -> bytes:
    """An ``.npz`` archive."""
    file = io.BytesIO()
    np.savez(file, **(arrays or {"w": FLOATS.reshape(2, 3)}))
    return file.getvalue()
