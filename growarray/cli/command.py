"""A command: its help, one line and an exit code for what goes wrong, a quiet end at Ctrl-C."""

from __future__ import annotations

import warnings
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from growarray.checkpoint.report import printable
from growarray.cli.help import argument_name, show_help
from growarray.cli.terminal import say_interrupted
from growarray.errors import GrowArrayError

_EXPECTED = (GrowArrayError, ValueError, OSError, MemoryError, NotImplementedError)


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
                warnings.showwarning = lambda message, *_, **__: _say(ctx, message)
                return super().invoke(ctx)
        except Exception as error:
            if isinstance(error, BrokenPipeError) or not isinstance(error, (*_EXPECTED, *self.errors)):
                raise
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            if isinstance(error, MemoryError):
                text = f"not enough memory{f' ({error})' if str(error) else ''}{self.remedy}"
            _say(ctx, text)
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


class Group(TyperGroup):
    """A command of commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        named = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        show_help(self, ctx, [(name, found.help or "") for name, found in named if found and not found.hidden])


def _say(ctx: Any, text: object) -> None:
    """One line on the standard error, without what would move a cursor."""
    typer.echo(f"{ctx.command_path}: {printable(' '.join(str(text).split()))}", err=True)
