"""Ctrl-C, typed in a terminal: a line, exit code 130, no traceback, no file half written; at any moment."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from growarray import nn
from growarray.cli.grow.folder import new_folder
from growarray.cli.grow.options import options_from
from growarray.cli.grow.resume import open_run
from growarray.cli.grow.run import Run
from growarray.onnx.export import to_onnx
from tests.cli.terminal import Ended, Terminal, environment

# Interrupts itself when a module is about to be imported, as a Ctrl-C in the first second does.
IMPORTING = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
entry, module = sys.argv[1:3]
def heard(event, arguments):
    if event == "import" and arguments[0] == module:
        os.kill(os.getpid(), signal.SIGINT)
from growarray.cli import main
sys.addaudithook(heard)
sys.argv = ["growarray", "grow", "--epochs", "1"]
if entry == "script":
    sys.exit(main())
runpy.run_module("growarray", run_name="__main__", alter_sys=True)
"""

# Interrupts itself when a function of a module is called.
CALLING = """
import importlib, os, signal, sys
sys.modules["torch"] = None  # takes long to import where it is installed
module, name = sys.argv[1].rsplit(".", 1)
module = importlib.import_module(module)
original = getattr(module, name)
def called(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)
    return original(*arguments, **options)
setattr(module, name, called)
sys.argv = ["growarray", *sys.argv[2:]]
from growarray.cli import main
main()
"""


def assert_quiet(ended: Ended, message: str) -> None:
    """One line, wherever the terminal breaks it, and the right code."""
    assert ended.code == 130, ended.written
    for word in ("Traceback", "Exception ignored", "KeyboardInterrupt", "Aborted"):
        assert word not in ended.written
    assert "".join(ended.screen).replace(" ", "").endswith(message.replace(" ", "")), ended.screen


def interrupted_at_import(entry: str, module: str) -> tuple[int, str, str]:
    command = [sys.executable, "-c", IMPORTING, entry, module]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(  # each library, and the first and the last of the command's own; both entries
    ("entry", "module"),
    [
        ("script", "typer.core"),
        ("script", "numpy"),
        ("script", "growarray.cli.grow.folder"),
        ("script", "growarray.cli.grow.run"),
        ("module", "rich.console"),
    ],
)
def test_while_modules_are_imported(entry: str, module: str) -> None:
    assert interrupted_at_import(entry, module) == (130, "", "growarray: interrupted\n")


def test_while_the_library_that_draws_is_imported() -> None:
    code, _, said = interrupted_at_import("script", "matplotlib.figure")
    assert (code, said) == (130, f"{KEEP}\n")


