"""A budget over many layers, against every combination."""

import itertools

import numpy as np
import pytest

from growarray.decompose import Candidate, allocate


def curves(seed, layers, candidates):
    rng = np.random.default_rng(seed)
    return {
        f"layer {i}": [Candidate(r, int(rng.integers(1, 40)), float(rng.random())) for r in range(candidates)]
        for i in range(layers)
    }


@pytest.mark.parametrize("seed", range(30))
def test_best_of_all_combinations(seed):
    layers = curves(seed, 4, 5)
    budget = 40 + 3 * seed
    every = [c for c in itertools.product(*layers.values()) if sum(x.cost for x in c) <= budget]
    if not every:
        with pytest.raises(ValueError, match=r"cannot be met, .* cost \d+"):
            allocate(budget, layers)
        return
    found = allocate(budget, layers)
    assert found.cost <= budget
    assert found.error == pytest.approx(min(sum(x.error for x in c) for c in every), rel=1e-12)
    assert all(found.choices[name] in layers[name] for name in layers)


def test_many_layers_stay_near_the_bound():
    """30 layers, 64 ranks each: within the gap that the last step on the hull leaves."""
    layers = {f"{i}": [Candidate(r, r * (3.0 + i), (1 + i % 7) * 0.9**r) for r in range(1, 65)] for i in range(30)}
    budget = 0.3 * sum(c[-1].cost for c in layers.values())
    found = allocate(budget, layers)
    assert found.cost <= budget
    assert found.cost > 0.99 * budget
    price = 1e-3
    errors = np.array([[c.error for c in layer] for layer in layers.values()])
    costs = np.array([[c.cost for c in layer] for layer in layers.values()])
    bounds = [np.min(errors + p * costs, axis=1).sum() - p * budget for p in price * np.geomspace(0.1, 10.0, 80)]
    assert max(bounds) <= found.error <= max(bounds) + 0.02


def test_the_message_gives_the_least():
    with pytest.raises(ValueError, match=r"budget 5 cannot be met, .* of all 2 layers cost 7"):
        allocate(5, {"a": [(1, 3, 0.0)], "b": [(1, 4, 0.0), (2, 9, 0.0)]})


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ({}, "at least one layer"),
        ({"a": []}, "layer 'a' has no candidates"),
        ({"a": [(1, -3, 0.0)]}, "layer 'a', rank 1 has cost -3"),
        ({"a": [(1, 3, float("nan"))]}, "error nan"),
    ],
)
def test_bad_candidates_are_refused(layers, text):
    with pytest.raises(ValueError, match=text):
        allocate(10, layers)


def test_unlimited_budget_takes_the_least_error():
    found = allocate(float("inf"), curves(0, 3, 4))
    assert found.error == pytest.approx(sum(min(c.error for c in layer) for layer in curves(0, 3, 4).values()))
