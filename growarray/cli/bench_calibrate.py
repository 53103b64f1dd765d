"""``growarray bench calibrate``: measure this machine, show what the fit says, store it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from growarray.backend import library
from growarray.contraction.calibrate import fit, measure
from growarray.contraction.machine import CPU, GPU, Machine, cache_folder, machine_for, threads, to_dict
from growarray.networks import write_atomically

__all__ = ["calibrated", "calibration_file", "calibration_table", "default_machine", "forget", "store"]

_UNITS = {
    "rate": "FLOP/s of a large product",
    "half_rows": "rows that halve the rate",
    "half_columns": "columns that halve it",
    "half_depth": "depth that halves it",
    "element": "s for an element of a pass in cache",
    "copied": "s for a gathered element",
    "gathered": "s for an element read with a stride",
    "byte": "s for a byte from main memory",
    "call": "s for a call into the library",
    "step": "s around one step of a plan",
}


def _kind(device: str | None) -> str:
    return "cpu" if device is None else "gpu"


def default_machine(device: str | None) -> Machine:
    """The coefficients that are used where nothing is stored."""
    return CPU if device is None else GPU


def calibration_file(device: str | None) -> Path:
    """Where the coefficients of this machine are kept."""
    return cache_folder() / f"machine-{_kind(device)}.json"


def calibrated(device: str | None, seconds: float, progress: Callable[[int, int], None] | None = None) -> Machine:
    """The machine model fitted to this machine, measured in about so many seconds; ``progress`` as for ``measure``."""
    if seconds <= 0:
        raise ValueError(f"--seconds: expected more than 0, found {seconds:g}")
    base = default_machine(device)
    cores = threads() if device is None else 1
    found = measure(library(device), cores=cores, seconds=seconds, device=device, progress=progress)
    return fit(found, base, cores=cores, name=f"{_kind(device)}, calibrated")


def store(machine: Machine, device: str | None) -> Path:
    """Write the coefficients; plans that are made from now on use them."""
    path = calibration_file(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(to_dict(machine), indent=1) + "\n").encode())
    machine_for.cache_clear()
    return path


def forget(device: str | None) -> bool:
    """Remove the stored coefficients; False where there were none."""
    path = calibration_file(device)
    known = path.exists()
    path.unlink(missing_ok=True)
    machine_for.cache_clear()
    return known


def calibration_table(machine: Machine, default: Machine) -> Table:
    """Measured coefficients beside the defaults."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, title="machine model, float32, one core")
    table.title_justify = "left"
    table.add_column("coefficient")
    table.add_column("measured", justify="right")
    table.add_column("default", justify="right")
    table.add_column("")
    measured, usual = asdict(machine), asdict(default)
    for name, unit in _UNITS.items():
        table.add_row(name, f"{measured[name]:.3g}", f"{usual[name]:.3g}", unit)
    return table
