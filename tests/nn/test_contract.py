"""One contract for every layer, on every array library."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.backend import namespace, to_numpy
from growarray.growing import norm as growing
from growarray.nn.module import Module
from growarray.testing import assert_close, check_vjp
from tests.conftest import LIBRARIES, Library
from tests.nn.layers import EXAMPLES, Example

each_layer = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)


def make(example: Example, library: Library = LIBRARIES["numpy"]) -> tuple[Module, Any, Any]:
    """The layer with read-only parameters that are not all alike, an input and an output gradient."""
    layer, rng = example.build(), np.random.default_rng(4)
    for parameter in layer.parameters():
        parameter.data = parameter.data + 0.3 * rng.standard_normal(parameter.shape)
    library.adopt(layer)
    x = rng.standard_normal(example.shape)
    return (
        layer,
        library.asarray(np.abs(x) + 0.2 if example.positive else x),
        library.asarray(rng.standard_normal(example.output)),
    )


def run(layer: Module, x: Any, dy: Any) -> dict[str, np.ndarray]:
    """Value, gradients and state after one forward and one backward pass."""
    layer.zero_grad()
    y, pullback = layer.vjp(x)
    result = {"y": y, "dx": pullback(dy)}
    result |= {f"d{name}": p.grad for name, p in layer.named_parameters()} | layer.state_dict()
    return {name: to_numpy(value).copy() for name, value in result.items()}


def as_function(layer: Module) -> Callable[..., Any]:
    """The layer as a pure function of its input and its parameters."""

    def function(x: Any, *values: Any) -> Any:
        for parameter, value in zip(layer.parameters(), values, strict=True):
            parameter.data = value
        y, back = layer.vjp(x)

        def pullback(dy: Any) -> Any:
            layer.zero_grad()
            return (back(dy), *[p.grad for p in layer.parameters()])

        return y, pullback

    return function


def test_every_layer_has_an_example() -> None:
    own = {value for name, value in vars(growing).items() if name[0] != "_" and inspect.isclass(value)}
    public = {*(getattr(nn, n) for n in nn.__all__), *(c for c in own if c.__module__ == growing.__name__)}
    layers = {c for c in public if inspect.isclass(c) and issubclass(c, Module) and c is not Module}
    whole = {nn.Embedding}  # its input has no derivative: tests/nn/test_embedding.py
    assert layers - whole == {type(example.build()) for example in EXAMPLES.values()}


@each_layer
def test_pullback_is_the_derivative_by_input_and_parameters(example: Example) -> None:
    layer, x, _ = make(example)
    check_vjp(as_function(layer), x, *[p.data for p in layer.parameters()], rtol=2e-7)


@each_layer
def test_every_library_gives_numpy_s_numbers_and_inputs_stay(example: Example, xp: Library) -> None:
    expected = run(*make(example))
    layer, x, dy = make(example, xp)
    values = {"x": x, "dy": dy} | {name: p.data for name, p in layer.named_parameters()}
    before = {name: to_numpy(value).copy() for name, value in values.items()}
    for name, value in run(layer, x, dy).items():
        assert_close(value, expected[name], rtol=1e-12, what=name)
    y, pullback = layer.vjp(x)
    dx = pullback(dy)
    assert tuple(y.shape) == tuple(layer(x).shape) == example.output
    assert namespace(y, dx, x) is namespace(x)
    assert y.dtype == dx.dtype == x.dtype
    for name, value in values.items():
        assert np.array_equal(to_numpy(value), before[name]), name


@each_layer
def test_a_second_call_gives_the_same_and_gradients_add_up(example: Example, xp: Library) -> None:
    layer, x, dy = make(example, xp)
    (y, pullback), (again, pullback_again) = layer.vjp(x), layer.vjp(x)
    assert_close(again, y, rtol=0.0)
    assert_close(layer(x), y, rtol=1e-14)
    dx = pullback(dy)
    once = {name: to_numpy(p.grad).copy() for name, p in layer.named_parameters()}
    assert_close(pullback_again(dy), dx, rtol=0.0)
    assert_close(pullback(dy), dx, rtol=0.0)
    for name, parameter in layer.named_parameters():
        assert_close(parameter.grad, 3.0 * once[name], rtol=1e-14, what=name)


@each_layer
def test_state_dict_goes_round(example: Example, xp: Library) -> None:
    layer, x, dy = make(example, xp)
    run(layer, x, dy)
    other = xp.adopt(example.build())
    other.train(layer.training)
    for name, part in zip(other.modules(), layer.modules(), strict=True):
        name.training = part.training
    report = other.load_state_dict(layer.state_dict())
    assert not report
    expected = run(layer, x, dy)
    for name, value in run(other, x, dy).items():
        assert_close(value, expected[name], rtol=0.0, what=name)


@each_layer
def test_no_array_is_shared(example: Example) -> None:
    layer, x, dy = make(example)
    run(layer, x, dy)
    state = list(layer.state_dict().values())
    held = [p.data for p in layer.parameters()] + [p.grad for p in layer.parameters()]
    arrays = [*held, *state, dy]
    for i, a in enumerate(arrays):
        assert not any(np.shares_memory(a, b) for b in arrays[i + 1 :])


@each_layer
def test_extended_passes_agree_with_the_plain_ones(example: Example) -> None:
    layer, x, dy = make(example)
    y, y_ext = layer.extended_forward(x, None)
    assert y_ext is None
    assert_close(y, layer(x), rtol=0.0)
    assert layer.extended_forward(None, None) == (None, None)
    (value, ext), pullback = layer.extended_vjp(x, None)
    assert ext is None
    assert_close(value, y, rtol=0.0)
    dx, dx_ext = pullback(dy, None)
    assert dx_ext is None
    assert_close(dx, layer.vjp(x)[1](dy), rtol=0.0)
    (none, _), pullback_ext = layer.extended_vjp(None, x)
    assert none is None
    assert pullback_ext(None, dy)[0] is None


@each_layer
def test_repr_names_the_layer(example: Example) -> None:
    layer = example.build()
    assert repr(layer).startswith(type(layer).__name__ + "(")


# For layers of other packages.
PLAIN = (
    test_pullback_is_the_derivative_by_input_and_parameters,
    test_no_array_is_shared,
    test_repr_names_the_layer,
)
ON_LIBRARIES = (
    test_every_library_gives_numpy_s_numbers_and_inputs_stay,
    test_a_second_call_gives_the_same_and_gradients_add_up,
    test_state_dict_goes_round,
)
