"""Comparisons, logic, operations on bits, and choices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from growarray.onnx.build import Builder
from growarray.onnx.fold import constant_array, narrowed
from growarray.onnx.graph import OpNode
from growarray.onnx.operators.arithmetic import account_broadcast
from growarray.onnx.operators.row import Operator, operation
from growarray.onnx.value import Array


def _fold_equal(builder: Builder, node: OpNode) -> Array:
    a, b = constant_array(builder, node, 0), constant_array(builder, node, 1)
    account_broadcast(builder, a, b)
    return np.asarray(a == b, dtype=np.bool_)


def _fold_where(builder: Builder, node: OpNode) -> Array:
    condition, a, b = (constant_array(builder, node, i) for i in range(3))
    account_broadcast(builder, condition, a, b)
    return narrowed(np.where(condition.astype(np.bool_), a, b))


def _rows(result: str | int, kinds: str, *names: str, count: int = 2, **options: Any) -> tuple[Operator, ...]:
    return tuple(operation(name, count, result, kinds=kinds, **options) for name in names)


ROWS = (
    *_rows("bool", "b", "And", "Or", "Xor"),
    *_rows("bool", "b", "Not", count=1),
    *_rows("bool", "fiu", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    *_rows(0, "iu", "BitwiseAnd", "BitwiseOr", "BitwiseXor", since=18),
    *_rows(0, "iu", "BitwiseNot", count=1, since=18),
    *_rows(0, "iu", "BitShift", direction=str),
    *_rows("bool", "f", "IsNaN", count=1),
    *_rows("bool", "f", "IsInf", count=1, detect_negative=1, detect_positive=1),
    replace(operation("Equal", 2, "bool"), fold=_fold_equal),
    replace(operation("Where", 3, 1), fold=_fold_where),
)
"""The operators of this family."""
