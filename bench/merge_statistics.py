"""S and M of a layer and of merges, against GroMo, in one process: the update alone, and the whole step.

*update*: the statistics of one batch, after the same forward and backward pass on both sides. growarray has M from its
pullback by then (it is the weight gradient), so its share is paid in the backward pass; *step* counts everything,
forward, backward and update, on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from bench import sides
from bench.memory import peak
from bench.timing import clock, compare_phases, geometric_mean, show, table, use_threads

__all__ = ["cases", "report", "run"]

COLUMNS = {
    "kind": "case",
    "n": "n:d",
    "d": "d:d",
    "update_ours": "update, ours ms:.3f",
    "update_theirs": "GroMo ms:.3f",
    "update_ratio": "update ratio:.2f",
    "step_ours": "step, ours ms:.3f",
    "step_theirs": "GroMo ms:.3f",
    "step_ratio": "step ratio:.2f",
    "spread": "spread:.2f",
    "calls": "calls:d",
    "others": "others:.0%",
    "error": "error against float64:.1e",
}
MEMORY_COLUMNS = {
    "kind": "case",
    "n": "n:d",
    "d": "d:d",
    "increase_ours": "increase, ours MiB:.1f",
    "increase_theirs": "GroMo MiB:.1f",
    "total_ours": "total, ours MiB:.0f",
    "total_theirs": "GroMo MiB:.0f",
}
LIMIT = 20 * 2**30  # bytes; leaves room on a machine of 24 GiB


def cases(*, quick: bool = False) -> Iterator[sides.Case]:
    """A layer, and merges of 2 and 3 layers with separate and shared inputs, over n and d."""
    kinds = [(1, False), (2, False), (2, True), (3, False), (3, True)]
    for n in (256, 4096) if quick else (256, 4096, 65536):
        for d in (64, 256) if quick else (64, 256, 1024):
            for layers, shared in kinds:
                yield sides.Case(layers, shared, n, d)


def _phases(side: sides.Side) -> Mapping[str, float]:
    start = clock()
    side.forward_backward()
    middle = clock()
    side.update()
    end = clock()
    return {"update": end - middle, "step": end - start}


def _check(case: sides.Case, ours: sides.Side, theirs: sides.Side) -> float:
    """Largest difference of ours from float64, over the largest entry; raises where the sides disagree.

    Both matrices are compared whole with GroMo's; float64 is computed for 32 drawn columns of each.
    """
    for side in (ours, theirs):
        side.reset()
        side.forward_backward()
        side.update()
    inputs, gradient, _ = sides.data_of(case)
    ones = np.ones((case.n, 1), np.float32)
    parts = [part for x in inputs for part in (x, ones)]
    rng = np.random.default_rng(1)
    worst = 0.0
    for mine, other, right in zip(ours.means(), theirs.means(), (parts, [gradient]), strict=True):
        scale = float(np.abs(mine).max())
        if np.abs(mine - other).max() > 1e-4 * scale:
            raise AssertionError(f"{case}: the two sides differ by {np.abs(mine - other).max() / scale:.1e}")
        chosen = np.sort(rng.choice(mine.shape[1], min(32, mine.shape[1]), replace=False))
        columns = _columns(right, chosen)
        exact = np.concatenate([part.T.astype(np.float64) @ columns for part in parts]) / case.n
        worst = max(worst, float(np.abs(mine[:, chosen] - exact).max()) / scale)
    if worst > 1e-6:
        raise AssertionError(f"{case}: ours differs from float64 by {worst:.1e}")
    return worst


def _columns(parts: list[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Some columns of the parts side by side, float64."""
    starts = np.cumsum([0, *(part.shape[1] for part in parts)])
    owners = np.searchsorted(starts, chosen, side="right") - 1
    return np.stack([parts[i][:, c - starts[i]] for i, c in zip(owners, chosen, strict=True)], 1).astype(np.float64)


