"""Operators that rearrange, cut, join, pad or average."""

from __future__ import annotations

import math
from typing import Any

from growarray import nn
from growarray.files.errors import Malformed
from growarray.nn.join import Concat
from growarray.nn.positions import positions
from growarray.nn.shape import Gather, Pad, ReduceMean, Reshape, Slice, Squeeze, Transpose, Unsqueeze
from growarray.onnx.build import Builder, Dim, Dynamic, Shape, product
from growarray.onnx.fold import axes_of, slice_options
from growarray.onnx.graph import OpNode

__all__ = [
    "concat",
    "flatten",
    "gather",
    "pad",
    "reduce_mean",
    "reshape",
    "slice_",
    "split",
    "squeeze",
    "transpose",
    "unsqueeze",
]

_MOST = 2**20


def _one(builder: Builder, node: OpNode, module: Any, x: Dynamic, shape: Shape) -> None:
    builder.give(node, builder.step(module, [x], shape, builder.hint(node)))


def _positive(axes: tuple[int, ...], count: int) -> tuple[int, ...]:
    found = tuple(axis + count if axis < 0 else axis for axis in axes)
    if any(not 0 <= axis < count for axis in found) or len(set(found)) < len(found):
        raise Malformed(f"axes are {axes}; expected different ones of {count}")
    return found


def reshape(builder: Builder, node: OpNode) -> None:
    """``Reshape``; axes that come from the input at the same place are copied, one other may follow from the rest."""
    x, keep = builder.dynamic(node, 0), node.flag("allowzero")
    if builder.opset < 5:
        raise Malformed("has its shape in an attribute, which is not read")
    asked = builder.dims(node, 1, "shape")
    whole = _grouped(builder, x, asked)
    if whole is not None:
        builder.give(node, whole)
        return
    keep = keep and 0 in asked
    target = [0 if not keep and isinstance(n, str) and _copied(x.shape, i, n) else n for i, n in enumerate(asked)]
    if sum(isinstance(n, str) or n == -1 for n in target) > 1:
        raise Malformed(
            f"shape {asked} has more than one size that depends on the input; export the model with fixed sizes"
        )
    sizes = tuple(-1 if isinstance(n, str) else n for n in target)
    _one(builder, node, Reshape(sizes, allow_zero=keep), x, _reshaped(builder, x.shape, sizes, keep))


def _grouped(builder: Builder, x: Dynamic, asked: tuple[Dim, ...]) -> Dynamic | None:
    """A group norm that the exporter wrote as ``Reshape``, ``InstanceNormalization`` and this ``Reshape`` back."""
    norm = builder.giver(x.name, nn.GroupNorm)
    if norm is None or norm.module.weight is not None or norm.module.num_groups != norm.module.num_channels:
        return None
    cut = builder.giver(norm.inputs[0], Reshape)
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
    return builder.step(layer, [source], source.shape, norm.name)


def _copied(shape: Shape, place: int, size: str) -> bool:
    return shape is not None and place < len(shape) and shape[place] == size


