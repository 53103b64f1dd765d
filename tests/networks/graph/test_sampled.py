"""Sampled neurons: the draw, the greedy choice, and gains where the rule's neurons have none."""

from __future__ import annotations

import itertools

import numpy as np

from growarray.networks import ExpansionType, GrowingDAG
from growarray.networks.graph.sampled import best_features, neurons_between
from tests.networks.graph.graphs import collect, data


def test_neurons_rise_between_samples_that_want_different_changes():
    x = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0], [5.0, 5.0]])
    wants = np.array([[0.0], [1.0], [1.0], [1.0]])
    weights = neurons_between(x, wants, 3, np.random.default_rng(0))
    values = np.concatenate([x, np.ones((4, 1))], axis=1) @ weights.T
    for neuron in values.T:
        assert {-1.0, 1.0} <= set(np.round(neuron, 12))  # at the ends of its pair
        assert np.isfinite(neuron).all()
    assert neurons_between(x, wants, 3, np.random.default_rng(0), bias=False).shape == (3, 2)
    assert not neurons_between(x[2:], wants[2:], 3, np.random.default_rng(0)).any()  # equal samples: nothing between


def test_greedy_choice_is_the_plain_one_by_one():
    rng = np.random.default_rng(3)
    features, wanted = rng.standard_normal((40, 6)), rng.standard_normal((40, 2))
    features[:, 5] = features[:, 0] - features[:, 1]
    chosen = best_features([(features.T @ features, features.T @ wanted)], 6)
    assert len(chosen) == 5  # the sixth is a sum of others

    def left(columns):
        used = features[:, columns]
        return float(np.sum((wanted - used @ np.linalg.lstsq(used, wanted)[0]) ** 2))

    for count, best in enumerate(chosen):
        rest = [j for j in range(6) if j not in chosen[:count]]
        assert best == min(rest, key=lambda j, held=chosen[:count]: left([*held, j]))
    falls = [a - b for a, b in itertools.pairwise([left(chosen[:k]) for k in range(1, 6)])]
    assert all(fall > 0 for fall in falls)


def test_channels_of_several_features_are_chosen_together():
    """Against least squares on all features of the chosen channels, for two readers with 3 features and 1 of each."""
    rng = np.random.default_rng(4)
    channels, wanted = rng.standard_normal((60, 5, 3)), [rng.standard_normal((60, 2)) for _ in range(2)]
    channels[:, 4] = channels[:, 0]
    features = [channels.reshape(60, -1), channels.mean(axis=2)]
    undone = [(f.T @ f, f.T @ want) for f, want in zip(features, wanted, strict=True)]
    chosen = best_features(undone, 5, [3, 1])

    def left(picked):
        used = [channels[:, picked].reshape(60, -1), channels[:, picked].mean(axis=2)]
        rests = (want - use @ np.linalg.lstsq(use, want)[0] for use, want in zip(used, wanted, strict=True))
        return sum(float(np.sum(rest**2)) for rest in rests)

    assert len(chosen) == 4  # the fifth is a copy
    for count, best in enumerate(chosen):
        rest = [j for j in range(5) if j not in chosen[:count]]
        least = min(left([*chosen[:count], j]) for j in rest)
        assert left([*chosen[:count], best]) <= least * (1 + 1e-12)


def test_a_direct_edge_leaves_nothing_to_small_neurons_but_much_to_sampled_ones():
    """All that a linear map of the input can do is the edge's own; the rule alone would never add a node."""
    x, target = data(200)
    gains = {}
    for sampled in (0, 64):
        dag = GrowingDAG(4, 2, 4, name="n", activation="tanh", sampled=sampled, dtype=np.float64,
                         rng=np.random.default_rng(0))  # fmt: skip
        collect(dag, x, target, 200)
        dag.compute_optimal_updates()
        (node,) = dag.growing_layers
        assert node.type is ExpansionType.NEW_NODE
        gains[sampled] = node.new_neurons_fo_improvement
        bottleneck = dag.bottlenecks()["end@n"]
    assert gains[0] < 1e-12
    assert 0.1 * bottleneck < gains[64] < bottleneck


def test_fewer_of_the_sampled_neurons_are_solved_for_anew():
    x, target = data(200)
    dags = [
        GrowingDAG(4, 2, name="n", activation="tanh", dtype=np.float64, rng=np.random.default_rng(0)) for _ in range(2)
    ]
    for dag, most in zip(dags, (3, 6), strict=True):
        collect(dag, x, target, 200)
        dag.compute_optimal_updates(max_new=most)
    few, many = (dag.growing_layers[0] for dag in dags)
    more = many.new_neurons_fo_improvement
    many.sub_select_optimal_added_parameters(3)
    np.testing.assert_allclose(many.update.input_extension, few.update.input_extension, rtol=1e-9)
    np.testing.assert_allclose(many.new_neurons_fo_improvement, few.new_neurons_fo_improvement, rtol=1e-9)
    assert many.new_neurons_fo_improvement < more
