"""``growarray bench paths``: the contraction paths of one layer, measured, shown and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from growarray.backend import library
from growarray.cli.bench.candidates import candidates_for
from growarray.cli.bench.equation import Contraction, equation_from, read_options
from growarray.cli.bench.layer import LAYER, Layer, layer_from
from growarray.cli.bench.measure import Peer
from growarray.cli.bench.report import facts, measure_layer
from growarray.cli.bench.show import csv_text, show_paths
from growarray.cli.command import Command
from growarray.cli.files import check_writable, make_folder
from growarray.cli.options import PRECISIONS, at_least, choices, is_known, option, switch, takes_options, use_precision
from growarray.cli.terminal import Screen, stderr_bar
from growarray.contraction import Plan, single_steps, tree_dict
from growarray.errors import PlanError
from growarray.networks import write_atomically
from growarray.networks.picture import saved

_LONG = 10  # seconds of the best path above which nothing is measured
_WIDTH = 100  # columns of a table that is not shown in a terminal
_LEAST = {"--paths": 1, "--repeat": 1, "--seconds": 0, "--seed": 0}
_MEASURING, _OUTPUT = "Measuring", "Output"

_TRAINING = typer.Option(
    "--training/--no-training", help="measure forward + backward too; default yes", rich_help_panel=_MEASURING
)

Device = Annotated[str, option("NAME", "cpu, cuda or cuda:N", panel=_MEASURING)]
PeerTimings = Callable[[Layer, Sequence[Any], Any, str | None], tuple[list[Peer], list[str]]]


class BenchCommand(Command):
    """A measurement: what to do if memory is short, and that Ctrl-C leaves no file."""

    remedy = " for this layer or equation; make batch or sizes smaller"

    def stopped(self, ctx: Any) -> str:
        """What Ctrl-C leaves: nothing."""
        return "nothing was written"


def paths_command(beside: PeerTimings | None) -> Callable[..., None]:
    """The command ``paths``; ``beside`` measures other libraries in the same rounds, None measures the paths alone."""

    @takes_options(LAYER)
    def paths(
        given: dict[str, Any],
        file: Annotated[
            Path | None,
            typer.Argument(
                help="JSON or TOML file: the layer's options, or an equation", metavar="FILE", show_default=False
            ),
        ] = None,
        equation: Annotated[
            str | None, option("TEXT", "in place of a layer, such as 'n c x, o c x -> n o x | x'", panel="Equation")
        ] = None,
        shapes: Annotated[
            str | None, option("SIZES", "of its operands, such as '8x64x56, 32x64x3'", panel="Equation")
        ] = None,
        training: Annotated[bool, _TRAINING] = True,
        count: Annotated[int, option("NUMBER", "orders that are compared", "--paths", panel=_MEASURING)] = 16,
        repeat: Annotated[int, option("NUMBER", "rounds in which each has a turn", panel=_MEASURING)] = 9,
        seconds: Annotated[
            float, option("NUMBER", "no round starts after so long, once there were three", panel=_MEASURING)
        ] = 20.0,
        device: Device = "cpu",
        precision: Annotated[
            str, option(choices(*PRECISIONS), "in which a GPU multiplies float32", panel=_MEASURING)
        ] = "float32",
        seed: Annotated[int, option("NUMBER", "of the arrays, and of paths drawn at random", panel=_MEASURING)] = 0,
        output: Annotated[Path | None, option("FOLDER", "folder to write into", panel=_OUTPUT)] = None,
        pictures: Annotated[str, option(choices("png", "svg"), "kind of the pictures", panel=_OUTPUT)] = "png",
        as_json: Annotated[bool, switch("--json", "print JSON in place of tables", _OUTPUT)] = False,
        as_csv: Annotated[bool, switch("--csv", "print CSV in place of tables", _OUTPUT)] = False,
    ) -> None:
        """Measure, show and write."""
        if as_json and as_csv:
            raise ValueError("--json, --csv: pass only one; --output writes both as files")
        for (flag, least), value in zip(_LEAST.items(), (count, repeat, seconds, seed), strict=True):
            at_least(flag, value, least)
        is_known("--pictures", pictures, ("png", "svg"))
        inline = {key: text for key, text in (("equation", equation), ("shapes", shapes)) if text is not None}
        layer = contraction_from(file, given | inline)
        use_precision(precision, device, layer.dtype)
        name = device_named(device)
        if output is not None:
            make_folder(output)
            check_writable(output)
        left_out: list[str] = []
        candidates = candidates_for(layer, count, seed=seed, training=training, device=name, remarks=left_out)
        with stderr_bar("round", repeat) as bar:
            report = measure_layer(
                layer, candidates, repeat=repeat, seed=seed, device=name, budget=seconds, progress=bar.update,
                beside=beside if isinstance(layer, Layer) else None, left_out=left_out,
            )  # fmt: skip
        report = facts(name) | report
        _show(report, as_json=as_json, as_csv=as_csv)
        if output is not None:
            _write(report, layer, layer.plan(device=name), output, pictures)

    return paths


def contraction_from(file: Path | None, given: dict[str, Any]) -> Contraction:
    """The layer or the equation of a file and of options, which take precedence. ``ValueError`` names the place."""
    values = read_options(file, tuple(LAYER)) if file is not None else {}
    try:
        if {"equation", "inputs", "shapes"} & {*values, *given}:
            contraction: Contraction = equation_from(values | given)
        else:
            contraction = layer_from(values | given)
        best = contraction.plan().seconds
    except (ValueError, PlanError) as error:
        raise ValueError(f"{file}: {error}" if file is not None else str(error)) from error
    if best > _LONG:
        raise ValueError(f"the best path should take {best:.3g} s, at most {_LONG} are measured; make sizes smaller")
    return contraction


paths = paths_command(None)


class SuiteCommand(BenchCommand):
    """A command that takes whatever is given, to say where it is."""

    allow_extra_args = ignore_unknown_options = True


def suite() -> None:
    """Say how the suite of layers is run."""
    raise ValueError(
        "the suite is not part of the installed package; in a checkout of growarray run: python -m bench suite"
    )


def _show(report: Mapping[str, Any], *, as_json: bool, as_csv: bool) -> None:
    """The report on the screen."""
    if as_json or as_csv:
        typer.echo(json.dumps(report, indent=1) + "\n" if as_json else csv_text(report), nl=False)
    else:
        show_paths(bench_console(), report)


def _write(report: Mapping[str, Any], layer: Contraction, best: Plan, output: Path, kind: str) -> None:
    """The report, its pictures, and the contraction with the tree that auto takes."""
    from growarray.cli.bench.picture import drawn_paths  # matplotlib takes half a second to import
    from growarray.cli.bench.tree_picture import drawn_roofline, drawn_tree

    drawn = {  # this takes longest: what stops it leaves no file behind
        f"paths.{kind}": saved(drawn_paths(report), kind),
        f"tree.{kind}": saved(drawn_tree(best), kind),
        f"roofline.{kind}": saved(drawn_roofline(report, best.machine), kind),
    }
    tree = tree_dict(best) | {"steps": single_steps(best) if "..." not in best.equation else None}
    tree |= Contraction.to_dict(layer)  # `growarray bench paths` reads it again
    files = {
        "paths.json": (json.dumps(report, indent=1) + "\n").encode(),
        "paths.csv": csv_text(report).encode(),
        "tree.json": (json.dumps(tree, indent=1) + "\n").encode(),
        **drawn,
    }
    for name, content in files.items():
        write_atomically(output / name, content)
    typer.echo(f"written into {output}: {', '.join(files)}", err=True)


def bench_console() -> Console:
    """As wide as the terminal; 100 columns without one."""
    console = Screen()
    return console if console.is_terminal else Screen(width=_WIDTH)


def device_named(text: str) -> str | None:
    """None for the CPU; raises if the device is not there."""
    library(text)
    return None if text == "cpu" else text
