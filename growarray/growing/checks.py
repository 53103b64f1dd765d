"""What statistics refuse before they take it: counts of samples, shapes, saved states."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from growarray.backend import Array, namespace, to_numpy
from growarray.contraction.checks import is_whole
from growarray.errors import GrowthError, ShapeError

__all__ = ["declared_shape", "real_array", "sample_count", "saved_statistic"]

_COUNTS = ("samples", "batches", "traced_batches")


def declared_shape(name: str, shape: Any) -> tuple[int, ...] | None:
    """``shape`` as a tuple of whole numbers of at least 0, or None.

    >>> declared_shape("S", [2, 3])
    (2, 3)
    """
    if shape is None:
        return None
    if not isinstance(shape, Iterable) or not all(map(is_whole, sizes := tuple(shape))):
        raise TypeError(f"{name}: the declared shape is {shape!r}, expected whole numbers such as (3, 3), or None")
    if any(n < 0 for n in sizes):
        raise ShapeError(f"{name}: declared shape {sizes} has a negative dimension")
    return tuple(int(n) for n in sizes)


def sample_count(name: str, samples: Any) -> int:
    """``samples`` as an int of at least 0; a fraction or NaN would make a wrong mean.

    >>> sample_count("S", 4)
    4
    """
    if not is_whole(samples) or samples < 0:
        raise GrowthError(
            f"{name}: found {samples!r} samples; give update(value, samples) a whole number of at least 0"
        )
    return int(samples)


def real_array(name: str, array: Array) -> None:
    """Raise ``TypeError`` for complex values, whose imaginary parts float64 sums would drop without a word."""
    if namespace(array).isdtype(array.dtype, "complex floating"):
        raise TypeError(
            f"{name}: expected real numbers, found {array.dtype}; pass real and imaginary parts as features"
        )


def saved_statistic(name: str, state: Any, expected: Iterable[str], shape: tuple[int, ...] | None) -> dict[str, Any]:
    """The entries of a statistic's state, its sum as a float64 NumPy array of its own.

    Raises ``GrowthError``, or ``ShapeError`` for a sum of another shape than declared.
    """
    expected = sorted(expected)
    found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
    if found != expected:
        raise GrowthError(f"{name}: state has keys {found}, expected {expected}; pass what state_dict() gave")
    values = dict(state)
    for key in _COUNTS:
        if not is_whole(values[key]) or values[key] < 0:
            raise GrowthError(f"{name}: {key} of the state is {values[key]!r}, expected a whole number of at least 0")
        values[key] = int(values[key])
    try:
        values["computes_trace"] = bool(values["computes_trace"])
        values["square_norm_sum"] = float(values["square_norm_sum"])
        values["trace"] = None if values["trace"] is None else float(values["trace"])
        held = None if values["sum"] is None else np.array(to_numpy(values["sum"]), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GrowthError(
            f"{name}: the state holds what is no number ({error}); pass what state_dict() gave"
        ) from error
    if held is not None and shape is not None and held.shape != shape:
        raise ShapeError(f"{name}: state has shape {held.shape}, expected {shape}")
    if not all(map(math.isfinite, (values["square_norm_sum"], values["trace"] or 0.0))) or (
        held is not None and not np.all(np.isfinite(held))
    ):
        raise GrowthError(f"{name}: the state holds NaN or infinite values; it was saved from a broken run")
    return {**values, "sum": held}
