"""Graph: wiring, several inputs and outputs, shared modules, replacing, and what it refuses."""

from __future__ import annotations

import copy
import weakref
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.nn.arithmetic import Value
from growarray.nn.graph import Graph, Node
from growarray.nn.module import Module, Parameter
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library


def linear(d: int, o: int) -> nn.Linear:
    return nn.Linear(d, o, rng=np.random.default_rng(d + o), dtype=np.float64)


def two_by_two() -> Graph:
    """Outputs ``(sum, x)`` of inputs ``x`` and ``z``, a trained shift used twice, and a branch that goes nowhere."""
    nodes = [
        Node("fc", linear(3, 4), ("x",), "h"),
        Node("shift", Value(Parameter(np.arange(4.0))), (), "c"),
        Node("left", nn.Add(), ("h", "c"), "l"),
        Node("gate", nn.Mul(), ("l", "z"), "g"),
        Node("lost", nn.Mul(np.ones(4)), ("g",), "nowhere"),
        Node("sum", nn.Sub(), ("g", "c"), "y"),
    ]
    return Graph(nodes, ["x", "z"], ["y", "x"])


def test_gradients_by_both_inputs_and_the_parameters() -> None:
    graph, rng = two_by_two(), np.random.default_rng(0)
    parameters = graph.parameters()

    def function(x: Any, z: Any, *values: Any) -> Any:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        (y, _), back = graph.vjp(x, z)

        def pullback(dy: Any) -> Any:
            graph.zero_grad()
            return (*back(dy, None), *[p.grad for p in parameters])

        return y, pullback

    x, z = rng.standard_normal((2, 3)), rng.standard_normal((2, 4))
    check_vjp(function, x, z, *[p.data for p in parameters])
    (_, same), back = graph.vjp(x, z)
    assert same is x
    first, both = back(z, None), back(z, x)
    assert_close(both[0] - first[0], x, rtol=1e-12)


def test_run_takes_and_gives_names() -> None:
    graph = two_by_two()
    x, z = np.ones((2, 3)), np.ones((1, 4))
    results = graph.run({"z": z, "x": x})
    assert list(results) == ["y", "x"]
    assert_close(results["y"], graph(x, z)[0], rtol=0.0)
    with pytest.raises(KeyError, match=r"missing: z; unknown: w; the inputs are x, z"):
        graph.run({"x": x, "w": z})
    with pytest.raises(TypeError, match="1 inputs were given, expected x, z"):
        graph(x)


def test_a_gradient_may_be_none_and_a_lost_branch_has_none() -> None:
    graph = two_by_two()
    _, back = graph.vjp(np.ones((2, 3)), np.ones((2, 4)))
    dx, dz = back(None, np.ones((2, 3)))
    assert dx.tolist() == np.ones((2, 3)).tolist()
    assert not dz.any()
    assert all(p.grad is None for p in graph.parameters())
    with pytest.raises(TypeError, match="1 gradients were given, expected one for each of y, x"):
        back(dx)


def test_one_parameter_in_two_nodes_counts_every_use() -> None:
    weight = Parameter(np.array([2.0, 3.0]))
    graph = Graph([Node("a", nn.Mul(weight), ("x",), "h"), Node("b", nn.Mul(weight), ("h",), "y")], ["x"], ["y"])
    _, back = graph.vjp(np.array([1.0, 1.0]))
    back(np.ones(2))
    assert weight.grad is not None
    assert weight.grad.tolist() == [4.0, 6.0]
    assert len(graph.parameters()) == 1
    assert list(graph.state_dict()) == ["a.value", "b.value"]


def test_forward_lets_go_of_values_after_their_last_use() -> None:
    class Watch(Module):
        def __init__(self) -> None:
            self.seen: list[Any] = []
            self.alive: list[int] = []

        def vjp(self, x: Any) -> Any:
            self.alive.append(sum(ref() is not None for ref in self.seen))
            y = x + 1.0
            self.seen.append(weakref.ref(y))
            return y, lambda dy: dy

    watch = Watch()
    names = [f"v{i}" for i in range(6)]
    graph = Graph([Node(a, watch, (a,), b) for a, b in pairwise(names)], ["v0"], ["v5"])
    graph(np.ones(3))
    assert max(watch.alive) <= 1


def test_replace_puts_another_module_in_its_place() -> None:
    graph = two_by_two()
    other = linear(3, 4)
    twin = copy.deepcopy(graph)
    graph.replace("fc", other)
    assert graph["fc"] is other
    assert list(graph.state_dict()) == list(twin.state_dict())
    assert not np.array_equal(twin["fc"].weight.data, np.zeros((4, 3)))
    graph.train(False)
    assert not other.training
    with pytest.raises(KeyError, match="there is no node 'conv'; nodes: fc, shift"):
        graph.replace("conv", other)
    with pytest.raises(TypeError, match="node 'fc' holds a str, expected a Module"):
        graph.replace("fc", "relu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "outputs", "message"),
    [
        ([Node("a", nn.ReLU(), ("h",), "y")], ["y"], "node 'a' takes 'h', which is neither an input"),
        ([Node("a", nn.ReLU(), ("y",), "y")], ["y"], "node 'a' takes 'y', which is neither an input"),
        (
            [Node("a", nn.ReLU(), ("x",), "x")],
            ["x"],
            "node 'a' gives 'x', which is given already",
        ),
        ([Node("a", nn.ReLU(), ("x",), "y")] * 2, ["y"], "the nodes have 'a' twice"),
        ([], ["y"], "output 'y' is neither an input nor given by a node"),
        ([], ["x", "x"], "the outputs have 'x' twice"),
    ],
    ids=["undefined", "cycle", "given-twice", "one-name", "no-output", "output-twice"],
)
def test_wiring_that_makes_no_sense_is_refused(nodes: list[Node], outputs: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph(nodes, ["x"], outputs)


def test_a_node_must_hold_a_module() -> None:
    with pytest.raises(TypeError, match="node 'a' holds a function, expected a Module"):
        Graph([Node("a", lambda x: x, ("x",), "y")], ["x"], ["y"])  # type: ignore[arg-type]


def test_every_library_gives_the_same(xp: Library) -> None:
    graph = two_by_two()
    x, z = np.ones((2, 3)), np.full((2, 4), 0.5)
    expected, back = graph.vjp(x, z)
    gradients = back(np.ones((2, 4)), np.ones((2, 3)))
    graph.zero_grad()
    moved = xp.adopt(graph)
    assert isinstance(moved, Graph)
    found, back = moved.vjp(xp.asarray(x), xp.asarray(z))
    for got, wanted in zip(
        (*found, *back(xp.asarray(np.ones((2, 4))), xp.asarray(np.ones((2, 3))))), (*expected, *gradients), strict=True
    ):
        assert_close(got, wanted, rtol=1e-12)
