"""Operators that work element by element: activations, arithmetic with broadcasting, Clip, Cast, Dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from growarray import nn
from growarray.files.errors import Malformed
from growarray.nn import elementwise as more
from growarray.nn.join import Add, Div, Mul, Sub
from growarray.nn.module import Module
from growarray.nn.shape import Reshape
from growarray.onnx.build import Builder, Constant, Dynamic, broadcast, product
from growarray.onnx.fold import cast_target
from growarray.onnx.graph import OpNode

__all__ = [
    "ACTIVATIONS",
    "activation",
    "add",
    "cast",
    "celu",
    "clip",
    "div",
    "dropout",
    "identity",
    "mul",
    "power",
    "prelu",
    "selu",
    "softmax",
    "sub",
]

_SELU = (1.67326319217681884765625, 1.05070102214813232421875)  # what the operator's definition says


def _gelu(node: OpNode) -> Module:
    return nn.GELU(node.get("approximate", "string", "none"))


ACTIVATIONS: dict[str, Callable[[OpNode], Module]] = {
    "Abs": lambda node: more.Abs(),
    "Elu": lambda node: nn.ELU(node.get("alpha", "float", 1.0)),
    "Erf": lambda node: more.Erf(),
    "Exp": lambda node: more.Exp(),
    "Gelu": _gelu,
    "HardSigmoid": lambda node: more.HardSigmoid(node.get("alpha", "float", 0.2), node.get("beta", "float", 0.5)),
    "HardSwish": lambda node: more.HardSwish(),
    "LeakyRelu": lambda node: nn.LeakyReLU(node.get("alpha", "float", 0.01)),
    "Log": lambda node: more.Log(),
    "Mish": lambda node: more.Mish(),
    "Neg": lambda node: more.Neg(),
    "Reciprocal": lambda node: more.Reciprocal(),
    "Relu": lambda node: nn.ReLU(),
    "Sigmoid": lambda node: nn.Sigmoid(),
    "Softplus": lambda node: nn.Softplus(),
    "Softsign": lambda node: more.Softsign(),
    "Sqrt": lambda node: more.Sqrt(),
    "Tanh": lambda node: nn.Tanh(),
}
"""Operators of one input whose module needs the attributes of the node only."""


def activation(builder: Builder, node: OpNode) -> None:
    """An operator of :data:`ACTIVATIONS`."""
    x = builder.dynamic(node, 0)
    builder.give(node, builder.step(ACTIVATIONS[node.op](node), [x], x.shape, builder.hint(node)))


def selu(builder: Builder, node: OpNode) -> None:
    """``Selu``; constants other than the usual ones make it a scaled ``Elu``."""
    x = builder.dynamic(node, 0)
    alpha, gamma = node.get("alpha", "float", _SELU[0]), node.get("gamma", "float", _SELU[1])
    if abs(alpha - _SELU[0]) < 1e-6 and abs(gamma - _SELU[1]) < 1e-6:
        builder.give(node, builder.step(nn.SELU(), [x], x.shape, builder.hint(node)))
        return
    inner = builder.step(nn.ELU(alpha), [x], x.shape, builder.hint(node))
    builder.give(node, builder.step(Mul(gamma), [inner], x.shape, f"{builder.hint(node)}.gamma"))


def celu(builder: Builder, node: OpNode) -> None:
    """``Celu``: ``alpha elu(x / alpha)``."""
    x, alpha = builder.dynamic(node, 0), node.get("alpha", "float", 1.0)
    if alpha == 0.0:
        raise Malformed("alpha is 0; expected another number")
    hint = builder.hint(node)
    scaled = builder.step(Div(alpha), [x], x.shape, f"{hint}.scaled")
    inner = builder.step(nn.ELU(), [scaled], x.shape, hint)
    builder.give(node, builder.step(Mul(alpha), [inner], x.shape, f"{hint}.alpha"))


def prelu(builder: Builder, node: OpNode) -> None:
    """``PRelu`` with one slope, or one for each entry of one axis."""
    x, slope = builder.dynamic(node, 0), builder.constant(node, 1, "slope")
    wide = [i for i, n in enumerate(slope.shape) if n != 1]
    if len(wide) > 1 or slope.size == 0:
        raise Malformed(f"slope has shape {slope.shape}; expected one axis with more than one entry at most")
    axis = wide[0] - len(slope.shape) if wide else 1
    if wide and x.shape is not None:
        axis += len(x.shape)
    layer = more.PReLU(slope.size, axis=axis)
    layer.weight = builder.parameter(slope, "slope", "flat", lambda array: array.reshape(-1))
    builder.give(node, builder.step(layer, [x], broadcast(builder, x.shape, slope.shape), builder.hint(node, slope)))


def softmax(builder: Builder, node: OpNode) -> None:
    """``Softmax`` and ``LogSoftmax``: along one axis since opset 13, over all axes from one on before."""
    x, hint = builder.dynamic(node, 0), builder.hint(node)
    axis: int = node.get("axis", "int", -1 if builder.opset >= 13 else 1)
    kind = nn.Softmax if node.op == "Softmax" else nn.LogSoftmax
    count = None if x.shape is None else len(x.shape)
    if count is not None and not -count <= axis < max(count, 1):
        raise Malformed(f"axis is {axis} for an input of {count} axes")
    if builder.opset >= 13 or axis == -1 or (count is not None and axis == count - 1):
        builder.give(node, builder.step(kind(axis), [x], x.shape, hint))
        return
    if x.shape is None:
        raise Malformed("the number of axes of its input is not known; export the model with shapes")
    lead, joined = x.shape[:axis], x.shape[axis:]
    if sum(isinstance(n, str) for n in joined) > 1:
        raise Malformed(f"joins axes {joined} of unknown sizes; export the model with fixed sizes")
    flat = (*lead, product(builder, joined))
    y = builder.step(kind(-1), [builder.step(nn.Flatten(axis, -1), [x], flat, f"{hint}.joined")], flat, hint)
    back = Reshape((*(0,) * len(lead), *(-1 if isinstance(n, str) else n for n in joined)))
    builder.give(node, builder.step(back, [y], x.shape, f"{hint}.back"))


def _single(value: Constant, x: Dynamic) -> bool:
    """Whether a constant is one number that adds no axes to a value."""
    axes = 0 if x.shape is None else len(x.shape)
    return value.size == 1 and len(value.shape) <= axes and value.array.dtype.kind in "fiu"


def _binary(kind: Any, *, trained: bool) -> Callable[[Builder, OpNode], None]:
    """An operator of two operands, of which one may be a constant; a trained one is an initializer of some size."""

    def operator(builder: Builder, node: OpNode) -> None:
        a, b = builder.known(node, 0), builder.known(node, 1)
        if isinstance(a, Constant) and isinstance(b, Constant):
            a = builder.emitted(a)
        shape = broadcast(builder, a.shape, b.shape)
        if isinstance(a, Dynamic) and isinstance(b, Dynamic):
            builder.give(node, builder.step(kind(), [a, b], shape, builder.hint(node)))
            return
        dynamic, fixed = (a, b) if isinstance(a, Dynamic) else (b, a)
        if not isinstance(dynamic, Dynamic) or not isinstance(fixed, Constant):
            raise Malformed("has no operand that depends on the input")
        value: Any
        hint = builder.hint(node)
        if _single(fixed, dynamic):
            value = builder.scalar(fixed, "operand")
        elif trained and fixed.trained:
            value, hint = builder.parameter(fixed, "operand"), builder.hint(node, fixed)
        else:
            value = builder.floats(fixed, "operand")
        builder.give(node, builder.step(kind(value, reverse=fixed is a), [dynamic], shape, hint))

    return operator


add = _binary(Add, trained=True)
sub = _binary(Sub, trained=True)
mul = _binary(Mul, trained=True)
div = _binary(Div, trained=False)


def power(builder: Builder, node: OpNode) -> None:
    """``Pow`` with a number as the exponent."""
    x, exponent = builder.dynamic(node, 0), builder.number(node, 1, "exponent")
    if exponent is None:
        raise Malformed("has no exponent")
    builder.give(node, builder.step(more.Pow(exponent), [x], x.shape, builder.hint(node)))


def _bound(end: float | None, sign: float, dtype: Any = np.float32) -> float | None:
    """An end of a range; None where it is that of the type, or beyond."""
    return None if end is None or sign * end >= float(np.finfo(dtype).max) else end


def _end(builder: Builder, node: OpNode, index: int, what: str, sign: float) -> float | None:
    """An end of ``Clip`` that is an input."""
    value = builder.optional(node, index, what)
    if value is None:
        return None
    if value.size != 1 or value.array.dtype.kind not in "fiub":
        raise Malformed(f"{what} has shape {value.shape} and type {value.array.dtype}; expected one number")
    return _bound(float(value.array.reshape(-1)[0]), sign, builder.float_type(value.array.dtype))


def clip(builder: Builder, node: OpNode) -> None:
    """``Clip``: its ends are inputs since opset 11, attributes before."""
    x = builder.dynamic(node, 0)
    if builder.opset >= 11:
        low, high = _end(builder, node, 1, "min", -1.0), _end(builder, node, 2, "max", 1.0)
    else:
        low, high = _bound(node.get("min", "float"), -1.0), _bound(node.get("max", "float"), 1.0)
    module = nn.ReLU6() if (low, high) == (0.0, 6.0) else more.Clip(low, high)
    builder.give(node, builder.step(module, [x], x.shape, builder.hint(node)))


def cast(builder: Builder, node: OpNode) -> None:
    """``Cast`` between floats; the values of half precision are computed with in single."""
    x, to = builder.dynamic(node, 0), cast_target(node)
    if to not in ("float16", "float32", "float64", "bfloat16"):
        raise Malformed(f"to the type {to} is not supported for a value that depends on the input; floats are")
    half = to if to.endswith("16") else None
    name = np.dtype(builder.float_type(np.dtype("float32" if half else to))).name
    builder.give(node, builder.step(more.Cast(name, half), [x], x.shape, builder.hint(node)))


def dropout(builder: Builder, node: OpNode) -> None:
    """``Dropout``, which does nothing until ``.train()``."""
    x = builder.dynamic(node, 0)
    node.get("seed", "int"), node.get("is_test", "int")
    if builder.opset >= 12:
        ratio = builder.number(node, 1, "ratio")
        if builder.number(node, 2, "training_mode"):
            raise Malformed("training_mode is true; export the model in evaluation mode")
    else:
        ratio = node.get("ratio", "float", 0.5)
    module = nn.Dropout(0.5 if ratio is None else ratio)
    builder.give(node, builder.step(module, [x], x.shape, builder.hint(node)))


def identity(builder: Builder, node: OpNode) -> None:
    """``Identity``: another name for the same value."""
    builder.give(node, builder.known(node, 0))
