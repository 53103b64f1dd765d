"""One layer measured along many paths: what each should cost beside what it does cost, as plain data."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from growarray.backend import is_numpy, to_device, to_numpy
from growarray.cli.bench.candidates import Candidate
from growarray.cli.bench.equation import Contraction
from growarray.cli.bench.measure import (
    Call,
    Peer,
    clock_for,
    interleaved,
    peak_bytes,
    pullback_call,
    spearman,
    synchronised,
    typical,
)
from growarray.contraction import Plan
from growarray.contraction.blas_kernel import blas_named
from growarray.contraction.machine import machine_for, to_dict

KINDS = ("forward", "training")
_DIFFERENT = {"float32": 1e-3, "float64": 1e-9}  # of the largest entry, from which two results are not the same
_PACKAGES = ("growarray", "numpy", "opt_einsum", "torch", "tensorly-torch")
_PASS = {"forward": "forward", "training": "forward + backward"}


def facts(device: str | None) -> dict[str, Any]:
    """What the figures depend on: the machine model, the number of cores, NumPy's BLAS and versions."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": device or "cpu",
        "clock": "processor" if clock_for(device) is time.process_time else "wall",
        "processor": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
        "machine": to_dict(machine_for("cpu" if device is None else "gpu")),
        "blas": blas_named(),
    }


def measure_layer(
    layer: Contraction,
    candidates: Sequence[Candidate],
    *,
    repeat: int,
    seed: int = 0,
    device: str | None = None,
    beside: Any = None,
    memory: bool = True,
    budget: float = math.inf,
    progress: Callable[[int, int], None] | None = None,
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Figures of every candidate, forward, and forward and backward if there is a plan for it.

    beside : gives other libraries on the same layer, to be measured in the same rounds, and remarks on them
    memory : measure the peak too, on a CPU, in calls of their own    budget : seconds, see :func:`interleaved`
    left_out : remarks on paths that are no candidates
    """
    host = layer.arrays(seed)
    arrays = [to_device(a, device) for a in host]
    reference = candidates[0].forward(*arrays)
    expected = to_numpy(reference)
    dy = np.random.default_rng([seed, 1]).standard_normal(expected.shape, expected.dtype)
    others, of_others = ([], []) if beside is None else beside(layer, host, dy, device)
    remarks = [*left_out, *of_others]
    clock = clock_for(device)
    calls = _calls(candidates, others, arrays, to_device(dy, device))
    names = [f"{peer.name} {kind}" for peer in others for kind in KINDS]
    seconds = interleaved(calls, repeat=repeat, budget=budget, spinning=names, progress=progress, clock=clock)
    medians, rows = typical(seconds), []
    for index, candidate in enumerate(candidates):
        row: dict[str, Any] = {
            "label": candidate.label,
            "names": candidate.names,
            "path": [list(pair) for pair in candidate.forward.path],
            "order": candidate.order,
            "products": list(candidate.forward.products),
            "kernels": [step.routine for step in candidate.forward.steps],
            "charged": candidate.charged,
            "difference": _difference(to_numpy(candidate.forward(*arrays)), expected),
        }
        for kind, plan in zip(KINDS, (candidate.forward, candidate.training), strict=True):
            if plan is not None:
                key = f"{index} {kind}"
                peak = peak_bytes(calls[key]) if memory and is_numpy(reference) else None
                row[kind] = _figures(plan, medians[key], seconds[key], peak)
        rows.append(row)
    training = candidates[0].training is not None
    measured = [_peer_row(peer, medians, seconds, expected, training=training) for peer in others]
    for row in (*rows, *measured):
        if not row["difference"] <= _DIFFERENT[layer.dtype]:
            remarks.append(f"{row['label']}: the result differs by {row['difference']:.1e} of its largest entry")
    report = {"layer": layer.to_dict(), "description": str(layer), "paths": rows, "peers": measured, "remarks": remarks}
    return report | {"summary": {kind: _summary(rows, kind) for kind in KINDS if kind in rows[0]}}


def _calls(candidates: Sequence[Candidate], others: Sequence[Peer], arrays: Sequence[Any], dy: Any) -> dict[str, Call]:
    """Everything that is timed, by name."""
    calls: dict[str, Call] = {}
    for index, candidate in enumerate(candidates):
        calls[f"{index} forward"] = synchronised(lambda plan=candidate.forward: plan(*arrays))  # type: ignore[misc]
        if candidate.training is not None:
            calls[f"{index} training"] = synchronised(pullback_call(candidate.training, arrays, dy))
    for peer in others:
        calls[f"{peer.name} forward"] = peer.forward
        if candidates[0].training is not None:
            calls[f"{peer.name} training"] = peer.training
    return calls


def _figures(plan: Plan, median: float, seconds: Sequence[float], peak: int | None) -> dict[str, Any]:
    return {
        "flops": plan.flops,
        "bytes": plan.bytes,
        "predicted_seconds": plan.seconds,
        "measured_seconds": median,
        "rounds": list(seconds),
        "predicted_peak_bytes": plan.peak_bytes,
        "measured_peak_bytes": peak,
    }


def _peer_row(
    peer: Peer, medians: dict[str, float], seconds: dict[str, list[float]], expected: np.ndarray, *, training: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {"label": peer.name, "difference": _difference(peer.result(), expected)}
    for kind in KINDS if training else KINDS[:1]:
        key = f"{peer.name} {kind}"
        row[kind] = {"measured_seconds": medians[key], "rounds": seconds[key]}
    return row


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if expected.size == 0:
        return 0.0
    return float(np.abs(found - expected).max()) / max(float(np.abs(expected).max()), 1e-300)


def _summary(rows: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    """How well prediction and measurement agree on one pass: rank correlation, and auto's choice against the best."""
    predicted = [row[kind]["predicted_seconds"] for row in rows]
    measured = [row[kind]["measured_seconds"] for row in rows]
    wanted = "auto: training" if kind == "training" else "auto: time"
    auto = next((row for row in rows if wanted in row["names"]), rows[0])
    fastest = rows[measured.index(min(measured))]
    correlation = spearman(predicted, measured)
    return {
        "pass": _PASS[kind],
        "spearman": None if math.isnan(correlation) else correlation,
        "auto": auto["label"],
        "fastest": fastest["label"],
        "auto_seconds": auto[kind]["measured_seconds"],
        "fastest_seconds": fastest[kind]["measured_seconds"],
        "auto_behind": auto[kind]["measured_seconds"] / fastest[kind]["measured_seconds"] - 1.0,
    }
