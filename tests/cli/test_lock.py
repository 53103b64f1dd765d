"""Two runs in one folder: the second is refused by name, and a killed one leaves no lock."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from growarray.cli.grow import folder as lock
from growarray.cli.grow.checkpoint import read_checkpoint
from growarray.cli.grow.folder import CHECKPOINT, LOCK, locked
from growarray.errors import ResumeError
from tests.cli.conftest import content
from tests.cli.test_resume import started

HOLDER = """
import sys, time
from pathlib import Path
from growarray.cli.grow.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_by_name(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(ResumeError) as caught, locked(tmp_path):
            pass
        process.kill()
    assert f"--output {tmp_path} is in use by another run (process {process.pid} on " in str(caught.value)
    assert "); wait until it ends, or name another folder" in str(caught.value)


def test_a_killed_run_leaves_no_lock(tmp_path):
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=120)
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / LOCK).read_text()
    assert list(tmp_path.iterdir()) == []


def test_an_error_gives_the_lock_back(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        1 / 0  # noqa: B018
    with locked(tmp_path):
        pass


def test_a_lock_that_is_removed_at_the_last_moment_is_taken_anew(tmp_path, monkeypatch):
    original, removed = lock._lock, []

    def late(file):
        original(file)
        if not removed:
            removed.append(True)
            (tmp_path / LOCK).unlink()  # as the run does that held it until now

    monkeypatch.setattr(lock, "_lock", late)
    with locked(tmp_path):
        assert removed
        with pytest.raises(ResumeError, match="is in use"), locked(tmp_path):
            pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(_file):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", refuse)
    with pytest.warns(UserWarning, match="its file system has no locks; start no other run in it"), locked(tmp_path):
        pass


def test_beside_a_live_run_neither_a_new_one_nor_resume_begins(grow, tmp_path):
    folder = tmp_path / "run"
    with started(folder, 1000) as process:
        results = [grow("--output", folder), grow("--output", folder, "--resume"), grow("--output", folder)]
        process.kill()
    for result in results:
        assert result.exit_code == 2
        assert f"in use by another run (process {process.pid} on " in result.stderr
        assert result.stderr.count("\n") == 1
    assert read_checkpoint(folder / CHECKPOINT).final is None
    assert set(content(folder)) >= {CHECKPOINT, LOCK}
