"""From dense layers, from factorizations, and to one more dimension."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from growarray import nn, optim
from growarray.backend import namespace
from growarray.errors import ShapeError
from growarray.factorized import FactorizedConv, FactorizedTensor
from growarray.testing import assert_close
from tests.conftest import Library
from tests.factorized.kernels import FACTORED, FORMATS, dense_output, layer, rng, tensor

each_format = pytest.mark.parametrize("name", FORMATS)
EXACT = {name: {"tolerance": 1e-13, "max_iterations": 3000} for name in ("CP", "TR")}


class Lent:
    """An array of a foreign library: lends itself by DLPack, but only once it is detached, as torch's do."""

    def __init__(self, values: np.ndarray, detached: bool = False) -> None:
        self.values, self.detached = values, detached

    def detach(self) -> Lent:
        return Lent(self.values, True)

    def cpu(self) -> Lent:
        return self

    def __dlpack__(self, **options: Any) -> Any:
        if not self.detached:
            raise BufferError("this array requires a gradient; use detach()")
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.values.__dlpack_device__()


def of_low_rank(name: str, seed: int = 0, **options: Any) -> nn.Conv2d:
    """A dense layer whose kernel has rank 2 in the format."""
    source = layer(name, 6, 4, (3, 2), groups=options.get("groups", 1), seed=seed)
    return nn.Conv2d.of(np.ascontiguousarray(source.kernel()), rng(seed + 9).standard_normal(4), **options)


