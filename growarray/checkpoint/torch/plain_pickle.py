"""Pickles that ``torch.save`` did not write, of ``pickle`` and joblib: told apart and named, never loaded."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from growarray.checkpoint.torch.allowlist import Global
from growarray.checkpoint.torch.machine import PickleMachine
from growarray.files.errors import Malformed, quote
from growarray.files.limits import Limits

MAGIC = 0x1950A86A20F9469CFC6C
"""The number with which files of ``torch.save`` before 1.6 begin, a pickle of its own."""

_LOOKED_AT = 2**16  # bytes of a file
_PACKED = 2**20  # bytes that are unpacked to see what is inside
_STEPS = 10_000
_ENOUGH = 8  # opcodes of protocol 0 and 1 before a long string that begin no other file
_PROTO = 0x80  # the opcode that pickles from protocol 2 on begin with


class _Noted(dict[tuple[str, str], Global]):
    """A table without entries that notes the first global which a pickle names."""

    name = ""

    def get(self, key: Any, default: Any = None) -> Any:
        self.name = self.name or ".".join(key)
        return default


def _first(data: memoryview, limits: Limits) -> tuple[Any, str]:
    """The value of a pickle that names no globals, or None; and the first global that it names, or ``''``."""
    table = _Noted()
    try:
        return PickleMachine(data, replace(limits, steps=_STEPS), table=table, persistent=None, memory=2**20).run(), ""
    except Malformed:
        return None, table.name


def is_torch_legacy(data: memoryview) -> bool:
    """Whether a file begins with the pickle of :data:`MAGIC`, of any protocol."""
    value, _ = _first(data[:64], Limits())
    return type(value) is int and value == MAGIC


def looks_like_pickle(data: memoryview, *, cut: bool = False) -> bool:
    """Whether a file is a pickle: protocols 0 and 1 are recognised by their first opcodes.

    ``cut`` says that the data may be but the beginning of one.
    """
    if not data or data[0] == _PROTO:
        return len(data) > 1 and data[1] <= 5
    if not cut and data[-1] != ord("."):
        return False
    head, count = bytes(data[:_LOOKED_AT]), 0
    try:
        for opcode, _, place in importlib.import_module("pickletools").genops(head):
            if opcode.proto > 1:
                return False
            if opcode.name == "STOP":
                return bool(place + 1 == len(data))
            count += 1
    except Exception:  # bytes that are not opcodes, or end early, raise errors of many kinds
        return b"joblib.numpy_pickle" in head or ((cut or len(data) > len(head)) and count >= _ENOUGH)
    return False


def plain_pickle(data: memoryview, limits: Limits, packed: str = "") -> Malformed:
    """The error for a pickle: it says what wrote the file, as far as that can be seen, and what to do."""
    _, name = _first(data[:_LOOKED_AT], limits)
    head = bytes(data[:_LOOKED_AT])
    writer = " of joblib" if b"joblib.numpy_pickle" in head else ""
    what = f"a pickle{writer}{packed}, but not one of torch.save"
    remedy = "torch.save" if b"torch._utils" in head else "numpy.savez"
    named = f" (it names {quote(name)})" if name else ""
    return Malformed(
        f"is {what}{named}; loading a pickle runs what it says, so it is not read: if you trust it, load it yourself "
        f"and save its arrays with {remedy}"
    )


def compressed_pickle(data: memoryview, limits: Limits) -> Malformed | None:
    """The error for a compressed pickle, as joblib writes them; None if the file is something else."""
    for start, name, unpack in _FORMATS:
        if bytes(data[: len(start)]) != start:
            continue
        try:
            inner = memoryview(unpack(bytes(data[:_PACKED])))
        except Exception:  # each module has its own errors, or is not there
            continue
        if looks_like_pickle(inner, cut=len(inner) == _LOOKED_AT):
            return plain_pickle(inner, limits, f", compressed with {name}")
    return None


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data, _LOOKED_AT)


def _bz2(data: bytes) -> bytes:
    return bytes(importlib.import_module("bz2").BZ2Decompressor().decompress(data, _LOOKED_AT))


def _lzma(data: bytes) -> bytes:
    return bytes(importlib.import_module("lzma").LZMADecompressor(memlimit=2**26).decompress(data, _LOOKED_AT))


_FORMATS: tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...] = (
    (b"\x78", "zlib", _inflated),
    (b"\x1f\x8b", "gzip", _inflated),
    (b"BZh", "bzip2", _bz2),
    (b"\xfd7zXZ", "xz", _lzma),
    (b"\x5d\x00\x00", "lzma", _lzma),
)
