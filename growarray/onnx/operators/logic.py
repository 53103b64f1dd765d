"""Comparisons and choices of constants."""

from __future__ import annotations

import numpy as np

from growarray.onnx.build import Array, Builder
from growarray.onnx.fold import constant_array, narrowed
from growarray.onnx.graph import OpNode
from growarray.onnx.operators.arithmetic import account_broadcast
from growarray.onnx.operators.row import Operator

__all__ = ["ROWS"]


def _fold_equal(builder: Builder, node: OpNode) -> Array:
    a, b = constant_array(builder, node, 0), constant_array(builder, node, 1)
    account_broadcast(builder, a, b)
    return np.asarray(a == b, dtype=np.bool_)


def _fold_where(builder: Builder, node: OpNode) -> Array:
    condition, a, b = (constant_array(builder, node, i) for i in range(3))
    account_broadcast(builder, condition, a, b)
    return narrowed(np.where(condition.astype(np.bool_), a, b))


ROWS = (
    Operator("Equal", fold=_fold_equal, inputs=(2, 2)),
    Operator("Where", fold=_fold_where, inputs=(3, 3)),
)
"""The operators of this family."""
