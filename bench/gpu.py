"""Convolutions and AdamW on a GPU beside TensorLy-Torch and torch there: ``python -m bench gpu --json FILE``.

Ten layers of the suite (:mod:`bench.suite`, so the extra ``cli`` must be there) with its batch and with 64, and dense
convolutions, float32. Each call waits for the device. Ratios are those of the fastest peer over ours; above 1 ours is
faster. ``--predict`` shows on any machine what they should take: :mod:`bench.predicted`.
"""

from __future__ import annotations

import importlib
import itertools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench import predicted
from bench.factorized import QUICK
from bench.peers import peers_for
from bench.predicted import BATCH, DENSE
from bench.suite import CASES, Case
from bench.timing import geometric_mean, show, table
from growarray import nn
from growarray.backend import library, to_device
from growarray.cli.bench.measure import interleaved, pullback_call, synchronised
from growarray.errors import DeviceError
from growarray.optim import AdamW

__all__ = ["report", "run"]

COLUMNS = {
    "name": "layer",
    "forward_ours": "forward, ours us:.0f",
    "forward_best": "fastest peer",
    "forward_ratio": "ratio:.2f",
    "both_ours": "forward + backward, ours us:.0f",
    "both_best": "fastest peer",
    "both_ratio": "ratio:.2f",
}
_FIRST = 2  # layers of a quick run
_ROUNDS, _BUDGET = 15, 4.0  # of one comparison, seconds at most


def _times(calls: Mapping[str, Callable[[], Any]]) -> tuple[float, str, float]:
    """Microseconds of ours, the fastest of the others, and its time over ours."""
    found = interleaved({k: synchronised(c) for k, c in calls.items()}, repeat=_ROUNDS, budget=_BUDGET)
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    ours = medians.pop("ours")
    best = min(medians, key=lambda name: medians[name], default="none")
    return 1e6 * ours, best, medians.get(best, float("nan")) / ours


def _layer(case: Case) -> dict[str, Any]:
    layer = case.layer()
    arrays = layer.arrays(0)
    forward, both = (layer.plan(training=training, device="cuda") for training in (False, True))
    dy = np.random.default_rng(1).standard_normal(forward.output_shape, dtype=np.float32)
    there, there_dy = [to_device(a, "cuda") for a in arrays], to_device(dy, "cuda")
    peers, missing = peers_for(layer, arrays, dy, "cuda")
    for line in missing:
        show(line)
    row: dict[str, Any] = {"name": str(case)}
    ways = {"forward": lambda: forward(*there), "both": pullback_call(both, there, there_dy)}
    for way, ours in ways.items():
        beside = [p for p in peers if ("TensorLy" in p.name) == (case.format != "dense")]
        theirs = {p.name: p.forward if way == "forward" else p.training for p in beside}
        found = _times({"ours": ours, **theirs})
        row |= dict(zip((f"{way}_ours", f"{way}_best", f"{way}_ratio"), found, strict=True))
    return row


def _adamw() -> dict[str, Any]:
    """A step of the MLP 784-1024-1024-10, beside torch's fused one."""
    sizes = (784, 1024, 1024, 10)
    network = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))).to("cuda")
    for p in network.parameters():
        p.grad = to_device(np.ones(p.shape, np.float32), "cuda")
    optimizer, first = AdamW(network, lr=1e-3), next(iter(network.parameters()))

    def ours() -> Any:
        optimizer.step()
        return first.data

    calls: dict[str, Callable[[], Any]] = {"ours": ours}
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        torch = None
    if torch is not None and torch.cuda.is_available():
        theirs = [torch.ones(p.shape, device="cuda", requires_grad=True) for p in network.parameters()]
        for p in theirs:
            p.grad = torch.ones_like(p)
        fused = torch.optim.AdamW(theirs, lr=1e-3, fused=True)
        calls["torch, fused"] = lambda: (fused.step(), torch.cuda.synchronize())
    return dict(zip(("ours", "best", "ratio"), _times(calls), strict=True))


def run(
    quick: bool = False,
    progress: Callable[[Mapping[str, Any]], None] = lambda _: None,
    predict: bool = False,
) -> dict[str, Any]:
    """Every layer, and the optimizer; what is missing if there is no GPU, or with ``predict`` what they should take."""
    if predict:
        return predicted.run(quick, progress)
    try:
        library("cuda")
    except DeviceError as error:
        return {"missing": str(error)}
    cupy = importlib.import_module("cupy")
    device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    result: dict[str, Any] = {"device": device, "cupy": cupy.__version__, "rows": []}
    for number in QUICK[:_FIRST] if quick else QUICK:
        case = CASES[number - 1]
        for batch in sorted({case.batch, BATCH}):
            result["rows"].append(_layer(case._replace(batch=batch)))
            show(str(result["rows"][-1]))
            progress(result)
    result["dense"] = [_layer(case) for case in DENSE[: 1 if quick else None]]
    result["adamw"] = _adamw()
    return result


def report(result: Mapping[str, Any]) -> str:
    """The card, the geometric means, and the tables."""
    if "predicted" in result:
        return predicted.report(result)
    if "missing" in result:
        return f"Nothing was measured: {result['missing']}"
    rows, adamw = result["rows"], result["adamw"]
    means = [geometric_mean(row[key] for row in rows) for key in ("forward_ratio", "both_ratio")]
    head = (
        f"{result['device']}, CuPy {result['cupy']}. Geometric mean of TensorLy-Torch's fastest over ours, {len(rows)} "
        f"layers: {means[0]:.2f} forward (goal 1.5), {means[1]:.2f} forward + backward (goal 1.3). AdamW of an MLP: "
        f"{adamw['ours']:.0f} us, {adamw['best']} over ours {adamw['ratio']:.2f}."
    )
    dense = f"Dense convolutions beside torch (goal 0.95 with cuDNN):\n\n{table(result['dense'], COLUMNS)}"
    return f"{head}\n\n{table(rows, COLUMNS)}\n\n{dense}"
