"""The machine model of planning: product rate by shape, passes over memory, call overhead."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from growarray.errors import PlanError, shown


def threads() -> int:
    """Cores this process may use; ``GROWARRAY_THREADS`` sets another number. Results do not depend on it."""
    wanted = os.environ.get("GROWARRAY_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return _cores()


@lru_cache(maxsize=1)
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Machine:
    """Coefficients of the time model, float32, one core (or the whole GPU).

    rate : FLOP/s of a large product    half_rows, half_columns, half_depth : sizes of (rows, depth) @ (depth, columns)
    at which one dimension alone halves the rate
    element : seconds for one element of one arithmetic pass in cache    copied : seconds for one gathered element
    gathered : seconds for one element read with a stride    byte : seconds for one byte from main memory, all cores
    row : seconds for beginning one row of gathered elements
    implicit : FLOP/s of a convolution by the kernel of a GPU, which reads windows where they lie, in its largest tiles
    cudnn : FLOP/s of a convolution by cuDNN
    tf32 : how many times faster float32 is multiplied with 10 bits of fraction
    call : seconds for one call into the library    small : seconds for one small product of a batch, beside its own
    step : seconds for what surrounds a pairwise product
    cache : bytes that one core has to itself
    """

    name: str
    rate: float
    half_rows: float
    half_columns: float
    half_depth: float
    element: float
    copied: float
    gathered: float
    byte: float
    call: float
    step: float
    cache: int
    cores: int = 1
    row: float = 5.0e-9
    small: float = 1.05e-7
    implicit: float = 3.0e13
    cudnn: float = 4.0e13
    tf32: float = 2.1

    def with_tf32(self) -> Machine:
        """This machine as it multiplies float32 with 10 bits of fraction."""
        return replace(self, rate=self.rate * self.tf32, cudnn=self.cudnn * self.tf32)

    def product(
        self, batch: int, rows: int, depth: int, columns: int, itemsize: int = 4, each: float | None = None
    ) -> float:
        """Seconds on one core for ``batch`` products (rows, depth) @ (depth, columns).

        each : seconds for each of them beside its operations; an eighth of a call, as a batched call loops in C
        """
        flops = 2.0 * rows * depth * columns
        shape = (1 + self.half_rows / max(rows, 1)) * (1 + self.half_columns / max(columns, 1))
        seconds = flops / self.rate * shape * (1 + self.half_depth / max(depth, 1)) * (itemsize / 4)
        return batch * (seconds + (self.call / 8 if each is None else each))


# Measured on one core of an AMD EPYC with AVX2 and OpenBLAS 0.3.31 while nothing else ran: 2,600 steps of plans of
# layers drawn at random, fitted to the logarithm of the seconds, routine by routine. One prediction is a fifth off.
CPU = Machine(
    "cpu",
    rate=8.8e10,
    half_rows=6.7,
    half_columns=2.1,
    half_depth=5.6,
    element=2.0e-10,
    copied=2.5e-10,
    gathered=8.0e-10,
    byte=3.5e-11,
    call=1.5e-6,
    step=1.2e-5,
    cache=1 << 20,
)
# Measured on an NVIDIA H100 with CuPy 14.2: float32 products at 51 TFLOP/s, copies at 3.0 TB/s (read and written), a
# kernel launched in 7 us, a product in 14. A whole CP layer took 43, 103, 488 and 670 us, batch 8 to 64 and ranks 7 to
# 563: half sizes of 5 and passes of depthwise kernels at 1.2 TB/s give 48, 123, 508 and 639. The convolution kernel,
# `implicit`, has not run on a GPU. Its inner loop is compiled to 655 to 714 instructions, 512 of them multiplications,
# so it stays below 77 % of the 67 TFLOP/s of the card; with what it takes from shared memory it is about half.
GPU = Machine(
    "gpu",
    rate=5.1e13,
    half_rows=5.0,
    half_columns=5.0,
    half_depth=5.0,
    element=3.3e-12,
    copied=2.7e-12,
    gathered=4.0e-12,
    byte=3.3e-13,
    call=7.0e-6,
    step=1.0e-6,
    cache=1 << 62,
    small=1.0e-10,
)


def cache_folder() -> Path:
    """Where ``growarray bench calibrate`` keeps its result: ``GROWARRAY_CACHE``, else the user's cache folder."""
    if os.environ.get("GROWARRAY_CACHE"):
        return Path(os.environ["GROWARRAY_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base) / "growarray" if base else Path.home() / ".cache" / "growarray"


@lru_cache(maxsize=8)
def machine_for(device: str) -> Machine:
    """The calibrated model of this machine, or the default one. ``device`` is ``'cpu'`` or ``'gpu'``.

    Raises PlanError if the stored calibration is damaged.
    """
    default = {"cpu": CPU, "gpu": GPU}[device]
    cores = threads() if device == "cpu" else 1
    path = cache_folder() / f"machine-{device}.json"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return replace(default, cores=cores)
    try:
        return replace(from_dict(json.loads(text)), cores=cores)
    except (ValueError, TypeError) as error:
        raise PlanError(f"{path}: not a calibration ({error}); delete it or run 'growarray bench calibrate'") from error


def from_dict(values: dict[str, Any]) -> Machine:
    """A machine from what :func:`to_dict` wrote; every coefficient is a finite positive number."""
    machine = Machine(**values)
    for key, value in asdict(machine).items():
        if key != "name" and not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise ValueError(f"{key} is {shown(value)}, expected a positive number")
    return machine


def to_dict(machine: Machine) -> dict[str, Any]:
    """Coefficients as plain data."""
    return asdict(machine)
