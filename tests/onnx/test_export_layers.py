"""Every layer with its options: the file passes onnx's checker, and onnxruntime computes what ``forward`` does."""

import inspect
import math
import re

import numpy as np
import onnx
import pytest

from growarray import nn
from growarray.checkpoint import to_onnx
from growarray.errors import ShapeError
from growarray.nn import arithmetic, elementwise, graph
from growarray.nn.module import Module, Parameter
from growarray.onnx.operators import WRITES
from tests.checkpoint.files import rows
from tests.onnx.runtime import assert_close, export, operators, run

RNG = np.random.default_rng(0)
EACH_OPSET = pytest.mark.parametrize("opset", [17, 18, 20, 21, 22])


def drawn(network):
    """The network with weights, biases and running statistics that differ from their start."""
    for name, holder, attribute in network._named_arrays():
        array = getattr(holder, attribute)
        if array.dtype.kind == "f":
            value = RNG.uniform(0.5, 1.5, array.shape) if "var" in name else RNG.standard_normal(array.shape)
            setattr(holder, attribute, value.astype(array.dtype))
    return network


def conv(*sizes, kind=nn.Conv2d, **options):
    return kind(*sizes, rng=RNG, **options)


LAYERS = {
    "linear": (conv(4, 3, kind=nn.Linear), (2, 4)),
    "linear without bias": (conv(4, 3, kind=nn.Linear, bias=False), (2, 4)),
    "linear over three axes": (conv(4, 3, kind=nn.Linear), (2, 5, 4)),
    "linear without features": (nn.Sequential(conv(4, 0, kind=nn.Linear), conv(0, 3, kind=nn.Linear)), (2, 4)),
    "conv1d": (conv(4, 6, 3, kind=nn.Conv1d, padding="same", dilation=2), (2, 4, 9)),
    "conv2d": (conv(4, 6, 3), (2, 4, 8, 7)),
    "conv2d strided": (conv(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), bias=False), (2, 4, 8, 7)),
    "conv2d in groups": (conv(4, 6, 3, groups=2, dilation=(1, 2)), (2, 4, 8, 7)),
    "conv2d depthwise": (conv(4, 8, 3, groups=4, padding=1), (2, 4, 8, 7)),
    "conv2d uneven same": (conv(4, 6, (2, 4), padding="same"), (2, 4, 8, 7)),
    "conv2d pair": (conv(4, 6, 3, padding=((0, 2), (1, 1))), (2, 4, 8, 7)),
    "conv2d valid": (conv(4, 6, 3, padding="valid"), (2, 4, 8, 7)),
    "conv3d": (conv(2, 4, (1, 3, 2), kind=nn.Conv3d, padding=1), (2, 2, 5, 6, 4)),
    "four axes": (nn.ConvNd(4, 2, 3, 2, rng=RNG, stride=(1, 2, 1, 1), padding=1), (2, 2, 3, 3, 4, 4)),
    "transposed 1d": (conv(4, 6, 3, kind=nn.ConvTranspose1d, stride=2, output_padding=1), (2, 4, 5)),
    "transposed 2d": (conv(4, 6, 3, kind=nn.ConvTranspose2d, stride=2, padding=1, output_padding=1), (2, 4, 5, 6)),
    "transposed in groups": (conv(4, 6, 3, kind=nn.ConvTranspose2d, groups=2, dilation=2, bias=False), (2, 4, 5, 6)),
    "transposed, output padding of a stride": (
        conv(2, 3, 3, kind=nn.ConvTranspose1d, dilation=3, padding=2, output_padding=2),
        (2, 2, 5),
    ),
    "transposed, output padding above the padding": (
        conv(2, 3, 3, kind=nn.ConvTranspose1d, stride=4, padding=1, output_padding=3),
        (2, 2, 5),
    ),
    "transposed, output padding beyond reach": (
        conv(2, 4, (3, 2), kind=nn.ConvTranspose2d, dilation=(3, 4), padding=(0, 1), output_padding=(2, 3), groups=2),
        (2, 2, 4, 3),
    ),
    "transposed, nothing reached": (
        conv(2, 3, 1, kind=nn.ConvTranspose1d, dilation=5, padding=2, output_padding=4, bias=False),
        (2, 2, 1),
    ),
    "transposed 3d": (conv(2, 3, 2, kind=nn.ConvTranspose3d, stride=(1, 2, 2)), (2, 2, 3, 4, 3)),
    "transposed, four axes": (nn.ConvTransposeNd(4, 2, 3, 2, rng=RNG), (2, 2, 2, 2, 3, 3)),
    "identity": (nn.Identity(), (2, 3)),
    "relu": (nn.ReLU(at_zero=1.0), (2, 50)),
    "leaky_relu": (nn.LeakyReLU(0.3), (2, 50)),
    "elu": (nn.ELU(0.7), (2, 50)),
    "selu": (nn.SELU(), (2, 50)),
    "gelu": (nn.GELU(), (2, 50)),
    "gelu tanh": (nn.GELU("tanh"), (2, 50)),
    "silu": (nn.SiLU(), (2, 50)),
    "tanh": (nn.Tanh(), (2, 50)),
    "sigmoid": (nn.Sigmoid(), (2, 50)),
    "softplus": (nn.Softplus(), (2, 50)),
    "softmax": (nn.Softmax(), (2, 3, 50)),
    "softmax of channels": (nn.Softmax(1), (2, 3, 50)),
    "log_softmax": (nn.LogSoftmax(), (2, 50)),
    "log_softmax of the batch": (nn.LogSoftmax(0), (2, 50)),
    "hardtanh": (nn.Hardtanh(-0.5, 0.25), (2, 50)),
    "relu6": (nn.ReLU6(), (2, 50)),
    "dropout": (nn.Dropout(0.5), (2, 50)),
    "flatten": (nn.Flatten(), (2, 3, 4, 5)),
    "flatten the middle": (nn.Flatten(1, 2), (2, 3, 4, 5)),
    "flatten the end": (nn.Flatten(2), (2, 3, 4, 5)),
    "flatten all": (nn.Flatten(0), (2, 3, 4)),
    "flatten one axis": (nn.Flatten(1, 1), (2, 3, 4)),
    "batch norm": (drawn(nn.BatchNorm1d(5)), (2, 5)),
    "batch norm of images": (drawn(nn.BatchNorm2d(5, eps=0.1, affine=False)), (2, 5, 4, 3)),
    "batch norm by the batch": (drawn(nn.BatchNorm(5, track_running_stats=False)), (2, 5, 4)),
    "batch norm by the batch, plain": (nn.BatchNorm(5, track_running_stats=False, affine=False), (2, 5)),
    "layer norm": (drawn(nn.LayerNorm(6)), (2, 5, 6)),
    "layer norm of two axes": (drawn(nn.LayerNorm((5, 6), bias=False)), (2, 5, 6)),
    "layer norm, plain": (nn.LayerNorm(6, elementwise_affine=False, eps=0.1), (2, 5, 6)),
    "group norm": (drawn(nn.GroupNorm(2, 6)), (2, 6, 4, 3)),
    "group norm, plain": (nn.GroupNorm(3, 6, affine=False), (2, 6, 4)),
    "group norm of features": (drawn(nn.GroupNorm(2, 6)), (2, 6)),
    "sequential": (nn.Sequential(conv(4, 6, 3), nn.Sequential(nn.ReLU(), nn.Flatten())), (2, 4, 5, 5)),
}


