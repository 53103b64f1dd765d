"""Statistics as a value: what adds, what does not, what a network does with it."""

import copy
import functools
import operator
import pickle
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest

from growarray.backend import to_numpy
from growarray.distributed import GrowthStatistics, statistics_of
from growarray.errors import GrowthError, ShapeError
from growarray.growing import FISHER, TINY, Conv2dGrowingModule, RestrictedConv2dGrowingModule
from growarray.networks import GrowingMLP, GrowingResidualMLP, GrowthSettings, task_named
from growarray.networks.graph import GrowingDAG
from growarray.networks.planner import Planner
from growarray.nn import SELU, Conv2d, Flatten, ReLU, Sequential
from growarray.ops import mse
from tests.conftest import LIBRARIES

RNG = np.random.default_rng(0)
X = RNG.standard_normal((90, 4))
TARGET = np.sin(X[:, :2])


def mlp(seed=0, **options):
    return GrowingMLP(4, 2, (3, 3), rng=np.random.default_rng(seed), dtype=np.float64, **options)


def bits(statistics):
    return {name: to_numpy(moment()).tobytes() for name, moment in statistics.moments.items()}


def parts(network, *cuts, **options):
    pieces = zip(np.split(X, cuts), np.split(TARGET, cuts), strict=True)
    return [statistics_of(network, piece, mse, **options) for piece in pieces]


def test_parts_add_up_to_the_whole():
    network = mlp()
    whole = statistics_of(network, (X, TARGET), mse)
    total = functools.reduce(operator.add, parts(network, 20, 50))
    assert total.samples == whole.samples == 90
    assert total.moments.keys() == whole.moments.keys()
    for name, moment in whole.moments.items():
        np.testing.assert_allclose(total.moments[name](), moment(), rtol=1e-12, atol=1e-14)
        assert total.moments[name].samples == 90


@pytest.mark.parametrize("rule", [TINY, FISHER], ids=["tiny", "fisher"])
@pytest.mark.parametrize("kind", ["mlp", "residual", "conv", "graph"])
def test_a_growth_is_planned_as_from_the_data_themselves(kind, rule):
    rng = np.random.default_rng(0)
    options = {"rng": rng, "dtype": np.float64}
    x = X
    if kind == "mlp":
        network = mlp()
    elif kind == "residual":
        network = GrowingResidualMLP(4, 2, num_features=5, hidden_features=3, **options).eval()
    elif kind == "graph":
        network = GrowingDAG(4, 2, sampled=0, **options)
        network.add_node_with_two_edges("start@", "1@", "end@", {"size": 3})
    else:
        x = RNG.standard_normal((90, 1, 3, 3))
        first = Conv2dGrowingModule(1, 2, 3, padding=1, post_layer_function=SELU(), **options)
        second = RestrictedConv2dGrowingModule(2, 2, 3, previous_module=first, **options)
        network = Sequential(first, second, Flatten())
    statistics = statistics_of(network, (x, TARGET), mse, rule=rule, batch_size=40)
    twin = copy.deepcopy(network)
    statistics.put(network)
    planner = Planner(_growing(twin), task_named("regression"), GrowthSettings(rule=rule, collect_batch=90), rng)
    planner.collect((x, TARGET), fisher=rule.use_fisher)
    for one in (_growing(network), planner.network):
        one.compute_optimal_updates(rule, max_new=2)
    for own, expected in zip(_growing(network).growing_layers, planner.network.growing_layers, strict=True):
        assert own.new_neurons == expected.new_neurons > 0
        np.testing.assert_allclose(own.first_order_improvement, expected.first_order_improvement, rtol=1e-9)
        np.testing.assert_allclose(own.predicted_decrease, expected.predicted_decrease, rtol=1e-9)


def _growing(network):
    from growarray.networks.part import as_growing

    return as_growing(network)


def test_the_network_stays_as_it_is():
    network = mlp()
    before = {name: np.array(p.data) for name, p in network.named_parameters()}
    network.train()
    statistics_of(network, (X, TARGET), mse)
    assert network.training
    assert all(p.grad is None or not np.any(p.grad) for p in network.parameters())
    assert all(np.array_equal(before[name], p.data) for name, p in network.named_parameters())
    assert not any(layer.recorder.is_active or layer.tensor_m.samples for layer in network.growing_layers)
    with pytest.raises(ShapeError, match="3"):
        statistics_of(network, (X, TARGET[:, :1] * np.ones(3)), mse)
    assert not any(layer.recorder.is_active or layer.tensor_m.samples for layer in network.growing_layers)


def test_a_stem_before_the_growing_part_belongs_to_the_weights():
    rng = np.random.default_rng(0)
    stem = Conv2d(1, 2, 3, rng=rng, dtype=np.float64)
    network = Sequential(stem, ReLU(), GrowingMLP((2, 3, 3), 2, 2, rng=rng, dtype=np.float64))
    statistics = statistics_of(network, (RNG.standard_normal((30, 1, 5, 5)), TARGET[:30]), mse)
    statistics.put(network)
    stem.weight.data[0, 0, 0, 0] += 1.0
    with pytest.raises(GrowthError, match="do not fit a network of the weights"):
        statistics.put(network)


