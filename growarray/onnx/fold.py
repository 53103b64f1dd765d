"""Folding: a node whose inputs are all known is computed at import, such as the shapes that exporters compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from growarray.files.errors import Malformed
from growarray.onnx.build import Builder
from growarray.onnx.graph import OpNode
from growarray.onnx.value import Array, Constant, Dynamic


def fold(builder: Builder, node: OpNode, operation: Callable[[Builder, OpNode], Array | None], *, moves: bool) -> bool:
    """Compute a node now if all its inputs are known and ``operation`` can; says whether it did.

    moves : the result has the entries of the first input in other places, so that a weight stays a weight
    """
    given = [builder.value(node, i) for i, name in enumerate(node.inputs) if name]
    if any(isinstance(value, Dynamic) for value in given):
        return False
    result = operation(builder, node)
    if result is None:
        return False
    first = next((value for value in given if isinstance(value, Constant)), None) if moves else None
    trained = first is not None and first.trained and first.size > 1
    name, label, derived = node.outputs[0], None if first is None else first.label, node.op != "Constant"
    builder.bind(node, Constant(name, np.asarray(result), trained=trained, derived=derived, label=label))
    return True


def constant_array(builder: Builder, node: OpNode, index: int) -> Array:
    """The values of an input that is a constant."""
    return builder.constant(node, index, "input").array


def narrowed(array: Array) -> Array:
    """A shape whose axes are all known, as whole numbers."""
    if array.dtype == object and all(type(n) is int for n in array.reshape(-1).tolist()):
        return array.astype(np.int64)
    return array


def axes_of(builder: Builder, node: OpNode, since: int) -> tuple[int, ...] | None:
    """The option ``axes``: an input from opset ``since`` on, an attribute before; None if it is left out."""
    if builder.opset >= since:
        return builder.whole_numbers(node, 1, "axes") if builder.has(node, 1) else None
    axes = node.get("axes", "ints")
    return None if axes is None else tuple(axes)


def positive_axes(axes: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Axes counted from the first. Raises Malformed if one is not among ``count``, or is named twice."""
    found = tuple(axis + count if axis < 0 else axis for axis in axes)
    if any(not 0 <= axis < count for axis in found) or len(set(found)) < len(found):
        raise Malformed(f"axes are {axes}; expected distinct axes of {count}")
    return found
