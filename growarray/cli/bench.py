"""``growarray bench``: contraction paths of a layer, the fixed suite, and the machine model; options and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from growarray.backend import library
from growarray.cli import bench_calibrate
from growarray.cli.bench_layer import DTYPES, FORMATS, layer_from, read_layer
from growarray.cli.bench_paths import candidates_for
from growarray.cli.bench_run import facts, measure_layer
from growarray.cli.bench_show import csv_text, show_paths
from growarray.cli.bench_suite import chosen_cases, run_case, show_suite, suite_summary
from growarray.cli.help import Command, Group, choices, option
from growarray.cli.save import check_writable
from growarray.cli.terminal import say_interrupted, show_table, stderr_bar
from growarray.errors import GrowArrayError
from growarray.networks import write_atomically

__all__ = ["app", "calibrate", "paths", "suite"]

app = typer.Typer(
    cls=Group,
    help="Measure contraction paths, the suite of layers, and this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_WIDTH = 100  # columns of a table where it is not shown in a terminal
_L, _M, _O = "Layer", "Measuring", "Output"

Text = str | None
Output = Annotated[Path | None, option("FOLDER", "folder to write into", panel=_O)]
AsJson = Annotated[bool, typer.Option("--json", help="show JSON in place of tables", rich_help_panel=_O)]
Device = Annotated[str, option("NAME", "cpu, cuda or cuda:N", panel=_M)]
Seed = Annotated[int, option("NUMBER", "of the numbers in the arrays, and of what is drawn", panel=_M)]


def _layer_option(text: str, *flags: str, takes: str = "SIZES") -> Any:
    return option(takes, text, *flags, panel=_L, show_default=False)


@app.command(cls=Command)
def paths(
    file: Annotated[
        Path | None,
        typer.Argument(help="JSON or TOML file with the layer's options", metavar="FILE", show_default=False),
    ] = None,
    kind: Annotated[Text, _layer_option("of the kernel; default cp", "--format", takes=choices(*FORMATS))] = None,
    in_channels: Annotated[Text, _layer_option("channels of the input; default 64", "--in", takes="NUMBER")] = None,
    out_channels: Annotated[Text, _layer_option("channels of the output; default 64", "--out", takes="NUMBER")] = None,
    kernel: Annotated[Text, _layer_option("size of the kernel, any number of axes; default 3x3")] = None,
    size: Annotated[Text, _layer_option("size of the input; default 56x56")] = None,
    batch: Annotated[Text, _layer_option("inputs at a time; default 8", takes="NUMBER")] = None,
    stride: Annotated[Text, _layer_option("one number, or one for each axis; default 1")] = None,
    padding: Annotated[Text, _layer_option("numbers, half (of the kernel), same or valid; default half")] = None,
    dilation: Annotated[Text, _layer_option("one number, or one for each axis; default 1")] = None,
    rank: Annotated[
        Text,
        _layer_option("28, one a mode such as 16x16x3x3, or 0.1 of the dense parameters; default 0.1", takes="RANK"),
    ] = None,
    dtype: Annotated[Text, _layer_option("of the arrays; default float32", takes=choices(*DTYPES))] = None,
    training: Annotated[
        bool,
        typer.Option(
            "--training/--no-training", help="measure forward + backward too; default yes", rich_help_panel=_M
        ),
    ] = True,
    count: Annotated[int, option("NUMBER", "orders that are compared", "--paths", panel=_M)] = 16,
    repeat: Annotated[int, option("NUMBER", "rounds in which each has a turn", panel=_M)] = 9,
    seconds: Annotated[
        float,
        option("NUMBER", "after which no round starts, once there were three", panel=_M),
    ] = 20.0,
    device: Device = "cpu",
    seed: Seed = 0,
    output: Output = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="show CSV in place of tables", rich_help_panel=_O)] = False,
) -> None:
    """Compare the contraction paths of one layer: what each should cost, and what it does cost."""
    given = {
        "format": kind, "in": in_channels, "out": out_channels, "kernel": kernel, "size": size, "batch": batch,
        "stride": stride, "padding": padding, "dilation": dilation, "rank": rank, "dtype": dtype,
    }  # fmt: skip
    with _plain_errors("paths"):
        if as_json and as_csv:
            raise ValueError("--json, --csv: expected one of them, found both; --output writes both as files")
        _at_least("--paths", count, 1)
        _at_least("--repeat", repeat, 1)
        _at_least("--seed", seed, 0)
        stated = read_layer(file) if file is not None else {}
        layer = layer_from(stated | {key: value for key, value in given.items() if value is not None})
        name = _device(device)
        _ready(output)
        candidates = candidates_for(layer, count, seed=seed, training=training, device=name)
        with stderr_bar("round", repeat) as bar:
            report = measure_layer(
                layer, candidates, repeat=repeat, seed=seed, device=name, budget=seconds, progress=bar.update
            )
        _finish_paths(facts(name) | report, output, as_json=as_json, as_csv=as_csv)


def _finish_paths(report: Mapping[str, Any], output: Path | None, *, as_json: bool, as_csv: bool) -> None:
    """Show the report, and write it where there is a folder."""
    if as_json or as_csv:
        typer.echo(_json(report) if as_json else csv_text(report), nl=False)
    else:
        show_paths(_console(), report)
    if output is not None:
        from growarray.cli.bench_picture import draw_paths  # matplotlib takes half a second to import

        picture = draw_paths(report)  # it takes longest: what stops it leaves no file behind
        write_atomically(output / "paths.json", _json(report).encode())
        write_atomically(output / "paths.csv", csv_text(report).encode())
        write_atomically(output / "paths.png", picture)
        _written(output, "paths.json, paths.csv and paths.png")


@app.command(cls=Command)
def suite(
    quick: Annotated[bool, typer.Option("--quick", help="a few cases, fewer rounds", rich_help_panel=_M)] = False,
    cases: Annotated[Text, option("NUMBERS", "numbers of cases such as 3,7", panel=_M)] = None,
    device: Device = "cpu",
    seed: Seed = 0,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure the fixed suite of layers: is auto's path the fastest, and does the prediction rank paths right?"""
    with _plain_errors("suite"):
        numbers = chosen_cases(cases, quick=quick)
        _at_least("--seed", seed, 0)
        name = _device(device)
        _ready(output)
        results = []
        with stderr_bar("case", len(numbers)) as bar:
            for done, number in enumerate(numbers, start=1):
                results.append(run_case(number, quick=quick, seed=seed, device=name))
                bar.update(done)
        report = facts(name) | {"summary": suite_summary(results), "cases": results}
        if as_json:
            typer.echo(_json(report), nl=False)
        else:
            show_suite(_console(), results)
        if output is not None:
            write_atomically(output / "suite.json", _json(report).encode())
            _written(output, "suite.json")


