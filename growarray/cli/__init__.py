"""The command ``growarray``; it needs the extra ``cli`` (typer, rich, matplotlib, and Pillow for folders of images)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from growarray.cli.interrupt import stops_at_once

__all__ = ["main"]

_NEEDED = ("typer", "rich", "matplotlib")


def _missing() -> list[str]:
    """The libraries of the extra that are not installed; matplotlib is imported when it draws: it takes long."""
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def main() -> None:
    """Run the command line; if the extra is missing, print one line and exit with code 2."""
    with stops_at_once():
        missing = _missing()
        if missing:
            sys.stderr.write(
                f"growarray: the command needs {', '.join(_NEEDED)}, not found: {', '.join(missing)}; "
                'install them with: pip install "growarray[cli]"\n'
            )
            raise SystemExit(2)
        application = importlib.import_module("growarray.cli.application")
    with _written(application.CLOSED):
        application.app(prog_name="growarray")  # whatever started it: messages and hints name the command


@contextmanager
def _written(closed: int) -> Iterator[None]:
    """See that the output arrives, or end with code ``closed`` if nobody reads it.

    The interpreter would complain of it on its way out, and end with code 120. Commands say themselves what is wrong
    with other files.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(closed) from None
        sys.stderr.write(f"growarray: the standard output cannot be written: {error.strerror}\n")
        raise SystemExit(2) from None
