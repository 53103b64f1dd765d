"""Options that belong to one format, numbers of NumPy, where warnings point, and inputs that stay as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.errors import ShapeError
from growarray.factorized import (
    CPTensor,
    DenseTensor,
    FactorizedConv,
    FactorizedLinear,
    FactorizedTensor,
    TensorLasso,
    TTTensor,
    tensor_dropout,
)
from tests.conftest import frozen
from tests.factorized.kernels import FACTORED, FORMATS, layer, rng

KERNEL = rng().standard_normal((6, 4, 3, 3))
X = np.ones((2, 4, 5, 5))


def dense(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 6, 3, rng=rng(), dtype=np.float64, **options)


def linear() -> nn.Linear:
    return nn.Linear(8, 6, rng=rng(), dtype=np.float64)


@pytest.mark.parametrize("name", ["CP", "TT", "BlockTT", "Dense"])
@pytest.mark.parametrize("fixed", [(0,), (), "spatial"], ids=str)
@pytest.mark.parametrize(
    "call",
    [
        lambda n, f: FactorizedTensor.new((4, 4, 3, 3), 2, n, fixed_rank_modes=f),
        lambda n, f: FactorizedTensor.from_tensor(KERNEL, 2, n, fixed_rank_modes=f),
        lambda n, f: FactorizedTensor.kind(n).format.validate_rank((4, 4, 3, 3), 2, f),
        lambda n, f: FactorizedConv(4, 4, (3, 3), factorization=n, rank=2, fixed_rank_modes=f),
        lambda n, f: FactorizedConv.from_conv(dense(), 2, factorization=n, fixed_rank_modes=f),
    ],
    ids=["new", "from_tensor", "validate_rank", "FactorizedConv", "from_conv"],
)
def test_fixed_modes_are_tuckers_alone(call: Callable[..., Any], name: str, fixed: Any) -> None:
    with pytest.raises(ValueError, match=f"fixed_rank_modes=.* is for Tucker, found {name}; leave it out"):
        call(name, fixed)
    call(name, None)


def test_fixed_modes_of_tucker() -> None:
    assert FactorizedTensor.new((6, 4, 3), 2, "Tucker", fixed_rank_modes=[-1]).rank == (2, 2, 3)
    assert FactorizedTensor.from_tensor(KERNEL, 2, "Tucker", fixed_rank_modes=(2, 3)).rank == (2, 2, 3, 3)
    assert FactorizedConv.from_conv(dense(), 2, factorization="tucker", fixed_rank_modes="spatial").rank == (2, 2, 3, 3)
    flat = SimpleNamespace(weight=rng().standard_normal((1, 1, 5, 2)), bias=None)
    made = FactorizedConv.from_conv(flat, 0.5, factorization="tucker", fixed_rank_modes="spatial")
    assert made.rank == (1, 1, 2, 2)  # of five positions only two can be of use
    with pytest.raises(ValueError, match="expected 'spatial' or a list of modes"):
        FactorizedConv.from_conv(dense(), 2, factorization="tucker", fixed_rank_modes="time")
    with pytest.raises(ValueError, match="has 2 for mode 2, which fixed_modes keeps at its size 3"):
        FactorizedConv(4, 6, (3, 3), factorization="tucker", rank=(2, 2, 2, 2), fixed_rank_modes="spatial")


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        (
            "CP",
            "CP, by growarray.decompose.cp: unknown option 'sweeps'; it has init, starts, max_iterations, tolerance",
        ),
        ("Tucker", "growarray.decompose.tucker: unknown option 'sweeps'; it has method, weighted, max_iterations"),
        ("TT", "growarray.decompose.tensor_train: unknown option 'sweeps'; it has weighted"),
        ("Dense", "Dense, which is not decomposed: unknown option 'sweeps'; it has none"),
    ],
)
def test_unknown_options_of_a_decomposition_are_named(name: str, listed: str) -> None:
    held = FactorizedTensor.new((6, 4, 3, 3), 2, name, rng=rng(), dtype=np.float64)
    before = [part.data.copy() for part in held.all_factors()]
    for call in (
        lambda: FactorizedTensor.from_tensor(KERNEL, 2, name, sweeps=3),
        lambda: held.init_from_tensor(KERNEL, sweeps=3),
        lambda: FactorizedConv.from_conv(dense(), 2, factorization=name, decomposition_kwargs={"sweeps": 3}),
        lambda: FactorizedConv.from_conv_list([dense()] * 2, 2, factorization=name, decomposition_kwargs={"sweeps": 3}),
        lambda: FactorizedLinear.from_linear(linear(), 2, factorization=name, decomposition_kwargs={"sweeps": 3}),
    ):
        with pytest.raises(TypeError, match=listed):
            call()
    for part, data in zip(held.all_factors(), before, strict=True):
        np.testing.assert_array_equal(part.data, data)


@pytest.mark.parametrize("option", ["rank", "error", "modes", "tensor"])
def test_options_that_the_format_decides_are_not_the_users(option: str) -> None:
    with pytest.raises(TypeError, match=f"unknown option '{option}'; it has method"):
        FactorizedConv.from_conv(dense(), 2, factorization="tucker", decomposition_kwargs={option: 1})


@pytest.mark.parametrize("kwargs", [3, [1], "tolerance", {1: 2}], ids=str)
def test_options_that_are_no_mapping_are_refused(kwargs: Any) -> None:
    for call in (
        lambda: FactorizedConv.from_conv(dense(), 2, decomposition_kwargs=kwargs),
        lambda: FactorizedLinear.from_linear(linear(), 2, decomposition_kwargs=kwargs),
    ):
        with pytest.raises(TypeError, match="expected a mapping from names of options"):
            call()


def test_options_beside_drawn_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="with decompose_weights=False"):
        FactorizedConv.from_conv(dense(), 2, decompose_weights=False, decomposition_kwargs={"starts": 1})


@pytest.mark.parametrize("name", FACTORED)
@pytest.mark.parametrize(
    "call",
    [
        lambda n: FactorizedTensor.from_tensor(KERNEL, 500, n),
        lambda n: FactorizedTensor.kind(n).from_tensor(KERNEL, 500),
        lambda n: FactorizedConv.from_conv(dense(), 500, factorization=n),
        lambda n: FactorizedConv.from_conv_list([dense()] * 2, 500, factorization=n),
        lambda n: FactorizedLinear.from_linear(linear(), 500, factorization=n),
        lambda n: FactorizedLinear.from_linear_list([linear()] * 2, rank=500, factorization=n),
    ],
    ids=["from_tensor", "of the class", "from_conv", "from_conv_list", "from_linear", "from_linear_list"],
)
def test_the_warning_points_at_the_line_of_the_user(name: str, call: Callable[[str], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(name)
    (one,) = caught
    assert "above what the tensor can use, lowered to" in str(one.message)
    assert one.filename == __file__


@pytest.mark.parametrize("name", FACTORED)
@pytest.mark.parametrize("share", [0.9, np.float32(0.9), np.float64(0.9), "same"], ids=repr)
def test_shares_are_lowered_without_a_warning(name: str, share: Any) -> None:
    flat = rng().standard_normal((2, 2, 2))  # 'same' is more than so small a tensor can use
    assert FactorizedTensor.from_tensor(flat, share, name).shape == (2, 2, 2)


@pytest.mark.parametrize("name", FACTORED)
def test_numbers_of_numpy_are_taken_everywhere(name: str) -> None:
    made = FactorizedConv(
        np.int64(4), np.int64(6), np.asarray([3, 3]), groups=np.int64(2), rank=np.int64(2), factorization=name,
        n_layers=np.asarray([2, 2]), bias=np.True_, rng=rng(), dtype=np.float64,
    )  # fmt: skip
    assert (made.groups, made.layers_shape, made.kernel_shape) == (2, (2, 2), (6, 2, 3, 3))
    assert made(X, np.asarray([1, 0])).shape == (2, 6, 3, 3)
    assert made.plan(np.asarray(X.shape), indices=(0, 1)).shapes[0] == made.plan(X.shape, indices=(0, 1)).shapes[0]
    plain = FactorizedConv.from_conv(dense(), 0.5, factorization=name)
    assert FactorizedConv.from_conv(dense(), np.float32(0.5), factorization=name).rank == plain.rank


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("turned", [False, True], ids=["contiguous", "turned"])
def test_what_is_decomposed_stays_as_it_is(name: str, turned: bool) -> None:
    kernel = np.transpose(rng().standard_normal((3, 3, 4, 6)), (3, 2, 1, 0)) if turned else KERNEL.copy()
    before = kernel.copy()
    source = SimpleNamespace(weight=frozen(kernel), bias=frozen(np.ones(6)), padding=1)
    made = FactorizedConv.from_conv(source, 2, factorization=name)
    assert FactorizedTensor.from_tensor(source.weight, 2, name).shape == (6, 4, 3, 3)
    for parameter in made.parameters():
        parameter.data += 1.0  # its own, and writable
    np.testing.assert_array_equal(kernel, before)
    assert source.bias.max() == 1.0


@pytest.mark.parametrize("weight", ["float32", "float64"])
def test_the_weight_decides_the_dtype(weight: str) -> None:
    other = {"float32": "float64", "float64": "float32"}[weight]
    source = SimpleNamespace(weight=KERNEL.astype(weight), bias=np.ones(6, dtype=other))
    assert {str(p.data.dtype) for p in FactorizedConv.from_conv(source, 2).parameters()} == {weight}


BROKEN = SimpleNamespace(weight=np.full((6, 4, 3, 3), np.nan), bias=None)
JOINT = layer("CP", 4, 6, (3, 3), n_layers=(2, 3), bias=True)
SINGLE = layer("CP", 4, 6, (3, 3))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: FactorizedTensor.new((4, 3), 10**12), ValueError, "over 1000 times the 12 .* rank 3 at most"),
        (lambda: FactorizedConv(4, 6, (3, 3), rank=10**30, factorization="tt"), ValueError, "over 1000 times"),
        (lambda: FactorizedTensor.new((4, 3), 2, dtype="int32"), TypeError, "real floating dtype .* found int32"),
        (lambda: FactorizedTensor.new((4, 3), 2, dtype="foo"), TypeError, "real floating dtype .* found 'foo'"),
        (lambda: FactorizedTensor.new((4, 3), 2, rng=3), TypeError, "expected rng as a numpy.random.Generator"),
        (lambda: FactorizedTensor.new((4, 3), 2, std="1"), ValueError, "std is '1'"),
        (lambda: FactorizedTensor.from_tensor(KERNEL * np.nan, 1, "Dense"), ValueError, "NaN or infinite"),
        (lambda: FactorizedTensor.from_tensor(np.ones((2, 2), int), 1, "Dense"), TypeError, "found int64"),
        (lambda: FactorizedTensor.new((4, 3), 2).init_from_tensor("abc"), TypeError, "expected real numbers"),
        (lambda: CPTensor(np.ones(2, int), [np.ones((3, 2))]), TypeError, "real floating dtype, found int64"),
        (lambda: CPTensor(np.ones(2), None), TypeError, "expected a list of arrays"),
        (lambda: DenseTensor("a"), TypeError, "real floating"),
        (lambda: TTTensor([np.ones((1, 3, 1))])["a":], IndexError, "is not a slice of 3 entries"),
        (lambda: TTTensor([np.ones((1, 3, 1))])[::0], IndexError, "is not a slice"),
        (lambda: TTTensor([np.ones((1, 3, 1))])[np.asarray([1, 2])], IndexError, "expected a whole number or a slice"),
        (lambda: FactorizedTensor.new((4, 3), 2).transduct(2.5, 1), TypeError, "new_size must be a whole number"),
        (lambda: FactorizedTensor.new((4, 3), 2).transduct(True, 1), TypeError, "new_size must be a whole number"),
        (lambda: FactorizedTensor.new((4, 3), 2).transduct(2, 1.0), ValueError, "mode 1.0 is out of range"),
        (lambda: FactorizedTensor.new((4, 3), 2).transduct(3, 1, 1.5), ValueError, "position 1.5 is out of range"),
        (lambda: FactorizedConv(4, 6, (3, 3), bias="yes"), TypeError, "bias='yes', expected True or False"),
        (lambda: FactorizedConv(4, 6, (3, 3), has_bias="yes"), TypeError, "has_bias='yes'"),
        (lambda: FactorizedConv(4, 6, (3,), n_layers=(2, 2), has_bias=[[1], [1, 2]]), ValueError, "one entry for each"),
        (lambda: FactorizedConv(4, 6, (3, 3), implementation={}), ValueError, "implementation {} cannot be used"),
        (lambda: FactorizedConv(4, 6, (3, 3), factorization=SINGLE.weight, rank=7), ValueError, "rank, .* are those"),
        (lambda: FactorizedLinear(4, 6, bias="no"), TypeError, "FactorizedLinear: bias='no'"),
        (lambda: FactorizedLinear(4, 6, implementation={}), ValueError, "implementation {} cannot be used"),
        (lambda: FactorizedLinear(4, 6)([1.0]), TypeError, "FactorizedLinear: expected an array, found list"),
        (lambda: FactorizedLinear(4, 6).plan(4), TypeError, "expected the shape of an input"),
        (lambda: FactorizedLinear(4, 6, n_layers=2)[np.asarray([0, 1])], ValueError, "expected a whole number"),
        (lambda: FactorizedLinear.from_linear_list(linear()), TypeError, "expected a list of layers, found Linear"),
        (lambda: SINGLE([[1.0]]), TypeError, "FactorizedConv: expected an array, found list"),
        (lambda: SINGLE.vjp(None), TypeError, "expected an array, found NoneType"),
        (lambda: SINGLE.vjp(X)[1]([1.0]), TypeError, "the gradient: expected an array, found list"),
        (lambda: SINGLE.plan(5), TypeError, "expected the shape of an input, whole numbers .n, …., found 5"),
        (lambda: SINGLE(X, np.asarray([1, 2])), ValueError, "holds one convolution"),
        (lambda: JOINT(X, (0, 5)), IndexError, r"indices=\(0, 5\) is out of range, n_layers=\(2, 3\)"),
        (lambda: JOINT(X, (0, 1.0)), ValueError, "expected whole numbers, one for each of 2"),
        (lambda: JOINT.set((0, 0), bias="no"), TypeError, "bias holds .*, expected real numbers"),
        (lambda: JOINT.set((0, 0), bias=np.full(6, 1j)), TypeError, "bias holds complex128"),
        (lambda: FactorizedConv.from_factorization(3), TypeError, "expected a FactorizedTensor, found int"),
        (lambda: FactorizedConv.from_conv_list(dense()), TypeError, "expected a list of layers, found Conv2d"),
        (lambda: FactorizedConv.from_conv_list([dense(), BROKEN]), ValueError, "layer 1: weight of .* holds a NaN"),
        (lambda: FactorizedConv.from_conv_list([dense(), 3]), TypeError, "layer 1: int has no weight"),
        (
            lambda: FactorizedConv.from_conv(SimpleNamespace(weight=KERNEL, bias=None, groups=1.5)),
            TypeError, "groups of SimpleNamespace must be a whole number, found 1.5",
        ),
        (
            lambda: FactorizedConv.from_conv(SimpleNamespace(weight=KERNEL, bias=None, stride=None)),
            ValueError, "found None, expected a whole number",
        ),
        (lambda: FactorizedConv.from_conv(SINGLE), TypeError, "is factorized already; .*from_factorization"),
        (lambda: FactorizedConv.from_conv(dense(), 2, decompose_weights="no"), TypeError, "decompose_weights='no'"),
        (lambda: FactorizedConv.from_conv(dense(), 2, calibration=X, measure="no"), TypeError, "measure='no'"),
        (lambda: tensor_dropout(FactorizedTensor.new((4, 3), 2), 0.5, drop_test="no"), TypeError, "drop_test='no'"),
        (lambda: TensorLasso(clamp_weights="no"), TypeError, "TensorLasso: clamp_weights='no'"),
        (lambda: TensorLasso(normalize_loss=2), TypeError, "normalize_loss=2, expected True or False"),
        (lambda: FactorizedConv.from_conv(dense(), 2, calibration=X[:, :3]), ShapeError, r"has shape \(2, 3,"),
        (lambda: FactorizedConv.from_conv(dense(), 2, calibration=X * np.nan), ValueError, "data hold a NaN"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_a_refused_set_changes_nothing() -> None:
    made = layer("CP", 4, 6, (3, 3), n_layers=2, bias=True, padding=1)
    state = {name: value.copy() for name, value in made.state_dict().items()}
    for options in ({"bias": np.ones(3)}, {"bias": "no"}, {"stride": 0}, {"padding": "wide"}):
        with pytest.raises((TypeError, ValueError)):
            made.set(0, **options)
    assert made.padding == ((1, 1), (1, 1))
    for name, value in made.state_dict().items():
        np.testing.assert_array_equal(value, state[name])
