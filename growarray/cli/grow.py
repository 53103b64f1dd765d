"""``growarray grow``: its options, and what it says when something is wrong."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from growarray import __version__
from growarray.cli import save
from growarray.cli.help import Command, Group, choices, option
from growarray.cli.lock import locked
from growarray.cli.run import CHOICES, Run, RunOptions, open_run, options_from
from growarray.cli.show import Show
from growarray.cli.terminal import say_interrupted
from growarray.contraction.machine import cache_folder
from growarray.errors import GrowArrayError
from growarray.networks import History, write_atomically
from growarray.networks.picture import draw

__all__ = ["app", "closing_lines", "common", "grow"]

app = typer.Typer(
    cls=Group, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, rich_markup_mode=None
)

_DEFAULTS = RunOptions()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"growarray {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show it")] = False,
) -> None:
    """Neural networks that grow, on NumPy and CuPy."""


def _option(name: str, text: str, panel: str, *flags: str, none: str = "", takes: str = "NUMBER") -> Any:
    """An option that is None unless it is given: its default stands in :class:`RunOptions`, and in the help."""
    default = none or str(getattr(_DEFAULTS, name))
    metavar = choices(*CHOICES[name]) if name in CHOICES else takes
    return option(metavar, f"{text}; default {default}", *flags, panel=panel, show_default=False)


_D, _N, _G, _T, _O = "Data", "Network", "Growth", "Training", "Output"


@app.command(cls=Command)
def grow(
    data: Annotated[str | None, _option("data", "'digits', or a .npz, .npy or .csv file", _D, takes="FILE")] = None,
    labels: Annotated[
        str | None, _option("labels", "second .npy file with the labels", _D, none="none", takes="FILE")
    ] = None,
    label_column: Annotated[
        str | None, _option("label_column", "CSV column with them", _D, none="the last", takes="NAME")
    ] = None,
    task: Annotated[str | None, _option("task", "what the labels are for", _D)] = None,
    standardise: Annotated[
        bool | None, _option("standardise", "mean 0, deviation 1", _D, none="no for digits, yes for files")
    ] = None,
    validation_fraction: Annotated[float | None, _option("validation_fraction", "of the training part", _D)] = None,
    test_fraction: Annotated[float | None, _option("test_fraction", "of all samples", _D)] = None,
    network: Annotated[str | None, _option("network", "layers in a row, or blocks that meet in sums", _N)] = None,
    hidden_layers: Annotated[int | None, _option("hidden_layers", "hidden layers, or residual blocks", _N)] = None,
    width: Annotated[int | None, _option("width", "neurons of each at the start", _N)] = None,
    activation: Annotated[str | None, _option("activation", "relu, gelu, selu, tanh, ...", _N, takes="NAME")] = None,
    rule: Annotated[str | None, _option("rule", "how new neurons are computed", _G)] = None,
    choose: Annotated[
        str | None, _option("choose", "the place to grow by promised change, or by the loss after it", _G)
    ] = None,
    neurons: Annotated[int | None, _option("neurons", "most that one growth adds", _G)] = None,
    every: Annotated[int | None, _option("every", "epochs from growth to growth", _G)] = None,
    first: Annotated[int | None, _option("first", "epochs before the first growth", _G)] = None,
    growths: Annotated[int | None, _option("growths", "most of them", _G, none="no limit")] = None,
    max_parameters: Annotated[
        int | None, _option("max_parameters", "budget; 0 for no limit", _G, none="as the data allow")
    ] = None,
    least_gain: Annotated[
        float | None, _option("least_gain", "fall of the validation loss for each parameter added", _G)
    ] = None,
    patience: Annotated[int | None, _option("patience", "growths in a row that may fail; 0 for no limit", _G)] = None,
    max_flops: Annotated[int | None, _option("max_flops", "of one sample forward; 0 for no limit", _G)] = None,
    relative_error: Annotated[
        float | None, _option("relative_error", "collect until statistics are this sure", _G, none="all samples")
    ] = None,
    epochs: Annotated[int | None, _option("epochs", "passes over the training part", _T)] = None,
    batch_size: Annotated[int | None, _option("batch_size", "samples a step", _T)] = None,
    lr: Annotated[float | None, _option("lr", "learning rate at the start, to 0 along a cosine", _T)] = None,
    weight_decay: Annotated[float | None, _option("weight_decay", "of AdamW", _T)] = None,
    label_smoothing: Annotated[float | None, _option("label_smoothing", "of the cross entropy", _T)] = None,
    seed: Annotated[int | None, _option("seed", "of splits, weights and batches", _T)] = None,
    dtype: Annotated[str | None, _option("dtype", "of data and weights", _T)] = None,
    device: Annotated[str | None, _option("device", "cpu, cuda or cuda:N", _T, takes="NAME")] = None,
    compare: Annotated[bool | None, _option("compare", "train a fixed network too", _O, "--compare", none="no")] = None,
    output: Annotated[Path | None, _option("", "folder to write into", _O, none="none", takes="FOLDER")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the run in --output", rich_help_panel=_O)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="show the last line alone", rich_help_panel=_O)] = False,
) -> None:
    """Grow a network while it trains, and show what each growth promised and what came of it."""
    given = {name: value for name, value in locals().items() if name not in ("output", "resume", "quiet")}
    with _plain_errors(output):
        show = Show(Console(), quiet=quiet)
        (_resume if resume else _start)(show, given, output)


def _start(show: Show, given: dict[str, Any], folder: Path | None) -> None:
    """A new run."""
    options = options_from(given)
    if folder is None:
        _finish(show, Run(options))
        return
    save.make_folder(folder)
    with locked(folder):
        save.new_folder(folder)
        _finish(show, Run(options, folder=folder))


def _resume(show: Show, given: dict[str, Any], folder: Path | None) -> None:
    """Go on, or show the result of a run that is finished."""
    if folder is None:
        raise ValueError("--resume: expected the folder of the run, found none; name it with --output")
    options, checkpoint = open_run(folder, given)
    if checkpoint.final is not None:
        show.line(f"the run in {folder} is finished; its result:")
        show.result(options, History(checkpoint.state["history"]), checkpoint.final)
        for text in closing_lines(folder):
            show.line(text)
        return
    with locked(folder):
        run = Run.resumed(*open_run(folder, given), folder)  # read again: another run may have gone on until now
        save.check_writable(folder)
        save.remove_leftovers(folder)
        _finish(show, run)


def _finish(show: Show, run: Run) -> None:
    """Train to the end and show the result."""
    with show:
        show.start(run.options, run.data, run.loop)
        run.train(show.entry)
        if run.options.compare:
            show.start_fixed(run.options)
        final = run.finish(show.entry)
    show.result(run.options, run.loop.history, final)
    if run.folder is None and not show.quiet:
        show.line(_picture(run.loop.history))
    for text in closing_lines(run.folder):
        show.line(text)


def closing_lines(folder: Path | None) -> list[str]:
    """Where the result is and how to use it, or how to keep it.

    >>> closing_lines(None)
    ['the network was not kept; add --output DIR to keep it']
    """
    if folder is None:
        return ["the network was not kept; add --output DIR to keep it"]
    return [
        f"written into {folder}; see {save.PICTURE} and {save.HISTORY}",
        f"predict  growarray predict {shlex.quote(str(folder))} DATA",
        f"Python   growarray.load({str(folder)!r}).predict(x)",
        f"ONNX     {folder / save.MODEL}",
    ]


def _picture(history: History) -> str:
    """Draw a run that is not kept, over the picture of the one before, and say where."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / save.PICTURE, draw(history.steps, history.final))
    except OSError as error:
        return f"no picture: {folder} cannot be written to ({error.strerror}); --output names another folder"
    return f"picture in {folder / save.PICTURE}"


@contextmanager
def _plain_errors(folder: Path | None) -> Iterator[None]:
    """One line on stderr for a warning; and exit code 2 for an error that is the user's to mend, 130 for Ctrl-C."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: typer.echo(f"growarray grow: {message}", err=True)
            yield
    except BrokenPipeError:
        raise
    except (GrowArrayError, ValueError, OSError, NotImplementedError) as error:
        typer.echo(f"growarray grow: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    except MemoryError as error:
        found = f" ({error})" if str(error) else ""
        typer.echo(f"growarray grow: not enough memory{found}; lower --width, --neurons or --batch-size", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        how = (
            "nothing was written; with --output a run can be resumed"
            if folder is None or not (folder / save.CHECKPOINT).is_file()
            else f"the run can be resumed: growarray grow --output {folder} --resume"
        )
        say_interrupted(f"growarray grow: interrupted; {how}")
        raise typer.Exit(130) from None
