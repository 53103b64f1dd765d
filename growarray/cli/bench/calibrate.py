"""``growarray bench calibrate``: measure this machine, show what the fit says, store it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from growarray.backend import library
from growarray.cli.bench.command import Device, bench_console, device_named
from growarray.cli.options import option, switch
from growarray.cli.terminal import plain_table, show_table, stderr_bar
from growarray.contraction.calibrate import fit, measure
from growarray.contraction.machine import CPU, GPU, Machine, cache_folder, machine_for, threads, to_dict
from growarray.errors import shown
from growarray.networks import write_atomically

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
_OF_GPUS = {
    "implicit": "FLOP/s of a convolution by the own kernel; fitted without cuDNN",
    "cudnn": "FLOP/s of a convolution by cuDNN; fitted with it",
}


def calibrate(
    device: Device = "cpu",
    seconds: Annotated[float, option("NUMBER", "about how long to measure", panel="Measuring")] = 40.0,
    dry_run: Annotated[bool, switch("--dry-run", "print the result, store nothing", "Output")] = False,
    forget: Annotated[bool, switch("--forget", "remove what is stored", "Output")] = False,
) -> None:
    """Measure, show and store; or forget what is stored."""
    if forget and dry_run:
        raise ValueError("--forget, --dry-run: pass only one")
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {shown(device)}; expected 'cpu', 'cuda' or 'cuda:N'")
    kind = "cpu" if device == "cpu" else "gpu"
    path = cache_folder() / f"machine-{kind}.json"
    if forget:  # the device need not be there any more
        known = path.exists()
        path.unlink(missing_ok=True)
        machine_for.cache_clear()
        typer.echo(f"removed {path}" if known else f"nothing to remove: there is no {path}")
        return
    if not 0 < seconds < math.inf:
        raise ValueError(f"--seconds: expected more than 0, found {seconds:g}")
    name = device_named(device)
    if not dry_run:
        path.parent.mkdir(parents=True, exist_ok=True)
    with stderr_bar("measuring") as bar:
        machine = calibrated(name, seconds, bar.update)
    show_table(bench_console(), calibration_table(machine, _default(name)))
    if not dry_run:
        _store(path, machine)
        typer.echo(f"stored in {path}")


def calibrated(device: str | None, seconds: float, progress: Callable[[int, int], None] | None = None) -> Machine:
    """The machine model fitted to this machine, measured in about so many seconds; ``progress`` as for ``measure``."""
    cores = threads() if device is None else 1
    measured = measure(library(device), cores=cores, seconds=seconds, device=device, progress=progress)
    return fit(measured, _default(device), cores=cores, name=f"{'cpu' if device is None else 'gpu'}, calibrated")


def _default(device: str | None) -> Machine:
    return CPU if device is None else GPU


def _store(path: Path, machine: Machine) -> None:
    """Write the coefficients; plans that are made from now on use them."""
    write_atomically(path, (json.dumps(to_dict(machine), indent=1) + "\n").encode())
    machine_for.cache_clear()


def calibration_table(machine: Machine, default: Machine) -> Table:
    """Measured coefficients beside the defaults."""
    table = plain_table("machine model, float32, one core")
    table.add_column("coefficient")
    table.add_column("measured", justify="right")
    table.add_column("default", justify="right")
    table.add_column("")
    measured, usual = asdict(machine), asdict(default)
    for name, unit in (_UNITS if default is CPU else _UNITS | _OF_GPUS).items():
        table.add_row(name, f"{measured[name]:.3g}", f"{usual[name]:.3g}", unit)
    return table
