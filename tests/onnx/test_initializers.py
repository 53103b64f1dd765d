"""ONNX initializers in every encoding, and external data that stays in its folder, wherever it is named."""

import io
import os
import struct
from dataclasses import replace

import numpy as np
import pytest

from growarray.checkpoint import Limits, load_checkpoint
from growarray.errors import CheckpointError
from tests.checkpoint.files import FLOATS, SIX, external, field, onnx, rows, simple_onnx, tensor_proto, varint


def load(data, **options):
    return load_checkpoint(io.BytesIO(data), **options)


def test_a_model():
    checkpoint = load(simple_onnx())
    assert checkpoint.kind == "onnx"
    assert checkpoint.metadata == {"opset": {"": 18}, "ir_version": 9}
    np.testing.assert_array_equal(checkpoint["w"], FLOATS.reshape(2, 3), strict=True)


def packed(*values):
    return b"".join(varint(value % 2**64) for value in values)


ENCODINGS = {  # data type, fields, expected
    "float_data": (1, field(4, struct.pack("<2f", 1.5, -2)), np.float32([1.5, -2])),
    "int8": (3, field(5, packed(-128, 127)), np.int8([-128, 127])),
    "uint16": (4, field(5, packed(0, 65535)), np.uint16([0, 65535])),
    "int64": (7, field(7, packed(-(2**63), 2**63 - 1)), np.int64([-(2**63), 2**63 - 1])),
    "bool": (9, field(5, packed(0, 1)), np.array([False, True])),
    "float16": (10, field(5, packed(0x3C00, 0xC000)), np.float16([1, -2])),
    "float64": (11, field(10, struct.pack("<2d", 1.5, -2)), np.float64([1.5, -2])),
    "uint32": (12, field(11, packed(0, 2**32 - 1)), np.uint32([0, 2**32 - 1])),
    "uint64": (13, field(11, packed(1, 2**64 - 1)), np.uint64([1, 2**64 - 1])),
    "complex64": (14, field(4, struct.pack("<4f", 1, 2, 3, -4)), np.complex64([1 + 2j, 3 - 4j])),
    "bfloat16": (16, field(5, packed(0x3F80, 0xC000)), np.float32([1, -2])),
    "float8": (17, field(9, b"\x38\xb8"), np.float32([1, -1])),
    "uint4": (21, field(9, b"\xf1"), np.uint8([1, 15])),
    "int4": (22, field(5, packed(0xF1)), np.int8([1, -1])),
    "float4": (23, field(9, b"\xe2"), np.float32([1, -4])),
    "int2": (26, field(9, b"\x0d"), np.int8([1, -1])),
    "unpacked floats": (1, b"\x25" + struct.pack("<f", 1.5) + b"\x25" + struct.pack("<f", -2), np.float32([1.5, -2])),
    "unpacked numbers": (7, field(7, 5) + field(7, -6), np.int64([5, -6])),
    "pieces": (7, field(7, packed(5)) + field(7, packed(-6)), np.int64([5, -6])),
}


@pytest.mark.parametrize(("code", "data", "expected"), rows(ENCODINGS))
def test_encodings(code, data, expected):
    array = load(onnx(tensor_proto("w", [2], code, data)))["w"]
    np.testing.assert_array_equal(array, expected, strict=True)
    assert array.flags.writeable


def test_scalars_and_empty_tensors():
    checkpoint = load(onnx(tensor_proto("s", [], 1, field(9, bytes(4))), tensor_proto("e", [2, 0], 7)))
    assert checkpoint["s"].shape == ()
    np.testing.assert_array_equal(checkpoint["e"], np.empty((2, 0), np.int64), strict=True)


def w(*fields, dims=(6,), code=1, name="w"):
    return onnx(tensor_proto(name, list(dims), code, *fields))


RAW = field(9, SIX)


@pytest.mark.parametrize(
    ("data", "message"),
    rows(
        {
            "raw short": (w(field(9, SIX[:-1])), "has 23 bytes, expected 24"),
            "raw long": (w(field(9, SIX + b"x")), "has 25 bytes, expected 24"),
            "raw twice": (w(RAW, RAW), "raw_data twice"),
            "two fields": (w(RAW, field(4, SIX)), "has raw_data and float_data"),
            "wrong field": (w(field(7, packed(1, 2, 3, 4, 5, 6))), "has int64_data; a tensor of type float32"),
            "no data": (w(), r"of shape \(6,\) has no data"),
            "count": (w(field(7, packed(1, 2)), code=7), "has 2 numbers, expected 6"),
            "dims bomb": (w(dims=(2**40,)), "has no data"),
            "dims wrap": (w(dims=(2**32, 2**32, 6)), "larger than any array"),
            "dims negative": (w(RAW, dims=(-6,)), "dims holds -6"),
            "axes": (w(RAW, dims=(1,) * 65), "more than 64 axes"),
            "packed axes": (onnx(field(1, b"\x01" * 65) + field(2, 1) + RAW + field(8, b"w")), "65 axes"),
            "undefined": (w(RAW, code=0), "data type 0 .UNDEFINED."),
            "string": (w(field(6, b"x"), code=8), "data type 8 .STRING."),
            "unknown type": (w(RAW, code=99), "data type 99"),
            "segment": (w(RAW, field(3, b"")), "is a segment"),
            "twice": (onnx(tensor_proto("w", [6], 1, RAW), tensor_proto("w", [6], 1, RAW)), "two initializers"),
            "no name": (w(RAW, name=""), "has no name"),
            "name not UTF-8": (onnx(field(1, 6) + field(2, 1) + RAW + field(8, b"\xff")), "not UTF-8"),
            "sparse": (onnx(graph=field(15, b"")), "sparse_initializer"),
            "two graphs": (simple_onnx() + field(7, b""), "model has two graphs"),
            "number as bytes": (w(RAW, field(14, b"x")), "field 14 has the wire type 2, expected 0"),
            "location of nothing": (w(RAW, field(14, 3)), "data_location 3"),
            "entries without location": (w(RAW, field(13, field(1, b"location"))), "data_location 0"),
        }
    ),
)
def test_refusals(data, message):
    with pytest.raises(CheckpointError, match=message):
        load(data)


