"""What is in a file of weights, no tensor read: shapes, types, sharing, extras, uses, or why it is refused."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from growarray.checkpoint.checkpoint import Checkpoint, shape_text
from growarray.checkpoint.load import kind_of, load_checkpoint
from growarray.checkpoint.names import Select
from growarray.checkpoint.torch.allowlist import Global
from growarray.checkpoint.torch.tree import CONTAINERS, as_tensor
from growarray.errors import CheckpointError
from growarray.files.errors import Malformed, naming, quote
from growarray.files.limits import Limits, limits_or_default
from growarray.files.source import Source
from growarray.onnx.outline import GraphOutline, Use, outline_graph

_MOST_EXTRAS = 100
_MOST_KEY = 200


@dataclass(frozen=True)
class TensorRow:
    """One tensor: ``nbytes`` are those of its values in the file, ``uses`` the nodes of an ONNX graph that read it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    uses: tuple[Use, ...] = ()
    fault: str | None = None
    """Why its values are refused; looked at with ``check`` only."""


@dataclass(frozen=True)
class Extra:
    """Something besides the weights, in short: its key, its type, and a value or what it holds."""

    name: str
    kind: str
    text: str


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect` found: ``size`` is in bytes, ``graph`` that of an ONNX file; ``refused`` says why a file is
    refused, and then all else is empty.
    """

    source: str
    size: int | None = None
    kind: str | None = None
    refused: str | None = None
    tensors: tuple[TensorRow, ...] = ()
    tied: tuple[tuple[str, ...], ...] = ()
    prefix: str = ""
    notes: tuple[str, ...] = ()
    metadata: tuple[Extra, ...] = ()
    extras: tuple[Extra, ...] = ()
    graph: GraphOutline | None = None
    graph_refused: str | None = None
    """Why the nodes of an ONNX file cannot be told, though its initializers can."""

    @property
    def faults(self) -> tuple[str, ...]:
        """Every reason for which the file, its graph or one of its tensors is refused."""
        reasons = [self.refused, self.graph_refused, *(row.fault for row in self.tensors)]
        return tuple(reason for reason in reasons if reason)

    def __str__(self) -> str:
        if self.refused:
            return f"refused: {self.refused}"
        return (
            f"{self.source} ({self.kind}): {len(self.tensors)} tensors, {sum(t.nbytes for t in self.tensors):,} bytes"
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists, strings and numbers, for JSON."""
        result = asdict(self)
        result["faults"] = list(self.faults)
        for row, tensor in zip(result["tensors"], self.tensors, strict=True):
            row["uses"] = [use._asdict() for use in tensor.uses]
        if self.graph is not None:
            ports = {"inputs": self.graph.inputs, "outputs": self.graph.outputs}
            sides = {name: [port._asdict() for port in those] for name, those in ports.items()}
            result["graph"] = {**sides, "operators": dict(self.graph.operators)}
        return result


def inspect(
    path: str | os.PathLike[str],
    *,
    select: Select = None,
    prefix: str | Sequence[str] | None = None,
    limits: Limits | None = None,
    follow_links: bool = False,
    check: bool = False,
) -> Inspection:
    """What is in a file, of any kind that :func:`load_checkpoint` opens, with the same arguments; no tensor is read.

    check : go through the bytes of every tensor too, so that checksums and values are checked, compressed ones a
        megabyte at a time; the reason why one is refused stands in its row.

    A file that is refused is a result too: its ``refused`` says why.

    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(Path(folder) / "w.npz", weight=np.eye(2))
    ...     found = inspect(Path(folder) / "w.npz")
    >>> found.kind, found.tensors[0].name, found.tensors[0].shape, found.tensors[0].nbytes, found.refused
    ('npz', 'weight', (2, 2), 32, None)
    """
    limits = limits_or_default(limits)
    name = os.fsdecode(os.fspath(path))
    size: int | None = None
    kind: str | None = None
    try:
        with suppress(OSError, Malformed, ValueError):
            source = Source.of_file(Path(path), name=name)
            size = source.size
            kind = kind_of(source, limits)
        checkpoint = load_checkpoint(path, select=select, prefix=prefix, limits=limits, follow_links=follow_links)
        inspection = _inspection(checkpoint, size, check)
    except CheckpointError as error:
        return Inspection(name, size, kind, str(error))
    if inspection.kind != "onnx":
        return inspection
    try:
        names = checkpoint.stored
        if checkpoint.prefix:
            names = load_checkpoint(path, prefix=(), limits=limits, follow_links=follow_links).stored
        with naming(name):
            graph = outline_graph(Source.of_file(Path(path), name=name), limits, names)
    except CheckpointError as error:
        return replace(inspection, graph_refused=str(error))
    uses = {new: tuple(graph.uses.get(old, ())) for old, new in zip(names, checkpoint, strict=True)}
    return replace(
        inspection, graph=graph, tensors=tuple(replace(row, uses=uses[row.name]) for row in inspection.tensors)
    )


def _inspection(checkpoint: Checkpoint, size: int | None, check: bool) -> Inspection:
    rows = []
    for name, tensor in checkpoint.stored.items():
        fault = None
        if check:
            try:
                tensor.check()
            except CheckpointError as error:
                fault = str(error)
        nbytes = (math.prod(tensor.shape) * tensor.dtype.bits + 7) // 8
        rows.append(TensorRow(name, tensor.shape, tensor.dtype.name, nbytes, fault=fault))
    return Inspection(
        source=checkpoint.source,
        size=size,
        kind=checkpoint.kind,
        tensors=tuple(rows),
        tied=checkpoint.tied,
        prefix=checkpoint.prefix,
        notes=checkpoint.notes,
        metadata=_metadata(checkpoint),
        extras=tuple(outline_extras(checkpoint.stored_extras)),
    )


def _metadata(checkpoint: Checkpoint) -> tuple[Extra, ...]:
    if checkpoint.kind.startswith("torch-") and checkpoint.metadata:
        return (Extra("_metadata", "dict", f"versions of {len(checkpoint.metadata)} modules"),)
    entries = {key: value for key, value in checkpoint.metadata.items() if key != "opset"}
    for domain, version in checkpoint.metadata.get("opset", {}).items() if checkpoint.kind == "onnx" else ():
        entries[f"opset {domain or 'ai.onnx'}"] = version
    return tuple(outline_extras(entries, depth=1))


def outline_extras(root: Any, depth: int = 2) -> list[Extra]:
    """Keys of a structure, ``depth`` levels of dictionaries deep: values that are short, the size of what is not.

    >>> outline_extras({"epoch": 3, "optimizer": {"state": [0, 1]}})[0]
    Extra(name='epoch', kind='int', text='3')
    """
    rows: list[Extra] = []
    left = 0
    for extra in _outline(root, "", depth):
        if len(rows) < _MOST_EXTRAS:
            rows.append(extra)
        else:
            left += 1
    return [*rows, Extra("…", "", f"and {left} more")] if left else rows


def _outline(node: Any, prefix: str, depth: int) -> Iterator[Extra]:
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        name = f"{prefix}{_key(key)}"
        yield Extra(name, *_described(value))
        if depth > 1 and isinstance(value, dict):
            yield from _outline(value, f"{name}.", depth - 1)


def _key(key: Any) -> str:
    text = key if type(key) is str else repr(key)
    return text if len(text) <= _MOST_KEY else text[:_MOST_KEY] + "…"


def _described(value: Any) -> tuple[str, str]:
    """Type and short text of one leaf or part."""
    tensor = as_tensor(value)
    if tensor is not None:
        return "tensor", f"{tensor.dtype.name} {shape_text(tensor.shape)}"
    if type(value) is Global:
        return "name", value.name
    if type(value) in CONTAINERS:
        count, nbytes = _tensors_below(value)
        kind = "dict" if isinstance(value, dict) else type(value).__name__
        tensors = f", {count} tensors of {nbytes:,} bytes" if count else ""
        return kind, f"{len(value)} entries{tensors}"
    if type(value) in (set, frozenset):
        return type(value).__name__, f"{len(value)} entries"
    if type(value) in (bytes, bytearray):
        return type(value).__name__, f"{len(value):,} bytes"
    return type(value).__name__, quote(value)


def _tensors_below(root: Any) -> tuple[int, int]:
    """Number and bytes of the tensors in a structure; what it shares counts once."""
    waiting, seen = [root], {id(root)}
    count = nbytes = 0
    while waiting:
        node = waiting.pop()
        for child in node.values() if isinstance(node, dict) else node:
            if type(child) in CONTAINERS:
                if id(child) not in seen:
                    seen.add(id(child))
                    waiting.append(child)
            elif (tensor := as_tensor(child)) is not None:
                count, nbytes = count + 1, nbytes + tensor.nbytes
    return count, nbytes
