"""An error says what an array is, and never prints it: every option of every public door, given one."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray import (
    backend,
    checkpoint,
    contraction,
    datasets,
    decompose,
    factorized,
    growing,
    networks,
    nn,
    ops,
    optim,
)
from growarray.checkpoint.names import select_state
from growarray.errors import shown
from growarray.files.errors import Malformed

VALUE = 0.12345678
ARRAY = np.full((40, 40), VALUE)
GIVEN: dict[str, Any] = {
    "an array": ARRAY,
    "a list of one": [ARRAY],
    "a tuple of two": (ARRAY, ARRAY),
    "a mapping": {"a": ARRAY},
    "objects": ARRAY.astype(object),
}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


X, IMAGE, TENSOR = rng().random((3, 4)), rng().random((2, 3, 6, 6)), rng().random((3, 4, 5))
LABELS = np.array([0, 1, 2])


def layer(width: int = 4, **options: Any) -> growing.LinearGrowingModule:
    return growing.LinearGrowingModule(width, 4, dtype=np.float64, rng=rng(), **options)


def conv(**options: Any) -> factorized.FactorizedConv:
    return factorized.FactorizedConv(3, 2, (3, 3), rank=2, dtype=np.float64, rng=rng(), **options)


FOLDER = tempfile.TemporaryDirectory()
SAVED = f"{FOLDER.name}/network.onnx"
checkpoint.to_onnx(nn.Linear(3, 2, rng=rng()), SAVED, input_shape=(1, 3))


def product() -> contraction.Plan:
    return contraction.plan("ij,jk->ik", (3, 4), (4, 2))


def parameter() -> nn.Parameter:
    made = nn.Parameter(X.copy())
    made.grad = np.ones_like(X)
    return made


def with_defaults(door: Callable[..., Any], **given: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A door with every option that has a default, and those that have none."""
    options = {name: p.default for name, p in inspect.signature(door).parameters.items() if p.default is not p.empty}
    return door, {**options, **given}


