"""Operators that repeat values, and that move them between channels and positions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from growarray.files.errors import Malformed
from growarray.nn.shape import Expand, Reshape, Transpose
from growarray.nn.sized import DynamicShape
from growarray.onnx.build import Builder, broadcast, product
from growarray.onnx.fold import constant_array
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, OnnxGraph
from growarray.onnx.operators.constant import check_shape
from growarray.onnx.operators.row import ALL, Operator
from growarray.onnx.value import Array, Dim, Dynamic

_FIXED = "export the model with fixed sizes"


def _read_expand(builder: Builder, node: OpNode) -> None:
    """An axis that has its size from the input at the same place stays as it is."""
    x, asked = builder.dynamic(node, 0), builder.sizes(node, 1, "shape")
    own = x.shape or ()
    aligned = (*(1,) * (len(asked) - len(own)), *own[max(len(own) - len(asked), 0) :])
    if any(isinstance(n, str) and n != have for n, have in zip(asked, aligned, strict=True)):
        sources, dynamic = builder.sizes_at_run_time(asked)
        builder.bind_module(node, DynamicShape(Expand, dynamic), [x, *sources], broadcast(builder, x.shape, asked))
        return
    sizes = tuple(1 if isinstance(n, str) else n for n in asked)
    check_shape(sizes)
    builder.bind_module(node, Expand(sizes), [x], broadcast(builder, x.shape, asked))


def _write_expand(graph: OnnxGraph, layer: Expand, x: Edge) -> Edge:
    shape = graph.shape_after(layer, x)
    batch = None if x.batch is None else x.batch + len(shape) - x.ndim
    if batch is not None and dict(zip(range(len(shape))[::-1], layer.shape[::-1], strict=False)).get(batch, 1) != 1:
        raise graph.refuse("it expands the batch; pass dynamic_batch=False")
    edge = graph.node("Expand", x, graph.integers(layer.shape), shape=shape)
    return Edge(edge.name, shape, batch, edge.kind)


def _fold_expand(builder: Builder, node: OpNode) -> Array | None:
    value, shape = constant_array(builder, node, 0), builder.sizes(node, 1, "shape")
    if not all(isinstance(n, int) for n in shape):
        return None
    sizes = tuple(int(n) for n in shape)
    check_shape(sizes)
    target = np.broadcast_shapes(value.shape, sizes)
    builder.account(math.prod(target) * value.itemsize)
    return np.array(np.broadcast_to(value, target))


def _reshaped(builder: Builder, x: Dynamic, shape: tuple[Dim, ...], hint: str) -> Dynamic:
    """The value in another shape: the first axis may be copied, and one other may be of unknown size."""
    empty = 0 in shape
    copied = not empty and x.shape is not None and bool(shape) and shape[:1] == x.shape[:1]
    sizes = [0 if i == 0 and copied else -1 if isinstance(n, str) else n for i, n in enumerate(shape)]
    if sizes.count(-1) > 1:
        raise Malformed(f"has an input of shape {x.shape}; {_FIXED}")
    return builder.add(Reshape(sizes, allow_zero=empty), [x], shape, hint)


def _read_tile(builder: Builder, node: OpNode) -> None:
    """Every axis that is repeated gets one of size 1 in front, which is expanded."""
    x, repeats = builder.dynamic(node, 0), builder.whole_numbers(node, 1, "repeats")
    if x.shape is None or len(repeats) != len(x.shape) or any(n < 1 for n in repeats):
        raise Malformed(f"repeats are {repeats} for an input of shape {x.shape}; expected one of at least 1 an axis")
    if max(repeats, default=1) == 1:
        builder.bind(node, x)
        return
    hint, pairs = builder.hint(node), list(zip(x.shape, repeats, strict=True))
    apart = tuple(n for size, r in pairs for n in ((1, size) if r > 1 else (size,)))
    counts = tuple(n for r in repeats for n in ((r, 1) if r > 1 else (1,)))
    wide = tuple(size if r == 1 else r for size, r in zip(apart, counts, strict=True))
    y = builder.add(Expand(counts), [_reshaped(builder, x, apart, f"{hint}.apart")], wide, hint)
    joined = tuple(size if r == 1 else product(builder, (size, r)) for size, r in pairs)
    builder.bind(node, _reshaped(builder, y, joined, f"{hint}.joined"))


def _sizes(builder: Builder, node: OpNode) -> tuple[Dynamic, int, int, int, int]:
    """The input, the size of a block, and channels, rows and columns, which are known."""
    x, block = builder.dynamic(node, 0), node.get("blocksize", "int", 0)
    sizes = [n for n in (x.shape or ())[1:] if isinstance(n, int)]
    if len(sizes) != 3 or not 1 <= block < 2**20:
        raise Malformed(f"blocksize is {block} for an input of shape {x.shape}; expected (n, c, h, w); {_FIXED}")
    return x, block, sizes[0], sizes[1], sizes[2]


def _moved(
    builder: Builder, node: OpNode, x: Dynamic, inner: Sequence[int], order: Sequence[int], shape: Sequence[int]
) -> None:
    """Split the axes after the first into ``inner``, put those in another order, and join them again to ``shape``."""
    if 0 in inner or math.prod(inner) != math.prod(n for n in (x.shape or ())[1:] if isinstance(n, int)):
        raise Malformed(f"blocksize does not divide an input of shape {x.shape}")
    hint, apart = builder.hint(node), (*(x.shape or ())[:1], *inner)
    y = _reshaped(builder, x, apart, f"{hint}.apart")
    y = builder.add(Transpose(order), [y], tuple(apart[i] for i in order), hint)
    builder.bind(node, _reshaped(builder, y, (apart[0], *shape), f"{hint}.joined"))


def _mode(node: OpNode) -> str:
    mode: str = node.get("mode", "string", "DCR")
    if mode not in ("DCR", "CRD"):
        raise Malformed(f"mode is {mode!r}; expected DCR or CRD")
    return mode


def _read_depth_to_space(builder: Builder, node: OpNode) -> None:
    """Blocks of channels, before (DCR) or after (CRD) those that are left, become positions."""
    x, b, channels, rows, columns = _sizes(builder, node)
    mode, left = _mode(node), channels // (b * b)
    blocks, order = ((b, b, left), (0, 3, 4, 1, 5, 2)) if mode == "DCR" else ((left, b, b), (0, 1, 4, 2, 5, 3))
    _moved(builder, node, x, (*blocks, rows, columns), order, (left, rows * b, columns * b))


def _read_space_to_depth(builder: Builder, node: OpNode) -> None:
    """Each block of positions becomes channels, before (DCR) or after (CRD) those that were there."""
    x, b, channels, rows, columns = _sizes(builder, node)
    order = (0, 3, 5, 1, 2, 4) if _mode(node) == "DCR" else (0, 1, 3, 5, 2, 4)
    inner, shape = (channels, rows // b, b, columns // b, b), (channels * b * b, rows // b, columns // b)
    _moved(builder, node, x, inner, order, shape)


ROWS = (
    Operator("DepthToSpace", _read_depth_to_space, kinds=ALL),
    Operator("Expand", _read_expand, {Expand: _write_expand}, _fold_expand, (2, 2), moves=True, kinds=ALL),
    Operator("SpaceToDepth", _read_space_to_depth, kinds=ALL),
    Operator("Tile", _read_tile, inputs=(2, 2), kinds=ALL),
)
