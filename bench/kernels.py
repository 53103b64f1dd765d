"""How far ``row_products`` is from what the machine can do, and how accurate it is.

*Peak* is the best float32 rate seen here, of large square products. Every rate counts the multiplications and
additions that the mathematics needs: 2 n d² for M, n d (d + 1) for the symmetric S. Accuracy is the largest
difference from float64 over the largest entry of the exact result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.timing import measure, show, table, use_threads
from growarray.contraction.kernels import row_products

__all__ = ["report", "run"]

RATE_COLUMNS = {
    "n": "n:d",
    "d": "d:d",
    "syrk": "X^T X, BLAS GFLOP/s:.0f",
    "s": "S, row_products:.0f",
    "s_share": "of BLAS:.0%",
    "s_peak": "of peak:.0%",
    "gemm": "X^T Y, BLAS:.0f",
    "m": "M, row_products:.0f",
    "m_share": "of BLAS:.0%",
    "m_peak": "of peak:.0%",
}
ERROR_COLUMNS = {"data": "data", "n": "n:d", "s": "S, row_products:.1e", "m": "M:.1e", "sums": "sums:.1e",
                 "plain_s": "S, float32 product:.1e", "plain_m": "M:.1e"}  # fmt: skip


def _rate(n: int, d: int, peak: float) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((n, d), dtype=np.float32) for _ in range(2))
    repeat = max(3, min(50, int(4e10 / (n * d * d))))
    half, full = 1e-9 * n * d * (d + 1), 2e-9 * n * d * d
    row: dict[str, Any] = {"n": n, "d": d}
    row["syrk"] = half / measure(lambda: x.T @ x, repeat=repeat)
    row["s"] = half / measure(lambda: row_products([x], [(0, 0)], [0]), repeat=repeat)
    row["gemm"] = full / measure(lambda: x.T @ y, repeat=repeat)
    row["m"] = full / measure(lambda: row_products([x, y], [(0, 1)], [1]), repeat=repeat)
    return row | {
        "s_share": row["s"] / row["syrk"],
        "s_peak": row["s"] / peak,
        "m_share": row["m"] / row["gemm"],
        "m_peak": row["m"] / peak,
    }


def _peak() -> float:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2048, 2048), dtype=np.float32) for _ in range(2))
    return max(2e-9 * 2048**3 / measure(lambda: a @ b, repeat=1, warmup=1) for _ in range(20))


def _draws() -> dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]]:
    return {
        "constant 0.1": lambda rng, shape: np.full(shape, 0.1),
        "binary 0 or 0.1": lambda rng, shape: 0.1 * rng.integers(0, 2, shape),
        "normal + 10": lambda rng, shape: 10 + rng.standard_normal(shape),
        "normal": lambda rng, shape: rng.standard_normal(shape),
        "ReLU of normal": lambda rng, shape: np.maximum(rng.standard_normal(shape), 0),
    }


def _errors(name: str, n: int, d: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = _draws()[name](rng, (n, d)).astype(np.float32)
    y = rng.standard_normal((n, d), dtype=np.float32)
    exact_x, exact_y = x.astype(np.float64), y.astype(np.float64)
    products, sums = row_products([x, y], [(0, 0), (0, 1)], [0])
    pairs = {
        "s": (products[0, 0], exact_x.T @ exact_x),
        "m": (products[0, 1], exact_x.T @ exact_y),
        "sums": (sums[0], exact_x.sum(axis=0)),
        "plain_s": (x.T @ x, exact_x.T @ exact_x),
        "plain_m": (x.T @ y, exact_x.T @ exact_y),
    }
    found = {key: float(np.abs(a - b).max() / np.abs(b).max()) for key, (a, b) in pairs.items()}
    return {"data": name, "n": n, **found}


def run(*, quick: bool = False, progress: object = None) -> dict[str, Any]:
    """Rates over n and d, errors over kinds of data."""
    use_threads()
    peak = _peak()
    sizes = [(n, d) for n in (256, 4096, 65536) for d in (64, 256, 1024) if not quick or n * d <= 2**20]
    rates = []
    for n, d in sizes:
        rates.append(_rate(n, d, peak))
        show(f"n={n:6} d={d:5}: S {rates[-1]['s']:.0f}, M {rates[-1]['m']:.0f} of {peak:.0f} GFLOP/s")
    errors = [_errors(name, n, 64) for name in _draws() for n in ((4096,) if quick else (256, 4096, 65536))]
    return {"peak": peak, "rates": rates, "errors": errors}


def report(results: Mapping[str, Any]) -> str:
    """Both tables."""
    return (
        f"peak: {results['peak']:.0f} GFLOP/s float32\n\n{table(results['rates'], RATE_COLUMNS)}\n\n"
        f"{table(results['errors'], ERROR_COLUMNS)}"
    )
