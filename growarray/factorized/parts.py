"""What the formats share: parameters from arrays, named factors, and the vector that a new mode starts from."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.errors import ShapeError
from growarray.nn.module import Parameter

__all__ = [
    "check_mode",
    "factor_dict",
    "inserted",
    "insertion",
    "is_real",
    "keep_entries",
    "parameter",
    "reshape_parameter",
    "two_modes",
]


def parameter(value: Array | Parameter) -> Parameter:
    """The parameter itself, or a new one that holds this array."""
    return value if isinstance(value, Parameter) else Parameter(asarray(value))


def factor_dict(factors: Sequence[Array | Parameter]) -> dict[str, Parameter]:
    """Factors under the names that a state dict of TensorLy-Torch gives them.

    >>> import numpy as np
    >>> list(factor_dict([np.ones(2), np.ones(3)]))
    ['factor_0', 'factor_1']
    """
    return {f"factor_{i}": parameter(factor) for i, factor in enumerate(factors)}


def inserted(factors: dict[str, Parameter], mode: int, new: Parameter) -> dict[str, Parameter]:
    """The factors with a new one before ``mode``, named anew."""
    values = list(factors.values())
    return factor_dict([*values[:mode], new, *values[mode:]])


def two_modes(where: str, factors: dict[str, Parameter], ndim: int) -> None:
    """Raise ShapeError unless there are factors and each has ``ndim`` modes."""
    if not factors:
        raise ShapeError(f"{where}: found no factor, expected one for each mode")
    for name, factor in factors.items():
        if len(factor.shape) != ndim:
            raise ShapeError(f"{where}: {name} has shape {factor.shape}, expected {ndim} axes")


def check_mode(where: str, new_size: int, mode: int, order: int, position: int | None) -> None:
    """Raise unless a mode of ``new_size`` entries can be inserted before ``mode``, with its value at ``position``."""
    if new_size < 1:
        raise ShapeError(f"{where}.transduct: the new mode has {new_size} entries, expected at least 1")
    if not 0 <= mode <= order:
        raise ValueError(f"{where}.transduct: mode {mode} is out of range, expected 0 to {order}")
    if position is not None and not 0 <= position < new_size:
        raise ValueError(f"{where}.transduct: position {position} is out of range, the new mode has {new_size} entries")


def insertion(new_size: int, position: int | None, like: Array) -> Array:
    """Ones, or a one at ``position`` and zeros elsewhere.

    >>> import numpy as np
    >>> insertion(3, 1, like=np.ones(1)).tolist()
    [0.0, 1.0, 0.0]
    """
    return asarray([float(position in (None, i)) for i in range(new_size)], like=like, dtype=like.dtype)


def keep_entries(value: Parameter, axis: int, kept: np.ndarray) -> None:
    """Keep these entries of an axis, of the data, the gradient and the optimizer state of a parameter.

    >>> import numpy as np
    >>> p = Parameter(np.arange(6.0).reshape(2, 3))
    >>> keep_entries(p, 1, np.asarray([0, 2]))
    >>> p.data.tolist()
    [[0.0, 2.0], [3.0, 5.0]]
    """
    old, xp = value.shape, namespace(value.data)
    index = asarray(kept, like=value.data)
    value.data = xp.take(value.data, index, axis=axis)
    value.grad = None if value.grad is None else xp.take(value.grad, index, axis=axis)
    same = {name: slot for name, slot in value.slots.items() if getattr(slot, "shape", None) == old}
    value.slots = {**value.slots, **{name: xp.take(slot, index, axis=axis) for name, slot in same.items()}}


def reshape_parameter(value: Parameter, shape: tuple[int, ...]) -> None:
    """Another shape for the data, the gradient and the optimizer state of a parameter."""
    old, xp = value.shape, namespace(value.data)
    value.data = xp.reshape(value.data, shape)
    value.grad = None if value.grad is None else xp.reshape(value.grad, shape)
    same = {name: slot for name, slot in value.slots.items() if getattr(slot, "shape", None) == old}
    value.slots = {**value.slots, **{name: xp.reshape(slot, shape) for name, slot in same.items()}}


def is_real(value: Any) -> bool:
    """Whether ``value`` is a number, of Python or of NumPy; a bool is none.

    >>> is_real(np.float32(0.5)), is_real(True), is_real("1")
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)
