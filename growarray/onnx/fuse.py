"""Fusing layers that exporters split: a linear layer's bias, GELU, SiLU, HardSwish and LayerNorm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from growarray import nn
from growarray.nn.arithmetic import Add, Div, Mul, Sub
from growarray.nn.elementwise import Erf, HardSigmoid, HardSwish, Pow, Sqrt
from growarray.nn.graph import Node
from growarray.nn.module import Module, Parameter
from growarray.nn.reduce import ReduceMean


def fuse(
    nodes: Sequence[Node],
    outputs: Sequence[str],
    axes: Mapping[str, int | None],
    named_by_weight: Callable[[str], bool],
) -> list[Node]:
    """The same network in fewer nodes; only nodes with a single use are fused.

    axes : how many the value of a name has, as far as that is known
    named_by_weight : whether a node of this name has it from its weight
    """
    return _Fuser(nodes, outputs, axes, named_by_weight).nodes()


class _Fuser:
    """One walk from the first node to the last, each looking back at what gives its inputs."""

    def __init__(
        self,
        nodes: Sequence[Node],
        outputs: Sequence[str],
        axes: Mapping[str, int | None],
        named_by_weight: Callable[[str], bool],
    ) -> None:
        self._axes, self._named_by_weight = axes, named_by_weight
        self._uses = Counter([name for node in nodes for name in node.inputs] + list(outputs))
        self._kept: dict[str, Node] = {}  # by output, in order
        self._names = {node.name for node in nodes}
        self._flats: dict[int, tuple[Parameter, Parameter]] = {}
        for node in nodes:
            fused = (
                self._bias(node) or self._norm(node) or self._norm_bias(node) or self._group(node) or self._gate(node)
            )
            self._kept[node.output] = fused or node

    def nodes(self) -> list[Node]:
        """The nodes that are left."""
        return list(self._kept.values())

    def _producer(self, name: str, kind: type[Module], uses: int = 1) -> Node | None:
        """The node that gives a value, if its module is of this kind and the value is used so often."""
        node = self._kept.get(name)
        return node if node is not None and type(node.module) is kind and self._uses[name] == uses else None

    def _drop(self, *nodes: Node) -> None:
        for node in nodes:
            del self._kept[node.output]

    def _bias(self, node: Node) -> Node | None:
        """``MatMul`` and ``Add`` of a vector: a linear layer with a bias."""
        if type(node.module) is not Add or len(node.inputs) != 1:
            return None
        inner = self._producer(node.inputs[0], nn.Linear)
        bias: Any = node.module.value
        if bias is None and node.module.constant is not None:
            bias = Parameter(node.module.constant)
        layer: Any = None if inner is None else inner.module
        if inner is None or bias is None or layer.bias is not None or bias.shape[-1:] != (layer.out_features,):
            return None
        if bias.size != layer.out_features or len(bias.shape) > max(self._axes.get(node.inputs[0]) or 0, 1):
            return None
        layer.bias = bias if len(bias.shape) == 1 else self._flat(bias)
        self._drop(inner)
        named = node.name if self._named_by_weight(node.name) and not self._named_by_weight(inner.name) else inner.name
        return replace(inner, name=named, output=node.output)

    def _norm(self, node: Node) -> Node | None:
        """``(x - mean) / sqrt(var + eps) * weight``: a layer norm, still without its bias."""
        weight = node.module.value if type(node.module) is Mul else None
        div = self._producer(node.inputs[0], Div) if weight is not None else None
        if weight is None or div is None or len(div.inputs) != 2:
            return None
        centred, root = self._producer(div.inputs[0], Sub, 2), self._producer(div.inputs[1], Sqrt)
        shift = self._producer(root.inputs[0], Add) if root else None
        mean_square = self._producer(shift.inputs[0], ReduceMean) if shift else None
        square = self._producer(mean_square.inputs[0], Pow) if mean_square else None
        mean = self._producer(centred.inputs[1], ReduceMean) if centred and len(centred.inputs) == 2 else None
        if not (centred and root and shift and mean_square and square and mean):
            return None
        eps: Any = shift.module.number  # type: ignore[attr-defined]
        same = square.inputs == (centred.output,) and mean.inputs == centred.inputs[:1]
        whole = all(self._last(m, len(weight.shape)) for m in (mean, mean_square))
        if not same or not whole or eps is None or square.module.exponent != 2.0:  # type: ignore[attr-defined]
            return None
        layer = nn.LayerNorm(weight.shape, eps, elementwise_affine=False)
        layer.weight = weight
        self._drop(div, centred, root, shift, mean_square, square, mean)
        return Node(node.name, layer, centred.inputs[:1], node.output)

    def _last(self, node: Node, count: int) -> bool:
        """Whether a mean is over the last ``count`` axes, which stay."""
        module: Any = node.module
        total = self._axes.get(node.inputs[0]) or 0
        axes = sorted(axis - total if axis >= 0 else axis for axis in module.axes or ())
        return module.keepdims and axes == list(range(-count, 0))

    def _norm_bias(self, node: Node) -> Node | None:
        """The bias of a layer norm that was fused."""
        if type(node.module) is not Add or node.module.value is None:
            return None
        inner, bias = self._producer(node.inputs[0], nn.LayerNorm), node.module.value
        layer: Any = None if inner is None else inner.module
        if inner is None or layer.bias is not None or layer.weight is None or layer.weight.shape != bias.shape:
            return None
        layer.bias = bias
        self._drop(inner)
        return replace(inner, output=node.output)

    def _group(self, node: Node) -> Node | None:
        """The weight, or the bias, of a group norm that was fused."""
        kind, value = type(node.module), getattr(node.module, "value", None)
        inner = self._producer(node.inputs[0], nn.GroupNorm) if value is not None and kind in (Mul, Add) else None
        layer: Any = None if inner is None else inner.module
        if value is None or inner is None or value.size != layer.num_channels:
            return None
        axes = self._axes.get(inner.inputs[0])
        shape = value.shape[1:] if len(value.shape) == axes and value.shape[0] == 1 else value.shape
        if shape[:1] != (layer.num_channels,) or axes != len(shape) + 1:
            return None
        if layer.bias is not None or (layer.weight is None) != (kind is Mul):
            return None
        setattr(layer, "weight" if kind is Mul else "bias", self._flat(value))
        self._drop(inner)
        return replace(node, module=layer, inputs=inner.inputs)

    def _flat(self, value: Parameter) -> Parameter:
        """A parameter with one axis in place of those of size 1; the same for every use."""
        if id(value) not in self._flats:
            self._flats[id(value)] = value, Parameter(value.data.reshape(-1))
        return self._flats[id(value)][1]

    def _factors(self, node: Node) -> tuple[float, list[str], list[Node]]:
        """A product as a number and the values that are multiplied, and the nodes that do it."""
        number, names, used, waiting = self._number(node.module), [], [node], list(node.inputs)
        while waiting:
            name = waiting.pop()
            inner = self._producer(name, Mul) or self._producer(name, Div)
            factor = math.nan if inner is None or len(used) > 3 else self._number(inner.module)
            if inner is None or math.isnan(factor):
                names.append(name)
            else:
                number *= factor
                used.append(inner)
                waiting += inner.inputs
        return number, names, used

    def _number(self, module: Any) -> float:
        """By what a product multiplies its inputs; NaN if it is not such a product."""
        if module.operands == 2:
            return 1.0 if type(module) is Mul else math.nan
        if module.number is None or (module.reverse and type(module) is Div):
            return math.nan
        number: float = module.number
        return number if type(module) is Mul else 1.0 / (number or math.nan)

    def _gate(self, node: Node) -> Node | None:
        """``x`` times a function of it: GELU written with Erf, SiLU, HardSwish."""
        if type(node.module) is not Mul:
            return None
        number, names, used = self._factors(node)
        if len(names) != 2:
            return None
        for x, gate in (names, names[::-1]):
            found = self._sigmoid(x, gate) if math.isclose(number, 1.0) else None
            found = found or (self._normal(x, gate) if math.isclose(number, 0.5, rel_tol=1e-5) else None)
            if found is not None:
                module, inner = found
                self._drop(*inner, *used[1:])
                return Node(self._free_name(inner[-1], node), module, (x,), node.output)
        return None

    def _sigmoid(self, x: str, gate: str) -> tuple[Module, list[Node]] | None:
        for kind in (nn.Sigmoid, HardSigmoid):
            inner = self._producer(gate, kind)
            if inner is not None and inner.inputs == (x,):
                if kind is nn.Sigmoid:
                    return nn.SiLU(), [inner]
                options: Any = inner.module
                if math.isclose(options.alpha, 1 / 6, rel_tol=1e-6) and options.beta == 0.5:
                    return HardSwish(), [inner]
        return None

    def _normal(self, x: str, gate: str) -> tuple[Module, list[Node]] | None:
        """``1 + erf(x / sqrt(2))``."""
        plus = self._producer(gate, Add)
        erf = self._producer(plus.inputs[0], Erf) if plus and plus.module.number == 1.0 else None  # type: ignore[attr-defined]
        scaled = (self._producer(erf.inputs[0], Div) or self._producer(erf.inputs[0], Mul)) if erf else None
        if not (plus and erf and scaled) or scaled.inputs != (x,):
            return None
        module: Any = scaled.module
        number = None if module.reverse else module.number
        root = math.sqrt(2.0) if type(module) is Div else math.sqrt(0.5)
        if number is None or not math.isclose(number, root, rel_tol=1e-5):
            return None
        return nn.GELU(), [plus, scaled, erf]

    def _free_name(self, inner: Node, last: Node) -> str:
        """The name of a node's scope, if no other node has it."""
        scope = inner.name.rpartition(".")[0]
        name = scope if scope and scope not in self._names else last.name
        self._names.add(name)
        return name
