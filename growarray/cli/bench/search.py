"""``growarray bench search``: planners on instances, each by what its paths cost here; nothing is contracted."""

from __future__ import annotations

import importlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import opt_einsum
import typer
from rich.table import Table

from growarray.cli.bench.candidates import window_path
from growarray.cli.bench.command import bench_console
from growarray.cli.bench.equation import Contraction, Equation, equation_from, read_options
from growarray.cli.options import at_least, option, switch
from growarray.cli.terminal import plain_table, show_line, show_table, stderr_bar
from growarray.contraction import Search
from growarray.errors import PlanError, shown

_SAME = 1 + 1e-9  # times the best known cost that is the best
_NAMED = 5  # instances without a path that are named


@dataclass(frozen=True)
class Planner:
    """A way to find paths.

    make : given seconds for one instance and a seed, what ``optimize=`` takes
    knows : what it is told of convolutions    windows : whether it plans the window view, by its own cost
    most : number of operands above which it is not asked, since it would take for ever
    """

    make: Callable[[float, int], Any]
    knows: str
    windows: bool = False
    most: int = 1 << 20


def _cotengra(seconds: float, seed: int) -> Any:
    try:
        cotengra = importlib.import_module("cotengra")
    except ImportError as error:
        raise ValueError(
            f"planner 'cotengra' needs cotengra ({error}); install it: pip install \"growarray[search]\""
        ) from error
    options = {"max_time": seconds, "max_repeats": 1 << 20, "parallel": False, "progbar": False}
    try:
        return cotengra.HyperOptimizer(**options, seed=seed)
    except TypeError:  # optuna drives it where it is installed, and has the seed elsewhere
        return cotengra.HyperOptimizer(**options, sampler_opts={"seed": seed})


def _random_greedy(seconds: float, seed: int) -> Any:
    return opt_einsum.RandomGreedy(max_repeats=1 << 20, max_time=seconds)


_OURS, _JUDGED, _WINDOWS = "convolutions", "cost of whole paths", "windows"
PLANNERS = {
    "growarray": Planner(lambda seconds, seed: Search(seconds=seconds, seed=seed), _OURS),
    "growarray-trials": Planner(lambda seconds, seed: Search(seed=seed), _OURS),
    "random-greedy": Planner(_random_greedy, _JUDGED),
    "cotengra": Planner(_cotengra, _JUDGED),
    "greedy-windows": Planner(lambda seconds, seed: "greedy", _WINDOWS, True),
    "dp-windows": Planner(lambda seconds, seed: "dp", _WINDOWS, True, most=12),
    "cotengra-windows": Planner(_cotengra, _WINDOWS, True),
}
"""Those that the command knows by name. ``growarray-trials`` is what ``optimize='auto'`` does."""
_DEFAULT = ("growarray", "greedy-windows", "dp-windows")


def search(
    folder: Annotated[Path, typer.Argument(help="instances: a folder of JSON files, or one", metavar="FOLDER")],
    planner: Annotated[
        list[str] | None,
        option(
            "NAME",
            f"{', '.join(PLANNERS)}, or package.module:name of a function as opt_einsum calls it; repeat it for more; "
            f"default {', '.join(_DEFAULT)}",
        ),
    ] = None,
    seconds: Annotated[float, option("NUMBER", "for one instance, of planners that search for a time")] = 1.0,
    seed: Annotated[int, option("NUMBER", "of planners that draw")] = 0,
    as_json: Annotated[bool, switch("--json", "print JSON in place of a table")] = False,
) -> None:
    """Plan each instance by each planner, and show the scores."""
    at_least("--seed", seed, 0)
    if not 0 < seconds < math.inf:
        raise ValueError(f"--seconds: expected more than 0, found {seconds:g}")
    chosen = {name: planner_named(name) for name in planner or _DEFAULT}
    for one in chosen.values():
        one.make(seconds, seed)  # what is not installed is said before anything is searched
    instances = read_instances(folder)
    with stderr_bar("instance", len(instances) * len(chosen)) as bar:
        found = scores(instances, chosen, seconds=seconds, seed=seed, progress=bar.update)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    else:
        show_table(bench_console(), _table(found, chosen))
        count = f"{len(instances)} instance{'s' * (len(instances) != 1)}"
        show_line(bench_console(), f"{count}; FLOPs of a forward pass beside the least that are known")
        for line in _missing(found, chosen):
            show_line(bench_console(), line)
    for name in chosen:
        asked = [row for row in found if row["seconds"][name] is not None]
        if asked and all(row["flops"][name] is None for row in asked):
            raise ValueError(f"planner {name} has a path on no instance: {asked[0]['missing'][name]}")


