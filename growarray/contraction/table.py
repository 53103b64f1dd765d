"""Showing a plan: its steps, their sums, and the cost of the best other paths."""

from __future__ import annotations

import math
from typing import TypeVar

from growarray.contraction.path import PRESETS
from growarray.contraction.planned import Planned
from growarray.contraction.search import EXACT
from growarray.cuda.device import double_ratio
from growarray.display import Block, Table
from growarray.errors import PlanError

_SLOW = 4  # times as long as float32, from which on the table says that float64 is slow
_PlanT = TypeVar("_PlanT", bound=Planned)


def quantity(value: float, unit: str = "") -> str:
    """A number with a decimal prefix.

    >>> quantity(1851.8e6), quantity(512)
    ('1.85 G', '512')
    """
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def seconds(value: float) -> str:
    """A time in a unit that suits it.

    >>> seconds(0.0031), seconds(2e-5)
    ('3.1 ms', '20 us')
    """
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def alternatives(plan: _PlanT) -> dict[str, _PlanT]:
    """The same problem along other paths: the presets, and the best of each search, one for each distinct order."""
    found: dict[str, _PlanT] = {}
    seen = {_order(plan)}
    for name in (*PRESETS, "greedy", *(["optimal"] if len(plan.shapes) <= EXACT else [])):
        try:
            other = plan.with_path(name)
        except PlanError:  # a preset needs a convolution, and opt_einsum's search may not take every equation
            continue
        if _order(other) not in seen:
            seen.add(_order(other))
            found[name] = other
    return found


def _order(plan: Planned) -> frozenset[tuple[int, int]]:
    return frozenset((min(pair), max(pair)) for pair in plan.tree)


def _numbers(plan: Planned) -> str:
    """The dtype, and how a GPU multiplies it."""
    if plan.precision:
        return f"{plan.dtype} by {plan.precision}"
    ratio = double_ratio() if plan.device != "cpu" and str(plan.dtype) == "float64" else 1
    return f"{plan.dtype}{f', which takes {ratio} times as long as float32 on this GPU' if ratio > _SLOW else ''}"


def plan_blocks(plan: Planned) -> list[Block]:
    """Step, modes, routine, operations, bytes, size of the result and predicted time; sums; peak; other paths."""
    device = plan.device if plan.device != "cpu" else f"cpu, {plan.machine.cores} cores"
    kind = "forward + backward" if plan.training else "forward"
    block = f", blocks of {plan.block}" if plan.block else ""
    if plan.slices:
        count = math.prod(plan.slices.values())
        cut = ", ".join(f"{mode} in {pieces}" for mode, pieces in plan.slices.items())
        block += f", {count} slices ({cut})"
    rows = [["step", "product", "routine", "FLOPs", "bytes", "result", "time"]]
    for index, (step, text) in enumerate(zip(plan.steps, plan.products, strict=True), start=1):
        flops, memory = quantity(step.flops + step.backward_flops), quantity(step.bytes + step.backward_bytes, "B")
        time = seconds(step.seconds + step.backward_seconds)
        rows.append([str(index), text, step.routine, flops, memory, quantity(step.elements), time])
    rows.append(["sum", "", "", quantity(plan.flops), quantity(plan.bytes, "B"), "", seconds(plan.seconds)])
    blocks: list[Block] = [
        plan.equation,
        f"shapes {', '.join(str(s) for s in plan.shapes)} -> {plan.output_shape}",
        f"{_numbers(plan)}, {device}{block}, {kind}, peak {quantity(plan.peak_bytes, 'B')}",
        "",
        Table(rows),
    ]
    others = alternatives(plan)
    if others:
        rows = [["other path", "order", "FLOPs", "peak", "time"]]
        for name, other in others.items():
            order = " ".join(f"{i}{j}" for i, j in other.path)
            rows.append([name, order, quantity(other.flops), quantity(other.peak_bytes, "B"), seconds(other.seconds)])
        blocks += ["", Table(rows)]
    return blocks
