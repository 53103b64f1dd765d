"""Factorized tensors: value and way back, indices, initial values, ranks, transduction, on every array library."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from growarray.backend import namespace, to_numpy
from growarray.errors import ShapeError
from growarray.factorized import CPTensor, DenseTensor, FactorizedTensor, TRTensor, TTTensor, TuckerTensor, formats
from growarray.nn.module import Parameter
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library
from tests.factorized.kernels import FACTORED, FORMATS, rng, tensor
from tests.pairs import pairs

each_format = pytest.mark.parametrize("name", FORMATS)
EINSUM = {
    "CP": "r,ar,br,cr->abc",
    "Tucker": "xyz,ax,by,cz->abc",
    "TT": "xay,ybz,zcw->abc",
    "TR": "xay,ybz,zcx->abc",
    "Dense": "abc->abc",
}
EXACT: dict[str, Any] = {"TR": (6, 3, 2, 6)}  # the least ranks with which TR-SVD is exact for (4, 5, 3)
INDICES: dict[str, Any] = {
    "int": 1,
    "negative": -1,
    "numpy-int": np.int64(2),
    "slice": slice(0, 2),
    "open-slice": slice(1, None),
    "step": slice(0, None, 2),
    "two-ints": (1, 2),
    "int-slice": (1, slice(0, 2)),
    "slice-int": (slice(0, 2), 1),
    "ellipsis": ...,
    "ellipsis-last": (..., 1),
    "ellipsis-between": (0, ..., slice(1, 3)),
    "ellipsis-of-none": (0, 1, ..., 0),
    "middle": (slice(None), 1, slice(None)),
    "down-to-first": (slice(None), 0, 2),
    "down-to-last": (0, 1, slice(None)),
    "all-ints": (2, 3, -1),
    "all-slices": (slice(1, 3), slice(0, 3), slice(0, 1)),
}


def as_function(held: FactorizedTensor) -> Any:
    def function(*values: Any) -> Any:
        part = type(held).of([Parameter(v) for v in values])
        value, back = part.tensor_vjp()

        def pullback(d: Any) -> Any:
            part.zero_grad()
            back(d)
            return tuple(p.grad for p in part.all_factors())

        return value, pullback

    return function


@each_format
def test_value_is_the_einsum_of_the_format(name: str, xp: Library) -> None:
    held = tensor(name, (3, 4, 2))
    expected = np.einsum(EINSUM[name], *held.arrays())
    value = xp.adopt(held).to_tensor()  # type: ignore[attr-defined]
    assert namespace(value) is namespace(held.all_factors()[0].data)
    assert_close(value, expected, rtol=1e-13)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 3, 2), (2, 1, 2, 2), (2, 1, 2, 2, 1)], ids=str)
@each_format
def test_pullback_is_the_derivative_by_the_parts(name: str, shape: tuple[int, ...]) -> None:
    held = tensor(name, shape)
    check_vjp(as_function(held), *held.arrays())
    assert_close(held.tensor_vjp()[0], held.to_tensor(), rtol=1e-14)


@each_format
def test_index_is_that_of_the_dense_tensor(name: str, xp: Library) -> None:
    dense = tensor(name, (3, 4, 5)).to_tensor()
    held: Any = xp.adopt(tensor(name, (3, 4, 5)))
    for label, index in INDICES.items():
        expected, part = dense[index], held[index]
        assert isinstance(part, FactorizedTensor) == (np.ndim(expected) > 0), label
        value = part.to_tensor() if isinstance(part, FactorizedTensor) else part
        assert tuple(part.shape) == expected.shape, label
        assert_close(value, expected, rtol=1e-13, what=label)
        if isinstance(part, FactorizedTensor):
            assert type(part) is type(held)
            for mine, theirs in zip(part.arrays(), held.arrays(), strict=False):
                assert not np.shares_memory(to_numpy(mine), to_numpy(theirs)), label


@pytest.mark.parametrize(
    "items", [(1, slice(0, 3, 1), 2), (slice(0, 2, 1), 0, slice(1, 4, 1)), (0, 1, slice(0, 4, 1))], ids=str
)
@each_format
def test_select_has_a_way_back(name: str, items: Any) -> None:
    held = tensor(name, (2, 3, 4))

    def function(*values: Any) -> Any:
        parts, back = held.format.select(values, items)
        sizes = [part.size for part in parts]

        def pullback(d: Any) -> Any:
            pieces = np.split(d, np.cumsum(sizes)[:-1])
            return back(tuple(p.reshape(part.shape) for p, part in zip(pieces, parts, strict=True)))

        return np.concatenate([part.ravel() for part in parts]), pullback

    check_vjp(function, *held.arrays())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (3, "mode 0: index 3 is out of range, there are 3 entries"),
        ((0, -5), "mode 1: index -5 is out of range, there are 4"),
        ((0, 0, 0, 0), "4 entries, the tensor 3 modes"),
        ((..., 0, ...), "2 ellipses"),
        (slice(2, 2), "selects nothing"),
        (slice(None, None, -1), "runs backwards"),
        (None, "found None, expected a whole number or a slice"),
        (True, "found True"),
        ([0, 1], "expected a whole number or a slice"),
        (0.5, "found 0.5"),
    ],
    ids=str,
)
@each_format
def test_an_index_that_makes_no_sense_is_refused(name: str, index: Any, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        tensor(name, (3, 4, 5))[index]


@each_format
def test_names_are_those_of_tensorly_torch(name: str) -> None:
    factors = [f"factors.factor_{i}" for i in range(3)]
    expected = {"CP": ["weights", *factors], "Tucker": ["core", *factors], "Dense": ["tensor"]}.get(name, factors)
    held = tensor(name, (3, 4, 2))
    assert list(held.state_dict()) == expected
    assert held.number_of_parameters() == sum(a.size for a in held.arrays())
    assert (held.order, held.ndim, held.numel, held.dtype, held.name) == (3, 3, 24, np.float64, name)


@each_format
def test_state_dict_goes_round(name: str) -> None:
    held, other = tensor(name, (3, 4, 2)), FactorizedTensor.new((3, 4, 2), 2, name, rng=rng(9), dtype=np.float64)
    assert not other.load_state_dict(held.state_dict())
    assert_close(other.to_tensor(), held.to_tensor(), rtol=0.0)


@pytest.mark.parametrize(("name", "ratio"), [("Dense", 1.0), ("CP", 1.0), ("Tucker", 1.0), ("TR", 1.0), ("TT", 1 / 3)])
def test_entries_have_the_standard_deviation_asked_for(name: str, ratio: float) -> None:
    rank = {"CP": 4, "Tucker": (3, 3, 3), "TR": 3, "TT": (1, 3, 3, 1)}.get(name)
    held = FactorizedTensor.new((6, 6, 6), rank, name, dtype=np.float64)
    draws = [held.normal_(0.0, 0.5, rng(i)).to_tensor() for i in range(400)]
    # the tensor train's formula is the original's: the product of the ranks in place of its root
    assert np.std(draws) == pytest.approx(0.5 * ratio, rel=0.1)
    assert abs(np.mean(draws)) < 0.02


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_generator_draws_the_same(name: str) -> None:
    first, second = (FactorizedTensor.new((4, 3), 2, name, rng=rng(1)).to_tensor() for _ in range(2))
    assert np.array_equal(first, second)
    assert first.dtype == np.float32
    assert not np.array_equal(first, FactorizedTensor.new((4, 3), 2, name, rng=rng(2)).to_tensor())


@each_format
def test_mean_and_std_that_cannot_be_drawn_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"mean is 1\.0, only a mean of 0"):
        tensor(name, (3, 2)).normal_(1.0)
    with pytest.raises(ValueError, match=r"std is -1\.0"):
        tensor(name, (3, 2)).normal_(0.0, -1.0)


@each_format
def test_a_tensor_of_the_rank_is_found_again(name: str, xp: Library) -> None:
    wanted = xp.asarray(tensor(name, (4, 5, 3)).to_tensor())
    options = {"tolerance": 1e-12} if name == "CP" else {}
    found = FactorizedTensor.from_tensor(wanted, EXACT.get(name, 2), name, **options)
    assert namespace(found.to_tensor()) is namespace(wanted)
    assert_close(found.to_tensor(), wanted, rtol=1e-6)


@each_format
def test_init_from_tensor_keeps_parameters_dtype_and_rank(name: str) -> None:
    held = FactorizedTensor.new((4, 5, 3), EXACT.get(name, 2), name, rng=rng(0))
    before, rank = held.all_factors(), held.rank
    for part in before:
        part.accumulate(part.data)
        part.slots["momentum"] = part.data
    wanted = tensor(name, (4, 5, 3)).to_tensor()
    assert held.init_from_tensor(wanted) is held
    assert held.all_factors() == before
    assert held.rank == rank
    assert held.dtype == np.float32
    assert all(part.grad is None and not part.slots for part in before)
    assert_close(held.to_tensor(), wanted.astype(np.float32), rtol=1e-2)
    with pytest.raises(ShapeError, match=r"has shape \(4, 5\), expected \(4, 5, 3\)"):
        held.init_from_tensor(wanted[..., 0])


@pytest.mark.parametrize("name", FACTORED)
def test_a_rank_that_is_of_no_use_is_lowered_with_a_warning(name: str) -> None:
    dense = rng(0).standard_normal((2, 3, 2))
    with pytest.warns(UserWarning, match="is above what the tensor can use, lowered to"):
        found = FactorizedTensor.from_tensor(dense, 7, name)
    assert_close(found.to_tensor(), dense, rtol=1e-4)


@pytest.mark.parametrize(("name", "mode", "position"), pairs(FORMATS, range(4), [None, 0, 2]))
def test_transduct_repeats_or_places_the_tensor(name: str, mode: int, position: int | None, xp: Library) -> None:
    held = tensor(name, (2, 3, 4))
    dense = np.expand_dims(held.to_tensor(), mode)
    xp.adopt(held)
    before = held.all_factors()
    new = held.transduct(3, mode, position)
    assert held.shape == (*(2, 3, 4)[:mode], 3, *(2, 3, 4)[mode:])
    places = range(3) if position is None else [position]
    expected = np.concatenate([dense if i in places else np.zeros_like(dense) for i in range(3)], axis=mode)
    assert_close(held.to_tensor(), expected, rtol=1e-13)
    assert set(held.all_factors()) - set(before) == set(new)
    if name != "Dense":
        assert set(before) < set(held.all_factors())


def test_transduct_keeps_gradient_and_optimizer_state_of_a_core() -> None:
    held = tensor("Tucker", (2, 3))
    core = held.core
    core.accumulate(core.data)
    core.slots.update(momentum=core.data.copy(), step=3)
    held.transduct(4, 1)
    assert core.shape == core.grad.shape == core.slots["momentum"].shape == (2, 1, 2)
    assert core.slots["step"] == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 0), ShapeError, "new mode has 0 entries"),
        ((2, 4), ValueError, "mode 4 is out of range, expected 0 to 3"),
        ((2, -1), ValueError, "mode -1"),
        ((2, 0, 2), ValueError, "position 2 is out of range, the new mode has 2"),
    ],
    ids=str,
)
@each_format
def test_transductions_that_make_no_sense_are_refused(name: str, arguments: Any, error: Any, message: str) -> None:
    held = tensor(name, (2, 3, 4))
    with pytest.raises(error, match=message):
        held.transduct(*arguments)
    assert held.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CPTensor(np.ones(2), []), "found no factor"),
        (lambda: CPTensor(np.ones(2), [np.ones((3, 2)), np.ones((3, 3))]), "factor_1 has shape"),
        (lambda: CPTensor(np.ones(2), [np.ones(3)]), "expected 2 axes"),
        (lambda: TuckerTensor(np.ones((2, 2)), [np.ones((3, 2))]), "the core has shape"),
        (lambda: TTTensor([np.ones((2, 3, 1))]), "the cores have shapes"),
        (lambda: TTTensor([np.ones((1, 3, 2)), np.ones((3, 3, 1))]), "the cores have shapes"),
        (lambda: TTTensor([np.ones((3, 2))]), "expected 3 axes"),
        (
            lambda: TRTensor([np.ones((2, 3, 1)), np.ones((1, 3, 3))]),
            r"expected \(r_0, size, r_1\).* \(r_n, size, r_0\)",
        ),
        (lambda: TRTensor([np.ones((2, 3, 2))]), r"expected \(1, size, r_1\)"),
        (lambda: FactorizedTensor.new((), 1), "at least one mode"),
        (lambda: FactorizedTensor.new((3, 0), 1), "sizes of at least 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        make()


@pytest.mark.parametrize("name", ["cpp", "", 3], ids=str)
def test_an_unknown_format_is_refused_with_those_that_exist(name: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown factorization .*expected one of BlockTT, CP, Dense, TR, TT, Tucker"):
        FactorizedTensor.new((3, 2), 1, name)
    assert formats() == ("BlockTT", "CP", "Dense", "TR", "TT", "Tucker")


@pytest.mark.parametrize("name", ["tr", "TR", "ring", "Ring", "tensor_ring", "tensor-ring"])
def test_a_ring_has_many_names(name: str) -> None:
    assert type(FactorizedTensor.new((3, 2), 1, name)) is TRTensor


def test_a_class_makes_tensors_of_its_own_format() -> None:
    assert type(TuckerTensor.new((3, 2), 1)) is TuckerTensor
    assert type(TTTensor.from_tensor(np.ones((3, 2)), 1, "tt")) is TTTensor
    assert type(FactorizedTensor.new((3, 2), 1)) is CPTensor
    with pytest.raises(ValueError, match="TuckerTensor is not 'cp'; leave factorization out"):
        TuckerTensor.new((3, 2), 1, "cp")


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("CP", 0),
        ("CP", -1),
        ("Tucker", (1, 0)),
        ("Tucker", (1, 2, 3)),
        ("TT", (1, 2)),
        ("TT", (2, 2, 1)),
        ("TR", (2, 2, 1)),
        ("TR", (2, 2)),
        ("TR", (2, 0, 2)),
        ("CP", 0.0),
        ("TT", "all"),
    ],
    ids=str,
)
def test_ranks_that_make_no_sense_are_refused(name: str, rank: Any) -> None:
    with pytest.raises(ValueError, match="rank"):
        FactorizedTensor.new((3, 4), rank, name)


def test_copies_are_independent() -> None:
    held = tensor("CP", (3, 2))
    other = copy.deepcopy(held)
    other.weights.data = other.weights.data * 2
    assert_close(other.to_tensor(), 2 * held.to_tensor())


def test_a_class_of_ones_own_leaves_the_formats_as_they_are() -> None:
    class Mine(CPTensor):
        """A CP tensor of a user's own."""

    assert type(tensor("CP", (3, 2))) is CPTensor
    assert Mine(np.ones(1), [np.ones((2, 1))]).to_tensor().tolist() == [1.0, 1.0]
    assert repr(DenseTensor(np.ones(2))) == "DenseTensor(shape=(2,), rank=None)"
