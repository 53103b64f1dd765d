"""The second moment of a convolution's input beside GroMo, which unfolds it: time, error, peak memory.

Both sides have the same batch in float32 and give the sum over images and output positions of the windows' outer
products, bias included: ``Conv2dGrowingModule.compute_s_update`` there, ``window_moment`` here, which sums in float64.
``python -m bench.conv_moments ours 0`` measures the peak memory of one side of one case in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.memory import increase
from bench.timing import compare, geometric_mean, repository, show, table, use_threads

__all__ = ["report", "run"]

COLUMNS = {
    "name": "images, channels, size, kernel",
    "width": "features:d",
    "lagged": "lagged axes",
    "ours": "ours ms:.2f",
    "theirs": "GroMo ms:.2f",
    "ratio": "ratio:.2f",
    "spread": "spread:.2f",
    "calls": "calls:d",
    "others": "others:.0%",
    "memory_ours": "peak, ours MiB:.1f",
    "memory_theirs": "GroMo MiB:.1f",
    "memory_ratio": "ours / GroMo:.2f",
    "error": "error, ours:.0e",
    "error_theirs": "GroMo:.0e",
}


@dataclass(frozen=True)
class Case:
    """A batch of images and a square kernel, padded to keep the size at stride 1."""

    n: int
    c: int
    size: int
    kernel: int
    stride: int = 1

    @property
    def name(self) -> str:
        """``32 x 64, 28², 3 x 3`` and the stride."""
        text = f"{self.n} x {self.c}, {self.size}², {self.kernel} x {self.kernel}"
        return text + (f", stride {self.stride}" if self.stride > 1 else "")

    @property
    def input(self) -> np.ndarray:
        """Features after a ReLU."""
        x = np.random.default_rng(0).standard_normal((self.n, self.c, self.size, self.size), dtype=np.float32)
        return np.maximum(x, 0)


CASES = (
    Case(128, 1, 28, 5),
    Case(128, 3, 32, 3),
    Case(64, 16, 32, 3),
    Case(32, 64, 56, 1),
    Case(32, 64, 28, 3, 2),
    Case(32, 32, 28, 5, 2),
    Case(64, 64, 14, 5),
    Case(128, 128, 8, 3),
)


def _ours(case: Case, x: np.ndarray) -> Callable[[], Any]:
    from growarray.ops.moments import window_moment
    from growarray.ops.windows import windows

    w = windows(x, (case.kernel, case.kernel), stride=case.stride, padding=case.kernel // 2, bias=True)
    return lambda: window_moment(w)


def _theirs(case: Case, x: np.ndarray) -> Callable[[], Any]:
    import torch
    from gromo.modules.conv2d_growing_module import Conv2dGrowingModule

    options = {"kernel_size": case.kernel, "stride": case.stride, "padding": case.kernel // 2}
    layer = Conv2dGrowingModule(case.c, 1, **options, device=torch.device("cpu"))
    layer.init_computation()
    layer(torch.from_numpy(x))
    return torch.no_grad()(lambda: layer.compute_s_update()[0])


def _lagged(case: Case) -> str:
    from growarray.ops.lags import moment_plan
    from growarray.ops.windows import windows

    w = windows(case.input, (case.kernel, case.kernel), stride=case.stride, padding=case.kernel // 2)
    chosen = moment_plan(w.axes, w.axes, (case.n, case.c, case.c), True, single=True).lagged
    return ", ".join("yx"[i] for i in chosen) or "none"


def _exact(case: Case, x: np.ndarray) -> np.ndarray:
    """The moment from unfolding in float64, image by image."""
    import torch

    total: Any = 0.0
    for image in torch.from_numpy(x):
        geometry = {"padding": case.kernel // 2, "stride": case.stride}
        windows = torch.nn.functional.unfold(image[None].double(), case.kernel, **geometry)[0]
        windows = torch.cat((windows, torch.ones((1, windows.shape[1]), dtype=torch.float64)))
        total = total + windows @ windows.T
    return total.numpy()


def _peak(which: str, index: int) -> float:
    """MiB that one side takes beyond what is there before, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.conv_moments", which, str(index)],
        capture_output=True,
        text=True,
        check=True,
        cwd=repository(),
        env={**os.environ, "PYTHONPATH": str(repository())},
    )
    return json.loads(done.stdout) / 2**20


def _row(index: int, *, quick: bool) -> dict[str, Any]:
    case = CASES[index]
    x = case.input
    ours, theirs = _ours(case, x), _theirs(case, x)
    exact = _exact(case, x)
    errors = [float(np.abs(np.asarray(side()) - exact).max() / np.abs(exact).max()) for side in (ours, theirs)]
    if errors[0] > 1e-6:
        raise AssertionError(f"{case}: ours differs from float64 by {errors[0]:.1e}")
    found = compare(ours, theirs, repeat=7 if quick else 15, budget=2.0 if quick else 4.0)
    memory = [_peak(which, index) for which in ("ours", "theirs")]
    return {
        "name": case.name,
        "width": case.c * case.kernel**2 + 1,
        "lagged": _lagged(case),
        "ours": 1e3 * found.ours,
        "theirs": 1e3 * found.theirs,
        "ratio": found.ratio,
        "spread": max(found.ours_spread, found.theirs_spread),
        "calls": found.calls,
        "others": found.others,
        "memory_ours": memory[0],
        "memory_theirs": memory[1],
        "memory_ratio": memory[0] / memory[1],
        "error": errors[0],
        "error_theirs": errors[1],
    }


def run(quick: bool = False, progress: Callable[[Mapping[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Every case, the geometric mean of the ratios, the smallest one, and the largest share of memory."""
    import torch  # noqa: F401  (before the number of threads is set)

    use_threads()
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"rows": rows}
    for index in range(0, len(CASES), 3 if quick else 1):
        rows.append(_row(index, quick=quick))
        show(f"{rows[-1]['name']}: {rows[-1]['ratio']:.2f}, memory {rows[-1]['memory_ratio']:.2f}")
        result["ratio"] = geometric_mean(row["ratio"] for row in rows)
        result["least"] = min(row["ratio"] for row in rows)
        result["memory"] = max(row["memory_ratio"] for row in rows)
        progress(result)
    return result


def report(result: Mapping[str, Any]) -> str:
    """The table, and what it comes to."""
    return (
        f"GroMo / ours: geometric mean {result['ratio']:.2f}, least {result['least']:.2f}; "
        f"peak memory at most {result['memory']:.2f} of GroMo's.\n\n{table(result['rows'], COLUMNS)}"
    )


def main(which: str, index: str) -> None:
    """Print the bytes that one call of one side takes at its peak."""
    import torch  # noqa: F401

    build, case = {"ours": _ours, "theirs": _theirs}[which], CASES[int(index)]
    tiny = Case(8, 2, 8, 3)
    use_threads()
    build(tiny, tiny.input)()
    side = build(case, case.input)
    print(increase(side))


if __name__ == "__main__":
    main(*sys.argv[1:])
