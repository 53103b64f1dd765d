"""Compress a network: factorize its convolutions and linear layers under one budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import asarray, is_array, namespace
from growarray.compression.arguments import check_arguments, check_inputs, check_options, chosen_targets
from growarray.compression.candidates import Choice, candidates_of, cost_of, plans_of, weighted_error
from growarray.compression.observe import compare_outputs, effect, observe, sensitivity, swapped
from growarray.compression.report import Compression, trade_off
from growarray.compression.targets import Target, left_alone
from growarray.contraction.checks import is_whole
from growarray.decompose import Candidate, allocate
from growarray.decompose.inputs import check_rng
from growarray.factorized import DenseTensor
from growarray.factorized.conv import FactorizedConv
from growarray.factorized.linear import FactorizedLinear
from growarray.factorized.measure import plan_figures, time_both
from growarray.factorized.report import Change, ConversionReport
from growarray.factorized.settings import flag
from growarray.factorized.tensor import FactorizedTensor
from growarray.nn.module import Module

_ROUNDS = 4  # of choosing, decomposing what is chosen, and correcting the estimates by what came of it


class Replacement(NamedTuple):
    """A layer in the chosen form, its report as far as that needs no input, and its squared error."""

    layer: Any
    report: ConversionReport
    error: float


def factorized_layer(
    target: Target, choice: Choice, options: Mapping[str, Any], rng: np.random.Generator
) -> Replacement:
    """Decompose a layer as it was chosen; format None leaves it as it is."""
    dense, kernel = target.layer, target.kernel
    size, shape = dense.number_of_parameters(), tuple(kernel.shape)
    if choice.format is None:
        return Replacement(dense, ConversionReport(DenseTensor.name, None, shape, Change(size, size), 0.0), 0.0)
    kind = FactorizedTensor.kind(choice.format)
    if target.moment is not None:
        options = {"weighted": {0 if kind.format.output_last else 1: target.moment}, **options}
    if not target.is_linear:
        options = {**kind.format.search_options(math.prod(shape), choice.rank, rng), **options}
        conv: Any = FactorizedConv.from_conv(
            dense, choice.rank, factorization=choice.format, decomposition_kwargs=options, rng=rng
        )
        return Replacement(conv, conv.report, weighted_error(target, conv.kernel()))
    linear = FactorizedLinear.from_linear(
        dense, choice.rank, n_tensorized_modes=1, factorization=kind.name, decomposition_kwargs=options
    )
    xp, matrix = namespace(kernel), linear.matrix()
    gap, wide = xp.astype(matrix - kernel, xp.float64), xp.astype(kernel, xp.float64)
    error = math.sqrt(float(xp.sum(gap * gap)) / max(float(xp.sum(wide * wide)), 1e-300))
    change = Change(size, linear.number_of_parameters())
    report = ConversionReport(kind.name, linear.rank, shape, change, error, 1, "converged")
    return Replacement(linear, report, weighted_error(target, matrix))


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


def compress(
    network: Module,
    budget: float,
    *,
    by: str = "parameters",
    input_shape: Any = None,
    calibration: Any = None,
    formats: Sequence[str] = ("cp", "tucker", "tt"),
    keep: Sequence[str] = (),
    measure: bool = False,
    decomposition: Mapping[str, Mapping[str, Any]] | None = None,
    rng: np.random.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Compression:
    """A copy of the network whose convolutions and linear layers are factorized to keep a budget with the least error.

    network : any module; layers are found and replaced wherever they are held, in lists and graphs too. What is inside
        a growing module stays, as do transposed convolutions and layers that share their weight with another: what
        stays, and why, is in the result's ``left``.
    budget : a float in (0, 1] is a fraction of what the dense network costs; an int is the number itself: of
        parameters (of the whole network), of FLOPs, or with ``by='time'`` of microseconds
    by : 'parameters', 'flops' or 'time' (predicted); those of a forward pass, of convolutions and linear layers alone
    input_shape : of the network's input, batch included, for which FLOPs, times and memory are counted; by default
        that of one calibration sample. A network with named inputs takes a mapping, as for ``calibration``.
    calibration : inputs (n, …) of the network; errors are then those of the outputs on these data, each layer's
        weighted by what of it reaches the network's output
    formats : that convolutions may take; a linear layer becomes a product of two matrices
    keep : names of layers that stay dense, or the name of one
    measure : also time every layer that was replaced, and its dense form
    decomposition : options for each format, for example ``{'cp': {'max_iterations': 100}}``
    progress : called with the number of steps that are done and the most that
        there can be: one for each layer whose errors are estimated, and one for each decomposition

    The error of each candidate (layer, format, rank) is estimated from singular values, the budget is allocated, the
    chosen ones are decomposed, and the estimates are corrected by the errors found, a few times over; with calibration
    data those are errors of the network's output, measured on up to 16 samples with that layer alone replaced. The
    time that CP takes is bounded; more sweeps, or fine-tuning, improve its factors.

    Raises ValueError: the budget cannot be met (the message gives the least), an option makes no sense, a weight or the
    calibration data are not finite, or no layer can be factorized; ShapeError: the network does not take the
    calibration data, or an input of that shape.

    >>> from growarray import nn
    >>> rng = np.random.default_rng(0)
    >>> net = nn.Sequential(nn.Conv2d(8, 16, 3, rng=rng), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10, rng=rng))
    >>> small = compress(net, 0.5, input_shape=(1, 8, 8, 8))
    >>> small.parameters.ratio <= 0.5, small.network(np.ones((2, 8, 8, 8), dtype=np.float32)).shape
    (True, (2, 10))
    """
    measure = flag("compress", "measure", measure)
    names = check_arguments(network, budget, by, formats, measure, input_shape, calibration)
    budget = int(budget) if is_whole(budget) else float(budget)
    rng, options = check_rng(rng, "compress"), check_options({} if decomposition is None else decomposition, names)
    targets, kept = chosen_targets(network, keep)
    sample, data = check_inputs(targets[0].kernel, input_shape, calibration)
    if sample is not None:
        observe(network, targets, sample, data)
    decompose = _decomposer(network, targets, data, options, rng)
    tell = _counted(progress, len(targets))
    offers = _offers(targets, names, by, tell)
    others = network.number_of_parameters() - sum(cost_of(t, Choice(None), by) for t in targets)
    fixed = others if by == "parameters" else 0.0
    dense = fixed + sum(offer[0].cost for offer in offers.values())
    limit = _limit(budget, by, dense, fixed + sum(min(c.cost for c in offer) for offer in offers.values()))
    chosen, offers = _spend(limit - fixed, offers, decompose, tell)
    replaced = {t.name: (t, chosen[t.name].layer) for t in targets if chosen[t.name].layer is not t.layer}
    small = swapped(network, {id(target.layer): layer for target, layer in replaced.values()})
    reports = {t.name: with_figures(t, chosen[t.name].layer, chosen[t.name].report, measure) for t in targets}
    output_error = None
    if data is not None:
        output_error, errors = compare_outputs(network, small, replaced, data)
        reports |= {name: replace(reports[name], output_error=error) for name, error in errors.items()}
    for name, (_, layer) in replaced.items():
        if isinstance(layer, FactorizedConv):
            layer.report = reports[name]
    return Compression(
        network=small,
        by=by,
        budget=limit,
        reports=reports,
        parameters=Change(network.number_of_parameters(), small.number_of_parameters()),
        curves=trade_off(offers, names, [t.name for t in targets if t.is_linear], fixed, dense),
        output_error=output_error,
        error=math.sqrt(sum(replacement.error for replacement in chosen.values())),
        input_shape=None if sample is None else _shapes(sample),
        left=left_alone(network, [t.layer for t in targets], kept),
    )


def _decomposer(
    network: Module,
    targets: Sequence[Target],
    data: Any,
    options: Mapping[str, Mapping[str, Any]],
    rng: np.random.Generator,
) -> Callable[[str, Choice], Replacement]:
    """A function that decomposes a layer, by name, as it was chosen, and measures the error that this makes.

    With calibration ``data`` that is the error of the network's output, else that of the weights over all layers. Sets
    the influence of every target.
    """
    for target in targets:
        target.influence = 1.0 / len(targets)
    outputs = None if data is None else sensitivity(network, targets, data, rng)
    by_name = {target.name: target for target in targets}

    def decompose(name: str, choice: Choice) -> Replacement:
        target = by_name[name]
        replacement = factorized_layer(target, choice, options.get(choice.format or "", {}), rng)
        if outputs is None or choice.format is None:
            return replacement._replace(error=target.influence * replacement.error)
        return replacement._replace(error=effect(network, target, replacement.layer, data, outputs))

    return decompose


def _offers(
    targets: Sequence[Target], names: Sequence[str], by: str, tell: Callable[[float], None]
) -> dict[str, list[Candidate]]:
    """The candidates of every layer, with estimated errors."""
    offers: dict[str, list[Candidate]] = {}
    tell(0.0)
    for done, target in enumerate(targets, start=1):
        offers[target.name] = candidates_of(target, names, by)
        tell(done / len(targets))
    return offers


def _counted(progress: Callable[[int, int], None] | None, layers: int) -> Callable[[float], None]:
    """A function that reports progress: one pass over all layers for estimates, and those of :func:`_spend`."""
    if progress is None:
        return lambda turns: None
    return lambda turns: progress(round(turns * layers), (1 + _ROUNDS) * layers)


def _shapes(sample: Any) -> Any:
    return tuple(sample.shape) if is_array(sample) else {name: tuple(x.shape) for name, x in sample.items()}


def _limit(budget: float, by: str, dense: float, least: float) -> float:
    """The budget as a cost; ValueError if the cheapest choice costs more."""
    scale = 1e-6 if by == "time" else 1.0
    limit = budget * dense if isinstance(budget, float) else min(budget, 1 << 1000) * scale
    if least > limit * (1.0 + 1e-12):
        unit = " microseconds" if by == "time" else f" {by}" if by == "parameters" else " FLOPs"
        raise ValueError(
            f"compress: the budget of {limit / scale:,.0f}{unit} cannot be met; the lowest possible is "
            f"{math.ceil(least / scale):,}, {least / dense:.1%} of the dense network"
        )
    return limit


def _spend(
    budget: float,
    estimates: Mapping[str, Sequence[Candidate]],
    decompose: Callable[[str, Choice], Replacement],
    tell: Callable[[float], None],
) -> tuple[dict[str, Replacement], dict[str, list[Candidate]]]:
    """The replacement of each layer within the budget, and the candidates with corrected errors.

    What is chosen is decomposed, which gives its true error; the estimates for other ranks of its format change by the
    same factor. At the end the best choice among all that were decomposed is taken.
    """
    replacements: dict[str, dict[Choice, Replacement]] = {name: {} for name in estimates}
    offers = {name: list(offer) for name, offer in estimates.items()}
    for done in range(1, _ROUNDS + 1):
        choices = {name: c.rank for name, c in allocate(budget, offers).choices.items()}
        new = [name for name in estimates if choices[name] not in replacements[name]]
        if not new:
            break
        for count, name in enumerate(new, start=1):
            replacements[name][choices[name]] = decompose(name, choices[name])
            offers[name] = _corrected(estimates[name], replacements[name])
            tell(done + count / len(new))
    tell(1.0 + _ROUNDS)
    tried = {name: [c for c in offer if c.rank in replacements[name]] for name, offer in offers.items()}
    best = allocate(budget, tried).choices
    return {name: replacements[name][c.rank] for name, c in best.items()}, offers


def _corrected(estimates: Sequence[Candidate], measured: Mapping[Choice, Replacement]) -> list[Candidate]:
    """The candidates with the errors that were measured; those of other ranks are estimates times the last factor."""
    factors: dict[str | None, float] = {}
    for c in sorted(estimates, key=lambda c: list(measured).index(c.rank) if c.rank in measured else -1):
        if c.rank in measured and c.error > 0.0:
            factors[c.rank.format] = measured[c.rank].error / c.error
    return [
        c._replace(error=measured[c.rank].error if c.rank in measured else factors.get(c.rank.format, 1.0) * c.error)
        for c in estimates
    ]
