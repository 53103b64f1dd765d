"""The convolution: its derivative, and equality with the dense convolution for every option."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growarray.backend import namespace
from growarray.factorized import FactorizedConv
from growarray.nn.module import Module
from growarray.testing import assert_close, check_vjp
from tests.conftest import LIBRARIES, Library
from tests.factorized.kernels import FORMATS, IMPLEMENTATIONS, as_function, dense_output, layer, rng
from tests.nn import test_contract as contract
from tests.nn.layers import Example
from tests.pairs import pairs

each_format = pytest.mark.parametrize("name", FORMATS)
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
ORDERS: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    1: ((3,), (4,)),
    2: ((2, 3), (3, 4)),
    3: ((2, 1, 2), (2, 3, 2)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride": {"stride": 2},
    "stride-per-axis": {"stride": (2, 1), "padding": (1, 0)},
    "padding": {"padding": 2},
    "padding-pairs": {"padding": ((0, 1), (2, 0))},
    "same": {"padding": "same"},
    "same-dilated": {"padding": "same", "dilation": (2, 1)},
    "valid": {"padding": "valid"},
    "dilation": {"dilation": (1, 2), "padding": 1},
    "everything": {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)},
    "groups": {"groups": 2},
    "groups-padding-stride": {"groups": 2, "stride": (2, 1), "padding": "valid"},
    "depthwise": {"groups": 4, "padding": 1},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": (2, 1), "padding_mode": "replicate", "stride": 2},
    "circular": {"padding": 1, "padding_mode": "circular", "groups": 2},
    "bias": {"bias": True},
    "bias-groups": {"bias": True, "groups": 2},
    "joint": {"n_layers": 2, "bias": True},
    "joint-groups": {"n_layers": (2, 2), "bias": True, "groups": 2, "padding": "same"},
}


@pytest.mark.parametrize(("name", "implementation", "order"), pairs(FORMATS, IMPLEMENTATIONS, list(ORDERS)))
def test_pullback_is_the_derivative(name: str, implementation: str, order: int) -> None:
    kernel, spatial = ORDERS[order]
    made = layer(name, 2, 2, kernel, padding=1, stride=2, bias=True, implementation=implementation)
    x = rng(7).standard_normal((2, 2, *spatial))
    check_vjp(as_function(made), x, *[p.data for p in made.parameters()], rtol=2e-7)


@each_implementation
@each_format
def test_pullback_of_a_joint_layer_is_the_derivative(name: str, implementation: str) -> None:
    made = layer(name, 4, 2, (2,), n_layers=(2, 2), groups=2, bias=True, implementation=implementation)
    x = rng(7).standard_normal((1, 4, 3))
    check_vjp(as_function(made, (1, 0)), x, *[p.data for p in made.parameters()], rtol=2e-7)


@pytest.mark.parametrize(("name", "options", "implementation"), pairs(FORMATS, OPTIONS, IMPLEMENTATIONS))
def test_it_is_the_dense_convolution_with_its_kernel(name: str, options: str, implementation: str) -> None:
    made = layer(name, 4, 4, (3, 2), implementation=implementation, **OPTIONS[options])
    x = rng(5).standard_normal((2, 4, 6, 7))
    for place in made._settings:
        expected = dense_output(made, x, place or 0)
        assert_close(made(x, place or 0), expected, rtol=1e-12)
        y, pullback = made.vjp(x, place or 0)
        assert_close(y, expected, rtol=1e-12)
        assert pullback(y).shape == x.shape


@settings(max_examples=80, deadline=None, derandomize=True)
@given(data=st.data())
def test_random_geometry(data: st.DataObject) -> None:
    order, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    each = [data.draw(st.tuples(*[st.integers(1, 3)] * 3, st.integers(0, 2), st.integers(0, 2))) for _ in range(order)]
    kernel, stride, dilation, before, after = zip(*each, strict=True)
    spatial = [d * (k - 1) + 1 + data.draw(st.integers(0, 3)) for k, d in zip(kernel, dilation, strict=True)]
    channels = [groups * data.draw(st.integers(1, 2)) for _ in range(2)]
    made = layer(
        data.draw(st.sampled_from(FORMATS)), *channels, kernel, stride=stride, dilation=dilation, groups=groups,
        padding=tuple(zip(before, after, strict=True)), rank=data.draw(st.sampled_from([1, 2, 0.4])),
        implementation=data.draw(st.sampled_from(IMPLEMENTATIONS)), bias=data.draw(st.booleans()),
    )  # fmt: skip
    x = rng(1).standard_normal((data.draw(st.integers(1, 3)), channels[0], *spatial))
    y, pullback = made.vjp(x)
    assert_close(y, dense_output(made, x), rtol=1e-11)
    # the convolution is linear in its input: <dy, conv(x)> is <pullback(dy), x> but for the bias
    dy = rng(2).standard_normal(y.shape)
    bias = 0.0 if made.bias is None else float(np.sum(dy * made.bias.data.reshape(-1, *(1,) * order)))
    assert np.sum(pullback(dy) * x) == pytest.approx(np.sum(dy * y) - bias, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("name", "implementation", "order"), pairs(FORMATS, IMPLEMENTATIONS, [1, 3, 4, 5]))
def test_any_order(name: str, implementation: str, order: int) -> None:
    made = layer(name, 2, 3, 2, order, padding=1, stride=2, implementation=implementation)
    x = rng(5).standard_normal((1, 2, *(3, 2, 4, 3, 2)[:order]))
    assert_close(made(x), dense_output(made, x), rtol=1e-12)


@pytest.mark.parametrize("path", [[(0, 1)] * 5, "greedy", "optimal", [(0, 2), (0, 4), (0, 1), (0, 1), (0, 1)]], ids=str)
def test_any_path_the_engine_takes(path: Any) -> None:
    made = layer("CP", 3, 4, (3, 3), implementation=path)
    x = rng(1).standard_normal((2, 3, 5, 5))
    assert_close(made(x), dense_output(made, x), rtol=1e-12)


def test_the_plan_is_what_runs() -> None:
    made = FactorizedConv(16, 32, (3, 3), padding=1, rank=4)
    todo = made.plan((8, 16, 28, 28))
    assert todo.equation == "n c y x, r, o r, c r, y r, x r -> n o y x | y, x"
    assert (todo.output_shape, str(todo.dtype), todo.training) == ((8, 32, 28, 28), "float32", False)
    assert made.plan((8, 16, 28, 28), training=True).training
    three = [made.plan((8, 16, 28, 28)).with_path(p) for p in ("factorized", "mobilenet", "reconstructed")]
    assert todo.seconds <= 1.05 * min(p.seconds for p in three)  # within that, fewer operations decide
    grouped = FactorizedConv(16, 32, (3,), groups=4, factorization="tt", rank=4, n_layers=3)
    assert grouped.plan((8, 16, 28), indices=2).equation == "n g c x, c b1, b1 x b2, b2 g o -> n g o x | x"


@each_format
def test_every_library_gives_numpy_s_numbers(name: str, xp: Library) -> None:
    made = layer(name, 4, 2, (2, 3), n_layers=2, groups=2, bias=True, padding=1)
    x, dy = rng(1).standard_normal((2, 4, 4, 5)), rng(2).standard_normal((2, 2, 5, 5))
    y, pullback = made.vjp(x, 1)
    expected = [y, pullback(dy), *(p.grad for p in made.parameters())]
    made.zero_grad()
    xp.adopt(made)
    y, pullback = made.vjp(xp.asarray(x), 1)
    found = [y, pullback(xp.asarray(dy)), *(p.grad for p in made.parameters())]
    for mine, numpys in zip(found, expected, strict=True):
        assert namespace(mine) is namespace(made.parameters()[0].data)
        assert_close(mine, numpys, rtol=1e-12)


@each_format
def test_arrays_of_two_libraries_are_refused(name: str) -> None:
    made = layer(name, 2, 2, (2,))
    with pytest.raises(TypeError, match="arrays of two libraries cannot be mixed"):
        made(LIBRARIES["array_api_strict"].asarray(np.ones((1, 2, 4))))


def joint(index: Any) -> Module:
    return layer("TT", 2, 3, (2, 2), n_layers=(2, 2), bias=True)[index]


EXAMPLES: dict[str, Example] = {
    "Dense": Example(lambda: layer("Dense", 2, 3, (3, 2), padding=1, bias=True), (2, 2, 4, 3), (2, 3, 4, 4)),
    "CP": Example(lambda: layer("CP", 2, 3, (3,), padding="same", bias=True), (2, 2, 5), (2, 3, 5)),
    "Tucker": Example(lambda: layer("Tucker", 2, 4, (2, 2), groups=2, stride=2), (1, 2, 4, 4), (1, 4, 2, 2)),
    "TR": Example(lambda: layer("TR", 4, 2, (2, 2), groups=2, padding=1, bias=True), (1, 4, 3, 2), (1, 2, 4, 3)),
    "TT": Example(lambda: layer("TT", 2, 3, (2, 1, 2), bias=True), (1, 2, 3, 2, 3), (1, 3, 2, 2, 2)),
}


@pytest.mark.parametrize("check", contract.PLAIN, ids=lambda check: check.__name__)
@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_layer_contract(example: Example, check: Any) -> None:
    check(example)


@pytest.mark.parametrize("check", contract.ON_LIBRARIES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_layer_contract_on_every_library(example: Example, check: Any, xp: Library) -> None:
    check(example, xp)
