"""Nodes whose inputs are known: shapes, and small constants that exporters compute from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growarray.files.errors import Malformed, quote
from growarray.nn.cast import rounded
from growarray.nn.positions import positions
from growarray.onnx.build import Builder, Constant, Dynamic
from growarray.onnx.graph import OpNode
from growarray.onnx.tensor import TYPE_NAMES

__all__ = ["FOLDERS", "axes_of", "cast_target", "fold", "slice_options"]

Array = NDArray[Any]

_HELD = (
    "float16", "float32", "float64", "bool",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip


def fold(builder: Builder, node: OpNode) -> bool:
    """Compute the node now if all it takes is known; says whether it did."""
    if node.op not in FOLDERS:
        return False
    given = [builder.known(node, i) for i, name in enumerate(node.inputs) if name]
    if node.op in ("Shape", "Size"):
        builder.give(node, _sizes(builder, node, given[0]))
        return True
    if any(isinstance(value, Dynamic) for value in given):
        return False
    constants = [value for value in given if isinstance(value, Constant)]
    if node.op == "Identity":
        builder.give(node, constants[0])
        return True
    result = FOLDERS[node.op](builder, node)
    if result is None:
        return False
    first = constants[0] if constants else None
    moved = first is not None and node.op in _MOVES
    builder.give(
        node,
        Constant(
            node.outputs[0],
            np.asarray(result),
            trained=bool(moved and first and first.trained),
            derived=node.op != "Constant",
            label=first.label if moved and first else node.outputs[0],
        ),
    )
    return True


def _sizes(builder: Builder, node: OpNode, value: Constant | Dynamic) -> Constant:
    """``Shape`` and ``Size`` of a value, as far as they are known."""
    if value.shape is None:
        raise Malformed("the number of axes of its input is not known; export the model with shapes")
    shape: tuple[int | str, ...] = tuple(value.shape)
    start, end = node.get("start", "int", 0), node.get("end", "int", len(shape))
    dims: list[int | str] = list(shape[start:end]) if node.op == "Shape" else []
    if node.op == "Size":
        dims = [math.prod(int(n) for n in shape) if all(isinstance(n, int) for n in shape) else builder.fresh()]
    known = all(isinstance(n, int) for n in dims)
    found = np.asarray(dims, dtype=np.int64 if known else object)
    return Constant(node.outputs[0], found if node.op == "Shape" else found.reshape(()))


def _constant(builder: Builder, node: OpNode) -> Array | None:
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
        raise Malformed("has no value of numbers; strings and sparse tensors are not read")
    builder.account(tensor.nbytes)
    values: Array = tensor.read()
    return values


def _array(builder: Builder, node: OpNode, index: int) -> Array:
    return builder.constant(node, index, "input").array


def _numeric(array: Array) -> Array | None:
    """None for a shape that holds names of axes."""
    return None if array.dtype == object else array


def _narrowed(array: Array) -> Array:
    """A shape whose axes are all known, as whole numbers."""
    if array.dtype == object and all(type(n) is int for n in array.reshape(-1).tolist()):
        return array.astype(np.int64)
    return array


def _filled(builder: Builder, node: OpNode) -> Array:
    """``ConstantOfShape``."""
    shape = builder.whole(node, 0, "shape")
    tensor = node.get("value", "tensor")
    value = np.zeros(1, np.float32) if tensor is None else tensor.read().reshape(-1)
    _check_shape(shape)
    builder.account(math.prod(shape) * value.itemsize)
    if value.size != 1:
        raise Malformed(f"value has {value.size} entries; expected one")
    return np.full(shape, value[0])


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) > 64 or any(n < 0 for n in shape):
        raise Malformed(f"shape is {quote(str(shape))}; expected at most 64 sizes, none negative")


def _expanded(builder: Builder, node: OpNode) -> Array | None:
    value, shape = _array(builder, node, 0), builder.dims(node, 1, "shape")
    if not all(isinstance(n, int) for n in shape):
        return None
    sizes = tuple(int(n) for n in shape)
    _check_shape(sizes)
    target = np.broadcast_shapes(value.shape, sizes)
    builder.account(math.prod(target) * value.itemsize)
    return np.array(np.broadcast_to(value, target))


def _range(builder: Builder, node: OpNode) -> Array | None:
    start, limit, delta = (_array(builder, node, i).reshape(-1) for i in range(3))
    if any(_numeric(a) is None or a.size != 1 for a in (start, limit, delta)) or delta[0] == 0:
        return None
    count = max(math.ceil((limit[0].item() - start[0].item()) / delta[0].item()), 0)
    builder.account(count * 8)
    found: Array = (start[0] + np.arange(count) * delta[0]).astype(start.dtype)
    return found


def _gathered(builder: Builder, node: OpNode) -> Array | None:
    value, indices = _array(builder, node, 0), _array(builder, node, 1)
    axis = node.get("axis", "int", 0)
    if indices.dtype.kind not in "iu" or not -value.ndim <= axis < value.ndim:
        return None
    size = value.shape[axis]
    if indices.size and not (-size <= indices.min() and indices.max() < size):
        raise Malformed(f"indices are outside axis {axis} of size {size}")
    builder.account(value.size // max(size, 1) * indices.size * value.itemsize)
    found = np.asarray(np.take(value, indices, axis=axis), dtype=value.dtype)  # a name would become text
    return _narrowed(found)


def _sliced(builder: Builder, node: OpNode) -> Array | None:
    value = _array(builder, node, 0)
    index: list[slice] = [slice(None)] * value.ndim
    for axis, start, end, step in zip(*slice_options(builder, node), strict=True):
        if not -value.ndim <= axis < value.ndim or step == 0 or index[axis] != slice(None):
            raise Malformed(f"axis {axis} with step {step} of a value with {value.ndim} axes, each of them once")
        places = positions(value.shape[axis], start, end, step)
        index[axis] = slice(places.start, places.stop if places.stop >= 0 else None, step) if places else slice(0, 0)
    builder.account(value.nbytes)
    return _narrowed(value[tuple(index)])


def slice_options(builder: Builder, node: OpNode) -> tuple[tuple[int, ...], ...]:
    """Axes, starts, ends and steps of a ``Slice``: inputs since opset 10, attributes before."""
    if builder.opset >= 10:
        starts, ends = builder.whole(node, 1, "starts"), builder.whole(node, 2, "ends")
        axes = builder.whole(node, 3, "axes") if builder.has(node, 3) else tuple(range(len(starts)))
        steps = builder.whole(node, 4, "steps") if builder.has(node, 4) else (1,) * len(starts)
    else:
        starts, ends = (tuple(node.get(name, "ints", [])) for name in ("starts", "ends"))
        axes, steps = tuple(node.get("axes", "ints", list(range(len(starts))))), (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise Malformed(f"has {len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps")
    return axes, starts, ends, steps


def _joined(builder: Builder, node: OpNode) -> Array:
    parts = [_array(builder, node, i) for i in range(len(node.inputs))]
    builder.account(sum(part.size for part in parts) * 8)
    kind = object if any(part.dtype == object for part in parts) else None
    return _narrowed(np.concatenate([p.astype(kind) if kind else p for p in parts], axis=node.get("axis", "int")))


def axes_of(builder: Builder, node: OpNode, since: int) -> tuple[int, ...] | None:
    """The option ``axes``: an input from opset ``since`` on, an attribute before; None where it is left out."""
    if builder.opset >= since:
        return builder.whole(node, 1, "axes") if builder.has(node, 1) else None
    axes = node.get("axes", "ints")
    return None if axes is None else tuple(axes)


def _unsqueezed(builder: Builder, node: OpNode) -> Array:
    axes = axes_of(builder, node, 13)
    if not axes or len(axes) > 32:
        raise Malformed("axes are missing, or too many")
    return np.expand_dims(_array(builder, node, 0), axes)


def _squeezed(builder: Builder, node: OpNode) -> Array:
    return np.squeeze(_array(builder, node, 0), axes_of(builder, node, 13))


def _reshaped(builder: Builder, node: OpNode) -> Array | None:
    value, shape = _array(builder, node, 0), builder.dims(node, 1, "shape")
    keep = node.flag("allowzero")
    if not all(isinstance(n, int) for n in shape):
        return None
    sizes = [value.shape[i] if n == 0 and not keep and i < value.ndim else int(n) for i, n in enumerate(shape)]
    return value.reshape(sizes)


def _transposed(builder: Builder, node: OpNode) -> Array:
    return np.transpose(_array(builder, node, 0), node.get("perm", "ints"))


def cast_target(node: OpNode) -> str:
    """The name of the type that a ``Cast`` gives."""
    to = node.get("to", "int")
    node.get("saturate", "int"), node.get("round_mode", "string")  # of 8-bit floats alone
    return TYPE_NAMES.get(to, f"number {to}")


def _cast(builder: Builder, node: OpNode) -> Array | None:
    value, to = _array(builder, node, 0), cast_target(node)
    if to == "bfloat16":
        builder.account(value.size * 4)
        return np.asarray(rounded(value.astype(np.float64), to)).astype(np.float32)
    if to not in _HELD:
        raise Malformed(f"to the type {to} is not supported")
    if value.dtype == object:
        return value if np.dtype(to).kind in "iu" else None
    builder.account(value.size * np.dtype(to).itemsize)
    return value.astype(to)


def _same_kind(builder: Builder, *values: Array) -> None:
    builder.account(math.prod(np.broadcast_shapes(*(v.shape for v in values))) * max(v.itemsize for v in values))


def _arithmetic(operation: Callable[[Any, Any], Any]) -> Callable[[Builder, OpNode], Array | None]:
    """A folder for an operator on two numeric constants; a known entry times 1 or plus 0 keeps an unknown size."""

    def folder(builder: Builder, node: OpNode) -> Array | None:
        a, b = _array(builder, node, 0), _array(builder, node, 1)
        _same_kind(builder, a, b)
        if object not in (a.dtype, b.dtype):
            return np.asarray(operation(a, b)).astype(a.dtype if a.dtype.kind != "b" else None, copy=False)
        left, right = np.broadcast_arrays(a, b)
        pairs = zip(left.reshape(-1).tolist(), right.reshape(-1).tolist(), strict=True)
        found = np.empty(left.size, dtype=object)
        for i, (m, n) in enumerate(pairs):
            if isinstance(m, int) and isinstance(n, int):
                found[i] = int(operation(np.int64(m), np.int64(n)))
            elif node.op in ("Mul", "Div") and n == 1:
                found[i] = m
            elif node.op == "Mul" and m == 1:
                found[i] = n
            else:
                found[i] = builder.fresh()
        return _narrowed(found.reshape(left.shape))

    return folder


def _divided(a: Any, b: Any) -> Any:
    """Division of ONNX: whole numbers are cut off towards zero."""
    if np.asarray(a).dtype.kind not in "iu":
        return a / b
    if np.any(np.asarray(b) == 0):
        raise Malformed("divides whole numbers by zero")
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def _elementwise(operation: Callable[[Any], Any]) -> Callable[[Builder, OpNode], Array | None]:
    def folder(builder: Builder, node: OpNode) -> Array | None:
        value = _array(builder, node, 0)
        builder.account(value.nbytes)
        return None if value.dtype == object else np.asarray(operation(value)).astype(value.dtype, copy=False)

    return folder


def _equal(builder: Builder, node: OpNode) -> Array:
    a, b = _array(builder, node, 0), _array(builder, node, 1)
    _same_kind(builder, a, b)
    return np.asarray(a == b, dtype=np.bool_)


def _where(builder: Builder, node: OpNode) -> Array:
    condition, a, b = (_array(builder, node, i) for i in range(3))
    _same_kind(builder, condition, a, b)
    return _narrowed(np.where(condition.astype(np.bool_), a, b))


def _nothing(builder: Builder, node: OpNode) -> Array | None:
    return None


_MOVES = {"Cast", "Expand", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}

FOLDERS: dict[str, Callable[[Builder, OpNode], Array | None]] = {
    "Add": _arithmetic(lambda a, b: a + b),
    "Cast": _cast,
    "Ceil": _elementwise(np.ceil),
    "Concat": _joined,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Div": _arithmetic(_divided),
    "Equal": _equal,
    "Expand": _expanded,
    "Floor": _elementwise(np.floor),
    "Gather": _gathered,
    "Identity": _nothing,
    "Mul": _arithmetic(lambda a, b: a * b),
    "Neg": _elementwise(np.negative),
    "Pow": _arithmetic(lambda a, b: a**b),
    "Range": _range,
    "Reshape": _reshaped,
    "Shape": _nothing,
    "Size": _nothing,
    "Slice": _sliced,
    "Sqrt": _elementwise(np.sqrt),
    "Squeeze": _squeezed,
    "Sub": _arithmetic(lambda a, b: a - b),
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
    "Where": _where,
}
"""Operators that are computed at import where all they take is known."""
