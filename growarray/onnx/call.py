"""Operators that are written in others: their nodes are built one by one, as if the file had them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from growarray.files.errors import Malformed, quote
from growarray.onnx.build import Builder
from growarray.onnx.graph import OpNode
from growarray.onnx.value import Array, Constant, Dim, Dynamic, known_axes

_OPSET = 24  # whose operators the functions below are written in
_KINDS = {int: "int", float: "float", str: "string"}


class Calls:
    """``call("Add", a, b)`` builds a node and gives the name of its value; numbers and arrays become constants.

    A number takes the type of the first value among the inputs.
    """

    def __init__(self, builder: Builder, node: OpNode) -> None:
        self.builder, self.node = builder, node

    def __call__(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """The name of the result, or a list of names if ``outputs`` is more than one."""
        builder, like = self.builder, next((x for x in inputs if isinstance(x, str) and x), None)
        names = [x if isinstance(x, str) else "" if x is None else self.constant(x, like) for x in inputs]
        found = [builder.new_name() for _ in range(outputs)]
        name, values = f"{self.node.name or self.node.op}/{op}", {k: _typed(v) for k, v in attributes.items()}
        inner = OpNode(op, name=name, index=self.node.index, inputs=names, outputs=found, attributes=values)
        builder.used |= {*names, *found}
        opset, builder.opset = builder.opset, _OPSET
        try:
            builder.build(inner)
        finally:
            builder.opset = opset
        return found if outputs > 1 else found[0]

    def input(self, index: int) -> str:
        """The name of an input, ``''`` if it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else ""

    def constant(self, value: Any, like: str | None = None) -> str:
        """The name of a new constant."""
        kind = self.value(like).kind if like and isinstance(value, bool | int | float) else None
        wide = "float32" if kind in ("float16", "bfloat16") else kind
        name = self.builder.new_name()
        found = Constant(name, np.asarray(value, wide))
        found.kind = kind or found.kind
        self.builder.define(name, found)
        return name

    def value(self, name: str) -> Constant | Dynamic:
        """A value that has been built: constant or dynamic."""
        value = self.builder.values[name]
        if not isinstance(value, Constant | Dynamic):
            raise Malformed(f"input {quote(name)} {value.reason}")
        return value

    def dynamic(self, name: str) -> Dynamic:
        """A value of the network; a constant becomes a node of its own."""
        value = self.value(name)
        return self.builder.as_node(value) if isinstance(value, Constant) else value

    def array(self, name: str) -> Array | None:
        """The values of a constant; None if they depend on the input."""
        value = self.value(name)
        return value.array if isinstance(value, Constant) else None

    def shape(self, name: str) -> tuple[Dim, ...]:
        """The axes of a value. Raises Malformed if their number is not known."""
        return known_axes(self.value(name))

    def sizes(self, name: str) -> tuple[int, ...]:
        """The axes of a value, all of which are known."""
        shape = self.shape(name)
        if not all(isinstance(n, int) for n in shape):
            raise Malformed(f"has an input of shape {shape}; export the model with fixed sizes")
        return tuple(int(n) for n in shape)

    def bind(self, name: str, output: int = 0) -> None:
        """Record a value as an output of the node, if the node has that output."""
        if output < len(self.node.outputs) and self.node.outputs[output]:
            self.builder.bind(self.node, self.value(name), output)


def written(body: Callable[[Calls], None]) -> Callable[[Builder, OpNode], None]:
    """What reads an operator that ``body`` writes in others."""
    return lambda builder, node: body(Calls(builder, node))


def _typed(value: Any) -> tuple[str, Any]:
    """An attribute as a node has it: its kind and value."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{_KINDS[type(value[0])]}s" if value else "ints", list(value)
    return _KINDS[int if isinstance(value, bool) else type(value)], value
