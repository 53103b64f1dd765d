"""Golden checks of factorized tensors and convolutions against TensorLy-Torch's numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from growarray import decompose
from growarray.factorized import FactorizedConv, FactorizedTensor
from growarray.ops.conv import conv
from growarray.testing import assert_close
from tests.golden.case import Case

RANKS: dict[str, Callable[..., Any]] = {
    "CP": decompose.validate_cp_rank,
    "Tucker": decompose.validate_tucker_rank,
    "TT": decompose.validate_tt_rank,
}
IMPLEMENTATIONS = ("auto", "factorized", "mobilenet", "reconstructed")


def plain(value: Any) -> Any:
    """Tuples as lists, flags as numbers: the way a manifest has them."""
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return int(value) if isinstance(value, bool) else value


def given(value: Any) -> Any:
    """Lists of a manifest as tuples."""
    return tuple(given(v) for v in value) if isinstance(value, list) else value


def part_names(name: str, count: int) -> list[str]:
    """Names of the parts of a format in a golden case."""
    first = {"CP": ["weights"], "Tucker": ["core"], "TT": [], "Dense": ["tensor"]}[name]
    return [*first, *(f"factor{i}" for i in range(count - len(first)))]


def tensor_of(case: Case, name: str, prefix: str) -> FactorizedTensor:
    """The factorized tensor whose parts a case has under a prefix."""
    every = part_names(name, 100)
    return FactorizedTensor.kind(name).of([case[f"{prefix}{n}"] for n in every if f"{prefix}{n}" in case.arrays])


def named_parts(tensor: FactorizedTensor) -> Mapping[str, Any]:
    return dict(zip(part_names(tensor.name, len(tensor.all_factors())), tensor.all_factors(), strict=True))


def geometry(layer: FactorizedConv) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "has_bias")
    return {name: plain(getattr(layer, name)) for name in names}


def single_bias(expected: dict[str, Any], layer: FactorizedConv) -> dict[str, Any]:
    """What a case says of one layer, with the flag that the original leaves off although it adds the bias."""
    return expected if layer.layers_shape else {**expected, "has_bias": int(layer.bias is not None)}


def build(case: Case, implementation: str) -> FactorizedConv:
    """The layer of a case with the parameters of the case."""
    cfg = case.config
    layers = given(cfg.get("n_layers", 1))
    options = {k: given(cfg[k]) for k in ("stride", "padding", "dilation", "fixed_rank_modes") if k in cfg}
    has_bias = case["out.shapes"]["has_bias"] if "out.shapes" in case.scalars and layers != 1 else False
    layer = FactorizedConv(
        cfg["in"], cfg["out"], tuple(cfg["kernel"]), bias=cfg["bias"], has_bias=has_bias, n_layers=layers,
        factorization=cfg["factorization"], rank=given(cfg["rank"]), implementation=implementation, dtype=np.float64,
        **options,
    )  # fmt: skip
    for name, part in named_parts(layer.weight).items():
        assert part.shape == case[f"in.{name}"].shape, f"{case.name}: {name}"
        part.data = case[f"in.{name}"]
    if layer.bias is not None:
        layer.bias.data = case["in.bias"]
    return layer


def factorized_conv(case: Case) -> None:
    """Forward and backward of every implementation, alone or jointly."""
    for implementation in IMPLEMENTATIONS:
        check_passes(case, build(case, implementation))
    # Differences that the original found between its own implementations; here each is compared with the numbers.
    case.ignore("out.max_diff_between_implementations", "out.max_diff_to_dense_conv")
    if "out.errors" in case.scalars:
        layer, raised = build(case, "auto"), {}
        for label, call in (
            ("indices_1", lambda: layer(case["in.x0"], 1)), ("get_conv", lambda: layer.get_conv(0)),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="holds one convolution") as error:
                call()
            raised[label] = error.type.__name__
        case.check("out.errors", raised)


def check_passes(case: Case, layer: FactorizedConv) -> None:
    cfg, lead = case.config, len(layer.layers_shape)
    shapes = {"factorization_shape": plain(layer.weight.shape), "kernel_shape": plain(layer.weight.shape[lead:])}
    case.check("out.shapes", shapes | geometry(layer), expected=single_bias(case["out.shapes"], layer))
    case.check("out.rank", plain(layer.rank))
    counts = {"weight": layer.weight.number_of_parameters(), "all": layer.number_of_parameters()}
    case.check("out.n_params", counts)
    case.check("out.tensor", layer.weight.to_tensor())
    indices = [given(i) for i in cfg.get("indices", [0])]
    for k, setting in enumerate(cfg.get("settings", [])):
        if setting is not None:
            options = {name: given(setting[name]) for name in ("stride", "padding", "dilation") if name in setting}
            layer.set(indices[k], **options, bias=case.get(f"in.set{k}.bias"))
    if "out.after_set" in case.scalars:
        case.check("out.after_set", geometry(layer))
    if "out.bias_after_set" in case.arrays or "out.bias_after_set" in case.scalars:
        case.check("out.bias_after_set", layer.bias)
    for k, index in enumerate(indices):
        y, pullback = layer.vjp(case[f"in.x{k}"], index)
        case.check(f"out.y{k}", y)
        case.check(f"out.y{k}", layer(case[f"in.x{k}"], index))
        case.check(f"out.dx{k}", pullback(case[f"in.dy{k}"]))
    for name, part in named_parts(layer.weight).items():
        case.check(f"out.d{name}", part.grad)
    if layer.bias is not None and "out.dbias" in case.arrays:
        case.check("out.dbias", np.zeros(layer.bias.shape) if layer.bias.grad is None else layer.bias.grad)


def decomposition_options(name: str) -> dict[str, Any]:
    """As exact as the solvers go; the options of a case are those of the original's solvers."""
    return {"CP": {"max_iterations": 3000, "tolerance": 1e-13}}.get(name, {})


