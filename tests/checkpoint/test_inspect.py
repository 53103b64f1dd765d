"""What a look into a file tells, for every kind, without reading a tensor; hostile files have their reason told."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from growarray.checkpoint import Checkpoint, Limits, inspect, load_checkpoint, save_safetensors
from growarray.checkpoint.inspect import Extra, outline_extras
from growarray.files.tensor import StoredTensor
from growarray.onnx.outline import Port, Use
from tests.checkpoint.files import (
    FLOATS,
    SIX,
    entry,
    field,
    onnx,
    ordered,
    rows,
    safetensors,
    simple_npz,
    simple_onnx,
    simple_safetensors,
    storage,
    tensor,
    tensor_proto,
    torch_legacy,
    torch_zip,
)

W = tensor(storage("0", 6), 0, (2, 3), (3, 1))

OLD = tensor(storage("0", 6, "FloatStorage", None), 0, (2, 3), (3, 1))


def at(tmp_path, data, name="w"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "kind"),
    rows(
        {
            "torch": (torch_zip(ordered({"w": W}), {"0": SIX}), "torch-zip"),
            "legacy": (torch_legacy(ordered({"w": OLD}), {"0": (6, SIX)}), "torch-legacy"),
            "safetensors": (simple_safetensors(), "safetensors"),
            "onnx": (simple_onnx(), "onnx"),
            "npz": (simple_npz(w=FLOATS.reshape(2, 3)), "npz"),
        }
    ),
)
def test_every_kind(tmp_path, monkeypatch, data, kind):
    def fail(*_, **__):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(StoredTensor, "read", fail)
    found = inspect(at(tmp_path, data))
    assert (found.kind, found.size, found.refused, found.faults) == (kind, len(data), None, ())
    row = next(row for row in found.tensors if row.name == "w")
    assert (row.shape, row.dtype, row.nbytes, row.uses) == ((2, 3), "float32", 24, ())
    assert str(found).endswith("bytes")
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["tensors"][0]["shape"] == [2, 3]
    assert plain["kind"] == kind


def test_a_training_checkpoint(tmp_path):
    root = {
        "epoch": 3,
        "name": "a\x1b[2J" + "x" * 200,
        "model": ordered({"module.w": W, "module.v": W}),
        "optimizer": {"state": {0: {"m": W}}, "lr": 0.1, "groups": [1, 2]},
        "raw": b"123",
    }
    found = inspect(at(tmp_path, torch_zip(root, {"0": SIX})))
    assert [row.name for row in found.tensors] == ["w", "v"]
    assert found.tied == (("w", "v"),)
    assert found.prefix == "module."
    assert any("'model'" in note for note in found.notes)
    extras = {extra.name: (extra.kind, extra.text) for extra in found.extras}
    assert extras["epoch"] == ("int", "3")
    assert extras["optimizer"] == ("dict", "3 entries, 1 tensors of 24 bytes")
    assert extras["optimizer.state"] == ("dict", "1 entries, 1 tensors of 24 bytes")
    assert extras["optimizer.lr"] == ("float", "0.1")
    assert extras["raw"] == ("bytes", "3 bytes")
    assert extras["name"][1].isprintable()
    assert len(extras["name"][1]) < 140
    assert inspect(tmp_path / "w", select="optimizer").tensors[0].name == "state.0.m"


def test_bytes_are_those_in_the_file(tmp_path):
    found = inspect(at(tmp_path, safetensors({"w": entry("BF16", [2, 3], 0, 12)}, bytes(12))))
    assert (found.tensors[0].dtype, found.tensors[0].nbytes) == ("bfloat16", 12)
    four = onnx(tensor_proto("w", [3], 22, field(9, b"\xf1\x01")))
    assert inspect(at(tmp_path, four)).tensors[0].nbytes == 2


def test_metadata(tmp_path):
    save_safetensors({"w": np.ones(1)}, tmp_path / "w.safetensors", {"format": "pt", "long": "x" * 1000})
    found = inspect(tmp_path / "w.safetensors").metadata
    assert found[0] == Extra("format", "str", "'pt'")
    assert len(found[1].text) < 140


# ONNX.


def node(operator, inputs, outputs=(), name="", *attributes):
    parts = [field(1, text.encode()) for text in inputs] + [field(2, text.encode()) for text in outputs]
    named = [field(3, name.encode())] if name else []
    return field(1, b"".join([*parts, *named, field(4, operator.encode()), *(field(5, a) for a in attributes)]))


def port(number, name, *axes):
    dims = b"".join(field(1, field(1, axis) if isinstance(axis, int) else field(2, axis.encode())) for axis in axes)
    return field(number, field(1, name.encode()) + field(2, field(1, field(1, 1) + field(2, dims))))


def body(*nodes):
    return field(1, b"then_branch") + field(6, b"".join(nodes))


W6, B6 = (tensor_proto(name, [6], 1, field(9, SIX)) for name in ("w", "b"))


def test_who_uses_an_initializer(tmp_path):
    graph = b"".join(
        [
            node("Mul", ["x", "w"], ["y"], "first"),
            node("Add", ["w", "w"], ["z"]),
            node("Relu", ["y"], ["out"], "last"),
            port(11, "x", "n", 6),
            port(11, "w", 6),
            port(12, "out", "n", 6),
        ]
    )
    found = inspect(at(tmp_path, onnx(W6, B6, graph=graph)))
    uses = {row.name: row.uses for row in found.tensors}
    assert uses["w"] == (Use("Mul", "first", 1), Use("Add", "number 1", 0), Use("Add", "number 1", 1))
    assert uses["b"] == ()
    assert found.graph.inputs == [Port("x", ("n", 6))]  # w has a value, so it is no input
    assert found.graph.outputs == [Port("out", ("n", 6))]
    assert found.graph.operators == {"Mul": 1, "Add": 1, "Relu": 1}
    assert Extra("opset ai.onnx", "int", "18") in found.metadata
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["tensors"][0]["uses"][0] == {"operator": "Mul", "node": "first", "position": 1}
    assert plain["graph"]["inputs"] == [{"name": "x", "shape": ["n", 6]}]


def test_uses_in_the_bodies_of_control_flow(tmp_path):
    hidden = body(node("Neg", ["w"], ["q"], "inner"), node("Abs", ["b"], ["w2"], "other"), field(5, B6))
    open_ = body(node("Neg", ["w"], ["q"], "inner"), node("If", ["c"], [], "deep", body(node("Sub", ["b", "w"]))))
    graph = node("If", ["c"], ["y"], "choice", hidden) + node("If", ["c"], ["z"], "", open_)
    uses = {row.name: row.uses for row in inspect(at(tmp_path, onnx(W6, B6, graph=graph))).tensors}
    assert uses["w"] == (
        Use("Neg", "choice/inner", 0),
        Use("Neg", "number 1/inner", 0),
        Use("Sub", "number 1/deep/number 0", 1),
    )
    assert uses["b"] == (Use("Sub", "number 1/deep/number 0", 0),)  # the other body has its own b


def test_uses_are_found_under_names_without_a_prefix(tmp_path):
    graph = node("Neg", ["module.w"], ["y"], "n")
    found = inspect(at(tmp_path, onnx(tensor_proto("module.w", [6], 1, field(9, SIX)), graph=graph)))
    assert found.prefix == "module."
    assert [(row.name, row.uses) for row in found.tensors] == [("w", (Use("Neg", "n", 0),))]


def test_ports_without_a_shape(tmp_path):
    graph = field(11, field(1, b"x")) + field(12, field(1, b"y") + field(2, field(4, b""))) + port(12, "s")
    graph += field(11, field(1, b"o") + field(2, field(1, field(2, field(1, b"")))))
    found = inspect(at(tmp_path, onnx(graph=graph))).graph
    assert found.inputs == [Port("x", None), Port("o", ("?",))]
    assert found.outputs == [Port("y", None), Port("s", ())]


def test_axes_of_no_size_are_open(tmp_path):
    graph = port(11, "x", 2**64 - 1, 0, 3) + port(11, "long", "n" * 65, "n" * 64) + port(12, "y", "")
    found = inspect(at(tmp_path, onnx(graph=graph))).graph
    assert found.inputs == [Port("x", ("?", "?", 3)), Port("long", ("?", "n" * 64))]
    assert found.outputs == [Port("y", ("?",))]
    wide = inspect(at(tmp_path, onnx(graph=port(11, "x", *[1] * 65))))
    assert "more than 64 axes" in wide.graph_refused


# Refusals.


@pytest.mark.parametrize(
    ("data", "message", "kind"),
    rows(
        {
            "page": (b"<html>", "is an HTML or XML page", None),
            "empty": (b"", "is empty", None),
            "cut": (simple_safetensors()[:-1], "cut off", "safetensors"),
            "pickle": (torch_zip(b"\x80\x02cos\nsystem\n."), "os.system", "torch-zip"),
            "onnx": (onnx(graph=field(15, b"")), "sparse_initializer", "onnx"),
        }
    ),
)
def test_a_refused_file_is_a_result(tmp_path, data, message, kind):
    found = inspect(at(tmp_path, data))
    assert message in found.refused
    assert found.faults == (found.refused,)
    assert (found.kind, found.size, found.tensors) == (kind, len(data), ())
    assert str(found).startswith("refused: ")
    assert json.loads(json.dumps(found.to_dict()))["refused"] == found.refused


def test_a_missing_file_and_a_folder(tmp_path):
    assert "No such file" in inspect(tmp_path / "no.pt").refused
    assert "is a folder" in inspect(tmp_path).refused


def test_limits(tmp_path):
    path = at(tmp_path, simple_safetensors())
    assert "Limits.tensors" in inspect(path, limits=replace(Limits(), tensors=1)).refused
    graph = b"".join(node("Neg", ["w"], [f"y{i}"]) for i in range(200))
    model = at(tmp_path, onnx(W6, graph=graph))
    for bound in ({"steps": 900}, {"memory": 10_000}):  # enough to read the tensors, too little for the nodes
        found = inspect(model, limits=replace(Limits(), **bound))
        assert f"Limits.{next(iter(bound))}" in found.graph_refused
        assert found.faults == (found.graph_refused,)
        assert (found.refused, found.graph, len(found.tensors)) == (None, None, 1)


def test_check_reads_every_tensor(tmp_path):
    other = tensor(storage("1", 6), 0, (6,), (1,))
    data = bytearray(torch_zip(ordered({"w": W, "v": other}), {"0": SIX, "1": bytes(24)}))
    data[data.index(SIX)] ^= 1
    path = at(tmp_path, data)
    assert inspect(path).faults == ()
    found = inspect(path, check=True)
    assert found.refused is None
    assert [row.fault is None for row in found.tensors] == [False, True]
    assert "CRC-32" in found.faults[0]


def test_extras_are_bounded():
    rows = outline_extras({f"k{i}": i for i in range(1000)})
    assert len(rows) == 101
    assert rows[-1].text == "and 900 more"
    loop = {}
    loop["self"] = loop
    assert [row.name for row in outline_extras(loop)] == ["self", "self.self"]


def test_stored_extras_are_not_read(tmp_path):
    checkpoint = load_checkpoint(at(tmp_path, torch_zip({"model": ordered({"w": W}), "ema": [W]}, {"0": SIX})))
    assert isinstance(checkpoint, Checkpoint)
    assert isinstance(checkpoint.stored_extras["ema"][0], StoredTensor)