@app.command(cls=Command)
def calibrate(
    device: Device = "cpu",
    seconds: Annotated[float, option("NUMBER", "about so long", panel=_M)] = 40.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the result alone", rich_help_panel=_O)] = False,
    forget: Annotated[bool, typer.Option("--forget", help="remove what is stored", rich_help_panel=_O)] = False,
) -> None:
    """Measure this machine, so that predicted times are its own."""
    with _plain_errors("calibrate"):
        if forget:
            if dry_run:
                raise ValueError("--forget, --dry-run: expected one of them, found both")
            _forget(device)
            return
        name = _device(device)
        if not dry_run:
            folder = bench_calibrate.calibration_file(name).parent
            folder.mkdir(parents=True, exist_ok=True)
        with stderr_bar("measuring") as bar:
            machine = bench_calibrate.calibrated(name, seconds, progress=bar.update)
        default = bench_calibrate.default_machine(name)
        show_table(_console(), bench_calibrate.calibration_table(machine, default))
        if not dry_run:
            typer.echo(f"stored in {bench_calibrate.store(machine, name)}")


def _forget(device: str) -> None:
    """Remove what is stored for a kind of device, which need not be there any more."""
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; expected 'cpu', 'cuda' or 'cuda:N'")
    name = None if device == "cpu" else device
    where, known = bench_calibrate.calibration_file(name), bench_calibrate.forget(name)
    typer.echo(f"removed {where}" if known else f"nothing to remove: there is no {where}")


def _console() -> Console:
    """As wide as the terminal; 100 columns where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _device(text: str) -> str | None:
    """None for the CPU; raises where the device is not there."""
    library(text)
    return None if text == "cpu" else text


def _at_least(flag: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{flag}: expected at least {least}, found {value}")


def _ready(folder: Path | None) -> None:
    """Make the folder, and see that files can be written, before anything is measured."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--output {folder}: no folder can be made there ({error.strerror}); name another one") from error
    check_writable(folder)


def _written(folder: Path, names: str) -> None:
    typer.echo(f"written into {folder}: {names}", err=True)


def _json(report: Mapping[str, Any]) -> str:
    return json.dumps(report, indent=1) + "\n"


@contextmanager
def _plain_errors(command: str) -> Iterator[None]:
    """One line and exit code 2 for an error that is the user's to mend, 130 for Ctrl-C."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (GrowArrayError, ValueError, OSError, MemoryError) as error:
        text = " ".join(str(error).split()) or "not enough memory for this layer; make batch or sizes smaller"
        typer.echo(f"growarray bench {command}: {text}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say_interrupted(f"growarray bench {command}: interrupted; nothing was written")
        raise typer.Exit(130) from None
