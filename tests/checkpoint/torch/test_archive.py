"""Zip checkpoints of torch: values by layout, byte order and type, and every rule about their records."""

import io
import zipfile

import numpy as np
import pytest

from growarray.checkpoint import load_checkpoint
from growarray.errors import CheckpointError
from tests.checkpoint.files import (
    FLOATS,
    SIX,
    WEIGHT,
    Raw,
    call,
    glob,
    op,
    ordered,
    pickled,
    rows,
    simple_zip,
    storage,
    tensor,
    torch_zip,
    zipped,
)


def load(data, **options):
    return load_checkpoint(io.BytesIO(data), **options)


def test_a_state_dict():
    checkpoint = load(simple_zip())
    assert checkpoint.kind == "torch-zip"
    assert list(checkpoint) == ["w"]
    np.testing.assert_array_equal(checkpoint["w"], FLOATS.reshape(2, 3))
    assert checkpoint["w"].dtype == np.float32


@pytest.mark.parametrize(
    ("geometry", "expected"),
    rows(
        {
            "transposed": ((0, (3, 2), (1, 3)), FLOATS.reshape(2, 3).T),
            "sliced": ((1, (2, 2), (3, 1)), FLOATS.reshape(2, 3)[:, 1:]),
            "stride 0": ((2, (4, 3), (0, 1)), np.broadcast_to(FLOATS[2:5], (4, 3))),
            "windows": ((0, (4, 3), (1, 1)), np.lib.stride_tricks.sliding_window_view(FLOATS, 3)),
            "every other": ((1, (3,), (2,)), FLOATS[1::2]),
            "scalar": ((5, (), ()), FLOATS[5]),
            "empty": ((6, (0, 3), (3, 1)), np.empty((0, 3), np.float32)),
        }
    ),
)
def test_layouts(geometry, expected):
    array = load(simple_zip(w=tensor(storage("0", 6), *geometry)))["w"]
    np.testing.assert_array_equal(array, expected, strict=True)
    assert array.flags.writeable


def test_big_endian_storages_are_swapped_element_by_element():
    complex_numbers = np.array([1 + 2j, 3 - 4j], "<c8")
    halves = np.array([1.5, -2.0, 0.25, 8.0], "<f2")
    root = ordered(
        {
            "f": tensor(storage("0", 6), 0, (6,), (1,)),
            "z": tensor(storage("1", 2, "ComplexFloatStorage"), 0, (2,), (1,)),
            "b": tensor(storage("2", 2, "BFloat16Storage"), 0, (2,), (1,)),
            "h": call(*V3, storage("3", 8, Untyped), 0, (2,), (1,), False, None, glob("torch", "complex32")),
        }
    )
    storages = {
        "0": FLOATS.astype(">f4").tobytes(),
        "1": complex_numbers.astype(">c8").tobytes(),
        "2": b"\x3f\x80\xc0\x00",
        "3": halves.astype(">f2").tobytes(),
    }
    checkpoint = load(torch_zip(fix(root), storages, byteorder=b"big"))
    np.testing.assert_array_equal(checkpoint["f"], FLOATS)
    np.testing.assert_array_equal(checkpoint["z"], complex_numbers)
    np.testing.assert_array_equal(checkpoint["b"], np.array([1.0, -2.0], np.float32), strict=True)
    np.testing.assert_array_equal(checkpoint["h"], np.array([1.5 - 2j, 0.25 + 8j], np.complex64), strict=True)
    assert all(array.dtype.isnative for array in checkpoint.values())


V3 = ("torch._utils", "_rebuild_tensor_v3")
Untyped = "UntypedStorage"


def fix(root):
    """Untyped storages live in another module than the typed ones."""
    return Raw(root.replace(b"ctorch\nUntypedStorage", b"ctorch.storage\nUntypedStorage"))


def untyped(dtype, size, data):
    root = call(*V3, storage("0", len(data), Untyped), 0, size, (1,) * len(size), False, None, glob("torch", dtype))
    return torch_zip(fix(ordered({"w": root})), {"0": data})


