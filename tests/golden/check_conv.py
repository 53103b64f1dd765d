"""Golden checks of growing convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np

from growarray.growing import (
    Conv2dGrowingModule,
    Conv2dMergeGrowingModule,
    FullConv2dGrowingModule,
    LinearMergeGrowingModule,
    RestrictedConv2dGrowingModule,
)
from growarray.growing.norm import GrowingBatchNorm2d
from growarray.nn import AvgPool2d, Sequential, activation
from tests.golden.case import Case
from tests.golden.check_growth import (
    check_deltas,
    check_merge_delta,
    check_merge_statistics,
    check_pair_growth,
    check_variant,
    collect,
    loss_and_gradient,
    sizes_of,
)
from tests.golden.check_growth import layer as linear_layer

KINDS = {"restricted": RestrictedConv2dGrowingModule, "full": FullConv2dGrowingModule}


def layer(kind: type[Conv2dGrowingModule], case: Case, name: str, **options: Any) -> Any:
    """A growing convolution as the case describes it, with its weights."""
    config, weight = case.config[name], case[f"in.{name}_w"]
    geometry = {"stride": config.get("s", 1), "padding": config.get("p", 0), "dilation": config.get("d", 1)}
    geometry = {key: tuple(value) if isinstance(value, list) else value for key, value in geometry.items()}
    module = kind(
        weight.shape[1], weight.shape[0], tuple(config["k"]), **geometry, use_bias=config["bias"], dtype=np.float64,
        **options,
    )  # fmt: skip
    module.weight.data = weight.copy()
    if module.bias is not None:
        module.bias.data = case[f"in.{name}_b"].copy()
    return module


def check_conv_pair(case: Case) -> None:
    config = case.config
    function = activation(config["activation"])
    if "norm" in config:
        function = Sequential(GrowingBatchNorm2d(config["channels"][1], dtype=np.float64), function)
    first = layer(Conv2dGrowingModule, case, "prev", post_layer_function=function, input_size=tuple(config["size"]))
    second = layer(KINDS[config["cls"]], case, "next", previous_module=first)
    first.next_module = second
    assert second.update_input_size(compute_from_previous=True) == first.output_size
    collect(case, first, second)
    check_geometry(case, first, second)
    check_deltas(case, first, second)
    for variant in config["variants"]:
        check_variant(case, variant, first, second)
    check_pair_growth(case, first, second)
    right = case["fix.grow.stat_shapes"]
    shapes = {"next_S": second.tensor_s, "next_M": second.tensor_m, "prev_M": first.tensor_m}
    case.check("fix.grow.stat_shapes", {name: list(shapes[name].shape) for name in right})
    case.ignore("out.grow.stat_shapes")  # wrong shapes, which the original declares


def check_geometry(case: Case, first: Any, second: Any) -> None:
    """Sizes, and what the taps of the second layer read."""
    found = {
        "prev_out": list(first.output_size),
        "next_out": list(second.output_size),
        "next_input_size": list(second.input_size),
        "prev_in_features": first.in_features,
        "next_in_features": second.in_features,
        "prev_reported_out": [first.out_width, first.out_height],
    }
    recorded = case["out.geometry"]
    # The original forgets dilation in the sizes that it reports.
    case.check("out.geometry", found, expected={**recorded, "prev_reported_out": recorded["prev_out"]})
    if "out.bordered_prev" in case:
        case.check("out.bordered_prev", second.bordered_unfolded_extended_prev_input)
    if "out.mask_T" in case:
        case.check("out.mask_T", second.mask_tensor_t)


def described(case: Case, name: str, like: dict[str, Any]) -> dict[str, Any]:
    """A convolution of the case as :func:`layer` wants it, where the case says ``k`` of itself or of the merge."""
    case.config[name] = {"k": case.config["next_kernel"], **like}
    return case.config[name]


def build_merge(case: Case) -> tuple[list[Any], Conv2dMergeGrowingModule, Any, list[Any]]:
    """Convolutions, the merge that joins them, a linear merge behind it if one follows, and the layers after that."""
    config = case.config
    function = activation(config["activation"])
    if "pool" in config:
        function = Sequential(function, AvgPool2d(config["pool"]))
    merge = Conv2dMergeGrowingModule(
        config["channels"], tuple(config["merge_size"]), tuple(config["next_kernel"]), function, name="merge"
    )
    previous = []
    for i, spec in enumerate(config["previous"]):
        described(case, f"prev{i}", spec)
        size = tuple(config["sources"][spec["src"]][1:])
        previous.append(layer(Conv2dGrowingModule, case, f"prev{i}", next_module=merge, input_size=size))
    merge.set_previous_modules(previous)
    if "linear_out" not in config:
        for j, spec in enumerate(config["next"]):
            described(case, f"next{j}", spec)
        following = [
            layer(Conv2dGrowingModule, case, f"next{j}", previous_module=merge) for j in range(len(config["next"]))
        ]
        merge.set_next_modules(following)
        return previous, merge, None, following
    joint = LinearMergeGrowingModule(in_features=merge.output_volume, name="lmerge")
    joint.set_previous_modules([merge])
    head = linear_layer(case["in.next0_w"], case["in.next0_b"], previous_module=joint)
    joint.set_next_modules([head])
    merge.set_next_modules([joint])
    return previous, merge, joint, [head]


def check_conv_merge(case: Case) -> None:
    config = case.config
    previous, merge, joint, following = build_merge(case)
    case.check("out.merge.sizes", {**sizes_of(merge), "is_linear": False})
    names = ("padding", "stride", "dilation", "output_size", "kernel_size")
    case.check("out.merge.geometry", {name: list(getattr(merge, name)) for name in names})
    modules = [*previous, merge, *([] if joint is None else [joint]), *following]
    for module in modules:
        module.init_computation()
    for b in range(len(config["batches"])):
        parts = [m.vjp(case[f"in.x_{spec['src']}{b}"]) for m, spec in zip(previous, config["previous"], strict=True)]
        a, back_merge = merge.vjp(sum(z for z, _ in parts))
        flat, back_joint = (a, None) if joint is None else joint.vjp(a.reshape(len(a), -1))
        da = 0.0
        for j, module in enumerate(following):
            y, back = module.vjp(flat)
            if f"out.y{b}_next{j}" in case.arrays:
                case.check(f"out.y{b}_next{j}", y)
            da = da + back(loss_and_gradient(config["loss"], y, case, f"{b}_next{j}")[1])
        if f"out.a{b}" in case.arrays:
            case.check(f"out.a{b}", merge.activity)
        dz = back_merge(da if back_joint is None else back_joint(da).reshape(a.shape))
        for _, back in parts:
            back(dz)
        case.check(f"out.dz{b}", merge.pre_activity_grad)
        for module in modules:
            module.update_computation()
    check_merge_statistics(case, "merge", merge)
    case.check("out.merge.prev_S_rank", int(np.linalg.matrix_rank(merge.previous_tensor_s(), hermitian=True)))
    check_merge_delta(case, "merge", merge)
    delta = np.concatenate(
        [p.data.reshape(merge.in_channels, -1) for m in previous for p in m.optimal_delta_layer.parameters()], 1
    )
    case.check("inv.merge.delta_prediction", delta @ merge.construct_full_activity())
    case.check("out.merge.v_proj", merge.projected_v_goal())
    if joint is not None:
        case.check("out.lmerge.S", joint.tensor_s())
        case.check("out.lmerge.S.samples", joint.tensor_s.samples)
    for j, module in enumerate(following):
        if f"out.next{j}.M" in case.arrays:
            case.check(f"out.next{j}.M", module.tensor_m())
        weight, bias, decrease = module.compute_optimal_delta(force_pseudo_inverse=joint is not None)
        case.check(f"out.next{j}.delta_w", weight)
        case.check(f"out.next{j}.delta_b", bias)
        case.check(f"out.next{j}.decrease", decrease)


CHECKS = {"conv_pair": check_conv_pair, "conv_merge": check_conv_merge}
