"""``growarray bench paths``: candidates, what is shown and written, what is refused. No test is one of speed."""

import csv
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as MplPath
from matplotlib.text import Text
from PIL import Image
from typer.testing import CliRunner

import growarray
from growarray.cli.application import app
from growarray.cli.bench.candidates import candidates_for, pattern_path, window_path
from growarray.cli.bench.layer import FORMATS, layer_from
from growarray.cli.bench.picture import drawn_paths, pareto_front
from growarray.cli.bench.report import measure_layer
from growarray.cli.bench.tree_picture import drawn_roofline, drawn_tree
from growarray.contraction.machine import CPU
from growarray.networks.picture import saved

TINY = ("--in", 4, "--out", 5, "--kernel", "3x3", "--size", "8x8", "--batch", 2, "--rank", 3, "--repeat", 1)


@pytest.fixture
def paths(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: CliRunner().invoke(app, ["bench", "paths", *map(str, arguments)])


# Candidates.


def order_of(candidate):
    return frozenset((min(pair), max(pair)) for pair in candidate.forward.tree)


@pytest.mark.parametrize("kind", ["cp", "tucker", "tt", "tr", "dense"])
def test_every_candidate_is_another_order_and_gives_the_same_result(kind):
    layer = layer_from({"format": kind, "in": 3, "out": 4, "size": 6, "batch": 2, "rank": 2, "dtype": "float64"})
    candidates = candidates_for(layer, 10)
    assert len({order_of(c) for c in candidates}) == len(candidates)
    assert len(candidates) == (1 if kind == "dense" else 10)
    names = [name for c in candidates for name in c.names]
    assert len(set(names)) == len(names)
    assert {"auto: time", "auto: training", "auto: flops", "auto: memory"} < set(names)
    assert {"factorized", "mobilenet", "reconstructed"} < set(names)
    assert ("patterns" in names) == (kind != "dense")
    arrays = layer.arrays(0)
    results = [c.forward(*arrays) for c in candidates]
    assert all(np.allclose(y, results[0], rtol=1e-10) for y in results)
    assert all(c.training.training and c.training.path == c.forward.path for c in candidates)


def test_drawn_paths_follow_the_seed_and_are_not_absurd():
    layer = layer_from({"in": 16, "out": 16, "size": 16, "rank": 8})
    first, second, other = (candidates_for(layer, 14, seed=seed, training=False) for seed in (1, 1, 2))
    assert [order_of(c) for c in first] == [order_of(c) for c in second]
    assert [order_of(c) for c in first] != [order_of(c) for c in other]
    near = candidates_for(layer, 40, seed=1, training=False, within=2.0)
    best = min(c.forward.seconds for c in near)
    assert all(c.forward.seconds <= 2.0 * best for c in near if c.label.startswith("drawn"))
    assert [c.training for c in near] == [None] * len(near)


def test_opt_einsum_charges_patterns_and_windows_more_than_the_order_costs():
    layer = layer_from({})
    path, charged = pattern_path(layer)
    assert charged > layer.plan(path).flops
    assert window_path(layer, layer.plan("factorized").path)[1] > 2 * layer.plan("factorized").flops
    reconstructed = layer.plan("reconstructed")
    assert window_path(layer, reconstructed.path)[1] == reconstructed.flops  # no step runs before the windows


# The command.


def test_the_table_has_a_row_for_every_path_in_100_columns(paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = paths(*TINY, "--paths", 12)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("4 -> 5 channels, kernel 3x3, cp, rank 3 (")
    for heading in ("forward", "forward + backward"):
        start = next(i for i, line in enumerate(lines) if line.strip() == heading)
        body = lines[start + 3 : lines.index(next(line for line in lines[start:] if "rank correlation" in line))]
        assert len([line for line in body if line[:1].strip()]) >= 12
        assert max(map(len, lines[start : start + 3 + len(body)])) <= 100
    assert "windows: optimal: opt_einsum counts" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_files_hold_the_same_figures(paths, tmp_path):
    folder = tmp_path / "deep" / "out"
    result = paths(*TINY, "--paths", 9, "--output", folder, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads((folder / "paths.json").read_text())
    assert json.loads(result.stdout) == report
    assert len(report["paths"]) == 9
    assert report["layer"] == layer_from({"in": 4, "out": 5, "size": 8, "batch": 2, "rank": 3}).to_dict()
    for row in report["paths"]:
        assert row["difference"] < 1e-5
        for kind in ("forward", "training"):
            figures = row[kind]
            assert figures["measured_seconds"] > 0 < figures["predicted_seconds"]
            assert figures["measured_peak_bytes"] >= 4 * 2 * 5 * 8 * 8  # the output alone
        assert row["training"]["flops"] > 2 * row["forward"]["flops"]
    assert -1 <= report["summary"]["forward"]["spearman"] <= 1
    rows = list(csv.DictReader(io.StringIO((folder / "paths.csv").read_text())))
    assert [row["path"] for row in rows] == [row["label"] for row in (*report["paths"], *report["peers"])]
    assert float(rows[0]["forward_measured_seconds"]) == report["paths"][0]["forward"]["measured_seconds"]
    with Image.open(folder / "paths.png") as picture:
        assert picture.size == (1200, 620)
    assert {path.name for path in folder.iterdir()} == {
        "paths.json", "paths.csv", "tree.json", "paths.png", "tree.png", "roofline.png",
    }  # fmt: skip
    tree = json.loads((folder / "tree.json").read_text())
    auto = next(row for row in report["paths"] if "auto: time" in row["names"])
    assert tree["path"] == auto["path"]
    assert len(tree["steps"]) == len(tree["path"]) == len(tree["inputs"]) - 1


def test_csv_alone_without_training(paths):
    result = paths(*TINY, "--csv", "--no-training", "--paths", 3)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert "forward_flops" in rows[0]
    assert not any(name.startswith("training") for name in rows[0])


def test_the_command_line_goes_before_the_file(paths, tmp_path):
    path = tmp_path / "layer.toml"
    path.write_text('format = "tt"\nin = 3\nout = 3\nkernel = 3\nsize = 9\nrank = 2\nbatch = 4\n')
    result = paths(path, "--batch", 2, "--repeat", 1, "--paths", 3, "--json", "--no-training")
    assert result.exit_code == 0, result.output
    layer = json.loads(result.stdout)["layer"]
    assert (layer["format"], layer["batch"], layer["rank"]) == ("tt", 2, [2, 2])


def test_a_dense_layer_has_one_path_and_no_rank_correlation(paths):
    result = paths("--format", "dense", *TINY)
    assert result.exit_code == 0, result.output
    assert "too few paths for a rank correlation; auto takes the fastest path" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "cpd"), f"--format: expected one of {', '.join(FORMATS)}, found 'cpd'"),
        (("--rank", "0"), "--rank: expected whole numbers of at least 1"),
        (
            ("--size", "2x2", "--padding", "0"),
            "a kernel of 3 with dilation 1 spans 3 positions, the padded input has 2",
        ),
        (("--paths", "0"), "--paths: expected at least 1, found 0"),
        (("--repeat", "0"), "--repeat: expected at least 1, found 0"),
        (("--seconds", "-1"), "--seconds: expected at least 0, found -1"),
        (("--seed", "-1"), "--seed: expected at least 0, found -1"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--json", "--csv"), "--json, --csv: pass only one"),
        (("--pictures", "gif"), "--pictures: expected png or svg, found 'gif'"),
        (("missing.toml",), "missing.toml: cannot be read as a layer or an equation (No such file or directory)"),
        (("--output", "/dev/null/x"), "--output /dev/null/x: expected a folder, or a name that one can be made under"),
    ],
)
def test_what_is_refused_is_one_line_and_exit_code_2(paths, arguments, message):
    result = paths(*TINY, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("growarray bench paths: ")
    assert result.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_written_to_is_said_before_anything_is_measured(paths, tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("growarray.cli.bench.command.measure_layer", lambda *_, **__: pytest.fail("measured"))
    result = paths(*TINY, "--output", tmp_path)
    assert result.exit_code == 2
    assert f"--output {tmp_path}: no file can be written there (Permission denied)" in result.stderr


def test_the_sub_commands_belong_to_the_command():
    environment = {**os.environ, "PYTHONPATH": str(Path(growarray.__file__).parents[1]), "COLUMNS": "100"}
    run = [sys.executable, "-m", "growarray", "bench", "--help"]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("paths", "calibrate"))
    assert "suite" not in done.stdout


def test_the_suite_says_where_it_is(paths):
    result = CliRunner().invoke(app, ["bench", "suite", "--cases", "3,7"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "growarray bench suite: the suite is not part of the installed package; in a checkout of growarray run: "
        "python -m bench suite\n"
    )


# The picture.


def test_the_pareto_front_is_what_no_other_point_beats_in_both():
    assert pareto_front([(3.0, 1.0), (1.0, 3.0), (2.0, 3.0), (2.0, 2.0), (4.0, 0.5)]) == [
        (1, 3),
        (2, 2),
        (3, 1),
        (4, 0.5),
    ]


@pytest.mark.parametrize(("count", "memory"), [(1, True), (12, False)])  # one point: nothing to compare
def test_the_picture_is_drawn_for_any_number_of_paths(count, memory):
    layer = layer_from({"in": 3, "out": 3, "size": 5, "batch": 1, "rank": 2})
    candidates = candidates_for(layer, count)[:count]
    report = measure_layer(layer, candidates, repeat=1, memory=memory)
    assert saved(drawn_paths(report), "png").startswith(b"\x89PNG")
    panel = drawn_roofline(report, CPU).axes[0]
    places = [tuple(p.get_offsets()[0]) for p in panel.collections if len(p.get_offsets())]
    figures = [row["forward"] for row in report["paths"]]
    assert sorted(places) == sorted((f["flops"] / f["bytes"], f["flops"] / f["measured_seconds"]) for f in figures)
    (roof,) = panel.get_lines()
    assert max(roof.get_ydata()) == CPU.rate
    assert roof.get_ydata()[0] == pytest.approx(roof.get_xdata()[0] / CPU.byte)
    panel.figure.canvas.draw()
    assert panel.get_legend().get_window_extent().y1 < panel.get_window_extent().y0  # no point lies in it
    assert not any(
        "mathdefault" in tick.get_text() for tick in panel.get_ymajorticklabels() + panel.get_yminorticklabels()
    )


def test_a_tree_marks_where_convolution_modes_meet_and_sizes():
    layer = layer_from({"in": 3, "out": 3, "size": 5, "batch": 1, "rank": 2})
    made = layer.plan("factorized")
    figure = drawn_tree(made)
    texts = [note.get_text() for note in figure.axes[0].texts]
    assert sum("|" in text for text in texts) == 2  # y and x meet one after the other
    assert [text for text in texts if text.startswith("0: ")] == ["0: c n y x"]
    assert len(texts) == 6 + 2 * 5  # operands; results with their routine
    names = [note for note in figure.axes[0].texts if "FLOP" not in note.get_text()]
    assert len(names) == 6 + 5
    assert all(note.get_bbox_patch() for note in names)  # lines end at a name and do not run through it
    assert figure.axes[1].get_ylabel() == "elements"
    assert saved(figure, "svg").lstrip().startswith(b"<?xml")


def crowded(peers: bool) -> dict:
    """A report whose points lie close together, with the times of other libraries between them."""
    layer = layer_from({"in": 3, "out": 3, "size": 5, "batch": 1, "rank": 2})
    report = measure_layer(layer, candidates_for(layer, 12), repeat=1, memory=False)
    for place, row in enumerate(report["paths"]):
        row["forward"] |= {"measured_seconds": 1e-3 * (1 + place), "measured_peak_bytes": 10**6 // (1 + place % 4)}
    for place, name in enumerate(("torch conv, dense kernel", "TensorLy-Torch, factorized") if peers else ()):
        report["peers"].append({"label": name, "forward": {"measured_seconds": 2.5e-3 * (1 + place)}})
    return report


@pytest.mark.parametrize("peers", [False, True], ids=["alone", "peers"])
def test_no_line_goes_through_a_label_and_everything_has_a_margin(peers):
    figure = drawn_paths(crowded(peers))
    _, panel = figure.axes
    figure.draw_without_rendering()
    notes = [note for note in panel.texts if note.get_text()]
    assert len(notes) >= 5
    boxes = [Text.get_window_extent(note) for note in notes]  # without the line to the point
    for line in panel.get_lines():
        places = line.get_transform().transform_path(line.get_path())
        stairs = line.get_drawstyle() == "steps-post"
        for start, end in itertools.pairwise(places.vertices):
            corner = [end[0], start[1]] if stairs else end
            for piece in ([start, corner], [corner, end]):
                assert not any(MplPath(piece).intersects_bbox(box, filled=False) for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box.x0 > 5 and box.y0 > 5 and box.x1 < figure.bbox.x1 - 5 and box.y1 < figure.bbox.y1 - 5  # noqa: PT018
