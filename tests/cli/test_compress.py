"""``growarray compress``: files in, files out, and one line for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from growarray import load_checkpoint
from growarray.checkpoint import save_safetensors
from growarray.cli.application import app
from growarray.cli.compress import command
from growarray.cli.compress import picture as compress_picture
from growarray.cli.compress.weights import Weights
from growarray.cli.grow.folder import locked
from growarray.compression import compress as compress_network
from growarray.factorized import CPTensor, FactorizedTensor, TuckerTensor
from growarray.onnx.export import to_onnx
from growarray.onnx.read import from_onnx
from tests.cli.screens import network

Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    return lambda *arguments: CliRunner().invoke(app, ["compress", *map(str, arguments)])


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


def test_what_a_killed_run_left_goes_unless_another_run_is_there(run: Run, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    left = folder / f"{command._BESIDE}x"
    left.mkdir(parents=True)
    (left / "report.json").touch()
    with locked(folder):
        refused = run(weights, "--budget", "0.5", "--output", folder)
    assert (refused.exit_code, left.is_dir()) == (2, True)
    assert f"--output {folder} is in use by another run" in refused.output
    assert run(weights, "--budget", "0.5", "--output", folder).exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["compressed.safetensors", "report.json", "tradeoff.png"]


def test_nothing_is_left_where_the_graph_cannot_be_written(
    run: Run, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError("to_onnx: no")

    monkeypatch.setattr("growarray.cli.compress.command.to_onnx", refuse)
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
        (
            "net.safetensors",
            ["--budget", "0.5", "--format", "parafac"],
            "--format: expected one of cp, tr, tt, tucker, found 'parafac'",
        ),
        ("net.safetensors", ["--budget", "7"], "the budget of 7 parameters cannot be met"),
        ("missing.onnx", ["--budget", "0.5"], "missing.onnx"),
        ("net.onnx", ["--budget", "0.5", "--calibration", "net.onnx"], "net.onnx: cannot be read as .onnx; the file"),
        (
            "net.onnx",
            ["--budget", "0.5", "--calibration", "damaged.npz"],
            "damaged.npz: cannot be read as .npz;",
        ),
        ("net.onnx", ["--budget", "0.5", "--calibration", "none.npy"], "--calibration none.npy: no such file"),
        (
            "net.onnx",
            ["--budget", "0.5", "--calibration", "wrong.npy"],
            "wrong.npy: the network does not take an input of shape (1,",
        ),
        (
            "net.onnx",
            ["--budget", "0.5", "--calibration", "flat.npy"],
            "flat.npy: calibration has shape (3,), expected",
        ),
        ("net.onnx", ["--budget", "0.5", "--calibration", "nan.npy"], "--calibration holds a NaN or an infinity; remo"),
        (
            "net.onnx",
            ["--budget", "0.5", "--input-shape", "3,10"],
            "compress: --input-shape 3,10: the network does not take an input of shape",
        ),
        ("net.onnx", ["--budget", "0.5", "--calibration", "two.npz"], "expected one array for each input: input"),
        ("net.onnx", ["--budget", "0.5", "--input-shape", "3,x"], "--input-shape 3,x: expected sizes"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_refusals(
    run: Run, graph: Path, weights: Path, calibration: Path, tmp_path: Path, file: str, options: list[str], text: str
) -> None:
    np.save(tmp_path / "wrong.npy", np.ones((4, 3, 10)))
    np.save(tmp_path / "flat.npy", np.ones(3))
    np.save(tmp_path / "nan.npy", np.full((4, 3, 10, 10), np.nan))
    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:200])
    there = [str(tmp_path / o) if (tmp_path / o).is_file() else o for o in options]
    result = run(tmp_path / file, *there)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())
    assert result.output.startswith("growarray compress: ")


# Accuracy, and what is drawn and said.


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Samples whose class is the largest output of the dense network, but for the first ten."""
    x = np.random.default_rng(2).standard_normal((40, 3, 10, 10)).astype(np.float32)
    y = np.argmax(network()(x), axis=1)
    y[:10] = np.where(y[:10] == 0, 1, 0)
    path = tmp_path / "labelled.npz"
    np.savez(path, x=x, y=y)
    return path


