"""Operators that cut, join and pad along axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from growarray.contraction.geometry import ConvAxis
from growarray.files.errors import Malformed
from growarray.nn.arithmetic import Concat
from growarray.nn.padding import PADDINGS, Pad
from growarray.nn.part import Gather, Slice, positions
from growarray.nn.sized import CutTo, SamePad
from growarray.onnx.build import Builder
from growarray.onnx.fold import constant_array, narrowed, positive_axes
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, OnnxGraph
from growarray.onnx.operators.row import ALL, ANY, Operator, operation
from growarray.onnx.operators.window import MOST, padded, sliced, write_fitted
from growarray.onnx.value import Array, Dynamic, Shape


def _read_concat(builder: Builder, node: OpNode) -> None:
    axis, parts = node.get("axis", "int"), [builder.dynamic(node, i) for i in range(len(node.inputs))]
    if axis is None:
        raise Malformed("has no axis")
    shapes = [part.shape for part in parts if part.shape is not None]
    shape: Shape = None
    if len(shapes) == len(parts):
        if len({len(s) for s in shapes}) > 1 or not -len(shapes[0]) <= axis < len(shapes[0]):
            raise Malformed(f"axis is {axis} for inputs of shapes {shapes}")
        sizes = [s[axis] for s in shapes]
        whole = sum(n for n in sizes if isinstance(n, int)) if all(isinstance(n, int) for n in sizes) else None
        joined = list(shapes[0])
        for i in range(len(joined)):
            fixed = {s[i] for s in shapes if isinstance(s[i], int)}
            if i != axis % len(joined) and len(fixed) > 1:
                raise Malformed(f"inputs have shapes {shapes}, which differ on another axis than {axis}")
            joined[i] = next(iter(fixed)) if fixed else joined[i]
        joined[axis] = builder.new_name() if whole is None else whole
        shape = tuple(joined)
    builder.bind_module(node, Concat(axis), parts, shape)


def _write_concat(graph: OnnxGraph, layer: Concat, *inputs: Edge) -> Edge:
    sizes = graph.shape_after(layer, *inputs)
    axis = layer.axis % len(sizes)
    batches = {x.batch for x in inputs}
    if len(batches) > 1:
        raise graph.refuse("some inputs follow the batch and some do not; pass dynamic_batch=False")
    return graph.node("Concat", *inputs, shape=sizes, axis=axis)


def _fold_concat(builder: Builder, node: OpNode) -> Array:
    parts = [constant_array(builder, node, i) for i in range(len(node.inputs))]
    builder.account(sum(part.size for part in parts) * 8)
    kind = object if any(part.dtype == object for part in parts) else None
    return narrowed(np.concatenate([p.astype(kind) if kind else p for p in parts], axis=node.get("axis", "int")))


def _slice_options(builder: Builder, node: OpNode) -> tuple[tuple[int, ...], ...]:
    """Axes, starts, ends and steps of a ``Slice``: inputs since opset 10, attributes before."""
    if builder.opset >= 10:
        starts, ends = builder.whole_numbers(node, 1, "starts"), builder.whole_numbers(node, 2, "ends")
        axes = builder.whole_numbers(node, 3, "axes") if builder.has(node, 3) else tuple(range(len(starts)))
        steps = builder.whole_numbers(node, 4, "steps") if builder.has(node, 4) else (1,) * len(starts)
    else:
        starts, ends = (tuple(node.get(name, "ints", [])) for name in ("starts", "ends"))
        axes, steps = tuple(node.get("axes", "ints", list(range(len(starts))))), (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise Malformed(f"has {len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps")
    return axes, starts, ends, steps


def _read_slice(builder: Builder, node: OpNode) -> None:
    """Read a slice whose options are constants."""
    x = builder.dynamic(node, 0)
    axes, starts, ends, steps = _slice_options(builder, node)
    shape: Shape = None
    if x.shape is not None:
        found = list(x.shape)
        for axis, *part in zip(positive_axes(axes, len(found)), starts, ends, steps, strict=True):
            size = found[axis]
            if isinstance(size, int):
                found[axis] = len(positions(size, *part))
            elif (part[0], part[2]) != (0, 1) or part[1] < 2**31 - 1:
                found[axis] = builder.new_name()
        shape = tuple(found)
    builder.bind_module(node, Slice(starts, ends, axes, steps), [x], shape)


def _write_slice(graph: OnnxGraph, layer: Slice, x: Edge) -> Edge:
    sizes = graph.shape_after(layer, x)
    options = zip(layer.axes, layer.starts, layer.ends, layer.steps, strict=True)
    parts = {axis % x.ndim: (start, end, step) for axis, start, end, step in options}
    return sliced(graph, x, parts, sizes)


def _fold_slice(builder: Builder, node: OpNode) -> Array | None:
    value = constant_array(builder, node, 0)
    index: list[slice] = [slice(None)] * value.ndim
    for axis, start, end, step in zip(*_slice_options(builder, node), strict=True):
        if not -value.ndim <= axis < value.ndim or step == 0 or index[axis] != slice(None):
            raise Malformed(f"axis {axis} with step {step} of a value with {value.ndim} axes, each of them once")
        places = positions(value.shape[axis], start, end, step)
        index[axis] = slice(places.start, places.stop if places.stop >= 0 else None, step) if places else slice(0, 0)
    builder.account(value.nbytes)
    return narrowed(value[tuple(index)])


def _read_gather(builder: Builder, node: OpNode) -> None:
    """Constant indices of at most one axis make a layer of their own."""
    x, axis, value = builder.dynamic(node, 0), node.get("axis", "int", 0), builder.value(node, 1)
    if isinstance(value, Dynamic) or len(value.shape) > 1:
        _live.read(builder, node)
        return
    places = builder.whole_numbers(node, 1, "indices")
    shape: Shape = None
    if x.shape is not None:
        (axis,) = positive_axes((axis,), len(x.shape))
        size = x.shape[axis]
        if isinstance(size, int) and any(not -size <= i < size for i in places):
            raise Malformed(f"indices {places} are outside axis {axis} of size {size}")
        shape = (*x.shape[:axis], *value.shape, *x.shape[axis + 1 :])
    builder.bind_module(node, Gather(places if value.shape else places[0], axis), [x], shape)


def _looked_up(builder: Builder, shapes: Sequence[Any], options: Mapping[str, Any]) -> Shape:
    (axis,) = positive_axes((options["axis"],), len(shapes[0]))
    return (*shapes[0][:axis], *shapes[1], *shapes[0][axis + 1 :])


_live: Any = operation("Gather", 2, shape=_looked_up, alike=False, axis=0)


def _write_gather(graph: OnnxGraph, layer: Gather, x: Edge) -> Edge:
    sizes = graph.shape_after(layer, x)
    axis, single = layer.axis % x.ndim, isinstance(layer.indices, int)
    if x.batch == axis:
        raise graph.refuse("it takes entries of the batch; pass dynamic_batch=False")
    edge = graph.node("Gather", x, graph.integers(layer.indices), shape=sizes, axis=axis)
    return Edge(edge.name, sizes, None if x.batch is None else x.batch - (single and axis < x.batch), edge.kind)


def _fold_gather(builder: Builder, node: OpNode) -> Array | None:
    value, indices = constant_array(builder, node, 0), constant_array(builder, node, 1)
    axis = node.get("axis", "int", 0)
    if indices.dtype.kind not in "iu" or not -value.ndim <= axis < value.ndim:
        return None
    size = value.shape[axis]
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        raise Malformed(f"indices are outside axis {axis} of size {size}")
    builder.account(value.size // max(size, 1) * indices.size * value.itemsize)
    found = np.asarray(np.take(value, indices, axis=axis), dtype=value.dtype)  # a name would become text
    return narrowed(found)


def _read_split(builder: Builder, node: OpNode) -> None:
    """A slice for each output; equal parts unless sizes are given."""
    x, axis, count = builder.dynamic(node, 0), node.get("axis", "int", 0), len(node.outputs)
    given = node.get("split", "ints") if builder.opset < 13 else None
    if builder.opset >= 13 and builder.has(node, 1):
        given = builder.whole_numbers(node, 1, "split")
    if node.get("num_outputs", "int", count) != count or x.shape is None:
        raise Malformed(f"has {count} outputs of an input of shape {x.shape}, which do not fit")
    (axis,) = positive_axes((axis,), len(x.shape))
    size = x.shape[axis]
    if given is None and isinstance(size, int):
        each = -(-size // count)
        given = [max(min(each, size - i * each), 0) for i in range(count)]
    if given is None or len(given) != count or any(n < 0 for n in given) or sum(given) != (size if size else 0):
        raise Malformed(f"parts {given} of axis {axis} do not fit an input of shape {x.shape}")
    start, hint = 0, builder.hint(node)
    for i, n in enumerate(given):
        shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
        if node.outputs[i] in builder.used:
            builder.bind(node, builder.add(Slice((start,), (start + n,), (axis,)), [x], shape, hint), i)
        start += n


def _read_pad(builder: Builder, node: OpNode) -> None:
    """Widths and value are inputs since opset 11, attributes before."""
    x, mode = builder.dynamic(node, 0), node.get("mode", "string", "constant")
    if builder.opset >= 11:
        flat, value = builder.whole_numbers(node, 1, "pads"), builder.optional_number(node, 2, "constant_value")
        axes = builder.whole_numbers(node, 3, "axes") if builder.has(node, 3) else None
    else:
        flat, value, axes = tuple(node.get("pads", "ints", [])), node.get("value", "float", 0.0), None
    if len(flat) % 2 or any(abs(n) > MOST for n in flat):
        raise Malformed(f"pads are {flat}; expected pairs of numbers up to {MOST}")
    pairs = list(zip(flat[: len(flat) // 2], flat[len(flat) // 2 :], strict=True))
    if axes is not None:
        if x.shape is None or len(axes) != len(pairs):
            raise Malformed(f"has {len(pairs)} pairs of pads for axes {axes} of an input of shape {x.shape}")
        by_axis = dict(zip(positive_axes(axes, len(x.shape)), pairs, strict=True))
        pairs = [by_axis.get(i, (0, 0)) for i in range(len(x.shape))]
    shape: Shape = None
    if x.shape is not None:
        if len(pairs) != len(x.shape):
            raise Malformed(f"has {len(pairs)} pairs of pads for an input of {len(x.shape)} axes")
        shape = tuple(
            n if p == (0, 0) else n + sum(p) if isinstance(n, int) else builder.new_name()
            for n, p in zip(x.shape, pairs, strict=True)
        )
        if any(isinstance(n, int) and n < 0 for n in shape):
            raise Malformed(f"pads are {pairs} for an input of shape {x.shape}; nothing would be left")
    builder.bind_module(node, Pad(pairs, mode, value or 0.0), [x], shape)


def _write_pad(graph: OnnxGraph, layer: Pad, x: Edge) -> Edge:
    sizes = graph.shape_after(layer, x)
    widths = {i: pair for i, pair in enumerate(layer.widths, start=x.ndim - len(layer.widths)) if any(pair)}
    if x.batch in widths:
        raise graph.refuse("it pads the batch; pass dynamic_batch=False")
    cut = {i: (max(-low, 0), x.shape[i] + min(high, 0), 1) for i, (low, high) in widths.items() if min(low, high) < 0}
    x = sliced(graph, x, cut)
    mode = PADDINGS[layer.mode]
    by = {i: ConvAxis(before=max(a, 0), after=max(b, 0), padding_mode=mode) for i, (a, b) in widths.items()}
    y = padded(graph, x, by, layer.value)
    if y.shape != sizes:
        raise graph.refuse(f"widths {layer.widths} are not written")
    return y


ROWS = (
    Operator("Concat", _read_concat, {Concat: _write_concat}, _fold_concat, (1, ANY), kinds=ALL),
    Operator("Gather", _read_gather, {Gather: _write_gather}, _fold_gather, (2, 2), kinds=ALL),
    Operator("Pad", _read_pad, {Pad: _write_pad, SamePad: write_fitted, CutTo: write_fitted}, inputs=(1, 4), kinds=ALL),
    Operator("Slice", _read_slice, {Slice: _write_slice}, _fold_slice, (1, 5), kinds=ALL),
    Operator("Split", _read_split, inputs=(1, 2), outputs=ANY, kinds=ALL),
)