def planner_named(name: str) -> Planner:
    """One of :data:`PLANNERS`, or a function of the user's by module and name. ``ValueError`` if there is none."""
    if name in PLANNERS:
        return PLANNERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"--planner: expected one of {', '.join(PLANNERS)}, or module:name, found {shown(name)}")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--planner {name}: cannot be imported ({error})") from error
    if not callable(function):
        raise ValueError(f"--planner {name}: found {shown(function)}, expected a function as opt_einsum calls it")
    return Planner(lambda seconds, seed: function, _JUDGED)


def read_instances(folder: Path) -> dict[str, Equation]:
    """Equations by name, from a folder of JSON files or one of them. ``ValueError`` names the file that is none."""
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
    if not paths:
        raise ValueError(f"{folder}: no JSON files are there")
    instances = {}
    for path in paths:
        try:
            instances[path.stem] = equation_from(read_options(path, ()))
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    return instances


def scores(
    instances: Mapping[str, Contraction],
    planners: Mapping[str, Planner],
    *,
    seconds: float,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """For each instance and planner the operations of the path, the seconds, and the least known.

    Without a path the operations are None, and ``missing`` says why; seconds are None if the planner was not asked.
    The least is what the instance says, or what one of these planners finds.
    """
    rows: list[dict[str, Any]] = []
    count = len(instances) * len(planners)
    for name, instance in instances.items():
        flops: dict[str, int | None] = {}
        elapsed: dict[str, float | None] = {}
        missing: dict[str, str] = {}
        for key, planner in planners.items():
            flops[key] = elapsed[key] = None
            if len(instance.shapes) > planner.most:
                missing[key] = _not_asked(planner)
            else:
                start = time.perf_counter()
                try:
                    flops[key] = _flops(instance, planner, planner.make(seconds, seed))
                except PlanError as error:
                    missing[key] = str(error)
                elapsed[key] = time.perf_counter() - start
            if progress is not None:
                progress(len(rows) * len(planners) + len(flops), count)
        known = [value for value in flops.values() if value is not None]
        told = getattr(instance, "best", {}).get("flops")
        best = min(known if told is None else [*known, told], default=None)
        row = {"name": name, "operands": len(instance.shapes), "best": best, "flops": flops, "seconds": elapsed}
        rows.append(row | {"missing": missing})
    return rows


def _not_asked(planner: Planner) -> str:
    return f"not asked above {planner.most} operands"


def _flops(instance: Contraction, planner: Planner, optimize: Any) -> int:
    """Operations of a planner's path here. PlanError if there is none, or it joins convolution modes wrongly."""
    if planner.windows:
        try:
            optimize, _ = window_path(instance, optimize)
        except Exception as error:  # another library's
            raise PlanError(f"it failed: {error}") from error
    return instance.plan(optimize, minimize="flops").flops


def _table(rows: Sequence[Mapping[str, Any]], planners: Mapping[str, Planner]) -> Table:
    table = plain_table("planners", space=1)
    table.add_column("planner")
    table.add_column("knows")
    for header in ("paths", "best", "mean", "worst", "seconds"):
        table.add_column(header, justify="right")
    for name, planner in planners.items():
        ratios = _ratios(rows, name)
        taken = [row["seconds"][name] for row in rows if row["seconds"][name] is not None]
        seconds = f"{statistics.mean(taken):.2f}" if taken else "-"
        mean = f"{statistics.geometric_mean(ratios):.3f}" if ratios else "-"
        worst = f"{max(ratios):.3g}" if ratios else "-"
        equal = sum(ratio <= _SAME for ratio in ratios)
        table.add_row(name, planner.knows, str(len(ratios)), str(equal), mean, worst, seconds)
    return table


def _missing(rows: Sequence[Mapping[str, Any]], planners: Mapping[str, Planner]) -> Iterator[str]:
    """A line for each planner that was not asked, and for each that has no path on some instances."""
    for name, planner in planners.items():
        without = {row["name"]: row["missing"][name] for row in rows if name in row["missing"]}
        failed = {instance: reason for instance, reason in without.items() if reason != _not_asked(planner)}
        if len(without) > len(failed):
            yield f"{name}: {_not_asked(planner)}, {len(without) - len(failed)} of the instances"
        if failed:
            some = ", ".join([*failed][:_NAMED]) + (f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else "")
            yield f"{name}: no path on {some}; on the first: {next(iter(failed.values()))}"


def _ratios(rows: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """Operations of a planner's paths, in times of the least that are known."""
    return [max(row["flops"][name], 1) / max(row["best"], 1) for row in rows if row["flops"][name] is not None]