def factorized_from_conv(case: Case) -> None:
    """Equal reconstruction error or better, and the output of the dense convolution where the kernel has the rank."""
    cfg, kernels = case.config, [n for n in case.arrays if n.startswith("in.kernel")]
    geometries = cfg["geometry"] if "list" in cfg else [cfg["geometry"]]
    dense = [
        SimpleNamespace(
            weight=case[f"in.kernel{k}"],
            bias=case.get(f"in.bias{k}"),
            **{name: given(value) for name, value in geometries[k].items() if name != "bias"},
        )
        for k in range(len(kernels))
    ]
    options = {
        "factorization": cfg["factorization"], "rank": given(cfg["rank"]), "implementation": cfg["implementation"],
        "decomposition_kwargs": decomposition_options(cfg["factorization"]),
    }  # fmt: skip
    layer = (
        FactorizedConv.from_conv_list(dense, **options)
        if "list" in cfg
        else FactorizedConv.from_conv(dense[0], **options)
    )
    case.check("out.rank", plain(layer.rank))
    case.check("out.geometry", geometry(layer), expected=single_bias(case["out.geometry"], layer))
    recorded = case["out.reconstruction_errors"]
    case.ignore("out.reconstruction_errors")  # of single entries; both decompositions lessen the squared error, below
    original = FactorizedConv.from_factorization(
        tensor_of(case, cfg["factorization"], "raw."), n_layers=cfg.get("list", 1)
    )
    error, reference = (distance(made, dense) for made in (layer, original))
    assert error <= 1.001 * reference + 1e-9, f"{case.name}: off by {error}, the original by {reference}"
    for k, source in enumerate(dense):
        index = k if layer.layers_shape else 0
        y = layer(case[f"in.x{k}"], index)
        assert_close(y, expected_output(source, layer.kernel(index), case[f"in.x{k}"]), rtol=1e-12)
        exact = recorded[k] < 1e-3 * np.abs(source.weight).max()
        case.check(f"fix.y{k}", y, rtol=1e-9 if exact else np.inf)
        case.ignore(f"out.y{k}.max_diff_to_dense")
        if f"out.rec{k}" in case.arrays:
            # a kernel of the rank is met exactly; the best approximation of another kernel need not be unique
            case.check(f"out.rec{k}", layer.kernel(index), rtol=1e-9 if exact else np.inf)


def distance(layer: FactorizedConv, dense: list[Any]) -> float:
    """Relative distance of all kernels from those they stand for."""
    lost, whole = 0.0, 0.0
    for k, source in enumerate(dense):
        gap = layer.kernel(k if layer.layers_shape else 0) - source.weight
        lost, whole = lost + float(np.sum(gap * gap)), whole + float(np.sum(source.weight**2))
    return float(np.sqrt(lost / whole))


