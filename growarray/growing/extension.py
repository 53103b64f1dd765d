"""Random extensions, variance-preserving rescaling, and normalisation of planned updates: numbers and factors.

Free functions on weight arrays of any order, so that linear layers and convolutions share them.
Weights are (out, in, *kernel); the fan-in is ``in * prod(kernel)``.

Sources: Yuan et al. 2024 (variance transfer), Wu et al. 2020 (neuron pairing), Evci et al. 2022 (GradMax norm).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from growarray.backend import Array, asarray, namespace, to_numpy
from growarray.errors import ShapeError, shown

__all__ = [
    "INITIALISATIONS",
    "NORMALISATIONS",
    "PAIRINGS",
    "RESCALINGS",
    "Scales",
    "drawing",
    "fan_in",
    "gradmax_column_factors",
    "initial_values",
    "normalisation_scales",
    "paired",
    "rescaling_factors",
    "spread",
]

PAIRINGS = ("vv_z_negz",)
RESCALINGS = ("default_vt", "vt_constraint_old_shape", "vt_constraint_new_shape")
NORMALISATIONS = (
    "equalize_second_layer",
    "equalize_extensions",
    "match_extending_layer",
    "weird_normalization",
    "legacy_normalization",
    "gradmax_normalization",
)

Draw = Callable[[tuple[int, ...], "Array | None", int, np.random.Generator], np.ndarray]


def fan_in(weight: Array) -> int:
    """Number of inputs that one output reads: all axes but the first."""
    return math.prod(weight.shape[1:])


def spread(array: Array | None) -> float:
    """Standard deviation with ``n - 1`` in the denominator; 0 where there are fewer than two entries, or all are equal.

    >>> import numpy as np
    >>> round(spread(np.array([1.0, 3.0])), 4), spread(None)
    (1.4142, 0.0)
    """
    if array is None or math.prod(array.shape) < 2:
        return 0.0
    xp = namespace(array)
    values = xp.astype(array, xp.float64, copy=False)
    deviation = float(xp.std(values, correction=1.0))
    return deviation if deviation > 1e-12 * float(xp.max(xp.abs(values))) else 0.0  # the mean of equals is rounded


def _uniform(shape: tuple[int, ...], deviation: float, rng: np.random.Generator) -> np.ndarray:
    bound = math.sqrt(3.0) * deviation
    return rng.uniform(-bound, bound, shape)


def _normal(shape: tuple[int, ...], deviation: float, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0.0, deviation, shape)


def _drawn(distribution: Callable[[tuple[int, ...], float, np.random.Generator], np.ndarray], *, copies: bool) -> Draw:
    def draw(shape: tuple[int, ...], reference: Array | None, inputs: int, rng: np.random.Generator) -> np.ndarray:
        kaiming = math.sqrt(2.0 / max(inputs, 1))
        return distribution(shape, (copies and spread(reference)) or kaiming, rng)

    return draw


INITIALISATIONS: dict[str, Draw] = {
    "copy_uniform": _drawn(_uniform, copies=True),
    "copy_normal": _drawn(_normal, copies=True),
    "kaiming": _drawn(_uniform, copies=False),
    "kaiming_normal": _drawn(_normal, copies=False),
    "zeros": lambda shape, reference, inputs, rng: np.zeros(shape),
}
"""By name: draw values for an extension from its shape, the weights it extends, and the fan-in after extension.

