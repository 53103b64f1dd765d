"""The kind is told by content; what is no checkpoint is called by its name."""

import gzip
import io
import tarfile

import pytest

from growarray.checkpoint import load_checkpoint
from growarray.errors import CheckpointError
from tests.checkpoint import files
from tests.checkpoint.files import rows

MADE = {
    "torch-zip": files.simple_zip,
    "torch-legacy": files.simple_legacy,
    "safetensors": files.simple_safetensors,
    "onnx": files.simple_onnx,
    "npz": files.simple_npz,
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".onnx", ".npz", ".json", ""])
def test_names_do_not_matter(tmp_path, kind, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(MADE[kind]())
    assert load_checkpoint(path).kind == kind


@pytest.mark.parametrize("length", [123, 128, 379])
def test_headers_whose_length_looks_like_something_else(length):
    header = {"w": files.entry("F32", [6], 0, 24)}
    text = files.safetensors(header)[8:]
    data = files.safetensors(text.ljust(length), files.SIX)
    assert load_checkpoint(io.BytesIO(data)).kind == "safetensors"


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    rows(
        {
            "empty": (b"", "is empty"),
            "lfs": (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
                "Git LFS pointer.*git lfs pull",
            ),
            "html": (b"\n<!DOCTYPE html><html>Not found</html>", "HTML or XML page.*fetch the file again"),
            "empty zip": (b"PK\x05\x06" + bytes(18), "a zip archive without members; it holds no array"),
            "gzip": (gzip.compress(files.simple_zip()), "compressed with gzip; unpack"),
            "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
            "gguf": (b"GGUF" + bytes(100), "a GGUF file"),
            "npy": (b"\x93NUMPY\x01\x00", "single .npy array"),
            "tar": (tar(), "is a tar archive, as torch before 0.2"),
            "garbage": (b"\xff\xfe" * 100, "not a recognised checkpoint: it starts with"),
            "four bytes": (b"PK\x03\x04", "zip archive has no end record"),
        }
    ),
)
def test_strangers(data, message):
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(io.BytesIO(data))


def test_the_name_is_held_against_the_content(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match=r"is named \.safetensors, but its content is damaged or of another kind"):
        load_checkpoint(path)
