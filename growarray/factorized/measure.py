"""The figures of a report on a conversion: costs of plans, errors on data, measured times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.contraction import Plan
from growarray.decompose.arguments import check_sizes
from growarray.errors import ShapeError
from growarray.factorized.convert import DenseConv
from growarray.factorized.format import Fit
from growarray.factorized.layer import FactorizedKernel
from growarray.factorized.parameters import real_array
from growarray.factorized.report import Change, ConversionReport
from growarray.factorized.settings import layer_indices
from growarray.nn.conv import ConvNd
from growarray.nn.module import Module

_CHUNK = 32  # samples of the calibration data that are run at a time
_RUNS, _SECONDS = 20, 0.3  # most runs of a timing, and the time after which three of them are enough


class Probe(NamedTuple):
    """What a conversion is judged on: the shape of an input, and calibration data (n, c, *spatial), or None."""

    shape: tuple[int, ...]
    data: Array | None


def probes_of(convs: Sequence[DenseConv], calibration: Any, input_shape: Any, measure: bool) -> list[Probe]:
    """One probe for each convolution, none if nothing was given; checked before anything is computed.

    A joint conversion takes one array or shape for all of its layers, or a list with one for each.

    Raises ShapeError: calibration data or input shape are not (n, channels, *spatial) with at least one sample;
    ValueError: the calibration data hold a NaN or an infinity; ``measure`` without a shape; PlanError: the input is
    smaller than the kernel.
    """
    if calibration is None and input_shape is None:
        if measure:
            raise ValueError(
                "from_conv: measure=True needs an input; pass input_shape=(n, c, *spatial) or calibration="
            )
        return []
    each = isinstance(calibration, list | tuple)
    data = _each("calibration", calibration, len(convs), each)
    each = isinstance(input_shape, list | tuple) and any(isinstance(n, list | tuple) for n in input_shape)
    shapes = _each("input_shape", input_shape, len(convs), each)
    return [_probe(conv, *pair) for conv, *pair in zip(convs, data, shapes, strict=True)]


def _each(name: str, value: Any, count: int, each: bool) -> list[Any]:
    """One value for each layer."""
    if not each:
        return [value] * count
    if len(value) != count:
        raise ShapeError(
            f"from_conv: {name} has {len(value)} entries for {count} layers; give one for all, or one for each"
        )
    return list(value)


def _probe(conv: DenseConv, calibration: Any, input_shape: Any) -> Probe:
    channels, axes = conv.weight.shape[1] * conv.groups, conv.weight.ndim - 2
    data = None if calibration is None else real_array("from_conv: calibration", calibration, conv.weight)
    shapes = {} if data is None else {"calibration": tuple(data.shape)}
    shapes |= {} if input_shape is None else {"input_shape": check_sizes(input_shape, "from_conv: input_shape")}
    if not shapes:
        raise ValueError("from_conv: calibration or input_shape has None for a layer; give one for each")
    for name, shape in shapes.items():
        if len(shape) != axes + 2 or shape[1] != channels or min(shape) < 1:
            raise ShapeError(
                f"from_conv: {name} has shape {shape}, expected (n, {channels}, *spatial) with {axes} spatial "
                f"{'size' if axes == 1 else 'sizes'}, each of at least 1"
            )
        _dense(conv).plan(shape)
    if data is not None and not bool(namespace(data).all(namespace(data).isfinite(data))):
        raise ValueError("from_conv: the calibration data hold a NaN or an infinity; leave those samples out")
    return Probe(next(reversed(shapes.values())), data)


def _dense(conv: DenseConv) -> ConvNd:
    """The dense layer as one of ours, whatever library it came from."""
    return ConvNd.of(conv.weight, conv.bias, **conv.geometry)


def conversion_report(
    convs: Sequence[DenseConv], layer: FactorizedKernel, fit: Fit | None, probes: Sequence[Probe], measure: bool
) -> ConversionReport:
    """The report on ``layer``, made of ``convs``; ``probes`` has one for each of them, or is empty."""
    joint: Any = layer
    dense = [_dense(conv) for conv in convs]
    small = [joint[index] for index in layer_indices(layer.layers_shape)] if layer.layers_shape else [joint]
    triples = list(zip(dense, small, probes, strict=True)) if probes else []
    figures: dict[str, Any] = {}
    if triples:
        figures |= plan_figures((d.plan(p.shape), s.plan(p.shape)) for d, s, p in triples)
        figures["input_shape"] = probes[0].shape
    if any(p.data is not None for p in probes):
        figures["output_error"] = relative(output_gap(d, s, p.data) for d, s, p in triples if p.data is not None)
    if measure:
        figures["measured_time"] = total(time_both(d, s, _input(p, d.weight.data)) for d, s, p in triples)
    fitted = fit or Fit()
    return ConversionReport(
        layer.weight.name, layer.rank, layer.kernel_shape,
        Change(sum(d.number_of_parameters() for d in dense), layer.number_of_parameters()),
        fitted.error, fitted.iterations, fitted.reason, fitted.degeneracy, layers=len(dense), **figures,
    )  # fmt: skip


def plan_figures(plans: Iterable[tuple[Plan, Plan]]) -> dict[str, Change]:
    """``flops``, ``predicted_time`` and ``peak_memory`` of pairs of plans: sums, and for the memory the largest."""
    pairs = list(plans)
    peaks = zip(*((a.peak_bytes, b.peak_bytes) for a, b in pairs), strict=True)
    return {
        "flops": total(Change(a.flops, b.flops) for a, b in pairs),
        "predicted_time": total(Change(a.seconds, b.seconds) for a, b in pairs),
        "peak_memory": Change(*map(max, peaks)),
    }


def total(changes: Iterable[Change]) -> Change:
    """Sum of figures before, and of those after.

    >>> total([Change(1, 2), Change(3, 4)])
    Change(before=4, after=6)
    """
    before, after = zip(*changes, strict=True)
    return Change(sum(before), sum(after))


def output_gap(dense: Module, small: Module, data: Array) -> tuple[float, float]:
    """Squared distance of the outputs on ``data``, and squared norm of the dense one's; a few samples at a time."""
    xp = namespace(data)
    gap = size = 0.0
    for start in range(0, data.shape[0], _CHUNK):
        x = data[start : min(start + _CHUNK, data.shape[0]), ...]
        y = xp.astype(dense(x), xp.float64)
        gap += float(xp.sum((xp.astype(small(_fed(small, x)), xp.float64) - y) ** 2))
        size += float(xp.sum(y * y))
    return gap, size


