"""Two callables against each other: interleaved, medians, ratio, spread; tables, JSON, facts of the machine.

Libraries keep idle threads spinning for some milliseconds after a product (OpenBLAS about 26, OpenMP a few), which
would steal a core from the other side. So each side has turns: a pause first, then several calls in a row. Where
other processes keep the cores busy, a turn waits for a quiet moment, for a while; how busy they were is reported.

With one thread a side (:func:`use_threads`), seconds are those of the processor, not of the wall: other processes then
cost nothing but cache and memory bandwidth. On a machine that is shared this is the figure to trust.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "Comparison",
    "clock",
    "compare",
    "compare_phases",
    "geometric_mean",
    "machine",
    "measure",
    "product_rate",
    "repository",
    "show",
    "table",
    "use_threads",
    "write_json",
]

SETTLE = 0.04  # seconds; longer than OpenBLAS and OpenMP let idle threads spin
TURN = 0.06  # seconds of calls in one turn, where one call is shorter than that
PATIENCE = 3.0  # seconds that one comparison waits for other processes, all its turns together
BUSY = 0.25  # share of the cores in other hands above which a turn waits, and a comparison counts as disturbed
LONG = 4.0  # seconds; calls longer than that have two turns at least, others three

Phases = Callable[[], Mapping[str, float]]
_state: dict[str, Any] = {"clock": time.perf_counter, "limits": None}


def clock() -> float:
    """Seconds: of the wall, or of the processor where there is one thread."""
    seconds: float = _state["clock"]()
    return seconds


@dataclass(frozen=True)
class Comparison:
    """Medians in seconds, their ratio (above 1: ours is faster), and spreads: quartile distance over median.

    ``others`` is the share of all cores that other processes took, looked at before every turn.
    """

    ours: float
    theirs: float
    ratio: float
    ours_spread: float
    theirs_spread: float
    calls: int
    others: float

    @property
    def disturbed(self) -> bool:
        """Whether other processes had so much of the machine that the wall clock says nothing."""
        return self.others > BUSY and _state["clock"] is time.perf_counter

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float], others: float = math.nan) -> Comparison:
        """From the seconds of single calls."""
        a, b = statistics.median(ours), statistics.median(theirs)
        return cls(a, b, b / a, _spread(ours), _spread(theirs), min(len(ours), len(theirs)), others)


def _spread(times: Sequence[float]) -> float:
    if len(times) < 2:
        return math.nan
    quarters = statistics.quantiles(times, n=4, method="inclusive")
    return (quarters[2] - quarters[0]) / statistics.median(times)


def compare(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    repeat: int = 15,
    warmup: int = 2,
    budget: float = math.inf,
) -> Comparison:
    """Time both, A B A B, and compare the medians of single calls. See :func:`compare_phases`.

    >>> compare(lambda: sum(range(100)), lambda: sum(range(1000)), repeat=3).ratio > 1
    True
    """
    result = compare_phases(_timed(ours), _timed(theirs), repeat=repeat, warmup=warmup, budget=budget)
    return result["total"]


def _timed(function: Callable[[], object]) -> Phases:
    def run() -> Mapping[str, float]:
        start = clock()
        function()
        return {"total": clock() - start}

    return run


def compare_phases(
    ours: Phases, theirs: Phases, *, repeat: int = 15, warmup: int = 2, budget: float = math.inf
) -> dict[str, Comparison]:
    """Compare callables that time themselves and return seconds by phase; phases that both have are compared.

    repeat : turns of each side    warmup : untimed calls of each side before
    budget : seconds after which no further turn starts, once each side had three (two of very long calls)
    """
    lengths = []
    for side in (ours, theirs):
        seconds = math.inf
        for _ in range(warmup):
            start = time.perf_counter()
            side()
            seconds = time.perf_counter() - start
        lengths.append(seconds)
    collected: tuple[list[Mapping[str, float]], list[Mapping[str, float]]] = ([], [])
    started, patience, busy = time.perf_counter(), PATIENCE, []
    for turn in range(repeat):
        least = 2 if time.perf_counter() - started > LONG * 2 * turn else 3
        if turn >= least and time.perf_counter() - started > budget:
            break
        for index, (side, kept) in enumerate(zip((ours, theirs), collected, strict=True)):
            time.sleep(SETTLE)
            share = _busy()
            while share > BUSY and patience > 0 and _state["clock"] is time.perf_counter:
                patience -= SETTLE
                share = _busy()
            busy.append(share)
            if lengths[index] < TURN:
                side()  # wakes the library's threads and fills the caches again
            start = time.perf_counter()
            calls = max(1, min(50, int(TURN / max(lengths[index], 1e-6))))
            turn_of = [side() for _ in range(calls)]
            lengths[index] = (time.perf_counter() - start) / calls
            if turn or calls > 1 or lengths[index] > TURN:  # a first short call alone is a cold one
                kept += turn_of
    names = [name for name in collected[0][0] if name in collected[1][0]]
    others = statistics.mean(busy)
    return {name: Comparison.of(*([call[name] for call in side] for side in collected), others) for name in names}


def _busy() -> float:
    """Share of all cores in use over a pause of ours, so by others; 0 where the system does not say."""
    before = _ticks()
    time.sleep(SETTLE)
    spent = [b - a for a, b in zip(before, _ticks(), strict=True)]
    return 1.0 - sum(spent[3:5]) / sum(spent) if sum(spent) > 0 else 0.0


def _ticks() -> list[int]:
    return [int(word) for line in _lines("/proc/stat")[:1] for word in line.split()[1:]]


def measure(function: Callable[[], object], *, repeat: int = 7, warmup: int = 2) -> float:
    """Median seconds of one call."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeat):
        start = clock()
        function()
        times.append(clock() - start)
    return statistics.median(times)


