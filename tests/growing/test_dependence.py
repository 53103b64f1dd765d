"""Dependence: GroMo's numbers, what independence gives, and that moments say the same as samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.errors import ShapeError
from growarray.growing import Stream, cross_moment, hsic, linear_dependence
from growarray.growing.dependence import place_dependence
from growarray.networks import GrowingDAG, GrowingMLP, GrowingResidualMLP, GrowingVGG
from growarray.nn import Tanh
from growarray.ops import mse
from tests.conftest import Library
from tests.networks.runs import loop

A, B = np.sin(np.arange(30.0)).reshape(10, 3), np.cos(np.arange(20.0) ** 2 / 7).reshape(10, 2)
OPTIONS: dict[str, Any] = {"activation": Tanh(), "dtype": np.float64, "rng": np.random.default_rng(1)}
X = np.random.default_rng(0).standard_normal((40, 4))


@pytest.mark.parametrize(
    ("options", "expected"),  # of GroMo 0.1.0 in float64
    [
        ({"normalize": True}, 0.17682698435852565),
        ({}, 0.018002354568462373),
        ({"sigma": 0.7}, 0.05165679352852441),
        ({"kernel": "linear"}, 0.0766709898067423),
    ],
)
def test_values_are_those_of_gromo(options: Any, expected: float, xp: Library) -> None:
    assert hsic(xp.asarray(A), xp.asarray(B), **options) == pytest.approx(expected, rel=1e-12)


def test_gaussian_kernels_see_what_linear_ones_miss() -> None:
    x = np.linspace(-1.0, 1.0, 41)[:, None]
    assert hsic(x, x**2, kernel="linear", normalize=True) == pytest.approx(0.0, abs=1e-15)
    noise = np.random.default_rng(0).standard_normal((41, 1))
    assert hsic(x, x**2, normalize=True) > 4 * hsic(x, noise, normalize=True) > 0
    assert hsic(x, 3 * x + 1, kernel="linear", normalize=True) == pytest.approx(1.0, rel=1e-12)
    assert hsic(x, np.ones_like(x), normalize=True) == 0.0


def test_moments_of_parts_of_the_data_say_what_all_samples_do() -> None:
    s, m, e = np.zeros((4, 4)), np.zeros((4, 2)), np.zeros((2, 2))
    for rows in (slice(0, 3), slice(3, 10)):
        x, y = Stream(A[rows] + 2.0, bias=True), Stream(B[rows] - 1.0)
        s, m, e = s + cross_moment(x), m + cross_moment(x, y), e + cross_moment(y)
    expected = hsic(A, B, kernel="linear", normalize=True)
    assert linear_dependence(s, m, e, ones=3) == pytest.approx(expected, rel=1e-12)
    assert linear_dependence(s[:3, :3], m[:3], e) != pytest.approx(expected, rel=0.1)
    assert linear_dependence(np.zeros((2, 2)), np.zeros((2, 1)), np.eye(1)) == 0.0


@pytest.mark.parametrize("kind", ["mlp", "residual", "dag", "vgg"])
def test_a_place_has_that_of_what_it_reads_and_its_gradient(kind: str) -> None:
    x: Any = X
    if kind == "mlp":
        network: Any = GrowingMLP(4, 2, (3, 2), **OPTIONS)
    elif kind == "residual":
        network = GrowingResidualMLP(4, 2, 3, 2, 1, **OPTIONS)
    elif kind == "dag":
        network = GrowingDAG(4, 2, sampled=0, **OPTIONS)
        network.add_node_with_two_edges("start@", "1@", "end@", {"size": 3})
    else:
        x = X.reshape(10, 1, 4, 4)
        network = GrowingVGG((1, 4, 4), 2, [2], **OPTIONS)
    target = np.tanh(x.reshape(len(x), -1)[:, :2]) * 2
    network.init_computation()
    network.collect_batch(x, target, mse, fisher=True)
    found = [place_dependence(place) for place in network.growing_layers]
    assert all(0.0 < value <= 1.0 for value in found)
    if kind in ("mlp", "residual"):
        gradient = network.growing_layers[-1].readers[0].pre_activity_grad
        reads = network.growing_layers[-1].front.input_stream.materialise()
        expected = hsic(to_numpy(reads), gradient, kernel="linear", normalize=True)
        assert found[-1] == pytest.approx(expected, rel=1e-9)
    if kind == "dag":
        edge = next(place for place in network.growing_layers if str(place) == "new node 2: start->1")
        gradient = network.merges["1@"].pre_activity_grad
        expected = hsic(x, gradient, kernel="linear", normalize=True)
        assert place_dependence(edge) == pytest.approx(expected, rel=1e-9)


def test_the_loop_grows_where_the_dependence_is_largest() -> None:
    run = loop(choose="hsic", epochs=2)
    found: list[list[float]] = []
    choose = run.planner.choose
    run.planner.choose = lambda *a: (  # type: ignore[method-assign]
        found.append([place_dependence(p) for p in run.network.growing_layers]), choose(*a)
    )[1]  # fmt: skip
    entry = run.run().of("growth")[0]
    assert entry["layer_index"] == int(np.argmax(found[0]))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel must be 'gaussian' or 'linear', found 'cubic'"):
        hsic(A, B, kernel="cubic")
    with pytest.raises(ShapeError, match="10 and 9 samples"):
        hsic(A, B[:9])
    with pytest.raises(ShapeError, match="at least 2"):
        hsic(A[:1], B[:1])
