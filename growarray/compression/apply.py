"""Factorizing a layer as chosen, and the report on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from growarray.backend import asarray, namespace
from growarray.compression.candidates import Choice, plans_of, weighted_error
from growarray.compression.targets import Target
from growarray.factorized import DenseTensor
from growarray.factorized.conv import FactorizedConv
from growarray.factorized.linear import FactorizedLinear
from growarray.factorized.measure import plan_figures, time_both
from growarray.factorized.report import Change, ConversionReport
from growarray.factorized.tensor import FactorizedTensor

Made = tuple[Any, ConversionReport, float]


def factorized_layer(target: Target, choice: Choice, options: Mapping[str, Any], rng: np.random.Generator) -> Made:
    """The factorized layer, its report as far as it needs no input, and its squared error."""
    dense, kernel = target.layer, target.kernel
    size = dense.number_of_parameters()
    if choice.format is None:
        return dense, ConversionReport(DenseTensor.name, None, tuple(kernel.shape), Change(size, size), 0.0), 0.0
    kind, xp = FactorizedTensor.kind(choice.format), namespace(kernel)
    weights = {} if target.moment is None else {"weighted": {0 if kind.format.output_last else 1: target.moment}}
    if target.is_linear:
        made: Any = FactorizedLinear.from_linear(
            dense,
            choice.rank,
            n_tensorized_modes=1,
            factorization=kind.name,
            decomposition_kwargs={**weights, **options},
        )
        gap = xp.astype(made.matrix() - kernel, xp.float64)
        error = math.sqrt(float(xp.sum(gap * gap)) / max(float(xp.sum(xp.astype(kernel, xp.float64) ** 2)), 1e-300))
        change = Change(size, made.number_of_parameters())
        report = ConversionReport(kind.name, made.rank, tuple(kernel.shape), change, error, 1, "converged")
        return made, report, weighted_error(target, made.matrix())
    options = {**kind.format.search_options(math.prod(kernel.shape), choice.rank, rng), **options}
    made = FactorizedConv.from_conv(
        dense, choice.rank, factorization=choice.format, decomposition_kwargs={**weights, **options}, rng=rng
    )
    return made, made.report, weighted_error(target, made.kernel())


def with_figures(target: Target, layer: Any, report: ConversionReport, measure: bool) -> ConversionReport:
    """The report with FLOPs, times and memory, if the input of the layer is known."""
    if not target.shapes:
        return report
    dense = plans_of(target, Choice(None))
    small = dense if layer is target.layer else [layer.plan(shape) for shape in target.shapes]
    figures: dict[str, Any] = {**plan_figures(zip(dense, small, strict=True)), "input_shape": target.shapes[0]}
    if measure and layer is not target.layer:
        draw = np.random.default_rng(0).standard_normal
        inputs = [asarray(draw(s), like=target.kernel, dtype=target.kernel.dtype) for s in target.shapes]
        times = [time_both(target.layer, layer, x) for x in inputs]
        figures["measured_time"] = Change(sum(t.before for t in times), sum(t.after for t in times))
    return replace(report, **figures)