``copy_*`` take over the standard deviation of what exists (Kaiming's where there is none to copy), ``kaiming*`` use
``sqrt(2 / fan_in)``. A callable of the same signature may be used in place of a name."""


def drawing(how: str | Draw) -> Draw:
    """The function of this name, or the function itself; ValueError where the name is unknown, TypeError otherwise."""
    known = ", ".join(INITIALISATIONS)
    if isinstance(how, str) and how not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {shown(how)}; known: {known}")
    if not isinstance(how, str) and not callable(how):
        raise TypeError(f"initialisation: expected a function or one of {known}, found {shown(how)}")
    return INITIALISATIONS[how] if isinstance(how, str) else how


def initial_values(
    how: str | Draw, shape: tuple[int, ...], reference: Array, inputs: int, rng: np.random.Generator
) -> Array:
    """Values of ``shape`` by ``how``, in the library, device and dtype of ``reference``; ValueError if unknown.

    Raises ShapeError where a function of one's own draws another shape.
    """
    values = asarray(drawing(how)(shape, reference, inputs, rng), like=reference, dtype=reference.dtype)
    if tuple(values.shape) != tuple(shape):
        raise ShapeError(f"initialisation {shown(how)}: expected values of shape {shape}, found {tuple(values.shape)}")
    return values


def paired(values: Array, axis: int, sign: float) -> Array:
    """First half along ``axis``, then the same times ``sign``: (V, V) for +1, (Z, -Z) for -1.

    >>> import numpy as np
    >>> paired(np.array([[1.0, 2.0, 9.0, 9.0]]), 1, -1.0).tolist()
    [[1.0, 2.0, -1.0, -2.0]]
    """
    size = values.shape[axis]
    if size % 2:
        raise ValueError(f"neuron pairing needs an even extension, found {size} neurons")
    half = values[: size // 2, ...] if axis == 0 else values[:, : size // 2, ...]
    return namespace(values).concat([half, sign * half], axis=axis)


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

    alpha = to_unit(spread(previous_weight), fan_in(previous_weight))
    return alpha, to_unit(spread(weight), old if how == "vt_constraint_old_shape" else new)


class Scales(NamedTuple):
    """Factors for the delta, the input extension (omega) and the output extension (alpha)."""

    delta: float
    input_extension: float
    output_extension: float


def _deviation(weight: Array | None) -> float | None:
    """Standard deviation of weights, ``1 / sqrt(fan_in)`` where it is zero, None where there are none."""
    if weight is None or 0 in weight.shape:
        return None
    return spread(weight) or 1.0 / math.sqrt(fan_in(weight))


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

    With s the target (default: that of ``weight``, ``1 / sqrt(new inputs)`` where there is none):

    - ``legacy_normalization``, ``weird_normalization``: delta to s; alpha by the factor that would bring omega to s
    - ``equalize_second_layer``: delta and omega to s; alpha by the ratio of the two factors
    - ``equalize_extensions``: omega and alpha to s; delta by the product of the two factors
    - ``match_extending_layer``: each to the deviation of the layer it changes; ``std_target`` is not used
    """
    if how not in NORMALISATIONS or how == "gradmax_normalization":
        raise ValueError(f"unknown normalisation {shown(how)}; known: {', '.join(NORMALISATIONS)}")
    if std_target is not None and not 0 < std_target < math.inf:
        raise ValueError(f"{how}: std_target must be positive and finite, found {std_target}")
    target = std_target or spread(weight)
    if not target:
        if omega is None:
            raise ValueError(f"{how}: the layer has no spread of weights to aim at; pass std_target")
        target = 1.0 / math.sqrt(max(fan_in(omega), 1))

    def to(array: Array | None, wanted: float) -> float:
        deviation = _deviation(array)
        return 1.0 if deviation is None else wanted / deviation

    if how == "match_extending_layer":
        own = _deviation(weight) or target
        before = _deviation(previous_weight) or 1.0 / math.sqrt(max(fan_in(alpha), 1) if alpha is not None else 1)
        return Scales(to(delta, own), to(omega, own), to(alpha, before))
    if how == "equalize_second_layer":
        scale, outer = to(delta, target), to(omega, target)
        return Scales(scale, outer, scale / outer)
    if how == "equalize_extensions":
        outer, inner = to(omega, target), to(alpha, target)
        return Scales(outer * inner, outer, inner)
    return Scales(to(delta, target), 1.0, to(omega, target))


def gradmax_column_factors(weight: Array, omega: Array, scale: float = 1.0) -> np.ndarray | None:
    """Factor for each new neuron's outgoing weights to the mean norm of the existing ones, times ``scale``.

    Columns that are zero keep factor 1; None where no existing weights give a norm to aim at.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"gradmax_normalization: gradmax_scale must be positive and finite, found {scale}")
    axes = tuple(axis for axis in range(weight.ndim) if axis != 1)
    norms = np.sqrt((to_numpy(weight).astype(np.float64) ** 2).sum(axis=axes))
    target = scale * float(norms.mean()) if norms.size else 0.0
    if target == 0.0:
        return None
    found = np.sqrt((to_numpy(omega).astype(np.float64) ** 2).sum(axis=axes))
    return np.where(found > 0, target / np.where(found > 0, found, 1.0), 1.0)
