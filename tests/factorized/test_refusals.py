"""Options of the constructor and inputs that make no sense, and the faults of the original that are not here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.errors import PlanError, ShapeError
from growarray.factorized import FactorizedConv
from growarray.testing import assert_close
from tests.factorized.kernels import FORMATS, dense_output, layer, rng, tensor

each_format = pytest.mark.parametrize("name", FORMATS)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel_size": 3}, ValueError, "kernel_size=3 without order; give order=2 for images"),
        ({"kernel_size": 3, "order": 0}, ValueError, "order must be at least 1"),
        ({"kernel_size": (3, 3), "order": 3}, ValueError, r"order=3 does not agree with kernel_size=\(3, 3\)"),
        ({"kernel_size": ()}, ValueError, "order must be at least 1"),
        ({"kernel_size": (3, 0)}, ValueError, "kernel_size must be at least 1"),
        ({"kernel_size": 2.5, "order": 2}, TypeError, "kernel_size must be one whole number"),
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1"),
        ({"groups": 3}, ShapeError, "in_channels=4 does not divide into groups=3"),
        ({"in_channels": 3, "groups": 3}, ShapeError, "out_channels=4 does not divide into groups=3"),
        ({"groups": 0}, ValueError, "groups must be at least 1"),
        (
            {"factorization": "parafac"},
            ValueError,
            "unknown factorization 'parafac'; expected one of BlockTT, CP, Dense",
        ),
        ({"factorization": None}, ValueError, "unknown factorization None"),
        ({"rank": 0}, ValueError, "rank 0, expected at least 1"),
        ({"rank": -2}, ValueError, "expected at least 1"),
        ({"factorization": "tucker", "rank": (2, 2, 2)}, ValueError, "has 3 entries, expected 4"),
        ({"factorization": "tt", "rank": (1, 2, 2, 1)}, ValueError, "has 4 entries, expected 5"),
        ({"factorization": "tt", "rank": (2, 2, 2, 2, 1)}, ValueError, "must start and end with 1"),
        ({"rank": "some"}, ValueError, "found rank 'some'"),
        ({"implementation": "fastest"}, ValueError, "implementation 'fastest' cannot be used.*'auto', 'factorized'"),
        ({"implementation": [(0, 1)]}, ValueError, "cannot be used.*operands are left"),
        ({"fixed_rank_modes": "spatial"}, ValueError, "fixed_rank_modes='spatial' is for Tucker, found CP"),
        ({"factorization": "tucker", "fixed_rank_modes": "time"}, ValueError, "expected 'spatial' or a list of modes"),
        ({"factorization": "tucker", "fixed_rank_modes": (7,)}, ValueError, "fixed_modes"),
        ({"n_layers": 0}, ValueError, "n_layers must be at least 1"),
        ({"n_layers": ()}, ValueError, "n_layers is empty"),
        ({"n_layers": 1.5}, TypeError, "n_layers must be a whole number"),
        ({"n_layers": 2, "has_bias": [True]}, ValueError, r"has_bias has shape \(1,\), expected one entry for each"),
        ({"padding": (1, 1, 1)}, PlanError, "padding: 3 values for 2 convolution modes"),
        ({"stride": 0}, PlanError, "stride of 'y': found 0"),
        ({"padding": "same", "stride": 2}, PlanError, "'same' needs stride 1"),
        ({"padding_mode": "mirror"}, PlanError, "padding_mode of 'y': found 'mirror', expected one of zeros"),
        ({"device": "tpu"}, ValueError, "unknown device 'tpu'"),
        ({"factorization": tensor("CP", (4, 4, 2, 2))}, ShapeError, "does not hold kernels"),
        ({"factorization": tensor("CP", (4, 4, 3, 3)), "dtype": "float32"}, ValueError, "those of the tensor"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], error: Any, message: str) -> None:
    full = {"in_channels": 4, "out_channels": 4, "kernel_size": (3, 3)} | options
    with pytest.raises(error, match=message):
        FactorizedConv(**full)


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((2, 3, 5, 5), ShapeError, r"input has shape \(2, 3, 5, 5\), expected \(n, 4, and 2 spatial axes\)"),
        ((4, 5, 5), ShapeError, r"expected \(n, 4, and 2 spatial axes\)"),
        ((2, 4, 5, 5, 5), ShapeError, "transduct adds an axis"),
        ((2, 4, 2, 5), PlanError, "a kernel of 3 with dilation 1 spans 3 positions, the padded input has 2"),
    ],
    ids=str,
)
@each_format
def test_inputs_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...], error: Any, message: str) -> None:
    made = layer(name, 4, 4, (3, 3))
    for call in (made.forward, made.vjp):
        with pytest.raises(error, match=message):
            call(np.ones(shape))
    with pytest.raises(error, match=message):
        made.plan(shape)


@each_format
def test_dtypes_that_do_not_fit_are_refused(name: str) -> None:
    made = layer(name, 2, 2, (2,))
    for dtype in (np.float32, np.int64):
        with pytest.raises(TypeError, match="convert"):
            made(np.ones((1, 2, 4), dtype=dtype))


@each_format
def test_a_gradient_of_another_shape_is_refused(name: str) -> None:
    made = layer(name, 2, 2, (2,))
    with pytest.raises(ShapeError, match=r"the gradient has shape \(1, 2, 4\), the result had \(1, 2, 3\)"):
        made.vjp(np.ones((1, 2, 4)))[1](np.ones((1, 2, 4)))
    assert all(p.grad is None for p in made.parameters())


# Faults of TensorLy-Torch, each with the case in which it was measured; the others are golden cases.


def test_bias_of_a_joint_layer_is_applied_without_a_flag() -> None:
    joint = layer("CP", 2, 3, (2, 2), n_layers=2, bias=True)
    x = rng(1).standard_normal((1, 2, 4, 4))
    assert joint.has_bias == (True, True)
    plain = nn.Conv2d.of(joint.kernel(0))(x)
    assert_close(joint(x, 0) - plain, np.broadcast_to(joint.bias.data[0][:, None, None], plain.shape), rtol=1e-12)  # type: ignore[union-attr]


def test_a_flag_makes_the_bias() -> None:
    assert FactorizedConv(2, 3, (2,), has_bias=True).bias is not None
    assert FactorizedConv(2, 3, (2,), n_layers=2, has_bias=[0, 1]).has_bias == (False, True)


@pytest.mark.parametrize("implementation", ["factorized", "mobilenet", "reconstructed", "auto"])
def test_dense_takes_every_implementation(implementation: str) -> None:
    made = layer("Dense", 2, 3, (2, 2), implementation=implementation)
    x = rng(1).standard_normal((1, 2, 4, 4))
    assert_close(made(x), dense_output(made, x), rtol=1e-12)


@each_format
def test_set_works_on_a_single_layer(name: str) -> None:
    made = layer(name, 2, 3, (2, 2), bias=True)
    made.set(0, stride=2, padding=(1, 0), bias=np.arange(3.0))
    x = rng(1).standard_normal((1, 2, 4, 4))
    assert (made.stride, made.padding, made.bias.data.tolist()) == ((2, 2), (1, 0), [0.0, 1.0, 2.0])  # type: ignore[union-attr]
    assert_close(made(x), dense_output(made, x), rtol=1e-12)


@each_format
def test_a_list_of_one_layer_is_a_single_layer(name: str) -> None:
    dense = nn.Conv2d(2, 3, 2, stride=2, rng=rng(0), dtype=np.float64)
    made = FactorizedConv.from_conv_list([dense], factorization=name, rank=2)
    assert (made.layers_shape, made.n_layers, made.stride, made.has_bias) == ((), 1, (2, 2), True)
    assert made(np.ones((1, 2, 4, 4))).shape == (1, 3, 2, 2)


def test_joint_tensor_trains_come_from_a_factorization() -> None:
    made = FactorizedConv.from_factorization(tensor("TT", (2, 3, 2, 2, 4)), n_layers=2)
    x = rng(1).standard_normal((1, 3, 4, 4))
    assert_close(made(x, 1), dense_output(made, x, 1), rtol=1e-12)
    assert list(made.state_dict()) == [f"weight.factors.factor_{i}" for i in range(5)]


def test_paths_are_taken_beside_any_padding() -> None:
    """The input that a path is tried on holds the padding of 'reflect'."""
    made = layer("CP", 2, 3, (3,), padding=10, padding_mode="reflect", implementation="greedy")
    x = rng(1).standard_normal((2, 2, 14))
    assert_close(made(x), dense_output(made, x), rtol=1e-12)


@pytest.mark.parametrize("name", ["CP", "Tucker", "TT", "TR"])
def test_transduct_refuses_a_path_that_would_no_longer_fit(name: str) -> None:
    steps = len(layer(name, 2, 3, (3,)).weight.all_factors())
    made = layer(name, 2, 3, (3,), padding=1, implementation=((0, 1),) * steps)
    with pytest.raises(ValueError, match=r"transduct: implementation .* is a path for .* operands"):
        made.transduct(3)
    x = rng(1).standard_normal((2, 2, 7))
    assert made.kernel_size == (3,)
    assert_close(made(x), dense_output(made, x), rtol=1e-12)


def test_a_small_share_is_a_rank_of_one() -> None:
    assert FactorizedConv(3, 4, (3,), rank=0.01).rank == 1


def test_an_exact_rank_is_met_exactly() -> None:
    kernel = layer("CP", 8, 6, (3, 3), rank=3).kernel()
    made = FactorizedConv.from_conv(
        nn.Conv2d.of(kernel), rank=3, decomposition_kwargs={"tolerance": 1e-13, "max_iterations": 3000}
    )
    assert_close(made.kernel(), kernel, rtol=1e-8)


def test_reset_draws_anew_and_clears_the_bias() -> None:
    made = layer("Tucker", 16, 16, (3, 3), rank=8, bias=True)
    made.reset_parameters(rng=rng(5))
    assert np.std(made.kernel()) == pytest.approx(1 / np.sqrt(3 * 16 * 9), rel=0.2)
    assert not made.bias.data.any()  # type: ignore[union-attr]


def test_float32_is_the_default() -> None:
    made = FactorizedConv(3, 4, 3, order=2, bias=True)
    assert {str(p.data.dtype) for p in made.parameters()} == {"float32"}
    assert made(np.ones((1, 3, 5, 5), dtype=np.float32)).dtype == np.float32
