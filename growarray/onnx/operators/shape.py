"""Operators that give the same values another shape, or another order of axes."""

from __future__ import annotations

import math

import numpy as np

from growarray import nn
from growarray.files.errors import Malformed
from growarray.nn.shape import Reshape, Squeeze, Transpose, Unsqueeze
from growarray.nn.sized import DynamicShape
from growarray.onnx.build import Builder, product
from growarray.onnx.fold import axes_of, constant_array, positive_axes
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, OnnxGraph
from growarray.onnx.operators.row import ALL, Operator
from growarray.onnx.value import Array, Dim, Dynamic, Shape, known_axes


def _read_reshape(builder: Builder, node: OpNode) -> None:
    """Axes that come from the input at the same place are copied, one other may follow from the rest."""
    x, keep = builder.dynamic(node, 0), node.flag("allowzero")
    if builder.opset < 5:
        raise Malformed("has its shape in an attribute, which is not read")
    asked = builder.sizes(node, 1, "shape")
    whole = _grouped(builder, x, asked)
    if whole is not None:
        builder.bind(node, whole)
        return
    keep = keep and 0 in asked
    target = [0 if not keep and isinstance(n, str) and _copied(x.shape, i, n) else n for i, n in enumerate(asked)]
    if sum(isinstance(n, str) or n == -1 for n in target) > 1:
        sources, dynamic = builder.sizes_at_run_time(target)
        builder.bind_module(
            node, DynamicShape(Reshape, dynamic), [x, *sources], tuple(asked) if -1 not in asked else None
        )
        return
    sizes = tuple(-1 if isinstance(n, str) else n for n in target)
    builder.bind_module(node, Reshape(sizes, allow_zero=keep), [x], _reshaped(builder, x.shape, sizes, keep))


