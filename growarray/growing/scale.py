"""Variance-preserving rescaling, and normalisation of planned changes: factors, and the layers that follow them.

Free functions on weights (out, in, *kernel) of any order, so that linear layers and convolutions share them. Functions
that take a module are methods of every growing layer, under the original's names.

Sources: Yuan et al. 2024 (variance transfer), Evci et al. 2022 (GradMax norm).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from growarray.backend import Array, namespace, to_numpy
from growarray.errors import GrowthError, shown
from growarray.growing.change import scaled, scaled_columns
from growarray.growing.checks import as_scalar
from growarray.growing.layer import GrowingModule, layer_before
from growarray.growing.neighbour import weighted_layers
from growarray.growing.place import Place

RESCALINGS = ("default_vt", "vt_constraint_old_shape", "vt_constraint_new_shape")
NORMALISATIONS = (
    "equalize_second_layer",
    "equalize_extensions",
    "match_extending_layer",
    "weird_normalization",
    "legacy_normalization",
    "gradmax_normalization",
)


def fan_in(weight: Array) -> int:
    """Number of inputs that one output reads: all axes but the first."""
    return math.prod(weight.shape[1:])


def std(array: Array | None) -> float:
    """Standard deviation with ``n - 1`` in the denominator; 0 if there are fewer than two entries, or all are equal.

    >>> import numpy as np
    >>> round(std(np.array([1.0, 3.0])), 4), std(None)
    (1.4142, 0.0)
    """
    if array is None or math.prod(array.shape) < 2:
        return 0.0
    xp = namespace(array)
    values = xp.astype(array, xp.float64, copy=False)
    deviation = float(xp.std(values, correction=1.0))
    return deviation if deviation > 1e-12 * float(xp.max(xp.abs(values))) else 0.0  # the mean of equals is rounded


def rescaling_factors(how: str, previous_weight: Array, weight: Array, added_inputs: int) -> tuple[float, float]:
    """Factors (alpha, beta) for the previous layer's and this layer's existing weights before extension.

    ``default_vt``: (1, sqrt(old / new fan-in)). ``vt_constraint_*``: to variance 1 / fan-in, that of the old or the
    new shape for this layer. Yuan et al. 2024.

    >>> import numpy as np
    >>> rescaling_factors("default_vt", np.ones((3, 2)), np.ones((2, 3)), 1)
    (1.0, 0.8660254037844386)
    """
    if how not in RESCALINGS:
        raise ValueError(f"unknown rescaling {shown(how)}; known: {', '.join(RESCALINGS)}")
    old = fan_in(weight)
    new = old + added_inputs
    if how == "default_vt":
        return 1.0, math.sqrt(old / new) if new else 1.0

    def to_unit(deviation: float, inputs: int) -> float:
        return 1.0 / (math.sqrt(inputs) * deviation) if deviation > 0 and inputs else 1.0

    alpha = to_unit(std(previous_weight), fan_in(previous_weight))
    return alpha, to_unit(std(weight), old if how == "vt_constraint_old_shape" else new)


class Scales(NamedTuple):
    """Factors for the delta, the input extension (omega) and the output extension (alpha)."""

    delta: float
    input_extension: float
    output_extension: float


def _deviation(weight: Array | None) -> float | None:
    """Standard deviation of weights, ``1 / sqrt(fan_in)`` if it is zero, None if there are none."""
    if weight is None or 0 in weight.shape:
        return None
    return std(weight) or 1.0 / math.sqrt(fan_in(weight))


def normalisation_scales(
    how: str,
    weight: Array,
    delta: Array | None,
    omega: Array | None,
    alpha: Array | None,
    previous_weight: Array | None = None,
    std_target: float | None = None,
) -> Scales:
    """Factors that bring a planned change to the standard deviation of what it changes.

    With s the target (default: that of ``weight``, ``1 / sqrt(new inputs)`` if there is none):

    - ``legacy_normalization``, ``weird_normalization``: delta to s; alpha by the factor that would bring omega to s
    - ``equalize_second_layer``: delta and omega to s; alpha by the ratio of the two factors
    - ``equalize_extensions``: omega and alpha to s; delta by the product of the two factors
    - ``match_extending_layer``: each to the deviation of the layer it changes; ``std_target`` is not used
    """
    if how not in NORMALISATIONS or how == "gradmax_normalization":
        raise ValueError(f"unknown normalisation {shown(how)}; known: {', '.join(NORMALISATIONS)}")
    if std_target is not None and not 0 < std_target < math.inf:
        raise ValueError(f"{how}: std_target must be positive and finite, found {std_target}")
    target = std_target or std(weight)
    if not target:
        if omega is None:
            raise ValueError(f"{how}: the weights of the layer have no standard deviation to aim at; pass std_target")
        target = 1.0 / math.sqrt(max(fan_in(omega), 1))

    def to(array: Array | None, wanted: float) -> float:
        deviation = _deviation(array)
        return 1.0 if deviation is None else wanted / deviation

    if how == "match_extending_layer":
        existing = _deviation(weight) or target
        before = _deviation(previous_weight) or 1.0 / math.sqrt(max(fan_in(alpha), 1) if alpha is not None else 1)
        return Scales(to(delta, existing), to(omega, existing), to(alpha, before))
    if how == "equalize_second_layer":
        scale, outer = to(delta, target), to(omega, target)
        return Scales(scale, outer, scale / outer)
    if how == "equalize_extensions":
        outer, inner = to(omega, target), to(alpha, target)
        return Scales(outer * inner, outer, inner)
    return Scales(to(delta, target), 1.0, to(omega, target))


def gradmax_column_factors(weight: Array, omega: Array, scale: float = 1.0) -> np.ndarray | None:
    """Factor for each new neuron's outgoing weights to the mean norm of the existing ones, times ``scale``.

    Columns that are zero keep factor 1; None if no existing weights give a norm to aim at.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"gradmax_normalization: gradmax_scale must be positive and finite, found {scale}")
    axes = tuple(axis for axis in range(weight.ndim) if axis != 1)
    norms = np.sqrt((to_numpy(weight).astype(np.float64) ** 2).sum(axis=axes))
    target = scale * float(norms.mean()) if norms.size else 0.0
    if target == 0.0:
        return None
    norms_of_new = np.sqrt((to_numpy(omega).astype(np.float64) ** 2).sum(axis=axes))
    return np.where(norms_of_new > 0, target / np.where(norms_of_new > 0, norms_of_new, 1.0), 1.0)


