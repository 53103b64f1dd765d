"""Loading a state dict of torch: beside ``torch.load(weights_only=True, mmap=True)`` and ptloader, in one process.

A state dict of 500 MB (50 where quick) in float32 is made on the fly and stays in the system's cache of files.

first : seconds from the path to the first tensor, its bytes read
all : seconds until every tensor was handed out and every byte of it was read once. A map that nobody reads costs
    nothing, so reading is part of it: one exclusive or over all words, the same NumPy call for each library.
copied : the same, with a copy of each tensor in memory of its own in place of the reading, all of them kept

growarray checks the CRC-32 of each record when it is first read, torch does not: growarray is there with and without.
Peak memory is that of a fresh process, pages of the map that were read included:
``python -m bench.checkpoint SIDE FILE``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bench.timing import clock, compare_phases, repository, table

__all__ = ["report", "run"]

BYTES, QUICK_BYTES = 500_000_000, 50_000_000
SHAPES = ((1024, 1024), (4096, 1024), (1024,), (1024, 4096), (512, 512, 3, 3), (512,))
PAIRS = (
    ("growarray", "torch"),
    ("growarray, checksums=False", "torch"),
    ("growarray", "ptloader"),
)

Load = Callable[[str], Iterable[np.ndarray]]


def _growarray(path: str, *, checksums: bool = True) -> Iterable[np.ndarray]:
    from growarray import load_checkpoint

    return load_checkpoint(path, checksums=checksums).values()


def _unchecked(path: str) -> Iterable[np.ndarray]:
    return _growarray(path, checksums=False)


def _torch(path: str) -> Iterable[np.ndarray]:
    import torch

    tensors = torch.load(path, weights_only=True, mmap=True)
    return (tensor.numpy() for tensor in tensors.values())


def _ptloader(path: str) -> Iterable[np.ndarray]:
    import ptloader

    arrays: Mapping[str, np.ndarray] = ptloader.load(path)
    return arrays.values()


LOADS: dict[str, Load] = {
    "growarray": _growarray,
    "growarray, checksums=False": _unchecked,
    "torch": _torch,
    "ptloader": _ptloader,
}


def _read(array: np.ndarray) -> Any:
    return np.bitwise_xor.reduce(array.reshape(-1).view(np.uint32))


def _phases(load: Load, path: str, use: Callable[[np.ndarray], Any]) -> Callable[[], Mapping[str, float]]:
    def side() -> Mapping[str, float]:
        start, first, kept = clock(), 0.0, []
        for array in load(path):
            kept.append(use(array))
            first = first or clock() - start
        return {"first": first, "all": clock() - start}

    return side


def _make(path: str, nbytes: int) -> int:
    """Write a state dict of at least so many bytes; returns how many tensors it has."""
    import torch

    torch.manual_seed(0)
    state: dict[str, Any] = {}
    while nbytes > 0:
        number = len(state)
        tensor = torch.randn(SHAPES[number % len(SHAPES)])
        state[f"layers.{number // len(SHAPES)}.parameter{number % len(SHAPES)}"] = tensor
        nbytes -= 4 * tensor.numel()
    torch.save(state, path)
    return len(state)


def _peak(side: str, path: str) -> float:
    """MiB that the resident size of a fresh process grows by at its peak, the libraries imported before."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.checkpoint", side, path],
        capture_output=True,
        text=True,
        check=True,
        cwd=repository(),
        env={**os.environ, "PYTHONPATH": str(repository())},
    )
    grown: float = json.loads(done.stdout)
    return grown


def run(*, quick: bool = False, progress: object = None) -> dict[str, Any]:
    """Times by phase, and peak memory of each side; ptloader where it is installed."""
    sides = [side for side in LOADS if side != "ptloader" or importlib.util.find_spec("ptloader")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "state.pt"))
        count = _make(path, QUICK_BYTES if quick else BYTES)
        for ours, theirs in PAIRS:
            if theirs not in sides:
                continue
            for what, use in (("read", _read), ("copied", np.array)):
                both = [_phases(LOADS[side], path, use) for side in (ours, theirs)]
                results = compare_phases(*both, repeat=5 if quick else 9, budget=20)
                for phase, result in results.items():
                    if what == "read" or phase == "all":
                        name = phase if what == "read" else "copied"
                        rows.append({"ours": ours, "theirs": theirs, "phase": name, **_figures(result)})
        peaks = [{"side": side, "mib": _peak(side, path)} for side in sides]
        size = Path(path).stat().st_size
    return {"tensors": count, "bytes": size, "rows": rows, "peaks": peaks, "time": time.strftime("%H:%M")}


def _figures(result: Any) -> dict[str, Any]:
    return {
        "ours_ms": 1e3 * result.ours,
        "theirs_ms": 1e3 * result.theirs,
        "ratio": result.ratio,
        "spread": max(result.ours_spread, result.theirs_spread),
        "others": result.others,
    }


def report(results: Mapping[str, Any]) -> str:
    """Times and peaks as two tables; a ratio above 1 means that growarray is faster."""
    columns = {
        "ours": "side",
        "theirs": "beside",
        "phase": "until",
        "ours_ms": "ms:.1f",
        "theirs_ms": "theirs ms:.1f",
        "ratio": "ratio:.2f",
        "spread": "spread:.2f",
        "others": "others busy:.2f",
    }
    head = f"{results['tensors']} tensors, {results['bytes'] / 1e6:.0f} MB"
    peaks = table(results["peaks"], {"side": "side", "mib": "peak MiB:.0f"})
    return f"{head}\n\n{table(results['rows'], columns)}\n\n{peaks}"


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}; peak memory needs Linux")


def main(side: str, path: str) -> None:
    """Print how far the peak of this process grows while one side loads and reads the file."""
    with tempfile.TemporaryDirectory() as folder:
        small = str(Path(folder, "small.pt"))
        Path(small).write_bytes(b"no checkpoint")
        with suppress(Exception):  # what is imported late is imported, the file is refused
            list(LOADS[side](small))
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for array in LOADS[side](path):
        _read(array)
    print(json.dumps(_status("VmHWM") - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
