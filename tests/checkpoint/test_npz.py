"""``.npz`` archives: plain numbers in every layout, no objects, no bombs."""

import io
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from growarray.checkpoint import Limits, load_checkpoint
from growarray.errors import CheckpointError
from tests.checkpoint.files import rows, simple_npz, zipped

ARRAYS = {
    "f": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"),
    "scalar": np.array(1.5),
    "empty": np.empty((0, 2)),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "layer.0/weight": np.arange(3, dtype=np.float16),
}


def load(data, **options):
    return load_checkpoint(io.BytesIO(data), **options)


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_archives_of_numpy(writer):
    file = io.BytesIO()
    writer(file, **ARRAYS)
    checkpoint = load(file.getvalue())
    assert checkpoint.kind == "npz"
    assert set(checkpoint) == set(ARRAYS)
    for name, array in ARRAYS.items():
        got = checkpoint[name]
        np.testing.assert_array_equal(got, array.astype(array.dtype.newbyteorder("=")), strict=True)
        assert got.flags.writeable


def npy(header, data=b"", version=b"\x01\x00"):
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + data


def archive(data):
    return zipped({"w.npy": data})


def header(descr="'<f4'", shape="(6,)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


def objects():
    file = io.BytesIO()
    np.savez(file, w=np.array([{}], object))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    rows(
        {
            "objects": (objects(), "has the type '|O'"),
            "strings": (simple_npz(w=np.array(["a"])), "has the type '<U1'"),
            "records": (simple_npz(w=np.zeros(1, [("a", "f4")])), "expected a plain type"),
            "no npy": (zipped({"w.npy": npy(header(), bytes(24)), "x.txt": b""}), "is not an .npy array"),
            "no magic": (archive(b"NUMPY" * 10), "expected an .npy array of version"),
            "version": (archive(npy(header(), version=b"\x09\x00")), "expected an .npy array of version"),
            "short": (archive(npy(header(), bytes(23))), "needs 24"),
            "long": (archive(npy(header(), bytes(25))), "needs 24"),
            "bomb": (archive(npy(header(shape="(1099511627776,)"))), "needs 4398046511104"),
            "wraps": (archive(npy(header(shape="(4294967296, 4294967296, 4)"))), "larger than any array"),
            "negative": (archive(npy(header(shape="(-6,)"))), "expected a plain type"),
            "code": (archive(npy(header(shape="(print(1),)"))), "expected a plain type"),
            "nested": (archive(npy(header(shape="(" * 5000))), "expected a plain type"),
            "header beyond": (archive(npy(header())[:20]), "or it is cut off"),
        }
    ),
)
def test_refusals(data, message):
    with pytest.raises(CheckpointError, match=message):
        load(data)


def deflated(data, size=None):
    """A compressed archive whose directory lies about the size."""
    out = bytearray(zipped({"w.npy": data}, method=zipfile.ZIP_DEFLATED))
    for place in (22, out.index(b"PK\x01\x02") + 24) if size is not None else ():
        out[place : place + 4] = size.to_bytes(4, "little")
    return bytes(out)


GOOD = npy(header(), np.arange(6, dtype="<f4").tobytes())


def test_compressed_members_inflate_to_their_size():
    assert load(deflated(GOOD))["w"].tolist() == [0, 1, 2, 3, 4, 5]
    longer = load(deflated(GOOD + bytes(1000), size=len(GOOD)))
    with pytest.raises(CheckpointError, match="does not inflate to"):
        longer["w"]
    shorter = load(deflated(npy(header(shape="(60,)"), bytes(24)), size=len(header(shape="(60,)")) + 10 + 240))
    with pytest.raises(CheckpointError, match="does not inflate to"):
        shorter["w"]


def test_bombs_are_refused_before_they_are_inflated():
    bomb = deflated(npy(header(shape="(10000000,)"), bytes(40_000_000)))
    assert len(bomb) < 50_000
    with pytest.raises(CheckpointError, match=r"Limits\.inflated"):
        load(bomb, limits=replace(Limits(), inflated=10**6))
    with pytest.raises(CheckpointError, match=r"says that \d+ bytes inflate to 1000000, which is impossible"):
        load(deflated(GOOD, size=10**6))


def test_damage_is_found_when_an_array_is_read():
    data = bytearray(simple_npz(w=np.arange(6.0)))
    place = data.index(np.arange(6.0).tobytes())
    data[place + 7] ^= 1
    checkpoint = load(bytes(data))
    with pytest.raises(CheckpointError, match="CRC-32"):
        checkpoint["w"]


def compressed(name, values, change=None):
    """An archive of one compressed array, whose directory may be told another CRC-32 or size."""
    file = io.BytesIO()
    np.savez_compressed(file, **{name: values})
    data = bytearray(file.getvalue())
    if change is not None:
        for mark, field in ((b"PK\x01\x02", 16), (b"PK\x03\x04", 14)):
            place = data.rindex(mark) + field
            data[place] ^= change
    return bytes(data)


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_what_can_be_read_passes_the_check(writer):
    file = io.BytesIO()
    writer(file, **ARRAYS, many=np.random.default_rng(0).standard_normal(300_000))
    for tensor in load(file.getvalue()).stored.values():
        tensor.check()


@pytest.mark.parametrize(
    ("data", "message"),
    rows(
        {
            "another checksum": (compressed("w", np.arange(9.0), change=1), "CRC-32 is .*; it is damaged"),
        }
    ),
)
def test_the_check_refuses_what_reading_refuses(data, message):
    checkpoint = load(data)
    for look in (checkpoint.stored["w"].check, lambda: checkpoint["w"]):
        with pytest.raises(CheckpointError, match=f"<BytesIO>: member 'w.npy': .*({message})"):
            look()


def test_a_bool_beyond_the_first_piece_is_refused():
    values = np.zeros(3_000_000, np.uint8)
    values[2_999_999] = 2
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", npy(header("'|b1'", "(3000000,)"), values.tobytes()))
    tensor = load(file.getvalue()).stored["w"]
    for look in (tensor.check, tensor.read):
        with pytest.raises(CheckpointError, match=r"member 'w\.npy': a bool is stored as a byte other than 0 and 1"):
            look()


def test_a_check_holds_a_few_pieces_and_not_the_member():
    tensor = load(compressed("w", np.zeros(2**23))).stored["w"]
    tracemalloc.start()
    try:
        tensor.check()
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 8 * 2**20 < tensor.nbytes
