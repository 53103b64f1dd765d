"""Operators with weights that are no convolutions: products of matrices, and normalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray import nn
from growarray.files.errors import Malformed
from growarray.nn.join import Add, MatMul, Mul, Value
from growarray.nn.module import Module, Parameter
from growarray.nn.shape import Transpose
from growarray.nn.sized import GroupedNorm
from growarray.onnx.build import Builder, Constant, Dynamic, Shape, broadcast
from growarray.onnx.graph import OpNode

__all__ = ["batch_norm", "gemm", "group_norm", "instance_norm", "layer_norm", "matmul"]


def _widths(where: str, x: Shape, width: int) -> None:
    if x is not None and isinstance(x[-1], int) and x[-1] != width:
        raise Malformed(f"{where} of shape {x} and a weight for {width} features do not fit")


def _affine(builder: Builder, node: OpNode, x: Dynamic, weight: Constant, transposed: bool, alpha: float) -> Dynamic:
    """``alpha x W``, or ``alpha x W^T``, as a linear layer; a weight that is taken both ways stays one parameter."""
    width, out = weight.shape[::-1] if transposed else weight.shape
    _widths("input", x.shape, width)
    shape = None if x.shape is None else (*x.shape[:-1], out)
    hint = builder.hint(node, weight)
    held, factor = builder.layouts.setdefault(weight.key, (transposed, alpha))
    parameter = builder.parameter(
        weight, "weight", "linear", lambda w: (w if held else w.T) * (1.0 if factor == 1.0 else w.dtype.type(factor))
    )
    if held == transposed:
        layer = nn.Linear.of(parameter.data)
        layer.weight = parameter
        found = builder.step(layer, [x], shape, hint)
    else:
        value = builder.step(Value(parameter), (), (out, width), f"{hint}.transposed")
        found = builder.step(MatMul(), [x, value], shape, hint)
    return found if factor == alpha else builder.step(Mul(alpha / factor), [found], shape, f"{hint}.alpha")


def gemm(builder: Builder, node: OpNode) -> None:
    """``Gemm``: ``alpha A' B' + beta C``; a linear layer where B and C are constants."""
    alpha, beta = node.get("alpha", "float", 1.0), node.get("beta", "float", 1.0)
    turn_a, turn_b = node.flag("transA"), node.flag("transB")
    x, weight = builder.dynamic(node, 0), builder.known(node, 1)
    if x.shape is not None and len(x.shape) != 2:
        raise Malformed(f"input has shape {x.shape}; expected two axes")
    if turn_a:
        x = builder.step(Transpose((1, 0)), [x], None if x.shape is None else x.shape[::-1], "transpose")
    if isinstance(weight, Constant):
        if len(weight.shape) != 2:
            raise Malformed(f"weight has shape {weight.shape}; expected two axes")
        y = _affine(builder, node, x, weight, turn_b, alpha)
    else:
        if turn_b:
            weight = builder.step(Transpose((1, 0)), [weight], weight.shape and weight.shape[::-1], "transpose")
        y = _product(builder, node, x, weight)
        y = y if alpha == 1.0 else builder.step(Mul(alpha), [y], y.shape, "alpha")
    if not builder.has(node, 2):
        builder.give(node, y)
        return
    bias = builder.known(node, 2)
    layer = builder.nodes[-1].module
    flat = isinstance(bias, Constant) and math.prod(bias.shape[:-1]) == 1
    if isinstance(bias, Constant) and isinstance(layer, nn.Linear) and flat and bias.size in (1, layer.out_features):
        out = layer.out_features
        layer.bias = builder.parameter(bias, "bias", (out, beta), lambda b: _spread(b, out, beta), out)
        builder.give(node, y)
        return
    term = builder.dynamic(node, 2)
    if beta != 1.0:
        term = builder.step(Mul(beta), [term], term.shape, "beta")
    builder.give(node, builder.step(Add(), [y, term], broadcast(builder, y.shape, term.shape), builder.hint(node)))


def _spread(bias: Any, out: int, beta: float) -> Any:
    """A bias for each of ``out`` outputs, times ``beta``."""
    found = bias.reshape(-1) if bias.size == out else np.repeat(bias.reshape(-1), out)
    return found if beta == 1.0 else found * bias.dtype.type(beta)


def _product(builder: Builder, node: OpNode, a: Dynamic, b: Dynamic) -> Dynamic:
    """A product of two values of the network."""
    shape: Shape = None
    if a.shape is not None and b.shape is not None:
        if not a.shape or not b.shape:
            raise Malformed(f"operands have shapes {a.shape} and {b.shape}; expected at least one axis each")
        inner = (a.shape[-1], b.shape[max(len(b.shape) - 2, 0)])
        if all(isinstance(n, int) for n in inner) and inner[0] != inner[1]:
            raise Malformed(f"operands have shapes {a.shape} and {b.shape}, which do not fit")
        lead = broadcast(builder, a.shape[:-2], b.shape[:-2]) or ()
        shape = (*lead, *(a.shape[-2:-1] if len(a.shape) > 1 else ()), *(b.shape[-1:] if len(b.shape) > 1 else ()))
    return builder.step(MatMul(), [a, b], shape, builder.hint(node))


def matmul(builder: Builder, node: OpNode) -> None:
    """``MatMul``: a linear layer without bias where the second operand is a constant matrix."""
    second = builder.known(node, 1)
    if isinstance(second, Constant) and len(second.shape) == 2:
        builder.give(node, _affine(builder, node, builder.dynamic(node, 0), second, False, 1.0))
        return
    builder.give(node, _product(builder, node, builder.dynamic(node, 0), builder.dynamic(node, 1)))


def _vector(builder: Builder, node: OpNode, index: int, what: str, size: int | None = None) -> Constant:
    value = builder.constant(node, index, what)
    if len(value.shape) != 1 or (size is not None and value.shape != (size,)):
        raise Malformed(f"{what} has shape {value.shape}; expected {'one axis' if size is None else (size,)}")
    return value


def _neutral(scale: Constant, bias: Constant | None) -> bool:
    """Whether an exporter made up a scale of ones and a bias of zeros for a layer that has neither."""

    def made_up(value: Constant, number: float) -> bool:
        unnamed = not value.trained or value.label.startswith(("val_", "onnx::"))  # as torch names what is no weight
        return unnamed and bool((value.array == number).all())

    return made_up(scale, 1.0) and (bias is None or made_up(bias, 0.0))


def _channels(x: Dynamic, count: int) -> None:
    if x.shape is not None and (len(x.shape) < 2 or (isinstance(x.shape[1], int) and x.shape[1] != count)):
        raise Malformed(f"input has shape {x.shape}; expected {count} channels")


def batch_norm(builder: Builder, node: OpNode) -> None:
    """``BatchNormalization`` with the statistics of the file; ``.train()`` makes it take those of the batch."""
    x, scale = builder.dynamic(node, 0), _vector(builder, node, 1, "scale")
    count = scale.shape[0]
    others = [_vector(builder, node, i, what, count) for i, what in ((2, "bias"), (3, "mean"), (4, "variance"))]
    _channels(x, count)
    if node.flag("training_mode") or node.get("is_test", "int", 1) == 0:
        raise Malformed("training_mode is 1; export the model in evaluation mode")
    if not node.flag("spatial", True):
        raise Malformed("spatial is 0, which is not supported")
    node.get("consumed_inputs", "ints")
    eps, momentum = node.get("epsilon", "float", 1e-5), 1.0 - node.get("momentum", "float", 0.9)
    kinds: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    kind = nn.BatchNorm if x.shape is None else kinds.get(len(x.shape), nn.BatchNorm)
    layer = kind(count, eps, round(momentum, 6), affine=False)
    neutral = _neutral(scale, others[0])
    if not neutral:
        layer.weight, layer.bias = builder.parameter(scale, "scale"), builder.parameter(others[0], "bias")
    layer.running_mean, layer.running_var = (builder.floats(value, "statistics") for value in others[1:])
    builder.give(node, builder.step(layer, [x], x.shape, builder.hint(node, others[1] if neutral else scale)))


def layer_norm(builder: Builder, node: OpNode) -> None:
    """``LayerNormalization`` over the axes from ``axis`` on."""
    x, scale = builder.dynamic(node, 0), builder.constant(node, 1, "scale")
    bias = builder.optional(node, 2, "bias")
    axis, eps = node.get("axis", "int", -1), node.get("epsilon", "float", 1e-5)
    if node.get("stash_type", "int", 1) != 1:
        raise Malformed("stash_type is not 1, which is not supported")
    if x.shape is None:
        axes: tuple[Any, ...] = scale.shape
    elif -len(x.shape) <= axis < len(x.shape):
        axes = x.shape[axis:]
    else:
        raise Malformed(f"axis is {axis} for an input of {len(x.shape)} axes")
    if not all(isinstance(n, int) for n in axes):
        raise Malformed(f"normalises axes of sizes {axes}; expected fixed sizes")
    whole = scale.shape == tuple(axes) and (bias is None or bias.shape == scale.shape)
    layer = nn.LayerNorm(tuple(int(n) for n in axes), eps, elementwise_affine=False)
    neutral = whole and _neutral(scale, bias)
    hint = builder.hint(node, None if neutral else scale)
    if whole and not neutral:
        layer.weight = builder.parameter(scale, "scale")
        layer.bias = None if bias is None else builder.parameter(bias, "bias")
    y = builder.step(layer, [x], x.shape, hint)
    if not whole:
        y = builder.step(Mul(builder.parameter(scale, "scale")), [y], broadcast(builder, y.shape, scale.shape), hint)
        if bias is not None:
            shape = broadcast(builder, y.shape, bias.shape)
            y = builder.step(Add(builder.parameter(bias, "bias")), [y], shape, hint)
    builder.give(node, y)


def _group_layer(groups: int, channels: int, eps: float, weight: Parameter | None, bias: Parameter | None) -> Module:
    layer = nn.GroupNorm(groups, channels, eps, affine=False)
    layer.weight, layer.bias = weight, bias
    return layer


def group_norm(builder: Builder, node: OpNode) -> None:
    """``GroupNormalization``: a scale for each channel since opset 21, for each group before."""
    x, groups, eps = builder.dynamic(node, 0), node.get("num_groups", "int"), node.get("epsilon", "float", 1e-5)
    node.get("stash_type", "int", 1)
    scale = _vector(builder, node, 1, "scale")
    bias = _vector(builder, node, 2, "bias", scale.shape[0])
    known = None if x.shape is None or len(x.shape) < 2 else x.shape[1]
    if builder.opset < 21 and scale.shape[0] == groups and groups and not isinstance(known, int):
        grouped = GroupedNorm(builder.parameter(scale, "scale"), builder.parameter(bias, "bias"), eps)
        builder.give(node, builder.step(grouped, [x], x.shape, builder.hint(node, scale)))
        return
    weight: Parameter | None
    shift: Parameter | None
    channels = known if isinstance(known, int) else scale.shape[0]
    if not isinstance(groups, int) or groups < 1 or channels % groups or scale.shape[0] not in (groups, channels):
        raise Malformed(f"num_groups {groups}, {channels} channels and a scale of {scale.shape[0]} do not fit")
    if builder.opset < 21 and scale.shape[0] == groups:
        each = channels // groups
        weight, shift = (
            builder.parameter(v, "scale", ("groups", each), lambda array: np.repeat(array, each), channels)
            for v in (scale, bias)
        )
    else:
        weight, shift = (
            (None, None) if _neutral(scale, bias) else (builder.parameter(v, "scale") for v in (scale, bias))
        )
    _channels(x, channels)
    layer = _group_layer(groups, channels, eps, weight, shift)
    builder.give(node, builder.step(layer, [x], x.shape, builder.hint(node, None if weight is None else scale)))


def instance_norm(builder: Builder, node: OpNode) -> None:
    """``InstanceNormalization``: a group for each channel; a scale of ones that an exporter made up is left out."""
    x, eps = builder.dynamic(node, 0), node.get("epsilon", "float", 1e-5)
    scale = _vector(builder, node, 1, "scale")
    count = scale.shape[0]
    bias = _vector(builder, node, 2, "bias", count)
    _channels(x, count)
    neutral = _neutral(scale, bias)
    weight, shift = (None, None) if neutral else (builder.parameter(scale, "scale"), builder.parameter(bias, "bias"))
    layer = _group_layer(count, count, eps, weight, shift)
    builder.give(node, builder.step(layer, [x], x.shape, builder.hint(node, None if neutral else scale)))
