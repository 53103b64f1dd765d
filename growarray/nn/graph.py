"""Graph: modules wired by the names of the values between them, with several inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from growarray.backend import Array, namespace
from growarray.errors import shown
from growarray.nn.module import Module, Parameter, Pullback


@dataclass(frozen=True)
class Node:
    """One module of a :class:`Graph`: the names of the values it takes, and of the value it gives.

    >>> from growarray.nn.activation import ReLU
    >>> Node("act", ReLU(), ("hidden",), "active").output
    'active'
    """

    name: str
    module: Module
    inputs: tuple[str, ...]
    output: str


class Graph(Module):
    """Modules wired by the names of the values between them.

    nodes : in an order in which every node comes after those whose values it takes
    inputs, outputs : names of values; an output may be an input of the graph
    types : dtypes of inputs by name, such as ``{'tokens': 'int64'}``, for what is written; floats if nothing is said
    A module of several inputs has ``vjp(*inputs)`` with a pullback that gives a tuple. Modules are children under the
    names of their nodes, so that the state dict has ``conv1.weight``; ``graph[name]`` is the module of a node and
    :meth:`replace` puts another in its place. :meth:`forward` lets go of each value after its last use.

    Raises TypeError if a module is no :class:`~growarray.nn.module.Module`, and ValueError for two nodes of one
    name, a value that two nodes give, one that no node before gives, and an output listed twice.

    >>> import numpy as np
    >>> from growarray.nn.activation import ReLU
    >>> from growarray.nn.arithmetic import Add
    >>> graph = Graph([Node("act", ReLU(), ("x",), "h"), Node("sum", Add(), ("x", "h"), "y")], ["x"], ["y"])
    >>> graph.run({"x": np.array([-1.0, 2.0])})["y"].tolist()
    [-1.0, 4.0]
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        inputs: Sequence[str],
        outputs: Sequence[str],
        types: Mapping[str, str] | None = None,
    ) -> None:
        self.types = dict(types or {})
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.nodes: tuple[Node, ...] = tuple(nodes)
        _check(self.nodes, self.inputs, self.outputs)
        self._dead = _last_uses(self.nodes, self.outputs)

    def _fields(self) -> Iterator[tuple[str, Any]]:
        yield from ((node.name, node.module) for node in self.nodes)

    def _find_parameters(self, by_id: dict[int, Parameter]) -> None:
        for node in self.nodes:
            node.module._find_parameters(by_id)

    def __getitem__(self, name: str) -> Module:
        return self.nodes[self._index(name)].module

    def __len__(self) -> int:
        return len(self.nodes)

    def _index(self, name: str) -> int:
        for index, node in enumerate(self.nodes):
            if node.name == name:
                return index
        known = ", ".join(node.name for node in self.nodes[:12]) + (", …" if len(self.nodes) > 12 else "")
        raise KeyError(f"Graph: there is no node {shown(name)}; nodes: {known}")

    def replace(self, name: str, module: Module) -> None:
        """Put ``module`` in place of that of the node ``name``; it takes and gives the same values.

        Raises KeyError if there is no such node, TypeError if ``module`` is not a Module.

        >>> from growarray.nn.activation import ReLU, Tanh
        >>> graph = Graph([Node("act", ReLU(), ("x",), "y")], ["x"], ["y"])
        >>> graph.replace("act", Tanh())
        >>> graph["act"]
        Tanh()
        """
        index = self._index(name)
        _check_module(name, module)
        node = dataclasses.replace(self.nodes[index], module=module)
        self.nodes = (*self.nodes[:index], node, *self.nodes[index + 1 :])

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by its name, from every input by its name.

        Raises KeyError if an input is missing, or a name is not an input.
        """
        missing = [name for name in self.inputs if name not in feeds]
        unknown = [name for name in feeds if name not in self.inputs]
        if missing or unknown:
            parts = [
                f"{word}: {', '.join(names)}" for word, names in (("missing", missing), ("unknown", unknown)) if names
            ]
            raise KeyError(f"Graph.run: {'; '.join(parts)}; the inputs are {', '.join(self.inputs) or 'none'}")
        values = self._values([feeds[name] for name in self.inputs])
        return {name: values[name] for name in self.outputs}

    def _values(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """The outputs by name; every other value is dropped after its last use."""
        self._check_inputs(inputs)
        values = dict(zip(self.inputs, inputs, strict=True))
        for node, dead in zip(self.nodes, self._dead, strict=True):
            values[node.output] = node.module.forward(*[values[name] for name in node.inputs])
            for name in dead:
                del values[name]
        return values

    def _check_inputs(self, inputs: Sequence[Array]) -> None:
        if len(inputs) != len(self.inputs):
            raise TypeError(f"Graph: {len(inputs)} inputs were given, expected {', '.join(self.inputs) or 'none'}")

    def forward(self, *inputs: Array) -> Any:
        """The output, or a tuple of the outputs if there are several or none."""
        values = self._values(inputs)
        return self._packed([values[name] for name in self.outputs])

    def _packed(self, values: Sequence[Any]) -> Any:
        return values[0] if len(values) == 1 else tuple(values)

    def __call__(self, *inputs: Array) -> Any:
        """:meth:`forward`."""
        return self.forward(*inputs)

    def vjp(self, *inputs: Array) -> tuple[Any, Pullback]:
        """Value as in :meth:`forward`, and a pullback from a gradient for each output to one for each input.

        A gradient of an output may be None, for zero. Nodes that lead to no output do not run backwards; an input
        that leads to none has the gradient zero. With one input the pullback gives its gradient alone.
        """
        self._check_inputs(inputs)
        values = dict(zip(self.inputs, inputs, strict=True))
        backs: list[Pullback] = []
        for node, dead in zip(self.nodes, self._dead, strict=True):
            values[node.output], back = node.module.vjp(*[values[name] for name in node.inputs])
            backs.append(back)
            for name in dead:
                del values[name]
        outputs = [values[name] for name in self.outputs]

        def pullback(*gradients: Array | None) -> Any:
            if len(gradients) != len(self.outputs):
                raise TypeError(
                    f"pullback of Graph: {len(gradients)} gradients were given, expected one for each of "
                    f"{', '.join(self.outputs)}"
                )
            d_values: dict[str, Array] = {}
            for name, gradient in zip(self.outputs, gradients, strict=True):
                _add(d_values, name, gradient)
            for node, back in zip(reversed(nodes), reversed(backs), strict=True):
                if node.output in d_values:
                    d_node = back(d_values.pop(node.output))
                    for name, d_value in zip(node.inputs, (d_node,) if len(node.inputs) == 1 else d_node, strict=True):
                        _add(d_values, name, d_value)
            d_inputs = [
                d_values[name] if name in d_values else namespace(x).zeros_like(x)
                for name, x in zip(self.inputs, inputs, strict=True)
            ]
            return self._packed(d_inputs)

        nodes = self.nodes
        return self._packed(outputs), pullback

    def extra_repr(self) -> str:
        """Names of the inputs and outputs."""
        return f"{', '.join(self.inputs)} -> {', '.join(self.outputs)}"


def _add(d_values: dict[str, Array], name: str, d_value: Array | None) -> None:
    if d_value is not None:
        d_values[name] = d_values[name] + d_value if name in d_values else d_value


def _check_module(name: str, module: Module) -> None:
    if not isinstance(module, Module):
        raise TypeError(f"Graph: node {shown(name)} holds a {type(module).__name__}, expected a Module")


def _check(nodes: Sequence[Node], inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise unless every name is given once, and before it is taken."""
    for label, names in (("inputs", inputs), ("outputs", outputs), ("nodes", [node.name for node in nodes])):
        repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
        if repeated:
            raise ValueError(f"Graph: the {label} have {shown(sorted(repeated)[0])} twice; names must differ")
    defined = set(inputs)
    for node in nodes:
        _check_module(node.name, node.module)
        for name in node.inputs:
            if name not in defined:
                raise ValueError(
                    f"Graph: node {shown(node.name)} takes {shown(name)}, which is neither an input nor given by a "
                    "node before it; put nodes after those whose values they take"
                )
        if node.output in defined:
            raise ValueError(f"Graph: node {shown(node.name)} gives {shown(node.output)}, which is given already")
        defined.add(node.output)
    for name in outputs:
        if name not in defined:
            raise ValueError(f"Graph: output {shown(name)} is neither an input nor given by a node")


def _last_uses(nodes: Sequence[Node], outputs: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """For each node the values that nothing needs after it."""
    last: dict[str, int] = {node.output: index for index, node in enumerate(nodes)}
    for index, node in enumerate(nodes):
        last.update(dict.fromkeys(node.inputs, index))
    dead: list[list[str]] = [[] for _ in nodes]
    never_dropped = set(outputs)
    for name, index in last.items():
        if name not in never_dropped:
            dead[index].append(name)
    return tuple(tuple(names) for names in dead)