def expected_output(source: Any, kernel: Any, x: Any) -> Any:
    options = {name: getattr(source, name) for name in ("stride", "padding", "dilation") if hasattr(source, name)}
    return conv(x, kernel, source.bias, **options)[0]


def factorized_from_factorization(case: Case) -> None:
    """Stride 2 and padding 1, as the manifest says of the inputs."""
    for name in sorted({n.split(".")[1] for n in case.arrays}):
        tensor = tensor_of(case, name, f"in.{name}.")
        layer = FactorizedConv.from_factorization(tensor, stride=2, padding=1, bias=case[f"in.{name}.bias"])
        case.check(f"out.{name}.y", layer(case[f"in.{name}.x"]))
        recorded = case[f"out.{name}.attributes"]
        state = len(layer.state_dict())
        assert state == len(tensor.all_factors()) + 1
        attributes = {
            "in": layer.in_channels, "out": layer.out_channels, "kernel_size": plain(layer.kernel_size),
            "order": layer.order, "n_params": layer.number_of_parameters(), "n_state_entries": state,
        }  # fmt: skip
        # the original has every part of the tensor twice in its state dict
        once = recorded["n_state_entries"] - len(tensor.all_factors())
        case.check(f"out.{name}.attributes", attributes, expected={**recorded, "n_state_entries": once})


def index_of(entry: Any) -> Any:
    """An index as a manifest writes it: numbers, 'start:stop', and lists for tuples."""
    if isinstance(entry, list):
        return tuple(index_of(e) for e in entry)
    if isinstance(entry, str):
        return slice(*(int(part) if part else None for part in entry.split(":")))
    return entry


def factorized_index(case: Case) -> None:
    """Every index against the dense tensor; class, rank and shape as the original has them where it works."""
    tensor = tensor_of(case, case.config["factorization"], "in.")
    dense = tensor.to_tensor()
    case.check("out.tensor", dense)
    names = {"rank": plain(tensor.rank), **{n: getattr(tensor, n) for n in ("order", "numel", "ndim", "name")}}
    case.check("out.props", names)
    for entry in case["out.indexing"]:
        index = index_of(entry["index"])
        part = tensor[index]
        value = part.to_tensor() if isinstance(part, FactorizedTensor) else part
        assert_close(value, dense[index], rtol=1e-12, what=f"{case.name}[{entry['index']}]")
        assert plain(part.shape) == entry["right_shape"]
        if entry["raised"] is None and entry["right_shape"]:
            assert (type(part).__name__, plain(part.rank)) == (entry["class"], entry["rank"])
    case.ignore("out.indexing")


def factorized_transduct(case: Case) -> None:
    """The layer with one more axis: its parts, its output, and what is left to train."""
    layer, options = build(case, case.config["implementation"]), dict(case.config["transduct"])
    fine_tune = options.pop("fine_tune", True)
    layer.transduct(**options, fine_tune_transduction_only=fine_tune)
    parts = named_parts(layer.weight)
    for name, part in parts.items():
        case.check(f"out.{name}", part)
    case.check("out.kernel", layer.kernel())
    y, pullback = layer.vjp(case["in.x"])
    case.check("out.y", y)
    case.check("out.dx", pullback(case["in.dy"]))
    new = case["out.new_factor_index"]
    case.ignore("out.new_factor_index")
    case.check("out.dnew_factor", parts[f"factor{new}"].grad)
    recorded, trained = case["out.state"], [n for n, _ in layer.named_parameters() if n not in layer.frozen]
    state = {name: plain(getattr(layer, name)) for name in ("order", "kernel_size", "stride", "padding", "dilation")}
    state |= {"trainable": sorted(trained), "n_trainable": len(trained), "weight_shape": plain(layer.weight.shape)}
    case.check("out.state", state, expected={**recorded, "trainable": sorted(recorded["trainable"])})
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is None) == (name in layer.frozen)


