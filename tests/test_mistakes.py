"""What a user does wrong on the first day, and what the message says to do."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest

import growarray
from growarray import FactorizedConv, Growth, from_onnx, nn
from growarray.datasets import load_digits
from growarray.networks import GrowingMLP, GrowingVGG, GrowthSettings, prune
from growarray.optim import AdamW

RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 4)).astype("float32")
LABELS = RNG.integers(0, 3, 30)
NETWORK = GrowingMLP(4, 3, 2, rng=RNG)
IMAGES = RNG.standard_normal((2, 3, 2, 2)).astype("float32")


def grow(x: object, target: object, optimizer: object = None) -> None:
    network = GrowingMLP(4, 3, 2, rng=RNG)
    Growth(network, optimizer or AdamW(network), (x, target), settings=GrowthSettings(epochs=1)).run()  # type: ignore[arg-type]


MISTAKES: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "images too small": (
        lambda: FactorizedConv(3, 4, 3, order=2, rng=RNG)(IMAGES),
        ValueError,
        "'y': a kernel of 3 with dilation 1 spans 3 positions, the padded input has 2; "
        "add padding of 1, or shrink the kernel$",
    ),
    "float64 images": (
        lambda: nn.Conv2d(3, 4, 1, rng=RNG)(IMAGES.astype("float64")),
        TypeError,
        r"conv: input is float64, weight float32; convert the input, as in x.astype\('float32'\)",
    ),
    "images of bytes": (
        lambda: nn.Conv2d(3, 4, 1, bias=False, rng=RNG)(IMAGES.astype("uint8")),
        TypeError,
        r"input is uint8, weight float32; convert the input, as in x.astype\('float32'\)",
    ),
    "a list": (lambda: nn.Linear(2, 1)([[1.0, 2.0]]), TypeError, r"found list; convert it with .*asarray\(x\)"),
    "a list to a network": (lambda: GrowingMLP(4, 3, 2)([[1.0, 2.0]]), TypeError, "found list; convert it with"),
    "a list to prune by": (lambda: prune(GrowingMLP(4, 3, 2), X.tolist(), 9), TypeError, "found list; convert it with"),
    "settings as a dictionary": (
        lambda: Growth(NETWORK, AdamW(NETWORK), (X, LABELS), settings={"epochs": 2}),  # type: ignore[arg-type]
        TypeError,
        r"Growth: settings is .*, expected GrowthSettings\(…\), or None",
    ),
    "a number as the schedule": (
        lambda: Growth(NETWORK, AdamW(NETWORK), (X, LABELS), schedule=0.1),  # type: ignore[arg-type]
        TypeError,
        "Growth: schedule is 0.1, expected a function of the step, as growarray.optim.cosine makes one, or None",
    ),
    "a seed as the generator of a loop": (
        lambda: Growth(NETWORK, AdamW(NETWORK), (X, LABELS), rng=3),  # type: ignore[arg-type]
        TypeError,
        "Growth: rng is 3, expected a numpy.random.Generator, or None",
    ),
    "one callback without a list": (
        lambda: Growth(NETWORK, AdamW(NETWORK), (X, LABELS), callbacks=print),  # type: ignore[arg-type]
        TypeError,
        "Growth: callbacks is .*, expected a sequence of functions",
    ),
    "samples without targets": (
        lambda: Growth(NETWORK, AdamW(NETWORK), (X, LABELS)).evaluate(X),
        TypeError,
        r"expected a pair of arrays \(x, target\), or batches",
    ),
    "a budget in a list": (
        lambda: GrowthSettings(max_parameters=[2]),  # type: ignore[arg-type]
        ValueError,
        r"max_parameters must be a number, None or 'auto', found \[2\]",
    ),
    "stages as a number": (
        lambda: GrowingVGG((1, 8, 8), 3, stages=2),  # type: ignore[arg-type]
        TypeError,
        "GrowingVGG: stages must be a sequence, one entry for each stage, found 2",
    ),
    "features of a norm in words": (
        lambda: nn.BatchNorm2d("3"),  # type: ignore[arg-type]
        TypeError,
        "BatchNorm2d: num_features must be a whole number, found '3'",
    ),
    "a share in words": (lambda: nn.Dropout("0.5"), ValueError, "p must be between 0 and 1, found '0.5'"),  # type: ignore[arg-type]
    "a test share in words": (
        lambda: load_digits(test_fraction="0.2"),  # type: ignore[arg-type]
        ValueError,
        "test_fraction must lie in .*, found '0.2'",
    ),
    "a seed below 0": (lambda: load_digits(seed=-1), ValueError, "seed must be a whole number of at least 0, found -1"),
    "a list to predict": (lambda: GrowingMLP(4, 3, 2).predict([[1.0, 2.0]]), TypeError, "found list; convert it"),
    "lists to train on": (
        lambda: grow(X.tolist(), LABELS.tolist()),
        TypeError,
        "found tuple of list, list; numpy.asarray makes an array of a list or a frame",
    ),
    "labels in words": (
        lambda: grow(X, np.array(["cat", "dog", "owl"])[LABELS]),
        TypeError,
        r"Growth: the targets of data: .*pass numbers; numpy.unique\(x, return_inverse=True\) gives names and numbers",
    ),
    "the class of an optimizer": (
        lambda: grow(X, LABELS, AdamW),
        TypeError,
        r"optimizer is a type, expected one such as AdamW\(network\)",
    ),
    "the class of a layer": (
        lambda: nn.Sequential(nn.ReLU),  # type: ignore[arg-type]
        TypeError,
        r"entry 0 is a type, expected a Module such as ReLU\(\)",
    ),
    "one sample in training": (
        lambda: nn.BatchNorm1d(3)(X[:1, :3]),
        ValueError,
        r"more than one value per channel; pass more samples, or call eval\(\) to use the running ones",
    ),
    "a network that is nowhere": (
        lambda: growarray.load("no.safetensors"),
        ValueError,
        "no such file or folder; check",
    ),
    "weights for a graph": (
        lambda: from_onnx(io.BytesIO(b"PK\x03\x04weights.npy")),
        ValueError,
        r"is not an ONNX model: it starts with .*PK.*; load_checkpoint reads weights",
    ),
    "a path for a state": (
        lambda: nn.Linear(3, 4).load_state_dict("weights.pt"),  # type: ignore[arg-type]
        TypeError,
        r"found str; pass the state_dict\(\) of a network, or load_checkpoint\(path\) for a file",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_message_says_what_to_do(name: str) -> None:
    mistake, kind, message = MISTAKES[name]
    with pytest.raises(kind, match=message):
        mistake()


@pytest.mark.parametrize("run", ["forward", "vjp"])
def test_an_error_within_layers_says_in_which(run: str) -> None:
    network = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(4, 3), nn.Linear(5, 2)))
    with pytest.raises(ValueError, match="expects a last axis of 5") as caught:
        getattr(network, run)(X)
    assert caught.value.__notes__ == ["in layer 1 of a Sequential, Linear", "in layer 1 of a Sequential, Sequential"]
