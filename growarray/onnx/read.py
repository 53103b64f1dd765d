"""From an ONNX graph to a trainable network of this library's layers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from growarray.errors import shown
from growarray.files.errors import Malformed, at, naming, quote
from growarray.files.limits import Limits, limits_or_default
from growarray.files.paths import ExternalFiles
from growarray.files.source import Source, source_name
from growarray.nn.activation import Identity
from growarray.nn.elementwise import Cast
from growarray.nn.graph import Graph
from growarray.onnx.build import Builder
from growarray.onnx.fold import fold
from growarray.onnx.fuse import fuse
from growarray.onnx.graph import FIXED, Model, OpNode, read_model
from growarray.onnx.initializers import looks_like_onnx
from growarray.onnx.operators import DOMAINS, OPERATORS
from growarray.onnx.operators.row import Operator
from growarray.onnx.protobuf import ValueInfo
from growarray.onnx.tensor import TYPE_NAMES
from growarray.onnx.value import Constant, Dynamic, Unsupported, letter

_FIRST, _LAST = 6, 28  # opsets whose operators mean what is written here
_LONGEST = 1000  # characters of a message
_HELD = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float32", "float64")
_HALF = ("float16", "bfloat16")
_SMALL = 2**16  # entries of constants up to which any operator runs at import


def from_onnx(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    dtype: Any = None,
    outputs: Sequence[str] | None = None,
    limits: Limits | None = None,
    follow_links: bool = False,
    mmap: bool = True,
) -> Graph:
    """A network of this library's layers from an ONNX graph, to run, fine-tune, compress and grow.

    ``net.run({input: array})`` gives every output by name, and the network is a
    :class:`~growarray.nn.graph.Graph` with forward, vjp and a state dict. It comes in evaluation mode, which is what
    the file computes: ``net.train()`` turns dropout on, and makes batch normalisation take statistics of the batch.

    dtype : float type of the parameters, ``'float32'`` or ``'float64'``; None keeps that of the file, and widens half
        precision to float32
    outputs : names of the values to compute, any in the graph; None computes those of the file. What they do not need
        is left out: a tail that is not supported, such as one of labels, and inputs
    limits, follow_links, mmap : as in :func:`~growarray.checkpoint.load.load_checkpoint`

    Weights, and initializers of more than one entry that are added, subtracted or multiplied, become parameters; an
    initializer that several nodes take in the same form is one parameter. Layers are called after their weights
    (``conv1.weight`` is the weight of node ``conv1``), else after the nodes of the file. Shapes and what is computed
    from constants are folded; layers that exporters take apart are put together again.

    Raises CheckpointError, which names the file, the operator and the node: for an operator or attribute that is not
    supported, and for what :func:`~growarray.checkpoint.load.load_checkpoint` refuses. Raises ValueError for another
    ``dtype``.

    >>> import io
    >>> import numpy as np
    >>> relu = "08083a1e0a0c0a0178120179220452656c755a090a017812040a02080162030a017942021011"  # y = Relu(x)
    >>> network = from_onnx(io.BytesIO(bytes.fromhex(relu)))
    >>> network.run({"x": np.array([-1.0, 2.0], np.float32)})["y"].tolist()
    [0.0, 2.0]
    """
    try:
        chosen = None if dtype is None else np.dtype(dtype)
    except (TypeError, ValueError):  # whose text may hold an array
        raise TypeError(f"from_onnx: dtype is {shown(dtype)}, expected 'float32', 'float64' or None") from None
    if chosen is not None and chosen not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"from_onnx: dtype is {shown(dtype)}, expected 'float32', 'float64' or None")
    limits, name = limits_or_default(limits), source_name(path)
    with naming(name):
        source = Source.of(path, name=name, mapped=mmap)
        head = bytes(source.view[:16])
        if head[:1] != b"\x08" and not looks_like_onnx(
            source.view
        ):  # what starts like one is read, to say what is wrong
            raise Malformed(f"is not an ONNX model: it starts with {quote(head)}; load_checkpoint reads weights")
        external = ExternalFiles(source, limits, follow_links=follow_links, mapped=mmap)
        model = read_model(source, limits, external)
        if outputs is not None:
            _choose(model, outputs)
        nbytes, kind = source.size + external.nbytes, None if chosen is None else chosen.type
        builder = Builder(_opset(model), limits, nbytes, kind, _build)
        with np.errstate(all="ignore"):
            network = _network(model, builder)
    network.eval()
    return network


def _choose(model: Model, outputs: Sequence[str]) -> None:
    """Make these values the outputs, and keep the inputs that they need."""
    names = [outputs] if isinstance(outputs, str) else list(outputs)
    given = {name for node in model.nodes for name in node.outputs if name}
    for name in names:
        if name not in given | set(model.initializers) | {info.name for info in model.inputs}:
            known = ", ".join(quote(info.name) for info in model.outputs)
            raise Malformed(f"outputs has {quote(str(name))}, which no node gives; the file's outputs are {known}")
    model.outputs = [ValueInfo(name) for name in names]
    needed = {name for node in _needed(model) for name in node.inputs} | set(names)
    model.inputs = [info for info in model.inputs if info.name in needed]


def _opset(model: Model) -> int:
    """The version of the default domain."""
    found = model.opset.get("", model.opset.get("ai.onnx", 0))
    if not found:
        raise Malformed("opset_import does not name the default domain; the meaning of its operators is not known")
    if not _FIRST <= found <= _LAST:
        raise Malformed(f"opset is {found}; supported are {_FIRST} to {_LAST}")
    return found


def _network(model: Model, builder: Builder) -> Graph:
    if not model.nodes and not model.outputs:
        raise Malformed("graph has no nodes and no outputs; growarray.load_checkpoint reads its initializers")
    for name, stored in model.initializers.items():
        computed = name.startswith("/")  # the name of a value that an exporter computed
        trained = not computed and name.rpartition(".")[2] != FIXED
        builder.define(name, Constant(name, stored, trained=trained))
    for name in model.texts:
        builder.define(name, Unsupported("holds strings, which are not read"))
    inputs = [info for info in model.inputs if info.name not in builder.values]
    for info in inputs:
        with at(f"input {quote(info.name)}"):
            builder.define(info.name, _input(builder, info))
    nodes = _needed(model)
    builder.used = {name for node in nodes for name in node.inputs} | {info.name for info in model.outputs}
    for node in nodes:
        with at(node.place):
            _refuse(node, model)
            try:
                _build(builder, node)
            except Malformed as fault:
                raise Malformed(_shortened(fault)) from None
            except (ValueError, TypeError, OverflowError, IndexError) as fault:
                raise Malformed(f"cannot be built: {_shortened(fault)}") from None
    return _graph(builder, [info.name for info in inputs], [info.name for info in model.outputs])


def _needed(model: Model) -> list[OpNode]:
    """The nodes that an output depends on; the others are ignored."""
    givers: dict[str, list[OpNode]] = {}
    for node in model.nodes:
        for name in filter(None, node.outputs):
            givers.setdefault(name, []).append(node)
    found: set[int] = set()
    waiting = [info.name for info in model.outputs]
    while waiting:
        for node in givers.pop(waiting.pop(), ()):
            if node.index not in found:
                found.add(node.index)
                waiting += node.inputs
    return [node for node in model.nodes if node.index in found]


def _shortened(fault: Exception) -> str:
    """The message of a fault without line breaks, cut if it quotes a long list of the file."""
    text = " ".join(str(fault).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _input(builder: Builder, info: ValueInfo) -> Dynamic | Unsupported:
    """An input of the network; half precision is widened."""
    kind = TYPE_NAMES.get(info.element, f"number {info.element}")
    if kind not in (*_HELD, *_HALF):
        return Unsupported(f"is an input of the type {kind}; a network takes floats, whole numbers and bools")
    shape = info.shape
    if shape is not None:
        shape = tuple(builder.new_name() if str(n).startswith("?") else n for n in shape)
    dynamic = Dynamic(info.name, shape, kind)
    builder.check_size(shape)
    if kind not in _HALF:
        return dynamic
    name = np.dtype(builder.float_type(np.float32)).name
    return builder.add(Cast(name), [dynamic], shape, f"{info.name}.cast")


def _refuse(node: OpNode, model: Model) -> None:
    """Raise Malformed for a node of another domain, of a function, or of an unknown operator."""
    if node.domain not in DOMAINS:
        raise Malformed(f"is of the domain {quote(node.domain)}; supported are ai.onnx and ai.onnx.ml")
    if (node.domain, node.op) in model.functions or ("", node.op) in model.functions:
        raise Malformed("is a function that the model defines itself, which is not supported")
    if node.key not in OPERATORS:
        raise Malformed(f"is not supported; supported: {', '.join(sorted(OPERATORS))}")
    if not any(node.outputs):
        raise Malformed("has no output")


def _build(builder: Builder, node: OpNode) -> None:
    """Fold a node, or make its modules."""
    row = OPERATORS[node.key]
    least, most = row.inputs
    if not least <= len(node.inputs) <= most:
        raise Malformed(f"has {len(node.inputs)} inputs; expected {least} to {most}")
    if len(node.outputs) > row.outputs:
        raise Malformed(f"has {len(node.outputs)} outputs; expected at most {row.outputs}")
    given = [builder.value(node, i) for i, name in enumerate(node.inputs) if name]
    for value in given:
        if isinstance(value, Dynamic) and letter(value.kind) not in row.kinds:
            raise Malformed(f"has an input of the type {value.kind}, which is not supported here; expected floats")
    if row.fold is None or not fold(builder, node, row.fold, moves=row.moves):
        if row.read is None:
            raise Malformed("is supported for constants only, but an input depends on that of the network")
        if _fixed(row, given):
            builder.evaluate(node, row.read, trained=row.moves and isinstance(given[0], Constant) and given[0].trained)
        else:
            row.read(builder, node)
    node.refuse_others()
    for name in node.outputs[1:]:
        if name in builder.used and name not in builder.values:
            raise Malformed(f"output {quote(name)} is used by another node; only the first output is computed")


def _fixed(row: Operator, given: Sequence[Constant | Dynamic]) -> bool:
    """Whether a node can be computed now: its inputs are constants, not trained, and not too large."""
    total = 0
    for value in given:
        if not isinstance(value, Constant) or value.array.dtype == object:
            return False
        if value.trained and value.size > 1 and letter(value.kind) == "f" and not row.moves:
            return False
        total += value.size
    return bool(given) and (total <= _SMALL or row.kinds != "f")


def _graph(builder: Builder, inputs: list[str], outputs: list[str]) -> Graph:
    """The network without unused modules, its outputs under their names."""
    for name in outputs:
        with at(f"output {quote(name)}"):
            value = builder.values.get(name)
            if value is None:
                raise Malformed("is given by no node")
            if isinstance(value, Unsupported):
                raise Malformed(value.reason)
            dynamic = builder.as_node(value) if isinstance(value, Constant) else value
            if dynamic.name != name and name not in inputs:
                builder.add(Identity(), [dynamic], dynamic.shape, f"{name}.output")
                builder.nodes[-1] = replace(builder.nodes[-1], output=name)
    if not outputs:
        raise Malformed("graph has no outputs")
    axes = {name: None if dynamic.shape is None else len(dynamic.shape) for name, dynamic in builder.dynamics.items()}
    needed, kept = set(outputs), []
    for node in reversed(fuse(builder.nodes, outputs, axes, builder.names.is_of_weight)):
        if node.output in needed:
            kept.append(node)
            needed.update(node.inputs)
    try:
        types = {name: value.kind for name in inputs if isinstance(value := builder.values[name], Dynamic)}
        return Graph(builder.names.renamed(kept[::-1]), inputs, outputs, types)
    except ValueError as fault:
        raise Malformed(str(fault)) from None
