"""A run that was killed goes on to the same weights, bit for bit; what cannot be gone on from is refused untouched."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import growarray
from growarray.cli.grow.checkpoint import read_checkpoint, write_checkpoint
from growarray.cli.grow.folder import CHECKPOINT, HISTORY, new_folder
from growarray.cli.grow.options import RunOptions, options_from
from growarray.cli.grow.resume import open_run
from growarray.cli.grow.run import Run
from growarray.errors import ResumeError
from growarray.networks import History
from tests.cli.conftest import RUN_FILES, content

GIVEN = {"epochs": 4, "every": 1, "first": 1, "test_fraction": 0.6, "neurons": 4}
ARGUMENTS = [text for name, value in GIVEN.items() for text in (f"--{name.replace('_', '-')}", str(value))]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(growarray.__file__).parents[1])}

# Kills itself at the nth file: while it is written, or as soon as it has its name.
KILLED = """
import os, signal, sys
name, count = sys.argv[1], int(sys.argv[2])
original = getattr(os, name)
def counted(*arguments):
    global count
    count -= 1
    if count == 0 and name == "replace":
        original(*arguments)
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
setattr(os, name, counted)
sys.argv = ["growarray", *sys.argv[3:]]
from growarray.cli import main
main()
"""


@pytest.fixture(scope="module")
def whole() -> Run:
    """The run that nothing interrupts."""
    run = Run(options_from(GIVEN))
    run.train()
    run.finish()
    return run


def go_on(folder: Path, until: int | None = None) -> Run:
    run = Run.resumed(*open_run(folder, {}), folder)
    run.train(until=until)
    return run


def assert_same(run: Run, whole: Run) -> None:
    ours, theirs = run.loop.network.state_dict(), whole.loop.network.state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name, strict=True)
    assert run.loop.history.steps == whole.loop.history.steps
    slots = [
        {k: np.asarray(v).tolist() for k, v in p.slots.items()}
        for r in (run, whole)
        for p in r.loop.network.parameters()
    ]
    assert slots[: len(slots) // 2] == slots[len(slots) // 2 :]


CASES = {
    "tiny": {},
    "gradmax": {"rule": "gradmax"},
    "fisher": {"rule": "fisher"},
    "residual": {"network": "residual", "hidden_layers": 2},
    "dag": {"network": "dag"},
    "residual_validation": {"network": "residual", "choose": "validation"},
    "cnn": {"network": "cnn"},
    "resnet": {"network": "resnet"},
    "mixer": {"network": "mixer"},
    "float64": {"dtype": "float64", "hidden_layers": 2, "activation": "tanh", "width": 1},
    "budget": {"max_parameters": 400},
    "relative_error": {"relative_error": 0.5},
}


@pytest.mark.parametrize("given", CASES.values(), ids=CASES)
def test_a_run_in_pieces_is_the_whole_run(tmp_path, given):
    options = options_from({**GIVEN, **given})
    whole = Run(options)
    whole.train()
    new_folder(tmp_path / "run")
    Run(options, folder=tmp_path / "run").train(until=1)
    for until in (1, 2, 3, 4):
        run = go_on(tmp_path / "run", until)
    assert_same(run, whole)


def test_a_regression_in_pieces(tmp_path, table):
    options = options_from({"data": table, "task": "regression", "epochs": 6, "width": 1, "neurons": 2})
    whole = Run(options)
    whole.train()
    new_folder(tmp_path / "run")
    Run(options, folder=tmp_path / "run").train(until=3)
    assert_same(go_on(tmp_path / "run"), whole)


# Files are written in this order: checkpoints of epochs 0 to 4, weights, ONNX, picture, history, last checkpoint.
@pytest.mark.parametrize(
    ("call", "count"),
    [("replace", 1), ("fsync", 3), ("replace", 5), ("fsync", 6), ("fsync", 7), ("fsync", 9), ("fsync", 10)],
    ids=["started", "writing_epoch_2", "trained", "weights", "writing_onnx", "writing_history", "writing_the_last"],
)
def test_a_killed_run_goes_on_bit_for_bit(grow, tmp_path, whole, call, count):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, call, str(count), "grow", *ARGUMENTS, "--output", str(folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(name.startswith(".") for name in content(folder)) == (call == "fsync")
    result = grow("--output", folder, "--resume", *ARGUMENTS)
    assert result.exit_code == 0, result.output
    assert set(content(folder)) == RUN_FILES
    checkpoint = read_checkpoint(folder / CHECKPOINT)
    for name, value in whole.loop.network.state_dict().items():
        np.testing.assert_array_equal(checkpoint.weights[name], value, strict=True)
    history = History.load(folder / HISTORY)
    assert history.steps == whole.loop.history.steps
    assert checkpoint.final == history.final
    differing = {key for key, value in whole.loop.history.final.items() if history.final[key] != value}
    assert differing <= {"seconds"}


# A process that was started in the background ignores SIGINT unless told otherwise.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from growarray.cli import main
main()
"""


