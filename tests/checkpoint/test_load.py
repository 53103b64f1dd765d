"""Opening files: lazily, from paths and open files, without surprises when they are missing or change."""

import copy
import io
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

import growarray
from growarray.checkpoint import Limits, from_onnx, load_checkpoint
from growarray.errors import CheckpointError
from growarray.files.source import Region
from tests.checkpoint.files import (
    FLOATS,
    SIX,
    WEIGHT,
    entry,
    ordered,
    safetensors,
    simple_legacy,
    simple_npz,
    simple_onnx,
    simple_safetensors,
    simple_zip,
    storage,
    tensor,
    torch_zip,
)

MAKERS = [simple_zip, simple_legacy, simple_safetensors, simple_onnx, simple_npz]
each_kind = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


def written(folder, data, name="weights"):
    path = folder / name
    path.write_bytes(data)
    return path


@each_kind
@pytest.mark.parametrize("mmap", [True, False])
def test_paths_and_open_files(tmp_path, make, mmap):
    path = written(tmp_path, make())
    with path.open("rb") as file:
        opened = [load_checkpoint(p, mmap=mmap) for p in (path, str(path), os.fsencode(path).decode(), file)]
    for checkpoint in opened:
        np.testing.assert_array_equal(checkpoint["w"], FLOATS.reshape(2, 3), strict=True)
        array = checkpoint["w"]
        array += 1  # arrays belong to the caller
    assert path.read_bytes() == make()
    assert [checkpoint.source for checkpoint in opened] == [str(path)] * 3 + ["<BufferedReader>"]


@pytest.mark.parametrize("reader", [load_checkpoint, from_onnx])
def test_what_is_neither_a_path_nor_a_file(reader):
    with pytest.raises(TypeError, match=r"found bytes; wrap the content of a file in io\.BytesIO"):
        reader(simple_onnx())
    with pytest.raises(TypeError, match="expected a path, or a file that is open in binary mode, found NoneType"):
        reader(None)
    with pytest.raises(TypeError, match=r"expected a Limits, found dict"):
        reader(io.BytesIO(simple_onnx()), limits={"depth": 200})


def test_public_names():
    assert growarray.load_checkpoint is load_checkpoint
    assert issubclass(CheckpointError, ValueError)
    assert Limits() == Limits()


def test_a_mapping(tmp_path):
    checkpoint = load_checkpoint(written(tmp_path, simple_safetensors()))
    assert "w" in checkpoint
    assert "nope" not in checkpoint
    assert len(checkpoint) == 2
    assert checkpoint.get("nope") is None
    with pytest.raises(KeyError):
        checkpoint["nope"]
    assert checkpoint.stored["w"].shape == (2, 3)
    assert checkpoint.stored["w"].dtype.name == "float32"
    assert checkpoint.stored["w"].nbytes == 24
    assert repr(checkpoint).endswith("weights', kind='safetensors', tensors=2, nbytes=32)")


def test_the_table():
    checkpoint = load_checkpoint(io.BytesIO(simple_zip(**{"a": WEIGHT, "b\n": WEIGHT})))
    assert str(checkpoint).splitlines() == [
        "<BytesIO> (torch-zip)",
        "name  shape  dtype    bytes",
        "a     2x3    float32     24",
        r"b\n   2x3    float32     24",
        "2 tensors, 48 bytes",
        r"tied: a, b\n",
    ]


def large(tmp_path, count=16):
    """Sixteen tensors of 4 MiB, each of them a constant."""
    storages = {str(i): np.full(2**20, i, "<f4").tobytes() for i in range(count)}
    root = ordered({f"w{i}": tensor(storage(str(i), 2**20), 0, (2**20,), (1,)) for i in range(count)})
    return written(tmp_path, torch_zip(root, storages))


def private_memory():
    """Bytes of this process that no file backs: pages of a map are not among them until they are written."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon:"))


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    path = large(tmp_path)
    read = []
    view = Region.view
    monkeypatch.setattr(Region, "view", lambda region: (read.append(region.name), view(region))[1])
    checkpoint = load_checkpoint(path)
    assert read == []
    assert checkpoint["w7"][-1] == 7
    assert read == ["data/7"]
    assert checkpoint.extras == {}
    assert read == ["data/7"]
    assert sum(float(array[0]) for array in checkpoint.values()) == sum(range(16))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_arrays_of_a_mapped_file_need_no_memory(tmp_path):
    path = large(tmp_path)
    load_checkpoint(path)["w0"]
    before = private_memory()
    arrays = dict(load_checkpoint(path))
    assert sum(float(array[-1]) for array in arrays.values()) == sum(range(16))
    assert private_memory() - before < 2**20  # of 64 MiB


def test_one_map_serves_all_tensors(tmp_path):
    checkpoint = load_checkpoint(large(tmp_path, 2))
    first, again = checkpoint["w1"], checkpoint["w1"]
    assert np.shares_memory(first, again)
    assert not np.shares_memory(first, checkpoint["w0"])


def test_arrays_outlive_the_checkpoint(tmp_path):
    path = written(tmp_path, simple_safetensors())
    array = load_checkpoint(path)["w"]
    path.unlink()
    assert array.sum() == 15


@each_kind
def test_a_file_that_changes_while_it_is_read(tmp_path, make):
    path = written(tmp_path, make())
    checkpoint = load_checkpoint(path)
    whole = load_checkpoint(path, mmap=False)
    path.write_bytes(make()[:40])
    with pytest.raises(CheckpointError, match="weights: has changed while it was read; load it again"):
        checkpoint["w"]
    assert whole["w"].shape == (2, 3)


def test_a_file_that_is_replaced_keeps_its_content(tmp_path):
    path = written(tmp_path, simple_safetensors())
    checkpoint = load_checkpoint(path)
    time.sleep(0.01)
    written(tmp_path, safetensors({"w": entry("F32", [6], 0, 24)}, bytes(24)), "new").rename(path)
    assert checkpoint["w"].sum() == 15
    assert load_checkpoint(path)["w"].sum() == 0


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(CheckpointError, match="nope: cannot be read: No such file"):
        load_checkpoint(tmp_path / "nope")
    with pytest.raises(CheckpointError, match="is a folder; pass the file of weights inside it"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="is not a path: embedded null"):
        load_checkpoint("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe: is not a regular file"):
        load_checkpoint(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match=r"read.. returned str, expected bytes; open the file in binary mode"):
        load_checkpoint(io.StringIO("x"))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        load_checkpoint(5)  # type: ignore[arg-type]


def test_parts_are_for_files_that_have_them():
    with pytest.raises(CheckpointError, match="files of the kind npz have no parts"):
        load_checkpoint(io.BytesIO(simple_npz()), select="model")


def test_tensors_of_a_file_are_not_pickled(tmp_path):
    checkpoint = load_checkpoint(written(tmp_path, simple_zip()))
    for broken in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="a lazy tensor cannot be pickled; read it first"):
            broken(checkpoint)
    assert pickle.loads(pickle.dumps(dict(checkpoint)))["w"].shape == (2, 3)


def test_metadata_of_a_state_dict_holds_no_tensors():
    root = ordered({"w": WEIGHT}, {"_metadata": {"w": WEIGHT}})
    with pytest.raises(CheckpointError, match="_metadata: _metadata of the state dict holds a tensor"):
        load_checkpoint(io.BytesIO(torch_zip(root, {"0": SIX})))