def test_untyped_storages_take_the_dtype_of_the_tensor():
    np.testing.assert_array_equal(load(untyped("uint16", (2,), b"\x01\x00\xff\xff"))["w"], np.uint16([1, 65535]))
    np.testing.assert_array_equal(load(untyped("float8_e5m2", (2,), b"\x3c\xc0"))["w"], np.float32([1, -2]))
    with pytest.raises(CheckpointError, match="22 untyped bytes cannot be viewed as uint32"):
        load(untyped("uint32", (5,), bytes(22)))
    with pytest.raises(CheckpointError, match=r"dtype is torch.FloatStorage"):
        load(untyped("FloatStorage", (1,), bytes(4)))


def test_conjugate_and_negative_bits():
    numbers = np.array([1 + 2j, -3j], "<c8")
    root = ordered(
        {
            "z": tensor(storage("0", 2, "ComplexFloatStorage"), 0, (2,), (1,), {"conj": True}),
            "n": tensor(storage("1", 6), 1, (3,), (2,), {"neg": True}),
        }
    )
    checkpoint = load(torch_zip(root, {"0": numbers.tobytes(), "1": SIX}))
    np.testing.assert_array_equal(checkpoint["z"], numbers.conj())
    np.testing.assert_array_equal(checkpoint["n"], -FLOATS[1::2])


def test_bool_bytes_are_checked_when_they_are_read():
    root = ordered({"m": tensor(storage("0", 2, "BoolStorage"), 0, (2,), (1,))})
    assert load(torch_zip(root, {"0": b"\0\1"}))["m"].tolist() == [False, True]
    damaged = load(torch_zip(root, {"0": b"\0\2"}))
    with pytest.raises(CheckpointError, match="data/0: a bool is stored as a byte other than 0 and 1"):
        damaged["m"]


def test_parameters_and_their_attributes():
    weight = call("torch._utils", "_rebuild_parameter", WEIGHT, True, call("collections", "OrderedDict"))
    tagged = call(
        "torch._tensor", "_rebuild_from_type_v2", glob("torch._utils", "_rebuild_tensor_v2"), glob("torch", "Tensor"),
        (storage("0", 6), 0, (6,), (1,), False, None), {"tag": 1},
    )  # fmt: skip
    checkpoint = load(simple_zip(a=weight, b=tagged))
    np.testing.assert_array_equal(checkpoint["a"].ravel(), checkpoint["b"])
    assert checkpoint.notes == ("attributes of a tensor were left out: 'tag'",)
    assert checkpoint.tied == (("a", "b"),)


def test_versions_of_modules_are_metadata():
    root = ordered({"w": WEIGHT}, {"_metadata": ordered({"": {"version": 1}})})
    assert load(torch_zip(root, {"0": SIX})).metadata == {"": {"version": 1}}


def test_checksums_are_checked_once_read_unless_they_are_off():
    data = bytearray(simple_zip())
    data[data.index(SIX) + 5] ^= 1
    checkpoint = load(bytes(data))
    with pytest.raises(CheckpointError, match="<BytesIO>: data/0: CRC-32 is"):
        checkpoint["w"]
    assert load(bytes(data), checksums=False)["w"].shape == (2, 3)


def test_archives_without_checksums():
    data = bytearray(simple_zip())
    for name in (b"m/data.pkl", b"m/version", b"m/data/0"):
        local = data.index(b"PK\x03\x04", data.index(name) - 30)
        data[local + 14 : local + 18] = bytes(4)
        central = data.rindex(name) - 46
        data[central + 16 : central + 20] = bytes(4)
    np.testing.assert_array_equal(load(bytes(data))["w"].ravel(), FLOATS)


MULTIARRAY = "numpy.core.multiarray"
ROOT = ordered({"w": WEIGHT})
GOOD = {"m/data.pkl": pickled(ROOT), "m/version": b"3\n", "m/data/0": SIX}


