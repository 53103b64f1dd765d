"""What happens to an operand before its first product and after its last gradient, on every library."""

from __future__ import annotations

import numpy as np
import pytest

from growarray.backend import namespace, to_numpy
from growarray.contraction.equation import parse
from growarray.contraction.geometry import ConvAxis
from growarray.contraction.operand import pad, prepare, unpad, unprepare
from growarray.contraction.problem import Problem
from growarray.testing import assert_close
from tests.contraction.reference import NUMPY_MODES

OPERANDS = {
    "plain": ("ij->ij", (2, 3), ("i", "j")),
    "summed": ("ijk->j", (2, 3, 4), ("j",)),
    "all summed": ("ij->", (2, 3), ()),
    "diagonal": ("ii->i", (3, 3), ("i",)),
    "trace": ("ii->", (3, 3), ()),
    "diagonal apart": ("ijki->kij", (3, 2, 4, 3), ("i", "j", "k")),
    "two diagonals": ("ijji->ij", (3, 2, 2, 3), ("i", "j")),
    "thrice": ("iiji->ij", (3, 3, 2, 3), ("i", "j")),
    "diagonal and sum": ("iijk->i", (3, 3, 2, 2), ("i",)),
    "empty diagonal": ("ii->i", (0, 0), ("i",)),
}


@pytest.mark.parametrize(("equation", "shape", "modes"), OPERANDS.values(), ids=list(OPERANDS))
def test_an_operand_is_prepared_as_einsum_does_and_back_by_the_adjoint(xp, equation, shape, modes):
    operand = Problem(parse(equation), [shape]).operands[0]
    assert operand.modes == modes
    assert operand.is_plain == (equation == "ij->ij")
    rng = np.random.default_rng(0)
    host = rng.standard_normal(shape)
    x = xp.asarray(host)
    found = prepare(namespace(x), x, operand)
    wanted = np.einsum(f"{equation.partition('->')[0]}->{''.join(modes)}", host)
    assert_close(found, wanted, rtol=1e-13)
    d_found = rng.standard_normal(wanted.shape)
    dx = unprepare(namespace(x), xp.asarray(d_found), operand, shape)
    assert tuple(dx.shape) == shape
    assert np.isclose(np.sum(to_numpy(dx) * host), np.sum(d_found * wanted), rtol=1e-12, atol=1e-12)
    assert np.array_equal(to_numpy(x), host)


def test_the_gradient_of_a_diagonal_is_zero_beside_it(xp):
    operand = Problem(parse("iji->ij"), [(3, 2, 3)]).operands[0]
    d = xp.asarray(np.arange(1.0, 7.0).reshape(3, 2))
    dx = to_numpy(unprepare(namespace(d), d, operand, (3, 2, 3)))
    assert np.array_equal(np.einsum("iji->ij", dx), to_numpy(d))
    assert np.count_nonzero(dx) == 6


def test_axes_that_others_broadcast_are_dropped_and_come_back(xp):
    operand = Problem(parse("...i,...i->...i"), [(1, 3), (4, 3)]).operands[0]
    assert operand.dropped == (0,)
    x = xp.asarray(np.ones((1, 3)))
    assert tuple(prepare(namespace(x), x, operand).shape) == (3,)
    assert tuple(unprepare(namespace(x), xp.asarray(np.ones(3)), operand, (1, 3)).shape) == (1, 3)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (0, 3), (2, 0), (3, 3)])
def test_padding_is_that_of_numpy_and_back_by_the_adjoint(xp, mode, before, after):
    rng, axis = np.random.default_rng(1), ConvAxis(before=before, after=after, padding_mode=mode)
    host = rng.standard_normal((2, 4, 3))
    x = xp.asarray(host)
    wanted = np.pad(host, [(0, 0), (before, after), (0, 0)], NUMPY_MODES[mode])
    assert np.array_equal(to_numpy(pad(namespace(x), x, 1, axis)), wanted)
    dy = rng.standard_normal(wanted.shape)
    gradient = xp.asarray(dy)
    dx = to_numpy(unpad(namespace(x), gradient, 1, axis))
    assert dx.shape == host.shape
    for place in np.ndindex(host.shape):
        unit = np.zeros(host.shape)
        unit[place] = 1.0
        moved = np.pad(unit, [(0, 0), (before, after), (0, 0)], NUMPY_MODES[mode])
        assert np.isclose(dx[place], np.sum(moved * dy), atol=1e-12)
    assert np.array_equal(to_numpy(gradient), dy)
    assert np.array_equal(to_numpy(x), host)


def test_one_position_may_be_repeated(xp):
    x = xp.asarray(np.ones((1, 2)))
    axis = ConvAxis(before=2, after=3, padding_mode="replicate")
    assert np.array_equal(to_numpy(pad(namespace(x), x, 0, axis)), np.ones((6, 2)))
    assert np.array_equal(to_numpy(unpad(namespace(x), xp.asarray(np.ones((6, 2))), 0, axis)), np.full((1, 2), 6.0))
