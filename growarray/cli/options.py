"""An option of a command, stated once: its flag, its help, what it accepts and what it is when it is left out."""

from __future__ import annotations

import inspect
import math
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from keyword import iskeyword
from typing import Annotated, Any

import typer

from growarray.errors import shown

PRECISIONS = ("float32", "tf32")
"""How a GPU may multiply float32."""


def choices(*names: str) -> str:
    """What the help shows for an option that takes one of a few names.

    >>> choices("cp", "tt")
    '[cp|tt]'
    """
    return f"[{'|'.join(names)}]"


def option(takes: str, text: str, *flags: str, panel: str | None = None, **more: Any) -> Any:
    """An option that takes a value: what the value is called, and what the option is for."""
    return typer.Option(*flags, metavar=takes, help=text, rich_help_panel=panel, **more)


def switch(flag: str, text: str, panel: str | None = None) -> Any:
    """An option that is given or not."""
    return typer.Option(flag, help=text, rich_help_panel=panel)


@dataclass(frozen=True)
class Option:
    """One row of a table of options.

    default : when it is left out;  means : what the help says of a default that does not say it itself
    takes : what the help calls the value;  choices : the values, if they are few;  panel : section of the help
    least, below : bounds of a number, of which the second is not a value itself
    kind : type of the value;  flag : by default the name with hyphens; a switch has one without ``--no-…``
    """

    default: Any
    text: str
    panel: str
    takes: str = "NUMBER"
    means: str = ""
    choices: tuple[str, ...] = ()
    least: float = -math.inf
    below: float = math.inf
    kind: Any = str
    flag: str = ""

    def parameter(self, name: str) -> inspect.Parameter:
        """As a parameter of a command, None if the option is left out."""
        takes = choices(*self.choices) if self.choices else self.takes
        flags = [self.flag] if self.flag else []
        text = f"{self.text}; default {self.means or plain(self.default)}"
        asked = option(takes, text, *flags, panel=self.panel, show_default=False)
        return inspect.Parameter(
            f"{name}_" if iskeyword(name) else name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[self.kind | None, asked],
        )

    def check(self, name: str, value: Any) -> None:
        """Raise ``ValueError`` unless the value is one of the choices, or within the bounds."""
        if self.choices and not (value is None and self.default is None):
            is_known(flag_of(name), value, self.choices)
        bounded = self.least > -math.inf and value is not None
        if bounded and not self.least <= value < self.below:
            above = f" and below {self.below:g}" if self.below < math.inf else ""
            kind = "a finite number of " if value == math.inf else ""
            raise ValueError(f"{flag_of(name)}: expected {kind}at least {self.least:g}{above}, found {value}")


def plain(default: Any) -> str:
    """A default as one would type it.

    >>> plain(20.0), plain("cpu")
    ('20', 'cpu')
    """
    return f"{default:g}" if isinstance(default, float) else str(default)


def flag_of(name: str) -> str:
    """The flag of an option.

    >>> flag_of("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


def is_known(flag: str, value: Any, known: Iterable[str]) -> None:
    """Raise ``ValueError`` unless the value is one of those that are known."""
    names = tuple(known)
    if value not in names:
        expected = " or ".join(names) if len(names) < 3 else f"one of {', '.join(names)}"
        raise ValueError(f"{flag}: expected {expected}, found {shown(value)}")


def use_precision(precision: str, device: str, dtype: str) -> None:
    """Tell CuPy, and with it every plan of this process. ``ValueError`` if there is no such precision there."""
    is_known("--precision", precision, PRECISIONS)
    if precision == "float32":
        return
    if device == "cpu" or dtype != "float32":
        raise ValueError(
            f"--precision: tf32 is how a GPU multiplies float32, found {dtype} and --device {device}; pass --device "
            "cuda, or leave it out"
        )
    os.environ["CUPY_TF32"] = "1"


def at_least(flag: str, value: float, least: float) -> None:
    """Raise ``ValueError`` unless the value is a number that is large enough."""
    if not value >= least:
        raise ValueError(f"{flag}: expected at least {least}, found {value}")


def options_of(table: Any) -> dict[str, Option]:
    """The rows of a dataclass whose fields hold an :class:`Option` each, by name, and of the type of the field."""
    kinds = typing.get_type_hints(table)
    rows = {}
    for field in fields(table):
        kind = kinds[field.name]
        rows[field.name] = replace(field.metadata["option"], kind=(typing.get_args(kind) or (kind,))[0])
    return rows


def takes_options(options: Mapping[str, Option]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put a table of options before the own parameters of a command, whose first parameter is a dictionary.

    It gets the options that were given, by name.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        _, *parameters = inspect.signature(function, eval_str=True).parameters.values()
        asked = {name: row.parameter(name) for name, row in options.items()}

        def command(**values: Any) -> None:
            options_given = {name: values.pop(parameter.name) for name, parameter in asked.items()}
            function({name: value for name, value in options_given.items() if value is not None}, **values)

        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*asked.values(), *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters)]
        )
        return command

    return decorate
