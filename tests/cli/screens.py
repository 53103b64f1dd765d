"""What every command shows in a terminal of 80 columns, kept as text in the folder ``screens``.

Where a screen is meant to change, write them anew, without Numba as the tests run, and look at the difference:
GROWARRAY_FAST=0 python -m tests.cli.screens
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import typer

import growarray
from growarray import nn
from growarray.checkpoint import save_safetensors
from growarray.cli.application import app
from growarray.onnx.export import to_onnx
from tests.cli.terminal import Terminal

FOLDER = Path(__file__).parent / "screens"
LAYER = "--in 4 --out 5 --size 8x8 --batch 2 --rank 3 --repeat 2 --paths 8"
CASES = {
    "version": "--version",
    "unknown_command": "shrink",
    "grow": "grow --epochs 5 --compare --output run",
    "grow_without_output": "grow --epochs 3",
    "grow_quiet": "grow --epochs 2 --quiet",
    "grow_finished": "grow --output run --resume",
    "grow_refused_option": "grow --rule best",
    "grow_unknown_option": "grow --epoch 3",
    "grow_there_already": "grow --output run",
    "predict": "predict run digits",
    "predict_missing": "predict none digits",
    "inspect": "inspect net.onnx",
    "inspect_missing": "inspect none.onnx",
    "convert": "convert net.onnx net.npz",
    "convert_there_already": "convert net.onnx net.npz",
    "compress": "compress net.onnx --budget 0.5 --output small",
    "compress_data": "compress net.onnx --budget 0.5 --calibration x.npy --data labelled.npz",
    "compress_weights": "compress net.safetensors --budget 0.5",
    "compress_impossible": "compress net.safetensors --budget 7",
    "bench_paths": f"bench paths {LAYER} --output paths",
    "bench_search": "bench search ring.json --planner greedy-windows --planner dp-windows",
    "bench_calibrate": "bench calibrate",
    "bench_calibrate_forget": "bench calibrate --forget",
}
MASKED = (
    "grow",
    "compress",
    "predict",
    "bench_search",
)  # commands whose figures are those of a training or a fit: digits are shown as #

# Runs all commands in one process, one after the other, with the figures that a clock would give replaced.
PROGRAM = """
import json, sys
from dataclasses import replace
import growarray.cli as cli
import growarray.cli.bench.calibrate as calibrate, growarray.cli.bench.report as run, growarray.cli.grow.run as grow
from growarray.contraction.machine import CPU

def interleaved(calls, *, repeat, progress=None, **_):
    for done in range(repeat):
        if progress is not None:
            progress(done + 1, repeat)
    return {name: [1e-4 * (1.0 + 0.37 * place % 1.0)] * repeat for place, name in enumerate(calls)}

def calibrated(device, seconds, progress):
    for done in range(4):
        progress(done, 3)
    return replace(CPU, name="cpu, calibrated", rate=1.23e10)

def timed(loop, until):
    loop.run(until=until)
    return 0.25

def patch(module, **values):
    for name, value in values.items():
        assert hasattr(module, name), f"{module.__name__}.{name}"
        setattr(module, name, value)

patch(run, interleaved=interleaved, peak_bytes=lambda call: 12345, blas_named=lambda: "openblas, Haswell kernels")
patch(calibrate, calibrated=calibrated)
patch(grow, _timed=timed)
for name, line in json.loads(sys.argv[1]).items():
    print(f"=== {name}", flush=True)
    sys.argv = ["growarray", *line.split()]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print(f"=== {code}", flush=True)
"""


def commands(command: Any = None, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The names that lead to every command, those that hold others too."""
    command = typer.main.get_command(app) if command is None else command
    yield names
    for name in getattr(command, "commands", ()):
        inner = command.get_command(None, name)
        if not inner.hidden:
            yield from commands(inner, (*names, name))


def cases() -> dict[str, str]:
    """Command lines by the name of their screen; the help of every command among them."""
    return {"_".join((*names, "help")): " ".join((*names, "--help")) for names in commands()} | CASES


def network() -> nn.Sequential:
    rng = np.random.default_rng(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, rng=rng), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2, rng=rng), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12, rng=rng),
    )  # fmt: skip


def files(folder: Path) -> None:
    """What the commands read."""
    net, rng = network(), np.random.default_rng(1)
    to_onnx(net, folder / "net.onnx", (1, 3, 10, 10))
    save_safetensors(net.state_dict(), folder / "net.safetensors")
    x = rng.standard_normal((40, 3, 10, 10)).astype(np.float32)
    np.save(folder / "x.npy", x[:20])
    ring = {"equation": "ab,bc,cd,da->", "shapes": "9x2, 2x8, 8x3, 3x9", "best": {"flops": 500}}
    (folder / "ring.json").write_text(json.dumps(ring))
    np.savez(folder / "labelled.npz", x=x, y=np.argmax(net(x), axis=1))


class Shown(NamedTuple):
    """What the terminal got, and screen and exit code of every case."""

    written: str
    screens: dict[str, str]
    codes: dict[str, int]


def shown(folder: Path, lines: Mapping[str, str], *, columns: int = 80, **changes: str) -> Shown:
    """Run command lines in a folder that is empty at the beginning."""
    files(folder)
    settings = {"GROWARRAY_CACHE": "cache", "GROWARRAY_THREADS": "2", **changes}
    ended = Terminal("-c", PROGRAM, json.dumps(lines), columns=columns, cwd=folder, **settings).end()
    assert ended.code == 0, ended.written
    text = "\n".join(ended.screen) + "\n"
    found = re.findall(r"^=== (\w+)\n(.*?)^=== (\d+)\n", text, re.DOTALL | re.MULTILINE)
    return Shown(ended.written, {name: text for name, text, _ in found}, {name: int(code) for name, _, code in found})


def masked(name: str, screen: str) -> str:
    """The screen without the figures that another machine would have otherwise."""
    screen = screen.replace(growarray.__version__, "VERSION")
    if name.startswith(MASKED) and not name.endswith("help"):
        # a column is as wide as before, whether 0.480 or 0.48 stands in it
        screen = re.sub(r" *\d+\.\d+(e-\d+)?", lambda match: "#.#".rjust(len(match.group())), screen)
        screen = re.sub(r"(?m)^( +\d+ +)\d( +\d)$", r"\1#\2", screen)  # a class that was predicted
    return screen


def write() -> None:
    """Write all screens, remove those of no case, and name what changed."""
    with tempfile.TemporaryDirectory() as folder:
        screens = shown(Path(folder), cases()).screens
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.txt"):
        if path.stem not in screens:
            path.unlink()
            print(f"removed {path.name}")
    for name, screen in screens.items():
        path, screen = FOLDER / f"{name}.txt", masked(name, screen)
        if not path.exists() or path.read_text(encoding="utf-8") != screen:
            path.write_text(screen, encoding="utf-8")
            print(f"written {path.name}")


if __name__ == "__main__":
    sys.exit(write())
