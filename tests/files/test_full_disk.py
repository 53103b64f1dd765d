"""A disk that is full at any byte of any file: the error names the file, the old files stay, nothing else is left."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import growarray
from growarray import nn
from growarray.checkpoint import save_npz, save_safetensors
from growarray.cli.grow.folder import locked
from growarray.cli.grow.options import RunOptions
from growarray.cli.grow.run import Run
from growarray.networks import GrowingMLP, History
from growarray.onnx.export import to_onnx

resource = pytest.importorskip("resource")


def _network(seed: int) -> nn.Sequential:
    rng = np.random.default_rng(seed)
    return nn.Sequential(nn.Linear(4, 400, rng=rng), *[nn.ReLU() for _ in range(300)])


def _history(seed: int) -> History:
    history = History()
    history.add("train", epoch=1, train_loss=2.0 + seed, validation_loss=2.1, validation_score=0.3, widths=[2])
    return history


def _checkpoint(seed: int, folder: Path) -> None:
    Run(RunOptions(data="digits", seed=seed, first=1), folder=folder).save()


WRITERS: dict[str, Callable[[int, Path], object]] = {
    "safetensors": lambda seed, folder: save_safetensors({"w": np.full(2000, seed)}, folder / "w.safetensors"),
    "npz": lambda seed, folder: save_npz({"w": np.full(2000, seed), "v": np.ones(900)}, folder / "w.npz"),
    "network": lambda seed, folder: growarray.save(
        GrowingMLP(3, 2, 4, rng=np.random.default_rng(seed)), folder / "network.safetensors"
    ),
    "onnx": lambda seed, folder: to_onnx(_network(seed), folder / "net.onnx", (1, 4)),
    "onnx and data": lambda seed, folder: to_onnx(_network(seed), folder / "net.onnx", (1, 4), external_data=True),
    "history": lambda seed, folder: _history(seed).save(folder / "history.json"),
    "picture": lambda seed, folder: _history(seed).plot(folder / "run.png"),
    "run": _checkpoint,
}


@pytest.fixture
def full_after() -> Iterator[Callable[[int], None]]:
    """``full_after(n)``: no file can grow beyond ``n`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_files_as_they_were(name, tmp_path, full_after) -> None:
    write, old, new = WRITERS[name], tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    write(0, old)
    write(1, new)
    before, after = content(old), content(new)
    assert before != after
    for size in {0, *(len(data) - 1 for data in after.values())}:
        full_after(size)
        try:
            with pytest.raises(OSError, match=str(old)) as found:
                write(1, old)
        finally:
            full_after(resource.RLIM_INFINITY)
        assert found.value.errno == errno.EFBIG
        assert content(old) == before


def test_a_lock_holds_on_a_full_disk(tmp_path, full_after) -> None:
    full_after(0)
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
    assert list(tmp_path.iterdir()) == []
