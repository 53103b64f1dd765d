"""Operators with windows over spatial axes: convolutions and pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from growarray import nn
from growarray.files.errors import Malformed, quote
from growarray.nn.module import Module
from growarray.nn.shape import Pad, ReduceMean
from growarray.nn.sized import SamePad, SamePool, same_pads
from growarray.onnx.build import Builder, Constant, Dim, Dynamic
from growarray.onnx.graph import OpNode

__all__ = ["average_pool", "conv", "conv_transpose", "global_average_pool", "max_pool"]

_MOST = 2**20  # largest stride, dilation, kernel size or padding: more is a bomb, or a mistake
Pairs = list[tuple[int, int]]


class _Windows:
    """Kernel, stride, dilation and padding of a node, checked; ``pads`` is None where it follows the input's size."""

    def __init__(self, node: OpNode, x: Dynamic, kernel: Sequence[int], *, dilated: bool = True) -> None:
        self.kernel, count = tuple(kernel), len(kernel)
        self.stride = _options(node, "strides", [1] * count, 1)
        self.dilation = _options(node, "dilations", [1] * count, 1) if dilated else (1,) * count
        self.reach = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))
        self.ceil_mode = False
        if any(not 1 <= k <= _MOST for k in self.kernel):
            raise Malformed(f"kernel_shape is {self.kernel}; expected {count} numbers from 1 to {_MOST}")
        if x.shape is not None and len(x.shape) != count + 2:
            raise Malformed(f"input has {len(x.shape)} axes, a kernel of {count} axes expects {count + 2}")
        self.sizes: tuple[Dim | None, ...] = (None,) * count if x.shape is None else x.shape[2:]
        flat = _options(node, "pads", [0] * 2 * count, 0)
        self.given: Pairs = [(flat[i], flat[i + count]) for i in range(count)]
        self.auto = node.get("auto_pad", "string", "NOTSET") or "NOTSET"
        if self.auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
            raise Malformed(f"auto_pad is {quote(self.auto)}; expected NOTSET, VALID, SAME_UPPER or SAME_LOWER")
        if self.auto != "NOTSET" and any(flat):
            raise Malformed(f"has pads {flat} beside auto_pad {self.auto}")

    def halves(self, total: int) -> tuple[int, int]:
        """Padding before and after: the odd one comes last for SAME_UPPER."""
        small, large = total // 2, total - total // 2
        return (small, large) if self.auto == "SAME_UPPER" else (large, small)

    @property
    def open(self) -> bool:
        """Whether the padding follows sizes that only the input tells."""
        named = any(stride > 1 and not isinstance(n, int) for n, stride in zip(self.sizes, self.stride, strict=True))
        return named and self.auto.startswith("SAME")

    def pads(self) -> Pairs:
        """Padding of each axis; for SAME as many outputs as the input's size over the stride, rounded up."""
        if not self.auto.startswith("SAME"):
            return self.given
        sizes = [n if isinstance(n, int) else 1 for n in self.sizes]  # with stride 1 no size matters
        return list(same_pads(sizes, self.reach, self.stride, lower=self.auto == "SAME_LOWER"))

    def outputs(self, builder: Builder, pads: Pairs) -> tuple[Dim, ...]:
        """Positions of the result on each axis."""
        found: list[Dim] = []
        for size, (before, after), reach, stride in zip(self.sizes, pads, self.reach, self.stride, strict=True):
            if not isinstance(size, int):
                same = stride == 1 and before + after == reach - 1 and size is not None
                found.append(size if same and size is not None else builder.fresh())
                continue
            room = size + before + after - reach
            out = (room + (stride - 1 if self.ceil_mode else 0)) // stride + 1
            if self.ceil_mode and (out - 1) * stride >= size + before:
                out -= 1
            if out < 1:
                raise Malformed(
                    f"a window of {reach} positions does not fit into {size} with padding {before}, {after}"
                )
            found.append(out)
        return tuple(found)


def _options(node: OpNode, name: str, default: list[int], least: int) -> tuple[int, ...]:
    values = tuple(node.get(name, "ints", default))
    if len(values) != len(default) or any(not least <= v <= _MOST for v in values):
        raise Malformed(f"{name} is {values}; expected {len(default)} numbers from {least} to {_MOST}")
    return values


