"""Pickles that torch.save did not write are called what they are, whatever their protocol and packing."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray.checkpoint import Limits, load_checkpoint
from growarray.checkpoint.inspect import inspect
from growarray.checkpoint.load import kind_of
from growarray.errors import CheckpointError
from growarray.files.source import Source
from tests.checkpoint.files import MAGIC, glob, ordered, pickled, rows, storage, tensor

VALUES = {
    "arrays": {"w": np.ones(3)},
    "large array": np.random.default_rng(0).standard_normal((200, 100)),
    "numbers": {"w": [1.0, -2.5], "n": 10**30, "s": "text", "b": b"bytes", "f": False},
    "none": None,
    "nothing": {},
    "long list": list(range(50_000)),
    "ordered": OrderedDict(a=1),
    "set": {1, 2},
    "complex": 1j,
}


def refused(data: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(io.BytesIO(data))
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", VALUES)
def test_every_protocol_is_told(name: str, protocol: int) -> None:
    message = refused(pickle.dumps(VALUES[name], protocol))
    assert message.startswith("<BytesIO>: is a pickle, but not one of torch.save")
    assert "state_dict" not in message
    assert "if you trust it, load it yourself and save its arrays with numpy.savez" in message
    assert ("it names 'numpy." in message) is (name in ("arrays", "large array"))


def joblib_like(protocol: int) -> bytes:
    """What joblib writes: the pickle of a wrapper, in the middle of which the bytes of the array stand."""
    name = b"joblib.numpy_pickle\nNumpyArrayWrapper\n"
    head = b"" if protocol < 2 else b"\x80" + bytes([protocol])
    empty = b")" if protocol else b"(t"
    return head + b"c" + name + empty + b"R" + b"\xff" * 40 + bytes(range(256)) + b"."


PACKINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "zlib": (", compressed with zlib", lambda data: zlib.compress(data, 3)),
    "zlib, hard": (", compressed with zlib", lambda data: zlib.compress(data, 9)),
    "gzip": (", compressed with gzip", gzip.compress),
    "bzip2": (", compressed with bzip2", bz2.compress),
    "xz": (", compressed with xz", lzma.compress),
    "lzma": (", compressed with lzma", lambda data: lzma.compress(data, lzma.FORMAT_ALONE)),
    "nothing": ("", lambda data: data),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize(("packed", "pack"), rows(PACKINGS))
def test_files_of_joblib_are_told(packed: str, pack: Callable[[bytes], bytes], protocol: int) -> None:
    message = refused(pack(joblib_like(protocol)))
    assert message.startswith(f"<BytesIO>: is a pickle of joblib{packed}, but not one of torch.save")
    assert "it names 'joblib.numpy_pickle.NumpyArrayWrapper'" in message
    plain = refused(pack(pickle.dumps(VALUES["long list"], protocol)))
    assert plain.startswith(f"<BytesIO>: is a pickle{packed}, but not one of torch.save")


def test_tensors_are_told_to_be_saved_by_torch() -> None:
    weight = tensor(storage("0", 6), 0, (2, 3), (3, 1))
    message = refused(pickled(ordered({"w": weight})))
    assert message.endswith("(it names 'collections.OrderedDict'); " + message.rpartition("); ")[2])
    assert message.endswith("load it yourself and save its arrays with torch.save")


@pytest.mark.parametrize("protocol", range(6))
def test_the_magic_number_of_torch_is_known_in_every_protocol(protocol: int) -> None:
    data = pickle.dumps(MAGIC, protocol)
    assert kind_of(Source.of_bytes(data, "file"), Limits()) == "torch-legacy"
    assert "protocol version" in refused(data)


def test_nothing_of_a_pickle_is_run(tmp_path: Any) -> None:
    mark = tmp_path / "mark"
    for data in (pickled(glob("os", "system")), f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()):
        assert "it names 'os.system'" in refused(data)
        assert "it names 'os.system'" in refused(zlib.compress(data))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    rows(
        {
            "text": (b"Once upon a time there was a file.", "is not a recognised checkpoint"),
            "numbers": (b"1.0 2.0\n3.0 4.", "is not a recognised checkpoint"),
            "bytes": (bytes(range(200, 256)) * 2000 + b".", "is not a recognised checkpoint"),
            "other gzip": (gzip.compress(b"text"), "is compressed with gzip; unpack it first"),
            "damaged gzip": (gzip.compress(b"text" * 99)[:12], "is compressed with gzip; unpack it first"),
            "other zlib": (zlib.compress(b"text"), "is not a recognised checkpoint"),
            "lz4": (b"\x04\x22\x4d\x18" + bytes(40), "is compressed with LZ4, as joblib does; unpack it first"),
        }
    ),
)
def test_what_is_no_pickle_is_not_called_one(data: bytes, message: str) -> None:
    assert message in refused(data)


def test_a_bomb_is_unpacked_no_further_than_it_is_looked_at() -> None:
    for pack in (zlib.compress, bz2.compress, lzma.compress):
        packed = pack(bytes(2**26))
        assert "pickle" not in refused(packed)


def test_inspect_says_it_too(tmp_path: Any) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(VALUES["arrays"]))
    found = inspect(path)
    assert (found.kind, found.size) == (None, path.stat().st_size)
    assert "is a pickle, but not one of torch.save" in str(found.refused)
