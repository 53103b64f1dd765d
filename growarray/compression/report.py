"""Result of a compression: the network, a report for each layer, and the trade-off of cost and error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from growarray.contraction.table import quantity, seconds
from growarray.decompose import Candidate
from growarray.display import Block, Displayed, Table, text_of
from growarray.factorized.report import Change, ConversionReport

_PRICES = 200  # at which the trade-off is looked at


class Point(NamedTuple):
    """A cost of the network, and the error that is estimated for it."""

    cost: float
    error: float


@dataclass(frozen=True, eq=False)
class Compression(Displayed):
    """A compressed network and its report; ``print`` shows a table with a line for each layer.

    network : the copy, with factorized layers    by, budget : what was limited, and the limit
    reports : for each layer that could be replaced a :class:`growarray.factorized.ConversionReport`, of format 'Dense'
        if it was best left as it is
    parameters : of the whole network    flops, predicted_time : of all convolutions and linear layers together
    curves : points of the trade-off between cost and error: ``'best'`` with all formats, and one for each alone, as
        estimated before anything was decomposed and corrected by what was
    output_error : relative Frobenius error of the network's output on the calibration data, None without
    error : root of the mean squared relative errors of the weights; with calibration data root of the sum of the
        squared errors that each layer alone makes in the network's output, near ``output_error`` while it is small
    input_shape : what FLOPs, times and memory are for
    left : by name every other layer with a matrix or a kernel: its class, its size, and why it was left as it is
    """

    network: Any
    by: str
    budget: float
    reports: Mapping[str, ConversionReport]
    parameters: Change
    curves: Mapping[str, tuple[Point, ...]]
    output_error: float | None
    error: float
    input_shape: Any
    left: Mapping[str, str] = field(default_factory=dict)

    @property
    def curve(self) -> tuple[Point, ...]:
        """Cost and estimated error over a sweep of budgets, with all formats to choose from."""
        return self.curves["best"]

    @property
    def flops(self) -> Change | None:
        """Sum over the layers; None without an input shape."""
        return _sum([r.flops for r in self.reports.values()])

    @property
    def predicted_time(self) -> Change | None:
        """Sum over the layers; None without an input shape."""
        return _sum([r.predicted_time for r in self.reports.values()])

    @property
    def measured_time(self) -> Change | None:
        """Sum over the layers that were replaced; None if nothing was timed."""
        return _sum([r.measured_time for r in self.reports.values()])

    @property
    def cost(self) -> Change:
        """The cost that the budget limits, before and after."""
        found = {"parameters": self.parameters, "flops": self.flops, "time": self.predicted_time}[self.by]
        return found if found is not None else Change(0.0, 0.0)

    @property
    def slower(self) -> tuple[str, ...]:
        """Names of the layers that take longer than before, if their times are known."""
        return tuple(name for name, report in self.reports.items() if report.slower)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the network."""
        totals = {"parameters": self.parameters, "flops": self.flops, "predicted_time": self.predicted_time}
        totals["measured_time"] = self.measured_time
        return {
            "by": self.by,
            "budget": self.budget,
            **{name: None if change is None else change._asdict() for name, change in totals.items()},
            "error": self.error,
            "output_error": self.output_error,
            "input_shape": self.input_shape if isinstance(self.input_shape, dict | None) else list(self.input_shape),
            "slower": list(self.slower),
            "left": dict(self.left),
            "layers": {name: report.to_dict() for name, report in self.reports.items()},
            "curves": {name: [list(point) for point in points] for name, points in self.curves.items()},
        }

    def __str__(self) -> str:
        return text_of(self._blocks())

    __repr__ = __str__

    def _blocks(self) -> list[Block]:
        what = "weights" if self.output_error is None else "output"
        rows = [["layer", "format", "rank", "parameters", "", "FLOPs", "time", f"{what} off"]]
        rows += [_row(name, report) for name, report in self.reports.items()]
        rows.append(["sum", "", "", *_totals(self.parameters, self.flops, self.predicted_time), ""])
        shown = [k for k in range(8) if any(row[k] for row in rows[1:])]
        lines: list[Block] = [Table([[row[k] for k in shown] for row in rows], left=sum(k < 3 for k in shown))]
        text = f"{self.cost.after / 1e-6:,.0f} us" if self.by == "time" else f"{self.cost.after:,.0f}"
        lines.append(f"{self.by} {text}, {self.cost.ratio:.1%} of the dense network's")
        if self.input_shape is not None:
            lines.append(f"for an input of {self.input_shape}")
        if self.output_error is None:
            lines.append("weights off: norm of what a layer's weights differ by, over their own norm")
        else:
            lines.append("output off: norm of what a layer's output differs by, over its own norm")
            lines.append(f"network: output off by {self.output_error:.3g} on the calibration data")
        for name, report in self.reports.items():
            time, how = report.measured_time or report.predicted_time, "predicted"
            if report.measured_time and time:
                how = "measured"
                lines.append(f"measured: {name}, {seconds(time.before)} -> {seconds(time.after)}, {time.ratio:.0%}")
            if report.slower and time:
                lines.append(f"SLOWER than dense: {name}, {time.ratio:.3g} times its {how} time")
        lines += [f"left as it is: {name} ({why})" for name, why in self.left.items()]
        return lines


