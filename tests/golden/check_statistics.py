"""Golden checks of statistics and of the equations of growth on raw matrices."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from growarray.errors import GrowthError
from growarray.growing import (
    TINY,
    FullConv2dGrowingModule,
    TensorStatistic,
    TensorStatisticWithEstimationError,
    added_neurons,
    inverse_sqrt,
    optimal_delta,
)
from tests.golden.case import RTOL, Case


def check_tensor_statistic(case: Case) -> None:
    config = case.config
    declared = tuple(config["shape"]) if config.get("declared", True) else None
    if config["error"]:
        statistic: TensorStatistic = TensorStatisticWithEstimationError(
            declared, trace_precision=config["trace_precision"]
        )
    else:
        statistic = TensorStatistic(declared)
    log = []
    for step, count in enumerate(config["counts"]):
        if count == "skip":
            statistic.update()  # already updated in this batch: nothing happens
            log.append({"step": step, "ignored": True, "samples": statistic.samples})
        elif count == "reset":
            statistic.reset()
            with pytest.raises(ValueError, match="no samples"):
                statistic()
            log.append({"step": step, "reset": True, "samples": 0, "call_raises": "ValueError"})
        else:
            statistic.update(case[f"in.sum{step}"], count)
            case.check(f"out.mean{step}", statistic())
            entry = {"step": step, "count": count, "samples": statistic.samples, "updated_flag": statistic.updated}
            if config["error"]:
                entry |= {
                    "error": statistic.error(),
                    "trace": statistic.trace,
                    "still_computing_trace": statistic.computes_trace,
                    "batches": statistic.batches,
                }
            log.append(entry)
    # The trace of one batch is a difference of equal numbers, zero or an epsilon of them.
    case.check("out.log", log, rtol=1e-7)


def solved_in_float32(*matrices: np.ndarray | None) -> float:
    """How far a solve with these matrices in float32 may be off: the rounding times what it is multiplied by."""
    conditions = [float(np.linalg.cond(matrix)) for matrix in matrices if matrix is not None and matrix.size]
    return max(RTOL["float32"], 4.0 * float(np.finfo(np.float32).eps) * math.prod(conditions))


def check_optimal_delta(case: Case) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        delta, decrease = optimal_delta(
            case["in.S"], case["in.M"], e=case.get("in.E"), pseudo_inverse=case.config.get("pinv", False)
        )
    case.check("out.delta", delta)
    case.check("out.decrease", decrease)
    case.check("out.raised", None)
    case.check("out.warned", sorted({w.category.__name__ for w in caught}))
    if "f32.delta" in case:  # the original's float32 solve; here every solve is float64
        rtol = solved_in_float32(case["in.S"], case.get("in.E"))
        case.check("f32.delta", delta, rtol=rtol)
        case.check("f32.decrease", decrease, rtol=rtol)


def check_added_parameters(case: Case) -> None:
    options = dict(case.config.get("options", {}))
    rule = replace(TINY, **{"max_new" if k == "maximum_added_neurons" else k: v for k, v in options.items()})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        alpha, omega, values = added_neurons(case.get("in.S"), case["in.N"], e=case.get("in.E"), rule=rule)
    case.check("out.sv", values)
    case.check("out.k", len(values))
    case.check("out.raised", None)
    case.check("out.warned", sorted({w.category.__name__ for w in caught}))
    for name in [n for n in case.arrays if n.startswith("inv.prod_r")]:
        rank = int(name.removeprefix("inv.prod_r"))
        case.check(name, omega[:, :rank] @ alpha[:rank])
    if "inv.alpha_outer" in case.arrays:
        case.check("inv.alpha_outer", alpha.T @ alpha)
        case.check("inv.omega_outer", omega @ omega.T)


def check_tools_misc(case: Case) -> None:
    case.check("out.spd_invsqrt", inverse_sqrt(case["in.spd"]))
    case.check("out.low_rank_invsqrt", inverse_sqrt(case["in.low_rank"], 1e-6))
    case.check("out.spd_invsqrt_threshold", inverse_sqrt(case["in.spd"], case["in.threshold"]))
    for bad, message in (
        (np.array([[1.0, 2.0], [0.0, 1.0]]), "not symmetric"),
        (np.ones((2, 3)), "square"),
        (np.array([[np.nan, 0.0], [0.0, 1.0]]), "NaN"),
    ):
        with pytest.raises(GrowthError if message != "square" else ValueError, match=message):
            inverse_sqrt(bad)
    case.ignore("out.raises")  # the original's AssertionErrors: here ShapeError and GrowthError, asserted above
    check_tap_geometry(case)


def check_tap_geometry(case: Case) -> None:
    """Output sizes, which input positions each tap reads, and what the centre tap reads."""
    for name in ("geo0", "geo1"):
        geometry = dict(case[f"in.{name}"])
        sizes, unfolded = geometry.pop("input"), case[f"in.{name}.unfolded"]
        second = FullConv2dGrowingModule(1, 1, **{k: tuple(v) for k, v in geometry.items()}, input_size=tuple(sizes))
        case.check(f"out.{name}.output", list(second.output_size))
        mask = second.mask_tensor_t
        case.check(f"out.{name}.mask_T", mask.astype(np.int8))
        centre = np.ravel_multi_index([taps // 2 for taps in second.kernel_size], second.kernel_size)
        case.check(f"out.{name}.border", np.einsum("xy,iay->iax", mask[:, centre], unfolded))


CHECKS: dict[str, Callable[[Case], None]] = {
    "added_parameters": check_added_parameters,
    "optimal_delta": check_optimal_delta,
    "tensor_statistic": check_tensor_statistic,
    "tools_misc": check_tools_misc,
}
