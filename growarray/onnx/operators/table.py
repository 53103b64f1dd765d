"""The operators of ONNX that a network can be built from, and how many inputs each takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from growarray.onnx.build import Builder
from growarray.onnx.graph import OpNode
from growarray.onnx.operators import element, layer, shape, window

__all__ = ["OPERATORS", "Operator"]


@dataclass(frozen=True)
class Operator:
    """What builds the modules of a node, the fewest and most inputs, and the most outputs."""

    build: Callable[[Builder, OpNode], None]
    least: int = 1
    most: int = 1
    outputs: int = 1


OPERATORS: dict[str, Operator] = {
    **{name: Operator(element.activation) for name in element.ACTIVATIONS},
    "Add": Operator(element.add, 2, 2),
    "AveragePool": Operator(window.average_pool),
    "BatchNormalization": Operator(layer.batch_norm, 5, 5, 5),
    "Cast": Operator(element.cast),
    "Celu": Operator(element.celu),
    "Clip": Operator(element.clip, 1, 3),
    "Concat": Operator(shape.concat, 1, 2**31),
    "Conv": Operator(window.conv, 2, 3),
    "ConvTranspose": Operator(window.conv_transpose, 2, 3),
    "Div": Operator(element.div, 2, 2),
    "Dropout": Operator(element.dropout, 1, 3, 2),
    "Flatten": Operator(shape.flatten),
    "Gather": Operator(shape.gather, 2, 2),
    "Gemm": Operator(layer.gemm, 2, 3),
    "GlobalAveragePool": Operator(window.global_average_pool),
    "GroupNormalization": Operator(layer.group_norm, 3, 3),
    "Identity": Operator(element.identity),
    "InstanceNormalization": Operator(layer.instance_norm, 3, 3),
    "LayerNormalization": Operator(layer.layer_norm, 2, 3, 3),
    "LogSoftmax": Operator(element.softmax),
    "MatMul": Operator(layer.matmul, 2, 2),
    "MaxPool": Operator(window.max_pool, 1, 1, 2),
    "Mul": Operator(element.mul, 2, 2),
    "PRelu": Operator(element.prelu, 2, 2),
    "Pad": Operator(shape.pad, 1, 4),
    "Pow": Operator(element.power, 2, 2),
    "ReduceMean": Operator(shape.reduce_mean, 1, 2),
    "Reshape": Operator(shape.reshape, 2, 2),
    "Selu": Operator(element.selu),
    "Slice": Operator(shape.slice_, 1, 5),
    "Softmax": Operator(element.softmax),
    "Split": Operator(shape.split, 1, 2, 2**31),
    "Squeeze": Operator(shape.squeeze, 1, 2),
    "Sub": Operator(element.sub, 2, 2),
    "Transpose": Operator(shape.transpose),
    "Unsqueeze": Operator(shape.unsqueeze, 1, 2),
}
"""Every operator by its name in the default domain."""
