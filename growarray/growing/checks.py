"""Checks of what growing modules and statistics are given: numbers, functions, shapes, saved states."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from growarray.backend import is_array, namespace, to_numpy
from growarray.contraction.checks import is_ordered, is_whole
from growarray.errors import GrowthError, ShapeError, shown
from growarray.nn.module import Module

_COUNTS = ("samples", "batches", "traced_batches")


def as_scalar(value: Any, name: str) -> float:
    """A number, or an array of one element, as a float; ``TypeError`` or ``ValueError`` for anything else."""
    if is_array(value):
        if (size := math.prod(value.shape)) != 1:
            raise ValueError(f"{name}: expected one number, found an array of {size} elements")
        value = float(namespace(value).reshape(value, ()))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, found {type(value).__name__} {shown(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, found {value}; nothing is changed")
    return float(value)


def check_function(function: Any, role: str, owner: str) -> None:
    """Raise ``TypeError`` unless ``function`` is None or a module; names are refused."""
    if function is not None and not isinstance(function, Module):
        raise TypeError(
            f"{owner}: {role} is a {type(function).__name__}, expected a Module; "
            f"use growarray.nn.activation({shown(function)})"
            if isinstance(function, str)
            else f"{owner}: {role} is a {type(function).__name__}, expected a Module such as growarray.nn.ReLU()"
        )


def declared_shape(name: str, shape: Any) -> tuple[int, ...] | None:
    """``shape`` as a tuple of whole numbers of at least 0, or None.

    >>> declared_shape("S", [2, 3])
    (2, 3)
    """
    if shape is None:
        return None
    if not is_ordered(shape) or not all(map(is_whole, sizes := tuple(shape))):
        raise TypeError(f"{name}: the declared shape is {shown(shape)}, expected whole numbers such as (3, 3), or None")
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
            f"{name}: found {shown(samples)} samples; give update(value, samples) a whole number of at least 0"
        )
    return int(samples)


def saved_statistic(name: str, state: Any, expected: Iterable[str], shape: tuple[int, ...] | None) -> dict[str, Any]:
    """The checked entries of a statistic's state; the sum is a float64 NumPy copy.

    Raises ``GrowthError``, or ``ShapeError`` for a sum of another shape than declared.
    """
    expected = sorted(expected)
    keys = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
    if keys != expected:
        raise GrowthError(f"{name}: state has keys {keys}, expected {expected}; pass the result of state_dict()")
    values = dict(state)
    for key in _COUNTS:
        if not is_whole(values[key]) or values[key] < 0:
            raise GrowthError(
                f"{name}: {key} of the state is {shown(values[key])}, expected a whole number of at least 0"
            )
        values[key] = int(values[key])
    try:
        values["computes_trace"] = bool(values["computes_trace"])
        values["square_norm_sum"] = float(values["square_norm_sum"])
        values["trace"] = None if values["trace"] is None else float(values["trace"])
        total = None if values["sum"] is None else np.array(to_numpy(values["sum"]), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GrowthError(
            f"{name}: the state holds a value that is not a number ({error}); pass the result of state_dict()"
        ) from error
    if total is not None and shape is not None and total.shape != shape:
        raise ShapeError(f"{name}: state has shape {total.shape}, expected {shape}")
    if not all(map(math.isfinite, (values["square_norm_sum"], values["trace"] or 0.0))) or (
        total is not None and not np.all(np.isfinite(total))
    ):
        raise GrowthError(f"{name}: the state holds NaN or infinite values; it was saved from a broken run")
    return {**values, "sum": total}