def decomposition(name: str) -> dict[str, Any]:
    return {"factorization": name, "rank": 2, "decomposition_kwargs": EXACT.get(name, {})}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
        {"padding": "same"},
        {"groups": 2, "padding": ((0, 1), (1, 0))},
        {"padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
@each_format
def test_from_conv_gives_what_the_layer_gives(name: str, options: dict[str, Any]) -> None:
    dense = of_low_rank(name, **options)
    made = FactorizedConv.from_conv(dense, **decomposition(name))
    x = rng(1).standard_normal((2, 6, 7, 8))
    assert_close(made(x), dense(x), rtol=1e-8)
    assert (made.stride, made.padding, made.dilation) == (dense.stride, dense.padding, dense.dilation)
    assert (made.groups, made.padding_mode, made.has_bias) == (dense.groups, dense.padding_mode, True)


@each_format
def test_from_conv_copies(name: str) -> None:
    dense = of_low_rank(name)
    made = FactorizedConv.from_conv(dense, **decomposition(name))
    for parameter in made.parameters():
        assert not any(np.shares_memory(parameter.data, p.data) for p in dense.parameters())


@each_format
def test_from_conv_keeps_library_and_dtype(name: str, xp: Library) -> None:
    if name == "Dense":
        pytest.skip("nothing is decomposed")
    dense = xp.adopt(of_low_rank(name))
    made = FactorizedConv.from_conv(dense, rank=2, factorization=name)
    assert namespace(*(p.data for p in made.parameters())) is namespace(dense.weight.data)  # type: ignore[attr-defined]
    assert made(xp.asarray(np.ones((1, 6, 5, 5)))).shape == (1, 4, 3, 4)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_from_conv_of_a_foreign_layer(axes: int) -> None:
    kernel, bias = rng(0).standard_normal((3, 2, *(2,) * axes)), rng(1).standard_normal(3)
    foreign = SimpleNamespace(
        weight=Lent(kernel), bias=Lent(bias), stride=(2,) * axes, padding=(1,) * axes, dilation=(1,) * axes, groups=1,
        padding_mode="zeros", transposed=False,
    )  # fmt: skip
    made = FactorizedConv.from_conv(foreign, factorization="dense")
    x = rng(2).standard_normal((1, 2, *(5,) * axes))
    expected = nn.ConvNd.of(kernel, bias, stride=2, padding=1)(x)
    assert_close(made(x), expected, rtol=1e-13)
    assert made.weight.dtype == np.float64
    assert FactorizedConv.from_conv(foreign, factorization="dense", dtype="float32").weight.dtype == np.float32


def test_a_layer_that_says_no_more_than_its_weight() -> None:
    made = FactorizedConv.from_conv(SimpleNamespace(weight=np.ones((3, 2, 2))), factorization="dense")
    assert (made.bias, made.stride, made.padding, made.groups) == (None, (1,), (0,), 1)


def test_without_decomposition_the_kernel_is_random_and_the_bias_zero() -> None:
    dense = of_low_rank("CP", stride=2)
    made = FactorizedConv.from_conv(dense, rank=2, decompose_weights=False, rng=rng(0))
    again = FactorizedConv.from_conv(dense, rank=2, decompose_weights=False, rng=rng(0))
    assert np.array_equal(made.kernel(), again.kernel())
    assert np.std(made.kernel()) == pytest.approx(1 / np.sqrt(3 * 36), rel=0.2)
    assert made.bias is not None
    assert not made.bias.data.any()
    assert made.stride == (2, 2)


@each_format
def test_a_list_becomes_a_joint_layer(name: str) -> None:
    source = layer(name, 3, 2, (2, 2), n_layers=3, rank=2)
    kernels = [np.ascontiguousarray(source.kernel(i)) for i in range(3)]
    dense = [
        nn.Conv2d.of(kernels[0], np.ones(2), stride=(2, 1)),
        nn.Conv2d.of(kernels[1], padding="same"),
        nn.Conv2d.of(kernels[2], np.arange(2.0), dilation=2),
    ]
    made = FactorizedConv.from_conv_list(dense, **decomposition(name))
    x = rng(1).standard_normal((2, 3, 5, 6))
    assert made.has_bias == (True, False, True)
    for i, one in enumerate(dense):
        assert_close(made(x, i), one(x), rtol=1e-7)
        assert_close(made[i](x), made(x, i), rtol=0.0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Conv2d.of(np.ones((2, 3, 3, 2))), r"layer 1 has a kernel of shape \(2, 3, 3, 2\), layer 0 \(2, 3, 2, 2\)"),
        (nn.Conv2d.of(np.ones((2, 3, 2, 2)), groups=2), "layer 1 has groups 2, layer 0 1"),
        (nn.Conv2d.of(np.ones((2, 3, 2, 2)), padding_mode="circular"), "layer 1 has padding_mode circular"),
        (nn.Conv2d.of(np.ones((2, 3, 2, 2), dtype=np.float32)), "layer 1 has a weight of dtype float32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_that_differ_are_refused(other: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        FactorizedConv.from_conv_list([nn.Conv2d.of(np.ones((2, 3, 2, 2))), other])


def holding(value: float) -> nn.Conv2d:
    kernel = np.ones((2, 3, 2, 2))
    kernel[0, 1, 0, 1] = value
    return nn.Conv2d.of(kernel)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (nn.ConvTranspose2d(2, 3, 3), TypeError, "ConvTranspose2d is a transposed convolution, which is not supported"),
        (SimpleNamespace(weight=np.ones((2, 2, 2)), transposed=True), TypeError, "transposed"),
        (nn.ReLU(), TypeError, "ReLU has no weight"),
        (nn.Linear(2, 3), ShapeError, r"weight of Linear has shape \(3, 2\), expected \(out, in, \*kernel\)"),
        (holding(np.nan), ValueError, "weight of Conv2d holds a NaN or an infinity"),
        (holding(np.inf), ValueError, "weight of Conv2d holds a NaN or an infinity"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_layers_that_cannot_be_read_are_refused(source: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        FactorizedConv.from_conv(source)
    with pytest.raises(error, match=message):
        FactorizedConv.from_conv_list([source])


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ValueError, match="the list is empty"):
        FactorizedConv.from_conv_list([])


@each_format
def test_from_factorization_holds_the_tensor(name: str) -> None:
    held = tensor(name, (2, 3, 3, 2, 4))
    made = FactorizedConv.from_factorization(held, stride=2, bias=np.ones((2, 4 if name == "TT" else 3)), n_layers=2)
    assert made.weight is held
    assert len(made.state_dict()) == len(held.all_factors()) + 1
    x = rng(1).standard_normal((1, made.in_channels, 6, 5) if name == "TT" else (1, 3, 5, 6))
    assert_close(made(x, 1), dense_output(made, x, 1), rtol=1e-12)
    expected = (3, 4, (3, 2)) if name == "TT" else (3, 3, (2, 4))
    assert (made.in_channels, made.out_channels, made.kernel_size) == expected


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 2), {}, r"leaves modes \(3, 2\), expected output, input and at least one spatial mode"),
        ((2, 3, 2), {"n_layers": 2}, "leaves modes"),
        ((2, 3, 2, 2), {"n_layers": 3}, "does not hold kernels"),
        ((3, 2, 2), {"groups": 2}, "out_channels=3 does not divide into groups=2"),
        ((3, 2, 2), {"bias": np.ones(2)}, r"bias has shape \(2,\), expected \(3,\)"),
    ],
    ids=str,
)
def test_factorizations_that_do_not_fit_are_refused(shape: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FactorizedConv.from_factorization(tensor("CP", shape), **options)


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("n_layers", [1, 2, (2, 2)], ids=str)
@each_format
def test_transduct_adds_an_axis_to_every_convolution(name: str, n_layers: Any, mode: int) -> None:
    made = layer(name, 2, 4, (3, 2), n_layers=n_layers, groups=2, bias=True, stride=(2, 1), padding=(1, 0))
    place: Any = (1,) * len(made.layers_shape) or 0
    flat = made.kernel(place)
    assert made.transduct(3, mode, padding=(1, 2), stride=2) is made
    expected = np.stack([flat if name == "TT" or i == 1 else np.zeros_like(flat) for i in range(3)], axis=2 + mode)
    assert_close(made.kernel(place), expected, rtol=1e-12)
    assert made.order == 3
    settings = made.settings(place)
    assert (settings.stride[mode], settings.padding[mode], settings.dilation[mode]) == (2, (1, 2), 1)
    assert [s for i, s in enumerate(settings.stride) if i != mode] == [2, 1]
    x = rng(2).standard_normal((1, 2, 4, 5, 4))
    assert_close(made(x, place), dense_output(made, x, place), rtol=1e-12)


@pytest.mark.parametrize("name", ["CP", "Tucker", "Dense"])
def test_frames_are_convolved_as_before(name: str) -> None:
    made = layer(name, 2, 3, (3, 3), padding=1, bias=True)
    video = rng(1).standard_normal((2, 2, 4, 5, 5))
    frames = np.stack([made(video[:, :, t]) for t in range(4)], axis=2)
    assert_close(made.transduct(3, padding=1)(video), frames, rtol=1e-12)


@pytest.mark.parametrize("name", FACTORED)
def test_only_the_new_factor_is_trained(name: str) -> None:
    made = layer(name, 2, 3, (3, 3), padding=1, bias=True).transduct(2, mode=1, padding=1)
    new = f"weight.factors.factor_{2 if name == 'TT' else 3}"
    names = [n for n, _ in made.named_parameters()]
    assert set(names) - set(made.frozen) == {new}
    before, optimizer = made.state_dict(), optim.Adam(made.parameters(), lr=0.1)
    y, pullback = made.vjp(rng(1).standard_normal((1, 2, 3, 4, 3)))
    pullback(y)
    optimizer.step()
    assert {n for n, value in made.state_dict().items() if not np.array_equal(value, before[n])} == {new}
    twin = copy.deepcopy(made)
    assert twin.frozen == made.frozen
    made.unfreeze()
    made.vjp(rng(1).standard_normal((1, 2, 3, 4, 3)))[1](y)
    assert made.frozen == ()
    assert all(p.grad is not None for p in made.parameters())


def test_a_dense_kernel_is_all_new() -> None:
    made = layer("Dense", 2, 3, (3,), bias=True).transduct(2)
    assert made.frozen == ("bias",)
    assert layer("Dense", 2, 3, (3,), bias=True).transduct(2, fine_tune_transduction_only=False).frozen == ()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1"),
        ({"kernel_size": 2.0}, TypeError, "kernel_size must be a whole number"),
        ({"kernel_size": 2, "mode": 3}, ValueError, "mode 3 is out of range, expected 0 to 2"),
        ({"kernel_size": 2, "stride": 0}, ValueError, "stride of 'x': found 0"),
        ({"kernel_size": 2, "padding": -1}, ValueError, "padding of 'x': found -1"),
    ],
    ids=str,
)
def test_transductions_that_make_no_sense_change_nothing(options: Any, error: Any, message: str) -> None:
    made = layer("CP", 2, 3, (3, 3))
    before, settings = made.weight.shape, made.settings()
    with pytest.raises(error, match=message):
        made.transduct(**options)
    assert (made.weight.shape, made.settings(), made.frozen) == (before, settings, ())


