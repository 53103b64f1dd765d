"""``growarray compress``: files in, files out, and one line for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from growarray import load_checkpoint, nn
from growarray.checkpoint import save_safetensors
from growarray.checkpoint.onnx_export import to_onnx
from growarray.checkpoint.onnx_import import from_onnx
from growarray.cli.compress import compress
from growarray.cli.compress_weights import Weights
from growarray.factorized import CPTensor, FactorizedTensor, TuckerTensor

Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    app = typer.Typer()
    app.command()(compress)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])


def network() -> nn.Sequential:
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, rng=rng), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2, rng=rng), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12, rng=rng),
    )  # fmt: skip


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    to_onnx(network(), path, (1, 3, 10, 10))
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save_safetensors({**network().state_dict(), "steps": np.array(3)}, path)
    return path


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(1).standard_normal((20, 3, 10, 10)).astype(np.float32))
    return path


def test_a_graph_becomes_a_graph(run: Run, graph: Path, calibration: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = run(graph, "--budget", "0.5", "--calibration", calibration, "--output", folder)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in folder.iterdir()) == [
        "compressed.onnx", "compressed.safetensors", "report.json", "tradeoff.png",
    ]  # fmt: skip
    report = json.loads((folder / "report.json").read_text())
    assert report["parameters"]["after"] <= 0.5 * report["parameters"]["before"]
    x = np.load(calibration)
    dense, small = from_onnx(graph), from_onnx(folder / "compressed.onnx")
    y = dense(x)
    gap = np.linalg.norm(small(x) - y) / np.linalg.norm(y)
    assert gap == pytest.approx(report["output_error"], rel=1e-3)
    assert (folder / "tradeoff.png").read_bytes()[1:4] == b"PNG"
    state = load_checkpoint(folder / "compressed.safetensors")
    assert sum(array.size for array in state.values()) == report["parameters"]["after"]
    assert "output off by" in result.output


@pytest.mark.parametrize("name", ["cp", "tucker"])
def test_weights_become_factors(run: Run, weights: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    result = run(weights, "--budget", "60%", "--format", name, "--output", folder)
    assert result.exit_code == 0, result.output
    assert not (folder / "compressed.onnx").exists()
    before, after = load_checkpoint(weights), load_checkpoint(folder / "compressed.safetensors")
    assert int(after["steps"]) == 3
    assert np.array_equal(after["0.bias"], before["0.bias"])
    factors = {key: value for key, value in after.items() if key.startswith("2.weight.")}
    parts = list(factors.values())
    kind: type[FactorizedTensor] = {"cp": CPTensor, "tucker": TuckerTensor}[name]
    assert set(factors) == {f"2.weight.{key}" for key in kind.of(parts).state_dict()}
    report = json.loads((folder / "report.json").read_text())["layers"]["2"]
    gap = np.linalg.norm(kind.of(parts).to_tensor() - before["2.weight"]) / np.linalg.norm(before["2.weight"])
    assert gap == pytest.approx(report["weight_error"], rel=1e-3)
    sizes = [sum(array.size for array in part.values()) for part in (before, after)]
    assert sizes[1] <= 0.6 * sizes[0]


def test_half_precision_is_widened_and_said(run: Run, tmp_path: Path) -> None:
    raw = (np.random.default_rng(0).standard_normal((16, 12)).astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    header = json.dumps({"fc.weight": {"dtype": "BF16", "shape": [16, 12], "data_offsets": [0, raw.nbytes]}}).encode()
    path = tmp_path / "half.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw.tobytes())
    result = run(path, "--budget", "0.7", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "note: 1 tensors are bfloat16 and are written as float32" in result.stderr


def test_the_shape_may_leave_the_batch_out_and_json_is_json(run: Run, graph: Path) -> None:
    result = run(graph, "--budget", "0.9", "--by", "flops", "--input-shape", "3,12,12", "--json", "--format", "tt")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["input_shape"] == [1, 3, 12, 12]
    assert report["flops"]["after"] <= report["budget"]


def test_files_are_not_replaced_by_accident(run: Run, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "report.json").write_text("mine")
    refused = run(weights, "--budget", "0.5", "--output", folder)
    assert refused.exit_code == 2
    assert "holds report.json; name another folder, or add --force" in refused.output
    assert (folder / "report.json").read_text() == "mine"
    assert run(weights, "--budget", "0.5", "--output", folder, "--force").exit_code == 0
    assert json.loads((folder / "report.json").read_text())["by"] == "parameters"


def test_nothing_is_left_where_the_graph_cannot_be_written(
    run: Run, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("to_onnx: no")

    monkeypatch.setattr("growarray.cli.compress.to_onnx", refuse)
    folder = tmp_path / "out"
    result = run(graph, "--budget", "0.5", "--output", folder)
    assert result.exit_code == 2
    assert list(folder.iterdir()) == []


def test_tied_and_whole_tensors_stay(tmp_path: Path) -> None:
    tensors = {"a.weight": np.ones((4, 3)), "table": np.ones((3, 4), dtype=np.int64), "b": np.ones((1, 4, 1))}
    weights = Weights(tensors)
    assert list(weights.layers) == ["a.weight"]
    assert list(weights.state()) == list(tensors)
    assert weights.number_of_parameters() == 12 + 12 + 4


@pytest.mark.parametrize(
    ("file", "options", "text"),
    [
        ("net.safetensors", ["--budget", "1.5"], "--budget 1.5: expected a fraction"),
        ("net.safetensors", ["--budget", "much"], "--budget much: expected a fraction"),
        ("net.safetensors", ["--budget", "nan"], "--budget nan: expected a fraction"),
        ("net.safetensors", ["--budget", "0.5", "--by", "flops"], "--by flops needs a graph"),
        ("net.safetensors", ["--budget", "0.5", "--measure"], "--measure needs a graph"),
        ("net.safetensors", ["--budget", "0.5", "--calibration", "x.npy"], "weights alone cannot be run"),
        ("net.safetensors", ["--budget", "0.5", "--format", "parafac"], "unknown factorization 'parafac'; expected"),
        ("net.safetensors", ["--budget", "7"], "the budget of 7 parameters cannot be met"),
        ("missing.onnx", ["--budget", "0.5"], "missing.onnx"),
        ("net.onnx", ["--budget", "0.5", "--calibration", "net.onnx"], "expected a .npy or .npz file of numbers"),
        ("net.onnx", ["--budget", "0.5", "--calibration", "wrong.npy"], "does not take an input of shape (1, 3, 10)"),
        ("net.onnx", ["--budget", "0.5", "--calibration", "two.npz"], "expected one array for each input: input"),
        ("net.onnx", ["--budget", "0.5", "--input-shape", "3,x"], "--input-shape 3,x: expected sizes"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_refusals(
    run: Run, graph: Path, weights: Path, calibration: Path, tmp_path: Path, file: str, options: list[str], text: str
) -> None:
    np.save(tmp_path / "wrong.npy", np.ones((4, 3, 10)))
    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
    there = [str(tmp_path / o) if (tmp_path / o).is_file() else o for o in options]
    result = run(tmp_path / file, *there)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())
    assert result.output.startswith("growarray compress: ")