def _sum(changes: Sequence[Change | None]) -> Change | None:
    present = [change for change in changes if change is not None]
    return Change(sum(c.before for c in present), sum(c.after for c in present)) if present else None


def _row(name: str, report: ConversionReport) -> list[str]:
    """A row of the table; the error is that of the output if it is known, else that of the weights."""
    error = report.weight_error if report.output_error is None else report.output_error
    if report.rank is None:  # it stays dense
        totals = _totals(report.parameters, None, None)
        return [name, "dense", "", totals[0], "", "", "", ""]
    rank = "x".join(map(str, report.rank)) if isinstance(report.rank, tuple) else str(report.rank)
    shown = "" if error is None else f"{error:.3g}"
    return [name, report.format, rank, *_totals(report.parameters, report.flops, report.predicted_time), shown]


def _totals(parameters: Change, flops: Change | None, time: Change | None) -> list[str]:
    return [
        f"{parameters.after:,.0f}",
        f"{parameters.ratio:.1%}",
        "" if flops is None else f"{quantity(flops.after)} {flops.ratio:.0%}",
        "" if time is None else f"{seconds(time.after)} {time.ratio:.0%}",
    ]


def trade_off(
    offers: Mapping[str, Sequence[Candidate]], formats: Sequence[str], linear: Sequence[str], fixed: float, dense: float
) -> dict[str, tuple[Point, ...]]:
    """Cost and error of the network at falling prices of a unit of cost: with all formats, and with each alone.

    linear : layers that take one form only, in every curve    fixed : cost of what no candidate changes
    dense : cost of the dense network
    """
    alone: dict[str, tuple[Point, ...]] = {}
    for name in formats if len(formats) > 1 else ():
        own = {k: [c for c in v if c.rank.format in (None, name) or k in linear] for k, v in offers.items()}
        alone[name] = _curve(own, fixed, dense)
    curves = {"best": _curve(offers, fixed, dense), **alone}
    # falling prices find corners alone: between two of all formats, those of one format may be better than the first
    front: list[Point] = []
    for point in sorted(point for points in curves.values() for point in points):
        if not front or point.error < front[-1].error:
            front.append(point)
    return {**curves, "best": tuple(front)}


def _curve(offers: Mapping[str, Sequence[Candidate]], fixed: float, dense: float) -> tuple[Point, ...]:
    points: dict[float, Point] = {}
    tables = [np.array([(c.cost, c.error) for c in offer]) for offer in offers.values()]
    errors = sum(float(offer[:, 1].max()) for offer in tables) or 1.0
    for price in np.geomspace(1e-8, 1e4, _PRICES) * errors / dense:
        best = [offer[np.argmin(offer[:, 1] + price * offer[:, 0])] for offer in tables]
        cost = fixed + sum(float(cost) for cost, _ in best)
        points[cost] = Point(cost, math.sqrt(sum(float(error) for _, error in best)))
    return tuple(points[cost] for cost in sorted(points))
