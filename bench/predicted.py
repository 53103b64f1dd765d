"""What the layers of :mod:`bench.gpu` should take, from launches and bytes counted on any machine: no measurement.

``python -m bench gpu --predict``. Times are those of the planner's model of an H100, or of this machine's calibration.
A peer's time is one that was measured on an H100 (CuPy 14.2, torch 2.11 without TF32, float32), where there is one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bench.factorized import QUICK
from bench.suite import CASES, Case
from bench.timing import show, table
from growarray.contraction import Plan
from growarray.contraction.program import Program
from growarray.contraction.routines.cupy import operations
from growarray.contraction.routines.tiles import WORTH
from growarray.contraction.run_cupy import grouped

__all__ = ["BATCH", "DENSE", "launches", "report", "run"]

BATCH = 64
DENSE = (
    Case("dense", 64, 64, "3x3", "56x56", 1, BATCH, 1.0),
    Case("dense", 64, 128, "3x3", "56x56", 2, BATCH, 1.0),
    Case("dense", 3, 64, "7x7", "224x224", 2, BATCH, 1.0),
)
"""Convolutions of ResNet."""

_MEASURED = {  # seconds of the fastest peer, forward: TensorLy-Torch, and torch of dense convolutions
    ("cp", 64, 64, "3x3", 1, 8, 0.05): 151e-6,
    ("cp", 64, 64, "3x3", 1, 64, 0.1): 186e-6,
    ("cp", 128, 128, "3x3", 1, 64, 1.0): 260e-6,
    ("dense", 64, 64, "3x3", 1, 64, 1.0): 360e-6,
    ("dense", 64, 128, "3x3", 2, 64, 1.0): 240e-6,
    ("dense", 3, 64, "7x7", 2, 64, 1.0): 730e-6,
}
_WAYS = {"forward": False, "both": True}
_BACK = {"matmul": 3, "outer": 3, "implicit": 3, "cudnn": 2, "depthwise": 3}  # launches of its way back at most

COLUMNS = {
    "name": "layer",
    "path": "path",
    "forward_launches": "launches, forward:d",
    "forward_bytes": "MB, forward:.1f",
    "forward": "forward, predicted us:.0f",
    "forward_own": "without cuDNN:.0f",
    "both_launches": "launches, both ways:d",
    "both": "both ways, predicted us:.0f",
    "both_own": "without cuDNN:.0f",
    "peer": "fastest peer, forward, measured us:.0f",
    "ratio": "peer over ours:.2f",
    "ratio_own": "without cuDNN:.2f",
}


@contextmanager
def _cudnn(there: bool) -> Iterator[None]:
    """Plans as with cuDNN or without it, whether it is installed or not."""
    routine = importlib.import_module("growarray.contraction.routines.cudnn")
    planned = importlib.import_module("growarray.contraction.plan")._cached
    known = routine.available
    planned.cache_clear()
    routine.available = lambda: there
    try:
        yield
    finally:
        routine.available = known
        planned.cache_clear()


def launches(plan: Plan) -> int:
    """Launches of a call at most: those of the way back too if the plan is for training."""
    groups = grouped(Program.of(plan.problem, plan.tree, "cupy").steps)
    steps = [group.steps[0] for group in groups]
    names = [step.forward.name for step in steps]
    pieces = sum(
        name == "implicit" and operations(step.pair.product) >= WORTH for name, step in zip(names, steps, strict=True)
    )
    count = len(names) + pieces  # what adds the pieces of a sum
    return count + pieces + sum(_BACK[name] for name in names) if plan.training else count


def _row(case: Case) -> dict[str, Any]:
    layer = case.layer()
    row: dict[str, Any] = {"name": str(case)}
    for cudnn, ending in ((True, ""), (False, "_own")):
        with _cudnn(cudnn):
            for way, training in _WAYS.items():
                plan = layer.plan(training=training, device="cuda")
                row[f"{way}{ending}"] = 1e6 * plan.seconds
                if cudnn:
                    row |= {f"{way}_launches": launches(plan), f"{way}_bytes": plan.bytes / 1e6}
                    row["path"] = ", ".join(step.routine for step in plan.steps)
    peer = _MEASURED.get((*case[:4], *case[5:]))
    if peer is None:
        return row | dict.fromkeys(("peer", "ratio", "ratio_own"))
    return row | {
        "peer": 1e6 * peer,
        "ratio": 1e6 * peer / row["forward"],
        "ratio_own": 1e6 * peer / row["forward_own"],
    }


def run(quick: bool = False, progress: Callable[[Mapping[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Every layer of the table, with the batch of the suite and with 64, and dense convolutions."""
    layers = [CASES[number - 1] for number in QUICK[: 2 if quick else None]]
    batches = [case._replace(batch=batch) for case in layers for batch in sorted({case.batch, BATCH})]
    result: dict[str, Any] = {"predicted": True, "rows": []}
    for case in [*batches, *DENSE]:
        result["rows"].append(_row(case))
        show(str(result["rows"][-1]))
        progress(result)
    return result


def report(result: Mapping[str, Any]) -> str:
    """The table, named as predicted."""
    return (
        "PREDICTED from counted launches and bytes by the planner's model, not measured. The rate of the own kernel, "
        f"without cuDNN, follows from its compiled instructions.\n\n{table(result['rows'], COLUMNS)}"
    )
