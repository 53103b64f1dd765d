"""Plans among threads, forks and signals, at length: 10,000 interrupts, 1,000 forks, eight threads for a minute.

Not a comparison: what went wrong is counted. The tests do the same things briefly. Another threadpoolctl than the one
that is installed is measured by its folder before the others in ``PYTHONPATH``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import threadpoolctl

from bench.timing import table
from tests.contraction.stress import measured

__all__ = ["report", "run"]

AMOUNTS = {"interrupts": 10_000, "handlers": 200, "forks": 1_000, "shared": 60}
FIRST = [0.01 * i for i in range(40)]  # seconds after the beginning of the first run at which the process forks
COLUMNS = {"kind": "what", "amount": "how often, or seconds:g", "faults": "faults:d", "seconds": "took s:.0f",
           "more": "figures"}  # fmt: skip


def _row(kind: str, amount: float, found: Mapping[str, Any], start: float) -> dict[str, Any]:
    faults = sum(value for name, value in found.items() if name.split()[0] in ("wrong", "hung", "lost"))
    more = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    return {"kind": kind, "amount": amount, "faults": faults, "seconds": time.perf_counter() - start, "more": more}


def run(*, quick: bool = False, progress: Callable[[Any], None] = lambda _: None) -> dict[str, Any]:
    """Every kind in processes of its own; ``quick`` does a fiftieth of it."""
    rows: list[dict[str, Any]] = []
    for kind, amount in AMOUNTS.items():
        start, share = time.perf_counter(), amount / 50 if quick else amount
        rows.append(_row(kind, share, measured(kind, share), start))
        progress(rows)
    start, delays = time.perf_counter(), FIRST[::10] if quick else FIRST
    found = [measured("first_use", delay) for delay in delays]
    total = {name: sum(one[name] for one in found) for name in found[0]}
    rows.append(_row("first_use", len(delays), total, start))
    return {"threadpoolctl": threadpoolctl.__version__, "rows": rows}


def report(result: Mapping[str, Any]) -> str:
    """The table."""
    return f"threadpoolctl {result['threadpoolctl']}\n\n{table(result['rows'], COLUMNS)}"
