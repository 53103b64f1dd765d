"""Golden checks of growing convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np

from growarray.growing import Conv2dGrowingModule, FullConv2dGrowingModule, RestrictedConv2dGrowingModule
from growarray.growing.norm import GrowingBatchNorm2d
from growarray.nn import Sequential, activation
from tests.golden.case import Case
from tests.golden.check_growth import check_deltas, check_pair_growth, check_variant, collect

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


CHECKS = {"conv_pair": check_conv_pair}