def test_statistics_travel_as_plain_data_and_by_pickle():
    (statistics,) = parts(mlp())
    state = statistics.state_dict()
    again = GrowthStatistics.from_state_dict(pickle.loads(pickle.dumps(state)))
    carried = pickle.loads(pickle.dumps(statistics))
    for copied in (again, carried):
        assert bits(copied + statistics) == bits(statistics + statistics)
        assert copied.relative_error() == statistics.relative_error()
    assert len(pickle.dumps(statistics)) < 3 * sum(moment().nbytes for moment in statistics.moments.values()) + 4000
    assert repr(again) == f"GrowthStatistics({len(again.moments)} moments, samples=90, weights={again.fingerprint})"


def test_the_error_is_that_of_all_batches():
    network = mlp()
    halves = parts(network, 45, batch_size=15)
    whole = statistics_of(network, (X, TARGET), mse, batch_size=15)
    assert (halves[0] + halves[1]).relative_error() == pytest.approx(whole.relative_error(), rel=1e-9)
    assert 0.0 < whole.relative_error() < 1.0
    assert statistics_of(network, (X, TARGET), mse).relative_error() == np.inf  # one batch says nothing of chance


def test_other_libraries_give_the_same_numbers():
    strict = LIBRARIES["array_api_strict"]
    expected = statistics_of(mlp(), (X, TARGET), mse)
    network = strict.adopt(mlp())
    found = statistics_of(network, (strict.asarray(X), strict.asarray(TARGET)), mse)
    assert found.fingerprint == expected.fingerprint
    for name, moment in expected.moments.items():
        np.testing.assert_allclose(found.moments[name](), moment(), rtol=1e-12, atol=1e-14)
    found.put(network)
    network.compute_optimal_updates(max_new=1)
    assert network.growing_layers[0].new_neurons == 1


@pytest.mark.parametrize("frame", [pd, pl])
def test_a_shard_may_be_a_frame(frame):
    names = list("abcd")
    x, target = (
        frame.DataFrame(dict(zip(names, X.T, strict=True))),
        frame.DataFrame(dict(zip("ef", TARGET.T, strict=True))),
    )
    found = statistics_of(mlp(), lambda: (x, target), mse)
    for name, moment in statistics_of(mlp(), (X, TARGET), mse).moments.items():
        np.testing.assert_allclose(found.moments[name](), moment(), rtol=1e-12, atol=1e-14)


def test_statistics_of_other_weights_or_rules_do_not_add():
    (one,), (other,) = parts(mlp()), parts(mlp(seed=1))
    with pytest.raises(GrowthError, match=re.escape(f"{one.fingerprint} and {other.fingerprint} cannot be added")):
        one + other
    with pytest.raises(GrowthError, match=r"statistics for different rules cannot be added: only one .*'layers.1.e'"):
        one + parts(mlp(), rule=FISHER)[0]
    with pytest.raises(TypeError, match="unsupported operand"):
        one + 1
    single = parts(GrowingMLP(4, 2, (3, 3), rng=np.random.default_rng(0)))  # the same seed in float32
    assert single[0].fingerprint != one.fingerprint
    network = mlp()
    network.layers[0].weight.data[0, 0] += 1e-12
    with pytest.raises(GrowthError, match=r"do not fit a network of the weights .* its current weights"):
        one.put(network)
    assert not network.layers[1].recorder.is_active


@pytest.mark.parametrize(
    ("shard", "error", "message"),
    [
        ((X[:0], TARGET[:0]), GrowthError, "a shard has no samples; omit it"),
        ((X, TARGET[:5]), ShapeError, "a shard has 90 samples and 5 targets; the numbers must agree"),
        ((X[:, :3], TARGET), ShapeError, "3"),
        (X, TypeError, "a shard must be a pair of arrays (x, target), or a function that returns one"),
        (lambda: None, TypeError, "a shard must be a pair of arrays (x, target), or a function that returns one; None"),
    ],
    ids=["empty", "lengths", "width", "no pair", "nothing"],
)
def test_a_shard_that_does_not_fit_is_refused(shard, error, message):
    with pytest.raises(error, match=re.escape(message)):
        statistics_of(mlp(), shard, mse)


@pytest.mark.parametrize("state", [None, {}, {"samples": 1, "fingerprint": "a"}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(GrowthError, match="expected the result of state_dict"):
        GrowthStatistics.from_state_dict(state)


def test_statistics_of_other_places_are_refused():
    network = mlp()
    (one,) = parts(network)
    more = GrowthStatistics({**one.moments, "layers.9.m": one.moments["layers.1.m"]}, 90, one.fingerprint)
    with pytest.raises(GrowthError, match=re.escape("the network has no place for the statistics ['layers.9.m']")):
        more.put(network)
    assert not any(layer.recorder.is_active or layer.tensor_m.samples for layer in network.growing_layers)


def test_a_graph_that_draws_candidates_is_refused():
    with pytest.raises(GrowthError, match="draws different candidates from each shard; construct it with sampled=0"):
        statistics_of(GrowingDAG(4, 2), (X, TARGET), mse)