def folder_of(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    net = nn.Sequential(*(nn.Conv2d(32, 32, 3, padding=1, rng=rng) for _ in range(8)))
    to_onnx(net, tmp_path / "net.onnx", (1, 32, 8, 8))
    np.savez(tmp_path / "net.npz", **net.state_dict())
    return tmp_path


NOTHING = "interrupted; nothing was written"
KEEP = f"growarray grow: {NOTHING}; with --output a run can be resumed"
RESUME = "growarray grow: interrupted; the run can be resumed: growarray grow --output out --resume"
RUNNING = {
    "grow_begins": (80, "grow --epochs 900", "epoch 0/900", KEEP),
    "grow_grows": (40, "grow --epochs 900 --output out", "epoch   4", RESUME),
    "paths": (40, "bench paths --repeat 900 --output out", "round 0/900", f"growarray bench paths: {NOTHING}"),
    "calibrate": (80, "bench calibrate --seconds 90", "measuring 1/", f"growarray bench calibrate: {NOTHING}"),
    "compress": (60, "compress net.onnx --budget 0.5 --output out", "compressing", "growarray compress: interrupted"),
}


@pytest.mark.parametrize(("columns", "line", "moment", "message"), RUNNING.values(), ids=RUNNING)
def test_while_a_command_works(tmp_path: Path, columns: int, line: str, moment: str, message: str) -> None:
    folder = folder_of(tmp_path)
    terminal = Terminal("-m", "growarray", *line.split(), columns=columns, cwd=folder, GROWARRAY_CACHE="cache")
    terminal.wait_for(moment)
    terminal.interrupt()
    ended = terminal.end()
    assert_quiet(ended, message)
    assert ended.written.count("\x1b[?25h") == ended.written.count("\x1b[?25l") == 1  # the cursor is back
    written = sorted(path.name for path in (*folder.glob("out/*"), *folder.glob("out/.*"), *folder.glob("cache/*")))
    assert written == (["checkpoint.npz"] if message == RESUME else [])


WRITING: dict[str, tuple[str, str, str, list[str]]] = {
    "grow": (
        "growarray.cli.grow.run.draw", "grow --epochs 1 --output out",
        RESUME,
        ["checkpoint.npz", "network.onnx", "weights.safetensors"],
    ),
    "grow_picture": (
        "growarray.cli.grow.command.draw", "grow --epochs 1",
        KEEP, [],
    ),
    "paths": (
        "growarray.cli.bench.picture.drawn_paths", "bench paths --repeat 1 --size 8 --in 4 --out 4 --output out",
        f"growarray bench paths: {NOTHING}", [],
    ),
    "compress": (
        "growarray.cli.compress.picture.draw", "compress net.onnx --budget 0.95 --format tt --output out",
        "growarray compress: interrupted", [],
    ),
    "predict": ("growarray.cli.predict.load_folder", "predict out digits", "growarray predict: interrupted", []),
    "convert": ("growarray.cli.convert.to_onnx", "convert net.onnx out/net.onnx", "growarray convert: interrupted", []),
    "inspect_reads": ("growarray.cli.inspect.inspect_file", "inspect net.onnx", "growarray inspect: interrupted", []),
    "inspect_checks": ("zlib.crc32", "inspect net.npz --check", "growarray inspect: interrupted", []),
    "inspect_shows": ("growarray.cli.inspect.show_table", "inspect net.onnx", "growarray inspect: interrupted", []),
    "inspect_json": ("json.dumps", "inspect net.onnx --json", "growarray inspect: interrupted", []),
}  # fmt: skip


@pytest.mark.parametrize(("name", "line", "message", "left"), WRITING.values(), ids=WRITING)
def test_while_files_are_written(tmp_path: Path, name: str, line: str, message: str, left: list[str]) -> None:
    folder = folder_of(tmp_path)
    (folder / "out").mkdir()
    terminal = Terminal("-c", CALLING, name, *line.split(), columns=60, cwd=folder, GROWARRAY_CACHE="cache")
    assert_quiet(terminal.end(), message)
    assert sorted(path.name for path in (*folder.glob("out/*"), *folder.glob("cache/*"))) == left
    assert not list(folder.glob("out/.*"))


# A function that is called in a run that goes on, and the files that are there after Ctrl-C in it.
WRITTEN = ["checkpoint.npz"]
RESUMING: dict[str, tuple[str, list[str]]] = {
    "reading_the_checkpoint": ("growarray.cli.grow.command.open_run", WRITTEN),
    "loading_the_data": ("growarray.cli.grow.run.load_data", WRITTEN),
    "restoring": ("growarray.cli.grow.run.restore", WRITTEN),
    "beginning": ("growarray.cli.grow.command.check_writable", WRITTEN),
    "training": ("growarray.cli.grow.run._timed", WRITTEN),
    "writing_a_checkpoint": ("growarray.cli.grow.run.write_checkpoint", WRITTEN),
    "writing_the_weights": ("growarray.cli.grow.run.write_weights", WRITTEN),
    "drawing": ("growarray.networks.picture.figure_of", [*WRITTEN, "network.onnx", "weights.safetensors"]),
}


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs after its first."""
    folder = tmp_path_factory.mktemp("stopped") / "out"
    new_folder(folder)
    Run(options_from({"epochs": 3, "test_fraction": 0.6}), folder=folder).train(until=1)
    return folder


@pytest.mark.parametrize(("name", "left"), RESUMING.values(), ids=RESUMING)
def test_while_a_run_is_resumed(tmp_path: Path, stopped_run: Path, name: str, left: list[str]) -> None:
    """What is there afterwards goes on to the same end."""
    shutil.copytree(stopped_run, tmp_path / "out")
    line = "grow --output out --resume"
    ended = Terminal("-c", CALLING, name, *line.split(), columns=60, cwd=tmp_path).end()
    assert_quiet(ended, RESUME)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == left
    run = Run.resumed(*open_run(tmp_path / "out", {}), tmp_path / "out")
    run.train()
    assert [step["epoch"] for step in run.loop.history.of("train")] == [1, 2, 3]


def test_a_run_that_ignores_the_signal_goes_on_ignoring_it(tmp_path: Path) -> None:
    """As a shell asks for what it starts in the background."""
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + CALLING
    command = [sys.executable, "-c", script, "growarray.cli.grow.command.draw", "grow", "--epochs", "1"]
    settings = environment(GROWARRAY_CACHE=str(tmp_path))
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"picture in {tmp_path / 'run.png'}" in done.stdout
