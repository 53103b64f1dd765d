"""Constants that exporters compute from shapes and from each other."""

from __future__ import annotations

import math

import numpy as np

from growarray.files.errors import Malformed, quote
from growarray.onnx.build import Builder
from growarray.onnx.call import Calls, written
from growarray.onnx.fold import constant_array
from growarray.onnx.graph import OpNode
from growarray.onnx.operators.row import ALL, Operator
from growarray.onnx.value import Array, Constant, known_axes


def _read_sizes(builder: Builder, node: OpNode) -> None:
    """``Shape`` and ``Size`` of a value, as far as they are known."""
    shape = known_axes(builder.value(node, 0))
    if node.op == "Shape":
        dims = list(shape[node.get("start", "int", 0) : node.get("end", "int", len(shape))])
    else:
        dims = [math.prod(int(n) for n in shape) if all(isinstance(n, int) for n in shape) else builder.new_name()]
    known = all(isinstance(n, int) for n in dims)
    found = np.asarray(dims, dtype=np.int64 if known else object)
    builder.bind(node, Constant(node.outputs[0], found if node.op == "Shape" else found.reshape(())))


def _fold_constant(builder: Builder, node: OpNode) -> Array | None:
    """``Constant`` in each of its forms."""
    for name, kind, dtype in (
        ("value_float", "float", np.float32),
        ("value_int", "int", np.int64),
        ("value_floats", "floats", np.float32),
        ("value_ints", "ints", np.int64),
    ):
        if name in node.attributes:
            return np.asarray(node.get(name, kind), dtype=dtype)
    tensor = node.get("value", "tensor")
    if tensor is None:
        raise Malformed("has no numeric value; strings and sparse tensors are not read")
    builder.account(tensor.nbytes)
    values: Array = tensor.read()
    return values


def _fold_filled(builder: Builder, node: OpNode) -> Array | None:
    """``ConstantOfShape``."""
    dims, value = builder.sizes(node, 0, "shape"), _filling(node)
    if not all(isinstance(n, int) for n in dims):
        return None
    shape = tuple(int(n) for n in dims)
    check_shape(shape)
    builder.account(math.prod(shape) * value.itemsize)
    if value.size != 1:
        raise Malformed(f"value has {value.size} entries; expected one")
    return np.full(shape, value[0])


def _filling(node: OpNode) -> Array:
    tensor = node.get("value", "tensor")
    value: Array = np.zeros(1, np.float32) if tensor is None else tensor.read().reshape(-1)
    return value


def _read_filled(call: Calls) -> None:
    """One number, expanded to sizes that the input tells."""
    call.bind(call("Expand", call.constant(_filling(call.node)), call.input(0)))


def _read_range(call: Calls) -> None:
    """From 0 in steps of 1 to a size that the input tells."""
    start, limit, delta = (call.array(call.input(i)) for i in range(3))
    counts = start is not None and delta is not None and (start.any(), *delta.flat) == (False, 1)
    if limit is None or limit.dtype != object or not counts:
        raise Malformed("is supported for constants only, and from 0 in steps of 1 to the size of an axis")
    ones = call("Expand", np.ones(1, np.int64), call.constant(limit.reshape(1)))
    call.bind(call("CumSum", ones, np.array(0), exclusive=1))


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise Malformed for sizes that no array has."""
    if len(shape) > 64 or any(n < 0 for n in shape):
        raise Malformed(f"shape is {quote(str(shape))}; expected at most 64 sizes, none negative")


def _fold_range(builder: Builder, node: OpNode) -> Array | None:
    start, limit, delta = (constant_array(builder, node, i).reshape(-1) for i in range(3))
    if any(a.dtype == object or a.size != 1 for a in (start, limit, delta)) or delta[0] == 0:
        return None
    count = max(math.ceil((limit[0].item() - start[0].item()) / delta[0].item()), 0)
    builder.account(count * 8)
    found: Array = (start[0] + np.arange(count) * delta[0]).astype(start.dtype)
    return found


ROWS = (
    Operator("Constant", fold=_fold_constant, inputs=(0, 0)),
    Operator("ConstantOfShape", written(_read_filled), fold=_fold_filled),
    Operator("Range", written(_read_range), fold=_fold_range, inputs=(3, 3), kinds=ALL),
    Operator("Shape", _read_sizes, kinds=ALL),
    Operator("Size", _read_sizes, kinds=ALL),
)