@pytest.mark.parametrize(("layer", "size"), rows(LAYERS))
def test_layers(layer, size, tmp_path):
    export(layer, tmp_path / "model.onnx", size)


@EACH_OPSET
@pytest.mark.parametrize("name", ["gelu", "gelu tanh", "group norm", "group norm, plain", "batch norm by the batch"])
def test_operators_that_came_late_are_written_in_every_opset(name, opset, tmp_path):
    used = export(*LAYERS[name][:1], tmp_path / "model.onnx", LAYERS[name][1], opset=opset)
    assert ("Gelu" in used) == (name.startswith("gelu") and opset >= 20)
    assert ("GroupNormalization" in used) == (name.startswith("group norm") and opset >= 21)


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, ((2, 0), (0, 1)), ((3, 3), (4, 0))], ids=["one", "pairs", "much"])
def test_padding_modes(mode, padding, opset, tmp_path):
    layer = conv(3, 4, 3, padding=padding, padding_mode=mode)
    export(layer, tmp_path / "model.onnx", (2, 3, 4, 5), opset=opset)


POOLS = {
    "max": (nn.MaxPool2d(3, 2, 1), (2, 3, 9, 8), ["MaxPool"]),
    "max dilated": (nn.MaxPool2d(2, 1, 1, 2), (2, 3, 9, 8), ["MaxPool"]),
    "max ceil": (nn.MaxPool2d((2, 3), 2, ceil_mode=True), (2, 3, 9, 8), ["MaxPool"]),
    "max ceil past the kernel": (nn.MaxPool1d(2, 3, dilation=4, ceil_mode=True), (2, 3, 6), ["Pad", "MaxPool"]),
    "max of padding alone": (nn.MaxPool1d(2, 1, 1, 3), (2, 3, 2), ["Pad", "MaxPool"]),
    "max uneven": (nn.MaxPool2d(3, 2, ((1, 0), (0, 2))), (2, 3, 9, 8), ["MaxPool"]),
    "max 3d": (nn.MaxPool3d((1, 2, 2)), (2, 3, 3, 4, 5), ["MaxPool"]),
    "mean": (nn.AvgPool2d(3, 2, 1), (2, 3, 9, 8), ["AveragePool"]),
    "mean without padding": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (2, 3, 9, 8), ["AveragePool"]),
    "mean ceil": (nn.AvgPool2d(3, 2, 1, True), (2, 3, 8, 6), ["Pad", "AveragePool", "Mul"]),
    "mean ceil that changes nothing": (nn.AvgPool2d(2, 2, ceil_mode=True), (2, 3, 8, 6), ["AveragePool"]),
    "mean ceil without padding": (nn.AvgPool2d(3, 2, 1, True, False), (2, 3, 8, 6), ["Pad", "AveragePool", "Mul"]),
    "mean divisor": (nn.AvgPool2d(2, divisor_override=3), (2, 3, 8, 6), ["AveragePool", "Mul"]),
    "mean uneven": (nn.AvgPool2d(3, 2, ((1, 0), (0, 2))), (2, 3, 9, 8), ["AveragePool"]),
    "mean dilated": (nn.AvgPool2d(2, 1, dilation=2), (2, 3, 9, 8), ["AveragePool"]),
    "mean dilated, padded": (nn.AvgPool1d(3, 2, 1, dilation=2), (2, 3, 9), ["Pad", "AveragePool", "Mul"]),
    "mean 3d": (nn.AvgPool3d(2), (2, 3, 3, 4, 5), ["AveragePool"]),
    "global": (nn.AdaptiveAvgPool2d(1), (2, 3, 9, 8), ["GlobalAveragePool"]),
    "adaptive, even": (nn.AdaptiveAvgPool2d((3, None)), (2, 3, 9, 8), ["AveragePool"]),
    "adaptive, one axis uneven": (
        nn.AdaptiveAvgPool2d((3, 5)),
        (2, 3, 9, 8),
        ["AveragePool", "Reshape", "MatMul", "Reshape"],
    ),
    "adaptive, more than there are": (nn.AdaptiveAvgPool1d(7), (2, 3, 4), ["Reshape", "MatMul", "Reshape"]),
    "adaptive 3d": (nn.AdaptiveAvgPool3d((2, 3, 2)), (2, 3, 3, 4, 5), None),
    "adaptive, as it is": (nn.AdaptiveAvgPool1d(None), (2, 3, 4), ["Identity"]),
}


