"""Plans, and what holds them, as other processes get them."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

from growarray import FactorizedConv, FactorizedLinear, GrowingMLP, Growth, nn
from growarray.contraction import plan
from growarray.optim import AdamW
from tests.contraction.reference import random_arrays

COPIES = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "deepcopy": copy.deepcopy}


@pytest.fixture(params=COPIES)
def again(request):
    return COPIES[request.param]


def made(**options: Any) -> Any:
    shapes = (8, 4, 9, 9), (5, 4), (5, 3, 3), (6, 5)
    return plan("n c y x, r c, r y x, o r -> n o y x | y, x", *shapes, padding=1, **options)


def test_a_plan_is_the_same_plan(again):
    one = made(training=True, memory_limit=10**6)
    arrays = random_arrays(one.shapes, dtype=np.float32)
    y, pullback = one.vjp(*arrays)  # its steps are made now, and are not sent
    other = again(one)
    assert other == one
    assert str(other) == str(one)
    assert (other.geometry, other.optimize, other.machine) == (one.geometry, one.optimize, one.machine)
    z, back = other.vjp(*arrays)
    for found, wanted in zip((z, *back(z)), (y, *pullback(y)), strict=True):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(AttributeError, match="a plan cannot be changed"):
        other.path = ()
    with pytest.raises(TypeError):
        other.geometry["stride"] = 2


def test_what_is_sent_of_a_plan_does_not_grow_with_its_use():
    one = made()
    before = len(pickle.dumps(one))
    for batch in (3, 4, 8):
        one(*random_arrays(((batch, 4, 9, 9), *one.shapes[1:]), dtype=np.float32))
    assert len(pickle.dumps(one)) == before


def test_a_bound_plan_is_copied_with_its_arrays(again):
    one = made()
    x, *factors = random_arrays(one.shapes, dtype=np.float32)
    bound = one.bind(factors)
    np.testing.assert_array_equal(again(bound)(x), bound(x))


def test_layers_and_loops_that_have_run_are_copied(again):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 9, 9)).astype(np.float32)
    for layer in (FactorizedConv(4, 4, (3, 3), rank=0.5, rng=rng), nn.Conv2d(4, 4, 3, rng=rng)):
        y = layer(x)
        np.testing.assert_array_equal(again(layer)(x), y)
    linear = FactorizedLinear((4, 4), (4, 4), rank=0.5, rng=rng)
    rows = rng.standard_normal((3, 16)).astype(np.float32)
    np.testing.assert_array_equal(again(linear)(rows), linear(rows))
    network = GrowingMLP(16, 3, hidden_size=4, rng=rng)
    loop = Growth(network, AdamW(network, lr=1e-3), (rows, np.array([0, 1, 2])), rng=rng)
    np.testing.assert_array_equal(again(loop).network(rows), network(rows))


def test_a_layer_runs_in_another_process():
    rng = np.random.default_rng(0)
    layer = nn.Conv2d(4, 8, 3, padding=1, rng=rng)
    x = rng.standard_normal((8, 4, 24, 24)).astype(np.float32)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(layer, x).result(timeout=120)
    np.testing.assert_array_equal(found, layer(x))
