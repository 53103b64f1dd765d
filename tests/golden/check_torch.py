"""Golden checks of layers, norms, activations, losses and optimizers against torch's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import growarray.ops.activation as act
from growarray import nn, optim
from growarray.growing.norm import GrowingBatchNorm1d, GrowingBatchNorm2d, GrowingGroupNorm, GrowingLayerNorm
from growarray.nn.linear import Linear
from growarray.nn.module import Module, Parameter
from growarray.nn.norm import BatchNorm1d, BatchNorm2d, GroupNorm, LayerNorm
from growarray.nn.shape import Flatten
from growarray.ops.loss import cross_entropy, l1, mse
from tests.golden.case import Case

LAYERS: dict[str, Callable[..., Module]] = {
    "BatchNorm1d": BatchNorm1d,
    "BatchNorm2d": BatchNorm2d,
    "Flatten": Flatten,
    "GroupNorm": GroupNorm,
    "LayerNorm": LayerNorm,
    "Linear": Linear,
}
POOLING = ("MaxPool", "AvgPool", "AdaptiveAvgPool")
FAMILIES = (*POOLING, "Conv", "ConvTranspose")
LAYERS |= {name: getattr(nn, name) for kind in FAMILIES for name in (f"{kind}1d", f"{kind}2d", f"{kind}3d")}
STATE = ("weight", "bias", "running_mean", "running_var")


def _load(layer: Module, case: Case) -> None:
    report = layer.load_state_dict({name: case[f"in.{name}"] for name in STATE if f"in.{name}" in case}, strict=False)
    assert set(report.missing) <= {"num_batches_tracked"}, report
    assert not report.unexpected, report
    assert not report.misshapen, report


def _build(case: Case) -> Module:
    options = dict(case.config["layer"])
    name, _, has_bias = options.pop("class"), options.pop("has_weight"), options.pop("has_bias")
    if name == "Linear" or name.startswith("Conv"):
        options["bias"] = has_bias
    if name == "LayerNorm" and options.get("elementwise_affine", True):
        options["bias"] = has_bias
    if name != "Flatten" and not name.startswith(POOLING):
        options["dtype"] = np.float64
    layer = LAYERS[name](**options)
    _load(layer, case)
    return layer


def _check_pass(case: Case, layer: Module, prefix: str, x: Any, dy: Any) -> None:
    """Forward and backward; every output of this prefix, running statistics included."""
    layer.zero_grad()
    y, pullback = layer.vjp(x)
    dx = pullback(dy)
    found = {"y": y, "dx": dx, **{f"d{name}": p.grad for name, p in layer.named_parameters()}}
    found |= {name: value for name, value in layer.state_dict().items() if name.startswith("running")}
    for name, value in found.items():
        if f"{prefix}.{name}" in case.arrays:
            case.check(f"{prefix}.{name}", value)
        else:
            assert name.startswith("running"), f"{case.name}: the case has no {prefix}.{name}"


def torch_layer(case: Case) -> None:
    """One forward and backward pass."""
    _check_pass(case, _build(case), "out", case["in.x"], case["in.dy"])


def torch_norm(case: Case) -> None:
    """A batch norm in training, then in evaluation."""
    layer = _build(case)
    for mode in case.config["passes"]:
        layer.train(mode == "train")
        _check_pass(case, layer, f"out.{mode}", case["in.x"], case["in.dy"])


def torch_stack(case: Case) -> None:
    """A small network in training, to the gradient of its input; and which of equal values max pooling picks."""
    net = nn.Sequential(*[_stacked(text, case, str(i)) for i, text in enumerate(case.config["layers"][:-1])])
    y, pullback = net.vjp(case["in.x"])
    loss, loss_pullback = cross_entropy(y, case["in.labels"], label_smoothing=_number(case.config["layers"][-1]))
    case.check("out.y", y)
    case.check("out.loss", loss)
    case.check("out.dx", pullback(loss_pullback()))
    for name, parameter in net.named_parameters():
        case.check(f"out.d.{name}", parameter.grad)
    windows, pullback = nn.MaxPool2d(2).vjp(case["in.ties.x"])
    case.check("out.ties.dx", pullback(np.ones_like(windows)))


def _number(text: str) -> float:
    """The number that a description such as 'cross entropy (smoothing 0.1)' ends with."""
    return float(text.rstrip(")").rsplit(" ", 1)[1])


def _stacked(text: str, case: Case, place: str) -> Module:
    """The layer that a description such as 'conv 2->3 k3 p1' stands for, with the weights of its place."""
    kind, *words = text.split()
    weight, bias = case.get(f"in.{place}.weight"), case.get(f"in.{place}.bias")
    if kind == "conv":
        return nn.Conv2d.of(weight, bias, padding=int(words[-1].removeprefix("p")))
    if kind == "linear":
        return Linear.of(weight, bias)
    if kind == "batchnorm2d":
        layer = BatchNorm2d(weight.shape[0], dtype=np.float64)
        layer.load_state_dict({"weight": weight, "bias": bias}, strict=False)
        return layer
    plain: dict[str, Callable[[], Module]] = {
        "gelu": nn.GELU, "maxpool": lambda: nn.MaxPool2d(int(words[0])), "flatten": Flatten,
    }  # fmt: skip
    return plain[kind]()


def _activation(label: str) -> Callable[[Any], Any]:
    """The operation that a label such as 'leaky_relu_0.2' or 'softmax_-1' stands for."""
    special: dict[str, Callable[[Any], Any]] = {
        "elu": lambda x: act.elu(x, 0.7),
        "gelu_tanh": lambda x: act.gelu(x, approximate="tanh"),
        "relu_derivative_one_at_zero": lambda x: act.relu(x, at_zero=1.0),
    }
    if label in special:
        return special[label]
    if hasattr(act, label):
        plain: Callable[[Any], Any] = getattr(act, label)
        return plain
    name, argument = label.rsplit("_", 1)
    function: Callable[..., Any] = getattr(act, name)
    number = float(argument)
    return lambda x: function(x, int(number) if "softmax" in name else number)


def torch_activation(case: Case) -> None:
    """Every activation that the case records."""
    for label in sorted({n.removeprefix("out.").rsplit(".", 1)[0] for n in case.arrays if n.startswith("out.")}):
        y, pullback = _activation(label)(case["in.x"])
        case.check(f"out.{label}.y", y)
        case.check(f"out.{label}.dx", pullback(case["in.dy"]))


def torch_loss(case: Case) -> None:
    """Every loss that the case records; the gradient of an unreduced loss is that of its sum."""
    logits, labels, prob = case["in.logits"], case["in.labels"], case["in.prob"]
    target, weight = case["in.target"], case["in.class_weight"]
    results = {
        "ce_smooth": cross_entropy(logits, labels, label_smoothing=0.1),
        "ce_smooth_weight": cross_entropy(logits, labels, label_smoothing=0.2, weight=weight),
        "ce_weight": cross_entropy(logits, labels, weight=weight),
        "ce_ignore": cross_entropy(logits, case["in.labels_ignore"]),
        "ce_prob": cross_entropy(logits, prob),
        "ce_prob_smooth": cross_entropy(logits, prob, label_smoothing=0.1),
        "ce_image": cross_entropy(case["in.image_logits"], case["in.image_labels"]),
        "l1_mean": l1(logits, target),
    }
    for reduction in ("mean", "sum", "none"):
        results[f"ce_{reduction}"] = cross_entropy(logits, labels, reduction=reduction)
        results[f"mse_{reduction}"] = mse(logits, target, reduction=reduction)
    for label, (loss, pullback) in results.items():
        case.check(f"out.{label}.loss", loss)
        case.check(f"out.{label}.dx", pullback())


def torch_optimizer(case: Case) -> None:
    """Steps of every optimizer on two parameters."""
    for label, entry in case.config["optimizers"].items():
        parameters = [Parameter(case["in.p0"]), Parameter(case["in.p1"])]
        optimizer = getattr(optim, entry["class"])(parameters, **entry["options"])
        for step in range(case.config["steps"]):
            optimizer.zero_grad()
            for i, parameter in enumerate(parameters):
                parameter.accumulate(case[f"in.g{i}_{step}"])
            optimizer.step()
            for i, parameter in enumerate(parameters):
                case.check(f"out.{label}.p{i}_{step}", parameter.data, rtol=1e-12)


GROWING: dict[str, Callable[..., Any]] = {
    "bn1d": GrowingBatchNorm1d,
    "bn2d": GrowingBatchNorm2d,
    "gn": GrowingGroupNorm,
    "ln": GrowingLayerNorm,
}


def growing_norm(case: Case) -> None:
    """Train, evaluate, grow, train and evaluate again."""
    cfg = case.config
    layer = GROWING[cfg["cls"]](*cfg["args"], **cfg.get("options", {}), dtype=np.float64)
    _load(layer, case)
    x, dy = case["in.x"], case["in.dy"]
    _check_pass(case, layer, "out.train", x, dy)
    _check_pass(case, layer, "out.train2", 0.5 * x + 1.0, dy)
    layer.eval()
    _check_pass(case, layer, "out.eval", x, dy)
    (y, ext), (none, nothing) = layer.extended_forward(x, dy), layer.extended_forward(x, None)
    same = bool(np.array_equal(y, layer(x)) and np.array_equal(none, y))
    case.check(
        "out.extended_forward", {"x_is_forward": same, "ext_unchanged": ext is dy, "none_to_none": nothing is None}
    )
    held = dict(layer.named_parameters())
    blocks = {n.removeprefix("in.grow."): a for n, a in case.arrays.items() if n.startswith("in.grow.")}
    if "new_num_groups" in cfg["grow"]:
        blocks["new_num_groups"] = cfg["grow"]["new_num_groups"]
    before = {name: value.copy() for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match="at least 1"):
        layer.grow(0)
    layer.grow(cfg["grow"]["add"], **blocks)
    for name, value in layer.state_dict().items():
        if name in STATE:
            case.check(f"out.grow.{name}", value)
            assert np.array_equal(value[: before[name].shape[0]], before[name])
    case.check("out.grow.info", layer.get_growth_info())
    # the original replaces the parameters; here they survive, so that optimizer state does
    case.ignore("out.grow.same_parameter_object")
    assert all(p is held[name] for name, p in layer.named_parameters())
    _check_pass(case, layer.train(), "out.grown_train", case["in.x_grown"], case["in.dy_grown"])
    _check_pass(case, layer.eval(), "out.grown_eval", case["in.x_grown"], case["in.dy_grown"])


CHECKS: dict[str, Callable[[Case], None]] = {
    "growing_norm": growing_norm,
    "torch_activation": torch_activation,
    "torch_layer": torch_layer,
    "torch_loss": torch_loss,
    "torch_norm": torch_norm,
    "torch_optimizer": torch_optimizer,
    "torch_stack": torch_stack,
}
