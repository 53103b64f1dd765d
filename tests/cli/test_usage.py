"""A command line that is wrong is one line, and the pages on the command name every option."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from growarray.cli.application import app
from tests.cli.screens import commands

DOCS = Path(__file__).parents[2] / "docs"
PAGES = "".join((DOCS / name).read_text(encoding="utf-8") for name in ("cli.md", "save-and-serve.md"))
WRONG = {
    "no_such_option": ("grow --epoch 3", "growarray grow: no such option: --epoch"),
    "no_such_command": ("gorw", "growarray: no such command 'gorw'; did you mean 'grow'? see growarray --help"),
    "inner": ("bench pth", "growarray bench: no such command 'pth'; did you mean 'paths'? see growarray bench --help"),
    "whole_number": ("grow --epochs two", "growarray grow: --epochs: expected a whole number, found 'two'; see"),
    "number": ("grow --lr fast", "growarray grow: --lr: expected a number, found 'fast'; see growarray grow --help"),
    "infinite": ("grow --lr inf", "growarray grow: --lr: expected a finite number of at least 0, found inf"),
    "no_value": ("grow --epochs", "growarray grow: option '--epochs' requires an argument; see growarray grow --help"),
    "value_of_a_switch": ("--version=1", "growarray: option '--version' does not take a value; see growarray --help"),
    "missing_argument": ("predict run", "growarray predict: missing argument 'DATA'; see growarray predict --help"),
    "missing_option": ("compress a.npz", "growarray compress: missing option '--budget'; see"),
    "negative_seed": (
        "compress a.npz --budget 1 --seed=-3",
        "growarray compress: --seed: expected at least 0, found -3",
    ),
    "no_such_format": ("compress a.npz --budget 1 --format svd", "growarray compress: --format: expected one of cp, "),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_line_is_one_line(name: str) -> None:
    line, text = WRONG[name]
    result = CliRunner().invoke(app, line.split())
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert result.output.startswith(text)


def test_a_command_of_commands_alone_shows_its_help() -> None:
    for line in ([], ["bench"]):
        assert CliRunner().invoke(app, line).output.startswith("Usage: growarray")


def test_the_help_imports_what_it_shows_alone() -> None:
    """A list of commands comes without NumPy, the help of a command without the modules of others."""
    program = """
import sys
from growarray.cli import main
try:
    main()
finally:
    print(*sys.modules)
"""
    for line, without in (("--help", "numpy"), ("inspect --help", "growarray.networks")):
        done = subprocess.run(
            [sys.executable, "-c", program, *line.split()], capture_output=True, text=True, check=True
        )
        assert "show this help" in done.stdout
        assert without not in done.stdout.split()


def test_the_pages_name_every_option_with_its_choices() -> None:
    lacking = []
    for names in commands():
        command: Any = typer.main.get_command(app)
        for name in names:
            command = command.get_command(None, name)
        for option in command.params:
            flag = option.opts[0]
            rows = [row for row in PAGES.splitlines() if f"`{flag}" in row or f" {flag}`" in row]
            if flag.startswith("--") and flag not in ("--help", "--version") and not rows:
                lacking.append((*names, flag))
            choices = re.findall(r"[\w.]+", option.metavar) if str(option.metavar).startswith("[") else []
            lacking += [(*names, flag, one) for one in choices if not re.search(rf"\b{one}\b", " ".join(rows))]
    assert lacking == []
