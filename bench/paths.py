"""``python -m bench paths``: ``growarray bench paths`` with torch and TensorLy-Torch in the same rounds."""

import typer

from bench.peers import peers_for
from growarray.cli.bench.command import BenchCommand, paths_command

__all__ = ["app"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command(cls=BenchCommand, help=__doc__)(paths_command(peers_for))
