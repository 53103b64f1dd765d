"""The ONNX graph that a network is written into, and the table that says which function writes which layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np

from growarray.backend import asarray, to_numpy
from growarray.errors import GrowArrayError, shown
from growarray.nn.cast import cast
from growarray.nn.module import Module, Parameter
from growarray.onnx.model import DATA_TYPES, Node, Tensor


@dataclass(frozen=True)
class Edge:
    """A value between two nodes: its name, its shape for the batch that the graph is made for.

    batch : the axis whose size follows the batch, None for a value that does not depend on it
    kind : type of an input or output that is not of floats
    """

    name: str
    shape: tuple[int, ...]
    batch: int | None = 0
    kind: str | None = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


Lowering = Callable[..., Any]
_REGISTERED: dict[type[Module], Lowering] = {}


def register_lowering(kind: type[Module], function: Lowering) -> None:
    """Register how layers of a class are written to ONNX: ``function(graph, layer, *inputs)`` returns the output.

    kind : a subclass of Module; subclasses of it are written the same way, unless they compute something else
    function : takes an :class:`OnnxGraph`, the layer, and an :class:`Edge` for each input; returns an Edge, or a tuple
    A second registration replaces the first one, and one of this library's own.

    Raises TypeError if ``kind`` is not a subclass of Module, or if ``function`` cannot be called.

    >>> from growarray import nn
    >>> class Swap(nn.Module):
    ...     def vjp(self, x):
    ...         return -x, lambda dy: -dy
    >>> register_lowering(Swap, lambda graph, layer, x: graph.node("Neg", x))
    """
    if not (isinstance(kind, type) and issubclass(kind, Module)):
        raise TypeError(f"register_lowering: found {shown(kind)}, expected a subclass of growarray.nn.Module")
    if not callable(function):
        raise TypeError(
            f"register_lowering: found {shown(function)} for {kind.__name__}, expected a function that writes it"
        )
    _REGISTERED[kind] = function


def _computes_alike(own: type, kind: type) -> bool:
    """Whether a subclass computes the same as its base."""
    return all(getattr(own, name) is getattr(kind, name) for name in ("vjp", "forward", "__call__"))


class OnnxGraph:
    """An ONNX graph under construction, as the functions of :func:`register_lowering` get it.

    opset : version of the operator set    dtype : of every float in the file
    writes : by class of layer, this library's own functions    missing : why an operator cannot be written, by name
    """

    def __init__(
        self,
        network: Module,
        opset: int,
        dtype: Any,
        names: Sequence[str],
        writes: Mapping[type[Module], Lowering],
        missing: Mapping[str, str],
    ) -> None:
        self.opset, self.dtype, self._missing = opset, np.dtype(dtype), missing
        self._writes = {**writes, **_REGISTERED}
        self.nodes: list[Node] = []
        self.initializers: dict[str, Tensor] = {}
        self._like = next((p.data for p in network.parameters()), None)
        self._place: list[str] = []
        self._kind = type(network).__name__
        self._names = set(names)
        self._constants: dict[tuple[Any, ...], Edge] = {}
        self._reshaped: dict[str, Edge] = {}  # what was reshaped into a value

    @property
    def prefix(self) -> str:
        """Prefix of the names of the present layer's parameters, such as ``'blocks.0.'``."""
        return "".join(f"{name}." for name in self._place)

    @property
    def where(self) -> str:
        """The present layer, for messages."""
        return f"module {'.'.join(self._place)!r} ({self._kind})" if self._place else f"the network ({self._kind})"

    def lower(self, name: str, module: Module, *inputs: Edge) -> Any:
        """The output of a module that the present layer owns as ``name``; ``''`` for the present layer itself.

        Raises NotImplementedError if nothing says how the module is written.
        """
        outside, self._kind = (list(self._place), self._kind), type(module).__name__
        self._place += [name] if name else []
        try:
            function = self._function(module)
            self._check_count(function, module, inputs)
            return function(self, module, *inputs)
        finally:
            self._place, self._kind = outside

    def _function(self, module: Module) -> Lowering:
        kind = type(module)
        known = next((base for base in kind.__mro__ if base in self._writes), None)
        if known is None:
            raise NotImplementedError(
                f"to_onnx: {self.where} is of a class that cannot be exported; "
                f"register_lowering({kind.__name__}, function) tells how to write it"
            )
        if not _computes_alike(kind, known):
            raise NotImplementedError(
                f"to_onnx: {self.where} computes something other than {known.__name__}, of which it is a subclass; "
                f"register_lowering({kind.__name__}, function) tells how to write it"
            )
        return self._writes[known]

    def _check_count(self, function: Lowering, module: Module, inputs: Sequence[Edge]) -> None:
        try:
            signature(function).bind(self, module, *inputs)
        except TypeError:
            raise TypeError(f"to_onnx: {self.where} does not take {len(inputs)} inputs") from None

    def refuse(self, why: str) -> NotImplementedError:
        """The error to raise if the present layer cannot be written."""
        return NotImplementedError(f"to_onnx: {self.where}: {why}")

    def shape_after(self, module: Module, *inputs: Edge) -> tuple[int, ...]:
        """Shape of the module's output for inputs of these shapes: it is run on ones.

        Raises what the module raises, with its place in the network in front.
        """
        return tuple(self.run(module, *inputs).shape)

    def run(self, module: Module, *inputs: Edge) -> Any:
        """The module's output for inputs of ones; whole numbers are 0, the only index that every axis has."""
        try:
            with np.errstate(all="ignore"):
                return module(*(self._sample(x) for x in inputs))
        except (GrowArrayError, ValueError, TypeError, IndexError) as error:
            raise type(error)(f"to_onnx: {self.where}: {error}") from error

    def _sample(self, x: Edge) -> Any:
        whole = x.kind is not None and np.dtype(x.kind).kind in "iu"
        dtype = self._sample_dtype if x.kind is None else np.dtype(x.kind)
        return asarray(np.zeros(x.shape) if whole else np.ones(x.shape), like=self._like, dtype=dtype)

    def batch_after(self, module: Module, *inputs: Edge) -> int | None:
        """The axis of the module's output that changes with the batch."""
        larger = [
            x if x.batch is None else replace(x, shape=tuple(n + (i == x.batch) for i, n in enumerate(x.shape)))
            for x in inputs
        ]
        if all(x.batch is None for x in inputs):
            return None
        sizes, others = self.shape_after(module, *inputs), self.shape_after(module, *larger)
        changed = [i for i, (m, n) in enumerate(zip(sizes, others, strict=False)) if m != n]
        if len(changed) > 1 or len(sizes) != len(others):
            raise self.refuse("the batch is on several axes of its result; pass dynamic_batch=False")
        return changed[0] if changed else None

    def check_batch(self, x: Edge) -> None:
        """Raise unless the batch is axis 0, as the present layer expects."""
        if x.batch not in (0, None):
            raise self.refuse(f"the batch is axis {x.batch} of its input, expected 0; pass dynamic_batch=False")

    def check_features(self, x: Edge, axes: int = 1) -> None:
        """Raise if one of the last axes, which the present layer takes for the features, is the batch."""
        if x.batch is not None and x.batch >= x.ndim - axes:
            raise self.refuse("the batch is the axis of the features; pass dynamic_batch=False")

    @property
    def _sample_dtype(self) -> Any:
        return np.float32 if self._like is None else self._like.dtype

    def unique(self, name: str) -> str:
        """The name, with a number if it is taken."""
        found, count = name, 1
        while found in self._names:
            found, count = f"{name}_{count}", count + 1
        self._names.add(found)
        return found

    def parameter(self, name: str, value: Any) -> Edge:
        """A weight as an initializer under its name in the state dict: the present layer's prefix and ``name``."""
        full = self.prefix + name
        array = self._host(value.data if isinstance(value, Parameter) else value, f"to_onnx: weight {full!r}")
        known = self.initializers.get(full)
        if known is None:
            if full in self._names:
                raise ValueError(f"to_onnx: {full!r} names an input or output and a weight; choose another name")
            self._names.add(full)
            self.initializers[full] = Tensor(full, array)
        elif known.array.shape != array.shape or not np.array_equal(known.array, array, equal_nan=True):
            raise ValueError(f"to_onnx: {self.where}: two weights are called {full!r}; name the modules differently")
        return Edge(full, array.shape, None, None if array.dtype.kind == "f" else array.dtype.name)

    def weights(self, layer: Any) -> tuple[Edge, Edge | None]:
        """Weight and bias of the present layer, None if it has no bias."""
        weight = self.parameter("weight", layer.weight)
        return weight, None if layer.bias is None else self.parameter("bias", layer.bias)

    def _host(self, value: Any, what: str, *, nonzero: bool = False) -> np.ndarray:
        array = to_numpy(value)
        if array.dtype.kind == "f":
            return np.asarray(cast(array, self.dtype, what, nonzero=nonzero))
        if array.dtype.name not in DATA_TYPES:
            raise self.refuse(
                f"an array of dtype {array.dtype} is not written; expected one of {', '.join(DATA_TYPES)}"
            )
        return array

    def constant(self, value: Any) -> Edge:
        """A fixed array as a node, not a weight. Floats get the dtype of the graph, and equal arrays are one node."""
        given = np.asarray(value)
        array = self._host(given, f"to_onnx: {self.where}: a constant", nonzero=given.size == 1)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            name = self.unique("/".join(["", *self._place, "Constant"]))
            self.nodes.append(Node("Constant", [], [name], name, {"value": array}))
            self._constants[key] = Edge(name, array.shape, None, None if array.dtype.kind == "f" else array.dtype.name)
        return self._constants[key]

    def integers(self, values: int | Sequence[int]) -> Edge:
        """A constant of whole numbers, such as axes and sizes."""
        return self.constant(np.asarray(values, np.int64))

    def node(
        self,
        op: str,
        *inputs: Edge | None,
        shape: Sequence[int] | None = None,
        batch: int | None = None,
        **attributes: Any,
    ) -> Edge:
        """One operator with one output; ``None`` is an input that is left out.

        shape, batch : of the output; by default those of the first input
        attributes : whole numbers, floats, strings, arrays, or sequences of whole numbers
        """
        if op in self._missing:
            raise self.refuse(self._missing[op])
        name = self.unique("/".join(["", *self._place, op]))
        for key, value in attributes.items():
            if isinstance(value, float):
                what = f"to_onnx: {self.where}: {key} of {op}"
                cast(np.asarray(value), np.float32, what, "attributes of ONNX are float32", nonzero=True)
        names = ["" if x is None else x.name for x in inputs]
        while names and not names[-1]:
            names.pop()
        self.nodes.append(Node(op, names, [name], name, attributes))
        first = next(x for x in inputs if x is not None)
        sizes = first.shape if shape is None else tuple(shape)
        return Edge(name, sizes, first.batch if batch is None else batch, first.kind)

    def prune(self, outputs: Sequence[str]) -> None:
        """Drop nodes and weights that no output needs."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        self.nodes = kept[::-1]
        self.initializers = {name: tensor for name, tensor in self.initializers.items() if name in needed}

    def reshape(self, x: Edge, shape: Sequence[int], batch: int = 0) -> Edge:
        """The value in another shape, in which the size of axis ``batch`` follows the batch if ``x`` does."""
        target, moved = [int(size) for size in shape], None if x.batch is None else batch
        source = self._reshaped.get(x.name, x)  # two in a row are one; the first goes if nothing else takes it
        for same in (x, source):
            if tuple(target) == same.shape and moved == same.batch:
                return same
        x = source
        if 0 in target:
            raise self.refuse(f"a value of shape {tuple(target)} is empty, which is not written")
        if moved is not None:
            target[moved] = -1
        edge = self.node("Reshape", x, self.integers(target), shape=shape)
        self._reshaped[edge.name] = x
        return replace(edge, batch=moved)

    def transpose(self, x: Edge, order: Sequence[int]) -> Edge:
        """The axes in another order."""
        if list(order) == list(range(x.ndim)):
            return x
        edge = self.node("Transpose", x, shape=[x.shape[i] for i in order], perm=tuple(order))
        return replace(edge, batch=None if x.batch is None else list(order).index(x.batch))

    def reduce(self, op: str, x: Edge, axes: Sequence[int], keepdims: bool = True) -> Edge:
        """A reduction, such as ``'ReduceMean'``, over some axes, counted from the first."""
        shape = [1 if i in axes else n for i, n in enumerate(x.shape)]
        kept = [i for i in range(x.ndim) if keepdims or i not in axes]
        if self.opset >= 18 or op == "ReduceSum":  # the axes became an input
            edge = self.node(op, x, self.integers(axes), keepdims=int(keepdims))
        else:
            edge = self.node(op, x, axes=tuple(axes), keepdims=int(keepdims))
        batch = None if x.batch is None or x.batch in axes else kept.index(x.batch)
        return Edge(edge.name, tuple(shape[i] for i in kept), batch, edge.kind)

    def spread(self, weight: Edge, ndim: int) -> Edge:
        """A value for each channel (c,) as (1, c, 1, …), so that it meets axis 1 of a value of ``ndim`` axes."""
        if ndim == 2:
            return weight
        return self.reshape(weight, (1, weight.shape[0], *(1,) * (ndim - 2)))
