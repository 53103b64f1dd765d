"""The picture of ``growarray bench paths``: predicted against measured time, and the trade-off of time and memory."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from growarray.cli.bench.report import KINDS
from growarray.contraction.table import quantity, seconds

_COLOURS = {"forward": "#1f77b4", "training": "#d95f02"}
_MARKERS = {"forward": "o", "training": "s"}
_FRONT, _GREY, _PEER = "#2a9d4a", "#8c8c8c", "#7b3fa0"
_RADII = (9, 15, 23, 33, 45, 60, 78, 100, 125, 155, 190, 230)
_STEPS = [(radius, angle) for radius in _RADII for angle in range(0, 360, 15)]
_TITLE = 150  # characters in a line of the title
_NEAR = 3.0  # pixels that a label keeps from a line

# what part of a decade has a tick, if the axis has more decades than this
_TICKS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (3.5, (1,)), (1.8, (1, 3)), (0.8, (1, 2, 5)), (0.4, (1, 1.5, 2, 3, 5, 7)), (-1, tuple(k / 2 for k in range(2, 20))),
)  # fmt: skip

Point = tuple[float, float]


def drawn_paths(report: Mapping[str, Any]) -> Figure:
    """The two panels as a figure of matplotlib, its labels placed for this size."""
    figure = Figure(figsize=(12.0, 6.2), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12))
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(report["description"], _TITLE), fontsize=10)
    left, right = figure.subplots(1, 2)
    kinds = [kind for kind in KINDS if kind in report["summary"]]
    _predicted_against_measured(left, report, kinds)
    labels, points = _trade_off(right, report)
    for panel in (left, right):
        panel.grid(which="major", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels are placed in pixels: nothing may move afterwards
    _place(right, labels, points)
    return figure


def short_label(names: Sequence[str]) -> str:
    """The name that says most about a path.

    >>> short_label(["auto: time", "auto: training", "patterns"]), short_label(["windows: optimal", "windows: greedy"])
    ('auto', 'opt_einsum optimal')
    """
    first = names[0]
    if first in ("auto: time", "auto: training"):
        return "auto" if first == "auto: time" else "auto, training"
    presets = [name for name in names if ": " not in name and name != "patterns"]
    if presets:
        return presets[0]
    if first == "patterns":
        return "opt_einsum patterns"
    return first.replace("windows: ", "opt_einsum ").replace("opt_einsum: ", "opt_einsum ")


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Points that no other beats in both, from the left to the right.

    >>> pareto_front([(1, 5), (2, 6), (3, 1), (1, 7)])
    [(1, 5), (3, 1)]
    """
    front: list[Point] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _drawn(row: Mapping[str, Any]) -> bool:
    return bool(row["names"][0].startswith("drawn"))


def _predicted_against_measured(panel: Axes, report: Mapping[str, Any], kinds: Sequence[str]) -> None:
    every = []
    for kind in kinds:
        summary, colour = report["summary"][kind], _COLOURS[kind]
        correlation = "" if summary["spearman"] is None else f", rank correlation {summary['spearman']:.2f}"
        for drawn in (False, True):
            points = [_times(row[kind]) for row in report["paths"] if _drawn(row) == drawn]
            every += points
            label = None if drawn else f"{summary['pass']}{correlation}"
            style: dict[str, Any] = {"s": 34, "marker": _MARKERS[kind], "alpha": 0.85, "zorder": 3, "label": label}
            _dots(panel, points, colour, hollow=drawn, **style)
        auto = next(row for row in report["paths"] if row["label"] == summary["auto"])
        label = "auto's choice" if kind == kinds[0] else None
        _dots(panel, [_times(auto[kind])], "black", hollow=True, s=150, zorder=4, label=label)
    low, high = min(min(p) for p in every) / 1.4, max(max(p) for p in every) * 1.4
    panel.plot([low, high], [low, high], color=_GREY, linewidth=1.0, zorder=1)
    band: dict[str, Any] = {"color": _GREY, "alpha": 0.12, "linewidth": 0, "zorder": 0, "label": "within a factor of 2"}
    panel.fill_between([low, high], [low / 2, high / 2], [low * 2, high * 2], **band)
    panel.scatter([], [], s=34, facecolors="none", edgecolors=_GREY, label="hollow: drawn at random")
    panel.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    ticks(panel.xaxis, low, high, seconds)
    ticks(panel.yaxis, low, high, seconds)
    panel.set_xlabel("predicted time")
    panel.set_ylabel("measured time")
    _legend(panel)


def _times(row: Mapping[str, Any]) -> Point:
    return row["predicted_seconds"], row["measured_seconds"]


def _dots(panel: Axes, points: Sequence[Point], colour: str, *, hollow: bool, **style: Any) -> None:
    face = "none" if hollow else colour
    x, y = [x for x, _ in points], [y for _, y in points]
    panel.scatter(x, y, facecolors=face, edgecolors=colour, linewidths=1.2, **style)


