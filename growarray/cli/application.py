"""The command ``growarray`` with its sub-commands."""

from __future__ import annotations

from typing import Annotated

import typer

from growarray import __version__
from growarray.cli.bench.calibrate import calibrate
from growarray.cli.bench.command import BenchCommand, paths, suite
from growarray.cli.bench.search import search
from growarray.cli.command import CLOSED as CLOSED
from growarray.cli.command import Group
from growarray.cli.compress.command import compress
from growarray.cli.convert import convert
from growarray.cli.files import FileCommand
from growarray.cli.grow.command import GrowCommand, grow
from growarray.cli.inspect import inspect
from growarray.cli.predict import predict

app = typer.Typer(
    name="growarray",
    cls=Group,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"growarray {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """Neural networks that grow, on NumPy and CuPy."""


_bench = typer.Typer(
    cls=Group, help="Measure contraction paths, and this machine.", no_args_is_help=True, rich_markup_mode=None
)
_bench.command("paths", cls=BenchCommand)(paths)
_bench.command("search", cls=BenchCommand)(search)
_bench.command("calibrate", cls=BenchCommand)(calibrate)
_any = {"allow_extra_args": True, "ignore_unknown_options": True}
_bench.command("suite", cls=BenchCommand, hidden=True, context_settings=_any)(suite)

app.command("grow", cls=GrowCommand)(grow)
app.add_typer(_bench, name="bench")
for name, function in (("predict", predict), ("inspect", inspect), ("convert", convert), ("compress", compress)):
    app.command(name, cls=FileCommand)(function)
