"""The wire format: fields stay inside their message, numbers inside 64 bits."""

import numpy as np
import pytest

from growarray.files.errors import Malformed
from growarray.onnx import protobuf
from growarray.onnx.protobuf import Wire, count_varints, decode_varints, encode_varint
from tests.checkpoint.files import field, rows, varint


def fields(data, steps=1000):
    return list(Wire(memoryview(data), steps).fields(0, len(data)))


def test_fields_of_every_wire_type():
    data = field(1, 300) + field(2, b"abc") + b"\x1d" + bytes(4) + b"\x21" + bytes(8)
    found = fields(data)
    assert [(f.number, f.wire, data[f.start : f.end]) for f in found[1:]] == [
        (2, protobuf.BYTES, b"abc"),
        (3, protobuf.FIXED32, bytes(4)),
        (4, protobuf.FIXED64, bytes(8)),
    ]
    assert found[0].value == 300


@pytest.mark.parametrize(
    ("data", "message"),
    rows(
        {
            "field 0": (b"\x00\x01", "field number 0"),
            "group": (b"\x0b", "wire type 3"),
            "wire type 7": (b"\x0f", "wire type 7"),
            "length beyond": (b"\x0a\x05ab", "has 5 bytes, 2 are left"),
            "length of 2**62": (b"\x0a" + varint(2**62), "4611686018427387904 bytes"),
            "fixed cut off": (b"\x1d\0\0", "has 4 bytes, 2 are left"),
            "number cut off": (b"\x08\x80", "number is cut off"),
            "number too long": (b"\x08" + b"\x80" * 10 + b"\x01", "longer than 64 bits"),
            "number too large": (b"\x08" + b"\xff" * 9 + b"\x7f", "longer than 64 bits"),
        }
    ),
)
def test_refusals(data, message):
    with pytest.raises(Malformed, match=message):
        fields(data)


def test_steps_are_bounded():
    with pytest.raises(Malformed, match=r"Limits\.steps"):
        fields(field(1, 1) * 20, steps=10)


@pytest.mark.parametrize("block", [3, 2**20])
def test_packed_numbers(monkeypatch, block):
    monkeypatch.setattr(protobuf, "_BLOCK", max(block, 10))
    rng = np.random.default_rng(0)
    values = [0, 1, 127, 128, 2**31, 2**63 - 1, -1, -(2**63), *rng.integers(-(2**60), 2**60, 200).tolist()]
    data = memoryview(b"".join(encode_varint(v % 2**64) for v in values))
    assert count_varints(data) == len(values)
    assert decode_varints(data, len(values)).tolist() == values


def test_packed_numbers_that_are_damaged():
    with pytest.raises(Malformed, match="cut off"):
        count_varints(memoryview(b"\x01\x80"))
    with pytest.raises(Malformed, match="longer than 64 bits"):
        decode_varints(memoryview(b"\x80" * 11 + b"\x01"), 1)
