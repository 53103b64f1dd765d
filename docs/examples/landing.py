"""The two pictures of the first page: a network that grows, and what every order of one contraction costs.

The first is ``run.png`` of ``growarray grow``. The second is predicted, for two cores: one point for each of the 945
orders in which a convolution whose kernel is a CP decomposition of rank 28 can be contracted.

Run it to draw both: python docs/examples/landing.py FOLDER
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from growarray.contraction import plan

EQUATION = "n c y x, r, o r, c r, y r, x r -> n o y x | y, x"
SHAPES = (8, 64, 56, 56), (28,), (64, 28), (64, 28), (3, 28), (3, 28)
NAMED = {
    "auto": "auto",
    "mobilenet": "mobilenet",
    "optimal": "opt_einsum's optimal",
    "reconstructed": "dense kernel first",
}

Order = tuple[tuple[int, int], ...]


def orders(parts: list[frozenset]) -> Iterator[tuple[frozenset, Order]]:
    """Every way to contract the parts two by two, with what it joins: several ways may join the same."""
    if len(parts) == 1:
        yield frozenset(parts), ()
    for right in range(len(parts)):
        for left in range(right):
            pair = frozenset((parts[left], parts[right]))
            rest = [part for at, part in enumerate(parts) if at not in (left, right)]
            for joined, path in orders([*rest, pair]):
                yield joined, ((left, right), *path)


def seconds(optimize: str | Order) -> float:
    """The predicted time of one order, or of the one that a search finds."""
    return plan(EQUATION, *SHAPES, padding=1, optimize=optimize).seconds


def every_order() -> list[float]:
    """The predicted time of every order, the fastest first."""
    paths = dict(orders([frozenset((operand,)) for operand in range(len(SHAPES))]))
    return sorted(seconds(path) for path in paths.values())


def draw_orders(file: Path) -> None:
    """Time against rank, and the orders that have a name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = every_order()
    figure = Figure(figsize=(7.0, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.loglog(range(1, len(found) + 1), [1e3 * time for time in found], ".", color="#9aa5b1", markersize=4)
    for at, (name, label) in enumerate(NAMED.items()):
        time = seconds(name)
        place = 1 + sum(other < time * (1 - 1e-9) for other in found), 1e3 * time
        axes.plot(*place, "o", color="#1f77b4" if at else "#d95f02", markersize=7)
        axes.annotate(
            f"{label}: {place[1]:.1f} ms",
            place,
            (-8, 22 + 22 * at) if at else (0, 22),
            textcoords="offset points",
            ha="right" if at else "left",
            arrowprops={"arrowstyle": "-", "color": "#9aa5b1", "relpos": (1.0 if at else 0.0, 0.0)},
        )
    axes.set_xlabel(f"the {len(found)} orders, the fastest first")
    axes.set_ylabel("predicted time, ms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    figure.savefig(file)


def draw_growth(file: Path) -> None:
    """The picture that the command draws of its run."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        subprocess.run([sys.executable, "-m", "growarray", "grow", "--quiet", "--output", str(run)], check=True)
        shutil.copy(run / "run.png", file)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    with tempfile.TemporaryDirectory() as empty:
        os.environ |= {"GROWARRAY_THREADS": "2", "GROWARRAY_CACHE": empty}  # the model's defaults, for two cores
        draw_orders(folder / "orders.png")
        draw_growth(folder / "growth.png")
