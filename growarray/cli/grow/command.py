"""``growarray grow``: a new run, or one that goes on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from growarray.cli.command import Command
from growarray.cli.files import check_writable, make_folder
from growarray.cli.grow import folder as files
from growarray.cli.grow.folder import locked
from growarray.cli.grow.options import OPTIONS, options_from
from growarray.cli.grow.resume import open_run
from growarray.cli.grow.run import Run
from growarray.cli.grow.show import Show
from growarray.cli.options import option, switch, takes_options
from growarray.cli.terminal import Screen
from growarray.contraction.machine import cache_folder
from growarray.networks import History, write_atomically
from growarray.networks.picture import draw


class GrowCommand(Command):
    """A run: what to do if memory is short, and how to go on with it after Ctrl-C."""

    remedy = "; lower --width, --neurons or --batch-size"

    def stopped(self, ctx: Any) -> str:
        """How to go on with the run."""
        folder = ctx.params.get("output")
        if folder is None or not (folder / files.CHECKPOINT).is_file():
            return "nothing was written; with --output a run can be resumed"
        return f"the run can be resumed: growarray grow --output {folder} --resume"


@takes_options(OPTIONS)
def grow(
    given: dict[str, Any],
    output: Annotated[Path | None, option("FOLDER", "folder to write into; default none", panel="Output")] = None,
    resume: Annotated[bool, switch("--resume", "go on with the run in --output", "Output")] = False,
    quiet: Annotated[bool, switch("--quiet", "print only the result", "Output")] = False,
) -> None:
    """Begin a run, or go on with one."""
    (_resume if resume else _start)(Show(Screen(), quiet=quiet), given, output)


def _start(show: Show, given: dict[str, Any], folder: Path | None) -> None:
    """A new run."""
    options = options_from(given)
    if folder is None:
        _finish(show, Run(options))
        return
    make_folder(folder)
    with locked(folder):
        files.new_folder(folder)
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
        check_writable(folder)
        files.remove_leftovers(folder)
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
        f"written into {folder}; see {files.PICTURE} and {files.HISTORY}",
        f"predict  growarray predict {shlex.quote(str(folder))} DATA",
        f"Python   growarray.load({str(folder)!r}).predict(x)",
        f"ONNX     {folder / files.MODEL}",
    ]


def _picture(history: History) -> str:
    """Draw a run that is not kept, over the picture of the one before; returns the line that names the file."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / files.PICTURE, draw(history.steps, history.final))
    except OSError as error:
        return f"no picture: {folder} cannot be written to ({error.strerror}); --output names another folder"
    return f"picture in {folder / files.PICTURE}"
