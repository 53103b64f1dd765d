"""Networks of this library as ONNX models, written without the onnx package."""

from __future__ import annotations

import operator
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from growarray import __version__
from growarray.errors import shown
from growarray.nn.graph import Graph
from growarray.nn.inference import evaluating
from growarray.nn.module import Module
from growarray.onnx.lower import Edge, OnnxGraph
from growarray.onnx.model import DATA_TYPES, Model, Node, Port, write_model
from growarray.onnx.operators import OPERATORS, WRITES
from growarray.onnx.value import letter

OPSETS = range(17, 23)
_BATCH = "n"  # the symbol of the batch

Shape = tuple[int, ...]


def to_onnx(
    network: Module,
    path: str | os.PathLike[str],
    input_shape: Any,
    *,
    opset: int = 21,
    dynamic_batch: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    dtype: Any = None,
    external_data: bool | None = None,
) -> None:
    """Write what ``network`` computes in inference to an ONNX model; dropout and training statistics are left out.

    input_shape : of the input, batch included; for several inputs a sequence of shapes, or a mapping from name to shape
    opset : version of the operator set, 17 to 22; 21 has group normalization and GELU as operators of their own
    dynamic_batch : the size of the first axis is free in the file; inputs whose first axis has another size than that
        of the first input keep theirs
    input_names, output_names : by default those of a :class:`growarray.nn.graph.Graph`, else ``'input'``, ``'output'``
    metadata : strings by key, kept in the model's ``metadata_props``
    dtype : ``'float16'``, ``'float32'`` or ``'float64'``, of every float in the file; by default the network's own,
        without parameters that of its inputs
    external_data : weights in ``<path>.data`` beside the model; by default only if it would have over 2 GiB. Where the
        model that is replaced has its weights there, the new ones are in ``<path>.data.2``, or the other way round

    Weights keep the names that they have in the state dict, so that :func:`load_checkpoint` reads it back, without
    what inference does not use, such as ``num_batches_tracked``. A factorized layer is written as the products of
    ``layer.plan(input_shape)``, those among its factors computed beforehand: what is left of them are weights named
    ``<layer>.path.0``, …. The file appears at once and whole, or not at all; a model is never seen with the weights
    of another, and those that it had go once the new model is there.

    Raises NotImplementedError: a module is of a class that is not written (see :func:`register_lowering`), or what it
    computes cannot be; the message says where in the network it is; ShapeError, PlanError, TypeError, ValueError: an
    option makes no sense, a layer refuses the shape that it gets (its own message, with its place), or a weight is
    beyond the range of ``dtype``; OSError: ``path`` is a folder, or cannot be written.

    >>> import tempfile
    >>> from growarray import load_checkpoint, nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_onnx(network, f"{folder}/network.onnx", (1, 4))
    ...     print(list(load_checkpoint(f"{folder}/network.onnx")))
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    if not isinstance(network, Module):
        raise TypeError(f"to_onnx: network is a {type(network).__name__}, expected a growarray.nn.Module")
    target = _target(path)
    if not isinstance(opset, (int, np.integer)) or opset not in OPSETS:
        raise ValueError(f"to_onnx: opset is {shown(opset)}, expected {OPSETS.start} to {OPSETS.stop - 1}")
    types = network.types if isinstance(network, Graph) else {}
    kind, strict = _dtype(network, types.values(), dtype)
    shapes, inputs = _inputs(network, input_shape, input_names)
    outputs = _names("output_names", output_names)
    known = network.outputs if outputs is None and isinstance(network, Graph) else outputs or ()
    graph = OnnxGraph(network, opset, kind, [*inputs, *known], WRITES, _missing(opset, strict))
    first = shapes[0][:1] if dynamic_batch else None
    others = {name: found for name, found in types.items() if letter(found) != "f"}
    edges = [
        Edge(name, shape, 0 if shape[:1] == first else None, others.get(name))
        for name, shape in zip(inputs, shapes, strict=True)
    ]
    with evaluating(network):
        found = graph.lower("", network, *edges)
        results = list(found) if isinstance(found, tuple | list) else [found]
    names = known or (("output",) if len(results) == 1 else tuple(f"output_{i}" for i in range(len(results))))
    if len(names) != len(results):
        raise ValueError(f"to_onnx: output_names has {len(names)} names, the network {len(results)} outputs")
    graph.prune([edge.name for edge in results])
    results = _named(graph, inputs, results, names)
    model = Model(
        name=type(network).__name__,
        dtype=kind,
        opset=opset,
        producer=("growarray", __version__),
        nodes=graph.nodes,
        initializers=list(graph.initializers.values()),
        inputs=[_port(edge, first) for edge in edges],
        outputs=[_port(edge, first) for edge in results],
        metadata=_metadata(metadata),
    )
    write_model(target, model, external=external_data)


def _missing(opset: int, strict: bool) -> dict[str, str]:
    """Why operators cannot be written, by name; with ``strict``, onnxruntime must have them in float64."""
    newer = {
        name: f"{name} is in operator sets from {row.since} on, opset is {opset}"
        for name, row in OPERATORS.items()
        if row.since > opset
    }
    single = {
        name: f"onnxruntime has no {name} in float64; pass dtype='float32', or dtype='float64' to write it anyway"
        for name, row in OPERATORS.items()
        if strict and not row.double
    }
    return newer | single


def _target(path: str | os.PathLike[str]) -> Path:
    """The path, if a file can be written there."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"to_onnx: {target} is a folder; give the path of a file in it, such as model.onnx")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"to_onnx: {target} cannot be written: there is no folder {target.parent}; make it first"
        )
    return target


