"""Networks grown on the digits, each beside a fixed one of equal parameters: five seeds, a table and a picture.

Every seed splits, draws and shuffles anew; the fixed network has the final widths of the grown one and is trained the
same way on the same parts. A run is kept in the folder ``grown_digits``, and not made again; the picture there,
``NETWORK.png``, shows validation accuracy against parameters as the networks grew, and the test accuracies beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.timing import show, table, use_threads

__all__ = ["NETWORKS", "draw", "report", "run"]

FOLDER = Path("grown_digits")
EPOCHS, SEEDS = 60, range(5)
NETWORKS: dict[str, dict[str, Any]] = {"cnn": {}, "resnet": {}, "mixer": {}, "dag": {"max_parameters": 8000}}
COLUMNS = {
    "network": "network",
    "seed": "seed:d",
    "grown": "grown:.2%",
    "fixed": "fixed:.2%",
    "parameters": "parameters:,d",
    "widths": "widths",
    "growths": "growths:d",
    "seconds_grown": "grown s:.0f",
    "seconds_fixed": "fixed s:.0f",
}


def _run(network: str, seed: int, epochs: int) -> dict[str, Any]:
    """The history of one run, as its folder keeps it."""
    from growarray.cli.grow.folder import HISTORY, new_folder
    from growarray.cli.grow.options import options_from
    from growarray.cli.grow.run import Run
    from growarray.networks import History

    folder = FOLDER / f"{network}_{seed}"
    if not (folder / HISTORY).is_file():
        new_folder(folder)
        options = {"network": network, "seed": seed, "epochs": epochs, "compare": True, **NETWORKS[network]}
        made = Run(options_from(options), folder=folder)
        made.train()
        made.finish()
    found = History.load(folder / HISTORY)
    return {"steps": found.steps, "final": found.final}


def _row(network: str, seed: int, final: Mapping[str, Any]) -> dict[str, Any]:
    fixed = final["compare"]
    return {
        "network": network,
        "seed": seed,
        "grown": final["test_score"],
        "fixed": fixed["test_score"],
        "parameters": final["parameters"],
        "widths": " ".join(map(str, final["widths"])),
        "growths": final["growths"],
        "seconds_grown": final["seconds"],
        "seconds_fixed": fixed["seconds"],
    }


def run(*, quick: bool = False, progress: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """All networks and seeds; ``quick`` takes one seed and four epochs."""
    use_threads()
    rows = []
    for network in NETWORKS:
        histories = [_run(network, seed, 4 if quick else EPOCHS) for seed in (SEEDS[:1] if quick else SEEDS)]
        rows += [_row(network, seed, history["final"]) for seed, history in enumerate(histories)]
        draw(histories, FOLDER / f"{network}.png")
        show(_line(network, rows))
        if progress is not None:
            progress({"rows": rows})
    return {"rows": rows}


def draw(histories: list[dict[str, Any]], path: Path) -> None:
    """Validation accuracy against parameters, a line for each seed; beside it the test accuracy, empty if fixed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    growing, tested = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1.0))
    for seed, history in enumerate(histories):
        trained = [step for step in history["steps"] if step["event"] == "train"]
        points = [[step[name] for step in trained] for name in ("parameters", "validation_score")]
        growing.plot(*points, color=f"C{seed}", linewidth=0.9, alpha=0.7)
        final = history["final"]
        for figures, shift, fill, label in ((final, -0.12, "full", "grown"), (final["compare"], 0.12, "none", "fixed")):
            name = label if seed == 0 else None
            tested.plot([seed + shift], [figures["test_score"]], "o", color=f"C{seed}", fillstyle=fill, label=name)
    growing.set(
        xscale="log", xlabel="parameters, as it grows", ylabel="accuracy", ylim=(0.9, 1.002), title="validation"
    )
    tested.set(xlabel="seed", xticks=range(len(histories)), title="test")
    for panel in (growing, tested):
        panel.grid(alpha=0.3)
    tested.legend(loc="lower right")
    figure.savefig(path)


def _line(network: str, rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, and how sure the difference is."""
    pairs = np.array([[row["grown"], row["fixed"]] for row in rows if row["network"] == network])
    differences = pairs[:, 0] - pairs[:, 1]
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.nan
    grown, fixed = pairs.mean(axis=0)
    return (
        f"{network}: grown {grown:.2%}, least {pairs[:, 0].min():.2%}; fixed {fixed:.2%}; difference "
        f"{100 * differences.mean():+.2f} points, standard error {100 * error:.2f}"
    )


def report(results: Mapping[str, Any]) -> str:
    """The table, and the means of each network."""
    rows = results["rows"]
    names = dict.fromkeys(row["network"] for row in rows)
    return "\n".join([table(rows, COLUMNS), "", *(_line(name, rows) for name in names)])
