"""The fixed suite: layers of many kinds, and whether ``auto`` finds the fastest path of each.

``python -m bench suite [--quick] [--cases 3,7] [--device cuda]``; the extra ``cli`` must be installed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bench.timing import product_rate, show, table
from growarray.backend import to_device
from growarray.cli.bench.candidates import Candidate, candidates_for
from growarray.cli.bench.layer import Layer, layer_from
from growarray.cli.bench.measure import clock_for, interleaved, spearman, synchronised, typical
from growarray.cli.bench.report import facts, measure_layer
from growarray.contraction.table import seconds
from growarray.errors import shown

__all__ = [
    "CASES",
    "CLOSE",
    "QUICK",
    "Case",
    "chosen_cases",
    "median_ratio",
    "report",
    "run",
    "run_case",
    "suite_summary",
]

CLOSE = 0.05
"""How much longer than the fastest path ``auto`` may take."""

COLUMNS = {
    "number": "#",
    "case": "layer",
    "auto_seconds": "auto",
    "fastest_seconds": "fastest",
    "rate": "of the product rate:.0%",
    "auto_behind": "auto behind:.1%",
    "spearman": "rank correlation:.2f",
    "agreement": "of halves:.2f",
    "fastest": "fastest path",
}
_PATHS, _WITHIN = 12, 8.0  # paths of one layer, and how many times the best predicted time they may take
_SEED = 0
_BUDGET = 9.0  # seconds of rounds of one case, and at most so many rounds
_ROUNDS, _QUICK_ROUNDS = 18, 5  # with 9 two halves of a run agreed no better than its times with what was predicted
_FINALISTS, _NEAR = 5, 1.25  # paths that are measured again, and how many times the fastest they may have taken
_FINAL = 2  # times the rounds: with half of them, equal paths came out up to 8 % apart


class Case(NamedTuple):
    """One layer of the suite; padding is half of the kernel, numbers are float32."""

    format: str
    in_channels: int
    out_channels: int
    kernel: str
    size: str
    stride: int
    batch: int
    rank: float

    def layer(self) -> Layer:
        """The layer that is measured."""
        names = ("format", "in", "out", "kernel", "size", "stride", "batch", "rank")
        return layer_from(dict(zip(names, self, strict=True)))

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return (
            f"{self.format} {self.rank:g}, {self.in_channels} -> {self.out_channels}, {self.kernel} on {self.size}, "
            f"batch {self.batch}{stride}"
        )


CASES = (
    Case("cp", 64, 64, "3x3", "56x56", 1, 8, 0.05),
    Case("cp", 64, 64, "3x3", "56x56", 1, 1, 0.1),
    Case("cp", 64, 64, "3x3", "56x56", 1, 32, 0.1),
    Case("cp", 64, 128, "3x3", "56x56", 2, 8, 0.25),
    Case("cp", 128, 128, "3x3", "28x28", 1, 8, 0.5),
    Case("cp", 128, 128, "3x3", "28x28", 1, 1, 1.0),
    Case("cp", 256, 256, "3x3", "14x14", 1, 8, 0.1),
    Case("cp", 256, 512, "3x3", "14x14", 2, 32, 0.25),
    Case("cp", 512, 512, "3x3", "7x7", 1, 8, 0.05),
    Case("cp", 512, 512, "3x3", "7x7", 1, 1, 0.5),
    Case("tucker", 64, 64, "3x3", "56x56", 1, 8, 0.1),
    Case("tucker", 64, 64, "3x3", "56x56", 1, 1, 0.5),
    Case("tucker", 64, 128, "3x3", "56x56", 2, 8, 0.25),
    Case("tucker", 128, 128, "3x3", "28x28", 1, 32, 0.05),
    Case("tucker", 128, 128, "3x3", "28x28", 1, 8, 1.0),
    Case("tucker", 256, 256, "3x3", "14x14", 1, 8, 0.25),
    Case("tucker", 256, 512, "3x3", "14x14", 2, 1, 0.1),
    Case("tucker", 512, 512, "3x3", "7x7", 1, 8, 0.5),
    Case("tt", 64, 64, "3x3", "56x56", 1, 8, 0.05),
    Case("tt", 64, 64, "3x3", "56x56", 1, 32, 0.25),
    Case("tt", 64, 128, "3x3", "56x56", 2, 8, 0.5),
    Case("tt", 128, 128, "3x3", "28x28", 1, 1, 0.1),
    Case("tt", 128, 256, "3x3", "28x28", 2, 8, 1.0),
    Case("tt", 256, 256, "3x3", "14x14", 1, 8, 0.5),
    Case("tt", 512, 512, "3x3", "7x7", 1, 32, 0.1),
    Case("cp", 32, 32, "3x3x3", "12x12x12", 1, 8, 0.1),
    Case("cp", 16, 32, "3x3x3", "16x16x16", 2, 8, 0.5),
    Case("cp", 64, 64, "3x3x3", "8x8x8", 1, 32, 0.05),
    Case("tucker", 32, 64, "3x3x3", "16x16x16", 2, 1, 0.25),
    Case("tucker", 32, 32, "3x3x3", "12x12x12", 1, 8, 0.05),
    Case("tt", 32, 32, "3x3x3", "12x12x12", 1, 8, 0.25),
    Case("tt", 64, 64, "3x3x3", "8x8x8", 1, 1, 1.0),
)
QUICK = (1, 7, 13, 18, 22, 30)
"""Numbers of the cases that ``--quick`` takes: every format, order and stride."""


def chosen_cases(text: str | None, *, quick: bool) -> list[int]:
    """Numbers of cases, from 1, as ``--cases`` and ``--quick`` say.

    >>> chosen_cases("3,7", quick=False), len(chosen_cases(None, quick=False)) == len(CASES)
    ([3, 7], True)
    """
    if text is None:
        return list(QUICK) if quick else list(range(1, len(CASES) + 1))
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if not all(1 <= number <= len(CASES) for number in numbers):
        raise ValueError(f"--cases: expected numbers from 1 to {len(CASES)} such as 3,7, found {shown(text)}")
    return numbers


def run_case(number: int, *, quick: bool, device: str | None = None) -> dict[str, Any]:
    """One case measured: the report of its layer, and how far ``auto`` is behind the fastest path.

    Paths that come near the fastest are measured again, together with ``auto``; that second measurement is what counts.
    """
    case = CASES[number - 1]
    layer = case.layer()
    candidates = candidates_for(layer, _PATHS, seed=_SEED, training=False, device=device, within=_WITHIN)
    rounds = _QUICK_ROUNDS if quick else _ROUNDS
    report = measure_layer(layer, candidates, repeat=rounds, seed=_SEED, device=device, memory=False, budget=_BUDGET)
    summary = report["summary"]["forward"]
    measured = [row["forward"]["measured_seconds"] for row in report["paths"]]
    auto = next(i for i, row in enumerate(report["paths"]) if row["label"] == summary["auto"])
    final = _final(layer, candidates, measured, auto, rounds, device)
    return {
        "number": number,
        "case": str(case),
        "spearman": summary["spearman"],
        "agreement": _agreement([row["forward"]["rounds"] for row in report["paths"]]),
        "auto_seconds": statistics.median(final[auto]),
        "flops": report["paths"][auto]["forward"]["flops"],
        **_behind(final, auto, [row["label"] for row in report["paths"]]),
        "paths": report["paths"],
        "remarks": report["remarks"],
    }


def _final(
    layer: Layer,
    candidates: Sequence[Candidate],
    measured: Sequence[float],
    auto: int,
    rounds: int,
    device: str | None,
) -> dict[int, list[float]]:
    """The paths that came near the fastest and auto, measured once more, by their number."""
    best = min(measured)
    order = sorted(range(len(measured)), key=lambda i: measured[i])
    near = [i for i in order[:_FINALISTS] if measured[i] <= _NEAR * best]
    arrays = [to_device(a, device) for a in layer.arrays(_SEED)]
    calls = {
        str(i): synchronised(lambda plan=candidates[i].forward: plan(*arrays))  # type: ignore[misc]
        for i in dict.fromkeys([*near, auto])
    }
    times = (
        interleaved(calls, repeat=_FINAL * rounds, budget=_BUDGET, clock=clock_for(device))
        if len(calls) > 1
        else {str(auto): [best]}
    )
    return {int(name): found for name, found in times.items()}


def _agreement(rounds: Sequence[Sequence[float]]) -> float | None:
    """Rank correlation of the even rounds with the odd ones: no prediction can be expected to do much better."""
    even, odd = (typical({str(i): times[k::2] for i, times in enumerate(rounds)}) for k in (0, 1))
    found = spearman(list(even.values()), list(odd.values()))
    return None if math.isnan(found) else found


def _behind(final: dict[int, list[float]], auto: int, labels: Sequence[str]) -> dict[str, Any]:
    """The fastest path of the final, and by how much auto takes longer: medians of the ratio within a round.

    One half of the rounds says which path is fastest, the other half by how much: of equal paths, the one that had luck
    in a half is not ahead in both.
    """
    halves = [{i: times[k::2] for i, times in final.items()} for k in (0, 1)] if len(final) > 1 else []
    behind = [
        median_ratio(judged[auto], judged[_fastest(chosen, auto)]) - 1.0
        for chosen, judged in zip(halves, reversed(halves), strict=True)
    ]
    fastest = _fastest(final, auto)
    return {
        "auto": labels[auto],
        "fastest": labels[fastest],
        "fastest_seconds": statistics.median(final[fastest]),
        "auto_behind": max(statistics.mean(behind), 0.0) if behind else 0.0,
    }


def _fastest(times: Mapping[int, Sequence[float]], auto: int) -> int:
    return max(times, key=lambda i: median_ratio(times[auto], times[i]))


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over rounds of ours over theirs: what slowed both down in one round does not count.

    >>> median_ratio([1.0, 20.0, 1.0], [2.0, 40.0, 2.0])
    0.5
    """
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def suite_summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Share of the cases in which auto is close to the fastest path, and the mean rank correlation."""
    correlations, agreements = (
        [case[key] for case in results if case[key] is not None] for key in ("spearman", "agreement")
    )
    close = sum(case["auto_behind"] <= CLOSE for case in results)
    return {
        "cases": len(results),
        "close": close,
        "close_share": close / len(results),
        "worst_behind": max(case["auto_behind"] for case in results),
        "mean_spearman": statistics.mean(correlations) if correlations else None,
        "mean_agreement": statistics.mean(agreements) if agreements else None,
        "least_spearman": min(correlations, default=None),
    }


def run(
    *,
    quick: bool = False,
    progress: Callable[[Any], None] | None = None,
    cases: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Measure the chosen cases; raises ``ValueError`` if one of them does not exist."""
    results: list[dict[str, Any]] = []
    device = None if device == "cpu" else device
    peak = product_rate() if device is None else None
    for number in chosen_cases(cases, quick=quick):
        results.append(run_case(number, quick=quick, device=device))
        if peak is not None:
            results[-1]["rate"] = results[-1]["flops"] / results[-1]["auto_seconds"] / peak
        show(f"{number:>2}  {results[-1]['case']}: auto {results[-1]['auto_behind']:.1%} behind")
        if progress is not None:
            progress({"cases": results})
    return facts(device) | {"product_rate": peak, "summary": suite_summary(results), "cases": results}


def report(results: Mapping[str, Any]) -> str:
    """One row for each case, and lines that sum them up."""
    rows = [
        {
            **case,
            "auto_seconds": seconds(case["auto_seconds"]),
            "fastest_seconds": seconds(case["fastest_seconds"]),
            "fastest": "auto" if case["auto_behind"] <= 0 else case["fastest"],
        }
        for case in results["cases"]
    ]
    found, peak = results["summary"], results.get("product_rate")
    texts = [f"auto within {CLOSE:.0%} of the fastest path: {found['close']} of {found['cases']} cases"]
    texts[0] += f" ({found['close_share']:.0%}), at worst {found['worst_behind']:.1%} behind"
    if found["mean_spearman"] is not None:
        texts.append(f"rank correlation: mean {found['mean_spearman']:.3f}, least {found['least_spearman']:.3f}")
    if found["mean_agreement"] is not None:
        texts.append(f"rank correlation of the even rounds with the odd ones: mean {found['mean_agreement']:.3f}")
    if peak:
        texts.append(f"product rate: {peak / 1e9:.0f} GFLOP/s, by {results['blas']}")
    texts += [remark for case in results["cases"] for remark in case["remarks"]]
    return f"{table(rows, COLUMNS)}\n\n" + "\n".join(texts)