@pytest.mark.parametrize(("layer", "size", "expected"), rows(POOLS))
def test_pools(layer, size, expected, tmp_path):
    used = export(layer, tmp_path / "model.onnx", size)
    assert expected in (None, used)


def test_dilated_means_need_operator_set_19(tmp_path):
    with pytest.raises(NotImplementedError, match=r"AvgPool2d.*dilation from operator set 19 on, opset is 18"):
        to_onnx(nn.AvgPool2d(2, dilation=2), tmp_path / "model.onnx", (2, 3, 8, 8), opset=18)
    assert not list(tmp_path.iterdir())


FUNCTIONS = {
    "abs": (elementwise.Abs(), None),
    "cast": (elementwise.Cast("float32"), None),
    "clip": (elementwise.Clip(-0.5, 0.5), None),
    "clip below": (elementwise.Clip(low=0.1), None),
    "clip above": (elementwise.Clip(high=0.1), None),
    "cos": (elementwise.Cos(), None),
    "erf": (elementwise.Erf(), None),
    "exp": (elementwise.Exp(), None),
    "hard sigmoid": (elementwise.HardSigmoid(0.3, 0.4), None),
    "hard swish": (elementwise.HardSwish(), None),
    **{
        f"function {name}": (nn.Function(name), draw)
        for name, draw in {
            "Acos": RNG.random,
            "Acosh": lambda size: RNG.uniform(1.5, 3.0, size),
            "Asin": RNG.random,
            "Asinh": None,
            "Atan": None,
            "Atanh": RNG.random,
            "Ceil": None,
            "Cosh": None,
            "Floor": None,
            "Round": None,
            "Sign": None,
            "Sinh": None,
            "Tan": RNG.random,
        }.items()
    },
    **{
        f"reduce {name}": (nn.Reduce(name, (1, -1), keepdims=name < "M"), RNG.random)
        for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Min", "Prod", "Sum", "SumSquare")
    },
    "expand": (nn.Expand((2, 1, 1, 1, 1)), None),
    "maximum": (arithmetic.Maximum(0.1), None),
    "minimum": (arithmetic.Minimum(0.1), None),
    "log": (elementwise.Log(), RNG.random),
    "mish": (elementwise.Mish(), None),
    "neg": (elementwise.Neg(), None),
    "pow": (elementwise.Pow(1.5), RNG.random),
    "prelu": (elementwise.PReLU(3), None),
    "prelu of one slope": (elementwise.PReLU(1, 0.4), None),
    "reciprocal": (elementwise.Reciprocal(), lambda size: RNG.uniform(0.5, 2.0, size)),
    "sin": (elementwise.Sin(), None),
    "softsign": (elementwise.Softsign(), None),
    "sqrt": (elementwise.Sqrt(), RNG.random),
}


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(("layer", "draw"), rows(FUNCTIONS))
def test_functions(layer, draw, opset, tmp_path):
    export(layer, tmp_path / "model.onnx", (2, 3, 5), opset=opset, draw=draw or RNG.standard_normal)