def factorized_bugs(case: Case) -> None:
    """The right answers where the original has none."""
    groups = case["in.x"].shape[1] // case["in.groups.kernel"].shape[1]
    dense: dict[str, dict[str, Any]] = {
        "unequal_stride": {"stride": (2, 1)},
        "padding_same": {"padding": "same"},
        "groups": {"groups": groups},
        "reflect": {"padding": (1, 1), "padding_mode": "reflect"},
    }
    for label, options in dense.items():
        kernel = case[f"in.{label}.kernel"]
        source = SimpleNamespace(weight=kernel, bias=case[f"in.{label}.bias"], **options)
        bonds = decompose.largest_tt_rank((*kernel.shape[1:], kernel.shape[0]))
        for name, rank in (("Dense", 1), ("Tucker", kernel.shape), ("TT", bonds)):
            layer = FactorizedConv.from_conv(source, factorization=name, rank=rank)
            case.check(f"fix.{label}.y", layer(case["in.x"]))
    check_order_four_and_joint(case)


def check_order_four_and_joint(case: Case) -> None:
    for name in ("CP", "Tucker", "TT"):
        for implementation in IMPLEMENTATIONS:
            layer = FactorizedConv.from_factorization(
                tensor_of(case, name, f"in.order4.{name}."), implementation, (1, 1, 2, 1), (0, 1, 0, 0)
            )
            case.check(f"fix.order4.{name}.y", layer(case["in.order4.x"]))
    joint = FactorizedConv.from_factorization(
        tensor_of(case, "CP", "in.joint_bias."), bias=case["in.joint_bias.bias"], n_layers=2
    )
    case.check("fix.joint_bias.y", joint(case["in.x"], 0))
    plain_tt = FactorizedConv.from_factorization(tensor_of(case, "TT", "in.convnd_tt."), "reconstructed")
    case.check("fix.convnd_tt.y", plain_tt(case["in.convnd_tt.x"]))
    moved = FactorizedConv.from_factorization(
        tensor_of(case, "CP", "in.joint_transduct."), stride=(2, 1), padding=(1, 0), n_layers=2
    ).transduct(3, mode=0, padding=1)
    assert moved.stride == ((1, 2, 1), (1, 2, 1))
    assert moved.padding == ((1, 1, 0), (1, 1, 0))
    case.check("fix.joint_transduct.y", moved(case["in.joint_transduct.x"], 0))
    train = FactorizedConv.from_factorization(tensor_of(case, "TT", "in.joint_tt_rank1."), n_layers=2)
    case.check("fix.joint_tt_rank1.y", train(case["in.joint_tt_rank1.x"], 1))


def tensor_ranks(case: Case) -> None:
    """Validated ranks, parameter counts of layers, and standard deviations of initial factors."""
    for entry in case["out.ranks"]:
        validate = RANKS[entry["factorization"]]
        arguments = (tuple(entry["shape"]), given(entry["rank"]))
        if entry["raised"]:
            with pytest.raises((ValueError, TypeError), match=r"rank|rounding"):
                validate(*arguments, **entry["options"])
            continue
        recorded = entry["result"]
        # the original's ranks of small fractions can be 0, which makes no tensor
        wanted = [max(r, 1) for r in recorded] if isinstance(recorded, list) else max(recorded, 1)
        assert plain(validate(*arguments, **entry["options"])) == wanted, entry
    for name, inner, out, kernel, rank, bias, layers, validated, count in case["out.parameter_counts"]:
        layer = FactorizedConv(inner, out, tuple(kernel), bias=bias, n_layers=layers, factorization=name, rank=rank)
        found = (plain(layer.rank), layer.number_of_parameters())
        assert found == (validated, count), (name, inner, out, kernel, rank, bias, layers)
    for entry in case["out.normal_init"]:
        tensor = FactorizedTensor.new(entry["shape"], given(entry["rank"]), entry["factorization"])
        drawn = [std for std in tensor.format.factor_std(tensor.order, tensor.rank, entry["std"]) if std is not None]
        assert len(drawn) == entry["draws"]
        np.testing.assert_allclose(sorted(set(drawn)), entry["std_factors"], rtol=1e-12)
        if entry["cp_weights"] is not None:
            assert tensor.all_factors()[0].data.tolist() == entry["cp_weights"]
    case.ignore("out.ranks", "out.parameter_counts", "out.normal_init")  # compared entry by entry above


CHECKS: dict[str, Callable[[Case], None]] = {
    "factorized_bugs": factorized_bugs,
    "factorized_conv": factorized_conv,
    "factorized_from_conv": factorized_from_conv,
    "factorized_from_factorization": factorized_from_factorization,
    "factorized_index": factorized_index,
    "factorized_transduct": factorized_transduct,
    "tensor_ranks": tensor_ranks,
}