def _reshaped(builder: Builder, shape: Shape, sizes: tuple[int, ...], keep: bool) -> Shape:
    """The axes of the result, as far as they are known."""
    found: list[Dim] = [
        n if n != 0 or keep else builder.fresh() if shape is None or i >= len(shape) else shape[i]
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
            return builder.fresh()
    known, taken = math.prod(n for n in left if isinstance(n, int)), math.prod(n for n in rest if isinstance(n, int))
    names = [n for n in left if isinstance(n, str)]
    if shape is None or taken == 0 or len(names) > 1 or (names and known != taken):
        return builder.fresh()
    if names:
        return names[0]
    if known % taken:
        raise Malformed(f"input has shape {shape}, which does not divide into axes {tuple(rest)}")
    return known // taken


def flatten(builder: Builder, node: OpNode) -> None:
    """``Flatten``: into two axes, those before ``axis`` and the rest."""
    x, axis = builder.dynamic(node, 0), node.get("axis", "int", 1)
    if x.shape is None:
        if axis != 1:
            raise Malformed("the number of axes of its input is not known; export the model with shapes")
        _one(builder, node, nn.Flatten(), x, (builder.fresh(), builder.fresh()))
        return
    count = len(x.shape)
    if not -count <= axis <= count:
        raise Malformed(f"axis is {axis} for an input of {count} axes")
    axis = axis + count if axis < 0 else axis
    shape = (product(builder, x.shape[:axis]), product(builder, x.shape[axis:]))
    hint = builder.hint(node)
    if axis == 0:
        _one(builder, node, Reshape((1, -1)), x, shape)
    elif axis == count:
        _one(builder, node, Reshape((-1, 1)), x, shape)
    else:
        if axis > 1:
            x = builder.step(nn.Flatten(0, axis - 1), [x], (shape[0], *x.shape[axis:]), f"{hint}.front")
        _one(builder, node, nn.Flatten(), x, shape)


def transpose(builder: Builder, node: OpNode) -> None:
    """``Transpose``; without ``perm`` it reverses the axes."""
    x, perm = builder.dynamic(node, 0), node.get("perm", "ints")
    if perm is not None and x.shape is not None and sorted(perm) != list(range(len(x.shape))):
        raise Malformed(f"perm is {tuple(perm)} for an input of {len(x.shape)} axes")
    shape = None if x.shape is None else x.shape[::-1] if perm is None else tuple(x.shape[i] for i in perm)
    _one(builder, node, Transpose(perm), x, shape)


def squeeze(builder: Builder, node: OpNode) -> None:
    """``Squeeze``."""
    x, axes = builder.dynamic(node, 0), axes_of(builder, node, 13)
    shape: Shape = None
    if x.shape is not None:
        gone = [i for i, n in enumerate(x.shape) if n == 1] if axes is None else _positive(axes, len(x.shape))
        if any(isinstance(x.shape[i], int) and x.shape[i] != 1 for i in gone):
            raise Malformed(f"axes are {axes} of an input of shape {x.shape}; expected size 1")
        shape = tuple(n for i, n in enumerate(x.shape) if i not in gone)
    _one(builder, node, Squeeze(axes), x, shape)


def unsqueeze(builder: Builder, node: OpNode) -> None:
    """``Unsqueeze``."""
    x, axes = builder.dynamic(node, 0), axes_of(builder, node, 13)
    if axes is None:
        raise Malformed("has no axes")
    shape: Shape = None
    if x.shape is not None:
        new, sizes = _positive(axes, len(x.shape) + len(axes)), iter(x.shape)
        shape = tuple(1 if i in new else next(sizes) for i in range(len(x.shape) + len(axes)))
        if len(shape) > 32:
            raise Malformed(f"gives {len(shape)} axes; at most 32 are supported")
    _one(builder, node, Unsqueeze(axes), x, shape)


def concat(builder: Builder, node: OpNode) -> None:
    """``Concat``."""
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
        joined[axis] = builder.fresh() if whole is None else whole
        shape = tuple(joined)
    builder.give(node, builder.step(Concat(axis), parts, shape, builder.hint(node)))


def slice_(builder: Builder, node: OpNode) -> None:
    """``Slice`` with constant options."""
    x = builder.dynamic(node, 0)
    axes, starts, ends, steps = slice_options(builder, node)
    shape: Shape = None
    if x.shape is not None:
        found = list(x.shape)
        for axis, *part in zip(_positive(axes, len(found)), starts, ends, steps, strict=True):
            size = found[axis]
            if isinstance(size, int):
                found[axis] = len(positions(size, *part))
            elif (part[0], part[2]) != (0, 1) or part[1] < 2**31 - 1:
                found[axis] = builder.fresh()
        shape = tuple(found)
    _one(builder, node, Slice(starts, ends, axes, steps), x, shape)


def gather(builder: Builder, node: OpNode) -> None:
    """``Gather`` with constant indices of at most one axis."""
    x, axis = builder.dynamic(node, 0), node.get("axis", "int", 0)
    value = builder.constant(node, 1, "indices")
    places = builder.whole(node, 1, "indices")
    shape: Shape = None
    if x.shape is not None:
        (axis,) = _positive((axis,), len(x.shape))
        size = x.shape[axis]
        if isinstance(size, int) and any(not -size <= i < size for i in places):
            raise Malformed(f"indices {places} are outside axis {axis} of size {size}")
        shape = (*x.shape[:axis], *value.shape, *x.shape[axis + 1 :])
    _one(builder, node, Gather(places if value.shape else places[0], axis), x, shape)


def split(builder: Builder, node: OpNode) -> None:
    """``Split``: a slice for each output; equal parts unless sizes are given."""
    x, axis, count = builder.dynamic(node, 0), node.get("axis", "int", 0), len(node.outputs)
    given = node.get("split", "ints") if builder.opset < 13 else None
    if builder.opset >= 13 and builder.has(node, 1):
        given = builder.whole(node, 1, "split")
    if node.get("num_outputs", "int", count) != count or x.shape is None:
        raise Malformed(f"has {count} outputs of an input of shape {x.shape}, which do not fit")
    (axis,) = _positive((axis,), len(x.shape))
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
            builder.give(node, builder.step(Slice((start,), (start + n,), (axis,)), [x], shape, hint), i)
        start += n


def pad(builder: Builder, node: OpNode) -> None:
    """``Pad``: widths and value are inputs since opset 11, attributes before."""
    x, mode = builder.dynamic(node, 0), node.get("mode", "string", "constant")
    if builder.opset >= 11:
        flat, value = builder.whole(node, 1, "pads"), builder.number(node, 2, "constant_value")
        axes = builder.whole(node, 3, "axes") if builder.has(node, 3) else None
    else:
        flat, value, axes = tuple(node.get("pads", "ints", [])), node.get("value", "float", 0.0), None
    if len(flat) % 2 or any(abs(n) > _MOST for n in flat):
        raise Malformed(f"pads are {flat}; expected pairs of numbers up to {_MOST}")
    pairs = list(zip(flat[: len(flat) // 2], flat[len(flat) // 2 :], strict=True))
    if axes is not None:
        if x.shape is None or len(axes) != len(pairs):
            raise Malformed(f"has {len(pairs)} pairs of pads for axes {axes} of an input of shape {x.shape}")
        by_axis = dict(zip(_positive(axes, len(x.shape)), pairs, strict=True))
        pairs = [by_axis.get(i, (0, 0)) for i in range(len(x.shape))]
    shape: Shape = None
    if x.shape is not None:
        if len(pairs) != len(x.shape):
            raise Malformed(f"has {len(pairs)} pairs of pads for an input of {len(x.shape)} axes")
        shape = tuple(
            n if p == (0, 0) else n + sum(p) if isinstance(n, int) else builder.fresh()
            for n, p in zip(x.shape, pairs, strict=True)
        )
        if any(isinstance(n, int) and n < 0 for n in shape):
            raise Malformed(f"pads are {pairs} for an input of shape {x.shape}; nothing would be left")
    _one(builder, node, Pad(pairs, mode, value or 0.0), x, shape)


def reduce_mean(builder: Builder, node: OpNode) -> None:
    """``ReduceMean``."""
    x, axes, keep = builder.dynamic(node, 0), axes_of(builder, node, 18), node.flag("keepdims", True)
    if node.flag("noop_with_empty_axes") and not axes:
        builder.give(node, x)
        return
    axes = axes or None
    shape: Shape = None
    if x.shape is not None:
        gone = range(len(x.shape)) if axes is None else _positive(axes, len(x.shape))
        shape = tuple(1 if i in gone else n for i, n in enumerate(x.shape) if keep or i not in gone)
    _one(builder, node, ReduceMean(axes, keepdims=keep), x, shape)
