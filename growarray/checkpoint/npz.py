"""``.npz`` archives of NumPy: every member an ``.npy`` array of plain numbers, compressed or not."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growarray.checkpoint.zip_index import DEFLATED, STORED, Member, read_index
from growarray.files.dtypes import NUMPY_NAMES, DType
from growarray.files.errors import Malformed, at, naming, quote
from growarray.files.limits import Limits
from growarray.files.source import Region, Source, check_crc, compare_crc
from growarray.files.tensor import Contents, StoredTensor, count_of

_MAGIC = b"\x93NUMPY"
_MOST_HEADER = 10_000
_PIECE = 2**20  # bytes that are inflated at a time
_MOST_RATIO = 1100  # DEFLATE cannot do better than 1032
_HEADER = re.compile(
    r"\{'descr': '([^']{1,20})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19})?,?)\), ?\}\s*"
)


class _Inflated(StoredTensor):
    """A tensor of a compressed member; it is inflated when it is read, never beyond the size that was checked."""

    __slots__ = ("member",)

    member: Member

    def check(self) -> None:
        """Inflate the member piece by piece, for its size, its CRC-32 and bools alone; none of it is kept."""
        crc, place = 0, 0
        with naming(self.region.source.name), at(self.region.name):
            for piece in _pieces(self.region.view(), self.member.size):
                crc = zlib.crc32(piece, crc)
                values = np.frombuffer(piece, np.uint8)[max(self.start - place, 0) :]
                if self.dtype.name == "bool" and values.max(initial=0) > 1:
                    raise Malformed("a bool is stored as a byte other than 0 and 1")
                place += len(piece)
            compare_crc(crc, self.member.crc, "bytes")

    def _elements(self) -> NDArray[Any]:
        code = np.dtype(self.dtype.raw).newbyteorder(">" if self.region.big_endian else "<")
        if self.size == 0:
            return np.empty(self.shape, np.dtype(self.dtype.raw))
        with at(self.region.name):
            data = _inflate(self.region.view(), self.member.size)
            check_crc(data, self.member.crc, "bytes")
        strides = None if self.strides is None else tuple(s * code.itemsize for s in self.strides)
        return np.ndarray(self.shape, code, buffer=data, offset=self.start, strides=strides)


def read_npz(source: Source, limits: Limits) -> Contents:
    """All arrays of an archive by name. Raises Malformed for objects, strings and structured types."""
    tensors: dict[str, StoredTensor] = {}
    inflated = 0
    members = read_index(source.view, limits, methods=(STORED, DEFLATED))
    if len(members) > limits.tensors:
        raise Malformed(f"has {len(members)} arrays; the limit is {limits.tensors} (Limits.tensors)")
    for member in members.values():
        with at(f"member {quote(member.name)}"):
            if not member.name.endswith(".npy"):
                raise Malformed("is not an .npy array")
            if member.method == DEFLATED:
                inflated += member.size
                if member.size > _MOST_RATIO * member.stored + 64:
                    raise Malformed(f"says that {member.stored} bytes inflate to {member.size}, which is impossible")
                if inflated > limits.inflated:
                    raise Malformed(
                        f"inflates to {member.size} bytes; the limit is {limits.inflated} for all (Limits.inflated)"
                    )
            tensors[member.name.removesuffix(".npy")] = _tensor(source, member)
    return Contents("npz", tensors)


def _tensor(source: Source, member: Member) -> StoredTensor:
    data = source.view[member.offset : member.offset + member.stored]
    head = bytes(data[: _MOST_HEADER + 12]) if member.method == STORED else _inflate_head(data)
    dtype, big_endian, shape, strides, start = _header(head)
    count = count_of(shape, itemsize=dtype.itemsize)
    if start + count * dtype.itemsize != member.size:
        raise Malformed(
            f"has {member.size - start} bytes; shape {shape} of {dtype.name} needs {count * dtype.itemsize}"
        )
    place = f"member {quote(member.name)}"
    if member.method == DEFLATED:
        region = Region(source, place, member.offset, member.stored, big_endian=big_endian)
        tensor = _Inflated(region, dtype, shape, strides, start=start)
        tensor.member = member
        return tensor
    region = Region(source, place, member.offset, member.size, crc=member.crc, big_endian=big_endian)
    return StoredTensor(region, dtype, shape, strides, start=start)


def _header(head: bytes) -> tuple[DType, bool, tuple[int, ...], tuple[int, ...] | None, int]:
    """Element type, byte order, shape, strides and first byte of the values, by the header of an ``.npy`` array."""
    if head[:6] != _MAGIC or len(head) < 12 or head[6] not in (1, 2, 3):
        raise Malformed(f"starts with {quote(head[:8])}; expected an .npy array of version 1, 2 or 3")
    width = 2 if head[6] == 1 else 4
    start = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    if start > min(len(head), _MOST_HEADER):
        raise Malformed(f"has a header of {start} bytes, the limit is {_MOST_HEADER}; or it is cut off")
    text = head[8 + width : start].decode("latin1")
    header = _HEADER.fullmatch(text)
    if header is None:
        raise Malformed(f"has the header {quote(text)}; expected a plain type, an order and a shape")
    code = header[1]
    dtype = NUMPY_NAMES.get(code.replace(">", "<").replace("=", "<"))
    if dtype is None:
        raise Malformed(f"has the type {quote(code)}, which is not read; only numbers are, not objects or strings")
    shape = tuple(int(n) for n in re.findall(r"\d+", header[3]))
    strides = None
    if header[2] == "True":
        steps = [1]
        for n in shape:
            steps.append(steps[-1] * n)
        strides = tuple(steps[:-1])
    return dtype, code.startswith(">"), shape, strides, start


def _inflate_head(data: memoryview) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(bytes(data[: 4 * _MOST_HEADER]), _MOST_HEADER + 12)
    except zlib.error as fault:
        raise Malformed(f"cannot be inflated: {fault}") from None


def _inflate(data: memoryview, size: int) -> bytearray:
    """All bytes of a member, at most ``size`` of them, and exactly so many."""
    out, filled = bytearray(size), 0
    for piece in _pieces(data, size):
        out[filled : filled + len(piece)] = piece
        filled += len(piece)
    return out


def _pieces(data: memoryview, size: int) -> Iterator[bytes]:
    """The bytes of a member, a megabyte at a time; refused unless they are exactly ``size``."""
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    filled = taken = 0
    pending: bytes | memoryview = b""
    try:
        while not machine.eof:
            if not pending:  # what one call leaves over is copied, so it gets little
                pending = data[taken : taken + _PIECE]
                taken += len(pending)
            piece = machine.decompress(pending, min(_PIECE, size - filled + 1))
            if filled + len(piece) > size or not (piece or pending or machine.eof):
                break
            yield piece
            filled += len(piece)
            pending = machine.unconsumed_tail
    except zlib.error as fault:
        raise Malformed(f"cannot be inflated: {fault}") from None
    if filled != size or not machine.eof or machine.unused_data or taken != len(data):
        raise Malformed(f"does not inflate to the {size} bytes that the directory says")