def changed(**records):
    """The good records with some replaced, or left out where None."""
    merged = {**GOOD, **{f"m/{name.replace('__', '.').replace('_of_', '/')}": data for name, data in records.items()}}
    return zipped({name: data for name, data in merged.items() if data is not None})


@pytest.mark.parametrize(
    ("data", "message"),
    rows({
        "no pickle": (changed(data__pkl=None), "has no record data.pkl"),
        "no storage": (changed(data_of_0=None), "storage '0' has no record data/0"),
        "short storage": (changed(data_of_0=SIX[:-1]), "storage '0' of 6 float32 has a record of 23 bytes"),
        "long storage": (changed(data_of_0=SIX + SIX), "has a record of 48 bytes"),
        "no version": (changed(version=None), "'version' is missing"),
        "version": (changed(version=b"999"), "version is b'999'; expected 1 to 10"),
        "byte order": (changed(byteorder=b"middle"), "byteorder is b'middle'"),
        "torchscript": (changed(constants__pkl=b""), "TorchScript archive .constants.pkl"),
        "exported": (changed(archive_format=b"pt2", data__pkl=None), "torch.export archive"),
        "two folders": (zipped({**GOOD, "n/data.pkl": b""}), "2 top folders"),
        "compressed": (zipped(GOOD, method=zipfile.ZIP_DEFLATED), "is compressed; pack the archive again"),
        "after the pickle": (changed(data__pkl=pickled(ROOT) + b"x"), "1 bytes follow the end of the pickle"),
        "bare storage": (changed(data__pkl=pickled({"s": storage("0", 6)})), "bare storage '0'"),
        "function": (changed(data__pkl=pickled({"f": glob("_codecs", "encode")})), "structure holds _codecs.encode"),
        "unfilled array": (
            changed(data__pkl=pickled([call(MULTIARRAY, "_reconstruct", glob("numpy", "ndarray"), (0,), b"b")])),
            "neither a tensor nor a plain value",
        ),
    }),
)  # fmt: skip
def test_refusals(data, message):
    with pytest.raises(CheckpointError, match=message):
        load(data)


@pytest.mark.parametrize(
    "pid",
    [
        op(("module", "m", "0", "cpu", 6)) + b"Q",
        op("storage") + b"Q",
        op(("storage",)) + b"Q",
        op(["storage", glob("torch", "FloatStorage"), "0", "cpu", 6]) + b"Q",
        op(("storage", glob("torch", "FloatStorage"), "0", "cpu", 6, None)) + b"Q",
        op(("storage", glob("torch", "Tensor"), "0", "cpu", 6)) + b"Q",
        op(("storage", glob("torch", "float32"), "0", "cpu", 6)) + b"Q",
        op(("storage", "FloatStorage", "0", "cpu", 6)) + b"Q",
        storage("0", 6, location={}),
        storage("0", 6.0),
        storage("0", True),
        storage("0", -6),
        storage("0", 2**62),
        storage("0", None),
        storage("../data/0", 6),
        storage("", 6),
        storage("7", 6),
    ],
)
def test_persistent_ids(pid):
    with pytest.raises(CheckpointError, match="BINPERSID: "):
        load(simple_zip(w=tensor(Raw(pid), 0, (6,), (1,))))


def test_one_key_has_one_type_and_length():
    both = {"a": WEIGHT, "b": tensor(storage("0", 3, "DoubleStorage"), 0, (3,), (1,))}
    with pytest.raises(CheckpointError, match="storage '0' is 6 float32 and 3 float64 at once"):
        load(simple_zip(**both))


def test_records_that_nobody_uses_are_left_alone():
    assert list(load(changed(data_of_9=b"x"))) == ["w"]


def test_crc_of_the_pickle():
    data = bytearray(simple_zip())
    data[data.index(b"_rebuild_tensor_v2")] ^= 1
    with pytest.raises(CheckpointError, match=r"data.pkl: CRC-32"):
        load(bytes(data))
