"""The operators of ONNX, a family a file; each is one row that says how it is read, written and folded."""

from __future__ import annotations

from growarray.nn.module import Module
from growarray.onnx.lower import Lowering
from growarray.onnx.operators import (
    arithmetic,
    constant,
    conv,
    element,
    factorized,
    layout,
    linear,
    logic,
    network,
    norm,
    part,
    pool,
    reduce,
    shape,
    softmax,
)
from growarray.onnx.operators.row import Operator

__all__ = ["OPERATORS", "WRITES"]

_FAMILIES = (arithmetic, constant, conv, element, layout, linear, logic, norm, part, pool, reduce, shape, softmax)

OPERATORS: dict[str, Operator] = {row.name: row for family in _FAMILIES for row in family.ROWS}
"""Every operator by its name in the default domain."""

WRITES: dict[type[Module], Lowering] = {
    **{kind: write for row in OPERATORS.values() for kind, write in row.writes.items()},
    **arithmetic.WRITES,
    **element.WRITES,
    **factorized.WRITES,
    **reduce.WRITES,
    **network.WRITES,
}
"""What writes each class of layer: the rows, and layers that are written as several operators."""
