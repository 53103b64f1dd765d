"""The command in a pseudo-terminal: what it writes, what is on the screen afterwards, Ctrl-C at a chosen moment."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import NamedTuple

import growarray

ROWS = 50
LIMIT = 300.0  # seconds after which a command that does not end is a fault

# Makes the terminal on stdin the controlling one, so that a Ctrl-C that is typed there is a signal here; a process
# that was started in the background would ignore it.
ATTACH = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_UNSET = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM")
_CONTROL = re.compile(r"\x1b\[\??([\d;]*)([A-Za-z])|\r|\n|\x08|[^\x00-\x1f]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4[0-7]|9\d)(?:;\d+)*m")


class Ended(NamedTuple):
    """All that was written, the exit code, and the screen."""

    written: str
    code: int
    screen: list[str]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would change how a terminal is used."""
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    source = str(Path(growarray.__file__).parents[1])
    return {**kept, "PYTHONPATH": source, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **changes}


class Terminal:
    """A Python command line in a terminal of so many columns."""

    def __init__(self, *command: object, columns: int = 80, cwd: Path | None = None, **changes: str) -> None:
        self.columns = columns
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", ATTACH, *map(str, command)],
            stdin=slave, stdout=slave, stderr=slave, env=environment(**changes), cwd=cwd, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self._raw = b""

    @property
    def written(self) -> str:
        """Everything until now."""
        return self._raw.decode("utf-8", errors="replace")

    def wait_for(self, text: str) -> None:
        """Read until ``text`` was written."""
        started = time.monotonic()
        while text not in self.written:
            assert self._read(started), f"{text!r} was not written: {self.written}"

    def interrupt(self) -> None:
        """Type Ctrl-C."""
        os.write(self._master, b"\x03")

    def end(self) -> Ended:
        """Read to the end."""
        started = time.monotonic()
        while self._read(started):
            pass
        os.close(self._master)
        return Ended(self.written, self._process.wait(LIMIT), screen(self.written, self.columns))

    def _read(self, started: float) -> bool:
        """Take what is there; False when the other side has closed."""
        ready = select.select([self._master], [], [], max(0.0, started + LIMIT - time.monotonic()))[0]
        if not ready:
            self._process.kill()
            raise AssertionError(f"no end after {LIMIT:g} s: {self.written}")
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # Linux says so when no process has the terminal open
            return False
        self._raw += data
        return bool(data)


def screen(written: str, columns: int) -> list[str]:
    """The lines of a terminal after it was written to: what scrolled away too, without spaces at the ends.

    >>> screen("a bar\\r\\x1b[2Kone\\r\\ntwo", 80)
    ['one', 'two']
    """
    lines: list[list[str]] = [[]]
    row = column = 0
    for match in _CONTROL.finditer(written):
        text, (number, kind) = match.group(), match.groups()
        if text == "\r":
            column = 0
        elif text == "\n":
            row += 1
        elif text == "\x08":
            column = max(column - 1, 0)
        elif kind is None:
            if column == columns:
                row, column = row + 1, 0
            while len(lines) <= row:
                lines.append([])
            line = lines[row]
            line += " " * (column + 1 - len(line))
            line[column] = text
            column += 1
        elif kind == "A":
            row = max(row - int(number or 1), 0)
        elif kind == "K":
            lines[row] = lines[row][:column] if number in ("", "0") else []
        elif kind not in "mhl":
            raise AssertionError(f"the screen does not know {text!r}")
        while len(lines) <= row:
            lines.append([])
    texts = ["".join(line).rstrip() for line in lines]
    while texts and not texts[-1]:
        texts.pop()
    return texts
