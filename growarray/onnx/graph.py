"""The graph of an ONNX model as plain records: nodes with checked attributes, their names, inputs, outputs, opset.

Field numbers are those of ``onnx.proto`` (IR version 13). The tensors have been checked by
:mod:`growarray.onnx.initializers` before.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from growarray.files.errors import Malformed, at, quote
from growarray.files.limits import Limits
from growarray.files.paths import ExternalFiles
from growarray.files.source import Source
from growarray.files.tensor import StoredTensor
from growarray.onnx.initializers import read_onnx
from growarray.onnx.protobuf import BYTES, FIXED32, VARINT, Field, GraphWire, ValueInfo, count_varints, decode_varints
from growarray.onnx.tensor import read_tensor_fields, stored_tensor

_KINDS = {  # AttributeProto.type: what it holds, and the field that has it
    1: ("float", 2),
    2: ("int", 3),
    3: ("string", 4),
    4: ("tensor", 5),
    5: ("graph", 6),
    6: ("floats", 7),
    7: ("ints", 8),
    8: ("strings", 9),
    9: ("tensors", 10),
    10: ("graphs", 11),
    11: ("sparse_tensor", 22),
    12: ("sparse_tensors", 23),
    13: ("type_proto", 14),
    14: ("type_protos", 15),
}
_BY_FIELD = {number: kind for kind, number in _KINDS.values()}
FIXED = "constant"
"""What this library calls an array of a layer that is not trained."""
LEAVES = ("weight", "bias", "kernel", "gamma", "beta", "scale", "running_mean", "running_var", "value", "alpha", FIXED)
"""What exporters call the weights of a layer."""


@dataclass
class OpNode:
    """One node: ``attributes`` maps a name to its kind and value; ``asked`` are those that were looked at."""

    op: str = ""
    domain: str = ""
    name: str = ""
    index: int = 0
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, tuple[str, Any]] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    @property
    def key(self) -> str:
        """The operator's name, with its domain in front unless that is the default one."""
        return self.op if self.domain in ("", "ai.onnx") else f"{self.domain}.{self.op}"

    @property
    def place(self) -> str:
        """The node in a message: its operator, and its name or number."""
        name = quote(self.name) if self.name else f"number {self.index}"
        return f"operator {quote(self.op)} (node {name})"

    def get(self, name: str, kind: str, default: Any = None) -> Any:
        """The value of an attribute. Raises Malformed if it is of another kind."""
        self.asked.add(name)
        if name not in self.attributes:
            return default
        found, value = self.attributes[name]
        if found != kind:
            raise Malformed(f"attribute {quote(name)} is of the kind {found}, expected {kind}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """An integer attribute that is 0 or 1."""
        value = self.get(name, "int", int(default))
        if value not in (0, 1):
            raise Malformed(f"attribute {quote(name)} is {quote(value)}, expected 0 or 1")
        return bool(value)

    def refuse_others(self) -> None:
        """Raise Malformed for an attribute that nobody asked for."""
        others = sorted(set(self.attributes) - self.asked)
        if others:
            raise Malformed(f"attribute {quote(others[0])} is not supported")


@dataclass
class Model:
    """What a network is built from.

    functions : pairs of domain and name that the model defines itself    texts : names of initializers that are strings
    """

    opset: dict[str, int] = field(default_factory=dict)
    initializers: dict[str, StoredTensor] = field(default_factory=dict)
    inputs: list[ValueInfo] = field(default_factory=list)
    outputs: list[ValueInfo] = field(default_factory=list)
    nodes: list[OpNode] = field(default_factory=list)
    functions: set[tuple[str, str]] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)


def read_model(source: Source, limits: Limits, external: ExternalFiles) -> Model:
    """The graph of a model. Raises Malformed for what :func:`read_onnx` refuses, and for fields of the wrong type."""
    texts: set[str] = set()
    contents = read_onnx(source, limits, external, texts)
    model = _Parser(source, limits, external).model()
    model.texts = texts
    model.opset, model.initializers = contents.metadata["opset"], contents.flat()
    return model


class _Parser:
    """Reads the nodes of a model whose tensors are checked; every object is counted before it is made."""

    def __init__(self, source: Source, limits: Limits, external: ExternalFiles) -> None:
        self.source, self.limits, self.external = source, limits, external
        self.wire = GraphWire(source, limits)

    def model(self) -> Model:
        """``ModelProto``: its graph and its functions."""
        found = Model()
        for part in self.wire.fields(0, len(self.wire.data)):
            if part.number == 7:
                self._graph(part, found)
            elif part.number == 25:
                found.functions.add(self._function(part))
        return found

    def _graph(self, message: Field, found: Model) -> None:
        for part in self.wire.parts(message):
            if part.number == 1:
                found.nodes.append(self._node(part, len(found.nodes)))
            elif part.number in (11, 12):
                (found.inputs if part.number == 11 else found.outputs).append(self.wire.value_info(part))

    def _function(self, message: Field) -> tuple[str, str]:
        """Domain and name of a ``FunctionProto``."""
        both = {1: "", 10: ""}
        for part in self.wire.parts(message):
            if part.number in both:
                both[part.number] = self.wire.name(part)
        return both[10], both[1]

    def _node(self, message: Field, index: int) -> OpNode:
        self.wire.count(2000)
        node = OpNode(index=index)
        for part in self.wire.parts(message):
            if part.number in (1, 2):
                (node.inputs if part.number == 1 else node.outputs).append(self.wire.name(part))
            elif part.number == 3:
                node.name = self.wire.name(part)
            elif part.number == 4:
                node.op = self.wire.name(part)
            elif part.number == 7:
                node.domain = self.wire.name(part)
            elif part.number == 5:
                with at(node.place):
                    name, kind, value = self._attribute(part)
                    if name in node.attributes:
                        raise Malformed(f"attribute {quote(name)} appears twice")
                    node.attributes[name] = (kind, value)
        return node

    def _attribute(self, message: Field) -> tuple[str, str, Any]:
        """Name, kind and value of an ``AttributeProto``; the value of a kind that no operator here takes is None."""
        self.wire.count(500)
        name, declared, found, values = "", 0, "", []
        for part in self.wire.parts(message):
            if part.number == 1:
                name = self.wire.name(part)
            elif part.number == 20:
                declared = self.wire.expect(part, VARINT).value
            elif part.number == 21:
                raise Malformed(
                    f"refers to the attribute {quote(self.wire.name(part))} of a function, which is not supported"
                )
            elif part.number in _BY_FIELD:
                kind = _BY_FIELD[part.number]
                if found not in ("", kind) or (found == kind and not kind.endswith("s")):
                    raise Malformed(f"attribute {quote(name)} has two values")
                found = kind
                values.extend(self._values(part, kind))
        expected = _KINDS.get(declared, (found, 0))[0]  # writers of IR 1 and 2 leave the type out
        if found not in ("", expected):
            raise Malformed(f"attribute {quote(name)} has a value of the kind {found}, its type says {expected}")
        if expected.endswith("s"):
            return name, expected, values
        if not found:
            values = [{"int": 0, "float": 0.0, "string": ""}.get(expected)]  # proto3 leaves defaults out
        return name, expected, values[0]

    def _values(self, part: Field, kind: str) -> list[Any]:
        if kind in ("int", "ints"):
            return self._integers(part, kind)
        if kind in ("float", "floats"):
            if part.wire != BYTES or kind == "float":
                self.wire.expect(part, FIXED32)
            size = part.end - part.start
            if size % 4:
                raise Malformed(f"byte {part.start}: {size} bytes, expected a multiple of 4")
            self.wire.count(8 * size)
            return list(struct.unpack(f"<{size // 4}f", self.wire.data[part.start : part.end]))
        if kind in ("string", "strings"):
            return [self.wire.name(part)]
        if kind == "tensor":
            self.wire.count(1000)
            fields = read_tensor_fields(self.wire, part, self.limits)
            if fields.has_strings:
                return [None]
            return [stored_tensor(self.source, fields, self.external)]
        return [None]

    def _integers(self, part: Field, kind: str) -> list[int]:
        if part.wire == BYTES and kind == "ints":
            data = self.wire.data[part.start : part.end]
            count = count_varints(data)
            self.wire.count(50 * count)
            numbers: list[int] = decode_varints(data, count).tolist()
            return numbers
        value = self.wire.expect(part, VARINT).value
        self.wire.count(50)
        return [value - 2**64 if value >= 2**63 else value]


def layer_name(label: str) -> str:
    """The layer that a weight of this name belongs to, ``''`` if the name does not tell.

    >>> layer_name("features.0.weight"), layer_name("onnx::Conv_17")
    ('features.0', '')
    """
    label = label.partition(":")[0] if not label.startswith("onnx::") else ""
    for mark in "./":
        layer, _, leaf = label.rpartition(mark)
        if layer and leaf in LEAVES:
            return layer.strip("/").replace("/", ".")
    computed = label.startswith(("/", "val_"))  # as exporters of torch call what they computed
    return "" if computed or not label.replace("_", "").replace(".", "").isalnum() else label


def node_name(node: OpNode) -> str:
    """The scope that an exporter writes into the name of a node, or the operator and a number.

    >>> node_name(OpNode(op="Relu", name="/layer1/layer1.0/relu/Relu"))
    'layer1.0.relu'
    """
    parts = [part for part in node.name.split("/") if part]
    if len(parts) > 1 and parts[-1].startswith(node.op) and parts[-2].rpartition(".")[2].lower() == node.op.lower():
        parts.pop()
    kept = [part for part, after in zip(parts, [*parts, ""][1:], strict=True) if not after.startswith(f"{part}.")]
    return ".".join(kept) or f"{node.op}_{node.index}"
