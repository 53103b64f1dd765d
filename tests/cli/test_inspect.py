"""``growarray inspect``: tables, JSON, refusals; names of a file that try to steer the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from growarray.checkpoint import Limits, save_safetensors
from growarray.cli import main
from growarray.cli.application import app
from tests.checkpoint.files import SIX, entry, ordered, rows, safetensors, storage, tensor, torch_zip
from tests.checkpoint.test_inspect import B6, W6, node, onnx, port

Command = Callable[..., Any]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """``command("w.pt", "--json")``: the result, piped."""
    monkeypatch.setenv("COLUMNS", "40")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: CliRunner().invoke(app, ["inspect", *map(str, arguments)])


@pytest.fixture
def nested(tmp_path):
    w = tensor(storage("0", 6), 0, (2, 3), (3, 1))
    path = tmp_path / "w.pt"
    root = {"model": ordered({"module.w": w, "module.v": w}), "epoch": 3, "inner": {"ema": ordered({"e": w})}}
    path.write_bytes(torch_zip(root, {"0": SIX}))
    return path


def test_the_commands_are_there(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["growarray", "--help"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "inspect" in text
    assert "convert" in text


def test_the_tables(command, nested):
    done = command(nested)
    assert (done.exit_code, done.stderr) == (0, "")
    assert [line.rstrip() for line in done.stdout.splitlines()] == [
        f"{nested}: torch-zip, {nested.stat().st_size:,} bytes",
        "tensor  shape  dtype    bytes  tied",
        "w       2x3    float32     24  #1",
        "v       2x3    float32     24  #1",
        "2 tensors, 12 values, 48 bytes",
        "tied #1: w, v",
        "prefix: module.",
        "beside the weights",
        "key        type  value",
        "epoch      int   3",
        "inner      dict  1 entries, 1 tensors of 24 bytes",
        "inner.ema  dict  1 entries, 1 tensors of 24 bytes",
        "note: weights were taken from 'model'; tensors are also in 'inner' (pass select= to take those)",
        "note: the prefix 'module.' was taken off the names",
    ]


def test_parts_prefixes_and_json(command, nested):
    done = command(nested, "--json", "--select", "inner", "--select", "ema")
    assert done.exit_code == 0
    assert [row["name"] for row in json.loads(done.stdout)["tensors"]] == ["e"]
    done = command(nested, "--json", "--prefix", "")
    assert [row["name"] for row in json.loads(done.stdout)["tensors"]] == ["module.w", "module.v"]


def test_a_graph(command, tmp_path):
    path = tmp_path / "m.onnx"
    graph = node("Mul", ["x", "w"], ["y"], "first")
    graph += b"".join(node("Add", ["y", "w"], [f"z{i}"], f"n{i}") for i in range(6)) + port(11, "x", "n", 6)
    path.write_bytes(onnx(W6, B6, graph=graph + port(12, "z0", "n", 6)))
    lines = [" ".join(line.split()) for line in command(path).stdout.splitlines()]
    assert "w 6 float32 24 Mul first [1], Add n0 [1], Add n1 [1], Add n2 [1] and 3 more" in lines
    assert "input x nx6" in lines
    assert "output z0 nx6" in lines
    assert "nodes: 6 Add, 1 Mul" in lines
    assert "used by no node: b" in lines


def test_a_file_cannot_steer_the_terminal(command, tmp_path):
    evil = "w\x1b]0;owned\x07\x1b[2J\r\u202e[red]"
    path = tmp_path / "w.safetensors"
    save_safetensors({evil: np.ones(2)}, path, {evil: evil})
    for arguments in ((), ("--json",), ("--check",)):
        done = command(path, *arguments)
        assert done.exit_code == 0
        assert done.output.replace("\n", "").isprintable()
        assert "[red]" in done.output
    path.write_bytes(safetensors({evil: entry("F32", [2], 0, 9)}, SIX))
    done = command(path)
    assert done.exit_code == 2
    assert done.output.replace("\n", "").isprintable()


def test_a_refused_file(command, tmp_path):
    path = tmp_path / "w.pt"
    path.write_bytes(b"<html>")
    done = command(path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"growarray inspect: refused: {path}: is an HTML or XML page")
    assert done.stderr.count("\n") == 1
    done = command(path, "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["refused"].startswith(f"{path}: is an HTML")
    assert "No such file" in command(tmp_path / "no.pt").stderr


def test_check(command, nested):
    data = nested.read_bytes()
    nested.write_bytes(data.replace(SIX, SIX[::-1]))
    assert command(nested).exit_code == 0
    done = command(nested, "--check")
    assert done.exit_code == 2
    assert "CRC-32" in done.stderr
    assert "2x3" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    rows(
        {
            "unknown": ("dept=3", "--limits dept=3: expected a field of tensors, depth, "),
            "text": ("depth=x", "expected depth= and a number from 0, found 'x'"),
            "negative": ("depth=-1", "found '-1'"),
            "nothing": ("depth", "found ''"),
        }
    ),
)
def test_limits_that_are_refused(command, nested, text, message):
    done = command(nested, "--limits", text)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
def test_every_limit_can_be_given(command, nested, name):
    assert command(nested, "--limits", f"{name}=1_000_000_000").exit_code == 0


def test_limits_count(command, nested):
    assert "Limits.depth" in command(nested, "--limits", "depth=1").stderr
