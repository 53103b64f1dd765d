"""How factorized layers are written to ONNX: one operator for each product of the plan that they run.

Products among the factors alone are computed here, so that the file holds what is left of them as weights.
b modes of both sides that stay · s modes of both that are summed · k new modes of the kernel · f modes of the feature
map alone; each may be several modes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_letters
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growarray.backend import namespace, to_numpy
from growarray.contraction import Plan, parse
from growarray.contraction.problem import Problem
from growarray.factorized import TCL, TRL, FactorizedConv, FactorizedLinear, SubFactorizedConv, SubFactorizedLinear
from growarray.factorized.affine import ContractedLayer, FactorizedAffine
from growarray.factorized.settings import layer_index_of
from growarray.nn.module import Module
from growarray.onnx.lower import Edge, Lowering, OnnxGraph
from growarray.onnx.operators.conv import window_options
from growarray.onnx.operators.window import padded

Modes = tuple[str, ...]
Place = tuple[int, ...]
Array = NDArray[Any]


@dataclass(frozen=True)
class _Map:
    """A feature map (n, channels, *spatial), and the modes that its channels are made of."""

    edge: Edge
    modes: Modes


@dataclass(frozen=True)
class _Kernel:
    """A constant, and its modes; ``new`` are those that the feature map has not, ``met`` the convolution modes."""

    array: Array
    modes: Modes
    new: Modes
    met: Modes

    def ordered(self, modes: Sequence[str]) -> Array:
        """Its axes in this order."""
        return self.array.transpose([self.modes.index(m) for m in modes])


class _Path:
    """One plan, written step by step; the feature map is its first operand, the batch that one's first mode."""

    def __init__(self, graph: OnnxGraph, plan: Plan, bias: Edge | None) -> None:
        self.graph, self.bias, self.written = graph, bias, 0
        self.problem = Problem(parse(plan.equation), plan.shapes, **plan.geometry)
        first = self.problem.terms[0]
        self.spatial: Modes = tuple(m for m in first if m in self.problem.conv)
        self.batch = first[0]
        self.output = self._channels(self.problem.output)
        self.groups = set(self._channels(first)) & set(self.output)

    def run(self, tree: Sequence[tuple[int, int]], x: Edge, factors: Sequence[Array]) -> Edge:
        """The output of all steps for the feature map ``x`` and the arrays of the factors."""
        constants = {2 << i: self._operand(2 << i, array) for i, array in enumerate(factors)}
        feature = _Map(x, self._channels(self.problem.terms[0]))
        for left, right in tree:
            if not (left | right) & 1:
                constants[left | right] = self._fold(left, right, constants[left], constants[right])
                continue
            mask = right if left & 1 else left
            modes, known = self.problem.modes(mask), {*feature.modes, *self.spatial}
            new, met = (tuple(m for m in modes if (m in known) is inside) for inside in (False, True))
            kernel = _Kernel(constants[mask], modes, new, tuple(m for m in met if m in self.spatial))
            feature = self._step(feature, kernel, left | right)
        y = self._arranged(feature, self.output).edge
        return y if self.bias is None else self.graph.node("Add", y, self.graph.spread(self.bias, y.ndim))

    def _channels(self, modes: Sequence[str]) -> Modes:
        return tuple(m for m in modes if m != self.batch and m not in self.spatial)

    def _size(self, modes: Sequence[str]) -> int:
        return math.prod(self._sizes(modes))

    def _sizes(self, modes: Sequence[str]) -> tuple[int, ...]:
        return tuple(self.problem.size[m] for m in modes)

    def _operand(self, mask: int, array: Array) -> Array:
        """A factor in double precision, its modes in the order in which partial results keep them."""
        term = self.problem.terms[mask.bit_length() - 1]
        return array.astype(np.float64).transpose([term.index(m) for m in self.problem.modes(mask)])

    def _fold(self, left: int, right: int, a: Array, b: Array) -> Array:
        """The product of two constants."""
        parts = [self.problem.modes(mask) for mask in (left, right, left | right)]
        letters = dict(zip(dict.fromkeys(m for part in parts for m in part), ascii_letters, strict=False))
        first, second, out = ("".join(letters[m] for m in part) for part in parts)
        return np.asarray(np.einsum(f"{first},{second}->{out}", a, b, optimize=True))

    def _weight(self, array: Array) -> Edge:
        self.written += 1
        return self.graph.parameter(f"path.{self.written - 1}", array)

    def _step(self, x: _Map, kernel: _Kernel, both: int) -> _Map:
        """The product of the feature map and a constant; ``both`` are the operands in it."""
        kept = self.problem.modes(both)
        shared = [m for m in x.modes if m in kernel.modes]
        b, s = (tuple(m for m in shared if (m in kept) is stays) for stays in (True, False))
        f = tuple(m for m in x.modes if m not in shared)
        if not (kernel.met or s or kernel.new):
            return self._scale(x, kernel, b)
        last = both == self.problem.everything
        if not self.spatial and not (b or f):
            return self._product(x, kernel, s, last)
        if self.spatial and (not f or set(f) <= self.groups or (kernel.met and not s)):
            b = tuple(m for m in x.modes if m not in s)  # what the kernel has not is a group too, with equal weights
            return self._convolve(x, kernel, (b, s, ()), both, last)
        if kernel.met:
            return self._convolve(x, kernel, (b, s, f), both, last)
        return self._einsum(x, kernel, self.output if last else (*b, *kernel.new, *f))

    def _scale(self, x: _Map, kernel: _Kernel, b: Modes) -> _Map:
        """A product of the elements with a weight for each entry of ``b``."""
        thin = [self.problem.size[m] if m in b else 1 for m in x.modes]
        weights = np.broadcast_to(kernel.ordered(b).reshape(thin), self._sizes(x.modes))
        weight = self._weight(weights.reshape(-1, *(1,) * len(self.spatial)))
        return replace(x, edge=self.graph.node("Mul", x.edge, weight))

    def _product(self, x: _Map, kernel: _Kernel, s: Modes, last: bool) -> _Map:
        """A product of matrices: rows of the feature map, and the kernel."""
        weight = self._weight(kernel.ordered((*kernel.new, *s)).reshape(self._size(kernel.new), self._size(s)))
        bias = self._last_bias(last and kernel.new == self.output)
        x = self._arranged(x, s)
        shape = (x.edge.shape[0], self._size(kernel.new))
        return _Map(self.graph.node("Gemm", x.edge, weight, bias, shape=shape, transB=1), kernel.new)

    def _last_bias(self, attached: bool) -> Edge | None:
        """The bias, if the last operator can add it; it is then done with."""
        if not attached:
            return None
        bias, self.bias = self.bias, None
        return bias

    def _einsum(self, x: _Map, kernel: _Kernel, out: Modes) -> _Map:
        """A product without a convolution, over modes that are split up for it."""
        letters = dict(zip((self.batch, *dict.fromkeys((*x.modes, *out)), *self.spatial), ascii_letters, strict=False))
        inner, own, result = (
            "".join(letters[m] for m in modes)
            for modes in ((self.batch, *x.modes, *self.spatial), kernel.modes, (self.batch, *out, *self.spatial))
        )
        rows, spatial = x.edge.shape[0], x.edge.shape[2:]
        split = self.graph.reshape(x.edge, (rows, *self._sizes(x.modes), *spatial))
        shape = (rows, *self._sizes(out), *spatial)
        weight = self._weight(kernel.array)
        y = self.graph.node("Einsum", split, weight, shape=shape, equation=f"{inner},{own}->{result}")
        return _Map(self.graph.reshape(y, (rows, self._size(out), *spatial)), out)

    def _convolve(self, x: _Map, kernel: _Kernel, parts: tuple[Modes, Modes, Modes], both: int, last: bool) -> _Map:
        """A grouped convolution: ``b`` are its groups, ``f`` goes to the batch."""
        b, s, f = parts
        x = self._arranged(x, (*f, *b, *s))
        rows, spatial = x.edge.shape[0], x.edge.shape[2:]
        edge = self.graph.reshape(x.edge, (rows * self._size(f), self._size((*b, *s)), *spatial))
        axes = {self.spatial.index(m): self.problem.conv[m].axis for m in kernel.met}
        if any(axis.padding_mode != "zeros" for axis in axes.values()):
            edge = padded(self.graph, edge, {i + 2: axis for i, axis in axes.items()})
            axes = {i: replace(axis, before=0, after=0) for i, axis in axes.items()}
        weight, new = self._taps(kernel, b, s), (*b, *kernel.new)
        bias = self._last_bias(last and not f and new == self.output)
        positions = tuple(self.problem.extent(m, both) for m in self.spatial)
        options = window_options(axes, weight.shape[2:], self._size(b))
        y = self.graph.node("Conv", edge, weight, bias, shape=(edge.shape[0], self._size(new), *positions), **options)
        return _Map(self.graph.reshape(y, (rows, self._size((*f, *new)), *positions)), (*f, *new))

    def _taps(self, kernel: _Kernel, b: Modes, s: Modes) -> Edge:
        """The kernel as Conv wants it, (b k, s, *taps); entries of ``b`` that it has not are all alike."""
        taps = tuple(self.problem.conv[m].taps if m in kernel.met else 1 for m in self.spatial)
        thin = [self.problem.size[m] if m in kernel.modes else 1 for m in b]
        rest = (self._size(kernel.new), self._size(s), *taps)
        transposed = kernel.ordered((*(m for m in b if m in kernel.modes), *kernel.new, *s, *kernel.met))
        whole = np.broadcast_to(transposed.reshape(*thin, *rest), (*self._sizes(b), *rest))
        return self._weight(whole.reshape(self._size((*b, *kernel.new)), *rest[1:]))

    def _arranged(self, x: _Map, order: Modes) -> _Map:
        """The same map with the modes of its channels in another order."""
        if order == x.modes:
            return x
        rows, spatial = x.edge.shape[0], x.edge.shape[2:]
        split = self.graph.reshape(x.edge, (rows, *self._sizes(x.modes), *spatial))
        places = [1 + x.modes.index(m) for m in order]
        transposed = self.graph.transpose(split, (0, *places, *range(1 + len(order), split.ndim)))
        return _Map(self.graph.reshape(transposed, (rows, self._size(order), *spatial)), order)


