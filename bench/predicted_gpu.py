"""What steps on a GPU would cost, predicted without one: ``python -m bench predicted_gpu``.

A double of CuPy counts launches, copies, waits and memory of the very code that would run there. Nothing is timed: a
launch counts as long as one took the host of an H100 once (see ``COSTS``), Python around it counts nothing. Beside it
is what the device needs for products and convolutions, at the rate of large products, which the convolution kernel is
unlikely to reach, and for the bytes that are moved. Both go on at the same time, so a step takes at least the larger
one. The peers' times were measured on that H100, long before this code was written.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench import sides
from bench.timing import show, table
from growarray import nn, ops
from growarray.optim import AdamW

__all__ = ["report", "run"]

COSTS = {  # microseconds of the host; what was not measured has the cost of the nearest that was
    "kernel": 7.0,
    "product": 18.0,
    "__matmul__": 23.0,
    "operation": 14.0,
    "array": 3.3,
    "copy": 7.0,  # to the device, not measured
}
FLOPS, BYTES = 51e12, 3.0e12  # float32 products, and copies, a second
DOUBLES = 51e12  # float64 products: not measured, the same tensor cores take them
COLUMNS = {
    "name": "step",
    "launches": "launches:d",
    "products": "products:d",
    "operations": "other operations:d",
    "copies": "copies:d",
    "waits": "waits:d",
    "host": "host, predicted us:.0f",
    "device": "device, predicted us:.0f",
    "moved": "MiB moved:.0f",
    "memory": "peak MiB:.1f",
    "peer": "peer, measured us:.0f",
    "ratio": "peer over the larger:.2f",
}


def _labels(cuda: Any, n: int) -> Any:
    return cuda.array(np.zeros(n, np.int64))


def _training(network: nn.Module, *shape: int) -> Callable[[Any], Callable[[], Any]]:
    """A step of training: forward, loss, back, AdamW."""

    def prepared(cuda: Any) -> Callable[[], Any]:
        network.to(cuda.array(np.ones(1)))
        x, labels, optimizer = cuda.array(np.zeros(shape, np.float32)), _labels(cuda, shape[0]), AdamW(network)

        def step() -> Any:
            y, pullback = network.vjp(x)
            loss, back = ops.cross_entropy(y, labels)
            optimizer.zero_grad()
            pullback(back(), wrt_x=False)
            del y, pullback, back  # as torch forgets what its way back has read
            optimizer.step()
            return loss

        return step

    return prepared


def _mlp() -> nn.Module:
    layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise((784, 1024, 1024, 10))]
    return nn.Sequential(*list(itertools.chain(*layers))[:-1])


def _cnn() -> nn.Module:
    def part(channels: int, out: int) -> list[nn.Module]:
        conv = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(*part(3, 64), *part(64, 128), nn.Flatten(), nn.Linear(128 * 64, 10))


def _adamw(cuda: Any) -> Callable[[], Any]:
    network = _mlp().to(cuda.array(np.ones(1)))
    for p in network.parameters():
        p.grad = cuda.array(np.zeros(p.shape, np.float32))
    return AdamW(network).step


def _statistics(layers: int, n: int, d: int, shared: bool = False) -> Callable[[Any], Callable[[], Any]]:
    """A step of :mod:`bench.merge_statistics`: forward, back, S and M of a layer, or of the activity before a merge."""

    def prepared(cuda: Any) -> Callable[[], Any]:
        side: Any = sides.ours(sides.Case(layers, shared, n, d))
        moved = {id(x): cuda.array(x) for x in side.inputs}
        side.inputs, side.gradient = [moved[id(x)] for x in side.inputs], cuda.array(side.gradient)
        for layer in side.layers:
            layer.to(side.gradient)

        def step() -> None:
            side.forward_backward()
            side.update()

        return step

    return prepared


PARAMETERS = {"MLP": 1_863_690, "CNN": 157_770, "AdamW": 1_863_690}
CONVOLUTIONS = {"CNN": 2.0 * 256 * (2 * 1024 * 27 * 64 + 3 * 256 * 576 * 128)}  # operations, forward and back
# what makes the step, and the peer's microseconds as measured: torch eager, torch's fused AdamW, GroMo
CASES: dict[str, tuple[Any, float]] = {
    "MLP 784-1024-1024-10, batch 256": (lambda cuda: _training(_mlp(), 256, 784)(cuda), 1170.0),
    "CNN of 64 and 128 channels, 32 x 32, batch 256": (lambda cuda: _training(_cnn(), 256, 3, 32, 32)(cuda), 2650.0),
    "AdamW of that MLP": (_adamw, 59.0),
    "statistics of a layer, n 4096, d 256": (_statistics(1, 4096, 256), 860.0),
    "statistics of a layer, n 65536, d 1024": (_statistics(1, 65536, 1024), 15500.0),
    "statistics of a merge of 2, shared, n 65536, d 1024": (_statistics(2, 65536, 1024, True), 37000.0),
    "statistics of a merge of 3, n 4096, d 1024": (_statistics(3, 4096, 1024), 5300.0),
}


def _counted(name: str, cuda: Any) -> dict[str, Any]:
    (make, peer), kind = CASES[name], name.partition(" ")[0]
    cuda.dry = True
    step = make(cuda)
    step()  # kernels are made, slots are there
    cuda.forget()
    held = step()
    kernels, products = (cuda.launches.count(kind) for kind in ("kernel", "product"))
    matmuls = cuda.operations.count("__matmul__")
    others = len(cuda.operations) - matmuls
    counts = {"kernel": kernels, "product": products, "__matmul__": matmuls, "operation": others}
    counts |= {"array": cuda.allocations, "copy": len(cuda.uploads)}
    host = sum(COSTS[kind] * count for kind, count in counts.items())
    moved = cuda.moved + 28 * PARAMETERS.get(kind, 0)  # AdamW reads four arrays of float32 and writes three, by a table
    single = cuda.flops["float32"] + CONVOLUTIONS.get(kind, 0.0)
    device = 1e6 * (single / FLOPS + cuda.flops["float64"] / DOUBLES + moved / BYTES)
    row = {"name": name, "launches": kernels, "products": products + matmuls, "operations": others}
    row |= {"copies": len(cuda.uploads), "waits": len(cuda.waits), "host": host, "device": device}
    row |= {"moved": moved / 2**20}
    del held
    return row | {"memory": cuda.peak / 2**20, "peer": peer, "ratio": peer / max(host, device)}


def run(quick: bool = False, progress: Callable[[Mapping[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Every step, counted; ``quick`` leaves those out that need gigabytes here."""
    double = importlib.import_module("tests.cuda.device").counting
    rows = []
    for name in list(CASES)[:4] if quick else CASES:
        with double() as cuda:
            rows.append(_counted(name, cuda))
        show(str(rows[-1]))
        progress({"rows": rows})
    return {"rows": rows}


def report(result: Mapping[str, Any]) -> str:
    """What was counted, and what it would take."""
    return f"Predicted from counts, not measured.\n\n{table(result['rows'], COLUMNS)}"
