"""Exceptions of growarray: each is also the built-in exception a caller would expect."""

__all__ = [
    "CheckpointError",
    "DataError",
    "DeviceError",
    "GrowArrayError",
    "GrowthError",
    "PlanError",
    "ResumeError",
    "ShapeError",
]


class GrowArrayError(Exception):
    """Base of every exception that growarray raises on its own."""


class ShapeError(GrowArrayError, ValueError):
    """An array has another shape than the operation needs."""


class GrowthError(GrowArrayError, ValueError):
    """A statistic, an update or a growth step cannot be computed from what there is."""


class DataError(GrowArrayError, ValueError):
    """A data set cannot be used as it is."""


class ResumeError(GrowArrayError, RuntimeError):
    """A saved run is damaged or belongs to another configuration."""


class DeviceError(GrowArrayError, RuntimeError):
    """A device, or the library that drives it, is not available."""


class CheckpointError(GrowArrayError, ValueError):
    """A file of weights is damaged, hostile, or of a kind that is not read."""


class PlanError(GrowArrayError, ValueError):
    """A contraction cannot be planned: its equation, its shapes or its options do not allow it."""
