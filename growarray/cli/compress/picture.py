"""The picture of a compression: the trade-off between cost and error, and what became of each layer."""

from __future__ import annotations

import itertools
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from growarray.compression import Compression
from growarray.contraction.table import quantity, seconds
from growarray.factorized import formats
from growarray.factorized.report import Change, ConversionReport
from growarray.networks.picture import saved

_COLOURS = ("#7570b3", "#1f77b4", "#8c8c8c", "#e7298a", "#2a9d5c", "#d95f02")
_STYLES = ("-.", "-", "-", "-.", ":", "--")  # curves may lie on each other
_LOOKS = dict(zip(formats(), zip(itertools.cycle(_COLOURS), itertools.cycle(_STYLES), strict=False), strict=False))
_WORDS = {"parameters": "parameters", "flops": "FLOPs", "time": "predicted time"}
_MOST = 40  # layers that have a bar of their own
_DECADES = 20.0  # ratio of two errors from which the axis is logarithmic


def draw(found: Compression) -> bytes:
    """A PNG: error over cost on the left, a bar for each layer on the right.

    >>> import numpy as np
    >>> from growarray import nn
    >>> from growarray.compression import compress
    >>> net = nn.Sequential(nn.Linear(30, 40, rng=np.random.default_rng(0)))
    >>> draw(compress(net, 0.5))[1:4]
    b'PNG'
    """
    return saved(drawn(found))


def drawn(found: Compression) -> Figure:
    """The two panels as a figure of matplotlib."""
    shown = _largest(found)
    height = max(4.6, 2.0 + 0.24 * len(shown))
    figure = Figure(figsize=(11.0, height), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
    FigureCanvasAgg(figure)  # no window, whatever matplotlib's own setting is
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.15))
    _trade_off(left, found)
    _layers(right, found.by, shown, hidden=len(found.reports) - len(shown))
    below = (0.5, -0.14 * 4.6 / height)  # so that no line goes through a legend
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(loc="upper center", bbox_to_anchor=below, ncols=2, fontsize=9, frameon=False)
    return figure


def _trade_off(panel: Axes, found: Compression) -> None:
    dense = found.cost.before
    for name, points in found.curves.items():
        best = name == "best"
        xs, ys = [p.cost / dense for p in points], [p.error for p in points]
        style: dict[str, Any] = (
            {"color": "black", "linewidth": 4.0, "alpha": 0.3}
            if best
            else dict(zip(("color", "linestyle"), _LOOKS[name], strict=True))
        )
        label = "best of all formats" if best and len(found.curves) > 1 else "estimate" if best else f"{name} alone"
        # steps: between two points there is nothing to choose but the smaller one
        panel.plot(xs, ys, label=label, drawstyle="steps-post", zorder=2 if best else 3, **{"linewidth": 1.2, **style})
    share = found.cost.ratio
    panel.plot([share], [found.error], "o", color="black", markersize=7, zorder=4, label=f"chosen: {found.error:.3g}")
    if found.output_error is not None:
        text = f"output, measured: {found.output_error:.3g}"
        panel.plot([share], [found.output_error], "D", color="#c0392b", markersize=7, zorder=5, label=text)
    panel.axvline(found.budget / dense, color="#8c8c8c", linestyle="--", linewidth=0.9, zorder=1, label="budget")
    _error_axis(panel, found)
    panel.set_xlim(-0.04, 1.04)
    panel.xaxis.set_major_formatter(PercentFormatter(1.0))
    panel.set_xlabel(f"{_WORDS[found.by]}, share of the dense network")
    what = "weights,\nroot mean square of the layers" if found.output_error is None else "output"
    panel.set_ylabel(f"relative error of the {what}")
    panel.grid(alpha=0.3)


def _error_axis(panel: Axes, found: Compression) -> None:
    """From 0, with space below it for a marker; logarithmic if what was chosen would lie on the axis."""
    shown = [e for e in (found.error, found.output_error) if e]
    highest = max([point.error for points in found.curves.values() for point in points] + shown, default=0.0)
    if shown and highest > _DECADES * min(shown):
        panel.set_yscale("log")
        panel.set_ylim(min(shown) / 3.0, highest * 1.5)
    elif highest:
        panel.set_ylim(-0.04 * highest, 1.06 * highest)


def _cost(report: ConversionReport, by: str) -> Change:
    """Of one layer, before and after, in what the budget counts."""
    cost = {"parameters": report.parameters, "flops": report.flops, "time": report.predicted_time}[by]
    return cost if cost is not None else Change(0.0, 0.0)


def _largest(found: Compression) -> list[tuple[str, ConversionReport]]:
    """The layers that cost most, in their order."""
    most = sorted(found.reports, key=lambda name: -_cost(found.reports[name], found.by).before)[:_MOST]
    return [(name, report) for name, report in found.reports.items() if name in most]


def _layers(panel: Axes, by: str, shown: list[tuple[str, ConversionReport]], hidden: int) -> None:
    """What a layer cost before, as a frame, and costs after, in the colour of the format."""
    named: set[str] = set()
    for row, (_, report) in enumerate(shown):
        cost = _cost(report, by)
        panel.barh(row, cost.before, height=0.72, color="#ececec", edgecolor="#bdbdbd", linewidth=0.6)
        label = None if report.format in named else "stays dense" if report.rank is None else report.format
        named.add(report.format)
        panel.barh(row, cost.after, height=0.72, color=_LOOKS[report.format][0], label=label)
        if report.rank is not None:
            text = f" {cost.ratio:.0%}" + (", slower" if report.slower else "")
            colour = "#c0392b" if report.slower else "black"
            panel.text(max(cost), row, text, va="center", fontsize=8, color=colour)
    panel.set_yticks(range(len(shown)), [_short(name) for name, _ in shown], fontsize=8)
    panel.invert_yaxis()
    widest = max((max(_cost(report, by)) for _, report in shown), default=0.0)
    panel.set_xlim(0.0, 1.2 * widest or 1.0)  # space for a text beside the widest bar
    panel.xaxis.set_major_locator(MaxNLocator(6))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: seconds(x) if by == "time" else quantity(x)))
    more = f" (the {hidden} smallest layers are left out)" if hidden else ""
    panel.set_ylabel("layer")
    panel.set_xlabel(f"{_WORDS[by]} before (frame) and after{more}")


def _short(name: str) -> str:
    """The end of a long name, in characters that a font has."""
    plain = ascii(name)[1:-1]
    return plain if len(plain) <= 28 else f"…{plain[-27:]}"