def _weight(builder: Builder, node: OpNode) -> Constant:
    weight = builder.constant(node, 1, "weight")
    if len(weight.shape) < 3 or 0 in weight.shape:
        raise Malformed(f"weight has shape {weight.shape}; expected two axes of channels and a kernel")
    kernel = node.get("kernel_shape", "ints", list(weight.shape[2:]))
    if tuple(kernel) != weight.shape[2:]:
        raise Malformed(f"kernel_shape is {tuple(kernel)}, the weight has {weight.shape[2:]}")
    return weight


def _group(node: OpNode, x: Dynamic, weight: Constant, channels: int) -> int:
    group: int = node.get("group", "int", 1)
    if not 1 <= group <= max(weight.shape[0], 1) or weight.shape[0] % group:
        raise Malformed(f"group is {group}, which does not divide the {weight.shape[0]} channels of the weight")
    found = x.shape[1] if x.shape is not None else None
    if isinstance(found, int) and found != (channels * group if node.op == "Conv" else channels):
        raise Malformed(f"input has {found} channels, a weight of shape {weight.shape} in {group} groups does not fit")
    return group


def _fill(builder: Builder, node: OpNode, layer: Any, weight: Constant, channels: int) -> Any:
    """Give a layer its parameters."""
    layer.weight = builder.parameter(weight, "weight")
    bias = builder.optional(node, 2, "bias")
    if bias is not None:
        if bias.shape != (channels,):
            raise Malformed(f"bias has shape {bias.shape}; expected {(channels,)}")
        layer.bias = builder.parameter(bias, "bias")
    return layer


def conv(builder: Builder, node: OpNode) -> None:
    """``Conv``: a convolution layer of as many axes as the weight has."""
    x, weight = builder.dynamic(node, 0), _weight(builder, node)
    windows = _Windows(node, x, weight.shape[2:])
    group = _group(node, x, weight, weight.shape[1])
    pads = windows.pads()
    shape = (x.shape[0] if x.shape is not None else builder.fresh(), weight.shape[0], *windows.outputs(builder, pads))
    if windows.open:
        before = SamePad(windows.reach, windows.stride, lower=windows.auto == "SAME_LOWER")
        x = builder.step(before, [x], None, f"{builder.hint(node, weight)}.padded")
        pads = [(0, 0)] * len(pads)
    kinds: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    layer = kinds.get(len(windows.kernel), nn.ConvNd).of(
        builder.parameter(weight, "weight").data,
        stride=windows.stride, padding=tuple(pads), dilation=windows.dilation, groups=group,
    )  # fmt: skip
    _fill(builder, node, layer, weight, weight.shape[0])
    builder.give(node, builder.step(layer, [x], shape, builder.hint(node, weight)))


def conv_transpose(builder: Builder, node: OpNode) -> None:
    """``ConvTranspose``; padding that differs before and after cuts the full result."""
    x, weight = builder.dynamic(node, 0), _weight(builder, node)
    windows = _Windows(node, x, weight.shape[2:])
    group = _group(node, x, weight, weight.shape[0])
    count, channels = len(windows.kernel), weight.shape[1] * group
    extra = _options(node, "output_padding", [0] * count, 0)
    if any(e >= max(steps) for e, *steps in zip(extra, windows.stride, windows.dilation, strict=True)):
        raise Malformed(
            f"output_padding {extra} with strides {windows.stride} and dilations {windows.dilation}; expected less "
            "than the larger of both on each axis"
        )
    pads = _transposed_pads(node, windows, extra)
    spatial = [
        (size - 1) * stride + reach + e - before - after if isinstance(size, int) else builder.fresh()
        for size, stride, reach, e, (before, after) in zip(
            windows.sizes, windows.stride, windows.reach, extra, pads, strict=True
        )
    ]
    if any(isinstance(n, int) and n < 1 for n in spatial):
        raise Malformed(f"gives {tuple(spatial)} positions; expected at least 1 on each axis")
    even = all(before == after >= 0 for before, after in pads)
    padding = tuple(before for before, _ in pads) if even else (0,) * count
    kinds: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
    layer = kinds.get(count, nn.ConvTransposeNd).of(
        builder.parameter(weight, "weight").data,
        stride=windows.stride, padding=padding, output_padding=extra, groups=group, dilation=windows.dilation,
    )  # fmt: skip
    _fill(builder, node, layer, weight, channels)
    lead: tuple[Dim, ...] = (x.shape[0] if x.shape is not None else builder.fresh(), channels)
    hint = builder.hint(node, weight)
    if even:
        builder.give(node, builder.step(layer, [x], (*lead, *spatial), hint))
        return
    whole = builder.step(layer, [x], (*lead, *(builder.fresh() for _ in spatial)), hint)
    cut = Pad([(-before, -after) for before, after in pads])
    builder.give(node, builder.step(cut, [whole], (*lead, *spatial), f"{hint}.cut"))


