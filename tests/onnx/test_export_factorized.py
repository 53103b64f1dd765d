"""Factorized layers are written as the contraction path that they run, with the same numbers."""

import numpy as np
import pytest

from growarray import nn
from growarray.checkpoint import load_checkpoint, to_onnx
from growarray.errors import ShapeError
from growarray.factorized import TCL, TRL, FactorizedConv, FactorizedLinear, tensor_dropout
from tests.checkpoint.files import rows
from tests.onnx.runtime import export
from tests.pairs import pairs

FORMATS = ["cp", "tucker", "tt", "ring", "dense"]
IMPLEMENTATIONS = ["auto", "factorized", "mobilenet", "reconstructed"]
OPTIONS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": (2, 1), "padding": ((2, 0), (1, 1))},
    "groups": {"groups": 2, "padding": "same"},
    "depthwise": {"groups": 4},
    "reflected": {"padding": 1, "padding_mode": "reflect", "groups": 2, "stride": (1, 2)},
    "circular": {"padding": (0, 2), "padding_mode": "circular"},
}


def conv(factorization="cp", implementation="auto", order=2, bias=True, **options):
    rng = np.random.default_rng(3)
    layer = FactorizedConv(
        4, 8, 3, order=order, factorization=factorization, rank=0.7, implementation=implementation, bias=bias, rng=rng,
        **options,
    )  # fmt: skip
    for parameter in layer.parameters():
        parameter.data = rng.standard_normal(parameter.shape).astype(np.float32)
    return layer


@pytest.mark.parametrize(("factorization", "options", "implementation"), pairs(FORMATS, OPTIONS, IMPLEMENTATIONS))
def test_convolutions(factorization, options, implementation, tmp_path):
    export(conv(factorization, implementation, **OPTIONS[options]), tmp_path / "model.onnx", (2, 4, 7, 6))


@pytest.mark.parametrize("order", [1, 3, 4])
@pytest.mark.parametrize("factorization", FORMATS)
def test_any_order(factorization, order, tmp_path):
    export(conv(factorization, "factorized", order), tmp_path / "model.onnx", (2, 4, *(5, 4, 6, 3)[:order]))


PATHS = {
    "cp": ("cp", "factorized", ["Conv", "Conv", "Conv", "Mul", "Conv"]),
    "cp, all positions jointly": ("cp", "mobilenet", ["Conv", "Conv", "Mul", "Conv"]),
    "tucker": ("tucker", "mobilenet", ["Conv", "Conv", "Conv"]),
    "tt": ("tt", "factorized", ["Conv", "Conv", "Conv", "Conv"]),
    "cp, reconstructed": ("cp", "reconstructed", ["Conv"]),
    "tucker, reconstructed": ("tucker", "reconstructed", ["Conv"]),
    "tt, reconstructed": ("tt", "reconstructed", ["Conv"]),
}


@pytest.mark.parametrize(("factorization", "implementation", "expected"), rows(PATHS))
@pytest.mark.parametrize("groups", [1, 2])
def test_steps_are_convolutions(factorization, implementation, expected, groups, tmp_path):
    layer = conv(factorization, implementation, groups=groups)
    assert export(layer, tmp_path / "model.onnx", (2, 4, 7, 6)) == expected


@pytest.mark.parametrize("path", [((0, 3), (0, 3), (0, 1), (0, 1), (0, 1)), ((1, 2), (0, 4), (0, 3), (0, 2), (0, 1))])
def test_any_path(path, tmp_path):
    export(conv("tucker", path), tmp_path / "model.onnx", (2, 4, 7, 6))


def test_what_is_left_of_the_factors_are_the_weights(tmp_path):
    path = tmp_path / "model.onnx"
    layer = conv("cp", "reconstructed")
    to_onnx(nn.Sequential(layer), path, (1, 4, 7, 6))
    found = load_checkpoint(path)
    assert list(found) == ["0.bias", "0.path.0"]
    np.testing.assert_allclose(found["0.path.0"], layer.kernel(), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found["0.bias"], layer.bias.data)


@pytest.mark.parametrize("factorization", FORMATS)
def test_layers_of_a_joint_one(factorization, tmp_path):
    rng = np.random.default_rng(4)
    joint = FactorizedConv(4, 4, (3, 3), n_layers=(2, 2), rank=4, bias=True, factorization=factorization, rng=rng)
    joint.bias.data = rng.standard_normal(joint.bias.shape).astype(np.float32)
    joint.set((1, 0), stride=2, padding=1, bias=False)
    network = nn.Sequential(joint[0, 1], nn.ReLU(), joint[1, 0])
    export(network, tmp_path / "model.onnx", (2, 4, 9, 9))
    assert "0.path.bias" in load_checkpoint(tmp_path / "model.onnx")


LINEAR = ["cp", "tucker", "tt", "ring", "blocktt", "dense"]


@pytest.mark.parametrize(
    ("factorization", "implementation", "size"),
    pairs(LINEAR, ["auto", "factorized", "reconstructed"], [(2, 24), (2, 3, 24)]),
)
def test_linear(factorization, implementation, size, tmp_path):
    rng = np.random.default_rng(5)
    layer = FactorizedLinear((2, 3, 4), (3, 2, 2), True, factorization, 0.6, implementation, rng=rng)
    used = export(layer, tmp_path / "model.onnx", size)
    if implementation == "reconstructed" and len(size) == 2:
        assert used == ["Gemm"]


@pytest.mark.parametrize("factorization", LINEAR)
def test_tensor_regression(factorization, tmp_path):
    layer = TRL((3, 4), (2, 2), True, factorization=factorization, rank=3, rng=np.random.default_rng(5))
    export(nn.Sequential(layer), tmp_path / "model.onnx", (2, 3, 4))


def test_tensor_contraction(tmp_path):
    layer = TCL((3, 4), (2, 5), bias=True, rng=np.random.default_rng(5))
    export(nn.Sequential(layer), tmp_path / "model.onnx", (2, 3, 4))
    with pytest.raises(NotImplementedError, match="the batch is the axis of the features"):
        to_onnx(layer, tmp_path / "model.onnx", (3, 4))


def test_low_rank_is_two_products(tmp_path):
    layer = FactorizedLinear(12, 8, factorization="tt", rank=3, implementation="factorized")
    assert export(layer, tmp_path / "model.onnx", (2, 12)) == ["Gemm", "Gemm"]


def test_linear_layers_of_a_joint_one(tmp_path):
    joint = FactorizedLinear((2, 3), (2, 3), n_layers=2, rank=4, rng=np.random.default_rng(6))
    export(nn.Sequential(joint[1], nn.ReLU(), joint[0]), tmp_path / "model.onnx", (2, 6))


def test_tensor_dropout_is_left_out_unless_it_is_random_in_inference(tmp_path):
    export(tensor_dropout(conv(), 0.5), tmp_path / "model.onnx", (2, 4, 7, 6))
    with pytest.raises(NotImplementedError, match=r"module '0' \(FactorizedConv\): tensor dropout with drop_test"):
        to_onnx(nn.Sequential(tensor_dropout(conv(), 0.5, drop_test=True)), tmp_path / "no.onnx", (2, 4, 7, 6))
    assert not (tmp_path / "no.onnx").exists()


def test_a_wrong_shape_is_refused_by_the_layer(tmp_path):
    with pytest.raises(ShapeError, match=r"module '0' \(FactorizedConv\): FactorizedConv: input has shape \(2, 5, 7"):
        to_onnx(nn.Sequential(conv()), tmp_path / "model.onnx", (2, 5, 7, 6))