# A door, and options that it takes: each of them is replaced by arrays in turn.
DOORS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "Linear": with_defaults(nn.Linear, in_features=4, out_features=3),
    "Conv2d": with_defaults(nn.Conv2d, in_channels=3, out_channels=2, kernel_size=3),
    "ConvTranspose2d": with_defaults(nn.ConvTranspose2d, in_channels=3, out_channels=2, kernel_size=3),
    "MaxPool2d": with_defaults(nn.MaxPool2d, kernel_size=2),
    "AvgPool2d": with_defaults(nn.AvgPool2d, kernel_size=2),
    "AdaptiveAvgPool2d": with_defaults(nn.AdaptiveAvgPool2d, output_size=2),
    "BatchNorm1d": with_defaults(nn.BatchNorm1d, num_features=4),
    "GroupNorm": with_defaults(nn.GroupNorm, num_groups=2, num_channels=4),
    "LayerNorm": with_defaults(nn.LayerNorm, normalized_shape=4),
    "Dropout": with_defaults(nn.Dropout),
    "Reshape": with_defaults(nn.Reshape, shape=(0, -1)),
    "Pad": with_defaults(nn.Pad, widths=((1, 1),)),
    "Cast": with_defaults(nn.Cast, dtype="float32"),
    "activation": (nn.activation, {"name": "relu"}),
    "Parameter.extend": (nn.Parameter(X).extend, {"axis": 0, "block": X}),
    "load_state_dict": (lambda state: nn.Linear(4, 3).load_state_dict(state), {"state": {}}),
    "conv": with_defaults(ops.conv, x=IMAGE, w=rng().random((2, 3, 3, 3))),
    "conv_transpose": with_defaults(ops.conv_transpose, x=IMAGE, w=rng().random((3, 2, 3, 3))),
    "max_pool": with_defaults(ops.max_pool, x=IMAGE, kernel_size=2),
    "avg_pool": with_defaults(ops.avg_pool, x=IMAGE, kernel_size=2),
    "cross_entropy": with_defaults(ops.cross_entropy, logits=X, target=LABELS),
    "mse": with_defaults(ops.mse, x=X, target=X),
    "gelu": with_defaults(ops.gelu, x=X),
    "hardtanh": with_defaults(ops.hardtanh, x=X),
    "group_norm": with_defaults(ops.group_norm, x=X, num_groups=2),
    "plan": (
        lambda equation, a, **options: contraction.plan(equation, a, (4, 2), **options),
        {**with_defaults(contraction.plan)[1], "equation": "ij,jk->ik", "a": (3, 4)},
    ),
    "conv_axes": with_defaults(contraction.conv_axes, names=["x"], kernels=[3]),
    "ConvAxis": with_defaults(contraction.ConvAxis),
    "bind": (lambda factors: product().bind(factors), {"factors": [X.T[:, :2]]}),
    "wrt": (lambda wrt: product().vjp(X, X.T[:, :2].copy(), wrt=wrt), {"wrt": [0]}),
    "out": (lambda out: product()(X, X.T[:, :2].copy(), out=out), {"out": None}),
    "from_dict": (contraction.Plan.from_dict, {"data": {}}),
    "transpose": (lambda n: contraction.transpose(product(), X[:, :2].copy(), X, operand=n), {"n": 1}),
    "cp": with_defaults(decompose.cp, tensor=TENSOR, rank=2, rng=rng()),
    "tucker": with_defaults(decompose.tucker, tensor=TENSOR, rank=2),
    "tensor_train": with_defaults(decompose.tensor_train, tensor=TENSOR, rank=2),
    "vbmf": with_defaults(decompose.vbmf, matrix=X),
    "vbmf_rank": with_defaults(decompose.vbmf_rank, tensor=TENSOR),
    "rank_for_error": with_defaults(decompose.rank_for_error, tensor=TENSOR, error=0.5),
    "validate_cp_rank": (decompose.validate_cp_rank, {"shape": (3, 4, 5), "rank": "same"}),
    "validate_tucker_rank": (decompose.validate_tucker_rank, {"shape": (3, 4, 5), "rank": "same"}),
    "validate_tt_rank": (decompose.validate_tt_rank, {"shape": (3, 4, 5), "rank": "same"}),
    "FactorizedConv": with_defaults(
        factorized.FactorizedConv, in_channels=3, out_channels=2, kernel_size=(3, 3), rank=2
    ),
    "FactorizedLinear": with_defaults(
        factorized.FactorizedLinear, in_tensorized_features=(2, 2), out_tensorized_features=(3, 2), rank=2
    ),
    "FactorizedTensor.new": (factorized.FactorizedTensor.new, {"shape": (3, 4, 5), "rank": 2, "factorization": "cp"}),
    "from_conv": with_defaults(factorized.FactorizedConv.from_conv, conv=nn.Conv2d(4, 3, 3), rank=2),
    "get_conv": (conv(n_layers=2).get_conv, {"indices": 0}),
    "index": (factorized.FactorizedTensor.from_tensor(TENSOR, 2, "tucker").__getitem__, {"index": 0}),
    "set": with_defaults(conv(n_layers=2).set, indices=0),
    "tensor_dropout": (lambda p: factorized.tensor_dropout(conv(), p), {"p": 0.1}),
    "GrowthRule": with_defaults(growing.GrowthRule),
    "LinearGrowingModule": with_defaults(growing.LinearGrowingModule, in_features=4, out_features=3),
    "LinearMergeGrowingModule": with_defaults(growing.LinearMergeGrowingModule, in_features=4),
    "TensorStatistic": with_defaults(growing.TensorStatistic),
    "update": (lambda value, samples: growing.TensorStatistic().update(value, samples), {"value": X, "samples": 3}),
    "scaling_factor": (lambda factor: setattr(layer(), "scaling_factor", factor), {"factor": 1.0}),
    "create_layer_extensions": with_defaults(
        layer(previous_module=layer(3)).create_layer_extensions, extension_size=2
    ),
    "normalize_optimal_updates": with_defaults(layer(previous_module=layer(3)).normalize_optimal_updates),
    "added_neurons": with_defaults(growing.added_neurons, s=None, n=X),
    "shrink": (growing.shrink, {"e": np.eye(3), "amount": 0.5}),
    "GrowingMLP": with_defaults(networks.GrowingMLP, in_features=4, out_features=2, hidden_size=3),
    "GrowthSettings": with_defaults(networks.GrowthSettings),
    "compress": (
        networks.compress,
        {"network": nn.Sequential(nn.Conv2d(3, 4, 3)), "budget": 0.5, "input_shape": (1, 3, 8, 8), "formats": ("cp",)},
    ),
    "SGD": with_defaults(optim.SGD, parameters=[parameter()], lr=0.1),
    "Adam": with_defaults(optim.Adam, parameters=[parameter()], lr=0.1),
    "clip_gradients": (lambda max_norm: optim.clip_gradients([parameter()], max_norm), {"max_norm": 1.0}),
    "library": (backend.library, {"device": "cpu"}),
    "register_lowering": (lambda kind: checkpoint.register_lowering(kind, len), {"kind": 1}),
    "register_lowering with": (lambda made: checkpoint.register_lowering(nn.Module, made), {"made": 1}),
    "to_onnx": (
        lambda **options: checkpoint.to_onnx(nn.Linear(3, 2, rng=rng()), SAVED + "2", **options),
        {"input_shape": (1, 3), "opset": 20, "dtype": None, "input_names": "x", "output_names": "y", "metadata": None},
    ),
    "from_onnx": (lambda **options: checkpoint.from_onnx(SAVED, **options), {"dtype": None}),
    "save_safetensors": (
        lambda metadata: checkpoint.save_safetensors({"w": X}, "unwritable/w.safetensors", metadata),
        {"metadata": None},
    ),
    "load_checkpoint": (lambda **options: checkpoint.load_checkpoint(SAVED, **options), {"select": None}),
    "load_table": (lambda task: datasets.load_table("none.csv", task=task), {"task": None}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("door", DOORS)
def test_no_message_prints_an_array(door: str) -> None:
    enter, options = DOORS[door]
    refused = 0
    for name in options:
        for kind, value in GIVEN.items():
            try:
                enter(**{**options, name: value})
            except Exception as error:  # whichever it is
                refused += 1
                said = str(error)
                assert str(VALUE)[:6] not in said, f"{name} as {kind}: {said[:200]}"
                assert len(said) < 900, f"{name} as {kind}: {len(said)} characters"
    assert refused


def test_a_value_is_shown_short() -> None:
    assert shown(ARRAY) == "ndarray of float64 and shape (40, 40)"
    assert shown({"a": [1, ARRAY]}) == "{'a': [1, ndarray of float64 and shape (40, 40)]}"
    assert [shown(value) for value in (3, "a", None, [1, (2,)], {1}, np.float64(2.5))] == [
        "3", "'a'", "None", "[1, (2,)]", "{1}", "np.float64(2.5)",
    ]  # fmt: skip
    assert shown(nn.Sequential(nn.ReLU(), nn.Tanh())) == "Sequential( (0): ReLU() (1): Tanh() )"
    assert shown(list(range(40))) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...]"
    assert len(shown("a" * 10_000)) < 130
    assert len(shown([["a" * 100] * 12] * 12)) < 210


def test_a_part_that_is_not_there_is_named_without_its_array() -> None:
    with pytest.raises(Malformed, match=r"select=\('a', ndarray of .*\): there is no 'a'; keys there: 'model'"):
        select_state({"model": {}}, ("a", ARRAY))  # type: ignore[arg-type]
