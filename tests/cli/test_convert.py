"""``growarray convert``: every kind into safetensors and npz, names and types changed, and nothing lost silently."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from growarray.checkpoint import inspect, load_checkpoint, save_npz, save_safetensors
from growarray.cli.application import app
from growarray.onnx.outline import Port
from growarray.onnx.read import from_onnx
from tests.checkpoint.files import (
    FLOATS,
    SIX,
    entry,
    field,
    ordered,
    rows,
    safetensors,
    simple_npz,
    simple_onnx,
    storage,
    tensor,
    tensor_proto,
    torch_legacy,
    torch_zip,
)
from tests.checkpoint.test_inspect import OLD, node, onnx, port

Command = Callable[..., Any]
W = tensor(storage("0", 6), 0, (2, 3), (3, 1))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """``command("w.pt", "w.npz")``: the result of the command."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.safetensors"
    arrays = {"a.w": FLOATS.reshape(2, 3), "a.n": np.int64(3), "b.w": np.float64([1, 1e300]), "b.c": np.complex64([1j])}
    save_safetensors(arrays, path, {"format": "pt"})
    return path


def failed(done: Any, message: str) -> None:
    assert done.exit_code == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.startswith("growarray convert: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize(
    "data",
    rows(
        {
            "torch": (torch_zip(ordered({"w": W}), {"0": SIX}),),
            "legacy": (torch_legacy(ordered({"w": OLD}), {"0": (6, SIX)}),),
            "safetensors": (safetensors({"w": entry("F32", [2, 3], 0, 24)}, SIX),),
            "onnx": (simple_onnx(),),
            "npz": (simple_npz(w=FLOATS.reshape(2, 3)),),
        }
    ),
)
def test_every_kind(command, tmp_path, data, suffix):
    (tmp_path / "in").write_bytes(data)
    out = tmp_path / f"out{suffix}"
    done = command(tmp_path / "in", out)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"written {out}: {out.stat().st_size:,} bytes\n1 tensors\n")
    found = load_checkpoint(out)
    assert list(found) == ["w"]
    np.testing.assert_array_equal(found["w"], FLOATS.reshape(2, 3), strict=True)


def test_names_and_types(command, source, tmp_path):
    out = tmp_path / "out.npz"
    done = command(source, out, "--rename", "a.=x.y.", "--rename", "b.w=w", "--dtype", "float64")
    assert done.exit_code == 0, done.stderr
    found = load_checkpoint(out)
    assert {name: array.dtype.name for name, array in found.items()} == {
        "x.y.w": "float64",
        "x.y.n": "int64",
        "w": "float64",
        "b.c": "complex64",
    }
    assert "1 tensors from float32 to float64" in done.stdout
    assert "left out: metadata (1 entries)" in done.stdout


def test_a_prefix_comes_off(command, source, tmp_path):
    done = command(source, tmp_path / "out.safetensors", "--prefix", "a.", "--rename", "b.=")
    failed(done, "rename: 'w' and 'b.w' both become 'w'")
    done = command(source, tmp_path / "out.safetensors", "--prefix", "a.")
    assert done.exit_code == 0
    assert list(load_checkpoint(tmp_path / "out.safetensors")) == ["w", "n", "b.w", "b.c"]
    assert "note: the prefix 'a.' was taken off the names" in done.stdout
    assert load_checkpoint(tmp_path / "out.safetensors").metadata == {"format": "pt"}


def test_values_beyond_the_range_are_refused(command, source, tmp_path):
    failed(
        command(source, tmp_path / "out.npz", "--dtype", "float32"),
        "--dtype float32: 'b.w': 1e+300 at (1,) is beyond the range of float32; take a wider dtype",
    )
    assert not (tmp_path / "out.npz").exists()


def test_infinities_stay(command, tmp_path):
    save_npz({"w": np.array([np.inf, -np.inf, np.nan, 1.0])}, tmp_path / "in.npz")
    assert command(tmp_path / "in.npz", tmp_path / "out.npz", "--dtype", "float16").exit_code == 0
    np.testing.assert_array_equal(load_checkpoint(tmp_path / "out.npz")["w"], np.float16([np.inf, -np.inf, np.nan, 1]))


BF16 = safetensors({"w": entry("BF16", [2], 0, 4)}, np.array([0x3F80, 0xC000], "<u2").tobytes())