def _transposed_pads(node: OpNode, windows: _Windows, extra: Sequence[int]) -> Pairs:
    """What is cut off the full result before and after, on each axis."""
    shape = node.get("output_shape", "ints")
    if shape is None and not windows.auto.startswith("SAME"):
        return windows.given
    if shape is not None and len(shape) == len(extra) + 2:
        shape = shape[2:]  # some writers put batch and channels in front
    if shape is not None and (len(shape) != len(extra) or any(not 0 < n <= _MOST for n in shape)):
        raise Malformed(f"output_shape is {shape}; expected {len(extra)} numbers from 1 to {_MOST}")
    pairs = []
    for i, (size, stride, reach) in enumerate(zip(windows.sizes, windows.stride, windows.reach, strict=True)):
        if shape is None:
            total = max(reach - stride + extra[i], 0)  # the output is stride times the input, or as much as there is
        elif isinstance(size, int):
            total = stride * (size - 1) + extra[i] + reach - shape[i]
        else:
            raise Malformed("output_shape needs fixed spatial sizes of the input")
        if total < 0:
            raise Malformed(f"output_shape {shape} is larger than the whole result; give it by output_padding")
        pairs.append(windows.halves(total))
    return pairs


def _pool(builder: Builder, node: OpNode, kinds: dict[int, Any], dilated: bool, **options: Any) -> None:
    """A pooling layer; padding that torch does not allow is given as pairs."""
    x = builder.dynamic(node, 0)
    kernel = node.get("kernel_shape", "ints")
    if not kernel or len(kernel) not in kinds:
        raise Malformed(f"kernel_shape is {kernel}; expected 1, 2 or 3 numbers")
    windows = _Windows(node, x, kernel, dilated=dilated)
    windows.ceil_mode = node.flag("ceil_mode")
    pads = windows.pads()
    usual = all(before == after and 2 * before <= k for (before, after), k in zip(pads, kernel, strict=True))
    padding: Any = 0 if windows.open else tuple(before for before, _ in pads) if usual else tuple(pads)
    module: Module = kinds[len(kernel)](
        windows.kernel,
        windows.stride,
        padding,
        dilation=windows.dilation,
        ceil_mode=windows.ceil_mode,
        **options,
    )
    if windows.open:
        module = SamePool(module, windows.reach, windows.stride, lower=windows.auto == "SAME_LOWER")
    lead: tuple[Dim, ...] = (builder.fresh(), builder.fresh()) if x.shape is None else x.shape[:2]
    shape = (*lead, *windows.outputs(builder, pads))
    builder.give(node, builder.step(module, [x], shape, builder.hint(node)))


def max_pool(builder: Builder, node: OpNode) -> None:
    """``MaxPool``; the order of its indices does not matter, for they are not given."""
    node.get("storage_order", "int")
    _pool(builder, node, {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}, dilated=True)


def average_pool(builder: Builder, node: OpNode) -> None:
    """``AveragePool``."""
    include = node.flag("count_include_pad")
    kinds = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
    _pool(builder, node, kinds, dilated=True, count_include_pad=include)


def global_average_pool(builder: Builder, node: OpNode) -> None:
    """``GlobalAveragePool``."""
    x = builder.dynamic(node, 0)
    if x.shape is None or len(x.shape) < 3:
        raise Malformed("input has no known spatial axes; export the model with shapes")
    count = len(x.shape) - 2
    kinds: dict[int, Callable[[int], Module]] = {
        1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d,
    }  # fmt: skip
    module = kinds[count](1) if count in kinds else ReduceMean(tuple(range(2, count + 2)))
    builder.give(node, builder.step(module, [x], (*x.shape[:2], *(1,) * count), builder.hint(node)))