ELEMENTWISE = {
    **FUNCTIONS,
    **{name: (LAYERS[name][0], None) for name in LAYERS if LAYERS[name][1] == (2, 50)},
}


@pytest.mark.parametrize(("layer", "draw"), rows(ELEMENTWISE))
def test_functions_in_double_precision_run_or_are_refused(layer, draw, tmp_path):
    path, x = tmp_path / "model.onnx", np.abs(np.asarray((draw or RNG.standard_normal)((2, 3, 5)))) + 0.5
    network = nn.Sequential(arithmetic.Mul(Parameter(np.ones(1))), layer).eval()
    try:
        to_onnx(network, path, x.shape)
    except NotImplementedError as refusal:
        assert re.search("onnxruntime has no .* in float64; pass dtype='float32'", str(refusal))  # noqa: PT017
        assert not isinstance(layer, nn.ReLU | nn.Tanh | nn.Sigmoid | nn.Softmax | nn.SiLU | elementwise.Exp)
        to_onnx(network, path, x.shape, dtype=np.float64)
        onnx.checker.check_model(str(path), full_check=True)
    else:
        assert_close(run(path, x)[0], network(x), 1e-6)


def test_a_group_norm_in_double_precision_has_its_statistics_in_it(tmp_path):
    path, x = tmp_path / "model.onnx", RNG.standard_normal((2, 6, 4, 3))
    layer = drawn(nn.GroupNorm(2, 6))
    to_onnx(layer, path, x.shape, dtype=np.float64, opset=21)
    assert operators(path) == ["GroupNormalization"]
    assert_close(run(path, x)[0], layer(x), 1e-11)  # eps is float32 in the file; with statistics in it 1e-7


