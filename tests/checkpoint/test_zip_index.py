"""The zip directory: what two readers could understand differently is refused."""

import struct
import zipfile
from dataclasses import replace

import pytest

from growarray.checkpoint.zip_index import DEFLATED, STORED, read_index
from growarray.files.errors import Malformed
from growarray.files.limits import Limits
from tests.checkpoint.files import rows, zipped

FILES = {"m/a": b"alpha", "m/b": b"beta" * 10}


def index(data, limits=None, **options):
    return read_index(memoryview(data), limits or Limits(), **options)


def patched(data, place, layout, value):
    out = bytearray(data)
    struct.pack_into(layout, out, place, value)
    return bytes(out)


def test_members_and_where_their_bytes_are():
    data = zipped(FILES)
    members = index(data)
    assert {name: data[m.offset : m.offset + m.size] for name, m in members.items()} == FILES


def test_zip64_fields_are_read(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive, archive.open("m/a", "w", force_zip64=True) as file:
        file.write(b"alpha")
    assert index(path.read_bytes())["m/a"].size == 5


def central(data, entry=0):
    """Where a directory entry starts."""
    place = -1
    for _ in range(entry + 1):
        place = data.index(b"PK\x01\x02", place + 1)
    return place


PLAIN = zipped(FILES)
THREE = zipped({**FILES, "m/c": b""})
CENTRAL = central(PLAIN)
END = len(PLAIN) - 22


@pytest.mark.parametrize(
    ("data", "message"),
    rows(
        {
            "cut off": (PLAIN[:-1], "no end record"),
            "appended": (PLAIN + b"x", "no end record"),
            "comment": (zipped(FILES, comment=b"hello"), "no end record"),
            "before": (b"junk" + PLAIN, "does not end at its end record"),
            "two archives": (PLAIN + PLAIN, "does not end at its end record"),
            "count": (
                patched(patched(PLAIN, END + 8, "<H", 3), END + 10, "<H", 3),
                "has 2 entries, its end record says 3",
            ),
            "directory offset": (patched(PLAIN, END + 16, "<L", 3), "does not end at"),
            "several disks": (patched(PLAIN, END + 4, "<H", 1), "several disks"),
            "encrypted": (patched(PLAIN, CENTRAL + 8, "<H", 1), "is encrypted"),
            "encrypted in the local header": (patched(PLAIN, 6, "<H", 1), "other flags"),
            "unknown flags": (patched(PLAIN, CENTRAL + 8, "<H", 0x40), "has the flags 0x0040"),
            "method": (patched(PLAIN, CENTRAL + 10, "<H", 12), "compressed .BZIP2."),
            "other method in the local header": (patched(PLAIN, 8, "<H", 8), "another method in its local header"),
            "crc differs": (patched(PLAIN, 14, "<L", 1), "has 1 in its local header"),
            "size differs": (patched(PLAIN, 22, "<L", 4), "has 4 in its local header"),
            "sizes of a stored member": (patched(PLAIN, CENTRAL + 24, "<L", 6), "its sizes are 5 and 6"),
            "name differs": (PLAIN.replace(b"m/a", b"m/z", 1), "is called b'm/z' in its local header"),
            "header elsewhere": (patched(PLAIN, CENTRAL + 42, "<L", 4), "first zip member starts at byte 4"),
            "header past the end": (patched(PLAIN, central(PLAIN, 1) + 42, "<L", 10**6), "overlaps|lies outside"),
            "headers past the end": (
                patched(patched(PLAIN, central(PLAIN, 1) + 42, "<L", 10**6 + 99), CENTRAL + 42, "<L", 10**6),
                "first zip member starts at byte 1000000",
            ),
            "header of the middle one past the end": (
                patched(THREE, central(THREE, 1) + 42, "<L", 10**6),
                "lies outside",
            ),
            "overlap": (patched(PLAIN, central(PLAIN, 1) + 42, "<L", 0), "overlaps what follows"),
            "twice": (PLAIN.replace(b"m/b", b"m/a"), "appears twice"),
            "up": (PLAIN.replace(b"m/a", b"../"), "not a plain relative name"),
            "absolute": (PLAIN.replace(b"m/a", b"/ma"), "not a plain relative name"),
            "backslash": (PLAIN.replace(b"m/a", b"m\\a"), "not a plain relative name"),
            "nul": (PLAIN.replace(b"m/a", b"m/\0"), "not a plain relative name"),
            "drive": (PLAIN.replace(b"m/a", b"C:a"), "not a plain relative name"),
            "folder": (PLAIN.replace(b"m/a", b"ma/"), "not a plain relative name"),
            "not utf-8": (PLAIN.replace(b"m/a", b"m/\xff"), "not named in UTF-8"),
            "empty": (zipped({}), "is empty"),
            "no signature": (patched(PLAIN, CENTRAL, "<L", 0), "expected b'PK"),
            "entry longer than the directory": (patched(PLAIN, central(PLAIN, 1) + 28, "<H", 999), "longer than"),
            "zip64 not there": (patched(PLAIN, CENTRAL + 24, "<L", 2**32 - 1), "lacks the ZIP64 field"),
        }
    ),
)
def test_refusals(data, message):
    with pytest.raises(Malformed, match=message):
        index(data)


def test_compressed_members_are_taken_only_where_they_are_asked_for():
    data = zipped(FILES, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(Malformed, match=r"is compressed .DEFLATE."):
        index(data)
    assert index(data, methods=(STORED, DEFLATED))["m/b"].size == 40


def test_limits():
    with pytest.raises(Malformed, match=r"Limits.metadata"):
        index(PLAIN, replace(Limits(), metadata=50))
    with pytest.raises(Malformed, match=r"Limits.memory"):
        index(PLAIN, replace(Limits(), memory=100))


def test_cut_off_anywhere():
    for length in range(len(PLAIN)):
        with pytest.raises(Malformed):
            index(PLAIN[:length])
