"""Operators that are written in others: norms, gates and losses of a few steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray.files.errors import Malformed
from growarray.onnx.call import Calls, written
from growarray.onnx.fold import positive_axes
from growarray.onnx.operators.row import ALL, Operator


def _axes_from(call: Calls, x: str, axis: int) -> Any:
    count = len(call.shape(x))
    (axis,) = positive_axes((axis,), count)
    return np.arange(axis, count)


def _root_mean_square(call: Calls) -> None:
    """``x / sqrt(mean(x^2) + eps) * scale`` over the axes from ``axis`` on."""
    x, eps = call.input(0), call.node.get("epsilon", "float", 1e-5)
    call.node.get("stash_type", "int")
    axes = _axes_from(call, x, call.node.get("axis", "int", -1))
    size = call("Sqrt", call("Add", call("ReduceMean", call("Mul", x, x), axes), eps))
    call.bind(call("Mul", call("Div", x, size), call.input(1)))


def _mean_variance(call: Calls) -> None:
    x, axes = call.input(0), np.array(call.node.get("axes", "ints", [0, 2, 3]))
    centred = call("Sub", x, call("ReduceMean", x, axes))
    deviation = call("Sqrt", call("ReduceMean", call("Mul", centred, centred), axes))
    call.bind(call("Div", centred, call("Add", deviation, 1e-9)))


def _norm(call: Calls) -> None:
    """Divided by its L1 or L2 norm; what is 0 stays 0."""
    x, axis, p = call.input(0), call.node.get("axis", "int", -1), call.node.get("p", "int", 2)
    if p not in (1, 2):
        raise Malformed(f"p is {p}; expected 1 or 2")
    size = call(f"ReduceL{p}", x, np.array([axis]))
    call.bind(call("Div", x, call("Where", call("Equal", size, 0.0), call.constant(1.0, x), size)))


def _local_response(call: Calls) -> None:
    """``x / (bias + alpha mean(x^2))^beta``, the mean of ``size`` channels around each, zeros outside."""
    x, get, shape = call.input(0), call.node.get, call.shape(call.input(0))
    size, bias = get("size", "int"), get("bias", "float", 1.0)
    alpha, beta = get("alpha", "float", 1e-4), get("beta", "float", 0.75)
    if len(shape) not in (3, 4) or not size or size < 1:
        raise Malformed(f"size is {size} for an input of shape {shape}; expected (n, c, w) or (n, c, h, w)")
    channels, flat = call("Unsqueeze", call("Mul", x, x), np.array([1])), (1,) * (len(shape) - 2)
    zeros = (0,) * len(flat)
    pads = ((size - 1) // 2, *zeros, size // 2, *zeros)
    mean = call("AveragePool", channels, kernel_shape=[size, *flat], pads=list(pads), count_include_pad=1)
    base = call("Add", call("Mul", call("Squeeze", mean, np.array([1])), alpha), bias)
    call.bind(call("Div", x, call("Pow", base, np.float32(beta))))


def _swish(call: Calls) -> None:
    x, alpha = call.input(0), call.node.get("alpha", "float", 1.0)
    call.bind(call("Mul", x, call("Sigmoid", x if alpha == 1.0 else call("Mul", x, alpha))))


def _gated(call: Calls) -> None:
    """The first input, swished, times the second."""
    gate = call("Swish", call.input(0), alpha=call.node.get("alpha", "float", 1.0))
    call.bind(call("Mul", gate, call.input(1)))


def _shrink(call: Calls) -> None:
    x, bias, lambd = call.input(0), call.node.get("bias", "float", 0.0), call.node.get("lambd", "float", 0.5)
    above = call("Where", call("Greater", x, lambd), call("Sub", x, bias), call.constant(0.0, x))
    call.bind(call("Where", call("Less", x, -lambd), call("Add", x, bias), above))


def _thresholded(call: Calls) -> None:
    x, alpha = call.input(0), call.node.get("alpha", "float", 1.0)
    call.bind(call("Where", call("Greater", x, alpha), x, call.constant(0.0, x)))


def _power_pool(call: Calls) -> None:
    """``(sum |x|^p)^(1/p)`` of each window: the mean, times the positions of a whole window."""
    x, p, options = call.input(0), call.node.get("p", "int", 2), {}
    for name, kind in (("kernel_shape", "ints"), ("strides", "ints"), ("pads", "ints"), ("dilations", "ints"),
                       ("auto_pad", "string"), ("ceil_mode", "int")):  # fmt: skip
        if (value := call.node.get(name, kind)) is not None:
            options[name] = value
    if p < 1 or not options.get("kernel_shape"):
        raise Malformed(f"p is {p} and kernel_shape {options.get('kernel_shape')}; expected both to be there")
    if options.get("ceil_mode"):
        raise Malformed("ceil_mode is 1, which is not supported")
    mean = call("AveragePool", call("Pow", call("Abs", x), np.float32(p)), count_include_pad=1, **options)
    total = call("Mul", mean, float(math.prod(options["kernel_shape"])))
    call.bind(call("Pow", total, np.float32(1.0 / p)))


def _negative_log(call: Calls, x: str, target: str, weight: str) -> None:
    """Minus the entry of each target's class, times the weight of the class; the mean is over the weights."""
    reduction, ignored = call.node.get("reduction", "string", "mean"), call.node.get("ignore_index", "int")
    if reduction not in ("none", "sum", "mean"):
        raise Malformed(f"reduction is {reduction!r}; expected none, sum or mean")
    kept, chosen = None, target
    if ignored is not None:
        kept = call("Not", call("Equal", target, int(ignored)))
        chosen = call("Where", kept, target, call.constant(0, target))
    axis = np.array([1])
    loss = call("Neg", call("Squeeze", call("GatherElements", x, call("Unsqueeze", chosen, axis), axis=1), axis))
    share = call("Gather", weight, chosen) if weight else None
    if kept is not None:
        mask = call("CastLike", kept, x)
        share = mask if share is None else call("Mul", share, mask)
        loss = call("Where", kept, loss, call.constant(0.0, x))
    loss = loss if share is None else call("Mul", loss, share)
    if reduction == "none":
        call.bind(loss)
    elif reduction == "mean" and share is not None:
        total = call("ReduceSum", loss, keepdims=0)
        call.bind(call("Div", total, call("ReduceSum", share, keepdims=0)))
    else:
        call.bind(call("ReduceMean" if reduction == "mean" else "ReduceSum", loss, keepdims=0))


def _cross_entropy(call: Calls) -> None:
    logs = call("LogSoftmax", call.input(0), axis=1)
    call.bind(logs, 1)
    _negative_log(call, logs, call.input(1), call.input(2))


ROWS = (
    Operator("LRN", written(_local_response)),
    Operator("LpNormalization", written(_norm)),
    Operator("LpPool", written(_power_pool)),
    Operator("MeanVarianceNormalization", written(_mean_variance)),
    Operator(
        "NegativeLogLikelihoodLoss",
        written(lambda call: _negative_log(call, *(call.input(i) for i in range(3)))),
        inputs=(2, 3),
        kinds=ALL,
    ),
    Operator("RMSNormalization", written(_root_mean_square), inputs=(2, 2)),
    Operator("Shrink", written(_shrink)),
    Operator("SoftmaxCrossEntropyLoss", written(_cross_entropy), inputs=(2, 3), outputs=2, kinds=ALL),
    Operator("SwiGLU", written(_gated), inputs=(2, 2)),
    Operator("Swish", written(_swish)),
    Operator("ThresholdedRelu", written(_thresholded)),
)
