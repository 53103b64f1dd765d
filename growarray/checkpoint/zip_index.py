"""The directory of a zip archive, read so strictly that every reader of the archive must see the same members.

Nothing is extracted. Of the format (PKWARE APPNOTE 6.3.10) this takes what torch and NumPy write: one disk, no
encryption, no comment, the first member at byte 0, ZIP64 if sizes ask for it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from growarray.files.errors import Malformed, quote
from growarray.files.limits import Limits
from growarray.files.paths import is_safe_name

STORED, DEFLATED = 0, 8

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FLAGS = 0x0808  # sizes in a data descriptor, names in UTF-8: all others change how the bytes are read
_DEFLATE_FLAGS = 0x0006
_FULL32 = 0xFFFFFFFF
_MEMBER_COST = 700  # bytes of the Python objects of a member


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive; ``offset`` is that of its bytes, not of its header."""

    name: str
    method: int
    crc: int
    stored: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the central directory."""

    raw_name: bytes
    name: str
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    header: int


def read_index(data: memoryview, limits: Limits, *, methods: tuple[int, ...] = (STORED,)) -> dict[str, Member]:
    """All members by name. Raises Malformed if two readers could disagree about the content."""
    start, end, count = _directory(data)
    if end - start > limits.metadata:
        raise Malformed(f"zip directory has {end - start} bytes; the limit is {limits.metadata} (Limits.metadata)")
    entries: list[_Entry] = []
    position = start
    while position < end:
        try:
            entry, position = _entry(data, position, end, methods)
        except Malformed as fault:
            raise Malformed(f"zip directory, entry {len(entries)}: {fault}") from None
        entries.append(entry)
        if len(entries) * _MEMBER_COST > limits.memory + len(data):
            raise Malformed(f"zip directory needs more than {limits.memory} bytes and the file's size (Limits.memory)")
    if len(entries) != count:
        raise Malformed(f"zip directory has {len(entries)} entries, its end record says {count}")
    if not entries:
        raise Malformed("zip archive is empty")
    return _members(data, entries, start)


def _members(data: memoryview, entries: list[_Entry], directory: int) -> dict[str, Member]:
    """Check each entry against its local header; no two may share a name or a byte."""
    members: dict[str, Member] = {}
    entries.sort(key=lambda entry: entry.header)
    if entries[0].header != 0:
        raise Malformed(f"first zip member starts at byte {entries[0].header}, expected 0")
    for i, entry in enumerate(entries):
        following = min(entries[i + 1].header, directory) if i + 1 < len(entries) else directory
        try:
            member = _local(data, entry, following)
        except Malformed as fault:
            raise Malformed(f"zip member {quote(entry.name)} {fault}") from None
        if member.name in members:
            raise Malformed(f"zip member {quote(entry.name)} appears twice")
        members[member.name] = member
    return members


def _directory(data: memoryview) -> tuple[int, int, int]:
    """First byte and end of the central directory, and how many entries it should have."""
    place = len(data) - _END.size
    if place < 0 or bytes(data[place : place + 4]) != b"PK\x05\x06":
        raise Malformed(
            "zip archive has no end record at its end: the file is cut off, or something was appended to it"
        )
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(data, place)
    if comment:
        raise Malformed("zip archive has a comment, which no writer of checkpoints makes")
    locator = place - _LOCATOR.size
    if locator >= 0 and bytes(data[locator : locator + 4]) == b"PK\x06\x07":
        start, size, count, place = _zip64(data, locator, (start, size, count))
    elif _FULL32 in (start, size) or count == 0xFFFF:
        raise Malformed("zip end record points to a ZIP64 record that is not there")
    elif here != count:
        raise Malformed(
            f"zip end record counts {here} entries here and {count} in all; archives on several disks are not read"
        )
    if disk not in (0, 0xFFFF) or first_disk not in (0, 0xFFFF):
        raise Malformed("zip archive spans several disks")
    if start + size != place:
        raise Malformed(f"zip directory at {start} with {size} bytes does not end at its end record, byte {place}")
    return start, place, count


def _zip64(data: memoryview, locator: int, short: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Start, size and count of the directory by the ZIP64 record, and where that record lies."""
    _, disk, place, disks = _LOCATOR.unpack_from(data, locator)
    if disk != 0 or disks not in (0, 1) or place + _END64.size != locator:
        raise Malformed("ZIP64 locator does not point to the record before it")
    magic, length, _, _, disk, first_disk, here, count, size, start = _END64.unpack_from(data, place)
    if magic != b"PK\x06\x06" or length != _END64.size - 12 or disk or first_disk or here != count:
        raise Malformed("ZIP64 end record is damaged")
    for value, narrow, full in zip((start, size, count), short, (_FULL32, _FULL32, 0xFFFF), strict=True):
        if narrow not in (value, full):
            raise Malformed(f"zip end records disagree: {narrow} and {value}")
    return start, size, count, place