def _trade_off(panel: Axes, report: Mapping[str, Any]) -> tuple[list[tuple[Point, str, str]], list[Point]]:
    """Time and memory of the forward pass; returns what is to be labelled (place, text, colour), and all places."""
    rows = report["paths"]
    measured = all(row["forward"]["measured_peak_bytes"] is not None for row in rows)
    key = f"{'measured' if measured else 'predicted'}_peak_bytes"
    places = [(row["forward"]["measured_seconds"], float(row["forward"][key])) for row in rows]
    front = pareto_front(places)
    low, high = min(x for x, _ in places) / 1.8, max(x for x, _ in places) * 1.8
    bottom, top = min(y for _, y in places) / 1.3, max(y for _, y in places) * 1.25
    stairs = [(front[0][0], top), *front, (high, front[-1][1])]
    line: dict[str, Any] = {"color": _FRONT, "linewidth": 1.4, "label": "best trade-offs", "zorder": 1}
    panel.plot(*zip(*stairs, strict=True), drawstyle="steps-post", **line)
    labels = []
    for row, place in zip(rows, places, strict=True):
        colour = _FRONT if place in front else _COLOURS["forward"]
        _dots(panel, [place], colour, hollow=_drawn(row), s=40, zorder=3)
        if place in front or not _drawn(row):
            labels.append((place, short_label(row["names"]), colour))
    for peer, style in zip(report["peers"], itertools.cycle(("--", ":", "-.", "-"))):
        x = peer["forward"]["measured_seconds"]
        panel.axvline(x, color=_PEER, linewidth=1.0, linestyle=style, label=peer["label"], zorder=0)
        low, high = min(low, x / 1.2), max(high, x * 1.2)
    panel.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    ticks(panel.xaxis, low, high, seconds)
    ticks(panel.yaxis, bottom, top, lambda value: quantity(value, "B"))
    panel.set_xlabel("measured time, forward")
    panel.set_ylabel(f"{'measured' if measured else 'predicted'} peak memory, forward")
    _legend(panel)
    return labels, places


def _legend(panel: Axes) -> None:
    """Below the axis: there it covers no point."""
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=2, fontsize=8.5, frameon=False)


def ticks(axis: Any, low: float, high: float, text: Any) -> None:
    """Ticks in words, the closer the less there is between the ends."""
    decades = math.log10(high / low)
    axis.set_major_locator(LogLocator(subs=next(subs for least, subs in _TICKS if decades > least)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def _place(panel: Axes, labels: Sequence[tuple[Point, str, str]], points: Sequence[Point]) -> None:
    """Write each label at the nearest place where it covers no other label, point or line, nor is crossed by one."""
    inside, scale = panel.get_window_extent(), panel.figure.dpi / 72.0
    marks = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in panel.transData.transform(points)]
    taken, written = [*marks, *_lines(panel)], list[Bbox]()
    for place, text, colour in sorted(labels, key=lambda label: label[0]):
        trial = panel.text(0, 0, text, fontsize=9)
        size = trial.get_window_extent()
        trial.remove()
        x, y = panel.transData.transform(place)
        others = [mark for mark in marks if not mark.contains(x, y)]
        for strict, (radius, angle) in [*itertools.product((True, False), _STEPS), (False, (0, 0))]:
            dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
            side: Literal["left", "center", "right"] = "left" if dx > 1 else "right" if dx < -1 else "center"
            start = x + dx * scale - {"left": 0.0, "center": size.width / 2, "right": size.width}[side]
            box = Bbox.from_bounds(start - 2, y + dy * scale - size.height / 2 - 1, size.width + 4, size.height + 2)
            fits = box.x0 >= inside.x0 and box.x1 <= inside.x1 and box.y0 >= inside.y0 and box.y1 <= inside.y1
            leader = _leader((x, y), (x + dx * scale, y + dy * scale))
            free = not any(box.overlaps(other) for other in taken)
            crossed = strict and any(piece.overlaps(other) for piece in leader for other in (*written, *others))
            if (fits and free and not crossed) or radius == 0:
                _note(panel, text, place, (dx, dy), side, colour)
                written.append(box)
                taken += [box, *leader]
                break


def _note(
    panel: Axes, text: str, place: Point, offset: Point, side: Literal["left", "center", "right"], colour: str
) -> None:
    """The label, and a thin line from its near edge to the point."""
    edge = {"left": (0.0, 0.5), "right": (1.0, 0.5), "center": (0.5, 0.0 if offset[1] > 0 else 1.0)}[side]
    panel.annotate(
        text, place, offset, textcoords="offset points", fontsize=9, color=colour, ha=side, va="center", zorder=5,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        arrowprops={
            "arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4, "relpos": edge,
        },
    )  # fmt: skip


def _lines(panel: Axes) -> list[Bbox]:
    """Where the straight pieces of a panel's lines are, in pixels; stairs turn at right angles."""
    boxes = []
    for line in panel.get_lines():
        places = line.get_transform().transform(line.get_xydata())
        if line.get_drawstyle() == "steps-post":
            turns = [((ax, ay), (bx, ay), (bx, by)) for (ax, ay), (bx, by) in itertools.pairwise(places)]
            places = np.array([corner for three in turns for corner in three])
        for (ax, ay), (bx, by) in itertools.pairwise(places):
            edges = (min(ax, bx) - _NEAR, min(ay, by) - _NEAR, max(ax, bx) + _NEAR, max(ay, by) + _NEAR)
            boxes.append(Bbox.from_extents(*edges))
    return boxes


def _leader(start: Point, end: Point) -> list[Bbox]:
    """The line from a point to its label, as small boxes."""
    pieces = max(2, int(math.dist(start, end) / 4))
    dx, dy = (end[0] - start[0]) / pieces, (end[1] - start[1]) / pieces
    steps = [(start[0] + k * dx, start[1] + k * dy) for k in range(pieces)]
    return [Bbox.from_extents(x - 1, y - 1, x + 1, y + 1) for x, y in steps]
