"""Windows over spatial axes, which convolutions and pools share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from growarray.contraction.geometry import ConvAxis
from growarray.files.errors import Malformed, quote
from growarray.nn.padding import PADDINGS
from growarray.nn.sized import SamePad, same_pads
from growarray.onnx.build import Builder
from growarray.onnx.graph import OpNode
from growarray.onnx.lower import Edge, OnnxGraph
from growarray.onnx.value import Dim, Dynamic

MOST = 2**20
"""The largest stride, dilation, kernel size or padding: more is a bomb, or a mistake."""
_MODES = {mode: name for name, mode in PADDINGS.items()}
Pairs = list[tuple[int, int]]


class Windows:
    """Kernel, stride, dilation and padding of a node, checked; padding may follow sizes that only the input tells."""

    def __init__(self, node: OpNode, x: Dynamic, kernel: Sequence[int]) -> None:
        self.kernel, count = tuple(kernel), len(kernel)
        self.stride = options_of(node, "strides", [1] * count, 1)
        self.dilation = options_of(node, "dilations", [1] * count, 1)
        self.reach = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        self.ceil_mode = False
        if any(not 1 <= k <= MOST for k in self.kernel):
            raise Malformed(f"kernel_shape is {self.kernel}; expected {count} numbers from 1 to {MOST}")
        if x.shape is not None and len(x.shape) != count + 2:
            raise Malformed(f"input has {len(x.shape)} axes, a kernel of {count} axes expects {count + 2}")
        self.sizes: tuple[Dim | None, ...] = (None,) * count if x.shape is None else x.shape[2:]
        flat = options_of(node, "pads", [0] * 2 * count, 0)
        self.given: Pairs = [(flat[i], flat[i + count]) for i in range(count)]
        self.auto = node.get("auto_pad", "string", "NOTSET") or "NOTSET"
        if self.auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
            raise Malformed(f"auto_pad is {quote(self.auto)}; expected NOTSET, VALID, SAME_UPPER or SAME_LOWER")
        if self.auto != "NOTSET" and any(flat):
            raise Malformed(f"has pads {flat} and auto_pad {self.auto}; expected one of them")
        self.same, self.lower = self.auto.startswith("SAME"), self.auto == "SAME_LOWER"

    def halves(self, total: int) -> tuple[int, int]:
        """Padding before and after: the odd one comes last for SAME_UPPER."""
        small, large = total // 2, total - total // 2
        return (small, large) if self.auto == "SAME_UPPER" else (large, small)

    @property
    def open(self) -> bool:
        """Whether the padding follows sizes that only the input tells."""
        named = any(stride > 1 and not isinstance(n, int) for n, stride in zip(self.sizes, self.stride, strict=True))
        return named and self.same

    def pads(self) -> Pairs:
        """Padding of each axis; for SAME as many outputs as the input's size over the stride, rounded up."""
        if not self.same:
            return self.given
        sizes = [n if isinstance(n, int) else 1 for n in self.sizes]  # with stride 1 no size matters
        return list(same_pads(sizes, self.reach, self.stride, lower=self.lower))

    def outputs(self, builder: Builder, pads: Pairs) -> tuple[Dim, ...]:
        """Positions of the result on each axis."""
        found: list[Dim] = []
        for size, (before, after), reach, stride in zip(self.sizes, pads, self.reach, self.stride, strict=True):
            if not isinstance(size, int):
                same = stride == 1 and before + after == reach - 1 and size is not None
                found.append(size if same and size is not None else builder.new_name())
                continue
            out = (size + before + after - reach + (stride - 1 if self.ceil_mode else 0)) // stride + 1
            if self.ceil_mode and (out - 1) * stride >= size + before:
                out -= 1
            if out < 1:
                raise Malformed(
                    f"a window of {reach} positions does not fit into {size} with padding {before}, {after}"
                )
            found.append(out)
        return tuple(found)


def options_of(node: OpNode, name: str, default: list[int], least: int) -> tuple[int, ...]:
    """An attribute of as many whole numbers as ``default`` has, each from ``least`` to :data:`MOST`."""
    values = tuple(node.get(name, "ints", default))
    if len(values) != len(default) or any(not least <= v <= MOST for v in values):
        raise Malformed(f"{name} is {values}; expected {len(default)} numbers from {least} to {MOST}")
    return values


def padded(graph: OnnxGraph, x: Edge, by: Mapping[int, ConvAxis], value: float = 0.0) -> Edge:
    """The value padded along some axes, all by one mode; ``value`` is what zero padding puts there."""
    by = {axis: geometry for axis, geometry in by.items() if geometry.before or geometry.after}
    if not by:
        return x
    mode = next(iter(by.values())).padding_mode
    if mode == "circular" and graph.opset < 19:
        for axis, geometry in by.items():
            x = _wrapped(graph, x, axis, geometry)
        return x
    before, after = ([getattr(by[i], end) if i in by else 0 for i in range(x.ndim)] for end in ("before", "after"))
    shape = [n + low + high for n, low, high in zip(x.shape, before, after, strict=True)]
    inputs = [x, graph.integers(before + after)]
    inputs += [graph.constant(value)] if mode == "zeros" else []
    return graph.node("Pad", *inputs, shape=shape, mode=_MODES[mode])


def _wrapped(graph: OnnxGraph, x: Edge, axis: int, by: ConvAxis) -> Edge:
    """Circular padding of one axis as pieces that are joined: Pad has it from operator set 19 on."""
    size = x.shape[axis]
    ends = [(size - by.before, size), (0, by.after)]
    front, back = (sliced(graph, x, {axis: (*end, 1)}) if end[0] < end[1] else None for end in ends)
    shape = [n + (by.before + by.after if i == axis else 0) for i, n in enumerate(x.shape)]
    pieces = [piece for piece in (front, x, back) if piece is not None]
    return graph.node("Concat", *pieces, shape=shape, axis=axis)


def sliced(
    graph: OnnxGraph, x: Edge, parts: Mapping[int, tuple[int, int, int]], sizes: Sequence[int] | None = None
) -> Edge:
    """The positions (start, end, step) of some axes; ``sizes`` of the result, if a step is not 1 or an end is far."""
    if x.batch in parts:
        raise graph.refuse("it cuts the batch; pass dynamic_batch=False")
    if not parts:
        return x
    starts, ends, steps = (list(column) for column in zip(*parts.values(), strict=True))
    options: list[Any] = [starts, ends, list(parts), steps]
    shape = [parts[i][1] - parts[i][0] if i in parts else n for i, n in enumerate(x.shape)] if sizes is None else sizes
    return graph.node("Slice", x, *(graph.integers(values) for values in options), shape=shape)


def write_fitted(graph: OnnxGraph, layer: SamePad, x: Edge) -> Edge:
    """Write padding that follows the input's size for the size that it has here."""
    fitted: Edge = graph.lower("", layer.fitted(x.shape), x)
    return fitted