def test_a_tensor_may_be_converted_first() -> None:
    dense = of_low_rank("CP")
    held = FactorizedTensor.from_tensor(dense.weight.data, 2, "CP", **EXACT["CP"])
    made = FactorizedConv.from_factorization(held, bias=dense.bias)
    x = rng(1).standard_normal((1, 6, 5, 5))
    assert_close(made(x), dense(x), rtol=1e-8)


@pytest.mark.parametrize("options", [{}, {"fixed_rank_modes": "spatial"}], ids=["all modes", "spatial modes fixed"])
def test_a_rank_far_above_what_is_of_use_is_lowered_before_its_parts_are_made(options: dict[str, Any]) -> None:
    """A core of 5000 ** 4 entries fits in no memory."""
    dense = nn.Conv2d(6, 4, 3, rng=rng(0), dtype=np.float64)
    with pytest.warns(UserWarning, match=r"above what the tensor can use, lowered to \(4, 6, 3, 3\)"):
        made = FactorizedConv.from_conv(dense, 5000, factorization="tucker", **options)
    np.testing.assert_allclose(made.kernel(), dense.weight.data, atol=1e-12)


def test_numbers_of_numpy_are_options_of_a_foreign_layer() -> None:
    layer = SimpleNamespace(weight=rng(0).standard_normal((4, 6, 3, 3)), stride=np.int64(2))
    assert FactorizedConv.from_conv(layer, 2).stride == (2, 2)
