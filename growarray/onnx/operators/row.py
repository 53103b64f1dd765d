"""What one row of the table of operators says: how a node is read, how layers are written, what is folded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from growarray.files.errors import Malformed, quote
from growarray.nn.module import Module
from growarray.nn.operation import Operation
from growarray.onnx.build import Builder, broadcast
from growarray.onnx.fold import constant_array
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, Lowering, OnnxGraph
from growarray.onnx.value import Array, Shape

Read = Callable[[Builder, OpNode], None]
Fold = Callable[[Builder, OpNode], Array | None]
ALL = "fiub"
"""Every type of values, by NumPy's letters."""
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
    kinds : types of values of the network that it takes, by NumPy's letters
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
    kinds: str = "f"
    domain: str = ""

    @property
    def key(self) -> str:
        """The name, with its domain in front unless that is the default one."""
        return f"{self.domain}.{self.name}" if self.domain else self.name


def elementwise(
    name: str,
    kind: Any,
    *,
    writes: Mapping[type[Module], Lowering] | None = None,
    fold: Fold | None = None,
    since: int = 1,
    double: bool = True,
    kinds: str = "f",
    **fields: tuple[str, float],
) -> Operator:
    """The row of an operator that is one layer, on one input, whose shape stays.

    fields : by attribute of the operator, the field of the layer that has it, and the operator's default
    writes : of layers that are written otherwise
    """

    def read(builder: Builder, node: OpNode) -> None:
        x = builder.dynamic(node, 0)
        options = {name: node.get(attribute, "float", default) for attribute, (name, default) in fields.items()}
        builder.bind_module(node, kind(**options), [x], x.shape)

    names = {attribute: name for attribute, (name, _) in fields.items()}
    writes = {kind: one_operator(name, **names), **(writes or {})}
    return Operator(name, read, writes, fold=fold, since=since, double=double, kinds=kinds)


def broadcast_all(builder: Builder, shapes: Sequence[Shape], options: Mapping[str, Any]) -> Shape:
    """The shape of an operation on each element of inputs that are broadcast."""
    found: Shape = ()
    for shape in shapes:
        found = broadcast(builder, found, shape)
    return found


_ATTRIBUTES = {int: "int", float: "float", str: "string"}


def operation(
    name: str,
    count: int,
    result: str | int = 0,
    *,
    shape: Callable[[Builder, Sequence[Shape], Mapping[str, Any]], Shape] = broadcast_all,
    alike: bool = True,
    kinds: str = ALL,
    since: int = 1,
    **options: Any,
) -> Operator:
    """The row of an operator that is one :class:`~growarray.nn.operation.Operation` on ``count`` inputs.

    result : type of what it gives, or the input whose type that is
    shape : from the shapes of the inputs and the attributes    alike : whether the last two inputs have one type
    options : by attribute its default; a type if the operator has none
    """

    def read(builder: Builder, node: OpNode) -> None:
        inputs = [builder.dynamic(node, i) for i in range(len(node.inputs))]
        if alike and inputs[-1].kind != inputs[-2:][0].kind:
            raise Malformed(f"has inputs of the types {inputs[-2].kind} and {inputs[-1].kind}; expected one type")
        found = {}
        for key, default in options.items():
            own = default if isinstance(default, type) else type(default)
            found[key] = node.get(key, _ATTRIBUTES[own], None if own is default else default)
            if found[key] is None:
                raise Malformed(f"has no attribute {quote(key)}")
        kind = result if isinstance(result, str) else inputs[result].kind
        dims = None if any(x.shape is None for x in inputs) else shape(builder, [x.shape for x in inputs], found)
        builder.bind_module(node, Operation(name, **found), inputs, dims, kind=kind)

    return Operator(name, read, inputs=(count, count), kinds=kinds, since=since)


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
