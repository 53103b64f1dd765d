"""A standard output that nobody reads, or that is full: a quiet end with the usual code, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.terminal import environment

FULL = "/dev/full"  # a file that is always full


def ended(arguments: list[str], output: int) -> tuple[int, str]:
    """Exit code and standard error."""
    command = [sys.executable, "-m", "growarray", *arguments]
    done = subprocess.run(command, env=environment(), stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [["--version"], ["inspect", "weights.npz"]], ids=["short", "table"])
def test_a_closed_pipe_ends_quietly(arguments, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("weights.npz", **{f"layer{i}.weight": np.zeros(1, np.float32) for i in range(300)})
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert ended(arguments, writer) == (141, "")
    finally:
        os.close(writer)


@pytest.mark.skipif(not os.path.exists(FULL), reason="needs /dev/full")
def test_a_full_output_is_one_line() -> None:
    with open(FULL, "w") as full:
        code, said = ended(["--version"], full.fileno())
    assert code == 2
    assert said == "growarray: the standard output cannot be written: No space left on device\n"
