"""Files that commands read and write: the options on files of weights, and a folder that takes files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

from growarray.checkpoint import Limits
from growarray.cli.command import Command
from growarray.cli.options import option, switch
from growarray.errors import shown

Texts = list[str] | None
SelectOption = Annotated[Texts, option("KEY", "key of the part to take; repeat it for a key inside", "--select")]
PrefixOption = Annotated[Texts, option("PREFIX", "take this prefix off the names; '' keeps all names", "--prefix")]
LimitsOption = Annotated[
    Texts, option("FIELD=NUMBER", "a bound on what the file may ask for, such as depth=200", "--limits")
]
LinksOption = Annotated[bool, switch("--follow-links", "read links that leave the model's folder")]


class FileCommand(Command):
    """A command on files of weights, whose readers also raise KeyError and TypeError."""

    errors = (KeyError, TypeError)


def limits_from(texts: Sequence[str] | None) -> Limits:
    """The bounds that ``FIELD=NUMBER`` texts change.

    >>> limits_from(["depth=200"]).depth
    200
    """
    known = [field.name for field in fields(Limits)]
    changes: dict[str, Any] = {}
    for text in texts or ():
        name, _, number = text.partition("=")
        if name not in known:
            raise ValueError(f"--limits {text}: expected a field of {', '.join(known)}, found {shown(name)}")
        digits = number.replace("_", "")
        if not (digits.isascii() and digits.isdigit()):
            raise ValueError(f"--limits {text}: expected {name}= and a number from 0, found {shown(number)}")
        changes[name] = int(digits)
    return replace(Limits(), **changes)


def sizes_from(text: str, example: str) -> tuple[int, ...]:
    """The sizes that ``--input-shape`` gives.

    >>> sizes_from("1, 3,32", "1,3,32,32")
    (1, 3, 32)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--input-shape {text}: expected sizes from 1 such as {example}")
    return tuple(map(int, parts))


def fixed_shape(shape: Sequence[int | str] | None) -> tuple[int, ...] | None:
    """The shape of an input of a graph, with 1 for an open first axis; None if another axis is open.

    >>> fixed_shape(("n", 3, 32)), fixed_shape((1, "c"))
    ((1, 3, 32), None)
    """
    if shape is None or any(isinstance(size, str) for size in shape[1:]):
        return None
    return tuple(1 if isinstance(size, str) else size for size in shape)


def make_folder(folder: Path) -> None:
    """Make the folder of ``--output`` if it is missing; ``OSError`` if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"--output {folder}: expected a folder, or a name that one can be made under ({error.strerror}); "
            "name another folder"
        ) from error


def check_writable(folder: Path) -> None:
    """Raise ``OSError`` if no file can be made in ``folder``."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"--output {folder}: no file can be written there ({error.strerror}); name a folder that is yours"
        ) from error
