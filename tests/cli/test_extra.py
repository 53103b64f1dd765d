"""Without the extra ``cli`` the command says what to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import growarray

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(growarray.__file__).parents[1])}
PROGRAM = """
import runpy, sys
sys.modules[sys.argv.pop(1)] = None
runpy.run_module("growarray", run_name="__main__", alter_sys=True)
"""


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], env=ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["typer", "rich", "matplotlib"])
def test_a_missing_library_is_one_line(name):
    done = run("-c", PROGRAM, name, "grow")
    assert done.returncode == 2
    assert done.stderr == (
        f"growarray: the command needs typer, rich, matplotlib, not found: {name}; "
        'install them with: pip install "growarray[cli]"\n'
    )


def test_the_module_is_the_command():
    done = run("-m", "growarray", "--version")
    assert (done.returncode, done.stdout) == (0, f"growarray {growarray.__version__}\n")
