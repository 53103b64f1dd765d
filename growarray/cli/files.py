"""What the commands on files of weights share: their options, and one line for an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Annotated

import typer

from growarray.checkpoint import Limits
from growarray.checkpoint.report import printable
from growarray.cli.help import option
from growarray.cli.terminal import say_interrupted
from growarray.errors import GrowArrayError

__all__ = ["limits_from", "plain_errors"]

Texts = list[str] | None
SelectOption = Annotated[Texts, option("KEY", "key of the part to take; again for a key inside it", "--select")]
PrefixOption = Annotated[Texts, option("PREFIX", "take this prefix off the names; '' keeps all names", "--prefix")]
LimitsOption = Annotated[
    Texts,
    option("FIELD=NUMBER", "a bound on what the file may ask for, such as depth=200", "--limits"),
]
LinksOption = Annotated[bool, typer.Option("--follow-links", help="read links that leave the model's folder")]


def limits_from(texts: Sequence[str] | None) -> Limits:
    """The bounds that ``FIELD=NUMBER`` texts change.

    >>> limits_from(["depth=200"]).depth
    200
    """
    known = [field.name for field in fields(Limits)]
    changes = {}
    for text in texts or ():
        name, _, number = text.partition("=")
        if name not in known:
            raise ValueError(f"--limits {text}: expected a field of {', '.join(known)}, found {name!r}")
        digits = number.replace("_", "")
        if not (digits.isascii() and digits.isdigit()):
            raise ValueError(f"--limits {text}: expected {name}= and a number from 0, found {number!r}")
        changes[name] = int(digits)
    return replace(Limits(), **changes)


@contextmanager
def plain_errors(command: str) -> Iterator[None]:
    """One line and exit code 2 for an error that is the user's to mend, 130 for Ctrl-C."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (GrowArrayError, ValueError, TypeError, KeyError, OSError, MemoryError, NotImplementedError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        line = " ".join(str(text).split()) or "not enough memory"
        typer.echo(f"growarray {command}: {printable(line)}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say_interrupted(f"growarray {command}: interrupted")
        raise typer.Exit(130) from None