def _grouped(builder: Builder, x: Dynamic, asked: tuple[Dim, ...]) -> Dynamic | None:
    """A group norm that the exporter wrote as ``Reshape``, ``InstanceNormalization`` and this ``Reshape`` back."""
    norm = builder.producer(x.name, nn.GroupNorm)
    if norm is None or norm.module.weight is not None or norm.module.num_groups != norm.module.num_channels:
        return None
    cut = builder.producer(norm.inputs[0], Reshape)
    source = None if cut is None else builder.dynamics[cut.inputs[0]]
    if source is None or source.shape is None or len(source.shape) < 2 or len(asked) != len(source.shape):
        return None
    groups, channels, rows = norm.module.num_groups, source.shape[1], builder.dynamics[norm.inputs[0]].shape
    if not isinstance(channels, int) or channels % groups or asked.count(-1) > 1:
        return None
    back = tuple(have if n in (0, -1) else n for n, have in zip(asked, source.shape, strict=True)) == source.shape
    size = product(builder, (channels // groups, *source.shape[2:]))
    if not back or (cut.module.shape != (0, groups, -1) and rows != (source.shape[0], groups, size)):
        return None
    layer = nn.GroupNorm(norm.module.num_groups, channels, norm.module.eps, affine=False)
    return builder.add(layer, [source], source.shape, norm.name)


def _copied(shape: Shape, place: int, size: str) -> bool:
    return shape is not None and place < len(shape) and shape[place] == size


def _reshaped(builder: Builder, shape: Shape, sizes: tuple[int, ...], keep: bool) -> Shape:
    """The axes of the result, as far as they are known."""
    found: list[Dim] = [
        n if n != 0 or keep else builder.new_name() if shape is None or i >= len(shape) else shape[i]
        for i, n in enumerate(sizes)
    ]
    if shape is not None and all(isinstance(n, int) for n in shape) and -1 not in found:
        given, asked = (math.prod(int(n) for n in dims) for dims in (shape, found))
        if given != asked:
            raise Malformed(f"input has shape {shape}, which does not fit into {sizes}")
    if -1 in found:
        place = found.index(-1)
        rest = [n for i, n in enumerate(found) if i != place]
        found[place] = _left_over(builder, shape, rest)
    return tuple(found)


def _left_over(builder: Builder, shape: Shape, rest: list[Dim]) -> Dim:
    """The size that is left when the axes ``rest`` are taken out of ``shape``."""
    left = list(shape or ())
    for n in rest:
        if isinstance(n, str) and n in left:
            left.remove(n)
        elif isinstance(n, str):
            return builder.new_name()
    known, taken = math.prod(n for n in left if isinstance(n, int)), math.prod(n for n in rest if isinstance(n, int))
    names = [n for n in left if isinstance(n, str)]
    if shape is None or taken == 0 or len(names) > 1 or (names and known != taken):
        return builder.new_name()
    if names:
        return names[0]
    if known % taken:
        raise Malformed(f"input has shape {shape}, which does not divide into axes {tuple(rest)}")
    return known // taken


def _write_reshape(graph: OnnxGraph, layer: Reshape, x: Edge) -> Edge:
    sizes = graph.shape_after(layer, x)
    batch = None
    if x.batch is not None:
        copied = x.batch < len(layer.shape) and layer.shape[x.batch] == 0 and not layer.allow_zero
        if not copied and -1 not in layer.shape:
            raise graph.refuse(f"shape {layer.shape} fits one size of the batch only; pass dynamic_batch=False")
        batch = x.batch if copied else layer.shape.index(-1)
    target = graph.integers(layer.shape)
    options = {"allowzero": 1} if layer.allow_zero else {}
    edge = graph.node("Reshape", x, target, shape=sizes, **options)
    return Edge(edge.name, sizes, batch, edge.kind)


def _fold_reshape(builder: Builder, node: OpNode) -> Array | None:
    value, shape = constant_array(builder, node, 0), builder.sizes(node, 1, "shape")
    keep = node.flag("allowzero")
    if not all(isinstance(n, int) for n in shape):
        return None
    sizes = [value.shape[i] if n == 0 and not keep and i < value.ndim else int(n) for i, n in enumerate(shape)]
    return value.reshape(sizes)


def _read_flatten(builder: Builder, node: OpNode) -> None:
    """Into two axes, those before ``axis`` and the rest."""
    x, axis = builder.dynamic(node, 0), node.get("axis", "int", 1)
    if x.shape is None and axis == 1:
        builder.bind_module(node, nn.Flatten(), [x], (builder.new_name(), builder.new_name()))
        return
    found = known_axes(x)
    count = len(found)
    if not -count <= axis <= count:
        raise Malformed(f"axis is {axis} for an input of {count} axes")
    axis = axis + count if axis < 0 else axis
    shape = (product(builder, found[:axis]), product(builder, found[axis:]))
    hint = builder.hint(node)
    if axis == 0:
        builder.bind_module(node, Reshape((1, -1)), [x], shape)
    elif axis == count:
        builder.bind_module(node, Reshape((-1, 1)), [x], shape)
    else:
        if axis > 1:
            x = builder.add(nn.Flatten(0, axis - 1), [x], (shape[0], *found[axis:]), f"{hint}.front")
        builder.bind_module(node, nn.Flatten(), [x], shape)


def _write_flatten(graph: OnnxGraph, layer: nn.Flatten, x: Edge) -> Edge:
    shape = graph.shape_after(layer, x)
    if shape == x.shape:
        return x
    if x.batch in (0, None) and len(shape) == 2 and layer.start_dim == 1:
        return graph.node("Flatten", x, shape=shape, axis=1)
    start = layer.start_dim % x.ndim
    gone = x.ndim - len(shape)
    batch = 0 if x.batch is None else x.batch if x.batch < start else max(start, x.batch - gone)
    return graph.reshape(x, shape, batch)


def _read_transpose(builder: Builder, node: OpNode) -> None:
    """Without ``perm`` it reverses the axes."""
    x, perm = builder.dynamic(node, 0), node.get("perm", "ints")
    if perm is not None and x.shape is not None and sorted(perm) != list(range(len(x.shape))):
        raise Malformed(f"perm is {tuple(perm)} for an input of {len(x.shape)} axes")
    shape = None if x.shape is None else x.shape[::-1] if perm is None else tuple(x.shape[i] for i in perm)
    builder.bind_module(node, Transpose(perm), [x], shape)


def _write_transpose(graph: OnnxGraph, layer: Transpose, x: Edge) -> Edge:
    graph.shape_after(layer, x)
    return graph.transpose(x, tuple(reversed(range(x.ndim))) if layer.perm is None else layer.perm)


def _fold_transpose(builder: Builder, node: OpNode) -> Array:
    return np.transpose(constant_array(builder, node, 0), node.get("perm", "ints"))


def _read_squeeze(builder: Builder, node: OpNode) -> None:
    x, axes = builder.dynamic(node, 0), axes_of(builder, node, 13)
    shape: Shape = None
    if x.shape is not None:
        gone = [i for i, n in enumerate(x.shape) if n == 1] if axes is None else positive_axes(axes, len(x.shape))
        if any(isinstance(x.shape[i], int) and x.shape[i] != 1 for i in gone):
            raise Malformed(f"axes are {axes} of an input of shape {x.shape}; expected size 1")
        shape = tuple(n for i, n in enumerate(x.shape) if i not in gone)
    builder.bind_module(node, Squeeze(axes), [x], shape)


def _write_squeeze(graph: OnnxGraph, layer: Squeeze, x: Edge) -> Edge:
    sizes = graph.shape_after(layer, x)
    if layer.axes is None and x.batch is not None and x.shape[x.batch] == 1:
        raise graph.refuse("without axes it removes a batch of one; name the axes, or pass dynamic_batch=False")
    gone = [i for i, n in enumerate(x.shape) if n == 1] if layer.axes is None else [a % x.ndim for a in layer.axes]
    if x.batch in gone:
        raise graph.refuse(f"axes {layer.axes} name the batch; pass dynamic_batch=False")
    edge = graph.node("Squeeze", x, graph.integers(gone), shape=sizes)
    batch = None if x.batch is None else x.batch - sum(axis < x.batch for axis in gone)
    return Edge(edge.name, sizes, batch, edge.kind)


def _fold_squeeze(builder: Builder, node: OpNode) -> Array:
    return np.squeeze(constant_array(builder, node, 0), axes_of(builder, node, 13))


def _read_unsqueeze(builder: Builder, node: OpNode) -> None:
    x, axes = builder.dynamic(node, 0), axes_of(builder, node, 13)
    if axes is None:
        raise Malformed("has no axes")
    shape: Shape = None
    if x.shape is not None:
        new, sizes = positive_axes(axes, len(x.shape) + len(axes)), iter(x.shape)
        shape = tuple(1 if i in new else next(sizes) for i in range(len(x.shape) + len(axes)))
        if len(shape) > 32:
            raise Malformed(f"gives {len(shape)} axes; at most 32 are supported")
    builder.bind_module(node, Unsqueeze(axes), [x], shape)


def _write_unsqueeze(graph: OnnxGraph, layer: Unsqueeze, x: Edge) -> Edge:
    sizes = graph.shape_after(layer, x)
    new = [axis % len(sizes) for axis in layer.axes]
    kept = [i for i in range(len(sizes)) if i not in new]
    edge = graph.node("Unsqueeze", x, graph.integers(new), shape=sizes)
    return Edge(edge.name, sizes, None if x.batch is None else kept[x.batch], edge.kind)


def _fold_unsqueeze(builder: Builder, node: OpNode) -> Array:
    axes = axes_of(builder, node, 13)
    if not axes or len(axes) > 32:
        raise Malformed("axes are missing, or too many")
    return np.expand_dims(constant_array(builder, node, 0), axes)


ROWS = (
    Operator("Flatten", _read_flatten, {nn.Flatten: _write_flatten}, kinds=ALL),
    Operator("Reshape", _read_reshape, {Reshape: _write_reshape}, _fold_reshape, (2, 2), moves=True, kinds=ALL),
    Operator("Squeeze", _read_squeeze, {Squeeze: _write_squeeze}, _fold_squeeze, (1, 2), moves=True, kinds=ALL),
    Operator("Transpose", _read_transpose, {Transpose: _write_transpose}, _fold_transpose, moves=True, kinds=ALL),
    Operator(
        "Unsqueeze", _read_unsqueeze, {Unsqueeze: _write_unsqueeze}, _fold_unsqueeze, (1, 2), moves=True, kinds=ALL
    ),
)
