"""The command ``growarray``; it needs the extra ``cli`` (typer, rich, matplotlib)."""

from __future__ import annotations

import importlib
import sys

__all__ = ["main"]

_NEEDED = ("typer", "rich", "matplotlib")


def _missing() -> list[str]:
    """The libraries of the extra that cannot be imported."""
    missing = []
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    return missing


def main() -> None:
    """Run the command line; a missing extra is said in one line, with exit code 2."""
    missing = _missing()
    if missing:
        sys.stderr.write(
            f"growarray: the command needs {', '.join(_NEEDED)}, not found: {', '.join(missing)}; "
            'install them with: pip install "growarray[cli]"\n'
        )
        raise SystemExit(2)
    app = importlib.import_module("growarray.cli.grow").app
    app.add_typer(importlib.import_module("growarray.cli.bench").app, name="bench")
    for name in ("predict", "inspect", "convert", "compress"):
        app.command(name)(getattr(importlib.import_module(f"growarray.cli.{name}"), name))
    app()
