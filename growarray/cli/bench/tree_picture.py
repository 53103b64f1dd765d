"""Pictures of a plan: its contraction tree, and the products of all paths on the machine's roofline."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from growarray.cli.bench.picture import ticks
from growarray.contraction import Plan
from growarray.contraction.machine import Machine
from growarray.contraction.table import quantity

_ROOF, _POINT, _AUTO, _CONV = "#8c8c8c", "#1f77b4", "#d95f02", "#d62728"
_MAP = "YlGnBu"

Place = tuple[float, float]


def drawn_tree(plan: Plan) -> Figure:
    """Operands below, the result on top: elements by colour, red rings where convolution modes meet."""
    places = _places(plan)
    deep, wide = max(y for _, y in places.values()), max(x for x, _ in places.values())
    figure = Figure(figsize=(max(6.0, 1.5 * wide + 3.0), max(3.5, 0.95 * deep + 2.2)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    sizes = {part: max(plan.problem.elements(part), 1) for part in places}
    norm = LogNorm(min(sizes.values()), max(max(sizes.values()), min(sizes.values()) + 1))
    for step, (left, right) in zip(plan.steps, plan.tree, strict=True):
        x, y = places[left | right]
        for part in (left, right):
            low, side = places[part][1], places[part][0]  # at right angles no line crosses another
            panel.plot([side, side, x], [low, y, y], color=_ROOF, linewidth=1.2, zorder=1)
        text = f"{step.routine}, {quantity(step.flops + step.backward_flops, 'FLOP')}"
        panel.annotate(
            text, (x, y), (0, -18), textcoords="offset points", fontsize=8, ha="center", va="center", color="#444444"
        )
    for part, (x, y) in places.items():
        met = _met(plan, part)
        edge, width = (_CONV, 2.2) if met else ("#444444", 0.8)
        fill = colormaps[_MAP](norm(sizes[part]))
        panel.scatter([x], [y], s=260, color=fill, edgecolors=edge, linewidths=width, zorder=3)
        is_operand = part & (part - 1) == 0
        modes = " ".join(plan.problem.modes(part)) or "number"
        name = f"{part.bit_length() - 1}: {modes}" if is_operand else modes + (f" | {', '.join(met)}" if met else "")
        panel.annotate(
            name, (x, y), (0, -19 if is_operand else 15), textcoords="offset points", ha="center", va="center",
            fontsize=9, color=_CONV if met else "black", zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},  # no line runs through a name
        )  # fmt: skip
    if plan.problem.conv:
        panel.scatter([], [], s=90, facecolors="none", edgecolors=_CONV, linewidths=2.0, label="convolution modes meet")
        panel.legend(loc="upper left", fontsize=8.5, frameon=False)
    panel.set(xlim=(-0.7, wide + 1.0), ylim=(-0.6, deep + 0.75))
    panel.axis("off")
    bar = figure.colorbar(ScalarMappable(norm, _MAP), ax=panel, fraction=0.035, pad=0.02)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value)))
    bar.set_label("elements", fontsize=9)
    title = textwrap.fill(plan.equation, int(14 * figure.get_figwidth()) - 30)
    panel.set_title(f"{title}\n{quantity(plan.flops, 'FLOP')}, peak {quantity(plan.peak_bytes, 'B')}", fontsize=10)
    return figure


def _met(plan: Plan, part: int) -> list[str]:
    """Convolution modes that meet in the product that gives this part."""
    for left, right in plan.tree:
        if left | right == part:
            convolutions = [(m, 1 << conv.feature, 1 << conv.kernel) for m, conv in plan.problem.conv.items()]
            return [m for m, f, k in convolutions if (left & f and right & k) or (right & f and left & k)]
    return []


def _places(plan: Plan) -> dict[int, Place]:
    """Operands side by side in the order of the tree, each result above the middle of what it is made of."""
    halves = {left | right: (left, right) for left, right in plan.tree}
    order, waiting = list[int](), [plan.problem.everything]
    while waiting:
        part = waiting.pop()
        waiting += halves.get(part, ())
        if part not in halves:
            order.append(part)
    found: dict[int, Place] = {part: (float(i), 0.0) for i, part in enumerate(order)}
    for left, right in plan.tree:
        (ax, ay), (bx, by) = found[left], found[right]
        found[left | right] = ((ax + bx) / 2, max(ay, by) + 1.0)
    return found


def drawn_roofline(report: Mapping[str, Any], machine: Machine) -> Figure:
    """Operations for each byte that a path moves, against the operations a second that were measured."""
    figure = Figure(figsize=(7.2, 5.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    points = {}
    for row in report["paths"]:
        figures = row["forward"]
        if figures["flops"] and figures["bytes"]:
            points[row["label"]] = (figures["flops"] / figures["bytes"], figures["flops"] / figures["measured_seconds"])
    rate, width = machine.rate * machine.cores, 1.0 / machine.byte
    every = [x for x, _ in points.values()] or [1.0]
    low, high = min([*every, rate / width]) / 3, max([*every, rate / width]) * 3
    panel.plot([low, rate / width, high], [low * width, rate, rate], color=_ROOF, linewidth=1.8, zorder=1)
    panel.annotate(
        f"{machine.cores} core{'s' if machine.cores > 1 else ''}, products: {quantity(rate, 'FLOP/s')}",
        (high, rate), (-4, 5), textcoords="offset points", ha="right", fontsize=8.5, color=_ROOF,
    )  # fmt: skip
    panel.annotate(
        f"memory: {quantity(width, 'B/s')}", (low, low * width), (12, -3), textcoords="offset points", fontsize=8.5,
        color=_ROOF,
    )  # fmt: skip
    auto = report["summary"]["forward"]["auto"]
    for label, place in points.items():
        colour = _AUTO if label == auto else _POINT
        panel.scatter(*place, s=70 if label == auto else 34, color=colour, alpha=0.85, zorder=3)
    panel.scatter([], [], s=70, color=_AUTO, label="auto's choice")
    panel.scatter([], [], s=34, color=_POINT, label="other paths")
    panel.set(xscale="log", yscale="log", xlim=(low, high))
    _axes(panel)
    panel.set_title(report["description"], fontsize=9, wrap=True)
    return figure


def _axes(panel: Axes) -> None:
    ticks(panel.xaxis, *panel.get_xlim(), "{:g}".format)
    ticks(panel.yaxis, *panel.get_ylim(), quantity)
    panel.set_xlabel("arithmetic intensity: operations for each byte that the steps read and write")
    panel.set_ylabel("measured operations a second, forward")
    panel.grid(which="major", alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=8.5, frameon=False)
