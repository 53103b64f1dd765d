"""Plain equations against :func:`numpy.einsum`: every optimizer, every gradient, every library."""

from __future__ import annotations

import math

import numpy as np
import pytest
from opt_einsum import BranchBound, DynamicProgramming, RandomGreedy

from growarray.backend import to_numpy
from growarray.contraction import contract, plan
from growarray.contraction.objective import MINIMIZE
from growarray.testing import assert_close, check_vjp
from tests.contraction.equations import EQUATIONS, Plain, arrays_for, each_equation, expected

NAMES = ["optimal", "dp", "greedy", "random-greedy", "branch-2", "auto-hq"]
FINDERS = [  # made anew for each equation: some remember the first one
    lambda: DynamicProgramming(minimize="size"),
    lambda: RandomGreedy(max_repeats=4, parallel=False),
    lambda: BranchBound(nbranch=1),
]
TOLERANCE = 1e-12


def first_two(case: Plain) -> list[tuple[int, ...]]:
    """A path that takes the first two operands of what is left, again and again."""
    return [(0, 1)] * (len(case.shapes) - 1)


def assert_einsum(case: Plain, **options: object) -> None:
    arrays = arrays_for(case)
    found = contract(case.equation, *arrays, **options)
    wanted = expected(case, arrays)
    assert found.dtype == np.float64
    assert_close(found, wanted, rtol=TOLERANCE, what=f"{case.equation} {options}")


def test_there_are_at_least_sixty_equations_all_different():
    assert len(set(EQUATIONS)) == len(EQUATIONS) >= 60
    assert max(len(case.shapes) for case in EQUATIONS) >= 9


@each_equation
def test_auto_is_einsum(case):
    for i, minimize in enumerate(MINIMIZE):
        assert_einsum(case, minimize=minimize, training=i % 2 == 0)


@each_equation
def test_optimizers_of_opt_einsum_by_name_are_einsum(case):
    for name in NAMES[len(case.shapes) > 6 :]:  # 'optimal' looks at all orders of all products
        assert_einsum(case, optimize=name)


@each_equation
def test_path_optimizers_and_explicit_paths_are_einsum(case):
    for make in FINDERS:
        assert_einsum(case, optimize=make())
    for path in (first_two(case), [tuple(range(len(case.shapes)))]):
        assert_einsum(case, optimize=path)


@each_equation
def test_every_gradient_is_that_of_finite_differences(case):
    arrays = arrays_for(case, seed=1)
    made = plan(case.equation, *case.shapes, dtype="float64", training=True)
    check_vjp(made.vjp, *arrays)


@each_equation
def test_float32_stays_float32_and_close(case):
    arrays = [np.asarray(a, np.float32) for a in arrays_for(case, seed=2)]
    y, pullback = plan(case.equation, *case.shapes).vjp(*arrays)
    assert y.dtype == np.float32
    assert_close(y, expected(case, [a.astype(np.float64) for a in arrays]), rtol=1e-5)
    assert [g.dtype for g in pullback(np.ones_like(y))] == [np.float32] * len(arrays)


THREE = [
    Plain("b i, r i, o r, r -> b o", ((4, 3), (2, 3), (5, 2), (2,))),
    Plain("...iij,...jk->k...", ((2, 3, 3, 2), (1, 2, 4))),
    Plain("ij,kj,lj,->ikl", ((2, 3), (4, 3), (2, 3), ())),
]


@pytest.mark.parametrize("case", THREE, ids=["factorized layer", "diagonal and broadcast", "hyperedge and scalar"])
@pytest.mark.parametrize("optimize", ["auto", "greedy", "first two"])
def test_values_and_gradients_on_every_library(xp, case, optimize):
    hosts = arrays_for(case, seed=3)
    arrays = [xp.asarray(h) for h in hosts]
    path = first_two(case) if optimize == "first two" else optimize
    made = plan(case.equation, *case.shapes, dtype="float64", optimize=path)
    y, pullback = made.vjp(*arrays)
    assert type(y) is type(arrays[0])
    assert_close(y, expected(case, hosts), rtol=TOLERANCE)
    assert_close(made(*arrays), expected(case, hosts), rtol=TOLERANCE)
    dy = np.random.default_rng(4).standard_normal(y.shape)
    wanted = made.vjp(*hosts)[1](dy)
    for found, host in zip(pullback(xp.asarray(dy)), wanted, strict=True):
        assert_close(found, host, rtol=TOLERANCE)
        assert type(found) is type(arrays[0])
    for array, host in zip(arrays, hosts, strict=True):
        assert np.array_equal(to_numpy(array), host)


@pytest.mark.parametrize("wrt", [[0], [1], [2, 0], []], ids=str)
def test_gradients_that_are_not_asked_for_are_none_on_every_library(xp, wrt):
    case = Plain("ij,jk,kl->il", ((2, 3), (3, 4), (4, 2)))
    hosts = arrays_for(case)
    arrays = [xp.asarray(h) for h in hosts]
    made = plan(case.equation, *case.shapes, dtype="float64")
    every = made.vjp(*hosts)[1](np.ones((2, 2)))
    some = made.vjp(*arrays, wrt=wrt)[1](xp.asarray(np.ones((2, 2))))
    assert [g is None for g in some] == [i not in wrt for i in range(3)]
    for i in wrt:
        assert_close(some[i], every[i], rtol=TOLERANCE)


def test_a_hundred_random_equations_are_einsum_along_any_path():
    rng = np.random.default_rng(7)
    for _ in range(100):
        sizes = dict(zip("abcdef", rng.integers(1, 4, 6), strict=True))
        terms = ["".join(rng.choice(list(sizes), rng.integers(0, 4))) for _ in range(rng.integers(1, 6))]
        known = sorted(set("".join(terms)))
        output = "".join(rng.permutation(known)[: rng.integers(0, len(known) + 1)])
        case = Plain(f"{','.join(terms)}->{output}", tuple(tuple(int(sizes[m]) for m in t) for t in terms))
        assert_einsum(case)
        assert_einsum(case, optimize="random-greedy")
        assert_einsum(case, optimize=first_two(case))


def test_a_large_product_cut_into_pieces_is_einsum():
    case = Plain("bij,bjk->bik", ((3, 64, 48), (3, 48, 5000)))
    arrays = arrays_for(case)
    assert math.prod(case.shapes[1]) * 64 * 2 > 1 << 23  # more than one piece
    assert_close(contract(case.equation, *arrays), np.matmul(*arrays), rtol=TOLERANCE)