def _bias(graph: OnnxGraph, layer: FactorizedConv | ContractedLayer, place: Place) -> Edge | None:
    """The bias; of one layer of a joint one, or of several modes, it is not what the state dict has: another name."""
    if layer.bias is None:
        return None
    values = layer.bias.data[(*place, ...)]
    if place or values.ndim > 1:
        return graph.parameter("path.bias", namespace(values).reshape(values, (-1,)))
    return graph.parameter("bias", layer.bias)


def _factors(graph: OnnxGraph, layer: FactorizedConv | ContractedLayer, plan: Plan, place: Place) -> list[Array]:
    """The arrays that the plan contracts with the input."""
    dropout = layer.weight.dropout if isinstance(layer, FactorizedConv | FactorizedAffine) else None
    if dropout is not None and dropout.drop_test and dropout.p:
        raise graph.refuse("tensor dropout with drop_test=True is random in inference; call remove_tensor_dropout")
    operands = layer.weight._operands_vjp if isinstance(layer, FactorizedConv) else layer._operands
    parts, _ = operands(place, drop=False)
    return [to_numpy(part).reshape(sizes) for part, sizes in zip(parts, plan.shapes[1:], strict=True)]


def _conv(graph: OnnxGraph, layer: FactorizedConv, x: Edge, *, indices: Place | int = 0) -> Edge:
    graph.check_batch(x)
    place = layer_index_of(indices, layer.layers_shape)
    graph.shape_after(layer.get_conv(place) if place else layer, x)
    plan = layer.plan(x.shape, indices=indices)
    factors = _factors(graph, layer, plan, place)
    bias = _bias(graph, layer, place) if layer.settings(indices).has_bias else None
    return _Path(graph, plan, bias).run(plan.tree, x, factors)


