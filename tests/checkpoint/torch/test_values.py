"""Plain values beside the tensors: sizes, devices, dtypes, sets, bytes, NumPy scalars and arrays."""

import io
import pickle

import numpy as np
import pytest

from growarray.checkpoint import load_checkpoint
from growarray.errors import CheckpointError
from tests.checkpoint.files import Raw, call, glob, op, rows, torch_zip


def tree(root):
    return load_checkpoint(io.BytesIO(torch_zip(root))).tree


def test_values_of_torch_are_plain():
    value = {
        "size": call("torch", "Size", (2, 3)),
        "dtype": glob("torch", "half"),
        "cpu": call("torch", "device", "cpu"),
        "gpu": call("torch", "device", "cuda", 1),
        "bytes": call("_codecs", "encode", "\x00ÿ", "latin1"),
        "none": call("__builtin__", "bytes"),
        "array": call("builtins", "bytearray", b"ab"),
        "set": call("__builtin__", "set", [1, "a", (1, (2, 3))]),
        "frozen": call("__builtin__", "frozenset", [1]),
        "complex": call("__builtin__", "complex", 1.0, 2.0),
        "counter": call("collections", "Counter", {"a": 2}),
        "old": call("collections", "OrderedDict", [["a", 1], ["b", 2]]),
    }
    assert tree(value) == {
        "size": (2, 3),
        "dtype": "torch.float16",
        "cpu": "cpu",
        "gpu": "cuda:1",
        "bytes": b"\x00\xff",
        "none": b"",
        "array": bytearray(b"ab"),
        "set": {1, "a", (1, (2, 3))},
        "frozen": frozenset([1]),
        "complex": 1 + 2j,
        "counter": {"a": 2},
        "old": {"a": 1, "b": 2},
    }


ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    np.arange(3, dtype=">f4"),
    np.array([True, False]),
    np.array(2.5),
    np.empty((0, 2)),
]


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_numpy_arrays(array, protocol):
    got = tree(pickle.dumps({"a": array}, protocol))["a"]
    np.testing.assert_array_equal(got, array.astype(array.dtype.newbyteorder("=")), strict=True)
    assert got.flags.writeable


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("value", [np.float64(1.5), np.int8(-3), np.bool_(True), np.complex64(1 - 2j)])
def test_numpy_scalars_become_python_numbers(value, protocol):
    got = tree(pickle.dumps([value], protocol))[0]
    assert got == value.item()
    assert type(got) is type(value.item())


DTYPE = call("numpy", "dtype", "f8", False, True)
EMPTY_ARRAY = call("numpy.core.multiarray", "_reconstruct", glob("numpy", "ndarray"), (0,), b"b")


def filled(*state):
    return Raw(EMPTY_ARRAY + op(state) + b"b")


@pytest.mark.parametrize(
    ("value", "message"),
    rows(
        {
            "bytearray of a number": (call("builtins", "bytearray", 2**40), "gets 1099511627776; expected bytes"),
            "another codec": (call("_codecs", "encode", "x", "idna"), "expected a string and 'latin1'"),
            "codec of a number": (call("_codecs", "encode", 5, "latin1"), "expected a string"),
            "beyond latin1": (call("_codecs", "encode", "☃", "latin1"), "not in latin1"),
            "bytes of something": (call("builtins", "bytes", 10**9), "gets 1 arguments; expected 0"),
            "set of a set": (call("builtins", "set", "ab"), "expected a list"),
            "list in a set": (call("builtins", "set", [[1, 2]]), "key is a list"),
            "complex of strings": (call("builtins", "complex", "1", "2"), "expected two floats"),
            "complex of one": (call("builtins", "complex", "1j"), "gets 1 arguments; expected 2"),
            "size of strings": (call("torch", "Size", ("2",)), "Size holds '2'"),
            "device of a list": (call("torch", "device", []), "expected a name and an index"),
            "counter of a list": (call("collections", "Counter", []), "expected a dictionary"),
            "no pairs": (call("collections", "OrderedDict", ["ab", "cde"]), "expected pairs"),
            "object dtype": (call("numpy", "dtype", "O8", False, True), "gets 'O8'"),
            "void dtype": (call("numpy", "dtype", "V8"), "gets 'V8'"),
            "dtype with fields": (
                Raw(DTYPE + op((3, "<", None, ("a",), {"a": 1}, -1, -1, 0)) + b"b"),
                "numpy.dtype has fields",
            ),
            "dtype state": (Raw(DTYPE + op((3, "<")) + b"b"), "expected a tuple of 8"),
            "scalar of too few bytes": (
                call("numpy._core.multiarray", "scalar", DTYPE, b"1234"),
                "expected a dtype and",
            ),
            "scalar of an object": (
                call("numpy.core.multiarray", "scalar", glob("numpy", "ndarray"), b""),
                "expected a d",
            ),
            "array of another class": (
                call("numpy.core.multiarray", "_reconstruct", glob("torch", "Tensor"), (0,), b"b"),
                "expected numpy.ndarray",
            ),
            "array too short": (
                filled(1, (2,), DTYPE, False, bytes(8)),
                r"of shape \(2,\) and dtype float64 has 8 bytes",
            ),
            "array bomb": (filled(1, (2**40,), DTYPE, False, b""), "has 0 bytes"),
            "array of a wrapping shape": (filled(1, (2**61, 8), DTYPE, False, b""), "larger than any array"),
            "array without bytes": (filled(1, (2,), DTYPE, False, None), "expected shape, dtype, bytes"),
            "array twice": (
                Raw(filled(1, (1,), DTYPE, False, bytes(8)) + op((1, (1,), DTYPE, False, bytes(8))) + b"b"),
                "expected a tuple of 5, once",
            ),
            "order": (call("numpy.core.numeric", "_frombuffer", bytes(8), DTYPE, (1,), "K"), "order is 'K'"),
            "shadowed methods": (
                Raw(call("collections", "OrderedDict") + op({"items": 1}) + b"b"),
                "state of an Ordered",
            ),
            "versions": (Raw(call("collections", "OrderedDict") + op({"_metadata": 1}) + b"b"), "_metadata is 1"),
        }
    ),
)
def test_refusals(value, message):
    with pytest.raises(CheckpointError, match=message):
        tree({"x": value})
