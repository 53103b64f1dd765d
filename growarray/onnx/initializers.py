"""ONNX models: the initializers of the graph, each still in its file; every other tensor is checked too.

Field numbers are those of ``onnx.proto`` (IR version 13).
"""

from __future__ import annotations

from typing import Any

from growarray.files.errors import Malformed, at, quote
from growarray.files.limits import Limits
from growarray.files.paths import ExternalFiles
from growarray.files.source import Source
from growarray.files.tensor import Contents, StoredTensor
from growarray.onnx.protobuf import BYTES, VARINT, Field, Wire
from growarray.onnx.tensor import TensorFields, read_tensor_fields, stored_tensor

_GRAPH = 7  # in ModelProto
_MODEL_TEXTS = {2: "producer_name", 3: "producer_version", 4: "domain"}


def looks_like_onnx(data: memoryview) -> bool:
    """Whether all bytes are protobuf fields, with a graph among them."""
    try:
        found = {(part.number, part.wire) for part in Wire(data, 10_000).fields(0, len(data))}
    except Malformed:
        return False
    return (_GRAPH, BYTES) in found


def read_onnx(source: Source, limits: Limits, external: ExternalFiles, texts: set[str] | None = None) -> Contents:
    """The initializers of a model by name. Raises Malformed for sparse and string ones, and for hostile paths.

    texts : takes the names of string initializers, which are passed over then
    """
    return _Reader(source, limits, external, texts).model()


class _Reader:
    """Reads the messages of one model."""

    def __init__(self, source: Source, limits: Limits, external: ExternalFiles, texts: set[str] | None) -> None:
        self.source, self.texts = source, texts
        self.limits = limits
        self.external = external
        self.wire = Wire(source.view, limits.steps)
        self.constants = 0
        self.nbytes = 0
        self.memory = limits.memory + source.size

    def model(self) -> Contents:
        """``ModelProto``."""
        metadata: dict[str, Any] = {"opset": {}}
        tensors: dict[str, StoredTensor] | None = None
        for part in self.wire.fields(0, len(self.wire.data)):
            if part.number == 1:
                metadata["ir_version"] = self.wire.expect(part, VARINT).value
            elif part.number in _MODEL_TEXTS:
                metadata[_MODEL_TEXTS[part.number]] = self.wire.text(part, self.limits.string, "Limits.string")
            elif part.number == _GRAPH:
                if tensors is not None:
                    raise Malformed("model has two graphs")
                tensors = self.graph(part, 1)
            elif part.number == 8:
                domain, version = self._opset(part)
                metadata["opset"][domain] = version
            elif part.number == 20:
                self._training(part)
            elif part.number == 25:
                self._function(part)
        if tensors is None:
            raise Malformed("has no graph; it is not an ONNX model, or it is cut off")
        notes = [f"{self.constants} tensors in nodes of the graph are not initializers"] if self.constants else []
        return Contents("onnx", tensors, metadata=metadata, notes=notes)

    def graph(self, message: Field, depth: int) -> dict[str, StoredTensor]:
        """``GraphProto``: its initializers; the tensors of its nodes are checked."""
        if depth > self.limits.depth:
            raise Malformed(f"graphs are nested deeper than {self.limits.depth} (Limits.depth)")
        tensors: dict[str, StoredTensor] = {}
        for part in self.wire.parts(message):
            if part.number == 1:
                self._node(part, depth)
            elif part.number == 5:
                name, tensor = self._initializer(part)
                if tensor is None:
                    continue
                if name in tensors:
                    raise Malformed(f"two initializers are called {quote(name)}")
                tensors[name] = tensor
                if len(tensors) > self.limits.tensors:
                    raise Malformed(f"more than {self.limits.tensors} initializers (Limits.tensors)")
            elif part.number == 15:
                raise Malformed("has a sparse_initializer, which is not read; store it as a dense initializer")
        return tensors

    def _fields(self, part: Field) -> TensorFields:
        """The fields of a tensor, whose objects are counted before they are made."""
        self.memory -= 1000
        if self.memory < 0:
            raise Malformed(f"tensors need more than {self.limits.memory} bytes and the file's size (Limits.memory)")
        return read_tensor_fields(self.wire, part, self.limits)

    def _initializer(self, part: Field) -> tuple[str, StoredTensor | None]:
        fields = self._fields(part)
        if not fields.name:
            raise Malformed(f"byte {part.start}: initializer has no name")
        if fields.has_strings and self.texts is not None:
            self.texts.add(fields.name)
            return fields.name, None
        with at(f"initializer {quote(fields.name)}"):
            tensor = stored_tensor(self.source, fields, self.external)
            self.nbytes += tensor.nbytes
            if self.nbytes > self.limits.expanded + self.limits.sharing * (self.source.size + self.external.nbytes):
                raise Malformed(f"tensors come to more than {self.limits.sharing} times the files (Limits.sharing)")
            return fields.name, tensor

    def _tensor(self, part: Field) -> None:
        """A tensor inside a node: checked like an initializer, but strings may be there."""
        fields = self._fields(part)
        self.constants += 1
        if fields.has_strings and not fields.external and fields.location == 0:
            return
        with at(f"tensor {quote(fields.name)} of a node"):
            stored_tensor(self.source, fields, self.external)

    def _sparse(self, message: Field) -> None:
        """``SparseTensorProto``: its values and indices."""
        for part in self.wire.parts(message):
            if part.number in (1, 2):
                self._tensor(part)

    def _node(self, message: Field, depth: int) -> None:
        """``NodeProto``: its attributes."""
        for part in self.wire.parts(message):
            if part.number == 5:
                self._attribute(part, depth)

    def _attribute(self, message: Field, depth: int) -> None:
        """``AttributeProto``: tensors, sparse tensors and subgraphs."""
        for part in self.wire.parts(message):
            if part.number in (5, 10):
                self._tensor(part)
            elif part.number in (6, 11):
                self.graph(part, depth + 1)
            elif part.number in (22, 23):
                self._sparse(part)

    def _function(self, message: Field) -> None:
        """``FunctionProto``: its nodes, and the defaults of its attributes."""
        for part in self.wire.parts(message):
            if part.number == 7:
                self._node(part, 1)
            elif part.number == 11:
                self._attribute(part, 1)

    def _training(self, message: Field) -> None:
        """``TrainingInfoProto``: its two graphs."""
        for part in self.wire.parts(message):
            if part.number in (1, 2):
                self.graph(part, 1)

    def _opset(self, message: Field) -> tuple[str, int]:
        """``OperatorSetIdProto``."""
        domain, version = "", 0
        for part in self.wire.parts(message):
            if part.number == 1:
                domain = self.wire.text(part, 1024)
            elif part.number == 2:
                version = self.wire.expect(part, VARINT).value
        return domain, version
