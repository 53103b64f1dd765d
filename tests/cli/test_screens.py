"""Every command in a pseudo-terminal: its screen at 80 columns to the letter, and at 60 and 40 with nothing cut."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import screens
from tests.cli.terminal import COLOUR, Terminal, environment, screen

NARROW = {
    name: screens.CASES[name].split(" --output")[0].replace(" --compare", "")
    for name in (
        "grow", "grow_refused_option", "inspect", "convert", "compress_data", "compress_weights", "bench_paths",
        "bench_calibrate",
    )
} | {"grow_help": "grow --help", "bench_paths_help": "bench paths --help"}  # fmt: skip
REFUSED = ("unknown", "refused", "there_already", "missing", "impossible")
NUMBER = re.compile(r"\d[\d.,]*\d|\d")


@pytest.fixture(scope="module")
def at_80(tmp_path_factory: pytest.TempPathFactory) -> screens.Shown:
    return screens.shown(tmp_path_factory.mktemp("at_80"), screens.cases())


@pytest.mark.parametrize("name", screens.cases())
def test_a_screen_is_the_one_that_is_kept(at_80: screens.Shown, name: str) -> None:
    kept = screens.FOLDER / f"{name}.txt"
    assert kept.exists(), f"no {kept.name}; {screens.__doc__}"
    assert screens.masked(name, at_80.screens[name]) == kept.read_text(encoding="utf-8"), screens.__doc__
    assert at_80.codes[name] == (2 if any(word in name for word in REFUSED) else 0)
    assert "Traceback" not in at_80.screens[name]


def test_every_command_has_a_screen_and_no_screen_is_left_over() -> None:
    alone = {"_".join(names) for names in screens.commands()} - {"", "bench"}
    assert alone <= set(screens.cases())
    assert {path.stem for path in screens.FOLDER.iterdir()} == set(screens.cases())


# Colour and width do not know of each other: each of both values once, and 80 columns with colour are there already.
@pytest.mark.parametrize(("columns", "colour"), [(80, True), (60, True), (40, False)])
def test_nothing_is_cut_and_colour_is_the_users_choice(
    at_80: screens.Shown, tmp_path: Path, columns: int, colour: bool
) -> None:
    if columns == 80:
        found, lines = at_80, screens.cases()
    else:
        lines = NARROW
        found = screens.shown(tmp_path, lines, columns=columns, **({} if colour else {"NO_COLOR": "1"}))
    assert bool(COLOUR.search(found.written)) == colour
    assert "Traceback" not in found.written
    assert list(found.screens) == list(lines)
    for name in NARROW:
        text = found.screens[name]
        assert max(map(len, text.splitlines())) <= columns
        assert "…" not in text
        assert found.codes[name] == (2 if name == "grow_refused_option" else 0)
        if name in ("inspect", "bench_calibrate", "grow_help"):
            assert set(NUMBER.findall(at_80.screens[name])) <= set(NUMBER.findall(text)), name


BAR = ("-m", "growarray", "grow", "--epochs", "3", "--growths", "0")


def test_a_bar_moves_in_a_terminal_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ended = Terminal(*BAR, GROWARRAY_CACHE=str(tmp_path)).end()
    assert "epoch 0/3" in ended.written
    assert "\x1b[2K" in ended.written
    assert not any("0/3" in line for line in ended.screen)


def test_a_terminal_that_cannot_move_its_cursor_gets_no_bar_and_no_colour(tmp_path: Path) -> None:
    ended = Terminal(*BAR, TERM="dumb", GROWARRAY_CACHE=str(tmp_path)).end()
    assert ended.code == 0
    assert "\x1b" not in ended.written
    assert "0/3" not in ended.written


def test_colour_can_be_forced_into_a_pipe_but_no_bar(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "growarray", "grow", "--epochs", "5", "--max-parameters", "240"]
    settings = environment(FORCE_COLOR="1", GROWARRAY_CACHE=str(tmp_path))
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    assert COLOUR.search(done.stdout)
    assert "\x1b[2K" not in done.stdout + done.stderr
    assert "0/3" not in done.stdout + done.stderr


def test_the_screen_is_what_a_terminal_would_show() -> None:
    assert screen("a bar\r\x1b[2Kone\r\ntwo", 80) == ["one", "two"]
    assert screen("12345678", 4) == ["1234", "5678"]
    assert screen("a\r\nb\r\n\x1b[1A\x1b[2Kc\x1b[31md\x1b[0m" + os.linesep, 80) == ["a", "cd"]
