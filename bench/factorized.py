"""Factorized convolutions beside TensorLy-Torch: our plan for each format against each of its implementations.

Same factors, float32, stride 1, padding 1; the ratio is that of TensorLy-Torch's fastest implementation over ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.timing import compare, geometric_mean, show, table

__all__ = ["report", "run"]

EQUATIONS = {
    "cp": "n c y x, r, o r, c r, y r, x r -> n o y x | y, x",
    "tucker": "n c y x, s t a b, o s, c t, y a, x b -> n o y x | y, x",
    "tt": "n c y x, k c p, p y q, q x w, w o k -> n o y x | y, x",
}
IMPLEMENTATIONS = {"cp": ("factorized", "mobilenet", "reconstructed"), "tucker": ("factorized", "reconstructed")}
COLUMNS = {
    "name": "layer",
    "path": "path",
    "forward_ours": "forward, ours ms:.2f",
    "forward_theirs": "theirs ms:.2f",
    "forward_best": "their fastest",
    "forward_ratio": "ratio:.2f",
    "both_ours": "forward + backward, ours ms:.2f",
    "both_theirs": "theirs ms:.2f",
    "both_ratio": "ratio:.2f",
    "error": "error:.0e",
}


@dataclass(frozen=True)
class Case:
    """One layer of c channels in and out on an image of ``size`` a side, at a share of the dense parameters."""

    form: str
    n: int
    c: int
    size: int
    rank: float

    @property
    def name(self) -> str:
        """Format, batch, channels, side, rank."""
        return f"{self.form} {self.n} x {self.c}, {self.size}², {self.rank:g}"


def _cases(quick: bool) -> list[Case]:
    sides = [(64, 56), (256, 14)] if quick else [(64, 56), (128, 28), (256, 14), (512, 7)]
    ranks = (0.1,) if quick else (0.1, 0.5)
    return [Case(form, 8, c, size, rank) for form in EQUATIONS for c, size in sides for rank in ranks]


def _factors(form: str, weight: Any) -> list[np.ndarray]:
    """The factors of a layer of TensorLy-Torch in the order of the equation."""
    arrays = {name: p.detach().numpy() for name, p in weight.named_parameters()}
    if form == "cp":
        return [arrays["weights"], *(arrays[f"factors.factor_{k}"] for k in range(4))]
    if form == "tucker":
        return [arrays["core"], *(arrays[f"factors.factor_{k}"] for k in range(4))]
    return [arrays[f"factors.factor_{k}"] for k in range(4)]


def _row(case: Case) -> dict[str, Any]:
    import tltorch
    import torch

    from growarray.contraction import plan

    x = np.random.default_rng(0).standard_normal((case.n, case.c, case.size, case.size), dtype=np.float32)
    tx = torch.from_numpy(x).requires_grad_()
    layers = {}
    for name in IMPLEMENTATIONS.get(case.form, ("factorized", "reconstructed")):
        layers[name] = tltorch.FactorizedConv(
            case.c, case.c, 3, order=2, padding=1, rank=case.rank, factorization=case.form, implementation=name
        )
        torch.manual_seed(0)
        layers[name].weight.normal_(0, 0.05)
    factors = _factors(case.form, next(iter(layers.values())).weight)
    shapes = [x.shape, *(f.shape for f in factors)]
    ours = plan(EQUATIONS[case.form], *shapes, padding=1)
    trained = plan(EQUATIONS[case.form], *shapes, padding=1, training=True)

    def both() -> Any:
        y, back = trained.vjp(x, *factors)
        return back(y)

    def torch_forward(layer: Any) -> Any:
        with torch.no_grad():
            return layer(tx)

    def torch_both(layer: Any) -> None:
        tx.grad = None
        layer.zero_grad()
        y = layer(tx)
        y.backward(y.detach())

    reference = torch_forward(layers["reconstructed"]).numpy()
    error = float(np.abs(ours(x, *factors) - reference).max() / np.abs(reference).max())
    forward = {k: compare(lambda: ours(x, *factors), lambda v=v: torch_forward(v), budget=4) for k, v in layers.items()}
    backward = {k: compare(both, lambda v=v: torch_both(v), budget=6) for k, v in layers.items()}
    best = min(forward, key=lambda k: forward[k].theirs)
    least = min(backward.values(), key=lambda c: c.theirs)
    return {
        "name": case.name,
        "path": " ".join(f"{i}{j}" for i, j in ours.path),
        "forward_ours": 1e3 * forward[best].ours,
        "forward_theirs": 1e3 * forward[best].theirs,
        "forward_best": best,
        "forward_ratio": forward[best].ratio,
        "both_ours": 1e3 * least.ours,
        "both_theirs": 1e3 * least.theirs,
        "both_ratio": least.ratio,
        "error": error,
    }


def run(quick: bool = False, progress: Callable[[Mapping[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Every case, and the geometric means."""
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"rows": rows}
    for case in _cases(quick):
        rows.append(_row(case))
        show(f"{rows[-1]['name']}: {rows[-1]['forward_ratio']:.2f} {rows[-1]['both_ratio']:.2f}")
        for key in ("forward_ratio", "both_ratio"):
            result[key] = geometric_mean(row[key] for row in rows)
        progress(result)
    return result


def report(result: Mapping[str, Any]) -> str:
    """The table, and the means."""
    head = (
        "Geometric mean of TensorLy-Torch's fastest implementation over ours: "
        f"{result['forward_ratio']:.2f} forward, {result['both_ratio']:.2f} forward + backward."
    )
    return f"{head}\n\n{table(result['rows'], COLUMNS)}"