def measure_case(case: sides.Case, *, quick: bool = False, memory: bool = True) -> dict[str, Any]:
    """One row: times in ms, ratios, error, peak memory in MiB; or only why it was skipped."""
    row: dict[str, Any] = {"kind": case.kind, "n": case.n, "d": case.d}
    if case.bytes > LIMIT:
        return {**row, "skipped": f"needs about {case.bytes / 2**30:.0f} GiB"}
    ours, theirs = sides.ours(case), sides.theirs(case)
    error = _check(case, ours, theirs)
    result = compare_phases(
        lambda: _phases(ours), lambda: _phases(theirs), repeat=7 if quick else 15, warmup=0, budget=1.5 if quick else 3
    )
    for name, one in result.items():
        row |= {f"{name}_ours": 1e3 * one.ours, f"{name}_theirs": 1e3 * one.theirs, f"{name}_ratio": one.ratio}
    update = result["update"]
    row |= {"spread": max(update.ours_spread, update.theirs_spread), "calls": update.calls}
    row |= {"others": update.others, "disturbed": update.disturbed, "error": error}
    if memory:
        del ours, theirs
        for which in ("ours", "theirs"):
            found = peak(which, case)
            row |= {f"{key}_{which}": value / 2**20 for key, value in found.items()}
    return row


def run(
    *, quick: bool = False, memory: bool = True, progress: Callable[[Mapping[str, Any]], None] | None = None
) -> dict[str, Any]:
    """All cases, and their summary; ``progress`` is called with what there is after each case."""
    import torch  # noqa: F401  (before the number of threads is set)

    use_threads()
    rows = []
    for case in cases(quick=quick):
        rows.append(measure_case(case, quick=quick, memory=memory))
        row = rows[-1]
        figures = ", ".join(f"{name} {row[f'{name}_ratio']:.2f}" for name in ("update", "step") if "error" in row)
        show(f"{case.kind:16} n={case.n:6} d={case.d:5}: {row.get('skipped', figures)}")
        if progress is not None:
            progress({"rows": rows, "summary": summary(rows)})
    return {"rows": rows, "summary": summary(rows)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means and worst cases of what was not disturbed, and the cases that need more memory than GroMo."""
    measured = [row for row in rows if "error" in row]
    done = [row for row in measured if not row["disturbed"]]
    result: dict[str, Any] = {"disturbed": len(measured) - len(done)}
    for name in ("update", "step") if done else ():
        worst = min(done, key=lambda row: row[f"{name}_ratio"])
        result[name] = {
            "geometric_mean": geometric_mean(row[f"{name}_ratio"] for row in done),
            "by_kind": {
                kind: geometric_mean(row[f"{name}_ratio"] for row in done if row["kind"] == kind)
                for kind in dict.fromkeys(row["kind"] for row in done)
            },
            "worst": f"{worst[f'{name}_ratio']:.2f}: {worst['kind']}, n={worst['n']}, d={worst['d']}",
            "below_1.5": sum(row[f"{name}_ratio"] < 1.5 for row in done),
        }
    heavier = [row for row in measured if row.get("increase_ours", -math.inf) > row.get("increase_theirs", math.inf)]
    result["more_memory"] = [f"{row['kind']}, n={row['n']}, d={row['d']}" for row in heavier]
    return result


def report(results: Mapping[str, Any]) -> str:
    """Tables of times and memory, and the summary."""
    done = [row for row in results["rows"] if "error" in row]
    lines = [table(done, COLUMNS), ""]
    if any("increase_ours" in row for row in done):
        lines += [table(done, MEMORY_COLUMNS), ""]
    for row in results["rows"]:
        if "skipped" in row:
            lines.append(f"skipped: {row['kind']}, n={row['n']}, d={row['d']}: {row['skipped']}")
    lines.append(f"disturbed by other processes, left out of the means: {results['summary']['disturbed']}")
    for name in ("update", "step"):
        one = results["summary"].get(name)
        if one is None:
            continue
        kinds = ", ".join(f"{kind} {value:.2f}" for kind, value in one["by_kind"].items())
        lines.append(f"{name}: geometric mean {one['geometric_mean']:.2f} ({kinds}); worst {one['worst']}")
    lines.append(f"more peak memory than GroMo: {'; '.join(results['summary']['more_memory']) or 'no case'}")
    return "\n".join(lines)