def test_values_are_checked_when_they_are_read():
    checkpoint = load(w(field(5, packed(*[0] * 5, 300)), code=3))
    with pytest.raises(CheckpointError, match="tensor 'w': a value does not fit int8, -128 to 127"):
        checkpoint["w"]


def attribute(*fields):
    """A node with one attribute."""
    return field(1, field(4, b"Op") + field(5, field(1, b"a") + b"".join(fields)))


def nested(depth):
    graph = b""
    for _ in range(depth):
        graph = attribute(field(6, graph))
    return onnx(graph=graph)


def test_subgraphs_are_bounded():
    assert len(load(nested(20))) == 0
    with pytest.raises(CheckpointError, match=r"Limits\.depth"):
        load(nested(200))


EVIL = tensor_proto("evil", [6], 1, external(location="../outside.bin"))


@pytest.mark.parametrize(
    "model",
    rows(
        {
            "initializer": (onnx(EVIL),),
            "attribute": (onnx(graph=attribute(field(5, EVIL))),),
            "attributes": (onnx(graph=attribute(field(10, EVIL))),),
            "sparse attribute": (onnx(graph=attribute(field(22, field(1, EVIL)))),),
            "indices of sparse attributes": (onnx(graph=attribute(field(23, field(2, EVIL)))),),
            "subgraph": (onnx(graph=attribute(field(6, field(5, EVIL)))),),
            "subgraphs": (onnx(graph=attribute(field(11, attribute(field(5, EVIL))))),),
            "function": (onnx(model=field(25, field(7, field(5, field(5, EVIL))))),),
            "default of a function": (onnx(model=field(25, field(11, field(5, EVIL)))),),
            "training": (onnx(model=field(20, field(2, field(5, EVIL)))),),
        }
    ),
)
def test_paths_are_checked_everywhere(tmp_path, model):
    (tmp_path / "outside.bin").write_bytes(SIX)
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "model.onnx"
    path.write_bytes(model[0] if isinstance(model, tuple) else model)
    with pytest.raises(CheckpointError, match=r"'\.\./outside\.bin': is not a plain relative path"):
        load_checkpoint(path)


def model_with(tmp_path, *fields, data=SIX):
    (tmp_path / "w.bin").write_bytes(data)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx(tensor_proto("w", [6], 1, *fields)))
    return path


def test_external_data(tmp_path):
    path = model_with(tmp_path, external(location="w.bin", offset=8, length=24), data=bytes(8) + SIX)
    np.testing.assert_array_equal(load_checkpoint(path)["w"], FLOATS)
    with pytest.raises(CheckpointError, match="was not given as a path"):
        load(path.read_bytes())


@pytest.mark.parametrize(
    ("fields", "message"),
    rows(
        {
            "no location": (external(offset=0), "has no location"),
            "length long": (external(location="w.bin", length=28), "has 28 bytes, shape and type need 24"),
            "length short": (external(location="w.bin", length=20), "has 20 bytes"),
            "offset past": (external(location="w.bin", offset=1), "goes past the end of the file, 24"),
            "offset negative": (external(location="w.bin", offset=-1), "has the offset '-1'"),
            "offset text": (external(location="w.bin", offset="1e1"), "expected decimal digits"),
            "offset not ASCII": (external(location="w.bin", offset="\u0661"), "expected decimal digits"),
            "key twice": (external(location="w.bin") + external(location="x"), "the key 'location' twice"),
            "unknown key": (external(location="w.bin", __class__="x"), "has the key '__class__'"),
            "both": (external(location="w.bin") + RAW, "in the model and in an external file"),
            "pipe": (external(location="pipe"), "is not a regular file"),
            "device": (external(location="/dev/zero"), "not a plain relative path"),
        }
    ),
)
def test_external_refusals(tmp_path, fields, message):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model_with(tmp_path, fields))


def test_many_initializers_on_the_same_bytes(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(2**20))
    path = tmp_path / "model.onnx"
    where = external(location="w.bin")
    path.write_bytes(onnx(*(tensor_proto(f"w{i}", [2**18], 1, where) for i in range(200))))
    with pytest.raises(CheckpointError, match=r"initializer 'w80': .*Limits\.sharing"):
        load_checkpoint(path)
    assert len(load_checkpoint(path, limits=replace(Limits(), sharing=300))) == 200


def test_limits():
    many = onnx(*(tensor_proto(f"{i}", [0], 1) for i in range(100)))
    assert len(load(many)) == 100
    for bound in ({"tensors": 10}, {"steps": 50}, {"memory": 1000}, {"string": 1}):
        with pytest.raises(CheckpointError, match=f"Limits.{next(iter(bound))}"):
            load(many, limits=replace(Limits(), **bound))


def test_what_is_wrong_with_a_damaged_model_is_said(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(simple_onnx()[:-5])
    with pytest.raises(CheckpointError, match="it is cut off"):
        load_checkpoint(path)


def test_constants_are_noted():
    data = onnx(graph=attribute(field(5, tensor_proto("c", [6], 1, RAW))))
    assert load(data).notes == ("1 tensors in nodes of the graph are not initializers",)