def test_accuracy_is_said_where_it_is_measured(run: Run, graph: Path, labelled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    result = run(graph, "--budget", "0.5", "--data", labelled, "--output", folder)
    assert result.exit_code == 0, result.output
    with np.load(labelled) as arrays:
        x, y = arrays["x"], arrays["y"]
    after = float(np.mean(np.argmax(from_onnx(folder / "compressed.onnx")(x), axis=1) == y))
    assert json.loads((folder / "report.json").read_text())["accuracy"] == {"before": 0.75, "after": after}
    assert f"accuracy 75.00% dense, {after:.2%} compressed, on {labelled}" in result.output
    without = run(graph, "--budget", "0.5")
    assert "accuracy not measured; --data FILE, samples and their classes, does" in without.output
    assert "accuracy" not in json.loads(run(graph, "--budget", "0.5", "--json").stdout)


def test_the_two_errors_are_explained(run: Run, graph: Path, calibration: Path) -> None:
    text = run(graph, "--budget", "0.5").output
    assert text.splitlines()[0].endswith("weights off")
    assert "weights off: norm of what a layer's weights differ by, over their own norm" in text
    text = run(graph, "--budget", "0.5", "--calibration", calibration).output
    assert text.splitlines()[0].endswith("output off")
    assert "output off: norm of what a layer's output differs by, over its own norm" in text
    assert "network: output off by 0." in text


@pytest.mark.parametrize(
    ("arrays", "options", "text"),
    [
        ({"x": np.ones((4, 5)), "y": np.array([0, 1, 0, 1])}, [], "a sample has 5 values, the graph's input of shape"),
        ({"x": np.ones((4, 3, 10, 10)), "y": np.array(["a", "b"] * 2)}, [], "expected the number of the right output"),
        ({"x": np.ones((4, 3, 10, 10)), "y": np.array([0, 12] * 2)}, [], "one score for each of 13 classes or more"),
        ({"z": np.ones(3)}, [], "expected arrays 'x' and 'y'"),
    ],
    ids=["shape", "names", "classes", "arrays"],
)
def test_data_that_cannot_be_measured_on_are_refused_before_anything_is_compressed(
    run: Run, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrays: Any, options: list[str], text: str
) -> None:
    monkeypatch.setattr("growarray.cli.compress.command.compress_network", lambda *_, **__: pytest.fail("compressed"))
    np.savez(tmp_path / "data.npz", **arrays)
    result = run(graph, "--budget", "0.5", "--data", tmp_path / "data.npz", *options)
    assert result.exit_code == 2
    assert text in result.stderr


def test_weights_alone_have_no_accuracy(run: Run, weights: Path, labelled: Path) -> None:
    result = run(weights, "--budget", "0.5", "--data", labelled)
    assert (result.exit_code, result.stderr) == (
        2, "growarray compress: --data: weights alone cannot be run; give an ONNX file, or leave it out\n",
    )  # fmt: skip


@pytest.mark.parametrize(("by", "unit"), [("parameters", "parameters"), ("flops", "FLOPs"), ("time", "predicted time")])
def test_the_picture_shows_what_the_budget_counts(by: str, unit: str) -> None:
    found = compress_network(network(), 1.0, by=by, input_shape=(1, 3, 10, 10))
    figure = compress_picture.drawn(found)
    left, right = figure.axes
    assert left.get_xlabel() == f"{unit}, share of the dense network"
    assert right.get_xlabel() == f"{unit} before (frame) and after"
    costs = [getattr(r, {"time": "predicted_time"}.get(by, by)).before for r in found.reports.values()]
    frames = [bar.get_width() for bar in right.patches[::2]]
    assert frames == pytest.approx(costs)
    assert all(left.get_xlim()[0] < share < left.get_xlim()[1] for share in (0.0, 1.0))
    assert right.get_xlim()[1] >= 1.15 * max(costs)
    figure.draw_without_rendering()
    for panel in (left, right):  # the legend is outside: no line goes through it
        assert panel.get_legend().get_window_extent().y1 < panel.get_window_extent().y0
    for panel in (left, right):
        box = panel.get_tightbbox()
        assert box is not None
        assert box.x0 > 5
        assert box.y0 > 5
        assert box.x1 < figure.bbox.x1 - 5
        assert box.y1 < figure.bbox.y1 - 5
