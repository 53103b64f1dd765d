"""What ``growarray bench paths`` shows and writes: tables of 80 columns and more, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from growarray.cli.bench.report import KINDS
from growarray.cli.terminal import plain_table, show_line, show_table
from growarray.contraction.table import quantity, seconds

_FIELDS = ("flops", "bytes", "predicted_seconds", "measured_seconds", "predicted_peak_bytes", "measured_peak_bytes")


def show_paths(console: Console, report: Mapping[str, Any]) -> None:
    """The whole report of one layer."""
    show_line(console, report["description"])
    machine = report["machine"]
    cores = f", {machine['cores']} core{'s' if machine['cores'] > 1 else ''}" if report["device"] == "cpu" else ""
    text = f"{report['device']}{cores}, {report['clock']} time, machine model: {machine['name']}"
    show_line(console, text)
    if report["device"] == "cpu":
        show_line(console, f"products by {report['blas']}")
    for kind in KINDS:
        if kind in report["summary"]:
            console.print()
            show_table(console, paths_table(report, kind))
            show_line(console, _verdict(report["summary"][kind]))
    if report["peers"]:
        console.print()
        show_table(console, peers_table(report))
    charges = [
        f"{name}: opt_einsum counts {quantity(charged, 'FLOP')} for the order {row['order']}, "
        f"run here it takes {quantity(row['forward']['flops'], 'FLOP')}"
        for row in report["paths"]
        for name, charged in row["charged"].items()
    ]
    if charges or report["remarks"]:
        console.print()
    for line in (*charges, *report["remarks"]):
        show_line(console, line)


def _verdict(summary: Mapping[str, Any]) -> str:
    correlation = summary["spearman"]
    ranks = "too few paths for a rank correlation" if correlation is None else f"rank correlation {correlation:.3f}"
    if summary["auto"] == summary["fastest"]:
        return f"{ranks}; auto takes the fastest path"
    return f"{ranks}; auto takes {summary['auto_behind']:.1%} longer than the fastest path ({summary['fastest']})"


def paths_table(report: Mapping[str, Any], kind: str) -> Table:
    """One row for each order of contraction, the fastest first; predicted and measured side by side."""
    table = plain_table(report["summary"][kind]["pass"], space=1)
    table.add_column("\npath", overflow="fold", min_width=20)
    table.add_column("\norder", overflow="fold", min_width=11)
    for header in ("\nFLOPs", "peak\npred.", "peak\nmeas.", "time\npred.", "time\nmeas.", "times\nbest"):
        table.add_column(header, justify="right", no_wrap=True)
    rows = sorted(report["paths"], key=lambda row: float(row[kind]["measured_seconds"]))
    best = rows[0][kind]["measured_seconds"]
    for row in rows:
        f = row[kind]
        peak = f["measured_peak_bytes"]
        peaks = [quantity(f["predicted_peak_bytes"], "B"), "-" if peak is None else quantity(peak, "B")]
        times = [seconds(f["predicted_seconds"]), seconds(f["measured_seconds"]), f"{f['measured_seconds'] / best:.2f}"]
        style = "bold" if any(name.startswith("auto: t") for name in row["names"]) else None
        table.add_row(escape(row["label"]), row["order"], quantity(f["flops"]), *peaks, *times, style=style)
    return table


def peers_table(report: Mapping[str, Any]) -> Table:
    """The other libraries in the same rounds, beside the path that auto takes."""
    kinds = [kind for kind in KINDS if kind in report["summary"]]
    table = plain_table("other libraries, same rounds", space=1)
    table.add_column("library", overflow="fold")
    for kind in kinds:
        table.add_column(report["summary"][kind]["pass"], justify="right")
        table.add_column("times auto", justify="right")
    auto = {kind: report["summary"][kind]["auto_seconds"] for kind in kinds}
    ours = {"label": "growarray, auto", **{kind: {"measured_seconds": auto[kind]} for kind in kinds}}
    for row in (ours, *report["peers"]):
        cells = []
        for kind in kinds:
            measured = row[kind]["measured_seconds"]
            cells += [seconds(measured), f"{measured / auto[kind]:.2f}"]
        table.add_row(escape(row["label"]), *cells)
    return table


def csv_text(report: Mapping[str, Any]) -> str:
    """One line for each path, and one for each peer; columns of both passes side by side."""
    kinds = [kind for kind in KINDS if kind in report["summary"]]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["path", "order", "difference", *(f"{kind}_{field}" for kind in kinds for field in _FIELDS)])
    for row in (*report["paths"], *report["peers"]):
        figures = [row[kind].get(field, "") for kind in kinds for field in _FIELDS]
        cells = ["" if value is None else value for value in figures]
        writer.writerow([row["label"], row.get("order", ""), row["difference"], *cells])
    return stream.getvalue()