def _fed(layer: Module, x: Array) -> Array:
    """The input in the dtype of a layer, which a conversion may have changed."""
    return namespace(x).astype(x, layer.parameters()[0].data.dtype, copy=False)


def relative(gaps: Iterable[tuple[float, float]]) -> float:
    """Relative error from squared distances and squared norms.

    >>> relative([(1.0, 50.0), (3.0, 50.0)])
    0.2
    """
    gap, size = map(sum, zip(*gaps, strict=True))
    return math.sqrt(gap / size) if size else 0.0 if gap == 0.0 else math.inf


def _input(probe: Probe, like: Array) -> Array:
    """An input of the probe's shape: the data if they have that shape, else random numbers."""
    if probe.data is not None and tuple(probe.data.shape) == probe.shape:
        return probe.data
    return asarray(np.random.default_rng(0).standard_normal(probe.shape), like=like, dtype=like.dtype)


def time_both(dense: Module, small: Module, x: Array) -> Change:
    """Shortest time of a forward pass of each; they take turns, so that both have the same conditions."""
    small_x = _fed(small, x)
    calls = [lambda: dense(x), lambda: small(small_x)]
    times: list[list[float]] = [[], []]
    for call in calls:  # the first run plans
        _seconds(call)
    while len(times[0]) < _RUNS and (len(times[0]) < 3 or sum(map(sum, times)) < _SECONDS):
        for seconds, call in zip(times, calls, strict=True):
            seconds.append(_seconds(call))
    return Change(*map(min, times))


def _seconds(call: Callable[[], Array]) -> float:
    start = time.perf_counter()
    wait = getattr(getattr(call(), "device", None), "synchronize", None)  # of a GPU
    if wait is not None:
        wait()
    return time.perf_counter() - start
