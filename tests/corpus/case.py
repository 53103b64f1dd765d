"""One case of the corpus: its file, staged with the links it asks for, and what must come out of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(os.environ.get("GROWARRAY_CORPUS", Path(__file__).parent / "data"))

KINDS = {
    "onnx",
    "safetensors",
    "safetensors-index",
    "torch-index",
    "torch-legacy",
    "torch-tar",
    "torch-zip",
}
EXPECT = {"ok", "refuse", "either"}
FIELDS = {  # of an entry: those that the test reads, then those that describe where the case comes from
    *("file", "kind", "expect", "names", "npz", "tree", "if_ok", "marker", "setup", "sentinel_ok"),
    *("why", "anchor", "hostile", "verified_by", "flip", "pickle_protocol", "globals", "exec", "st_metadata"),
    *("module", "ops", "opset", "ir_version", "initializers_only"),
}
GRAPH_FIELDS = {"io_npz", "rtol", "atol", "graph_expect"}
"""Values of whole ONNX graphs, which are imported and run, and of torch modules (``test_modules.py``)."""

LEAVES = {"none", "int", "float", "bool", "str", "complex", "bytes", "bytearray", "set", "Size", "dtype", "device"}


def all_cases() -> Iterator[dict[str, Any]]:
    """Manifest entries of every case in the folder."""
    yield from json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["cases"]


def stage(entry: dict[str, Any], scratch: Path) -> Path:
    """The file of a case, in a copy of its folder where links or a pipe have to be made first."""
    source = FOLDER / entry["file"]
    if not entry.get("setup"):
        return source
    folder = scratch / "case"
    shutil.copytree(source.parent, folder)
    for name in ("outside.bin", "outside.safetensors"):
        shutil.copy(FOLDER / "hostile" / name, scratch)
    for step in entry["setup"]:
        path = folder / step["path"]
        if step["op"] == "symlink":
            path.symlink_to(step["target"])
        elif step["op"] == "hardlink":
            path.hardlink_to(Path(os.path.normpath(path.parent / step["target"])))
        else:
            assert step["op"] == "fifo", f"unknown step {step}"
            os.mkfifo(path)
    return folder / source.name


def scalar(node: dict[str, Any]) -> Any:
    """A plain value of an expected tree."""
    kind, value = node["t"], node.get("v")
    if kind == "none":
        return None
    if kind == "int":
        return int(value)
    if kind == "float":
        return float.fromhex(value) if "x" in value else float(value)
    if kind in ("bool", "str"):
        return value
    if kind == "complex":
        return complex(*map(float.fromhex, value))
    if kind in ("bytes", "bytearray"):
        return (bytes if kind == "bytes" else bytearray).fromhex(value)
    if kind in ("tuple", "set"):
        return (tuple if kind == "tuple" else set)(scalar(item) for item in node["items"])
    if kind == "Size":
        return tuple(value)
    assert kind in ("dtype", "device"), f"unknown value {node}"
    return value


class Expected:
    """Arrays and structure that a file must give."""

    def __init__(self, entry: dict[str, Any]) -> None:
        with np.load(FOLDER / entry["npz"]) as file:
            self.arrays = {key: file[key] for key in file.files}
        record = json.loads((FOLDER / entry["tree"]).read_text(encoding="utf-8"))
        self.info: dict[str, Any] = record["tensors"]
        self.tree = record.get("tree")
        self.flat = entry["kind"] not in ("torch-zip", "torch-legacy")

    def compare(self, got: Any) -> None:
        """Assert that ``got`` is the expected structure, bit for bit."""
        if self.tree is not None and not self.flat:
            self._walk(self.tree, got, "")
            return
        names = {key.replace("~1", "/").replace("~0", "~") if self.tree else key: key for key in self.info}
        assert set(got) == set(names)
        for name, key in names.items():
            self._tensor(key, got[name])

    def _walk(self, node: dict[str, Any], got: Any, where: str) -> None:
        kind = node["t"]
        if kind == "tensor":
            self._tensor(node["key"], got)
        elif kind in ("dict", "OrderedDict", "Counter"):
            assert type(got) is dict, f"{where}: {type(got)}"
            assert list(got) == [scalar(key) for key, _ in node["items"]], where
            for (key, child), value in zip(node["items"], got.values(), strict=True):
                self._walk(child, value, f"{where}/{scalar(key)}")
        elif kind in ("list", "tuple"):
            assert type(got) is (list if kind == "list" else tuple), f"{where}: {type(got)}"
            for i, (child, value) in enumerate(zip(node["items"], got, strict=True)):
                self._walk(child, value, f"{where}/{i}")
        else:
            assert kind in LEAVES, f"unknown node {kind}"
            wanted = scalar(node)
            same = got == wanted or (wanted != wanted and got != got)
            assert same, f"{where}: {got!r}, expected {wanted!r}"
            assert type(got) is type(wanted), f"{where}: {type(got)}"

    def _tensor(self, key: str, got: Any) -> None:
        """Native types bit for bit; those that NumPy lacks by their exact value."""
        wanted, how = self.arrays[key], self.info[key]["stored_as"]
        assert type(got) is np.ndarray, key
        assert got.shape == wanted.shape, f"{key}: {got.shape}"
        assert (got.flags.aligned, got.flags.writeable, got.dtype.isnative) == (True, True, True), key
        if how == "native":
            assert (got.dtype, got.tobytes()) == (wanted.dtype, wanted.tobytes()), key
            return
        assert how in ("bits", "uint8 bits", "uint16 bits", "uint32 bits", "float32 upcast only"), f"unknown {how!r}"
        wide = self.arrays[f"{key}::f32"]
        assert got.dtype == wide.dtype or got.dtype.kind == "i", f"{key}: {got.dtype}"
        np.testing.assert_array_equal(got.astype(wide.dtype), wide, err_msg=key)