def epochs_done(folder: Path) -> int:
    path = folder / CHECKPOINT
    return int(read_checkpoint(path).state["epoch"]) if path.exists() else 0


def started(folder: Path, epochs: int) -> subprocess.Popen:
    """A longer run in another process, after two epochs or a few more."""
    options = ["--epochs", str(epochs), "--test-fraction", "0.6", "--output", str(folder)]
    command = [sys.executable, "-c", INTERRUPTIBLE, "grow", *options]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while epochs_done(folder) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def test_killed_from_outside(grow, tmp_path):
    folder, epochs = tmp_path / "run", 20
    with started(folder, epochs) as process:
        process.kill()
    options, checkpoint = open_run(folder, {})
    whole = Run(options)
    whole.train()
    assert checkpoint.final is None
    assert grow("--output", folder, "--resume", "--quiet").exit_code == 0
    weights = read_checkpoint(folder / CHECKPOINT).weights
    for name, value in whole.loop.network.state_dict().items():
        np.testing.assert_array_equal(weights[name], value, strict=True)


def test_ctrl_c_says_how_to_go_on(grow, tmp_path):
    folder = tmp_path / "run"
    with started(folder, 1000) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors == (
        f"growarray grow: interrupted; the run can be resumed: growarray grow --output {folder} --resume\n"
    )
    assert read_checkpoint(folder / CHECKPOINT).final is None


