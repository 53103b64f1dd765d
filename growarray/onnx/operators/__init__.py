"""The operators of ONNX, a family a file; each is one row that says how it is read, written and folded."""

from __future__ import annotations

from growarray.nn.module import Module
from growarray.onnx.lower import Lowering
from growarray.onnx.operators import (
    arithmetic,
    attention,
    composed,
    constant,
    conv,
    element,
    factorized,
    indexed,
    layout,
    learned,
    linear,
    network,
    norm,
    part,
    pool,
    quantize,
    recurrent,
    reduce,
    resize,
    shape,
)
from growarray.onnx.operators.row import Operator

__all__ = ["DOMAINS", "OPERATORS", "WRITES"]

_FAMILIES = (
    arithmetic, attention, composed, constant, conv, element, indexed, layout, learned, linear, norm, part, pool,
    quantize, recurrent, reduce, resize, shape,
)  # fmt: skip

OPERATORS: dict[str, Operator] = {row.key: row for family in _FAMILIES for row in family.ROWS}
"""Every operator by its name, those of another domain than the default one with it in front."""

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
"""The domains that have operators here."""

WRITES: dict[type[Module], Lowering] = {
    **{kind: write for row in OPERATORS.values() for kind, write in row.writes.items()},
    **arithmetic.WRITES,
    **attention.WRITES,
    **element.WRITES,
    **factorized.WRITES,
    **indexed.WRITES,
    **reduce.WRITES,
    **network.WRITES,
}
"""What writes each class of layer: the rows, and layers that are written as several operators."""