def scale_delta(module: GrowingModule, scale: float) -> None:
    """Scale the planned delta and its predicted decrease, by a finite number."""
    scale = as_scalar(scale, f"{module.name}: scale")
    update = module.update
    deltas, decreases = tuple(scaled(d, scale) for d in update.deltas), tuple(d * scale for d in update.decreases)
    module.update = replace(update, deltas=deltas, decreases=decreases)


def scale_extensions(
    module: GrowingModule,
    scale: float | None = None,
    scale_output: float | None = None,
    scale_input: float | None = None,
) -> None:
    """Scale both planned extensions; singular values follow, so that the promised improvement stays right.

    Raises ValueError if a scale is missing or not finite, or the two have different signs: the neurons would raise the
    loss, and their singular values would be the roots of negative numbers.
    """
    name = module.name
    outer, inner = scale if scale_output is None else scale_output, scale if scale_input is None else scale_input
    if outer is None or inner is None:
        raise ValueError(f"{name}: pass scale, or both scale_output and scale_input")
    outer, inner = (as_scalar(value, f"{name}: scale") for value in (outer, inner))
    if outer * inner < 0.0:
        raise ValueError(f"{name}: scale_output {outer} and scale_input {inner} must have the same sign")
    extension = module.update.input_extension
    extended = [layer for layer in weighted_layers(module.previous_module) if layer.extended_output_layer is not None]
    if extension is None or not extended:
        raise GrowthError(f"{name}: one of the two extensions is missing, so they cannot be scaled")
    for layer in extended:
        layer.extended_output_layer = scaled(layer.extended_output_layer, outer)
    module.update = module.update.times(scaled(extension, inner), outer * inner)


def normalise_columns(
    place: Place, normalization_type: str = "gradmax_normalization", gradmax_scale: float = 1.0
) -> None:
    """Bring the planned outgoing weights to the mean norm of the existing ones, over all readers of a place together.

    The only type for a merge is ``gradmax_normalization``; the others need the deviation of one layer.
    """
    if normalization_type != "gradmax_normalization":
        raise NotImplementedError(
            f"{place.name}: {normalization_type} is not defined for a merge; supported: gradmax_normalization"
        )
    planned = [reader.update.input_extension for reader in place.readers]
    if not planned or None in planned:
        raise GrowthError(f"{place.name}: gradmax_normalization needs an input extension; compute the update first")
    xp = namespace(planned[0].weight.data)
    existing = xp.concat([reader.weight.data for reader in place.readers], axis=0)
    factors = gradmax_column_factors(existing, xp.concat([p.weight.data for p in planned], axis=0), gradmax_scale)
    if factors is None:
        warnings.warn(
            f"{place.name}: the existing weights have no norm for gradmax_normalization; nothing is scaled",
            stacklevel=3,
        )
        return
    for reader, part in zip(place.readers, planned, strict=True):
        reader.update = reader.update.times(scaled_columns(part, factors), factors)
    if place not in place.readers:
        place.update = place.update.times(None, factors)


def normalise_update(
    module: GrowingModule,
    std_target: float | None = None,
    normalization_type: str = "legacy_normalization",
    gradmax_scale: float = 1.0,
) -> None:
    """Bring the planned change to the scale of the weights; see ``growing.scale.normalisation_scales``.

    The singular values follow by the square root of a factor, or by the factor itself if they enter the improvement
    linearly (the original takes the root there too).
    """
    update = module.update
    if normalization_type == "gradmax_normalization":
        normalise_columns(module, normalization_type, gradmax_scale)
        return
    if normalization_type in ("equalize_extensions", "match_extending_layer"):
        layer_before(module, normalization_type)
    previous = next(iter(weighted_layers(module.previous_module)), None)
    rows = None if previous is None else previous.extended_output_layer
    delta, omega, alpha, before = (
        None if part is None else part.weight.data for part in (update.delta, update.input_extension, rows, previous)
    )
    scales = normalisation_scales(normalization_type, module.weight.data, delta, omega, alpha, before, std_target)
    if delta is not None:
        scale_delta(module, scales.delta)
    if omega is not None and alpha is not None:
        scale_extensions(module, None, scales.output_extension, scales.input_extension)


def described(array: Array) -> dict[str, float]:
    """Minimum, maximum, mean and standard deviation (n - 1) of an array; NaN if it is empty."""
    if 0 in array.shape:
        return dict.fromkeys(("min", "max", "mean", "std"), math.nan)
    xp = namespace(array)
    return {**{name: float(getattr(xp, name)(array)) for name in ("min", "max", "mean")}, "std": std(array)}
