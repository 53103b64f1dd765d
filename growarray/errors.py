"""Exceptions of growarray, each also the built-in exception that a caller would expect, and how they show a value."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

__all__ = [
    "CheckpointError",
    "DataError",
    "DeviceError",
    "GrowArrayError",
    "GrowthError",
    "PlanError",
    "ResumeError",
    "ShapeError",
    "shown",
]


class GrowArrayError(Exception):
    """Base of every exception that growarray raises on its own."""


class ShapeError(GrowArrayError, ValueError):
    """An array has another shape than the operation needs."""


class GrowthError(GrowArrayError, ValueError):
    """A statistic, an update or a growth step cannot be computed."""


class DataError(GrowArrayError, ValueError):
    """A data set cannot be used as it is."""


class ResumeError(GrowArrayError, RuntimeError):
    """A saved run is damaged or belongs to another configuration."""


class DeviceError(GrowArrayError, RuntimeError):
    """A device, or the library that drives it, is not available."""


class CheckpointError(GrowArrayError, ValueError):
    """A file of weights is damaged, hostile, or of a kind that is not supported."""


class PlanError(GrowArrayError, ValueError):
    """A contraction cannot be planned: its equation, its shapes or its options do not allow it."""


_MOST = 200  # characters of a value


class _Shown(reprlib.Repr):
    """Shows arrays by class, dtype and shape, at any depth, and cuts what is long."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 12
        self.maxstring = self.maxother = self.maxlong = 120

    def repr_function(self, x: Any, level: int) -> str:
        return f"function {x.__qualname__}"

    def repr_instance(self, x: Any, level: int) -> str:
        if getattr(x, "shape", None) and hasattr(x, "dtype"):
            return f"{type(x).__name__} of {x.dtype} and shape {tuple(x.shape)}"
        if isinstance(x, Mapping):
            return f"{type(x).__name__}({self.repr_dict(dict(x), level)})"
        if isinstance(x, tuple | list):
            return f"{type(x).__name__}({self.repr_list(list(x), level)})"
        return super().repr_instance(x, level)


def shown(value: Any) -> str:
    """A value for a message: its ``repr`` on one line, shortened; an array by its shape.

    >>> import numpy as np
    >>> shown([2, "a", np.ones((3, 4))])
    "[2, 'a', ndarray of float64 and shape (3, 4)]"
    """
    text = " ".join(line.strip() for line in _SHOWN.repr(value).split("\n"))
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


_SHOWN = _Shown()
