"""``growarray inspect``: what is in a file of weights, as tables or as JSON, or why it is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from growarray.checkpoint.checkpoint import shape_text
from growarray.checkpoint.inspect import Extra, Inspection, TensorRow
from growarray.checkpoint.inspect import inspect as inspect_file
from growarray.cli.files import LimitsOption, LinksOption, PrefixOption, SelectOption, limits_from
from growarray.cli.options import switch
from growarray.cli.terminal import Screen, plain_table, show_line, show_table
from growarray.display import printable
from growarray.onnx.outline import GraphOutline, Port, Use

_UNWRAPPED = 100_000  # columns without a terminal: a line stays a line
_MOST_USES = 4


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="torch, safetensors, ONNX, .npz, or an index of shards")],
    as_json: Annotated[bool, switch("--json", "print JSON in place of tables")] = False,
    select: SelectOption = None,
    prefix: PrefixOption = None,
    limits: LimitsOption = None,
    follow_links: LinksOption = False,
    check: Annotated[bool, switch("--check", "read every tensor too: checksums and values")] = False,
) -> None:
    """Inspect, and show what was found."""
    found = inspect_file(
        file, select=select, prefix=prefix, limits=limits_from(limits), follow_links=follow_links, check=check
    )
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    elif not found.refused:
        _show(found)
    for fault in found.faults:
        typer.echo(f"growarray inspect: refused: {printable(' '.join(fault.split()))}", err=True)
    if found.faults:
        raise typer.Exit(2)


def _show(found: Inspection) -> None:
    """Tables on the standard output, whole lines if it is no terminal."""
    console = Screen()
    if not console.is_terminal:
        console = Screen(width=_UNWRAPPED)

    def line(text: str) -> None:
        show_line(console, printable(text))

    line(f"{found.source}: {found.kind}, {found.size or 0:,} bytes")
    if found.tensors:
        show_table(console, _tensors(found))
    scalars = sum(math.prod(row.shape) for row in found.tensors)
    line(f"{len(found.tensors)} tensors, {scalars:,} values, {sum(row.nbytes for row in found.tensors):,} bytes")
    for number, group in enumerate(found.tied, start=1):
        line(f"tied #{number}: {', '.join(group)}")
    if found.prefix:
        line(f"prefix: {found.prefix}")
    if found.graph is not None:
        _show_graph(console, found.graph, found.tensors)
    for title, extras in (("metadata", found.metadata), ("beside the weights", found.extras)):
        if extras:
            show_table(console, _extras(title, extras))
    for note in found.notes:
        line(f"note: {note}")


def _tensors(found: Inspection) -> Table:
    groups = {name: number for number, group in enumerate(found.tied, start=1) for name in group}
    used = any(row.uses for row in found.tensors)
    optional = [header for header, there in (("tied", groups), ("used by", used)) if there]
    table = _table("", ("tensor", "shape", "dtype", "bytes", *optional))
    for row in found.tensors:
        cells = [row.name, shape_text(row.shape), row.dtype, f"{row.nbytes:,}"]
        if groups:
            cells.append(f"#{groups[row.name]}" if row.name in groups else "")
        if used:
            cells.append(_uses(row.uses))
        _add(table, cells)
    return table


def _uses(uses: Sequence[Use]) -> str:
    """``Conv conv1 [1]``: operator, node and input, a few of them."""
    more = f" and {len(uses) - _MOST_USES} more" if len(uses) > _MOST_USES else ""
    return ", ".join(f"{use.operator} {use.node} [{use.position}]" for use in uses[:_MOST_USES]) + more


def _show_graph(console: Console, graph: GraphOutline, tensors: Sequence[TensorRow]) -> None:
    table = _table("graph", ("", "name", "shape"))
    for what, ports in (("input", graph.inputs), ("output", graph.outputs)):
        for port in ports:
            _add(table, [what, port.name, _axes(port)])
    show_table(console, table)
    operators = sorted(graph.operators.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{count} {operator}" for operator, count in operators)
    show_line(console, printable(f"nodes: {text or 'none'}"))
    unused = [row.name for row in tensors if not row.uses]
    if unused:
        show_line(console, printable(f"used by no node: {', '.join(unused)}"))


def _axes(port: Port) -> str:
    return "unknown" if port.shape is None else "x".join(map(str, port.shape)) or "scalar"


def _extras(title: str, extras: Iterable[Extra]) -> Table:
    table = _table(title, ("key", "type", "value"))
    for extra in extras:
        _add(table, [extra.name, extra.kind, extra.text])
    return table


def _table(title: str, headers: Sequence[str]) -> Table:
    table = plain_table(title)
    for header in headers:
        table.add_column(header, justify="right" if header == "bytes" else "left", overflow="fold")
    return table


def _add(table: Table, cells: Iterable[str]) -> None:
    """A row whose texts are shown as they are: neither markup nor control codes of the file have an effect."""
    table.add_row(*(Text(printable(cell)) for cell in cells))
