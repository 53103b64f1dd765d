"""Dense and depthwise convolutions beside torch: speed forward and forward + backward, product rate, peak memory.

Float32, the layers of a ResNet. The rate counts the multiplications and additions of the definition.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.timing import Comparison, compare, geometric_mean, product_rate, show, table

__all__ = ["report", "run"]

COLUMNS = {
    "name": "layer",
    "kernel": "kernel",
    "forward_ours": "forward, ours ms:.2f",
    "forward_ratio": "torch / ours:.2f",
    "rate": "of the product rate:.0%",
    "both_ours": "forward + backward, ours ms:.2f",
    "both_ratio": "torch / ours:.2f",
    "memory": "peak / sum:.2f",
    "error": "error:.0e",
    "others": "others:.0%",
}


@dataclass(frozen=True)
class Case:
    """One layer: batch, channels in and out, positions a side, stride, groups, kernel."""

    n: int
    c: int
    o: int
    size: int
    stride: int = 1
    groups: int = 1
    kernel: int = 3

    @property
    def name(self) -> str:
        """``8 x 64 > 64, 56²`` and what is unusual."""
        text = f"{self.n} x {self.c} > {self.o}, {self.size}²"
        text += f", {self.kernel} x {self.kernel}" if self.kernel != 3 else ""
        text += f", stride {self.stride}" if self.stride != 1 else ""
        return text + (", depthwise" if self.groups > 1 else "")


def _cases(quick: bool) -> list[Case]:
    sides = [(64, 56), (128, 28), (256, 14), (512, 7)]
    batches = (8,) if quick else (1, 8, 32)
    cases = [Case(n, c, c, size) for n in batches for c, size in sides]
    cases += [Case(n, c, 2 * c, size, 2) for n in batches for c, size in sides[:-1]]
    cases += [Case(8, c, c, size, 1, c) for c, size in sides]
    return [*cases, Case(8, 3, 64, 224, 2, 1, 7), Case(8, 256, 64, 56, 1, 1, 1)]


def _sides(case: Case) -> tuple[Any, dict[str, Callable[[], object]], float]:
    """Our layer's plan, the four callables, and the largest difference over the largest output."""
    import torch

    from growarray.ops import conv
    from growarray.ops.conv import conv_plan

    rng = np.random.default_rng(0)
    x = rng.standard_normal((case.n, case.c, case.size, case.size), dtype=np.float32)
    w = rng.standard_normal((case.o, case.c // case.groups, case.kernel, case.kernel), dtype=np.float32)
    options = {"stride": case.stride, "padding": case.kernel // 2, "groups": case.groups}
    theirs = torch.nn.functional.conv2d
    tx, tw = torch.from_numpy(x).requires_grad_(), torch.from_numpy(w).requires_grad_()

    def forward() -> Any:
        return conv(x, w, **options)[0]

    def both() -> Any:
        y, back = conv(x, w, **options)
        return back(y)

    def torch_forward() -> Any:
        with torch.no_grad():
            return theirs(tx, tw, **options)

    def torch_both() -> None:
        tx.grad = tw.grad = None
        y = theirs(tx, tw, **options)
        y.backward(y.detach())

    y, reference = forward(), torch_forward().numpy()
    error = float(np.abs(y - reference).max() / np.abs(reference).max())
    plan = conv_plan(x.shape, w.shape, **options)
    return plan, {"forward": forward, "both": both, "torch_forward": torch_forward, "torch_both": torch_both}, error


def _memory(case: Case, forward: Callable[[], Any]) -> float:
    """Peak of a first call with its work space, input and weight, over input, output and weight."""
    from growarray.contraction import workspace

    workspace.release()
    tracemalloc.start()
    y = forward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    given = 4 * (case.n * case.c * case.size**2 + case.o * case.c // case.groups * case.kernel**2)
    return (peak + given) / (y.nbytes + given)


def _row(case: Case, peak: float) -> dict[str, Any]:
    plan, sides, error = _sides(case)
    forward: Comparison = compare(sides["forward"], sides["torch_forward"], budget=6.0)
    both: Comparison = compare(sides["both"], sides["torch_both"], budget=8.0)
    return {
        "name": case.name,
        "kernel": plan.steps[0].routine,
        "forward_ours": 1e3 * forward.ours,
        "forward_ratio": forward.ratio,
        "rate": plan.flops / forward.ours / peak,
        "both_ours": 1e3 * both.ours,
        "both_ratio": both.ratio,
        "memory": _memory(case, sides["forward"]),
        "error": error,
        "others": max(forward.others, both.others),
        "goal": case.kernel == 3 and case.groups == 1,
    }


def run(quick: bool = False, progress: Callable[[Mapping[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Every case, and the geometric means over the dense 3 x 3 layers."""
    peak = product_rate()
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"product_gflops": peak / 1e9, "rows": rows}
    for case in _cases(quick):
        rows.append(_row(case, peak))
        show(f"{rows[-1]['name']}: {rows[-1]['forward_ratio']:.2f} {rows[-1]['both_ratio']:.2f}")
        goal = [row for row in rows if row["goal"]]
        for key in ("forward_ratio", "both_ratio"):
            result[key] = geometric_mean(row[key] for row in goal)
        progress(result)
    return result


def report(result: Mapping[str, Any]) -> str:
    """The table, and the means."""
    lines = [
        f"Product rate {result['product_gflops']:.0f} GFLOP/s. Dense 3 x 3 layers, geometric mean of torch / ours: "
        f"{result['forward_ratio']:.2f} forward, {result['both_ratio']:.2f} forward + backward.",
        "",
        table(result["rows"], COLUMNS),
    ]
    return "\n".join(lines)
