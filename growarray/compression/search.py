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
from growarray.decompose import Candidate, allocate
from growarray.decompose.arguments import is_int
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


class Made(NamedTuple):
    """A layer in the chosen form, its report as far as that needs no input, and its squared error."""

    layer: Any
    report: ConversionReport
    error: float


def factorized_layer(target: Target, choice: Choice, options: Mapping[str, Any], rng: np.random.Generator) -> Made:
    """Decompose a layer as it was chosen; format None leaves it as it is."""
    dense, kernel = target.layer, target.kernel
    size = dense.number_of_parameters()
    if choice.format is None:
        return Made(dense, ConversionReport(DenseTensor.name, None, tuple(kernel.shape), Change(size, size), 0.0), 0.0)
    kind, xp = FactorizedTensor.kind(choice.format), namespace(kernel)
    weights = {} if target.moment is None else {"weighted": {0 if kind.format.output_last else 1: target.moment}}
    if target.is_linear:
        linear = FactorizedLinear.from_linear(
            dense,
            choice.rank,
            n_tensorized_modes=1,
            factorization=kind.name,
            decomposition_kwargs={**weights, **options},
        )
        gap = xp.astype(linear.matrix() - kernel, xp.float64)
        error = math.sqrt(float(xp.sum(gap * gap)) / max(float(xp.sum(xp.astype(kernel, xp.float64) ** 2)), 1e-300))
        change = Change(size, linear.number_of_parameters())
        report = ConversionReport(kind.name, linear.rank, tuple(kernel.shape), change, error, 1, "converged")
        return Made(linear, report, weighted_error(target, linear.matrix()))
    options = {**kind.format.search_options(math.prod(kernel.shape), choice.rank, rng), **options}
    conv: Any = FactorizedConv.from_conv(
        dense, choice.rank, factorization=choice.format, decomposition_kwargs={**weights, **options}, rng=rng
    )
    return Made(conv, conv.report, weighted_error(target, conv.kernel()))


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
    progress : is told the steps that are done, and how many there are at most: one for each layer whose errors are
        estimated, and one for each decomposition

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
    budget = int(budget) if is_int(budget) else float(budget)
    rng, options = check_rng(rng, "compress"), check_options({} if decomposition is None else decomposition, names)
    targets, stay = chosen_targets(network, keep)
    sample, data = check_inputs(targets[0].kernel, input_shape, calibration)
    if sample is not None:
        observe(network, targets, sample, data)
    for target in targets:
        target.influence = 1.0 / len(targets)
    plain = None if data is None else sensitivity(network, targets, data, rng)
    tell = _counted(progress, len(targets))
    offers = _offers(targets, names, by, tell)
    fixed = network.number_of_parameters() - sum(cost_of(t, Choice(None), by) for t in targets)
    fixed = fixed if by == "parameters" else 0.0
    dense = fixed + sum(max(c.cost for c in offer if c.rank.format is None) for offer in offers.values())
    limit = _limit(budget, by, dense, fixed + sum(min(c.cost for c in offer) for offer in offers.values()))
    named = {target.name: target for target in targets}

    def judge(name: str, choice: Choice) -> Made:
        target = named[name]
        made = factorized_layer(target, choice, options.get(choice.format or "", {}), rng)
        if plain is None or choice.format is None:
            return made._replace(error=target.influence * made.error)
        return made._replace(error=effect(network, target, made.layer, data, plain))

    chosen, offers = _spend(limit - fixed, offers, judge, tell)
    layers = {id(t.layer): chosen[t.name].layer for t in targets if chosen[t.name].layer is not t.layer}
    small = swapped(network, layers)
    reports = {t.name: with_figures(t, chosen[t.name].layer, chosen[t.name].report, measure) for t in targets}
    output_error = None
    if data is not None:
        pairs = {t.name: (t, chosen[t.name].layer) for t in targets if id(t.layer) in layers}
        output_error, errors = compare_outputs(network, small, pairs, data)
        reports |= {name: replace(reports[name], output_error=error) for name, error in errors.items()}
    for name, made in chosen.items():
        if isinstance(made.layer, FactorizedConv):
            made.layer.report = reports[name]
    return Compression(
        small, by, limit, reports,
        Change(network.number_of_parameters(), small.number_of_parameters()),
        trade_off(offers, names, [t.name for t in targets if t.is_linear], fixed, dense), output_error,
        math.sqrt(sum(made.error for made in chosen.values())),
        None if sample is None else _shapes(sample), left_alone(network, [t.layer for t in targets], stay),
    )  # fmt: skip


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
    """The budget as a cost, which the cheapest choice must meet."""
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
    judge: Callable[[str, Choice], Made],
    tell: Callable[[float], None],
) -> tuple[dict[str, Made], dict[str, list[Candidate]]]:
    """What is made of each layer within the budget, and the candidates with corrected errors.

    What is chosen is decomposed by ``judge``, which gives the error that it makes; the estimates for other ranks of
    its format are changed by the same factor. In the end the best choice among all that was decomposed is taken.
    """
    judged: dict[str, dict[Choice, Made]] = {name: {} for name in estimates}
    offers = {name: list(offer) for name, offer in estimates.items()}
    for turn in range(1, _ROUNDS + 1):
        choices = {name: c.rank for name, c in allocate(budget, offers).choices.items()}
        new = [name for name in estimates if choices[name] not in judged[name]]
        if not new:
            break
        for count, name in enumerate(new, start=1):
            judged[name][choices[name]] = judge(name, choices[name])
            offers[name] = _corrected(estimates[name], judged[name])
            tell(turn + count / len(new))
    tell(1.0 + _ROUNDS)
    tried = {name: [c for c in offer if c.rank in judged[name]] for name, offer in offers.items()}
    best = allocate(budget, tried).choices
    return {name: judged[name][c.rank] for name, c in best.items()}, offers


def _corrected(estimates: Sequence[Candidate], made: Mapping[Choice, Made]) -> list[Candidate]:
    """The candidates with the errors that were measured; those of other ranks are estimates times the last factor."""
    factors: dict[str | None, float] = {}
    for c in sorted(estimates, key=lambda c: list(made).index(c.rank) if c.rank in made else -1):
        if c.rank in made and c.error > 0.0:
            factors[c.rank.format] = made[c.rank].error / c.error
    return [
        c._replace(error=made[c.rank].error if c.rank in made else factors.get(c.rank.format, 1.0) * c.error)
        for c in estimates
    ]