def test_bfloat16(command, tmp_path, monkeypatch):
    source = tmp_path / "in.safetensors"
    source.write_bytes(BF16)
    done = command(source, tmp_path / "out.npz")
    assert "1 tensors from bfloat16 to float32" in done.stdout
    assert load_checkpoint(tmp_path / "out.npz")["w"].tolist() == [1.0, -2.0]
    failed(command(source, tmp_path / "b.npz", "--dtype", "bfloat16"), "--dtype bfloat16: .npz has no such type")
    pytest.importorskip("ml_dtypes")
    kept = tmp_path / "kept.safetensors"
    assert "from" not in command(source, kept).stdout
    assert kept.read_bytes()[-4:] == BF16[-4:]
    made = tmp_path / "made.safetensors"
    assert command(tmp_path / "out.npz", made, "--dtype", "bfloat16").exit_code == 0
    assert load_checkpoint(made).stored["w"].dtype.name == "bfloat16"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wide = tmp_path / "wide.safetensors"
    assert "1 tensors from bfloat16 to float32" in command(source, wide).stdout
    assert load_checkpoint(wide).stored["w"].dtype.name == "float32"


def test_what_is_left_out_is_said(command, tmp_path):
    root = {"model": ordered({"w": W, "v": W}, {"_metadata": {"": {"version": 1}}}), "epoch": 3, "opt": [W, "\x1b[2J"]}
    (tmp_path / "in.pt").write_bytes(torch_zip(root, {"0": SIX}))
    done = command(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert done.stdout.splitlines()[1:] == [
        "2 tensors",
        "tied, written under each name: w, v",
        "left out: epoch (int 3), opt (list 2 entries, 1 tensors of 24 bytes)",
        "left out: metadata (1 entries)",
        "note: weights were taken from 'model'; tensors are also in 'opt' (pass select= to take those)",
    ]
    done = command(tmp_path / "in.pt", tmp_path / "opt.npz", "--select", "opt")
    assert done.exit_code == 0
    assert list(load_checkpoint(tmp_path / "opt.npz")) == ["0"]


def test_a_tied_name_becomes_a_tensor(command, tmp_path):
    header = json.dumps({"emb": entry("F32", [6], 0, 24), "__metadata__": {"head": "emb", "format": "pt"}}).encode()
    (tmp_path / "in.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + SIX)
    out = tmp_path / "out.safetensors"
    assert command(tmp_path / "in.safetensors", out, "--rename", "head=lm.head").exit_code == 0
    found = load_checkpoint(out)
    assert {name: array.tolist() for name, array in found.items()} == {
        "emb": FLOATS.tolist(),
        "lm.head": FLOATS.tolist(),
    }
    assert found.metadata == {"format": "pt"}


def test_a_tied_name_loses_the_prefix_too(command, tmp_path):
    tied = {"module.head": "module.emb", "format": "pt"}
    header = json.dumps({"module.emb": entry("F32", [6], 0, 24), "__metadata__": tied}).encode()
    (tmp_path / "in.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + SIX)
    out = tmp_path / "out.safetensors"
    assert command(tmp_path / "in.safetensors", out).exit_code == 0
    found = load_checkpoint(out)
    assert sorted(found) == ["emb", "head"]
    assert found.metadata == {"format": "pt"}


def test_files_are_replaced_when_asked_alone(command, source, tmp_path):
    out = tmp_path / "out.npz"
    out.write_bytes(b"before")
    failed(command(source, out), "exists already; name another file, or add --force")
    assert out.read_bytes() == b"before"
    assert command(source, out, "--force").exit_code == 0
    assert len(load_checkpoint(out)) == 4
    failed(command(source, source, "--force"), "is the file that is read")


@pytest.mark.parametrize(
    ("arguments", "message"),
    rows(
        {
            "suffix": (["out.pt"], "expected a name that ends in .safetensors, .npz, .onnx, found '.pt'"),
            "dtype": (["out.npz", "--dtype", "int8"], "--dtype int8: expected one of float16, bfloat16"),
            "rename": (["out.npz", "--rename", "a."], "--rename a.: expected OLD=NEW, each OLD once, found no '='"),
            "rename twice": (["out.npz", "--rename", "a.=b.", "--rename", "a.=c."], "found 'a.' twice"),
            "rename nothing": (["out.npz", "--rename", "z.=b."], "--rename z.: applies to no name; names are a.w, a.n"),
            "rename prefix": (["out.npz", "--rename", "a.=b"], "'a.' is a prefix, so expected 'b.', found 'b'"),
            "select": (["out.npz", "--select", "x"], "files of the kind safetensors have no parts"),
            "graph": (["out.onnx"], "is of the kind safetensors, which has weights and no graph"),
            "shape": (["out.npz", "--input-shape", "1,3"], ".npz files have no graph"),
            "limits": (["out.npz", "--limits", "tensors=1"], "Limits.tensors"),
            "folder": (["no/out.npz"], "there is no folder"),
        }
    ),
)
def test_what_is_refused(command, source, tmp_path, arguments, message):
    before = sorted(tmp_path.iterdir())
    failed(command(source, tmp_path / arguments[0], *arguments[1:]), message)
    assert sorted(tmp_path.iterdir()) == before


def test_a_hostile_file_is_refused(command, tmp_path):
    (tmp_path / "in.pt").write_bytes(torch_zip(b"\x80\x02cos\nsystem\n."))
    failed(command(tmp_path / "in.pt", tmp_path / "out.npz"), "os.system")
    failed(command(tmp_path / "in.pt", tmp_path / "out.onnx"), "os.system")
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


# Graphs.


def model(*axes, code=1, data=SIX):
    """x @ w, with x of these axes."""
    graph = node("MatMul", ["x", "w"], ["y"], "product") + port(11, "x", *axes) + port(12, "y", axes[0], 2)
    return onnx(tensor_proto("w", [3, 2], code, field(9, data)), graph=graph)


@pytest.mark.parametrize(("axes", "batch"), [(("n", 3), 5), ((4, 3), 4)], ids=["open", "fixed"])
def test_a_graph_is_written_again(command, tmp_path, axes, batch):
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(model(*axes))
    done = command(source, out)
    assert (done.exit_code, done.stderr) == (0, "")
    x = np.random.default_rng(0).standard_normal((batch, 3)).astype(np.float32)
    before, after = from_onnx(source).run({"x": x})["y"], from_onnx(out).run({"x": x})["y"]
    np.testing.assert_array_equal(before, after)
    np.testing.assert_allclose(before, x @ FLOATS.reshape(3, 2), rtol=1e-5)
    assert inspect(out).graph.inputs == [Port("x", axes)]
    wide = tmp_path / "wide.onnx"
    assert command(source, wide, "--dtype", "float64").exit_code == 0
    assert {row.dtype for row in inspect(wide).tensors} == {"float64"}


def test_half_precision_is_widened_and_said(command, tmp_path):
    half = model("n", 3, code=10, data=FLOATS.astype(np.float16).tobytes())
    (tmp_path / "in.onnx").write_bytes(half)
    done = command(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert "1 initializers from float16 to float32" in done.stdout
    assert inspect(tmp_path / "out.onnx").tensors[0].dtype == "float32"


def test_axes_that_the_file_leaves_open(command, tmp_path):
    source, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(model("n", "d"))
    failed(command(source, out), "input 'x' has the shape nxd in the file; pass it, for example --input-shape")
    failed(command(source, out, "--input-shape", "1,x"), "--input-shape 1,x: expected sizes from 1")
    failed(command(source, out, "--input-shape", "1,0"), "--input-shape 1,0: expected sizes from 1")
    failed(
        command(source, out, "--input-shape", "1,3", "--input-shape", "1,3"), "one for each of 1 inputs (x), found 2"
    )
    assert not out.exists()
    assert command(source, out, "--input-shape", "1,3").exit_code == 0
    assert inspect(out).graph.inputs == [Port("x", ("n", 3))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    rows(
        {
            "rename": (["--rename", "w=v"], "--rename: from ONNX to ONNX the whole graph is written"),
            "prefix": (["--prefix", "w"], "--prefix: from ONNX"),
            "select": (["--select", "w"], "--select: from ONNX"),
            "bfloat16": (["--dtype", "bfloat16"], "--dtype bfloat16: expected float16, float32 or float64"),
        }
    ),
)
def test_what_a_graph_does_not_have(command, tmp_path, arguments, message):
    (tmp_path / "in.onnx").write_bytes(model("n", 3))
    failed(command(tmp_path / "in.onnx", tmp_path / "out.onnx", *arguments), message)


def test_an_operator_that_is_not_known_is_named(command, tmp_path):
    (tmp_path / "in.onnx").write_bytes(onnx(graph=node("LSTM", ["x"], ["y"], "enc") + port(11, "x", 1) + port(12, "y")))
    done = command(tmp_path / "in.onnx", tmp_path / "out.onnx")
    failed(done, "LSTM")
    assert "enc" in done.stderr
    assert not (tmp_path / "out.onnx").exists()
