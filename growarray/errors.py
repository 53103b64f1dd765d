"""Exceptions of growarray: each is also the built-in exception a caller would expect."""

__all__ = ["DataError", "DeviceError", "GrowArrayError", "GrowthError", "ResumeError", "ShapeError"]


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
