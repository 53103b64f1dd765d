"""Indexes of shards, and the rule for every file that a model names: inside its folder, regular, not through links."""

import json
import os

import numpy as np
import pytest

from growarray.checkpoint import load_checkpoint
from growarray.errors import CheckpointError
from tests.checkpoint.files import FLOATS, SIX, entry, glob, pickled, rows, safetensors, simple_zip, torch_zip


def shard(*names):
    header = {name: entry("F32", [6], 24 * i, 24 * (i + 1)) for i, name in enumerate(names)}
    return safetensors(header, SIX * len(names))


def folder(path, weight_map, **files):
    for name, data in files.items():
        (path / name.replace("__", ".")).write_bytes(data)
    index = path / "model.safetensors.index.json"
    index.write_text(weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map}))
    return index


def test_shards_are_joined(tmp_path):
    index = folder(
        tmp_path,
        json.dumps({"metadata": {"total_size": 48}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}),
        **{"1__safetensors": shard("a"), "2__safetensors": shard("b", "c")},
    )
    checkpoint = load_checkpoint(index)
    assert checkpoint.kind == "safetensors-index"
    assert list(checkpoint) == ["a", "b"]
    assert checkpoint.metadata == {"total_size": 48}
    assert checkpoint.notes == ("1 tensors of the shards are not in the index and were left out",)
    np.testing.assert_array_equal(checkpoint["b"], FLOATS)


def test_shards_of_torch(tmp_path):
    index = folder(tmp_path, {"w": "a.bin"}, a__bin=simple_zip())
    checkpoint = load_checkpoint(index)
    assert checkpoint.kind == "torch-index"
    assert checkpoint["w"].shape == (2, 3)


@pytest.mark.parametrize(
    ("location", "message"),
    rows(
        {
            "up": ("../a.safetensors", "not a plain relative|not a plain relative path"),
            "absolute": ("/etc/passwd", "not a plain relative path"),
            "inside and up": ("x/../a.safetensors", "not a plain relative path"),
            "backslash": ("..\\a.safetensors", "not a plain relative path"),
            "drive": ("C:a", "not a plain relative path"),
            "url": ("file://a", "not a plain relative path"),
            "NUL": ("a\0", "not a plain relative path"),
            "empty": ("", "not a plain relative path"),
            "folder": (".", "not a plain relative path"),
            "missing": ("nope.safetensors", "is missing"),
            "itself": ("model.safetensors.index.json", "is of the kind index"),
            "number": (5, "shard is 5; expected a string"),
            "pickle": ("evil.bin", "global 'os.system' is not among"),
            "named safetensors": ("torch.safetensors", "is of the kind torch-zip, though it is named .safetensors"),
            "no such tensor": ("other.safetensors", "has no tensor of this name"),
            "subfolder": ("sub", "is a folder"),
            "pipe": ("pipe", "is not a regular file"),
            "link out": ("link.safetensors", "is a link that leaves .* follow_links=True"),
            "linked folder": ("up/a.safetensors", "is a link that leaves"),
        }
    ),
)
def test_refusals(tmp_path, location, message):
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "a.safetensors").write_bytes(shard("w"))
    (inside / "sub").mkdir()
    (inside / "link.safetensors").symlink_to("../a.safetensors")
    (inside / "up").symlink_to("..")
    os.mkfifo(inside / "pipe")
    evil = torch_zip(pickled(glob("os", "system")))
    index = folder(
        inside, {"w": location}, evil__bin=evil, torch__safetensors=simple_zip(), other__safetensors=shard("x")
    )
    with pytest.raises(CheckpointError, match=message) as refusal:
        load_checkpoint(index)
    assert str(index) in str(refusal.value)


def test_links_are_followed_on_request(tmp_path):
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "blob").write_bytes(shard("w"))
    (inside / "link.safetensors").symlink_to("../blob")
    index = folder(inside, {"w": "link.safetensors"})
    assert load_checkpoint(index, follow_links=True)["w"].tolist() == FLOATS.tolist()


def test_links_inside_the_folder_are_fine(tmp_path):
    (tmp_path / "link.safetensors").symlink_to("a.safetensors")
    index = folder(tmp_path, {"w": "./link.safetensors"}, a__safetensors=shard("w"))
    assert load_checkpoint(index)["w"].tolist() == FLOATS.tolist()


@pytest.mark.parametrize(
    "text", ["{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": "x", "a": "x"}}', "{", "[1]"]
)
def test_indexes_that_are_none(tmp_path, text):
    with pytest.raises(CheckpointError, match=r"weight_map|twice|damaged|recognised"):
        load_checkpoint(folder(tmp_path, text))


def test_shards_of_several_kinds(tmp_path):
    index = folder(tmp_path, {"w": "a.bin", "x": "b"}, a__bin=simple_zip(), b=shard("x"))
    with pytest.raises(CheckpointError, match="several kinds: safetensors, torch"):
        load_checkpoint(index)


def test_a_shard_that_changes_after_the_index_was_read(tmp_path):
    index = folder(tmp_path, {"w": "a.safetensors"}, a__safetensors=shard("w"))
    checkpoint = load_checkpoint(index)
    (tmp_path / "a.safetensors").write_bytes(shard("w") + b"more")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: has changed while it was read"):
        checkpoint["w"]
