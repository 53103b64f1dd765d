"""Running the command in this process, and looking at the folder it wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from growarray.cli.application import app

Invoke = Callable[..., Any]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache folder for the time of a test."""
    folder = tmp_path_factory.mktemp("cache") / "growarray"
    monkeypatch.setenv("GROWARRAY_CACHE", str(folder))
    return folder


@pytest.fixture
def grow(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Invoke:
    """``grow("--epochs", 2)``: the result of the command, piped, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: CliRunner().invoke(app, ["grow", *map(str, arguments)])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A regression of one target far from 0, as .npz."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((160, 5)) * 100.0
    path = tmp_path / "table.npz"
    np.savez(path, x=x, y=5000.0 + 30.0 * np.abs(x[:, 0]) - 10.0 * x[:, 1])
    return path


RUN_FILES = {"checkpoint.npz", "history.json", "network.onnx", "run.png", "weights.safetensors"}


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