def _dtype(network: Module, types: Container[str], dtype: Any) -> tuple[np.dtype[Any], bool]:
    """The dtype of the file, and whether operators that onnxruntime lacks in it are refused.

    By default that of the first parameter; without one, float64 if an input is. Half precision is read as float32.
    """
    first = next((p.data for p in network.parameters()), None)
    wide = "float64" if "float64" in types else "float32"
    own = wide if first is None else str(first.dtype).rpartition(".")[2]
    try:
        found = np.dtype(own if dtype is None else dtype)
    except (TypeError, ValueError):
        found = None
    if found is None or found.kind != "f" or found.name not in DATA_TYPES:
        what = f"the network is {own}, dtype is" if dtype is None else "dtype is"
        raise TypeError(f"to_onnx: {what} {shown(dtype)}; expected 'float16', 'float32' or 'float64'")
    return found, dtype is None and found == np.float64


def _inputs(network: Module, given: Any, names: Sequence[str] | None) -> tuple[list[Shape], tuple[str, ...]]:
    """Shape and name of every input."""
    known = network.inputs if isinstance(network, Graph) else ()
    if isinstance(given, Mapping):
        if names is not None:
            raise ValueError("to_onnx: input_shape names the inputs already; do not pass input_names")
        if known and set(given) != set(known):
            raise ValueError(
                f"to_onnx: input_shape has {', '.join(map(repr, given))}; the inputs are {', '.join(known)}"
            )
        order = known or tuple(given)
        return [_shape(given[name]) for name in order], _names("input_shape", order) or ()
    several = isinstance(given, tuple | list) and any(isinstance(part, tuple | list) for part in given)
    shapes = [_shape(part) for part in given] if several else [_shape(given)]
    default = known or (("input",) if len(shapes) == 1 else tuple(f"input_{i}" for i in range(len(shapes))))
    found = _names("input_names", names) or default
    if len(found) != len(shapes):
        raise ValueError(f"to_onnx: {len(shapes)} input shapes for the inputs {', '.join(found)}; give one for each")
    return shapes, found


def _shape(value: Any) -> Shape:
    try:
        shape = tuple(operator.index(size) for size in value)
    except TypeError:
        raise TypeError(
            f"to_onnx: input_shape is {shown(value)}, expected whole numbers such as (1, 3, 32, 32)"
        ) from None
    if any(size < 1 for size in shape):
        raise ValueError(f"to_onnx: input_shape is {shape}, expected sizes of at least 1, the batch included")
    return shape


def _names(option: str, names: Any) -> tuple[str, ...] | None:
    if names is None:
        return None
    found = (names,) if isinstance(names, str) else tuple(names)
    if not all(isinstance(name, str) and name for name in found) or len(set(found)) < len(found):
        raise ValueError(f"to_onnx: {option} is {shown(names)}, expected distinct names")
    return found


def _metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    if not (metadata is None or isinstance(metadata, Mapping)):
        raise TypeError(f"to_onnx: metadata is {shown(metadata)}, expected a mapping of strings")
    found = dict(metadata or {})
    for key, value in found.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise TypeError(
                f"to_onnx: metadata has {shown(key)}: {shown(value)}, expected strings; json.dumps makes one"
            )
    return found


def _named(graph: OnnxGraph, inputs: Sequence[str], results: list[Edge], names: Sequence[str]) -> list[Edge]:
    """The outputs under their names: the node that computes one is renamed, or its value copied."""
    made = {name: node for node in graph.nodes for name in node.outputs if node.op != "Constant"}
    renamed: dict[str, str] = {}
    found = []
    for edge, name in zip(results, names, strict=True):
        if edge.name == name:  # an input that is handed on
            found.append(edge)
            continue
        if name in inputs or name in graph.initializers:
            raise ValueError(f"to_onnx: output {name!r} has the name of an input or a weight; pass output_names=")
        if edge.name in made and edge.name not in renamed:
            renamed[edge.name] = name
        else:
            graph.nodes.append(Node("Identity", [edge.name], [name], graph.unique(f"/{name}/Identity"), {}))
        found.append(replace(edge, name=name))
    for node in graph.nodes:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        node.outputs = [renamed.get(name, name) for name in node.outputs]
    return found


def _port(edge: Edge, first: Shape | None) -> Port:
    """A value's shape in the file: the batch is a symbol, a multiple of it is unknown."""
    sizes: list[int | str | None] = list(edge.shape)
    if edge.batch is not None and first is not None:
        sizes[edge.batch] = _BATCH if edge.shape[edge.batch] == first[0] else None
    return Port(edge.name, tuple(sizes), edge.kind)