# What is refused.


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run after two of four epochs."""
    new_folder(tmp_path / "run")
    Run(options_from(GIVEN), folder=tmp_path / "run").train(until=2)
    return tmp_path / "run"


def test_another_option_is_refused_and_the_same_is_not(grow, folder):
    before = content(folder)
    result = grow("--output", folder, "--resume", "--lr", 0.5)
    assert result.exit_code == 2
    assert (
        f"--lr: the run in {folder} has {RunOptions().lr}, the command line says 0.5; leave the option out"
        in result.stderr
    )
    assert content(folder) == before
    assert grow("--output", folder, "--resume", "--lr", RunOptions().lr, "--epochs", 4).exit_code == 0


def test_a_finished_run_goes_on_to_more_epochs(grow, folder):
    assert grow("--output", folder, "--resume").exit_code == 0
    first = History.load(folder / HISTORY)
    result = grow("--output", folder, "--resume", "--epochs", 6)
    assert result.exit_code == 0, result.output
    assert "resumed  after epoch 4 of 6" in result.stdout
    history = History.load(folder / HISTORY)
    assert [step["epoch"] for step in history.of("train")] == [1, 2, 3, 4, 5, 6]
    assert history.steps[: len(first.steps)] == first.steps
    assert history.final["epochs"] == history.final["options"]["epochs"] == 6
    rates = [step["lr"] for step in history.of("train")]
    assert rates[4] > rates[3]  # along the cosine of six epochs
    assert rates[5] == pytest.approx(0.0, abs=1e-6)
    assert [step["epoch"] for step in history.of("growth") if step["epoch"] > 4] == [5]  # it grows again, too
    assert [step["epoch"] for step in history.of("stop") if step["what"] == "training"] == [4, 6]
    again = grow("--output", folder, "--resume")
    assert "is finished" in again.stdout


def test_epochs_are_not_taken_away(grow, folder):
    before = content(folder)
    result = grow("--output", folder, "--resume", "--epochs", 3)
    assert result.exit_code == 2
    assert f"--epochs: the run in {folder} has 4, the command line says 3; more may be added" in result.stderr
    assert content(folder) == before


def test_a_finished_run_shows_its_result(grow, folder):
    first = grow("--output", folder, "--resume")
    assert "resumed  after epoch 2 of 4" in first.stdout
    before = content(folder)
    again = grow("--output", folder, "--resume")
    assert again.exit_code == 0
    assert "is finished" in again.stdout
    assert again.stdout.splitlines()[-1] in first.stdout
    assert content(folder) == before


def test_a_folder_with_a_run_is_not_overwritten(grow, folder):
    before = content(folder)
    result = grow("--output", folder)
    assert result.exit_code == 2
    assert "expected no run in the folder, found checkpoint.npz; add --resume" in result.stderr
    assert content(folder) == before


@pytest.mark.parametrize("make", [False, True], ids=["no_folder", "empty_folder"])
def test_a_folder_without_a_run_cannot_be_resumed(grow, tmp_path, make):
    if make:
        (tmp_path / "run").mkdir()
    result = grow("--output", tmp_path / "run", "--resume")
    assert result.exit_code == 2
    assert "holds no checkpoint.npz, so there is no run to go on with" in result.stderr
    assert (tmp_path / "run").exists() == make


def test_other_data_under_the_same_name_are_refused(tmp_path, table):
    options = options_from({"data": table, "task": "regression", "epochs": 3})
    new_folder(tmp_path / "run")
    Run(options, folder=tmp_path / "run").train(until=1)
    with np.load(table) as arrays:
        np.savez(table, x=arrays["x"] + 1.0, y=arrays["y"] * 2.0)
    with pytest.raises(ResumeError, match=r"table\.npz holds other data now than when the run in .* began; bring"):
        go_on(tmp_path / "run")


def rewritten(path, **changes):
    write_checkpoint(path, replace(read_checkpoint(path), **changes))


def edit_arrays(path, **changes):
    with np.load(path) as arrays:
        kept = dict(arrays)
    np.savez(path, **{key: value for key, value in {**kept, **changes}.items() if value is not None})


def weight_like(path, value):
    with np.load(path) as arrays:
        return np.full_like(arrays[f"weights/{W}"], value)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def save_one(path):
    with path.open("wb") as stream:
        np.save(stream, np.ones(3))


def restated(path, number=None, **changes):
    """Changes the state, or one entry of its history; what is None is taken out."""
    state = read_checkpoint(path).state
    target = state if number is None else state["history"][number]
    target |= changes
    for key in [key for key, value in changes.items() if value is None]:
        del target[key]
    rewritten(path, state=state)


W = "layers.0.layer.weight"
FINAL = {
    "score_name": "accuracy",
    "test_score": 1.0,
    "test_loss": 0.1,
    "parameters": 1,
    "widths": [2],
    "seconds": 1.0,
    "compare": None,
}
DAMAGE = {
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-200]),
    "halved": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "empty": lambda p: p.write_bytes(b""),
    "garbage": lambda p: p.write_bytes(os.urandom(2000)),
    "text": lambda p: p.write_text("hello"),
    "flipped": flip,
    "one_array": save_one,
    "other_npz": lambda p: np.savez(p, a=np.ones(3)),
    "pickle": lambda p: np.savez(p, run=np.array([{}], dtype=object)),
    "not_json": lambda p: edit_arrays(p, run=np.frombuffer(b"{", dtype=np.uint8)),
    "format": lambda p: edit_arrays(p, run=np.frombuffer(b'{"format": 2}', dtype=np.uint8)),
    "keys": lambda p: edit_arrays(p, run=np.frombuffer(b'{"format": 1, "more": 2}', dtype=np.uint8)),
    "no_weight": lambda p: edit_arrays(p, **{f"weights/{W}": None}),
    "more_weights": lambda p: edit_arrays(p, **{"weights/other": np.ones(2)}),
    "weight_shape": lambda p: edit_arrays(p, **{f"weights/{W}": np.ones((2, 2))}),
    "slot_shape": lambda p: edit_arrays(p, **{f"slots/{W}/exp_avg": np.ones((2, 2))}),
    "slot_of_nothing": lambda p: edit_arrays(p, **{"slots/other/exp_avg": np.ones((2, 2))}),
    "entry": lambda p: edit_arrays(p, stray=np.ones(2)),
    "widths": lambda p: rewritten(p, widths=[5, 5]),
    "width": lambda p: rewritten(p, widths=[5]),
    "width_text": lambda p: rewritten(p, widths=["wide"]),
    "network": lambda p: rewritten(p, network="residual"),
    "options": lambda p: rewritten(p, options={"epochs": 3}),
    "option_type": lambda p: rewritten(p, options={**asdict(RunOptions()), "epochs": "many"}),
    "option_value": lambda p: rewritten(p, options={**asdict(RunOptions()), "epochs": -1}),
    "state": lambda p: rewritten(p, state={}),
    "epoch": lambda p: rewritten(p, state={**read_checkpoint(p).state, "epoch": 3}),
    "history": lambda p: rewritten(p, state={**read_checkpoint(p).state, "history": [1]}),
    "weight_nan": lambda p: edit_arrays(p, **{f"weights/{W}": weight_like(p, np.nan)}),
    "weight_dtype": lambda p: edit_arrays(p, **{f"weights/{W}": weight_like(p, 1.0).astype("f8")}),
    "slot_infinite": lambda p: edit_arrays(p, **{f"slots/{W}/exp_avg": weight_like(p, np.inf)}),
    "slot_complex": lambda p: edit_arrays(p, **{f"slots/{W}/exp_avg": weight_like(p, 1.0).astype("c8")}),
    "slot_missing": lambda p: edit_arrays(p, **{f"slots/{W}/exp_avg": None}),
    "steps": lambda p: restated(p, steps=-5),
    "growths": lambda p: restated(p, growths=7),
    "finished": lambda p: restated(p, finished_growing="no"),
    "history_figure": lambda p: restated(p, 0, train_loss=None),
    "history_text": lambda p: restated(p, 0, validation_loss="low"),
    "history_widths": lambda p: restated(p, 0, widths=[]),
    "width_huge": lambda p: rewritten(p, widths=[10**12]),
    "seconds": lambda p: rewritten(p, seconds=float("nan")),
    "final": lambda p: rewritten(p, final={}),
    "final_text": lambda p: rewritten(p, final={**FINAL, "test_score": "good"}),
    "compare": lambda p: rewritten(p, final={**FINAL, "compare": {}}),
    "generator": lambda p: rewritten(p, state={**read_checkpoint(p).state, "rng": {"state": 1}}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_left_alone(grow, folder, damage):
    damage(folder / CHECKPOINT)
    before = content(folder)
    result = grow("--output", folder, "--resume")
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert "checkpoint.npz: expected the checkpoint of a run, found it damaged (" in result.stderr
    assert "start the run again with another --output" in result.stderr
    assert content(folder) == before


def test_a_file_in_place_of_the_folder(grow, tmp_path):
    (tmp_path / "run").write_text("mine")
    for output in (tmp_path / "run", tmp_path / "run" / "below"):
        result = grow("--output", output)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "expected a folder, or a name that one can be made under" in result.stderr
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_that_cannot_be_written_to(grow, folder, tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    before = content(folder)
    for arguments in (("--output", tmp_path / "new"), ("--output", folder, "--resume")):
        result = grow(*arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "no file can be written there (Permission denied); name a folder that is yours" in result.stderr
    assert content(folder) == before
