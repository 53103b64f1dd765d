"""A command: its help in any width, one line and an exit code for an error, a quiet end at Ctrl-C."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from growarray.cli.interrupt import stops_at_once
from growarray.cli.options import plain
from growarray.cli.terminal import Screen, say_interrupted
from growarray.display import printable
from growarray.errors import GrowArrayError, shown

CLOSED = 141
"""Exit code if nobody reads any more, as in ``growarray … | head``: that of other commands, which a signal ends."""

_EXPECTED = (GrowArrayError, ValueError, OSError, MemoryError, NotImplementedError)
_WIDEST = 30  # columns of a name, beyond which its text begins a line below
_BESIDE = 26  # columns that a text needs at least to stand beside its name


def show_help(command: Any, ctx: Any, commands: Sequence[tuple[str, str]] = ()) -> None:
    """Usage, what the command does, and a section for arguments, each panel of options, and commands."""
    console = Screen(highlight=False)
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    for parameter in command.get_params(ctx):
        if parameter.param_type_name == "argument":
            sections["Arguments"].append((argument_name(parameter), _text(parameter)))
        elif not getattr(parameter, "hidden", False):
            panel = getattr(parameter, "rich_help_panel", None) or "Options"
            sections.setdefault(panel, []).append((_name(parameter), _text(parameter)))
    if commands:
        sections["Commands"] = list(commands)
    usage = " ".join(command.collect_usage_pieces(ctx))
    console.print(Text.assemble(("Usage: ", "bold"), f"{ctx.command_path} {usage}"))
    console.print()
    console.print(Text(" ".join((command.help or "").split())))
    last = sections.pop("Options", [])  # --help, and what belongs to no panel
    for title, rows in (*sections.items(), ("Options", last)):
        if rows:
            console.print()
            console.print(Text(title, style="bold"))
            _rows(console, rows)


def argument_name(parameter: Any) -> str:
    """What the usage and the help call an argument."""
    return str(parameter.metavar or parameter.name.upper())


def _name(parameter: Any) -> str:
    """``--rule [tiny|gradmax]``, ``--quiet``, ``--training / --no-training``."""
    names = " / ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {parameter.metavar or 'TEXT'}"


def _text(parameter: Any) -> str:
    """The help, and the default if the help does not name it."""
    silent = parameter.default is None or not parameter.show_default or getattr(parameter, "is_flag", False)
    default = "" if silent else f"; default {plain(parameter.default)}"
    text = "show this help" if parameter.name == "help" else parameter.help or ""
    return f"{text}{default}{'; required' if parameter.required else ''}"


def _rows(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Names and texts side by side; one below the other if a name is long or the terminal narrow."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows if len(name) <= _WIDEST), default=0)
    beside = console.width - width - 4 >= _BESIDE
    for name, text in rows:
        if beside and len(name) <= width:
            line = Table.grid(padding=(0, 2, 0, 0))
            line.add_column(width=width, no_wrap=True)
            line.add_column()
            line.add_row(Text(name, style="cyan"), Text(text))
            console.print(Padding(line, (0, 0, 0, 2)))
        else:
            console.print(Padding(Text(name, style="cyan"), (0, 0, 0, 2)))
            console.print(Padding(Text(text), (0, 0, 0, width + 4 if beside else 6)))


class Command(TyperCommand):
    """A command whose help has a section for each panel of its options.

    An error that is the user's to mend is one line on stderr and exit code 2, Ctrl-C is one and exit code 130, and a
    warning is a line too. A command of its own kind says more: ``remedy`` for a lack of memory, :meth:`stopped` for
    what Ctrl-C leaves behind, ``errors`` if it raises others.
    """

    remedy = ""
    errors: tuple[type[Exception], ...] = ()

    def stopped(self, ctx: Any) -> str:
        """What is left after Ctrl-C, and how to continue; empty if there is nothing to add."""
        return ""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's on overflow: commands check what comes of it
                warnings.showwarning = lambda message, *_, **__: _say(ctx.command_path, message)
                return super().invoke(ctx)
        except Exception as error:
            if isinstance(error, BrokenPipeError) or not isinstance(error, (*_EXPECTED, *self.errors)):
                raise
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            if isinstance(error, MemoryError):
                text = f"not enough memory{f' ({error})' if str(error) else ''}{self.remedy}"
            _say(ctx.command_path, text)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            then = self.stopped(ctx)
            say_interrupted(f"{ctx.command_path}: interrupted{f'; {then}' if then else ''}")
            raise typer.Exit(130) from None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What follows the name of the command."""
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        names = [argument_name(p) if p.required else f"[{argument_name(p)}]" for p in arguments]
        return ["[OPTIONS]", *names]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        show_help(self, ctx)


@dataclass(frozen=True)
class Later:
    """A command whose module is imported when it is called for: a list of commands needs its help alone.

    function, kind : where the function and the class of the command are, as ``package.module:name``
    """

    function: str
    kind: str
    help: str
    hidden: bool = False

    def load(self, name: str) -> Any:
        """The command."""
        with stops_at_once():
            function, kind = map(pkgutil.resolve_name, (self.function, self.kind))
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(name, cls=kind, help=self.help, hidden=self.hidden)(function)
        return typer.main.get_command(alone)


class Group(TyperGroup):
    """A command of commands, for which a wrong command line is one line too."""

    later: ClassVar[Mapping[str, Any]] = {}  # of Later, by name

    def __init__(self, *, commands: Any = None, **options: Any) -> None:
        super().__init__(commands={**self.later, **(commands or {})}, **options)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; None if there is none."""
        found = super().get_command(ctx, cmd_name)
        return found.load(cmd_name) if isinstance(found, Later) else found

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        """Read the command line up to the name of a command."""
        with _one_line(parent):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Read the rest, and run the command."""
        with _one_line(ctx):
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        show_help(self, ctx, [(name, each.help or "") for name, each in self.commands.items() if not each.hidden])


@contextmanager
def _one_line(parent: Any) -> Iterator[None]:
    """Say what is wrong with the command line of a command, and where its help is; nothing if nobody reads it."""
    try:
        yield
    except BrokenPipeError:
        raise typer.Exit(CLOSED) from None
    except Exception as error:
        if not hasattr(error, "format_message") or type(error).__name__ == "NoArgsIsHelpError":
            raise
        ctx = getattr(error, "ctx", None)
        path = f"{parent.command_path} {parent.invoked_subcommand}" if parent else "growarray"
        path = ctx.command_path if ctx else path
        text = _usage(error)
        _say(path, f"{text}{'' if text.endswith('?') else ';'} see {path} --help")
        raise typer.Exit(2) from None


_NUMBERS = {"int_parsing": "a whole number", "float_parsing": "a number"}


def _usage(error: Any) -> str:
    """What is wrong in words; of a number that cannot be read, what was found."""
    causes: list[Any] = getattr(error.__cause__, "errors", list)()  # of typer's own reader of numbers
    if causes and causes[0]["type"] in _NUMBERS:
        return f"{error.param.opts[0]}: expected {_NUMBERS[causes[0]['type']]}, found {shown(causes[0]['input'])}"
    text = str(error.format_message()).rstrip(".").replace(". Did", "; did")
    return text[:1].lower() + text[1:]


def _say(path: str, text: object) -> None:
    """One line on the standard error, without what would move a cursor."""
    typer.echo(f"{path}: {printable(' '.join(str(text).split()))}", err=True)
