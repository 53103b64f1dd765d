"""safetensors: header and data must fit exactly."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from growarray.checkpoint import Limits, load_checkpoint
from growarray.errors import CheckpointError
from tests.checkpoint.files import SIX, entry, rows, safetensors, simple_safetensors


def load(data, **options):
    return load_checkpoint(io.BytesIO(data), **options)


def test_files_of_the_library():
    rng = np.random.default_rng(0)
    names = ["float16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "int64", "bool"]
    arrays = {name: (9 * rng.random((2, 3))).astype(name) for name in names}
    arrays |= {"scalar": np.array(1.5), "empty": np.empty((0, 3), np.float32)}
    checkpoint = load(save(arrays, {"format": "np"}))
    assert checkpoint.kind == "safetensors"
    assert checkpoint.metadata == {"format": "np"}
    assert set(checkpoint) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(checkpoint[name], array, strict=True)
    assert set(checkpoint.tree) == set(arrays)


def test_small_floats_are_widened_exactly():
    header = {"b": entry("BF16", [2], 0, 4), "f": entry("F8_E4M3", [2], 4, 6)}
    checkpoint = load(safetensors(header, b"\x80\x3f\x00\xc0\x38\x7e"))
    np.testing.assert_array_equal(checkpoint["b"], np.float32([1, -2]), strict=True)
    np.testing.assert_array_equal(checkpoint["f"], np.float32([1, 448]), strict=True)


def test_aliases_of_tied_weights_are_named():
    data = safetensors({"__metadata__": {"head": "w", "format": "pt"}, "w": entry("F32", [6], 0, 24)}, SIX)
    assert load(data).tied == (("w", "head"),)
    assert load(data).aliases == {"head": "w"}


def test_an_alias_loses_the_prefix_that_the_names_lose():
    data = safetensors({"__metadata__": {"module.head": "module.w", "format": "pt"}, "module.w": W}, SIX)
    found = load(data)
    assert found.tied == (("w", "head"),)
    assert found.aliases == {"module.head": "w"}
    assert found.metadata == {"module.head": "module.w", "format": "pt"}
    assert load(data, prefix=()).tied == (("module.w", "module.head"),)
    with pytest.raises(CheckpointError, match=r"'module\.w' and 'w' both become 'w'"):
        load(safetensors({"__metadata__": {"w": "module.w"}, "module.w": W}, SIX))


W = entry("F32", [6], 0, 24)


def one(**changes):
    return safetensors({"w": {**W, **changes}}, SIX)


def two(first, second):
    return safetensors({"a": entry("U8", [first[1] - first[0]], *first), "b": entry("U8", [8], *second)}, bytes(16))


@pytest.mark.parametrize(
    ("data", "message"),
    rows(
        {
            "length beyond the end": (safetensors({"w": W}, SIX, length=10**6), "header has 1000000 bytes"),
            "length of 2**63": (safetensors({"w": W}, SIX, length=2**63), "header has 9223372036854775808 bytes"),
            "length 0": (safetensors({"w": W}, SIX, length=0), "header has 0 bytes"),
            "length short": (safetensors({"w": W}, SIX, length=20), "JSON is damaged"),
            "not UTF-8": (safetensors(b'{"\xff": 1}'), "not UTF-8"),
            "NUL after it": (safetensors(json.dumps({"w": W}).encode() + b"\0", SIX), "JSON is damaged"),
            "twice": (safetensors(b'{"w":1,"w":1}'), "the key 'w' twice"),
            "twice, once escaped": (safetensors(b'{"w":1,"\\u0077":1}'), "the key 'w' twice"),
            "lone surrogate": (safetensors(b'{"\\ud800":1}'), "lone surrogate"),
            "NaN": (safetensors(b'{"w":NaN}'), "has NaN"),
            "long integer": (safetensors(b'{"w":%s}' % (b"1" * 5000)), "integer of 5000 digits"),
            "deep": (safetensors(b'{"w":' + b"[" * 100_000), "nested too deeply"),
            "metadata": (safetensors({"__metadata__": {"a": 1}}), "__metadata__ 'a' is 1"),
            "metadata list": (safetensors({"__metadata__": []}), "__metadata__ is a list"),
            "entry": (safetensors({"w": []}), "is described by a list"),
            "field missing": (safetensors({"w": {"dtype": "F32", "shape": []}}), "expected dtype, shape, data_offsets"),
            "field too many": (one(extra=1), "is described by 'data_offsets', 'dtype', 'extra', 'shape'"),
            "dtype": (one(dtype="F31"), "has the dtype 'F31'"),
            "dtype number": (one(dtype=3), "has the dtype 3"),
            "dtype list": (one(dtype=[]), "has the dtype a list"),
            "shape": (one(shape=None), "has the shape None"),
            "shape negative": (one(shape=[-6]), "shape holds -6"),
            "shape bool": (one(shape=[True, 6]), "shape holds True"),
            "shape float": (one(shape=[6.0]), "shape holds 6.0"),
            "shape wraps": (one(shape=[2**32, 2**32, 6]), "larger than any array"),
            "shape bomb": (one(shape=[2**40]), "4398046511104 bytes by shape"),
            "axes": (one(shape=[1] * 65), "65 axes"),
            "offsets short": (one(data_offsets=[0, 20]), "24 bytes by shape"),
            "offsets reversed": (one(data_offsets=[24, 0]), "has the offsets 24 to 0"),
            "offsets negative": (one(data_offsets=[-24, 0]), "has the offsets -24 to 0"),
            "offsets strings": (one(data_offsets=["0", "24"]), "not two integers"),
            "offsets three": (one(data_offsets=[0, 24, 24]), "not two integers"),
            "offsets past": (one(data_offsets=[24, 48]), "starts at byte .*, expected .*: it leaves a gap"),
            "overlap": (two((0, 8), (4, 12)), "overlaps the one before it"),
            "gap": (two((0, 4), (8, 16)), "leaves a gap before it"),
            "appended": (safetensors({"w": W}, SIX + b"x"), "or something was appended"),
            "data short": (safetensors({"w": W}, SIX[:-1]), "it is cut off"),
            "memory": (safetensors(b'{"w":' + b"[{},{}]," * 100_000 + b"0}"), "Limits.memory"),
        }
    ),
)
def test_refusals(data, message):
    with pytest.raises(CheckpointError, match=message):
        load(data)


def test_limits():
    with pytest.raises(CheckpointError, match=r"Limits.tensors"):
        load(simple_safetensors(), limits=replace(Limits(), tensors=1))
    with pytest.raises(CheckpointError, match=r"the limit is 50 \(Limits.metadata\)"):
        load(simple_safetensors(), limits=replace(Limits(), metadata=50))


def test_cut_off_anywhere():
    whole = simple_safetensors()
    for length in range(len(whole)):
        with pytest.raises(CheckpointError):
            load(whole[:length])
