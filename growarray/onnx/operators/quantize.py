"""Quantisation in floats; gradients pass as if nothing was rounded."""

from __future__ import annotations

from typing import Any

import numpy as np

from growarray.files.errors import Malformed
from growarray.nn.operation import Operation
from growarray.onnx.call import Calls, written
from growarray.onnx.fold import positive_axes
from growarray.onnx.operators.row import ALL, Operator
from growarray.onnx.tensor import TYPE_NAMES
from growarray.onnx.value import letter

_NUMBERS = {name: number for number, name in TYPE_NAMES.items()}
_KINDS = ("int8", "uint8", "int16", "uint16")


def _spread(call: Calls, name: str) -> str:
    """A scale or zero point, one or one for each entry of an axis, so that it meets the input."""
    axis, block = call.node.get("axis", "int", 1), call.node.get("block_size", "int", 0)
    sizes = call.shape(call.input(0))
    if not name or not call.shape(name) or call.sizes(name) == (1,):
        return str(call("Reshape", name, np.zeros(0, np.int64))) if name else name
    (axis,) = positive_axes((axis,), len(sizes))
    if not block:
        return str(call("Reshape", name, np.array([-1, *(1,) * (len(sizes) - 1 - axis)])))
    values, size = call.array(name), sizes[axis]
    if values is None or not isinstance(size, int):
        raise Malformed("has a block_size, which is supported for constants only")
    if block < 0 or size > block * values.shape[axis]:
        raise Malformed(f"block_size is {block} for {size} entries and {values.shape[axis]} scales")
    call.builder.account(8 * size * (values.size // max(values.shape[axis], 1)))
    return str(call.constant(np.take(values, np.arange(size) // block, axis=axis)))


def _ends(kind: str) -> tuple[int, int]:
    if kind not in _KINDS:
        raise Malformed(f"to the type {kind} is not supported; {', '.join(_KINDS)} are")
    return np.iinfo(kind).min, np.iinfo(kind).max


def _quantize(call: Calls) -> None:
    """``x / scale + zero point``, rounded, and kept in the range of the type."""
    x, scale, zero, get = call.input(0), call.input(1), call.input(2), call.node.get
    get("saturate", "int"), get("precision", "int")
    kind = call.value(zero).kind if zero else TYPE_NAMES.get(get("output_dtype", "int", 0), "uint8")
    low, high = _ends(kind)
    spread, shift = _spread(call, scale), _spread(call, zero)
    x = call("Cast", x, to=1) if letter(call.value(x).kind) != "f" else x
    y = call("Round", call("Div", x, spread))
    y = call("Add", y, call("CastLike", shift, y)) if shift else y
    y = call("Cast", call("Clip", y, np.float32(low), np.float32(high)), to=_NUMBERS[kind])
    call.builder.quantized[call.node.outputs[0]] = (x, scale, zero, low, high)
    call.bind(y)


def _dequantize(call: Calls) -> None:
    """``(x - zero point) * scale``; of what was quantised with the same numbers, the input with its digits cut."""
    x, scale, zero = call.input(0), call.input(1), call.input(2)
    number = call.node.get("output_dtype", "int", 0) or _NUMBERS[call.value(scale).kind]
    spread, shift = _spread(call, scale), _spread(call, zero)
    source = call.builder.quantized.get(x)
    if source is not None and source[1:3] == (scale, zero):
        inputs = [call.dynamic(source[0]), call.dynamic(spread)]
        inputs += [call.dynamic(call("Cast", shift, to=number))] if shift else []
        layer = Operation("FakeQuantize", low=source[3], high=source[4])
        call.builder.bind_module(call.node, layer, inputs, inputs[0].shape)
        return
    y = call("Cast", x, to=number)
    y = call("Sub", y, call("Cast", shift, to=number)) if shift else y
    call.bind(call("Mul", y, call("Cast", spread, to=number)))


def _dynamic(call: Calls) -> None:
    """Quantize to uint8, over a range that is widened to hold 0."""
    x, zero = call.input(0), np.float32(0.0)
    low, high = call("Min", call("ReduceMin", x, keepdims=0), zero), call("Max", call("ReduceMax", x, keepdims=0), zero)
    scale = call("Div", call("Sub", high, low), 255.0)
    shift = call("Clip", call("Round", call("Div", call("Neg", low), scale)), zero, np.float32(255.0))
    shift = call("Cast", shift, to=_NUMBERS["uint8"])
    call.bind(call("QuantizeLinear", x, scale, shift))
    call.bind(scale, 1)
    call.bind(shift, 2)


def _product(call: Calls) -> None:
    """A product of matrices in floats, between quantised values."""
    sides: list[Any] = [call("DequantizeLinear", *(call.input(i + j) for j in range(3))) for i in (0, 3)]
    call.bind(call("QuantizeLinear", call("MatMul", *sides), call.input(6), call.input(7)))


ROWS = (
    Operator("DequantizeLinear", written(_dequantize), inputs=(2, 3), kinds=ALL, moves=True),
    Operator("DynamicQuantizeLinear", written(_dynamic), outputs=3),
    Operator("QLinearMatMul", written(_product), inputs=(8, 8), kinds=ALL),
    Operator("QuantizeLinear", written(_quantize), inputs=(2, 3), kinds=ALL),
)
