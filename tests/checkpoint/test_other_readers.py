"""What other readers without torch stumble over (seen with ptloader 0.3): it loads here, or is refused by name."""

import io
import pickle

import numpy as np
import pytest

from growarray.checkpoint import load_checkpoint
from growarray.errors import CheckpointError
from tests.checkpoint.files import (
    EMPTY,
    FLOATS,
    WEIGHT,
    Raw,
    call,
    glob,
    op,
    ordered,
    simple_legacy,
    simple_zip,
    storage,
    tensor,
    torch_zip,
)

SIX = FLOATS.tobytes()


def load(data):
    return load_checkpoint(io.BytesIO(data))


def untyped(name, size, data):
    """A tensor over a storage of bytes, as torch writes types that have no storage class of their own."""
    stored = Raw(op(("storage", glob("torch.storage", "UntypedStorage"), "0", "cpu", len(data))) + b"Q")
    value = call("torch._utils", "_rebuild_tensor_v3", stored, 0, (size,), (1,), False, EMPTY, glob("torch", name))
    return torch_zip(ordered({"w": value}), {"0": data})


def test_bfloat16():
    stored = storage("0", 2, "BFloat16Storage")
    array = load(torch_zip(ordered({"w": tensor(stored, 0, (2,), (1,))}), {"0": b"\x80\x3f\x00\xc0"}))["w"]
    assert (array.dtype, array.tolist()) == (np.float32, [1.0, -2.0])


@pytest.mark.parametrize(
    ("name", "codes", "values"),
    [
        ("float8_e4m3fn", b"\x38\xc0", [1.0, -2.0]),
        ("float8_e5m2", b"\x3c\xc0", [1.0, -2.0]),
        ("float8_e4m3fnuz", b"\x40\xc8", [1.0, -2.0]),
        ("float8_e5m2fnuz", b"\x40\xc4", [1.0, -2.0]),
    ],
)
def test_float8(name, codes, values):
    array = load(untyped(name, 2, codes))["w"]
    assert (array.dtype, array.tolist()) == (np.float32, values)


def test_legacy_format():
    np.testing.assert_array_equal(load(simple_legacy())["w"], FLOATS.reshape(2, 3))


def test_sizes_dtypes_devices_and_sets():
    values = {
        "w": WEIGHT,
        "size": call("torch", "Size", (2, 3)),
        "dtype": glob("torch", "bfloat16"),
        "device": call("torch", "device", "cuda", 1),
        "set": call("builtins", "set", [1, "a"]),
        "frozen": call("builtins", "frozenset", [2]),
    }
    tree = load(torch_zip(values, {"0": SIX})).tree
    assert tree.pop("w").shape == (2, 3)
    assert tree == {"size": (2, 3), "dtype": "torch.bfloat16", "device": "cuda:1", "set": {1, "a"}, "frozen": {2}}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_scalars_and_arrays(protocol):
    value = {"loss": np.float32(0.5), "steps": np.int64(7), "history": np.arange(3.0)}
    tree = load(torch_zip(pickle.dumps(value, protocol))).tree
    assert (tree["loss"], tree["steps"], tree["history"].tolist()) == (0.5, 7, [0.0, 1.0, 2.0])


def test_list_that_contains_itself():
    tree = load(torch_zip({"w": WEIGHT, "loop": Raw(b"]q\x00(K\x05h\x00e")}, {"0": SIX})).tree
    assert tree["loop"][0] == 5
    assert tree["loop"][1] is tree["loop"]


def test_arrays_can_be_written_to():
    checkpoint = load(simple_zip())
    array = checkpoint["w"]
    array += 1
    assert array.flags.writeable
    np.testing.assert_array_equal(array, FLOATS.reshape(2, 3) + 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [("_rebuild_sparse_tensor", "a sparse tensor.*to_dense"), ("_rebuild_qtensor", "a quantized tensor.*dequantize")],
)
def test_sparse_and_quantized_tensors_are_refused_by_name(function, message):
    with pytest.raises(CheckpointError, match=message):
        load(torch_zip({"w": call("torch._utils", function)}))