SHAPES = {
    "reshape": (nn.Reshape((0, -1)), (2, 3, 4)),
    "reshape around the batch": (nn.Reshape((-1, 6)), (2, 3, 4)),
    "transpose": (nn.Transpose((0, 2, 1)), (2, 3, 4)),
    "transpose the batch": (
        nn.Sequential(nn.Transpose((2, 0, 1)), nn.Softmax(), nn.Transpose((1, 2, 0))),
        (2, 3, 4),
    ),
    "linear beside the batch": (nn.Sequential(nn.Transpose((2, 0, 1)), conv(3, 5, kind=nn.Linear)), (2, 3, 4)),
    "squeeze": (nn.Squeeze((-1,)), (2, 3, 1)),
    "squeeze all": (nn.Squeeze(), (2, 3, 1)),
    "unsqueeze": (nn.Unsqueeze((1, -1)), (2, 3)),
    "unsqueeze before the batch": (nn.Sequential(nn.Unsqueeze((0,)), nn.Squeeze((0,))), (2, 3)),
    "slice": (nn.Slice((1, -1), (3, 0), (1, 2), (1, -1)), (2, 3, 4)),
    "gather one": (nn.Gather(-1, axis=1), (2, 3, 4)),
    "gather several": (nn.Gather((2, 2, 0), axis=2), (2, 3, 4)),
    "pad": (nn.Pad(((1, 2), (0, 1)), value=0.5), (2, 3, 4)),
    "pad, reflected and cut": (nn.Pad(((1, -1), (2, 0)), mode="reflect"), (2, 3, 4)),
    "pad, edge": (nn.Pad(((1, 2),), mode="edge"), (2, 3, 4)),
    "pad, cut": (nn.Pad(((-1, -1),)), (2, 3, 4)),
    "mean": (nn.ReduceMean((1, -1)), (2, 3, 4)),
    "mean without axes": (nn.ReduceMean((1,), keepdims=False), (2, 3, 4)),
    "mean of all": (nn.ReduceMean(), (2, 3, 4)),
}


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(("layer", "size"), rows(SHAPES))
def test_changes_of_shape(layer, size, opset, tmp_path):
    export(layer, tmp_path / "model.onnx", size, opset=opset)


@pytest.mark.parametrize("opset", [17, 21])
def test_periodic_padding(opset, tmp_path):
    export(nn.Pad(((3, 1),), mode="wrap"), tmp_path / "model.onnx", (2, 3, 4), opset=opset)


BATCH = {
    "reshape": (nn.Reshape((2, 12)), "fits one size of the batch"),
    "slice": (nn.Slice((0,), (1,)), "it cuts the batch"),
    "gather": (nn.Gather(0), "it takes entries of the batch"),
    "pad": (nn.Pad(((1, 0), (0, 0), (0, 0))), "it pads the batch"),
    "conv": (nn.Sequential(nn.Transpose((1, 0, 2)), conv(2, 4, 1, kind=nn.Conv1d)), "the batch is axis 1"),
    "linear": (nn.Sequential(nn.Transpose((1, 2, 0)), conv(2, 4, kind=nn.Linear)), "the axis of the features"),
    "constant": (arithmetic.Add(np.ones((2, 1, 1), np.float32)), "fits one size of the batch"),
    "product": (
        nn.Sequential(nn.Transpose((1, 2, 0)), arithmetic.MatMul(np.ones((2, 5), np.float32))),
        "sums over the batch",
    ),
}


@pytest.mark.parametrize(("layer", "message"), rows(BATCH))
def test_what_fits_one_size_of_the_batch_is_refused_with_the_way_out(layer, message, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(NotImplementedError, match=f"{message}.*pass dynamic_batch=False"):
        to_onnx(layer, path, (2, 3, 4))
    assert not path.exists()
    export(layer, path, (2, 3, 4), dynamic_batch=False, batches=(2,))


def every_layer():
    for module in (nn, elementwise, graph, arithmetic):
        for name, kind in vars(module).items():
            own = module is nn or getattr(kind, "__module__", "") == module.__name__
            if own and name[0] != "_" and inspect.isclass(kind) and issubclass(kind, Module) and kind is not Module:
                yield kind


@pytest.mark.parametrize("kind", sorted(set(every_layer()), key=lambda kind: kind.__name__), ids=lambda k: k.__name__)
def test_every_layer_is_written(kind):
    assert any(base in WRITES for base in kind.__mro__)


def test_a_layer_that_refuses_the_shape_is_named(tmp_path):
    network = nn.Sequential(conv(3, 4, 3), nn.Sequential(nn.ReLU(), conv(5, 4, 3)))
    with pytest.raises(ShapeError, match=r"to_onnx: module '1\.1' \(Conv2d\): conv: input has 4 channels.* expects 5"):
        to_onnx(network, tmp_path / "model.onnx", (2, 3, 9, 9))
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_numbers_pass(tmp_path):
    layer = nn.Hardtanh(-math.inf, 1.0)
    export(layer, tmp_path / "model.onnx", (2, 5))
    assert operators(tmp_path / "model.onnx") == ["Clip"]
