"""The command ``growarray`` with its sub-commands."""

from __future__ import annotations

from typing import Annotated, ClassVar

import typer

from growarray import __version__
from growarray.cli.command import CLOSED as CLOSED
from growarray.cli.command import Group, Later

_FILES, _BENCH = "growarray.cli.files:FileCommand", "growarray.cli.bench.command:BenchCommand"


class _Bench(Group):
    later: ClassVar = {
        "paths": Later(
            "growarray.cli.bench.command:paths", _BENCH,
            "Compare the contraction paths of a layer or an equation: what each should cost, and what it does cost.",
        ),
        "search": Later(
            "growarray.cli.bench.search:search", _BENCH,
            "Score planners on instances: the operations of their paths beside the least that are known.",
        ),
        "calibrate": Later(
            "growarray.cli.bench.calibrate:calibrate", _BENCH,
            "Measure this machine, so that predicted times are its own.",
        ),
        "suite": Later(
            "growarray.cli.bench.command:suite", "growarray.cli.bench.command:SuiteCommand", "", hidden=True
        ),
    }  # fmt: skip


class _Commands(Group):
    later: ClassVar = {
        "grow": Later(
            "growarray.cli.grow.command:grow", "growarray.cli.grow.command:GrowCommand",
            "Grow a network while it trains, and show what each growth promised and what came of it.",
        ),
        "predict": Later(
            "growarray.cli.predict:predict", _FILES,
            "Predict with a grown network; if the data have targets, print the accuracy or R2 too.",
        ),
        "inspect": Later(
            "growarray.cli.inspect:inspect", _FILES,
            "Show the tensors of a file, what is beside them, and whether anything is refused. Nothing in it is run.",
        ),
        "convert": Later(
            "growarray.cli.convert:convert", _FILES,
            "Write the weights of IN into OUT, whose ending says what it becomes; from ONNX to ONNX the graph too.",
        ),
        "compress": Later(
            "growarray.cli.compress.command:compress", _FILES,
            "Factorize convolutions and linear layers so that a budget is spent best; show what it saves and what it "
            "costs.",
        ),
    }  # fmt: skip


app = typer.Typer(
    name="growarray",
    cls=_Commands,
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


app.add_typer(
    typer.Typer(
        cls=_Bench, help="Measure contraction paths, and this machine.", no_args_is_help=True, rich_markup_mode=None
    ),
    name="bench",
)