def _entry(data: memoryview, position: int, end: int, methods: tuple[int, ...]) -> tuple[_Entry, int]:
    """The directory entry at ``position``, and where the next one begins."""
    if position + _CENTRAL.size > end:
        raise Malformed("is cut off")
    fields = _CENTRAL.unpack_from(data, position)
    magic, _, _, flags, method, _, _, crc, stored, size = fields[:10]
    name_size, extra_size, comment_size, disk, _, _, header = fields[10:]
    if magic != b"PK\x01\x02":
        raise Malformed(f"starts with {quote(magic)}, expected b'PK\\x01\\x02'")
    place = position + _CENTRAL.size
    following = place + name_size + extra_size + comment_size
    if following > end:
        raise Malformed("is longer than the directory")
    raw_name = bytes(data[place : place + name_size])
    extra = bytes(data[place + name_size : place + name_size + extra_size])
    try:
        name = _name(raw_name)
        if disk or comment_size:
            raise Malformed("has a comment or lies on another disk")
        _check_method(flags, method, methods)
        size, stored, header = _wide(extra, (size, stored, header))
        if method == STORED and stored != size:
            raise Malformed(f"is stored without compression, but its sizes are {stored} and {size}")
    except Malformed as fault:
        raise Malformed(f"{quote(raw_name)} {fault}") from None
    return _Entry(raw_name, name, flags, method, crc, stored, size, header), following


def _check_method(flags: int, method: int, methods: tuple[int, ...]) -> None:
    if flags & 1:
        raise Malformed("is encrypted")
    if method not in methods:
        name = {8: "DEFLATE", 12: "BZIP2", 14: "LZMA", 93: "Zstandard"}.get(method, f"method {method}")
        raise Malformed(f"is compressed ({name}); expected stored bytes: pack the archive again without compression")
    allowed = _FLAGS | (_DEFLATE_FLAGS if method == DEFLATED else 0)
    if flags & ~allowed:
        raise Malformed(f"has the flags {flags:#06x}; expected none but {allowed:#06x}")


def _local(data: memoryview, entry: _Entry, following: int) -> Member:
    """The member that a directory entry points to; its local header must say the same, its bytes end in time."""
    place = entry.header
    if place + _LOCAL.size > following:
        raise Malformed("overlaps what follows it, or lies outside the file")
    magic, _, flags, method, _, _, crc, stored, size, name_size, extra_size = _LOCAL.unpack_from(data, place)
    if magic != b"PK\x03\x04":
        raise Malformed(f"has no local header at byte {place}")
    start = place + _LOCAL.size
    if start + name_size + extra_size + entry.stored > following:
        raise Malformed(f"with {entry.stored} bytes overlaps what follows it at byte {following}")
    if bytes(data[start : start + name_size]) != entry.raw_name:
        raise Malformed(f"is called {quote(bytes(data[start : start + name_size]))} in its local header")
    if (flags, method) != (entry.flags, entry.method):
        raise Malformed("has other flags or another method in its local header")
    extra = bytes(data[start + name_size : start + name_size + extra_size])
    size, stored = _wide(extra, (size, stored))
    later = bool(flags & 8)  # the true values follow the bytes
    for local, true in ((crc, entry.crc), (stored, entry.stored), (size, entry.size)):
        if local != true and not (later and local == 0):
            raise Malformed(f"has {local} in its local header, but the directory says {true}")
    return Member(entry.name, method, entry.crc, entry.stored, entry.size, start + name_size + extra_size)


def _wide(extra: bytes, values: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes and offset with those that are 2**32 - 1 taken from the ZIP64 extra field, in its order."""
    wide = None
    position = 0
    while position < len(extra):
        if position + 4 > len(extra):
            raise Malformed("has a damaged extra field")
        tag, length = struct.unpack_from("<HH", extra, position)
        position += 4
        if position + length > len(extra) or (tag == 1 and wide is not None):
            raise Malformed("has a damaged extra field")
        if tag == 1:
            wide = extra[position : position + length]
        position += length
    needed = sum(value == _FULL32 for value in values)
    if wide is None:
        if needed:
            raise Malformed("lacks the ZIP64 field that its sizes point to")
        return values
    if len(wide) < 8 * needed or len(wide) % 8:
        raise Malformed("has a ZIP64 field of the wrong length")
    numbers = iter(struct.unpack(f"<{len(wide) // 8}Q", wide))
    return tuple(next(numbers) if value == _FULL32 else value for value in values)


def _name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("is not named in UTF-8") from None
    if not is_safe_name(name):
        raise Malformed("is not a plain relative name")
    return name
