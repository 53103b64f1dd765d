"""What the formats share: parameters from arrays, named factors, and the vector that a new mode starts from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.contraction.checks import is_whole
from growarray.decompose.inputs import check_real
from growarray.errors import ShapeError, shown
from growarray.nn.module import Parameter
from growarray.ops.sizes import whole_number

__all__ = [
    "check_mode",
    "check_size",
    "factor_dict",
    "inserted",
    "insertion",
    "keep_entries",
    "no_fixed_modes",
    "parameter",
    "real_array",
    "reshape_parameter",
    "trained_dtype",
    "two_modes",
]

_MOST = 1000  # parameters of a new tensor, times those of the dense one, above which the rank is a slip
_FEW = 1_000_000  # parameters that are no trouble, whatever they are for


def parameter(value: Array | Parameter) -> Parameter:
    """The parameter itself, or a new one that holds this array; TypeError where it holds no real floating numbers."""
    if isinstance(value, Parameter):
        return value
    array = asarray(value)
    check_real(array, "a part of a factorized tensor", "FactorizedTensor", "real floating")
    return Parameter(array)


def factor_dict(factors: Sequence[Array | Parameter]) -> dict[str, Parameter]:
    """Factors under the names that a state dict of TensorLy-Torch gives them.

    >>> import numpy as np
    >>> list(factor_dict([np.ones(2), np.ones(3)]))
    ['factor_0', 'factor_1']
    """
    if not isinstance(factors, Iterable):
        raise TypeError(f"FactorizedTensor: factors={shown(factors)}, expected a list of arrays, one for each mode")
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
    if whole_number(f"{where}.transduct", "new_size", new_size, 0) < 1:
        raise ShapeError(f"{where}.transduct: the new mode has {new_size} entries, expected at least 1")
    if not is_whole(mode) or not 0 <= mode <= order:
        raise ValueError(f"{where}.transduct: mode {shown(mode)} is out of range, expected 0 to {order}")
    if position is not None and (not is_whole(position) or not 0 <= position < new_size):
        raise ValueError(f"{where}.transduct: position {position} is out of range, the new mode has {new_size} entries")


def insertion(new_size: int, position: int | None, like: Array) -> Array:
    """Ones, or a one at ``position`` and zeros elsewhere.

    >>> import numpy as np
    >>> insertion(3, 1, like=np.ones(1)).tolist()
    [0.0, 1.0, 0.0]
    """
    return asarray([float(position in (None, i)) for i in range(new_size)], like=like, dtype=like.dtype)


def no_fixed_modes(name: str, fixed: Any) -> None:
    """Raise ValueError where modes are to keep their size in a format whose ranks are not those of modes."""
    if fixed is not None:
        raise ValueError(f"fixed_rank_modes={shown(fixed)} is for Tucker, found {name}; leave it out")


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


def real_array(where: str, value: Any, like: Array) -> Array:
    """``value`` in the library and dtype of ``like``; raises TypeError where it holds no real numbers.

    >>> real_array("doc", [1, 2], np.ones(1))
    array([1., 2.])
    """
    try:
        found = asarray(value, like=like)
        real = namespace(found).isdtype(found.dtype, ("bool", "integral", "real floating"))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where} is {type(value).__name__}, expected an array of real numbers ({error})") from error
    if not real:
        raise TypeError(f"{where} holds {found.dtype}, expected real numbers")
    return namespace(found).astype(found, like.dtype, copy=False)


def trained_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of new parameters, float32 for None."""
    try:
        found = np.dtype(np.float32 if dtype is None else dtype)
    except TypeError as error:
        raise TypeError(
            f"FactorizedTensor.new: dtype={shown(dtype)} is none, expected one such as 'float32'"
        ) from error
    if found.kind != "f":
        raise TypeError(f"FactorizedTensor.new: dtype {found} cannot be trained, expected one such as 'float32'")
    return found


def check_size(sizes: tuple[int, ...], rank: Any, shapes: Sequence[Sequence[int]], usable: Any) -> None:
    """Raise ValueError where a rank makes parts of these shapes that are far larger than the tensor ever was."""
    if sum(map(math.prod, shapes)) > max(_MOST * math.prod(sizes), _FEW):
        raise ValueError(
            f"FactorizedTensor.new: rank {rank} makes over {_MOST} times the {math.prod(sizes)} parameters of a dense "
            f"tensor of shape {sizes}, which can use rank {usable} at most; lower it"
        )