def product_rate() -> float:
    """FLOP/s of a large product of float32 with all threads."""
    a = np.random.default_rng(0).standard_normal((2048, 2048), dtype=np.float32)
    return 2 * 2048**3 / measure(lambda: a @ a, repeat=9)


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios that does not care which side is called ours.

    >>> geometric_mean([2.0, 8.0])
    4.0
    """
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def use_threads(count: int | None = None) -> int:
    """Give BLAS and torch, once imported, as many threads as there are cores, or ``count``; returns the number."""
    import threadpoolctl

    cores = count or _state.get("threads") or len(os.sched_getaffinity(0))
    _state["threads"], _state["clock"] = cores, time.process_time if cores == 1 else time.perf_counter
    _state["limits"] = threadpoolctl.threadpool_limits(cores)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(cores)
    return cores


def machine() -> dict[str, Any]:
    """Cores, memory, instruction sets, BLAS and versions: what a figure depends on."""
    import threadpoolctl

    info = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if ":" in line}
    memory = {line.split(":")[0]: int(line.split()[1]) for line in _lines("/proc/meminfo") if line.endswith("kB")}
    flags = info.get("flags", "").split()
    names = ("numpy", "scipy", "torch", "gromo", "array-api-compat", "opt-einsum", "threadpoolctl")
    blas = [
        {key: pool.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas"
    ]
    return {
        "processor": info.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory.get("MemTotal", 0) / 2**20, 1),
        "vectors": [flag for flag in ("avx2", "avx512f") if flag in flags],
        "blas": blas,
        "python": platform.python_version(),
        "versions": {name: version for name in names if (version := _version(name))},
        "threads": _state.get("threads"),
        "load": os.getloadavg()[0],
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def repository() -> Path:
    """The folder that holds ``bench`` and ``growarray``."""
    return Path(__file__).resolve().parent.parent


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Rows as a Markdown table; ``columns`` maps a key of the rows to ``"heading:format"``.

    >>> print(table([{"n": 4, "r": 2.5}], {"n": "rows:d", "r": "ratio:.1f"}))
    | rows | ratio |
    | ---: | ---: |
    | 4 | 2.5 |
    """
    heads = [head.partition(":") for head in columns.values()]
    lines = ["| " + " | ".join(head for head, _, _ in heads) + " |", "|" + " ---: |" * len(heads)]
    for row in rows:
        cells = [_cell(row.get(key), style) for key, (_, _, style) in zip(columns, heads, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: Any, style: str) -> str:
    return "–" if value is None else format(value, style) if not isinstance(value, str) else value


def show(text: str) -> None:
    """A line of progress or a table, at once."""
    print(text, flush=True)


def write_json(path: str | Path, results: Mapping[str, Any]) -> None:
    """Results with the facts of the machine."""
    document = {"date": time.strftime("%Y-%m-%d"), "machine": machine(), **results}
    Path(path).write_text(json.dumps(document, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Comparison) else float(value)
