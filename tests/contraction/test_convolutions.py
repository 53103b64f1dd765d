"""Contractions with convolution modes: values against loops, gradients against finite differences, along any tree."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from growarray.contraction import Plan, plan
from growarray.contraction.equation import parse
from growarray.contraction.geometry import PADDING_MODES
from growarray.contraction.path import PRESETS
from growarray.contraction.problem import Problem
from growarray.contraction.tree import linear_path, random_tree
from growarray.testing import assert_close, check_vjp
from tests.contraction.reference import Layer, cp, direct, random_arrays, reconstructed, tensor_train, tucker

TOLERANCE = 1e-11
PLAIN: dict[str, Any] = {"stride": 1, "padding": (0, 0), "dilation": 1, "padding_mode": "zeros"}


def options_for(order: int, **chosen: Any) -> dict[str, list[Any]]:
    """One value for each convolution mode."""
    return {key: [chosen.get(key, value)] * order for key, value in PLAIN.items()}


def random_plans(
    equation: str, shapes: Sequence[Sequence[int]], options: dict[str, Any], count: int, seed: int = 0
) -> list[Plan]:
    """Plans along trees drawn at random."""
    problem, rng = Problem(parse(equation), shapes, **options), random.Random(seed)
    paths = [linear_path(problem, random_tree(problem, rng)) for _ in range(count)]
    return [plan(equation, *shapes, optimize=path, dtype="float64", **options) for path in paths]


def assert_adjoint(made: Plan, arrays: Sequence[np.ndarray]) -> None:
    """Every gradient, exactly: the result is linear in each operand, so <dy, f(v)> = <df, v> for any v in its place."""
    rng = np.random.default_rng(0)
    y, pullback = made.vjp(*arrays)
    dy = rng.standard_normal(y.shape)
    for i, (array, gradient) in enumerate(zip(arrays, pullback(dy), strict=True)):
        other = rng.standard_normal(array.shape)
        moved = made(*(other if k == i else a for k, a in enumerate(arrays)))
        left, right = float(np.sum(dy * moved)), float(np.sum(gradient * other))
        scale = float(np.sum(np.abs(dy * moved))) + 1.0
        assert abs(left - right) <= 1e-10 * scale, f"operand {i}: {left} is not {right}"


LAYERS = {
    "CP 1": cp(2, (3, 4), (9,), (3,), 2),
    "CP 2": cp(2, (3, 4), (6, 5), (3, 2), 3),
    "CP 2 no weights": cp(1, (2, 3), (5, 6), (2, 3), 2, weights=False),
    "CP 3": cp(2, (2, 3), (4, 5, 3), (3, 2, 2), 2),
    "CP 4": cp(1, (2, 2), (3, 2, 2, 3), (2, 1, 2, 3), 2),
    "CP 5": cp(1, (2, 2), (2, 2, 2, 2, 2), (2, 2, 1, 2, 1), 2),
    "Tucker 1": tucker(2, (3, 4), (9,), (3,), (2, 3, 2)),
    "Tucker 2": tucker(2, (3, 4), (6, 5), (3, 2), (2, 3, 2, 1)),
    "Tucker 3": tucker(1, (2, 3), (4, 5, 3), (3, 2, 2), (2, 1, 2, 2, 1)),
    "Tucker 4": tucker(1, (2, 2), (2, 3, 2, 2), (2, 2, 2, 1), (2, 2, 1, 2, 1, 1)),
    "TT 1": tensor_train(2, (3, 4), (9,), (3,), (2, 3)),
    "TT 2": tensor_train(2, (3, 4), (6, 5), (3, 2), (2, 3, 2)),
    "TT 3": tensor_train(2, (2, 3), (4, 5, 3), (3, 2, 2), (2, 3, 2, 2)),
    "TT 5": tensor_train(1, (2, 2), (2, 2, 2, 3, 2), (2, 1, 2, 2, 2), (2, 2, 1, 2, 2, 2)),
}
GEOMETRIES = {
    "plain": {},
    "strided and padded": {"stride": 2, "padding": (1, 1)},
    "dilated, padded unevenly": {"dilation": 2, "padding": (1, 3)},
    "circular": {"padding": (1, 2), "padding_mode": "circular"},
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=list(GEOMETRIES))
@pytest.mark.parametrize("layer", LAYERS.values(), ids=list(LAYERS))
def test_factorized_layers_are_the_dense_convolution_along_every_path(layer: Layer, geometry):
    options = options_for(len(parse(layer.equation).convolved), **geometry)
    arrays = random_arrays(layer.shapes)
    wanted = direct(layer.dense, [arrays[0], reconstructed(layer, arrays[1:])], options)
    plans = [plan(layer.equation, *layer.shapes, optimize=o, dtype="float64", **options) for o in (*PRESETS, "auto")]
    for made in [*plans, *random_plans(layer.equation, layer.shapes, options, 2)]:
        assert made.output_shape == wanted.shape
        assert_close(made(*arrays), wanted, rtol=TOLERANCE, what=str(made.path))
    for made in random_plans(layer.equation, layer.shapes, options, 1, seed=1):
        assert_adjoint(made, arrays)


@pytest.mark.parametrize("optimize", ["auto", *PRESETS])
@pytest.mark.parametrize("name", ["CP 2", "Tucker 2", "TT 2"])
def test_gradients_of_factorized_layers_are_those_of_finite_differences(name, optimize):
    layer = LAYERS[name]
    options = options_for(2, stride=2, padding=(2, 1), padding_mode="replicate")
    made = plan(layer.equation, *layer.shapes, optimize=optimize, dtype="float64", training=True, **options)
    check_vjp(made.vjp, *random_arrays(layer.shapes))


DENSE = {
    "1-D": ("n c x, o c x -> n o x | x", ((2, 3, 9), (4, 3, 3))),
    "2-D": ("n c y x, o c y x -> n o y x | y, x", ((2, 2, 5, 6), (3, 2, 3, 2))),
    "3-D": ("n c z y x, o c z y x -> n o z y x | z, y, x", ((1, 2, 4, 3, 5), (2, 2, 2, 3, 2))),
    "4-D": ("n c a b d e, o c a b d e -> n o a b d e | a, b, d, e", ((1, 2, 3, 2, 3, 4), (2, 2, 2, 2, 1, 3))),
    "5-D": (
        "n c a b d e f, o c a b d e f -> n o a b d e f | a, b, d, e, f",
        ((1, 1, 3, 2, 3, 2, 3), (2, 1, 2, 1, 2, 2, 2)),
    ),
    "grouped": ("n g c x, g o c x -> n g o x | x", ((2, 2, 3, 8), (2, 4, 3, 3))),
    "depthwise": ("n c y x, c y x -> n c y x | y, x", ((2, 3, 5, 6), (3, 3, 2))),
    "depthwise with a multiplier": ("n c y x, c m y x -> n c m y x | y, x", ((2, 3, 5, 4), (3, 2, 2, 3))),
    "channels last": ("n y x c, y x c o -> n y x o | y, x", ((2, 5, 6, 3), (3, 2, 3, 4))),
    "no batch": ("c x, o c x -> x o | x", ((3, 9), (4, 3, 3))),
    "kernel of one tap": ("n c x, o c x -> n o x | x", ((2, 3, 7), (4, 3, 1))),
    "one output position": ("n c x, o c x -> n o x | x", ((2, 3, 4), (4, 3, 4))),
    "signal alone": ("x, x -> x | x", ((9,), (4,))),
    "batched kernels": ("n c x, n o c x -> n o x | x", ((3, 2, 7), (3, 2, 2, 3))),
    "convolved one after the other": ("n x y, x a, y a -> n x y a | x, y", ((2, 6, 5), (3, 2), (2, 2))),
    "summed and repeated": ("n c c x z, o c x -> n o x | x", ((2, 3, 3, 7, 2), (4, 3, 3))),
}


@pytest.mark.parametrize("geometry", [*GEOMETRIES.values(), {"stride": 3, "dilation": 2, "padding": (4, 5)}], ids=str)
@pytest.mark.parametrize(("equation", "shapes"), DENSE.values(), ids=list(DENSE))
def test_dense_convolutions_are_the_loop(equation, shapes, geometry):
    options = options_for(len(parse(equation).convolved), **geometry)
    made = plan(equation, *shapes, dtype="float64", **options)
    arrays = random_arrays(shapes)
    assert_close(made(*arrays), direct(equation, arrays, options), rtol=TOLERANCE)
    assert_adjoint(made, arrays)


@pytest.mark.parametrize(("equation", "shapes"), DENSE.values(), ids=list(DENSE))
def test_gradients_of_dense_convolutions_are_those_of_finite_differences(equation, shapes):
    order = len(parse(equation).convolved)
    made = plan(equation, *shapes, dtype="float64", **options_for(order, padding=(1, 0)))
    check_vjp(made.vjp, *random_arrays(shapes))


@pytest.mark.parametrize(
    ("equation", "named", "shapes"),
    [
        ("... c x, o c x -> ... o x | x", "a b c x, o c x -> a b o x | x", ((2, 3, 3, 7), (4, 3, 3))),
        ("... c x, o c x -> o x ... | x", "a b c x, o c x -> o x a b | x", ((2, 3, 3, 7), (4, 3, 3))),
        ("... c x, ... o c x -> ... o x | x", "a b c x, a b o c x -> a b o x | x", ((2, 3, 3, 7), (2, 3, 4, 3, 3))),
        ("... x, ... x -> ... x | x", "a x, b x -> a b x | x", ((2, 1, 7), (1, 3, 3))),
    ],
    ids=["batch", "batch last", "batched kernels", "broadcast"],
)
def test_an_ellipsis_is_the_modes_it_stands_for(equation, named, shapes):
    arrays = random_arrays(shapes)
    wanted = plan(equation, *shapes, dtype="float64", padding=1).vjp(*arrays)
    squeezed = [a.reshape(a.size // a.shape[-1], -1) if named[0:3] == "a x" else a for a in arrays]
    found = plan(named, *(a.shape for a in squeezed), dtype="float64", padding=1).vjp(*squeezed)
    assert_close(wanted[0], found[0], rtol=TOLERANCE)
    for one, other, array in zip(wanted[1](found[0]), found[1](found[0]), arrays, strict=True):
        assert_close(one, other.reshape(array.shape), rtol=TOLERANCE)


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, dict[str, Any]]:
    """Positions, taps and options of one convolution mode that fit together."""
    size, taps = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    mode = draw(st.sampled_from(PADDING_MODES))
    most = {"reflect": size - 1, "circular": size}.get(mode, 4)
    before, after = draw(st.integers(0, min(most, 4))), draw(st.integers(0, min(most, 4)))
    dilation, stride = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    assume(dilation * (taps - 1) + 1 <= size + before + after)
    return size, taps, {"stride": stride, "padding": (before, after), "dilation": dilation, "padding_mode": mode}


def joined(chosen: Sequence[tuple[int, int, dict[str, Any]]]) -> dict[str, list[Any]]:
    return {key: [options[key] for _, _, options in chosen] for key in PLAIN}


@st.composite
def grouped(draw: st.DrawFn) -> tuple[str, list[tuple[int, ...]], dict[str, list[Any]]]:
    """A dense convolution in groups."""
    chosen = draw(st.lists(axes(), min_size=1, max_size=2))
    n, g, c, o = (draw(st.integers(1, 3)) for _ in range(4))
    names = ["y", "x"][: len(chosen)]
    text = " ".join(names)
    shapes = [(n, g, c, *(s for s, _, _ in chosen)), (g, o, c, *(k for _, k, _ in chosen))]
    return f"n g c {text}, g o c {text} -> n g o {text} | {', '.join(names)}", shapes, joined(chosen)


@st.composite
def factorized(draw: st.DrawFn) -> tuple[Layer, dict[str, list[Any]]]:
    """A factorized convolution of order 1 or 2."""
    chosen = draw(st.lists(axes(), min_size=1, max_size=2))
    sizes, taps = [s for s, _, _ in chosen], [k for _, k, _ in chosen]
    batch, ins, outs = (draw(st.integers(1, 3)) for _ in range(3))
    kind = draw(st.sampled_from(["cp", "tucker", "tt"]))
    ranks = [draw(st.integers(1, 3)) for _ in range(len(chosen) + 2)]
    if kind == "cp":
        return cp(batch, (ins, outs), sizes, taps, ranks[0]), joined(chosen)
    if kind == "tucker":
        return tucker(batch, (ins, outs), sizes, taps, ranks), joined(chosen)
    return tensor_train(batch, (ins, outs), sizes, taps, ranks[1:]), joined(chosen)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(grouped())
def test_grouped_convolutions_of_any_geometry(case):
    equation, shapes, options = case
    made = plan(equation, *shapes, dtype="float64", **options)
    arrays = random_arrays(shapes)
    assert_close(made(*arrays), direct(equation, arrays, options), rtol=TOLERANCE)
    assert_adjoint(made, arrays)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(factorized(), st.integers(0, 1 << 16))
def test_every_tree_of_one_layer_gives_the_same_result_and_gradients(case, seed):
    layer, options = case
    arrays = random_arrays(layer.shapes)
    wanted = direct(layer.dense, [arrays[0], reconstructed(layer, arrays[1:])], options)
    dy = np.random.default_rng(1).standard_normal(wanted.shape)
    first: tuple[Any, ...] = ()
    for made in random_plans(layer.equation, layer.shapes, options, 3, seed):
        y, pullback = made.vjp(*arrays)
        assert_close(y, wanted, rtol=TOLERANCE, what=str(made.path))
        gradients = pullback(dy)
        first = first or gradients
        for i, (one, other) in enumerate(zip(gradients, first, strict=True)):
            assert_close(one, other, rtol=TOLERANCE, what=f"gradient {i} along {made.path}")
    assert_adjoint(made, arrays)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(axes(), st.integers(1, 2), st.integers(0, 1 << 16))
def test_gradients_of_any_geometry_are_those_of_finite_differences(axis, batch, seed):
    size, taps, _ = axis
    layer, options = cp(batch, (2, 2), (size,), (taps,), 2), joined([axis])
    made = random_plans(layer.equation, layer.shapes, options, 1, seed)[0]
    check_vjp(made.vjp, *random_arrays(layer.shapes))


@pytest.mark.parametrize("name", ["CP 2", "Tucker 2", "TT 2"])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_factorized_layers_on_every_library(xp, name, padding_mode):
    layer, options = LAYERS[name], options_for(2, stride=2, padding=(1, 2), padding_mode=padding_mode)
    hosts = random_arrays(layer.shapes)
    for optimize in ("auto", "reconstructed"):
        made = plan(layer.equation, *layer.shapes, optimize=optimize, dtype="float64", **options)
        y, pullback = made.vjp(*(xp.asarray(h) for h in hosts))
        wanted = direct(layer.dense, [hosts[0], reconstructed(layer, hosts[1:])], options)
        assert_close(y, wanted, rtol=TOLERANCE)
        dy = np.random.default_rng(2).standard_normal(wanted.shape)
        for found, host in zip(pullback(xp.asarray(dy)), made.vjp(*hosts)[1](dy), strict=True):
            assert_close(found, host, rtol=TOLERANCE)