def _sub_conv(graph: OnnxGraph, layer: SubFactorizedConv, x: Edge) -> Edge:
    joint: Any = layer.main_conv
    return _conv(graph, joint, x, indices=layer.indices)


def _contracted(graph: OnnxGraph, layer: ContractedLayer, x: Edge, *, indices: int = 0) -> Edge:
    shape, axes = graph.shape_after(layer, x), len(layer._input)
    graph.check_features(x, axes)
    plan, place = layer.plan(x.shape, indices=indices), layer._layer_index(indices)
    factors = _factors(graph, layer, plan, place)
    rows = graph.reshape(x, (math.prod(x.shape[:-axes]), math.prod(layer._input)))
    y = _Path(graph, plan, _bias(graph, layer, place)).run(plan.tree, rows, factors)
    return graph.reshape(y, shape, x.batch or 0)


def _sub_linear(graph: OnnxGraph, layer: SubFactorizedLinear, x: Edge) -> Edge:
    return _contracted(graph, layer.main_linear, x, indices=layer.indices)


WRITES: dict[type[Module], Lowering] = {
    FactorizedConv: _conv,
    FactorizedLinear: _contracted,
    SubFactorizedConv: _sub_conv,
    SubFactorizedLinear: _sub_linear,
    TCL: _contracted,
    TRL: _contracted,
}
"""The function that writes each class of layer."""
