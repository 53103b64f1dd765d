"""What one row of the table of operators says: how a node is read, how layers are written, what is folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from growarray.nn.module import Module
from growarray.onnx.build import Array, Builder
from growarray.onnx.fold import constant_array
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, Lowering, OnnxGraph

__all__ = ["ANY", "Fold", "Operator", "elementwise", "folded", "one_operator"]

Read = Callable[[Builder, OpNode], None]
Fold = Callable[[Builder, OpNode], Array | None]
ANY = 2**31
"""As many inputs or outputs as a node likes."""


@dataclass(frozen=True)
class Operator:
    """One operator of ONNX.

    read : makes the modules of a node, and refuses what they cannot do; None: the operator is for constants only
    writes : by class of layer, what writes a layer as this operator, or as others if the operator set lacks it
    fold : the value of a node whose inputs are all constants; None: such a node becomes modules too
    inputs, outputs : fewest and most inputs, most outputs    since : the first operator set in which it is written
    double : whether onnxruntime 1.31 has it for float64 on a CPU
    moves : whether folding moves the entries of the first input only, so that a weight stays a weight
    """

    name: str
    read: Read | None = None
    writes: Mapping[type[Module], Lowering] = field(default_factory=dict)
    fold: Fold | None = None
    inputs: tuple[int, int] = (1, 1)
    outputs: int = 1
    since: int = 1
    double: bool = True
    moves: bool = False


def elementwise(
    name: str,
    kind: Any,
    *,
    writes: Mapping[type[Module], Lowering] | None = None,
    fold: Fold | None = None,
    since: int = 1,
    double: bool = True,
    **fields: tuple[str, float],
) -> Operator:
    """The row of an operator that is one layer, on one input, whose shape stays.

    fields : by attribute of the operator, the field of the layer that has it, and the operator's default
    writes : of layers that are written otherwise
    """

    def read(builder: Builder, node: OpNode) -> None:
        x = builder.dynamic(node, 0)
        options = {name: node.get(attribute, "float", default) for attribute, (name, default) in fields.items()}
        builder.result(node, kind(**options), [x], x.shape)

    names = {attribute: name for attribute, (name, _) in fields.items()}
    writes = {kind: one_operator(name, **names), **(writes or {})}
    return Operator(name, read, writes, fold=fold, since=since, double=double)


def one_operator(op: str, **names: str) -> Lowering:
    """What writes a layer as one operator on each element: attributes of the operator, and the fields they are in."""

    def lowering(graph: OnnxGraph, layer: Module, x: Edge) -> Edge:
        options: dict[str, Any] = {key: float(getattr(layer, name)) for key, name in names.items()}
        return graph.node(op, x, **options)

    return lowering


def folded(operation: Callable[[Any], Any]) -> Fold:
    """What folds an operator on each element of one constant; a shape that holds names of axes is left alone."""

    def fold(builder: Builder, node: OpNode) -> Array | None:
        value = constant_array(builder, node, 0)
        builder.account(value.nbytes)
        return None if value.dtype == object else np.asarray(operation(value)).astype(value.dtype, copy=False)

    return fold
