"""State dicts of torch modules, loaded into the layers of this library, give the outputs that torch gave."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.checkpoint import Checkpoint, load_checkpoint
from tests.corpus.case import FOLDER, all_cases

CASES = [case for case in all_cases() if case.get("module") and case.get("io_npz")]
NO_LAYER = {"LSTM"}
"""Modules of torch that have no counterpart here."""
NOT_HERE = {"BatchNorm2d": {"bias"}, "GroupNorm": {"bias"}}
"""Options of newer torch versions that a layer here does not have; all of them are on."""

Built = tuple[nn.Module, dict[str, str | None] | None]


def from_repr(text: str) -> nn.Module:
    """The layer of the same name and options as one that torch printed."""
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    name = call.func.id
    options = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    for option in NOT_HERE.get(name, set()):
        assert options.pop(option, True) is True
    return getattr(nn, name)(*map(ast.literal_eval, call.args), **options)


def conv(shape: tuple[int, ...], stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size, for a kernel of this shape."""
    return nn.Conv2d(shape[1], shape[0], shape[2:], stride, padding=shape[2] // 2, bias=bias)


def resnet(checkpoint: Checkpoint) -> Built:
    """A graph whose nodes have the names of the torch modules; a block that widens halves the image."""
    shapes = {name: tensor.shape for name, tensor in checkpoint.stored.items()}
    nodes: list[nn.Node] = []

    def add(name: str, module: nn.Module, *inputs: str) -> str:
        nodes.append(nn.Node(name, module, inputs, f"{name}.out"))
        return f"{name}.out"

    def conv_bn(place: str, number: int, x: str, stride: int) -> str:
        kernel = shapes[f"{place}conv{number}.weight"]
        x = add(f"{place}conv{number}", conv(kernel, stride), x)
        return add(f"{place}bn{number}", nn.BatchNorm2d(kernel[0]), x)

    x = add("relu", nn.ReLU(), conv_bn("", 1, "x", 1))
    x = add("halved", nn.MaxPool2d(3, 2, 1), x)
    for block in sorted({name.split(".conv1")[0] for name in shapes if name.startswith("layer") and ".conv1" in name}):
        short, stride = x, 1
        if f"{block}.downsample.0.weight" in shapes:
            kernel, stride = shapes[f"{block}.downsample.0.weight"], 2
            short = add(f"{block}.downsample", nn.Sequential(conv(kernel, 2), nn.BatchNorm2d(kernel[0])), x)
        x = add(f"{block}.relu", nn.ReLU(), conv_bn(f"{block}.", 1, x, stride))
        x = add(f"{block}.add", nn.Add(), conv_bn(f"{block}.", 2, x, 1), short)
        x = add(f"{block}.last", nn.ReLU(), x)
    x = add("pool", nn.ReduceMean((2, 3), keepdims=False), x)
    x = add("fc", nn.Linear(*shapes["fc.weight"][::-1]), x)
    return nn.Graph(nodes, ["x"], [x]), None


def vgg(checkpoint: Checkpoint) -> Built:
    """One chain, in which ``features`` and ``classifier`` are the first and the last part."""
    kernels = [t.shape for name, t in checkpoint.stored.items() if name.startswith("features") and len(t.shape) == 4]
    matrices = [t.shape for name, t in checkpoint.stored.items() if name.startswith("classifier") and len(t.shape) == 2]
    features = [layer for shape in kernels for layer in (conv(shape, bias=True), nn.ReLU(), nn.MaxPool2d(2))]
    first, last = (nn.Linear(*shape[::-1]) for shape in matrices)
    chain = nn.Sequential(
        nn.Sequential(*features), nn.Flatten(), nn.Sequential(first, nn.ReLU(), nn.Dropout(0.5), last)
    )
    return chain, {"features.": "0.", "classifier.": "2."}


def attention(checkpoint: Checkpoint) -> Built:
    """Two heads: torch's text does not say how many, and the weights look the same."""
    return nn.MultiheadAttention(checkpoint["out_proj.weight"].shape[0], 2), None


NETWORKS: dict[str, Callable[[Checkpoint], Built]] = {
    "small ResNet": resnet,
    "small VGG": vgg,
    "MultiheadAttention": attention,
}


def build(module: str, checkpoint: Checkpoint) -> Built:
    for start, network in NETWORKS.items():
        if module.startswith(start):
            return network(checkpoint)
    return from_repr(module), None


@pytest.mark.parametrize("entry", CASES, ids=lambda entry: Path(entry["file"]).stem)
def test_state_dict_gives_the_outputs_of_torch(entry: dict[str, Any]) -> None:
    if entry["module"].partition("(")[0] in NO_LAYER:
        pytest.skip(f"no layer {entry['module'].partition('(')[0]} here")
    checkpoint = load_checkpoint(FOLDER / entry["file"])
    network, rename = build(entry["module"], checkpoint)
    with np.load(FOLDER / entry["io_npz"]) as file:
        x, wanted = (file[name if name in file else f"{name}0"] for name in ("input", "output"))
        assert all(np.array_equal(file[name], x) for name in file.files if name.startswith("input"))
    network.eval()
    limits = {"rtol": entry["rtol"], "atol": entry["atol"]}
    assert not np.allclose(network(x), wanted, **limits) or "Norm" in entry["module"]  # fresh norms may come close
    report = network.load_state_dict(checkpoint, rename=rename)
    assert len(report.matched) == len(checkpoint)
    assert not report
    assert not report.casts
    assert not report.unused
    np.testing.assert_allclose(network(x), wanted, **limits, strict=True)


def test_there_are_modules() -> None:
    """In every folder of this format: a net and a layer at least, and nothing is left out but by name."""
    modules = [entry["module"] for entry in CASES]
    assert any(module.startswith(tuple(NETWORKS)) for module in modules)
    assert any(hasattr(nn, module.partition("(")[0]) for module in modules)
    assert not any(hasattr(nn, name) for name in NO_LAYER)
