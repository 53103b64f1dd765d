"""Building a network from the nodes of an ONNX graph: its values, and its modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from growarray.files.errors import Malformed, quote
from growarray.files.limits import Limits
from growarray.nn.arithmetic import Value
from growarray.nn.cast import RangeError, cast
from growarray.nn.graph import Node
from growarray.nn.module import Module, Parameter
from growarray.onnx.graph import OpNode, layer_name
from growarray.onnx.module_names import ModuleNames
from growarray.onnx.value import Array, Constant, Dim, Dynamic, GraphValue, Shape, Unsupported, letter

_TOO_LARGE = "constants need more bytes than half of Limits.expanded and twice the files"
_LAYER = 40  # steps of the limits that making one takes as long as


class Builder:
    """The values and modules made so far.

    opset : version of the default domain    dtype : None or forced    build : makes the modules of one node
    """

    def __init__(
        self, opset: int, limits: Limits, nbytes: int, dtype: Any, build: Callable[[Builder, OpNode], None]
    ) -> None:
        self.opset, self.limits, self.dtype, self._build = opset, limits, dtype, build
        self.values: dict[str, GraphValue] = {}
        self.dynamics: dict[str, Dynamic] = {}  # by the name in the network
        self.nodes: list[Node] = []
        self._budget = limits.expanded // 2 + 2 * nbytes  # of constants and copies, beyond one of each initializer
        self._copied: set[str] = set()
        self.names = ModuleNames()
        self._shared: set[str] = set()  # names of values that more than the next node may take
        self._producers: dict[str, Node] = {}
        self._counter = 0
        self._parameters: dict[tuple[Any, ...], Parameter] = {}
        self._computed: dict[str, Array] = {}  # from weights, by the name in the network
        self._constant_nodes: dict[str, Dynamic] = {}
        self.quantized: dict[str, tuple[str, str, str, int, int]] = {}  # what was: values, scale, zero point, its ends
        self.layouts: dict[str, tuple[bool, float]] = {}
        self.used: set[str] = set()  # names that a further node takes, or that are outputs
        self._steps = limits.steps

    def build(self, node: OpNode) -> None:
        """Fold a node, or make its modules."""
        self._build(self, node)

    def evaluate(self, node: OpNode, read: Callable[[Builder, OpNode], None], *, trained: bool) -> None:
        """Build a node whose inputs are all constants, and record its outputs as constants."""
        mark = len(self.nodes)
        read(self, node)
        for made in self.nodes[mark:]:
            if made.inputs and self._nbytes(self.dynamics[made.output]) > self._budget:
                raise Malformed(_TOO_LARGE)
        results = {
            name: value for name in filter(None, node.outputs) if isinstance(value := self.values.get(name), Dynamic)
        }
        arrays: dict[str, Array] = {}
        for name, value in results.items():
            self._compute(value.name, arrays)
            self.account(arrays[value.name].nbytes)
            if letter(value.kind) != "f" and arrays[value.name].dtype.kind == "f":
                raise Malformed(f"has an input of the type {value.kind}, which is not supported here; expected floats")
            constant = Constant(name, arrays[value.name], trained=trained, derived=not trained)
            constant.kind = value.kind
            self.values[name] = constant
        dropped = {node.output for node in self.nodes[mark:]}
        self._constant_nodes = {key: value for key, value in self._constant_nodes.items() if value.name not in dropped}
        del self.nodes[mark:]

    def _compute(self, name: str, arrays: dict[str, Array]) -> None:
        """The value of this name and of those that it is made of; the nodes have no other inputs than constants."""
        waiting = [name]
        while waiting:
            node = self._producers[waiting[-1]]
            missing = [x for x in node.inputs if x not in arrays]
            waiting += missing
            if not missing:
                arrays[waiting.pop()] = np.asarray(node.module.eval().forward(*[arrays[x] for x in node.inputs]))

    def define(self, name: str, value: GraphValue) -> None:
        """Record a value; each name may be given only once."""
        if name in self.values:
            raise Malformed(f"value {quote(name)} is given twice")
        self.values[name] = value
        if isinstance(value, Dynamic):
            self.dynamics[value.name] = value
            self._shared.add(value.name)

    def has(self, node: OpNode, index: int) -> bool:
        """Whether an optional input is present."""
        return index < len(node.inputs) and node.inputs[index] != ""

    def value(self, node: OpNode, index: int) -> Constant | Dynamic:
        """An input, constant or dynamic. Raises Malformed if no earlier node gives it."""
        name = node.inputs[index] if index < len(node.inputs) else ""
        if not name:
            raise Malformed(f"input {index} is missing")
        if name not in self.values:
            raise Malformed(f"input {quote(name)} is given by no node before it, and is not an input of the graph")
        value = self.values[name]
        if isinstance(value, Unsupported):
            raise Malformed(f"input {quote(name)} {value.reason}")
        return value

    def dynamic(self, node: OpNode, index: int) -> Dynamic:
        """An input as a value of the network; a constant becomes a node of its own."""
        value = self.value(node, index)
        return value if isinstance(value, Dynamic) else self.as_node(value)

    def constant(self, node: OpNode, index: int, what: str) -> Constant:
        """An input that must be constant, or be computed from weights alone; ``what`` names it in the message."""
        value = self.value(node, index)
        if isinstance(value, Constant):
            return value
        name, chain = node.inputs[index], self._of_weights(value.name)
        if letter(value.kind) != "f" or not chain:
            raise Malformed(f"{what} {quote(name)} depends on the input; expected a constant")
        for made in chain:
            self.account(self._nbytes(self.dynamics[made]))
        self._compute(value.name, self._computed)
        self.values[name] = constant = Constant(name, self._computed[value.name], trained=True)
        return constant

    def _of_weights(self, name: str) -> list[str]:
        """What is to be computed for a value made of weights alone, as by weight normalization; empty for any other."""
        chain, seen = [name], {name}
        for found in chain:  # which grows
            if found not in self._producers:  # an input of the network
                return []
            new = [x for x in dict.fromkeys(self._producers[found].inputs) if x not in seen and x not in self._computed]
            chain += new
            seen.update(new)
        return chain

    def optional(self, node: OpNode, index: int, what: str) -> Constant | None:
        """:meth:`constant`, or None if the input is left out."""
        return self.constant(node, index, what) if self.has(node, index) else None

    def whole_numbers(self, node: OpNode, index: int, what: str) -> tuple[int, ...]:
        """An input of whole numbers with at most one axis, all of which the file fixes."""
        sizes = self.sizes(node, index, what)
        if not all(isinstance(n, int) for n in sizes):
            raise Malformed(f"{what} {quote(node.inputs[index])} depends on the size of the input; export fixed sizes")
        return tuple(int(n) for n in sizes)

    def sizes(self, node: OpNode, index: int, what: str) -> tuple[Dim, ...]:
        """An input of whole numbers with at most one axis; a name stands for a size that the network's input tells."""
        value = self.constant(node, index, what)
        if len(value.shape) > 1 or value.size > 1024:
            raise Malformed(f"{what} has shape {value.shape}; expected one axis")
        entries: list[Any] = value.array.reshape(-1).tolist()
        if not all(type(n) is int or type(n) is str for n in entries):
            raise Malformed(f"{what} holds {quote(entries[0])}; expected whole numbers")
        return tuple(entries)

    def optional_number(self, node: OpNode, index: int, what: str) -> float | None:
        """An optional input of one number; None if it is left out."""
        value = self.optional(node, index, what)
        if value is None:
            return None
        self.one_number(value, what)
        return self.as_float(value, what)

    def one_number(self, value: Constant, what: str) -> Array:
        """The array of a constant that has to be one number."""
        if value.size != 1 or value.array.dtype.kind not in "fiub":
            raise Malformed(f"{what} has shape {value.shape} and type {value.array.dtype}; expected one number")
        return value.array

    def as_float(self, value: Constant, what: str) -> float:
        """A constant of one entry as a number, which the float type of the network holds."""
        entry = value.array.reshape(())
        return float(self._cast(entry, f"{what} {quote(value.label)}") if entry.dtype.kind == "f" else entry)

    def account(self, nbytes: int) -> None:
        """Count the bytes of a folded constant, or of one more copy of a weight, before it is made."""
        self._budget -= nbytes
        if self._budget < 0:
            raise Malformed(_TOO_LARGE)

    def _nbytes(self, value: Dynamic) -> int:
        """How many bytes a value will take, as far as its axes are known."""
        bits = int("".join(filter(str.isdigit, value.kind.partition("_")[0])) or 8)  # a bool takes a byte
        size = max(bits // 8, 4 if letter(value.kind) == "f" else 1)
        return size * math.prod(n for n in value.shape or () if isinstance(n, int))

    def sizes_at_run_time(self, dims: Sequence[Dim]) -> tuple[list[Dynamic], tuple[Any, ...]]:
        """Values that have the unknown sizes, and each size: a number, or (index of such a value, its axis)."""
        sources: list[Dynamic] = []
        sizes: list[Any] = []
        for n in dims:
            if isinstance(n, int):
                sizes.append(n)
                continue
            source = next((x for x in self.dynamics.values() if x.shape is not None and n in x.shape), None)
            if source is None or source.shape is None:
                raise Malformed(
                    f"shape {tuple(dims)} depends on the size of the input; export the model with fixed sizes"
                )
            if source not in sources:
                sources.append(source)
            sizes.append((sources.index(source), source.shape.index(n)))
        return sources, tuple(sizes)

    def new_name(self) -> str:
        """A name that nothing has yet: of an axis of unknown size, or of a value."""
        self._counter += 1
        return f"?{self._counter}"

    def floats(self, value: Constant, what: str) -> Array:
        """The values as floats of the network, in memory of their own. Raises Malformed if they are not floats."""
        found = value.array
        if found.dtype.kind != "f":
            raise Malformed(f"{what} {quote(value.label)} is of the type {found.dtype}; expected floats")
        if value.derived or value.key in self._copied:
            self.account(np.dtype(self.float_type(found.dtype)).itemsize * value.size)
        self._copied.add(value.key)
        return np.ascontiguousarray(self._cast(found, f"{what} {quote(value.label)}")).reshape(found.shape)

    def _cast(self, array: Array, what: str) -> Array:
        """A copy in the float type of the network."""
        try:
            return np.asarray(cast(array, self.float_type(array.dtype), what, "pass dtype='float64'", copy=True))
        except RangeError as fault:
            raise Malformed(str(fault)) from None

    def float_type(self, dtype: Any) -> Any:
        """The float type in which the network computes what the file has in ``dtype``: half becomes single."""
        if self.dtype is not None:
            return self.dtype
        return np.float64 if dtype == np.float64 else np.float32

    def parameter(
        self, value: Constant, what: str, form: Any = (), change: Callable[[Array], Array] = lambda x: x, size: int = 0
    ) -> Parameter:
        """The parameter for a constant: one for all nodes that take it in the same ``form``.

        ``size`` is how many entries ``change`` makes, if they are more than the constant has.
        """
        key = (value.key, form)
        if key not in self._parameters:
            self.account(8 * size if size > value.size else 0)
            self._parameters[key] = Parameter(np.ascontiguousarray(change(self.floats(value, what))))
        return self._parameters[key]

    def add(
        self, module: Module, inputs: Sequence[Dynamic], shape: Shape, hint: str, kind: str | None = None
    ) -> Dynamic:
        """Add a module to the network; ``hint`` is its preferred name.

        ``kind`` is the type of its value, by default that of the first input.
        """
        self.check_size(shape)
        self._steps -= _LAYER
        if self._steps < 0:
            raise Malformed(
                f"network has more than {self.limits.steps // _LAYER} layers ({_LAYER} of Limits.steps each)"
            )
        self._counter += 1
        dynamic = Dynamic(f"?{self._counter}", shape, kind or (inputs[0].kind if inputs else "float32"))
        self._append(Node(self.names.unique(hint), module, tuple(x.name for x in inputs), dynamic.name))
        self.dynamics[dynamic.name] = dynamic
        return dynamic

    def _append(self, node: Node) -> None:
        self.nodes.append(node)
        self._producers[node.output] = node

    def producer(self, name: str, kind: type[Module]) -> Any:
        """The node that computes a value of the network, if its module is of this kind; else None."""
        node = self._producers.get(name)
        return node if node is not None and type(node.module) is kind else None

    def bind(self, node: OpNode, value: GraphValue, output: int = 0) -> None:
        """Record a value as an output of a node; if the last module computes it, it takes the output's name."""
        name = node.outputs[output]
        if not name:
            return
        fresh = isinstance(value, Dynamic) and value.name not in self._shared
        if isinstance(value, Dynamic) and fresh and self.nodes and self.nodes[-1].output == value.name:
            del self.dynamics[value.name], self._producers[value.name]
            self._append(replace(self.nodes.pop(), output=name))
            value = replace(value, name=name)
        self.define(name, value)

    def bind_module(
        self,
        node: OpNode,
        module: Module,
        inputs: Sequence[Dynamic],
        shape: Shape,
        weight: Constant | None = None,
        kind: str | None = None,
    ) -> None:
        """Add a module that computes the first output of a node; its name is that of ``weight``, or of the node."""
        self.bind(node, self.add(module, inputs, shape, self.hint(node, weight), kind))

    def as_node(self, value: Constant) -> Dynamic:
        """The value of a node of the network that returns a constant; one node for each constant."""
        if value.key not in self._constant_nodes:
            array = value.array
            if array.dtype == object:
                raise Malformed(f"{quote(value.label)} depends on the size of the input; export fixed sizes")
            if value.trained and array.dtype.kind == "f" and array.size > 1:
                stored: Any = self.parameter(value, "constant")
            else:
                stored = self.floats(value, "constant") if array.dtype.kind == "f" else array
            hint = layer_name(value.label) or "constant"
            self._constant_nodes[value.key] = self.add(Value(stored), (), value.shape, hint, value.kind)
            self._shared.add(self._constant_nodes[value.key].name)
        return self._constant_nodes[value.key]

    def check_size(self, shape: Shape) -> None:
        """Refuse a value that alone takes more bytes than a file may be inflated to; unknown axes count as 1."""
        entries = math.prod(n for n in shape or () if isinstance(n, int))
        if 4 * entries > self.limits.inflated:
            raise Malformed(f"result of shape {shape} takes more than {self.limits.inflated} bytes (Limits.inflated)")

    def hint(self, node: OpNode, weight: Constant | None = None) -> str:
        """The preferred name of a node's module: that of its weight, of the node, or of the operator."""
        return self.names.preferred(node, weight)


def broadcast(builder: Builder, a: Shape, b: Shape) -> Shape:
    """The shape of arithmetic on two values; raises Malformed if sizes differ and neither is 1."""
    if a is None or b is None:
        return None
    short, long = sorted((a, b), key=len)
    result: list[Dim] = list(long[: len(long) - len(short)])
    for m, n in zip(short, long[len(long) - len(short) :], strict=True):
        if isinstance(m, int) and isinstance(n, int) and m != n and 1 not in (m, n):
            raise Malformed(f"operands have shapes {a} and {b}, which do not fit")
        if m == n or m == 1:
            result.append(n)
        elif n == 1 or isinstance(m, int):
            result.append(m)
        else:
            result.append(n if isinstance(n, int) else builder.new_name())
    return tuple(result)


def product(builder: Builder, dims: Sequence[Dim]) -> Dim:
    """The number of entries of axes; a name if one is unknown."""
    if all(isinstance(n, int) for n in dims):
        return math.prod(int(n) for n in dims)
    rest = [n for n in dims if n != 1]
    return rest[0] if len(rest) == 1 else builder.new_name()
