"""Every layer of the package, in one place: what the contract test runs over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from growarray import nn
from growarray.growing import norm as growing
from growarray.nn.module import Module, Parameter

F64 = np.float64


@dataclass(frozen=True)
class Example:
    """A layer, the shape of an input it takes, and the shape of what it gives; some take positive numbers only."""

    build: Callable[[], Module]
    shape: tuple[int, ...]
    output: tuple[int, ...]
    positive: bool = False


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def linear(d: int, o: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(d, o, bias, rng=rng(), dtype=F64)


def conv(build: Callable[..., Module], shape: tuple[int, ...], output: tuple[int, ...]) -> Example:
    return Example(lambda: build(rng=rng(), dtype=F64), shape, output)


def same(build: Callable[[], Module], *shape: int) -> Example:
    return Example(build, shape, shape)


def function(name: str, *before: Module) -> Example:
    """A function of what other layers bring into its domain."""
    return same(lambda: nn.Sequential(*before, nn.Function(name)) if before else nn.Function(name), 3, 4)


def trained(*shape: int) -> Parameter:
    return Parameter(1.0 + 0.1 * rng().standard_normal(shape))


def residual() -> nn.Graph:
    """``y = W x + c * relu(W x)`` with an array beside its modules."""
    nodes = [
        nn.Node("fc", linear(4, 3), ("x",), "h"),
        nn.Node("act", nn.ReLU(), ("h",), "a"),
        nn.Node("scale", nn.Mul(trained(3)), ("a",), "s"),
        nn.Node("sum", nn.Add(), ("h", "s"), "y"),
    ]
    return nn.Graph(nodes, ["x"], ["y"])


NEW: dict[str, Example] = {
    "Graph": Example(residual, (5, 4), (5, 3)),
    "Add-trained": Example(lambda: nn.Add(trained(4, 1)), (3, 1, 2), (3, 4, 2)),
    "Add-number": same(lambda: nn.Add(0.5), 3, 4),
    "Sub-reverse": same(lambda: nn.Sub(trained(4), reverse=True), 3, 4),
    "Mul-trained": Example(lambda: nn.Mul(trained(2, 1, 4)), (3, 4), (2, 3, 4)),
    "Div-trained": same(lambda: nn.Div(trained(4)), 3, 4),
    "MatMul-trained": Example(lambda: nn.MatMul(trained(4, 2)), (2, 3, 4), (2, 3, 2)),
    "MatMul-reverse": Example(lambda: nn.MatMul(trained(5, 3), reverse=True), (2, 3, 4), (2, 5, 4)),
    "MatMul-vector": Example(lambda: nn.MatMul(trained(4)), (3, 4), (3,)),
    "Concat": same(lambda: nn.Concat(-1), 3, 4),
    "Reshape": Example(lambda: nn.Reshape((0, -1, 2)), (3, 2, 4), (3, 4, 2)),
    "Reshape-zero": Example(lambda: nn.Reshape((0, 5), allow_zero=True), (5, 0), (0, 5)),
    "Transpose": Example(lambda: nn.Transpose((1, 2, 0)), (2, 3, 4), (3, 4, 2)),
    "Transpose-reverse": Example(nn.Transpose, (2, 3, 4), (4, 3, 2)),
    "Squeeze": Example(lambda: nn.Squeeze((-2,)), (1, 3, 1, 2), (1, 3, 2)),
    "Squeeze-all": Example(nn.Squeeze, (1, 3, 1, 2), (3, 2)),
    "Unsqueeze": Example(lambda: nn.Unsqueeze((0, -1)), (3, 2), (1, 3, 2, 1)),
    "Slice": Example(lambda: nn.Slice((1, -1), (9, -5), (0, 2), (1, -2)), (3, 2, 4), (2, 2, 2)),
    "Slice-empty": Example(lambda: nn.Slice((2,), (1,)), (3, 2), (0, 2)),
    "Gather": Example(lambda: nn.Gather((-1, 0, -1), 1), (2, 3, 2), (2, 3, 2)),
    "Gather-number": Example(lambda: nn.Gather(-1, -1), (2, 3), (2,)),
    "Pad": Example(lambda: nn.Pad(((1, 0), (0, 2)), value=0.5), (2, 3, 2), (2, 4, 4)),
    "Pad-cut": Example(lambda: nn.Pad(((-1, 2), (-1, -1))), (3, 4), (4, 2)),
    "Pad-reflect": Example(lambda: nn.Pad(((2, 1),), "reflect"), (2, 3), (2, 6)),
    "Pad-edge": Example(lambda: nn.Pad(((2, 0), (0, 4)), "edge"), (3, 2), (5, 6)),
    "Pad-wrap": Example(lambda: nn.Pad(((3, 1),), "wrap"), (2, 3), (2, 7)),
    "Pad-nothing": same(lambda: nn.Pad(((0, 0),), "edge"), 2, 3),
    **{
        f"Reduce-{name}": Example(lambda name=name: nn.Reduce(name, (0, -1)), (2, 3, 4), (1, 3, 1))
        for name in ("L1", "L2", "LogSumExp", "Max", "Min", "Prod", "Sum", "SumSquare")
    },
    "Reduce-LogSum": Example(lambda: nn.Reduce("LogSum", (1,), keepdims=False), (2, 3), (2,), positive=True),
    "Reduce-all": Example(lambda: nn.Reduce("L2", keepdims=False), (2, 3), ()),
    "Expand": Example(lambda: nn.Expand((2, 1, 4)), (3, 1), (2, 3, 4)),
    "ReduceMean": Example(lambda: nn.ReduceMean((0, -1)), (2, 3, 4), (1, 3, 1)),
    "ReduceMean-all": Example(lambda: nn.ReduceMean(keepdims=False), (2, 3), ()),
    "Clip": same(lambda: nn.Clip(-0.4, 0.6), 3, 4),
    "Clip-low": same(lambda: nn.Clip(0.1), 3, 4),
    "Clip-free": same(nn.Clip, 3, 4),
    "Cast": same(lambda: nn.Cast("float64"), 3, 4),
    "Abs": same(nn.Abs, 3, 4),
    "Neg": same(nn.Neg, 3, 4),
    "Exp": same(nn.Exp, 3, 4),
    "Log": Example(nn.Log, (3, 4), (3, 4), positive=True),
    "Sqrt": Example(nn.Sqrt, (3, 4), (3, 4), positive=True),
    "Reciprocal": Example(nn.Reciprocal, (3, 4), (3, 4), positive=True),
    **{f"Function-{name}": function(name) for name in ("Asinh", "Atan", "Ceil", "Cosh", "Floor", "Round", "Sign")},
    **{f"Function-{name}": function(name) for name in ("Sinh", "Tan")},
    **{f"Function-{name}": function(name, nn.Tanh()) for name in ("Acos", "Asin", "Atanh")},
    "Function-Acosh": function("Acosh", nn.Exp(), nn.Exp()),
    "Maximum": same(lambda: nn.Maximum(0.1), 3, 4),
    "Minimum-parameter": Example(lambda: nn.Minimum(trained(4)), (3, 4), (3, 4)),
    "Sin": same(nn.Sin, 3, 4),
    "Cos": same(nn.Cos, 3, 4),
    "Erf": same(nn.Erf, 3, 4),
    "Softsign": same(nn.Softsign, 3, 4),
    "Mish": same(nn.Mish, 3, 4),
    "Pow": same(lambda: nn.Pow(3.0), 3, 4),
    "Pow-square": same(lambda: nn.Pow(2.0), 3, 4),
    "HardSigmoid": same(lambda: nn.HardSigmoid(0.3, 0.4), 3, 4),
    "HardSwish": same(nn.HardSwish, 3, 4),
    "PReLU": same(lambda: nn.PReLU(3, dtype=F64), 2, 3, 2),
    "PReLU-one": same(lambda: nn.PReLU(dtype=F64), 2, 3, 2),
    "PReLU-last": same(lambda: nn.PReLU(2, axis=-1, dtype=F64), 2, 3, 2),
    "MaxPool2d-pairs": Example(lambda: nn.MaxPool2d(3, 2, ((0, 2), (2, 1))), (1, 2, 4, 5), (1, 2, 2, 3)),
    "AvgPool2d-pairs": Example(
        lambda: nn.AvgPool2d(2, 1, ((0, 1), (1, 0)), count_include_pad=False, dilation=(1, 2)),
        (1, 2, 3, 4),
        (1, 2, 3, 3),
    ),
}

EXAMPLES: dict[str, Example] = {
    "Linear": Example(lambda: linear(4, 3), (5, 4), (5, 3)),
    "Linear-no-bias-3d": Example(lambda: linear(4, 3, False), (2, 3, 4), (2, 3, 3)),
    "Identity": same(nn.Identity, 3, 4),
    "ReLU": same(nn.ReLU, 3, 4),
    "ReLU-at_zero": same(lambda: nn.ReLU(1.0), 3, 4),
    "LeakyReLU": same(lambda: nn.LeakyReLU(0.1), 3, 4),
    "ELU": same(lambda: nn.ELU(0.5), 3, 4),
    "SELU": same(nn.SELU, 3, 4),
    "GELU": same(nn.GELU, 3, 4),
    "GELU-tanh": same(lambda: nn.GELU("tanh"), 3, 4),
    "SiLU": same(nn.SiLU, 3, 4),
    "Tanh": same(nn.Tanh, 3, 4),
    "Sigmoid": same(nn.Sigmoid, 3, 4),
    "Softplus": same(nn.Softplus, 3, 4),
    "Softmax": same(nn.Softmax, 3, 4),
    "LogSoftmax": same(lambda: nn.LogSoftmax(0), 3, 4),
    "Hardtanh": same(lambda: nn.Hardtanh(-0.9, 0.8), 3, 4),
    "ReLU6": same(nn.ReLU6, 3, 4),
    "Dropout-train": same(lambda: nn.Dropout(0.0, rng()), 3, 4),
    "Dropout-eval": same(lambda: nn.Dropout(0.5, rng()).eval(), 3, 4),
    "LayerNorm": same(lambda: nn.LayerNorm(4, dtype=F64), 3, 4),
    "LayerNorm-no-affine": same(lambda: nn.LayerNorm(4, elementwise_affine=False), 3, 4),
    "LayerNorm-image": same(lambda: nn.LayerNorm((2, 3), bias=False, dtype=F64), 4, 2, 3),
    "BatchNorm": same(lambda: nn.BatchNorm(3, dtype=F64), 4, 3, 2),
    "BatchNorm1d-train": same(lambda: nn.BatchNorm1d(3, dtype=F64), 5, 3),
    "BatchNorm1d-eval": same(lambda: nn.BatchNorm1d(3, dtype=F64).eval(), 5, 3),
    "BatchNorm1d-untracked-eval": same(lambda: nn.BatchNorm1d(3, track_running_stats=False, dtype=F64).eval(), 5, 3),
    "BatchNorm2d-cumulative": same(lambda: nn.BatchNorm2d(3, momentum=None, dtype=F64), 2, 3, 2, 3),
    "BatchNorm2d-no-affine": same(lambda: nn.BatchNorm2d(3, affine=False, dtype=F64), 2, 3, 2, 3),
    "GroupNorm": same(lambda: nn.GroupNorm(2, 4, dtype=F64), 3, 4, 2),
    "GroupNorm-no-affine": same(lambda: nn.GroupNorm(1, 4, affine=False), 3, 4),
    "GrowingBatchNorm": same(lambda: growing.GrowingBatchNorm(3, dtype=F64), 4, 3),
    "GrowingBatchNorm1d": same(lambda: growing.GrowingBatchNorm1d(3, dtype=F64), 4, 3),
    "GrowingBatchNorm2d": same(lambda: growing.GrowingBatchNorm2d(3, dtype=F64), 2, 3, 2, 2),
    "GrowingLayerNorm": same(lambda: growing.GrowingLayerNorm(4, dtype=F64), 3, 4),
    "GrowingGroupNorm": same(lambda: growing.GrowingGroupNorm(2, 4, dtype=F64), 3, 4),
    "MaxPool1d": Example(lambda: nn.MaxPool1d(3, 2, 1), (2, 3, 6), (2, 3, 3)),
    "MaxPool2d": Example(lambda: nn.MaxPool2d((2, 3), 2, (1, 0), ceil_mode=True), (2, 2, 4, 6), (2, 2, 3, 3)),
    "MaxPool3d": Example(lambda: nn.MaxPool3d(2, 1, dilation=(1, 2, 1)), (1, 2, 3, 4, 2), (1, 2, 2, 2, 1)),
    "AvgPool1d": Example(lambda: nn.AvgPool1d(2, ceil_mode=True), (2, 3, 5), (2, 3, 3)),
    "AvgPool2d": Example(lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 2, 4, 5), (2, 2, 2, 3)),
    "AvgPool3d": Example(lambda: nn.AvgPool3d(2, divisor_override=3), (1, 2, 2, 4, 3), (1, 2, 1, 2, 1)),
    "AdaptiveAvgPool1d": Example(lambda: nn.AdaptiveAvgPool1d(3), (2, 3, 5), (2, 3, 3)),
    "AdaptiveAvgPool2d": Example(lambda: nn.AdaptiveAvgPool2d((None, 2)), (2, 2, 3, 3), (2, 2, 3, 2)),
    "AdaptiveAvgPool3d": Example(lambda: nn.AdaptiveAvgPool3d(1), (1, 2, 2, 2, 3), (1, 2, 1, 1, 1)),
    "Conv1d": conv(lambda **kw: nn.Conv1d(2, 3, 3, padding="same", **kw), (2, 2, 5), (2, 3, 5)),
    "Conv2d": conv(
        lambda **kw: nn.Conv2d(2, 3, (3, 2), 2, 1, padding_mode="circular", **kw), (2, 2, 4, 3), (2, 3, 2, 2)
    ),
    "Conv2d-groups": conv(lambda **kw: nn.Conv2d(4, 2, 2, groups=2, bias=False, **kw), (1, 4, 3, 3), (1, 2, 2, 2)),
    "Conv2d-depthwise": conv(lambda **kw: nn.Conv2d(3, 3, 3, 1, 1, groups=3, **kw), (1, 3, 3, 4), (1, 3, 3, 4)),
    "Conv3d": conv(lambda **kw: nn.Conv3d(1, 2, 2, dilation=(1, 2, 1), **kw), (1, 1, 2, 3, 3), (1, 2, 1, 1, 2)),
    "ConvNd": conv(lambda **kw: nn.ConvNd(4, 1, 2, 2, **kw), (1, 1, 2, 3, 2, 2), (1, 2, 1, 2, 1, 1)),
    "ConvTranspose1d": conv(lambda **kw: nn.ConvTranspose1d(2, 3, 2, 2, **kw), (2, 2, 3), (2, 3, 6)),
    "ConvTranspose2d": conv(lambda **kw: nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, 2, **kw), (1, 2, 2, 3), (1, 4, 4, 6)),
    "ConvTranspose3d": conv(
        lambda **kw: nn.ConvTranspose3d(1, 2, (1, 2, 2), bias=False, **kw), (1, 1, 2, 2, 1), (1, 2, 2, 3, 2)
    ),
    "ConvTransposeNd": conv(lambda **kw: nn.ConvTransposeNd(4, 1, 2, 2, **kw), (1, 1, 1, 2, 1, 1), (1, 2, 2, 3, 2, 2)),
    "Flatten": Example(nn.Flatten, (2, 3, 4), (2, 12)),
    "Flatten-inner": Example(lambda: nn.Flatten(0, 1), (2, 3, 4), (6, 4)),
    "MultiheadAttention": same(lambda: nn.MultiheadAttention(4, 2, rng=rng(), dtype=F64), 2, 3, 4),
    "MultiheadAttention-causal": same(
        lambda: nn.MultiheadAttention(4, 1, bias=False, causal=True, rng=rng(), dtype=F64), 2, 3, 4
    ),
    **NEW,
    "Sequential": Example(
        lambda: nn.Sequential(linear(4, 3), nn.BatchNorm1d(3, dtype=F64), nn.Tanh(), linear(3, 2)), (5, 4), (5, 2)
    ),
    "Sequential-empty": same(nn.Sequential, 3, 4),
    "Sequential-nested": Example(
        lambda: nn.Sequential(nn.Sequential(linear(4, 3), nn.SELU()), nn.LayerNorm(3, dtype=F64)), (2, 4), (2, 3)
    ),
}
