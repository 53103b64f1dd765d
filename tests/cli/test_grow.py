"""The command end to end: options, data, what is shown, what is written."""

import json
import sys
import warnings

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from growarray import load
from growarray.cli.grow.checkpoint import read_checkpoint
from growarray.cli.grow.data import load_data
from growarray.cli.grow.folder import new_folder
from growarray.cli.grow.options import RunOptions, options_from
from growarray.cli.grow.run import Run
from growarray.datasets import load_digits
from growarray.networks import GrowingMLP, History
from growarray.nn import ReLU
from tests.cli.conftest import RUN_FILES, content

FAST = ("--epochs", 5, "--test-fraction", 0.5)


def test_digits_without_output_write_the_picture_alone_and_say_where(grow, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = grow(*FAST)
    assert result.exit_code == 0, result.output
    assert list(tmp_path.iterdir()) == []
    assert result.stderr == ""
    assert "\x1b" not in result.stdout  # piped: no bar, no colour
    assert list(content(cache)) == ["run.png"]
    *lines, figure, picture, last = result.stdout.splitlines()
    assert figure.startswith("test accuracy ")
    assert float(figure.split()[2].rstrip("%,")) > 80
    assert picture == f"picture in {cache / 'run.png'}"
    assert max(map(len, lines)) <= 80
    assert "growth steps" in result.stdout
    assert "layers.0" in result.stdout
    assert last == "the network was not kept; add --output DIR to keep it"


def test_a_picture_that_cannot_be_written_is_no_fault_of_the_run(grow, cache):
    cache.write_text("a file")
    result = grow("--epochs", 1)
    assert result.exit_code == 0, result.output
    said = f"no picture: {cache} cannot be written to (File exists); --output names another folder"
    assert result.stdout.splitlines()[-2] == said


def test_quiet_shows_the_last_line_alone(grow, cache):
    lines = grow(*FAST, "--quiet").stdout.splitlines()
    assert not cache.exists()
    assert len(lines) == 1
    assert lines[0].startswith("test accuracy")


NETWORK_RULES = [(network, rule) for network in ("mlp", "residual") for rule in ("tiny", "gradmax", "fisher")]


@pytest.mark.parametrize(("network", "rule"), [*NETWORK_RULES, ("cnn", "tiny"), ("resnet", "tiny")])
def test_every_rule_and_network_runs(network, rule):
    run = Run(options_from({"rule": rule, "network": network, "epochs": 4, "neurons": 4, "test_fraction": 0.6}))
    run.train()
    final = run.finish()
    assert final["growths"] + final["refused"] == 1
    assert final["growths"] == 1 or rule == "fisher"
    assert sum(final["widths"]) == 2 * len(final["widths"]) + run.loop.history.of("growth")[0]["added"]
    assert run.loop.settings.choose == ("narrowest" if network in ("cnn", "resnet") else "first_order")


@pytest.mark.parametrize("rule", ["tiny", "fisher"])
def test_a_graph_grows_from_one_edge_with_a_picture(rule, tmp_path):
    options = options_from({"rule": rule, "network": "dag", "epochs": 4, "test_fraction": 0.6, "compare": True})
    new_folder(tmp_path / "run")
    run = Run(options, folder=tmp_path / "run")
    assert run.loop.network.widths == []
    run.train()
    final = run.finish()
    assert final["growths"] == 1
    assert final["places"] == ["1"]
    assert final["widths"] == final["compare"]["widths"] == [8]
    assert final["parameters"] == final["compare"]["parameters"] == 65 * 10 + 65 * 8 + 8 * 10
    with Image.open(tmp_path / "run" / "graph.png") as picture:
        assert picture.size == (2 * 432, 324)
    assert load(tmp_path / "run").network.nodes == ["start@", "end@", "1@"]


def test_a_graph_needs_a_rule_that_tells_where(grow):
    result = grow("--network", "dag", "--rule", "gradmax")
    assert result.exit_code == 2
    assert "--rule: expected tiny or fisher for a dag, found 'gradmax'" in " ".join(result.stderr.split())


def test_output_holds_history_picture_weights_and_checkpoint(grow, tmp_path):
    folder = tmp_path / "deep" / "run"
    result = grow(*FAST, "--output", folder)
    assert result.exit_code == 0, result.output
    assert set(content(folder)) == RUN_FILES
    assert result.stdout.splitlines()[-4:] == [
        f"written into {folder}; see run.png and history.json",
        f"predict  growarray predict {folder} DATA",
        f"Python   growarray.load({str(folder)!r}).predict(x)",
        f"ONNX     {folder / 'network.onnx'}",
    ]
    history = json.loads((folder / "history.json").read_text())
    growths = [step for step in history["steps"] if step["event"] == "growth"]
    assert [step["epoch"] for step in history["steps"] if step["event"] == "train"] == [1, 2, 3, 4, 5]
    assert [step["epoch"] for step in growths] == [2, 4]
    for step in growths:
        assert {"where", "added", "scaling", "predicted_change", "train_change", "parameters", "widths"} <= set(step)
        assert step["train_change"] < 0
    final = history["final"]
    assert final["test_accuracy"] == final["test_score"] > 0.8
    assert final["widths"] == [18]
    assert final["parameters"] == 64 * 18 + 18 + 18 * 10 + 10
    assert final["seconds"] > 0
    assert final["compare"] is None
    assert RunOptions.from_json(final["options"]) == options_from({"epochs": 5, "test_fraction": 0.5})
    with Image.open(folder / "run.png") as picture:
        assert picture.size == (960, 1020)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


@pytest.mark.parametrize("fallback", [False, True], ids=["safetensors", "npz"])
def test_weights_give_the_tested_network(grow, tmp_path, monkeypatch, fallback):
    if fallback:
        monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert grow(*FAST, "--output", tmp_path / "run").exit_code == 0
    assert (tmp_path / "run" / "weights.npz").exists() == fallback
    if fallback:
        with np.load(tmp_path / "run" / "weights.npz") as arrays:
            weights = dict(arrays)
    else:
        weights = load_file(tmp_path / "run" / "weights.safetensors")
    final = History.load(tmp_path / "run" / "history.json").final
    network = GrowingMLP(64, 10, hidden_size=final["widths"], activation=ReLU())
    assert not network.load_state_dict(weights)
    data = load_digits(test_fraction=0.5, seed=0)
    right = np.argmax(network(data.x_test), axis=1) == data.y_test
    assert np.mean(right) == pytest.approx(final["test_accuracy"], abs=1e-12)
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoint.npz")
    assert all(np.array_equal(weights[name], value) for name, value in checkpoint.weights.items())


def test_compare_trains_a_fixed_network_of_the_final_widths(grow, tmp_path):
    result = grow(*FAST, "--compare", "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    final = History.load(tmp_path / "run" / "history.json").final
    figures = {"test_accuracy", "test_score", "test_loss", "parameters", "widths", "seconds"}
    assert set(final["compare"]) == {*figures, "steps"}
    assert [step["epoch"] for step in final["compare"]["steps"]] == [1, 2, 3, 4, 5]
    assert final["compare"]["widths"] == final["widths"]
    assert final["compare"]["parameters"] == final["parameters"]
    assert final["compare"]["test_accuracy"] > 0.5
    heading = next(line for line in result.stdout.splitlines() if "grown" in line)
    assert heading.split() == ["grown", "fixed"]


def test_a_refused_growth_is_shown_with_its_reason(grow):
    result = grow(*FAST, "--max-parameters", 240)
    assert result.exit_code == 0
    assert "refused" in result.stdout
    assert "after epoch 4: growth refused, the budget is used up" in result.stdout
    assert (
        "growing ended after epoch 4: the budget is used up; a larger --max-parameters lets it go on" in result.stdout
    )


def test_a_budget_that_leaves_nothing_to_grow_is_refused(grow):
    result = grow(*FAST, "--max-parameters", 170)
    assert result.exit_code == 2
    assert result.stderr == (
        "growarray grow: --max-parameters: the network starts with 160 parameters and one more neuron costs 75, so "
        "nothing could grow within 170; allow at least 235, or leave the option out\n"
    )
    assert grow(*FAST, "--max-parameters", 170, "--growths", 0).exit_code == 0


def test_a_wide_table_grows_by_default(grow, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "wide.npz", X=rng.standard_normal((60, 1200)), y=np.arange(60) % 2)
    result = grow("--data", tmp_path / "wide.npz", "--epochs", 4, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    history = History.load(tmp_path / "run" / "history.json")
    assert any("predicted_change" in entry for entry in history.of("growth"))  # a growth was tried, not refused unseen


# Files.


def write_csv(path, x, y):
    rows = [",".join([*map(str, row), label]) for row, label in zip(x, y, strict=True)]
    path.write_text("\n".join(["a,b,kind", *rows]) + "\n")


def two_kinds():
    x = np.random.default_rng(1).standard_normal((120, 2)) * [1.0, 1000.0]
    return x, np.where(x[:, 0] * x[:, 1] > 0, "same", "other")


def test_csv_with_a_named_label_column(grow, tmp_path):
    write_csv(tmp_path / "t.csv", *two_kinds())
    options = ("--label-column", "kind", "--epochs", 30, "--lr", 0.02)
    result = grow("--data", tmp_path / "t.csv", *options, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    final = History.load(tmp_path / "run" / "history.json").final
    assert final["classes"] == ["other", "same"]
    assert final["test_accuracy"] > 0.8
    assert len(final["scaling"]["feature_factor"]) == 2  # files are standardised


def test_npy_with_labels_in_a_second_file(grow, tmp_path):
    x, kinds = two_kinds()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", (kinds == "same").astype(np.int64))
    result = grow("--data", tmp_path / "x.npy", "--labels", tmp_path / "y.npy", "--epochs", 3, "--no-standardise")
    assert result.exit_code == 0, result.output
    assert "96 training" not in result.stdout
    assert "2 features, 2 classes" in result.stdout


def test_regression_says_r2(grow, table, tmp_path):
    result = grow("--data", table, "--task", "regression", "--epochs", 40, "--lr", 0.02, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-5].startswith("test R2 0.9")
    final = History.load(tmp_path / "run" / "history.json").final
    assert "test_accuracy" not in final
    assert final["score_name"] == "r2"
    assert final["test_score"] > 0.9
    assert final["scaling"]["target_offset"][0] > 4000


def test_without_test_or_validation_part(grow):
    result = grow("--epochs", 2, "--test-fraction", 0, "--validation-fraction", 0, "--growths", 0)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-3].startswith("test accuracy no test part")


def test_splits_follow_the_seed_and_share_no_sample():
    data = [load_data(RunOptions(seed=seed)) for seed in (0, 0, 1)]
    assert data[0].digest == data[1].digest != data[2].digest
    parts = [data[0].train, data[0].validation, data[0].test]
    assert [len(x) for x, _ in parts] == [1294, 144, 359]
    counts = np.bincount(data[0].validation[1])
    assert counts.max() - counts.min() <= 2  # stratified


# Options that cannot be used: one line, exit code 2, nothing made.

BAD = {
    "task": (("--task", "ranking"), "--task: expected classification or regression, found 'ranking'"),
    "rule": (("--rule", "best"), "--rule: expected one of tiny, gradmax, fisher, found 'best'"),
    "epochs": (("--epochs", 0), "--epochs: expected at least 1, found 0"),
    "lr": (("--lr", "nan"), "--lr: expected at least 0, found nan"),
    "precision": (("--relative-error", 0), "--relative-error: expected more than 0, found 0; leave it out"),
    "memory": (("--width", 10**12), "not enough memory"),
    "fraction": (("--test-fraction", 1), "--test-fraction: expected at least 0 and below 1, found 1.0"),
    "activation": (("--activation", "rulu"), "unknown activation 'rulu'; known: elu"),
    "softmax": (("--activation", "softmax"), "--activation: expected a function of each neuron alone, found 'softmax'"),
    "device": (("--device", "tpu"), "unknown device 'tpu'; expected None, 'cpu', 'cuda'"),
    "digits": (("--task", "regression"), "--task: the digits come with their classes"),
    "labels": (("--labels", "y.npy"), "--labels: the digits come with their classes"),
    "smoothing": (("--task", "regression", "--label-smoothing", 0.1), "--label-smoothing: expected none"),
    "choose": (("--rule", "gradmax", "--choose", "validation"), "--choose: expected first_order with the rule gradmax"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_options_are_one_line(grow, tmp_path, arguments, message):
    result = grow(*arguments, "--output", tmp_path / "run")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"growarray grow: {message}")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.glob("run/*")) == []


def test_a_run_that_diverges_says_so_and_keeps_its_checkpoint(grow, tmp_path):
    result = grow("--lr", 1e30, "--output", tmp_path / "run")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)  # and none of NumPy's warnings
    assert result.stderr.startswith("growarray grow: Growth: the loss of a batch in epoch 1 is nan; look for NaN")
    assert list(content(tmp_path / "run")) == ["checkpoint.npz"]


def test_a_warning_is_one_line(grow, monkeypatch):
    def finish(*_):
        warnings.warn("the matrix is singular", UserWarning, stacklevel=1)

    monkeypatch.setattr("growarray.cli.grow.command._finish", finish)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert grow("--epochs", 1).stderr == "growarray grow: the matrix is singular\n"


def test_missing_file_is_one_line(grow, tmp_path):
    result = grow("--data", tmp_path / "none.csv")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "none.csv: no such file" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "text", "option"),
    [
        ((), "1,2.5\n3,4.5\n", "real targets need --task regression"),
        ((), "1,2,kind\n1,2,3\n4,5,6\n", "say so with --label-column 'kind'"),
        ((), "1e300,0\n2,1\n", "use --dtype float64"),
        (("--labels", "y.npy"), "1,2\n", "--labels belongs to .npy files"),
    ],
    ids=["task", "header", "dtype", "labels"],
)
def test_a_fault_of_the_data_names_options_of_the_command(grow, tmp_path, arguments, text, option):
    path = tmp_path / "task=3.csv"
    path.write_text(text)
    result = grow("--data", path, *arguments)
    assert result.exit_code == 2
    assert option in result.stderr
    assert "task=3.csv" in result.stderr


def test_resume_without_output_is_refused(grow):
    result = grow("--resume")
    assert result.exit_code == 2
    assert "--resume: expected the folder of the run, found none; name it with --output" in result.stderr


def test_help_names_every_option_and_its_default(grow):
    text = " ".join(grow("--help").stdout.replace("│", " ").split())
    for name, value in vars(RunOptions()).items():
        assert f"--{name.replace('_', '-')}" in text
        if value is not None and not isinstance(value, bool):
            assert f"default {value}" in text
